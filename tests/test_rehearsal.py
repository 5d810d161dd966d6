"""The whole paper profile without a GPU, from `cclkit data fetch` to the ledger; and killed, again
and again.
"""

import csv
import os
import shlex
from pathlib import Path

import pytest
import rehearsal
import torch

from cclkit import cli
from cclkit.downloads import status
from cclkit.places import results_folder
from lab import __main__ as laboratory
from lab.reproduction import jobs, ledger


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mirror") / "downloads"
    folder.mkdir()
    return rehearsal.mirror(folder)


@pytest.fixture
def place(tmp_path, downloads, monkeypatch):
    """Data root with everything fetched from the folder of downloads, and a results folder."""
    monkeypatch.setenv("CCLKIT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("CCLKIT_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("CCLKIT_REGISTRY", str(downloads / "registry.toml"))
    assert cli.main(["data", "fetch", *rehearsal.NAMES, "--from", str(downloads)]) == 0
    assert [i.state for i in status.verify_digests(list(rehearsal.NAMES))] == ["here"] * len(
        rehearsal.NAMES
    )
    return tmp_path


def do(job: jobs.Job) -> None:
    """What the Snakefile does with a job."""
    assert all(path.is_file() for path in job.needs), f"{job.name} before what it needs"
    assert cli.main(shlex.split(job.command)) == 0, job.name
    assert job.output.is_file(), f"{job.name} made another artefact than planned"


def test_the_whole_profile_from_fetch_to_ledger(place, monkeypatch, capsys):
    # whatever the field's mode: here the way is tested, not the number
    monkeypatch.setattr(ledger, "reason", lambda r: "")
    with rehearsal.installed() as gpu:
        todo = jobs.plan("paper")
        assert (
            len(todo) == 4 * (3 + 4 * 2) + 4 * (3 + 2)
            and not any(j.done for j in todo)
            and len({j.name for j in todo}) == len(todo)
        )
        for job in todo:
            do(job)
        assert (
            gpu.mode.moves > 100
            and gpu.mode.operations > 10_000
            and {"rasterize_to_pixels", "spherical_harmonics"} <= set(gpu.calls)
        )
        assert all(j.done and j.minutes == 0 for j in jobs.plan("paper"))
        capsys.readouterr()
        assert laboratory.main(["ledger"]) == 0
        assert "70 numbers" in capsys.readouterr().out
        every = ledger.rows()
    with open(results_folder("paper").parent / "ledger.csv") as f:
        lines = list(csv.DictReader(f))
    assert len(lines) == 70 and [r["status"].partition(":")[0] for r in lines] == [
        r.status.partition(":")[0] for r in every
    ]
    ours = [r for r in every if not r.status.endswith(ledger.NOT_OURS)]
    assert len(ours) == 6 * 5 and all(
        r.status in ("reproduced", "differs") and r.ours is not None and r.minutes > 0 for r in ours
    )
    for r in ours:
        assert r.status == ("reproduced" if abs(r.ours - r.paper) <= r.tolerance else "differs")
        if r.scene == ledger.AVERAGE:
            mine = [
                o.ours
                for o in ours
                if (o.table, o.method) == (r.table, r.method) and o.scene != ledger.AVERAGE
            ]
            assert len(mine) == 4 and abs(r.ours - sum(mine) / 4) < 1e-9
    assert all(r.ours is None for r in every if r not in ours)


class Killed(BaseException):
    pass


def test_killed_at_every_file_it_goes_on(place, monkeypatch):
    """Every attempt is killed after two new files (more when a stage writes more in one go): it
    comes to its end, and finished jobs are left alone.
    """
    one = {"lerf_ovs/ramen": ("both",)}
    real, written = os.replace, set()

    def replace(source, target):
        if "runs" in str(target):
            if count[0] == 0:
                raise Killed
            count[0] -= 1
            assert not (Path(target).parent / "stage.json").is_file(), f"{target} was finished"
            written.add(str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    records: dict[str, int] = {}
    with rehearsal.installed(scenes=one):
        patience = known = 0
        for _attempt in range(150):
            patience, known = (0 if len(written) > known else patience + 1), len(written)
            count = [2 + patience]
            todo = jobs.plan("paper")
            for job in todo:
                # what was finished counts as such, and nothing else does
                assert job.done == (str(job.output) in records)
            try:
                for job in todo:
                    if not job.done:
                        do(job)
                        records[str(job.output)] = job.output.stat().st_mtime_ns
                break
            except Killed:
                records |= {
                    str(j.output): j.output.stat().st_mtime_ns for j in todo if j.output.is_file()
                }
        else:
            pytest.fail("it did not get to the end")
        assert _attempt > 8 and all(j.done for j in jobs.plan("paper"))
    assert all(os.stat(path).st_mtime_ns == when for path, when in records.items())


NO_CUDA = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device; the pretended one is used above"
)


@pytest.mark.cuda
@NO_CUDA
def test_the_same_on_a_real_gpu(place):
    """Every stage of one scene of each layout on the device, and what the CPU makes of the same
    artefacts' inputs.
    """
    with rehearsal.installed(
        scenes={"lerf_ovs/ramen": ("both",), "3d_ovs/bed": ("both",)}, pretend=False
    ):
        for job in jobs.plan("paper"):
            do(job)
        assert all(j.done for j in jobs.plan("paper"))


@pytest.mark.slow
def test_the_public_architectures(tmp_path_factory, tmp_path, monkeypatch):
    """SAM ViT-B, SAM 2.1 Hiera tiny and OpenCLIP ViT-B/16 as published, with random weights:
    CCLKIT_SLOW=1 python -m pytest tests/test_rehearsal.py -m slow.
    """
    if not os.environ.get("CCLKIT_SLOW"):
        pytest.skip("takes minutes and 2 GB; set CCLKIT_SLOW=1")
    import open_clip
    import segment_anything

    from cclkit.foundation.sam2 import build_sam2

    folder = tmp_path / "downloads"
    folder.mkdir()
    torch.manual_seed(0)
    weights = {
        "sam_vit_b_01ec64.pth": rehearsal.confident(segment_anything.sam_model_registry["vit_b"]()),
        "sam2.1_hiera_tiny.pt": {"model": build_sam2("sam2.1_hiera_tiny").state_dict()},
        "open_clip_pytorch_model.bin": (
            open_clip.create_model("ViT-B-16", pretrained=None).state_dict()
        ),
    }
    rehearsal.mirror(folder, weights=weights, n_views=2)
    del weights
    monkeypatch.setenv("CCLKIT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("CCLKIT_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("CCLKIT_REGISTRY", str(folder / "registry.toml"))
    assert (
        cli.main(
            [
                "data",
                "fetch",
                "lerf_ovs",
                "sam_vit_b",
                "sam2.1_hiera_tiny",
                "openclip_vit_b_16",
                "--from",
                str(folder),
            ]
        )
        == 0
    )
    numbers = rehearsal.NUMBERS | {
        "front_end.sam.model": "vit_b",
        "front_end.sam2.model": "sam2.1_hiera_tiny",
        "front_end.sam.points_per_side": 1,
    }
    with rehearsal.installed(scenes={"lerf_ovs/ramen": ("both",)}, numbers=numbers, small=False):
        for job in jobs.plan("paper"):
            do(job)
        assert all(j.done for j in jobs.plan("paper"))
