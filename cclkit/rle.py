"""Masks as run lengths: what stages keep on disk instead of a bit per pixel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .errors import MaskError


def rle_encode(mask: np.ndarray) -> np.ndarray:
    """Mask [H, W] -> run lengths int32, row by row; the first run is of zeros and may be empty."""
    flat = np.concatenate([[False], mask.ravel(), [not mask.ravel()[-1]]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], edges])).astype(np.int32)


def rle_decode(runs: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Inverse of `rle_encode`. Raises MaskError when the runs don't fill the shape."""
    if int(runs.sum()) != shape[0] * shape[1]:
        raise MaskError(
            f"run lengths cover {int(runs.sum())} pixels, the label map has {shape[0]}x{shape[1]};"
            " recompute the masks"
        )
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(shape)


def pack_masks(masks: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Masks [M, H, W] -> arrays to store: all run lengths one after another, and how many belong to
    each mask.
    """
    runs = [rle_encode(m) for m in masks]
    return {
        "rle": np.concatenate(runs) if runs else np.zeros(0, np.int32),
        "rle_length": np.array([len(r) for r in runs], np.int64),
    }


def unpack_masks(
    arrays: dict[str, np.ndarray], shape: tuple[int, int]
) -> np.ndarray:  # [M, H, W] bool
    """Inverse of `pack_masks`. Raises MaskError when the arrays are no run lengths or a mask does
    not fill the shape.
    """
    runs, lengths = arrays["rle"], arrays["rle_length"]
    if (
        runs.ndim != 1
        or lengths.ndim != 1
        or runs.dtype.kind != "i"
        or lengths.dtype.kind != "i"
        or (runs < 0).any()
        or (lengths < 0).any()
        or int(lengths.sum()) != len(runs)
    ):
        raise MaskError(
            f"{runs.shape} run lengths of {runs.dtype} for {lengths.shape} masks don't belong"
            " together; recompute the masks"
        )
    ends = np.cumsum(lengths)
    masks = [rle_decode(runs[e - n : e], shape) for e, n in zip(ends, lengths)]
    return np.stack(masks) if masks else np.zeros((0, *shape), bool)
