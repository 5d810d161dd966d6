"""`python -m lab benchmark`: the ablation over all bundled scenes, and what it says about the plan
in notebook 07.

Index maps (before any field) for all arms and seeds, because they are cheap; the whole pipeline for
baseline and both. ``benchmark_rows.csv`` holds a row per run and is written as they come, so a
stopped benchmark goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from cclkit.config import Config
from cclkit.gaussians.quality import psnr
from cclkit.gaussians.rasterize import rasterize
from cclkit.notebook.index_maps import index_map_miou
from cclkit.notebook.measured import (
    FIELDS,
    FRONT_ENDS,
    ROWS,
    Row,
    index_maps,
    read_rows,
    save_contrasts,
    with_arm,
    with_front_end,
    with_seed,
)
from cclkit.notebook.population import ARMS
from cclkit.notebook.tables import save_table
from cclkit.places import bundled_scenes
from cclkit.runs.run import Run

from .field_modes import view_kappa
from .rows import resumed, write_rows

SEEDS, FIELD_SEEDS = (0, 1, 2), (0, 1)
"""Repeats on index maps, and of the whole pipeline, which take minutes each."""


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
    path, rows, lines = Path(folder) / ROWS, [], []
    with resumed(path, read_rows, key=lambda row: row.key) as known:

        def add(row: Row) -> None:
            rows.append(row)
            _write(path, rows, known.values())

        for name in scenes or bundled_scenes():
            run = Run(name, config)
            for front_end in FRONT_ENDS:
                base = with_front_end(run, front_end)
                for seed in seeds:
                    for row in _on_index_maps(base, front_end, seed, known):
                        add(row)
                    report(
                        f"{run.scene.name}: {front_end} front end, seed {seed}: "
                        + ", ".join(f"{r.arm} {r.miou:.1f}" for r in rows[-len(ARMS) :])
                    )
            lines.append(_after_the_field(run, field_seeds, add))
            text = _save_lines(run, lines, Path(folder), len(field_seeds))
            report(text.splitlines()[-1])
            save_contrasts(rows, folder)
    return rows


def _on_index_maps(base: Run, front_end: str, seed: int, known: Mapping[str, Row]) -> Iterator[Row]:
    """A row for every arm, before any field."""
    for arm in ARMS:
        varied, key = index_maps(base, front_end, arm, seed)
        yield known.get(key) or Row(
            base.scene.name,
            front_end,
            base.front_end.label,
            "index maps",
            arm,
            seed,
            index_map_miou(varied),
            key,
        )


def _after_the_field(run: Run, seeds: Sequence[int], add: Callable[[Row], None]) -> list:
    """The whole pipeline for two arms and every seed: rows, and the scene's line."""
    name, label = run.scene.name, run.front_end.label
    miou: dict[str, list[float]] = {"baseline": [], "both": []}
    kappa: dict[str, list[float]] = {"baseline": [], "both": []}
    for seed in seeds:
        for arm in miou:
            varied = with_arm(with_seed(run, seed), arm)
            pooled = varied.evaluation()["aggregates"]["pooled"]
            score = 100 * pooled["miou"]
            miou[arm].append(score)
            kappa[arm].append(view_kappa(varied))
            add(Row(name, "own", label, "field", arm, seed, score, varied.key("evaluation")))
    first = with_seed(run, seeds[0])
    spread = float(np.mean([max(m) - min(m) for m in miou.values()]))
    return [
        name,
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


def _save_lines(run: Run, lines: list[list], folder: Path, n_seeds: int) -> str:
    """``benchmark.md`` and ``.csv``; returns the Markdown table."""
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
        f"Tabletop after the field, profile {run.config.profile}, {run.front_end.label}, mean of"
        f" {n_seeds} seeds (accuracy: the last, tracks, PSNR and minutes: the first)."
        " Protocols differ between layouts and are not comparable. Seeds apart: how far the"
        " seeds of one arm lie from each other. PSNR: held-out views, none of which is"
        " blurred. Minutes: all stages of one run. κ: agreement of the decoded codes of each"
        " view and the next where they see one surface, beyond chance, mean of the levels."
    )
    return save_table(folder, "benchmark", header, lines, caption)


def _write(path: Path, rows: Sequence[Row], known: Iterable[Row]) -> None:
    """The rows so far, and those of an earlier run that none of them replaces."""
    place = {_place(r) for r in rows}
    every = [*rows, *(r for r in known if _place(r) not in place)]
    write_rows(path, FIELDS, ([getattr(r, f) for f in FIELDS] for r in every))


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
