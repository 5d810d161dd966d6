"""Single clicks: pieces, crops that hold a mask whole, means over looks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from test_models import OPEN, picture, random_mini_sam  # noqa: F401

from cclkit.config import profile
from cclkit.errors import MaskError
from cclkit.foundation import sam as sam_model
from cclkit.foundation.clicks import EDGE_PX, SamClicks, piece_under
from cclkit.foundation.sam import SamConfig, SamMasks
from cclkit.method.masks import MaskConfig
from cclkit.scenes.load import load_scene

H, W = 40, 60


class Says:
    """A predictor that answers every click with the same logits [3, h, w] and predicted IoU [3],
    and notes where it was clicked.
    """

    def __init__(self, logits, predicted):
        self.logits, self.predicted, self.clicks = (
            torch.from_numpy(logits),
            torch.tensor(predicted),
            [],
        )
        self.transform, self.model = (
            SimpleNamespace(apply_coords=lambda at, size: at),
            SimpleNamespace(mask_threshold=0.0),
        )

    def predict_torch(self, at, labels, multimask_output, return_logits):
        self.clicks += at[:, 0].tolist()
        return self.logits.expand(len(at), -1, -1, -1), self.predicted.expand(len(at), -1), None


def clicks_of(looks):
    c = SamClicks(SamMasks(random_mini_sam(), SamConfig(points_per_side=2), OPEN))
    c._look_at = lambda image: looks
    return lambda *points, **settings: c.click(
        np.zeros((H, W, 3), np.uint8), np.array(points, float), **settings
    )


def block(value, y0, y1, x0, x1, shape=(3, H, W)):
    out = np.full(shape, -1, np.float32)
    out[:, y0:y1, x0:x1] = value
    return out


def test_a_crop_that_holds_the_mask_whole_is_averaged_in():
    whole, crop = (
        Says(block(1, 10, 20, 10, 40), [0.5] * 3),
        Says(block(3, 10, 20, 10, 20, (3, H, 30)), [0.9] * 3),
    )
    masks, predicted = clicks_of([((0, 0, W, H), whole), ((0, 0, 30, H), crop)])(
        (12.5, 15.5), (45.5, 5.5), one_piece=False
    )
    # inside the crop: (1 + 3) / 2 where both see it, (1 - 1) / 2 where one does not; beyond it the
    # image alone decides
    expected = np.zeros((H, W), bool)
    expected[10:20, 10:20] = expected[10:20, 30:40] = True
    assert (masks[0] == expected).all() and predicted[0] == pytest.approx(0.7)
    # this click lies outside of the crop
    assert (masks[1] == (whole.logits.numpy() > 0)).all() and predicted[1] == pytest.approx(0.5)
    assert crop.clicks == [[12.5, 15.5]] and len(whole.clicks) == 2


def test_a_click_is_told_to_a_crop_in_the_crops_own_pixels():
    crop = Says(block(3, 5, 10, 5, 10, (3, 20, 30)), [0.9] * 3)
    masks, _ = clicks_of(
        [((0, 0, W, H), Says(block(1, 25, 30, 25, 30), [0.5] * 3)), ((20, 20, 50, 40), crop)]
    )((27.5, 26.5))
    assert crop.clicks == [[7.5, 6.5]] and masks[0, 0, 25:30, 25:30].all() and masks.sum() == 3 * 25


# each ends within the image on one side only
BOXES = {
    "left": (20, 0, W, H),
    "top": (0, 10, W, H),
    "right": (0, 0, 40, H),
    "bottom": (0, 0, W, 30),
}


@pytest.mark.parametrize("touches", BOXES)
@pytest.mark.parametrize("inner", BOXES)
@pytest.mark.parametrize("gap", (1, 2))
def test_what_ends_where_a_crop_ends_has_no_say_unless_the_image_ends_there_too(
    touches, inner, gap
):
    """A mask that comes nearer than EDGE_PX to one side of a crop."""
    x0, y0, x1, y1 = BOXES[inner]
    h, w = y1 - y0, x1 - x0
    where = {
        "left": (15, 20, gap, gap + 5),
        "top": (gap, gap + 5, 15, 20),
        "right": (15, 20, w - gap - 5, w - gap),
        "bottom": (h - gap - 5, h - gap, 15, 20),
    }[touches]
    click = (x0 + where[2] + 0.5, y0 + where[0] + 0.5)
    crop, image = (
        Says(block(3, *where, (3, h, w)), [0.9] * 3),
        Says(block(-1, 0, H, 0, W), [0.5] * 3),
    )
    masks, predicted = clicks_of([((0, 0, W, H), image), (BOXES[inner], crop)])(click)
    cut = touches == inner and gap < EDGE_PX
    assert masks.any() == (not cut) and predicted == pytest.approx(
        np.full((1, 3), 0.5 if cut else 0.7)
    )


def test_look_alikes_are_dropped_and_cost_a_crop_no_say():
    far = block(2, 10, 20, 10, 20)
    far[:, 10:20, 50:55] = 2
    cut = block(2, 10, 20, 10, 20, (3, H, 30))
    cut[:, 30:35, 25:] = 2  # goes on beyond the crop
    looks = [((0, 0, W, H), Says(far, [0.5] * 3)), ((0, 0, 30, H), Says(cut, [0.9] * 3))]
    masks, predicted = clicks_of(looks)((12.5, 15.5))
    assert (
        masks[0, 0].sum() == 100
        and masks[0, 0, 10:20, 10:20].all()
        and predicted == pytest.approx(np.full((1, 3), 0.7))
    )
    masks, predicted = clicks_of(looks)((12.5, 15.5), one_piece=False)
    assert masks[0, 0].sum() == 150 and predicted == pytest.approx(np.full((1, 3), 0.5))


def test_clicks_reach_to_the_last_pixel_and_no_farther():
    clicks = clicks_of([((0, 0, W, H), Says(block(1, 0, H, 0, W), [0.5] * 3))])
    assert clicks((W - 0.01, H - 0.01), (0, 0))[0].all()
    for x, y in ((W, 5), (5, H), (-0.5, 5), (5, -0.5), (float("nan"), 5)):
        with pytest.raises(
            MaskError, match=f"x={x:g}, y={y:g} lies outside.*x < {W} and 0 <= y < {H}"
        ):
            clicks((12.5, 15.5), (x, y))
    masks, predicted = clicks()
    assert masks.shape == (0, 3, H, W) and predicted.shape == (0, 3)


def test_a_crop_that_finds_nothing_has_no_say():
    masks, predicted = clicks_of(
        [
            ((0, 0, W, H), Says(block(1, 5, 9, 5, 9), [0.5] * 3)),
            ((0, 0, 30, 30), Says(np.full((3, 30, 30), -9, np.float32), [0.9] * 3)),
        ]
    )((6.5, 6.5))
    assert masks[0, 0, 5:9, 5:9].all() and predicted == pytest.approx(np.full((1, 3), 0.5))


def test_the_piece_under_the_click():
    mask = np.array([[1, 1, 0, 0, 1], [0, 0, 1, 0, 1], [0, 0, 0, 0, 1]], bool)[None, None]
    # corners do not join
    assert piece_under(mask, np.array([[0.5, 0.5]]))[0, 0].tolist() == [
        [1, 1, 0, 0, 0],
        [0] * 5,
        [0] * 5,
    ]
    assert piece_under(mask, np.array([[4.9, 2.1]]))[0, 0].tolist() == [[0, 0, 0, 0, 1]] * 3
    assert (
        piece_under(mask, np.array([[3.5, 1.5]])) == mask
    ).all()  # not on the mask: nothing is taken away
    assert mask.sum() == 6


def test_without_crop_layers_it_is_the_packages_own_click(picture):  # noqa: F811
    adapter = SamMasks(random_mini_sam(), SamConfig(points_per_side=2), OPEN)
    points = np.array([[25.5, 30.5], [60.5, 20.5], [3.5, 55.5]])
    predictor = SamPredictor(adapter.generator.predictor.model)
    with torch.no_grad():
        predictor.set_image(picture)
        own = [predictor.predict(p[None], np.ones(1), multimask_output=True) for p in points]
    masks, iou = SamClicks(adapter).click(picture, points, one_piece=False)
    # the last bits of a batched product may differ, and with them single pixels
    assert (masks != np.stack([m for m, *_ in own])).mean() < 1e-3
    assert np.allclose(iou, np.stack([i for _, i, _ in own]), atol=1e-5)
    crops = SamMasks(random_mini_sam(), SamConfig(points_per_side=2, crop_layers=1), OPEN)
    again = SamClicks(crops, crop_layers=0).click(picture, points, one_piece=False)
    assert np.array_equal(again[0], masks) and np.array_equal(again[1], iou)


def test_embeddings_are_kept_until_another_picture_comes(picture):  # noqa: F811
    c = SamClicks(SamMasks(random_mini_sam(), SamConfig(points_per_side=2, crop_layers=1), OPEN))
    first = c._look_at(picture)
    assert (
        len(first) == 5
        and c._look_at(picture.copy()) is first
        and c._look_at(255 - picture) is not first
    )
    assert c._look_at(picture.reshape(80, 60, 3)) is not first  # the same bytes
    first = c._look_at(picture)
    assert first[0][0] == (0, 0, 80, 60) and {box[:2] for box, _ in first[1:]} == {
        (0, 0),
        (first[4][0][0], 0),
        (0, first[4][0][1]),
        first[4][0][:2],
    }


def test_mini_sam_gains_by_looking_closer():
    """On a bundled scene that it never saw, a click in every object: more of the objects, less of
    others.
    """
    scene, config = load_scene("tea_party"), profile("mini")
    adapter = SamMasks(sam_model.load_mini_sam(), config.front_end.sam, MaskConfig())
    closer, once = SamClicks(adapter), SamClicks(adapter, crop_layers=0)
    rng, ious = np.random.default_rng(0), {"one look": [], "closer": []}
    for view in scene.training_views[::8]:
        ids = scene.ground_truth.ids(view, "whole")
        regions = [
            ids == i
            for i in np.unique(ids[ids > 0])
            if (ids == i).sum() >= 60 and int(i) not in scene.ground_truth.stuff
        ]
        clicks = np.array([rng.choice(np.argwhere(r))[::-1] + 0.5 for r in regions])
        for name, (masks, _) in (
            ("one look", once.click(view.image(), clicks, one_piece=False)),
            ("closer", closer.click(view.image(), clicks)),
        ):
            ious[name] += [(m[2] & r).sum() / (m[2] | r).sum() for m, r in zip(masks, regions)]
    assert len(ious["closer"]) > 30 and np.mean(ious["closer"]) > np.mean(ious["one look"]) + 0.01


def test_an_interrupted_look_leaves_nothing_behind(picture, monkeypatch):  # noqa: F811
    c = SamClicks(SamMasks(random_mini_sam(), SamConfig(points_per_side=2, crop_layers=1), OPEN))
    expected, _ = c.click(picture, [[25.5, 30.5]])
    encode, calls = SamPredictor.set_image, []

    def interrupted(self, image, *a):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, image, *a)

    with monkeypatch.context() as m:
        m.setattr(SamPredictor, "set_image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            c.click(255 - picture, [[25.5, 30.5]])
    assert np.array_equal(c.click(picture, [[25.5, 30.5]])[0], expected)
