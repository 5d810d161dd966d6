"""Figures of notebook 01: clicks, candidates, label maps, incomplete masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from ...method.masks import LEVELS, ViewMasks
from ...scenes.scene import View
from ..colours import SKY, VERMILION, YELLOW, label_colors
from .common import blank, edges, grid, highlight, overlay, paint, picture, row_title, whole_numbers

OUTPUT_NAMES = ("output 0: subpart", "output 1: part", "output 2: whole")


def clicks_figure(
    image: np.ndarray, clicks: Sequence[tuple[str, tuple[float, float], np.ndarray, Sequence[str]]]
) -> Figure:
    """The three answers to single clicks: (name, click x y, masks [3, H, W], a note per mask), one
    row each.
    """
    fig, axes = grid(len(clicks), 4, width=2.9, head=0.42)
    for row, (name, (x, y), masks, notes) in zip(axes, clicks):
        picture(row[0], image, f"click on the {name}")
        row[0].plot(x, y, marker="*", ms=15, color=YELLOW, mec="black", mew=0.8)
        for ax, mask, output, note in zip(row[1:], masks, OUTPUT_NAMES, notes):
            picture(ax, highlight(image, mask), f"{output}\n{note}")
            ax.plot(x, y, marker="*", ms=9, color=YELLOW, mec="black", mew=0.6)
    return fig


def candidates_figure(
    view: View, masks: np.ndarray, output: np.ndarray, points_per_side: int
) -> Figure:
    """The grid of clicks on a view, and what came back, output by output (SAM's subpart, part,
    whole); 0 clicks: no grid.
    """
    fig, axes = grid(1, 4, width=2.9)
    image = view.image()
    side = points_per_side
    picture(axes[0, 0], image, f"{side} × {side} clicks on {view.name}" if side else view.name)
    if side:
        at = (np.arange(side) + 0.5) / side
        x, y = np.meshgrid(at * image.shape[1] - 0.5, at * image.shape[0] - 0.5)
        axes[0, 0].scatter(x, y, s=2.5, color=YELLOW, edgecolors="none")
    for n, (ax, name) in enumerate(zip(axes[0, 1:], OUTPUT_NAMES)):
        rows = np.flatnonzero(output == n)
        label = np.full(image.shape[:2], -1)
        for i in sorted(range(len(rows)), key=lambda i: -masks[rows[i]].sum()):  # small ones on top
            label[masks[rows[i]]] = i
        painted = paint(label, label_colors(len(rows)))
        picture(ax, overlay(image, painted, 0.75), f"{name}, {len(rows)} masks")
    return fig


def masks_figure(views: Sequence[View], masks: Sequence[ViewMasks]) -> Figure:
    """Photograph and both label maps of several views; colours are per view, nothing is tracked
    yet.
    """
    fig, axes = grid(3, len(views), width=2.6)
    for c, (v, m) in enumerate(zip(views, masks)):
        picture(axes[0, c], v.image(), v.name)
        for r, level in enumerate(LEVELS, 1):
            label = m.label_map(level)
            n = int((m.level == LEVELS.index(level)).sum())
            title = f"{level}: {n} masks, {(label >= 0).mean():.0%} of the pixels"
            picture(axes[r, c], paint(label, label_colors(len(m))), title)
    return fig


def found_figure(
    rows: Sequence[tuple[str, Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, str]]]],
) -> Figure:
    """Which true regions a view's masks found: per row (image, found [H, W], missed [H, W] ids or
    0, title).
    """
    fig, axes = grid(len(rows), len(rows[0][1]), width=2.9)
    for line, (name, cells) in zip(axes, rows):
        for ax, (image, found, missed, title) in zip(line, cells):
            out = 0.75 * image / 255.0
            for ids, color in ((found, to_rgb(SKY)), (missed, to_rgb(VERMILION))):
                inside = ids > 0
                out[inside] = 0.55 * out[inside] + 0.45 * np.array(color)
                out[edges(ids) & inside] = color
            picture(ax, out, title)
        row_title(line[0], name)
    return fig


def incompleteness_figure(
    pairs: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, str]],
) -> Figure:
    """Some masks and the true regions they stand for: (photograph, mask, region, title). Orange:
    missed; blue: of other things.
    """
    fig, axes = grid(1, len(pairs), width=2.3, aspect=1.0)
    for ax, (image, mask, region, title) in zip(axes[0], pairs):
        image = image / 255.0
        out = 0.3 * image + 0.05
        out[region & ~mask] = 0.45 * image[region & ~mask] + 0.55 * np.array([0.84, 0.37, 0.0])
        out[mask] = image[mask]
        out[mask & ~region] = 0.45 * image[mask & ~region] + 0.55 * np.array([0.0, 0.45, 0.7])
        y, x = np.nonzero(region | mask)
        side = max(np.ptp(y), np.ptp(x)) / 2 + 10  # square windows of equal size on the page
        cy, cx = (y.min() + y.max()) / 2, (x.min() + x.max()) / 2
        # beyond the photograph: as dark as what is around the object
        window = np.full((int(2 * side), int(2 * side), 3), 0.05)
        y0, x0 = int(cy - side), int(cx - side)
        inside = out[max(0, y0) : y0 + len(window), max(0, x0) : x0 + len(window)]
        window[max(0, -y0) :, max(0, -x0) :][: inside.shape[0], : inside.shape[1]] = inside
        picture(ax, window, title)
    return fig


def orbit_figure(
    crops: Sequence[tuple[str, np.ndarray, np.ndarray]],
    lines: Mapping[str, tuple[np.ndarray, str]],
    others: np.ndarray,
    votes: Mapping[str, tuple[np.ndarray, str]],
    name: str,
) -> Figure:
    """One object over an orbit: its crop from the full and from an incomplete mask (view, full,
    incomplete), cosines to its mean full-mask feature (title -> values per view, colour) with those
    of other objects as a band, and how well a text finds it.
    """
    fig = blank(11.5, 5.4)
    top, bottom = fig.subfigures(2, 1, height_ratios=(1.05, 1.25))
    axes = top.subplots(2, len(crops), squeeze=False)
    for c, (view, full, broken) in enumerate(crops):
        picture(axes[0, c], full, view)
        picture(axes[1, c], broken)
    for r, label in enumerate(("full mask", "incomplete")):
        row_title(axes[r, 0], label, at=-0.08, size=9.5)
    a, b = bottom.subplots(1, 2)
    x = np.arange(1, len(next(iter(lines.values()))[0]) + 1)
    low, mid, high = np.percentile(others, (5, 50, 95))
    a.axhspan(low, high, color="0.9", lw=0)
    a.axhline(mid, color="0.6", lw=1, ls=":")
    note = "full masks of other objects (5–95 %)"
    a.text(x[-1], low, note, ha="right", va="bottom", fontsize=8, color="0.35")
    for ax, values in ((a, lines), (b, votes)):
        for label, (y, color) in values.items():
            ax.plot(x, y, "o-", ms=3.5, color=color, label=label)
        whole_numbers(ax)
        ax.set_xlabel("view, along the orbit")
    a.legend(fontsize=8, loc="lower left")
    b.legend(fontsize=8, loc="upper right")
    a.set_ylabel(f"cosine to the mean full {name}")
    b.set_ylabel(f"relevancy of “{name}”")
    b.axhline(0.5, color="0.6", lw=1, ls=":")
    b.set_ylim(0, 1.02)
    return fig
