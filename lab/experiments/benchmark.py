"""`python -m lab benchmark`: the ablation over all bundled scenes, and what it says about the plan
in notebook 07.

Index maps (before any field) for all arms and seeds, because they are cheap; the whole pipeline for
baseline and both. ``benchmark_rows.csv`` holds a row per run and is written as they come, so a
stopped benchmark goes on.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from cclkit.config import Config
from cclkit.files import atomic_write
from cclkit.gaussians.quality import psnr
from cclkit.gaussians.rasterize import rasterize
from cclkit.notebook.experiments import index_map_miou
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
from cclkit.runs.store import Store

from .field_modes import view_kappa

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
            base = with_front_end(run, front_end)
            for seed in seeds:
                for arm in ARMS:
                    varied, key = index_maps(base, front_end, arm, seed)
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
                varied = with_arm(with_seed(run, seed), arm)
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
        first = with_seed(run, field_seeds[0])
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
