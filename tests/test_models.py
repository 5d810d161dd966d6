"""SAM and CLIP adapters: the published crop pixels, outputs that keep their identity, weights that
lie.
"""

import json
import pickle
import subprocess
import sys

import cv2
import numpy as np
import open_clip
import pytest
import torch
from conftest import write_plane_scene
from safetensors.torch import save_file
from segment_anything import SamAutomaticMaskGenerator, sam_model_registry

from cclkit import config
from cclkit.errors import ConfigError, FeatureError, MissingPackageError, ModelError, needed
from cclkit.foundation import clip, mini_clip, mini_sam, sam, weights
from cclkit.foundation.clicks import SamClicks
from cclkit.foundation.clip import ClipConfig
from cclkit.foundation.sam import SamConfig
from cclkit.method.masks import MaskConfig, build_view_masks
from cclkit.scenes.load import load_scene

OPEN = MaskConfig(predicted_iou_min=0.0, stability_min=0.0)  # nothing is filtered by score


def random_mini_sam(seed: int = 0):
    """The small architecture with random weights; scores spread so that filters have something to
    do.
    """
    torch.manual_seed(seed)
    model = mini_sam.build_mini_sam()
    for p in model.mask_decoder.parameters():
        p.data.mul_(1.5)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def picture():
    rng = np.random.default_rng(0)
    image = np.full((60, 80, 3), 90, np.uint8)
    cv2.circle(image, (25, 30), 14, (200, 40, 40), -1)
    cv2.rectangle(image, (48, 12), (70, 50), (40, 60, 190), -1)
    return np.clip(image + rng.integers(-8, 9, image.shape), 0, 255).astype(np.uint8)


# ---------------------------------------------------------------- crops


@pytest.mark.parametrize("seed", (0, 1))
def test_published_crop_pixels_are_exact(oracles, seed):
    data = np.load(oracles / f"E_langsplat_preprocess_seed{seed}.npz", allow_pickle=False)
    compared = 0
    for image in (0, 1):
        rgb = data["image_bgr"][image][..., ::-1]
        h, w = rgb.shape[:2]
        lists = {
            k: (
                np.unpackbits(data[f"img{image}_{k}_masks_packed"], axis=1)[:, : h * w]
                .reshape(-1, h, w)
                .astype(bool)
            )
            for k in "sml"
        }
        lists["default"] = np.concatenate([lists[k] for k in "sml"])
        tiles = [
            clip.masked_crop(rgb, lists[k][i], 224, "langsplat")
            for k in ("default", "s", "m", "l")
            for i in data[f"img{image}_{k}_kept"]
        ]
        mean = np.stack([t.reshape(-1, 3).mean(0) / 255 for t in tiles])
        # the stored means were taken in single precision
        assert np.abs(mean - data[f"img{image}_tile_mean"]).max() < 1e-6
        if image == 0:
            n = len(data["img0_default_kept"])
            for pick, want in zip(data["tile_pick_in_sml"], data["tile_pick_uint8"]):
                assert np.array_equal(tiles[n + pick], want)
                compared += 1
    assert compared == 3


def test_complete_crops_keep_the_last_row_and_column():
    image = np.zeros((20, 30, 3), np.uint8)
    mask = np.zeros((20, 30), bool)
    mask[5:9, 10:14] = True
    image[8, 13] = 255  # the corner that the published rule loses
    assert clip.masked_crop(image, mask, 4, "complete")[3, 3, 0] == 255
    assert clip.masked_crop(image, mask, 3, "langsplat").max() == 0
    one = np.zeros((20, 30), bool)
    one[3, 3] = True
    assert clip.masked_crop(np.full_like(image, 7), one, 8).min() == 7
    with pytest.raises(FeatureError, match="single pixel"):
        clip.masked_crop(image, one, 8, "langsplat")
    with pytest.raises(FeatureError, match="without pixels"):
        clip.masked_crop(image, np.zeros((20, 30), bool), 8)


def test_pixels_outside_the_mask_do_not_matter(picture):
    mask = np.zeros(picture.shape[:2], bool)
    mask[20:40, 20:31] = True
    other = np.where(mask[..., None], picture, 255 - picture)
    for rule in ("complete", "langsplat"):
        assert np.array_equal(
            clip.masked_crop(picture, mask, 96, rule), clip.masked_crop(other, mask, 96, rule)
        )


# ---------------------------------------------------------------- SAM


def test_outputs_keep_their_identity(picture):
    """Each candidate is what its own output says at some click of the grid, and batches do not
    change it.
    """
    model = random_mini_sam()
    adapter = sam.SamMasks(model, SamConfig(points_per_side=4, points_per_batch=16), OPEN)
    c = adapter.propose_image(picture)
    assert set(c.output.tolist()) == {0, 1, 2} and c.masks.shape[1:] == picture.shape[:2]
    points = adapter.generator.point_grids[0] * np.array(picture.shape[1::-1])
    clicked, _ = SamClicks(adapter).click(picture, points, one_piece=False)
    for mask, k in zip(c.masks, c.output):
        assert any(np.array_equal(mask, m) for m in clicked[:, k])
    again = sam.SamMasks(
        model, SamConfig(points_per_side=4, points_per_batch=5), OPEN
    ).propose_image(picture)
    # the last bits of a batched product may differ, and with them single pixels of these random
    # masks
    assert (
        len(again.masks) == len(c.masks)
        and np.array_equal(again.output, c.output)
        and (again.masks != c.masks).mean() < 1e-3
    )
    counts = c.counts
    assert counts["prompts"] == 16 and counts["outputs"] == 48
    assert counts["outputs"] - sum(
        counts[k] for k in ("low_predicted_iou", "unstable", "crop_edge", "same_box")
    ) == len(c.masks)
    # nothing is asked of stability here, and there are no crops
    assert counts["unstable"] == counts["crop_edge"] == 0


@pytest.mark.parametrize(("crop_layers", "divisor"), [(0, 1), (1, 1), (1, 2)])
def test_each_output_is_filtered_as_the_package_filters_it(picture, crop_layers, divisor):
    """Output k alone, through segment_anything's own generator: the same masks in the
    same order.
    """
    model = random_mini_sam()

    class Discs(type(model.mask_decoder)):
        """Nested blobs around the click, whose position embedding it still has: every click gets
        answers of its own.
        """

        def forward(
            self,
            image_embeddings,
            image_pe,
            sparse_prompt_embeddings,
            dense_prompt_embeddings,
            multimask_output,
        ):
            near = torch.einsum("bc,chw->bhw", sparse_prompt_embeddings[:, 0], image_pe[0])
            near = (near / near.amax((1, 2), keepdim=True))[:, None]
            masks = torch.cat([near - t for t in (0.9, 0.75, 0.6)], 1)
            return 40 * masks, (masks > 0).float().mean((2, 3)).mul(97).frac()

    model.mask_decoder.__class__ = Discs
    filters = MaskConfig(predicted_iou_min=0.0, stability_min=0.0)
    c = sam.SamMasks(
        model,
        SamConfig(points_per_side=5, crop_layers=crop_layers, crop_points_divisor=divisor),
        filters,
    ).propose_image(picture)
    assert set(c.output.tolist()) == {0, 1, 2} and len(c.masks) > 20
    for k in (0, 1, 2):

        class Alone(type(model.mask_decoder)):
            def forward(self, **kwargs):
                masks, scores = super().forward(**kwargs)
                return masks[:, k : k + 1], scores[:, k : k + 1]

        own = type(model.mask_decoder)
        model.mask_decoder.__class__ = Alone
        try:
            g = SamAutomaticMaskGenerator(
                model,
                points_per_side=5,
                pred_iou_thresh=0.0,
                stability_score_thresh=0.0,
                crop_n_layers=crop_layers,
                crop_n_points_downscale_factor=divisor,
                box_nms_thresh=0.7,
                crop_nms_thresh=0.7,
            )
            want = g.generate(picture)
        finally:
            model.mask_decoder.__class__ = own
        mine = np.flatnonzero(c.output == k)
        assert len(mine) == len(want)
        for m, w in zip(mine, want):
            assert (
                np.array_equal(c.masks[m], w["segmentation"])
                and abs(c.predicted_iou[m] - np.clip(w["predicted_iou"], 0, 1)) < 1e-6
            )


@pytest.mark.parametrize("crop_layers", [0, 1])
def test_a_view_without_masks_is_a_result(picture, crop_layers):
    adapter = sam.SamMasks(
        random_mini_sam(),
        SamConfig(points_per_side=3, crop_layers=crop_layers),
        MaskConfig(predicted_iou_min=1.0, stability_min=1.0),
    )
    for p in (adapter.generator.predictor.model.mask_decoder.iou_prediction_head.layers[-1].bias,):
        p.data.fill_(-5)
    c = adapter.propose_image(picture)
    assert c.masks.shape == (0, *picture.shape[:2]) and len(c.output) == 0
    view, counts = build_view_masks(c, MaskConfig())
    assert len(view) == 0 and (view.sp == -1).all() and counts.kept == 0


def test_what_a_crop_cuts_is_counted_as_such(picture):
    counts = (
        sam.SamMasks(random_mini_sam(), SamConfig(points_per_side=4, crop_layers=1), OPEN)
        .propose_image(picture)
        .counts
    )
    assert counts["crop_edge"] > 0 and counts["unstable"] == 0


def test_crop_layers_and_image_sizes(picture):
    adapter = sam.SamMasks(random_mini_sam(), SamConfig(points_per_side=3, crop_layers=1), OPEN)
    for image in (
        picture,
        np.ascontiguousarray(picture.transpose(1, 0, 2)),
        cv2.resize(picture, (301, 97)),
    ):
        c = adapter.propose_image(image)
        assert (
            len(c.masks)
            and c.masks.shape[1:] == image.shape[:2]
            and set(c.output.tolist()) <= {0, 1, 2}
        )


@pytest.mark.parametrize("name", ("vit_b",))
def test_real_sam_end_to_end_from_a_file(name, picture, tmp_path):
    """The public architecture with random weights, saved as the public checkpoints are."""
    torch.manual_seed(0)
    path = tmp_path / f"{name}.pth"
    torch.save(sam_model_registry[name]().state_dict(), path)
    adapter = sam.sam_masks(SamConfig(model=name, checkpoint=str(path), points_per_side=2), OPEN)
    c = adapter.propose_image(picture)
    assert c.masks.shape[1:] == picture.shape[:2] and c.counts["prompts"] == 4
    with pytest.raises(ModelError, match="not the weights of SAM vit_l"):
        weights.fill(
            _meta(lambda: sam_model_registry["vit_l"]()),
            weights.load_weights(path, "SAM vit_l"),
            path,
            "SAM vit_l",
        )


def _meta(build):
    with torch.device("meta"):
        return build()


@pytest.mark.parametrize("name", ("vit_l", "vit_h"))
def test_large_sams_have_the_tensors_we_fill(name):
    model = _meta(lambda: sam_model_registry[name]())
    state = model.state_dict()
    assert len(state) > 400 and all(not k.startswith(("pixel_mean", "pixel_std")) for k in state)


# ---------------------------------------------------------------- CLIP


def test_real_clip_end_to_end_from_a_file(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "open_clip_pytorch_model.bin"
    torch.save(open_clip.create_model("ViT-B-16", pretrained=None).state_dict(), path)
    encoder = clip.clip_encoder(
        ClipConfig(
            model="ViT-B-16", checkpoint=str(path), crop="langsplat", prompts="ensemble", batch=2
        )
    )
    scene = load_scene(write_plane_scene(tmp_path))
    view = scene.views[0]
    masks = np.stack([scene.ground_truth.ids(view, "whole") == i for i in (2, 5, 6)])
    f = encoder.encode_masks(view, masks)
    assert f.shape == (3, 512) and np.allclose(np.linalg.norm(f, axis=1), 1, atol=1e-5)
    t = encoder.encode_text(["bear", "red apple", "bear"])
    assert (
        t.shape == (3, 512) and np.array_equal(t[0], t[2]) and encoder.unknown_words("zebra") == []
    )


def test_text_tokens_are_clips_own(real_data):
    """The tokenizer that a checkpoint by path is used with gives the published token rows."""
    stored = json.loads((real_data / "oracles" / "clip_tokens.json").read_text())
    tokenizer = open_clip.get_tokenizer("ViT-B-16")
    for case in stored["cases"]:
        got = tokenizer([case["text"]])[0].tolist()
        # open_clip cuts, and keeps the end
        ids = case["ids"] if len(case["ids"]) <= 77 else [*case["ids"][:76], case["ids"][-1]]
        assert got[: len(ids)] == ids and not any(got[len(ids) :]), case["text"]
    assert len(stored["cases"]) > 3


def test_mini_clip_words():
    t = mini_clip.WordTokenizer(("apple", "of", "red"))
    a, b = t(["Red apple", "the bear's nose of red"])
    assert a[:4].tolist() == [1, 5, 3, 6] and a[4:].sum() == 0 and int(b.max()) == t.end
    assert t.unknown("the bear's red nose") == ["the", "bear", "nose"] and len(t) == 7
    long = t(["red " * 40])[0]
    assert long[-1] == t.end and len(long) == mini_clip.CONTEXT


def test_masked_features_ignore_batches(picture):
    torch.manual_seed(0)
    tokenizer = mini_clip.WordTokenizer(("object",))
    model = mini_clip.build_mini_clip(len(tokenizer))
    rng = np.random.default_rng(0)
    crops = [rng.integers(0, 255, (96, 96, 3), dtype=np.uint8) for _ in range(5)]
    a = clip.ClipEncoder(model, tokenizer, ClipConfig(batch=2)).encode_crops(crops)
    b = clip.ClipEncoder(model, tokenizer, ClipConfig(batch=64)).encode_crops(crops)
    assert a.shape == (5, mini_clip.DIM) and np.abs(a - b).max() < 1e-5
    assert clip.ClipEncoder(model, tokenizer, ClipConfig()).encode_crops([]).shape == (
        0,
        mini_clip.DIM,
    )


# ---------------------------------------------------------------- weights that cannot be used


class Evil:
    def __reduce__(self):
        return print, ("this ran",)


def test_unusable_weights_are_one_clear_error(tmp_path, capsys):
    what = "mini-SAM"
    with pytest.raises(ModelError, match="no weights of mini-SAM here"):
        weights.load_weights(tmp_path / "none.safetensors", what)
    evil = tmp_path / "evil.pth"
    evil.write_bytes(pickle.dumps({"x": Evil()}))
    with pytest.raises(ModelError, match="a pickle can run code"):
        weights.load_weights(evil, what)
    torch.save({"x": Evil()}, evil)
    with pytest.raises(ModelError, match="a pickle can run code"):
        weights.load_weights(evil, what)
    assert "this ran" not in capsys.readouterr().out
    good = random_mini_sam().state_dict()
    whole = tmp_path / "mini.safetensors"
    save_file(good, whole)
    short = tmp_path / "short.safetensors"
    short.write_bytes(whole.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cut short"):
        weights.load_weights(short, what)
    cut = tmp_path / "cut.pth"
    torch.save(good, cut)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    with pytest.raises(ModelError, match="mini-SAM"):
        weights.load_weights(cut, what)
    with pytest.raises(ModelError, match="sha256 .* expected 0000"):
        weights.load_weights(whole, what, sha256="0" * 64)
    torch.save([1, 2], cut)
    with pytest.raises(ModelError, match="no table of tensors"):
        weights.load_weights(cut, what)
    with pytest.raises(ModelError, match="not the weights of mini-CLIP.*missing.*unknown"):
        weights.fill(
            mini_clip.build_mini_clip(9),
            weights.load_weights(whole, "mini-CLIP"),
            whole,
            "mini-CLIP",
        )
    good["mask_decoder.iou_token.weight"] = torch.full_like(
        good["mask_decoder.iou_token.weight"], float("nan")
    )
    with pytest.raises(ModelError, match="not finite"):
        weights.fill(mini_sam.build_mini_sam(), good, whole, what)
    with pytest.raises(ModelError, match="needs front_end.sam.checkpoint"):
        sam.load_sam("vit_h")
    with pytest.raises(ModelError, match="is not supported; use one of mini, ViT-B-32"):
        clip.load_clip("ViT-Z-99")
    with pytest.raises(ModelError, match="needs front_end.clip.checkpoint"):
        clip.load_clip("ViT-B-16")


def test_weights_count_for_keys_by_content(tmp_path):
    """The same file elsewhere is the same model; other bytes are another."""
    a, b = tmp_path / "a.pth", tmp_path / "b.pth"
    for p in (a, b):
        p.write_bytes(b"same bytes")
    key = lambda p: weights.identity("vit_b", str(p), "")
    assert key(a) == key(b)
    b.write_bytes(b"other bytes!")
    assert key(a) != key(b) and weights.identity("vit_b", "", "") == "vit_b:none"


def test_settings_of_the_models_are_checked():
    with pytest.raises(ConfigError, match="front_end.sam.model"):
        config.profile("mini", **{"front_end.sam.model": "vit_x"})
    with pytest.raises(ConfigError, match="points_per_side"):
        config.profile("mini", **{"front_end.sam.points_per_side": 0})
    with pytest.raises(ConfigError, match="crop_points_divisor=3 leaves no click of 2 per side"):
        config.profile(
            "mini", **{"front_end.sam.points_per_side": 2, "front_end.sam.crop_points_divisor": 3}
        )
    with pytest.raises(ConfigError, match="front_end.clip.cone=1.0 is out of range"):
        config.profile("mini", **{"front_end.clip.cone": 1.0})
    paper = config.profile("paper").front_end
    assert (
        paper.sam.model,
        paper.sam.points_per_side,
        paper.sam.crop_layers,
        paper.clip.model,
        paper.clip.prompts,
        paper.clip.cone,
    ) == ("vit_h", 32, 0, "ViT-B-16", "raw", 0.0)


def test_only_mini_clip_is_put_into_a_cone():
    mini = config.profile("mini")
    assert (
        mini.front_end.clip.cone == 0.5
        and mini.with_settings({"front_end.clip.batch": 8}).front_end.clip.cone == 0.5
    )
    assert mini.with_settings({"front_end.clip.model": "ViT-B-16"}).front_end.clip.cone == 0.0
    assert (
        mini.with_settings(
            {"front_end.clip.model": "ViT-B-16", "front_end.clip.cone": 0.2}
        ).front_end.clip.cone
        == 0.2
    )


def test_a_cone_narrows_cosines_and_keeps_their_order():
    rng = np.random.default_rng(0)
    crops = [
        rng.integers(0, 255, (mini_clip.IMAGE_SIZE, mini_clip.IMAGE_SIZE, 3), np.uint8)
        for _ in range(3)
    ]
    words = ["red apple", "rubber duck", "object"]
    plain, narrow = (clip.clip_encoder(ClipConfig(cone=c)) for c in (0.0, 0.5))
    a, b = plain.encode_crops(crops), narrow.encode_crops(crops)
    s, t = plain.encode_text(words), narrow.encode_text(words)
    assert plain.dim == mini_clip.DIM and b.shape == (3, narrow.dim) == (3, mini_clip.DIM + 2)
    assert np.allclose(np.linalg.norm(b, axis=1), 1, atol=1e-6) and np.allclose(
        np.linalg.norm(t, axis=1), 1, atol=1e-6
    )
    assert np.allclose(b @ b.T, 0.5 + 0.5 * a @ a.T, atol=1e-6) and np.allclose(
        t @ t.T, 0.5 + 0.5 * s @ s.T, atol=1e-6
    )
    assert np.allclose(b @ t.T, 0.5 * a @ s.T, atol=1e-6)


def test_a_text_is_the_same_whatever_is_asked_beside_it():
    """Bit for bit: notebooks are compared, and a second run asks in another order."""
    from cclkit.foundation.clip import ClipConfig

    words = ["red apple", "teapot", "a stuffed bear", "object", "stuff", "wooden table", "mug"]
    together = clip.clip_encoder(ClipConfig()).encode_text(words)
    backwards = clip.clip_encoder(ClipConfig()).encode_text(words[::-1])[::-1]
    alone = clip.clip_encoder(ClipConfig())
    assert np.array_equal(together, backwards) and np.array_equal(
        together, np.concatenate([alone.encode_text([w]) for w in words])
    )


# ---------------------------------------------------------------- packages that are not there


@pytest.mark.parametrize(
    ("package", "role", "install"),
    [
        ("segment_anything", "masks", "segment-anything"),
        ("sam2", "propagator", "sam2"),
        ("open_clip", "encoder", "open_clip_torch"),
    ],
)
def test_a_missing_package_is_named_when_it_is_needed(package, role, install):
    """Settings, labels and everything else work without it."""
    code = f"""
import sys
for name in ("segment_anything", "sam2", "open_clip"):
    sys.modules[name] = None
import cclkit.foundation.clicks
from cclkit.config import profile
from cclkit.errors import MissingPackageError
from cclkit.foundation.front_end import build_front_end
from cclkit.foundation.roles import Setup
c = profile("mini")
front = build_front_end(Setup(c.front_end, c.masks))
print(front.label)
try:
    front.{role}
except MissingPackageError as e:
    print(e)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    label, said = done.stdout.splitlines()
    assert label == "mini-SAM, mini-SAM2, mini-CLIP"
    assert said == f"{package} is not installed but needed; run `pip install {install}`"


@pytest.mark.parametrize(
    "load",
    [
        "foundation.sam import load_sam as f; f('vit_b')",
        "foundation.sam2 import build_sam2 as f; f('sam2.1_hiera_tiny')",
        "foundation.clip import load_clip as f; f('ViT-B-16')",
        "gaussians.rasterize import _rasterize_cuda as f; f(None, None, None, 1)",
    ],
)
def test_what_else_needs_a_package_names_it_too(load):
    code = (
        "import sys\nfor n in ('segment_anything', 'sam2', 'open_clip', 'gsplat'):\n"
        "    sys.modules[n] = None\n"
        "from cclkit.errors import MissingPackageError\n"
        f"try:\n    from cclkit.{load}\nexcept MissingPackageError as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "run `pip install" in done.stdout, done.stderr


def test_only_a_missing_package_is_taken_for_one():
    with pytest.raises(MissingPackageError, match="hydra is not installed but needed by sam2; run"):
        with needed("sam2"):
            raise ModuleNotFoundError("No module named 'hydra'", name="hydra")
    with pytest.raises(MissingPackageError, match="run `pip install torch --index-url"):
        with needed("torch", "torch --index-url ..."):
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
    for own in (
        ModuleNotFoundError(name="cclkit.nothing"),
        ModuleNotFoundError(),
        ImportError("x"),
    ):
        with pytest.raises(ImportError) as e:
            with needed("sam2"):
                raise own
        assert e.value is own
