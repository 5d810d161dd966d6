"""Measurements of the laboratory that notebooks read: rows of the benchmark and of sweeps.

The benchmark is the ablation over all bundled scenes, with a plan written in notebook 07. A sweep
is a grid of experiments from a small file:

    title = "..."      what the sweep asks
    kind = "..."       "population" (mask features without images) or "scene" (its index maps)
    [fixed]            settings that all runs have
    [grid]             name = [values]; every combination is a run

Names: ``arm`` (of ARMS or REMEDIES), ``seed``, ``codebook.…``; for a population also
``population.…`` (its arguments) and ``simulation.…``; for a scene ``scene`` and every other
setting.

Each row has a key of what it was measured with, so that old ones can be told. Nothing is measured
here.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config
from ..errors import CclkitError, ConfigError, EvaluationError, reason
from ..evaluation.statistics import hierarchical_bootstrap, holm, sign_flip_p
from ..foundation.simulated import SimulationConfig
from ..method.codebook_fit import CodebookConfig, fit_codebook
from ..places import DATA, bundled_scenes
from ..runs.keys import code_key, content_key
from ..runs.run import Run
from .index_maps import index_map_miou
from .population import ARMS, REMEDIES, population
from .tables import save_table

# ----------------------------------------------------------------- the benchmark

FRONT_ENDS: dict[str, dict] = {
    "own": {},
    "simulated": {
        "front_end.masks": "simulated",
        "front_end.features": "simulated",
        "front_end.propagation": "simulated",
    },
}
"""The configured front end, and one that is simulated throughout."""

PRIMARY_SETTING = ("own", "index maps")
"""Front end and what is measured, where the plan tests."""
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


def read_rows(path: Path) -> list[Row]:
    """Rows of ``benchmark_rows.csv``. Raises EvaluationError when it is not one."""
    types = {"seed": int, "miou": float}
    try:
        content = list(csv.DictReader(io.StringIO(Path(path).read_text(encoding="utf-8"))))
        return [Row(**{f: types.get(f, str)(r[f]) for f in FIELDS}) for r in content]
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as e:
        raise EvaluationError(
            f"{path}: cannot be read as rows of the benchmark ({e!r}); restore the file, or delete"
            " it and run `python -m lab benchmark` again"
        ) from e


def outdated(rows: Sequence[Row], config: Config) -> list[Row]:
    """Those rows that today's code and settings would measure again, because they were measured
    with others.

    Nothing is measured here. Rows of scenes that are not bundled are left out: a row does not say
    where such a scene lies.
    """
    runs = {name: Run(name, config) for name in {r.scene for r in rows} & set(bundled_scenes())}

    def key(r: Row) -> str:
        if r.measured == "index maps":
            base = with_front_end(runs[r.scene], r.front_end)
            return index_maps(base, r.front_end, r.arm, r.seed)[1]
        return with_arm(with_seed(runs[r.scene], r.seed), r.arm).key("evaluation")

    return [r for r in rows if r.scene in runs and r.key != key(r)]


def with_front_end(run: Run, front_end: str) -> Run:
    """The run with one of FRONT_ENDS."""
    return run.vary(**{k.replace(".", "__"): v for k, v in FRONT_ENDS[front_end].items()})


def with_arm(run: Run, arm: str) -> Run:
    """The run with one of ARMS."""
    return run.vary(**{f"codebook__{k}": v for k, v in ARMS[arm].items()})


def with_seed(run: Run, seed: int) -> Run:
    """The run with a seed, which also draws what is simulated of the front end."""
    return run.vary(seed=seed, front_end__simulation__seed=seed)


def index_maps(base: Run, front_end: str, arm: str, seed: int) -> tuple[Run, str]:
    """A run on index maps, and the content key of its row."""
    varied = with_seed(with_arm(base, arm), seed)
    key = content_key(
        front_end=front_end,
        arm=arm,
        seed=seed,
        codebook=varied.key("codebook"),
        query=varied.key("evaluation"),
        code=code_key(index_map_miou),
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
    tested = (front_end, measured) == PRIMARY_SETTING
    found = []
    for arms in (PRIMARY, *SECONDARY, *REPORTED):
        a, b = (values.get(arm, {}) for arm in arms)
        paired = [[a[s][n] - b[s][n] for n in sorted(a[s]) if n in b[s]] for s in a if s in b]
        paired = [p for p in paired if p]
        if not paired:
            continue
        role = "primary" if arms == PRIMARY else "secondary" if arms in SECONDARY else "reported"
        means = [float(np.mean(p)) for p in paired]
        low, high = hierarchical_bootstrap(paired)
        p = sign_flip_p(means) if tested and role != "reported" else math.nan
        found.append(
            Contrast(arms, role, len(paired), float(np.mean(means)), low, high, p, p_holm=p)
        )
    corrected = holm({"-".join(c.arms): c.p for c in found if c.role == "secondary" and tested})
    return [replace(c, p_holm=corrected.get("-".join(c.arms), c.p)) for c in found]


def save_contrasts(rows: Sequence[Row], folder: Path) -> str:
    """``benchmark_contrasts.md`` and ``.csv``: every contrast in every setting; returns the
    Markdown table.
    """
    labels = {(r.front_end, r.measured): r.label for r in rows}
    table = []
    for setting, label in labels.items():
        for c in contrasts(rows, *setting):
            role = c.role if setting == PRIMARY_SETTING else "secondary setting"
            numbers = [c.scenes, signed(c.mean), interval(c), _p(c.p), _p(c.p_holm)]
            table.append([label, setting[1], " − ".join(c.arms), role, *numbers])
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
    """A difference in points."""
    return f"{value:+.1f}"


def interval(c: Contrast) -> str:
    """The 95 % interval in words."""
    return f"{c.low:+.1f} to {c.high:+.1f}" if math.isfinite(c.low) else "needs two scenes"


def _p(p: float) -> str:
    return f"{p:.3f}" if math.isfinite(p) else ""


# ----------------------------------------------------------------- sweeps

SWEEPS = DATA / "sweeps"
"""The committed sweeps."""

KINDS = ("population", "scene")

POPULATION = ("n_classes", "n_views", "incomplete", "unlabelled", "observed", "split", "merged")
"""Arguments of `population` that a sweep may set."""

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
    if not sweep.grid:
        raise ConfigError(f"{path}: the grid is empty; give at least one name with values")
    if twice := sorted(set(sweep.fixed) & set(sweep.grid)):
        raise ConfigError(f"{path}: {twice[0]!r} stands in [fixed] and in [grid]; keep one")
    try:
        first = {name: values[0] for name, values in sweep.grid.items()}
        # every value once: whole combinations are checked when their keys are made, before any
        # is run
        for name, values in sweep.grid.items():
            for value in values:
                prepared(sweep.kind, sweep.fixed | first | {name: value})
    except CclkitError as e:
        raise ConfigError(f"{path}: {e}") from e
    return sweep


def outdated_sweep(path: Path, config: Config, folder: Path = SWEEPS) -> int:
    """How many rows of a sweep's CSV its file in ``folder`` would not give today: measured with
    other code or settings, or no longer asked for.

    Raises ConfigError when either file cannot be read.
    """
    sweep = load_sweep(Path(folder) / f"{Path(path).stem}.toml")
    keys = {sweep_key(sweep, run, config) for run in sweep.runs()}
    return sum(row["key"] not in keys for row in read_sweep(path))


def read_sweep(path: Path) -> list[dict[str, str]]:
    """Rows of a sweep's CSV. Raises ConfigError when it is not one."""
    try:
        rows = list(csv.DictReader(io.StringIO(Path(path).read_text(encoding="utf-8"))))
        for row in rows:
            float(row["miou"]), row["key"]
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as e:
        raise ConfigError(
            f"{path}: cannot be read as rows of a sweep ({e}); restore the file, or delete it and"
            " run `python -m lab sweep` again"
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
                " `python -m lab sweep` again"
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


def sweep_key(sweep: Sweep, run: dict, config: Config) -> str:
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
        return content_key(**about, code=code_key(population, fit_codebook))
    scene = Run(*prepared("scene", settings, config))
    return content_key(
        **about,
        code=code_key(index_map_miou),
        codebook=scene.key("codebook"),
        query=scene.key("evaluation"),
    )


def prepared(kind: str, settings: dict[str, Any], config: Config = Config()):
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
