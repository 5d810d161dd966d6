"""Speed of the rasteriser."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace

import torch

from cclkit.gaussians.rasterize import Rendering, rasterize
from cclkit.notebook.tables import markdown_table

from .base import Benchmark, option
from .problems import gaussians_in_view


@dataclass(frozen=True)
class Rasterize(Benchmark):
    """Time forward and backward of ``rasterize`` with gradients to every parameter.

    What ``channels`` has above the 3 of colour is rendered as features. Seconds are medians of
    ``repeats`` runs after one warm-up, which compiles. ``growing`` also times a quarter, half,
    twice and four times as many Gaussians, for the cost of an intersection.
    """

    name = "rasterize"
    help = "forward + backward of the rasteriser on a seeded problem"

    gaussians: int = option(20_000)
    width: int = option(320)
    height: int = option(240)
    channels: int = option(3, "3 of colour + features", least=3)
    sh_degree: int = option(3, choices=range(4))
    repeats: int = option(7)
    seed: int = option(0, least=0)
    backend: str = option("cpu", choices=("cpu", "cuda"))
    growing: bool = option(
        False, "also a quarter to four times as many Gaussians: the cost of an intersection (CPU)"
    )

    def measure(self) -> dict:
        forward, backward, out = self._times()
        total = [f + b for f, b in zip(forward, backward)]
        intersections = out.info.get("n_intersections")
        others = []
        if self.growing:
            n = self.gaussians
            for size in (n // 4, n // 2, 2 * n, 4 * n):
                own = replace(self, gaussians=max(1, size), growing=False).measure()
                others.append({k: own[k] for k in ("gaussians", "tile_intersections", "total_s")})
        return {
            "benchmark": self.name,
            "backend": self.backend,
            "gaussians": self.gaussians,
            "width": self.width,
            "height": self.height,
            "channels": self.channels,
            "sh_degree": self.sh_degree,
            "seed": self.seed,
            "tile_intersections": intersections,
            "tiles_per_gaussian": (
                None if intersections is None else round(intersections / self.gaussians, 2)
            ),
            "mean_alpha": round(float(out.alpha.detach().mean()), 4),
            "threads": torch.get_num_threads() if self.backend == "cpu" else None,
            "repeats": self.repeats,
            "forward_s": round(statistics.median(forward[1:]), 4),
            "backward_s": round(statistics.median(backward[1:]), 4),
            "total_s": round(statistics.median(total[1:]), 4),
            "best_total_s": round(min(total[1:]), 4),  # what a busy machine disturbs least
            "first_run_s": round(total[0], 2),
            "growing": others,
        }

    def _times(self) -> tuple[list[float], list[float], Rendering]:
        """Seconds of every forward and backward pass, and the last rendering."""
        gaussians, camera = gaussians_in_view(
            self.gaussians, self.width, self.height, sh_degree=self.sh_degree, seed=self.seed
        )
        if self.backend == "cuda":
            gaussians = gaussians.to("cuda")
        device = gaussians.means.device
        rng = torch.Generator().manual_seed(self.seed + 1)
        target = torch.rand((self.height, self.width, 3), generator=rng).to(device)
        features = None
        leaves = [t.requires_grad_() for t in vars(gaussians).values()]
        if self.channels > 3:
            features = torch.randn((self.gaussians, self.channels - 3), generator=rng)
            features = features.to(device).requires_grad_()
            leaves.append(features)

        def now() -> float:
            if device.type == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter()

        forward, backward = [], []
        for _ in range(self.repeats + 1):
            for leaf in leaves:
                leaf.grad = None
            t0 = now()
            out = rasterize(gaussians, camera, features, backend=self.backend)
            loss = (out.color - target).abs().mean()
            if features is not None:
                loss = loss + out.features.square().mean()
            t1 = now()
            loss.backward()
            t2 = now()
            forward.append(t1 - t0)
            backward.append(t2 - t1)
        return forward, backward, out

    @staticmethod
    def describe(result: dict) -> str:
        r = result
        caption = (
            f"CPU rasteriser, forward + backward to all parameters, median of {r['repeats']}:"
            f" {r['gaussians']:,} Gaussians, {r['width']}×{r['height']},"
            f" {r['channels']} channels, SH degree {r['sh_degree']}, {r['threads']} threads."
        )
        header = [
            "tile intersections",
            "forward s",
            "backward s",
            "total s",
            "first run s (compiles or loads)",
        ]
        seconds = (r[k] for k in ("forward_s", "backward_s", "total_s", "first_run_s"))
        row = [f"{r['tile_intersections']:,}", *(f"{s:.3f}" for s in seconds)]
        table = f"{caption}\n\n" + markdown_table(header, [row])
        if not r["growing"]:
            return table
        rows = [
            [
                f"{size['gaussians']:,}",
                f"{size['tile_intersections']:,}",
                f"{size['total_s']:.3f}",
                f"{1e9 * size['total_s'] / max(1, size['tile_intersections']):.0f}",
            ]
            for size in sorted([*r["growing"], r], key=lambda size: size["gaussians"])
        ]
        return f"{table}\n\nOver the number of Gaussians on the same image:\n\n" + markdown_table(
            ["Gaussians", "tile intersections", "total s", "ns per intersection"], rows
        )

    @staticmethod
    def summarise(result: dict) -> list[tuple[str, str, str]]:
        r = result
        what = (
            f"rasterise {r['gaussians']:,} Gaussians at {r['width']}×{r['height']}, forward and"
            " backward"
        )
        return [(what, f"{1e3 * r['total_s']:.0f} ms", "≤ 150 ms")]
