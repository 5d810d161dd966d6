"""What a profile takes, as jobs in order: scenes × ablations × seeds.

The Snakefile orders the jobs, the ledger asks what their runs have measured.

A job is one call of ``cclkit run --stage`` and ends with one artefact's record, whose path holds
the artefact's key: a job is done if that file is there, and nothing else decides. Jobs of different
arms share what their keys share (masks, features and tracks once a scene, colours once a seed).
Both levels are one job: they are rendered in one pass, and a second one would cost the same again.
"""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cclkit import config as configs
from cclkit.downloads import lookup
from cclkit.errors import ConfigError, SceneError
from cclkit.notebook.population import ARMS
from cclkit.places import results_folder
from cclkit.runs.run import Run
from cclkit.runs.store import Artefact
from cclkit.scenes.load import load_scene
from cclkit.scenes.scene import Scene


@dataclass(frozen=True)
class Grid:
    """The runs of a profile, and the stages that are jobs of their own (others are computed by the
    job that needs them).
    """

    scenes: dict[str, tuple[str, ...]]  # scene -> arms of population.ARMS
    seeds: tuple[int, ...]
    stages: tuple[str, ...]


TABLE_2 = ("baseline", "pull", "push", "both")
GRIDS = {
    # one job a scene: small stages would spend their time starting Python
    "mini": Grid({"tea_party": ("both",), "breakfast_bench": ("both",)}, (0,), ("evaluation",)),
    # seeds: the paper does not say how many (ours: 3, because a spread needs more than one and each
    # costs a field)
    "paper": Grid(
        {f"lerf_ovs/{s}": TABLE_2 for s in ("ramen", "figurines", "teatime", "waldo_kitchen")}
        | {f"3d_ovs/{s}": ("both",) for s in ("bed", "bench", "sofa", "lawn")},
        (0, 1, 2),
        ("masks", "features", "tracks", "gaussians", "field", "evaluation"),
    ),
}

VIEWS = {"ramen": 131, "figurines": 299, "teatime": 177, "waldo_kitchen": 187}
"""Registered cameras of LERF-OVS, for estimates where the scene is not here; other scenes: 30."""
COST = {
    "candidates": ("view", 0.1),
    "masks": ("view", 0.03),
    "features": ("view", 0.03),
    "tracks": ("view", 0.2),
    "codebook": ("run", 0.5),
    "gaussians": ("iteration", 0.0008),
    "blending": ("view", 0.02),
    "field": ("iteration", 0.0026),
    "evaluation": ("run", 5.0),
}
"""Minutes per view, iteration or run on one large GPU. Guesses, not measurements: SAM and CLIP from
the 4 GPU-hours published for LangSplat's features of four scenes (which clicks five times as
often), the field from LEGaussians' 1.3 hours for 30,000 joint iterations, the rest by proportion. A
finished job of the same stage replaces its guess.
"""
OTHER = ("run", 5.0)
MEMORY_MB = {"gaussians": 16_000, "field": 32_000, "tracks": 32_000, "evaluation": 16_000}
"""Main memory to ask a cluster for, guessed; other stages: 8,000."""


@dataclass(frozen=True)
class PlannedRun:
    """One cell of the grid; its run knows keys and finds artefacts, and computes nothing."""

    scene: str
    arm: str
    seed: int
    settings: dict
    run: Run
    keys: dict[str, str]  # of the run's stages, in order: asked for many times

    def found(self, stage: str) -> Artefact | None:
        """The artefact of a stage, if it is there."""
        return self.run.store.find(stage, self.keys[stage])

    def inputs(self, stage: str) -> tuple[str, ...]:
        """The stages that a stage reads."""
        return self.run.engine.inputs(stage)


@dataclass(frozen=True)
class Job:
    """One call of ``cclkit run --stage``."""

    name: str
    stage: str
    what: str  # in words
    command: str  # after `cclkit`, quoted for a shell, which Snakemake runs its jobs through
    output: Path  # the artefact's record
    needs: tuple[Path, ...]
    done: bool
    minutes: float
    estimate: str  # where the minutes come from
    gpu: bool
    memory_mb: int = field(default=8_000)


def planned_runs(profile: str) -> list[PlannedRun]:
    """All runs of a profile. Scenes and weights that are not here get keys of their own, so that
    everything can be listed.
    """
    if profile not in GRIDS:
        raise ConfigError(f"profile {profile!r} has no list of runs; use one of {', '.join(GRIDS)}")
    grid, out = GRIDS[profile], []
    base = configs.profile(profile)
    for name, arms in grid.scenes.items():
        scene = _scene(name)
        first = Run.planned(scene, base, results_folder(profile) / "runs" / name.rpartition("/")[2])
        for arm in arms:
            for seed in grid.seeds:
                settings = {"seed": seed} | {f"codebook.{k}": v for k, v in ARMS[arm].items()}
                run = first.vary(**{k.replace(".", "__"): v for k, v in settings.items()})
                keys = {stage: run.key(stage) for stage in run.stages()}
                out.append(PlannedRun(name, arm, seed, settings, run, keys))
    return out


def plan(profile: str) -> list[Job]:
    """The jobs of a profile, each after those it needs. Nothing is computed, nothing written."""
    runs, jobs = planned_runs(profile), {}
    stages, spent = GRIDS[profile].stages, _minutes_spent(runs)
    for r in runs:
        # not all stages are needed, e.g. colours of their own where the field makes them
        needed = {"evaluation", *_ancestors(r, "evaluation", ())}
        for stage in (s for s in r.keys if s in stages and s in needed):
            output, done = _record(r, stage)
            if output in jobs:
                continue
            minutes, estimate = _cost(r, stage, stages, spent, guess=profile == "paper")
            whose = _whose(r, stage, runs)
            jobs[output] = Job(
                "_".join([stage, *whose]),
                stage,
                f"{stage} of {r.scene}{_in_words(whose)}",
                _command(profile, r, stage),
                output,
                tuple(_record(r, s)[0] for s in _before(r, stage, stages)),
                done,
                minutes,
                estimate,
                r.run.config.device == "cuda",
                MEMORY_MB.get(stage, 8_000),
            )
    return list(jobs.values())


def duration(minutes: float) -> str:
    """ "3.4 h" or "12 min"."""
    return f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.0f} min"


def message(job: Job) -> str:
    """What Snakemake says of a job; a bracket holds its cost, an estimate."""
    if job.done:
        return f"{job.what} (found)"
    if job.estimate == "not estimated":
        return f"{job.what} (not estimated)"
    return f"{job.what} (about {duration(job.minutes)}: {job.estimate})"


def _scene(name: str) -> Scene | None:
    """A scene, or None while it is not fetched. Raises SceneError for one that is here and cannot
    be read.
    """
    try:
        lookup.scene(name)
    except SceneError:
        return None
    return load_scene(name)


# ----------------------------------------------------------------- what a job is


def _record(r: PlannedRun, stage: str) -> tuple[Path, bool]:
    """Path of the record that ends a stage, and whether it stands for a complete artefact (in the
    run folder or the bundle).
    """
    found = r.found(stage)
    if found is not None:
        return found.folder / "stage.json", True
    path = r.run.store.root / stage / r.keys[stage] / "stage.json"
    # a record whose files are damaged: as when the stage is built again
    path.unlink(missing_ok=True)
    return path, False


def _command(profile: str, r: PlannedRun, stage: str) -> str:
    words = ["run", "--profile", profile, "--scene", r.scene, "--stage", stage]
    for name, value in r.settings.items():
        words += ["--set", f"{name}={value}"]
    return shlex.join(words)


def _whose(r: PlannedRun, stage: str, runs: list[PlannedRun]) -> list[str]:
    """Scene, arm and seed, as far as the stage depends on them: ["ramen", "both", "0"]."""
    scene, key = r.scene.rpartition("/")[2], r.keys[stage]
    others = [o for o in runs if o.scene == r.scene]
    if all(o.keys[stage] == key for o in others):
        return [scene]
    arms = [o for o in others if o.seed == r.seed]
    if len(arms) > 1:
        of_arm = any(o.keys[stage] != key for o in arms)
    else:
        of_arm = "codebook" in {stage, *_ancestors(r, stage, ())}
    return [scene, r.arm, str(r.seed)] if of_arm else [scene, str(r.seed)]


def _in_words(whose: list[str]) -> str:
    """The same after the scene: ", both, seed 0"."""
    _, *arm, seed = whose if len(whose) > 1 else ("", "")
    return f", {', '.join([*arm, f'seed {seed}'])}" if seed else ""


# ----------------------------------------------------------------- what a job needs


def _ancestors(r: PlannedRun, stage: str, stop: tuple[str, ...]) -> Iterator[str]:
    """Stages that a stage needs, not looking behind those of ``stop``."""
    for s in r.inputs(stage):
        yield s
        if s not in stop:
            yield from _ancestors(r, s, stop)


def _before(r: PlannedRun, stage: str, stages: tuple[str, ...]) -> list[str]:
    """Jobs that a job waits for."""
    return [s for s in dict.fromkeys(_ancestors(r, stage, stages)) if s in stages]


def _covered(r: PlannedRun, stage: str, stages: tuple[str, ...]) -> set[str]:
    """Stages that a job computes: its own, and those before it that are no jobs."""
    done = {c for before in _before(r, stage, stages) for c in _covered(r, before, stages)}
    return {stage, *(s for s in _ancestors(r, stage, stages) if s not in stages)} - done


# ----------------------------------------------------------------- what a job costs


def _minutes_spent(runs: list[PlannedRun]) -> dict[str, float]:
    """Median minutes that a unit of each stage took, over the artefacts that are there."""
    spent: dict[str, dict[Path, float]] = {}
    for r in runs:
        for stage in r.keys:
            if (found := r.found(stage)) is not None:
                minutes = found.record["wall_time_s"] / 60 / _units(stage, r)
                spent.setdefault(stage, {})[found.folder] = minutes
    return {stage: statistics.median(minutes.values()) for stage, minutes in spent.items()}


def _cost(
    r: PlannedRun, stage: str, stages: tuple[str, ...], spent: dict[str, float], *, guess: bool
) -> tuple[float, str]:
    """Minutes that are left of a job, and where they come from, in words."""
    covered = _covered(r, stage, stages)
    todo = [s for s in r.keys if s in covered and r.found(s) is None]
    if not todo:
        return 0.0, ""
    each = {s: COST.get(s, OTHER)[1] if guess else 0.0 for s in todo} | spent
    minutes = sum(_units(s, r) * each[s] for s in todo)
    if all(s in spent for s in todo):
        return minutes, "as finished jobs took"
    return minutes, "guess, not measured" if guess else "not estimated"


def _units(stage: str, r: PlannedRun) -> int:
    """How many views or iterations a stage goes through; 1 where its cost depends on neither."""
    per = COST.get(stage, OTHER)[0]
    if per == "iteration":
        return max(1, getattr(r.run.config, stage).iterations)
    if per == "view":
        if r.run.scene:
            return len(r.run.scene.training_views)
        return VIEWS.get(r.scene.rpartition("/")[2], 30)
    return 1
