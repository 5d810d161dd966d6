"""The exercises: solutions pass, blanks and plausible mistakes don't, and the hint names the mistake."""

import ast
import runpy
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from cclkit import exercises
from cclkit.errors import ExerciseError

ROOT = Path(__file__).parent.parent
SOLUTIONS = {p.stem: p for p in sorted((ROOT / "solutions").glob("*.py"))}
CHECKS = {
    "02_tracking": {"my_iou": "check_iou", "my_association": "check_association"},
    "03_ccl_training": {"my_assign": "check_assign", "my_l_max": "check_l_max", "my_l_pull": "check_l_pull", "my_l_push": "check_l_push"},
    "05_lerf_evaluation": {"my_relevancy": "check_relevancy"},
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
    calls = [n for n in ast.walk(ast.parse(cell.source)) if isinstance(n, ast.Call) and getattr(n.func, "attr", getattr(n.func, "id", "")) == "attempt"]
    return [tuple(getattr(a, "attr", getattr(a, "id", None)) for a in c.args) for c in calls]


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_blanks_in_the_notebooks_fail_and_have_solutions(path):
    """Every cell tagged exercise holds blanks that fail their check; the solution of the same name passes; nothing is attempted elsewhere."""
    nb = nbformat.read(path, 4)
    tried = set()
    for cell in (c for c in nb.cells if c.cell_type == "code"):
        found = attempts(cell)
        assert bool(found) == ("exercise" in cell.metadata.get("tags", [])), "attempt(...) belongs in cells tagged exercise, and into each of them"
        functions = [n for n in ast.parse(cell.source).body if isinstance(n, ast.FunctionDef)]
        for check, name in found:
            namespace = {"np": np, "torch": torch}
            exec(compile(ast.Module([f for f in functions if f.name == name], []), path.name, "exec"), namespace)
            with pytest.raises(ExerciseError, match="put your code where the dots are"):
                getattr(exercises, check)(namespace[name])
            assert path.stem in SOLUTIONS, f"solutions/{path.stem}.py is missing"
            getattr(exercises, check)(runpy.run_path(str(SOLUTIONS[path.stem]))[name])
            tried.add(name)
    if path.stem in SOLUTIONS:
        written = {n.name for n in ast.parse(SOLUTIONS[path.stem].read_text()).body if isinstance(n, ast.FunctionDef)}
        assert tried == written, f"exercises of {path.name}: {sorted(tried)}; solved: {sorted(written)}"
        assert f"../solutions/{path.stem}.py" in "\n".join(c.source for c in nb.cells if c.cell_type == "markdown"), "the notebook does not say where its solutions are"


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


WRONG = [
    # 02
    ("check_iou", lambda a, b: iou(a, b)[0] / np.maximum(1, iou(a, b)[1] + iou(a, b)[2]), "union 3|with itself"),
    ("check_iou", lambda a, b: iou(a, b)[0] / np.maximum(1, iou(a, b)[1]), "union 3"),
    ("check_iou", lambda a, b: iou(a, b)[0] / (iou(a, b)[1] + iou(a, b)[2] - iou(a, b)[0]), "no finite number"),
    ("check_iou", lambda a, b: safe(b, a), "shape"),
    ("check_association", lambda m, p, t: np.where(safe(m, p).max(1) > t, safe(m, p).argmax(1), -1), "count from 1"),
    ("check_association", lambda m, p, t: np.where(safe(m, p).max(1) >= t, safe(m, p).argmax(1) + 1, -1), "not greater"),
    ("check_association", lambda m, p, t: np.where(safe(m, p).max(1) > 0.5, safe(m, p).argmax(1) + 1, -1), "exactly iou_min"),
    ("check_association", lambda m, p, t: safe(m, p).argmax(1) + 1, "below 0.5"),
    ("check_association", lambda m, p, t: np.where(safe(m, p).max(1) > t, (safe(m, p) > t).argmax(1) + 1, 0), "should be -1"),
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
    ("check_l_pull", lambda T, j, y: mean(1 - table(T)[j][:, j], y[:, None] == y[None]), "no pair with itself"),
    ("check_l_pull", lambda T, j, y: mean(1 - table(T)[j][:, j], (y[:, None] == y[None]) & ~torch.eye(len(y), dtype=torch.bool)), "not even with each other"),
    ("check_l_pull", lambda T, j, y: ((1 - table(T)[j][:, j]) * pairs(y, True)).sum() / pairs(y, True).sum(), "no finite number"),
    ("check_l_pull", lambda T, j, y: mean(1 - T[j] @ T[j].T, pairs(y, True)), "twice as long"),
    ("check_l_pull", lambda T, j, y: mean(1 - cosine(T[j][:, None], T[j][None].detach(), dim=2), pairs(y, True)), "is a part of the loss detached"),
    ("check_l_push", lambda T, j, y, m: mean(table(T)[j][:, j] - m, pairs(y, False)), "below the margin"),
    ("check_l_push", lambda T, j, y, m: mean(torch.relu(table(T)[j][:, j] - 0.7), pairs(y, False)), "margin that is passed"),
    ("check_l_push", lambda T, j, y, m: mean(torch.relu(table(T)[j][:, j] - m), pairs(y, False) & (table(T)[j][:, j] > m)), "mean is over all three"),
    ("check_l_push", lambda T, j, y, m: mean(torch.relu(table(T)[j][:, j] - m), y[:, None] != y[None]), "y = -1"),
    ("check_l_push", lambda T, j, y, m: torch.relu(mean(table(T)[j][:, j], pairs(y, False)) - m), "one above the margin"),
    # 05
    ("check_relevancy", lambda F, q, c, s: torch.sigmoid(s * (F @ q - (F @ c.T).mean(1))), "weakest contest"),
    ("check_relevancy", lambda F, q, c, s: torch.softmax(s * torch.cat([(F @ q)[:, None], F @ c.T], 1), 1)[:, 0], "one against one"),
    ("check_relevancy", lambda F, q, c, s: (torch.exp(s * F @ q)[:, None] / (torch.exp(s * F @ q)[:, None] + torch.exp(s * F @ c.T))).amin(1), "no finite number|overflow"),
    ("check_relevancy", lambda F, q, c, s: torch.sigmoid(10 * (F @ q - (F @ c.T).amax(1))), "at scale 3"),
    ("check_relevancy", lambda F, q, c, s: F @ q, "The relevancy"),
    ("check_relevancy", lambda F, q, c: F @ q, "It raised TypeError"),
]


@pytest.mark.parametrize("check, function, hint", WRONG, ids=[f"{c}-{i}" for i, (c, _, _) in enumerate(WRONG)])
def test_plausible_mistakes_are_named(check, function, hint, capsys):
    with pytest.raises(ExerciseError, match=hint), np.errstate(all="ignore"):
        getattr(exercises, check)(function)
    with np.errstate(all="ignore"):
        exercises.attempt(getattr(exercises, check), function)
    assert "not yet" in capsys.readouterr().out
