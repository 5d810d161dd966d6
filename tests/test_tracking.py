"""Stage 2: association by overlap, and tracks over views."""

import numpy as np
import pytest

from cclkit.config import MaskConfig, TrackConfig
from cclkit.errors import MaskError
from cclkit.foundation import Candidates
from cclkit.masks import build_view_masks
from cclkit.scenes import Camera, View
from cclkit.tracking import associate, iou_matrix, track_masks


def boxes(*corners, shape=(20, 30)):
    out = np.zeros((len(corners), *shape), bool)
    for m, (x0, y0, x1, y1) in zip(out, corners):
        m[y0:y1, x0:x1] = True
    return out


def test_iou_matrix_counts_pixels():
    a, b = boxes((0, 0, 10, 10), (0, 0, 0, 0)), boxes((5, 0, 15, 10), (0, 0, 10, 10), (20, 0, 21, 1), (0, 0, 0, 0))
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
    """A propagator that moves masks one pixel per view and loses the second object from the third view on."""

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
    masks = {v.name: view_masks(np.roll(boxes((2, 2, 10, 10), (14, 2, 22, 10)), n, axis=2)) for n, v in enumerate(views)}
    tracks, K = track_masks(views, masks, Shifting(), TrackConfig())
    assert K == {"sp": 2, "wp": 2}
    for n, v in enumerate(views):
        expected = [1, 2] if n < 2 else [1, -1]
        for level in (0, 1):
            assert tracks[v.name].label[masks[v.name].level == level].tolist() == expected
    assert np.allclose(tracks["3.jpg"].iou[tracks["3.jpg"].label == 1], 1.0)


def test_first_view_without_masks_leaves_everything_unlabelled():
    views = make_views(2)
    masks = {"0.jpg": view_masks(np.zeros((0, 20, 30), bool)), "1.jpg": view_masks(boxes((2, 2, 10, 10)))}
    tracks, K = track_masks(views, masks, Shifting(), TrackConfig())
    assert K == {"sp": 0, "wp": 0} and (tracks["1.jpg"].label == -1).all() and len(tracks["0.jpg"].label) == 0


def test_a_view_without_a_mask_file_is_an_error():
    views = make_views(2)
    with pytest.raises(MaskError, match="1.jpg"):
        track_masks(views, {"0.jpg": view_masks(boxes((2, 2, 10, 10)))}, Shifting(), TrackConfig())
