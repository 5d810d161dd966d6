"""RGB reconstruction: Gaussians from points, depth or nothing, fitted to photographs.

Source of the recipe (loss, learning rates, densification): Kerbl et al. 2023. Densification itself
is ``gsplat.strategy.DefaultStrategy``, which is plain torch and runs with the CPU rasteriser.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field as nested
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import GaussiansError
from ..files import atomic_write
from ..scenes.scene import Scene, View
from ..settings import NOT_NEGATIVE, POSITIVE, OneOf
from .model import SH_SIZES, Gaussians
from .rasterize import rasterize


@dataclass(frozen=True)
class GaussiansConfig:
    """RGB reconstruction."""

    init: Annotated[str, OneOf("auto", "depth", "points", "random")] = "auto"
    """"points" (the scene's points, what 3DGS starts from), "depth" (back-projected depth),
    "random", or "auto": depth, else points, else random. Paper does not say (3DGS starts from
    points; ours: auto, because rendered scenes have depth, which needs fewer steps).
    """
    start_gaussians: Annotated[int, POSITIVE] = 12_000
    """Number of Gaussians to start from at most, by sampling depth, points or random places. Paper
    does not say (ours: 12,000 in mini, because its photographs are small and a CPU has to keep up).
    """
    max_gaussians: Annotated[int, POSITIVE] = 30_000
    """Densification stops growing once this many are reached, with one step's overshoot. Paper does
    not say (ours: 30,000 in mini, because its photographs are small and a CPU has to keep up).
    """
    iterations: Annotated[int, NOT_NEGATIVE] = 700
    """Optimisation steps, one view each. Paper: 30,000 (jointly with semantics)."""
    sh_degree: Annotated[int, NOT_NEGATIVE] = 1
    """Degree of the spherical harmonics. Paper does not say (3DGS uses 3; ours: 1 in mini, because
    that saves 3/4 of the coefficients).
    """
    densify: bool = True
    """Clone, split and prune as 3DGS does (gsplat's DefaultStrategy). Paper does not say (ours: on,
    because it builds on 3DGS).
    """


SH_C0 = 0.28209479177387814
"""The constant SH basis function: colour = SH_C0 * sh[:, 0] + 0.5."""


# --------------------------------------------------------------------------- image quality
def psnr(a: Tensor, b: Tensor) -> Tensor:  # [..., 3] in [0, 1] -> scalar
    """Peak signal-to-noise ratio in dB for values in [0, 1]; inf for equal images."""
    return -10 * torch.log10(F.mse_loss(a, b))


def ssim(a: Tensor, b: Tensor) -> Tensor:  # [H, W, 3] in [0, 1] -> scalar
    """Structural similarity (Wang et al. 2004), mean over pixels and channels.

    Gaussian window of 11 with sigma 1.5, zero padding at the border as in 3D Gaussian Splatting.
    """
    x = torch.arange(11, dtype=a.dtype, device=a.device) - 5
    window = torch.exp(-(x**2) / (2 * 1.5**2))
    window = window / window.sum()

    def blur(maps: Tensor) -> Tensor:  # [n, H, W]
        n = len(maps)  # one group per channel: 10x faster on CPUs than channels as a batch
        maps = F.conv2d(
            maps[None], window.reshape(1, 1, 11, 1).expand(n, 1, 11, 1), padding=(5, 0), groups=n
        )
        return F.conv2d(
            maps, window.reshape(1, 1, 1, 11).expand(n, 1, 1, 11), padding=(0, 5), groups=n
        )[0]

    a, b = a.permute(2, 0, 1), b.permute(2, 0, 1)
    mu_a, aa, ab = blur(torch.cat([a, a * a, a * b])).chunk(3)
    # apart: no backward pass through the photograph
    mu_b, bb = blur(torch.cat([b, b * b])).chunk(2)
    c1, c2 = 0.01**2, 0.03**2
    numerator = (2 * mu_a * mu_b + c1) * (2 * (ab - mu_a * mu_b) + c2)
    denominator = (mu_a**2 + mu_b**2 + c1) * (aa - mu_a**2 + bb - mu_b**2 + c2)
    return (numerator / denominator).mean()


# --------------------------------------------------------------------------- initialisation
def from_points(
    points: np.ndarray,  # [P, 3] world units
    colors: np.ndarray,  # [P, 3] uint8
    *,
    sh_degree: int = 3,
    seed: int = 0,
    opacity: float = 0.1,
    max_gaussians: int | None = None,
) -> Gaussians:
    """One round Gaussian per point: sigma = mean distance to the 3 nearest other points.

    With ``max_gaussians``, a random subset of that size (by ``seed``). Raises GaussiansError for no
    points, NaN, or colours that do not match.
    """
    points, colors = np.asarray(points, np.float64), np.asarray(colors)
    _check_points(points, colors, sh_degree)
    if max_gaussians is not None and len(points) > max_gaussians:
        keep = np.sort(np.random.default_rng(seed).permutation(len(points))[:max_gaussians])
        points, colors = points[keep], colors[keep]
    return _round_gaussians(points, colors / 255.0, _spacing(points), opacity, sh_degree)


def from_depth(
    scene: Scene, *, max_gaussians: int, seed: int = 0, sh_degree: int = 3, opacity: float = 0.5
) -> Gaussians:
    """Surface samples from the depth of the training views, at most ``max_gaussians``.

    Random pixels, equally many per view, back-projected: what fills the pictures gets the
    Gaussians, where samples evenly spread in space would spend most of them on far walls (measured
    on the bundled tea party: 23 against 28 dB on held-out views after 700 steps). Raises
    GaussiansError if the views have no depth, SceneError if a file is damaged.
    """
    if max_gaussians < 1:
        raise GaussiansError(f"max_gaussians is {max_gaussians}, expected at least 1")
    views = scene.training_views
    rng = np.random.default_rng(seed)
    points, colors = [], []
    for view in views:
        depth = scene.depth(view)
        measured = np.flatnonzero(depth > 0)
        pick = np.sort(rng.permutation(measured)[: -(-max_gaussians // len(views))])
        points.append(view.camera.backproject(depth).reshape(-1, 3)[pick])
        colors.append(view.image().reshape(-1, 3)[pick])
    if not sum(map(len, points)):
        raise GaussiansError(
            f"{scene.path}: no depth in any of {len(views)} training views; use from_points or"
            " from_frusta"
        )
    return from_points(
        np.concatenate(points),
        np.concatenate(colors),
        sh_degree=sh_degree,
        seed=seed,
        opacity=opacity,
        max_gaussians=max_gaussians,
    )


def from_frusta(
    views: Sequence[View],
    *,
    n_gaussians: int,
    seed: int = 0,
    sh_degree: int = 3,
    opacity: float = 0.1,
) -> Gaussians:
    """Random Gaussians in what the cameras see, for scenes with neither points nor depth.

    Each takes a random pixel of a random view, its colour, and a depth log-uniform in 0.3..2 times
    the distance at which the optical axes meet (10 camera spreads where they are parallel, at least
    1 world unit for a single camera).
    """
    if not views:
        raise GaussiansError("no views to place Gaussians in; give at least one")
    rng = np.random.default_rng(seed)
    distance = _focus_distance(views)
    which = np.sort(rng.integers(len(views), size=n_gaussians))
    depth = distance * np.exp(rng.uniform(np.log(0.3), np.log(2.0), n_gaussians))
    points, colors = np.empty((n_gaussians, 3)), np.empty((n_gaussians, 3), np.uint8)
    for i, view in enumerate(views):
        mine = np.flatnonzero(which == i)
        if not len(mine):
            continue
        cam = view.camera
        x, y = rng.integers(cam.width, size=len(mine)), rng.integers(cam.height, size=len(mine))
        rays = np.stack(
            [
                (x + 0.5 - cam.K[0, 2]) / cam.K[0, 0],
                (y + 0.5 - cam.K[1, 2]) / cam.K[1, 1],
                np.ones(len(mine)),
            ],
            -1,
        )
        c2w = cam.camera_to_world
        points[mine] = (rays * depth[mine, None]) @ c2w[:3, :3].T + c2w[:3, 3]
        colors[mine] = view.image()[y, x]
    return from_points(points, colors, sh_degree=sh_degree, seed=seed, opacity=opacity)


def from_scene(
    scene: Scene, *, how: str = "auto", max_gaussians: int, seed: int = 0, sh_degree: int = 3
) -> tuple[Gaussians, str]:
    """Where reconstruction starts: "depth", "points", "random" in the frusta, or "auto", the best
    the scene allows in that order.

    Returns the Gaussians and which start was taken. Raises GaussiansError for an unknown start, or
    one the scene has no data for.
    """
    if how == "auto":
        how = (
            "depth"
            if scene.depth_folder is not None
            else "points"
            if len(scene.points)
            else "random"
        )
    settings = dict(seed=seed, sh_degree=sh_degree)
    if how == "depth":
        return from_depth(scene, max_gaussians=max_gaussians, **settings), how
    if how == "points":
        return (
            from_points(scene.points, scene.point_colors, max_gaussians=max_gaussians, **settings),
            how,
        )
    if how == "random":
        return from_frusta(scene.training_views, n_gaussians=max_gaussians, **settings), how
    raise GaussiansError(f"start {how!r} is unknown; use 'auto', 'depth', 'points' or 'random'")


def _check_points(points: np.ndarray, colors: np.ndarray, sh_degree: int) -> None:
    if sh_degree not in range(len(SH_SIZES)):
        raise GaussiansError(f"sh_degree is {sh_degree}, expected 0..{len(SH_SIZES) - 1}")
    if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0:
        raise GaussiansError(
            f"points have shape {points.shape}, expected (P, 3) with P > 0; use from_frusta without"
            " points"
        )
    if colors.shape != points.shape:
        raise GaussiansError(
            f"colors have shape {colors.shape}, expected {points.shape}: one RGB per point"
        )
    bad = ~np.isfinite(points).all(axis=1)
    if bad.any():
        raise GaussiansError(
            f"{int(bad.sum())} of {len(points)} points hold NaN or inf, first at"
            f" {int(bad.argmax())}; remove them"
        )


def _spacing(points: np.ndarray) -> np.ndarray:  # [P, 3] -> [P]
    """Mean distance to the 3 nearest other points (fewer if there are fewer); never zero."""
    size = float(np.linalg.norm(points.max(axis=0) - points.min(axis=0))) or 1.0
    k = min(4, len(points))
    if k == 1:
        return np.full(1, 0.01 * size)
    distance, _ = cKDTree(points).query(points, k=k)
    return np.maximum(distance[:, 1:].mean(axis=1), 1e-5 * size)  # duplicates have distance 0


def _round_gaussians(points, colors, sigma, opacity: float, sh_degree: int) -> Gaussians:
    """points [P, 3], colors [P, 3] in [0, 1], sigma [P] -> Gaussians of one opacity."""
    G = len(points)
    sh = torch.zeros((G, SH_SIZES[sh_degree], 3))
    sh[:, 0] = torch.from_numpy((colors - 0.5) / SH_C0)
    return Gaussians(
        means=torch.from_numpy(points).float(),
        quats=torch.tensor([1.0, 0, 0, 0]).repeat(G, 1),
        log_scales=torch.from_numpy(np.log(sigma)).float()[:, None].repeat(1, 3),
        logit_opacities=torch.full((G,), math.log(opacity / (1 - opacity))),
        sh=sh,
    )


# --------------------------------------------------------------------------- extent of a scene
def _focus_distance(views: Sequence[View]) -> float:
    """Median distance from the cameras to the point nearest to all optical axes."""
    centres = np.stack([v.camera.centre for v in views])
    axes = np.stack([v.camera.world_to_camera[2, :3] for v in views])
    spread = _camera_spread(views)
    fallback = max(10 * spread, 1.0 if spread == 0 else 0.0)
    # projects onto the plane across each axis
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    A = across.sum(axis=0)
    if np.linalg.eigvalsh(A)[0] < 1e-3 * len(views):  # (nearly) parallel axes meet nowhere
        return fallback
    meeting = np.linalg.solve(A, np.einsum("nij,nj->i", across, centres))
    ahead = ((meeting - centres) * axes).sum(axis=1)
    return float(np.median(ahead)) if np.median(ahead) > 0 else fallback


def _camera_spread(views: Sequence[View]) -> float:
    centres = np.stack([v.camera.centre for v in views])
    return float(np.linalg.norm(centres - centres.mean(axis=0), axis=1).max())


def scene_extent(gaussians: Gaussians, views: Sequence[View], *, depth_share: float = 0.3) -> float:
    """The length that learning rates and size limits of densification are relative to (world
    units).

    1.1 times the largest distance of a camera from their centre, as in 3D Gaussian Splatting, but
    at least ``depth_share`` of the median depth of the Gaussians: with cameras millimetres apart
    (video, RGB-D) the first alone would freeze the means and split every Gaussian.
    """
    means = gaussians.means.detach().double().cpu().numpy()
    depths = []
    for view in views:
        xy, z = view.camera.project(means)
        seen = (
            (z > 0.01)
            & (xy >= 0).all(axis=1)
            & (xy < [view.camera.width, view.camera.height]).all(axis=1)
        )
        depths.append(z[seen])
    depths = np.concatenate(depths)
    if not len(depths):
        raise GaussiansError(
            f"none of {len(means)} Gaussians is in front of any of {len(views)} cameras; check the"
            " poses"
        )
    return max(1.1 * _camera_spread(views), depth_share * float(np.median(depths)))


# --------------------------------------------------------------------------- fitting
@dataclass
class Companion:
    """Feature channels that `fit_rgb` trains beside the colours; densification carries
    them along.
    """

    features: Tensor  # [G, C]; after the fit a row for each Gaussian that it returned
    # view, rendered features [H, W, C] -> what is added to the colour's loss, and a score
    loss: Callable[[View, Tensor], tuple[Tensor, float]]
    optimisers: tuple[torch.optim.Optimizer, ...]  # of whatever else the loss trains
    lr: float
    betas: tuple[float, float]
    into_geometry: bool  # whether this loss also moves, shapes and densifies the Gaussians
    # a value per iteration
    curves: dict[str, list[float]] = nested(default_factory=lambda: {"loss": [], "score": []})


def fit_rgb(
    gaussians: Gaussians,
    views: Sequence[View],
    *,
    iterations: int,
    seed: int,
    densify: bool = True,
    sh_degree: int | None = None,
    background: Sequence[float] | Tensor | None = None,
    resolution: float = 1.0,
    ssim_weight: float = 0.2,
    lr_means: float = 1.6e-4,
    lr_means_final: float = 0.01,
    lr_scales: float = 5e-3,
    lr_quats: float = 1e-3,
    lr_opacities: float = 5e-2,
    lr_sh0: float = 2.5e-3,
    lr_sh_rest: float = 1.25e-4,
    sh_interval: int | None = None,
    grow_gradient: float = 2e-4,
    prune_opacity: float = 0.005,
    refine_start: int | None = None,
    refine_stop: int | None = None,
    refine_every: int = 100,
    reset_every: int = 3000,
    max_gaussians: int | None = None,
    companion: Companion | None = None,
    checkpoint: Path | None = None,
    checkpoint_every: int = 1000,
    log_every: int = 50,
    progress: bool = True,
) -> tuple[Gaussians, dict]:
    """Fit Gaussians to photographs: (1 - w) L1 + w (1 - SSIM), one random view per iteration.

    gaussians, views: the start, and the views to fit; runs on the device of the Gaussians. seed:
    decides the order of views and the positions of split Gaussians; same seed, same machine and
        same number of torch threads: same bits. The global random state is left as it was.
    sh_degree: at most that of the Gaussians (default: all of it). Bands are switched on one by one,
        every ``sh_interval`` iterations: 1000 as in 3DGS, or a quarter of a shorter run.
    background: [3] colour in [0, 1] behind everything; black if None. resolution: fit at this share
    of the image size (area-averaged); cost falls with its square. lr_*: Adam's rates, those of
    3DGS; lr_means is times ``scene_extent`` and decays exponentially to
        the share ``lr_means_final``.
    densify: grow, split and prune by gsplat's DefaultStrategy. Its own defaults suit 30k
    iterations,
        so that those which count iterations adapt: refine_start = 500 or a tenth of a shorter run
        (the gradient statistics need a pass over the views first), refine_stop = half of the run as
        in 3DGS (new Gaussians need time to settle). reset_every = 3000 stays: opacities need a few
        hundred iterations to recover, so that short runs never reset. grow_gradient is a mean
        gradient in units of half the image; raise it (4e-4) for fewer Gaussians.
    max_gaussians: growing stops once this many are reached (pruning goes on); overshoot by one
    step. companion: features that are trained beside the colours; it holds the result. checkpoint:
    file to which everything is written every ``checkpoint_every`` iterations; the same call goes on
    from it
        if it is there (on the CPU to the same bits), and deletes it at the end.
    log_every: history holds the mean of loss, PSNR and SSIM since the last entry.

    Returns the fitted Gaussians (detached) and history: lists iteration, loss (companion's
    included), psnr (dB) and ssim of the training views, count, and how many were cloned, split and
    pruned since the last entry, seconds. Raises GaussiansError for no views, when training
    diverges, or for a damaged checkpoint.
    """
    gaussians = gaussians.detach().validate()
    if not views:
        raise GaussiansError("no views to fit; give at least one training view")
    degree = gaussians.sh_degree if sh_degree is None else sh_degree
    if degree not in range(gaussians.sh_degree + 1):
        raise GaussiansError(
            f"sh_degree is {degree}, these Gaussians store degree 0..{gaussians.sh_degree}"
        )
    history: dict = {
        k: []
        for k in (
            "iteration",
            "loss",
            "psnr",
            "ssim",
            "count",
            "cloned",
            "split",
            "pruned",
            "seconds",
        )
    }
    if iterations < 1:
        return gaussians, history
    device = gaussians.means.device
    extent = scene_extent(gaussians, views)
    cameras, images = zip(*(_load(v, resolution) for v in views), strict=True)
    if background is not None:
        background = torch.as_tensor(background, dtype=torch.float32, device=device)
    sh_interval = sh_interval or max(1, min(1000, iterations // 4))

    # the names that gsplat's strategies look for
    start = {
        "means": gaussians.means,
        "scales": gaussians.log_scales,
        "quats": gaussians.quats,
        "opacities": gaussians.logit_opacities,
        "sh0": gaussians.sh[:, :1],
        "shN": gaussians.sh[:, 1 : SH_SIZES[degree]],
    }
    rates = {
        "means": lr_means * extent,
        "scales": lr_scales,
        "quats": lr_quats,
        "opacities": lr_opacities,
        "sh0": lr_sh0,
        "shN": lr_sh_rest,
    }
    if degree == 0:
        del start["shN"], rates["shN"]
    params = torch.nn.ParameterDict(
        {k: torch.nn.Parameter(v.clone().contiguous()) for k, v in start.items()}
    )
    # eps as in 3DGS: gradients per Gaussian are tiny, the default 1e-8 would damp them
    optimizers = {k: torch.optim.Adam([params[k]], lr=rates[k], eps=1e-15) for k in params}
    if companion is not None:
        params["features"] = torch.nn.Parameter(companion.features.detach().to(device).clone())
        optimizers["features"] = torch.optim.Adam(
            [params["features"]], lr=companion.lr, betas=companion.betas
        )

    def current() -> Gaussians:
        sh = torch.cat([params["sh0"], params["shN"]], dim=1) if degree else params["sh0"]
        return Gaussians(
            params["means"], params["quats"], params["scales"], params["opacities"], sh
        )

    strategy, state, changed = None, {}, {"cloned": 0, "split": 0, "pruned": 0}
    if densify:
        from gsplat.strategy import DefaultStrategy  # lazy: slow to import
        from gsplat.strategy.ops import reset_opa

        class Counting(DefaultStrategy):
            """Keeps the numbers that DefaultStrategy can only print."""

            def _grow_gs(self, *args):
                cloned, split = super()._grow_gs(*args)
                changed["cloned"] += cloned
                changed["split"] += split
                return cloned, split

            def _prune_gs(self, *args):
                pruned = super()._prune_gs(*args)
                changed["pruned"] += pruned
                return pruned

        strategy = Counting(
            grow_grad2d=grow_gradient,
            prune_opa=prune_opacity,
            refine_start_iter=min(500, iterations // 10) if refine_start is None else refine_start,
            refine_stop_iter=iterations // 2 if refine_stop is None else refine_stop,
            refine_every=refine_every,
            reset_every=reset_every,
        )
        strategy.check_sanity(params, optimizers)
        state = strategy.initialize_state(scene_scale=extent)

    rng = torch.Generator().manual_seed(seed)
    queue: list[int] = []
    sums, first, spent, began = [0.0, 0.0, 0.0, 0], 0, 0.0, time.perf_counter()
    every = [*optimizers.values(), *(companion.optimisers if companion else ())]
    # the strategy draws from torch's global generator: seed it, and give it back as it was
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        if checkpoint is not None and checkpoint.exists():
            kept = _read_checkpoint(checkpoint, device)
            first, queue, sums, history, changed, spent, state = (
                kept[k] for k in ("step", "queue", "sums", "history", "changed", "spent", "state")
            )
            for name, p in params.items():
                # in place: the optimizer knows the parameter by identity
                p.data = kept["params"][name]
            for optimizer, values in zip(every, kept["optimizers"], strict=True):
                optimizer.load_state_dict(values)
            if companion is not None:
                companion.curves = kept["curves"]
                for p, value in zip(_trained(companion), kept["trained"], strict=True):
                    p.data.copy_(value)
            rng.set_state(kept["rng"].cpu())
            torch.set_rng_state(kept["global"].cpu())
        for step in tqdm(
            range(first, iterations),
            desc="fit RGB",
            initial=first,
            total=iterations,
            disable=not progress,
        ):
            if not queue:
                queue = torch.randperm(len(views), generator=rng).tolist()
            i = queue.pop()
            optimizers["means"].param_groups[0]["lr"] = rates["means"] * lr_means_final ** (
                step / iterations
            )
            target = images[i].to(device).float() / 255
            bands, joint = (
                min(degree, step // sh_interval),
                companion is not None and companion.into_geometry,
            )
            out = rasterize(
                current(),
                cameras[i],
                params["features"] if joint else None,
                background=background,
                sh_degree=bands,
            )
            similarity = ssim(out.color, target)
            loss = (1 - ssim_weight) * F.l1_loss(out.color, target) + ssim_weight * (1 - similarity)
            if companion is not None:
                # apart where the geometry must not feel it, so that colours come out as they do
                # without
                seen = (
                    out
                    if joint
                    else rasterize(current().detach(), cameras[i], params["features"], sh_degree=0)
                )
                extra, reached = companion.loss(views[i], seen.features)
                loss = loss + extra
                companion.curves["loss"].append(float(extra.detach()))
                companion.curves["score"].append(reached)
            if strategy is not None:
                strategy.step_pre_backward(params, optimizers, state, step, out.info)
            loss.backward()
            sums = [
                a + b
                for a, b in zip(
                    sums,
                    (
                        float(loss.detach()),
                        float(psnr(out.color.detach().clamp(0, 1), target)),
                        float(similarity.detach()),
                        1,
                    ),
                )
            ]
            if not math.isfinite(sums[0]):
                raise GaussiansError(
                    f"the loss is not finite at iteration {step}; lower the learning rates or check"
                    " the poses"
                )
            for optimizer in every:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if strategy is not None:
                if max_gaussians is not None:
                    strategy.grow_grad2d = (
                        grow_gradient if len(params["means"]) < max_gaussians else math.inf
                    )
                strategy.step_post_backward(params, optimizers, state, step, out.info)
                # gsplat 1.5.3 never resets: `step % reset_every == 0 & step > 0` is always False in
                # Python
                if step > 0 and step % reset_every == 0 and step < strategy.refine_stop_iter:
                    reset_opa(
                        params=params, optimizers=optimizers, state=state, value=prune_opacity * 2
                    )
                if len(params["means"]) == 0:
                    raise GaussiansError(
                        f"every Gaussian was pruned by iteration {step}; lower prune_opacity or"
                        " check the poses"
                    )
            if (step + 1) % log_every == 0 or step + 1 == iterations:
                row = {
                    "iteration": step + 1,
                    "loss": sums[0] / sums[3],
                    "psnr": sums[1] / sums[3],
                    "ssim": sums[2] / sums[3],
                    "count": len(params["means"]),
                    **changed,
                }
                for name, value in row.items():
                    history[name].append(value)
                history["seconds"].append(round(spent + time.perf_counter() - began, 3))
                sums = [0.0, 0.0, 0.0, 0]
                changed.update(dict.fromkeys(changed, 0))
            if (
                checkpoint is not None
                and (step + 1) % checkpoint_every == 0
                and step + 1 < iterations
            ):
                kept = {
                    "step": step + 1,
                    "queue": queue,
                    "sums": sums,
                    "history": history,
                    "changed": changed,
                    "spent": spent + time.perf_counter() - began,
                    "params": {k: p.detach() for k, p in params.items()},
                    "optimizers": [o.state_dict() for o in every],
                    "state": state,
                    "rng": rng.get_state(),
                    "global": torch.get_rng_state(),
                }
                if companion is not None:
                    kept |= {
                        "curves": companion.curves,
                        "trained": [p.detach() for p in _trained(companion)],
                    }
                buffer = io.BytesIO()
                torch.save(kept, buffer)
                atomic_write(checkpoint, buffer.getvalue())
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    if companion is not None:
        companion.features = params["features"].detach()
    result = current().detach()
    if degree < gaussians.sh_degree:  # keep the stored size: a PLY of one scene has one layout
        empty = result.sh.new_zeros(
            (len(result), SH_SIZES[gaussians.sh_degree] - SH_SIZES[degree], 3)
        )
        result = result.with_sh(torch.cat([result.sh, empty], dim=1))
    return result.validate(), history


def _trained(companion: Companion) -> list[Tensor]:
    """What its optimisers train, in order."""
    return [p for o in companion.optimisers for group in o.param_groups for p in group["params"]]


def _read_checkpoint(path: Path, device: torch.device) -> dict:
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as e:  # zipfile, pickle and torch each raise their own on a damaged file
        raise GaussiansError(f"{path}: damaged ({e}); delete it, and the fit starts over") from e


def _load(view: View, resolution: float):  # -> Camera, [H, W, 3] uint8
    """Camera and photograph of a view at a share of its size."""
    image = torch.from_numpy(view.image().copy())
    if resolution == 1.0:
        return view.camera, image
    camera = view.camera.scaled(resolution)
    small = F.interpolate(
        image.permute(2, 0, 1)[None].float(), size=(camera.height, camera.width), mode="area"
    )
    return camera, small[0].permute(1, 2, 0).round().to(torch.uint8).contiguous()
