"""Speed and memory of carrying masks from view to view."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from cclkit.foundation.mini_sam2 import FOLLOW_SIZE, build_mini_sam2
from cclkit.foundation.sam2 import Sam2Config, Sam2Propagation
from cclkit.machine import peak_memory_mb
from cclkit.notebook.tables import markdown_table
from cclkit.scenes.scene import Camera, View

from .base import Benchmark, option


@dataclass(frozen=True)
class Propagation(Benchmark):
    """Time and peak memory of carrying masks with SAM2's own classes in the small architecture.

    Weights are random here: they change neither.
    """

    name = "propagation"
    help = "carrying many masks over many views: time and peak memory"

    objects: int = option(60)
    views: int = option(200)
    width: int = option(320, least=41)  # the masks are 40 pixels wide at most
    height: int = option(240, least=41)
    seed: int = option(0, least=0)

    def measure(self) -> dict:
        rng = np.random.default_rng(self.seed)
        torch.manual_seed(self.seed)
        config, size = Sam2Config(), (self.width, self.height)
        background = cv2.resize(rng.integers(0, 255, (24, 32, 3), np.uint8), size)
        masks = np.zeros((self.objects, self.height, self.width), bool)
        left = rng.integers(0, self.width - 40, self.objects)
        top = rng.integers(0, self.height - 40, self.objects)
        for m, x, y in zip(masks, left, top):
            m[y : y + 30, x : x + 30] = True
        with tempfile.TemporaryDirectory() as folder:
            views = []
            for n in range(self.views):
                path = Path(folder) / f"{n:04d}.jpg"
                cv2.imwrite(str(path), np.roll(background, n, axis=1))
                views.append(View(path.name, path, Camera(np.eye(3), np.eye(4), *size)))
            before = peak_memory_mb()
            start = time.perf_counter()
            for _ in Sam2Propagation(build_mini_sam2(FOLLOW_SIZE), config).propagate(views, masks):
                pass
            seconds = time.perf_counter() - start
        per_object = 1e3 * seconds / (self.objects * self.views)
        return {
            "benchmark": self.name,
            "objects": self.objects,
            "views": self.views,
            "width": self.width,
            "height": self.height,
            "objects_per_chunk": config.objects_per_chunk,
            "threads": torch.get_num_threads(),
            "seconds": round(seconds, 1),
            "ms_per_object_and_view": round(per_object, 2),
            "peak_memory_mb": round(peak_memory_mb()),
            "peak_before_mb": round(before),
        }

    @staticmethod
    def describe(result: dict) -> str:
        r = result
        caption = (
            "Propagation of masks by SAM2's classes in mini-SAM2's architecture,"
            f" {r['objects_per_chunk']} objects at once, images of {r['width']}×{r['height']},"
            f" {r['threads']} threads. Memory: peak of the whole process."
        )
        row = [
            r["objects"],
            r["views"],
            r["seconds"],
            r["ms_per_object_and_view"],
            f"{r['peak_memory_mb']:,}",
        ]
        return f"{caption}\n\n" + markdown_table(
            ["objects", "views", "seconds", "ms per object and view", "peak memory MB"], [row]
        )

    @staticmethod
    def summarise(result: dict) -> list[tuple[str, str, str]]:
        r = result
        what = (
            f"carry {r['objects']} masks through {r['views']} views of {r['width']}×{r['height']}"
            " (mini-SAM2)"
        )
        return [(what, f"{r['seconds']:.0f} s, {r['peak_memory_mb'] / 1024:.1f} GB", "≤ 4 GB")]
