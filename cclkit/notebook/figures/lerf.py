"""Figures of notebook 05: queries under the protocols of LERF-OVS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ...method.masks import LEVELS
from ..colours import BLUE, GREEN, ORANGE, VERMILION
from .common import TRUE, grid, highlight, picture, plots, row_title


def query_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """One row per query: photograph with ground truth, relevancy of both levels, predicted mask
    with its IoU.

    A row holds text, image, truth, relevancy [2, H, W], level, mask, iou, and optionally a note on
    the answer.
    """
    fig, axes = grid(len(rows), 4, width=2.75, head=0.32)
    for r, row in enumerate(rows):
        truth = highlight(row["image"], row["truth"], TRUE)
        picture(axes[r, 0], truth, f"“{row['text']}” — ground truth")
        for n, level in enumerate(LEVELS):
            chosen = " (chosen)" if n == row["level"] else ""
            shown = row["relevancy"][n]
            title = f"relevancy, {level}{chosen}, at most {shown.max():.2f}"
            picture(axes[r, 1 + n], shown, title, vmin=0, vmax=1, cmap="inferno")
        note = f"\n{row['note']}" if row.get("note") else ""
        answer = highlight(row["image"], row["mask"])
        picture(axes[r, 3], answer, f"answer, IoU {100 * row['iou']:.0f} %{note}")
    style = {"shrink": 0.3, "aspect": 40, "pad": 0.02, "label": "relevancy"}
    bar = fig.colorbar(axes[-1, 2].images[0], ax=axes, location="bottom", **style)
    bar.ax.tick_params(labelsize=8)
    return fig


def steps_figure(
    image: np.ndarray,
    truth: np.ndarray,
    rows: Sequence[tuple[str, Sequence[tuple[str, np.ndarray]]]],
) -> Figure:
    """The steps of a protocol on one query, left to right, a row per level: (row title, [(step
    title, map [H, W])]). Maps share 0..1.
    """
    fig, axes = grid(len(rows), len(rows[0][1]) + 1, width=2.25)
    for r, (title, steps) in enumerate(rows):
        picture(axes[r, 0], highlight(image, truth, TRUE), "ground truth" if r == 0 else "")
        row_title(axes[r, 0], title)
        for ax, (name, m) in zip(axes[r, 1:], steps):
            picture(ax, m, name, cmap="inferno" if m.dtype != bool else "gray", vmin=0, vmax=1)
    return fig


def bars_figure(
    names: Sequence[str], values: Sequence[float], xlabel: str, *, mean: float | None = None
) -> Figure:
    """Horizontal bars, one per query or class, with the mean drawn in."""
    fig, axes = plots(1, 1, size=(6.4, 0.6 + 0.24 * len(names)))
    ax = axes[0, 0]
    y = np.arange(len(names))[::-1]
    ax.barh(y, values, color=BLUE, height=0.7)
    ax.set_yticks(y, names, fontsize=9)
    ax.set(xlabel=xlabel, xlim=(0, 100))
    if mean is not None:
        ax.axvline(mean, color=VERMILION, lw=1.4)
        style = {"color": VERMILION, "ha": "center", "va": "bottom", "fontsize": 9}
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        ax.text(mean, len(names) - 0.35, f"mean {mean:.1f}", bbox=box, **style)
    return fig


def thresholds_figure(curves: Sequence[tuple[str, np.ndarray, np.ndarray]], cut: float) -> Figure:
    """IoU against the threshold on the stretched map, a line per level: (name, thresholds, IoU);
    the protocol's cut is marked.
    """
    fig, axes = plots(1, 1, size=(5.4, 2.9))
    ax = axes[0, 0]
    for (name, at, iou), color in zip(curves, (ORANGE, BLUE, GREEN)):
        best = int(np.argmax(iou))
        label = f"{name}: best {100 * iou[best]:.0f} % at {at[best]:.2f}"
        ax.plot(at, 100 * iou, color=color, lw=1.8, label=label)
        ax.plot(at[best], 100 * iou[best], "o", color=color, ms=6)
    ax.axvline(cut, color="0.2", lw=1.1, ls="--")
    ax.text(cut + 0.01, 101, f"the protocol cuts at {cut:g}", fontsize=9, ha="center", va="bottom")
    xlabel = "threshold on the map stretched to 0..1"
    ax.set(xlabel=xlabel, ylabel="IoU, %", xlim=(0, 1), ylim=(0, 100))
    ax.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return fig


def traps_figure(rows: Sequence[tuple[str, float, float]]) -> Figure:
    """What one changed step does to the two scores: (step, mIoU %, localisation %), the protocol
    itself first.
    """
    fig, axes = plots(1, 2, size=(3.4, 0.7 + 0.3 * len(rows)), sharey=True)
    y = np.arange(len(rows))[::-1]
    for ax, column, title in ((axes[0, 0], 1, "mIoU, %"), (axes[0, 1], 2, "localisation, %")):
        values = np.array([r[column] for r in rows])
        ax.axvline(values[0], color="0.3", lw=1.0, ls="--")
        colors = [VERMILION if v < values[0] else GREEN for v in values[1:]]
        ax.hlines(y[1:], values[0], values[1:], color=colors, lw=2.4)
        ax.plot(values, y, "o", color="0.15", ms=5)
        for v, at in zip(values, y):
            ax.text(103, at, f"{v:.1f}", va="center", fontsize=9)
        ax.set(xlabel=title, xlim=(0, 100), ylim=(-0.7, len(rows) - 0.3))
    axes[0, 0].set_yticks(y, [r[0] for r in rows], fontsize=9)
    return fig
