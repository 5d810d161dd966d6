"""The simulated front end does what its dials say."""

from dataclasses import replace

import numpy as np
import pytest

from cclkit.errors import SceneError
from cclkit.foundation.front_end import FrontEndConfig, build_front_end
from cclkit.foundation.roles import Setup
from cclkit.foundation.simulated import (
    GENERIC,
    FeatureSpace,
    SimulatedWorld,
    SimulationConfig,
    cut,
    jitter,
    seeded,
    unit,
)
from cclkit.method.masks import MaskConfig
from cclkit.method.query import CANONICAL
from cclkit.scenes.load import load_scene

PERFECT = SimulationConfig(
    incomplete_rate=0,
    split_rate=0,
    merge_rate=0,
    missing_rate=0,
    jitter_px=0,
    track_loss_rate=0,
    feature_noise=0,
    text_noise=0,
)


def simulated_front_end(scene, simulation):
    """All three roles from one scene's ground truth."""
    settings = FrontEndConfig("simulated", "simulated", propagation="simulated")
    return build_front_end(
        Setup(replace(settings, simulation=simulation), MaskConfig(), "cpu", scene)
    )


@pytest.fixture
def scene(plane_scene):
    return load_scene(plane_scene)


def test_without_imperfection_masks_are_the_truth(scene):
    front = simulated_front_end(scene, PERFECT)
    view = scene.views[0]
    c = front.masks.propose(view)
    for output, granularity in enumerate(("subpart", "part", "whole")):
        truth = scene.ground_truth.ids(view, granularity)
        expected = {
            np.packbits(truth == i).tobytes()
            for i in np.unique(truth)
            if i and (truth == i).sum() >= PERFECT.min_area_px
        }
        assert {np.packbits(m).tobytes() for m in c.masks[c.output == output]} == expected


def test_same_settings_same_masks_other_seed_other_masks(scene):
    config = SimulationConfig()
    a, b, c = (
        simulated_front_end(scene, replace(config, seed=s)).masks.propose(scene.views[1])
        for s in (0, 0, 1)
    )
    assert np.array_equal(a.masks, b.masks) and np.array_equal(a.stability, b.stability)
    assert a.masks.shape != c.masks.shape or not np.array_equal(a.masks, c.masks)


@pytest.mark.parametrize("dial, more", [("missing_rate", "fewer"), ("split_rate", "more")])
def test_rates_change_the_number_of_masks(scene, dial, more):
    def count(rate):
        front = simulated_front_end(scene, replace(PERFECT, **{dial: rate}))
        return sum(len(front.masks.propose(v).masks) for v in scene.views)

    none, some = count(0.0), count(0.5)
    assert some < 0.8 * none if more == "fewer" else some > 1.2 * none


def test_cut_keeps_the_asked_share_and_jitter_never_erases():
    region = np.zeros((40, 50), bool)
    region[5:35, 10:40] = True
    for keep in (0.2, 0.5, 0.9):
        piece = cut(region, keep, np.random.default_rng(0))
        assert (piece & ~region).sum() == 0 and abs(piece.sum() / region.sum() - keep) < 0.01
    dot = np.zeros((9, 9), bool)
    dot[4, 4] = True
    assert all(jitter(dot, 2, np.random.default_rng(s)).any() for s in range(20))


@pytest.mark.parametrize("cosine", [0.0, 0.3, 0.6, 0.8])
def test_between_object_cosine_is_adjustable(cosine):
    space = FeatureSpace(SimulationConfig(between_object_cosine=cosine, dim=256))
    F = np.stack([space.image(space.words(f"word{i}")) for i in range(60)])
    off = (F @ F.T)[~np.eye(60, dtype=bool)]
    assert abs(off.mean() - cosine) < 0.05


def test_incomplete_features_drift_towards_the_confuser_not_just_anywhere():
    space = FeatureSpace(replace(PERFECT, dim=256))
    own, confuser, other = (space.words(w) for w in ("bear", "mug", "lamp"))
    drifted = [
        np.mean([space.drifted(own, confuser, gone, seeded(i)) for i in range(20)], axis=0)
        for gone in (0.0, 0.4, 0.8)
    ]
    to_confuser = [unit(f) @ space.image(confuser) for f in drifted]
    to_other = [unit(f) @ space.image(other) for f in drifted]
    to_own = [unit(f) @ space.image(own) for f in drifted]
    assert to_confuser[0] < to_confuser[1] < to_confuser[2] and to_own[0] > to_own[1] > to_own[2]
    assert to_confuser[2] - to_confuser[0] > 0.25 and abs(to_other[2] - to_other[0]) < 0.1


def test_parts_are_nearer_their_whole_and_texts_stand_apart(scene):
    front = simulated_front_end(scene, replace(PERFECT, dim=256))
    world = front.masks.world
    assert world.direction(3) @ world.direction(2) > world.direction(3) @ world.direction(5) + 0.2
    image = world.space.image(world.direction(2))
    text = front.encoder.encode_text(["bear"])[0]
    assert 0.3 < image @ text < 0.97  # a gap, yet the right text is the nearest
    texts = front.encoder.encode_text(["bear", "red apple", "green apple", "table"])
    assert (texts @ image).argmax() == 0
    red, green, bear = (world.direction(i) for i in (5, 6, 2))
    assert red @ green > red @ bear + 0.2  # near-duplicates share words


def test_features_have_unit_length_and_follow_completeness(scene):
    front = simulated_front_end(scene, replace(PERFECT, dim=256))
    view, world = scene.views[0], front.masks.world
    region = scene.ground_truth.ids(view, "whole") == 5
    masks = np.stack([region, cut(region, 0.5, np.random.default_rng(0))])
    F = front.encoder.encode_masks(view, masks)
    assert np.allclose(np.linalg.norm(F, axis=1), 1, atol=1e-6)
    own, confuser = (
        world.space.image(world.direction(5)),
        world.space.image(world.direction(world.confuser[5])),
    )
    assert F[0] @ own > 0.999 and F[1] @ own < 0.95 and F[1] @ confuser > F[0] @ confuser + 0.1


def test_propagation_follows_objects_and_loses_them_at_the_given_rate(scene):
    front = simulated_front_end(scene, PERFECT)
    first = scene.ground_truth.ids(scene.views[0], "whole")
    masks = np.stack([first == i for i in (2, 5, 6)])
    for view, carried in front.propagator.propagate(scene.views, masks):
        truth = scene.ground_truth.ids(view, "whole")
        for m, i in zip(carried, (2, 5, 6)):
            assert np.array_equal(m, truth == i)
    lossy = simulated_front_end(scene, replace(PERFECT, track_loss_rate=0.5))
    lost = [
        not m.any()
        for n, (_, c) in enumerate(lossy.propagator.propagate(scene.views, masks))
        for m in c
        if n
    ]
    assert 0.2 < np.mean(lost) < 0.8


def test_a_scene_without_ground_truth_is_refused(scene):
    without = replace(scene, ground_truth=None)
    with pytest.raises(SceneError, match="made from ground truth ids"):
        simulated_front_end(without, SimulationConfig())
    with pytest.raises(SceneError, match="needs ground truth ids"):
        SimulatedWorld(without, SimulationConfig())


def test_canonical_phrases_fit_nothing_in_particular(scene):
    assert set(CANONICAL) <= set(GENERIC)
    front = simulated_front_end(scene, replace(PERFECT, text_noise=0))
    texts = front.encoder.encode_text(CANONICAL)
    assert np.allclose(texts, texts[0])  # the common direction and the gap, no more
