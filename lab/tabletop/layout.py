"""Composition: where objects stand, how they are lit, which cameras look at them.

A ``Layout`` is everything the renderer needs and is made from a seed alone. The benchmark's
recipes are in ``recipes.py``; this file holds what they share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from cclkit.errors import ConfigError
from cclkit.scenes.scene import Camera

from .materials import Material, paint
from .objects import Item, Leaf
from .shapes import Mesh, lathe, plane, rotation, rounded_box

LEVELS = ("subpart", "part", "whole")


@dataclass(frozen=True)
class Light:
    """A square area light. Radiance linear RGB, size and positions in metres."""

    position: tuple[float, float, float]
    target: tuple[float, float, float]
    size: float
    radiance: tuple[float, float, float]


@dataclass(frozen=True)
class Shot:
    """One view. ``moves``: camera translation and rotation (degrees about its axes) during
    exposure.
    """

    name: str
    camera: Camera
    exposure: float = 1.0
    moves: tuple[float, ...] = ()  # (tx, ty, tz, rx, ry, rz) or empty

    def camera_at(self, t: float) -> Camera:
        """The camera at time t in -0.5..0.5 of the exposure; the ground truth is that of t = 0."""
        if not self.moves:
            return self.camera
        M = np.eye(4)
        M[:3, :3] = (
            rotation("x", self.moves[3] * t)
            @ rotation("y", self.moves[4] * t)
            @ rotation("z", self.moves[5] * t)
        )
        M[:3, 3] = np.array(self.moves[:3]) * t
        return replace(self.camera, world_to_camera=M @ self.camera.world_to_camera)


@dataclass
class Layout:
    """A scene before rendering. All positions in metres, z up, the table top at z = 0."""

    name: str
    kind: str  # "lerf_ovs" | "3d_ovs"
    seed: int
    items: list[Item]
    shots: list[Shot]
    lights: list[Light]
    sky: tuple[float, float, float] = (0.9, 0.95, 1.0)
    exposure: float = 1.0
    spp: int = 18  # paths per pixel; more than it seems, for what they leave is denoised
    held_out: tuple[str, ...] = ()
    labelled: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()  # part and subpart texts that are labelled beside the whole objects
    difficulties: dict = field(default_factory=dict)
    title: str = ""

    @property
    def leaves(self) -> list[Leaf]:
        return [l for item in self.items for l in item.leaves]


# ---------------------------------------------------------------- ids


def nodes(layout: Layout) -> tuple[list[dict], np.ndarray]:
    """The hierarchy and every leaf's ids.

    Returns the nodes ({"id", "name", "level", "parent", "stuff", "query", ...}, ids from 1, unique
    over all levels) and an int array [leaves, 3] of (subpart, part, whole) ids. Where an object has
    no finer level, the finer columns carry the coarser id.
    """
    table: list[dict] = []
    rows: list[tuple[int, int, int]] = []

    def node(name: str, level: str, parent: int, item: Item, m: Material, extra=()) -> int:
        n = {
            "id": len(table) + 1,
            "name": name.lstrip("_").split("#")[0],
            "level": level,
            "parent": parent,
            "stuff": item.stuff,
            "query": not name.startswith("_"),
            "family": item.family,
            "colour": item.colour if level == "whole" else m.colour_name,
            "material": m.name,
            "captions": list(extra),
        }
        table.append(n)
        return n["id"]

    for item in layout.items:
        whole = node(item.name, "whole", 0, item, item.leaves[0].material, item.captions)
        known: dict[tuple, int] = {}
        for leaf in item.leaves:
            ids, parent = [whole], whole
            for depth, level in ((1, "part"), (2, "subpart")):
                if len(leaf.path) >= depth:
                    key = leaf.path[:depth]
                    if key not in known:
                        known[key] = node(key[-1], level, parent, item, leaf.material)
                    parent = known[key]
                ids.append(parent)
            rows.append((ids[2], ids[1], ids[0]))
    return table, np.array(rows, np.int32)


# ---------------------------------------------------------------- placement


def place(
    item: Item,
    x: float,
    y: float,
    yaw: float = 0.0,
    z: float = 0.0,
    scale: float = 1.0,
    tilt: tuple[str, float] | None = None,
) -> Item:
    """Stand an item (its own frame) at (x, y, z), turned by ``yaw`` degrees; ``tilt`` is applied
    first.
    """
    R = rotation("z", yaw)
    if tilt is not None:
        R = R @ rotation(*tilt)
    M = np.eye(4)
    M[:3, :3] = R * scale
    out = item.transformed(M)
    low = min(float(l.mesh.vertices[:, 2].min()) for l in out.leaves)
    M = np.eye(4)
    M[:3, 3] = x, y, z - low + 2e-4
    return out.transformed(M)


def top_of(item: Item) -> float:
    """Height of an item's highest point, metres."""
    return max(float(l.mesh.vertices[:, 2].max()) for l in item.leaves)


class Footprint:
    """Outlines of an item per height slab of 1 cm: a convex, hence conservative, stand-in for
    collisions.
    """

    SLAB = 0.01

    def __init__(self, item: Item):
        v = np.concatenate(
            [item.sample(3000, np.random.default_rng(0)), *(l.mesh.vertices for l in item.leaves)]
        )
        self.low, self.high = v[:, 2].min(), v[:, 2].max()
        self.slabs: dict[int, np.ndarray] = {}
        key = np.floor(v[:, 2] / self.SLAB).astype(int)
        for k in np.unique(key):
            self.slabs[int(k)] = cv2.convexHull(v[key == k][:, :2].astype(np.float32)).reshape(
                -1, 2
            )
        self.outline = cv2.convexHull(v[:, :2].astype(np.float32)).reshape(-1, 2)

    def overlap(self, other: Footprint) -> float:
        """Deepest penetration over common slabs, metres; 0 when apart."""
        if min(self.high, other.high) - max(self.low, other.low) < 2e-4:
            return 0.0  # one stands on the other
        worst = 0.0
        for k in self.slabs.keys() & other.slabs.keys():
            a, b = self.slabs[k], other.slabs[k]
            if len(a) >= 3 and len(b) >= 3:
                worst = max(worst, -_gap(a, b))
        return max(worst, 0.0)


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    """Separation of two convex outlines [P, 2] along the best separating axis; negative =
    penetration.
    """
    best = -np.inf
    for p in (a, b):
        e = np.roll(p, -1, 0) - p
        n = np.stack([e[:, 1], -e[:, 0]], -1)
        n = n[np.linalg.norm(e, axis=1) > 1e-7]
        n = n / np.linalg.norm(n, axis=1, keepdims=True)
        pa, pb = a @ n.T, b @ n.T
        best = max(best, float(np.maximum(pb.min(0) - pa.max(0), pa.min(0) - pb.max(0)).max()))
    return best


def check_apart(items: list[Item], limit: float = 0.004) -> None:
    """Raise ConfigError naming the items that interpenetrate (stuff is left out)."""
    prints = [(i, Footprint(i)) for i in items if not i.stuff]
    found = []
    for a in range(len(prints)):
        for b in range(a):
            d = prints[a][1].overlap(prints[b][1])
            if d > limit:
                found.append(
                    f"{prints[a][0].name!r} and {prints[b][0].name!r} (about {d * 1000:.0f} mm)"
                )
    if found:
        raise ConfigError(f"layout: objects overlap: {'; '.join(found)}; move one of each pair")


def scatter(
    items: list[Item],
    width: float,
    depth: float,
    rng: np.random.Generator,
    tries: int = 200,
    gap: float = 0.006,
) -> list[Item]:
    """Random positions on a width x depth table without overlap.

    Raises ConfigError when an item finds no room in ``tries`` attempts.
    """
    out: list[Item] = []
    taken: list[np.ndarray] = []
    flat = [(item, np.concatenate([l.mesh.vertices[:, :2] for l in item.leaves])) for item in items]
    for item, points in sorted(flat, key=lambda f: -float(np.prod(np.ptp(f[1], axis=0)))):
        outline = cv2.convexHull(points.astype(np.float32)).reshape(-1, 2).astype(float)
        for _ in range(tries):
            x, y, yaw = (
                rng.uniform(-width / 2, width / 2),
                rng.uniform(-depth / 2, depth / 2),
                float(rng.uniform(0, 360)),
            )
            there = outline @ rotation("z", yaw)[:2, :2].T + (x, y)
            if (np.abs(there) > [width / 2 + 0.05, depth / 2 + 0.05]).any():
                continue
            if all(_gap(there, t) >= gap for t in taken):
                out.append(place(item, x, y, yaw))
                taken.append(there)
                break
        else:
            raise ConfigError(
                f"layout: no room for {item.name!r} among {len(items)} objects on a {width:.2f} x"
                f" {depth:.2f} m table; use fewer objects or a larger table"
            )
    return out


# ---------------------------------------------------------------- surroundings


def stuff(name: str, *meshes_and_materials: tuple[Mesh, Material]) -> Item:
    """A background surface."""
    o = Item(name, "background", stuff=True)
    for mesh, material in meshes_and_materials:
        o.add(mesh, material)
    return o


def room(
    table: Item,
    floor: Material,
    wall: Material,
    half: float = 2.0,
    floor_z: float = -0.72,
    height: float = 2.6,
    floor_repeat: float = 0.7,
) -> list[Item]:
    """Table, floor and four walls around it; open above, where the sky lights it."""
    f = stuff("floor", (plane(2 * half, 2 * half, floor_repeat).moved(0, 0, floor_z), floor))
    w = stuff("wall")
    for k in range(4):
        m = plane(2 * half, height, 0.5).rotated("x", 90).moved(0, half, floor_z + height / 2)
        w.add(m.rotated("z", 90 * k), wall)
    return [table, f, w]


def square_table(
    name: str,
    top: Material,
    width: float,
    depth: float,
    repeat: float = 1.0,
    floor_z: float = -0.72,
) -> Item:
    """A table with its top at z = 0 and four legs."""
    edge = paint((120, 84, 54))
    o = stuff(name)
    o.add(plane(width, depth, repeat), top)
    o.add(rounded_box(width, depth, 0.03, 0.003).moved(0, 0, -0.0305), edge)
    for x in (-1, 1):
        for y in (-1, 1):
            o.add(
                rounded_box(0.06, 0.06, -floor_z - 0.03, 0.004).moved(
                    x * (width / 2 - 0.06), y * (depth / 2 - 0.06), floor_z
                ),
                edge,
            )
    return o


def round_table(
    name: str, top: Material, radius: float, repeat: float = 1.0, floor_z: float = -0.72
) -> Item:
    """A round table on one leg."""
    o = stuff(name)
    disc = lathe([(radius, 0), (0, 0)], 96)
    o.add(replace(disc, uv=disc.vertices[:, :2] * repeat), top)
    o.add(
        lathe(
            [
                (0, -0.03),
                (radius - 0.004, -0.03),
                (radius, -0.026),
                (radius, -0.004),
                (radius - 0.0005, -0.0002),
            ],
            96,
        ),
        paint((120, 84, 54)),
    )
    o.add(lathe([(0.22, floor_z), (0.05, floor_z + 0.05), (0.05, -0.03)], 32), paint((120, 84, 54)))
    return o


# ---------------------------------------------------------------- cameras


def look_at(
    eye, target, f: float, width: int, height: int, centre=(0.5, 0.5), roll: float = 0.0
) -> Camera:
    """Camera at ``eye`` looking at ``target``; ``centre`` is the principal point as shares of the
    size.

    Without products of matrices: BLAS sums in another order on another processor, and a recipe's
    cameras are compared bit for bit.
    """
    eye, target = np.asarray(eye, float), np.asarray(target, float)
    z = target - eye
    z /= math.hypot(*z)
    x = np.array([z[1], -z[0], 0.0])  # across the view direction, level
    x /= math.hypot(*x)
    y = np.cross(z, x)
    c, s = math.cos(math.radians(roll)), math.sin(math.radians(roll))
    R = np.stack([c * x - s * y, s * x + c * y, z])
    w2c = np.eye(4)
    w2c[:3, :3], w2c[:3, 3] = R, -(R[:, 0] * eye[0] + R[:, 1] * eye[1] + R[:, 2] * eye[2])
    K = np.array([[f, 0, centre[0] * width], [0, f, centre[1] * height], [0, 0, 1.0]])
    return Camera(K, w2c, width, height)


def orbit(
    n: int,
    target,
    radius: float,
    rng,
    *,
    start: float = 0.0,
    sweep: float = 360.0,
    elevations=(24.0, 50.0),
    f: float,
    width: int,
    height: int,
    centre=(0.5, 0.5),
    jitter: float = 0.012,
) -> list[Camera]:
    """Inward orbit whose height rises and falls as a hand-held capture's does."""
    out = []
    for k in range(n):
        a = np.radians(start + sweep * k / n + rng.uniform(-1.5, 1.5))
        e = np.radians(
            np.interp(math.sin(2 * math.pi * 2.5 * k / n), [-1, 1], elevations) + rng.uniform(-1, 1)
        )
        r = radius * rng.uniform(0.93, 1.07)
        eye = np.asarray(target) + r * np.array(
            [math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)]
        )
        aim = np.asarray(target) + rng.uniform(-jitter, jitter, 3)
        out.append(look_at(eye, aim, f, width, height, centre, float(rng.uniform(-1.5, 1.5))))
    return out


def forward(
    n: int,
    eye,
    target,
    spread: tuple[float, float, float],
    rng,
    *,
    f: float,
    width: int,
    height: int,
) -> list[Camera]:
    """Forward-facing grid walk; principal point exactly central, because LLFF files
    store no other.
    """
    cols = int(np.ceil(n**0.5 * 1.25))
    rows = -(-n // cols)
    out = []
    for k in range(n):
        i, j = divmod(k, cols)
        j = j if i % 2 == 0 else cols - 1 - j
        u = 2 * j / max(cols - 1, 1) - 1 + rng.uniform(-0.12, 0.12)
        v = 2 * i / max(rows - 1, 1) - 1 + rng.uniform(-0.12, 0.12)
        off = np.array([u * spread[0], rng.uniform(-1, 1) * spread[1], v * spread[2]])
        aim = np.asarray(target) + 0.35 * off * [1, 0, 1] + rng.uniform(-0.006, 0.006, 3)
        out.append(look_at(np.asarray(eye) + off, aim, f, width, height))
    return out
