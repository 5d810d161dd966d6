"""Masks: candidates, filtered, as a table and two label maps a view."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import MaskError
from ...files import load_npz, save_npz
from ...method.masks import LEVELS, FilterCounts, ViewMasks, build_view_masks
from ...progress import progress
from ...rle import pack_masks, unpack_masks
from ...scenes.scene import View
from ...settings import as_dict
from ..stage import Stage, array_of, of_view_size, view_file
from .candidates import candidates

if TYPE_CHECKING:
    from ..engine import Engine


def build(work: Engine, folder: Path) -> dict:
    """``VIEW.npz``: the table of masks (level, SAM output, scores, area, box, run lengths), and
    label maps ``sp`` and ``wp`` (int32, -1 = none).
    """
    totals = dict.fromkeys(FilterCounts.__dataclass_fields__, 0)
    for view in progress(work.scene.training_views, "masks"):
        path = folder / view_file(view)
        if not path.exists():
            found, counts = build_view_masks(candidates(work, view), work.config.masks)
            numbers = np.array([getattr(counts, k) for k in totals], np.int64)
            save_npz(path, **pack(found), counts=numbers)
        for k, n in zip(totals, load_npz(path)["counts"]):
            totals[k] += int(n)
    return {"counts": totals}


def masks(work: Engine, view: View | str) -> ViewMasks:
    """Masks and label maps of a training view."""
    view = work.training_view(view)

    def parse(arrays):
        of_view_size(arrays["sp"].shape, view, "label maps")
        return unpack(arrays)

    return work.read("masks", view_file(view), parse, view=view)


def mask_levels(work: Engine, view: View) -> np.ndarray:  # [M] int
    """Level of each mask of a training view, without unpacking them."""

    def parse_levels(arrays):
        return array_of(arrays["level"], "i", None)

    return work.read("masks", view_file(view), parse_levels, view=view)


def label_maps(work: Engine, view: View | str) -> np.ndarray:  # [2, H, W] int32
    """Mask of every pixel at each level of a training view, -1 = no mask."""
    found = masks(work, view)
    return np.stack([found.label_map(n) for n in LEVELS])


COLUMNS = ("level", "output", "predicted_iou", "stability", "area", "bbox")
"""Arrays of the table, a row a mask."""


def pack(view_masks: ViewMasks) -> dict[str, np.ndarray]:
    """Arrays to store, the masks as run lengths."""
    table = {k: getattr(view_masks, k) for k in COLUMNS}
    return {**table, **pack_masks(view_masks.masks), "sp": view_masks.sp, "wp": view_masks.wp}


def unpack(arrays: dict[str, np.ndarray]) -> ViewMasks:
    """Inverse of `pack`. Raises MaskError when rows, maps and masks don't fit together."""
    rest = {k: arrays[k] for k in (*COLUMNS, *LEVELS)}
    M = len(arrays["rle_length"])
    shapes = {"bbox": (M, 4), "sp": arrays["wp"].shape, "wp": arrays["sp"].shape}
    below = {"level": len(LEVELS), "sp": M, "wp": M}  # what is an index must be one
    for name, a in rest.items():
        fits = a.shape == shapes.get(name, (M,)) and a.dtype.kind in "if"
        if fits and name in below:
            known = not a.size or -1 <= a.min() <= a.max() < below[name]
            fits = a.dtype.kind == "i" and known
        if not fits:
            raise MaskError(
                f"{name} is {a.shape} of {a.dtype} or out of range for {M} masks; recompute the"
                " masks"
            )
    return ViewMasks(masks=unpack_masks(arrays, arrays["sp"].shape), **rest)


STAGE = Stage(
    "masks",
    build,
    inputs=lambda config: ("candidates",),
    settings=lambda config: as_dict(config.masks),
    told=("counts",),
)
