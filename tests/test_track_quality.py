"""Track quality on a film whose answers are known: what is carried, lost, swapped, new
and broken.
"""

import numpy as np
import pytest
from test_tracking import make_views, view_masks

from cclkit.errors import EvaluationError
from cclkit.evaluation.track_quality import CAUSES, best_region, track_quality
from cclkit.method.masks import LEVELS
from cclkit.method.tracking import TrackConfig, track_masks
from cclkit.rle import unpack_masks


class Truth:
    """Two boxes that move a pixel per view, and a third that appears in view 2."""

    names = {1: "old", 2: "other", 3: "new"}

    def ids(self, view, granularity):
        n = int(view.name.split(".")[0])
        out = np.zeros((20, 30), int)
        for i, (x, y) in {1: (2, 2), 2: (14, 2), 3: (2, 12)}.items():
            if i < 3 or n >= 2:
                out[y : y + 6, x + n : x + n + 8] = i
        return out


class Forgetful:
    """Follows everything, but loses the second box of the first view in view 3."""

    def propagate(self, views, masks, keep=None):
        start = int(views[0].name.split(".")[0])
        for v in views:
            n = int(v.name.split(".")[0])
            out = np.roll(masks, n - start, axis=2)
            if n == 3 and start == 0:
                out[1] = False
            yield v, out


def film():
    views, truth = make_views(5), Truth()
    masks = {}
    for n, v in enumerate(views):
        ids = truth.ids(v, "whole")
        found = np.stack([ids == i for i in (1, 2, 3) if (ids == i).any()])
        if n == 4:
            found[1, 8:14, 18:26] = (
                True  # the mask of "other" with as much background again: an overlap of just 0.5
            )
        masks[v.name] = view_masks(found)
    return views, truth, masks


def quality(views, truth, masks, config=TrackConfig()):
    found = track_masks(views, masks, Forgetful(), config)
    carried = lambda v: unpack_masks(found.carried["wp"][views.index(v)], (20, 30))
    return found, track_quality(views, truth, masks, found.views, found.starts["wp"], carried, "wp")


def test_every_number_is_the_known_one():
    views, truth, masks = film()
    _, q = quality(views, truth, masks)
    assert q.names == ["old", "other"]
    assert np.isnan(q.j[:, 0]).all()  # the view in which tracks start says nothing
    assert q.j[0, 1:].tolist() == [1, 1, 1, 1] and q.j[1, 1:].tolist() == [1, 1, 0, 1]
    assert q.copied[0, 1:] == pytest.approx([7 / 9] * 4)  # moved by one of eight columns
    # the new box in views 2..4; lost in view 3; too large in view 4
    assert q.unlabelled == {
        CAUSES[0]: 3,
        CAUSES[1]: 1,
        CAUSES[2]: 1,
    }
    assert q.masks == 2 + 2 + 3 + 3 + 3 and q.unlabelled_share == pytest.approx(5 / 13)
    assert q.purity == 1 and q.switches == 0 and q.fragments == 1 and q.false_alarms == 0


def test_reseeding_removes_its_cause_and_counts_what_it_costs():
    views, truth, masks = film()
    found, q = quality(views, truth, masks, TrackConfig(reseed_every=3))
    # "other", lost in view 3, is found there a second time
    assert found.starts["wp"].tolist() == [
        0,
        0,
        3,
        3,
    ]
    assert q.unlabelled[CAUSES[0]] == 0 and q.purity == 1
    assert q.fragments == pytest.approx(4 / 3) and q.switches == 1  # "other": track 2, then track 3


def test_labels_that_stand_for_two_things_are_impure():
    views, truth, masks = film()
    found = track_masks(views, masks, Forgetful(), TrackConfig())
    for v in views[3:]:
        label = found.views[v.name].label
        label[label == 2] = 1
        rows = np.flatnonzero(masks[v.name].level == LEVELS.index("wp"))
        label[rows[2]] = 2  # the label of "other" on the new box
    q = track_quality(
        views,
        truth,
        masks,
        found.views,
        found.starts["wp"],
        lambda v: np.zeros((2, 20, 30), bool),
        "wp",
    )
    assert q.purity < 1 and len(q.purities) == 2
    with pytest.raises(EvaluationError, match="unknown"):
        track_quality(views, truth, masks, found.views, found.starts["wp"], lambda v: None, "xx")
    with pytest.raises(EvaluationError, match="4.jpg"):
        track_quality(
            views,
            truth,
            {k: m for k, m in masks.items() if k != "4.jpg"},
            found.views,
            found.starts["wp"],
            lambda v: None,
            "wp",
        )


def test_best_region_looks_at_all_maps():
    coarse, fine = np.zeros((4, 8), int), np.zeros((4, 8), int)
    coarse[:, :6], fine[:, :2], fine[:, 2:6] = 1, 2, 1
    mask = np.zeros((4, 8), bool)
    mask[:, :2] = True
    assert best_region(mask, [coarse, fine]) == (2, 1.0) and best_region(mask, [coarse]) == (
        1,
        pytest.approx(1 / 3),
    )
    assert best_region(~(coarse > 0), [coarse]) == (0, 0.0)
