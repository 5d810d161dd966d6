"""The figure of notebook 08: what an explorer shows."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from .common import grid, picture


def panels_figure(panels: Sequence[tuple[str, np.ndarray]]) -> Figure:
    """Titled pictures [H, W, 3] uint8 in rows of three or four: what an explorer shows."""
    columns = len(panels) if len(panels) <= 3 else 4 if len(panels) % 4 == 0 else 3
    width = min(2.7, 8.6 / columns)
    # a number stays with its unit
    titles = [
        textwrap.fill(t.replace(" %", "\u00a0%").replace(" px", "\u00a0px"), int(14 * width))
        for t, _ in panels
    ]
    lines = 1 + max(t.count("\n") for t in titles)
    rows, aspect = -(-len(panels) // columns), max(p.shape[0] / p.shape[1] for _, p in panels)
    fig, axes = grid(rows, columns, width=width, aspect=aspect, head=0.08 + 0.18 * lines)
    for ax in axes.flat:
        ax.axis("off")
    for ax, title, (_, pixels) in zip(axes.flat, titles, panels):
        picture(ax, pixels, title)
    return fig
