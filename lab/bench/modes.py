"""Ways to train the field on a scene: cost, loss, and the time to equal mIoU."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cclkit import config as configs
from cclkit.notebook.tables import markdown_table
from cclkit.runs.run import Run

from ..experiments.field_modes import field_study, time_to_equal
from .base import Benchmark, option


@dataclass(frozen=True)
class Modes(Benchmark):
    """What sampling, truncation and frozen geometry do to the field of a scene (`field_study`).

    The time to equal mIoU (`time_to_equal`) stands beside it. Artefacts that are there are reused
    with the times that they took when they were computed.
    """

    name = "modes"
    help = (
        "ways to train the field on a scene: joint or frozen, whole views or cached pixels, and"
        " the time to equal mIoU"
    )

    scene: str = option("tea_party")
    iterations: int = option(200)
    profile: str = option("mini")

    def measure(self) -> dict:
        run = Run(self.scene, configs.profile(self.profile))
        return {
            "benchmark": self.name,
            "scene": run.scene.name,
            "front_end": run.front_end.label,
            "profile": self.profile,
            "iterations": self.iterations,
            "threads": torch.get_num_threads(),
            "rows": _rounded(field_study(run, iterations=self.iterations)),
            "to_equal": _rounded(time_to_equal(run, iterations=self.iterations)),
        }

    @staticmethod
    def describe(result: dict) -> str:
        r = result
        caption = (
            f"Ways to train the field on {r['scene']}, {r['front_end']}, profile {r['profile']},"
            f" one seed, {r['threads']} threads: after {r['iterations']} iterations each, and after"
            " the time that whole views took for them. Seconds include the cache's build, not the"
            " reconstruction of frozen Gaussians. Memory: most that the process held meanwhile,"
            " libraries and what came before included. Loss: cross-entropy of all masked pixels,"
            " both levels. κ: codes of neighbouring views at one surface."
        )
        header = [
            "field",
            "equal",
            "iterations",
            "seconds",
            "memory MB",
            "loss",
            "κ",
            "mIoU %",
        ]
        keys = ("arm", "equal", "iterations", "seconds", "memory_mb", "loss", "kappa", "miou")
        rows = [
            [f"{row[k]:.3f}" if k in ("loss", "kappa") else row[k] for k in keys]
            for row in r["rows"]
        ]
        to_equal = [
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
        return (
            f"{caption}\n\n{markdown_table(header, rows)}"
            "\n\nTime to equal mIoU, the cache's build included:\n\n"
        ) + markdown_table(
            ["field", "iterations", "seconds", "times faster", "mIoU %", "reached"], to_equal
        )

    @staticmethod
    def summarise(result: dict) -> list[tuple[str, str, str]]:
        r = result
        what = (
            f"field of {r['scene']}: time to the mIoU of {r['iterations']} whole views, the cache's"
            " build included"
        )
        return [(what, fastest(r["to_equal"]), "≥ 10 ×")]


def fastest(rows: list[dict]) -> str:
    """Of the trainings to equal mIoU, the fastest that reached it; the first row is the aim."""
    reached = [r for r in rows[1:] if r["reached"]]
    if not reached:
        return "not reached"
    best = max(reached, key=lambda r: r["times_faster"])
    return (
        f"{best['seconds']:.1f} s against {rows[0]['seconds']:.1f} s,"
        f" {best['times_faster']:.1f} × less ({best['arm']})"
    )


def _rounded(rows: list[dict]) -> list[dict]:
    return [{k: round(v, 3) if isinstance(v, float) else v for k, v in r.items()} for r in rows]
