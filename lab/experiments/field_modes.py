"""Ways to train the field, compared: joint or frozen, whole views or cached blending weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from cclkit.errors import ConfigError
from cclkit.evaluation.consistency import cohens_kappa
from cclkit.gaussians.rasterize import rasterize
from cclkit.method.masks import LEVELS
from cclkit.runs.run import Run
from cclkit.scenes.correspondence import corresponding_pixels

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
