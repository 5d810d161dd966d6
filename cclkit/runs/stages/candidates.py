"""Candidates: what SAM answers to its grid of clicks, before any rule of ours.

A stage apart from the filters that follow: at full size it takes hours, the filters are tried out.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import MaskError
from ...files import load_npz, save_npz
from ...method.interfaces import Candidates
from ...progress import progress
from ...rle import pack_masks, unpack_masks
from ...scenes.scene import View
from ..stage import Stage, of_view_size, view_file

if TYPE_CHECKING:
    from ..engine import Engine


def build(work: Engine, folder: Path) -> dict:
    """``VIEW.npz``: masks as run lengths, SAM output, scores, and what the generator dropped."""
    counts: Counter[str] = Counter()
    found = 0
    for view in progress(work.scene.training_views, "candidates"):
        path = folder / view_file(view)
        if not path.exists():  # otherwise kept from an interrupted run with this key
            save_npz(path, **pack(work.front_end.masks.propose(view)))
        data = load_npz(path)
        found += len(data["output"])
        counts.update(_counts(data))
    return {"n_candidates": found, "generator": dict(counts)}


def candidates(work: Engine, view: View | str) -> Candidates:
    """What the mask generator found in a training view, before any rule of ours."""
    view = work.training_view(view)

    def parse(arrays):
        of_view_size(arrays["shape"].tolist(), view, "masks")
        return unpack(arrays)

    return work.read("candidates", view_file(view), parse, view=view)


def pack(found: Candidates) -> dict[str, np.ndarray]:
    """Arrays to store, the masks as run lengths."""
    return {
        **pack_masks(found.masks),
        **{f"count_{k}": np.int64(v) for k, v in found.counts.items()},
        "shape": np.array(found.masks.shape[1:], np.int64),
        "output": found.output,
        "predicted_iou": found.predicted_iou,
        "stability": found.stability,
    }


def unpack(arrays: dict[str, np.ndarray]) -> Candidates:
    """Inverse of `pack`. Raises MaskError for run lengths that don't fill the view or columns of
    another length.
    """
    masks = unpack_masks(arrays, tuple(arrays["shape"].tolist()))
    columns = [arrays[k] for k in ("output", "predicted_iou", "stability")]
    for c in columns:
        if c.shape != (len(masks),) or c.dtype.kind not in "if":
            raise MaskError(f"a column of {c.shape} for {len(masks)} candidates; recompute them")
    return Candidates(masks, *columns, _counts(arrays))


def _counts(arrays: dict[str, np.ndarray]) -> dict[str, int]:
    return {k.removeprefix("count_"): int(arrays[k]) for k in arrays if k.startswith("count_")}


STAGE = Stage("candidates", build, role="proposer", told=("n_candidates",))
