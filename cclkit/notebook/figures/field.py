"""Figures of notebook 04: reconstruction and field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from ...scenes.scene import Camera
from ..colours import BLUE, GREEN, ORANGE, VERMILION, YELLOW
from .common import blank, picture, plots, whole_numbers


def reconstruction_figure(
    rows: Sequence[tuple[str, np.ndarray, np.ndarray, float]], history: Mapping[str, np.ndarray]
) -> Figure:
    """Photographs, renderings and absolute differences of some views (title, photo, rendering,
    PSNR), and PSNR over steps.
    """
    fig = blank(2.7 * len(rows) + 3.6, 6.6)
    outer = fig.add_gridspec(1, 2, width_ratios=(2.7 * len(rows), 3.4))
    left = outer[0].subgridspec(3, len(rows))
    for c, (title, photo, rendered, value) in enumerate(rows):
        difference = np.clip(3 * np.abs(rendered - photo / 255.0), 0, 1)
        picture(fig.add_subplot(left[0, c]), photo, title)
        rendering = fig.add_subplot(left[1, c])
        picture(rendering, np.clip(rendered, 0, 1), f"rendered, PSNR {value:.1f} dB")
        picture(fig.add_subplot(left[2, c]), difference, "difference × 3")
    right = outer[1].subgridspec(2, 1)
    ax = fig.add_subplot(right[0])
    ax.plot(history["iteration"], history["psnr"], ".-", color=BLUE)
    ax.set(xlabel="step", ylabel="PSNR of the step's view, dB")
    ax = fig.add_subplot(right[1])
    ax.plot(history["iteration"], np.asarray(history["count"]) / 1000, "-", color=ORANGE)
    ax.set(xlabel="step", ylabel="Gaussians, thousands", ylim=(0, None))
    return fig


def histories_figure(histories: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Quality and number of Gaussians over steps for several reconstructions."""
    fig, axes = plots(1, 2, size=(4.2, 2.7))
    for (name, h), color in zip(histories.items(), (BLUE, ORANGE, GREEN)):
        axes[0, 0].plot(h["iteration"], h["psnr"], ".-", color=color, label=name)
        axes[0, 1].plot(h["iteration"], np.asarray(h["count"]) / 1000, "-", color=color, label=name)
    axes[0, 0].set(xlabel="step", ylabel="PSNR, dB")
    axes[0, 1].set(xlabel="step", ylabel="Gaussians, thousands", ylim=(0, None))
    axes[0, 0].legend(fontsize=9)
    return fig


def path_cameras(cameras: Sequence[Camera], n: int, *, width: int) -> list[Camera]:
    """n cameras along the way through the given ones, equally far apart, with pictures of about the
    given width.
    """
    gaps = [float(np.linalg.norm(a.centre - b.centre)) for a, b in zip(cameras, cameras[1:])]
    at = np.concatenate([[0.0], np.cumsum(gaps)])
    out = []
    for where in np.linspace(0, at[-1], n):
        i = min(int(np.searchsorted(at, where, side="right")) - 1, len(gaps) - 1)
        out.append(
            cameras[i]
            .between(cameras[i + 1], min(float(where - at[i]) / gaps[i], 1.0) if gaps[i] else 0.0)
            .scaled(width / cameras[0].width)
        )
    return out


def pixel_figure(
    image: np.ndarray, pixel: tuple[int, int], weights: np.ndarray, colors: np.ndarray
) -> Figure:
    """One pixel (x, y) of a rendering [H, W, 3], and the weights [n] and colours [n, 3] of the
    Gaussians that it is made of, nearest first.
    """
    fig, axes = plots(1, 2, size=(4.0, 2.9))
    picture(axes[0, 0], np.clip(image, 0, 1), f"the pixel at x = {pixel[0]}, y = {pixel[1]}")
    axes[0, 0].plot(*pixel, "o", ms=12, mfc="none", mec=YELLOW, mew=2)
    ax = axes[0, 1]
    ax.bar(
        range(1, len(weights) + 1), weights, color=np.clip(colors, 0, 1), edgecolor="0.3", lw=0.6
    )
    ax.set(
        xlabel="Gaussian, from the camera backwards",
        ylabel="weight $w_g$",
        title=f"{len(weights)} Gaussians, weights sum to {weights.sum():.2f}",
    )
    whole_numbers(ax)
    return fig


def modes_figure(curves: Mapping[str, Mapping[str, np.ndarray]], *, window: int = 15) -> Figure:
    """Share of right codes over steps for several ways to train the field, as running means."""
    fig, axes = plots(1, 1, size=(5.2, 2.8))
    for (name, c), color, style in zip(
        curves.items(),
        (BLUE, ORANGE, GREEN, VERMILION, "black"),
        ("-", "--", ":", "-.", "-"),
        strict=False,
    ):
        smooth = np.convolve(100 * c["accuracy"], np.ones(window) / window, "valid")
        axes[0, 0].plot(np.arange(len(smooth)) + window, smooth, color=color, ls=style, label=name)
    axes[0, 0].set(xlabel="step", ylabel="pixels with the right code, %", ylim=(0, 100))
    axes[0, 0].legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def field_curves_figure(curves: Mapping[str, np.ndarray]) -> Figure:
    """Cross-entropy and share of right codes while the field trains."""
    fig, axes = plots(1, 2, size=(4.2, 2.7))
    axes[0, 0].plot(curves["loss"], color=BLUE, lw=1.2)
    axes[0, 0].set(xlabel="step", ylabel="cross-entropy, both levels", ylim=(0, None))
    axes[0, 1].plot(100 * curves["accuracy"], color=GREEN, lw=1.2)
    axes[0, 1].set(xlabel="step", ylabel="pixels with the right code, %", ylim=(0, 100))
    return fig
