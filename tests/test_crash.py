"""The short form of `crash`, interrupts, and two runs on one folder."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import crash
import pytest
from conftest import write_plane_scene

from cclkit.files import save_npz
from cclkit.runs.store import Store

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked")


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    return crash.Trials(tmp_path_factory.mktemp("crash"))


@pytest.mark.parametrize("number", [0, 1, 2, 4])  # every mode
def test_a_killed_run_ends_as_if_nobody_had_killed_it(trials, number):
    killed, _ = trials.kill(number)
    assert killed or number % 2  # at a write it always is; a moment may come too late


def test_a_full_or_read_only_disk_is_one_line_and_loses_nothing(trials):
    for share, mode, fault in ((0.0, "rasterised", errno.EROFS), (0.6, "cached", errno.ENOSPC)):
        trials.full_disk(int(share * len(trials.writes[mode])), mode, fault)


def test_every_stage_writes_and_can_be_killed(trials):
    """Otherwise trials would miss a stage without anyone noticing."""
    for mode, writes in trials.writes.items():
        assert (
            set(trials.seconds[mode]) <= set(writes)
            and len(trials.seconds[mode]) == {"rasterised": 8, "cached": 9, "joint": 7}[mode]
        )


def test_the_comparison_notices(trials, tmp_path):
    import shutil

    mode = "cached"
    shutil.copytree(trials.folder / f"whole_{mode}", tmp_path / "run")
    assert crash.contents(tmp_path / "run") == trials.whole[mode]
    (stage,) = (tmp_path / "run/tracks").glob("*/stage.json")
    record = json.loads(stage.read_text())
    stage.write_text(json.dumps(record | {"wall_time_s": 99.0, "peak_memory_mb": 1}))
    assert crash.contents(tmp_path / "run") == trials.whole[mode]
    stage.write_text(json.dumps(record | {"share_unlabelled": 2.0}))
    assert crash.contents(tmp_path / "run") != trials.whole[mode]
    stage.write_text(json.dumps(record))
    (stage.parent / "x.tmp").write_text("")
    assert crash.contents(tmp_path / "run") != trials.whole[mode]


def test_two_runs_on_one_folder(trials, tmp_path):
    """The second is refused by name, at once, and the first does not notice."""
    out = tmp_path / "out"
    argv = crash.arguments(trials.scene, out, "rasterised")
    first = crash.start(argv, out)
    while not (out / "candidates").exists():
        assert crash._ended(first) is None
        time.sleep(0.002)
    os.rename(f"{out}.log", tmp_path / "first.log")
    second = crash.finish(crash.start(argv, out))
    said = Path(f"{out}.log").read_text()
    assert second == 1 and f"in use by another run (process {first})" in said, said
    assert crash.finish(first) == 0 and crash.contents(out) == trials.whole["rasterised"]


def test_a_stage_waits_for_a_process_that_computes_it(tmp_path):
    script = (
        "import sys, time\n"
        "from cclkit.runs.store import Store\n"
        "with Store(sys.argv[1]).lock():\n"
        "    print('locked', flush=True)\n"
        "    time.sleep(1)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline().strip() == "locked"
    with Store(tmp_path).lock(wait=True):
        assert holder.wait(30) == 0


def test_ctrl_c_is_one_line_that_says_how_to_go_on(trials, tmp_path):
    out = tmp_path / "out"
    argv = crash.arguments(trials.scene, out, "rasterised")
    pid = crash.start(argv, out)
    while not (out / "gaussians").exists():
        assert crash._ended(pid) is None
        time.sleep(0.002)
    os.kill(pid, signal.SIGINT)
    status = crash.finish(pid)
    said = [
        line
        for line in Path(f"{out}.log").read_text().splitlines()
        if "run the same command again" in line
    ]
    assert (
        status == 130
        and len(said) == 1
        and re.match(
            r"cclkit: stopped during \w+, everything finished is kept in .*out; run the same"
            r" command again to go on",
            said[0],
        )
    )
    assert "Traceback" not in Path(f"{out}.log").read_text()
    trials._again(out, "rasterised")


def test_left_overs_of_a_killed_write_are_removed_in_folders_of_a_stage_too(tmp_path):
    store = Store(tmp_path)
    folder = tmp_path / "tracks/k/sp/0000_forward"
    folder.mkdir(parents=True)
    (folder / "carried_000.npz.tmp").write_bytes(b"half")
    artefact = store.ensure(
        "tracks",
        "k",
        lambda f: save_npz(f / "tracks.npz", x=__import__("numpy").zeros(1)),
        about={},
    )
    assert set(artefact.record["files"]) == {"tracks.npz"} and not list(tmp_path.rglob("*.tmp"))


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that nobody may write")
def test_a_folder_nobody_can_write(trials, capsys):
    from cclkit import cli

    assert cli.main(crash.arguments(trials.scene, Path("/proc/cclkit"), "cached")) == 1
    assert "cclkit: /proc/cclkit: cannot be written" in capsys.readouterr().err


def test_run_json_has_time_and_memory_of_every_stage(trials):
    record = json.loads((trials.folder / "whole_cached/run.json").read_text())
    assert len(record["stages"]) == 9
    for stage in record["stages"].values():
        assert (
            stage["computed_in_s"] >= 0 and 10 < stage["peak_memory_mb"] <= record["peak_memory_mb"]
        )


def test_every_stage_shows_its_progress_with_the_time_left(tmp_path):
    scene = write_plane_scene(tmp_path, n_views=3)
    argv = crash.arguments(scene, tmp_path / "out", "cached")
    environment = {k: v for k, v in os.environ.items() if k != "CCLKIT_QUIET"} | {
        "TQDM_MININTERVAL": "0"
    }
    out = subprocess.run(
        [sys.executable, "-m", "cclkit.cli", *argv],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parent.parent,
    )
    assert out.returncode == 0, out.stderr
    for stage in (
        "candidates",
        "masks",
        "features",
        "tracks",
        "codebook",
        "fit RGB",
        "blending",
        "field",
        "evaluation",
    ):
        assert re.search(rf"{stage}: +\d+%.*\d\d:\d\d<\d\d:\d\d", out.stderr), (
            f"{stage} shows no bar with the time left:\n{out.stderr[-2000:]}"
        )


def test_a_damaged_file_of_an_interrupted_stage_is_named(tmp_path):
    """Files of a finished stage have digests; those a killed run left have none yet."""
    from cclkit import config
    from cclkit.errors import ArtefactError
    from cclkit.runs.run import Run

    scene = write_plane_scene(tmp_path, n_views=2)
    run = Run(
        scene,
        config.profile(
            "mini",
            **{
                "front_end.masks": "simulated",
                "front_end.features": "simulated",
                "front_end.propagation": "simulated",
            },
        ),
        tmp_path / "out",
    )
    folder = tmp_path / "out/candidates" / run.key("candidates")
    folder.mkdir(parents=True)
    (folder / "frame_00001.npz").write_bytes(b"PK\x03\x04 half")
    with pytest.raises(ArtefactError, match=r"frame_00001\.npz: damaged"):
        run.ensure("candidates")
