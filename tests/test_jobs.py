"""The jobs of a profile, and the Snakefile that orders them."""

import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import write_plane_scene

from cclkit import cli, config, settings
from cclkit.errors import ConfigError
from cclkit.notebook.population import ARMS
from cclkit.runs.run import Run
from lab.reproduction import jobs

ROOT = Path(__file__).parent.parent


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """No data fetched, results of their own."""
    monkeypatch.setenv("CCLKIT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("CCLKIT_RESULTS", str(tmp_path / "results"))
    return tmp_path


def test_the_paper_profile_is_all_scenes_arms_and_seeds(elsewhere):
    todo = jobs.plan("paper")
    names = {j.name for j in todo}
    # joint: the field makes the Gaussians
    assert len(names) == len(todo) == 4 * (3 + 2 * 12) + 4 * (3 + 2 * 3)
    for scene in ("ramen", "figurines", "teatime", "waldo_kitchen"):
        assert {f"{s}_{scene}" for s in ("masks", "features", "tracks")} | {
            f"evaluation_{scene}_{arm}_{seed}"
            for arm in ("baseline", "pull", "push", "both")
            for seed in (0, 1, 2)
        } <= names
    assert not any("room" in n for n in names)
    made: set[Path] = set()
    for j in todo:  # an order: nothing before what it needs
        assert (
            set(j.needs) <= made
            and not j.done
            and j.minutes > 0
            and "guess" in jobs.message(j)
            and j.gpu
        )
        made.add(j.output)
        if j.stage == "evaluation":
            arm, seed = j.name.split("_")[-2:]
            chosen = config.profile("paper").with_settings(
                settings.parse_settings([a for a in shlex.split(j.command) if "=" in a])
            )
            weights = {
                "baseline": (0, 0),
                "pull": (0.25, 0),
                "push": (0, 0.25),
                "both": (0.25, 0.25),
            }[arm]
            assert (
                chosen.codebook.lambda_pull,
                chosen.codebook.lambda_push,
            ) == weights and chosen.seed == int(seed)
    # looking makes nothing
    assert not (elsewhere / "results").exists() and not (elsewhere / "data").exists()
    with pytest.raises(ConfigError, match="no list of runs"):
        jobs.plan("maxi")


@pytest.fixture
def small(elsewhere, monkeypatch):
    """The profile mini with one tiny scene, two arms and every stage a job."""
    scene = write_plane_scene(elsewhere)
    settings = {
        "front_end.masks": "simulated",
        "front_end.features": "simulated",
        "front_end.propagation": "simulated",
        "gaussians.iterations": 2,
        "gaussians.start_gaussians": 300,
        "gaussians.densify": False,
        "field.iterations": 3,
        "codebook.steps": 5,
        "codebook.n_prototypes": 8,
    }
    real = config.profile
    monkeypatch.setattr(
        config,
        "profile",
        lambda name="mini", **s: real(name).with_settings(settings).with_settings(s),
    )
    monkeypatch.setitem(
        jobs.GRIDS,
        "mini",
        jobs.Grid(
            {str(scene): ("baseline", "both")},
            (0, 1),
            ("masks", "features", "tracks", "gaussians", "field", "evaluation"),
        ),
    )
    return elsewhere


def test_keys_decide_what_is_done(small, capsys):
    # on simulated masks nothing before the codebook depends on the arm, nor before the colours on
    # the seed
    todo = jobs.plan("mini")
    assert (
        [j.stage for j in todo].count("masks") == 1
        and [j.stage for j in todo].count("gaussians") == 2
        and [j.stage for j in todo].count("field") == 4
    )
    assert all(j.estimate == "not estimated" for j in todo)
    for j in todo[:6]:
        assert cli.main(shlex.split(j.command)) == 0
        assert "done" in capsys.readouterr().out and j.output.is_file()
    again = jobs.plan("mini")
    assert [j.done for j in again] == [True] * 6 + [False] * (len(todo) - 6)
    left = next(j for j in again if j.stage == "gaussians" and not j.done)
    assert (
        left.estimate == "as finished jobs took"
        and left.minutes > 0
        and "(found)" in jobs.message(again[0])
    )
    # a changed setting: other keys for its stage and what follows, the rest is found
    jobs.GRIDS["mini"] = dataclasses.replace(jobs.GRIDS["mini"], seeds=(0,))
    ARMS_before = dict(ARMS["both"])
    ARMS["both"]["margin"] = 0.6
    try:
        changed = {j.name: j for j in jobs.plan("mini")}
    finally:
        ARMS["both"].clear()
        ARMS["both"].update(ARMS_before)
    assert changed[f"masks_{'plane'}"].done and not any(
        j.done for j in changed.values() if j.stage == "evaluation" and "both" in j.name
    )
    # a record whose files are damaged does not count
    victim = again[0].output.parent / "frame_00001.npz"
    victim.write_bytes(victim.read_bytes()[:50])
    assert not jobs.plan("mini")[0].done and not again[0].output.exists()


def test_planned_keys_are_the_runs_keys(small):
    r = jobs.planned_runs("mini")[0]
    run = Run(r.scene, config.profile("mini").with_settings(r.settings), small / "out")
    assert all(run.key(s) == r.run.key(s) for s in run.stages())


# ---------------------------------------------------------------- Snakemake itself


def snakemake(*arguments, env, start=False):
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "-s",
        str(ROOT / "workflow" / "Snakefile"),
        "--workflow-profile",
        str(ROOT / "workflow" / "profiles" / "default"),
        *arguments,
    ]
    if start:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500)


def test_dry_run_lists_every_job_with_its_cost(elsewhere):
    out = snakemake(
        "-n",
        "--directory",
        str(elsewhere / "w"),
        "--config",
        "profile=paper",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    text = out.stdout + out.stderr
    assert out.returncode == 0, text[-2000:]
    for job in jobs.plan("paper"):
        assert jobs.message(job) in text, job.name
    assert "guess, not measured" in text and "144 of 144 jobs" in text


SITE = """
# every Python of this run sees a small profile mini
import cclkit.config as config
import lab.reproduction.jobs as jobs
real = config.profile
config.profile = lambda name="mini", **s: real(name).with_settings({settings!r}).with_settings(s)
jobs.GRIDS["mini"] = jobs.Grid({{{scene!r}: ("both",)}}, (0,), ("masks", "field", "evaluation"))
"""


def test_killed_and_started_again_it_finishes_without_redoing_jobs(elsewhere):
    # Snakemake runs its jobs through a shell
    scene = write_plane_scene(elsewhere, name="plane $(touch hit); touch hit")
    settings = {
        "front_end.masks": "simulated",
        "front_end.features": "simulated",
        "front_end.propagation": "simulated",
        "gaussians.iterations": 2,
        "gaussians.start_gaussians": 300,
        "gaussians.densify": False,
        "field.iterations": 3,
        "codebook.steps": 5,
    }
    (elsewhere / "site").mkdir()
    (elsewhere / "site" / "sitecustomize.py").write_text(
        SITE.format(settings=settings, scene=str(scene))
    )
    env = {
        **os.environ,
        "PYTHONPATH": f"{elsewhere / 'site'}{os.pathsep}{ROOT}",
        "CCLKIT_QUIET": "1",
    }
    arguments = ("ledger", "--directory", str(elsewhere / "w"))
    first = snakemake(*arguments, env=env, start=True)
    runs = elsewhere / "results" / "mini" / "runs" / scene.name
    try:
        deadline = time.monotonic() + 400
        while not list(runs.glob("masks/*/stage.json")):  # the first job is done
            assert first.poll() is None and time.monotonic() < deadline, (
                "the first job did not finish"
            )
            time.sleep(0.05)
    finally:
        os.killpg(first.pid, signal.SIGKILL)  # Snakemake and its job at once
        first.wait()
    done = {p: p.stat().st_mtime_ns for p in runs.glob("*/*/stage.json")}
    assert len(done) < 8 and not (elsewhere / "results" / "ledger.csv").exists()
    again = snakemake(*arguments, env=env)
    assert again.returncode == 0, (again.stdout + again.stderr)[-3000:]
    assert (
        len(list(runs.glob("evaluation/*/stage.json"))) == 1
        and (elsewhere / "results" / "ledger.csv").is_file()
    )
    assert all(p.stat().st_mtime_ns == when for p, when in done.items())
    text = again.stdout + again.stderr
    assert "masks_plane" not in text and "evaluation_plane" in text
    assert not list(elsewhere.rglob("hit")) and not (ROOT / "hit").exists()


def test_the_cluster_profile_differs_only_in_where_jobs_run():
    one, slurm = (
        yaml.safe_load((ROOT / "workflow" / "profiles" / p / "config.yaml").read_text())
        for p in ("default", "slurm")
    )
    for name in ("rerun-triggers", "ignore-incomplete", "nolock", "keep-going"):
        assert one[name] == slurm[name]
    assert slurm["executor"] == "slurm" and "executor" not in one
