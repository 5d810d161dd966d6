"""Archives: what a reader of the public data sets finds in the zip is the bundled scene.

The readers below are written from the formats' descriptions, with struct, json, cv2, numpy and PIL
only.
"""

import json
import os
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cclkit.downloads.bundled import verify_sums
from cclkit.errors import ConfigError, SceneError
from cclkit.places import bundled_scenes
from cclkit.scenes.load import load_scene
from lab.tabletop import __main__ as cli, export

BUNDLED = bundled_scenes()
LERF = [n for n, f in BUNDLED.items() if f.parent.name == "lerf_ovs"]
OVS = [n for n, f in BUNDLED.items() if f.parent.name == "3d_ovs"]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    root = tmp_path_factory.mktemp("archive")
    export.archive(list(BUNDLED.values()), root / "all.zip")
    with zipfile.ZipFile(root / "all.zip") as z:
        assert z.testzip() is None and z.namelist() == sorted(z.namelist())
        z.extractall(root)
    return root


def folder(root, name):
    return root / "lerf_ovs" / name if name in LERF else root / name


def below(path):
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())


def test_only_what_the_public_data_have(unpacked):
    assert sorted(p.name for p in unpacked.iterdir()) == sorted(["all.zip", "lerf_ovs", *OVS])
    assert sorted(p.name for p in (unpacked / "lerf_ovs").iterdir()) == sorted(["label", *LERF])
    for n in LERF:
        assert sorted(p.name for p in folder(unpacked, n).iterdir()) == ["images", "sparse"]
        assert below(folder(unpacked, n) / "sparse") == [
            "0/cameras.bin",
            "0/images.bin",
            "0/points3D.bin",
        ]
        labels = below(unpacked / "lerf_ovs" / "label" / n)
        assert labels == sorted(
            f"{Path(f).stem}.{e}" for f in labels if f.endswith("json") for e in ("jpg", "json")
        )
    for n in OVS:
        assert sorted(p.name for p in folder(unpacked, n).iterdir()) == [
            "images",
            "poses_bounds.npy",
            "segmentations",
        ]
    for n, f in BUNDLED.items():
        assert below(folder(unpacked, n) / "images") == below(f / "images")


@pytest.mark.parametrize("name", BUNDLED)
def test_own_loader_reads_the_same_scene(name, unpacked):
    ours, theirs = load_scene(BUNDLED[name]), load_scene(folder(unpacked, name))
    assert (ours.layout, ours.name, ours.queries) == (theirs.layout, theirs.name, theirs.queries)
    assert theirs.ground_truth is None and theirs.depth_folder is None and not theirs.held_out
    assert np.array_equal(ours.points, theirs.points) and np.array_equal(
        ours.point_colors, theirs.point_colors
    )
    for a, b in zip(ours.views, theirs.views, strict=True):
        assert a.name == b.name and np.array_equal(a.image(), b.image())
        assert np.array_equal(a.camera.K, b.camera.K) and np.array_equal(
            a.camera.world_to_camera, b.camera.world_to_camera
        )
    assert ours.labels.keys() == theirs.labels.keys()
    for v in ours.labels:
        for a, b in zip(ours.labels[v], theirs.labels[v], strict=True):
            assert (
                a.category == b.category
                and np.array_equal(a.mask, b.mask)
                and np.array_equal(a.boxes, b.boxes)
            )
    assert ours.class_masks.keys() == theirs.class_masks.keys()
    for v, masks in ours.class_masks.items():
        assert {c: p.read_bytes() for c, p in masks.items()} == {
            c: p.read_bytes() for c, p in theirs.class_masks[v].items()
        }


def colmap_cameras(path):
    data = path.read_bytes()
    (count,) = struct.unpack_from("<Q", data)
    number, model, width, height, *params = struct.unpack_from("<iiQQ4d", data, 8)
    assert (count, model, len(data)) == (1, 1, 8 + 24 + 32)  # one PINHOLE camera
    return {number: (width, height, params)}


def colmap_images(path):
    data, at = path.read_bytes(), 8
    out = {}
    for _ in range(struct.unpack_from("<Q", data)[0]):
        _, w, x, y, z, tx, ty, tz, number = struct.unpack_from("<i7di", data, at)
        at += 64
        end = data.index(b"\0", at)
        name = data[at:end].decode()
        (n,) = struct.unpack_from("<Q", data, end + 1)
        at = end + 9 + 24 * n
        R = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        )
        out[name] = (R, np.array([tx, ty, tz]), number)
    assert at == len(data)
    return out


def colmap_points(path):
    data, at = path.read_bytes(), 8
    xyz, rgb = [], []
    for _ in range(struct.unpack_from("<Q", data)[0]):
        _, px, py, pz, r, g, b, _ = struct.unpack_from("<Q3d3Bd", data, at)
        (track,) = struct.unpack_from("<Q", data, at + 43)
        at += 51 + 8 * track
        xyz.append((px, py, pz))
        rgb.append((r, g, b))
    assert at == len(data)
    return np.array(xyz), np.array(rgb)


@pytest.mark.parametrize("name", LERF)
def test_a_literal_lerf_ovs_reader_agrees(name, unpacked):
    root, scene = unpacked / "lerf_ovs", load_scene(BUNDLED[name])
    cameras = colmap_cameras(root / name / "sparse" / "0" / "cameras.bin")
    poses = colmap_images(root / name / "sparse" / "0" / "images.bin")
    assert (
        sorted(poses) == sorted(os.listdir(root / name / "images")) == [v.name for v in scene.views]
    )
    for v in scene.views:
        R, t, number = poses[v.name]
        width, height, (fx, fy, cx, cy) = cameras[number]
        with Image.open(root / name / "images" / v.name) as im:
            assert im.size == (width, height) == (v.camera.width, v.camera.height)
        assert np.allclose(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), v.camera.K, atol=1e-12)
        assert np.abs(np.c_[R, t] - v.camera.world_to_camera[:3]).max() < 1e-9
    xyz, rgb = colmap_points(root / name / "sparse" / "0" / "points3D.bin")
    assert np.array_equal(xyz, scene.points) and np.array_equal(rgb, scene.point_colors)
    # The published evaluation takes the frame number less one as a position in the sorted renders.
    frames = sorted(poses)
    labels = sorted((root / "label" / name).glob("frame_*.json"))
    assert (
        len(labels) == len(sorted((root / "label" / name).glob("frame_*.jpg"))) == len(scene.labels)
    )
    for path in labels:
        data = json.loads(path.read_text())
        h, w = data["info"]["height"], data["info"]["width"]
        view = frames[int(Path(data["info"]["name"]).stem.removeprefix("frame_")) - 1]
        assert (
            view == data["info"]["name"]
            and path.with_suffix(".jpg").read_bytes()
            == (root / name / "images" / view).read_bytes()
        )
        masks, boxes = {}, {}
        for o in data["objects"]:
            one = np.zeros((h, w), np.uint8)
            cv2.fillPoly(one, [np.array(o["segmentation"]).astype(np.int32)], 1)
            masks[o["category"]] = np.logical_or(masks.get(o["category"], 0), one)
            boxes.setdefault(o["category"], []).append(o["bbox"])
        assert list(masks) == [u.category for u in scene.labels[view]]
        for u in scene.labels[view]:
            assert np.array_equal(masks[u.category], u.mask) and np.array_equal(
                boxes[u.category], u.boxes
            )


@pytest.mark.parametrize("name", OVS)
def test_a_literal_3d_ovs_reader_agrees(name, unpacked):
    root, scene = unpacked / name, load_scene(BUNDLED[name])
    rows = np.load(root / "poses_bounds.npy")
    images = sorted((root / "images").glob("*"))
    assert rows.dtype == np.float64 and rows.shape == (len(images), 17)
    for row, path in zip(rows, images):
        pose = row[:15].reshape(3, 5)
        own = scene.view(path.name).camera
        h, w, f = pose[:, 4]
        right_up_back = np.stack([pose[:, 1], -pose[:, 0], pose[:, 2]], 1)
        assert np.allclose(right_up_back, own.camera_to_world[:3, :3] * [1, -1, -1], atol=1e-9)
        assert np.allclose(pose[:, 3], own.centre, atol=1e-9)
        assert (w, h, f) == (own.width, own.height, own.K[0, 0]) and 0 < row[15] < row[16]
        with Image.open(path) as im:
            assert im.size == (w, h)
    classes = sorted(line.strip() for line in (root / "segmentations" / "classes.txt").open())
    assert classes == sorted(scene.classes) and "" not in classes
    stems = [p.name for p in (root / "segmentations").iterdir() if p.is_dir()]
    # folder NN is image number NN, sorted
    assert {images[int(s)].name for s in stems} == set(scene.class_masks)
    for s in stems:
        view = images[int(s)].name
        for c in classes:
            # 254 would be background
            mask = np.array(Image.open(root / "segmentations" / s / f"{c}.png").convert("L")) // 255
            assert mask.shape == (scene.view(view).camera.height, scene.view(view).camera.width)
            ids = [i for q in load_ids(name) if q["text"] == c for i in q["ids"]]
            assert np.array_equal(
                mask == 1, np.isin(scene.ground_truth.ids(scene.view(view), "whole"), ids)
            )


def load_ids(name):
    return [
        q
        for q in json.loads((BUNDLED[name] / "ground_truth" / "objects.json").read_text())[
            "queries"
        ]
        if q["granularity"] == "whole"
    ]


def test_same_files_give_the_same_bytes(tmp_path):
    scenes = [BUNDLED[LERF[0]], BUNDLED[OVS[0]]]
    first = export.archive(scenes, tmp_path / "a.zip").read_bytes()
    # new times, new modes
    copy = shutil.copytree(
        BUNDLED[OVS[0]], tmp_path / "elsewhere" / OVS[0], copy_function=shutil.copyfile
    )
    (copy / "images" / "notes.txt").write_text("in no checksum file, so in no archive")
    assert export.archive([copy, BUNDLED[LERF[0]]], tmp_path / "b.zip").read_bytes() == first


@pytest.mark.parametrize("name", [LERF[-1], OVS[-1]])
def test_everything_is_the_whole_scene(name, tmp_path):
    with zipfile.ZipFile(export.archive([BUNDLED[name]], tmp_path / "a.zip", everything=True)) as z:
        z.extractall(tmp_path)
    scene = load_scene(folder(tmp_path, name))
    assert (
        scene.ground_truth is not None
        and scene.held_out
        and below(scene.path) == below(BUNDLED[name])
    )
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=scene.path, check=True)


def test_what_cannot_be_packed(tmp_path, capsys):
    source = BUNDLED[OVS[0]]
    copy = shutil.copytree(source, tmp_path / source.name)
    with pytest.raises(SceneError, match=f"two scenes named {source.name}"):
        export.archive([source, copy], tmp_path / "a.zip")
    image = next((copy / "images").iterdir())
    image.write_bytes(image.read_bytes() + b" ")
    with pytest.raises(SceneError, match=f"{image.name}: edited"):
        export.archive([copy], tmp_path / "a.zip")
    for out in (tmp_path, tmp_path / "a.tar"):
        with pytest.raises(ConfigError, match="give the file to write"):
            export.archive([source], out)
    assert not list(tmp_path.glob("*.zip*"))
    assert cli.main(["archive", "nowhere", str(tmp_path / "a.zip")]) == 2
    assert capsys.readouterr().err.startswith("error: nowhere: no such scene")
    assert cli.main(["archive", source.name, str(tmp_path / "a.zip")]) == 0
    assert cli.main(["verify", source.name, str(copy)]) == 2
    out, err = capsys.readouterr()
    assert (
        f"{source.name}: {len(verify_sums(source))} files are as in SHA256SUMS" in out
        and "edited" in err
    )
