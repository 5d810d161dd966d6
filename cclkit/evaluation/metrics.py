"""The pieces protocols are made of: IoU, box means, majority votes, and the results files.

All maps are NumPy arrays [H, W]; a function that takes "maps" also takes leading axes.
Which protocol uses which piece, and why the roundings matter, is said in each module.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import math
from pathlib import Path

import cv2
import numba
import numpy as np

from ..errors import ArtefactError, EvaluationError
from ..files import atomic_write


def iou(prediction: np.ndarray, truth: np.ndarray, *, empty: float = math.nan) -> float:
    """Intersection over union of two bool masks of one shape, in double precision.

    ``empty`` is the value where both masks are empty; published protocols disagree: A and B give
    0/0, C, D, F and G give 0. Raises EvaluationError on different shapes.
    """
    prediction, truth = np.asarray(prediction, bool), np.asarray(truth, bool)
    if prediction.shape != truth.shape:
        raise EvaluationError(
            f"masks of shape {prediction.shape} and {truth.shape} cannot be compared; render at the"
            " size of the ground truth"
        )
    union = np.count_nonzero(prediction | truth)
    return np.count_nonzero(prediction & truth) / union if union else empty


def box_mean(image: np.ndarray, size: int = 30) -> np.ndarray:  # [H, W] float32
    """OpenCV's box mean, bit for bit (protocol A, step 1).

    The window of pixel (y, x) covers rows y - size//2 ... y + size - 1 - size//2 (off centre for an
    even size) and the same columns; borders are mirrored without repeating the border pixel. The
    sum is taken in double precision, multiplied by float32(1 / size**2), and rounded to float32.
    Localisation looks for exactly equal maxima, so the rounding decides results.

    The sum is a running sum in double precision: float32 values between 2e-6 and 1 add without any
    rounding there, whatever the order, so it equals the literal sum.
    """
    total = cv2.boxFilter(
        np.ascontiguousarray(image, np.float64),
        cv2.CV_64F,
        (size, size),
        anchor=(size // 2, size // 2),
        normalize=False,
        borderType=cv2.BORDER_REFLECT_101,
    )
    return (total * np.float64(np.float32(1 / size**2))).astype(np.float32)


def box_mean_cut(image: np.ndarray, size: int = 29) -> np.ndarray:  # [H, W] float32
    """Mean over a centred window of odd size, cut at the image borders (protocol B).

    Divides by the pixels that remain. As published, the up to 841 numbers are added one after the
    other in single precision, row by row: on flat regions the rounding adds up to 1e-5 and decides
    which pixels tie for the maximum, so the order of summation is part of the protocol.
    """
    return _compiled()(np.ascontiguousarray(image, np.float32), size // 2)


@functools.cache
def _compiled():
    """The kernel, compiled on first use and cached on disk, or without a cache where no folder is
    writable.
    """
    try:
        return numba.njit(parallel=True, cache=True)(_window_mean_single)
    except RuntimeError:
        return numba.njit(parallel=True)(_window_mean_single)


def _window_mean_single(image, half):  # [H, W] float32
    h, w = image.shape
    padded = np.zeros((h + 2 * half, w + 2 * half), np.float32)  # adding 0 changes no sum
    padded[half : half + h, half : half + w] = image
    out = np.empty_like(image)
    for y in numba.prange(h):
        total = np.zeros(w, np.float32)
        for j in range(y, y + 2 * half + 1):
            for d in range(2 * half + 1):
                for x in range(w):  # innermost, so that columns are added side by side
                    total[x] += padded[j, x + d]
        rows = min(y + half + 1, h) - max(y - half, 0)
        for x in range(w):
            out[y, x] = total[x] / np.float32(rows * (min(x + half + 1, w) - max(x - half, 0)))
    return out


def majority(
    mask: np.ndarray, size: int = 7, *, last_votes: bool = False
) -> np.ndarray:  # [H, W] bool
    """Majority vote over a window cut at the borders; ties give 0 (protocols A, B and D).

    With ``last_votes=False`` the last row and the last column of the image receive a result but
    never vote: the published loop of A and D ends its slices one short. B lets them vote.
    """
    votes = np.asarray(mask, bool).astype(np.float32)
    voters = np.ones_like(votes)
    if not last_votes:
        for a in (votes, voters):
            a[-1] = 0
            a[:, -1] = 0
    return 2 * _window_sum(votes, size) > _window_sum(voters, size)  # whole numbers: exact


def min_max(maps: np.ndarray, *, epsilon: float = 1e-9) -> np.ndarray:  # [..., H, W]
    """(map - min) / (max of the shifted map + epsilon), each map alone, in the dtype of
    the input.
    """
    shifted = maps - maps.min(axis=(-2, -1), keepdims=True)
    return shifted / (shifted.max(axis=(-2, -1), keepdims=True) + epsilon)


def nearest_indices(size: int, target: int, *, centres: bool) -> np.ndarray:  # [target] int64
    """Source index of each target pixel of a nearest-neighbour resize of one axis.

    ``centres=True``: floor((t + 0.5) * size / target), Pillow's rule (protocol C);
    ``centres=False``: floor(t * size / target), OpenCV's rule (protocol D). Whole-number
    arithmetic, so that no rounding of the quotient can move an index.
    """
    t = np.arange(target, dtype=np.int64)
    return (2 * t + 1) * size // (2 * target) if centres else t * size // target


def confusion(truth: np.ndarray, answer: np.ndarray, n: int) -> np.ndarray:  # [n, n] float64
    """Where the pixels of each class went: row i holds the shares in % of class i that were
    answered as each class; -1 in either map is left out.

    A class without pixels has a row of zeros.
    """
    known = (truth >= 0) & (answer >= 0)
    counts = np.bincount(
        truth[known].astype(np.int64) * n + answer[known], minlength=n * n
    ).reshape(n, n)
    return 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def resize_nearest(
    image: np.ndarray, shape: tuple[int, int], *, centres: bool
) -> np.ndarray:  # [h, w]
    """Nearest-neighbour resize of [H, W] to ``shape`` (h, w) by ``nearest_indices``."""
    rows = nearest_indices(image.shape[0], shape[0], centres=centres)
    columns = nearest_indices(image.shape[1], shape[1], centres=centres)
    return image[rows[:, None], columns[None, :]]


def as_maps(values, name: str, ndim: int) -> np.ndarray:
    """Tensor or array -> NumPy float array with ``ndim`` axes. Raises EvaluationError on another
    shape or NaN.
    """
    values = values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
    if values.ndim != ndim or 0 in values.shape:
        axes = {2: "[H, W]", 3: "[levels or classes, H, W]", 4: "[classes, levels, H, W]"}[ndim]
        raise EvaluationError(f"{name}: shape {values.shape}, expected {axes} with no empty axis")
    values = values.astype(np.float64 if values.dtype == np.float64 else np.float32, copy=False)
    if not np.isfinite(values).all():
        raise EvaluationError(
            f"{name}: {np.count_nonzero(~np.isfinite(values))} values are not finite; recompute the"
            " relevancy from finite features"
        )
    return values


def write_results(
    rows: list[dict], aggregates: dict, protocol: str, constants: dict, folder
) -> tuple[Path, Path]:
    """Write ``evaluation.csv`` (the rows) and ``evaluation.json`` (everything) into ``folder``.

    Rows keep their order, columns the order of first appearance. Each file is written under a
    temporary name and renamed, so a reader never sees half a file. A value that is not a number
    (an undefined mean) becomes null in JSON and an empty cell in CSV.

    Returns the two paths (csv, json). Raises ArtefactError when the folder cannot be written.
    """
    folder = Path(folder)
    columns = list(dict.fromkeys(k for row in rows for k in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(
            ["" if row.get(k) is None or _is_nan(row.get(k)) else _plain(row[k]) for k in columns]
        )
    document = {
        "protocol": protocol,
        "constants": constants,
        "aggregates": aggregates,
        "rows": rows,
    }
    contents = {
        "evaluation.csv": text.getvalue(),
        "evaluation.json": json.dumps(_plain(document), indent=2, ensure_ascii=False) + "\n",
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            atomic_write(folder / name, content.encode())
    except OSError as e:
        raise ArtefactError(
            f"{folder}: results cannot be written ({e.strerror or e}); choose a folder you may"
            " write to"
        ) from e
    return folder / "evaluation.csv", folder / "evaluation.json"


# ---------------------------------------------------------------------------


def _window_sum(image: np.ndarray, size: int) -> np.ndarray:  # [H, W] float32
    """Sum of whole numbers over a centred window of odd size; pixels outside the image count 0."""
    return cv2.boxFilter(
        np.ascontiguousarray(image, np.float32),
        cv2.CV_32F,
        (size, size),
        normalize=False,
        borderType=cv2.BORDER_CONSTANT,
    )


def _is_nan(value) -> bool:
    return isinstance(value, (float, np.floating)) and not np.isfinite(value)


def _plain(value):
    """Python values only, NaN and infinities as None, for JSON that any reader accepts."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    return None if _is_nan(value) else value
