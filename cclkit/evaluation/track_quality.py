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
    switches: (
        int  # how often an object's label changes from one view in which it has one to the next
    )
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
    n, K, V = LEVELS.index(level), len(starts), len(views)
    maps = [[truth.ids(v, g) for g in GRANULARITIES[level]] for v in views]
    stands_for: list[list[int]] = []  # per view and mask of this level: region, 0 = none
    label: list[np.ndarray] = []
    for v, m in zip(views, maps):
        rows = masks[v.name].level == n
        stands_for.append([best_region(x, m)[0] for x in masks[v.name].masks[rows]])
        label.append(tracks[v.name].label[rows])
    region = np.zeros(K, np.int64)
    j, copied = np.full((K, V), np.nan), np.full((K, V), np.nan)
    alarms = absent = 0
    lost: set[tuple[int, int]] = set()  # (view, region) in which no track of the region is any good
    on_region: dict[tuple[int, int], float] = {}
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
            before = (
                region_mask(maps[t - 1], region[k])
                if t > starts[k]
                else region_mask(maps[t + 1], region[k])
            )
            copied[k, t] = _iou(before, here)
    lost = {key for key, iou in on_region.items() if iou < LOST_IOU}
    tracked = set(region[region > 0].tolist())
    unlabelled = dict.fromkeys(CAUSES, 0)
    for t in range(V):
        for i, y in zip(stands_for[t], label[t]):
            if y == -1:
                unlabelled[
                    CAUSES[0] if i not in tracked else CAUSES[1] if (t, i) in lost else CAUSES[2]
                ] += 1
    pairs = Counter(
        (int(y), i) for i_s, y_s in zip(stands_for, label) for i, y in zip(i_s, y_s) if y > 0
    )
    per_label: dict[int, Counter] = {}
    per_region: dict[int, set[int]] = {}
    for (y, i), count in pairs.items():
        per_label.setdefault(y, Counter())[i] += count
        if i:
            per_region.setdefault(i, set()).add(y)
    purities = np.array([max(c.values()) / sum(c.values()) for _, c in sorted(per_label.items())])
    total = sum(pairs.values())
    return TrackQuality(
        names=[truth.names.get(int(i), "nothing") for i in region],
        j=j,
        copied=copied,
        false_alarms=alarms / absent if absent else 0.0,
        switches=_switches(stands_for, label),
        fragments=(
            float(np.mean([len(y) for y in per_region.values()])) if per_region else float("nan")
        ),
        unlabelled=unlabelled,
        masks=sum(len(x) for x in label),
        purity=sum(max(c.values()) for c in per_label.values()) / total if total else float("nan"),
        purities=purities,
    )


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
