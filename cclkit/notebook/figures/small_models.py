"""Figures of notebook 90: training and scores of the small models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from ..colours import BLUE, GREEN, ORANGE, PURPLE
from .common import plots


def training_figure(
    panels: Sequence[tuple[str, Mapping[str, tuple[Sequence[float], str]], int]],
    ylabels: Sequence[str],
) -> Figure:
    """Training curves: (title, name -> (values, colour), steps per value) per panel."""
    fig, axes = plots(1, len(panels), size=(3.9, 2.9))
    for ax, (title, curves, every), ylabel in zip(axes[0], panels, ylabels):
        for label, (values, color) in curves.items():
            ax.plot(
                (np.arange(len(values)) + 0.5) * every, values, color=color, lw=1.6, label=label
            )
        ax.set(title=title, xlabel="step", ylabel=ylabel)
        if len(curves) > 1:
            ax.legend(fontsize=8)
    return fig


def tracking_figure(rows: Sequence[Mapping[str, float]], step_degrees: float, aim: float) -> Figure:
    """J of a tracker by the angle that the camera has gone round since the first view, beside two
    ways to follow nothing; dashed: what we wanted.
    """
    fig, axes = plots(1, 1, size=(6.2, 3.2))
    ax = axes[0, 0]
    angle = [r["view"] * step_degrees for r in rows]
    for key, label, color, width in (
        ("j", "tracker, both ways round", BLUE, 2.0),
        ("j_one_way", "tracker, one way", PURPLE, 1.4),
        ("j_of_copying_the_truth", "true mask, one view late", GREEN, 1.2),
        ("j_of_copying", "first mask, kept", ORANGE, 1.2),
    ):
        ax.plot(angle, [r[key] for r in rows], color=color, lw=width, label=label)
    ax.axhline(aim, color="0.4", ls="--", lw=0.9)
    ax.set(xlabel="degrees round the scene", ylabel="mean J", ylim=(0, 1), xticks=range(0, 361, 60))
    ax.legend(fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=2)
    return fig


def sizes_figure(
    curves: Mapping[str, Sequence[Mapping[str, float]]], targets: Mapping[str, float], smallest: int
) -> Figure:
    """IoU after one click over the size of the region clicked on, per granularity at its own
    output; dashed: what we wanted.
    """
    fig, axes = plots(1, 1, size=(6.2, 3.4))
    ax = axes[0, 0]
    for (level, rows), color in zip(curves.items(), (ORANGE, GREEN, BLUE)):
        x = [np.sqrt(r["from_px"] * r["to_px"]) for r in rows]
        ax.plot(x, [r["iou"] for r in rows], "o-", color=color, label=level)
        ax.plot([smallest, ax.get_xlim()[1]], [targets[level]] * 2, color=color, ls="--", lw=0.9)
    ax.axvline(smallest, color="0.6", lw=1, ls=":")
    ax.set(xscale="log", xlabel="pixels of the region", ylabel="IoU after one click", ylim=(0, 1))
    ax.legend(fontsize=9, loc="upper left")
    return fig
