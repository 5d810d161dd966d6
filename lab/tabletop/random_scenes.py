"""Unlimited random scenes for training small models: the benchmark's families, never its layouts.

Seeds start at ``FIRST_SEED``; the benchmark's are far below, so the two can never share a scene.
Seeds in ``STUDIO_SEEDS`` give studio photographs: few objects on a sheet of one plain colour, often
black. Image-text models learn from pictures of that kind too, and without them a small one has
never seen an object on black, which is how masks are shown to it. Seeds in ``CATALOGUE_SEEDS`` give
the pages of a parts catalogue: single parts of objects, and sheets of what tables, walls and floors
are made of, on such a sheet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cclkit.errors import ConfigError
from cclkit.scenes.scene import Camera

from .layout import Layout, Light, Shot, look_at, nodes, orbit, room, scatter, square_table, stuff
from .materials import (
    PALETTE,
    bricks,
    carpet,
    checks,
    grass,
    mottled,
    paint,
    rgb,
    stripes,
    textured,
    tiles,
    wood,
)
from .objects import FAMILIES, Item, Leaf, make
from .shapes import plane

FIRST_SEED = 1_000_000
STUDIO_SEEDS = range(1_500_000, 1_750_000)
CATALOGUE_SEEDS = range(1_750_000, 2_000_000)
PIECE, SWATCH = "piece", "swatch"
"""Families of a catalogue's items: one part of an object, and a sheet of some surface."""
CATALOGUE_NEARER = 0.7
"""Distance of a catalogue's cameras, as a share of what other scenes of that width have: its parts
are small.
"""


@dataclass(frozen=True)
class Sample:
    """One rendered view of a random scene, with all its labels."""

    image: np.ndarray  # [H, W, 3] uint8
    ids: dict[str, np.ndarray]  # "subpart" | "part" | "whole" -> [H, W] int32, 0 = nothing
    depth: np.ndarray  # [H, W] float64 metres
    camera: object  # Camera
    captions: dict[int, tuple[str, ...]]  # id -> texts that describe the region, the plainest first


Stuff = tuple[str, tuple[str, ...], np.ndarray]
"""Name, synonyms and texture [h, w, 3] of a surface."""


def _surface(rng: np.random.Generator) -> Stuff:
    """What the objects stand on."""
    pick = lambda *c: str(rng.choice(c))
    light, dark = (
        pick("white", "cream", "beige", "light blue"),
        pick("blue", "red", "dark green", "grey", "purple"),
    )
    plain = pick("white", "grey", "cream", "beige", "light blue")
    options = [
        (
            "wooden table",
            ("wood", "wooden surface", "table"),
            lambda: wood(rng.uniform([110, 70, 45], [205, 160, 120]), rng, int(rng.integers(3, 8))),
        ),
        (
            "checked cloth",
            ("checked tablecloth", f"{dark} checked cloth", "cloth"),
            lambda: checks(light, dark, int(rng.integers(8, 20))),
        ),
        (
            "tiled table",
            ("tiles", "table"),
            lambda: tiles(light, pick("grey", "beige", "white"), int(rng.integers(4, 9)), rng),
        ),
        (
            "marble counter",
            ("stone table", "counter"),
            lambda: mottled(rng.uniform(90, 215) * rng.uniform(0.92, 1.05, 3), rng, 0.1, 8, 256),
        ),
        (
            "patterned rug",
            ("carpet", "rug"),
            lambda: carpet([light, dark, "beige", pick("red", "dark blue", "brown")], rng),
        ),
        ("green lawn", ("lawn", "grass"), lambda: grass(rng)),
        (
            "striped cloth",
            (f"{dark} striped cloth", "cloth"),
            lambda: stripes(light, dark, int(rng.integers(6, 16))),
        ),
        (
            f"{plain} shelf",
            ("shelf", "table", f"{plain} table"),
            lambda: mottled(rgb(plain) * rng.uniform(0.9, 1.05), rng, 0.03, 6),
        ),
    ]
    name, synonyms, tex = options[int(rng.integers(len(options)))]
    return name, synonyms, tex()


def _wall(rng: np.random.Generator) -> Stuff:
    """What stands behind the objects."""
    plain = str(
        rng.choice(["white", "white", "grey", "cream", "light blue", "beige", "green", "yellow"])
    )
    options = [
        (
            "brick wall",
            ("bricks", "wall"),
            lambda: bricks(rng.uniform([110, 60, 50], [190, 150, 130]), rng),
        ),
        (
            "wooden fence",
            ("fence", "wooden planks"),
            lambda: wood(rng.uniform([110, 70, 45], [205, 160, 120]), rng, int(rng.integers(4, 9))),
        ),
        (
            "tiled wall",
            ("tiles", "wall"),
            lambda: tiles(
                rng.uniform(150, 230) * rng.uniform(0.9, 1.05, 3),
                plain,
                int(rng.integers(4, 9)),
                rng,
            ),
        ),
        *[
            (
                f"{plain} wall",
                ("wall", "plain wall"),
                lambda: mottled(rgb(plain) * rng.uniform(0.85, 1.05), rng, 0.03, 6),
            )
        ]
        * 3,
    ]
    name, synonyms, tex = options[int(rng.integers(len(options)))]
    return name, synonyms, tex()


def _backdrop(rng: np.random.Generator) -> np.ndarray:  # sRGB 0..255
    kind = rng.random()
    if kind < 0.5:
        return np.full(3, rng.uniform(0, 14))
    return np.full(3, rng.uniform(90, 235)) if kind < 0.75 else rng.uniform(30, 230, 3)


def _pieces(n: int, rng: np.random.Generator) -> list[Item]:
    """Single parts of random objects as items of their own, called what the part is called on its
    object, 3 to 14 cm long.
    """
    out = []
    for name in rng.choice(list(FAMILIES), size=n):
        item = make(str(name), rng)
        table, rows = nodes(Layout("", "lerf_ovs", 0, [item], [], []))
        parts = [node for node in table if node["level"] != "whole"]
        if not parts:
            out.append(item)
            continue
        part = parts[int(rng.integers(len(parts)))]
        leaves = [leaf for leaf, row in zip(item.leaves, rows) if part["id"] in row]
        piece = Item(
            part["name"],
            PIECE,
            captions(table)[part["id"]],
            [Leaf(l.mesh, l.material, ()) for l in leaves],
            colour=part["colour"],
        )
        extent = max(
            float(np.ptp(np.concatenate([l.mesh.vertices[:, axis] for l in leaves])))
            for axis in range(3)
        )
        size = float(rng.uniform(0.03, 0.14))
        piece.leaves = [Leaf(l.mesh.scaled(size / extent), l.material, ()) for l in piece.leaves]
        out.append(piece)
    return out


def _swatch(rng: np.random.Generator) -> Item:
    """A sheet of what tables, walls or floors are made of, lying or standing."""
    kind = rng.random()
    if kind < 0.45:
        name, synonyms, tex = _surface(rng)
    elif kind < 0.85:
        name, synonyms, tex = _wall(rng)
    else:
        name, synonyms, tex = "floor", (), wood(rng.uniform([90, 70, 50], [200, 170, 140]), rng)
    w, h = rng.uniform(0.06, 0.24, 2)
    # texture repeats as often over the sheet as over a table, which is a metre wide
    sheet = plane(float(w), float(h), float(rng.uniform(0.5, 1.5)) / max(w, h))
    if rng.random() < 0.5:
        sheet = sheet.rotated("x", 90)
    return Item(
        name,
        SWATCH,
        synonyms,
        [Leaf(sheet, textured(tex, "glossy", 0.4) if rng.random() < 0.5 else textured(tex), ())],
    )


def random_layout(
    seed: int,
    views: int = 4,
    width: int = 256,
    height: int = 192,
    *,
    step_degrees: float | None = None,
) -> Layout:
    """Five to thirteen objects on a table in a room or on the ground before a wall; fewer in a
    studio; parts and sheets in a catalogue.

    The views are scattered; with ``step_degrees`` they follow one another on an orbit around the
    table, as the frames of a capture do. Raises ConfigError for a seed below ``FIRST_SEED``.
    """
    if seed < FIRST_SEED:
        raise ConfigError(
            f"tabletop: seed {seed} belongs to the benchmark; random scenes start at {FIRST_SEED}"
        )
    rng = np.random.default_rng(seed)
    catalogue = seed in CATALOGUE_SEEDS
    studio = catalogue or seed in STUDIO_SEEDS
    if catalogue:
        items = [*_pieces(int(rng.integers(6, 11)), rng), *(_swatch(rng) for _ in range(2))]
    else:
        items = _objects(int(rng.integers(4, 8) if studio else rng.integers(5, 14)), rng)
    placed, side = _placed(items, rng)
    surface, wall = _surface(rng), _wall(rng)
    forward_facing = studio or rng.random() < 0.35 and step_degrees is None
    if studio:
        surroundings = _studio(side, rng)
    elif forward_facing:
        surroundings = _outside(surface, wall, side, rng)
    else:
        surroundings = _inside(surface, wall, side, rng)
    size = (width, height)
    if step_degrees is not None:
        cameras = _on_an_orbit(views, step_degrees, size, side, rng)
    else:
        nearer = CATALOGUE_NEARER if catalogue else 1
        cameras = [
            _scattered_camera(size, side, rng, nearer=nearer, forward_facing=forward_facing)
            for _ in range(views)
        ]
    return Layout(
        f"random_{seed}",
        "lerf_ovs",
        seed,
        [*placed, *surroundings],
        [Shot(f"{k:02d}.jpg", camera) for k, camera in enumerate(cameras)],
        [_light(forward_facing, rng)],
        sky=tuple(rng.uniform(0.5, 0.85) * np.array([0.95, 1, 1.08])),
        exposure=float(rng.uniform(1.2, 1.8)),
    )


def _objects(n: int, rng: np.random.Generator) -> list[Item]:
    """Random objects, each a little larger or smaller than its kind."""
    items = []
    for name in rng.choice(list(FAMILIES), size=n):
        item = make(str(name), rng)
        s = rng.uniform(0.85, 1.2)
        item.leaves = [Leaf(l.mesh.scaled(s), l.material, l.path) for l in item.leaves]
        items.append(item)
    return items


def _placed(items: list[Item], rng: np.random.Generator) -> tuple[list[Item], float]:
    """The items on a table, and the side of the part of it they stand on, in metres."""
    side = 0.24 + 0.022 * len(items)
    for _ in range(6):
        try:
            return scatter(items, side, side, rng, tries=60), side
        except ConfigError:
            side *= 1.15  # a crowd of large objects gets a larger table
    return scatter(items[:4], side, side, rng), side


def _studio(side: float, rng: np.random.Generator) -> list[Item]:
    """One plain colour below and behind."""
    sheet = paint(_backdrop(rng))
    behind = plane(6.0, 3.0).rotated("x", 90).moved(0, side / 2 + 0.5, 1.4)
    below, upright = (
        stuff("plain background", (mesh, sheet)) for mesh in (plane(6.0, 6.0), behind)
    )
    below.captions = upright.captions = ("background",)
    return [below, upright]


def _outside(surface: Stuff, wall: Stuff, side: float, rng: np.random.Generator) -> list[Item]:
    """The ground, and a wall close behind the objects."""
    name, synonyms, texture = surface
    mesh = plane(4.0, 2.0, float(rng.uniform(0.7, 1.4)))
    ground = stuff(name, (mesh, textured(texture, "glossy", 0.4)))
    ground.captions = synonyms
    name, synonyms, texture = wall
    mesh = plane(4.0, 2.4, float(rng.uniform(0.7, 1.4))).rotated("x", 90)
    mesh = mesh.moved(0, side / 2 + float(rng.uniform(0.08, 0.35)), 0.8)
    upright = stuff(name, (mesh, textured(texture)))
    upright.captions = synonyms
    return [ground, upright]


def _inside(surface: Stuff, wall: Stuff, side: float, rng: np.random.Generator) -> list[Item]:
    """A table in a room."""
    name, synonyms, texture = surface
    repeat = float(rng.uniform(0.9, 1.6))
    table = square_table(name, textured(texture, "glossy", 0.4), side + 0.45, side + 0.45, repeat)
    floor = textured(wood(rng.uniform([90, 70, 50], [200, 170, 140]), rng))
    surroundings = room(table, floor, textured(wall[2]), floor_repeat=0.6)
    surroundings[0].captions = synonyms
    surroundings[2].name, surroundings[2].captions, _ = wall
    return surroundings


def _on_an_orbit(
    views: int, step_degrees: float, size: tuple[int, int], side: float, rng: np.random.Generator
) -> list[Camera]:
    """Cameras that follow one another around the table."""
    width, height = size
    centre = (*rng.uniform(-0.1, 0.1, 2) * side, rng.uniform(0.02, 0.09))
    low, high = np.sort(rng.uniform(18, 55, 2))
    n = max(views, round(360 / step_degrees))
    cameras = orbit(
        n,
        centre,
        side * rng.uniform(1.0, 1.7),
        rng,
        start=float(rng.uniform(0, 360)),
        sweep=step_degrees * n,
        elevations=(low, high),
        f=width * rng.uniform(0.9, 1.15),
        width=width,
        height=height,
    )
    first = int(rng.integers(n - views + 1))
    return cameras[first : first + views]


def _scattered_camera(
    size: tuple[int, int],
    side: float,
    rng: np.random.Generator,
    *,
    nearer: float,
    forward_facing: bool,
) -> Camera:
    """A camera anywhere around the table, or before the wall if ``forward_facing``."""
    width, height = size
    a = np.radians(rng.uniform(-130, -50)) if forward_facing else rng.uniform(0, 2 * np.pi)
    e = np.radians(rng.uniform(15, 58))
    r = side * rng.uniform(0.7, 1.9) * nearer
    aim = np.array([*rng.uniform(-0.25, 0.25, 2) * side, rng.uniform(0.02, 0.09)])
    eye = aim + r * np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)])
    f = width * rng.uniform(0.85, 1.15)
    return look_at(eye, aim, f, width, height, roll=float(rng.uniform(-4, 4)))


def _light(forward_facing: bool, rng: np.random.Generator) -> Light:
    """A lamp above, at the cameras' side of a wall."""
    a = rng.uniform(-np.pi, 0) if forward_facing else rng.uniform(0, 2 * np.pi)
    warm = rng.uniform(0.8, 1.0)
    power = rng.uniform(8, 15)
    return Light(
        (float(np.cos(a)), float(np.sin(a)), float(rng.uniform(1.1, 1.7))),
        (0, 0, 0),
        float(rng.uniform(0.3, 0.9)),
        (power, power * (0.5 + warm / 2), power * warm * 0.95),
    )


def captions(table: list[dict]) -> dict[int, tuple[str, ...]]:
    """Texts per node: name, synonyms, colour and material, and for parts whose part it is."""
    by_id = {n["id"]: n for n in table}
    out = {}
    for n in table:
        texts = [n["name"], *n["captions"]]
        c = n["colour"] if n["colour"] in PALETTE else ""
        if c and not n["name"].startswith(c):
            texts.append(f"{c} {n['name']}")
        if n["material"] and n["level"] != "whole":
            texts.append(f"{n['name']} made of {n['material']}")
        if n["parent"]:
            whole = by_id[n["parent"]]
            while whole["parent"]:
                whole = by_id[whole["parent"]]
            if whole["name"] not in n["name"]:
                texts.append(
                    f"{n['name']} of {'an' if whole['name'][0] in 'aeiou' else 'a'} {whole['name']}"
                )
        out[n["id"]] = tuple(dict.fromkeys(texts))
    return out


def samples(
    seed: int,
    views: int = 4,
    width: int = 256,
    height: int = 192,
    spp: int = 4,
    depth: int = 3,
    *,
    step_degrees: float | None = None,
) -> Iterator[Sample]:
    """Render a random scene's views quickly: few paths, short paths, denoised.

    Raises DependencyError without Mitsuba.
    """
    from .layout import LEVELS
    from .render import buffers, build, develop, photograph

    plan = random_layout(seed, views, width, height, step_degrees=step_degrees)
    scene = build(plan)
    table, rows = nodes(plan)
    texts = captions(table)
    glass = any(l.material.kind == "glass" for l in plan.leaves)
    for k, shot in enumerate(plan.shots):
        b = buffers(scene, shot.camera)
        ids = {
            level: np.where(b.leaf >= 0, rows[b.leaf, j], 0).astype(np.int32)
            for j, level in enumerate(LEVELS)
        }
        image = develop(
            photograph(scene, shot, spp, seed + k, depth, glass, fast=True),
            shot,
            plan.exposure,
            seed + k,
        )
        yield Sample(image, ids, b.depth, shot.camera, texts)
