"""Readers: small scenes written here, the real YCB scenes where CCLKIT_REAL_DATA is set, and bad
input.
"""

import importlib
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
from PIL import Image

from cclkit.errors import SceneError
from cclkit.places import bundled_scenes
from cclkit.scenes.lerf_ovs import fill_polygon
from cclkit.scenes.load import LAYOUTS, content_hash, load_scene

W, H = 40, 30
NAMES = ("frame_1.jpg", "frame_2.jpg", "frame_10.jpg")  # natural order


def rotation(axis, angle):
    q = np.concatenate(
        [[np.cos(angle / 2)], np.sin(angle / 2) * np.asarray(axis) / np.linalg.norm(axis)]
    )
    w, x, y, z = q
    R = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    return q, R


def poses():
    """Per image: quaternion, rotation, translation (world to camera)."""
    out = {}
    for i, name in enumerate(NAMES):
        q, R = rotation([1, 2, 3 + i], 0.3 * i + 0.1)
        out[name] = (q, R, np.array([0.1 * i, -0.2, 2.0]))
    return out


def write_images(folder, names=NAMES, size=(W, H)):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.fromarray(np.full((size[1], size[0], 3), 40 * i, np.uint8)).save(folder / name)


def write_colmap(
    scene, *, camera="PINHOLE 40 30 35 36 19.25 15.75", names=NAMES, folder="sparse/0", binary=False
):
    model = scene / folder
    model.mkdir(parents=True, exist_ok=True)
    (model / "cameras.txt").write_text(f"# a comment\n1 {camera}\n")
    lines = []
    for i, name in enumerate(reversed(names)):  # unsorted on purpose
        q, _, t = poses()[name]
        lines += [
            " ".join(map(repr, [i + 1, *q.tolist(), *t.tolist()])) + f" 1 {name}",
            f"{3.5 + i} 4.5 7",
        ]
    (model / "images.txt").write_text("\n".join(lines) + "\n")
    track = " ".join(f"{i + 1} 0" for i in range(len(names)))
    (model / "points3D.txt").write_text(f"7 0.5 -0.25 3.0 200 100 50 0.5 {track}\n")
    if binary:
        pycolmap.Reconstruction(str(model)).write_binary(str(model))
        for path in model.glob("*.txt"):
            path.unlink()
    return model


def write_labels(scene, name="frame_2.jpg", objects=None, size=(W, H)):
    folder = scene.parent / "label" / scene.name
    folder.mkdir(parents=True, exist_ok=True)
    square = lambda a, b: [[a, a], [b, a], [b, b], [a, b]]
    if objects is None:
        objects = [
            {"category": "mug", "segmentation": square(2.9, 6.2), "bbox": [2, 2, 6, 6]},
            {"category": "apple", "segmentation": square(20, 25), "bbox": [25, 25, 20, 20]},
            {"category": "mug", "segmentation": square(10, 12), "bbox": [10, 10, 12, 12]},
        ]
    data = {"info": {"name": name, "width": size[0], "height": size[1]}, "objects": objects}
    path = folder / f"{Path(name).stem}.json"
    path.write_text(json.dumps(data))
    return path


@pytest.fixture
def scene(tmp_path):
    path = tmp_path / "desk"
    write_images(path / "images")
    write_colmap(path)
    return path


@pytest.fixture
def lerf(scene):
    write_labels(scene)
    return scene


@pytest.fixture
def ovs(tmp_path):
    """3D-OVS layout with poses_bounds.npy for half-size images."""
    path = tmp_path / "bed"
    write_images(path / "images", ("00.png", "01.png", "02.png"))
    rows = []
    for _q, R, t in poses().values():
        c2w, centre = R.T, -R.T @ t
        # down, right, backwards
        matrix = np.stack([c2w[:, 1], c2w[:, 0], -c2w[:, 2], centre, [2 * H, 2 * W, 70.0]], axis=1)
        rows.append(np.concatenate([matrix.ravel(), [0.5, 9]]))
    np.save(path / "poses_bounds.npy", np.array(rows))
    (path / "segmentations" / "01").mkdir(parents=True)
    (path / "segmentations" / "classes.txt").write_text("red bag\nPikachu \n\nwhite sheet\n")
    for name in ("red bag", "pikachu", "White_Sheet"):  # names that differ in case and spaces
        Image.fromarray(np.full((2 * H, 2 * W), 255, np.uint8)).save(
            path / "segmentations" / "01" / f"{name}.png"
        )
    return path


def fails(path, *parts, **kw):
    """load_scene fails with one message that holds every part (file, finding, remedy)."""
    with pytest.raises(SceneError) as e:
        load_scene(path, **kw)
    for part in parts:
        assert part in str(e.value), f"{part!r} not in: {e.value}"
    return str(e.value)


# ---- COLMAP --------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("folder", ["sparse/0", "sparse"])
def test_colmap_text_and_binary(tmp_path, binary, folder):
    path = tmp_path / "desk"
    write_images(path / "images", (*NAMES, "not_registered.jpg"))
    write_colmap(path, binary=binary, folder=folder)
    s = load_scene(path)
    assert s.layout == "colmap" and s.name == "desk"
    assert tuple(v.name for v in s.views) == NAMES  # natural order, not that of the file
    for v in s.views:
        _, R, t = poses()[v.name]
        np.testing.assert_allclose(
            v.camera.world_to_camera[:3], np.hstack([R, t[:, None]]), atol=1e-12
        )
        np.testing.assert_array_equal(v.camera.K, [[35, 0, 19.25], [0, 36, 15.75], [0, 0, 1]])
        assert (v.camera.width, v.camera.height) == (W, H) and v.image().shape == (H, W, 3)
    np.testing.assert_allclose(s.points, [[0.5, -0.25, 3.0]])
    assert s.point_colors.tolist() == [[200, 100, 50]]


def test_simple_pinhole_keeps_its_principal_point(scene):
    write_colmap(scene, camera="SIMPLE_PINHOLE 40 30 33 18.5 14")
    np.testing.assert_array_equal(
        load_scene(scene).views[0].camera.K, [[33, 0, 18.5], [0, 33, 14], [0, 0, 1]]
    )


@pytest.mark.parametrize("binary", [False, True])
def test_distorted_model_is_refused_with_the_command(scene, binary):
    write_colmap(scene, camera="SIMPLE_RADIAL 40 30 33 18.5 14 0.01", binary=binary)
    fails(
        scene,
        "cameras",
        "SIMPLE_RADIAL",
        f"colmap image_undistorter --image_path {scene / 'images'} --input_path"
        f" {scene / 'sparse' / '0'}",
        "--output_path",
    )


def test_missing_image(scene):
    (scene / "images" / "frame_10.jpg").unlink()
    fails(scene, str(scene / "images" / "frame_10.jpg"), "not there", "restore")


def test_image_of_another_size_or_broken(scene):
    write_images(scene / "images", ["frame_2.jpg"], (W, H + 1))
    fails(scene, "frame_2.jpg", "40x31", "40x30", "image_undistorter")
    (scene / "images" / "frame_2.jpg").write_bytes(b"")
    fails(scene, "frame_2.jpg", "restore")


def test_truncated_binary_at_every_cut(scene):
    model = write_colmap(scene, binary=True)
    assert {p.name for p in model.iterdir()} >= {"cameras.bin", "images.bin", "points3D.bin"}
    for path in sorted(model.iterdir()):
        whole = path.read_bytes()
        for cut in range(len(whole)):
            path.write_bytes(whole[:cut])
            fails(scene, path.name, "truncated or damaged", "copy the file again")
        path.write_bytes(whole + b"\0")
        fails(scene, path.name, "end before the file does")
        path.write_bytes(b"\xff" * 8 + whole[8:])  # an absurd number of records
        fails(scene, path.name, "truncated or damaged")
        path.write_bytes(whole)
    assert len(load_scene(scene).views) == 3


def test_damaged_text_never_ends_the_process(scene):
    model = scene / "sparse" / "0"
    rng = np.random.default_rng(0)
    for path in sorted(model.glob("*.txt")):
        whole = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(whole[: rng.integers(len(whole) + 1)])
            if len(damaged):
                damaged[rng.integers(len(damaged))] = rng.choice(list(b"0- .x\n"))
            path.write_bytes(damaged)
            try:
                load_scene(scene)
            except SceneError as e:
                assert str(scene) in str(e)
        path.write_bytes(whole)


def test_incomplete_model_and_no_registered_image(scene):
    model = scene / "sparse" / "0"
    (model / "images.txt").write_text("# nothing\n")
    (model / "points3D.txt").write_text("")
    fails(scene, "images.txt", "no registered image", "mapper")
    (model / "images.txt").unlink()
    fails(
        scene,
        str(model),
        "found cameras.txt, points3D.txt",
        "expected cameras, images and points3D",
    )


def test_nan_pose(scene):
    path = scene / "sparse" / "0" / "images.txt"
    lines = path.read_text().splitlines()
    lines[0] = lines[0].replace(lines[0].split()[5], "nan")
    path.write_text("\n".join(lines) + "\n")
    fails(scene, str(scene / "sparse" / "0"))  # pycolmap may refuse the text itself
    model = write_colmap(scene, binary=True)
    data = bytearray((model / "images.bin").read_bytes())
    at = 8 + 4 + 4 * 8  # the first image's translation
    data[at : at + 8] = np.array([np.nan]).tobytes()
    (model / "images.bin").write_bytes(data)
    for name in ("frames.bin", "rigs.bin"):  # newer files, which would win over the old ones
        (model / name).unlink(missing_ok=True)
    fails(scene, "images.bin", "not finite", "register it again")


def test_names_that_cannot_be_kept_apart(scene):
    path = scene / "sparse" / "0" / "images.txt"
    path.write_text(path.read_text().replace("frame_10.jpg", "frame_2.png"))
    write_images(scene / "images", ["frame_2.png"])
    fails(scene, "share the stem 'frame_2'", "rename")
    path.write_text(path.read_text().replace("frame_2.png", "../frame_2.png"))
    fails(scene, "images.txt", "points outside")


# ---- layouts, paths ------------------------------------------------------------------------------


def test_layout_detection_and_wrong_paths(lerf, tmp_path):
    assert load_scene(lerf).layout == "lerf_ovs"
    assert load_scene(lerf, layout="colmap").labels == {}
    fails(tmp_path / "nowhere", "nowhere", "no such folder", "path of a scene")
    fails(tmp_path, "not a scene", "desk/, label/", "folder of one scene")
    fails(lerf / "images" / "frame_1.jpg", "is a file", "expected the folder")
    fails(lerf, "layout 'nerf' is unknown", "3d_ovs, lerf_ovs, colmap", layout="nerf")
    fails(lerf, "segmentations", "layout='colmap'", layout="3d_ovs")
    shutil.rmtree(lerf / "images")
    fails(lerf, "images: no such folder", "restore")


def test_bundled_name(lerf, tmp_path, monkeypatch):
    parent = tmp_path / "data" / "tabletop" / "lerf_ovs"
    parent.mkdir(parents=True)
    shutil.move(lerf, parent / "desk")
    shutil.move(tmp_path / "label", parent / "label")
    monkeypatch.setenv("CCLKIT_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    assert bundled_scenes() == {"desk": parent / "desk"}  # the label folder is no scene
    assert load_scene("desk").layout == "lerf_ovs"
    fails("bench", "bench", "bundled scenes: desk")
    monkeypatch.setenv("CCLKIT_DATA", str(tmp_path / "elsewhere"))
    fails("desk", "CCLKIT_DATA")


def test_every_bundled_scene_loads():
    found = bundled_scenes()
    if not found:
        pytest.skip("no bundled scenes in this checkout")
    for path in found.values():
        s = load_scene(path)
        assert s.ground_truth is not None and s.queries
        s.ground_truth.ids(s.views[0], "subpart")


# ---- LERF-OVS ------------------------------------------------------------------------------------


def test_lerf_labels(lerf):
    s = load_scene(lerf)
    mug, apple = s.labels["frame_2.jpg"]
    assert (mug.category, apple.category) == ("mug", "apple") and s.queries == ("mug", "apple")
    expected = np.zeros((H, W), bool)
    expected[2:7, 2:7] = True  # 2.9 and 6.2 are cut towards zero, outline included
    expected[10:13, 10:13] = True  # the second mug is merged
    np.testing.assert_array_equal(mug.mask, expected)
    assert mug.boxes.tolist() == [[2, 2, 6, 6], [10, 10, 12, 12]] and apple.boxes.tolist() == [
        [25, 25, 20, 20]
    ]


def fill_reference(points, h, w):
    """protocols.md A, "Filling a polygon", one pixel at a time."""
    p = [(int(x), int(y)) for x, y in points]
    mask = np.zeros((h, w), bool)
    for (x0, y0), (x1, y1) in zip(p, p[1:] + p[:1]):
        if x0 > x1:
            x0, y0, x1, y1 = x1, y1, x0, y0
        dx, dy = x1 - x0, abs(y1 - y0)
        sy = 1 if y1 > y0 else -1
        a, b = max(dx, dy), min(dx, dy)
        error, x, y = a - 2 * b, x0, y0
        mask[y, x] = True
        for _ in range(a):
            short = error < 0
            error += -2 * b + (2 * a if short else 0)
            if dx >= dy:
                x, y = x + 1, y + (sy if short else 0)
            else:
                x, y = x + (1 if short else 0), y + sy
            mask[y, x] = True
    for y in range(h):
        crossings = []
        for (x0, y0), (x1, y1) in zip(p, p[1:] + p[:1]):
            if min(y0, y1) <= y < max(y0, y1):
                crossings.append((x0 * (y1 - y0) + (y - y0) * (x1 - x0), y1 - y0))
        xs = sorted(n / d for n, d in crossings)
        for left, right in zip(xs[::2], xs[1::2]):
            mask[y, int(np.ceil(left - 1e-9)) : int(np.floor(right + 1e-9)) + 1] = True
    return mask


def test_polygon_fill_inside_the_image_is_opencv_and_the_written_rule():
    rng = np.random.default_rng(0)
    for _ in range(400):
        h, w = rng.integers(3, 40, 2)
        points = rng.random((rng.integers(1, 12), 2)) * [w, h]
        canvas = np.zeros((h, w), np.uint8)
        cv2.fillPoly(canvas, [points.astype(np.int32)], 1)
        np.testing.assert_array_equal(fill_polygon(points, (h, w)), canvas.astype(bool))
        np.testing.assert_array_equal(fill_polygon(points, (h, w)), fill_reference(points, h, w))


@pytest.mark.parametrize("seed", [0, 1])
def test_polygon_fill_equals_published_masks(seed):
    folder = os.environ.get("CCLKIT_ORACLES")
    if not folder:
        pytest.skip("CCLKIT_ORACLES is not set: no published vectors to compare with")
    a = np.load(Path(folder) / f"A_langsplat_lerf_seed{seed}.npz", allow_pickle=False)
    for unit, (frame, category) in enumerate(zip(a["unit_frame"], a["unit_category"])):
        mask = np.zeros(a["image_hw"], bool)
        for p in np.flatnonzero((a["poly_frame"] == frame) & (a["poly_category"] == category)):
            mask |= fill_polygon(
                a["poly_points"][a["poly_start"][p] : a["poly_start"][p + 1]], mask.shape
            )
        np.testing.assert_array_equal(mask, a["gt_mask"][unit])


def test_polygon_fill_outside_the_image_is_the_same_rule_cut_out():
    rng = np.random.default_rng(1)
    for _ in range(200):
        h, w = rng.integers(3, 30, 2)
        points = rng.integers(-15, 45, (rng.integers(3, 9), 2))
        expected = fill_reference(points + 20, 80, 80)[20 : 20 + h, 20 : 20 + w]
        np.testing.assert_array_equal(fill_polygon(points, (h, w)), expected)
    assert not fill_polygon([[-9, -9], [-5, -9], [-5, -5]], (10, 10)).any()
    assert fill_polygon([[-0.9, -0.9], [3, 0], [3, 3]], (10, 10))[0, 0]  # towards zero, not down


def test_label_folder_without_labels(lerf):
    folder = lerf.parent / "label" / "desk"
    (folder / "frame_2.json").unlink()
    fails(lerf, str(folder), "no label file", "layout='colmap'")


def test_labels_that_are_skipped_by_name(lerf):
    square = [[1, 1], [5, 1], [5, 5]]
    outside = [[-9, -9], [-5, -9], [-5, -5]]
    write_labels(
        lerf,
        objects=[
            {"category": "mug", "segmentation": square, "bbox": [1, 1, 5, 5]},
            {"category": "bag", "segmentation": [], "bbox": [1, 1, 5, 5]},
            {"category": "hand", "bbox": [1, 1, 5, 5]},
            {"category": "spoon", "segmentation": outside, "bbox": [1, 1, 5, 5]},
        ],
    )
    write_labels(lerf, "frame_99.jpg")
    with pytest.warns(UserWarning) as caught:
        s = load_scene(lerf)
    text = str(caught[0].message)
    assert len(caught) == 1 and "4 label entries skipped" in text
    for part in (
        "frame_2.json: 'bag' has no polygon",
        "'hand'",
        "'spoon' lies outside",
        "frame_99.json: its view",
    ):
        assert part in text
    assert s.queries == ("mug",)


SQUARE = [[1, 1], [5, 1], [5, 5]]


@pytest.mark.parametrize(
    "objects, parts",
    [
        ([], ["no object with a polygon", "remove the file"]),
        (
            [{"category": "mug", "segmentation": [], "bbox": [1, 1, 5, 5]}],
            ["no object with a polygon"],
        ),
        (
            [{"category": "mug", "segmentation": [SQUARE], "bbox": [1, 1, 5, 5]}],
            ["object 0 ('mug')", "one list of finite"],
        ),
        (
            [{"category": "mug", "segmentation": [[1, None], [2, 3]], "bbox": [1, 1, 5, 5]}],
            ["object 0 ('mug')", "correct"],
        ),
        (
            [{"category": "mug", "segmentation": [[1, float("nan")]], "bbox": [1, 1, 5, 5]}],
            ["object 0 ('mug')"],
        ),
        (
            [{"category": "mug", "segmentation": [[1e7, 2], [3, 4]], "bbox": [1, 1, 5, 5]}],
            ["1e+07", "must be pixels"],
        ),
        ([{"category": "mug", "segmentation": SQUARE}], ["bbox is None", "x1, y1, x2, y2"]),
        ([{"category": "mug", "segmentation": SQUARE, "bbox": [1, 2, 3]}], ["bbox"]),
        (
            [{"category": " ", "segmentation": SQUARE, "bbox": [1, 1, 5, 5]}],
            ["category", "expected a text"],
        ),
        (["mug"], ["category"]),
    ],
)
def test_bad_label_objects(lerf, objects, parts):
    path = write_labels(lerf, objects=objects)
    fails(lerf, str(path), *parts)


def test_bad_label_files(lerf):
    path = write_labels(lerf, size=(W + 2, H))
    fails(lerf, str(path), "42x30", "40x30", "labels were drawn on")
    path.write_text('{"info": ')
    fails(lerf, str(path), "JSON", "restore")
    path.write_text("[]")
    fails(lerf, str(path), "'info'", "'objects'")
    path.unlink()
    path = write_labels(lerf, "frame_99.jpg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fails(lerf, str(path.parent), "none of the 1 label files", "frame_1.jpg")


# ---- 3D-OVS --------------------------------------------------------------------------------------


def test_llff_round_trip(ovs):
    s = load_scene(ovs)
    assert s.layout == "3d_ovs" and [v.name for v in s.views] == ["00.png", "01.png", "02.png"]
    for v, (_, R, t) in zip(s.views, poses().values()):
        np.testing.assert_allclose(
            v.camera.world_to_camera[:3], np.hstack([R, t[:, None]]), atol=1e-12
        )
        # hwf rescaled to the image
        np.testing.assert_allclose(v.camera.K, [[35, 0, 20], [0, 35, 15], [0, 0, 1]])
    assert s.classes == ("red bag", "Pikachu", "white sheet") and s.queries == s.classes
    assert {c: p.name for c, p in s.class_masks["01.png"].items()} == {
        "red bag": "red bag.png",
        "Pikachu": "pikachu.png",
        "white sheet": "White_Sheet.png",
    }
    assert len(s.points) == 0


def test_llff_takes_points_of_the_same_world_only(ovs):
    renamed = dict(zip(NAMES, ("00.png", "01.png", "02.png")))
    # LLFF's COLMAP is distorted; only points are used
    write_colmap(ovs, camera="SIMPLE_RADIAL 40 30 33 18.5 14 0.01")
    path = ovs / "sparse" / "0" / "images.txt"
    text = path.read_text()
    for a, b in renamed.items():
        text = text.replace(a, b)
    path.write_text(text)
    s = load_scene(ovs)
    assert len(s.points) == 1 and s.views[0].camera.K[0, 0] == 35
    path.write_text(text.replace("00.png", "x").replace("01.png", "00.png").replace("x", "01.png"))
    with pytest.warns(UserWarning, match="not those of poses_bounds.npy"):
        assert len(load_scene(ovs).points) == 0
    (path.parent / "points3D.txt").unlink()
    with pytest.warns(UserWarning, match="gives no points.*incomplete COLMAP model"):
        assert len(load_scene(ovs).points) == 0


def test_ovs_with_colmap_cameras_and_index_folders(ovs):
    (ovs / "poses_bounds.npy").unlink()
    shutil.rmtree(ovs / "images")
    write_images(ovs / "images")
    write_colmap(ovs)
    s = load_scene(ovs)  # no image is called 01: folder 01 is index 1 of frame_1, frame_10, frame_2
    assert s.layout == "3d_ovs" and list(s.class_masks) == ["frame_10.jpg"]
    (ovs / "segmentations" / "01").rename(ovs / "segmentations" / "7")
    fails(ovs, "7", "matches no view", "name mask folders after their images")
    shutil.rmtree(ovs / "sparse")
    fails(ovs, "no camera model", "poses_bounds.npy or cameras")


def test_bad_segmentations(ovs):
    folder = ovs / "segmentations"
    (folder / "01" / "red bag.png").rename(folder / "01" / "blue bag.png")
    fails(ovs, str(folder / "01" / "red bag.png"), "no mask of class 'red bag'", "restore")
    (folder / "01" / "blue bag.png").rename(folder / "01" / "red bag.png")
    shutil.copy(folder / "01" / "red bag.png", folder / "01" / "stray.png")
    with pytest.warns(UserWarning, match="1 masks belong to no class.*01/stray.png"):
        load_scene(ovs)
    (folder / "01" / "stray.png").unlink()
    Image.fromarray(np.zeros((H, H), np.uint8)).save(folder / "01" / "red bag.png")
    fails(ovs, "red bag.png", "mask is 30x30", "40x30", "restore")
    listing = folder / "classes.txt"
    listing.write_text("red bag\nRed  Bag\n")
    fails(ovs, str(listing), "same class twice", "correct")
    listing.write_text("\n")
    fails(ovs, str(listing), "no class")
    listing.unlink()
    fails(ovs, str(listing), "one class text per line", "restore")


def test_missing_labelled_view(ovs):
    shutil.rmtree(ovs / "segmentations" / "01")
    fails(ovs, "segmentations", "no labelled view", "restore")


def test_bad_poses_bounds(ovs):
    path = ovs / "poses_bounds.npy"
    good = np.load(path)
    bad = good.copy()
    bad[1, 3] = np.nan
    np.save(path, bad)
    fails(ovs, str(path), "01.png", "not finite", "remove the view")
    bad = good.copy()
    bad[1, [0, 5, 10]] *= 2  # a column that is no unit vector
    np.save(path, bad)
    fails(ovs, "01.png", "orthonormal", "columns")
    bad = good.copy()
    bad[1, [0, 5, 10]] *= -1  # mirrored
    np.save(path, bad)
    fails(ovs, "01.png", "determinant")
    np.save(path, good[:2])
    fails(ovs, "2 poses but 3 images", "restore the missing images")
    np.save(path, good[:, :15])
    fails(ovs, str(path), "(3, 15)", "[images, 17]")
    bad = good.copy()
    bad[:, 4] = W
    np.save(path, bad)
    fails(ovs, "00.png", "another shape")
    path.write_bytes(path.read_bytes()[:50])
    fails(ovs, str(path), "restore")


# ---- extras and hash -----------------------------------------------------------------------------


def add_extras(path, names=NAMES):
    for folder in ("depth", "ground_truth/whole", "ground_truth/part"):
        (path / folder).mkdir(parents=True)
        for n in names:
            Image.fromarray(np.full((H, W), 3, np.uint16)).save(
                path / folder / f"{Path(n).stem}.png"
            )
    nodes = [
        {"id": 1, "name": "table", "level": "whole", "parent": None, "stuff": True},
        {"id": 2, "name": "bear", "level": "whole", "parent": None, "stuff": False},
        {"id": 3, "name": "head", "level": "part", "parent": 2, "stuff": False},
    ]
    queries = [{"text": "bear head", "granularity": "part", "ids": [3]}]
    (path / "ground_truth" / "objects.json").write_text(
        json.dumps({"nodes": nodes, "queries": queries})
    )
    (path / "scene.json").write_text(json.dumps({"held_out": ["frame_2.jpg"]}))


def test_extras(scene):
    add_extras(scene)
    s = load_scene(scene)
    gt = s.ground_truth
    assert (
        gt.names == {1: "table", 2: "bear", 3: "head"} and gt.parents == {3: 2} and gt.stuff == {1}
    )
    assert gt.queries == ({"text": "bear head", "granularity": "part", "ids": [3]},)
    assert (gt.ids(s.views[0], "subpart") == 3).all()  # falls back to the next coarser map
    np.testing.assert_allclose(s.depth(s.views[0]), 3e-4)
    assert s.held_out == {"frame_2.jpg"} and [v.name for v in s.training_views] == [
        "frame_1.jpg",
        "frame_10.jpg",
    ]


def test_bad_extras(scene):
    add_extras(scene)
    (scene / "scene.json").write_text('{"held_out": ["frame_3.jpg"]}')
    fails(scene, "scene.json", "'frame_3.jpg'", "image file names")
    (scene / "scene.json").write_text('{"held_out": "frame_2.jpg"}')
    fails(scene, "scene.json", "correct")
    (scene / "scene.json").unlink()
    listing = scene / "ground_truth" / "objects.json"
    good = listing.read_text()
    listing.write_text(good.replace('"parent": 2', '"parent": 9'))
    fails(scene, str(listing), "id 9", "generate the scene again")
    listing.write_text('{"queries": []}')
    fails(scene, str(listing), "'nodes' is missing")
    listing.write_text(good)
    (scene / "depth" / "frame_10.png").unlink()
    fails(scene, "depth/frame_10.png", "no depth map", "remove the folder")
    Image.fromarray(np.zeros((H, W + 1), np.uint16)).save(scene / "depth" / "frame_10.png")
    fails(scene, "frame_10.png", "41x30")
    shutil.rmtree(scene / "depth")
    shutil.rmtree(scene / "ground_truth" / "whole")
    fails(scene, "whole", "no such folder")


def test_instances_become_whole_ground_truth(scene):
    (scene / "instances").mkdir()
    for n in NAMES:
        Image.fromarray(np.full((H, W), 8, np.uint8)).save(
            scene / "instances" / f"{Path(n).stem}.png"
        )
    (scene / "instances" / "classes.json").write_text('{"8": "gelatin box"}')
    gt = load_scene(scene).ground_truth
    assert gt.names == {8: "gelatin box"} and list(gt.folders) == ["whole"]
    (scene / "instances" / "classes.json").write_text('{"x": "gelatin box"}')
    fails(scene, "classes.json", "restore")


def test_content_hash(lerf, tmp_path):
    add_extras(lerf)
    first = content_hash(load_scene(lerf))
    assert len(first) == 64 and content_hash(load_scene(lerf)) == first
    shutil.copytree(tmp_path / "desk", tmp_path / "copy" / "table")
    shutil.copytree(tmp_path / "label" / "desk", tmp_path / "copy" / "label" / "table")
    copied = tmp_path / "copy" / "table"
    assert content_hash(load_scene(copied)) == first  # neither place nor folder name counts
    (copied / "notes.txt").write_text("unused files do not count")
    assert content_hash(load_scene(copied)) == first
    for path in (
        "images/frame_1.jpg",
        "sparse/0/points3D.txt",
        "depth/frame_1.png",
        "ground_truth/part/frame_1.png",
        "../label/table/frame_2.json",
    ):
        before = (copied / path).read_bytes()
        (copied / path).write_bytes(before + b"\n")
        assert content_hash(load_scene(copied)) != first, path
        (copied / path).write_bytes(before)
    s = load_scene(copied)
    (copied / "images" / "frame_1.jpg").unlink()
    with pytest.raises(SceneError, match="frame_1.jpg.*restore"):
        content_hash(s)


# ----------------------------------------------------------------- a layout of anybody's own

TURNTABLE = """
import json

import numpy as np

from cclkit.scenes.layout import Layout
from cclkit.scenes.scene import Camera, View


def read(root):
    path = root / "turntable.json"
    frames = json.loads(path.read_text())
    views = tuple(
        View(f["image"], root / "images" / f["image"], Camera(
            np.array(f["K"], float), np.array(f["pose"], float), f["width"], f["height"]
        ))
        for f in frames
    )
    points = np.zeros((0, 3))
    colors = points.astype(np.uint8)
    return {"views": views, "points": points, "point_colors": colors, "files": [path]}


LAYOUT = Layout(
    found=lambda root: (root / "turntable.json").is_file(),
    read=read,
    expected="images/ with turntable.json (turntable)",
)
"""


@pytest.fixture
def turntable(tmp_path, monkeypatch):
    """A folder of such a layout, which is a file outside of the package and a line of LAYOUTS."""
    (tmp_path / "turntable_layout.py").write_text(TURNTABLE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "turntable_layout", raising=False)
    monkeypatch.setitem(LAYOUTS, "turntable", importlib.import_module("turntable_layout").LAYOUT)
    root = tmp_path / "things"
    write_images(root / "images", names=("a_1.png", "a_2.png"))
    K, pose = [[40, 0, W / 2], [0, 40, H / 2], [0, 0, 1]], np.eye(4).tolist()
    frames = [
        {"image": n, "K": K, "pose": pose, "width": W, "height": H} for n in ("a_1.png", "a_2.png")
    ]
    (root / "turntable.json").write_text(json.dumps(frames))
    yield root
    sys.modules.pop("turntable_layout", None)


def test_a_layout_is_a_file_and_a_line(turntable):
    scene = load_scene(turntable)
    assert scene.layout == "turntable" and [v.name for v in scene.views] == ["a_1.png", "a_2.png"]
    assert scene.views[1].image().shape == (H, W, 3) and not scene.queries
    assert load_scene(turntable, layout="turntable").files == scene.files
    assert turntable / "turntable.json" in scene.files
    assert turntable / "images/a_1.png" in scene.files
    # what any layout may carry
    (turntable / "scene.json").write_text('{"held_out": ["a_2.png"]}')
    held = load_scene(turntable)
    assert [v.name for v in held.training_views] == ["a_1.png"]
    assert content_hash(held) != content_hash(scene)
    with pytest.raises(SceneError, match="turntable.json .turntable., images/ with sparse"):
        load_scene(turntable.parent)


def test_its_code_counts_for_keys_as_any_readers(turntable):
    from cclkit.runs.keys import code_of_files
    from cclkit.scenes.load import readers_of

    read, *others = readers_of(load_scene(turntable))
    assert read is LAYOUTS["turntable"].read and others
    file = turntable.parent / "turntable_layout.py"
    other = file.with_name("edited_layout.py")
    other.write_text(TURNTABLE.replace("float)", "np.float64)"))
    assert code_of_files([file]) != code_of_files([other])


def test_a_layout_has_the_checks_of_all(turntable):
    frames = json.loads((turntable / "turntable.json").read_text())
    frames[1]["image"] = "a_1.jpg"
    Image.new("RGB", (W, H)).save(turntable / "images/a_1.jpg")
    (turntable / "turntable.json").write_text(json.dumps(frames))
    fails(turntable, "share the stem 'a_1'")
    shutil.rmtree(turntable / "images")
    fails(turntable, "images: no such folder")
    with pytest.raises(SceneError, match="is unknown; use one of 3d_ovs, lerf_ovs, colmap, turn"):
        load_scene(turntable, layout="spiral")


def test_fetching_knows_no_scenes():
    """Scenes ask what was fetched, never the other way round."""
    code = (
        "import pkgutil, sys, cclkit.downloads as d\n"
        "for m in pkgutil.iter_modules(d.__path__): __import__(f'{d.__name__}.{m.name}')\n"
        "sys.exit(any(n.startswith('cclkit.scenes') for n in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---- real photographs ----------------------------------------------------------------------------


@pytest.fixture(params=["0000", "0001", "0002"])
def ycb(request):
    folder = os.environ.get("CCLKIT_REAL_DATA")
    if not folder:
        pytest.skip("CCLKIT_REAL_DATA is not set: no real photographs to read")
    return Path(folder) / "ycb" / request.param


def test_ycb_cameras_and_points(ycb):
    s = load_scene(ycb)
    assert (
        s.layout == "lerf_ovs" and len(s.views) == 5 and s.views[0].image().shape == (480, 640, 3)
    )
    np.testing.assert_allclose(
        s.views[0].camera.K,
        [[1066.778, 0, 313.4869], [0, 1067.487, 241.8109], [0, 0, 1]],
        atol=1e-9,
    )
    assert len(s.points) == {"0000": 5410, "0001": 18346, "0002": 13331}[ycb.name]
    model = pycolmap.Reconstruction(str(ycb / "sparse" / "0"))
    for image in model.images.values():
        v = s.view(image.name)
        seen = [p for p in image.points2D if p.has_point3D()]
        world = np.array([model.points3D[p.point3D_id].xyz for p in seen])
        xy, z = v.camera.project(world)
        assert np.linalg.norm(xy - [p.xy for p in seen], axis=1).max() < 0.75 and (z > 0).all()
        depth = s.depth(v)
        measured = depth[xy[:, 1].astype(int).clip(0, 479), xy[:, 0].astype(int).clip(0, 639)]
        assert np.median(np.abs(measured - z)[measured > 0] / z[measured > 0]) < 0.005


def test_ycb_polygons_against_instance_maps(ycb):
    s = load_scene(ycb)
    ids = {n: i for i, n in s.ground_truth.names.items()}
    assert set(ids) == set(s.queries)
    for v in s.views:
        truth = s.ground_truth.ids(v, "whole")
        for unit in s.labels[v.name]:
            mask = truth == ids[unit.category]
            iou = (mask & unit.mask).sum() / (mask | unit.mask).sum()
            assert iou > (0.95 if unit.category == "wood block" else 0.9995), (
                v.name,
                unit.category,
                iou,
            )


def test_ycb_truncated_binary(ycb, tmp_path):
    copied = tmp_path / ycb.name
    (copied / "sparse" / "0").mkdir(parents=True)
    os.symlink(ycb / "images", copied / "images")
    for name in ("cameras.bin", "images.bin", "points3D.bin"):
        (copied / "sparse" / "0" / name).write_bytes((ycb / "sparse" / "0" / name).read_bytes())
    rng = np.random.default_rng(0)
    for name in ("cameras.bin", "images.bin", "points3D.bin"):
        path = copied / "sparse" / "0" / name
        whole = path.read_bytes()
        for cut in [0, 1, 7, 8, 9, len(whole) - 1, *rng.integers(0, len(whole), 12).tolist()]:
            path.write_bytes(whole[:cut])
            fails(copied, str(path), "truncated or damaged", "copy the file again")
        path.write_bytes(whole)
    assert len(load_scene(copied).views) == 5
