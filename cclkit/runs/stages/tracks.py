"""Tracks: the first view's masks carried to all views, and a track label for every mask."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm.auto import tqdm

from ...files import save_npz
from ...method.masks import LEVELS
from ...method.tracking import ViewTracks, track_masks
from ...progress import quiet
from ...rle import unpack_masks
from ...scenes.scene import View
from ...settings import as_dict
from ..stage import Stage, array_of, require
from .masks import masks

if TYPE_CHECKING:
    from ..engine import Engine


def build(work: Engine, folder: Path) -> dict:
    """``tracks.npz``: label, best match and IoU of every mask, views in order, and the view each
    track starts in; ``carried_LEVEL.npz``: all carried masks as run lengths.
    """
    views, config = work.scene.training_views, work.config.tracks
    found = {v.name: masks(work, v) for v in views}
    tracker = work.front_end.propagator
    with tqdm(total=len(views) * len(LEVELS), desc="tracks", disable=quiet()) as bar:
        tracks = track_masks(views, found, tracker, config, progress=bar.update, keep=folder)
    per_view = [tracks.views[v.name] for v in views]
    arrays = {"length": np.array([len(t.label) for t in per_view], np.int64)}
    for name in ("label", "match", "iou"):
        arrays[name] = np.concatenate([getattr(t, name) for t in per_view])
    starts = {f"start.{level}": starts for level, starts in tracks.starts.items()}
    save_npz(folder / "tracks.npz", **arrays, **starts)
    for level, carried in tracks.carried.items():
        runs = {k: np.concatenate([c[k] for c in carried]) for k in carried[0]}
        per_view = np.array([len(c["rle"]) for c in carried], np.int64)
        save_npz(folder / f"carried_{level}.npz", **runs, runs_per_view=per_view)
    labels = arrays["label"]
    return {
        "n_tracks": {level: len(s) for level, s in tracks.starts.items()},
        "of_them_from_later_views": {k: int((s > 0).sum()) for k, s in tracks.starts.items()},
        "share_unlabelled": float((labels == -1).mean()) if len(labels) else None,
    }


def tracks(work: Engine, view: View | str) -> ViewTracks:
    """Track labels of a training view's masks."""
    arrays = track_arrays(work)
    rows = rows_of(work, view)
    return ViewTracks(arrays["label"][rows], arrays["match"][rows], arrays["iou"][rows])


def track_arrays(work: Engine) -> dict[str, np.ndarray]:
    """All of tracks.npz: a row per mask, views in order."""

    def parse(a):
        array_of(a["length"], "i", len(work.scene.training_views))
        require((a["length"] >= 0).all(), "a negative number of masks")
        for name, kind in (("label", "i"), ("match", "i"), ("iou", "f")):
            array_of(a[name], kind, int(a["length"].sum()))
        for level in LEVELS:
            array_of(a[f"start.{level}"], "i", None)
        return a

    return work.read("tracks", "tracks.npz", parse)


def rows_of(work: Engine, view: View | str) -> slice:
    """Rows of a training view's masks in arrays over all views."""
    lengths, i = track_arrays(work)["length"], _position(work, view)
    start = int(lengths[:i].sum())
    return slice(start, start + int(lengths[i]))


def track_starts(work: Engine, level: str) -> np.ndarray:  # [K] int64
    """Index of the training view in which each track of a level starts; 0 but for re-seeded
    ones.
    """
    return track_arrays(work)[f"start.{level}"]


def carried(work: Engine, view: View | str, level: str) -> np.ndarray:  # [K, H, W] bool
    """Masks of all tracks of a level as they were carried to a training view; row k is track
    k + 1.
    """

    view, name = work.training_view(view), f"carried_{level}.npz"
    i, K = _position(work, view), len(track_starts(work, level))
    arrays = work.read("tracks", name, dict)
    with work.reading("tracks", name):
        start = int(arrays["runs_per_view"][:i].sum())
        runs = {
            "rle": arrays["rle"][start : start + int(arrays["runs_per_view"][i])],
            "rle_length": arrays["rle_length"][i * K : (i + 1) * K],
        }
        return unpack_masks(runs, (view.camera.height, view.camera.width))


def _position(work: Engine, view: View | str) -> int:
    names = [v.name for v in work.scene.training_views]
    return names.index(work.training_view(view).name)


STAGE = Stage(
    "tracks",
    build,
    inputs=lambda config: ("masks",),
    settings=lambda config: as_dict(config.tracks),
    role="tracker",
    told=("share_unlabelled",),
)
