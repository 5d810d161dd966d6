"""Benchmarks on a seeded problem: timings to compare machines and versions, never asserted in
tests.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cclkit.errors import ArtefactError, CodebookError, ConfigError, EvaluationError, MaskError
from cclkit.evaluation import lerf_ovs
from cclkit.files import atomic_write, save_json
from cclkit.gaussians.blending_cache import BlendingCache, build_blending_cache
from cclkit.gaussians.model import Gaussians
from cclkit.gaussians.rasterize import project, rasterize, splat_features
from cclkit.machine import peak_memory_mb
from cclkit.method.codebook import ccl_loss
from cclkit.method.codebook_fit import CodebookConfig, fit_codebook
from cclkit.method.field import (
    Decoder,
    FieldConfig,
    SemanticField,
    field_loss,
    field_optimiser,
    pixels_of_all_views,
    train_field,
)
from cclkit.method.masks import mask_nms
from cclkit.method.query import code_relevancy
from cclkit.notebook.tables import markdown_table
from cclkit.scenes.scene import Camera, View


def rasterize_problem(
    *,
    n_gaussians: int = 20_000,
    width: int = 320,
    height: int = 240,
    sh_degree: int = 3,
    seed: int = 0,
) -> tuple[Gaussians, Camera]:
    """The seeded problem: Gaussians spread evenly over the image at depths 2..10.

    Standard deviations are 1.5 to 8 pixels (log-uniform, per axis), opacities 0.1 to 0.9: at
    320x240 a Gaussian touches 5 to 8 tiles on average and pixels saturate in the densest places, as
    in a half-trained scene.
    """
    rng = torch.Generator().manual_seed(seed)

    def uniform(lo: float, hi: float, *shape: int) -> torch.Tensor:
        return lo + (hi - lo) * torch.rand(shape, generator=rng)

    focal = 0.9 * width
    z = uniform(2.0, 10.0, n_gaussians)
    x = (uniform(0, width, n_gaussians) - width / 2) / focal * z
    y = (uniform(0, height, n_gaussians) - height / 2) / focal * z
    sigma = torch.exp(uniform(np.log(1.5), np.log(8.0), n_gaussians, 3))  # pixels
    opacity = uniform(0.1, 0.9, n_gaussians)
    n_sh = (sh_degree + 1) ** 2
    gaussians = Gaussians(
        means=torch.stack([x, y, z], -1),
        quats=torch.randn((n_gaussians, 4), generator=rng),
        log_scales=torch.log(sigma * z[:, None] / focal),
        logit_opacities=torch.logit(opacity),
        sh=0.3 * torch.randn((n_gaussians, n_sh, 3), generator=rng),
    )
    K = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    return gaussians, Camera(K, np.eye(4), width, height)


def bench_rasterize(
    *,
    n_gaussians: int = 20_000,
    width: int = 320,
    height: int = 240,
    channels: int = 3,
    sh_degree: int = 3,
    repeats: int = 7,
    seed: int = 0,
    backend: str = "cpu",
    growing: bool = False,
) -> dict:
    """Time forward and backward of ``rasterize`` with gradients to every parameter.

    ``channels`` counts the 3 of colour; what is above 3 is rendered as features. The median of
    ``repeats`` runs after one warm-up (which compiles). ``growing`` also times a quarter, half,
    twice and four times as many Gaussians, for the cost of an intersection. Returns a JSON-able
    dict; times in seconds. Raises ConfigError for channels < 3.
    """
    if channels < 3:
        raise ConfigError(f"channels is {channels}, expected at least 3 (the colour)")
    if min(n_gaussians, width, height, repeats) < 1:
        raise ConfigError(
            f"gaussians {n_gaussians}, size {width}x{height}, repeats {repeats}: expected at least"
            " 1 of each"
        )
    gaussians, camera = rasterize_problem(
        n_gaussians=n_gaussians, width=width, height=height, sh_degree=sh_degree, seed=seed
    )
    if backend == "cuda":
        gaussians = gaussians.to("cuda")
    device = gaussians.means.device
    rng = torch.Generator().manual_seed(seed + 1)
    target = torch.rand((height, width, 3), generator=rng).to(device)
    features = (
        torch.randn((n_gaussians, channels - 3), generator=rng).to(device).requires_grad_()
        if channels > 3
        else None
    )
    leaves = [t.requires_grad_() for t in vars(gaussians).values()]
    leaves += [] if features is None else [features]

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    forward, backward, total = [], [], []
    for _ in range(repeats + 1):
        for leaf in leaves:
            leaf.grad = None
        t0 = wait()
        out = rasterize(gaussians, camera, features, backend=backend)
        loss = (out.color - target).abs().mean()
        if features is not None:
            loss = loss + out.features.square().mean()
        t1 = wait()
        loss.backward()
        t2 = wait()
        forward.append(t1 - t0)
        backward.append(t2 - t1)
        total.append(t2 - t0)
    intersections = out.info.get("n_intersections")
    rows = []
    for n in (
        (n_gaussians // 4, n_gaussians // 2, 2 * n_gaussians, 4 * n_gaussians) if growing else ()
    ):
        own = bench_rasterize(
            n_gaussians=max(1, n),
            width=width,
            height=height,
            channels=channels,
            sh_degree=sh_degree,
            repeats=repeats,
            seed=seed,
            backend=backend,
        )
        rows.append({k: own[k] for k in ("gaussians", "tile_intersections", "total_s")})
    return {
        "benchmark": "rasterize",
        "backend": backend,
        "gaussians": n_gaussians,
        "width": width,
        "height": height,
        "channels": channels,
        "sh_degree": sh_degree,
        "seed": seed,
        "tile_intersections": intersections,
        "tiles_per_gaussian": (
            None if intersections is None else round(intersections / n_gaussians, 2)
        ),
        "mean_alpha": round(float(out.alpha.detach().mean()), 4),
        "threads": torch.get_num_threads() if backend == "cpu" else None,
        "repeats": repeats,
        "forward_s": round(statistics.median(forward[1:]), 4),
        "backward_s": round(statistics.median(backward[1:]), 4),
        "total_s": round(statistics.median(total[1:]), 4),
        "best_total_s": round(min(total[1:]), 4),  # what a busy machine disturbs least
        "first_run_s": round(total[0], 2),
        "growing": rows,
    }


def mask_nms_problem(
    *, n_masks: int = 400, width: int = 320, height: int = 240, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The seeded problem: ellipses of all sizes, a third of them slightly moved copies of others;
    masks, predicted IoUs, stabilities.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    masks = np.zeros((n_masks, height, width), bool)
    for i in range(n_masks):
        if i % 3 == 2:  # what a grid of clicks gives: several times the same object
            masks[i] = np.roll(masks[rng.integers(i)], rng.integers(-2, 3, 2), (0, 1))
            continue
        cx, cy = rng.uniform(0, width), rng.uniform(0, height)
        rx, ry = np.exp(rng.uniform(np.log(3), np.log(0.3 * width), 2))
        masks[i] = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
        masks[i, int(cy), int(cx)] = True
    return masks, rng.uniform(0.7, 1, n_masks), rng.uniform(0.85, 1, n_masks)


def mask_nms_loop(
    masks: np.ndarray,
    predicted_iou: np.ndarray,
    stability: np.ndarray,
    *,
    iou_thr: float,
    score_thr: float,
    inner_thr: float,
) -> np.ndarray:
    """`cclkit.method.masks.mask_nms` as a double loop over pairs in torch: the plain way, to
    compare with.
    """
    m, score = (
        torch.from_numpy(masks),
        torch.from_numpy(predicted_iou) * torch.from_numpy(stability),
    )
    keep, area = score > score_thr, [x.sum() for x in m]
    for i in range(len(m)):
        for j in range(i + 1, len(m)):
            inter = (m[i] & m[j]).sum().double()
            a, b = area[i], area[j]
            if inter / (a + b - inter) > iou_thr:
                keep[j if score[i] >= score[j] else i] = False
            for share, other, inside in ((inter / a, inter / b, i), (inter / b, inter / a, j)):
                if share >= 0.85 and other < 0.5 and 1 - share * other > 1 - inner_thr:
                    keep[inside] = False
    return torch.nonzero(keep)[:, 0].numpy()


def bench_mask_nms(
    *, n_masks: int = 400, width: int = 320, height: int = 240, repeats: int = 5, seed: int = 0
) -> dict:
    """Time `mask_nms` against the double loop, which is run once. Raises MaskError when they
    disagree.
    """
    if min(n_masks, width, height, repeats) < 1:
        raise ConfigError(
            f"masks {n_masks}, size {width}x{height}, repeats {repeats}: expected at least 1 of"
            " each"
        )
    problem = mask_nms_problem(n_masks=n_masks, width=width, height=height, seed=seed)
    rule = {"iou_thr": 0.8, "score_thr": 0.7, "inner_thr": 0.5}
    seconds = []
    for _ in range(repeats + 1):
        t0 = time.perf_counter()
        kept = mask_nms(*problem, **rule)
        seconds.append(time.perf_counter() - t0)
    t0 = time.perf_counter()
    reference = mask_nms_loop(*problem, **rule)
    loop = time.perf_counter() - t0
    if not np.array_equal(kept, reference):
        raise MaskError(
            f"mask_nms keeps {len(kept)} masks and the double loop {len(reference)}; one of them is"
            " wrong, so a timing means nothing"
        )
    ours = statistics.median(seconds[1:])
    return {
        "benchmark": "mask_nms",
        "masks": n_masks,
        "width": width,
        "height": height,
        "seed": seed,
        "kept": len(kept),
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "matrix_s": round(ours, 4),
        "double_loop_s": round(loop, 3),
        "times_faster": round(loop / ours, 1),
    }


def codebook_problem(
    *, n_masks: int, n_prototypes: int = 128, dim: int = 512, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The seeded problem: prototypes [N, d], unit features [B, d], labels [B].

    As many labels as prototypes, whose directions have a common part, so that push acts; every mask
    is labelled, which is the most pairs there can be.
    """
    rng = torch.Generator().manual_seed(seed)
    directions = torch.randn(1, dim, generator=rng) + 0.5 * torch.randn(
        n_prototypes, dim, generator=rng
    )
    labels = torch.randint(n_prototypes, (n_masks,), generator=rng)
    features = directions[labels]
    features += 0.5 * torch.randn(n_masks, dim, generator=rng)
    features /= features.norm(dim=1, keepdim=True)
    return directions + 0.3 * torch.randn(n_prototypes, dim, generator=rng), features, labels


def ccl_loss_all_pairs(
    prototypes: torch.Tensor,
    features: torch.Tensor,
    labels: torch.Tensor,
    *,
    lambda_pull: float,
    lambda_push: float,
    margin: float,
) -> torch.Tensor:
    """The total of `cclkit.method.codebook.ccl_loss` from the table of all pairs of masks, in matrix form:
    O(B² d), to compare with.
    """
    T = prototypes / prototypes.norm(dim=1, keepdim=True)
    with torch.no_grad():
        codes = (features @ T.T).argmax(1)
    own = T[codes]  # [B, d]
    cos, same = own @ own.T, labels[:, None] == labels[None, :]  # [B, B]
    different = ~same
    same.fill_diagonal_(False)
    l_max = (1 - (features * own).sum(1)).mean()
    l_pull = ((1 - cos) * same).sum() / same.sum()
    l_push = (torch.relu(cos - margin) * different).sum() / different.sum()
    return l_max + lambda_pull * l_pull + lambda_push * l_push


def bench_codebook(
    *,
    n_masks: int = 4096,
    n_prototypes: int = 128,
    dim: int = 512,
    largest: int = 100_000,
    scene_masks: int = 2000,
    steps: int = 2000,
    repeats: int = 9,
    seed: int = 0,
) -> dict:
    """Time the CCL losses (forward + backward, input checks included), against all pairs and over
    growing batches, and a whole training.

    The growing batches come first, so that the peak of memory, which is the process's, is theirs.
    Times are medians of ``repeats`` after one warm-up; all pairs run three times. Raises
    CodebookError when both forms disagree.
    """
    if min(n_masks, n_prototypes, dim, scene_masks, steps, repeats) < 1 or largest < 8:
        raise ConfigError(
            f"masks {n_masks}, prototypes {n_prototypes}, dim {dim}, scene masks {scene_masks},"
            f" steps {steps}, repeats {repeats}, largest {largest}: expected at least 1 of each and"
            " largest >= 8"
        )
    weights = {"lambda_pull": 0.25, "lambda_push": 0.25, "margin": 0.7}

    def measured(loss, n: int, prototypes: torch.Tensor) -> tuple[float, float, torch.Tensor]:
        """Median seconds of forward + backward, total, gradient."""
        T, seconds = prototypes.clone().requires_grad_(), []
        for _ in range(n + 1):
            t0 = time.perf_counter()
            total = loss(T)
            (gradient,) = torch.autograd.grad(total, T)
            seconds.append(time.perf_counter() - t0)
        return statistics.median(seconds[1:]), float(total.detach()), gradient

    growing = []
    for B in (largest // 8, largest // 4, largest // 2, largest):
        prototypes, features, labels = codebook_problem(
            n_masks=B, n_prototypes=n_prototypes, dim=dim, seed=seed
        )
        s, *_ = measured(
            lambda T: ccl_loss(T, features, labels, **weights).total, repeats, prototypes
        )
        growing.append(
            {"masks": B, "step_s": round(s, 5), "microseconds_per_mask": round(1e6 * s / B, 3)}
        )
    # the start holds most memory
    fit_codebook(features, labels, CodebookConfig(n_prototypes=n_prototypes, steps=3), seed=seed)
    peak = peak_memory_mb()

    _, features, labels = codebook_problem(
        n_masks=scene_masks, n_prototypes=n_prototypes, dim=dim, seed=seed
    )
    t0 = time.perf_counter()
    fit_codebook(
        features, labels, CodebookConfig(n_prototypes=n_prototypes, steps=steps), seed=seed
    )
    training = time.perf_counter() - t0

    prototypes, features, labels = codebook_problem(
        n_masks=n_masks, n_prototypes=n_prototypes, dim=dim, seed=seed
    )
    counted, value, gradient = measured(
        lambda T: ccl_loss(T, features, labels, **weights).total, repeats, prototypes
    )
    pairs, reference, its_gradient = measured(
        lambda T: ccl_loss_all_pairs(T, features, labels, **weights), 3, prototypes
    )
    if (
        abs(value - reference) > 1e-4
        or (gradient - its_gradient).norm() > 1e-2 * its_gradient.norm()
    ):  # float32 over B² terms
        raise CodebookError(
            f"the losses are {value:.6f} counted and {reference:.6f} over all pairs, or their"
            " gradients differ; one of them is wrong, so a timing means nothing"
        )
    return {
        "benchmark": "codebook",
        "masks": n_masks,
        "prototypes": n_prototypes,
        "dim": dim,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "histogram_s": round(counted, 5),
        "all_pairs_s": round(pairs, 4),
        "times_faster": round(pairs / counted, 1),
        "growing": growing,
        "peak_memory_mb": round(peak),
        "scene_masks": scene_masks,
        "steps": steps,
        "training_s": round(training, 2),
    }


def field_problem(
    *,
    n_gaussians: int = 300_000,
    width: int = 988,
    height: int = 731,
    n_codes: int = 64,
    levels: int = 1,
    seed: int = 0,
) -> tuple[Gaussians, View, np.ndarray]:
    """The seeded problem: Gaussians as in `rasterize_problem`, one view, and its index maps
    [levels, H, W] int32 of ``n_codes`` stripes, upright and then level.
    """
    gaussians, camera = rasterize_problem(
        n_gaussians=n_gaussians, width=width, height=height, sh_degree=0, seed=seed
    )
    upright = np.broadcast_to(np.arange(width) * n_codes // width, (height, width))
    level = np.broadcast_to((np.arange(height) * n_codes // height)[:, None], (height, width))
    return (
        gaussians,
        View("seeded", Path("seeded"), camera),
        np.stack([upright, level][:levels]).astype(np.int32),
    )


def _field_steps(
    pixels: Callable,
    n_gaussians: int,
    config: FieldConfig,
    n_codes: int,
    repeats: int,
    generator: torch.Generator,
) -> dict[str, list[float]]:
    """Seconds of training steps of one level, after a warm-up: "wall", and "cpu" over all threads,
    which other processes disturb less.
    """
    features = (0.1 * torch.randn(n_gaussians, config.dim, generator=generator)).requires_grad_()
    decoders = [
        Decoder(config.dim, config.hidden, n_codes, normalise=config.normalise, generator=generator)
    ]
    optimiser, seconds = field_optimiser(features, decoders, config), {"wall": [], "cpu": []}
    for _ in range(repeats + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        loss, _ = field_loss(*pixels(features), decoders)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        seconds["wall"].append(time.perf_counter() - wall)
        seconds["cpu"].append(time.process_time() - cpu)
    return {k: v[1:] for k, v in seconds.items()}


def _cached_steps(
    folder: str,
    problem: tuple[Gaussians, View, np.ndarray],
    config: FieldConfig,
    n_codes: int,
    cached_pixels: int,
    repeats: int,
    seed: int,
) -> tuple[dict[str, list[float]], BlendingCache, float]:
    """Step times of the cached mode, the cache of about ``cached_pixels`` pixels, and the seconds
    its build took.
    """
    gaussians, view, index_map = problem
    start = time.perf_counter()
    cache = build_blending_cache(
        folder,
        gaussians,
        [view],
        {view.name: index_map},
        top_k=config.top_k,
        pixels_per_mask=max(1, cached_pixels // len(np.unique(index_map))),
        seed=seed,
    )
    built, generator = time.perf_counter() - start, torch.Generator().manual_seed(seed)
    pixels = pixels_of_all_views(
        cache, cache.codes({view.name: index_map}), config.batch, generator
    )
    return _field_steps(pixels, len(gaussians), config, n_codes, repeats, generator), cache, built


def bench_field(
    *,
    n_gaussians: int = 300_000,
    width: int = 988,
    height: int = 731,
    channels: int = 8,
    n_codes: int = 64,
    batch: int = 4096,
    top_k: int = 16,
    cached_pixels: int = 100_000,
    repeats: int = 5,
    curves: bool = False,
    seed: int = 0,
) -> dict:
    """Time a cached step of ``batch`` pixels against a rasterised step of a whole view, one level,
    on the CPU.

    A step is rendered features, decoder, cross-entropy, backward and the update of features and
    decoder, on both sides; projecting (done once per view) and building the cache (done once) are
    timed apart. Medians of ``repeats`` rasterised and ten times as many cached steps, after one
    warm-up. ``curves`` also times the cached step over numbers of Gaussians, pixels, entries and
    codes, one varied at a time. Returns a JSON-able dict; times in seconds, per-pixel costs in
    microseconds.
    """
    if min(n_gaussians, width, height, channels, n_codes, batch, top_k, cached_pixels, repeats) < 1:
        raise ConfigError(
            f"gaussians {n_gaussians}, size {width}x{height}, channels {channels}, codes {n_codes},"
            f" batch {batch}, top_k {top_k}, cached pixels {cached_pixels}, repeats {repeats}:"
            " expected at least 1 of each"
        )
    config, size = (
        FieldConfig(mode="cached", dim=channels, batch=batch, top_k=top_k),
        {
            "width": width,
            "height": height,
            "seed": seed,
        },
    )
    problem = gaussians, view, index_map = field_problem(
        n_gaussians=n_gaussians, n_codes=n_codes, **size
    )
    with tempfile.TemporaryDirectory() as folder:
        fast, cache, built = _cached_steps(
            folder, problem, config, n_codes, cached_pixels, 10 * repeats, seed
        )
        truncation, n_cached = cache.truncation()["mean"], len(cache)
    start = time.perf_counter()
    projection = project(gaussians, view.camera)
    projected, whole = time.perf_counter() - start, torch.from_numpy(index_map).flatten(1).long()
    slow = _field_steps(
        lambda features: (splat_features(projection, features).flatten(0, 1), whole),
        n_gaussians,
        replace(config, mode="rasterised"),
        n_codes,
        repeats,
        torch.Generator().manual_seed(seed),
    )
    median = {
        (mode, clock): statistics.median(times[clock])
        for mode, times in (("rasterised", slow), ("cached", fast))
        for clock in ("wall", "cpu")
    }
    pixel_us = {
        "rasterised": 1e6 * median["rasterised", "wall"] / (width * height),
        "cached": 1e6 * median["cached", "wall"] / batch,
    }
    rows = []
    if curves:
        for varied, values in (
            ("gaussians", (n_gaussians // 3, n_gaussians, 3 * n_gaussians)),
            ("batch", (batch // 4, batch, 4 * batch)),
            ("top_k", (top_k // 2, top_k, 2 * top_k)),
            ("codes", (n_codes // 4, n_codes, 4 * n_codes)),
        ):
            for value in values:
                at = {
                    "gaussians": n_gaussians,
                    "batch": batch,
                    "top_k": top_k,
                    "codes": n_codes,
                    varied: max(1, value),
                }
                own = (
                    problem
                    if varied in ("batch", "top_k")
                    else field_problem(n_gaussians=at["gaussians"], n_codes=at["codes"], **size)
                )
                with tempfile.TemporaryDirectory() as folder:
                    times, own_cache, _ = _cached_steps(
                        folder,
                        own,
                        replace(config, batch=at["batch"], top_k=at["top_k"]),
                        at["codes"],
                        cached_pixels,
                        10 * repeats,
                        seed,
                    )
                    missed = own_cache.truncation()["mean"]
                rows.append(
                    {
                        "varied": varied,
                        **at,
                        "step_s": round(statistics.median(times["wall"]), 5),
                        "step_cpu_s": round(statistics.median(times["cpu"]), 5),
                        "mean_truncation": round(missed, 4),
                    }
                )
    return {
        "benchmark": "field",
        "gaussians": n_gaussians,
        "width": width,
        "height": height,
        "channels": channels,
        "codes": n_codes,
        "hidden": list(config.hidden),
        "batch": batch,
        "top_k": top_k,
        "cached_pixels": n_cached,
        "mean_truncation": round(truncation, 4),
        "seed": seed,
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "project_s": round(projected, 3),
        "build_s": round(built, 3),
        "rasterised_step_s": round(median["rasterised", "wall"], 4),
        "cached_step_s": round(median["cached", "wall"], 4),
        "rasterised_step_cpu_s": round(median["rasterised", "cpu"], 4),
        "cached_step_cpu_s": round(median["cached", "cpu"], 5),
        "cpu_steps_ratio": round(median["rasterised", "cpu"] / median["cached", "cpu"], 1),
        "steps_ratio": round(median["rasterised", "wall"] / median["cached", "wall"], 1),
        "rasterised_us_per_pixel": round(pixel_us["rasterised"], 3),
        "cached_us_per_pixel": round(pixel_us["cached"], 3),
        "pixel_ratio": round(pixel_us["rasterised"] / pixel_us["cached"], 2),
        "curves": rows,
    }


def bench_field_size(
    *,
    n_gaussians: int = 1_000_000,
    width: int = 988,
    height: int = 731,
    n_views: int = 10,
    target_views: int = 300,
    cached_pixels: int = 7_000_000,
    top_k: int = 16,
    batch: int = 4096,
    n_codes: int = 64,
    levels: int = 2,
    iterations: int = 300,
    target_iterations: int = 30_000,
    seed: int = 0,
) -> dict:
    """Build a cache of ``n_views`` views of paper's size and train one or both levels on it, then
    say what the whole would take.

    The cache holds as many pixels as ``target_views`` views would bring, drawn from fewer of them,
    so that memory and steps are those of the whole; only time is extrapolated: linearly, from the
    measured mean step and view. Every view moves sideways. Memory is the peak of this process, with
    its libraries and memory-mapped pages.
    """
    if (
        min(
            n_gaussians,
            width,
            height,
            n_views,
            target_views,
            cached_pixels,
            top_k,
            batch,
            n_codes,
            iterations,
            target_iterations,
        )
        < 1
    ):
        raise ConfigError(
            f"gaussians {n_gaussians}, size {width}x{height}, views {n_views}, cached pixels"
            f" {cached_pixels}, iterations {iterations}: expected at least 1 of each"
        )
    if levels not in (1, 2):
        raise ConfigError(f"levels {levels}: expected 1 or 2")
    gaussians, first, index_map = field_problem(
        n_gaussians=n_gaussians,
        width=width,
        height=height,
        n_codes=n_codes,
        levels=levels,
        seed=seed,
    )
    # masks of both levels have numbers of their own in the cache, codes start at 0 in each
    masks = index_map + n_codes * np.arange(levels, dtype=np.int32)[:, None, None]
    views = []
    for i in range(n_views):
        pose = np.eye(4)
        pose[0, 3] = 0.05 * i
        views.append(
            View(
                f"seeded_{i:03d}",
                Path(f"seeded_{i:03d}"),
                Camera(first.camera.K, pose, width, height),
            )
        )
    maps, labels = ({v.name: m for v in views} for m in (index_map, masks))
    config = FieldConfig(mode="cached", top_k=top_k, batch=batch, iterations=iterations)
    built, cpu = [time.perf_counter()], [time.process_time()]
    with tempfile.TemporaryDirectory() as folder:

        def lap() -> None:
            built.append(time.perf_counter())
            cpu.append(time.process_time())

        cache = build_blending_cache(
            folder,
            gaussians,
            views,
            labels,
            top_k=top_k,
            pixels_per_mask=max(1, cached_pixels // n_views // n_codes // levels),
            seed=seed,
            progress=lap,
        )
        on_disk = sum(p.stat().st_size for p in Path(folder).iterdir())
        start, start_cpu = time.perf_counter(), time.process_time()
        train_field(gaussians, views, maps, [n_codes] * levels, config, seed=seed, cache=cache)
        step, step_cpu = (
            (time.perf_counter() - start) / iterations,
            (time.process_time() - start_cpu) / iterations,
        )
        n_cached = len(cache)
    per_view = np.diff(built)
    return {
        "benchmark": "field_size",
        "gaussians": n_gaussians,
        "width": width,
        "height": height,
        "views": n_views,
        "cached_pixels": n_cached,
        "cache_mb": round(on_disk / 2**20),
        "top_k": top_k,
        "batch": batch,
        "codes": n_codes,
        "levels": levels,
        "iterations": iterations,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "build_s_by_view": [round(float(s), 2) for s in per_view],
        "build_cpu_s_by_view": [round(float(s), 2) for s in np.diff(cpu)],
        "step_s": round(step, 4),
        "step_cpu_s": round(step_cpu, 4),
        "peak_memory_mb": round(peak_memory_mb()),
        "target_views": target_views,
        "target_iterations": target_iterations,
        "extrapolated_build_min": round(target_views * float(per_view.mean()) / 60, 1),
        "extrapolated_training_min": round(target_iterations * step / 60, 1),
        "extrapolated_training_cpu_min": round(target_iterations * step_cpu / 60, 1),
    }


def bench_modes(*, scene: str = "tea_party", iterations: int = 200, profile: str = "mini") -> dict:
    """What sampling, truncation and frozen geometry do to the field of a scene
    (`experiments.field_study`), and the time to equal mIoU (`experiments.time_to_equal`).

    Artefacts that are there are reused with the times that they took when they were computed.
    """
    from cclkit import config as configs
    from lab.experiments.field_modes import field_study, time_to_equal
    from cclkit.runs.run import Run

    if iterations < 1:
        raise ConfigError(f"iterations {iterations}: expected at least 1")
    run = Run(scene, configs.profile(profile))
    tidy = lambda rows: [
        {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()} for row in rows
    ]  # noqa: E731
    return {
        "benchmark": "modes",
        "scene": run.scene.name,
        "front_end": run.front_end.label,
        "profile": profile,
        "iterations": iterations,
        "threads": torch.get_num_threads(),
        "rows": tidy(field_study(run, iterations=iterations)),
        "to_equal": tidy(time_to_equal(run, iterations=iterations)),
    }


def bench_propagation(
    *, objects: int = 60, n_views: int = 200, width: int = 320, height: int = 240, seed: int = 0
) -> dict:
    """Time and peak memory of carrying masks with SAM2's own classes in the small architecture;
    weights (random here) change neither.
    """
    import cv2

    from cclkit.foundation.mini_sam2 import FOLLOW_SIZE, build_mini_sam2
    from cclkit.foundation.sam2 import Sam2Config, Sam2Propagation

    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    config = Sam2Config()
    background = cv2.resize(rng.integers(0, 255, (24, 32, 3), np.uint8), (width, height))
    masks = np.zeros((objects, height, width), bool)
    for m, x, y in zip(
        masks, rng.integers(0, width - 40, objects), rng.integers(0, height - 40, objects)
    ):
        m[y : y + 30, x : x + 30] = True
    with tempfile.TemporaryDirectory() as folder:
        views = []
        for n in range(n_views):
            path = Path(folder) / f"{n:04d}.jpg"
            cv2.imwrite(str(path), np.roll(background, n, axis=1))
            views.append(View(path.name, path, Camera(np.eye(3), np.eye(4), width, height)))
        before = peak_memory_mb()
        start = time.perf_counter()
        for _ in Sam2Propagation(build_mini_sam2(FOLLOW_SIZE), config).propagate(views, masks):
            pass
        seconds = time.perf_counter() - start
    return {
        "benchmark": "propagation",
        "objects": objects,
        "views": n_views,
        "width": width,
        "height": height,
        "objects_per_chunk": config.objects_per_chunk,
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 1),
        "ms_per_object_and_view": round(1e3 * seconds / (objects * n_views), 2),
        "peak_memory_mb": round(peak_memory_mb()),
        "peak_before_mb": round(before),
    }


def query_problem(
    *,
    width: int = 988,
    height: int = 731,
    n_codes: int = 64,
    dim: int = 512,
    views: int = 6,
    seed: int = 0,
) -> tuple[torch.Tensor, np.ndarray, torch.Tensor, torch.Tensor]:
    """The seeded problem: prototypes [N, d], code maps [views, 2, H, W] int32 of the cells around
    random points, texts [10, d], canonical phrases [4, d].
    """
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    maps = np.zeros((views, 2, height, width), np.int32)
    for codes in maps.reshape(-1, height, width):
        nearest = np.full((height, width), np.inf, np.float32)
        for code, (cy, cx) in enumerate(rng.random((n_codes, 2)) * (height, width)):
            distance = (y - np.float32(cy)) ** 2 + (x - np.float32(cx)) ** 2
            codes[distance < nearest] = code
            nearest = np.minimum(nearest, distance)
    vectors = torch.nn.functional.normalize(
        torch.randn(n_codes + 14, dim, generator=generator), dim=1
    )
    return vectors[:n_codes], maps, vectors[n_codes : n_codes + 10], vectors[n_codes + 10 :]


def langsplat_loop(maps: np.ndarray, truth: np.ndarray) -> tuple[int, np.ndarray, float]:
    """Protocol `langsplat` one pixel at a time: level, mask and IoU of relevancy [L, H, W]. The
    plain way, to compare with.
    """
    h, w = truth.shape
    smoothed, masks = [], []
    for r in maps:
        around = np.pad(r.astype(np.float64), ((15, 14), (15, 14)), mode="reflect")
        smooth = np.empty_like(r)
        for y in range(h):
            for x in range(w):
                smooth[y, x] = np.float32(0.5) * (
                    np.float32(
                        around[y : y + 30, x : x + 30].sum() * np.float64(np.float32(1 / 900))
                    )
                    + r[y, x]
                )
        low = smooth.min()
        n = np.clip((smooth - low) / ((smooth - low).max() + 1e-9) * 2 - 1, 0, 1)
        raw, mask = n > 0.4, np.zeros((h, w), bool)
        for y in range(h):
            for x in range(w):
                window = raw[max(y - 3, 0) : min(y + 4, h - 1), max(x - 3, 0) : min(x + 4, w - 1)]
                mask[y, x] = 2 * window.sum() > window.size
        smoothed.append(smooth.max())
        masks.append(mask)
    level = int(np.argmax(smoothed))
    return level, masks[level], float((masks[level] & truth).sum() / (masks[level] | truth).sum())


def bench_query(
    *,
    n_gaussians: int = 300_000,
    width: int = 988,
    height: int = 731,
    n_codes: int = 64,
    units: int = 60,
    repeats: int = 9,
    seed: int = 0,
) -> dict:
    """Time what follows training: decoding a view, a text query on it, one evaluated query against
    literal loops, many units.

    The literal loops run once. A unit is one text in one decoded view, from the lookup to IoU and
    localisation. Texts are vectors here: encoding them is the encoder's time. Returns a JSON-able
    dict; times in seconds, medians of ``repeats`` after one warm-up. Raises EvaluationError when
    the loops find another mask.
    """
    if min(n_gaussians, width, height, n_codes, units, repeats) < 1:
        raise ConfigError(
            f"gaussians {n_gaussians}, size {width}x{height}, codes {n_codes}, units {units},"
            f" repeats {repeats}: expected at least 1 of each"
        )
    prototypes, maps, texts, canonical = query_problem(
        width=width, height=height, n_codes=n_codes, views=-(-units // 10), seed=seed
    )

    def timed(f: Callable, n: int = repeats):
        """Median seconds after one warm-up, and the last result."""
        seconds = []
        for _ in range(n + 1):
            t0 = time.perf_counter()
            out = f()
            seconds.append(time.perf_counter() - t0)
        return statistics.median(seconds[1:]), out

    query_s, relevancy = timed(
        lambda: torch.stack(
            [code_relevancy(prototypes, m, texts[:1], canonical) for m in maps[0]], 1
        )[0].numpy()
    )
    truth = maps[0, 0] == int((prototypes @ texts[0]).argmax())
    ys, xs = np.nonzero(truth)
    box = [[xs.min(), ys.min(), xs.max(), ys.max()]] if len(xs) else []
    evaluated = {
        p: timed(lambda: lerf_ovs.evaluate_query(relevancy, truth, box, protocol=p))
        for p in ("langsplat", "langsplat_v2")
    }
    t0 = time.perf_counter()
    level, mask, iou = langsplat_loop(relevancy, truth)
    loop = time.perf_counter() - t0
    ours = evaluated["langsplat"][1]
    if ours.level != level or not np.array_equal(ours.mask, mask):
        raise EvaluationError(
            f"evaluate_query and the loops differ in level ({ours.level}, {level}) or in"
            f" {np.count_nonzero(ours.mask != mask)} pixels; one of them is wrong, so a timing"
            " means nothing"
        )

    def all_units(protocol: str) -> int:
        done = 0
        for view in maps:
            many = torch.stack(
                [code_relevancy(prototypes, m, texts, canonical) for m in view], 1
            ).numpy()
            for stack in many[: units - done]:
                lerf_ovs.evaluate_query(stack, truth, box, protocol=protocol)
                done += 1
        return done

    many_s = {}
    for protocol in evaluated:
        many_s[protocol], count = timed(lambda: all_units(protocol), 1)
    gaussians, view, _ = field_problem(
        n_gaussians=n_gaussians, width=width, height=height, n_codes=n_codes, seed=seed
    )
    config, generator = FieldConfig(), torch.Generator().manual_seed(seed)
    decoders = tuple(
        Decoder(
            config.dim, config.hidden, n_codes, normalise=config.normalise, generator=generator
        ).requires_grad_(False)
        for _ in range(2)
    )
    field = SemanticField(torch.randn(2, n_gaussians, config.dim, generator=generator), decoders)
    decode, _ = timed(lambda: field.codes(gaussians, view.camera), 3)
    return {
        "benchmark": "query",
        "gaussians": n_gaussians,
        "width": width,
        "height": height,
        "codes": n_codes,
        "levels": 2,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "decode_per_level_s": round(decode / 2, 3),
        "query_s": round(query_s, 4),
        "evaluate_s": round(evaluated["langsplat"][0], 4),
        "evaluate_v2_s": round(evaluated["langsplat_v2"][0], 4),
        "literal_loops_s": round(loop, 2),
        "times_faster": round(loop / evaluated["langsplat"][0], 1),
        "units": count,
        "units_s": round(many_s["langsplat"], 2),
        "units_v2_s": round(many_s["langsplat_v2"], 2),
    }


def bench_widgets(*, scene: str = "tea_party", text: str = "red apple", values: int = 6) -> dict:
    """Time from a control's new value to the new pictures in the widget, for every control of every
    explorer.

    Each control visits up to ``values`` settings spread over its range. Not timed: the way to the
    browser and drawing there. Wall time depends on what else the machine does, so the process's own
    time stands beside it. Times in milliseconds.
    """
    # the explorers bring matplotlib and ipywidgets: only this benchmark needs them
    from cclkit.notebook.widgets import Playground
    from cclkit.runs.run import Run

    begin = time.perf_counter()
    run = Run(scene)
    play = Playground(run, text)
    made = time.perf_counter() - begin
    texts = [text, *run.scene.queries, "elephant"]
    rows = []
    for explorer in play.explorers:
        for name, control in explorer.controls.items():
            before, wall, own = control.value, [], []
            if hasattr(control, "options"):
                every = list(control.options)
            elif hasattr(control, "max"):
                every = np.linspace(control.min, control.max, values).tolist()
                every = [int(v) for v in every] if isinstance(control.value, int) else every
            else:
                every = texts
            for value in [
                v
                for v in (
                    every
                    if len(every) <= values
                    else [every[int(i)] for i in np.linspace(0, len(every) - 1, values)]
                )
                if v != before
            ]:
                start = time.process_time()
                explorer.set(**{name: value})
                own.append(1e3 * (time.process_time() - start))
                wall.append(1e3 * explorer.seconds)
            explorer.set(**{name: before})
            rows.append(
                {
                    "explorer": explorer.title,
                    "control": name,
                    "settings": len(wall),
                    "median_ms": round(statistics.median(wall), 1),
                    "slowest_ms": round(max(wall), 1),
                    "slowest_process_ms": round(max(own), 1),
                }
            )
    size = run.scene.views[0].camera
    return {
        "benchmark": "widgets",
        "scene": scene,
        "views": len(run.scene.views),
        "width": size.width,
        "height": size.height,
        "front_end": run.front_end.label,
        "threads": torch.get_num_threads(),
        "made_s": round(made, 1),
        "slowest_ms": max(r["slowest_ms"] for r in rows),
        "rows": rows,
    }


def _described(result: dict) -> str:
    """Caption and table of a result."""
    if result["benchmark"] == "widgets":
        r = result
        caption = (
            f"Reaction of the playground's explorers on {r['scene']} ({r['views']} views of"
            f" {r['width']}×{r['height']}; {r['front_end']}), {r['threads']} threads: from a"
            " control's new value to new pictures, without the way to the browser. Making all"
            f" explorers: {r['made_s']} s. Process time: what the slowest redraw took of the"
            " processor."
        )
        keys = ("explorer", "control", "settings", "median_ms", "slowest_ms", "slowest_process_ms")
        return f"{caption}\n\n" + markdown_table(
            ["explorer", "control", "settings", "median ms", "slowest ms", "process time ms"],
            [[row[k] for k in keys] for row in r["rows"]],
        )
    if result["benchmark"] == "codebook":
        caption = (
            f"CCL losses, forward + backward, N = {result['prototypes']}, d = {result['dim']},"
            f" {result['threads']} threads, median of {result['repeats']}. All pairs of"
            f" {result['masks']:,} masks: {result['all_pairs_s']:.3f} s,"
            f" {result['times_faster']:.0f} times the histogram form. {result['steps']:,} training"
            f" steps on {result['scene_masks']:,} masks: {result['training_s']:.1f} s. Peak memory"
            f" at the most masks, data and training included: {result['peak_memory_mb']:,} MB."
        )
        rows = [
            [f"{r['masks']:,}", f"{1e3 * r['step_s']:.1f}", f"{r['microseconds_per_mask']:.2f}"]
            for r in (
                {
                    "masks": result["masks"],
                    "step_s": result["histogram_s"],
                    "microseconds_per_mask": 1e6 * result["histogram_s"] / result["masks"],
                },
                *result["growing"],
            )
        ]
        return f"{caption}\n\n" + markdown_table(
            ["masks", "histogram form, ms", "µs per mask"], rows
        )
    if result["benchmark"] == "modes":
        r = result
        caption = (
            f"Ways to train the field on {r['scene']}, {r['front_end']}, profile {r['profile']},"
            f" one seed, {r['threads']} threads: after {r['iterations']} iterations each, and after"
            " the time that whole views took for them. Seconds include the cache's build, not the"
            " reconstruction of frozen Gaussians. Memory: most that the process held meanwhile,"
            " libraries and what came before included. Loss: cross-entropy of all masked pixels,"
            " both levels. κ: codes of neighbouring views at one surface."
        )
        header, keys = (
            [
                "field",
                "equal",
                "iterations",
                "seconds",
                "memory MB",
                "loss",
                "κ",
                "mIoU %",
            ],
            ("arm", "equal", "iterations", "seconds", "memory_mb", "loss", "kappa", "miou"),
        )
        table = f"{caption}\n\n" + markdown_table(
            header,
            [
                [f"{row[k]:.3f}" if k in ("loss", "kappa") else row[k] for k in keys]
                for row in r["rows"]
            ],
        )
        rows = [
            [
                e["arm"],
                e["iterations"],
                e["seconds"],
                f"{e['times_faster']:.1f}",
                e["miou"],
                "yes" if e["reached"] else "no",
            ]
            for e in r["to_equal"]
        ]
        return f"{table}\n\nTime to equal mIoU, the cache's build included:\n\n" + markdown_table(
            ["field", "iterations", "seconds", "times faster", "mIoU %", "reached"], rows
        )
    if result["benchmark"] == "mask_nms":
        caption = (
            f"Mask NMS of {result['masks']} masks of {result['width']}×{result['height']}, matrix"
            f" products (median of {result['repeats']}) against a double loop over pairs in torch,"
            f" {result['threads']} threads."
        )
        return f"{caption}\n\n" + markdown_table(
            ["kept", "matrix s", "double loop s", "times faster"],
            [
                [
                    result["kept"],
                    f"{result['matrix_s']:.3f}",
                    f"{result['double_loop_s']:.2f}",
                    f"{result['times_faster']:.0f}",
                ]
            ],
        )
    if result["benchmark"] == "propagation":
        r = result
        caption = (
            "Propagation of masks by SAM2's classes in mini-SAM2's architecture,"
            f" {r['objects_per_chunk']} objects at once, images of {r['width']}×{r['height']},"
            f" {r['threads']} threads. Memory: peak of the whole process."
        )
        return f"{caption}\n\n" + markdown_table(
            ["objects", "views", "seconds", "ms per object and view", "peak memory MB"],
            [
                [
                    r["objects"],
                    r["views"],
                    r["seconds"],
                    r["ms_per_object_and_view"],
                    f"{r['peak_memory_mb']:,}",
                ]
            ],
        )
    if result["benchmark"] == "field":
        r = result
        caption = (
            f"One training step of the field (one level, features, decoder {r['hidden']},"
            f" cross-entropy, backward, update), median of {r['repeats']}: {r['gaussians']:,}"
            f" Gaussians, {r['channels']} channels, {r['codes']} codes, {r['threads']} threads. Not"
            f" timed: projecting the view ({r['project_s']} s) and building the cache"
            f" ({r['build_s']} s for this view, once). Ratio rasterised to cached:"
            f" {r['steps_ratio']} per step ({r['cpu_steps_ratio']} in processor time),"
            f" {r['pixel_ratio']} per pixel; K = {r['top_k']} misses"
            f" {100 * r['mean_truncation']:.1f} % of a pixel's weight on average."
        )
        rows = [
            [
                "rasterised",
                f"{r['width'] * r['height']:,}",
                f"{r['rasterised_step_s']:.4f}",
                f"{r['rasterised_us_per_pixel']:.2f}",
            ],
            [
                "cached",
                f"{r['batch']:,}",
                f"{r['cached_step_s']:.4f}",
                f"{r['cached_us_per_pixel']:.2f}",
            ],
        ]
        table = f"{caption}\n\n" + markdown_table(
            ["mode", "pixels per step", "step s", "µs per pixel"], rows
        )
        if not r["curves"]:
            return table
        rows = [
            [
                c["varied"],
                f"{c['gaussians']:,}",
                f"{c['batch']:,}",
                c["top_k"],
                c["codes"],
                f"{1e3 * c['step_s']:.1f}",
                f"{1e3 * c['step_cpu_s']:.1f}",
                f"{100 * c['mean_truncation']:.1f}",
            ]
            for c in r["curves"]
        ]
        return f"{table}\n\nThe cached step, one size varied at a time:\n\n" + markdown_table(
            [
                "varied",
                "Gaussians",
                "pixels per step",
                "K",
                "codes",
                "step ms",
                "processor ms",
                "missed by K, %",
            ],
            rows,
        )
    if result["benchmark"] == "field_size":
        r = result
        caption = (
            "Cached training at full size,"
            f" {'both levels together' if r['levels'] == 2 else 'one level'}: {r['gaussians']:,}"
            f" Gaussians, K = {r['top_k']}, {r['batch']:,} pixels per step, {r['cached_pixels']:,}"
            f" cached pixels ({r['cache_mb']:,} MB) of {r['views']} views of"
            f" {r['width']}×{r['height']}, {r['threads']} threads. Measured: {r['iterations']}"
            f" iterations and {r['views']} views; extrapolated from them:"
            f" {r['target_iterations']:,} iterations and {r['target_views']} views."
        )
        header = [
            "step ms",
            "build per view, s",
            "peak memory MB",
            "training, min",
            "cache build, min",
        ]
        return f"{caption}\n\n" + markdown_table(
            header,
            [
                [
                    f"{1e3 * r['step_s']:.1f}",
                    f"{min(r['build_s_by_view']):.1f} to {max(r['build_s_by_view']):.1f}",
                    f"{r['peak_memory_mb']:,}",
                    f"{r['extrapolated_training_min']:.1f}",
                    f"{r['extrapolated_build_min']:.1f}",
                ]
            ],
        )
    if result["benchmark"] == "query":
        r = result
        caption = (
            f"After training, at {r['width']}×{r['height']}, two levels, {r['codes']} codes,"
            f" {r['threads']} threads. Decoding is per level, from {r['gaussians']:,} Gaussians; a"
            " query is the relevancy of one text on decoded maps (encoding the text apart);"
            " evaluating is mask, level, IoU and localisation. Literal loops over pixels take"
            f" {r['literal_loops_s']:.1f} s for the same langsplat evaluation,"
            f" {r['times_faster']:.0f} times as long."
        )
        rows = [
            ["decode a view, per level", f"{r['decode_per_level_s']:.3f}"],
            ["text query", f"{r['query_s']:.4f}"],
            ["evaluate one query, langsplat", f"{r['evaluate_s']:.3f}"],
            ["evaluate one query, langsplat_v2", f"{r['evaluate_v2_s']:.3f}"],
            [f"{r['units']} units, langsplat", f"{r['units_s']:.2f}"],
            [f"{r['units']} units, langsplat_v2", f"{r['units_v2_s']:.2f}"],
        ]
        return f"{caption}\n\n" + markdown_table(["step", "s"], rows)
    caption = (
        f"CPU rasteriser, forward + backward to all parameters, median of {result['repeats']}:"
        f" {result['gaussians']:,} Gaussians, {result['width']}×{result['height']},"
        f" {result['channels']} channels, SH degree {result['sh_degree']}, {result['threads']}"
        " threads."
    )
    header = [
        "tile intersections",
        "forward s",
        "backward s",
        "total s",
        "first run s (compiles or loads)",
    ]
    keys = ("tile_intersections", "forward_s", "backward_s", "total_s", "first_run_s")
    table = f"{caption}\n\n" + markdown_table(
        header,
        [[f"{result[k]:,}" if k == "tile_intersections" else f"{result[k]:.3f}" for k in keys]],
    )
    if not result["growing"]:
        return table
    sizes = sorted([*result["growing"], result], key=lambda r: r["gaussians"])
    rows = [
        [
            f"{r['gaussians']:,}",
            f"{r['tile_intersections']:,}",
            f"{r['total_s']:.3f}",
            f"{1e9 * r['total_s'] / max(1, r['tile_intersections']):.0f}",
        ]
        for r in sizes
    ]
    return f"{table}\n\nOver the number of Gaussians on the same image:\n\n" + markdown_table(
        ["Gaussians", "tile intersections", "total s", "ns per intersection"], rows
    )


def _fastest(rows: list[dict]) -> str:
    """Of the trainings to equal mIoU, the fastest that reached it."""
    reached = [r for r in rows[1:] if r["reached"]]
    best = max(reached, key=lambda r: r["times_faster"], default=None)
    return (
        "not reached"
        if best is None
        else (
            f"{best['seconds']:.1f} s against {rows[0]['seconds']:.1f} s,"
            f" {best['times_faster']:.1f} × less ({best['arm']})"
        )
    )


SUMMARY: dict[str, Callable[[dict], list[tuple[str, str, str]]]] = {
    "rasterize": lambda r: [
        (
            (
                f"rasterise {r['gaussians']:,} Gaussians at {r['width']}×{r['height']}, forward and"
                " backward"
            ),
            f"{1e3 * r['total_s']:.0f} ms",
            "≤ 150 ms",
        )
    ],
    "mask_nms": lambda r: [
        (
            f"filter {r['masks']} masks of {r['width']}×{r['height']}",
            f"{1e3 * r['matrix_s']:.0f} ms, {r['times_faster']:.0f} × as fast as a double loop",
            "≥ 60 ×",
        )
    ],
    "propagation": lambda r: [
        (
            (
                f"carry {r['objects']} masks through {r['views']} views of"
                f" {r['width']}×{r['height']} (mini-SAM2)"
            ),
            f"{r['seconds']:.0f} s, {r['peak_memory_mb'] / 1024:.1f} GB",
            "≤ 4 GB",
        )
    ],
    "codebook": lambda r: [
        (
            (
                f"CCL losses of {r['masks']:,} masks, {r['prototypes']} prototypes, forward and"
                " backward"
            ),
            f"{1e3 * r['histogram_s']:.1f} ms, {r['times_faster']:.0f} × as fast as all pairs",
            "≥ 100 ×",
        ),
        (
            f"the same for {r['growing'][-1]['masks']:,} masks",
            f"{1e3 * r['growing'][-1]['step_s']:.0f} ms, {r['peak_memory_mb'] / 1024:.1f} GB",
            "≤ 2 GB",
        ),
        (
            f"{r['steps']:,} steps on a scene of {r['scene_masks']:,} masks",
            f"{r['training_s']:.0f} s",
            "≤ 30 s",
        ),
    ],
    "field": lambda r: [
        (
            (
                f"field: a cached step of {r['batch']:,} pixels against a rasterised view of"
                f" {r['width']}×{r['height']}, {r['gaussians']:,} Gaussians"
            ),
            (
                f"{1e3 * r['cached_step_s']:.1f} ms against {1e3 * r['rasterised_step_s']:,.0f} ms,"
                f" {r['steps_ratio']:.0f} ×"
            ),
            "≥ 200 ×",
        ),
    ],
    "modes": lambda r: [
        (
            (
                f"field of {r['scene']}: time to the mIoU of {r['iterations']} whole views, the"
                " cache's build included"
            ),
            _fastest(r["to_equal"]),
            "≥ 10 ×",
        )
    ],
    "field_size": lambda r: [
        (
            (
                f"field: {r['target_iterations']:,} cached steps of {r['levels']} levels,"
                f" {r['gaussians']:,} Gaussians (time extrapolated from {r['iterations']})"
            ),
            f"{r['extrapolated_training_min']:.0f} min, {r['peak_memory_mb'] / 1024:.1f} GB",
            "≤ 20 min a level, ≤ 6 GB",
        )
    ],
    "query": lambda r: [
        (
            f"decode a {r['width']}×{r['height']} view, one level",
            f"{r['decode_per_level_s']:.2f} s",
            "≤ 5 s",
        ),
        ("ask it a text", f"{1e3 * r['query_s']:.1f} ms", "≤ 20 ms"),
        (
            f"evaluate {r['units']} of them",
            f"{r['units_s']:.1f} s, a query {r['times_faster']:.0f} × as fast as loops over pixels",
            "≤ 30 s, ≥ 30 ×",
        ),
    ],
    "widgets": lambda r: [
        ("slowest redraw of a control in the playground", f"{r['slowest_ms']:.0f} ms", "≤ 150 ms")
    ],
}
"""What a visitor wants to know of a benchmark: (what, measured, aim)."""


def summary(folder: Path) -> str:
    """One table of the benchmarks whose ``bench_NAME.json`` the folder holds. Raises ArtefactError
    for files that are no results of theirs.
    """
    rows, threads = [], set()
    for name, lines in SUMMARY.items():
        path = Path(folder) / f"bench_{name}.json"
        if not path.is_file():
            continue
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            rows += lines(result)
            threads.add(result["threads"])
        except (OSError, ValueError, LookupError, TypeError) as e:
            raise ArtefactError(
                f"{path}: no result of `cclkit bench {name}` ({type(e).__name__}: {e}); run it"
                f" again with --json {path}"
            ) from e
    caption = (
        f"Measured on the CPU with {' or '.join(str(t) for t in sorted(threads, key=str))} threads;"
        " sizes, medians and whole curves stand in the tables of the single benchmarks. Aim: what"
        " we wanted."
    )
    return f"{caption}\n\n" + markdown_table(["what", "measured", "aim"], rows)


def main(argv: list[str] | None = None) -> int:
    """``cclkit bench NAME [--json PATH] [...]``: print the measurements, and write them
    if asked.
    """
    parser = argparse.ArgumentParser(prog="cclkit bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    p = commands.add_parser(
        "rasterize", help="forward + backward of the rasteriser on a seeded problem"
    )
    p.add_argument("--gaussians", type=int, default=20_000, dest="n_gaussians")
    p.add_argument("--width", type=int, default=320)
    p.add_argument("--height", type=int, default=240)
    p.add_argument("--channels", type=int, default=3, help="3 of colour + features")
    p.add_argument("--sh-degree", type=int, default=3, choices=range(4))
    p.add_argument("--repeats", type=int, default=7)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--backend", default="cpu", choices=("cpu", "cuda"))
    p.add_argument(
        "--growing",
        action="store_true",
        help="also a quarter to four times as many Gaussians: the cost of an intersection (CPU)",
    )
    p.set_defaults(measure=bench_rasterize)
    p = commands.add_parser(
        "modes",
        help=(
            "ways to train the field on a scene: joint or frozen, whole views or cached pixels, and"
            " the time to equal mIoU"
        ),
    )
    p.add_argument("--scene", default="tea_party")
    p.add_argument("--iterations", type=int, default=200)
    p.add_argument("--profile", default="mini")
    p.set_defaults(measure=bench_modes)
    p = commands.add_parser("mask_nms", help="filtering of overlapping masks against a double loop")
    p.add_argument("--masks", type=int, default=400, dest="n_masks")
    p.add_argument("--width", type=int, default=320)
    p.add_argument("--height", type=int, default=240)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--seed", type=int, default=0)
    p.set_defaults(measure=bench_mask_nms)
    p = commands.add_parser("widgets", help="reaction of the playground's explorers")
    p.add_argument("--scene", default="tea_party")
    p.add_argument("--text", default="red apple")
    p.add_argument("--values", type=int, default=6, help="settings that every control visits")
    p.set_defaults(measure=bench_widgets)
    p = commands.add_parser(
        "codebook", help="the CCL losses against all pairs, over growing batches, and a training"
    )
    p.add_argument(
        "--masks",
        type=int,
        default=4096,
        dest="n_masks",
        help="batch that is compared with all pairs",
    )
    p.add_argument("--prototypes", type=int, default=128, dest="n_prototypes")
    p.add_argument("--dim", type=int, default=512)
    p.add_argument("--largest", type=int, default=100_000, help="largest of the growing batches")
    p.add_argument("--scene-masks", type=int, default=2000, help="masks of the training")
    p.add_argument("--steps", type=int, default=2000, help="steps of the training")
    p.add_argument("--repeats", type=int, default=9)
    p.add_argument("--seed", type=int, default=0)
    p.set_defaults(measure=bench_codebook)
    p = commands.add_parser(
        "field",
        help=(
            "training step of the semantic field from the blending cache against one that"
            " rasterises a view"
        ),
    )
    p.add_argument("--gaussians", type=int, default=300_000, dest="n_gaussians")
    p.add_argument("--width", type=int, default=988)
    p.add_argument("--height", type=int, default=731)
    p.add_argument("--channels", type=int, default=8, help="length of a feature")
    p.add_argument("--codes", type=int, default=64, dest="n_codes")
    p.add_argument("--batch", type=int, default=4096, help="pixels of a cached step")
    p.add_argument("--top-k", type=int, default=16, help="Gaussians per cached pixel")
    p.add_argument("--cached-pixels", type=int, default=100_000, help="pixels in the cache, about")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--curves",
        action="store_true",
        help="also the cached step over numbers of Gaussians, pixels, entries and codes",
    )
    p.set_defaults(measure=bench_field)
    p = commands.add_parser(
        "propagation", help="carrying many masks over many views: time and peak memory"
    )
    p.add_argument("--objects", type=int, default=60)
    p.add_argument("--views", type=int, default=200, dest="n_views")
    p.add_argument("--width", type=int, default=320)
    p.add_argument("--height", type=int, default=240)
    p.add_argument("--seed", type=int, default=0)
    p.set_defaults(measure=bench_propagation)
    p = commands.add_parser(
        "field_size",
        help=(
            "cache and cached training at the paper's size: memory, and time extrapolated from some"
            " iterations"
        ),
    )
    p.add_argument("--gaussians", type=int, default=1_000_000, dest="n_gaussians")
    p.add_argument("--width", type=int, default=988)
    p.add_argument("--height", type=int, default=731)
    p.add_argument("--views", type=int, default=10, dest="n_views", help="views that are built")
    p.add_argument(
        "--target-views", type=int, default=300, help="views that the build is extrapolated to"
    )
    p.add_argument(
        "--cached-pixels",
        type=int,
        default=7_000_000,
        help="pixels in the cache, about as many as all views would bring",
    )
    p.add_argument("--top-k", type=int, default=16)
    p.add_argument("--batch", type=int, default=4096)
    p.add_argument("--codes", type=int, default=64, dest="n_codes")
    p.add_argument(
        "--levels", type=int, default=2, choices=(1, 2), help="levels that are trained together"
    )
    p.add_argument("--iterations", type=int, default=300, help="iterations that are run")
    p.add_argument(
        "--target-iterations",
        type=int,
        default=30_000,
        help="iterations that the training is extrapolated to",
    )
    p.add_argument("--seed", type=int, default=0)
    p.set_defaults(measure=bench_field_size)
    p = commands.add_parser(
        "query",
        help="decoding, text queries and evaluation of a full-size view, against literal loops",
    )
    p.add_argument("--gaussians", type=int, default=300_000, dest="n_gaussians")
    p.add_argument("--width", type=int, default=988)
    p.add_argument("--height", type=int, default=731)
    p.add_argument("--codes", type=int, default=64, dest="n_codes")
    p.add_argument("--units", type=int, default=60, help="evaluated (view, query) pairs")
    p.add_argument("--repeats", type=int, default=9)
    p.add_argument("--seed", type=int, default=0)
    p.set_defaults(measure=bench_query)
    for p in commands.choices.values():
        p.add_argument(
            "--json", type=Path, help="also write the result to this file, and a table beside it"
        )
    args = vars(parser.parse_args(argv))
    path, measure = args.pop("json"), args.pop("measure")
    args.pop("command")
    result = measure(**args)
    for key, value in result.items():
        print(f"{key:20s} {value}")
    if path is not None:
        try:
            save_json(path, result)
            atomic_write(path.with_suffix(".md"), f"{_described(result)}\n".encode())
            if path.name == f"bench_{result['benchmark']}.json":
                atomic_write(path.with_name("bench.md"), f"{summary(path.parent)}\n".encode())
        except OSError as e:
            raise ArtefactError(
                f"{path}: cannot be written ({e.strerror or e}); choose another --json path"
            ) from e
    return 0


if __name__ == "__main__":
    sys.exit(main())
