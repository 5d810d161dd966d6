"""Speed of the filter of overlapping masks."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from cclkit.errors import MaskError
from cclkit.method.masks import mask_nms
from cclkit.notebook.tables import markdown_table

from .. import reference
from .base import Benchmark, option, timed


@dataclass(frozen=True)
class MaskNms(Benchmark):
    """Time `mask_nms` against the double loop, which is run once.

    Measuring raises MaskError when they disagree.
    """

    name = "mask_nms"
    help = "filtering of overlapping masks against a double loop"

    masks: int = option(400)
    width: int = option(320)
    height: int = option(240)
    repeats: int = option(5)
    seed: int = option(0, least=0)

    def measure(self) -> dict:
        problem = self.problem()
        rule = {"iou_thr": 0.8, "score_thr": 0.7, "inner_thr": 0.5}
        ours, kept = timed(lambda: mask_nms(*problem, **rule), self.repeats)
        start = time.perf_counter()
        slowly = reference.mask_nms(*problem, **rule)
        loop = time.perf_counter() - start
        if not np.array_equal(kept, slowly):
            raise MaskError(
                f"mask_nms keeps {len(kept)} masks and the double loop {len(slowly)}; one of them"
                " is wrong, so a timing means nothing"
            )
        return {
            "benchmark": self.name,
            "masks": self.masks,
            "width": self.width,
            "height": self.height,
            "seed": self.seed,
            "kept": len(kept),
            "threads": torch.get_num_threads(),
            "repeats": self.repeats,
            "matrix_s": round(ours, 4),
            "double_loop_s": round(loop, 3),
            "times_faster": round(loop / ours, 1),
        }

    def problem(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ellipses of all sizes, a third of them slightly moved copies of others.

        Masks bool [n, H, W], predicted IoUs [n], stabilities [n].
        """
        n, width, height = self.masks, self.width, self.height
        rng = np.random.default_rng(self.seed)
        y, x = np.mgrid[:height, :width]
        masks = np.zeros((n, height, width), bool)
        for i in range(n):
            if i % 3 == 2:  # what a grid of clicks gives: several times the same object
                masks[i] = np.roll(masks[rng.integers(i)], rng.integers(-2, 3, 2), (0, 1))
                continue
            cx, cy = rng.uniform(0, width), rng.uniform(0, height)
            rx, ry = np.exp(rng.uniform(np.log(3), np.log(0.3 * width), 2))
            masks[i] = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
            masks[i, int(cy), int(cx)] = True
        return masks, rng.uniform(0.7, 1, n), rng.uniform(0.85, 1, n)

    @staticmethod
    def describe(result: dict) -> str:
        r = result
        caption = (
            f"Mask NMS of {r['masks']} masks of {r['width']}×{r['height']}, matrix products (median"
            f" of {r['repeats']}) against a double loop over pairs in torch, {r['threads']}"
            " threads."
        )
        row = [
            r["kept"],
            f"{r['matrix_s']:.3f}",
            f"{r['double_loop_s']:.2f}",
            f"{r['times_faster']:.0f}",
        ]
        return f"{caption}\n\n" + markdown_table(
            ["kept", "matrix s", "double loop s", "times faster"], [row]
        )

    @staticmethod
    def summarise(result: dict) -> list[tuple[str, str, str]]:
        r = result
        measured = (
            f"{1e3 * r['matrix_s']:.0f} ms, {r['times_faster']:.0f} × as fast as a double loop"
        )
        return [(f"filter {r['masks']} masks of {r['width']}×{r['height']}", measured, "≥ 60 ×")]
