"""Stage 2: carry the first view's masks to all views and give every mask a track label.

Per level, mask M_i of a view takes the label of the propagated mask with the largest IoU if that
IoU exceeds 0.5, else -1 (paper §3; labels are 1..K in the order of the first view's masks).

Three additions: `TrackConfig.check_every` withdraws carried masks that don't come back to where
they started, `TrackConfig.reseed_every` starts tracks in later views from what has none yet,
`TrackConfig.both_ways` goes round a closed capture in both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from ..errors import MaskError
from ..rle import pack_masks, unpack_masks
from ..settings import SHARE
from .masks import LEVELS, ViewMasks

if TYPE_CHECKING:
    from ..scenes.scene import View
    from .interfaces import MaskPropagator


@dataclass(frozen=True)
class TrackConfig:
    """Stage 2: propagate the first view's masks and associate."""

    iou_min: Annotated[float, SHARE] = 0.5
    """A mask takes the label of the propagated mask with the largest IoU if that IoU is above this,
    else -1. Paper: 0.5.
    """
    reseed_every: int = 0
    """Every how many views masks without a label start tracks of their own, through all views; 0 =
    never. Paper: only the first view's masks are propagated (0).
    """
    reseed_iou_max: Annotated[float, SHARE] = 0.5
    """A mask starts such a track only if no carried mask overlaps it by a larger IoU. Paper: no
    such tracks (ours: 0.5, so every mask without a label; smaller values start fewer second tracks
    of one object and label fewer masks).
    """
    check_every: int = 0
    """Every how many views the carried masks are propagated back to the check before; 0 = never.
    Paper: no such check (0).
    """
    check_iou_min: Annotated[float, SHARE] = 0.5
    """A carried mask that overlaps the one propagated back by a smaller IoU is withdrawn. Paper: no
    such check (ours: 0.5, as for labels).
    """
    both_ways: bool = False
    """Where the capture ends beside where it began, carry masks both ways round until they meet, so
    that none goes farther than half of it. Paper does not say (ours: off, because SAM2 sees a video
    in its order; on in the profile mini, whose small SAM2 drifts).
    """


@dataclass(frozen=True)
class ViewTracks:
    """Track labels of one view's masks, row by row of its mask table."""

    label: np.ndarray  # [M] int64: 1..K or -1
    match: np.ndarray  # [M] int64: propagated mask with the largest IoU, -1 if none overlaps
    iou: np.ndarray  # [M] float64: that IoU


def associate(
    masks: np.ndarray, propagated: np.ndarray, iou_min: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks [M, H, W] and propagated masks [K, H, W] -> label, match, IoU, each [M].

    Label k+1 where the largest IoU, with propagated mask k, is greater than ``iou_min``; else -1.
    The first of equals wins. Empty propagated masks (lost objects) never match.

    >>> import numpy as np
    >>> masks = np.zeros((2, 4, 6), bool)
    >>> masks[0, :, :3], masks[1, :2, 4:] = True, True
    >>> carried = np.zeros((1, 4, 6), bool)
    >>> carried[0, :, :4] = True  # 12 pixels of 16 in common with the first mask
    >>> label, match, iou = associate(masks, carried, iou_min=0.5)
    >>> label.tolist(), iou.tolist()
    ([1, -1], [0.75, 0.0])
    """
    M, K = len(masks), len(propagated)
    if M == 0 or K == 0:
        return np.full(M, -1, np.int64), np.full(M, -1, np.int64), np.zeros(M)
    iou = iou_matrix(masks, propagated)
    match = iou.argmax(1)
    best = iou[np.arange(M), match]
    label = np.where(best > iou_min, match + 1, -1)
    return label.astype(np.int64), np.where(best > 0, match, -1).astype(np.int64), best


def iou_matrix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU [M, K] float64 of two mask sets [M, H, W], [K, H, W]; 0 where both are empty."""
    fa, fb = a.reshape(len(a), -1).astype(np.float32), b.reshape(len(b), -1).astype(np.float32)
    inter = (fa @ fb.T).astype(np.float64)
    union = fa.sum(1, dtype=np.float64)[:, None] + fb.sum(1, dtype=np.float64)[None, :] - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def ways(views: Sequence[View], start: int, both_ways: bool) -> dict[str, list[int]]:
    """Orders in which masks of view ``start`` reach all views: "forward" and "backward", each from
    that view on.

    In the order of the capture to its last and its first view; with ``both_ways`` on a closed
    capture halfway round in each direction. Closed: the last camera is no farther from the first,
    in place and in viewing axis, than the farthest two neighbours are from each other.
    """
    n = len(views)
    if both_ways and _closed(views):
        half = n // 2
        return {
            "forward": [(start + i) % n for i in range(half + 1)],
            "backward": [(start - i) % n for i in range(n - half)],
        }
    return {"forward": list(range(start, n)), "backward": list(range(start, -1, -1))}


def _closed(views: Sequence[View]) -> bool:
    """Whether a capture ends where it began."""
    if len(views) < 3:
        return False
    poses = np.stack([v.camera.world_to_camera for v in views])
    centres, axes = -np.einsum("nji,nj->ni", poses[:, :3, :3], poses[:, :3, 3]), poses[:, 2, :3]
    for a in (centres, axes):
        # the first is that from the last view to the first
        steps = np.linalg.norm(a - np.roll(a, 1, 0), axis=1)
        if steps[0] > steps[1:].max() * (1 + 1e-6):  # equal steps differ by rounding
            return False
    return True


@dataclass(frozen=True)
class Tracks:
    """Tracks of a scene: the labels of all masks, and what the propagator carried."""

    views: dict[str, ViewTracks]  # by view name
    starts: dict[str, np.ndarray]  # level -> [K] int64: index of the view in which track k+1 starts
    # level -> per view the K carried masks as run lengths
    carried: dict[str, list[dict[str, np.ndarray]]]


def track_masks(
    views: Sequence[View],
    masks: Mapping[str, ViewMasks],  # view name -> masks
    propagator: MaskPropagator,
    config: TrackConfig,
    progress: Callable[[int], Any] = lambda views: None,  # told how many views more are done
    keep: Path | None = None,
) -> Tracks:
    """Labels of all masks of all views, and the tracks behind them.

    The first view of ``views`` is the one whose masks are propagated; ``keep`` is a folder in which
    the propagator may leave what a stopped run goes on from. A first view without masks is no
    error: without re-seeding all labels are -1 and the codebook learns from the matching loss
    alone. Raises MaskError when a view has no entry in ``masks``.
    """
    for v in views:
        if v.name not in masks:
            raise MaskError(
                f"view {v.name!r} has no masks, so nothing can be tracked through it; recompute the"
                " masks"
            )
    tracks = {v.name: _no_tracks(len(masks[v.name])) for v in views}
    starts, carried = {}, {}
    for n, level in enumerate(LEVELS):
        rows = [np.flatnonzero(masks[v.name].level == n) for v in views]
        found = _Level(
            views,
            [masks[v.name].masks[r] for v, r in zip(views, rows)],
            propagator,
            config,
            progress,
            keep and keep / level,
        )
        starts[level], carried[level] = np.array(found.starts, np.int64), found.carried
        for v, r, of_level in zip(views, rows, found.tracks):
            tracks[v.name].label[r] = of_level.label
            tracks[v.name].match[r] = of_level.match
            tracks[v.name].iou[r] = of_level.iou
    return Tracks(tracks, starts, carried)


def _no_tracks(M: int) -> ViewTracks:
    """M masks without a label."""
    return ViewTracks(np.full(M, -1, np.int64), np.full(M, -1, np.int64), np.zeros(M))


class _Level:
    """Tracks of one level. Carried masks are held as run lengths, so that memory does not grow with
    views x tracks.
    """

    def __init__(
        self,
        views: Sequence[View],
        masks: list[np.ndarray],
        propagator: MaskPropagator,
        config: TrackConfig,
        progress: Callable[[int], Any],
        keep: Path | None,
    ):
        self.views, self.masks = views, masks
        self.propagator, self.config, self.keep = propagator, config, keep
        self.starts: list[int] = []
        self.carried = [pack_masks([]) for _ in views]
        self.tracks = [_no_tracks(len(m)) for m in masks]
        self._start(0, np.arange(len(masks[0])), progress)
        if config.reseed_every:
            for s in range(config.reseed_every, len(views), config.reseed_every):
                t = self.tracks[s]
                free = (t.label == -1) & (t.iou <= config.reseed_iou_max)
                self._start(s, np.flatnonzero(free), progress)

    def _start(self, s: int, rows: np.ndarray, progress: Callable[[int], Any]) -> None:
        """Tracks from these masks of view s through all views; what has a label keeps it."""
        seeds, first = self.masks[s][rows], len(self.starts)
        if not len(seeds):
            return
        self.starts += [s] * len(seeds)
        new: dict[int, dict[str, np.ndarray]] = {}
        for way, order in ways(self.views, s, self.config.both_ways).items():
            if len(order) == 1 and new:
                continue
            folder = self.keep and (self.keep / f"{s:04d}_{way}")
            for t, (_, found) in zip(order, self._propagate(order, seeds, folder)):
                if t not in new:  # both ways begin in the view of the seeds
                    progress(1)
                new[t] = pack_masks(found)
            if self.config.check_every:
                self._withdraw(new, order, folder)
        for t, packed in sorted(new.items()):
            self.carried[t] = {k: np.concatenate([self.carried[t][k], packed[k]]) for k in packed}
            label, match, iou = associate(
                self.masks[t], self._unpacked(packed, t), self.config.iou_min
            )
            old = self.tracks[t]
            take = (iou > old.iou) & (old.label == -1)
            self.tracks[t] = ViewTracks(
                np.where(take & (label > 0), label + first, old.label),
                np.where(take & (match >= 0), match + first, old.match),
                np.where(take, iou, old.iou),
            )

    def _withdraw(
        self, new: dict[int, dict[str, np.ndarray]], order: list[int], keep: Path | None
    ) -> None:
        """Empty the carried masks that a propagation the other way does not find again.

        From every ``check_every``-th view the carried masks go back to the check before; where
        forth and back overlap by less than ``check_iou_min``, neither is trusted. A mask lost at
        the check says nothing.
        """
        for i in range(0, len(order) - 1, self.config.check_every):
            back = order[i + 1 : i + 1 + self.config.check_every][::-1]
            ends = self._unpacked(new[back[0]], back[0])
            there = np.flatnonzero(ends.any((1, 2)))
            if not len(there) or len(back) == 1:
                continue
            folder = keep and keep / f"back_from_{back[0]:04d}"
            for t, (_, found) in zip(back, self._propagate(back, ends[there], folder)):
                forth = self._unpacked(new[t], t)
                both, either = forth[there] & found, forth[there] | found
                same = both.sum((1, 2)) / np.maximum(1, either.sum((1, 2)))
                forth[there[same < self.config.check_iou_min]] = False
                new[t] = pack_masks(forth)

    def _propagate(self, order: list[int], masks: np.ndarray, keep: Path | None):
        return self.propagator.propagate([self.views[t] for t in order], masks, keep)

    def _unpacked(self, packed: dict[str, np.ndarray], t: int) -> np.ndarray:
        return unpack_masks(packed, self.masks[t].shape[1:])
