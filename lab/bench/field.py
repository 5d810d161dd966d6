"""Speed of the semantic field's training: one step, the paper's size, and the ways to train."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from cclkit.gaussians.blending_cache import BlendingCache, build_blending_cache
from cclkit.gaussians.model import Gaussians
from cclkit.gaussians.rasterize import project, splat_features
from cclkit.machine import peak_memory_mb
from cclkit.method.field import (
    Decoder,
    FieldConfig,
    field_loss,
    field_optimiser,
)
from cclkit.method.field_cached import pixels_of_all_views, train_field_variant
from cclkit.notebook.tables import markdown_table
from cclkit.scenes.scene import Camera, View

from .base import Benchmark, option
from .problems import field_of_stripes

Problem = tuple[Gaussians, View, np.ndarray]
Times = dict[str, list[float]]
"""Seconds of every step: "wall", and "cpu" over all threads, which other processes disturb less."""


@dataclass(frozen=True)
class Field(Benchmark):
    """Time a cached step of ``batch`` pixels against a rasterised step of a whole view.

    One level, on the CPU. A step is rendered features, decoder, cross-entropy, backward and the
    update of features and decoder, on both sides; projecting (done once per view) and building the
    cache (done once) are timed apart. Medians of ``repeats`` rasterised and ten times as many
    cached steps, after one warm-up; seconds, per-pixel costs in microseconds.
    """

    name = "field"
    help = (
        "training step of the semantic field from the blending cache against one that rasterises a"
        " view"
    )

    gaussians: int = option(300_000)
    width: int = option(988)
    height: int = option(731)
    channels: int = option(8, "length of a feature")
    codes: int = option(64)
    batch: int = option(4096, "pixels of a cached step")
    top_k: int = option(16, "Gaussians per cached pixel")
    cached_pixels: int = option(100_000, "pixels in the cache, about")
    repeats: int = option(5)
    seed: int = option(0, least=0)
    curves: bool = option(
        False, "also the cached step over numbers of Gaussians, pixels, entries and codes"
    )

    def measure(self) -> dict:
        problem = gaussians, view, index_map = self._problem()
        with tempfile.TemporaryDirectory() as folder:
            fast, cache, built = self._cached_steps(folder, problem)
            truncation, n_cached = cache.truncation()["mean"], len(cache)
        start = time.perf_counter()
        projection = project(gaussians, view.camera)
        projected = time.perf_counter() - start
        whole = torch.from_numpy(index_map).flatten(1).long()
        slow = self._steps(
            lambda features: (splat_features(projection, features).flatten(0, 1), whole),
            replace(self._config(), mode="rasterised"),
            self.repeats,
            torch.Generator().manual_seed(self.seed),
        )
        rasterised, cached = (
            {clock: statistics.median(t) for clock, t in times.items()} for times in (slow, fast)
        )
        rasterised_us = 1e6 * rasterised["wall"] / (self.width * self.height)
        cached_us = 1e6 * cached["wall"] / self.batch
        return {
            "benchmark": self.name,
            "gaussians": self.gaussians,
            "width": self.width,
            "height": self.height,
            "channels": self.channels,
            "codes": self.codes,
            "hidden": list(self._config().hidden),
            "batch": self.batch,
            "top_k": self.top_k,
            "cached_pixels": n_cached,
            "mean_truncation": round(truncation, 4),
            "seed": self.seed,
            "threads": torch.get_num_threads(),
            "repeats": self.repeats,
            "project_s": round(projected, 3),
            "build_s": round(built, 3),
            "rasterised_step_s": round(rasterised["wall"], 4),
            "cached_step_s": round(cached["wall"], 4),
            "rasterised_step_cpu_s": round(rasterised["cpu"], 4),
            "cached_step_cpu_s": round(cached["cpu"], 5),
            "cpu_steps_ratio": round(rasterised["cpu"] / cached["cpu"], 1),
            "steps_ratio": round(rasterised["wall"] / cached["wall"], 1),
            "rasterised_us_per_pixel": round(rasterised_us, 3),
            "cached_us_per_pixel": round(cached_us, 3),
            "pixel_ratio": round(rasterised_us / cached_us, 2),
            "curves": self._curves(problem) if self.curves else [],
        }

    def _curves(self, problem: Problem) -> list[dict]:
        """The cached step over sizes, one varied at a time."""
        rows = []
        for varied, values in (
            ("gaussians", (self.gaussians // 3, self.gaussians, 3 * self.gaussians)),
            ("batch", (self.batch // 4, self.batch, 4 * self.batch)),
            ("top_k", (self.top_k // 2, self.top_k, 2 * self.top_k)),
            ("codes", (self.codes // 4, self.codes, 4 * self.codes)),
        ):
            for value in values:
                at = replace(self, **{varied: max(1, value)})
                own = problem if varied in ("batch", "top_k") else at._problem()
                with tempfile.TemporaryDirectory() as folder:
                    times, cache, _ = at._cached_steps(folder, own)
                    missed = cache.truncation()["mean"]
                rows.append(
                    {
                        "varied": varied,
                        "gaussians": at.gaussians,
                        "batch": at.batch,
                        "top_k": at.top_k,
                        "codes": at.codes,
                        "step_s": round(statistics.median(times["wall"]), 5),
                        "step_cpu_s": round(statistics.median(times["cpu"]), 5),
                        "mean_truncation": round(missed, 4),
                    }
                )
        return rows

    def _config(self) -> FieldConfig:
        return FieldConfig(mode="cached", dim=self.channels, batch=self.batch, top_k=self.top_k)

    def _problem(self) -> Problem:
        return field_of_stripes(self.gaussians, self.width, self.height, self.codes, seed=self.seed)

    def _cached_steps(self, folder: str, problem: Problem) -> tuple[Times, BlendingCache, float]:
        """Step times of the cached mode, the cache, and the seconds that its build took."""
        gaussians, view, index_map = problem
        start = time.perf_counter()
        cache = build_blending_cache(
            folder,
            gaussians,
            [view],
            {view.name: index_map},
            top_k=self.top_k,
            pixels_per_mask=max(1, self.cached_pixels // len(np.unique(index_map))),
            seed=self.seed,
        )
        built, generator = time.perf_counter() - start, torch.Generator().manual_seed(self.seed)
        codes = cache.codes({view.name: index_map})
        pixels = pixels_of_all_views(cache, codes, self.batch, generator)
        times = self._steps(pixels, self._config(), 10 * self.repeats, generator)
        return times, cache, built

    def _steps(
        self, pixels: Callable, config: FieldConfig, repeats: int, generator: torch.Generator
    ) -> Times:
        """Times of training steps of one level, after one that warms up."""
        features = 0.1 * torch.randn(self.gaussians, config.dim, generator=generator)
        features.requires_grad_()
        decoders = [
            Decoder(
                config.dim,
                config.hidden,
                self.codes,
                normalise=config.normalise,
                generator=generator,
            )
        ]
        optimiser = field_optimiser(features, decoders, config)
        times: Times = {"wall": [], "cpu": []}
        for _ in range(repeats + 1):
            wall, cpu = time.perf_counter(), time.process_time()
            loss, _ = field_loss(*pixels(features), decoders)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            times["wall"].append(time.perf_counter() - wall)
            times["cpu"].append(time.process_time() - cpu)
        return {clock: t[1:] for clock, t in times.items()}

    @staticmethod
    def describe(result: dict) -> str:
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
            [mode, f"{pixels:,}", f"{r[f'{mode}_step_s']:.4f}", f"{r[f'{mode}_us_per_pixel']:.2f}"]
            for mode, pixels in (("rasterised", r["width"] * r["height"]), ("cached", r["batch"]))
        ]
        table = f"{caption}\n\n" + markdown_table(
            ["mode", "pixels per step", "step s", "µs per pixel"], rows
        )
        if not r["curves"]:
            return table
        header = [
            "varied",
            "Gaussians",
            "pixels per step",
            "K",
            "codes",
            "step ms",
            "processor ms",
            "missed by K, %",
        ]
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
            header, rows
        )

    @staticmethod
    def summarise(result: dict) -> list[tuple[str, str, str]]:
        r = result
        what = (
            f"field: a cached step of {r['batch']:,} pixels against a rasterised view of"
            f" {r['width']}×{r['height']}, {r['gaussians']:,} Gaussians"
        )
        measured = (
            f"{1e3 * r['cached_step_s']:.1f} ms against {1e3 * r['rasterised_step_s']:,.0f} ms,"
            f" {r['steps_ratio']:.0f} ×"
        )
        return [(what, measured, "≥ 200 ×")]


@dataclass(frozen=True)
class FieldSize(Benchmark):
    """Build a cache of some views of the paper's size, train on it, and say what all would take.

    The cache holds as many pixels as ``target_views`` views would bring, drawn from fewer of them,
    so that memory and steps are those of the whole; only time is extrapolated: linearly, from the
    measured mean step and view. Every view moves sideways. Memory is the peak of this process, with
    its libraries and memory-mapped pages.
    """

    name = "field_size"
    help = (
        "cache and cached training at the paper's size: memory, and time extrapolated from some"
        " iterations"
    )

    gaussians: int = option(1_000_000)
    width: int = option(988)
    height: int = option(731)
    views: int = option(10, "views that are built")
    target_views: int = option(300, "views that the build is extrapolated to")
    cached_pixels: int = option(
        7_000_000, "pixels in the cache, about as many as all views would bring"
    )
    top_k: int = option(16)
    batch: int = option(4096)
    codes: int = option(64)
    levels: int = option(2, "levels that are trained together", choices=(1, 2))
    iterations: int = option(300, "iterations that are run")
    target_iterations: int = option(30_000, "iterations that the training is extrapolated to")
    seed: int = option(0, least=0)

    def measure(self) -> dict:
        gaussians, first, index_map = field_of_stripes(
            self.gaussians, self.width, self.height, self.codes, levels=self.levels, seed=self.seed
        )
        # masks of both levels have numbers of their own in the cache, codes start at 0 in each
        masks = index_map + self.codes * np.arange(self.levels, dtype=np.int32)[:, None, None]
        views = self._sideways(first.camera)
        config = FieldConfig(
            mode="cached", top_k=self.top_k, batch=self.batch, iterations=self.iterations
        )
        wall, cpu = [time.perf_counter()], [time.process_time()]

        def lap() -> None:
            wall.append(time.perf_counter())
            cpu.append(time.process_time())

        with tempfile.TemporaryDirectory() as folder:
            cache = build_blending_cache(
                folder,
                gaussians,
                views,
                {v.name: masks for v in views},
                top_k=self.top_k,
                pixels_per_mask=max(
                    1, self.cached_pixels // self.views // self.codes // self.levels
                ),
                seed=self.seed,
                progress=lap,
            )
            on_disk = sum(p.stat().st_size for p in Path(folder).iterdir())
            start, start_cpu = time.perf_counter(), time.process_time()
            train_field_variant(
                gaussians,
                views,
                {v.name: index_map for v in views},
                [self.codes] * self.levels,
                config,
                seed=self.seed,
                cache=cache,
            )
            step = (time.perf_counter() - start) / self.iterations
            step_cpu = (time.process_time() - start_cpu) / self.iterations
            n_cached = len(cache)
        build = np.diff(wall)
        return {
            "benchmark": self.name,
            "gaussians": self.gaussians,
            "width": self.width,
            "height": self.height,
            "views": self.views,
            "cached_pixels": n_cached,
            "cache_mb": round(on_disk / 2**20),
            "top_k": self.top_k,
            "batch": self.batch,
            "codes": self.codes,
            "levels": self.levels,
            "iterations": self.iterations,
            "seed": self.seed,
            "threads": torch.get_num_threads(),
            "build_s_by_view": [round(float(s), 2) for s in build],
            "build_cpu_s_by_view": [round(float(s), 2) for s in np.diff(cpu)],
            "step_s": round(step, 4),
            "step_cpu_s": round(step_cpu, 4),
            "peak_memory_mb": round(peak_memory_mb()),
            "target_views": self.target_views,
            "target_iterations": self.target_iterations,
            "extrapolated_build_min": round(self.target_views * float(build.mean()) / 60, 1),
            "extrapolated_training_min": round(self.target_iterations * step / 60, 1),
            "extrapolated_training_cpu_min": round(self.target_iterations * step_cpu / 60, 1),
        }

    def _sideways(self, camera: Camera) -> list[View]:
        """Views whose cameras stand 0.05 apart."""
        views = []
        for i in range(self.views):
            pose, name = np.eye(4), f"seeded_{i:03d}"
            pose[0, 3] = 0.05 * i
            views.append(View(name, Path(name), Camera(camera.K, pose, self.width, self.height)))
        return views

    @staticmethod
    def describe(result: dict) -> str:
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
        row = [
            f"{1e3 * r['step_s']:.1f}",
            f"{min(r['build_s_by_view']):.1f} to {max(r['build_s_by_view']):.1f}",
            f"{r['peak_memory_mb']:,}",
            f"{r['extrapolated_training_min']:.1f}",
            f"{r['extrapolated_build_min']:.1f}",
        ]
        return f"{caption}\n\n" + markdown_table(header, [row])

    @staticmethod
    def summarise(result: dict) -> list[tuple[str, str, str]]:
        r = result
        what = (
            f"field: {r['target_iterations']:,} cached steps of {r['levels']} levels,"
            f" {r['gaussians']:,} Gaussians (time extrapolated from {r['iterations']})"
        )
        measured = f"{r['extrapolated_training_min']:.0f} min, {r['peak_memory_mb'] / 1024:.1f} GB"
        return [(what, measured, "≤ 20 min a level, ≤ 6 GB")]
