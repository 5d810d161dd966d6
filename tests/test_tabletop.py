"""The committed Tabletop scenes are what they claim; the generator makes the same ids again.

The files are read directly (json, numpy, PIL, pycolmap), so that a loader's mistake cannot hide one here.
"""

import importlib.util
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cclkit.errors import CclkitError, ConfigError, DependencyError, SceneError
from cclkit.scenes.scene import DEPTH_UNIT, Camera
from cclkit.tabletop import SCENES, export, layout, objects, random_scenes, recipes

DATA = Path(__file__).resolve().parents[1] / "data" / "tabletop"
FOLDERS = sorted(p.parent for p in DATA.glob("*/*/scene.json"))
LERF = [f for f in FOLDERS if f.parent.name == "lerf_ovs"]
OVS = [f for f in FOLDERS if f.parent.name == "3d_ovs"]
name = lambda f: f.name  # noqa: E731
needs_mitsuba = pytest.mark.skipif(importlib.util.find_spec("mitsuba") is None, reason="Mitsuba is not installed (pip install mitsuba)")


def meta(folder):
    return json.loads((folder / "scene.json").read_text())


def hierarchy(folder):
    return json.loads((folder / "ground_truth" / "objects.json").read_text())


def read(path):
    return np.asarray(Image.open(path)).astype(np.int64)


def camera(view):
    return Camera(np.array(view["K"]).reshape(3, 3), np.array(view["world_to_camera"]).reshape(4, 4), view["width"], view["height"])


def test_every_recipe_is_committed():
    assert sorted(f.name for f in FOLDERS) == sorted(SCENES)
    assert len(LERF) >= 4 and len(OVS) >= 3


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_files_match_their_checksums(folder):
    assert export.verify(folder) > 50


def test_an_edited_file_is_named(tmp_path):
    (tmp_path / "a.json").write_text("1")
    (tmp_path / "SHA256SUMS").write_text("0" * 64 + "  a.json\n")
    with pytest.raises(SceneError, match="a.json: edited"):
        export.verify(tmp_path)
    (tmp_path / "a.json").unlink()
    with pytest.raises(SceneError, match="a.json: missing"):
        export.verify(tmp_path)


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_hierarchy(folder):
    tree = hierarchy(folder)
    nodes = {n["id"]: n for n in tree["nodes"]}
    above = {"subpart": "part", "part": "whole"}
    assert len(nodes) == len(tree["nodes"]) and min(nodes) == 1
    for n in nodes.values():
        if n["level"] == "whole":
            assert n["parent"] == 0
        else:
            assert nodes[n["parent"]]["level"] == above[n["level"]]
    up = np.arange(max(nodes) + 1)
    for level in ("subpart", "part"):
        for i, n in nodes.items():
            if n["level"] == level:
                up[i] = n["parent"]
    for p in sorted((folder / "ground_truth" / "whole").glob("*.png")):
        sub, part, whole = (read(folder / "ground_truth" / g / p.name) for g in ("subpart", "part", "whole"))
        # A finer region's pixels lie in its parent's; where there is no finer region the ids agree.
        is_sub = np.isin(sub, [i for i, n in nodes.items() if n["level"] == "subpart"])
        assert np.array_equal(np.where(is_sub, up[sub], sub), part)
        is_part = np.isin(part, [i for i, n in nodes.items() if n["level"] == "part"])
        assert np.array_equal(np.where(is_part, up[part], part), whole)
        assert {nodes[i]["level"] for i in np.unique(whole) if i} == {"whole"}
    for q in tree["queries"]:
        assert all(nodes[i]["level"] == q["granularity"] and nodes[i]["name"] == q["text"] for i in q["ids"])


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_views_are_complete(folder):
    m = meta(folder)
    assert set(m["held_out"]) <= set(m["views"]) and set(m["labelled"]) <= set(m["views"])
    assert not set(m["labelled"]) <= set(m["held_out"])
    assert sorted(p.name for p in (folder / "images").iterdir()) == sorted(m["views"])
    for v, c in m["views"].items():
        size = (c["height"], c["width"])
        assert np.asarray(Image.open(folder / "images" / v)).shape == (*size, 3)
        for sub in ("depth", "ground_truth/subpart", "ground_truth/part", "ground_truth/whole"):
            assert read(folder / sub / (Path(v).stem + ".png")).shape == size


def label_ious(folder):
    queries = {(q["text"], q["granularity"]): q for q in hierarchy(folder)["queries"]}
    out = []
    for p in sorted((DATA / "lerf_ovs" / "label" / folder.name).glob("*.json")):
        label = json.loads(p.read_text())
        h, w = label["info"]["height"], label["info"]["width"]
        assert label["info"]["name"] == p.stem + ".jpg"
        assert p.with_suffix(".jpg").read_bytes() == (folder / "images" / label["info"]["name"]).read_bytes()
        masks, truth = {}, {}
        for o in label["objects"]:
            key = (o["category"], o["granularity"])
            poly = np.array(o["segmentation"], np.int32)
            assert poly.min() >= 0 and (poly.max(0) < [w, h]).all() and len(poly) >= 3
            assert o["bbox"] == [*poly.min(0).tolist(), *poly.max(0).tolist()]
            one = np.zeros((h, w), np.uint8)
            cv2.fillPoly(one, [poly], 1)
            masks[key] = masks.get(key, 0) | one.astype(bool)
            truth[key] = np.isin(read(folder / "ground_truth" / key[1] / f"{p.stem}.png"), queries[key]["ids"])
        out += [(k, (masks[k] & truth[k]).sum() / (masks[k] | truth[k]).sum()) for k in masks]
    return out


@pytest.mark.parametrize("folder", LERF, ids=name)
def test_label_polygons_match_ids(folder):
    ious = label_ious(folder)
    values = np.array([i for _, i in ious])
    assert len({k for k, _ in ious}) >= 15
    assert values.mean() >= 0.98, sorted(ious, key=lambda x: x[1])[:5]
    assert {g for (_, g), _ in ious} == {"subpart", "part", "whole"}


def reprojection(folder):
    """(agreeing, unoccluded) pixels over pairs of views; every pixel counts whose surface both views see."""
    m = meta(folder)
    views = list(m["views"])
    good = total = inner_good = inner = 0
    for a, b in zip(views, views[1:] + views[:1]):
        ca, cb = camera(m["views"][a]), camera(m["views"][b])
        da, db = (read(folder / "depth" / (Path(v).stem + ".png")) * DEPTH_UNIT for v in (a, b))
        ia, ib = (read(folder / "ground_truth" / "whole" / (Path(v).stem + ".png")) for v in (a, b))
        p, z = cb.project(ca.backproject(da)[da > 0])
        x, y = np.floor(p).astype(int).T
        h, w = db.shape
        ok = (z > 0.05) & (x >= 1) & (y >= 1) & (x < w - 1) & (y < h - 1)
        x, y, z, own = x[ok], y[ok], z[ok], ia[da > 0][ok]
        seen = np.abs(db[y, x] - z) < 0.002  # 2 mm: the same surface, nothing in front
        same = own == ib[y, x]
        good, total = good + (same & seen).sum(), total + seen.sum()
        # Rays hit a pixel's centre, a reprojected point falls anywhere within it: at the border of two
        # regions in contact it may be on the other side. Inside, no excuse is left.
        k = np.ones((3, 3), np.uint8)
        pure = cv2.dilate(ib.astype(np.uint8), k) == cv2.erode(ib.astype(np.uint8), k)
        pure = pure[y, x] & seen
        inner_good, inner = inner_good + (same & pure).sum(), inner + pure.sum()
    return good / total, inner_good / inner, total


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_depth_reprojects_onto_the_same_ids(folder):
    every, inner, n = reprojection(folder)
    assert n > 100_000
    assert every >= 0.995  # borders of touching regions included
    assert inner >= 0.9999


@pytest.mark.parametrize("folder", LERF, ids=name)
def test_colmap_model(folder):
    pycolmap = pytest.importorskip("pycolmap")
    m = meta(folder)
    model = pycolmap.Reconstruction(str(folder / "sparse" / "0"))
    cam = next(iter(model.cameras.values()))
    assert cam.model.name == "PINHOLE" and len(model.images) == len(m["views"])
    assert 4000 <= len(model.points3D) <= 8000
    assert (cam.params[2], cam.params[3]) != (cam.width / 2, cam.height / 2)
    worst, pose, hits, n = 0.0, 0.0, 0, 0
    for im in model.images.values():
        own = camera(m["views"][im.name])
        c2w = im.cam_from_world() if callable(im.cam_from_world) else im.cam_from_world
        pose = max(pose, np.abs(c2w.matrix() - own.world_to_camera[:3]).max())
        assert np.abs(np.array(cam.params) - own.K[[0, 1, 0, 1], [0, 1, 2, 2]]).max() < 1e-5
        seen = [(p.xy, model.points3D[p.point3D_id].xyz) for p in im.points2D if p.has_point3D()]
        if im.name in m["held_out"]:
            assert not seen  # held-out views took no part in making the points
            continue
        xy, xyz = (np.array(v) for v in zip(*seen))
        q, z = own.project(xyz)
        worst = max(worst, np.abs(q - xy).max())
        d = read(folder / "depth" / (Path(im.name).stem + ".png")) * DEPTH_UNIT
        hits += (np.abs(d[xy[:, 1].astype(int), xy[:, 0].astype(int)] - z) < 0.004 + 0.004 * z).sum()
        n += len(z)
    assert pose < 1e-5 and worst < 1.0 and hits == n
    assert min(p.track.length() for p in model.points3D.values()) >= 3


@pytest.mark.parametrize("folder", OVS, ids=name)
def test_poses_bounds_round_trip(folder):
    m = meta(folder)
    rows = np.load(folder / "poses_bounds.npy")
    assert rows.shape == (len(m["views"]), 17)
    for row, v in zip(rows, sorted(m["views"])):
        own = camera(m["views"][v])
        p = row[:15].reshape(3, 5)
        c2w = np.eye(4)
        c2w[:3] = np.stack([p[:, 1], p[:, 0], -p[:, 2], p[:, 3]], 1)
        assert np.abs(np.linalg.inv(c2w) - own.world_to_camera).max() < 1e-5
        assert p[:, 4].tolist() == [own.height, own.width, own.K[0, 0]]
        assert own.K[0, 2] == own.width / 2 and own.K[1, 2] == own.height / 2
        d = read(folder / "depth" / (Path(v).stem + ".png")) * DEPTH_UNIT
        assert row[15] < row[16] and (d < row[15]).mean() < 0.002 and (d > row[16]).mean() < 0.002


@pytest.mark.parametrize("folder", OVS, ids=name)
def test_class_masks_cover_every_pixel_once(folder):
    classes = (folder / "segmentations" / "classes.txt").read_text().splitlines()
    stems = {Path(v).stem for v in meta(folder)["labelled"]}
    assert {p.name for p in (folder / "segmentations").iterdir() if p.is_dir()} == stems
    for s in stems:
        masks = np.stack([read(folder / "segmentations" / s / f"{c}.png") for c in classes])
        assert set(np.unique(masks)) <= {0, 255}
        assert ((masks == 255).sum(0) == 1).all()


def test_polygon_of_a_ring_keeps_its_hole():
    y, x = np.mgrid[:60, :60]
    r = np.hypot(x - 30, y - 28)
    ring = (r < 24) & (r > 9)
    (poly,) = export.polygons(ring)
    out = np.zeros((60, 60), np.uint8)
    cv2.fillPoly(out, [poly.astype(np.int32)], 1)
    assert np.array_equal(out.astype(bool), ring)


def test_impossible_layout_says_what_does_not_fit():
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="no room for"):
        layout.scatter([objects.make("cookies", rng) for _ in range(8)], 0.25, 0.25, rng)
    a = layout.place(objects.make("apple", rng, "red"), 0, 0)
    b = layout.place(objects.make("mug", rng), 0.03, 0)
    with pytest.raises(ConfigError, match="overlap"):
        layout.check_apart([a, b])
    with pytest.raises(ConfigError, match="no scene 'nowhere'"):
        recipes.plan("nowhere")


def test_families_have_parts_and_closed_normals():
    assert len(objects.FAMILIES) >= 25
    deep = 0
    for n, f in objects.FAMILIES.items():
        item = objects.make(n, np.random.default_rng(1))
        deep += max(len(l.path) for l in item.leaves) == 2
        for l in item.leaves:
            assert np.isfinite(l.mesh.vertices).all() and l.mesh.faces.max() < len(l.mesh.vertices)
            assert np.allclose(np.linalg.norm(l.mesh.normals, axis=1), 1, atol=1e-6) or not l.mesh.normals.any()
        again = objects.make(n, np.random.default_rng(1))
        assert all(np.array_equal(x.mesh.vertices, y.mesh.vertices) for x, y in zip(item.leaves, again.leaves))
    assert deep >= 10


def test_random_scenes_keep_clear_of_the_benchmark():
    with pytest.raises(ConfigError, match="belongs to the benchmark"):
        random_scenes.random_layout(max(recipes.plan(s).seed for s in SCENES))
    a, b = (random_scenes.random_layout(random_scenes.FIRST_SEED + 7) for _ in range(2))
    layout.check_apart(a.items)
    assert all(np.array_equal(x.mesh.vertices, y.mesh.vertices) for x, y in zip(a.leaves, b.leaves))
    table, rows = layout.nodes(a)
    texts = random_scenes.captions(table)
    assert len(rows) == len(a.leaves) and set(texts) == {n["id"] for n in table}
    assert all(t and t[0] == n["name"] for t, n in zip(texts.values(), table))


@pytest.mark.parametrize("scene", SCENES)
def test_layouts_are_functions_of_their_seed(scene):
    a, b = recipes.plan(scene), recipes.plan(scene)
    for x, y in zip(a.leaves, b.leaves, strict=True):
        assert np.array_equal(x.mesh.vertices, y.mesh.vertices)
        assert np.array_equal(x.material.colour, y.material.colour)  # textures included
    for s, v in zip(a.shots, meta(DATA / a.kind / scene)["views"].values(), strict=True):
        assert np.array_equal(s.camera.world_to_camera, camera(v).world_to_camera)
        assert np.array_equal(s.camera.K, camera(v).K)


def test_mitsuba_missing_is_one_line(monkeypatch, capsys):
    from cclkit.tabletop import __main__ as cli, render

    monkeypatch.setitem(sys.modules, "mitsuba", None)
    with pytest.raises(DependencyError, match="pip install mitsuba"):
        render.mitsuba()
    assert cli.main([SCENES[0], "nowhere"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@needs_mitsuba
@pytest.mark.parametrize("folder", [*LERF[:1], *OVS[:1]], ids=name)
def test_regenerated_ids_are_the_committed_ones(folder):
    """Rays through the centres of a 64 x 48 block of a committed view give its ids and depth bit for bit."""
    from cclkit.tabletop import render

    plan = recipes.plan(folder.name)
    shot = plan.shots[2]
    x0, y0, w, h = 120, 100, 64, 48
    b = render.buffers(render.build(plan), shot.camera, (x0, y0, w, h))
    table, rows = layout.nodes(plan)
    assert json.loads(json.dumps(table)) == hierarchy(folder)["nodes"]
    stem = Path(shot.name).stem
    for k, level in enumerate(layout.LEVELS):
        want = read(folder / "ground_truth" / level / f"{stem}.png")[y0: y0 + h, x0: x0 + w]
        got = np.where(b.leaf >= 0, rows[b.leaf, k], 0)
        assert np.array_equal(got, want)
    d = read(folder / "depth" / f"{stem}.png")[y0: y0 + h, x0: x0 + w]
    assert np.array_equal(np.rint(b.depth / DEPTH_UNIT), d)
