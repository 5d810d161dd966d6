"""Experiments: the arms of the paper's ablation, on a feature-level population and on
whole scenes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cclkit.foundation.simulated import SimulationConfig
from cclkit.method.codebook_fit import CodebookConfig

from ..errors import ConfigError, EvaluationError
from ..evaluation import lerf_ovs
from ..evaluation.consistency import cohens_kappa
from ..evaluation.metrics import min_max
from ..evaluation.protocols import PROTOCOLS, Evaluation, evaluate_scene
from ..foundation.simulated import FeatureSpace, seeded
from ..gaussians.rasterize import rasterize
from ..method.codebook_fit import Codebook, fit_codebook
from ..method.codebook_repair import colliding_labels
from ..method.masks import LEVELS
from ..runs.run import Run
from ..scenes.correspondence import corresponding_pixels
from ..scenes.scene import LabelledObject

ARMS: dict[str, dict] = {
    "baseline": {"lambda_pull": 0.0, "lambda_push": 0.0},
    "pull": {"lambda_push": 0.0},
    "push": {"lambda_pull": 0.0},
    "both": {},
    "shuffled": {"shuffle_labels": True},
}
"""Rows of the paper's Table 2 as changes to the configured codebook, and a control whose track
labels mean nothing.
"""

REMEDIES: dict[str, dict] = {
    "random": {"init": "random"},
    "random, split": {"init": "random", "collisions": "split"},
    "random, centroids": {"init": "random", "collisions": "centroids"},
    "random, revive": {"init": "random", "revive_every": 50},
    "random, load balance": {"init": "random", "load_balance": 3.0},
    "split": {"collisions": "split"},
    "centroids": {"collisions": "centroids"},
    "soft": {"collisions": "soft"},
    "load balance": {"load_balance": 1.0},
    "tracks": {"init": "tracks"},
    "label means": {"normalisation": "labels"},
    "ema": {"update": "ema"},
}
"""What the paper leaves open about two labels on one prototype and prototypes that win nothing, as
changes to the configured codebook.
"""

PAPER_TABLE_2 = {"baseline": 56.4, "pull": 59.5, "push": 60.4, "both": 65.6}
"""mIoU % on LERF-OVS, mean of four scenes (paper, Table 2). Another data set: a yardstick for
signs, not for sizes.
"""


# ----------------------------------------------------------------- feature-level population


@dataclass(frozen=True)
class Population:
    """Mask features of known classes: what the codebook stage sees, without images."""

    features: Tensor  # [B, d] float32
    classes: np.ndarray  # [B] int: 0..C-1
    labels: Tensor  # [B] int64: class + 1, or -1
    text: Tensor  # [C, d] float32: one query per class


def population(
    seed: int,
    *,
    n_classes: int = 20,
    n_views: int = 20,
    incomplete: float = 0.4,
    missing: tuple[float, float] = (0.4, 0.8),
    unlabelled: float = 0.3,
    observed: float = 1.0,
    split: float = 0.0,
    merged: float = 0.0,
    simulation: SimulationConfig = SimulationConfig(),
) -> Population:
    """Every class once per view; a share of the masks is incomplete and drifts towards its class's
    confuser.

    ``missing`` bounds the missing share of an incomplete mask (uniform), which is how far it drifts
    from its class (0) to its confuser (1). ``unlabelled``: share of masks that their track lost.
    ``observed``: share of the classes that are tracked at all, as those of the first view are;
    masks of the others have no label. ``split``: share of masks that come as two pieces.
    ``merged``: share of masks that swallow about as much of another class.
    """
    simulation = replace(simulation, seed=seed)
    space, rng = FeatureSpace(simulation), seeded(seed, "population")
    names = [f"class {chr(97 + c // 26)}{chr(97 + c % 26)}" for c in range(n_classes)]
    directions = [space.words(n.split()[-1]) for n in names]
    order, confuser = rng.permutation(n_classes), np.zeros(n_classes, np.int64)
    confuser[order] = np.roll(order, 1)  # one cycle, so that no class is its own confuser
    # of their own, so that the masks without them stay the same
    pieces = seeded(seed, "population, pieces")
    tracked = set(pieces.permutation(n_classes)[: round(observed * n_classes)].tolist())
    features, classes, labels = [], [], []
    for _ in range(n_views):
        for c in range(n_classes):
            gone = rng.uniform(*missing) if rng.random() < incomplete else 0.0
            found = [space.drifted(directions[c], directions[confuser[c]], gone, rng)]
            label = -1 if rng.random() < unlabelled or c not in tracked else c + 1
            kind = pieces.random()
            if kind < split:
                first = pieces.uniform(0.35, 0.65)
                found = [
                    space.drifted(directions[c], directions[confuser[c]], missing_here, pieces)
                    for missing_here in (first, 1 - first)
                ]
            elif kind < split + merged:
                other = (c + pieces.integers(1, n_classes)) % n_classes
                found = [
                    space.drifted(
                        directions[c], directions[other], pieces.uniform(0.35, 0.65), pieces
                    )
                ]
            features += found
            classes += [c] * len(found)
            labels += [label] * len(found)
    text = np.stack([space.text(n, d) for n, d in zip(names, directions)])
    return Population(
        torch.from_numpy(np.array(features)).float(),
        np.array(classes),
        torch.tensor(labels),
        torch.from_numpy(text).float(),
    )


def population_miou(book: Codebook, people: Population) -> float:
    """mIoU % over classes when every mask answers with the class whose text is nearest to its
    code's prototype.
    """
    predicted = (book.prototypes @ people.text.T).argmax(1)[book.codes(people.features)].numpy()
    ious = []
    for c in range(len(people.text)):
        a, b = predicted == c, people.classes == c
        ious.append((a & b).sum() / max(1, (a | b).sum()))
    return 100 * float(np.mean(ious))


def population_collisions(book: Codebook, people: Population) -> float:
    """Share in % of the labels whose commonest code is another label's commonest code too."""
    return (
        100
        * colliding_labels(book.codes(people.features), people.labels)
        / max(1, len(people.labels[people.labels != -1].unique()))
    )


def mechanism(
    config: CodebookConfig,
    *,
    seeds: Sequence[int],
    arms: Sequence[str] = tuple(ARMS),
    measure: Callable[[Codebook, Population], float] = population_miou,
    **of_population,
) -> dict[str, list[float]]:
    """mIoU % (or another ``measure``) of every arm of ARMS and REMEDIES, one value per seed; a seed
    draws the population and starts the codebook.
    """
    out: dict[str, list[float]] = {arm: [] for arm in arms}
    for seed in seeds:
        people = population(seed, **of_population)
        for arm in arms:
            book = fit_codebook(
                people.features, people.labels, replace(config, **(ARMS | REMEDIES)[arm]), seed=seed
            )
            out[arm].append(measure(book, people))
    return out


# ----------------------------------------------------------------- whole scenes


def index_map_miou(run: Run) -> float:
    """mIoU % of the scene's own protocol on the 2D index maps of labelled training views, before
    any field.

    What the codes alone are worth: no rendering between the codebook and the query. Labelled views
    that are held out have no index maps and are left out.
    """
    return codes_miou(run, run.index_maps, views="training")


def codes_miou(
    run: Run, codes_of: Callable[[str], np.ndarray], *, views: str = "all"
) -> float:  # view name -> [2, H, W] int
    """mIoU % of the scene's own protocol on any code maps of its labelled views. Raises
    EvaluationError for a scene without labels.
    """

    e = evaluate_scene(
        run.scene,
        lambda reads, name, texts: run.scores(reads, name, texts, code_maps=codes_of(name)),
        replace(run.config.evaluation, views=views),
    )
    return 100 * e.aggregates["pooled"]["miou"]


def scene_miou(
    run: Run, relevancy: Callable[[str, Sequence[str]], Tensor], *, views: str = "all"
) -> float:
    """mIoU % of the scene's own protocol, the relevancy maps [P, 2, H, W] of a view's texts coming
    from a function. Raises EvaluationError when the protocol reads something else.
    """

    def scores(reads: str, name: str, texts):
        if reads != "relevancy":
            raise EvaluationError(
                f"evaluation.protocol={run.config.evaluation.protocol!r} reads {reads}, and here"
                " are relevancy maps; use langsplat or ovs3d_langsplat"
            )
        return relevancy(name, texts)

    return (
        100
        * evaluate_scene(run.scene, scores, replace(run.config.evaluation, views=views)).aggregates[
            "pooled"
        ]["miou"]
    )


def scene_ablation(
    run: Run, *, seeds: Sequence[int], arms: Sequence[str] = tuple(ARMS)
) -> dict[str, list[float]]:
    """mIoU % of every arm on the scene's 2D index maps, one value per seed.

    A seed drives whatever is simulated of the front end and the codebook's start, so its spread is
    that of repeating the experiment on this scene, not of scenes.
    """
    out: dict[str, list[float]] = {arm: [] for arm in arms}
    for seed in seeds:
        for arm in arms:
            changes = {f"codebook__{k}": v for k, v in ARMS[arm].items()}
            out[arm].append(
                index_map_miou(run.vary(seed=seed, front_end__simulation__seed=seed, **changes))
            )
    return out


# ----------------------------------------------------------------- what a protocol does to a number


def every_protocol(run: Run, **settings) -> dict[str, Evaluation | str]:
    """One field under every protocol, with evaluation ``settings`` (views, truth, …): its
    evaluation, or why it can't be.
    """
    out: dict[str, Evaluation | str] = {}
    for name in PROTOCOLS:
        try:
            out[name] = evaluate_scene(
                run.scene, run.scores, replace(run.config.evaluation, protocol=name, **settings)
            )
        except EvaluationError as e:
            out[name] = str(e)
    return out


def protocol_traps(run: Run) -> list[tuple[str, float, float]]:
    """What happens to langsplat's numbers when one step is done another way: (step, mIoU %,
    localisation %), the protocol first.

    On a scene with LERF-OVS labels, all labelled views. Each variant has been somebody's mistake or
    another protocol's rule.
    """
    published = lerf_ovs.PROTOCOLS["langsplat"]
    names = [v.name for v in run.scene.views if v.name in run.scene.labels]
    # a list without the held-out views, as renderings on disk are
    rendered = [v.name for v in run.scene.training_views]
    # what "frame number minus one" gives
    position = {v: run.scene.views.index(run.scene.view(v)) for v in names}

    def score(
        maps: Callable[[str, tuple[str, ...]], Tensor], p=published, level: int | None = None
    ) -> tuple[float, float]:
        ious, hits = [], []
        for name in names:
            units = run.scene.labels[name]
            for unit, stack in zip(units, maps(name, tuple(u.category for u in units))):
                r = lerf_ovs.evaluate_query(stack, unit.mask, unit.boxes, protocol=p)
                ious.append(r.iou if level is None else r.ious[level])
                hits.append(r.hit)
        return 100 * float(np.nanmean(ious)), 100 * float(np.mean(hits))

    def scaled(scale: float):
        return run.vary(query__rule="relevancy", query__scale=scale).relevancy

    cache: dict = {}

    def relevancy(name: str, texts):
        if (name, texts) not in cache:
            cache[name, texts] = run.scores("relevancy", name, texts)
        return cache[name, texts]

    width = run.scene.views[0].camera.width
    in_proportion = max(1, round(published.box * width / 988))
    return [
        ("as published (langsplat)", *score(relevancy)),
        (
            "views by list position, not by name",
            *score(
                lambda name, texts: relevancy(
                    rendered[min(position[name], len(rendered) - 1)], texts
                )
            ),
        ),
        # every maximum is 1 then, so the first level wins
        (
            "maps stretched to 0..1 before choosing a level",
            *score(relevancy, level=0),
        ),
        ("no smoothing, no vote", *score(relevancy, replace(published, box=0, vote=0))),
        (
            f"smoothing box of {in_proportion}, in proportion to the image",
            *score(relevancy, replace(published, box=in_proportion)),
        ),
        ("box and vote of langsplat_v2", *score(relevancy, lerf_ovs.PROTOCOLS["langsplat_v2"])),
        ("factor 1 instead of 10", *score(scaled(1.0))),
        ("factor 100 instead of 10", *score(scaled(100.0))),
        (
            "threshold 0.4 on the plain stretched map",
            *score(relevancy, replace(published, stretch=False)),
        ),
        (
            "threshold 0.4 on the relevancy itself",
            *score(relevancy, replace(published, stretch=False, min_max=False)),
        ),
    ]


def best_threshold(
    values: np.ndarray, truth: np.ndarray, steps: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """Thresholds [steps] in 0..1 and the IoU of ``values`` [H, W] above each with
    ``truth`` [H, W].
    """
    at = np.arange(steps) / steps
    above, both = (
        np.sort(v, axis=None) for v in (values.astype(np.float64), values[truth].astype(np.float64))
    )
    n, hit = (
        len(above) - np.searchsorted(above, at, "right"),
        len(both) - np.searchsorted(both, at, "right"),
    )
    union = n + len(both) - hit
    return at, np.where(union > 0, hit / np.maximum(union, 1), 0.0)


FAILURES = (
    "found",
    "the other level has it",
    "another threshold has it",
    "something else answers",
    "no map has it",
)
"""What became of a unit under langsplat, first that applies; found is IoU of at least one half."""


def failure(stack: np.ndarray, unit: LabelledObject) -> str:
    """Which of FAILURES a unit is, from its relevancy [L, H, W]. "something else answers": the
    answer misses the region altogether.
    """
    result, steps = (
        lerf_ovs.evaluate_query(stack, unit.mask, unit.boxes),
        lerf_ovs.query_steps(stack),
    )
    if result.iou >= 0.5:
        return FAILURES[0]
    if result.ious.max() >= 0.5:
        return FAILURES[1]
    if max(best_threshold(min_max(s), unit.mask)[1].max() for s in steps.smoothed) >= 0.5:
        return FAILURES[2]
    return FAILURES[3] if not (result.mask & unit.mask).any() else FAILURES[4]


FIELD_ARMS: dict[str, dict] = {
    "joint": {"field__mode": "joint"},
    "joint, geometry left alone": {"field__mode": "joint", "field__joint_geometry": False},
    "frozen, whole views": {"field__mode": "rasterised"},
    "frozen, cached, K = 64": {
        "field__mode": "cached",
        "field__area_weighted": True,
        "field__top_k": 64,
    },
    "frozen, cached, K = 16": {
        "field__mode": "cached",
        "field__area_weighted": True,
        "field__top_k": 16,
    },
    "frozen, cached, K = 4": {
        "field__mode": "cached",
        "field__area_weighted": True,
        "field__top_k": 4,
    },
    "frozen, cached per mask, K = 16": {
        "field__mode": "cached",
        "field__area_weighted": False,
        "field__top_k": 16,
    },
    "frozen, whole views, from votes": {"field__mode": "rasterised", "field__init": "votes"},
    "frozen, cached, K = 16, from votes": {
        "field__mode": "cached",
        "field__area_weighted": True,
        "field__top_k": 16,
        "field__init": "votes",
    },
}
"""Ways to train the field, each one change away from the one before: the semantic gradient, then
joint training, then whole views are given up, then blending entries (twice), then the weights by
area. The last two begin with the closed form.
"""


def field_study(
    run: Run, *, iterations: int, arms: Sequence[str] = tuple(FIELD_ARMS), same_time: bool = True
) -> list[dict]:
    """What sampling, truncation and frozen geometry do to the field: a row for each arm after equal
    iterations and, with ``same_time``, after equal time.

    Equal iterations are ``iterations`` for every arm (the reconstruction of frozen arms has its
    own). Equal time is what "frozen, whole views" took for them; iterations of the other arms are
    scaled by their own measured seconds, the blending cache's build included. Seconds are those of
    the machine that computed the artefacts. Rows hold arm, equal, iterations, seconds, memory_mb
    (most that the process held in these stages), loss (cross-entropy over all masked pixels of the
    training views, both levels), kappa (see `view_kappa`) and miou % of the scene's protocol.
    """
    whole = "frozen, whole views"
    if same_time and whole not in arms:
        raise ConfigError(
            f"arms {list(arms)} lack {whole!r}, whose time the others get; add it, or pass"
            " same_time=False"
        )

    def trained(arm: str, n: int) -> tuple[Run, float, float]:
        own = run.vary(
            **FIELD_ARMS[arm],
            **{
                (
                    "gaussians__iterations"
                    if FIELD_ARMS[arm]["field__mode"] == "joint"
                    else "field__iterations"
                ): n
            },
        )
        build = (
            own.ensure("blending").record["wall_time_s"]
            if own.config.field.mode == "cached"
            else 0.0
        )
        return own, own.ensure("field").record["wall_time_s"], build

    def row(arm: str, equal: str, n: int, own: Run, seconds: float) -> dict:
        stages = [
            own.ensure(s).record["peak_memory_mb"]
            for s in ("blending", "field")
            if s in own.stages()
        ]
        return {
            "arm": arm,
            "equal": equal,
            "iterations": n,
            "seconds": seconds,
            "memory_mb": max(stages),
            "loss": field_cross_entropy(own),
            "kappa": view_kappa(own),
            "miou": 100 * own.evaluation()["aggregates"]["pooled"]["miou"],
        }

    first = {arm: trained(arm, iterations) for arm in arms}
    rows = [
        row(arm, "iterations", iterations, own, seconds + build)
        for arm, (own, seconds, build) in first.items()
    ]
    if same_time:
        budget = first[whole][1]
        for arm, (_, seconds, build) in first.items():
            n = max(1, round(iterations * (budget - build) / seconds))
            own, seconds, build = trained(arm, n)
            rows.append(row(arm, "time", n, own, seconds + build))
    return rows


EQUAL_ARMS: dict[str, dict] = {
    **{arm: FIELD_ARMS[arm] for arm in ("frozen, cached, K = 16", "frozen, cached, K = 4")},
    "frozen, cached, K = 4, fewer pixels": (
        FIELD_ARMS["frozen, cached, K = 4"] | {"field__pixels_per_mask": 128}
    ),
}
"""Cached ways whose time to equal mIoU is measured; the last also has less to build."""


def time_to_equal(
    run: Run, *, iterations: int, arms: Mapping[str, dict] = EQUAL_ARMS, doublings: int = 3
) -> list[dict]:
    """How long cached trainings take to the mIoU that whole views reach after ``iterations`` on the
    same Gaussians.

    A row for whole views, then for each of the cached ``arms`` one for each training of a quarter
    of ``iterations``, then about 1.4 times as many, and so on up to 2 to the power of ``doublings``
    times ``iterations``, until one reaches that mIoU. Rows hold arm, iterations, seconds (the
    cache's build included), times_faster, miou % and reached.
    """
    whole, rows = run.vary(**FIELD_ARMS["frozen, whole views"], field__iterations=iterations), []
    wanted, budget = (
        100 * whole.evaluation()["aggregates"]["pooled"]["miou"],
        whole.ensure("field").record["wall_time_s"],
    )
    rows.append(
        {
            "arm": "frozen, whole views",
            "iterations": iterations,
            "seconds": budget,
            "times_faster": 1.0,
            "miou": wanted,
            "reached": True,
        }
    )
    for arm, settings in arms.items():
        for n in range(-4, 2 * doublings + 1):
            own = run.vary(**settings, field__iterations=max(1, round(iterations * 2.0 ** (n / 2))))
            miou, seconds = (
                100 * own.evaluation()["aggregates"]["pooled"]["miou"],
                own.ensure("blending").record["wall_time_s"]
                + own.ensure("field").record["wall_time_s"],
            )
            rows.append(
                {
                    "arm": arm,
                    "iterations": own.config.field.iterations,
                    "seconds": seconds,
                    "times_faster": budget / seconds,
                    "miou": miou,
                    "reached": miou >= wanted,
                }
            )
            if rows[-1]["reached"]:
                break
    return rows


def field_cross_entropy(run: Run) -> float:
    """The field's loss over every masked pixel of the training views: a mean per level, summed over
    levels.
    """
    field, gaussians = run.field(), run.gaussians()
    sums, counts = np.zeros(len(field.decoders)), np.zeros(len(field.decoders))
    for view in run.scene.training_views:
        rendered, target = (
            field.render(gaussians, view.camera).flatten(1, 2),
            torch.from_numpy(run.index_maps(view)).long().flatten(1),
        )
        for n, decoder in enumerate(field.decoders):
            inside = target[n] >= 0
            with torch.no_grad():
                sums[n] += float(
                    torch.nn.functional.cross_entropy(
                        decoder(rendered[n][inside]), target[n][inside], reduction="sum"
                    )
                )
            counts[n] += int(inside.sum())
    return float((sums / counts.clip(min=1)).sum())


def view_kappa(run: Run, *, stride: int = 2) -> float:
    """Cohen's kappa of the decoded codes of each training view and the next, where both see the
    same surface by the Gaussians' depth; mean of the levels.
    """
    gaussians, views, codes = run.gaussians(), run.scene.training_views, [[] for _ in LEVELS]
    depths = [
        torch.where(r.alpha > 0.5, r.depth, 0).numpy()
        for r in (rasterize(gaussians, v.camera) for v in views)
    ]
    for a, b in zip(range(len(views)), range(1, len(views))):
        (ax, ay), (bx, by) = (
            p.T
            for p in corresponding_pixels(
                views[a].camera, depths[a], views[b].camera, depths[b], stride=stride
            )
        )
        for n in range(len(LEVELS)):
            codes[n].append((run.codes(views[a])[n, ay, ax], run.codes(views[b])[n, by, bx]))
    return float(
        np.mean([cohens_kappa(*(np.concatenate(side) for side in zip(*own))) for own in codes])
    )


@dataclass(frozen=True)
class Orbit:
    """One object's features over the training views in which it is seen: from its full mask, and
    from part of it.
    """

    views: list[str]
    full: np.ndarray  # [V, d] float32, unit
    incomplete: np.ndarray  # [V, d] float32, unit
    masks: list[tuple[np.ndarray, np.ndarray]]  # per view: full and incomplete mask [H, W] bool
    others: np.ndarray  # [O, d] float32: full masks of all other whole objects, over all views
    other_names: list[str]  # [O]


def orbit(run: Run, name: str, *, keep: float = 0.5, min_area: int = 400, seed: int = 0) -> Orbit:
    """Features of the whole object called ``name``, from true masks, and from masks that keep only
    a share ``keep`` of them.

    What is cut off, a side in a random direction, differs from view to view. Raises SceneError for
    a scene without ground truth or without such an object.
    """
    from ..errors import SceneError
    from ..foundation.simulated import cut

    truth = run.scene.ground_truth
    ids = [i for i, n in (truth.names if truth else {}).items() if n == name]
    if not ids:
        raise SceneError(
            f"{run.scene.path}: no object called {name!r} with ground truth; there are"
            f" {', '.join(sorted(set(truth.names.values()))) if truth else 'none'}"
        )
    rng, encoder = seeded(seed, "orbit", name), run.front_end.encoder
    views, full, incomplete, masks, others, other_names = [], [], [], [], [], []
    for view in run.scene.training_views:
        whole = truth.ids(view, "whole")
        found = [
            i
            for i in np.unique(whole[whole > 0]).tolist()
            if i not in truth.stuff and (whole == i).sum() >= min_area
        ]
        own = next((i for i in ids if i in found), None)
        rest = [i for i in found if truth.names[i] != name]
        pieces = [whole == i for i in rest]
        if own is not None:
            mask = whole == own
            part = cut(mask, keep, rng)
            masks.append((mask, part))
            pieces = [mask, part, *pieces]
            views.append(view.name)
        f = (
            encoder.encode_masks(view, np.stack(pieces))
            if pieces
            else np.zeros((0, encoder.dim), np.float32)
        )
        if own is not None:
            full.append(f[0])
            incomplete.append(f[1])
            f = f[2:]
        others.append(f)
        other_names += [truth.names[i] for i in rest]
    return Orbit(
        views, np.array(full), np.array(incomplete), masks, np.concatenate(others), other_names
    )


def code_purity(run: Run, level: str = "wp") -> float:
    """Share of masks whose code is the commonest one of their track, over labelled masks: 1 = every
    object keeps one code.
    """
    _, labels, levels = run.training_set()
    codes = run.ensure("codebook").npz("codes.npz")["codes"]
    keep = (labels != -1) & (levels == LEVELS.index(level))
    labels, codes = labels[keep], codes[keep]
    if not len(labels):
        return float("nan")
    return sum(np.bincount(codes[labels == y]).max() for y in np.unique(labels)) / len(labels)
