"""Stage 2: association by overlap, and tracks over views."""

import numpy as np
import pytest

from cclkit.errors import MaskError
from cclkit.foundation.geometric import GeometricPropagation
from cclkit.method.interfaces import Candidates
from cclkit.method.masks import LEVELS, MaskConfig, build_view_masks
from cclkit.method.tracking import TrackConfig, associate, iou_matrix, track_masks, ways
from cclkit.rle import unpack_masks
from cclkit.scenes.scene import Camera, View


def boxes(*corners, shape=(20, 30)):
    out = np.zeros((len(corners), *shape), bool)
    for m, (x0, y0, x1, y1) in zip(out, corners):
        m[y0:y1, x0:x1] = True
    return out


def test_iou_matrix_counts_pixels():
    a, b = (
        boxes((0, 0, 10, 10), (0, 0, 0, 0)),
        boxes((5, 0, 15, 10), (0, 0, 10, 10), (20, 0, 21, 1), (0, 0, 0, 0)),
    )
    assert np.allclose(iou_matrix(a, b), [[1 / 3, 1, 0, 0], [0, 0, 0, 0]])


def test_label_needs_more_than_half():
    carried = boxes((0, 0, 10, 10), (20, 0, 30, 10))
    masks = boxes((0, 0, 10, 5), (0, 0, 10, 6), (20, 0, 30, 10), (0, 15, 5, 20))
    label, match, iou = associate(masks, carried, 0.5)
    assert label.tolist() == [-1, 1, 2, -1]  # IoU of exactly 0.5 is not enough
    assert match.tolist() == [0, 0, 1, -1] and np.allclose(iou, [0.5, 0.6, 1.0, 0.0])


def test_lost_objects_and_empty_sets():
    label, match, _ = associate(boxes((0, 0, 5, 5)), boxes((0, 0, 0, 0)), 0.5)
    assert label.tolist() == [-1] and match.tolist() == [-1]
    for a, b in ((boxes(), boxes((0, 0, 5, 5))), (boxes((0, 0, 5, 5)), boxes())):
        label, match, iou = associate(a.reshape(-1, 20, 30), b.reshape(-1, 20, 30), 0.5)
        assert len(label) == len(a) and (label == -1).all()


class Shifting:
    """A propagator that moves masks one pixel per view and loses the second object from the third
    view on.
    """

    def propagate(self, views, masks, keep=None):
        for n, v in enumerate(views):
            out = np.roll(masks, n, axis=2)
            if n >= 2 and len(out) > 1:
                out[1] = False
            yield v, out


def make_views(n):
    camera = Camera(np.eye(3), np.eye(4), 30, 20)
    return [View(f"{i}.jpg", None, camera) for i in range(n)]


def view_masks(masks):
    M = len(masks)
    c = Candidates(masks, np.full(M, 1), np.full(M, 0.95), np.full(M, 0.95))
    return build_view_masks(c, MaskConfig())[0]


def test_tracks_follow_objects_and_losses():
    views = make_views(4)
    masks = {
        v.name: view_masks(np.roll(boxes((2, 2, 10, 10), (14, 2, 22, 10)), n, axis=2))
        for n, v in enumerate(views)
    }
    found = track_masks(views, masks, Shifting(), TrackConfig())
    tracks = found.views
    assert {level: starts.tolist() for level, starts in found.starts.items()} == {
        "sp": [0, 0],
        "wp": [0, 0],
    }
    assert np.array_equal(
        unpack_masks(found.carried["wp"][1], (20, 30)),
        np.roll(masks["0.jpg"].masks[masks["0.jpg"].level == 1], 1, axis=2),
    )
    for n, v in enumerate(views):
        expected = [1, 2] if n < 2 else [1, -1]
        for level in (0, 1):
            assert tracks[v.name].label[masks[v.name].level == level].tolist() == expected
    assert np.allclose(tracks["3.jpg"].iou[tracks["3.jpg"].label == 1], 1.0)


def test_first_view_without_masks_leaves_everything_unlabelled():
    views = make_views(2)
    masks = {
        "0.jpg": view_masks(np.zeros((0, 20, 30), bool)),
        "1.jpg": view_masks(boxes((2, 2, 10, 10))),
    }
    found = track_masks(views, masks, Shifting(), TrackConfig())
    tracks = found.views
    assert (
        [len(s) for s in found.starts.values()] == [0, 0]
        and (tracks["1.jpg"].label == -1).all()
        and len(tracks["0.jpg"].label) == 0
    )


def test_a_view_without_a_mask_file_is_an_error():
    views = make_views(2)
    with pytest.raises(MaskError, match="1.jpg"):
        track_masks(views, {"0.jpg": view_masks(boxes((2, 2, 10, 10)))}, Shifting(), TrackConfig())


def orbit(angles):
    """Views that look at a centre from one unit away, at these degrees."""
    views = []
    for i, a in enumerate(np.radians(angles)):
        pose = np.eye(4)
        pose[:3] = [[np.cos(a), 0, -np.sin(a), 0], [0, 1, 0, 0], [np.sin(a), 0, np.cos(a), 1]]
        views.append(View(f"{i}.jpg", None, Camera(np.eye(3), pose, 30, 20)))
    return views


def test_a_closed_capture_is_gone_round_both_ways_and_no_other():
    closed = orbit(range(0, 360, 60))
    assert ways(closed, 0, True) == {"forward": [0, 1, 2, 3], "backward": [0, 5, 4]}
    assert ways(closed, 4, True) == {"forward": [4, 5, 0, 1], "backward": [4, 3, 2]}
    assert ways(orbit(range(0, 360, 72)), 0, True) == {"forward": [0, 1, 2], "backward": [0, 4, 3]}
    plain = {"forward": [2, 3, 4], "backward": [2, 1, 0]}
    assert ways(closed[:5], 2, False) == plain  # only where it is asked for
    assert ways(orbit(range(0, 150, 30)), 2, True) == plain  # half a round
    pose = closed[5].camera.world_to_camera.copy()  # beside the first view, but looking elsewhere
    pose[[0, 2]] = pose[[2, 0]] * [[1], [-1]]
    assert ways([*closed[:5], View("5.jpg", None, Camera(np.eye(3), pose, 30, 20))], 0, True)[
        "backward"
    ] == [0]
    assert ways(closed[:2], 0, True) == {"forward": [0, 1], "backward": [0]}


def test_both_ways_reach_every_view_from_the_nearer_side():
    """The propagator drifts off after three views: forward only, later views have no label; both
    ways none is that far.
    """

    class Tiring:
        def propagate(self, views, masks, keep=None):
            for n, v in enumerate(views):
                yield v, masks if n <= 3 else np.zeros_like(masks)

    views = orbit(range(0, 360, 60))
    masks = {v.name: view_masks(boxes((2, 2, 10, 10), (14, 2, 22, 10))) for v in views}
    one_way, both_ways = (
        track_masks(views, masks, Tiring(), TrackConfig(both_ways=b)).views for b in (False, True)
    )
    assert [one_way[v.name].label.max() for v in views] == [2, 2, 2, 2, -1, -1]
    assert all(np.array_equal(both_ways[v.name].label, one_way["0.jpg"].label) for v in views)


def test_reseeding_starts_tracks_where_something_new_appears():
    views = make_views(6)
    old, new = (2, 2, 10, 10), (14, 2, 22, 10)
    masks = {
        v.name: view_masks(np.roll(boxes(*((old,) if n < 2 else (old, new))), n, axis=2))
        for n, v in enumerate(views)
    }
    without = track_masks(views, masks, Moving(), TrackConfig()).views
    found = track_masks(views, masks, Moving(), TrackConfig(reseed_every=3))
    for level in (0, 1):
        assert found.starts[LEVELS[level]].tolist() == [0, 3]
        for n in range(6):
            m = masks[f"{n}.jpg"].level == level
            assert without[f"{n}.jpg"].label[m].tolist() == ([1] if n < 2 else [1, -1])
            # backwards too: view 2 comes before its key view
            assert found.views[f"{n}.jpg"].label[m].tolist() == ([1] if n < 2 else [1, 2])
    # where it is asked for, a piece of a tracked object starts no track of its own
    pieces = dict(masks.items()) | {
        "3.jpg": view_masks(np.roll(boxes((2, 2, 6, 10), new), 3, axis=2))
    }
    found = track_masks(views, pieces, Moving(), TrackConfig(reseed_every=3, reseed_iou_max=0.25))
    assert found.starts["wp"].tolist() == [0, 3] and found.views["3.jpg"].label[
        pieces["3.jpg"].level == 1
    ].tolist() == [-1, 2]


class Moving:
    """A propagator that moves masks by one pixel per view, whichever way the views come."""

    def propagate(self, views, masks, keep=None):
        start = int(views[0].name.split(".")[0])
        for v in views:
            yield v, np.roll(masks, int(v.name.split(".")[0]) - start, axis=2)


class Drifting(Moving):
    """Forwards the second object ends on something else from view 3 on, which going back is
    followed faithfully.
    """

    def propagate(self, views, masks, keep=None):
        forward = len(views) > 1 and int(views[1].name.split(".")[0]) > int(
            views[0].name.split(".")[0]
        )
        for v, m in super().propagate(views, masks, keep):
            m = m.copy()
            if forward and int(v.name.split(".")[0]) >= 3 and len(m) > 1:
                m[1] = np.roll(m[1], 9, axis=0)
            yield v, m


def test_what_does_not_come_back_is_withdrawn():
    views = make_views(6)
    masks = {
        v.name: view_masks(np.roll(boxes((2, 2, 10, 10), (14, 2, 22, 10)), n, axis=2))
        for n, v in enumerate(views)
    }
    found = track_masks(views, masks, Drifting(), TrackConfig(check_every=4))
    kept = [unpack_masks(c, (20, 30)).any((1, 2)).tolist() for c in found.carried["wp"]]
    assert kept[0] == [True, True]
    # the drift starts at view 3; going back from the check at view 4 it is not where views 1 and 2
    # had it
    assert kept[1] == kept[2] == [True, False] and kept[5] == [True, True]
    assert [k[0] for k in kept] == [True] * 6


def test_geometry_carries_what_both_views_see():
    camera = lambda x: Camera(
        np.array([[30.0, 0, 15], [0, 30, 10], [0, 0, 1]]),
        np.array([[1.0, 0, 0, -x], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        30,
        20,
    )
    # 0.2 to the right at depth 2: 3 pixels
    views = [
        View("0.jpg", None, camera(0)),
        View("1.jpg", None, camera(0.2)),
    ]
    far = np.full((20, 30), 2.0)
    hidden = far.copy()
    hidden[:, 12:14] = 1.0  # something in front, in the second view only
    masks = boxes((10, 5, 20, 15))
    carried = {
        v.name: m
        for v, m in GeometricPropagation(lambda v: far if v.name == "0.jpg" else hidden).propagate(
            views, masks
        )
    }
    expected = boxes((7, 5, 17, 15))
    expected[:, :, 12:14] = False
    assert np.array_equal(carried["1.jpg"], expected) and np.array_equal(carried["0.jpg"], masks)
