"""Parametric everyday objects with parts: the families of the Tabletop benchmark.

An ``Item`` is a list of leaf meshes, each under a path whole -> part -> subpart of names.
Items stand on z = 0 with their front towards -y, sizes in metres as in life. A family is a
function of a random generator and a colour name; all shape variation comes from the generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .materials import (
    Material,
    checks,
    lettering,
    mottled,
    noise,
    paint,
    paper,
    rgb,
    stripes,
    textured,
)
from .shapes import (
    Mesh,
    arc,
    blade,
    cylinder,
    displaced,
    ellipsoid,
    extrude,
    lathe,
    merge,
    plane,
    rounded_box,
    smooth_profile,
    torus,
    tube,
)

FAMILIES: dict[str, Family] = {}


@dataclass(frozen=True)
class Leaf:
    """One shape of the renderer and its place in the hierarchy."""

    mesh: Mesh
    material: Material
    # () | (part,) | (part, subpart); names may carry "#n" to tell instances apart
    path: tuple[str, ...]


@dataclass
class Item:
    """An object in its own frame. ``name`` is its query text at the whole level."""

    name: str
    family: str = ""
    captions: tuple[str, ...] = ()
    leaves: list[Leaf] = field(default_factory=list)
    stuff: bool = False
    colour: str = ""

    def add(
        self, mesh: Mesh, material: Material, part: str | None = None, subpart: str | None = None
    ) -> Item:
        """Add a shape. A leading "_" keeps a name out of the queries; "#n" separates instances."""
        self.leaves.append(Leaf(mesh, material, tuple(p for p in (part, subpart) if p)))
        return self

    def transformed(self, M: np.ndarray) -> Item:
        leaves = [Leaf(l.mesh.transformed(M), l.material, l.path) for l in self.leaves]
        return Item(self.name, self.family, self.captions, leaves, self.stuff, self.colour)

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:  # [n, 3]
        """Points on the surface of the whole object."""
        return merge(*(l.mesh for l in self.leaves)).sample(n, rng)


@dataclass(frozen=True)
class Family:
    name: str
    make: Callable[..., Item]
    colours: tuple[str, ...]  # what random scenes may choose from


def family(name: str, *colours: str):
    """Register a family and the colours that random scenes may give it."""

    def wrap(fn):
        def make(rng: np.random.Generator, colour: str | None = None, **kw) -> Item:
            colour = colour or (str(rng.choice(colours)) if colours else "")
            item = fn(rng, colour, **kw)
            item.family, item.colour = name, colour
            return item

        FAMILIES[name] = Family(name, make, colours)
        return fn

    return wrap


def make(family_name: str, rng: np.random.Generator, colour: str | None = None, **kw) -> Item:
    """One object of a family. Raises KeyError for an unknown family."""
    return FAMILIES[family_name].make(rng, colour, **kw)


def _plush(rng, colour, strength=0.10) -> Material:
    return textured(
        mottled(colour, rng, strength, 14),
        colour=colour if isinstance(colour, str) else "",
        name="plush",
    )


def _vary(rng, x: float, by: float = 0.08) -> float:
    return x * (1 + rng.uniform(-by, by))


# ---------------------------------------------------------------- soft toys and figures


@family("bear", "brown", "white", "beige", "grey")
def bear(rng, colour, height: float = 0.22) -> Item:
    o = Item("stuffed bear", captions=("teddy bear", "plush bear", f"{colour} teddy bear"))
    fur, light = _plush(rng, colour), _plush(rng, np.clip(rgb(colour) * 1.25 + 28, 0, 240))
    dark = paint((38, 27, 24), "glossy", 0.12)
    s = height / 0.22
    body = _vary(rng, 1.0, 0.06)
    o.add(ellipsoid(0.056 * body, 0.050 * body, 0.062).moved(0, 0, 0.066), fur, "_bear body")
    o.add(
        ellipsoid(0.037, 0.02, 0.042).moved(0, -0.034 * body, 0.064),
        light,
        "_bear body",
        "bear belly",
    )
    for k, x in enumerate((-1, 1), 1):
        leg = ellipsoid(0.026, 0.046, 0.026).rotated("z", x * 22).moved(x * 0.044, -0.052, 0.027)
        pad = ellipsoid(0.017, 0.007, 0.017).rotated("z", x * 22).moved(x * 0.0605, -0.094, 0.027)
        arm = (
            ellipsoid(0.020, 0.021, 0.043)
            .rotated("y", -x * 38)
            .rotated("x", 24)
            .moved(x * 0.063, -0.02, 0.088)
        )
        o.add(leg, fur, f"bear leg#{k}")
        o.add(pad, light, f"bear leg#{k}", f"bear paw#{k}")
        o.add(arm, fur, f"bear arm#{k}")
        o.add(
            ellipsoid(0.017, 0.010, 0.017).rotated("y", x * 8).moved(x * 0.036, 0.0, 0.199),
            fur,
            "bear head",
            f"bear ear#{k}",
        )
        o.add(
            ellipsoid(0.0115, 0.006, 0.0115).moved(x * 0.036, -0.0065, 0.199),
            light,
            "bear head",
            f"bear ear#{k}",
        )
        o.add(
            ellipsoid(0.0055, 0.004, 0.006).moved(x * 0.0175, -0.042, 0.174),
            dark,
            "bear head",
            f"_bear eye#{k}",
        )
    o.add(ellipsoid(0.047, 0.043, 0.043).moved(0, -0.004, 0.163), fur, "bear head")
    o.add(ellipsoid(0.026, 0.022, 0.019).moved(0, -0.038, 0.153), light, "bear head", "bear muzzle")
    o.add(ellipsoid(0.0125, 0.0095, 0.009).moved(0, -0.058, 0.161), dark, "bear head", "bear nose")
    o.leaves = [Leaf(l.mesh.scaled(s), l.material, l.path) for l in o.leaves]
    return o


@family("elephant", "grey", "light blue", "pink")
def elephant(rng, colour) -> Item:
    o = Item("toy elephant", captions=("elephant figurine", f"{colour} toy elephant"))
    skin = textured(mottled(colour, rng, 0.08), "glossy", 0.3, colour, "plastic")
    inner = paint((224, 158, 160))
    o.add(ellipsoid(0.042, 0.058, 0.042).moved(0, 0.01, 0.072), skin, "_elephant body")
    for k, (x, y) in enumerate(((-1, -1), (1, -1), (-1, 1), (1, 1)), 1):
        o.add(
            cylinder(0.0165, 0.055, 0.0145, 0.004).moved(x * 0.024, 0.01 + y * 0.034, 0),
            skin,
            f"elephant leg#{k}",
        )
    o.add(ellipsoid(0.033, 0.032, 0.034).moved(0, -0.056, 0.098), skin, "elephant head")
    path = np.array(
        [
            [0, -0.08, 0.095],
            [0, -0.098, 0.082],
            [0, -0.106, 0.06],
            [0, -0.108, 0.04],
            [0, -0.118, 0.026],
            [0, -0.132, 0.03],
        ]
    )
    t = np.linspace(0, 1, 24)
    path = np.stack([np.interp(t, np.linspace(0, 1, 6), path[:, k]) for k in range(3)], -1)
    o.add(tube(path, np.linspace(0.0145, 0.007, 24)), skin, "elephant head", "elephant trunk")
    for k, x in enumerate((-1, 1), 1):
        ear = ellipsoid(0.031, 0.006, 0.034).rotated("z", -x * 25)
        o.add(ear.moved(x * 0.046, -0.045, 0.102), skin, "elephant head", f"elephant ear#{k}")
        o.add(
            ear.scaled(0.75).moved(x * 0.0455, -0.0492, 0.102),
            inner,
            "elephant head",
            f"elephant ear#{k}",
        )
        o.add(
            ellipsoid(0.004, 0.003, 0.005).moved(x * 0.015, -0.0845, 0.111),
            paint("black", "glossy"),
            "elephant head",
            f"_elephant eye#{k}",
        )
    return o


@family("duck", "yellow", "pink", "light blue")
def duck(rng, colour) -> Item:
    o = Item("rubber duck", captions=("bath duck", f"{colour} rubber duck"))
    body = paint(colour, "glossy", 0.2, "rubber")
    beak = paint((226, 104, 24), "glossy", 0.2, "rubber")
    o.add(ellipsoid(0.040, 0.050, 0.032).moved(0, 0.0, 0.032), body, "_duck body")
    o.add(
        ellipsoid(0.016, 0.022, 0.012).rotated("x", -42).moved(0, 0.048, 0.05),
        body,
        "_duck body",
        "duck tail",
    )
    for k, x in enumerate((-1, 1), 1):
        o.add(
            ellipsoid(0.010, 0.028, 0.018).rotated("x", -14).moved(x * 0.037, 0.008, 0.039),
            body,
            "_duck body",
            f"duck wing#{k}",
        )
        o.add(
            ellipsoid(0.0045, 0.004, 0.0055).moved(x * 0.013, -0.0505, 0.084),
            paint("black", "glossy"),
            "duck head",
            f"_duck eye#{k}",
        )
    o.add(ellipsoid(0.028, 0.028, 0.027).moved(0, -0.026, 0.078), body, "duck head")
    o.add(
        merge(
            ellipsoid(0.014, 0.016, 0.0045).moved(0, -0.057, 0.077),
            ellipsoid(0.011, 0.012, 0.004).moved(0, -0.054, 0.070),
        ),
        beak,
        "duck head",
        "duck beak",
    )
    return o


@family("snowman", "white")
def snowman(rng, colour) -> Item:
    o = Item("snowman figurine", captions=("toy snowman",))
    snow, coal = paint((232, 234, 238), "glossy", 0.4, "ceramic"), paint("black")
    scarf = str(rng.choice(["red", "blue", "green"]))
    o.add(ellipsoid(0.042, 0.042, 0.040).moved(0, 0, 0.038), snow, "_snowman body")
    o.add(ellipsoid(0.028).moved(0, 0, 0.094), snow, "snowman head")
    o.add(
        torus(0.024, 0.007).moved(0, 0, 0.076),
        paint(scarf, name="wool"),
        "_snowman body",
        "snowman scarf",
    )
    hat = merge(
        cylinder(0.030, 0.004, bevel=0.001).moved(0, 0, 0.114),
        cylinder(0.019, 0.026, bevel=0.002).moved(0, 0, 0.116),
    )
    o.add(hat, paint((44, 42, 48)), "snowman head", "snowman hat")
    o.add(
        lathe([(0, 0), (0.006, 0), (0.0, 0.026)]).rotated("x", 90).moved(0, -0.026, 0.094),
        paint("orange"),
        "snowman head",
        "carrot nose",
    )
    eyes = [ellipsoid(0.0035).moved(x * 0.0105, -0.0245, 0.102) for x in (-1, 1)]
    o.add(merge(*eyes), coal, "snowman head", "_snowman eyes")
    o.add(
        merge(
            *(ellipsoid(0.0042).moved(0, -0.0405 + 0.002 * k, 0.034 + 0.015 * k) for k in range(2))
        ),
        coal,
        "_snowman body",
        "_snowman buttons",
    )
    return o


@family("chess", "white", "black")
def chess(rng, colour, piece: str | None = None) -> Item:
    piece = piece or str(rng.choice(["pawn", "king", "bishop"]))
    o = Item(f"{colour} chess piece", captions=(f"{colour} chess {piece}", f"chess {piece}"))
    m = paint((222, 200, 160) if colour == "white" else (46, 34, 30), "glossy", 0.15, "wood")
    k = {"pawn": 0.75, "bishop": 0.95, "king": 1.1}[piece]
    base = smooth_profile(
        [(0.021, 0.006), (0.0185, 0.012), (0.012, 0.020), (0.0085, 0.036 * k), (0.008, 0.056 * k)],
        26,
    )
    o.add(lathe([(0, 0), (0.021, 0), *base, (0, 0.056 * k)]), m, "_chess base")
    z = 0.056 * k
    o.add(merge(cylinder(0.0145, 0.005, bevel=0.002).moved(0, 0, z - 0.002)), m, "_chess base")
    if piece == "pawn":
        o.add(ellipsoid(0.0135).moved(0, 0, z + 0.012), m, "_chess head")
    elif piece == "bishop":
        o.add(ellipsoid(0.012, 0.012, 0.019).moved(0, 0, z + 0.018), m, "_chess head")
        o.add(ellipsoid(0.004).moved(0, 0, z + 0.039), m, "_chess head")
    else:
        o.add(
            lathe([(0, z), (0.010, z), (0.0155, z + 0.022), (0.012, z + 0.026), (0, z + 0.028)]),
            m,
            "_chess head",
        )
        o.add(
            merge(
                rounded_box(0.005, 0.004, 0.018, 0.001).moved(0, 0, z + 0.026),
                rounded_box(0.015, 0.004, 0.005, 0.001).moved(0, 0, z + 0.034),
            ),
            m,
            "_chess head",
            "chess king cross",
        )
    return o


# ---------------------------------------------------------------- crockery, drinks, food


@family("mug", "white", "blue", "turquoise", "red", "yellow", "cream")
def mug(rng, colour, drink: str | None = None, name: str | None = None) -> Item:
    drink = drink or str(rng.choice(["tea", "coffee"]))
    o = Item(name or f"{drink} mug", captions=("mug", f"{colour} mug", "cup"))
    r, h = _vary(rng, 0.041), _vary(rng, 0.092)
    glaze = paint(colour, "glossy", 0.12, "ceramic")
    a = np.linspace(0, np.pi, 7)
    lip = [(r - 0.002 + 0.002 * np.cos(x), h - 0.002 + 0.002 * np.sin(x)) for x in a]
    o.add(
        lathe(
            [
                (0, 0),
                (r * 0.86, 0),
                (r * 0.97, 0.008),
                (r, 0.02),
                *lip,
                (r - 0.004, 0.01),
                (0, 0.009),
            ]
        ),
        glaze,
        "_mug body",
    )
    band = lathe([(r + 0.0004, h * 0.36), (r + 0.0004, h * 0.62)])
    tone = rgb("white") if rgb(colour).mean() < 150 else rgb("dark blue")
    o.add(band, textured(stripes(tone, colour, 3), "glossy", 0.12), "_mug body", "_mug stripes")
    o.add(
        tube(
            arc(0.026, 85, -85, 22).dot(np.diag([0.95, 1, 1.12])) + [r - 0.003, 0, h * 0.52], 0.0058
        ),
        glaze,
        "mug handle",
    )
    liquid = {"tea": (150, 74, 22), "coffee": (62, 36, 22)}[drink]
    level = h * 0.84
    o.add(
        lathe([(r - 0.0041, level), (0, level)]),
        paint(liquid, "glossy", 0.06, "liquid"),
        f"{drink} in a mug",
    )
    return o


@family("glass", "")
def glass(rng, colour, drink: str | None = None) -> Item:
    drink = drink or str(rng.choice(["water", "orange juice"]))
    o = Item(f"glass of {drink}", captions=("drinking glass", f"a glass with {drink}"))
    h = _vary(rng, 0.115)
    clear = np.full((64, 8, 3), 26, np.uint8)  # opacity: glass is seen by its rim and foot
    clear[:7], clear[-4:] = 90, 150
    o.add(
        lathe([(0.028, 0.001), (0.036, h)]),
        textured(clear, "glass", 0.06, name="glass"),
        "_drinking glass",
    )
    liquid = {"water": (176, 206, 222), "orange juice": (238, 152, 20)}[drink]
    o.add(
        lathe([(0, 0.005), (0.0272, 0.005), (0.0325, h * 0.66), (0, h * 0.66)]),
        paint(liquid, "glossy", 0.06, "liquid"),
        f"{drink}",
    )
    return o


@family("apple", "red", "green", "yellow")
def apple(rng, colour) -> Item:
    o = Item(f"{colour} apple", captions=("apple",))
    s = _vary(rng, 0.038, 0.05)
    other = {"red": (214, 130, 40), "green": (190, 196, 70), "yellow": (226, 150, 50)}[colour]
    base, blush = rgb(colour), rgb(other)
    w = np.clip(0.32 + 0.5 * noise((128, 128), (4, 5), rng), 0, 0.75)[..., None] * 0.7
    skin = np.clip(base * (1 - w) + blush * w, 0, 255).astype(np.uint8)
    prof = smooth_profile(
        [
            (0.0, 0.16),
            (0.38, 0.02),
            (0.72, 0.3),
            (1.0, 1.0),
            (0.86, 1.62),
            (0.42, 1.84),
            (0.12, 1.66),
            (0.0, 1.52),
        ],
        44,
    )
    o.add(lathe(prof * s, crease=80), textured(skin, "glossy", 0.18, colour, "fruit skin"))
    stem = np.array([[0, 0, 1.5], [0.03, 0.02, 1.8], [0.12, 0.03, 2.06]]) * s
    o.add(tube(stem, [0.05 * s, 0.045 * s, 0.07 * s], 8), paint((88, 58, 34)), "apple stem")
    leaf = (
        blade(1.0 * s, 0.46 * s, 0.5 * s, 0.35 * s)
        .rotated("z", float(rng.uniform(0, 360)))
        .moved(0.06 * s, 0, 1.86 * s)
    )
    o.add(leaf, paint((74, 126, 42)), "apple leaf")
    return o


@family("lemon", "yellow", "green")
def lemon(rng, colour) -> Item:
    name = {"yellow": "lemon", "green": "lime"}[colour]
    o = Item(name, captions=("citrus fruit",))
    prof = smooth_profile(
        [
            (0, 0),
            (0.006, 0.003),
            (0.013, 0.010),
            (0.027, 0.026),
            (0.0285, 0.042),
            (0.021, 0.06),
            (0.009, 0.071),
            (0.006, 0.077),
            (0, 0.079),
        ],
        36,
    )
    m = displaced(lathe(prof, crease=80).moved(0, 0, -0.04), 0.0005, 0.006, int(rng.integers(1e6)))
    o.add(
        m.rotated("x", 84).rotated("z", float(rng.uniform(-40, 40))).moved(0, 0, 0.0285),
        textured(mottled(colour, rng, 0.06), "glossy", 0.3, colour, "fruit skin"),
    )
    return o


@family("banana", "yellow", "green")
def banana(rng, colour) -> Item:
    o = Item("banana", captions=(f"{colour} banana", "fruit"))
    n = 30
    p = arc(0.105, -38, 48, n, "xy") - [0.09, 0.0, 0]
    r = 0.0175 * np.clip(np.sin(np.linspace(0.28, np.pi - 0.22, n)) * 1.5, 0, 1)
    skin = np.clip(np.array(mottled(colour, rng, 0.05, 8), float), 0, 255)
    o.add(
        tube(p[1:-2], r[1:-2], 7),
        textured(skin.astype(np.uint8), "matte", colour=colour, name="fruit skin"),
    )
    o.add(
        tube(
            p[-3:] + [[0, 0, 0], [-0.001, 0.004, 0], [-0.003, 0.014, 0.001]],
            [0.0062, 0.0048, 0.0052],
            8,
        ),
        paint((126, 104, 44)),
        "banana stem",
    )
    o.add(
        tube(p[:2] + [[-0.0005, -0.002, 0], [0, 0, 0]], [0.0045, 0.0055], 8),
        paint((66, 48, 28)),
        "_banana tip",
    )
    o.leaves = [Leaf(l.mesh.moved(0, 0, 0.0176), l.material, l.path) for l in o.leaves]
    return o


@family("cookies", "white", "light blue", "cream")
def cookies(rng, colour, count: int = 3) -> Item:
    o = Item("plate of cookies", captions=("cookies on a plate", "biscuits on a plate"))
    o.add(
        lathe(
            [
                (0, 0),
                (0.045, 0),
                (0.052, 0.004),
                (0.082, 0.013),
                (0.0835, 0.0145),
                (0.082, 0.016),
                (0.052, 0.0075),
                (0, 0.0062),
            ]
        ),
        paint(colour, "glossy", 0.12, "ceramic"),
        "plate",
    )
    dough = textured(mottled((200, 146, 82), rng, 0.14, 10), name="dough")
    spots = [(-0.026, -0.014, 0), (0.028, -0.01, 0), (0.0, 0.03, 0), (0.004, 0.002, 1)][:count]
    for k, (x, y, up) in enumerate(spots, 1):
        c = displaced(
            lathe(
                [(0, 0), (0.021, 0), (0.026, 0.004), (0.0235, 0.009), (0.012, 0.0115), (0, 0.012)],
                crease=80,
            ),
            0.0006,
            0.012,
            int(rng.integers(1e6)),
        )
        z = 0.0078 + 0.0125 * up
        o.add(c.moved(x, y, z), dough, f"cookie#{k}")
        chips = []
        for a in range(6):
            t, q = a * 2.4 + rng.uniform(0, 0.6), 0.004 + 0.0026 * a
            chips.append(
                ellipsoid(0.0036, 0.0036, 0.0026, 12).moved(
                    x + q * np.cos(t), y + q * np.sin(t), z + 0.0118 - 0.12 * q
                )
            )
        o.add(
            merge(*chips), paint((58, 34, 24), "glossy", 0.3), f"cookie#{k}", f"chocolate chips#{k}"
        )
    return o


@family("donut", "pink", "brown", "white")
def donut(rng, colour) -> Item:
    o = Item("donut", captions=(f"{colour} donut", "doughnut"))
    R, r = 0.030, 0.0165
    o.add(
        torus(R, r).scaled(1, 1, 0.88).moved(0, 0, r * 0.88),
        textured(mottled((206, 150, 88), rng, 0.08), name="dough"),
        "_donut dough",
    )
    a = np.linspace(np.radians(8), np.radians(172), 16)
    wave = 0.0
    top = [
        ((R + (r + 0.0012) * np.cos(x)), 0.0145 + wave + (r * 0.88 + 0.0014) * np.sin(x)) for x in a
    ]
    icing = lathe(top, 60, 80)
    th = np.arctan2(icing.vertices[:, 1], icing.vertices[:, 0])
    low = np.clip((0.021 - icing.vertices[:, 2]) / 0.008, 0, 1)
    v = icing.vertices.copy()
    v[:, 2] += low * 0.0024 * np.cos(7 * th)
    o.add(
        Mesh(v, icing.faces, icing.normals, icing.uv),
        paint(colour, "glossy", 0.16, "icing"),
        "icing",
    )
    bits = []
    for k in range(34):
        t, x = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(35, 145))
        q = R + (r + 0.0018) * np.cos(x)
        c = np.array([q * np.cos(t), q * np.sin(t), 0.0147 + (r * 0.88 + 0.0018) * np.sin(x)])
        d = np.array([np.cos(t * 7 + k), np.sin(t * 7 + k), 0]) * 0.0028
        bits.append((tube([c - d, c, c + d], 0.0012, 6), k % 4))
    for c, col in enumerate(("yellow", "turquoise", "red", "white")):
        o.add(merge(*(b for b, k in bits if k == c)), paint(col, "glossy"), "icing", "sprinkles")
    return o


@family("bowl", "blue", "white", "turquoise", "dark blue")
def bowl(rng, colour, fill: str | None = None) -> Item:
    fill = fill or str(rng.choice(["cherries", "oranges"]))
    o = Item(f"bowl of {fill}", captions=(f"{fill} in a bowl", f"{colour} bowl"))
    out = smooth_profile([(0.035, 0.006), (0.055, 0.022), (0.072, 0.046), (0.078, 0.062)], 20)
    inn = smooth_profile([(0.0755, 0.0625), (0.069, 0.046), (0.050, 0.023), (0.0, 0.010)], 20)
    o.add(
        lathe([(0, 0), (0.035, 0), *out, *inn]),
        paint(colour, "glossy", 0.12, "ceramic"),
        "_fruit bowl",
    )
    if fill == "oranges":
        spots = [(0.029, 0.0), (-0.029, 0.003), (0.002, 0.033), (0.0, -0.034)]
        for k, (x, y) in enumerate(spots, 1):
            m = displaced(ellipsoid(0.0268, n=40), 0.0003, 0.004, int(rng.integers(1e6)))
            o.add(
                m.moved(x, y, 0.056 + 0.004 * (k > 2)),
                textured(mottled("orange", rng, 0.05, 20), "glossy", 0.3, "orange", "fruit skin"),
                f"orange#{k}",
            )
            o.add(
                ellipsoid(0.004, 0.004, 0.0016, 12).moved(x, y, 0.0825 + 0.004 * (k > 2)),
                paint((72, 104, 40)),
                f"orange#{k}",
                "_orange stem",
            )
    else:
        k = 0
        for ring, (q, z, n) in enumerate(
            ((0.049, 0.056, 10), (0.028, 0.064, 7), (0.0, 0.072, 1)), 1
        ):
            for a in range(n):
                k += 1
                t = 2 * np.pi * a / max(n, 1) + ring + rng.uniform(-0.08, 0.08)
                c = np.array([q * np.cos(t), q * np.sin(t), z + rng.uniform(-0.001, 0.001)])
                o.add(
                    ellipsoid(0.0135, n=24).moved(*c),
                    paint((146, 14, 34), "glossy", 0.08, "fruit skin"),
                    "cherries",
                )
                top = np.array(
                    [
                        c + [0, 0, 0.012],
                        c + [0.004, 0.002, 0.026],
                        c + [0.012 * np.cos(5 * t), 0.012 * np.sin(5 * t), 0.036],
                    ]
                )
                o.add(tube(top, 0.0009, 6), paint((92, 118, 44)), "cherries", "cherry stems")
    return o


@family("teapot", "white", "turquoise", "dark green", "cream")
def teapot(rng, colour) -> Item:
    o = Item("teapot", captions=(f"{colour} teapot", "tea pot"))
    glaze = paint(colour, "glossy", 0.1, "ceramic")
    w = _vary(rng, 0.066, 0.05)
    prof = smooth_profile(
        [(0.040, 0.004), (w * 0.93, 0.028), (w, 0.052), (w * 0.84, 0.082), (0.034, 0.100)], 30
    )
    o.add(lathe([(0, 0), (0.040, 0), *prof, (0.030, 0.1005), (0, 0.0985)]), glaze, "_teapot body")
    o.add(
        lathe(
            [
                (0.036, 0.0995),
                (0.036, 0.103),
                *smooth_profile([(0.034, 0.104), (0.024, 0.112), (0.006, 0.117)], 10),
                (0, 0.117),
            ]
        ),
        glaze,
        "teapot lid",
    )
    o.add(
        ellipsoid(0.0095, 0.0095, 0.0105).moved(0, 0, 0.125),
        paint("gold", "metal", 0.25),
        "teapot lid",
        "lid knob",
    )
    sp = np.array(
        [
            [-w * 0.86, 0, 0.045],
            [-w - 0.018, 0, 0.056],
            [-w - 0.030, 0, 0.080],
            [-w - 0.047, 0, 0.102],
        ]
    )
    t = np.linspace(0, 3, 20)
    sp = np.stack([np.interp(t, np.arange(4), sp[:, k]) for k in range(3)], -1)
    sp = (
        np.pad(sp, ((2, 2), (0, 0)), "edge")[:-4]
        + np.pad(sp, ((2, 2), (0, 0)), "edge")[4:]
        + 2 * sp
    ) / 4
    o.add(tube(sp, np.linspace(0.017, 0.0085, 20), 18), glaze, "teapot spout")
    o.add(
        tube(arc(0.034, 95, -95, 24).dot(np.diag([1.05, 1, 1])) + [w * 0.92, 0, 0.058], 0.0062),
        glaze,
        "teapot handle",
    )
    o.add(
        lathe([(w * 1.002, 0.046), (w * 1.004, 0.052), (w * 0.998, 0.057)]).scaled(1.004),
        paint("gold", "metal", 0.3),
        "_teapot body",
        "_gold rim",
    )
    return o


@family("icecream", "pink", "cream", "brown", "turquoise")
def icecream(rng, colour) -> Item:
    o = Item(f"{colour} ice cream", captions=("ice cream sundae", "ice cream in a cup"))
    cup = paint("light blue", "glossy", 0.1, "ceramic")
    o.add(
        lathe(
            [
                (0, 0),
                (0.028, 0),
                (0.026, 0.004),
                (0.008, 0.012),
                (0.007, 0.024),
                (0.022, 0.034),
                (0.038, 0.058),
                (0.036, 0.058),
                (0.02, 0.038),
                (0, 0.034),
            ]
        ),
        cup,
        "sundae cup",
    )
    o.add(
        displaced(ellipsoid(0.033, 0.033, 0.029, 40), 0.0009, 0.012, int(rng.integers(1e6))).moved(
            0, 0, 0.066
        ),
        textured(mottled(colour, rng, 0.07), colour=colour, name="ice cream"),
        "_ice cream scoop",
    )
    o.add(ellipsoid(0.0105).moved(0, 0, 0.1025), paint((176, 16, 36), "glossy", 0.08), "cherry")
    o.add(
        tube(
            np.array([[0.002, -0.012, 0.07], [0.016, -0.006, 0.11], [0.03, 0, 0.145]])
            + [0.01, 0.012, 0],
            0.0042,
            12,
        ),
        textured(stripes("brown", (206, 150, 92), 14)),
        "wafer stick",
    )
    return o


@family("pumpkin", "orange", "white")
def pumpkin(rng, colour) -> Item:
    o = Item("pumpkin", captions=(f"{colour} pumpkin", "small pumpkin"))
    m = lathe(
        smooth_profile(
            [
                (0, 0.008),
                (0.030, 0.0),
                (0.062, 0.022),
                (0.066, 0.045),
                (0.044, 0.074),
                (0.012, 0.076),
                (0, 0.068),
            ],
            40,
        ),
        90,
        80,
    )
    th = np.arctan2(m.vertices[:, 1], m.vertices[:, 0])
    f = 1 - 0.10 * np.abs(np.cos(5 * th)) ** 6
    v = m.vertices * np.stack([f, f, np.ones_like(f)], -1)
    o.add(
        Mesh(v, m.faces, m.normals, m.uv).with_normals(),
        textured(mottled(colour, rng, 0.06), "glossy", 0.4, colour),
    )
    o.add(
        tube([[0, 0, 0.066], [0.001, 0, 0.082], [0.008, 0.002, 0.096]], [0.011, 0.007, 0.008], 8),
        paint((108, 112, 58)),
        "pumpkin stem",
    )
    return o


@family("mushroom", "red", "brown")
def mushroom(rng, colour) -> Item:
    o = Item("toy mushroom", captions=("toadstool", f"{colour} mushroom"))
    o.add(
        lathe(
            [(0, 0), *smooth_profile([(0.021, 0), (0.017, 0.02), (0.014, 0.055)], 14), (0, 0.055)]
        ),
        paint((234, 222, 198)),
        "mushroom stem",
    )
    o.add(
        lathe(
            smooth_profile(
                [(0.012, 0.048), (0.040, 0.046), (0.044, 0.056), (0.032, 0.078), (0.0, 0.090)], 30
            ),
            crease=70,
        ),
        paint(colour, "glossy", 0.25),
        "mushroom cap",
    )
    for k in range(9):
        t, e = k * 2.4, 0.25 + 0.13 * k
        c = np.array(
            [
                0.0425 * np.cos(t) * np.cos(e),
                0.0425 * np.sin(t) * np.cos(e),
                0.052 + 0.0375 * np.sin(e),
            ]
        )
        o.add(
            ellipsoid(0.0058, 0.0058, 0.0036, 14).moved(*c),
            paint((240, 236, 226)),
            "mushroom cap",
            "white spots",
        )
    return o


# ---------------------------------------------------------------- desk, kitchen and living room


@family("camera", "black", "brown", "silver")
def camera(rng, colour) -> Item:
    o = Item("old camera", captions=("camera", "film camera", f"{colour} camera"))
    skin = textured(
        mottled((44, 42, 44) if colour != "brown" else (112, 66, 40), rng, 0.16, 26),
        "glossy",
        0.4,
        colour,
        "leather",
    )
    steel, dark = paint("silver", "metal", 0.3, "steel"), paint("black", "glossy", 0.2)
    w, d, h = 0.124, 0.038, 0.060
    o.add(rounded_box(w, d, h, 0.007).moved(0, 0, 0), skin, "_camera body")
    o.add(rounded_box(w, d, 0.017, 0.006).moved(0, 0, h - 0.004), steel, "camera top plate")
    o.add(
        rounded_box(0.040, 0.030, 0.018, 0.005).moved(0, 0, h + 0.008),
        steel,
        "camera top plate",
        "camera viewfinder",
    )
    o.add(
        rounded_box(0.022, 0.004, 0.010, 0.001).moved(0, -0.0145, h + 0.012),
        paint((52, 66, 84), "glossy", 0.05),
        "camera top plate",
        "camera viewfinder",
    )
    for k, (x, r) in enumerate(((0.044, 0.0085), (-0.044, 0.010)), 1):
        o.add(
            cylinder(r, 0.008, bevel=0.0015).moved(x, 0, h + 0.013),
            steel,
            "camera top plate",
            f"camera dial#{k}",
        )
    o.add(
        ellipsoid(0.004, 0.004, 0.003).moved(0.028, -0.004, h + 0.014),
        paint("red", "glossy"),
        "camera top plate",
        "shutter button",
    )
    L = lambda prof: lathe(prof).rotated("x", 90).moved(0, -d / 2 + 0.001, h * 0.52)
    o.add(
        L(
            [
                (0.029, 0),
                (0.029, 0.010),
                (0.026, 0.011),
                (0.026, 0.030),
                (0.0245, 0.032),
                (0.019, 0.032),
                (0.016, 0.026),
            ]
        ),
        dark,
        "camera lens",
    )
    o.add(
        L([(0.0292, 0.003), (0.0298, 0.004), (0.0298, 0.008), (0.0292, 0.009)]),
        steel,
        "camera lens",
        "_lens ring",
    )
    o.add(
        L([(0.017, 0.026), (0.011, 0.0285), (0, 0.0295)]),
        paint((38, 40, 78), "glossy", 0.04, "glass"),
        "camera lens",
        "lens glass",
    )
    return o


@family("plant", "copper", "white", "turquoise", "grey")
def plant(rng, colour) -> Item:
    o = Item("potted plant", captions=("house plant", "plant in a pot"))
    o.add(
        lathe(
            [
                (0, 0),
                (0.032, 0),
                (0.042, 0.062),
                (0.046, 0.062),
                (0.047, 0.074),
                (0.043, 0.075),
                (0.041, 0.066),
                (0, 0.066),
            ]
        ),
        textured(
            mottled((186, 104, 68) if colour == "copper" else colour, rng, 0.06),
            colour=colour if colour != "copper" else "",
            name="clay",
        ),
        "plant pot",
    )
    o.add(
        displaced(lathe([(0.0415, 0.067), (0.02, 0.070), (0, 0.071)]), 0.001, 0.012, 5),
        textured(mottled((74, 54, 40), rng, 0.3, 24), name="soil"),
        "_soil",
    )
    n = 15
    for k in range(n):
        t = np.degrees(k * 2.3999) + rng.uniform(-8, 8)
        f = k / n
        lift, length = 0.035 + 0.105 * f, 0.098 - 0.035 * f
        leaf = (
            blade(length, 0.036 - 0.008 * f, lift, 0.045 * (1 - f) + 0.01)
            .rotated("z", t)
            .moved(0, 0, 0.07)
        )
        g = np.clip(np.array([66, 128, 48]) * rng.uniform(0.8, 1.2), 0, 255)
        o.add(leaf, paint(tuple(g), "glossy", 0.4, "leaf"), "plant leaves")
    return o


@family("cactus", "green", "dark green")
def cactus(rng, colour) -> Item:
    o = Item("cactus", captions=("cactus in a pot", "succulent"))
    pot = str(rng.choice(["white", "yellow", "grey"]))
    o.add(cylinder(0.030, 0.05, 0.036, 0.003), paint(pot, "glossy", 0.2, "ceramic"), "cactus pot")

    def ribbed(r, h, n=9):
        m = lathe(
            [
                *smooth_profile(
                    [(r * 0.8, 0), (r, h * 0.4), (r * 0.9, h * 0.8), (r * 0.45, h * 0.97), (0, h)],
                    26,
                )
            ],
            72,
            80,
        )
        f = 1 - 0.09 * np.abs(np.sin(n / 2 * np.arctan2(m.vertices[:, 1], m.vertices[:, 0]))) ** 0.8
        return Mesh(
            m.vertices * np.stack([f, f, np.ones_like(f)], -1), m.faces, m.normals, m.uv
        ).with_normals()

    body = paint((72, 130, 66) if colour == "green" else colour, "matte", name="plant")
    o.add(ribbed(0.024, 0.10).moved(0, 0, 0.046), body, "_cactus body")
    for x, z, q in ((1, 0.082, 0.042), (-1, 0.096, 0.034)):
        o.add(
            tube(
                [
                    [x * 0.018, 0, z],
                    [x * 0.034, 0, z + 0.002],
                    [x * 0.042, 0, z + 0.01],
                    [x * 0.043, 0, z + q],
                ],
                0.0095,
                12,
            ),
            body,
            "_cactus body",
            "cactus arms",
        )
    o.add(
        merge(
            *(
                ellipsoid(0.010, 0.004, 0.003, 12)
                .moved(0.008, 0, 0)
                .rotated("y", -35)
                .rotated("z", a)
                .moved(0, 0, 0.146)
                for a in range(0, 360, 60)
            )
        ),
        paint((232, 84, 128)),
        "cactus flower",
    )
    return o


@family("vase", "blue", "white", "purple")
def vase(rng, colour) -> Item:
    o = Item("vase of flowers", captions=("flowers in a vase", f"{colour} vase"))
    prof = smooth_profile(
        [(0.026, 0.003), (0.040, 0.035), (0.034, 0.07), (0.017, 0.10), (0.024, 0.125)], 34
    )
    o.add(
        lathe([(0, 0), (0.026, 0), *prof, (0.0215, 0.125), (0.014, 0.10), (0, 0.09)]),
        paint(colour, "glossy", 0.1, "ceramic"),
        "vase",
    )
    for k in range(5):
        a = np.radians(72 * k + rng.uniform(-15, 15))
        d = np.array([np.cos(a), np.sin(a), 0]) * (0.038 + 0.01 * (k % 2))
        top = d + [0, 0, 0.19 + 0.022 * (k % 3)]
        o.add(
            tube([[0, 0, 0.095], d * 0.2 + [0, 0, 0.135], top], 0.0022, 8),
            paint((74, 122, 52)),
            "_flowers",
            "_flower stem",
        )
        col = ("red", "yellow", "pink")[k % 3]
        petals = merge(
            *(
                ellipsoid(0.014, 0.0085, 0.0028, 14)
                .moved(0.0145, 0, 0)
                .rotated("y", -18)
                .rotated("z", q)
                for q in range(0, 360, 45)
            )
        )
        tilt = lambda m: m.rotated("y", 42).rotated("z", np.degrees(a)).moved(*top)
        o.add(tilt(petals), paint(col), f"{col} flower#{k}", f"_petals#{k}")
        o.add(
            tilt(ellipsoid(0.0085, 0.0085, 0.005, 16)),
            paint((120, 74, 24) if col != "pink" else (232, 190, 60)),
            f"{col} flower#{k}",
            "flower centre" + f"#{k}",
        )
    return o


@family("book", "dark blue", "red", "dark green", "purple", "orange")
def book(rng, colour, title: str | None = None, size=(0.135, 0.195, 0.028)) -> Item:
    title = title or str(rng.choice(["ATLAS", "POEMS", "FABLES", "OPTICS", "COOKING", "BIRDS"]))
    o = Item(f"{colour} book", captions=("book", "closed book", f"book titled {title.lower()}"))
    w, d, h = (_vary(rng, s, 0.06) for s in size)
    cover = lettering(title, colour, "gold", (256, 192), scale=0.78)
    cover[[6, 7, -8, -7]] = rgb("gold")
    cover[:, [6, 7, -8, -7]] = rgb("gold")
    plainc = paint(colour, "glossy", 0.35, "cloth")
    o.add(rounded_box(w, d, 0.003, 0.0012), plainc, "book cover")
    o.add(
        rounded_box(w, d, 0.003, 0.0012).moved(0, 0, h - 0.003),
        textured(cover, "glossy", 0.35, colour, "cloth"),
        "book cover",
    )
    o.add(rounded_box(0.004, d, h, 0.0015).moved(-w / 2 + 0.002, 0, 0), plainc, "book cover")
    pages = stripes((238, 230, 210), (208, 198, 176), 10, 64, 0.6)
    o.add(
        rounded_box(w - 0.010, d - 0.010, h - 0.006, 0.0006).moved(0.0005, 0, 0.003),
        textured(pages, name="paper"),
        "book pages",
    )
    return o


@family("car", "red", "blue", "yellow", "green")
def car(rng, colour) -> Item:
    o = Item(f"{colour} toy car", captions=("toy car", "car"))
    body, glassy = (
        paint(colour, "glossy", 0.1, "lacquer"),
        paint((58, 74, 92), "glossy", 0.05, "glass"),
    )
    L = 0.115
    o.add(rounded_box(0.052, L, 0.024, 0.009).moved(0, 0, 0.011), body, "_car body")
    cab = rounded_box(0.046, 0.058, 0.026, 0.011).moved(0, 0.006, 0.030)
    o.add(cab, body, "car roof")
    o.add(
        merge(rounded_box(0.0468, 0.043, 0.011, 0.005).moved(0, 0.006, 0.0365)),
        glassy,
        "car roof",
        "car side windows",
    )
    o.add(
        merge(rounded_box(0.036, 0.0590, 0.011, 0.005).moved(0, 0.006, 0.0365)),
        glassy,
        "car roof",
        "windscreen",
    )
    k = 0
    for y in (-0.036, 0.036):
        for x in (-1, 1):
            k += 1
            turn = lambda m: m.rotated("y", 90 * x).moved(x * 0.020, y, 0.0145)
            o.add(
                turn(cylinder(0.0145, 0.010, bevel=0.003)),
                paint((30, 30, 32), "matte", name="rubber"),
                f"car wheel#{k}",
            )
            o.add(
                turn(cylinder(0.0078, 0.0112, bevel=0.001)),
                paint("silver", "metal", 0.25),
                f"car wheel#{k}",
                f"hubcap#{k}",
            )
    for k, x in enumerate((-1, 1), 1):
        o.add(
            ellipsoid(0.006, 0.004, 0.005).moved(x * 0.017, -L / 2 + 0.001, 0.025),
            paint((246, 238, 190), "glossy", 0.05),
            "_car body",
            f"headlight#{k}",
        )
        o.add(
            ellipsoid(0.005, 0.003, 0.004).moved(x * 0.018, L / 2 - 0.001, 0.025),
            paint("red", "glossy", 0.05),
            "_car body",
            f"_tail light#{k}",
        )
    o.add(
        rounded_box(0.050, 0.006, 0.006, 0.0025).moved(0, -L / 2 + 0.001, 0.012),
        paint("silver", "metal", 0.25),
        "_car body",
        "bumper",
    )
    return o


@family("bottle", "dark green", "brown", "turquoise", "white")
def bottle(rng, colour, text: str | None = None, name: str = "bottle") -> Item:
    text = text or str(rng.choice(["SODA", "OIL", "MILK", "SOAP"]))
    o = Item(name, captions=(f"{colour} bottle", f"bottle labelled {text.lower()}"))
    r, h = _vary(rng, 0.031), _vary(rng, 0.195, 0.06)
    prof = smooth_profile(
        [
            (r, 0.010),
            (r, h * 0.3),
            (r, h * 0.56),
            (r * 0.72, h * 0.70),
            (0.0125, h * 0.80),
            (0.0118, h * 0.93),
        ],
        40,
    )
    o.add(
        lathe([(0, 0), (r * 0.9, 0), (r, 0.006), *prof, (0, h * 0.93)]),
        paint(colour, "glossy", 0.06, "glass"),
        "_bottle body",
    )
    lab = lettering(
        text,
        "cream",
        "dark blue",
        (160, 420),
        band=str(rng.choice(["red", "yellow", "light blue"])),
        scale=0.42,
    )
    o.add(
        lathe([(r + 0.0006, h * 0.16), (r + 0.0006, h * 0.48)]).rotated("z", 90),
        textured(lab, "matte", name="paper"),
        "bottle label",
    )
    o.add(
        cylinder(0.0142, 0.017, bevel=0.002).moved(0, 0, h * 0.915),
        paint(str(rng.choice(["red", "gold", "black"])), "glossy", 0.2),
        "bottle cap",
    )
    return o


@family("clock", "red", "turquoise", "copper", "yellow")
def clock(rng, colour) -> Item:
    o = Item("alarm clock", captions=(f"{colour} alarm clock", "clock"))
    case, steel, dark = (
        paint(colour, "glossy", 0.15, "lacquer"),
        paint("silver", "metal", 0.2),
        paint("black"),
    )
    F = lambda m: m.rotated("x", 90).moved(0, 0, 0.062)
    o.add(
        F(
            lathe(
                [
                    (0, -0.022),
                    (0.040, -0.022),
                    (0.048, -0.016),
                    (0.048, 0.018),
                    (0.044, 0.021),
                    (0.0415, 0.019),
                    (0.0415, 0.0165),
                    (0, 0.0165),
                ]
            )
        ),
        case,
        "_clock case",
    )
    o.add(F(lathe([(0.0415, 0.0172), (0, 0.0172)])), paint((242, 238, 226)), "clock face")
    ticks = [
        rounded_box(0.0026 if k % 3 else 0.004, 0.0085, 0.0012, 0.0005)
        .moved(0, 0.034, 0)
        .rotated("z", 30 * k)
        .moved(0, 0, 0.0172)
        for k in range(12)
    ]
    o.add(F(merge(*ticks)), dark, "clock face", "_clock marks")
    hour, minute = rng.uniform(0, 360), rng.uniform(0, 360)
    hand = lambda a, L, w: (
        rounded_box(w, L, 0.0016, 0.0006)
        .moved(0, L / 2 - 0.005, 0)
        .rotated("z", a)
        .moved(0, 0, 0.0182)
    )
    o.add(
        F(
            merge(
                hand(hour, 0.024, 0.0042),
                hand(minute, 0.034, 0.003),
                cylinder(0.0035, 0.003).moved(0, 0, 0.018),
            )
        ),
        dark,
        "clock face",
        "clock hands",
    )
    for k, x in enumerate((-1, 1), 1):
        o.add(
            tube([[x * 0.024, 0, 0.028], [x * 0.036, 0, 0.006]], 0.005, 12), steel, f"clock leg#{k}"
        )
        bell = lathe(
            [(0.021, 0), *smooth_profile([(0.021, 0.002), (0.016, 0.014), (0, 0.019)], 12)]
        ).rotated("y", x * 32)
        o.add(bell.moved(x * 0.027, 0, 0.107), steel, f"clock bell#{k}")
    o.add(
        tube(arc(0.011, 0, 180, 14) + [0, 0, 0.128], 0.0022, 8),
        steel,
        "_clock case",
        "_clock handle",
    )
    return o


@family("lamp", "cream", "red", "turquoise")
def lamp(rng, colour) -> Item:
    o = Item("table lamp", captions=("lamp", f"lamp with a {colour} shade"))
    brass = paint("gold", "metal", 0.25, "brass")
    o.add(
        lathe([(0, 0), (0.058, 0), (0.058, 0.006), (0.048, 0.012), (0.012, 0.018), (0, 0.018)]),
        brass,
        "lamp base",
    )
    o.add(
        lathe(
            smooth_profile(
                [(0.010, 0.016), (0.026, 0.05), (0.024, 0.078), (0.008, 0.115), (0.007, 0.19)], 34
            )
        ),
        paint("white", "glossy", 0.1, "ceramic"),
        "lamp base",
        "lamp stem",
    )
    shade = lathe([(0.078, 0.165), (0.048, 0.265), (0.0465, 0.265), (0.0765, 0.165)])
    o.add(shade, textured(mottled(colour, rng, 0.05, 20), name="cloth"), "lamp shade")
    o.add(
        ellipsoid(0.022, 0.022, 0.028).moved(0, 0, 0.205),
        Material((255, 226, 178), "light", power=4.0, name="bulb"),
        "light bulb",
    )
    return o


@family("pencils", "blue", "black", "copper", "pink")
def pencils(rng, colour) -> Item:
    o = Item("pencil cup", captions=("cup of pencils", "pencil holder"))
    r, h = 0.037, 0.09
    o.add(
        lathe(
            [
                (0, 0),
                (r - 0.002, 0),
                (r, 0.002),
                (r, h),
                (r - 0.003, h),
                (r - 0.003, 0.006),
                (0, 0.006),
            ]
        ),
        paint(colour, "metal" if colour == "copper" else "glossy", 0.25),
        "_cup",
    )
    cols = ["red", "yellow", "green", "blue", "orange", "purple"]
    for k, c in enumerate(cols):
        a = np.radians(60 * k + rng.uniform(-10, 10))
        d = np.array([np.cos(a), np.sin(a), 0])
        lo, hi = -d * 0.014 + [0, 0, 0.012], d * 0.029 + [0, 0, 0.098]
        up = (hi - lo) / np.linalg.norm(hi - lo)
        e = hi + up * (0.035 + 0.012 * (k % 3))
        o.add(tube([lo, hi, e], 0.0040, 6), paint(c, "glossy", 0.25, "lacquer"), f"{c} pencil")
        o.add(
            tube([e, e + up * 0.006, e + up * 0.013], [0.0041, 0.0025, 0.0008], 8),
            paint((222, 184, 136)),
            f"{c} pencil",
            f"pencil tip#{k}",
        )
    return o


@family("headphones", "black", "white", "red")
def headphones(rng, colour) -> Item:
    o = Item("headphones", captions=(f"{colour} headphones",))
    shell, pad = paint(colour, "glossy", 0.2, "plastic"), paint((52, 50, 52), name="leather")
    # Standing on the ear cups, band upwards.
    band = arc(0.075, 8, 172, 28).dot(np.diag([1, 1, 1.05])) + [0, 0, 0.062]
    o.add(tube(band, 0.0072, 12), shell, "headband")
    for k, x in enumerate((-1, 1), 1):
        cup = lathe([(0, 0.0), (0.030, 0.0), (0.036, 0.006), (0.036, 0.014), (0, 0.014)]).rotated(
            "y", x * 90
        )
        o.add(cup.scaled(1, 0.9, 1.12).moved(x * 0.066, 0, 0.0405), shell, f"ear cup#{k}")
        cush = torus(0.024, 0.011).rotated("y", 90)
        o.add(
            cush.scaled(1, 0.9, 1.12).moved(x * 0.056, 0, 0.0405),
            pad,
            f"ear cup#{k}",
            f"ear cushion#{k}",
        )
    return o


@family("cube", "")
def cube(rng, colour) -> Item:
    o = Item("puzzle cube", captions=("rubik's cube", "magic cube"))
    s = 0.057
    o.add(rounded_box(s, s, s, 0.003), paint((24, 24, 26), "glossy", 0.25, "plastic"))
    names = ["white", "red", "blue", "orange", "green", "yellow"]
    cols = {
        "white": (236, 236, 232),
        "red": (186, 24, 36),
        "blue": (16, 72, 170),
        "orange": (236, 106, 10),
        "green": (24, 144, 66),
        "yellow": (244, 208, 24),
    }
    pick = {n: [] for n in names}
    for f in range(6):
        for i in range(3):
            for j in range(3):
                st = rounded_box(s / 3 * 0.84, s / 3 * 0.84, 0.0012, 0.0005).moved(
                    (i - 1) * s / 3, (j - 1) * s / 3, s / 2 - 0.0004
                )
                st = (
                    st
                    if f == 0
                    else (
                        st.rotated("x", 180) if f == 5 else st.rotated("x", 90).rotated("z", 90 * f)
                    )
                )
                pick[names[int(rng.integers(6))] if rng.random() < 0.6 else names[f]].append(
                    st.moved(0, 0, s / 2)
                )
    for n in names:
        if pick[n]:
            o.add(merge(*pick[n]), paint(cols[n], "glossy", 0.15, "plastic"))
    return o


@family("die", "white", "red", "blue")
def die(rng, colour) -> Item:
    o = Item(f"{colour} die", captions=("dice", "die"))
    s = 0.028
    o.add(rounded_box(s, s, s, 0.004), paint(colour, "glossy", 0.12, "plastic"))
    spots = {
        1: [(0, 0)],
        2: [(-1, -1), (1, 1)],
        3: [(-1, -1), (0, 0), (1, 1)],
        4: [(-1, -1), (1, 1), (-1, 1), (1, -1)],
        5: [(-1, -1), (1, 1), (-1, 1), (1, -1), (0, 0)],
        6: [(-1, -1), (-1, 0), (-1, 1), (1, -1), (1, 0), (1, 1)],
    }
    dots = []
    for f, n in enumerate((5, 1, 3, 6, 4, 2)):
        for a, b in spots[n]:
            d = ellipsoid(0.0028, 0.0028, 0.0008, 12).moved(a * s * 0.26, b * s * 0.26, s / 2)
            d = (
                d
                if f == 0
                else d.rotated("x", 180)
                if f == 5
                else d.rotated("x", 90).rotated("z", 90 * f)
            )
            dots.append(d.moved(0, 0, s / 2))
    o.add(merge(*dots), paint("black" if colour == "white" else "white"), "die pips")
    return o


@family("house", "red", "blue", "green")
def house(rng, colour) -> Item:
    o = Item("toy house", captions=(f"toy house with a {colour} roof", "small house"))
    w, d, h = 0.085, 0.07, 0.058
    wall = paint((236, 218, 176), name="wood")
    o.add(rounded_box(w, d, h, 0.001), wall, "_house walls")
    gable = extrude([(-w / 2, 0), (w / 2, 0), (0, 0.040)], d).rotated("x", 90).moved(0, d / 2, h)
    o.add(gable, wall, "_house walls")
    slope = np.degrees(np.arctan2(0.040, w / 2))
    Ls = np.hypot(0.040, w / 2) + 0.012
    for x in (-1, 1):
        slab = (
            rounded_box(Ls, d + 0.016, 0.006, 0.001)
            .moved(x * Ls / 2, 0, 0)
            .rotated("y", x * slope)
            .moved(0, 0, h + 0.040)
        )
        o.add(
            slab,
            textured(stripes(rgb(colour), rgb(colour) * 0.72, 7), "glossy", 0.4, colour),
            "house roof",
        )
    o.add(
        rounded_box(0.015, 0.015, 0.032, 0.001).moved(w * 0.26, 0.012, h + 0.022),
        paint((150, 74, 56)),
        "house roof",
        "chimney",
    )
    o.add(
        rounded_box(0.018, 0.003, 0.032, 0.001).moved(-0.018, -d / 2, 0.0),
        paint((112, 66, 40)),
        "house front door",
    )
    o.add(
        rounded_box(0.022, 0.003, 0.020, 0.001).moved(0.020, -d / 2, 0.022),
        paint((118, 168, 200), "glossy", 0.05),
        "house window",
    )
    return o


@family("rocket", "white", "silver", "yellow")
def rocket(rng, colour) -> Item:
    o = Item("toy rocket", captions=(f"{colour} rocket", "space rocket"))
    fin = str(rng.choice(["red", "blue", "orange"]))
    prof = smooth_profile([(0.018, 0.022), (0.028, 0.06), (0.027, 0.10), (0.019, 0.135)], 24)
    o.add(
        lathe([(0, 0.022), (0.018, 0.022), *prof]),
        paint(colour, "glossy", 0.12, "lacquer"),
        "_rocket body",
    )
    o.add(
        lathe([*smooth_profile([(0.0195, 0.134), (0.011, 0.155), (0, 0.175)], 14)], crease=80),
        paint(fin, "glossy", 0.12),
        "rocket tip",
    )
    for k in range(3):
        f = extrude([(0.018, 0.012), (0.050, -0.022), (0.052, 0.0), (0.024, 0.048)], 0.006).moved(
            0, 0, -0.003
        )
        o.add(
            f.rotated("x", 90).rotated("z", 120 * k + 30).moved(0, 0, 0.022),
            paint(fin, "glossy", 0.15),
            f"rocket fin#{k}",
        )
    win = (
        lathe([(0, 0), (0.0115, 0), (0.0115, 0.004), (0.0085, 0.005)])
        .rotated("x", 90)
        .moved(0, -0.0255, 0.098)
    )
    o.add(win, paint("silver", "metal", 0.25), "rocket window")
    o.add(
        ellipsoid(0.0088, 0.004, 0.0088).moved(0, -0.0275, 0.098),
        paint((60, 110, 160), "glossy", 0.05),
        "rocket window",
    )
    o.add(
        cylinder(0.015, 0.012, 0.012).moved(0, 0, 0.012),
        paint("grey", "metal", 0.3),
        "_rocket nozzle",
    )
    return o


@family("shaker", "silver", "white", "brown")
def shaker(rng, colour) -> Item:
    o = Item("pepper mill", captions=("pepper grinder", f"{colour} pepper mill"))
    m = paint((120, 72, 42) if colour == "brown" else colour, "glossy", 0.2, "wood")
    o.add(
        lathe(
            [
                (0, 0),
                (0.025, 0),
                *smooth_profile(
                    [(0.025, 0.004), (0.016, 0.04), (0.021, 0.075), (0.019, 0.083)], 26
                ),
                (0, 0.083),
            ]
        ),
        m,
        "_mill body",
    )
    o.add(
        lathe(
            [
                (0, 0.085),
                (0.017, 0.085),
                *smooth_profile([(0.021, 0.090), (0.023, 0.105), (0.012, 0.12), (0, 0.122)], 16),
            ]
        ),
        m,
        "mill head",
    )
    o.add(
        ellipsoid(0.006).moved(0, 0, 0.126),
        paint("silver", "metal", 0.15),
        "mill head",
        "mill knob",
    )
    o.add(
        cylinder(0.0175, 0.003).moved(0, 0, 0.0825),
        paint("silver", "metal", 0.2),
        "_mill body",
        "_mill ring",
    )
    return o


@family("spoon", "silver", "gold")
def spoon(rng, colour) -> Item:
    o = Item("spoon", captions=(f"{colour} spoon", "teaspoon"))
    m = paint(colour, "metal", 0.22, "metal")
    o.add(ellipsoid(0.018, 0.027, 0.006).moved(0, -0.055, 0.0062), m, "spoon bowl")
    p = [
        [0, -0.031, 0.006],
        [0, -0.015, 0.009],
        [0, 0.02, 0.008],
        [0, 0.06, 0.005],
        [0, 0.078, 0.0042],
    ]
    o.add(
        tube(p, [0.003, 0.0026, 0.0028, 0.0042, 0.0042], 10).scaled(1.3, 1, 0.9), m, "_spoon handle"
    )
    return o


@family("candle", "red", "cream", "purple")
def candle(rng, colour) -> Item:
    o = Item("candle", captions=(f"{colour} candle",))
    h = _vary(rng, 0.11, 0.15)
    o.add(
        lathe(
            [
                (0, 0),
                (0.038, 0),
                (0.040, 0.004),
                (0.014, 0.009),
                (0.014, 0.022),
                (0.0125, 0.022),
                (0, 0.02),
            ]
        ),
        paint("gold", "metal", 0.2, "brass"),
        "candle holder",
    )
    o.add(
        torus(0.010, 0.0028).rotated("x", 90).moved(0.047, 0, 0.011),
        paint("gold", "metal", 0.2, "brass"),
        "candle holder",
        "_holder ring",
    )
    o.add(
        cylinder(0.0118, h, 0.011, 0.003).moved(0, 0, 0.018),
        paint(colour, "glossy", 0.4, "wax"),
        "_candle wax",
    )
    o.add(
        tube([[0, 0, 0.017 + h], [0.001, 0, 0.022 + h], [0.002, 0, 0.028 + h]], 0.0012, 6),
        paint("black"),
        "candle wick",
    )
    return o


@family("ball", "green", "orange", "white")
def ball(rng, colour) -> Item:
    name = {"green": "tennis ball", "orange": "basketball", "white": "baseball"}[colour]
    o = Item(name, captions=("ball", "small ball"))
    r = 0.034
    base = {"green": (190, 210, 54), "orange": (206, 104, 42), "white": (228, 224, 214)}[colour]
    seam = {"green": (232, 236, 220), "orange": (40, 30, 28), "white": (188, 36, 40)}[colour]
    o.add(
        ellipsoid(r, n=48).moved(0, 0, r),
        textured(mottled(base, rng, 0.04, 40), "matte", colour=colour, name="felt"),
    )
    t = np.linspace(0, 2 * np.pi, 90)[:-1]
    p = np.stack(
        [np.cos(t) + 0.34 * np.cos(3 * t), np.sin(t) - 0.34 * np.sin(3 * t), 0.94 * np.sin(2 * t)],
        -1,
    )
    p = p / np.linalg.norm(p, axis=1, keepdims=True) * r * 0.992
    o.add(
        tube(p, 0.0014, 8, closed=True).rotated("x", float(rng.uniform(10, 60))).moved(0, 0, r),
        paint(seam),
        "ball seam",
    )
    return o


@family("napkin", "red", "blue", "green")
def napkin(rng, colour) -> Item:
    o = Item("checked napkin", captions=("cloth napkin", f"{colour} checked cloth"))
    n = 40
    x, y = np.meshgrid(np.linspace(-0.085, 0.085, n), np.linspace(-0.085, 0.085, n))
    z = 0.0022 + 0.0012 * (np.sin(40 * x + 3) * np.cos(31 * y) + np.sin(25 * (x + y)))
    from .shapes import _grid

    m = _grid(np.stack([x, y, np.maximum(z, 0.0008)], -1), np.zeros((n, n, 3))).with_normals()
    o.add(m, textured(checks((236, 232, 224), colour, 10), name="cloth"))
    return o


@family("sheet", "white", "yellow")
def sheet(rng, colour) -> Item:
    o = Item("sheet of paper", captions=("letter", "paper"))
    o.add(
        plane(0.105, 0.148, 0).moved(0, 0, 0.0008),
        textured(
            paper(rng, (240, 236, 224) if colour == "white" else (240, 222, 140), (70, 70, 84)),
            name="paper",
        ),
    )
    return o
