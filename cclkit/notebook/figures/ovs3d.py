"""Figures of notebook 06: classes under the protocols of 3D-OVS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import patches
from matplotlib.figure import Figure

from ..colours import BLUE, GREEN, ORANGE, VERMILION
from .common import blank, grid, paint, picture, plots, row_title


def classes_figure(
    columns: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]],
    classes: Sequence[str],
    colors: np.ndarray,
) -> Figure:
    """3D-OVS: photograph, labelled and predicted classes of some views in the classes' colours [C,
    3] with a legend.
    """
    fig, axes = grid(3, len(columns), width=3.0, head=0.14)
    fig.set_size_inches(fig.get_figwidth() + 1.9, fig.get_figheight())  # room for the legend
    for c, (title, image, truth, predicted) in enumerate(columns):
        picture(axes[0, c], image, title)
        picture(axes[1, c], paint(truth, colors))
        picture(axes[2, c], paint(predicted, colors))
    for r, name in enumerate(("photograph", "labels", "predicted")):
        row_title(axes[r, 0], name, at=-0.03)
    handles = [patches.Patch(color=c, label=n) for c, n in zip(colors, classes)]
    fig.legend(handles=handles, loc="outside right center", fontsize=9)
    return fig


def occam_figure(
    name: str,
    relevancy: np.ndarray,
    mask: np.ndarray,
    thresholds: np.ndarray,
    curves: Any,
    cut: float,
    limits: tuple[float, float, float],
) -> Figure:
    """A threshold that is found, not given: map, the two curves over all thresholds, their slopes
    with the stable stretch, and the mask.

    ``curves`` has mean, fraction, mean_slope, fraction_slope and regions; ``limits`` are the
    largest slope, the smallest and the largest share.
    """
    fig = blank(13.2, 2.9)
    a, b, c, d = fig.subplots(1, 4)
    picture(a, relevancy, f"relevancy of “{name}”, stretched", cmap="inferno", vmin=0, vmax=1)
    b.plot(thresholds, curves.mean, color=BLUE, label="mean of what is above")
    b.plot(thresholds, curves.fraction, color=ORANGE, label="share of pixels above")
    for share, word in zip(limits[1:], ("smallest", "largest")):
        b.axhline(share, color="0.4", lw=0.8, ls=":")
        style = {"fontsize": 7.5, "color": "0.3", "ha": "right", "va": "bottom"}
        b.text(0.99, share + 0.015, f"{word} share allowed", **style)
    b.set(title="two curves over all thresholds", xlabel="threshold", xlim=(0, 1), ylim=(0, 1.02))
    c.plot(thresholds, np.minimum(curves.mean_slope, 2), color=BLUE)
    c.plot(thresholds, np.minimum(curves.fraction_slope, 2), color=ORANGE)
    c.axhline(limits[0], color="0.3", lw=1, ls="--")
    title = "their slopes; stable below the dashed line"
    c.set(title=title, xlabel="threshold", xlim=(0, 1), ylim=(0, 2))
    for start, end in curves.regions:
        c.axvspan(thresholds[start], thresholds[end], color=GREEN, alpha=0.25, lw=0)
    for ax in (b, c):
        ax.axvline(cut, color=VERMILION, lw=1.4)
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.22), "ncols": 2}
    b.legend(fontsize=8, handlelength=1.2, columnspacing=1.0, **below)
    picture(d, mask, f"above {cut:.3f}, after the vote", cmap="gray")
    return fig


def confusion_figure(matrix: np.ndarray, names: Sequence[str]) -> Figure:
    """Where the pixels of each class went: rows are true classes, columns answers, shares of a row
    in %.
    """
    fig, axes = plots(1, 1, size=(1.9 + 0.42 * len(names), 1.5 + 0.34 * len(names)))
    ax = axes[0, 0]
    ax.imshow(matrix, vmin=0, vmax=100, cmap="Blues", aspect="auto")
    for i, j in np.argwhere(matrix >= 1):
        share = matrix[i, j]
        color = "w" if share > 55 else "0.1"
        ax.text(j, i, f"{share:.0f}", ha="center", va="center", fontsize=8, color=color)
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8.5)
    ax.set_yticks(range(len(names)), names, fontsize=8.5)
    ax.set(xlabel="answered", ylabel="true class")
    return fig
