"""`python -m lab adopt`: rows of measurements that a rebuilt code gives again.

A row's key names the code that measured it, so moving code makes every row look old although none
would come out otherwise. Here a sample of the old rows is measured again. If each agrees to the
last digit that is stored, the rows of that file take today's keys; if one differs, none does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from cclkit.config import Config
from cclkit.errors import ConfigError, EvaluationError
from cclkit.notebook.index_maps import index_map_miou
from cclkit.notebook.measured import (
    FIELDS,
    Row,
    Sweep,
    index_maps,
    load_sweep,
    read_rows,
    read_sweep,
    sweep_key,
    with_arm,
    with_front_end,
    with_seed,
)
from cclkit.runs.run import Run
from cclkit.runs.store import Store

from .rows import write_rows
from .sweeps import measure

T = TypeVar("T")
LAST_DIGIT = 5e-5
"""Rows are stored with four digits behind the point."""


def adopt_benchmark(
    path: Path,
    config: Config,
    *,
    sample: int,
    measured: Sequence[str] = ("index maps", "field"),
    seed: int = 0,
    report: Callable[[str], None] = print,
) -> int:
    """Give rows of the benchmark today's keys; returns how many had others.

    ``sample`` rows are measured again, drawn from those of ``measured``. Raises EvaluationError,
    leaving the file alone, when one of them differs.
    """
    _check_sample(sample)
    with Store(path.parent).lock(wait=True):
        rows = read_rows(path)
        runs = {scene: Run(scene, config) for scene in dict.fromkeys(r.scene for r in rows)}
        keys = [_keyed(runs[r.scene], r)[1] for r in rows]
        old = [r for r, key in zip(rows, keys) if r.key != key]
        for row in _drawn([r for r in old if r.measured in measured], sample, seed):
            run = _keyed(runs[row.scene], row)[0]
            score = (
                index_map_miou(run)
                if row.measured == "index maps"
                else 100 * run.evaluation()["aggregates"]["pooled"]["miou"]
            )
            what = f"{row.scene}, {row.front_end}, {row.measured}, {row.arm}, seed {row.seed}"
            _compare(what, row.miou, score, path, report)
        new = [replace(r, key=key) if r.measured in measured else r for r, key in zip(rows, keys)]
        write_rows(path, FIELDS, ([getattr(r, f) for f in FIELDS] for r in new))
    return len(old)


def adopt_sweep(
    file: Path,
    folder: Path,
    config: Config,
    *,
    sample: int,
    seed: int = 0,
    report: Callable[[str], None] = print,
) -> int:
    """The same for the rows of a sweep, which are told apart by their settings."""
    _check_sample(sample)
    sweep, path = load_sweep(file), Path(folder) / f"{Path(file).stem}.csv"
    with Store(path.parent).lock(wait=True):
        rows = {_settings(sweep, row): row for row in read_sweep(path)}
        runs = [run for run in sweep.runs() if tuple(map(str, run.values())) in rows]
        if len(runs) < len(rows):
            report(f"{sweep.name}: {len(rows) - len(runs)} rows that are no longer asked for go")
        stored = [rows[tuple(map(str, run.values()))] for run in runs]
        keys = [sweep_key(sweep, run, config) for run in runs]
        old = [i for i, (row, key) in enumerate(zip(stored, keys)) if row["key"] != key]
        for i in _drawn(old, sample, seed):
            score = measure(sweep.kind, sweep.fixed | runs[i], config)
            what = f"{sweep.name}: " + ", ".join(f"{k} {v}" for k, v in runs[i].items())
            _compare(what, float(stored[i]["miou"]), score, path, report)
        values = ((*r.values(), float(s["miou"]), k) for r, s, k in zip(runs, stored, keys))
        write_rows(path, [*sweep.grid, "miou", "key"], values)
    return len(old)


def _check_sample(n: int) -> None:
    if n < 1:
        raise ConfigError(f"--sample {n}: expected at least 1; rows are kept for what it shows")


def _keyed(run: Run, row: Row) -> tuple[Run, str]:
    """The run that a row is of, and its key today."""
    if row.measured == "index maps":
        return index_maps(with_front_end(run, row.front_end), row.front_end, row.arm, row.seed)
    varied = with_arm(with_seed(run, row.seed), row.arm)
    return varied, varied.key("evaluation")


def _settings(sweep: Sweep, row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in sweep.grid)


def _drawn(items: Sequence[T], n: int, seed: int) -> list[T]:
    """Up to n of the items, in order."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(items))[:n]
    return [items[i] for i in sorted(chosen)]


def _compare(
    what: str, stored: float, score: float, path: Path, report: Callable[[str], None]
) -> None:
    report(f"{what}: {stored:.4f} stored, {score:.4f} now")
    if not abs(stored - score) <= LAST_DIGIT:
        raise EvaluationError(
            f"{path}: {what} was {stored:.4f} and is {score:.4f} now, so its rows are not those of"
            " today's code; measure them again (python -m lab benchmark, python -m lab sweep)"
        )
