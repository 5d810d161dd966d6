"""`python -m lab sweep FILE`: a grid of experiments from a small file, as a CSV row per run, in
parallel processes, resumable. What such a file says stands in `cclkit.notebook.measured`.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch

from cclkit.config import Config
from cclkit.method.codebook_fit import fit_codebook
from cclkit.notebook.index_maps import index_map_miou
from cclkit.notebook.measured import Sweep, prepared, read_sweep, sweep_key
from cclkit.notebook.population import population, population_miou
from cclkit.runs.run import Run

from .rows import resumed, write_rows


def run_sweep(
    sweep: Sweep,
    folder: Path,
    config: Config,
    *,
    workers: int = 2,
    report: Callable[[str], None] = print,
) -> Path:
    """Run what ``folder``/NAME.csv does not hold yet; returns that file. Rows are in the grid's
    order.

    Every finished run is written at once, so a stopped sweep goes on where it was. A run that fails
    raises its error after the others under way are written. Waits for another sweep that writes
    there.
    """
    path = Path(folder) / f"{sweep.name}.csv"
    runs = sweep.runs()
    keys = [sweep_key(sweep, run, config) for run in runs]
    columns = [*sweep.grid, "miou", "key"]
    with resumed(path, read_sweep, key=lambda row: row["key"]) as known:
        done = {k: float(known[k]["miou"]) for k in keys if k in known}
        jobs = [
            (k, sweep.kind, sweep.fixed | run, config)
            for k, run in zip(keys, runs)
            if k not in done
        ]
        report(f"{sweep.name}: {len(runs)} runs, {len(runs) - len(jobs)} found")

        def write() -> None:
            rows = [(*run.values(), done[k], k) for run, k in zip(runs, keys) if k in done]
            write_rows(path, columns, rows)

        if not jobs:
            write()
            return path
        # spawn: a forked torch would share its threads' locks
        with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs))) as pool:
            for n, (key, miou) in enumerate(pool.imap_unordered(_run, jobs), 1):
                done[key] = miou
                write()
                if n % 10 == 0 or n == len(jobs):
                    report(f"{sweep.name}: {n} of {len(jobs)}")
            pool.close()
            # leaving the block would kill the workers, and pycolmap prints a stack when that
            # happens
            pool.join()
    return path


def _run(job: tuple) -> tuple[str, float]:
    key, kind, settings, config = job
    torch.set_num_threads(1)
    return key, measure(kind, settings, config)


def measure(kind: str, settings: dict, config: Config) -> float:
    """mIoU % of one run of a sweep."""
    if kind == "population":
        seed, people, codebook = prepared(kind, settings)
        crowd = population(seed, **people)
        book = fit_codebook(crowd.features, crowd.labels, codebook, seed=seed)
        return population_miou(book, crowd)
    return index_map_miou(Run(*prepared(kind, settings, config)))
