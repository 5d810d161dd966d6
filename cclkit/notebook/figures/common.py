"""What several notebooks draw, and what figures are drawn with: style, grids of axes, label maps,
colours of features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.figure import Figure

from ..colours import BLUE, ORANGE, SKY, UNLABELLED, VERMILION

GREY = (0.62, 0.62, 0.62)
TRUE = (0.0, 0.9, 0.4)
"""Outline of what is asked for."""
LEVEL_NAMES = {"sp": "sp (subpart ∪ part)", "wp": "wp (whole ∪ part)"}
ARM_COLORS = {"baseline": GREY, "pull": SKY, "push": ORANGE, "both": BLUE, "shuffled": VERMILION}

STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "image.interpolation": "nearest",
    "legend.frameon": False,
    "axes.grid": False,
    "svg.hashsalt": "cclkit",
}
FOOTER = 0.22
"""Inches below the drawing, for the line that says what made it."""


def blank(width: float, height: float) -> Figure:
    """An empty figure of so many inches in the style of the series, with a strip below its drawing
    for the footer.
    """
    matplotlib.rcParams.update(STYLE)
    fig = Figure(figsize=(width, height + FOOTER), layout="constrained")
    share = FOOTER / (height + FOOTER)
    fig.get_layout_engine().set(rect=(0, share, 1, height / (height + FOOTER)))
    return fig


def grid(rows: int, cols: int, *, width: float = 2.6, aspect: float = 0.75, head: float = 0.28):
    """A figure and its axes [rows, cols] for pictures of the given aspect (height / width)."""
    fig = blank(cols * width, rows * (width * aspect + head))
    fig.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    return fig, fig.subplots(rows, cols, squeeze=False)


def plots(rows: int, cols: int, *, size: tuple[float, float] = (3.6, 2.8), **kwargs):
    """A figure and its axes [rows, cols] for plots, each of so many inches."""
    fig = blank(cols * size[0], rows * size[1])
    return fig, fig.subplots(rows, cols, squeeze=False, **kwargs)


def row_title(ax, text: str, *, at: float = -0.04, size: float = 10) -> None:
    """Name a row of pictures, left of its first one."""
    style = {"rotation": 90, "va": "center", "ha": "right", "fontsize": size}
    ax.text(at, 0.5, text, transform=ax.transAxes, **style)


def whole_numbers(ax) -> None:
    """Ticks of the x axis at whole numbers only."""
    ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))


def picture(ax, image, title: str = "", **kwargs) -> None:
    """A picture without axes, with a small title."""
    ax.imshow(image, **kwargs)
    ax.set_title(title, fontsize=9.5)
    ax.axis("off")


def paint(label: np.ndarray, colors: np.ndarray, none=UNLABELLED) -> np.ndarray:  # [H, W, 3]
    """Label map [H, W] (-1 none) and colours [n, 3] -> picture, with thin dark edges between
    labels.
    """
    out = np.concatenate([colors, [none]])[label]
    out[edges(label)] *= 0.55
    return out


def edges(label: np.ndarray) -> np.ndarray:  # [H, W] bool
    """Pixels of a label map [H, W] whose label differs from that above or to the left."""
    edge = np.zeros(label.shape, bool)
    edge[1:] |= label[1:] != label[:-1]
    edge[:, 1:] |= label[:, 1:] != label[:, :-1]
    return edge


def map_of(label: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Label map [H, W] (-1 none) with one colour [n, 3] per label, no edges drawn."""
    return np.concatenate([colors.reshape(-1, 3), [UNLABELLED]])[label]


def overlay(image: np.ndarray, picture: np.ndarray, alpha: float = 0.6) -> np.ndarray:
    """Picture [H, W, 3] in 0..1 over a photograph [H, W, 3] uint8 turned grey."""
    grey = (image / 255.0).mean(-1, keepdims=True).repeat(3, -1)
    return (1 - alpha) * grey + alpha * picture


def highlight(image: np.ndarray, mask: np.ndarray, color=(1.0, 0.55, 0.0)) -> np.ndarray:
    """A photograph [H, W, 3] uint8 with everything outside a mask dimmed and its outline drawn."""
    out = image / 255.0
    out = np.where(mask[..., None], out, 0.35 * out + 0.10)
    out[edges(mask)] = color
    return out


class ColorBasis:
    """Three principal directions of a set of vectors, as red, green and blue. One basis makes maps
    comparable.
    """

    def __init__(self, vectors: np.ndarray):  # [n, d]
        self.mean = vectors.mean(0)
        _, _, vt = np.linalg.svd(vectors - self.mean, full_matrices=False)
        vt = vt[:3]
        # the sign of a component is arbitrary: fix it
        vt *= np.sign(vt[np.arange(len(vt)), np.abs(vt).argmax(1)])[:, None]
        self.axes = vt
        p = (vectors - self.mean) @ vt.T
        self.low, self.high = np.percentile(p, 1, axis=0), np.percentile(p, 99, axis=0)

    def __call__(self, vectors: np.ndarray) -> np.ndarray:  # [..., d] -> [..., 3] in 0..1
        p = (vectors - self.mean) @ self.axes.T
        return np.clip((p - self.low) / np.maximum(self.high - self.low, 1e-9), 0, 1)


def spread(items: Sequence, n: int) -> list:
    """n items evenly spread over a sequence, ends included."""
    if len(items) <= n:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, n).round().astype(int)]


def field_figure(columns: Sequence[Mapping[str, np.ndarray]]) -> Figure:
    """Per view: photograph, rendered features (PCA), decoded codes; keys of the mappings are the
    row titles.
    """
    names = list(columns[0])
    fig, axes = grid(len(names), len(columns), width=2.6, head=0.12)
    for c, column in enumerate(columns):
        for r, name in enumerate(names):
            picture(axes[r, c], column[name])
            if c == 0:
                row_title(axes[r, 0], name, size=9.5)
    return fig


def protocols_figure(rows: Sequence[tuple[str, float | None, str]]) -> Figure:
    """One field under every protocol: (name, mIoU % or None, what is scored or why it can't be)."""
    fig, axes = plots(1, 1, size=(8.6, 0.8 + 0.32 * len(rows)))
    ax = axes[0, 0]
    places = range(len(rows) - 1, -1, -1)
    for y, (_, value, what) in zip(places, rows):
        note, color = f"not applicable: {what}", VERMILION
        if value is not None:
            ax.barh(y, value, color=BLUE, height=0.62)
            note, color = f"{value:.1f}   {what}", "0.15"
        ax.text((value or 0) + 1.2, y, note, va="center", fontsize=9, color=color)
    ax.set_yticks(places, [r[0] for r in rows], fontsize=9.5)
    ax.set(
        xlabel="mIoU, % (every bar is another quantity; none may be compared with another)",
        xlim=(0, 190),
        ylim=(-0.6, len(rows) - 0.4),
    )
    ax.set_xticks(range(0, 101, 20))
    ax.spines["bottom"].set_bounds(0, 100)  # what is beyond is text
    return fig


def answers_figure(
    rows: Sequence[tuple[str, np.ndarray, np.ndarray, Sequence[tuple[str, np.ndarray]]]],
) -> Figure:
    """What protocols answer to the same text: (text, photograph, truth [H, W], [(title, mask [H,
    W])]), a row per text.
    """
    fig, axes = grid(len(rows), 1 + max(len(r[3]) for r in rows), width=1.75, head=0.34)
    for ax in axes.flat:
        ax.axis("off")
    for r, (text, image, truth, answers) in enumerate(rows):
        picture(axes[r, 0], highlight(image, truth, TRUE))
        axes[r, 0].set_title(f"“{text}”", fontsize=9)
        for ax, (title, mask) in zip(axes[r, 1:], answers):
            picture(ax, highlight(image, mask))
            ax.set_title(title, fontsize=8.5)
    return fig
