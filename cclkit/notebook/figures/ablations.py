"""Figures of notebook 07: the ablation and its sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from ..colours import BLUE, GREEN, SKY
from .common import ARM_COLORS, plots


def ablation_figure(panels: Sequence[tuple[str, Mapping[str, Sequence[float]]]]) -> Figure:
    """mIoU of each arm: a dot for every seed, a line for their mean. One panel per experiment."""
    fig, axes = plots(1, len(panels), size=(4.4, 3.1))
    for ax, (title, arms) in zip(axes[0], panels):
        for i, (arm, values) in enumerate(arms.items()):
            x, mean = i + np.linspace(-0.18, 0.18, len(values)), np.mean(values)
            ax.plot(x, values, "o", ms=6, color=ARM_COLORS[arm], mec="0.2", mew=0.6, zorder=3)
            ax.plot([i - 0.33, i + 0.33], [mean] * 2, "-", color="0.1", lw=2)
            style = {"ha": "left", "va": "center", "fontsize": 8, "zorder": 4}
            ax.annotate(
                f"{mean:.1f}", (i + 0.33, mean), (2, 0), textcoords="offset points", **style
            )
        ax.axhline(np.mean(arms["baseline"]), color="0.6", lw=0.8, ls="--", zorder=0)
        ax.set_xticks(range(len(arms)), arms, fontsize=9)
        ax.set(ylabel="mIoU, %", title=title, xlim=(-0.6, len(arms) - 0.1))
    return fig


def gains_figure(
    panels: Sequence[tuple[str, Mapping[str, Mapping[float, Sequence[float]]], float]],
    heat: tuple[str, np.ndarray, Sequence[float], Sequence[float]] | None = None,
) -> Figure:
    """Gain in mIoU over what is varied: line, the mean over seeds; band, two standard errors;
    dotted, the default.

    A panel: what is varied, gains by arm, value and seed, and its default. ``heat``: title, gains
    [rows, columns] and the values of both, as one more panel.
    """
    n = len(panels) + (heat is not None)
    columns = min(4, n)
    fig, axes = plots(-(-n // columns), columns, size=(3.1, 2.5))
    flat = axes.ravel()
    every = [of_x for _, arms, _ in panels for of_x in arms.values()]
    means = [np.mean(values) for of_x in every for values in of_x.values()]
    for ax, (title, arms, default) in zip(flat, panels):
        for arm, of_x in arms.items():
            x = np.array(sorted(of_x))
            mean = np.array([np.mean(of_x[v]) for v in x])
            error = np.array([2 * _standard_error(of_x[v]) for v in x])
            color = ARM_COLORS.get(arm, GREEN)
            ax.fill_between(x, mean - error, mean + error, color=color, alpha=0.2, lw=0)
            ax.plot(x, mean, "o-", ms=3.5, color=color, label=arm)
        ax.axhline(0, color="0.3", lw=0.8)
        ax.axvline(default, color="0.5", lw=0.8, ls=":")
        ax.set(xlabel=title, ylim=(min(-6, 1.3 * min(means)), 1.4 * max(means)))
        _even_doubling(ax, sorted({v for of_x in arms.values() for v in of_x}))
        if len(arms) > 1 or ax is flat[0]:
            ax.legend(fontsize=7.5, loc="upper right")
    for ax in axes[:, 0]:
        ax.set_ylabel("Δ mIoU, points")
    if heat is not None:
        _heat(flat[len(panels)], *heat)
    for ax in flat[n:]:
        ax.axis("off")
    return fig


def _standard_error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def _even_doubling(ax, values: Sequence[float]) -> None:
    """Values that double lie evenly apart."""
    ratios = [v for v in values if v > 0]
    if max(ratios, default=1) <= 10 * min(ratios, default=1):
        return
    if values[0] > 0:
        ax.set_xscale("log")
    else:
        ax.set_xscale("symlog", linthresh=min(ratios))
    ax.set_xticks(values, [f"{v:g}" for v in values], fontsize=7)
    ax.minorticks_off()


def _heat(ax, title: str, values: np.ndarray, rows: Sequence[float], cols: Sequence[float]) -> None:
    ax.imshow(values, cmap="viridis", aspect="auto", origin="lower")
    middle = (values.min() + values.max()) / 2
    for (r, c), v in np.ndenumerate(values):
        color = "white" if v < middle else "black"
        ax.text(c, r, f"{v:+.0f}", ha="center", va="center", fontsize=8, color=color)
    ax.set_xticks(range(len(cols)), [f"{v:g}" for v in cols])
    ax.set_yticks(range(len(rows)), [f"{v:g}" for v in rows])
    ax.set(xlabel="weight of push", ylabel="weight of pull", title=title)
    ax.spines[:].set_visible(False)


def contrasts_figure(
    panels: Sequence[tuple[str, Sequence[tuple[str, float, float, float, Sequence[float]]]]],
) -> Figure:
    """Differences of arms: a dot per scene, their mean with its interval. A panel: title and
    (contrast, mean, low, high, by scene).
    """
    most = max(len(rows) for _, rows in panels)
    fig, axes = plots(1, len(panels), size=(4.4, 0.9 + 0.5 * most))
    for ax, (title, rows) in zip(axes[0], panels):
        places = most - 1 - np.arange(len(rows))
        for y, (_, mean, low, high, scenes) in zip(places, rows):
            style = {"ms": 4, "color": SKY, "mec": "0.3", "mew": 0.4, "zorder": 1}
            ax.plot(scenes, np.full(len(scenes), y - 0.18), "o", **style)
            if np.isfinite(low):
                ax.plot([low, high], [y, y], "-", color=BLUE, lw=3, solid_capstyle="butt", zorder=2)
            ax.plot([mean], [y], "D", ms=6, color="black", zorder=3)
        ax.axvline(0, color="0.3", lw=0.8, zorder=0)
        ax.set_yticks(places, [r[0] for r in rows])
        ax.set(xlabel="Δ mIoU, points", title=title, ylim=(-0.6, most - 0.4))
    return fig
