"""Runs that are killed, and disks that are full: `python -m tests.crash --full` (32 kills, 32 full
disks).

A run is killed with SIGKILL, at a random write or a random moment of a random stage, started again,
and what it leaves is compared byte for byte with a run that nobody disturbed. Left out of the
comparison are times and memory, which stage.json records beside the artefact.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("CCLKIT_QUIET", "1")

import numpy as np
import torch

# Runs are forked with everything loaded: the first optimiser would import _dynamo, which takes
# longer than all stages. Torch before pycolmap, see `scenes.colmap`.
# isort: split
import pycolmap  # noqa: F401
import torch._dynamo  # noqa: F401
from conftest import write_plane_scene

import cclkit.notebook.tables  # noqa: F401
import cclkit.runs.run  # noqa: F401
from cclkit import cli
from cclkit.files import file_digest

SMALL = (
    "front_end.masks=simulated",
    "front_end.features=simulated",
    "gaussians.iterations=4",
    "gaussians.start_gaussians=300",
    "gaussians.densify=False",
    "field.iterations=10",
    "codebook.steps=30",
    "codebook.n_prototypes=8",
    "field.hidden=(8,)",
    "field.pixels_per_mask=20",
    "field.batch=128",
    "field.top_k=4",
)
MODES = ("rasterised", "cached", "joint")
MEASURED = ("wall_time_s", "peak_memory_mb")
"""What stage.json records and no two runs share."""
WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")


def arguments(scene: Path, out: Path, mode: str) -> list[str]:
    return [
        "run",
        "--scene",
        str(scene),
        "--out",
        str(out),
        *(x for s in (*SMALL, f"field.mode={mode}") for x in ("--set", s)),
    ]


def start(
    argv: list[str],
    out: Path,
    *,
    kill_at: int | None = None,
    fail_at: int | None = None,
    fault: int = errno.ENOSPC,
    count: Path | None = None,
) -> int:
    """Fork a process that runs the command; its output goes to ``out``.log. Returns its id.

    ``kill_at``: SIGKILL at that write below ``out``. ``fail_at``: from that write on the disk
    refuses, with ``fault``. ``count``: a file for the stage of every write, in order.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        # a child has none of its parent's threads, and torch would wait for them
        torch.set_num_threads(1)
        # a shell's background jobs ignore it
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # pytest may have put its own in their place
        sys.stdout = sys.stderr = open(f"{out}.log", "w", buffering=1, encoding="utf-8")
        os.dup2(sys.stdout.fileno(), 1), os.dup2(sys.stdout.fileno(), 2)
        seen: list[str] = []
        armed = [True]

        def event(name: str, args: tuple) -> None:
            if not armed[0] or not (
                name in WRITES
                or (name == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"))
            ):
                return
            path = os.fsdecode(args[0]) if not isinstance(args[0], int) else ""
            if not path.startswith(f"{out}{os.sep}"):
                return
            seen.append(Path(path).relative_to(out).parts[0])
            if len(seen) - 1 == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if fail_at is not None and len(seen) - 1 >= fail_at and name != "os.remove":
                raise OSError(fault, os.strerror(fault), path)

        sys.addaudithook(event)
        code = cli.main(argv)
        armed[0] = False
        if count is not None:
            count.write_text(json.dumps(seen))
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def finish(pid: int) -> int:
    """Exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def contents(out: Path) -> dict[str, str]:
    """What a run leaves: every file below its stages, with stage.json but for what is measured."""
    found = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file() and p.parent != out):
        name = path.relative_to(out).as_posix()
        if path.name == "stage.json":
            found[name] = json.dumps(
                {k: v for k, v in json.loads(path.read_text()).items() if k not in MEASURED},
                sort_keys=True,
            )
        else:
            found[name] = file_digest(path)
    return found


class Trials:
    """A tiny scene and the runs on it that nobody disturbed, one for each way of training the
    field.
    """

    def __init__(self, folder: Path):
        self.folder, self.scene = folder, write_plane_scene(folder, n_views=3)
        self.whole, self.writes, self.seconds = {}, {}, {}
        for mode in MODES:
            out, count = folder / f"whole_{mode}", folder / f"writes_{mode}.json"
            code = finish(start(arguments(self.scene, out, mode), out, count=count))
            assert code == 0, Path(f"{out}.log").read_text()
            self.whole[mode], self.writes[mode] = contents(out), json.loads(count.read_text())
            self.seconds[mode] = {
                p.parent.parent.name: json.loads(p.read_text())["wall_time_s"]
                for p in out.rglob("stage.json")
            }

    def _again(self, out: Path, mode: str) -> None:
        """The same command to its end: the same bytes, and nothing half-written left."""
        code = finish(start(arguments(self.scene, out, mode), out))
        assert code == 0, f"restart: status {code}: {Path(f'{out}.log').read_text()}"
        found = contents(out)
        different = sorted(
            n
            for n in found.keys() | self.whole[mode].keys()
            if found.get(n) != self.whole[mode].get(n)
        )
        assert not different, f"differ from the undisturbed run: {different}"

    def kill(self, number: int) -> tuple[bool, str]:
        """One trial, alike for the same number: by turns at a write and at a moment. Whether it was
        killed before it ended, and where.
        """
        rng = np.random.default_rng(number)
        mode = MODES[number // 2 % len(MODES)]
        out = self.folder / f"killed_{number}"
        stages = list(dict.fromkeys(s for s in self.writes[mode] if s in self.seconds[mode]))
        stage = stages[int(rng.integers(0, len(stages)))]
        argv = arguments(self.scene, out, mode)
        if number % 2 == 0:
            at = int(rng.choice([n for n, s in enumerate(self.writes[mode]) if s == stage]))
            status, where = finish(start(argv, out, kill_at=at)), f"write {at} ({stage})"
        else:
            share = float(rng.random())
            pid, gone = start(argv, out), None
            while not (out / stage).exists() and gone is None:
                time.sleep(0.001)
                gone = _ended(pid)
            if gone is None:
                time.sleep(share * self.seconds[mode][stage])
                gone = _ended(pid)
            if gone is None:
                os.kill(pid, signal.SIGKILL)
                gone = finish(pid)
            status, where = gone, f"{share:.0%} of {stage}"
        assert status in (-signal.SIGKILL, 0), f"status {status}: {Path(f'{out}.log').read_text()}"
        self._again(out, mode)
        return bool(status), f"{mode}, {where}{'' if status else ': had ended before'}"

    def full_disk(self, number: int, mode: str = "cached", fault: int = errno.ENOSPC) -> None:
        """From one write on the disk refuses: one line and status 1, and afterwards the run goes
        on.
        """
        out = self.folder / f"full_{mode}_{number}_{fault}"
        code = finish(start(arguments(self.scene, out, mode), out, fail_at=number, fault=fault))
        said = Path(f"{out}.log").read_text()
        assert (
            code == 1
            and "cannot be written" in said
            and os.strerror(fault) in said
            and "Traceback" not in said
        ), f"write {number}: status {code}: {said}"
        self._again(out, mode)


def _ended(pid: int) -> int | None:
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--full", action="store_true", help="the same as --kills 32 --disks 32")
    p.add_argument("--kills", type=int, default=4)
    p.add_argument(
        "--disks",
        type=int,
        default=4,
        help="how many writes, spread over a run, are those from which on the disk is full",
    )
    args = p.parse_args()
    if args.full:
        args.kills = args.disks = 32
    torch.set_num_threads(1)
    bad, killed, begin = 0, 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(Path(folder))
        # a run that ended before its moment came was not killed, and does not count
        for n in range(3 * args.kills):
            if killed == args.kills:
                break
            try:
                counts, where = trials.kill(n)
                print(f"kill {n}: {where}: identical", flush=True)
            except AssertionError as e:
                counts, bad = True, bad + 1
                print(f"kill {n}: {e}", flush=True)
            killed += counts
        for k in range(args.disks):
            mode = MODES[k % len(MODES)]
            total = len(trials.writes[mode])
            at, fault = k * total // args.disks, (errno.ENOSPC, errno.EROFS)[k // 2 % 2]
            try:
                trials.full_disk(at, mode, fault)
                print(
                    f"{os.strerror(fault)} from write {at} of {total} on ({mode}): one message,"
                    " then identical",
                    flush=True,
                )
            except AssertionError as e:
                bad += 1
                print(
                    f"{os.strerror(fault)} from write {at} of {total} on ({mode}): {e}", flush=True
                )
    print(f"{killed} runs killed, {bad} failures, {time.monotonic() - begin:.0f} s")
    return int(bool(bad) or killed < args.kills)


if __name__ == "__main__":
    sys.exit(main())
