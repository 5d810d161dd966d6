"""SAM2's adapter on the package's own architecture with random weights saved to disk."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import write_plane_scene
from PIL import Image

from cclkit import config
from cclkit.errors import ModelError, SceneError
from cclkit.foundation.front_end import build_front_end, model_of
from cclkit.foundation.roles import Setup
from cclkit.foundation.sam2 import CONFIGS, Sam2Config, Sam2Propagation, build_sam2, load_sam2
from cclkit.scenes.load import load_scene
from cclkit.scenes.scene import Camera, View

MODEL = "sam2.1_hiera_tiny"


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    """Four pictures of a bright square that moves, one of another size, under names that are no
    numbers; one is a PNG.
    """
    folder, out = tmp_path_factory.mktemp("film"), []
    for n, name in enumerate(("b_last.jpg", "a first.png", "IMG-7.jpg", "x.jpg")):
        h, w = (40, 60) if n != 2 else (48, 64)
        picture = np.full((h, w, 3), 60, np.uint8)
        picture[10:26, 8 + 3 * n : 26 + 3 * n] = (220, 200, 40)
        Image.fromarray(picture).save(folder / name)
        out.append(
            View(
                name,
                folder / name,
                Camera(np.array([[50.0, 0, w / 2], [0, 50, h / 2], [0, 0, 1]]), np.eye(4), w, h),
            )
        )
    return out


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.pt"
    torch.save({"model": build_sam2(MODEL).state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return load_sam2(MODEL, str(checkpoint), 256)


def first_masks():
    masks = np.zeros((4, 40, 60), bool)
    masks[0, 10:26, 8:26] = True
    masks[1, 30:38, 40:58] = True
    masks[3] = True  # an object that covers the whole image; 2 is empty
    return masks


def carried(predictor, views, keep=None, **settings):
    return list(
        Sam2Propagation(predictor, Sam2Config(model=MODEL, **settings)).propagate(
            views, first_masks(), keep
        )
    )


def test_masks_come_back_for_every_view_in_its_own_size(predictor, views, tmp_path):
    whole = carried(predictor, views, tmp_path)
    # in the order given, whatever the names
    assert [v.name for v, _ in whole] == [v.name for v in views]
    for v, m in whole:
        assert m.shape == (4, v.camera.height, v.camera.width) and m.dtype == bool
        assert not m[2].any()  # an empty mask stays empty
    assert np.array_equal(whole[0][1], first_masks())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["carried_000.npz"]
    # What was carried is found again, without the model.
    again = list(
        Sam2Propagation(torch.nn.Module(), Sam2Config(model=MODEL)).propagate(
            views, first_masks(), tmp_path
        )
    )
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(whole, again))


def test_chunks_do_not_change_what_an_object_does(predictor, views, tmp_path):
    """Objects do not see each other, so the number carried at once only changes memory; old memory
    is let go.
    """
    two = carried(predictor, views[:3], tmp_path, objects_per_chunk=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["carried_000.npz", "carried_001.npz"]
    (tmp_path / "carried_001.npz").unlink()  # killed after the first chunk
    resumed = carried(predictor, views[:3], tmp_path, objects_per_chunk=2)
    alone = carried(predictor, views[:3], objects_per_chunk=1)
    for (_, a), (_, b), (_, c) in zip(two, resumed, alone):
        assert np.array_equal(a, b) and np.array_equal(a, c)


def test_memory_of_old_frames_is_dropped(predictor):
    adapter = Sam2Propagation(predictor, Sam2Config(model=MODEL))
    kept = {n: object() for n in range(40)}
    adapter._forget({"output_dict_per_obj": {0: {"non_cond_frame_outputs": kept}}}, 39)
    assert (
        min(kept) == 39 - max(predictor.num_maskmem, predictor.max_obj_ptrs_in_encoder)
        and max(kept) == 39
    )


def test_the_bundled_tracker_follows_an_object_in_a_real_video(real_data):
    """30 frames, 720×480, the reflection of a turning chair: nothing that mini-SAM2 was
    trained on.
    """
    folder = real_data / "video" / "chair"
    frames = sorted((folder / "JPEGImages").glob("*.jpg"))
    truth = np.stack(
        [np.asarray(Image.open(folder / "Annotations" / f"{f.stem}.png")) > 0 for f in frames]
    )
    h, w = truth.shape[1:]
    film = [
        View(
            f.name,
            f,
            Camera(np.array([[w, 0, w / 2], [0, w, h / 2], [0, 0, 1.0]]), np.eye(4), w, h),
        )
        for f in frames
    ]
    found = np.stack(
        [
            m[0]
            for _, m in Sam2Propagation(load_sam2("mini"), Sam2Config()).propagate(film, truth[:1])
        ]
    )
    j = (found & truth).sum((1, 2)) / (found | truth).sum((1, 2))
    copied = (truth[:1] & truth).sum((1, 2)) / (truth[:1] | truth).sum((1, 2))
    print(f"J of mini-SAM2 {j[1:].mean():.3f}, of the first mask kept {copied[1:].mean():.3f}")
    # no better than the first mask kept: it is small
    assert found.shape == truth.shape and j[0] == 1 and j[1:11].mean() > 0.5 and j[1:].mean() > 0.35


def test_nothing_to_carry_is_no_error(predictor, views):
    adapter = Sam2Propagation(predictor, Sam2Config(model=MODEL))
    got = list(adapter.propagate(views, np.zeros((0, 40, 60), bool)))
    assert [m.shape for _, m in got] == [(0, v.camera.height, v.camera.width) for v in views]


def test_unusable_weights_are_one_clear_error(checkpoint, tmp_path):
    with pytest.raises(ModelError, match="cclkit data fetch sam2.1_hiera_small"):
        load_sam2("sam2.1_hiera_small")
    with pytest.raises(ModelError, match="not the weights of SAM2 sam2.1_hiera_small"):
        load_sam2("sam2.1_hiera_small", str(checkpoint))
    (tmp_path / "cut.pt").write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cut.pt"):
        load_sam2(MODEL, str(tmp_path / "cut.pt"))


@pytest.mark.parametrize("model", ["sam2_hiera_tiny", "sam2.1_hiera_base_plus"])
def test_both_families_can_be_built(model):
    assert sum(p.numel() for p in build_sam2(model).parameters()) > 30e6 and model in CONFIGS


def setup(c, scene):
    return Setup(c.front_end, c.masks, c.device, scene)


def test_the_run_uses_it_and_its_key_knows_the_weights(checkpoint, tmp_path):
    scene = load_scene(write_plane_scene(tmp_path))
    c = config.profile(
        "mini",
        **{
            "front_end.propagation": "sam2",
            "front_end.sam2.model": MODEL,
            "front_end.sam2.checkpoint": str(checkpoint),
        },
    )
    front = build_front_end(setup(c, scene))
    assert isinstance(front.propagator, Sam2Propagation) and "SAM2.1_hiera_tiny" in front.label
    other = tmp_path / "other.pt"
    other.write_bytes(checkpoint.read_bytes() + b"\0")
    changed = c.with_settings({"front_end.sam2.checkpoint": str(other)})
    of = lambda c: model_of(c.front_end, "tracker").settings(setup(c, scene))
    assert of(c)["weights"] != of(changed)["weights"]
    assert of(c) == of(c.with_settings({"front_end.sam2.objects_per_chunk": 3}))
    without = replace(scene, ground_truth=None)
    with pytest.raises(SceneError, match="front_end.propagation=sam2"):
        c = config.profile("mini", **{"front_end.propagation": "simulated"})
        build_front_end(setup(c, without))
