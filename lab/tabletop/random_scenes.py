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


def _surface(rng: np.random.Generator) -> tuple[str, tuple[str, ...], np.ndarray]:
    """Name, synonyms and texture of what the objects stand on."""
    pick = lambda *c: str(rng.choice(c))  # noqa: E731
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


def _wall(rng: np.random.Generator) -> tuple[str, tuple[str, ...], np.ndarray]:
    """Name, synonyms and texture of what stands behind the objects."""
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
        names = rng.choice(
            list(FAMILIES), size=int(rng.integers(4, 8) if studio else rng.integers(5, 14))
        )
        items = []
        for n in names:
            item = make(str(n), rng)
            s = rng.uniform(0.85, 1.2)
            item.leaves = [Leaf(l.mesh.scaled(s), l.material, l.path) for l in item.leaves]
            items.append(item)
    side = 0.24 + 0.022 * len(items)
    for _ in range(6):
        try:
            placed = scatter(items, side, side, rng, tries=60)
            break
        except ConfigError:
            side *= 1.15  # a crowd of large objects gets a larger table
    else:
        placed = scatter(items[:4], side, side, rng)
    name, synonyms, tex = _surface(rng)
    back, back_synonyms, wall = _wall(rng)
    forward_facing = studio or rng.random() < 0.35 and step_degrees is None
    if studio:
        sheet = paint(_backdrop(rng))
        surroundings = [
            stuff("plain background", (plane(6.0, 6.0), sheet)),
            stuff(
                "plain background",
                (plane(6.0, 3.0).rotated("x", 90).moved(0, side / 2 + 0.5, 1.4), sheet),
            ),
        ]
        synonyms = back_synonyms = ("background",)
    elif forward_facing:
        ground = stuff(
            name, (plane(4.0, 2.0, float(rng.uniform(0.7, 1.4))), textured(tex, "glossy", 0.4))
        )
        upright = stuff(
            back,
            (
                plane(4.0, 2.4, float(rng.uniform(0.7, 1.4)))
                .rotated("x", 90)
                .moved(0, side / 2 + float(rng.uniform(0.08, 0.35)), 0.8),
                textured(wall),
            ),
        )
        surroundings = [ground, upright]
    else:
        table = square_table(
            name,
            textured(tex, "glossy", 0.4),
            side + 0.45,
            side + 0.45,
            float(rng.uniform(0.9, 1.6)),
        )
        surroundings = room(
            table,
            textured(wood(rng.uniform([90, 70, 50], [200, 170, 140]), rng)),
            textured(wall),
            floor_repeat=0.6,
        )
        surroundings[2].name = back
    surroundings[0].captions = synonyms
    surroundings[1 if forward_facing else 2].captions = back_synonyms
    if step_degrees is not None:
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
        cameras = cameras[first : first + views]
    else:
        cameras = []
        for _ in range(views):
            a = np.radians(rng.uniform(-130, -50)) if forward_facing else rng.uniform(0, 2 * np.pi)
            e, r = (
                np.radians(rng.uniform(15, 58)),
                side * rng.uniform(0.7, 1.9) * (CATALOGUE_NEARER if catalogue else 1),
            )
            aim = np.array([*rng.uniform(-0.25, 0.25, 2) * side, rng.uniform(0.02, 0.09)])
            eye = aim + r * np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)])
            cameras.append(
                look_at(
                    eye,
                    aim,
                    width * rng.uniform(0.85, 1.15),
                    width,
                    height,
                    roll=float(rng.uniform(-4, 4)),
                )
            )
    shots = [Shot(f"{k:02d}.jpg", camera) for k, camera in enumerate(cameras)]
    a = rng.uniform(-np.pi, 0) if forward_facing else rng.uniform(0, 2 * np.pi)
    warm = rng.uniform(0.8, 1.0)
    power = rng.uniform(8, 15)
    light = Light(
        (float(np.cos(a)), float(np.sin(a)), float(rng.uniform(1.1, 1.7))),
        (0, 0, 0),
        float(rng.uniform(0.3, 0.9)),
        (power, power * (0.5 + warm / 2), power * warm * 0.95),
    )
    return Layout(
        f"random_{seed}",
        "lerf_ovs",
        seed,
        [*placed, *surroundings],
        shots,
        [light],
        sky=tuple(rng.uniform(0.5, 0.85) * np.array([0.95, 1, 1.08])),
        exposure=float(rng.uniform(1.2, 1.8)),
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
