"""The committed Tabletop scenes are what they claim; the generator makes the same ids again.

The files are read directly (json, numpy, PIL, pycolmap), so that a loader's mistake cannot hide one
here.
"""

import importlib.util
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import write_plane_scene
from PIL import Image

from cclkit.downloads.bundled import verify_sums
from cclkit.errors import ConfigError, DependencyError, SceneError
from cclkit.scenes.load import load_scene
from cclkit.scenes.scene import DEPTH_UNIT, Camera
from lab.tabletop import export, layout, make, objects, random_scenes, recipes
from lab.tabletop.make import SCENES
from lab.tabletop.surfaces import SAME_SURFACE, correspondences

DATA = Path(__file__).resolve().parents[1] / "data" / "tabletop"
FOLDERS = sorted(p.parent for p in DATA.glob("*/*/scene.json"))
LERF = [f for f in FOLDERS if f.parent.name == "lerf_ovs"]
OVS = [f for f in FOLDERS if f.parent.name == "3d_ovs"]
name = lambda f: f.name
needs_mitsuba = pytest.mark.skipif(
    importlib.util.find_spec("mitsuba") is None,
    reason="Mitsuba is not installed (pip install mitsuba)",
)


def meta(folder):
    return json.loads((folder / "scene.json").read_text())


def hierarchy(folder):
    return json.loads((folder / "ground_truth" / "objects.json").read_text())


def read(path):
    return np.asarray(Image.open(path)).astype(np.int64)


def camera(view):
    return Camera(
        np.array(view["K"]).reshape(3, 3),
        np.array(view["world_to_camera"]).reshape(4, 4),
        view["width"],
        view["height"],
    )


def test_every_recipe_is_committed():
    assert sorted(f.name for f in FOLDERS) == sorted(SCENES)
    assert len(LERF) >= 4 and len(OVS) >= 3


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_files_match_their_checksums(folder):
    assert len(verify_sums(folder)) > 50


def test_an_edited_file_is_named(tmp_path):
    (tmp_path / "a.json").write_text("1")
    (tmp_path / "SHA256SUMS").write_text("0" * 64 + "  a.json\n")
    with pytest.raises(SceneError, match="a.json: edited"):
        verify_sums(tmp_path)
    (tmp_path / "a.json").unlink()
    with pytest.raises(SceneError, match="a.json: missing"):
        verify_sums(tmp_path)


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
        sub, part, whole = (
            read(folder / "ground_truth" / g / p.name) for g in ("subpart", "part", "whole")
        )
        # A finer region's pixels lie in its parent's; where there is no finer region the ids agree.
        is_sub = np.isin(sub, [i for i, n in nodes.items() if n["level"] == "subpart"])
        assert np.array_equal(np.where(is_sub, up[sub], sub), part)
        is_part = np.isin(part, [i for i, n in nodes.items() if n["level"] == "part"])
        assert np.array_equal(np.where(is_part, up[part], part), whole)
        assert {nodes[i]["level"] for i in np.unique(whole) if i} == {"whole"}
    for q in tree["queries"]:
        assert all(
            nodes[i]["level"] == q["granularity"] and nodes[i]["name"] == q["text"]
            for i in q["ids"]
        )


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
        assert (
            p.with_suffix(".jpg").read_bytes()
            == (folder / "images" / label["info"]["name"]).read_bytes()
        )
        masks, truth = {}, {}
        for o in label["objects"]:
            key = (o["category"], o["granularity"])
            poly = np.array(o["segmentation"], np.int32)
            assert poly.min() >= 0 and (poly.max(0) < [w, h]).all() and len(poly) >= 3
            assert o["bbox"] == [*poly.min(0).tolist(), *poly.max(0).tolist()]
            one = np.zeros((h, w), np.uint8)
            cv2.fillPoly(one, [poly], 1)
            masks[key] = masks.get(key, 0) | one.astype(bool)
            truth[key] = np.isin(
                read(folder / "ground_truth" / key[1] / f"{p.stem}.png"), queries[key]["ids"]
            )
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
    """(agreeing, unoccluded) pixels over pairs of views; every pixel counts whose surface both
    views see.
    """
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
        # Rays hit a pixel's centre, a reprojected point falls anywhere within it: at the border of
        # two
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


def test_an_object_is_absent_from_the_first_view():
    folder = DATA / "lerf_ovs" / "kitchen_counter"
    assert meta(folder)["difficulties"]["absent_from_first_view"] == ["rubber duck"]
    tree = hierarchy(folder)
    duck = next(
        n["id"] for n in tree["nodes"] if n["name"] == "rubber duck" and n["level"] == "whole"
    )
    sizes = [
        (read(folder / "ground_truth" / "whole" / (Path(v).stem + ".png")) == duck).sum()
        for v in sorted(meta(folder)["views"])
    ]
    assert sizes[0] == 0 and sum(s >= 400 for s in sizes) >= 10
    labels = [
        json.loads(p.read_text())
        for p in (DATA / "lerf_ovs" / "label" / "kitchen_counter").glob("*.json")
    ]
    assert all("rubber duck" in {o["category"] for o in label["objects"]} for label in labels)


PAIRS = ((0, 1), (4, 7), (11, 9))


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_correspondences(folder):
    scene = load_scene(folder)
    for i, j in PAIRS:
        a, b = scene.views[i].name, scene.views[j].name
        xy_a, xy_b, visible = correspondences(scene, a, b)
        assert xy_a.shape == xy_b.shape == (len(visible), 2) and visible.mean() > 0.4
        pa, pb = (np.floor(p[visible]).astype(int) for p in (xy_a, xy_b))
        for level in ("subpart", "part"):  # whole ids agree by definition, finer ones need not
            ia, ib = (
                read(folder / "ground_truth" / level / (Path(v).stem + ".png")) for v in (a, b)
            )
            assert (ia[pa[:, 1], pa[:, 0]] == ib[pb[:, 1], pb[:, 0]]).mean() >= 0.995
        # There and back: from the centre of the pixel of b that sees the point.
        back_b, back_a, seen = correspondences(scene, b, a)
        h, w = ia.shape
        home = np.full((h, w, 2), np.nan)
        home[tuple(np.floor(back_b[seen]).astype(int).T[::-1])] = back_a[seen]
        away = np.linalg.norm(home[pb[:, 1], pb[:, 0]] - xy_a[visible], axis=1)
        assert np.isfinite(away).mean() > 0.9 and np.nanmedian(away) < 1


def by_hand(folder, a, b, pixel):
    """One correspondence in scalars, from the files: (position in b, visible there), None outside
    b.
    """
    m = meta(folder)["views"]
    A, B = (np.array(m[v]["world_to_camera"]).reshape(4, 4) for v in (a, b))
    fx, _, cx, _, fy, cy = m[a]["K"][:6]
    da, db, ia, ib = (
        read(folder / sub / (Path(v).stem + ".png"))
        for sub in ("depth", "ground_truth/whole")
        for v in (a, b)
    )
    x, y = pixel
    z = da[y, x] * 1e-4
    p = B @ np.linalg.inv(A) @ [(x + 0.5 - cx) / fx * z, (y + 0.5 - cy) / fy * z, z, 1]
    fx, _, cx, _, fy, cy = m[b]["K"][:6]
    u, v = fx * p[0] / p[2] + cx, fy * p[1] / p[2] + cy
    h, w = db.shape
    if da[y, x] == 0 or not (p[2] > 0 and 0 <= u < w and 0 <= v < h):
        return None
    left, top = int(np.floor(u - 0.5)), int(np.floor(v - 0.5))
    there = 0.0
    for r, s in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weight = abs(1 - r - (v - 0.5 - top)) * abs(1 - s - (u - 0.5 - left))
        there += weight * db[min(max(top + r, 0), h - 1), min(max(left + s, 0), w - 1)] * 1e-4
    return (u, v), abs(there - p[2]) < SAME_SURFACE and ia[y, x] == ib[int(v), int(u)]


@pytest.mark.parametrize("folder", [LERF[0], OVS[0]], ids=name)
def test_correspondences_by_hand(folder):
    scene = load_scene(folder)
    a, b = scene.views[4].name, scene.views[6].name
    xy_a, xy_b, visible = correspondences(scene, a, b)
    fast = {(int(p[0]), int(p[1])): (q, s) for p, q, s in zip(xy_a, xy_b, visible)}
    got = [(x, y) for y in range(3, 240, 26) for x in range(2, 320, 31)]
    for pixel in got:
        slow = by_hand(folder, a, b, pixel)
        assert (slow is None) == (pixel not in fast)
        if slow is not None:
            assert np.abs(fast[pixel][0] - slow[0]).max() < 1e-9 and fast[pixel][1] == slow[1]
    assert len(set(got) & set(fast)) > 40


def test_correspondences_on_a_plane(tmp_path):
    scene = load_scene(write_plane_scene(tmp_path))
    a, b = scene.views[1], scene.views[3]
    xy_a, xy_b, visible = correspondences(scene, a.name, b.name)
    # the plane is at z = 1
    shift = (b.camera.world_to_camera - a.camera.world_to_camera)[:2, 3] * [
        a.camera.K[0, 0],
        a.camera.K[1, 1],
    ]
    assert np.abs(xy_b - xy_a - shift).max() < 1e-9
    ia, ib = (scene.ground_truth.ids(v, "whole") for v in (a, b))
    same = [ia[int(p[1]), int(p[0])] == ib[int(q[1]), int(q[0])] for p, q in zip(xy_a, xy_b)]
    assert visible.tolist() == same and 0.9 < visible.mean() < 1
    with pytest.raises(SceneError, match="no view named 'x.jpg'"):
        correspondences(scene, a.name, "x.jpg")
    with pytest.raises(SceneError, match="no depth folder"):
        correspondences(replace(scene, depth_folder=None), a.name, b.name)
    with pytest.raises(SceneError, match="no ground_truth/ ids"):
        correspondences(replace(scene, ground_truth=None), a.name, b.name)


@needs_mitsuba
def test_correspondences_against_rays():
    """A ray from b's centre through the point tells whether b sees it."""
    from lab.tabletop import render

    plan = recipes.plan("tea_party")
    built, mi = render.build(plan), render.mitsuba()
    scene = load_scene(DATA / "lerf_ovs" / "tea_party")
    a, b = scene.views[0], scene.views[4]
    xy_a, xy_b, visible = correspondences(scene, a.name, b.name)
    pick = np.random.default_rng(0).choice(len(visible), 1500, replace=False)
    x, y = np.floor(xy_a[pick]).astype(int).T
    points = a.camera.backproject(scene.depth(a))[y, x]
    _, z = b.camera.project(points)
    origin = b.camera.centre
    hits = [
        built.ray_intersect_preliminary(mi.Ray3f(origin.tolist(), ((p - origin) / d).tolist()))
        for p, d in zip(points, z)
    ]
    truth = np.array([h.is_valid() and abs(h.t - d) < 5e-4 for h, d in zip(hits, z)])
    assert truth[visible[pick]].mean() >= 0.99 and visible[pick][truth].mean() >= 0.8


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
        hits += (
            np.abs(d[xy[:, 1].astype(int), xy[:, 0].astype(int)] - z) < 0.004 + 0.004 * z
        ).sum()
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
    for n, _f in objects.FAMILIES.items():
        item = objects.make(n, np.random.default_rng(1))
        deep += max(len(l.path) for l in item.leaves) == 2
        for l in item.leaves:
            assert np.isfinite(l.mesh.vertices).all() and l.mesh.faces.max() < len(l.mesh.vertices)
            assert (
                np.allclose(np.linalg.norm(l.mesh.normals, axis=1), 1, atol=1e-6)
                or not l.mesh.normals.any()
            )
        again = objects.make(n, np.random.default_rng(1))
        assert all(
            np.array_equal(x.mesh.vertices, y.mesh.vertices)
            for x, y in zip(item.leaves, again.leaves)
        )
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
    from lab.tabletop import __main__ as cli, render

    monkeypatch.setitem(sys.modules, "mitsuba", None)
    with pytest.raises(DependencyError, match="pip install mitsuba"):
        render.mitsuba()
    assert cli.main(["render", SCENES[0], "nowhere"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@needs_mitsuba
@pytest.mark.parametrize("folder", [*LERF[:1], *OVS[:1]], ids=name)
def test_regenerated_ids_are_the_committed_ones(folder):
    """Rays through the centres of a 64 x 48 block of a committed view give its ids and depth bit
    for bit.
    """
    from lab.tabletop import render

    plan = recipes.plan(folder.name)
    shot = plan.shots[2]
    x0, y0, w, h = 120, 100, 64, 48
    b = render.buffers(render.build(plan), shot.camera, (x0, y0, w, h))
    table, rows = layout.nodes(plan)
    assert json.loads(json.dumps(table)) == hierarchy(folder)["nodes"]
    stem = Path(shot.name).stem
    for k, level in enumerate(layout.LEVELS):
        want = read(folder / "ground_truth" / level / f"{stem}.png")[y0 : y0 + h, x0 : x0 + w]
        got = np.where(b.leaf >= 0, rows[b.leaf, k], 0)
        assert np.array_equal(got, want)
    d = read(folder / "depth" / f"{stem}.png")[y0 : y0 + h, x0 : x0 + w]
    assert np.array_equal(np.rint(b.depth / DEPTH_UNIT), d)


@pytest.fixture
def rendered_again(monkeypatch):
    """``regenerate`` with committed files in place of a new render; ``spoil`` changes what it
    gives.
    """
    from lab.tabletop import render

    spoil = {}

    def view(_, plan, shot, *, seed, photo):
        assert seed == plan.seed * 1000 + [s.name for s in plan.shots].index(shot.name)
        folder, stem = DATA / plan.kind / plan.name, Path(shot.name).stem
        ids = {g: read(folder / "ground_truth" / g / f"{stem}.png") for g in layout.LEVELS}
        image = np.asarray(Image.open(folder / "images" / shot.name)).copy()
        out = export.Rendered(shot, image, ids, read(folder / "depth" / f"{stem}.png") * DEPTH_UNIT)
        for change in spoil.values():
            change(out)
        return out

    monkeypatch.setattr(render, "build", lambda plan: None)
    monkeypatch.setattr(make, "render_view", view)
    # A photograph is compared as stored; storing it twice would not be the same again.
    monkeypatch.setattr(export, "jpeg", lambda image: image)
    monkeypatch.setattr(
        export,
        "decoded",
        lambda data: (
            data
            if isinstance(data, np.ndarray)
            else np.asarray(Image.open(export.io.BytesIO(data)))
        ),
    )
    return spoil


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_regeneration_compares_every_file(folder, rendered_again):
    rows = list(make.regenerate(folder, 6))
    assert [r["labels"] for r in rows] == [True] * 5 + [False]
    assert [r["grey_levels"] for r in rows] == [0] + [None] * 5
    assert len({r["view"] for r in rows}) == 6
    for views in (0, 99):
        with pytest.raises(
            ConfigError,
            match=f"{views} views to render again; expected 1 to {len(meta(folder)['views'])}",
        ):
            list(make.regenerate(folder, views))


def _add(array_of, step):
    def change(view):
        array_of(view)[100, 50] += step

    return change


@pytest.mark.parametrize(
    "array_of, step, message",
    [
        (
            lambda v: v.ids["subpart"],
            1,
            r"ground_truth/subpart/frame_00003.png: 1 of 76800 pixels differ",
        ),
        (lambda v: v.depth, DEPTH_UNIT, r"depth/frame_00003.png: 1 of 76800 pixels differ"),
        (lambda v: v.image, 5, r"images/frame_00003.jpg: up to 5 grey levels"),
    ],
)
def test_regeneration_names_what_differs(array_of, step, message, rendered_again):
    rendered_again["it"] = _add(array_of, np.array(step).astype("uint8") if step == 5 else step)
    with pytest.raises(SceneError, match=message):
        list(make.regenerate(LERF[0]))


@pytest.mark.parametrize(
    "file, old, new, message",
    [
        ("scene.json", '"width": 320', '"width": 321', "another camera for frame_00003.jpg"),
        (
            "ground_truth/objects.json",
            '"level": "whole"',
            '"level": "part"',
            "objects.json: differs",
        ),
        (
            "../label/{}/frame_00003.json",
            '"category": "',
            '"category": "x',
            "frame_00003.json: differs",
        ),
    ],
)
def test_regeneration_names_an_edited_description(
    file, old, new, message, rendered_again, tmp_path
):
    folder = tmp_path / LERF[0].name
    shutil.copytree(LERF[0], folder)
    shutil.copytree(LERF[0].parent / "label" / folder.name, tmp_path / "label" / folder.name)
    path = folder / file.format(folder.name)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(SceneError, match=message):
        list(make.regenerate(folder))
    if ".." not in file:
        with pytest.raises(SceneError, match=f"{path.name}: edited"):
            verify_sums(folder)
