"""Triangle meshes made in numpy: the primitives every Tabletop object is built from.

Right-handed world, z up, metres. A mesh carries unit normals (smooth shading) and uv in
0..1 (textures). Nothing here knows about Mitsuba, so parts can be sampled and collision
tested without it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Mesh:
    """Triangles with per-vertex normals and texture coordinates."""

    vertices: np.ndarray  # [V, 3] float64, metres
    faces: np.ndarray  # [F, 3] int64, counter-clockwise seen from outside
    normals: np.ndarray  # [V, 3] float64, unit
    uv: np.ndarray  # [V, 2] float64

    def moved(self, *offset: float) -> Mesh:
        return replace(self, vertices=self.vertices + np.asarray(offset, float))

    def rotated(self, axis: str, degrees: float) -> Mesh:
        R = rotation(axis, degrees)
        return replace(self, vertices=self.vertices @ R.T, normals=self.normals @ R.T)

    def scaled(self, sx: float, sy: float | None = None, sz: float | None = None) -> Mesh:
        """Scale about the origin (positive factors); normals use the inverse transpose."""
        s = np.array([sx, sx if sy is None else sy, sx if sz is None else sz], float)
        return replace(self, vertices=self.vertices * s, normals=_unit(self.normals / s))

    def transformed(self, M: np.ndarray) -> Mesh:  # M [4, 4] rigid + uniform scale
        A = M[:3, :3]
        return replace(
            self, vertices=self.vertices @ A.T + M[:3, 3], normals=_unit(self.normals @ A.T)
        )

    def with_normals(self) -> Mesh:
        """Normals from the faces, shared by vertices at the same place (for displaced meshes)."""
        v = self.vertices
        fn = np.cross(
            v[self.faces[:, 1]] - v[self.faces[:, 0]], v[self.faces[:, 2]] - v[self.faces[:, 0]]
        )
        _, same = np.unique(np.round(v, 6), axis=0, return_inverse=True)
        same = same.reshape(-1)
        acc = np.zeros((same.max() + 1, 3))
        for k in range(3):
            np.add.at(acc, same[self.faces[:, k]], fn)
        return replace(self, normals=_unit(acc[same]))

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:  # [n, 3]
        """Points spread evenly by area."""
        a, b, c = (self.vertices[self.faces[:, k]] for k in range(3))
        area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
        f = rng.choice(len(area), size=n, p=area / area.sum())
        u, v = rng.random((2, n, 1))
        flip = u + v > 1
        u, v = np.where(flip, 1 - u, u), np.where(flip, 1 - v, v)
        return a[f] + u * (b[f] - a[f]) + v * (c[f] - a[f])


def rotation(axis: str, degrees: float) -> np.ndarray:  # [3, 3]
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    R = np.eye(3)
    R[i, i] = R[j, j] = c
    R[i, j], R[j, i] = -s, s
    return R


def _unit(v: np.ndarray) -> np.ndarray:
    return v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12)


def merge(*meshes: Mesh) -> Mesh:
    """Several meshes as one (one shape id, one material)."""
    at = np.cumsum([0] + [len(m.vertices) for m in meshes[:-1]])
    return Mesh(
        np.concatenate([m.vertices for m in meshes]),
        np.concatenate([m.faces + o for m, o in zip(meshes, at)]),
        np.concatenate([m.normals for m in meshes]),
        np.concatenate([m.uv for m in meshes]),
    )


def _grid(P: np.ndarray, N: np.ndarray) -> Mesh:
    """A surface from a grid of points [a, b, 3]; uv follows the grid (u along b)."""
    a, b = P.shape[:2]
    i = (np.arange(a - 1)[:, None] * b + np.arange(b - 1)).ravel()
    faces = np.concatenate(
        [np.stack([i, i + 1, i + b], -1), np.stack([i + 1, i + b + 1, i + b], -1)]
    )
    v, u = np.meshgrid(np.linspace(0, 1, a), np.linspace(0, 1, b), indexing="ij")
    return Mesh(
        P.reshape(-1, 3), faces, _unit(N.reshape(-1, 3)), np.stack([u, v], -1).reshape(-1, 2)
    )


def ellipsoid(rx: float, ry: float | None = None, rz: float | None = None, n: int = 32) -> Mesh:
    """Ellipsoid about the origin."""
    th = np.linspace(0, 2 * np.pi, n + 1)
    ph = np.linspace(0, np.pi, n // 2 + 1)[::-1, None]
    N = np.stack(
        np.broadcast_arrays(np.sin(ph) * np.cos(th), np.sin(ph) * np.sin(th), np.cos(ph)), -1
    )
    return _grid(N, N).scaled(rx, ry, rz)


def lathe(profile, n: int = 48, crease: float = 35.0) -> Mesh:
    """Revolve a profile [(radius, z), ...] about z; the outside is to the right of its path.

    Going up along the outer wall gives outward normals. Corners sharper than ``crease``
    degrees get two normals, softer ones are shaded smoothly.
    """
    p = np.asarray(profile, float)
    p = p[np.r_[True, np.abs(np.diff(p, axis=0)).max(1) > 1e-9]]
    d = _unit(np.diff(p, axis=0))
    segn = np.stack([d[:, 1], -d[:, 0]], -1)  # right-hand normal of every segment
    rows, normals = [], []
    for k in range(len(p)):
        before, after = segn[max(k - 1, 0)], segn[min(k, len(segn) - 1)]
        if before @ after < np.cos(np.radians(crease)):
            rows += [p[k], p[k]]
            normals += [before, after]
        else:
            rows.append(p[k])
            normals.append(_unit(before + after))
    r, m = np.array(rows), np.array(normals)
    th = np.linspace(0, 2 * np.pi, n + 1)
    c, s = np.cos(th), np.sin(th)
    P = np.stack([r[:, :1] * c, r[:, :1] * s, np.broadcast_to(r[:, 1:], (len(r), n + 1))], -1)
    N = np.stack([m[:, :1] * c, m[:, :1] * s, np.broadcast_to(m[:, 1:], (len(m), n + 1))], -1)
    return _grid(P, N)


def cylinder(
    r: float, h: float, r_top: float | None = None, bevel: float = 0.0, n: int = 40
) -> Mesh:
    """Closed cylinder or cone frustum standing on z = 0, edges rounded by ``bevel``."""
    t = r if r_top is None else r_top
    if bevel <= 0:
        return lathe([(0, 0), (r, 0), (t, h), (0, h)], n)
    a = np.linspace(-np.pi / 2, 0, 5)
    low = [(r - bevel + bevel * np.cos(x), bevel + bevel * np.sin(x)) for x in a]
    up = [(t - bevel + bevel * np.cos(x), h - bevel + bevel * np.sin(x)) for x in a + np.pi / 2]
    return lathe([(0, 0), *low, *up, (0, h)], n)


def smooth_profile(knots, n: int = 40) -> np.ndarray:  # [n, 2]
    """A smooth curve (Catmull-Rom) through (radius, z) knots; radii are kept >= 0."""
    k = np.asarray(knots, float)
    k = np.concatenate([2 * k[:1] - k[1:2], k, 2 * k[-1:] - k[-2:-1]])
    t = np.linspace(0, len(knots) - 1, n)
    i = np.minimum(t.astype(int), len(knots) - 2)
    f = (t - i)[:, None]
    a, b, c, d = k[i], k[i + 1], k[i + 2], k[i + 3]
    out = 0.5 * (
        2 * b + (c - a) * f + (2 * a - 5 * b + 4 * c - d) * f**2 + (3 * b - a - 3 * c + d) * f**3
    )
    out[:, 0] = np.maximum(out[:, 0], 0)
    return out


def rounded_box(sx: float, sy: float, sz: float, r: float) -> Mesh:
    """Box of full size (sx, sy, sz) with edges rounded by r, standing on z = 0; uv per face."""
    h = np.array([sx, sy, sz]) / 2
    r = min(r, h.min() * 0.999)
    sides = []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            u, v = (axis + 1) % 3, (axis + 2) % 3
            if sign < 0:
                u, v = v, u

            def ticks(k: int) -> np.ndarray:
                # tan makes equal angles on the rounded edge
                e = np.tan(np.linspace(0, np.pi / 4, 5)) * r
                inner = h[k] - r
                return np.concatenate([-(inner + e[::-1]), inner + e])

            gu, gv = np.meshgrid(ticks(u), ticks(v), indexing="xy")
            p = np.empty((*gu.shape, 3))
            p[..., u], p[..., v], p[..., axis] = gu, gv, sign * h[axis]
            q = np.clip(p, -(h - r), h - r)
            nrm = _unit(p - q)
            m = _grid(q + r * nrm, nrm)
            flat = m.vertices / (2 * h) + 0.5
            sides.append(replace(m, uv=flat[:, [u, v]]))
    return merge(*sides).moved(0, 0, h[2])


def plane(sx: float, sy: float, repeat: float = 1.0) -> Mesh:
    """Rectangle in z = 0 facing up, uv repeated ``repeat`` times per metre (0: once over all)."""
    x, y = np.meshgrid([-sx / 2, sx / 2], [-sy / 2, sy / 2])
    P = np.stack([x, y, np.zeros_like(x)], -1)
    m = _grid(P, np.broadcast_to([0.0, 0, 1], P.shape))
    if repeat:
        m = replace(m, uv=m.vertices[:, :2] * repeat)
    return m


def tube(path, radius, n: int = 14, closed: bool = False, flatten: float = 1.0) -> Mesh:
    """Sweep a circle of ``radius`` (number or one per point) along a path [P, 3], ends rounded off.

    ``flatten`` scales the section along its second axis (ribbons, blades).
    """
    p = np.asarray(path, float)
    r = np.broadcast_to(np.asarray(radius, float), len(p)).copy()
    if closed:
        t = np.roll(p, -1, 0) - np.roll(p, 1, 0)
    else:
        t = np.gradient(p, axis=0)
    t = _unit(t)
    # Parallel transport: the section never twists about the path.
    a = np.cross(t[0], [0.0, 0, 1])
    if np.linalg.norm(a) < 1e-3:
        a = np.array([1.0, 0, 0])
    frames = []
    for k in range(len(p)):
        a = _unit(a - t[k] * (a @ t[k]))
        frames.append((a, np.cross(t[k], a)))
    A, B = (np.stack(f) for f in zip(*frames))
    if closed:
        p, r, A, B, t = (np.concatenate([x, x[:1]]) for x in (p, r, A, B, t))
    else:
        # Half a sphere at both ends.
        e = np.linspace(0, np.pi / 2, 5)[:-1]
        head = [
            (p[0] - t[0] * r[0] * np.cos(x) * 0.999, r[0] * max(np.sin(x), 1e-4), A[0], B[0])
            for x in e
        ]
        tail = [
            (p[-1] + t[-1] * r[-1] * np.cos(x) * 0.999, r[-1] * max(np.sin(x), 1e-4), A[-1], B[-1])
            for x in e[::-1]
        ]
        rows = head + list(zip(p, r, A, B)) + tail
        p, r, A, B = (np.array(x) for x in zip(*rows))
    th = np.linspace(0, 2 * np.pi, n + 1)
    N = A[:, None] * np.cos(th)[:, None] + B[:, None] * np.sin(th)[:, None]
    off = A[:, None] * np.cos(th)[:, None] + flatten * B[:, None] * np.sin(th)[:, None]
    m = _grid(p[:, None] + r[:, None, None] * off, N)
    return m if closed and flatten == 1 else m.with_normals()


def torus(R: float, r: float, n: int = 40, m: int = 14) -> Mesh:
    """Torus about z, centred on the origin."""
    th = np.linspace(0, 2 * np.pi, n + 1)[:-1]
    return tube(np.stack([R * np.cos(th), R * np.sin(th), 0 * th], -1), r, m, closed=True)


def extrude(outline, h: float) -> Mesh:
    """A polygon [P, 2] (counter-clockwise, star-shaped about its mean) raised from z = 0 to h."""
    p = np.asarray(outline, float)
    c, n = p.mean(0), len(p)
    parts = []
    for z, up in ((0.0, -1.0), (h, 1.0)):
        v = np.concatenate([np.c_[p, np.full(n, z)], [[*c, z]]])
        i = np.arange(n)
        f = np.stack([i, (i + 1) % n, np.full(n, n)], -1)
        span = np.ptp(p, axis=0).max()
        uv = (v[:, :2] - p.min(0)) / span
        parts.append(Mesh(v, f if up > 0 else f[:, ::-1], np.tile([0, 0, up], (n + 1, 1)), uv))
    nxt = np.roll(p, -1, 0)
    e = nxt - p
    nrm = _unit(np.c_[e[:, 1], -e[:, 0], np.zeros(n)])
    quads = np.stack(
        [
            np.c_[p, np.zeros(n)],
            np.c_[nxt, np.zeros(n)],
            np.c_[nxt, np.full(n, h)],
            np.c_[p, np.full(n, h)],
        ],
        1,
    )
    i = np.arange(n)[:, None] * 4
    f = np.concatenate([i + [0, 1, 2], i + [0, 2, 3]])
    uv = np.tile([[0, 0], [1, 0], [1, 1], [0, 1.0]], (n, 1))
    parts.append(Mesh(quads.reshape(-1, 3), f, np.repeat(nrm, 4, 0), uv))
    return merge(*parts)


def blade(length: float, width: float, lift: float, droop: float, n: int = 10) -> Mesh:
    """A leaf from the origin along +x: rises by ``lift``, hangs by ``droop`` at its tip; folded a
    little.
    """
    s = np.linspace(0, 1, n)[:, None]
    t = np.linspace(-1, 1, 5)
    half = width / 2 * np.sin(np.pi * np.clip(s * 0.96 + 0.03, 0, 1)) ** 0.8
    x = np.broadcast_to(length * s, (n, 5))
    y = half * t
    z = lift * s - droop * s**2 + 0.25 * half * np.abs(t)
    m = _grid(np.stack([x, y, z], -1)[:, ::-1], np.zeros((n, 5, 3)))
    return m.with_normals()


def displaced(m: Mesh, amount: float, scale: float, seed: int) -> Mesh:
    """Push vertices along their normals by smooth noise of wavelength ~``scale``."""
    rng = np.random.default_rng(seed)
    k = rng.normal(size=(24, 3)) / scale * 2.2
    ph = rng.uniform(0, 2 * np.pi, 24)
    # Seam vertices share a place, hence a value: the surface stays closed.
    w = np.cos(np.round(m.vertices, 7) @ k.T + ph).sum(1) / 5
    return replace(m, vertices=m.vertices + amount * w[:, None] * m.normals).with_normals()


def arc(
    radius: float, a0: float, a1: float, n: int = 16, plane: str = "xz"
) -> np.ndarray:  # [n, 3]
    """Points on a circle arc (degrees) in a coordinate plane, about the origin."""
    t = np.radians(np.linspace(a0, a1, n))
    out = np.zeros((n, 3))
    i, j = ("xyz".index(c) for c in plane)
    out[:, i], out[:, j] = radius * np.cos(t), radius * np.sin(t)
    return out
