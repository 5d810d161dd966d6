"""The exercises: solutions pass, blanks and plausible mistakes don't, and the hint names the
mistake.
"""

import ast
import runpy
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from cclkit.errors import ExerciseError
from cclkit.notebook import exercises

ROOT = Path(__file__).parent.parent
SOLUTIONS = {p.stem: p for p in sorted((ROOT / "notebooks" / "solutions").glob("*.py"))}
CHECKS = {
    "00_start_here": {"my_projection": "check_projection"},
    "01_mask_extraction": {"my_stability": "check_stability", "my_nms": "check_nms"},
    "02_tracking": {"my_iou": "check_iou", "my_association": "check_association"},
    "03_ccl_training": {
        "my_assign": "check_assign",
        "my_l_max": "check_l_max",
        "my_l_pull": "check_l_pull",
        "my_l_push": "check_l_push",
    },
    "04_field_training": {"my_weights": "check_weights", "my_bag": "check_bag"},
    "05_lerf_evaluation": {"my_relevancy": "check_relevancy"},
    "06_3dovs_evaluation": {"my_class_ious": "check_class_ious", "my_level": "check_level"},
    "07_ablations": {"my_sign_flip_p": "check_sign_flip", "my_draw": "check_draw"},
    "08_playground": {"my_own_prototypes": "check_own_prototypes"},
    "90_small_models": {"my_j": "check_j"},
}


@pytest.mark.parametrize("notebook, name", [(n, f) for n, fs in CHECKS.items() for f in fs])
def test_solutions_pass_and_print_it(notebook, name, capsys):
    solution = runpy.run_path(str(SOLUTIONS[notebook]))[name]
    check = getattr(exercises, CHECKS[notebook][name])
    check(solution)
    exercises.attempt(check, solution)
    assert capsys.readouterr().out == f"{name}: right, every property holds\n"


def attempts(cell):
    """(check, function) names of a cell's calls `attempt(check, function)`."""
    calls = [
        n
        for n in ast.walk(ast.parse(cell.source))
        if isinstance(n, ast.Call)
        and getattr(n.func, "attr", getattr(n.func, "id", "")) == "attempt"
    ]
    return [tuple(getattr(a, "attr", getattr(a, "id", None)) for a in c.args) for c in calls]


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_blanks_in_the_notebooks_fail_and_have_solutions(path):
    """Every cell tagged exercise holds blanks that fail their check; the solution of the same name
    passes; nothing is attempted elsewhere.
    """
    nb = nbformat.read(path, 4)
    tried = set()
    for cell in (c for c in nb.cells if c.cell_type == "code"):
        found = attempts(cell)
        assert bool(found) == ("exercise" in cell.metadata.get("tags", [])), (
            "attempt(...) belongs in cells tagged exercise, and into each of them"
        )
        functions = [n for n in ast.parse(cell.source).body if isinstance(n, ast.FunctionDef)]
        for check, name in found:
            namespace = {"np": np, "torch": torch}
            exec(
                compile(
                    ast.Module([f for f in functions if f.name == name], []), path.name, "exec"
                ),
                namespace,
            )
            with pytest.raises(ExerciseError, match="put your code where the dots are"):
                getattr(exercises, check)(namespace[name])
            assert path.stem in SOLUTIONS, f"notebooks/solutions/{path.stem}.py is missing"
            getattr(exercises, check)(runpy.run_path(str(SOLUTIONS[path.stem]))[name])
            tried.add(name)
    if path.stem in SOLUTIONS:
        written = {
            n.name
            for n in ast.parse(SOLUTIONS[path.stem].read_text()).body
            if isinstance(n, ast.FunctionDef)
        }
        assert tried == written, (
            f"exercises of {path.name}: {sorted(tried)}; solved: {sorted(written)}"
        )
        assert f"(solutions/{path.stem}.py)" in "\n".join(
            c.source for c in nb.cells if c.cell_type == "markdown"
        ), "the notebook does not say where its solutions are"


cosine = torch.cosine_similarity


def table(T):
    T = T / T.norm(dim=1, keepdim=True)
    return T @ T.T


def pairs(y, equal):
    found = (y[:, None] == y[None]) if equal else (y[:, None] != y[None])
    return found & (y[:, None] != -1) & (y[None] != -1) & ~torch.eye(len(y), dtype=torch.bool)


def iou(a, b):
    a, b = (x.reshape(len(x), -1).astype(float) for x in (a, b))
    both = a @ b.T
    return both, a.sum(1)[:, None], b.sum(1)[None]


def safe(masks, carried):
    both, a, b = iou(masks, carried)
    return both / np.maximum(1, a + b - both)


def mean(x, pair):
    return (x * pair).sum() / pair.sum().clamp_min(1)


def stay(masks, score, limit, better=lambda s: s[None] > s[:, None]):
    return ~(better(score) & (safe(masks, masks) > limit)).any(1)


def greedy(masks, score, limit):
    kept = []
    for i in np.argsort(-score):
        if not kept or safe(masks[[i]], masks[kept]).max() <= limit:
            kept.append(i)
    return np.isin(np.arange(len(masks)), kept)


def ious(answered, truth, n):
    of = np.arange(n)[:, None, None]
    return ((answered == of) & (truth == of)).sum((1, 2)) / np.maximum(
        1, ((answered == of) | (truth == of)).sum((1, 2))
    )


def inside(maps, threshold, value):
    return int(np.argmax([value(m, m > threshold) if (m > threshold).any() else -1 for m in maps]))


def signs(n):
    return 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)


def once(d, rng):
    """Seeds are drawn once a scene, not anew each time it is taken."""
    means = [rng.choice(x, len(x)).mean() for x in d]
    return rng.choice(means, len(d)).mean()


def project(K, pose, points, rotation=lambda R: R.T, divide=lambda z: z, sign=1):
    x = points @ rotation(pose[:3, :3]) + pose[:3, 3]
    return x[:, :2] * [1, sign] / divide(x[:, 2:]) * K.diagonal()[:2] + K[:2, 2]


def js(carried, truth, n, first=1):
    views = [v for v in range(first, len(truth)) if truth[v].sum() >= n]
    return (
        np.mean(
            [(carried[v] & truth[v]).sum() / max(1, (carried[v] | truth[v]).sum()) for v in views]
        )
        if views
        else float("nan")
    )


def tracks_of(codes, labels, n, keep=lambda y: y > 0):
    return np.array([len(set(labels[(codes == c) & keep(labels)])) for c in range(n)])


WRONG = [
    # 00
    (
        "check_projection",
        lambda K, w, p: project(K, w, p, divide=np.ones_like),
        "shrink with distance",
    ),
    ("check_projection", lambda K, w, p: project(K, w, p, sign=-1), "y points down"),
    (
        "check_projection",
        lambda K, w, p: project(K, w, p, rotation=lambda R: R),
        "not with its transpose",
    ),
    (
        "check_projection",
        lambda K, w, p: project(K, np.linalg.inv(w), p),
        "where the world's origin stands",
    ),
    ("check_projection", lambda K, w, p: project(K, w, p) - K[:2, 2], "principal point"),
    (
        "check_projection",
        lambda K, w, p: project(
            K[[0, 0, 2]][:, [0, 1, 2]] * [[1, 1, 1], [0, 0, 1], [1, 1, 1]]
            + np.diag([0, K[0, 0], 0]),
            w,
            p,
        ),
        "Its y|focal length of its own",
    ),
    # 01
    (
        "check_stability",
        lambda x, o: (x > o).sum((1, 2)) / np.maximum(1, (x > 0).sum((1, 2))),
        "four above",
    ),
    (
        "check_stability",
        lambda x, o: (x > o).sum((1, 2)) / (x > -o).sum((1, 2)),
        "no finite number",
    ),
    (
        "check_stability",
        lambda x, o: (x > 1).sum((1, 2)) / np.maximum(1, (x > -1).sum((1, 2))),
        "offset that is passed",
    ),
    (
        "check_stability",
        lambda x, o: (x >= o).sum((1, 2)) / np.maximum(1, (x >= -o).sum((1, 2))),
        "exactly",
    ),
    ("check_nms", greedy, "not greedy"),
    (
        "check_nms",
        lambda m, s, t: stay(m, s, t, lambda s: ~np.eye(len(s), dtype=bool)),
        "highest score",
    ),
    (
        "check_nms",
        lambda m, s, t: stay(m, s, t, lambda s: np.tri(len(s), k=-1, dtype=bool)),
        "not the place in the list",
    ),
    ("check_nms", lambda m, s, t: stay(m, s, 0.7), "exactly"),
    ("check_nms", lambda m, s, t: ~((s[None] > s[:, None]) & (safe(m, m) >= t)).any(1), "exactly"),
    ("check_nms", lambda m, s, t: np.flatnonzero(stay(m, s, t)), "shape"),
    # 08 and 90
    (
        "check_own_prototypes",
        lambda c, y, n: tracks_of(c, y, n, lambda y: y == y) == 1,
        "names none|no second track",
    ),
    (
        "check_own_prototypes",
        lambda c, y, n: tracks_of(c, y, n) <= 1,
        "without a track|No mask at all",
    ),
    ("check_own_prototypes", lambda c, y, n: tracks_of(c, y, n) >= 1, "two tracks"),
    ("check_own_prototypes", lambda c, y, n: np.flatnonzero(tracks_of(c, y, n) == 1), "shape"),
    ("check_j", lambda a, b, n: js(a, b, n, first=0), "only the second counts"),
    ("check_j", lambda a, b, n: js(a, b, 1), "min_px = 2"),
    ("check_j", lambda a, b, n: js(a, b, n + 1), "min_px = 2|fourth|second counts|Three views"),
    ("check_j", lambda a, b, n: js(a, b, 0) if n == 1 else js(a, b, n), "hides the object"),
    ("check_j", lambda a, b, n: np.nan_to_num(js(a, b, n)), "return NaN"),
    ("check_j", lambda a, b, n: a, "one number"),
    # 02
    (
        "check_iou",
        lambda a, b: iou(a, b)[0] / np.maximum(1, iou(a, b)[1] + iou(a, b)[2]),
        "union 3|with itself",
    ),
    ("check_iou", lambda a, b: iou(a, b)[0] / np.maximum(1, iou(a, b)[1]), "union 3"),
    (
        "check_iou",
        lambda a, b: iou(a, b)[0] / (iou(a, b)[1] + iou(a, b)[2] - iou(a, b)[0]),
        "no finite number",
    ),
    ("check_iou", lambda a, b: safe(b, a), "shape"),
    (
        "check_association",
        lambda m, p, t: np.where(safe(m, p).max(1) > t, safe(m, p).argmax(1), -1),
        "count from 1",
    ),
    (
        "check_association",
        lambda m, p, t: np.where(safe(m, p).max(1) >= t, safe(m, p).argmax(1) + 1, -1),
        "not greater",
    ),
    (
        "check_association",
        lambda m, p, t: np.where(safe(m, p).max(1) > 0.5, safe(m, p).argmax(1) + 1, -1),
        "exactly iou_min",
    ),
    ("check_association", lambda m, p, t: safe(m, p).argmax(1) + 1, "below 0.5"),
    (
        "check_association",
        lambda m, p, t: np.where(safe(m, p).max(1) > t, (safe(m, p) > t).argmax(1) + 1, 0),
        "should be -1",
    ),
    # 03
    ("check_assign", lambda T, F: (F @ T.T).argmax(1), "100 times longer"),
    ("check_assign", lambda T, F: table(T)[0], "shape"),
    ("check_assign", lambda T, F: (F @ T.T).argmin(1), "expected the codes"),
    ("check_l_max", lambda T, F, j: (1 - cosine(F, T[j])).sum(), "not a sum"),
    ("check_l_max", lambda T, F, j: cosine(F, T[j]).mean(), "no distance"),
    ("check_l_max", lambda T, F, j: (1 - (F * T[j]).sum(1)).mean(), "Other lengths"),
    ("check_l_max", lambda T, F, j: (1 - cosine(F, T[j].detach())).mean(), "No gradient"),
    ("check_l_max", lambda T, F, j: 1 - cosine(F, T[j]), "shape"),
    ("check_l_max", lambda T, F, j: (1 - cosine(F, T[(F @ T.T).argmax(1)])).mean(), "right angles"),
    (
        "check_l_pull",
        lambda T, j, y: mean(1 - table(T)[j][:, j], y[:, None] == y[None]),
        "no pair with itself",
    ),
    (
        "check_l_pull",
        lambda T, j, y: mean(
            1 - table(T)[j][:, j], (y[:, None] == y[None]) & ~torch.eye(len(y), dtype=torch.bool)
        ),
        "not even with each other",
    ),
    (
        "check_l_pull",
        lambda T, j, y: ((1 - table(T)[j][:, j]) * pairs(y, True)).sum() / pairs(y, True).sum(),
        "no finite number",
    ),
    ("check_l_pull", lambda T, j, y: mean(1 - T[j] @ T[j].T, pairs(y, True)), "twice as long"),
    (
        "check_l_pull",
        lambda T, j, y: mean(1 - cosine(T[j][:, None], T[j][None].detach(), dim=2), pairs(y, True)),
        "is a part of the loss detached",
    ),
    (
        "check_l_push",
        lambda T, j, y, m: mean(table(T)[j][:, j] - m, pairs(y, False)),
        "below the margin",
    ),
    (
        "check_l_push",
        lambda T, j, y, m: mean(torch.relu(table(T)[j][:, j] - 0.7), pairs(y, False)),
        "margin that is passed",
    ),
    (
        "check_l_push",
        lambda T, j, y, m: mean(
            torch.relu(table(T)[j][:, j] - m), pairs(y, False) & (table(T)[j][:, j] > m)
        ),
        "mean is over all three",
    ),
    (
        "check_l_push",
        lambda T, j, y, m: mean(torch.relu(table(T)[j][:, j] - m), y[:, None] != y[None]),
        "y = -1",
    ),
    (
        "check_l_push",
        lambda T, j, y, m: torch.relu(mean(table(T)[j][:, j], pairs(y, False)) - m),
        "one above the margin",
    ),
    # 04
    ("check_weights", lambda a: a * torch.cumprod(1 - a, 0), "in front of the nearest"),
    ("check_weights", lambda a: a / a.sum(), "in front of the nearest"),
    (
        "check_weights",
        lambda a: a * torch.cat([torch.ones(min(1, len(a))), 1 - a[:-1]]),
        "half of a half",
    ),
    (
        "check_weights",
        lambda a: (a * torch.cat([torch.ones_like(a[:1]), torch.cumprod(1 - a, 0)[:-1]])).flip(0),
        "in front of the nearest",
    ),
    (
        "check_weights",
        lambda a: a * torch.cat([torch.ones_like(a[:1]), torch.cumprod(1 - a, 0)[:-1].detach()]),
        "detached",
    ),
    (
        "check_weights",
        lambda a: torch.from_numpy(a.numpy() * np.cumprod(np.append(1, 1 - a.numpy()))[:-1]),
        "It raised RuntimeError",
    ),
    ("check_bag", lambda f, i, w: (f[i] * w[..., None]).mean(1), "not a mean"),
    (
        "check_bag",
        lambda f, i, w: (f[i] * (w / w.sum(1, keepdim=True))[..., None]).sum(1),
        "first number",
    ),
    ("check_bag", lambda f, i, w: f[i].sum(1), "first number"),
    ("check_bag", lambda f, i, w: f[i] * w[..., None], "shape"),
    ("check_bag", lambda f, i, w: (f.detach()[i] * w[..., None]).sum(1), "No gradient"),
    # 05
    (
        "check_relevancy",
        lambda F, q, c, s: torch.sigmoid(s * (F @ q - (F @ c.T).mean(1))),
        "weakest contest",
    ),
    (
        "check_relevancy",
        lambda F, q, c, s: torch.softmax(s * torch.cat([(F @ q)[:, None], F @ c.T], 1), 1)[:, 0],
        "one against one",
    ),
    (
        "check_relevancy",
        lambda F, q, c, s: (
            torch.exp(s * F @ q)[:, None] / (torch.exp(s * F @ q)[:, None] + torch.exp(s * F @ c.T))
        ).amin(1),
        "no finite number|overflow",
    ),
    (
        "check_relevancy",
        lambda F, q, c, s: torch.sigmoid(10 * (F @ q - (F @ c.T).amax(1))),
        "at scale 3",
    ),
    ("check_relevancy", lambda F, q, c, s: F @ q, "The relevancy"),
    ("check_relevancy", lambda F, q, c: F @ q, "It raised TypeError"),
    # 06
    (
        "check_class_ious",
        lambda s, t: ious(np.where(s.max(0) > 0.5, s.argmax(0), -1), t, len(s)),
        "Class 0 has",
    ),
    (
        "check_class_ious",
        lambda s, t: ious(np.where(s.max(0) > 0.1, s.argmax(0), -1), t, len(s)),
        "There is no threshold",
    ),
    (
        "check_class_ious",
        lambda s, t: np.array(
            [((s.argmax(0) == c) & (t == c)).sum() / (t == c).sum() for c in range(len(s))]
        ),
        "no finite number",
    ),
    (
        "check_class_ious",
        lambda s, t: ious(len(s) - 1 - s[::-1].argmax(0), t, len(s)),
        "first one wins",
    ),
    ("check_class_ious", lambda s, t: float(ious(s.argmax(0), t, len(s)).mean()), "shape"),
    ("check_level", lambda m, t: inside(m, t, lambda x, i: x.max()), "not the maximum"),
    ("check_level", lambda m, t: int(m.mean((1, 2)).argmax()), "inside the mask"),
    ("check_level", lambda m, t: inside(m, t, lambda x, i: i.sum()), "mean counts"),
    (
        "check_level",
        lambda m, t: inside(m, 0.4, lambda x, i: x[i].mean()),
        "threshold that is passed",
    ),
    (
        "check_level",
        lambda m, t: int(np.argmax([x[x >= t].mean() if (x >= t).any() else -1 for x in m])),
        "0.4 is not above",
    ),
    # 07
    ("check_sign_flip", lambda m: (signs(len(m)) @ m >= m.sum() - 1e-9).mean(), "One scene"),
    (
        "check_sign_flip",
        lambda m: (np.abs(signs(len(m)) @ m) > abs(m.sum()) + 1e-9).mean(),
        "equally far",
    ),
    ("check_sign_flip", lambda m: 2 / 2 ** len(m), "equally far counts"),
    (
        "check_sign_flip",
        lambda m: (np.abs(signs(len(m)) @ np.sign(m)) >= abs(np.sign(m).sum()) - 1e-9).mean(),
        "3, 2 and -1",
    ),
    (
        "check_draw",
        lambda d, rng: np.mean([x.mean() for x in d]),
        "scenes are drawn with replacement",
    ),
    (
        "check_draw",
        lambda d, rng: np.mean([d[s].mean() for s in rng.integers(len(d), size=len(d))]),
        "seeds are drawn with replacement",
    ),
    (
        "check_draw",
        lambda d, rng: rng.choice(np.concatenate(d), sum(map(len, d))).mean(),
        "weigh alike",
    ),
    ("check_draw", once, "drawn anew"),
    (
        "check_draw",
        lambda d, rng: np.mean([rng.choice(x, len(x)).mean() for x in d]),
        "scenes are drawn",
    ),
    ("check_draw", lambda d, rng: np.array([x.mean() for x in d]), "one finite number"),
]


@pytest.mark.parametrize(
    "check, function, hint", WRONG, ids=[f"{c}-{i}" for i, (c, _, _) in enumerate(WRONG)]
)
def test_plausible_mistakes_are_named(check, function, hint, capsys):
    with pytest.raises(ExerciseError, match=hint), np.errstate(all="ignore"):
        getattr(exercises, check)(function)
    with np.errstate(all="ignore"):
        exercises.attempt(getattr(exercises, check), function)
    assert "not yet" in capsys.readouterr().out
