"""`python -m lab.training sam|clip|sam2|score` from a folder of scenes to weights with a record,
in a few steps.
"""

import hashlib
import json

import numpy as np
import pytest

from cclkit.foundation import clip as clip_model, sam as sam_model, sam2 as sam2_model, weights
from lab.training import clip, data, make, sam
from lab.training.__main__ import main

HELD_OUT = range(data.HELD_OUT_SEED, data.HELD_OUT_SEED + 1)
ORBITS = range(data.HELD_OUT_ORBITS[0], data.HELD_OUT_ORBITS[0] + 1)


def write_scene(folder, seed: int, views: int) -> None:
    """A box with a dot and a ball, moving to the right by 12 pixels a view, on a table: the file
    that rendering leaves.
    """
    rng = np.random.default_rng(seed)
    images, ids = (
        rng.integers(80, 100, (views, 192, 256, 3), dtype=np.uint8),
        np.full((views, 3, 192, 256), 4, np.uint16),
    )
    y, x = np.mgrid[:192, :256]
    top = int(rng.integers(20, 40))
    for v in range(views):
        left = 30 + 12 * v
        box = (x >= left) & (x < left + 70) & (y >= top) & (y < top + 60)
        dot = (x - left - 35) ** 2 + (y - top - 30) ** 2 < 144
        ball = (x - left - 40) ** 2 + (y - 150) ** 2 < 900
        for mask, colour, at in (
            (box, (200, 30, 30), (1, 1, 1)),
            (dot, (30, 0, 0), (2, 1, 1)),
            (ball, (20, 40, 200), (3, 3, 3)),
        ):
            images[v][mask] = colour
            ids[v, :, mask] = at
    node = lambda level, text, stuff=False: {
        "texts": [text, f"shiny {text}"],
        "family": text.split()[-1],
        "level": level,
        "stuff": stuff,
        "parent": 0,
        "colour": "",
    }
    nodes = {
        1: node("whole", "red box"),
        2: node("subpart", "box dot"),
        3: node("whole", "blue ball"),
        4: node("whole", "grey table", True),
    }
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        folder / f"{seed}.npz",
        images=images,
        ids=ids,
        info=json.dumps({"nodes": nodes, "complete": [[1, 2, 3]] * views}),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    for seed in (1, 2, 3, *HELD_OUT):
        write_scene(folder, seed, 2)
    for seed in (data.FIRST_CLIP_SEED, data.FIRST_CLIP_SEED + 1, *ORBITS):
        write_scene(folder / data.CLIPS, seed, 6)
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(make, "held_out_seeds", lambda: HELD_OUT)
    monkeypatch.setattr(make, "HELD_OUT_ORBITS", ORBITS)
    monkeypatch.setattr(sam, "CLICKS", 3)
    monkeypatch.setattr(clip, "BATCH", 4)


def test_the_commands_leave_weights_that_load_and_records_that_describe_them(
    folder, tmp_path, capsys
):
    names = {"sam": weights.MINI_SAM, "clip": weights.MINI_CLIP, "sam2": weights.MINI_SAM2}
    for what, name in names.items():
        command = [
            what,
            str(folder),
            "--out",
            str(tmp_path),
            "--steps",
            "4",
            "--threads",
            "2" if what == "sam2" else "1",
        ]
        assert main(command) == 0, capsys.readouterr().err
        path = tmp_path / name
        first, record = path.read_bytes(), json.loads(path.with_suffix(".json").read_text())
        assert record["sha256"] == hashlib.sha256(first).hexdigest() and record["bytes"] == len(
            first
        )
        assert (
            record["training"]["steps"] == 4
            and record["data"]["held_out_seeds"]
            == [(ORBITS if what == "sam2" else HELD_OUT)[0]] * 2
        )
        assert (
            all(np.isfinite(v).all() for v in record["curves_mean_of_20_steps"].values())
            and record["scores"]
        )
        path.unlink()
        assert main(command) == 0  # nothing to train again: the weights where the training ended
        assert path.read_bytes() == first
    (
        sam_model.load_mini_sam(tmp_path / names["sam"]),
        clip_model.load_mini_clip(tmp_path / names["clip"]),
        sam2_model.load_mini_sam2(tmp_path / names["sam2"]),
    )

    scores = json.loads((tmp_path / names["sam2"]).with_suffix(".json").read_text())["scores"]
    (tmp_path / names["sam2"]).with_suffix(".json").write_text(
        json.dumps({"sha256": hashlib.sha256(first).hexdigest()})
    )
    assert main(["score", str(folder), "--out", str(tmp_path), "--threads", "1"]) == 0
    assert (
        json.loads((tmp_path / names["sam2"]).with_suffix(".json").read_text())["scores"] == scores
    )

    assert (
        main(["sam2", str(folder), "--out", str(tmp_path), "--steps", "5"]) == 2
        and "4 steps" in capsys.readouterr().err
    )
    (tmp_path / names["clip"]).write_bytes(first)
    assert (
        main(["score", str(folder), "--out", str(tmp_path)]) == 2
        and names["clip"] in capsys.readouterr().err
    )


def test_the_commands_say_what_is_missing(folder, tmp_path, capsys):
    assert main(["sam", str(tmp_path)]) == 2 and "training render" in capsys.readouterr().err
    assert (
        main(["sam2", str(folder), "--out", str(tmp_path / "empty")]) == 2
        and weights.MINI_SAM in capsys.readouterr().err
    )
    assert (
        main(["score", str(folder), "--out", str(tmp_path / "empty")]) == 2
        and "no weights here" in capsys.readouterr().err
    )
