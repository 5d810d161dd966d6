"""What docs/own_capture.md promises: photographs and a COLMAP model in; masks, a film and the
selected Gaussians out.
"""

import json
import re
import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from cclkit import cli, config
from cclkit.gaussians.model import load_ply
from cclkit.runs.run import Run
from cclkit.settings import parse_settings

ROOT = Path(__file__).parent.parent
QUICK = {
    "gaussians.iterations": 4,
    "gaussians.start_gaussians": 1500,
    "field.iterations": 30,
    "codebook.steps": 40,
    "codebook.n_prototypes": 16,
    "field.hidden": (32,),
    "front_end.sam.points_per_side": 4,
}


@pytest.fixture(scope="module")
def small_sam(tmp_path_factory):
    """Untrained weights of mini-SAM, sure of every mask: they mean nothing, but everything behind
    them runs.
    """
    from safetensors.torch import save_file

    from cclkit.foundation.mini_sam import build_mini_sam

    torch.manual_seed(0)
    path, sam = tmp_path_factory.mktemp("weights") / "sam.safetensors", build_mini_sam()
    sam.mask_decoder.iou_prediction_head.layers[-1].bias.data.fill_(0.9)
    save_file(sam.state_dict(), path)
    return path


def capture(source: Path, target: Path) -> Path:
    """Nothing but photographs and the camera model of a scene."""
    for part in ("images", "sparse"):
        shutil.copytree(source / part, target / part)
    return target


def commands(folder: Path, out: Path, small_sam: Path) -> list[str]:
    settings = QUICK | {
        "front_end.masks": "sam",
        "front_end.sam.checkpoint": small_sam,
        "front_end.sam.stability_offset": 1e-9,
        "front_end.propagation": "geometric",
        "masks.predicted_iou_min": 0.0,
        "masks.stability_min": 0.0,
        "masks.score_min": 0.0,
    }
    return [
        "--scene",
        str(folder),
        "--out",
        str(out),
        *(x for k, v in settings.items() for x in ("--set", f"{k}={v}")),
    ]


def check_answer(folder: Path, run_folder: Path, size: tuple[int, int], n_views: int) -> None:
    answer = json.loads((folder / "answer.json").read_text())
    assert len(answer["views"]) == n_views
    film, count = cv2.VideoCapture(str(folder / answer["film"])), 0
    while film.read()[0]:
        count += 1
    assert count == n_views
    for name, found in answer["views"].items():
        mask = np.asarray(Image.open(folder / f"{Path(name).stem}_mask.png"))
        assert mask.shape == size and (mask > 0).sum() == found["mask_pixels"]
        overlay = np.asarray(Image.open(folder / f"{Path(name).stem}_overlay.png"))
        assert overlay.shape == (*size, 3)
    every = load_ply(next((run_folder / "gaussians").glob("*/gaussians.ply")))
    assert answer["selection"]["of"] == len(every)
    if answer["selection"]["file"]:
        chosen = load_ply(folder / "selection.ply")
        assert 0 < len(chosen) == answer["selection"]["gaussians"] <= len(every)
        where = {tuple(m) for m in every.means.tolist()}
        assert all(tuple(m) in where for m in chosen.means.tolist())


def test_photographs_and_a_camera_model_are_enough(plane_scene, small_sam, tmp_path, capsys):
    folder = capture(plane_scene, tmp_path / "capture")
    arguments = commands(folder, tmp_path / "out", small_sam)
    assert cli.main(["run", *arguments]) == 0
    out = capsys.readouterr().out
    assert "geometric tracks" in out and "skipped: the scene has no labels" in out
    assert cli.main(["query", *arguments, "red apple"]) == 0
    out = capsys.readouterr().out
    assert "6 views answered" in out and "overlays.webm" in out and "Gaussians selected" in out
    (answers,) = (tmp_path / "out" / "queries").iterdir()
    check_answer(answers, tmp_path / "out", (48, 64), 6)


def test_where_nothing_can_be_simulated_the_way_out_is_named(plane_scene, tmp_path, capsys):
    folder = capture(plane_scene, tmp_path / "capture")
    assert (
        cli.main(
            [
                "run",
                "--scene",
                str(folder),
                "--out",
                str(tmp_path / "out"),
                "--set",
                "front_end.propagation=simulated",
            ]
        )
        == 1
    )
    err = capsys.readouterr().err
    assert "front_end.propagation" in err and "the scene has none" in err and err.count("\n") == 1


def test_real_photographs_answer_a_text_in_2d_and_3d(real_data, small_sam, tmp_path, capsys):
    """YCB-Video at a quarter of its size, without its labels, ids and depth."""
    import pycolmap

    source, folder = real_data / "ycb" / "0000", tmp_path / "capture"
    capture(source, folder)
    model = pycolmap.Reconstruction(folder / "sparse" / "0")
    for path in (folder / "images").iterdir():
        with Image.open(path) as im:
            im.reduce(4).save(path, quality=95)
    for camera in model.cameras.values():
        camera.rescale(160, 120)
    model.write(folder / "sparse" / "0")
    arguments = commands(folder, tmp_path / "out", small_sam)
    assert cli.main(["query", *arguments, "mug"]) == 0
    (answers,) = (tmp_path / "out" / "queries").iterdir()
    check_answer(answers, tmp_path / "out", (120, 160), 5)


def test_the_how_to_names_commands_and_settings_that_exist():
    text = (ROOT / "docs" / "own_capture.md").read_text()
    lines = [
        line
        for block in re.findall(r"^```sh\n(.*?)^```", text, flags=re.S | re.M)
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("cclkit ")
    ]
    assert {line.split()[1] for line in lines} >= {"run", "query", "data"}
    for line in lines:
        args = cli._parser().parse_args(shlex.split(line, comments=True)[1:])
        if getattr(args, "settings", None):
            assert config.profile("mini", **parse_settings(args.settings))


def test_a_capture_is_a_scene_without_ground_truth(plane_scene, tmp_path):
    run = Run(capture(plane_scene, tmp_path / "capture"), out=tmp_path / "out")
    assert run.scene.ground_truth is None and not run.scene.labels and len(run.scene.views) == 6
