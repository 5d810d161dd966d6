"""rasterize: one function from Gaussians and a camera to colour, alpha, depth and features.

Two back ends with the same rules (gsplat's, v1.5): ``cpu`` (numba, see ``_cpu.py``) and ``cuda``
(``gsplat.rasterization``). Also the split form for frozen geometry: ``project`` once per view,
then ``splat_features`` (differentiable in the features only) or ``blending_weights``.

Source of the method: Kerbl et al. 2023 (3D Gaussian Splatting); Zwicker et al. 2001 (EWA
splatting).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..errors import DependencyError, GaussiansError, needed
from ..scenes.scene import Camera
from . import _cpu
from .model import SH_SIZES, Gaussians

DEPTH_EPS = 1e-10
"""Floor of alpha in the expected depth: empty pixels get 0."""


@dataclass
class Rendering:
    """What one camera sees. Everything but ``info`` is differentiable, depth included."""

    color: Tensor  # [H, W, 3] sum of alpha T c over the background; not clamped above
    alpha: Tensor  # [H, W] 1 - final transmittance
    depth: Tensor  # [H, W] expected camera z (world units): sum w z / alpha, 0 where empty
    features: Tensor | None  # [H, W, C] sum of alpha T f, not divided by alpha, no background
    info: dict = field(default_factory=dict)  # what gsplat.strategy needs, see rasterize


@dataclass
class Projection:
    """Gaussians as one camera sees them: frozen, detached, on the CPU. Feeds splat_features and
    blending_weights.
    """

    means2d: Tensor  # [G, 2] pixels
    conics: Tensor  # [G, 3] inverse 2D covariance: xx, xy, yy
    opacities: Tensor  # [G]
    depths: Tensor  # [G] camera z
    radii: Tensor  # [G, 2] int32 pixels, 0 = not visible
    tiles: Tiles
    width: int
    height: int

    def __len__(self) -> int:
        return int(self.means2d.shape[0])


@dataclass
class Tiles:
    """Depth-sorted lists of Gaussians per 16x16 tile (numpy arrays, read by the kernels)."""

    start: np.ndarray  # [tiles + 1] int64: list of tile i is gaussian[start[i]:start[i + 1]]
    gaussian: np.ndarray  # [n] int32, nearest first
    slot: np.ndarray  # [n] int64: row of this pair where pairs are numbered Gaussian by Gaussian
    slot_start: np.ndarray  # [G + 1] int64: pairs of a Gaussian
    reach: np.ndarray  # [G] half height of the drawn ellipse, pixels

    @property
    def intersections(self) -> int:
        """Number of (Gaussian, tile) pairs."""
        return len(self.gaussian)


def rasterize(
    gaussians: Gaussians,
    camera: Camera,
    features: Tensor | None = None,  # [G, C]
    *,
    background: Tensor | None = None,  # [3]
    sh_degree: int | None = None,
    backend: str = "auto",
) -> Rendering:
    """Render Gaussians: colour, alpha, expected depth, and features if given.

    ``background`` [3] is composited with 1 - alpha under the colour (default black); features and
    depth have none. ``sh_degree`` limits the SH bands in use (default: all stored).
    ``backend``: "cpu", "cuda", or "auto" (cuda when the tensors are there). "cuda" moves tensors.

    ``info`` serves ``gsplat.strategy``: means2d [1, G, 2] lies on the path of the gradient, so
    ``retain_grad()`` and ``.grad`` (loss per pixel) work; radii [1, G, 2] int32, width, height,
    n_cameras, gaussian_ids (None: dense), and n_intersections on the CPU.

    Differentiable in all five Gaussian tensors and the features; not in the camera. On the CPU,
    results and gradients are the same bits whatever the number of threads.

    Raises GaussiansError for unusable input and DependencyError when CUDA is asked for and missing.

    >>> import numpy as np, torch
    >>> camera = Camera(np.array([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]]), np.eye(4), 64, 48)
    >>> place, red = torch.tensor([[0, 0, 2.0]]), torch.tensor([[[1.7, -1.7, -1.7]]])
    >>> g = Gaussians(place, torch.ones(1, 4), torch.zeros(1, 3) - 1, torch.tensor([5.0]), red)
    >>> seen = rasterize(g, camera)
    >>> seen.color.shape, seen.color[24, 32].argmax().item(), round(seen.depth[24, 32].item(), 3)
    (torch.Size([48, 64, 3]), 0, 2.0)
    """
    gaussians.check_shapes()
    n_basis = _n_basis(gaussians, sh_degree)
    features = _check_features(features, gaussians)
    _check_camera(camera)
    if backend == "auto":
        backend = "cuda" if gaussians.means.is_cuda else "cpu"
    if backend == "cuda":
        gaussians, features = _to_cuda(gaussians, features)
        image, alpha, depth, info = _rasterize_cuda(gaussians, camera, features, n_basis)
    elif backend == "cpu":
        if gaussians.means.device.type != "cpu":
            raise GaussiansError(
                f"backend 'cpu' got tensors on {gaussians.means.device}; use .to('cpu') or"
                " backend='cuda'"
            )
        image, alpha, depth, info = _rasterize_cpu(gaussians, camera, features, n_basis)
    else:
        raise GaussiansError(f"backend {backend!r} is unknown; use 'auto', 'cpu' or 'cuda'")
    color = image[..., :3]
    if background is not None:
        background = torch.as_tensor(background, dtype=color.dtype, device=color.device)
        if background.shape != (3,):
            raise GaussiansError(
                f"background has shape {tuple(background.shape)}, expected (3,): one colour"
            )
        color = color + (1 - alpha)[..., None] * background
    return Rendering(color, alpha, depth, None if features is None else image[..., 3:], info)


def project(gaussians: Gaussians, camera: Camera) -> Projection:
    """Project once and build the tile lists, for frozen geometry. Detached, on the CPU.

    Raises GaussiansError for Gaussians that hold NaN, inf or zero quaternions.
    """
    gaussians = gaussians.detach().to("cpu")
    gaussians.check_shapes()
    _check_camera(camera)
    means2d, conics, opacities, depths, _, radii = _Project.apply(
        gaussians.means,
        gaussians.quats,
        gaussians.log_scales,
        gaussians.logit_opacities,
        gaussians.sh,
        1,
        camera,
    )
    tiles = _build_tiles(means2d, conics, opacities, depths, radii, camera)
    return Projection(means2d, conics, opacities, depths, radii, tiles, camera.width, camera.height)


def splat_features(projection: Projection, features: Tensor) -> Tensor:  # [G, C] -> [H, W, C]
    """Sum of alpha T f per pixel, differentiable in the features only (no geometry gradients).

    Raises GaussiansError when the features do not fit the projection.
    """
    means2d = projection.means2d
    if features.ndim != 2 or len(features) != len(projection) or features.device.type != "cpu":
        raise GaussiansError(
            f"features have shape {tuple(features.shape)} on {features.device}, expected"
            f" ({len(projection)}, C) on cpu: one row per Gaussian of the projection"
        )
    image, _ = _Splat.apply(
        means2d,
        projection.conics,
        projection.opacities,
        features.to(means2d.dtype),
        projection.tiles,
        projection.width,
        projection.height,
    )
    return image


# --------------------------------------------------------------------------- checks
def _n_basis(gaussians: Gaussians, sh_degree: int | None) -> int:
    if sh_degree is None:
        return gaussians.sh.shape[1]
    if sh_degree not in range(gaussians.sh_degree + 1):
        raise GaussiansError(
            f"sh_degree is {sh_degree}, these Gaussians store degree 0..{gaussians.sh_degree}"
        )
    return SH_SIZES[sh_degree]


def _check_features(features: Tensor | None, gaussians: Gaussians) -> Tensor | None:
    if features is None:
        return None
    if features.ndim != 2 or features.shape[0] != len(gaussians):
        raise GaussiansError(
            f"features have shape {tuple(features.shape)}, expected ({len(gaussians)}, C): one row"
            " per Gaussian"
        )
    if features.dtype != gaussians.means.dtype or features.device != gaussians.means.device:
        raise GaussiansError(
            f"features are {features.dtype} on {features.device}, the Gaussians"
            f" {gaussians.means.dtype} on {gaussians.means.device}; use .to()"
        )
    return features


def _check_camera(camera: Camera) -> None:
    if camera.width < 1 or camera.height < 1 or not (camera.K[0, 0] > 0 and camera.K[1, 1] > 0):
        raise GaussiansError(
            f"camera of {camera.width}x{camera.height} pixels with focal lengths {camera.K[0, 0]},"
            f" {camera.K[1, 1]}; all must be positive"
        )
    if not (np.isfinite(camera.K).all() and np.isfinite(camera.world_to_camera).all()):
        raise GaussiansError(
            "camera holds NaN or inf in K or world_to_camera; read the camera model again"
        )


# --------------------------------------------------------------------------- CPU
def _rasterize_cpu(gaussians: Gaussians, camera: Camera, features: Tensor | None, n_basis: int):
    means2d, conics, opacities, depths, colors, radii = _Project.apply(
        gaussians.means,
        gaussians.quats,
        gaussians.log_scales,
        gaussians.logit_opacities,
        gaussians.sh,
        n_basis,
        camera,
    )
    tiles = _build_tiles(means2d, conics, opacities, depths, radii, camera)
    info = {
        "means2d": means2d[None],
        "radii": radii[None],
        "width": camera.width,
        "height": camera.height,
        "n_cameras": 1,
        "gaussian_ids": None,
        "n_intersections": tiles.intersections,
    }
    # one pass for colour, features and depth: the weights are computed once
    channels = [colors, *([] if features is None else [features]), depths[:, None]]
    # the graph runs through info["means2d"], so that its gradient can be read after backward
    image, alpha = _Splat.apply(
        info["means2d"][0],
        conics,
        opacities,
        torch.cat(channels, dim=1),
        tiles,
        camera.width,
        camera.height,
    )
    depth = image[..., -1] / alpha.clamp_min(DEPTH_EPS)
    return image[..., :-1], alpha, depth, info


def _array(t: Tensor) -> np.ndarray:
    return t.detach().contiguous().numpy()


def _camera_arrays(camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rotation [3, 3], translation [3], and fx fy cx cy [4], float64 and contiguous."""
    w2c = np.ascontiguousarray(camera.world_to_camera, dtype=np.float64)
    K = np.asarray(camera.K, dtype=np.float64)
    return w2c[:3, :3].copy(), w2c[:3, 3].copy(), np.array([K[0, 0], K[1, 1], K[0, 2], K[1, 2]])


def _constants(dtype) -> np.ndarray:
    return np.array([_cpu.ALPHA_MIN, _cpu.ALPHA_MAX, _cpu.T_STOP, 1.0, 0.5], dtype=dtype)


class _Project(torch.autograd.Function):
    """Gaussians -> means2d [G, 2], conics [G, 3], opacities [G], depths [G], colors [G, 3], radii
    [G, 2] int32.
    """

    @staticmethod
    def forward(ctx, means, quats, log_scales, logits, sh, n_basis, camera):
        G, dtype = len(means), means.dtype
        arrays = [_array(t) for t in (means, quats, log_scales, logits, sh)]
        out = [torch.empty(s, dtype=dtype) for s in ((G, 2), (G, 3), (G,), (G,), (G, 3))]
        radii = torch.empty((G, 2), dtype=torch.int32)
        bad = np.empty(G, np.uint8)
        _cpu.run(
            _cpu.project_forward,
            *arrays,
            n_basis,
            *_camera_arrays(camera),
            camera.width,
            camera.height,
            *(t.numpy() for t in out),
            radii.numpy(),
            bad,
        )
        if bad.any():
            Gaussians(means, quats, log_scales, logits, sh).validate()
            raise GaussiansError(
                f"Gaussian {int(bad.argmax())} of {G} overflows (log_scales up to"
                f" {float(log_scales.max()):.3g}); remove it"
            )
        ctx.save_for_backward(means, quats, log_scales, logits, sh, radii)
        ctx.n_basis, ctx.camera = n_basis, camera
        ctx.mark_non_differentiable(radii)
        return (*out, radii)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):
        *inputs, radii = ctx.saved_tensors
        out = [torch.zeros(t.shape, dtype=t.dtype) for t in inputs]
        _cpu.run(
            _cpu.project_backward,
            *(_array(t) for t in inputs),
            ctx.n_basis,
            *_camera_arrays(ctx.camera),
            ctx.camera.width,
            ctx.camera.height,
            _array(radii),
            *(_array(g) for g in grads[:5]),
            *(t.numpy() for t in out),
        )
        return (*out, None, None)


def _build_tiles(means2d, conics, opacities, depths, radii, camera: Camera) -> Tiles:
    """Depth-sorted lists of the Gaussians that reach alpha >= 1/255 in each tile."""
    m, q, o, z, r = (_array(t) for t in (means2d, conics, opacities, depths, radii))
    G, w, h = len(m), camera.width, camera.height
    n_tiles = -(-w // _cpu.TILE) * -(-h // _cpu.TILE)
    slot_start = np.zeros(G + 1, np.int64)
    count = np.empty(G, np.int64)
    reach = np.zeros(G, m.dtype)
    _cpu.run(
        _cpu.tile_scan, m, q, o, r, w, h, slot_start, count, reach, np.empty(0, np.int32), False
    )
    np.cumsum(count, out=slot_start[1:])
    n = int(slot_start[-1])
    slot_tile = np.empty(n, np.int32)
    _cpu.run(_cpu.tile_scan, m, q, o, r, w, h, slot_start, count, reach, slot_tile, True)
    visible = np.flatnonzero(count)
    # equal depths keep the order of the Gaussians
    order = visible[np.argsort(z[visible], kind="stable")]
    start = np.empty(n_tiles + 1, np.int64)
    gaussian, slot = np.empty(n, np.int32), np.empty(n, np.int64)
    _cpu.tile_sort(order, slot_start, slot_tile, n_tiles, start, gaussian, slot)
    return Tiles(start, gaussian, slot, slot_start, reach)


class _Splat(torch.autograd.Function):
    """Blend features [G, C] along the tile lists -> image [H, W, C], alpha [H, W]."""

    @staticmethod
    def forward(ctx, means2d, conics, opacities, features, tiles, width, height):
        image = torch.empty((height, width, features.shape[1]), dtype=means2d.dtype)
        remaining = torch.empty((height, width), dtype=means2d.dtype)
        inputs = [t.detach().contiguous() for t in (means2d, conics, opacities, features)]
        _cpu.run(
            _cpu.blend_forward,
            tiles.start,
            tiles.gaussian,
            *(t.numpy() for t in inputs[:3]),
            tiles.reach,
            inputs[3].numpy(),
            _constants(tiles.reach.dtype),
            width,
            height,
            image.numpy(),
            remaining.numpy(),
        )
        ctx.save_for_backward(*inputs, image, remaining)
        ctx.tiles = tiles
        return image, 1 - remaining

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g_image, g_alpha):
        *inputs, image, remaining = ctx.saved_tensors
        tiles, (height, width) = ctx.tiles, remaining.shape
        G, channels = inputs[3].shape
        geometry = any(ctx.needs_input_grad[:3])
        slots = np.zeros((tiles.intersections, 6 + channels), tiles.reach.dtype)
        _cpu.run(
            _cpu.blend_backward,
            tiles.start,
            tiles.gaussian,
            tiles.slot,
            *(t.numpy() for t in inputs[:3]),
            tiles.reach,
            inputs[3].numpy(),
            _constants(tiles.reach.dtype),
            width,
            height,
            image.numpy(),
            remaining.numpy(),
            _array(g_image),
            _array(g_alpha),
            geometry,
            slots,
        )
        total = torch.empty((G, 6 + channels), dtype=inputs[0].dtype)
        _cpu.run(_cpu.reduce_slots, tiles.slot_start, slots, total.numpy())
        if not geometry:
            return None, None, None, total[:, 6:], None, None, None
        return total[:, :2], total[:, 2:5], total[:, 5], total[:, 6:], None, None, None


# --------------------------------------------------------------------------- CUDA
def _to_cuda(gaussians: Gaussians, features: Tensor | None):
    if not torch.cuda.is_available():
        raise DependencyError(
            "backend 'cuda' needs a CUDA device and a CUDA build of torch, neither found; use"
            " backend='cpu'"
        )
    if gaussians.means.is_cuda:
        return gaussians, features
    return gaussians.to("cuda"), None if features is None else features.to("cuda")


def _cuda_arguments(
    gaussians: Gaussians,
    camera: Camera,
    channels: Tensor,  # [G, C]
) -> dict:
    """Keyword arguments of gsplat.rasterization; apart so that a test can check them without
    CUDA.
    """
    like = {"dtype": torch.float32, "device": gaussians.means.device}
    return {
        "means": gaussians.means,
        "quats": gaussians.quats,
        "scales": gaussians.log_scales.exp(),
        "opacities": gaussians.logit_opacities.sigmoid(),
        "colors": channels,
        "viewmats": torch.as_tensor(camera.world_to_camera, **like)[None],
        "Ks": torch.as_tensor(camera.K, **like)[None],
        "width": camera.width,
        "height": camera.height,
        "near_plane": _cpu.NEAR,
        "eps2d": _cpu.EPS2D,
        "sh_degree": None,  # channels are already evaluated
        "packed": False,  # dense means2d and radii, as the strategy reads them
        "tile_size": _cpu.TILE,
        "render_mode": "RGB+ED",
    }


def _rasterize_cuda(gaussians: Gaussians, camera: Camera, features: Tensor | None, n_basis: int):
    with needed("gsplat"):
        import gsplat  # lazy: slow to import, and not needed on the CPU

    if gaussians.means.dtype != torch.float32:
        raise GaussiansError(
            f"backend 'cuda' needs float32 Gaussians, got {gaussians.means.dtype}; use"
            " .to(dtype=torch.float32)"
        )
    centre = torch.as_tensor(camera.centre, dtype=torch.float32, device=gaussians.means.device)
    # SH here rather than inside gsplat.rasterization: colours and features then blend in one pass,
    # and the gradient of means2d (which drives densification) holds both, as on the CPU
    colors = gsplat.spherical_harmonics(
        SH_SIZES.index(n_basis), gaussians.means - centre, gaussians.sh[:, :n_basis].contiguous()
    )
    colors = (colors + 0.5).clamp_min(0)
    channels = colors if features is None else torch.cat([colors, features], dim=1)
    image, alpha, meta = gsplat.rasterization(**_cuda_arguments(gaussians, camera, channels))
    info = {key: meta[key] for key in ("means2d", "radii", "width", "height", "n_cameras")}
    info["gaussian_ids"] = meta.get("gaussian_ids")
    return image[0, ..., :-1], alpha[0, ..., 0], image[0, ..., -1], info
