"""Writing a rendered scene in the LERF-OVS and the 3D-OVS layout; checksums; archives.

What is written is described in data/tabletop/README.md. Everything except the photographs is a
function of the layout and the renderer's ids, hence the same bytes on every run.
"""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from cclkit.downloads.bundled import verify_sums
from cclkit.errors import ConfigError, SceneError
from cclkit.files import atomic_write
from cclkit.scenes.scene import DEPTH_UNIT, Camera

from .layout import LEVELS, Layout, Shot, nodes

JPEG = {"quality": 92, "subsampling": 0, "optimize": True}
MIN_PIECE = 40  # pixels: categories and pieces smaller than this are not labelled
POINTS = 6500
PUBLIC = {
    "lerf_ovs": ("images/", "sparse/", "../label/"),
    "3d_ovs": ("images/", "segmentations/", "poses_bounds.npy"),
}
"""What the public data sets have of a scene's files, by how their paths in SHA256SUMS begin."""


@dataclass
class Rendered:
    """One view as rendered: photograph, ids per level, depth."""

    shot: Shot
    image: np.ndarray  # [H, W, 3] uint8
    ids: dict[str, np.ndarray]  # level -> [H, W] int32
    depth: np.ndarray  # [H, W] float64 metres, in whole steps of DEPTH_UNIT

    @property
    def stem(self) -> str:
        return Path(self.shot.name).stem


def queries(table: list[dict]) -> list[dict]:
    """Texts and the ids they mean: nodes of one name and level form one query."""
    found: dict[tuple[str, str], list[int]] = {}
    for level in reversed(LEVELS):
        for n in table:
            if n["level"] == level and n["query"]:
                found.setdefault((n["name"], level), []).append(n["id"])
    return [{"text": t, "granularity": g, "ids": ids} for (t, g), ids in found.items()]


def label_queries(layout: Layout, table: list[dict]) -> list[dict]:
    """The queries that label files carry: whole objects, then the parts the recipe names.

    Raises ConfigError when the recipe names a part that no object has.
    """
    asked = queries(table)
    unknown = set(layout.parts) - {q["text"] for q in asked if q["granularity"] != "whole"}
    if unknown:
        raise ConfigError(
            f"layout {layout.name}: parts {sorted(unknown)} belong to no object; known:"
            f" {', '.join(q['text'] for q in asked if q['granularity'] != 'whole')}"
        )
    return [
        q
        for q in asked
        if q["text"] in layout.parts
        or (q["granularity"] == "whole" and not table[q["ids"][0] - 1]["stuff"])
    ]


# ---------------------------------------------------------------- polygons


def polygons(mask: np.ndarray, min_area: int = MIN_PIECE) -> list[np.ndarray]:
    """Outlines [P, 2] (x, y) of a mask's pieces of at least ``min_area`` pixels, largest first.

    Outline points are pixels of the region, as cv2.fillPoly expects. A hole is joined to the
    outline by a slit, so that ONE polygon filled by the even-odd rule has the hole.
    """
    contours, tree = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    out = []
    for k, c in enumerate(contours):
        if tree[0][k][3] != -1:
            continue  # a hole: handled with its outline
        ring = c[:, 0].astype(int)
        region = np.zeros(mask.shape, np.uint8)
        cv2.fillPoly(region, [c], 1)
        area = int((region.astype(bool) & mask).sum())
        if area < min_area:
            continue
        child = tree[0][k][2]
        while child != -1:
            hole = contours[child][:, 0].astype(int)
            if abs(cv2.contourArea(contours[child])) >= 12:
                d = ((ring[:, None] - hole[None]) ** 2).sum(-1)
                i, j = np.unravel_index(d.argmin(), d.shape)
                ring = np.concatenate([ring[: i + 1], hole[j:], hole[: j + 1], ring[i:]])
            child = tree[0][child][0]
        out.append((area, ring))
    out.sort(key=lambda a: -a[0])
    return [_without_collinear(r) for _, r in out]


def _without_collinear(ring: np.ndarray) -> np.ndarray:
    """Drop points in the middle of straight runs; what is filled stays the same."""
    a, b = ring - np.roll(ring, 1, 0), np.roll(ring, -1, 0) - ring
    keep = (a[:, 0] * b[:, 1] != a[:, 1] * b[:, 0]) | ((a * b).sum(1) <= 0)
    return ring[keep] if keep.sum() >= 3 else ring


def label_file(view: Rendered, asked: list[dict]) -> dict:
    """The published label schema: info and objects with category, bbox and ONE polygon each."""
    objects = []
    for q in asked:
        mask = np.isin(view.ids[q["granularity"]], q["ids"])
        if mask.sum() < MIN_PIECE:
            continue
        rings = polygons(mask, max(12, int(0.02 * mask.sum())))
        filled = np.zeros(mask.shape, np.uint8)
        for ring in rings:
            cv2.fillPoly(filled, [ring.astype(np.int32)], 1)
        if (mask & (filled > 0)).sum() < 0.9 * (mask | (filled > 0)).sum():
            continue  # too scattered to outline here (chocolate chips from afar)
        for ring in rings:
            (x1, y1), (x2, y2) = ring.min(0), ring.max(0)
            objects.append(
                {
                    "id": len(objects) + 1,
                    "category": q["text"],
                    "granularity": q["granularity"],
                    "bbox": [int(x1), int(y1), int(x2), int(y2)],
                    "area": int(abs(cv2.contourArea(ring.astype(np.int32)))),
                    "segmentation": [[int(x), int(y)] for x, y in ring],
                }
            )
    h, w = view.depth.shape
    return {"info": {"name": view.shot.name, "width": w, "height": h}, "objects": objects}


# ---------------------------------------------------------------- points and COLMAP


def surface_points(views: list[Rendered], held_out, rng: np.random.Generator, count: int = POINTS):
    """Points on visible surfaces with colours and tracks.

    A point starts at a pixel of a training view and is tracked into every training view where the
    depth map says that it is seen. Returns xyz [P, 3], colours [P, 3] uint8 and per point a list of
    (view index, x, y).
    """
    use = [k for k, v in enumerate(views) if v.shot.name not in held_out]
    sharp = [k for k in use if not views[k].shot.moves and views[k].shot.exposure == 1]
    xyz, colour = [], []
    for k in sharp:
        v = views[k]
        ok = np.argwhere(v.depth > 0)
        pick = ok[
            rng.choice(len(ok), size=min(len(ok), -(-2 * count // len(sharp))), replace=False)
        ]
        xyz.append(v.shot.camera.backproject(v.depth)[pick[:, 0], pick[:, 1]])
        colour.append(v.image[pick[:, 0], pick[:, 1]])
    xyz, colour = np.concatenate(xyz), np.concatenate(colour)
    tracks: list[list] = [[] for _ in xyz]
    for k in use:
        v = views[k]
        h, w = v.depth.shape
        p, z = v.shot.camera.project(xyz)
        x, y = np.floor(p).astype(int).T
        seen = (z > 0.05) & (x >= 0) & (y >= 0) & (x < w) & (y < h)
        d = v.depth[np.clip(y, 0, h - 1), np.clip(x, 0, w - 1)]
        for i in np.flatnonzero(seen & (np.abs(d - z) < 0.004 + 0.004 * z)):
            tracks[i].append((k, p[i, 0], p[i, 1]))
    good = [i for i, t in enumerate(tracks) if len(t) >= 3]
    good = sorted(rng.permutation(good)[:count])
    return xyz[good], colour[good], [tracks[i] for i in good]


def quaternion(R: np.ndarray) -> np.ndarray:  # [4] w x y z, w >= 0
    """Rotation matrix to unit quaternion, by the largest of the four squares (stable
    everywhere).
    """
    m = np.array(
        [
            1 + np.trace(R),
            1 + R[0, 0] - R[1, 1] - R[2, 2],
            1 - R[0, 0] + R[1, 1] - R[2, 2],
            1 - R[0, 0] - R[1, 1] + R[2, 2],
        ]
    )
    k = int(m.argmax())
    s = np.sqrt(m[k])
    d = 0.5 / s
    q = {
        0: [0.5 * s, (R[2, 1] - R[1, 2]) * d, (R[0, 2] - R[2, 0]) * d, (R[1, 0] - R[0, 1]) * d],
        1: [(R[2, 1] - R[1, 2]) * d, 0.5 * s, (R[0, 1] + R[1, 0]) * d, (R[0, 2] + R[2, 0]) * d],
        2: [(R[0, 2] - R[2, 0]) * d, (R[0, 1] + R[1, 0]) * d, 0.5 * s, (R[1, 2] + R[2, 1]) * d],
        3: [(R[1, 0] - R[0, 1]) * d, (R[0, 2] + R[2, 0]) * d, (R[1, 2] + R[2, 1]) * d, 0.5 * s],
    }[k]
    q = np.array(q)
    return q if q[0] >= 0 else -q


def write_colmap(folder: Path, views: list[Rendered], xyz, colour, tracks) -> None:
    """cameras.bin, images.bin and points3D.bin with one PINHOLE camera."""
    folder.mkdir(parents=True, exist_ok=True)
    cam = views[0].shot.camera
    with open(folder / "cameras.bin", "wb") as f:
        f.write(struct.pack("<Q", 1))
        f.write(
            struct.pack(
                "<iiQQ4d",
                1,
                1,
                cam.width,
                cam.height,
                cam.K[0, 0],
                cam.K[1, 1],
                cam.K[0, 2],
                cam.K[1, 2],
            )
        )
    observed: list[list] = [[] for _ in views]
    refs = []
    for i, t in enumerate(tracks):
        refs.append([(k, len(observed[k])) for k, _, _ in t])  # a track meets a view at most once
        for k, x, y in t:
            observed[k].append((x, y, i + 1))
    with open(folder / "images.bin", "wb") as f:
        f.write(struct.pack("<Q", len(views)))
        for k, v in enumerate(views):
            w2c = v.shot.camera.world_to_camera
            f.write(struct.pack("<i7di", k + 1, *quaternion(w2c[:3, :3]), *w2c[:3, 3], 1))
            f.write(v.shot.name.encode() + b"\0" + struct.pack("<Q", len(observed[k])))
            for x, y, i in observed[k]:
                f.write(struct.pack("<ddQ", x, y, i))
    with open(folder / "points3D.bin", "wb") as f:
        f.write(struct.pack("<Q", len(xyz)))
        for i in range(len(xyz)):
            f.write(struct.pack("<Q3d3Bd", i + 1, *xyz[i], *(int(c) for c in colour[i]), 0.05))
            f.write(
                struct.pack("<Q", len(refs[i]))
                + b"".join(struct.pack("<ii", k + 1, j) for k, j in refs[i])
            )


def poses_bounds(views: list[Rendered]) -> np.ndarray:  # [N, 17]
    """LLFF rows: 3x5 [down, right, backwards | position | height, width, focal], then
    near and far.
    """
    rows = []
    for v in views:
        cam = v.shot.camera
        c2w = cam.camera_to_world
        hwf = [cam.height, cam.width, cam.K[0, 0]]
        m = np.stack([c2w[:3, 1], c2w[:3, 0], -c2w[:3, 2], c2w[:3, 3], hwf], 1)
        d = v.depth[v.depth > 0]
        rows.append(np.concatenate([m.ravel(), np.percentile(d, [0.1, 99.9])]))
    return np.array(rows)


# ---------------------------------------------------------------- files


def _png(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, optimize=True)


def _json(data, path: Path, **kw) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, ensure_ascii=False, **kw) + "\n", encoding="utf-8")


def jpeg(image: np.ndarray) -> bytes:
    """A photograph [H, W, 3] uint8 as it is stored."""
    b = io.BytesIO()
    Image.fromarray(image).save(b, "JPEG", **JPEG)
    return b.getvalue()


def decoded(data: bytes) -> np.ndarray:  # [H, W, 3] uint8
    """A stored photograph as a reader of the file sees it."""
    return np.asarray(Image.open(io.BytesIO(data)))


def camera_json(cam: Camera) -> dict:
    """A camera at full precision (repr of doubles is exact in JSON)."""
    return {
        "K": cam.K.ravel().tolist(),
        "world_to_camera": cam.world_to_camera.ravel().tolist(),
        "width": cam.width,
        "height": cam.height,
    }


def write(layout: Layout, views: list[Rendered], out: Path) -> Path:
    """Write a rendered scene below ``out`` (which then holds lerf_ovs/ or 3d_ovs/). Returns its
    folder.
    """
    table, _ = nodes(layout)
    files = Written(out / layout.kind / layout.name)
    coded = [jpeg(v.image) for v in views]
    # From here on the photographs are what a reader of the files sees.
    views = [replace(v, image=decoded(c)) for v, c in zip(views, coded)]
    _write_views(files, views, coded, np.uint16 if len(table) > 255 else np.uint8)
    objects = {"nodes": table, "queries": queries(table)}
    _json(objects, files.path("ground_truth/objects.json"), indent=1)
    if layout.kind == "lerf_ovs":
        _write_lerf_ovs(files, layout, views, table)
    else:
        _write_3d_ovs(files, layout, views, table)
    _json(_about(layout, views, table), files.path("scene.json"), indent=1)
    files.write_sums()
    return files.scene


class Written:
    """The files of a scene's folder, and of the labels beside it, as they are written."""

    def __init__(self, scene: Path):
        self.scene = scene
        self.paths: set[Path] = set()

    def path(self, name: str) -> Path:
        """Where a file goes that is about to be written; its folder is made."""
        path = self.scene / name if not name.startswith("../") else self.scene.parent / name[3:]
        path.parent.mkdir(parents=True, exist_ok=True)
        self.paths.add(path)
        return path

    def write_sums(self) -> None:
        """SHA256SUMS of all of them."""
        lines = []
        for p in sorted(self.paths):
            inside = p.is_relative_to(self.scene)
            name = p.relative_to(self.scene if inside else self.scene.parent).as_posix()
            digest = hashlib.sha256(p.read_bytes()).hexdigest()
            lines.append(f"{digest}  {name if inside else f'../{name}'}\n")
        (self.scene / "SHA256SUMS").write_text("".join(lines))


def _write_views(files: Written, views: list[Rendered], coded: list[bytes], ids: type) -> None:
    """Photographs, depth, and ids of every level as pixels of that type."""
    for v, c in zip(views, coded):
        files.path(f"images/{v.shot.name}").write_bytes(c)
        depth = np.rint(v.depth / DEPTH_UNIT).astype(np.uint16)
        _png(depth, files.path(f"depth/{v.stem}.png"))
        for level in LEVELS:
            _png(v.ids[level].astype(ids), files.path(f"ground_truth/{level}/{v.stem}.png"))


def _write_lerf_ovs(
    files: Written, layout: Layout, views: list[Rendered], table: list[dict]
) -> None:
    """The COLMAP model, and a label file and photograph for every labelled view."""
    xyz, colour, tracks = surface_points(views, layout.held_out, np.random.default_rng(layout.seed))
    model = [files.path(f"sparse/0/{n}.bin") for n in ("cameras", "images", "points3D")]
    write_colmap(model[0].parent, views, xyz, colour, tracks)
    texts = label_queries(layout, table)
    for v in (v for v in views if v.shot.name in layout.labelled):
        base = f"../label/{layout.name}/{v.stem}"
        _json(label_file(v, texts), files.path(f"{base}.json"))
        photograph = (files.scene / "images" / v.shot.name).read_bytes()
        files.path(f"{base}.jpg").write_bytes(photograph)


def _write_3d_ovs(files: Written, layout: Layout, views: list[Rendered], table: list[dict]) -> None:
    """Poses, the list of classes, and a mask of every class for every labelled view."""
    np.save(files.path("poses_bounds.npy"), poses_bounds(views))
    classes = [q for q in queries(table) if q["granularity"] == "whole"]
    names = "".join(q["text"] + "\n" for q in classes)
    files.path("segmentations/classes.txt").write_bytes(names.encode())
    for v in (v for v in views if v.shot.name in layout.labelled):
        for q in classes:
            mask = np.isin(v.ids["whole"], q["ids"]).astype(np.uint8) * 255
            _png(mask, files.path(f"segmentations/{v.stem}/{q['text']}.png"))


def _about(layout: Layout, views: list[Rendered], table: list[dict]) -> dict:
    """What scene.json says."""
    first = set(np.unique(views[0].ids["whole"]).tolist())
    hidden = [
        n["name"]
        for n in table
        if n["level"] == "whole" and not n["stuff"] and n["id"] not in first
    ]
    effects = {}
    for v in views:
        pairs = (("exposure", v.shot.exposure), ("motion_blur", list(v.shot.moves)))
        if own := {k: x for k, x in pairs if x not in (1.0, [])}:
            effects[v.shot.name] = own
    return {
        "name": layout.name,
        "title": layout.title,
        "layout": layout.kind,
        "seed": layout.seed,
        "units": "metres",
        "depth_unit": DEPTH_UNIT,
        "up": [0, 0, 1],
        "held_out": list(layout.held_out),
        "labelled": list(layout.labelled),
        "difficulties": {**layout.difficulties, "absent_from_first_view": hidden},
        "effects": effects,
        "licence": "CC-BY-4.0",
        "generator": "cclkit.tabletop",  # its name when the committed scenes were made
        "samples_per_pixel": layout.spp,
        "views": {v.shot.name: camera_json(v.shot.camera) for v in views},
    }


def archive(scenes: Sequence[Path], out: str | Path, *, everything: bool = False) -> Path:
    """Write scene folders as one zip in the layout of the public data sets; returns its path.

    LERF-OVS scenes become ``lerf_ovs/SCENE/{images,sparse/0}`` and ``lerf_ovs/label/SCENE``, 3D-OVS
    scenes ``SCENE/{images,segmentations,poses_bounds.npy}``: files as they are, and only those the
    public data have. ``everything`` adds depth, ground truth, scene.json (which names held-out
    views) and checksums. The bytes depend on the files alone, not on when, where or with which zlib
    they are packed.

    Args:
        scenes: folders with SHA256SUMS, which are verified first. out: the .zip file; replaced if
        it exists.
    Raises:
        SceneError: a missing or edited file, two scenes of one name. ConfigError: ``out`` is no
        .zip file.
    """
    out = Path(out)
    if out.suffix != ".zip" or out.is_dir():
        raise ConfigError(
            f"archive: {out} is {'a folder' if out.is_dir() else 'no .zip file'}; give the file to"
            f" write, such as {(out if out.is_dir() else out.parent) / 'tabletop.zip'}"
        )
    entries: dict[str, Path] = {}
    for scene in scenes:
        scene = scene.resolve()
        names = verify_sums(scene)
        kind = "lerf_ovs" if any(n.startswith("../label/") for n in names) else "3d_ovs"
        chosen = (
            [*names, "SHA256SUMS"]
            if everything
            else [n for n in names if n.startswith(PUBLIC[kind])]
        )
        above = "lerf_ovs" if kind == "lerf_ovs" else ""
        inside = {
            posixpath.normpath(posixpath.join(above, scene.name, n)): scene / n for n in chosen
        }
        if twice := inside.keys() & entries.keys():
            raise SceneError(
                f"{scene}: an archive cannot hold two scenes named {scene.name} ({min(twice)} is"
                " there already); pack them one by one"
            )
        entries |= inside
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as z:
        z.comment = (  # a file of its own would be in no public layout
            b"Tabletop, rendered scenes of cclkit. Licence: CC BY 4.0"
        )
        for name in sorted(entries):
            # zip's earliest date; stored, for pictures gain nothing
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o100644 << 16
            z.writestr(entry, entries[name].read_bytes())
    atomic_write(out, packed.getvalue())
    return out
