"""Colours, procedural textures and surface materials. All textures are computed here."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

PALETTE = {  # sRGB 0..255; the name is what captions call the colour
    "red": (190, 30, 32),
    "green": (98, 158, 44),
    "blue": (38, 84, 168),
    "yellow": (232, 190, 40),
    "orange": (224, 116, 28),
    "purple": (112, 62, 142),
    "pink": (226, 134, 158),
    "brown": (134, 88, 52),
    "white": (226, 224, 218),
    "black": (34, 34, 37),
    "grey": (132, 134, 138),
    "cream": (232, 214, 178),
    "turquoise": (48, 158, 158),
    "dark blue": (26, 40, 84),
    "dark green": (36, 84, 48),
    "beige": (200, 172, 132),
    "light blue": (136, 180, 214),
    "gold": (212, 164, 70),
    "silver": (196, 198, 202),
    "copper": (196, 118, 78),
}


@dataclass(frozen=True)
class Material:
    """What a surface is made of. ``colour`` is sRGB 0..255 or a texture [h, w, 3] uint8."""

    colour: object
    kind: str = "matte"  # matte | glossy | metal | glass | liquid | light
    rough: float = 0.15
    power: float = 0.0  # radiance of kind "light"
    colour_name: str = ""
    name: str = ""  # what captions call it: "ceramic", "plush", ...


def rgb(colour) -> np.ndarray:  # [3] float64, 0..255
    return np.asarray(PALETTE[colour] if isinstance(colour, str) else colour, float)


def paint(colour, kind: str = "matte", rough: float = 0.15, name: str = "") -> Material:
    """Plain material; ``colour`` a palette name or sRGB triple."""
    return Material(
        tuple(rgb(colour)),
        kind,
        rough,
        colour_name=colour if isinstance(colour, str) else "",
        name=name,
    )


def textured(
    tex: np.ndarray, kind: str = "matte", rough: float = 0.2, colour: str = "", name: str = ""
) -> Material:
    return Material(tex, kind, rough, colour_name=colour, name=name)


def linear(srgb) -> np.ndarray:
    """sRGB 0..255 -> linear 0..1."""
    c = np.asarray(srgb, float) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def noise(shape: tuple[int, int], cells: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Smooth tileable noise in -1..1 with ``cells`` (rows, columns) of random values."""
    g = rng.uniform(-1, 1, cells)
    g = np.pad(g, 2, mode="wrap")
    fy, fx = shape[0] / cells[0], shape[1] / cells[1]
    big = cv2.resize(
        g, (round(fx * g.shape[1]), round(fy * g.shape[0])), interpolation=cv2.INTER_CUBIC
    )
    return big[round(2 * fy) : round(2 * fy) + shape[0], round(2 * fx) : round(2 * fx) + shape[1]]


def _tint(base, amount: np.ndarray) -> np.ndarray:
    """Base colour made lighter or darker by a map of relative amounts -> uint8 texture."""
    return np.clip(rgb(base) * (1 + amount[..., None]), 0, 255).astype(np.uint8)


def mottled(colour, rng, strength: float = 0.12, cells: int = 12, size: int = 128) -> np.ndarray:
    """Cloudy variation: plush, clay, fruit skin."""
    n = noise((size, size), (cells, cells), rng) + 0.5 * noise(
        (size, size), (2 * cells, 2 * cells), rng
    )
    return _tint(colour, strength * n)


def wood(colour, rng, planks: int = 4, size: int = 512) -> np.ndarray:
    """Planks along u with soft grain."""
    base = np.zeros((size, size))
    h = size // planks
    for k in range(planks):
        tone = rng.uniform(-0.13, 0.13)
        y = np.linspace(0, 1, h)[:, None]
        warp = 0.8 * noise((h, size), (2, 3), rng)
        rings = np.sin(2 * np.pi * (rng.uniform(2.0, 3.5) * y + warp + rng.uniform()))
        fine = noise((h, size), (24, 5), rng)
        base[k * h : (k + 1) * h] = tone + 0.07 * rings + 0.05 * fine
        base[k * h : k * h + 3] -= 0.35
    return _tint(colour, base)


def checks(a, b, cells: int = 8, size: int = 256) -> np.ndarray:
    """Gingham: two crossed sets of half-transparent bands."""
    t = (np.arange(size) * cells // size) % 2
    w = (t[:, None] + t[None]) / 2
    return (rgb(a) * (1 - w[..., None]) + rgb(b) * w[..., None]).astype(np.uint8)


def stripes(a, b, count: int = 6, size: int = 128, share: float = 0.5) -> np.ndarray:
    """Bands across v."""
    t = ((np.arange(size) * count / size) % 1.0 < share).astype(float)
    w = np.repeat(t[:, None], size, 1)[..., None]
    return (rgb(a) * (1 - w) + rgb(b) * w).astype(np.uint8)


def tiles(a, b, cells: int, rng, size: int = 512) -> np.ndarray:
    """Square tiles with light joints and a little variation between tiles."""
    img = np.zeros((size, size, 3))  # rows left over at the far edge are a thin dark joint
    s = size // cells
    for i in range(cells):
        for j in range(cells):
            img[i * s : (i + 1) * s, j * s : (j + 1) * s] = rgb(a if (i + j) % 2 else b) * (
                1 + rng.uniform(-0.06, 0.06)
            )
    for k in range(cells):
        img[k * s : k * s + 3] = img[:, k * s : k * s + 3] = 205
    return np.clip(img, 0, 255).astype(np.uint8)


def bricks(colour, rng, rows: int = 8, size: int = 512) -> np.ndarray:
    """Running-bond brickwork with light joints."""
    img = np.tile(rgb((196, 188, 176)), (size, size, 1))
    h, w = size // rows, size // (rows // 2)
    for i in range(rows):
        for j in range(-1, rows // 2 + 1):
            x = j * w + (i % 2) * w // 2
            tone = rgb(colour) * (1 + rng.uniform(-0.12, 0.10))
            img[i * h + 4 : (i + 1) * h - 3, max(x + 4, 0) : max(x + w - 4, 0)] = tone
    return np.clip(img * (1 + 0.05 * noise((size, size), (48, 48), rng))[..., None], 0, 255).astype(
        np.uint8
    )


def grass(rng, size: int = 512) -> np.ndarray:
    """A lawn: blotches of several greens."""
    n = noise((size, size), (10, 10), rng) * 0.10 + noise((size, size), (64, 48), rng) * 0.12
    return _tint((92, 134, 58), n)


def carpet(colours, rng, size: int = 512) -> np.ndarray:
    """A rug of nested frames and diamonds: clutter with structure."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    box = np.maximum(np.abs(x), np.abs(y))
    cols = [rgb(c) for c in colours]
    idx = (np.floor(box * 2 * 5)).astype(int) % len(cols)
    diamond = ((np.abs((x * 8) % 1 - 0.5) + np.abs((y * 8) % 1 - 0.5)) < 0.3) & (idx == 0)
    idx = np.where(diamond, 1, idx)
    img = np.array(cols)[idx] * (1 + 0.06 * noise((size, size), (64, 64), rng))[..., None]
    return np.clip(img, 0, 255).astype(np.uint8)


def paper(rng, ground, ink, lines: int = 9, size: int = 256) -> np.ndarray:
    """A sheet with lines of made-up words."""
    img = np.tile(rgb(ground), (size, size, 1)).astype(np.uint8)
    ink_bgr = tuple(float(c) for c in rgb(ink))
    for k in range(lines):
        x, y = 24, int((k + 1.2) * size / (lines + 1.4))
        while x < size - 40:
            w = int(rng.integers(14, 44))
            cv2.line(img, (x, y), (min(x + w, size - 24), y), ink_bgr, max(2, size // 90))
            x += w + 10
    return img


def lettering(
    text: str, ground, ink, size: tuple[int, int] = (128, 256), band=None, scale: float = 0.8
) -> np.ndarray:
    """A label or cover with large letters, optionally over a coloured band."""
    h, w = size
    img = np.tile(rgb(ground), (h, w, 1)).astype(np.uint8)
    if band is not None:
        img[int(h * 0.28) : int(h * 0.74)] = rgb(band)
    f = cv2.FONT_HERSHEY_DUPLEX
    (tw, th), _ = cv2.getTextSize(text, f, 1.0, 2)
    s = scale * min(w / tw, h * 0.8 / th)
    t = max(1, int(round(2.2 * s)))
    org = (int((w - tw * s) / 2), int((h + th * s) / 2))
    cv2.putText(img, text, org, f, s, tuple(float(c) for c in rgb(ink)), t, cv2.LINE_8)
    return np.ascontiguousarray(img[::-1])  # v runs upwards on the meshes
