"""Path tracing with Mitsuba 3: photographs, and ids and depth on the rays through pixel centres.

Mitsuba is an optional extra and is imported on first use only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cclkit.errors import needed
from cclkit.scenes.scene import Camera

from .layout import Layout, Shot
from .materials import Material, linear
from .shapes import Mesh

BLUR_STEPS = 12
"""Camera poses averaged over the exposure of a motion-blurred view."""


def mitsuba():
    """The mitsuba module, variant ``scalar_rgb`` (runs everywhere).

    Raises DependencyError where it is not installed.
    """
    with needed("mitsuba"):
        import mitsuba as mi
    if mi.variant() != "scalar_rgb":
        mi.set_variant("scalar_rgb")
    return mi


def _reflectance(mi, m: Material) -> dict:
    if isinstance(m.colour, np.ndarray):
        return {
            "type": "bitmap",
            "bitmap": mi.Bitmap(np.ascontiguousarray(m.colour)),
            "filter_type": "bilinear",
        }
    return {"type": "rgb", "value": [float(x) for x in linear(m.colour)]}


def _bsdf(mi, m: Material) -> dict:
    if m.kind in ("matte", "light"):
        inner = {"type": "diffuse", "reflectance": _reflectance(mi, m)}
    elif m.kind in ("glossy", "liquid"):
        inner = {
            "type": "roughplastic",
            "distribution": "ggx",
            "alpha": m.rough,
            "int_ior": 1.45,
            "diffuse_reflectance": _reflectance(mi, m),
            "nonlinear": True,
        }
    elif m.kind == "metal":
        inner = {
            "type": "roughconductor",
            "material": "none",
            "distribution": "ggx",
            "alpha": m.rough,
            "specular_reflectance": _reflectance(mi, m),
        }
    elif m.kind == "glass":
        # A thin bright coat of low opacity: rays go straight through, so what is seen through glass
        # stays where it is, and light can be sampled through it (no caustic noise).
        coat = {
            "type": "roughplastic",
            "alpha": m.rough,
            "diffuse_reflectance": {"type": "rgb", "value": [0.85, 0.92, 0.94]},
        }
        opacity = {
            "type": "bitmap",
            "bitmap": mi.Bitmap(np.ascontiguousarray(m.colour)),
            "raw": True,
        }
        return {"type": "mask", "opacity": opacity, "bsdf": {"type": "twosided", "bsdf": coat}}
    else:
        raise ValueError(f"unknown material kind {m.kind!r}")
    return {"type": "twosided", "bsdf": inner}


def _mesh(mi, name: str, mesh: Mesh, bsdf, emitter=None):
    props = mi.Properties()
    props["mesh_bsdf"] = bsdf
    if emitter is not None:
        props["mesh_emitter"] = emitter
    out = mi.Mesh(
        name,
        len(mesh.vertices),
        len(mesh.faces),
        has_vertex_normals=True,
        has_vertex_texcoords=True,
        props=props,
    )
    p = mi.traverse(out)
    # Micrometres: a last-bit difference in some machine's sine must not move an id.
    p["vertex_positions"] = np.round(mesh.vertices, 6).astype(np.float32).ravel()
    p["vertex_normals"] = np.round(mesh.normals, 6).astype(np.float32).ravel()
    p["vertex_texcoords"] = mesh.uv.astype(np.float32).ravel()
    p["faces"] = mesh.faces.astype(np.uint32).ravel()
    p.update()
    return out


def _sky(mi, layout: Layout) -> dict:
    """A small environment map: dim at the horizon, bright overhead, one soft brighter side."""
    h, w = 32, 64
    el = (0.5 - (np.arange(h) + 0.5) / h)[:, None] * np.pi
    az = ((np.arange(w) + 0.5) / w)[None] * 2 * np.pi
    up = np.clip(np.sin(el), 0, 1)
    glow = 0.35 * np.clip(np.cos(el) * np.cos(az - 1.0), 0, 1) ** 2
    img = (0.12 + 0.88 * up**0.8 + glow)[..., None] * np.array(layout.sky)
    return {
        "type": "envmap",
        "bitmap": mi.Bitmap(img.astype(np.float32)),
        "to_world": mi.ScalarTransform4f().rotate([1, 0, 0], 90),
    }


def build(layout: Layout):
    """Layout -> Mitsuba scene whose shapes are the layout's leaves, in order, then its lights."""
    mi = mitsuba()
    cache: dict[int, object] = {}
    d = {"type": "scene", "sky": _sky(mi, layout)}
    k = 0
    for item in layout.items:
        for leaf in item.leaves:
            m = leaf.material
            if id(m) not in cache:
                cache[id(m)] = mi.load_dict(_bsdf(mi, m))
            emitter = None
            if m.kind == "light":
                emitter = mi.load_dict(
                    {
                        "type": "area",
                        "radiance": {
                            "type": "rgb",
                            "value": [float(x) * m.power for x in linear(m.colour)],
                        },
                    }
                )
            d[f"leaf{k:05d}"] = _mesh(mi, f"leaf{k:05d}", leaf.mesh, cache[id(m)], emitter)
            k += 1
    for j, light in enumerate(layout.lights):
        tf = (
            mi.ScalarTransform4f()
            .look_at(origin=list(light.position), target=list(light.target), up=[0.01, 0.02, 1])
            .scale([light.size / 2, light.size / 2, 1])
        )
        d[f"light{j}"] = {
            "type": "rectangle",
            "to_world": tf,
            "emitter": {
                "type": "area",
                "radiance": {"type": "rgb", "value": [float(x) for x in light.radiance]},
            },
        }
    return mi.load_dict(d, optimize=False)


def _sensor(mi, cam: Camera, **film):
    fx, cx, cy = cam.K[0, 0], cam.K[0, 2], cam.K[1, 2]
    # Mitsuba cameras look along +z with x to the left and y up.
    to_world = cam.camera_to_world @ np.diag([-1.0, -1.0, 1.0, 1.0])
    return {
        "type": "perspective",
        "fov_axis": "x",
        "fov": float(np.degrees(2 * np.arctan(cam.width / 2 / fx))),
        "principal_point_offset_x": float((cam.width / 2 - cx) / cam.width),
        "principal_point_offset_y": float((cam.height / 2 - cy) / cam.height),
        "near_clip": 0.01,
        "far_clip": 100.0,
        "to_world": mi.ScalarTransform4f(to_world),
        "film": {
            "type": "hdrfilm",
            "width": cam.width,
            "height": cam.height,
            "pixel_format": "rgb",
            "component_format": "float32",
            **film,
        },
    }


def denoised(
    a: np.ndarray, b: np.ndarray, radius: int = 4
) -> np.ndarray:  # [H, W, 3] twice -> [H, W, 3]
    """Non-local means over two independent half-renders of the same view.

    The halves tell how noisy every pixel is, so differences that noise explains are averaged while
    textures and the edges of shadows are kept. Works on square roots, where noise is more even.
    """
    import cv2

    a, b = np.sqrt(np.maximum(a, 0)), np.sqrt(np.maximum(b, 0))
    mean = (a + b) / 2
    box = lambda x, k: cv2.blur(x, (k, k), borderType=cv2.BORDER_REFLECT_101)
    var = np.maximum(box(((a - b) ** 2 / 4).mean(-1), 7), 1e-7)
    pad = lambda x: np.pad(x, [(radius, radius)] * 2 + [(0, 0)] * (x.ndim - 2), mode="reflect")
    pm, pv = pad(mean), pad(var)
    h, w = var.shape
    total, weight = np.zeros_like(mean), np.zeros_like(var)
    for dy in range(2 * radius + 1):
        for dx in range(2 * radius + 1):
            m, v = pm[dy : dy + h, dx : dx + w], pv[dy : dy + h, dx : dx + w]
            d = box(((mean - m) ** 2).mean(-1) - (var + np.minimum(v, var)), 3) / (0.5 * (var + v))
            wt = np.exp(-np.maximum(d, 0))
            total += wt[..., None] * m
            weight += wt
    return (total / weight[..., None]) ** 2


def photograph(
    scene, shot: Shot, spp: int, seed: int, depth: int = 5, glass: bool = False, fast: bool = False
) -> np.ndarray:  # [H, W, 3] float64 linear
    """Radiance of one view; a blurred shot averages camera poses over its exposure.

    ``fast`` takes ``spp`` as it is, on an unstratified sampler (a stratified one rounds to
    squares).
    """
    mi = mitsuba()
    # volpath is path that also samples lights through glass, at a third more time.
    integrator = mi.load_dict(
        {"type": "volpath" if glass else "path", "max_depth": depth + 2 * glass, "rr_depth": 4}
    )
    steps = BLUR_STEPS if shot.moves else 1
    per = (
        max(1, round((spp / steps / 2) ** 0.5)) ** 2 if not fast else max(1, round(spp / steps / 2))
    )
    halves = []
    for half in range(2):
        total = 0.0
        for k in range(steps):
            cam = shot.camera_at((k + 0.5) / steps - 0.5)
            # Box filter: neighbouring pixels share no samples, which the denoiser relies on.
            sensor = mi.load_dict(
                {
                    **_sensor(mi, cam, rfilter={"type": "box"}),
                    "sampler": {
                        "type": "independent" if fast else "multijitter",
                        "sample_count": per,
                    },
                }
            )
            out = mi.render(
                scene,
                sensor=sensor,
                integrator=integrator,
                spp=per,
                seed=seed + 7919 * k + 104729 * half,
            )
            total = total + np.asarray(out, dtype=np.float64)
        halves.append(np.nan_to_num(total / steps))
    # Single precision and a smaller search: half the time, and fit for images that train small
    # models.
    return (
        denoised(*(h.astype(np.float32) for h in halves), radius=3) if fast else denoised(*halves)
    )


@dataclass(frozen=True)
class Buffers:
    """What a ray through every pixel centre hits first."""

    leaf: np.ndarray  # [H, W] int32, index into the layout's leaves, -1 = nothing
    depth: np.ndarray  # [H, W] float64 metres along the camera's z axis, 0 = nothing


def buffers(scene, cam: Camera, crop: tuple[int, int, int, int] | None = None) -> Buffers:
    """Leaf index and depth by one ray per pixel, through its centre; ``crop`` = (x, y, width,
    height) in pixels.

    Shot ray by ray: with the scalar variant that is 20 times as fast as Mitsuba's AOV integrator.
    """
    mi = mitsuba()
    x0, y0, w, h = crop or (0, 0, cam.width, cam.height)
    y, x = np.mgrid[y0 : y0 + h, x0 : x0 + w] + 0.5
    d = np.stack(
        [(x - cam.K[0, 2]) / cam.K[0, 0], (y - cam.K[1, 2]) / cam.K[1, 1], np.ones_like(x)], -1
    )
    # Not unit length: with z = 1 in the camera's frame the ray parameter IS the depth.
    d = (d @ cam.world_to_camera[:3, :3]).reshape(-1, 3).tolist()
    origin = cam.centre.tolist()
    leaf = np.full(h * w, -1, np.int32)
    depth = np.zeros(h * w)
    names: dict[str, int] = {
        s.id(): int(s.id()[4:]) if s.id().startswith("leaf") else -1 for s in scene.shapes()
    }
    ray, shoot = mi.Ray3f, scene.ray_intersect_preliminary
    for k, v in enumerate(d):
        hit = shoot(ray(origin, v))
        if hit.is_valid():
            leaf[k] = names[hit.shape.id()]
            depth[k] = hit.t
    depth[leaf < 0] = 0  # lights are not part of the scene
    return Buffers(leaf.reshape(h, w), depth.reshape(h, w))


def develop(
    radiance: np.ndarray, shot: Shot, exposure: float, seed: int
) -> np.ndarray:  # [H, W, 3] uint8
    """Linear radiance -> sRGB: a soft shoulder above 0.7; under-exposed shots get sensor noise."""
    x = radiance * exposure * shot.exposure
    if shot.exposure < 1:
        rng = np.random.default_rng(seed)
        x = x + rng.normal(size=x.shape) * np.sqrt(np.maximum(x, 0) * 4e-4 + 4e-6)
    x = np.maximum(x, 0)
    x = np.where(x < 0.7, x, 0.7 + 0.3 * (1 - np.exp(-(x - 0.7) / 0.3)))
    s = np.where(x <= 0.0031308, 12.92 * x, 1.055 * np.maximum(x, 1e-9) ** (1 / 2.4) - 0.055)
    return np.clip(np.rint(s * 255), 0, 255).astype(np.uint8)
