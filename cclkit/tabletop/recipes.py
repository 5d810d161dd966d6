"""The benchmark's scenes: one function per scene, from a seed to a Layout.

Positions are set by hand for composition and checked for interpenetration; shapes, cameras and
textures come from the seed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..errors import ConfigError
from .layout import (Layout, Light, Shot, check_apart, forward, orbit, place, room, round_table, square_table, stuff, top_of)
from .materials import carpet, checks, mottled, noise, paint, rgb, textured, tiles, wood, _tint
from .objects import make
from .shapes import plane

WIDTH, HEIGHT = 320, 240
LERF_CENTRE = (0.491, 0.512)  # principal point as shares of the size: deliberately not the middle


def _frames(cams, prefix="frame_{:05d}.jpg", first=1):
    return [Shot(prefix.format(k + first), c) for k, c in enumerate(cams)]


def _set(shots, name, **kw):
    return [replace(s, **kw) if s.name == name else s for s in shots]


def tea_party(seed: int = 11) -> Layout:
    """A bear's tea party on a round wooden table."""
    rng = np.random.default_rng(seed)
    m = lambda kind, colour=None, **kw: make(kind, rng, colour, **kw)  # noqa: E731
    cloth = place(m("napkin", "red"), -0.025, -0.085, 18, scale=1.1)
    items = [
        place(m("bear", "brown", height=0.23), 0.02, 0.115, 8),
        place(m("mug", "blue", drink="tea"), 0.155, -0.02, -70),
        place(m("teapot", "white"), -0.165, 0.105, 205),
        place(m("apple", "red"), -0.185, -0.06, 30),
        place(m("apple", "green"), -0.155, -0.165, 200),
        cloth,
        place(m("cookies", "light blue", count=4), -0.025, -0.085, 40, z=top_of(cloth), scale=0.86),
        place(m("camera", "black"), 0.180, -0.150, 35),
        place(m("plant", "copper"), 0.225, 0.155, 0, scale=0.95),
        place(m("book", "dark green", title="POEMS"), -0.085, 0.265, -12),
        place(m("car", "red"), 0.275, -0.045, 205, scale=0.95),
        place(m("spoon", "silver"), 0.030, -0.225, 70),
    ]
    book = items[9]
    items.append(place(m("duck", "yellow"), -0.10, 0.255, 160, z=top_of(book)))
    check_apart(items)
    table = round_table("wooden table", textured(wood((178, 128, 82), rng), "glossy", 0.35), 0.46, 1.05)
    surroundings = room(table, textured(tiles((150, 146, 140), (122, 118, 114), 6, rng)), textured(mottled((206, 198, 182), rng, 0.03)), floor_repeat=0.5)
    cams = orbit(24, (0.01, -0.005, 0.055), 0.60, rng, start=-100, f=305, width=WIDTH, height=HEIGHT, centre=LERF_CENTRE, elevations=(25, 47))
    shots = _frames(cams)
    shots = _set(shots, "frame_00010.jpg", moves=(0.004, 0.001, 0, 0.1, 0.9, 0.2))
    shots = _set(shots, "frame_00017.jpg", exposure=0.30)
    return Layout(
        "tea_party", "lerf_ovs", seed, [*items, *surroundings], shots,
        [Light((0.9, -0.7, 1.45), (0, 0, 0), 0.75, (10.5, 9.6, 8.4))], sky=(0.62, 0.70, 0.80), exposure=1.55,
        held_out=("frame_00004.jpg", "frame_00012.jpg", "frame_00020.jpg"),
        labelled=("frame_00002.jpg", "frame_00004.jpg", "frame_00008.jpg", "frame_00014.jpg", "frame_00020.jpg"),
        difficulties={
            "near_duplicates": ["red apple", "green apple"],
            "motion_blurred": ["frame_00010.jpg"], "under_exposed": ["frame_00017.jpg"],
            "tiny_parts": ["bear nose", "shutter button", "chocolate chips"], "thin_parts": ["spoon", "mug handle"],
            "occluders": "the bear hides what is behind it in a third of the views",
        }, title="A bear's tea party")


def breakfast_bench(seed: int = 31) -> Layout:
    """Breakfast things on a wooden table before a plain wall, seen from the front."""
    rng = np.random.default_rng(seed)
    m = lambda kind, colour=None, **kw: make(kind, rng, colour, **kw)  # noqa: E731
    items = [
        place(m("bottle", "dark green", text="OIL", name="green bottle"), -0.215, 0.10, 10),
        place(m("bowl", "blue", fill="oranges"), -0.12, 0.03, 0),
        place(m("mug", "yellow", drink="coffee", name="yellow mug"), 0.04, 0.095, 25),
        place(m("elephant", "grey"), 0.165, 0.06, -28),
        place(m("banana", "yellow"), 0.03, -0.055, 78),
        place(m("clock", "turquoise"), 0.255, 0.125, -14),
        place(m("donut", "pink"), 0.150, -0.085, 0),
        place(m("cube"), -0.04, -0.135, 30),
        place(m("apple", "red"), 0.235, -0.03, 100),
        place(m("spoon", "silver"), -0.185, -0.115, -28),
    ]
    check_apart(items)
    table = stuff("wooden table", (plane(2.6, 1.3, 1.3), textured(wood((186, 136, 88), rng, 5), "glossy", 0.4)))
    wall = stuff("white wall", (plane(4.0, 2.4, 0.5).rotated("x", 90).moved(0, 0.33, 0.6), textured(mottled((214, 210, 200), rng, 0.03))))
    cams = forward(16, (0.02, -0.62, 0.33), (0.015, 0.015, 0.045), (0.17, 0.02, 0.07), rng, f=385, width=WIDTH, height=HEIGHT)
    shots = _frames(cams, "{:02d}.jpg", 0)
    shots = _set(shots, "06.jpg", moves=(0.005, 0, 0, 0, 0.7, 0))
    return Layout(
        "breakfast_bench", "3d_ovs", seed, [*items, table, wall], shots,
        [Light((-0.9, -0.9, 1.5), (0, 0, 0), 0.75, (11, 10, 8.8))], sky=(0.60, 0.68, 0.78), exposure=1.7,
        held_out=("03.jpg", "09.jpg", "13.jpg"), labelled=("01.jpg", "05.jpg", "08.jpg", "11.jpg", "14.jpg"),
        difficulties={"motion_blurred": ["06.jpg"], "thin_parts": ["spoon"], "same_colour": ["banana", "yellow mug"]},
        title="Breakfast on a bench")


RECIPES = {"tea_party": tea_party, "breakfast_bench": breakfast_bench}


def plan(name: str) -> Layout:
    """The layout of a benchmark scene. Raises ConfigError for an unknown name."""
    if name not in RECIPES:
        raise ConfigError(f"tabletop: no scene {name!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]()
