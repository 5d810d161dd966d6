"""Grids of experiments from a small file: `cclkit sweep FILE`. A CSV row per run, in parallel
processes, resumable.

    title = "..."              what the sweep asks kind = "population"        mask features without
    images (experiments.population), or "scene" (index maps of a scene) [fixed]
    settings that all runs have [grid]                     name = [values]; every combination is a
    run

Names: ``arm`` (of experiments.ARMS or REMEDIES), ``seed``, ``codebook.…``; for a population also
``population.…`` (its arguments) and ``simulation.…``; for a scene ``scene`` and every other
setting.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import multiprocessing
import os
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from cclkit.config import Config
from cclkit.errors import CclkitError, ConfigError, reason
from cclkit.files import atomic_write
from cclkit.foundation.simulated import SimulationConfig
from cclkit.method.codebook_fit import CodebookConfig, fit_codebook
from cclkit.notebook.experiments import (
    ARMS,
    REMEDIES,
    index_map_miou,
    population,
    population_miou,
)
from cclkit.places import DATA
from cclkit.runs.keys import code_key, content_key
from cclkit.runs.run import Run
from cclkit.runs.store import Store

FOLDER = DATA / "sweeps"
"""The committed sweeps."""
KINDS = ("population", "scene")
POPULATION = ("n_classes", "n_views", "incomplete", "unlabelled", "observed", "split", "merged")
"""Arguments of `experiments.population` that a sweep may set."""
MAX_RUNS = 10_000


@dataclass(frozen=True)
class Sweep:
    """A grid of experiments."""

    name: str
    title: str
    kind: str
    fixed: dict[str, Any]
    grid: dict[str, list]

    def runs(self) -> list[dict[str, Any]]:
        """Every combination, the last name changing fastest."""
        return [dict(zip(self.grid, values)) for values in itertools.product(*self.grid.values())]


def load_sweep(path: str | os.PathLike) -> Sweep:
    """Read a sweep file. Raises ConfigError, naming file and entry, when it cannot be run."""
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as e:
        raise ConfigError(
            f"{path}: cannot be read as a sweep ({e}); expected TOML with title, kind, [fixed] and"
            " [grid]"
        ) from e
    unknown = sorted(set(content) - {"title", "kind", "fixed", "grid"})
    if unknown:
        raise ConfigError(
            f"{path}: unknown entry {unknown[0]!r}; a sweep has title, kind, [fixed] and [grid]"
        )
    for name in ("fixed", "grid"):
        if not isinstance(content.get(name, {}), dict):
            raise ConfigError(f"{path}: {name} is {content[name]!r}; expected a table [{name}]")
    sweep = Sweep(
        path.stem,
        str(content.get("title", path.stem)),
        content.get("kind", ""),
        content.get("fixed", {}),
        content.get("grid", {}),
    )
    if sweep.kind not in KINDS:
        raise ConfigError(f"{path}: kind is {sweep.kind!r}; use one of {', '.join(KINDS)}")
    for name, values in sweep.grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(
                f"{path}: grid.{name} is {values!r}; expected a list with at least one value"
            )
    if (runs := math.prod(len(v) for v in sweep.grid.values())) > MAX_RUNS:
        raise ConfigError(
            f"{path}: the grid has {runs} runs, expected at most {MAX_RUNS}; split it into several"
            " files"
        )
    twice = sorted(set(sweep.fixed) & set(sweep.grid))
    if not sweep.grid or twice:
        raise ConfigError(
            f"{path}: "
            + (
                f"{twice[0]!r} stands in [fixed] and in [grid]; keep one"
                if twice
                else "the grid is empty; give at least one name with values"
            )
        )
    try:
        first = {name: values[0] for name, values in sweep.grid.items()}
        for (
            name,
            values,
            # every value once; whole combinations are checked when their keys are made, before any
            # is
            # run
        ) in sweep.grid.items():
            for value in values:
                _prepared(sweep.kind, sweep.fixed | first | {name: value})
    except CclkitError as e:
        raise ConfigError(f"{path}: {e}") from e
    return sweep


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
    keys = [_key(sweep, run, config) for run in runs]
    with Store(folder).lock(wait=True):  # each of two sweeps would write the rows that it knows
        known = {row["key"]: float(row["miou"]) for row in read_rows(path)} if path.exists() else {}
        done = {k: known[k] for k in keys if k in known}
        jobs = [
            (k, sweep.kind, sweep.fixed | run, config)
            for k, run in zip(keys, runs)
            if k not in done
        ]
        report(f"{sweep.name}: {len(runs)} runs, {len(runs) - len(jobs)} found")
        if jobs:
            # spawn: a forked torch would share its threads' locks
            with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs))) as pool:
                for n, (key, miou) in enumerate(pool.imap_unordered(_run, jobs), 1):
                    done[key] = miou
                    _write(
                        path, sweep, [(run, done[k], k) for run, k in zip(runs, keys) if k in done]
                    )
                    if n % 10 == 0 or n == len(jobs):
                        report(f"{sweep.name}: {n} of {len(jobs)}")
                pool.close()
                # leaving the block would kill the workers, and pycolmap prints a stack when that
                # happens
                pool.join()
        else:
            _write(path, sweep, [(run, done[k], k) for run, k in zip(runs, keys)])
    return path


def outdated(path: Path, config: Config, folder: Path = FOLDER) -> int:
    """How many rows of a sweep's CSV its file in ``folder`` would not give today: measured with
    other code or settings, or no longer asked for.

    Raises ConfigError when either file cannot be read.
    """
    sweep = load_sweep(Path(folder) / f"{Path(path).stem}.toml")
    keys = {_key(sweep, run, config) for run in sweep.runs()}
    return sum(row["key"] not in keys for row in read_rows(path))


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a sweep's CSV. Raises ConfigError when it is not one."""
    try:
        rows = list(csv.DictReader(io.StringIO(Path(path).read_text(encoding="utf-8"))))
        for row in rows:
            float(row["miou"]), row["key"]
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as e:
        raise ConfigError(
            f"{path}: cannot be read as rows of a sweep ({e}); restore the file, or delete it and"
            " run `cclkit sweep` again"
        ) from e
    return rows


def series(
    rows: Sequence[dict[str, str]], over: str, by: str = "arm"
) -> dict[str, dict[float, list[float]]]:
    """mIoU % of every seed: by arm, then by the value of ``over``."""
    out: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        try:
            out.setdefault(row[by], {}).setdefault(float(row[over]), []).append(float(row["miou"]))
        except (KeyError, TypeError, ValueError) as e:
            raise ConfigError(
                f"a row of the sweep has no {by!r} or no number under {over!r} ({reason(e)}); run"
                " `cclkit sweep` again"
            ) from e
    return out


def gains(
    rows: Sequence[dict[str, str]], over: str, baseline: Sequence[float] = ()
) -> dict[str, dict[float, list[float]]]:
    """Gain in mIoU points over the baseline of the same seed: by arm, then by the value of
    ``over``.

    ``baseline``: its values by seed, for a sweep without that arm.
    """
    arms = series(rows, over)
    own = arms.pop("baseline", None)
    return {
        arm: {
            x: [v - b for v, b in zip(values, own[x] if own else baseline)]
            for x, values in of_x.items()
        }
        for arm, of_x in arms.items()
    }


def _write(path: Path, sweep: Sweep, rows: list[tuple[dict, float, str]]) -> None:
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow([*sweep.grid, "miou", "key"])
    for run, miou, key in rows:
        out.writerow([*run.values(), f"{miou:.4f}", key])
    atomic_write(path, text.getvalue().encode())


def _key(sweep: Sweep, run: dict, config: Config) -> str:
    """What a row depends on: its settings with what they mean, and the code behind it; for scenes
    also the stages'.
    """
    settings = sweep.fixed | run
    about = {
        "kind": sweep.kind,
        "settings": settings,
        "arm": (ARMS | REMEDIES)[settings.get("arm", "both")],
    }
    if sweep.kind == "population":
        return content_key(
            **about,
            code=code_key(_run),
        )
    scene = Run(*_prepared("scene", settings, config))
    return content_key(
        **about,
        code=code_key(_run),
        codebook=scene.key("codebook"),
        query=scene.key("evaluation"),
    )


def _run(job: tuple) -> tuple[str, float]:
    key, kind, settings, config = job
    torch.set_num_threads(1)
    if kind == "population":
        seed, people, codebook = _prepared(kind, settings)
        crowd = population(seed, **people)
        return key, population_miou(
            fit_codebook(crowd.features, crowd.labels, codebook, seed=seed), crowd
        )
    scene, scene_config = _prepared(kind, settings, config)
    return key, index_map_miou(Run(scene, scene_config))


def _prepared(kind: str, settings: dict[str, Any], config: Config = Config()):
    """What a run needs: (seed, arguments of population, codebook settings), or (scene,
    configuration). Raises ConfigError.
    """
    settings = dict(settings)
    seed, arm = settings.pop("seed", 0), settings.pop("arm", "both")
    arms = ARMS | REMEDIES
    if arm not in arms:
        raise ConfigError(f"arm {arm!r} is unknown; use one of {', '.join(arms)}")
    if not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"seed {seed!r}: expected a whole number of at least 0")
    of_arm = {f"codebook.{k}": v for k, v in arms[arm].items()}
    if kind == "scene":
        scene = settings.pop("scene", None)
        if not isinstance(scene, str):
            raise ConfigError(
                f"scene is {scene!r}; give the name or folder of a scene in [fixed] or [grid]"
            )
        simulated = {"front_end.simulation.seed": seed}
        return scene, config.with_settings({"seed": seed} | simulated | settings | of_arm)
    people: dict[str, Any] = {}
    simulation: dict[str, Any] = {}
    codebook: dict[str, Any] = {}
    for name, value in settings.items():
        group, _, own = name.partition(".")
        known = {
            "population": POPULATION,
            "simulation": tuple(f.name for f in fields(SimulationConfig)),
            "codebook": tuple(f.name for f in fields(CodebookConfig)),
        }.get(group, ())
        if own not in known:
            raise ConfigError(
                f"{name!r} is unknown; a population has arm, seed, codebook.…, simulation.… and"
                f" population.{', population.'.join(POPULATION)}"
            )
        {"population": people, "simulation": simulation, "codebook": codebook}[group][own] = value
    checked = config.with_settings(
        {f"codebook.{k}": v for k, v in codebook.items()}
        | of_arm
        | {f"front_end.simulation.{k}": v for k, v in simulation.items()}
    )
    return seed, people | {"simulation": replace(checked.front_end.simulation)}, checked.codebook
