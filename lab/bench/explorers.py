"""Reaction of the playground's explorers."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cclkit.notebook.tables import markdown_table
from cclkit.runs.run import Run

from .base import Benchmark, option


@dataclass(frozen=True)
class Widgets(Benchmark):
    """Time from a control's new value to the new pictures, for every control of every explorer.

    Each control visits up to ``values`` settings spread over its range. Not timed: the way to the
    browser and drawing there. Wall time depends on what else the machine does, so the process's own
    time stands beside it. Times in milliseconds.
    """

    name = "widgets"
    help = "reaction of the playground's explorers"

    scene: str = option("tea_party")
    text: str = option("red apple")
    values: int = option(6, "settings that every control visits")

    def measure(self) -> dict:
        # the explorers bring matplotlib and ipywidgets: only this benchmark needs them
        from cclkit.notebook.widgets import Playground

        begin = time.perf_counter()
        run = Run(self.scene)
        play = Playground(run, self.text)
        made = time.perf_counter() - begin
        texts = [self.text, *run.scene.queries, "elephant"]
        rows = [
            self._visited(explorer, name, control, texts)
            for explorer in play.explorers
            for name, control in explorer.controls.items()
        ]
        size = run.scene.views[0].camera
        return {
            "benchmark": self.name,
            "scene": self.scene,
            "views": len(run.scene.views),
            "width": size.width,
            "height": size.height,
            "front_end": run.front_end.label,
            "threads": torch.get_num_threads(),
            "made_s": round(made, 1),
            "slowest_ms": max(r["slowest_ms"] for r in rows),
            "rows": rows,
        }

    def _visited(self, explorer: Any, name: str, control: Any, texts: list[str]) -> dict:
        """The row of one control, which has its old value again afterwards."""
        before, wall, own = control.value, [], []
        for value in self._settings(control, texts):
            if value == before:
                continue
            start = time.process_time()
            explorer.set(**{name: value})
            own.append(1e3 * (time.process_time() - start))
            wall.append(1e3 * explorer.seconds)
        explorer.set(**{name: before})
        return {
            "explorer": explorer.title,
            "control": name,
            "settings": len(wall),
            "median_ms": round(statistics.median(wall), 1),
            "slowest_ms": round(max(wall), 1),
            "slowest_process_ms": round(max(own), 1),
        }

    def _settings(self, control: Any, texts: list[str]) -> list:
        """Up to ``values`` settings of a control, spread over its range."""
        if hasattr(control, "options"):
            every = list(control.options)
        elif hasattr(control, "max"):
            every = np.linspace(control.min, control.max, self.values).tolist()
            every = [int(v) for v in every] if isinstance(control.value, int) else every
        else:
            every = texts
        if len(every) <= self.values:
            return every
        return [every[int(i)] for i in np.linspace(0, len(every) - 1, self.values)]

    @staticmethod
    def describe(result: dict) -> str:
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

    @staticmethod
    def summarise(result: dict) -> list[tuple[str, str, str]]:
        what = "slowest redraw of a control in the playground"
        return [(what, f"{result['slowest_ms']:.0f} ms", "≤ 150 ms")]
