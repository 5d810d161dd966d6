"""`cclkit benchmark`: the ablation over all bundled scenes, and what it says about the plan in
notebook 07.

Index maps (before any field) for all arms and seeds, because they are cheap; the whole pipeline for
baseline and both. ``benchmark_rows.csv`` holds a row per run and is written as they come, so a
stopped benchmark goes on.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from cclkit.config import Config
from cclkit.errors import EvaluationError
from cclkit.evaluation.statistics import hierarchical_bootstrap, holm, sign_flip_p
from cclkit.files import atomic_write
from cclkit.gaussians.rasterize import rasterize
from cclkit.gaussians.reconstruct import psnr
from cclkit.notebook.experiments import ARMS, index_map_miou, scene_miou, view_kappa
from cclkit.notebook.tables import save_table
from cclkit.places import bundled_scenes
from cclkit.runs.keys import code_key, content_key
from cclkit.runs.run import Run
from cclkit.runs.store import Store

SEEDS, FIELD_SEEDS = (0, 1, 2), (0, 1)
"""Repeats on index maps, and of the whole pipeline, which take minutes each."""
FRONT_ENDS: dict[str, dict] = {
    "own": {},
    "simulated": {
        "front_end.masks": "simulated",
        "front_end.features": "simulated",
        "front_end.propagation": "simulated",
    },
}
"""The configured front end, and one that is simulated throughout."""
PRIMARY = ("both", "baseline")
SECONDARY = (("pull", "baseline"), ("push", "baseline"), ("both", "shuffled"))
REPORTED = (("shuffled", "baseline"),)
"""Contrasts of the plan: one tested at its own level, some corrected together, one with an interval
only.
"""
ROWS = "benchmark_rows.csv"
FIELDS = ("scene", "front_end", "label", "measured", "arm", "seed", "miou", "key")


@dataclass(frozen=True)
class Row:
    """mIoU of one run."""

    scene: str
    front_end: str  # of FRONT_ENDS
    label: str  # what that is, in words
    measured: str  # "index maps" or "field"
    arm: str  # of ARMS
    seed: int
    miou: float  # %
    key: str  # content key of what it was measured on


@dataclass(frozen=True)
class Contrast:
    """A difference of two arms in percentage points, over scenes."""

    arms: tuple[str, str]
    role: str  # "primary", "secondary" or "reported"
    scenes: int
    mean: float
    low: float  # 95 % interval; NaN for one scene
    high: float
    p: float  # exact sign-flip test; NaN where the plan has none
    p_holm: float  # among the secondary ones; p itself for the primary one


def benchmark(
    scenes: Sequence[str] | None,
    config: Config,
    folder: Path,
    *,
    seeds: Sequence[int] = SEEDS,
    field_seeds: Sequence[int] = FIELD_SEEDS,
    report: Callable[[str], None] = print,
) -> list[Row]:
    """All rows of all scenes: ``benchmark_rows.csv``, ``benchmark.md`` (a line per scene) and
    ``benchmark_contrasts.md`` in ``folder``.

    Rows that the file holds already with the same key are not measured again; rows of other scenes
    stay. A seed drives what is simulated of the front end and the codebook's start, in the whole
    pipeline also reconstruction and field. Waits for another one that writes there.
    """
    with Store(folder).lock(wait=True):  # each of two would write the rows that it knows
        return _benchmark(scenes, config, Path(folder) / ROWS, seeds, field_seeds, report)


def _benchmark(
    scenes: Sequence[str] | None,
    config: Config,
    path: Path,
    seeds: Sequence[int],
    field_seeds: Sequence[int],
    report: Callable[[str], None],
) -> list[Row]:
    folder = path.parent
    known = {r.key: r for r in read_rows(path)} if path.exists() else {}
    rows: list[Row] = []
    lines: list[list] = []
    for name in scenes or bundled_scenes():
        run = Run(name, config)
        for front_end in FRONT_ENDS:
            base = _with_front_end(run, front_end)
            for seed in seeds:
                for arm in ARMS:
                    varied, key = _index_maps(base, front_end, arm, seed)
                    rows.append(
                        known.get(key)
                        or Row(
                            run.scene.name,
                            front_end,
                            base.front_end.label,
                            "index maps",
                            arm,
                            seed,
                            index_map_miou(varied),
                            key,
                        )
                    )
                    _write(path, rows, known)
                report(
                    f"{run.scene.name}: {front_end} front end, seed {seed}: "
                    + ", ".join(f"{r.arm} {r.miou:.1f}" for r in rows[-len(ARMS) :])
                )
        miou: dict[str, list[float]] = {"baseline": [], "both": []}
        kappa: dict[str, list[float]] = {"baseline": [], "both": []}
        for seed in field_seeds:
            for arm in miou:
                varied = _arm(_seeded(run, seed), arm)
                pooled = varied.evaluation()["aggregates"]["pooled"]
                miou[arm].append(100 * pooled["miou"])
                kappa[arm].append(view_kappa(varied))
                rows.append(
                    Row(
                        run.scene.name,
                        "own",
                        run.front_end.label,
                        "field",
                        arm,
                        seed,
                        miou[arm][-1],
                        varied.key("evaluation"),
                    )
                )
                _write(path, rows, known)
        first = _seeded(run, field_seeds[0])
        spread = float(np.mean([max(m) - min(m) for m in miou.values()]))
        lines.append(
            [
                run.scene.name,
                run.evaluation()["protocol"],
                pooled["units"],
                *(float(np.mean(m)) for m in miou.values()),
                spread,
                *(f"{np.mean(k):.3f}" for k in kappa.values()),
                100 * pooled.get("accuracy", math.nan),
                100 * first.ensure("tracks").record["share_unlabelled"],
                held_out_psnr(first),
                sum(first.ensure(s).record["wall_time_s"] for s in first.stages()) / 60,
            ]
        )
        header = [
            "scene",
            "protocol",
            "units",
            "matching loss only, mIoU %",
            "CCL, mIoU %",
            "seeds apart, points",
            "matching loss only, κ",
            "CCL, κ",
            "CCL, accuracy %",
            "masks without a track, %",
            "held-out PSNR dB",
            "minutes",
        ]
        caption = (
            f"Tabletop after the field, profile {config.profile}, {run.front_end.label}, mean of"
            f" {len(field_seeds)} seeds (accuracy: the last, tracks, PSNR and minutes: the first)."
            " Protocols differ between layouts and are not comparable. Seeds apart: how far the"
            " seeds of one arm lie from each other. PSNR: held-out views, none of which is"
            " blurred. Minutes: all stages of one run. κ: agreement of the decoded codes of each"
            " view and the next where they see one surface, beyond chance, mean of the levels."
        )
        report(save_table(folder, "benchmark", header, lines, caption).splitlines()[-1])
        save_contrasts(rows, folder)
    return rows


def outdated(rows: Sequence[Row], config: Config) -> list[Row]:
    """Those rows that today's code and settings would measure again, because they were measured
    with others.

    Nothing is measured here. Rows of scenes that are not bundled are left out: a row does not say
    where such a scene lies.
    """
    runs = {name: Run(name, config) for name in {r.scene for r in rows} & set(bundled_scenes())}
    return [
        r
        for r in rows
        if r.scene in runs
        and r.key
        != (
            _index_maps(_with_front_end(runs[r.scene], r.front_end), r.front_end, r.arm, r.seed)[1]
            if r.measured == "index maps"
            else _arm(_seeded(runs[r.scene], r.seed), r.arm).key("evaluation")
        )
    ]


def _with_front_end(run: Run, front_end: str) -> Run:
    return run.vary(**{k.replace(".", "__"): v for k, v in FRONT_ENDS[front_end].items()})


def _arm(run: Run, arm: str) -> Run:
    return run.vary(**{f"codebook__{k}": v for k, v in ARMS[arm].items()})


def _seeded(run: Run, seed: int) -> Run:
    return run.vary(seed=seed, front_end__simulation__seed=seed)


def _index_maps(base: Run, front_end: str, arm: str, seed: int) -> tuple[Run, str]:
    """A run on index maps, and the content key of its row."""
    varied = _seeded(_arm(base, arm), seed)
    key = content_key(
        front_end=front_end,
        arm=arm,
        seed=seed,
        codebook=varied.key("codebook"),
        query=varied.key("evaluation"),
        code=code_key(index_map_miou, scene_miou),
    )
    return varied, key


def contrasts(
    rows: Sequence[Row], front_end: str = "own", measured: str = "index maps"
) -> list[Contrast]:
    """The plan's contrasts in one setting, over the scenes that have both arms; tests in the
    primary setting only.
    """
    values: dict[str, dict[str, dict[int, float]]] = {}  # arm -> scene -> seed -> mIoU
    for r in rows:
        if (r.front_end, r.measured) == (front_end, measured):
            values.setdefault(r.arm, {}).setdefault(r.scene, {})[r.seed] = r.miou
    tested = (front_end, measured) == ("own", "index maps")
    found = []
    for arms in (PRIMARY, *SECONDARY, *REPORTED):
        a, b = (values.get(arm, {}) for arm in arms)
        paired = [[a[s][n] - b[s][n] for n in sorted(a[s]) if n in b[s]] for s in a if s in b]
        paired = [p for p in paired if p]
        if paired:
            role = (
                "primary" if arms == PRIMARY else "secondary" if arms in SECONDARY else "reported"
            )
            means = [float(np.mean(p)) for p in paired]
            p = sign_flip_p(means) if tested and role != "reported" else math.nan
            found.append(
                Contrast(
                    arms,
                    role,
                    len(paired),
                    float(np.mean(means)),
                    *hierarchical_bootstrap(paired),
                    p,
                    p,
                )
            )
    corrected = holm({"-".join(c.arms): c.p for c in found if c.role == "secondary" and tested})
    return [replace(c, p_holm=corrected.get("-".join(c.arms), c.p)) for c in found]


def save_contrasts(rows: Sequence[Row], folder: Path) -> str:
    """``benchmark_contrasts.md`` and ``.csv``: every contrast in every setting; returns the
    Markdown table.
    """
    labels = {(r.front_end, r.measured): r.label for r in rows}
    table = []
    for (front_end, measured), label in labels.items():
        for c in contrasts(rows, front_end, measured):
            table.append(
                [
                    label,
                    measured,
                    " − ".join(c.arms),
                    (
                        c.role
                        if (front_end, measured) == ("own", "index maps")
                        else "secondary setting"
                    ),
                    c.scenes,
                    signed(c.mean),
                    interval(c),
                    _p(c.p),
                    _p(c.p_holm),
                ]
            )
    header = [
        "front end",
        "measured on",
        "contrast",
        "role",
        "scenes",
        "Δ mIoU, points",
        "95 % interval",
        "p",
        "p after Holm",
    ]
    caption = (
        "Contrasts of the ablation over scenes, as planned in notebook 07. Interval: hierarchical"
        " bootstrap, scenes then seeds. p: exact sign-flip test on scene means, two-sided; Holm"
        " over the secondary ones."
    )
    return save_table(folder, "benchmark_contrasts", header, table, caption)


def signed(value: float) -> str:
    return f"{value:+.1f}"


def interval(c: Contrast) -> str:
    return f"{c.low:+.1f} to {c.high:+.1f}" if math.isfinite(c.low) else "needs two scenes"


def _p(p: float) -> str:
    return f"{p:.3f}" if math.isfinite(p) else ""


def read_rows(path: Path) -> list[Row]:
    """Rows of ``benchmark_rows.csv``. Raises EvaluationError when it is not one."""
    try:
        content = list(csv.DictReader(io.StringIO(Path(path).read_text(encoding="utf-8"))))
        return [
            Row(
                **{f: (int if f == "seed" else float if f == "miou" else str)(r[f]) for f in FIELDS}
            )
            for r in content
        ]
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as e:
        raise EvaluationError(
            f"{path}: cannot be read as rows of the benchmark ({e!r}); restore the file, or delete"
            " it and run `cclkit benchmark` again"
        ) from e


def _write(path: Path, rows: Sequence[Row], known: Mapping[str, Row]) -> None:
    """The rows so far, and those of an earlier run that none of them replaces."""
    place = {_place(r) for r in rows}
    rows = [*rows, *(r for r in known.values() if _place(r) not in place)]
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(FIELDS)
    out.writerows([f"{r.miou:.4f}" if f == "miou" else getattr(r, f) for f in FIELDS] for r in rows)
    atomic_write(path, text.getvalue().encode())


def _place(row: Row) -> tuple:
    return row.scene, row.front_end, row.measured, row.arm, row.seed


def held_out_psnr(run: Run) -> float:
    """Mean PSNR in dB of the reconstruction over held-out views; NaN without any."""
    views = [v for v in run.scene.views if v.name in run.scene.held_out]
    gaussians = run.gaussians()
    values = [
        float(
            psnr(
                rasterize(gaussians, v.camera).color.detach().clamp(0, 1),
                torch.from_numpy(v.image() / 255.0).float(),
            )
        )
        for v in views
    ]
    return float(np.mean(values)) if values else float("nan")
