"""What a profile takes, as jobs in order: scenes × ablations × seeds, for the Snakefile and the
ledger.

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
from functools import cache
from pathlib import Path

from cclkit import config as configs
from cclkit.errors import ConfigError, SceneError
from cclkit.notebook.population import ARMS
from cclkit.places import results_folder
from cclkit.runs.run import Run
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
                run.key = cache(run.key)  # asked for many times, while nothing changes
                out.append(PlannedRun(name, arm, seed, settings, run))
    return out


def plan(profile: str) -> list[Job]:
    """The jobs of a profile, each after those it needs. Nothing is computed and nothing
    is written.
    """
    stages, jobs, spent = GRIDS[profile].stages if profile in GRIDS else (), {}, {}
    runs = planned_runs(profile)
    for r in runs:
        for stage in r.run.stages():
            if (found := r.run.store.find(stage, r.run.key(stage))) is not None:
                spent.setdefault(stage, {})[found.folder] = (
                    found.record["wall_time_s"] / 60 / _units(stage, r)
                )
    measured = {stage: statistics.median(times.values()) for stage, times in spent.items()}
    for r in runs:
        # not all stages are, e.g. without colours of their own
        needed = {
            "evaluation",
            *_ancestors(r.run, "evaluation", ()),
        }
        for stage in (s for s in r.run.stages() if s in stages and s in needed):
            output, done = _record(r.run, stage)
            if output in jobs:
                continue
            own = [s for s in r.run.stages() if s in _covered(r.run, stage, stages)]
            todo = [s for s in own if r.run.store.find(s, r.run.key(s)) is None]
            minutes = sum(
                _units(s, r) * measured.get(s, COST.get(s, OTHER)[1] if profile == "paper" else 0.0)
                for s in todo
            )
            guessed = [s for s in todo if s not in measured]
            shared = not any(
                r.run.key(stage) != other.run.key(stage) for other in runs if other.scene == r.scene
            )
            whose = [r.scene.rpartition("/")[2]] + (
                [] if shared else [r.arm, str(r.seed)] if _of_arm(r, stage, runs) else [str(r.seed)]
            )
            jobs[output] = Job(
                "_".join([stage, *whose]),
                stage,
                f"{stage} of {r.scene}"
                + (f", {', '.join(whose[1:-1] + ['seed ' + whose[-1]])}" if len(whose) > 1 else ""),
                shlex.join(
                    [
                        "run",
                        "--profile",
                        profile,
                        "--scene",
                        r.scene,
                        "--stage",
                        stage,
                        *(x for k, v in r.settings.items() for x in ("--set", f"{k}={v}")),
                    ]
                ),
                output,
                tuple(_record(r.run, s)[0] for s in _before(r.run, stage, stages)),
                done,
                minutes,
                (
                    ""
                    if not todo
                    else (
                        "guess, not measured"
                        if guessed and profile == "paper"
                        else "not estimated"
                        if guessed
                        else "as finished jobs took"
                    )
                ),
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
    from cclkit.downloads import registry

    try:
        registry.scene(name)
    except SceneError:
        return None
    return load_scene(name)


def _record(run: Run, stage: str) -> tuple[Path, bool]:
    """Path of the record that ends a stage, and whether it stands for a complete artefact (in the
    run folder or the bundle).
    """
    key = run.key(stage)
    found = run.store.find(stage, key)
    if found is not None:
        return found.folder / "stage.json", True
    path = run.store.root / stage / key / "stage.json"
    # a record whose files are damaged: as when the stage is built again
    path.unlink(missing_ok=True)
    return path, False


def _ancestors(run: Run, stage: str, stop: tuple[str, ...]) -> Iterator[str]:
    """Stages that a stage needs, not looking behind those of ``stop``."""
    for s in run._inputs(stage):
        yield s
        if s not in stop:
            yield from _ancestors(run, s, stop)


def _before(run: Run, stage: str, stages: tuple[str, ...]) -> list[str]:
    """Jobs that a job waits for."""
    return [s for s in dict.fromkeys(_ancestors(run, stage, stages)) if s in stages]


def _covered(run: Run, stage: str, stages: tuple[str, ...]) -> set[str]:
    """Stages that a job computes: its own, and those before it that are no jobs."""
    done = {c for before in _before(run, stage, stages) for c in _covered(run, before, stages)}
    return {stage, *(s for s in _ancestors(run, stage, stages) if s not in stages)} - done


def _of_arm(r: PlannedRun, stage: str, runs: list[PlannedRun]) -> bool:
    """Whether the stage differs between arms of one seed, or the scene has one arm only and the
    stage comes after the codebook.
    """
    arms = [o for o in runs if o.scene == r.scene and o.seed == r.seed]
    return (
        any(o.run.key(stage) != r.run.key(stage) for o in arms)
        if len(arms) > 1
        else "codebook" in {stage, *_ancestors(r.run, stage, ())}
    )


def _units(stage: str, r: PlannedRun) -> int:
    per, c = COST.get(stage, OTHER)[0], r.run.config
    if per == "iteration":
        return max(1, getattr(c, stage).iterations)
    return (
        (
            len(r.run.scene.training_views)
            if r.run.scene
            else VIEWS.get(r.scene.rpartition("/")[2], 30)
        )
        if per == "view"
        else 1
    )
