"""Figures of notebook 02: tracks and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps, patches
from matplotlib.figure import Figure

from ...scenes.scene import View
from ..colours import BLUE, ORANGE, SKY, VERMILION
from .common import GREY, LEVEL_NAMES, grid, overlay, paint, picture, plots, whole_numbers


def tracks_figure(
    views: Sequence[View],
    label_maps: Mapping[str, Sequence[np.ndarray]],
    track_colors: Mapping[str, np.ndarray],
) -> Figure:
    """Track labels over views in each level's colours [K, 3]; masks without a track in light grey.
    Labels 1..K, 0 = unlabelled mask, -1 none.
    """
    fig, axes = grid(1 + len(label_maps), len(views), width=2.6)
    for c, v in enumerate(views):
        picture(axes[0, c], v.image(), v.name + (" (first: propagated)" if c == 0 else ""))
    for r, (level, maps) in enumerate(label_maps.items(), 1):
        colors = np.concatenate([[GREY], track_colors[level]])
        for c, m in enumerate(maps):
            share = (m == 0).sum() / max(1, (m >= 0).sum())
            picture(axes[r, c], paint(m, colors), f"{level}: {share:.0%} of mask pixels untracked")
    return fig


def association_figure(
    iou: Mapping[str, np.ndarray], unlabelled: Mapping[str, np.ndarray], iou_min: float
) -> Figure:
    """Histogram of each mask's largest IoU with a propagated mask, and the share of -1 view by
    view.
    """
    fig, axes = plots(1, 2, size=(4.6, 3.0))
    left, right = axes[0]
    bins = np.linspace(0, 1, 26)
    for (level, values), color in zip(iou.items(), (BLUE, ORANGE)):
        style = {"color": color, "label": LEVEL_NAMES[level]}
        left.hist(values, bins=bins, histtype="step", lw=1.8, **style)
    left.axvline(iou_min, color="0.3", ls="--", lw=1)
    height = left.get_ylim()[1] * 0.92
    left.text(iou_min - 0.02, height, "y = −1", ha="right", fontsize=9)
    left.text(iou_min + 0.02, height, "labelled", ha="left", fontsize=9)
    left.set(xlabel="largest IoU with a propagated mask", ylabel="masks")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, 0.8), fontsize=8)
    for (level, values), color in zip(unlabelled.items(), (BLUE, ORANGE)):
        x = np.arange(1, len(values) + 1)
        right.plot(x, 100 * values, "o-", ms=3.5, color=color, label=LEVEL_NAMES[level])
    whole_numbers(right)
    right.set(xlabel="view, in capture order", ylabel="masks without a track, %", ylim=(0, None))
    right.legend(fontsize=8)
    return fig


def propagation_figure(
    views: Sequence[View],
    carried: Sequence[np.ndarray],
    tracks: Sequence[int],
    names: Sequence[str],
    colors: np.ndarray,
) -> Figure:
    """Carried masks [K, H, W] of a few tracks over views, each in its colour [K, 3]. Titles name
    the tracks that are empty there.
    """
    fig, axes = grid(1, len(views), width=2.6, head=0.5)
    for c, (view, masks) in enumerate(zip(views, carried)):
        label = np.full(masks.shape[1:], -1)
        for n, k in enumerate(tracks):
            label[masks[k]] = n
        image = np.where(
            (label >= 0)[..., None],
            overlay(view.image(), paint(label, colors[list(tracks)]), 0.65),
            0.5 * view.image() / 255,
        )
        empty = ", ".join(name for k, name in zip(tracks, names) if not masks[k].any())
        note = "where the tracks start" if c == 0 else f"empty: {empty}" if empty else ""
        picture(axes[0, c], image, f"{view.name}\n{note}")
    return fig


def matrix_figure(iou: np.ndarray, label: np.ndarray, iou_min: float, title: str) -> Figure:
    """Association matrix of a view: IoU [M, K] of its masks with the carried ones, labelled pairs
    framed.
    """
    height, width = (0.16 * n for n in iou.shape)
    fig, axes = plots(1, 1, size=(min(9.0, 2.0 + width), min(6.0, 1.4 + height)))
    ax = axes[0, 0]
    shown = ax.imshow(iou, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    for i, y in enumerate(label):
        if y > 0:
            ax.add_patch(patches.Rectangle((y - 1.5, i - 0.5), 1, 1, fill=False, ec=BLUE, lw=1.6))
        else:
            ax.plot(-1.2, i, marker=">", color=VERMILION, ms=5, clip_on=False)
    ax.set(xlabel="carried mask k", ylabel="mask i of the view", title=title)
    fig.colorbar(shown, ax=ax, label=f"IoU (blue frame: > {iou_min:g})", fraction=0.04)
    return fig


def quality_figure(
    names: Sequence[str],
    j: np.ndarray,
    copied: np.ndarray,
    causes: Sequence[tuple[str, Mapping[str, int], int]],
) -> Figure:
    """J of every track in every view; its mean over time beside copying; why masks have no label
    under each rule.
    """
    rows = min(9.0, 1.1 + 0.17 * len(names))
    fig, axes = plots(1, 3, size=(4.4, max(3.2, rows)), width_ratios=[1.35, 1, 0.9])
    ax = axes[0, 0]
    colors = colormaps["viridis"].copy()
    colors.set_bad("0.88")
    shown = ax.imshow(
        np.ma.masked_invalid(j),
        cmap=colors,
        vmin=0,
        vmax=1,
        aspect="auto",
        extent=(0.5, j.shape[1] + 0.5, len(names) - 0.5, -0.5),
    )
    whole_numbers(ax)
    ax.set_yticks(
        range(len(names)),
        [f"{n} ({k + 1})" if list(names).count(n) > 1 else n for k, n in enumerate(names)],
        fontsize=7,
    )
    ax.set(
        xlabel="view, in capture order", title="J of each track (grey: hidden, or its first view)"
    )
    fig.colorbar(shown, ax=ax, fraction=0.05)
    ax = axes[0, 1]
    x = np.arange(1, j.shape[1] + 1)
    for values, color, name in (
        (j, BLUE, "carried"),
        (copied, GREY, "the true mask, one view late"),
    ):
        known = np.isfinite(values).any(0)
        ax.plot(
            x[known],
            [np.nanmean(v) for v in values.T[known]],
            "o-",
            ms=3,
            color=color,
            label=f"{name}: {np.nanmean(values):.2f}",
        )
    ax.set(xlabel="view, in capture order", ylabel="mean J", ylim=(0, 1), title="over the capture")
    ax.legend(fontsize=8)
    ax = axes[0, 2]
    below = np.zeros(len(causes))
    at = np.arange(len(causes))
    for cause, color in zip(causes[0][1], (VERMILION, ORANGE, SKY)):
        share = np.array([100 * counts[cause] / max(1, total) for _, counts, total in causes])
        ax.bar(at, share, 0.62, bottom=below, color=color, label=cause)
        below += share
    for a, b in zip(at, below):
        ax.text(a, b + 0.6, f"{b:.0f} %", ha="center", fontsize=9)
    ax.set_xticks(at, [name for name, _, _ in causes], fontsize=7)
    ax.set(
        ylabel="masks without a label, %", title="why y = −1", ylim=(0, 1.45 * max(below.max(), 1))
    )
    ax.legend(fontsize=7.5, loc="upper right")
    return fig
