"""Figures of notebook 03: the codebook and its three losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from ...scenes.scene import View
from .common import ARM_COLORS, grid, picture, plots, row_title


def curves_figure(
    curves: Mapping[str, Mapping[str, np.ndarray]], usage: Mapping[str, Mapping[str, np.ndarray]]
) -> Figure:
    """Losses over steps, with and without the contrastive terms, and sorted code usage, for one
    level.

    ``curves[arm][loss]`` [steps]; ``usage[arm]["counts"]`` [N].
    """
    fig, axes = plots(1, 4, size=(3.0, 2.8))
    titles = {
        "max": "$L_{max}$: feature to its prototype",
        "pull": "$L_{pull}$: same label",
        "push": "$L_{push}$: different labels",
    }
    for ax, (key, title) in zip(axes[0, :3], titles.items()):
        for arm, c in curves.items():
            ax.plot(c[key], color=ARM_COLORS[arm], lw=1.8, label=arm)
        ax.set(xlabel="step", title=title, ylim=(0, None))
    axes[0, 0].legend(fontsize=8)
    ax = axes[0, 3]
    for arm, u in usage.items():
        counts = np.sort(u["counts"])[::-1]
        style = {"color": ARM_COLORS[arm], "lw": 1.8}
        used = f"{arm}: {(counts > 0).sum()} of {len(counts)} used"
        ax.step(np.arange(len(counts)), counts, where="post", label=used, **style)
    ax.set(xlabel="code, most used first", ylabel="masks", title="code usage", ylim=(0, None))
    ax.legend(fontsize=8)
    return fig


def similarity_figure(
    matrices: Sequence[tuple[str, np.ndarray]], margin: float, boundaries: Sequence[int] = ()
) -> Figure:
    """Prototype-by-prototype cosines, one matrix per stage, in one order and on one scale."""
    fig, axes = grid(1, len(matrices), width=3.3, aspect=1.0)
    for ax, (title, m) in zip(axes[0], matrices):
        im = ax.imshow(m, vmin=0.3, vmax=1, cmap="viridis")
        for b in boundaries:
            ax.axhline(b - 0.5, color="w", lw=0.35)
            ax.axvline(b - 0.5, color="w", lw=0.35)
        ax.set_title(title, fontsize=9.5)
        ax.set_xticks([]), ax.set_yticks([])
    bar = fig.colorbar(im, ax=axes[0, -1], shrink=0.85)
    bar.ax.set_title("cosine", fontsize=9)
    bar.ax.axhline(margin, color="w", lw=2)
    ticks = [0.4, 0.6, 0.8, 1.0]
    bar.set_ticks([*ticks, margin], labels=[*map(str, ticks), f"m = {margin}"])
    return fig


def label_prototype_figure(panels: Sequence[tuple[str, np.ndarray]]) -> Figure:
    """Share of each track's masks on each code [K, N], one matrix per codebook; a track's row adds
    up to 1.
    """
    fig, axes = grid(1, len(panels), width=4.2, aspect=0.85)
    for ax, (title, m) in zip(axes[0], panels):
        im = ax.imshow(m, vmin=0, vmax=1, cmap="Greys", aspect="auto")
        xlabel = "code in use, in the order of its main track"
        ax.set(title=title, xlabel=xlabel, xticks=[], yticks=[])
    axes[0, 0].set_ylabel("track")
    bar = fig.colorbar(im, ax=axes[0, -1], shrink=0.85)
    bar.ax.set_title("share of\nits masks", fontsize=9)
    return fig


def embedding_figure(
    features: np.ndarray,
    labels: np.ndarray,
    names: Mapping[int, str],
    colors: np.ndarray,
    panels: Sequence[tuple[str, np.ndarray, np.ndarray]],
) -> Figure:
    """Mask features [M, d] on two directions, coloured by track ([K, 3], track 1 first), with
    prototypes before and after.

    ``names``: the tracks in colour, by label; the rest is grey. A panel: title, prototypes before
    and after [N, d], only those in use; a prototype's cross has the colour of most of its masks,
    black where those have no name. The directions separate the named tracks best (two principal
    ones of their centroids).
    """
    centroids = np.stack([features[labels == y].mean(0) for y in names])
    centre = centroids.mean(0)
    basis = np.linalg.svd(centroids - centre, full_matrices=False)[2][:2]
    # a sign of its own, on every machine
    basis *= np.sign(basis[np.arange(2), np.abs(basis).argmax(1)])[:, None]
    at = lambda x: (x - centre) @ basis.T
    fig, axes = plots(1, len(panels), size=(4.6, 4.0))
    for ax, (title, before, after) in zip(axes[0], panels):
        rest = ~np.isin(labels, list(names))
        ax.scatter(*at(features[rest]).T, s=5, color="0.85", lw=0, zorder=0)
        for y, name in names.items():
            style = {"s": 14, "color": [colors[y - 1]], "ec": "0.35", "lw": 0.2, "zorder": 1}
            ax.scatter(*at(features[labels == y]).T, label=name, **style)
        a, b = at(before), at(after)
        ax.plot(*np.stack([a, b]).transpose(2, 0, 1), color="0.2", lw=0.7, zorder=2)
        ax.scatter(*a.T, s=14, facecolors="white", edgecolors="0.2", lw=0.8, zorder=3)
        codes = (features @ after.T).argmax(1)
        for n, place in enumerate(b):
            own, count = np.unique(labels[codes == n], return_counts=True)
            most = int(own[count.argmax()]) if len(own) else -1
            style = {"s": 46, "marker": "X", "edgecolor": "black", "lw": 0.8, "zorder": 4}
            ax.scatter(*place, facecolor=colors[most - 1] if most in names else "black", **style)
        ax.set(title=title, xticks=[], yticks=[])
    beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
    axes[0, -1].legend(fontsize=8, title="track of", title_fontsize=9, **beside)
    return fig


def purity_figure(
    names: Sequence[str], arms: Mapping[str, Sequence[float]], sizes: Sequence[int]
) -> Figure:
    """Share of each track's masks on its commonest code, in %, an arm beside the other; ``sizes``:
    masks of each track.
    """
    fig, axes = plots(1, 1, size=(max(7.0, 0.26 * len(names) + 1.5), 3.4))
    ax, x = axes[0, 0], np.arange(len(names))
    for n, (arm, values) in enumerate(arms.items()):
        at, mean = x + 0.4 * (n - (len(arms) - 1) / 2), f"{arm}: mean {np.mean(values):.0f} %"
        ax.bar(at, values, 0.38, color=ARM_COLORS[arm], label=mean)
    ax.set_xticks(x, [f"{name} ({n})" for name, n in zip(names, sizes)], rotation=90, fontsize=7.5)
    ax.set(
        ylabel="masks on the track's\ncommonest code, %",
        ylim=(0, 118),
        yticks=range(0, 101, 25),
        xlim=(-0.7, len(names) - 0.3),
    )
    ax.legend(fontsize=8, ncols=len(arms), loc="upper right")
    return fig


def feature_maps_figure(
    views: Sequence[View], rows: Sequence[tuple[str, Sequence[np.ndarray]]]
) -> Figure:
    """2D feature maps, PCA to RGB on one basis: photographs on top, one row per variant."""
    fig, axes = grid(1 + len(rows), len(views), width=2.6, head=0.12)
    for c, v in enumerate(views):
        picture(axes[0, c], v.image(), v.name)
    for r, (title, maps) in enumerate(rows, 1):
        for c, m in enumerate(maps):
            picture(axes[r, c], m)
        row_title(axes[r, 0], title)
    row_title(axes[0, 0], "photograph")
    return fig
