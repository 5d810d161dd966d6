"""How good tracks are, against dense ground truth: what the propagator carried, and what the labels
mean.

Every mask stands for the visible ground truth region, of any granularity of its level, that it
overlaps most. The paper has no such numbers: its data sets have no dense ground truth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import EvaluationError
from ..method.masks import LEVELS, ViewMasks
from ..method.tracking import ViewTracks
from ..scenes.scene import GroundTruth, View

GRANULARITIES = {"sp": ("subpart", "part"), "wp": ("whole", "part")}
"""Ground truth maps that the masks of a level may stand for."""
MIN_AREA_PX = 30
"""Regions smaller than this in a view are left out of J there: two pixels decide it."""
LOST_IOU = 0.1
"""A carried mask that overlaps its object by less has lost it."""
CAUSES = ("not in first view", "lost by the propagator", "overlap too small")


@dataclass(frozen=True)
class TrackQuality:
    """Of one level of a scene."""

    names: list[str]  # [K] what track k+1 stands for
    # [K, V] IoU of the carried mask with its region; nan where that is hidden or tiny, and in the
    # view the track starts
    j: np.ndarray
    # [K, V] the same for the simplest of propagators: each view gets the mask of the true region
    # one view before
    copied: np.ndarray
    # share of (track, view) without the region in which something is carried all the same
    false_alarms: float
    # how often an object's label changes from one view in which it has one to the next
    switches: int
    fragments: float  # labels per object, over objects that have one
    unlabelled: dict[str, int]  # masks with label -1, by cause
    masks: int  # all masks
    # share of labelled masks that stand for the region most masks of their label stand for
    purity: float
    purities: np.ndarray  # [labels in use] the same label by label

    @property
    def mean_j(self) -> float:
        """Mean over tracks and views."""
        return float(np.nanmean(self.j)) if np.isfinite(self.j).any() else float("nan")

    @property
    def mean_copied(self) -> float:
        """What copying the view before would reach."""
        return float(np.nanmean(self.copied)) if np.isfinite(self.copied).any() else float("nan")

    @property
    def unlabelled_share(self) -> float:
        return sum(self.unlabelled.values()) / self.masks if self.masks else float("nan")


def track_quality(
    views: Sequence[View],
    truth: GroundTruth,
    masks: Mapping[str, ViewMasks],  # by view name
    tracks: Mapping[str, ViewTracks],
    starts: np.ndarray,  # [K] index of the view in which a track starts
    carried: Callable[[View], np.ndarray],  # view -> [K, H, W] bool
    level: str,
) -> TrackQuality:
    """Quality of one level's tracks. Raises EvaluationError for an unknown level or views that
    don't belong together.
    """
    if level not in LEVELS:
        raise EvaluationError(f"level {level!r} is unknown; use one of {', '.join(LEVELS)}")
    missing = [v.name for v in views if v.name not in masks or v.name not in tracks]
    if missing:
        raise EvaluationError(
            f"view {missing[0]!r} has no masks or no tracks; compute them for all views first"
        )
    n = LEVELS.index(level)
    maps = [[truth.ids(v, g) for g in GRANULARITIES[level]] for v in views]
    stands_for: list[list[int]] = []  # per view and mask of this level: region, 0 = none
    label: list[np.ndarray] = []
    for v, m in zip(views, maps):
        rows = masks[v.name].level == n
        stands_for.append([best_region(x, m)[0] for x in masks[v.name].masks[rows]])
        label.append(tracks[v.name].label[rows])
    followed = _follow(views, maps, starts, carried)
    purity, purities, fragments = _meaning(stands_for, label)
    return TrackQuality(
        names=[truth.names.get(int(i), "nothing") for i in followed.region],
        j=followed.j,
        copied=followed.copied,
        false_alarms=followed.false_alarms,
        switches=_switches(stands_for, label),
        fragments=fragments,
        unlabelled=_causes(stands_for, label, followed),
        masks=sum(len(x) for x in label),
        purity=purity,
        purities=purities,
    )


@dataclass(frozen=True)
class _Followed:
    """What became of the tracks of a level from view to view."""

    region: np.ndarray  # [K] what each track stands for, 0 = nothing
    j: np.ndarray  # [K, V] as in TrackQuality
    copied: np.ndarray  # [K, V]
    false_alarms: float
    lost: set[tuple[int, int]]  # (view, region) in which no track of the region is any good


def _follow(
    views: Sequence[View],
    maps: Sequence[Sequence[np.ndarray]],  # of each view its id maps [H, W]
    starts: np.ndarray,
    carried: Callable[[View], np.ndarray],
) -> _Followed:
    """Compare what was carried to every view with the region that its track stands for."""
    K, V = len(starts), len(views)
    region = np.zeros(K, np.int64)
    j, copied = np.full((K, V), np.nan), np.full((K, V), np.nan)
    alarms = absent = 0
    on_region: dict[tuple[int, int], float] = {}  # best IoU of a region's tracks in a view
    for k in range(K):
        region[k] = best_region(carried(views[starts[k]])[k], maps[starts[k]])[0]
    for t, v in enumerate(views):
        now = carried(v)
        for k in np.flatnonzero(region):
            here = region_mask(maps[t], region[k])
            if not here.any():
                absent += 1
                alarms += bool(now[k].any())
                continue
            iou = _iou(now[k], here)
            on_region[t, int(region[k])] = max(iou, on_region.get((t, int(region[k])), 0.0))
            if t == starts[k] or here.sum() < MIN_AREA_PX:
                continue
            j[k, t] = iou
            # tracks are carried away from their start, in both directions
            before = maps[t - 1] if t > starts[k] else maps[t + 1]
            copied[k, t] = _iou(region_mask(before, region[k]), here)
    lost = {key for key, iou in on_region.items() if iou < LOST_IOU}
    return _Followed(region, j, copied, alarms / absent if absent else 0.0, lost)


def _causes(
    stands_for: Sequence[Sequence[int]], label: Sequence[np.ndarray], followed: _Followed
) -> dict[str, int]:
    """Masks with label -1, by cause."""
    tracked = set(followed.region[followed.region > 0].tolist())
    out = dict.fromkeys(CAUSES, 0)
    for t, (regions, labels) in enumerate(zip(stands_for, label)):
        for i, y in zip(regions, labels):
            if y == -1:
                why = 0 if i not in tracked else 1 if (t, i) in followed.lost else 2
                out[CAUSES[why]] += 1
    return out


def _meaning(
    stands_for: Sequence[Sequence[int]], label: Sequence[np.ndarray]
) -> tuple[float, np.ndarray, float]:
    """Purity, purity label by label, and labels per object."""
    per_label: dict[int, Counter] = {}
    per_region: dict[int, set[int]] = {}
    for regions, labels in zip(stands_for, label):
        for i, y in zip(regions, labels):
            if y > 0:
                per_label.setdefault(int(y), Counter())[i] += 1
                if i:
                    per_region.setdefault(i, set()).add(int(y))
    total = sum(c.total() for c in per_label.values())
    purity = sum(max(c.values()) for c in per_label.values()) / total if total else float("nan")
    purities = np.array([max(c.values()) / c.total() for _, c in sorted(per_label.items())])
    counts = [len(y) for y in per_region.values()]
    return purity, purities, float(np.mean(counts)) if counts else float("nan")


def best_region(mask: np.ndarray, maps: Sequence[np.ndarray]) -> tuple[int, float]:
    """The region of some id maps [H, W] that a mask [H, W] overlaps most by IoU, and that IoU; (0,
    0.0) if none.
    """
    best, best_iou, size = 0, 0.0, int(mask.sum())
    for m in maps:
        ids, inter = np.unique(m[mask], return_counts=True)
        for i, both in zip(ids.tolist(), inter.tolist()):
            if i and (iou := both / (size + int((m == i).sum()) - both)) > best_iou:
                best, best_iou = i, iou
    return best, best_iou


def region_mask(maps: Sequence[np.ndarray], i: int) -> np.ndarray:  # [H, W] bool
    """Where a region is, in whichever of the maps it stands."""
    return np.any([m == i for m in maps], axis=0)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def _switches(stands_for: Sequence[Sequence[int]], label: Sequence[np.ndarray]) -> int:
    """Label changes of every region over the views; where several of its masks are labelled, the
    commonest label counts.
    """
    last: dict[int, int] = {}
    count = 0
    for regions, labels in zip(stands_for, label):
        here: dict[int, Counter] = {}
        for i, y in zip(regions, labels):
            if i and y > 0:
                here.setdefault(i, Counter())[int(y)] += 1
        for i, votes in here.items():
            most = max(votes.values())
            choices = [y for y, c in votes.items() if c == most]
            if i in last and last[i] not in choices:
                count += 1
            last[i] = last[i] if last.get(i) in choices else min(choices)
    return count
