"""The semantic field: blending cache, cached against rasterised training, the closed form."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cclkit.config import profile
from cclkit.errors import ArtefactError, ConfigError, FieldError, GaussiansError
from cclkit.gaussians.blending import blending_weights
from cclkit.gaussians.blending_cache import build_blending_cache, open_blending_cache
from cclkit.gaussians.densify import Densification
from cclkit.gaussians.model import Gaussians
from cclkit.gaussians.rasterize import project, rasterize, splat_features
from cclkit.gaussians.reconstruct import FitConfig, fit_rgb
from cclkit.method.field import Decoder, FieldConfig, field_loss, train_field, train_joint
from cclkit.method.field_cached import train_field_variant
from cclkit.method.lifting import code_votes, vote_field
from cclkit.scenes.scene import Camera, View

W, H, N = 24, 16, 4  # N codes per level
ALL = 10**6  # pixels per mask: every one


def gaussians(n=50, seed=0, opacity=(0.1, 0.9)) -> Gaussians:
    """Overlapping Gaussians in front of the cameras below."""
    rng = torch.Generator().manual_seed(seed)
    means = torch.cat(
        [
            torch.rand(n, 2, generator=rng) * torch.tensor([2.4, 1.6]) - torch.tensor([1.2, 0.8]),
            2 + torch.rand(n, 1, generator=rng),
        ],
        1,
    )
    alpha = opacity[0] + (opacity[1] - opacity[0]) * torch.rand(n, generator=rng)
    return Gaussians(
        means,
        torch.randn(n, 4, generator=rng),
        -2.5 + 0.5 * torch.randn(n, 3, generator=rng),
        torch.logit(alpha),
        torch.zeros(n, 1, 3),
    )


def view(i: int, *, turned_away=False) -> View:
    pose = np.eye(4)
    pose[0, 3] = 0.1 * i
    if turned_away:
        pose[:3, :3] = np.diag([-1, 1, -1])
    K = np.array([[20.0, 0, W / 2], [0, 20.0, H / 2], [0, 0, 1]])
    return View(f"frame_{i}.jpg", Path(f"frame_{i}.jpg"), Camera(K, pose, W, H))


VIEWS = [view(i) for i in range(3)]


def labels(seed=0) -> dict[str, np.ndarray]:
    """Per view: at level 0 three masks of 1, 8 and 128 pixels, at level 1 one mask that covers the
    last two; the rest is in none.
    """
    rng = np.random.default_rng(seed)
    out = {}
    for v in VIEWS:
        m = np.full((2, H, W), -1, np.int32)
        m[0, 0, rng.integers(0, W)] = 0
        m[0, 4:8, 0:2] = 1
        m[0, 8:16, 4:20] = 2
        m[1, 4:16, 0:20] = 3
        out[v.name] = m
    return out


CODES = np.array([2, 0, 3, 1, -1], np.int32)  # code of each mask; -1 stays -1
INDEX_MAPS = {name: CODES[m] for name, m in labels().items()}


def build(folder, g=None, views=VIEWS, maps=None, **settings):
    options = {"top_k": 50, "pixels_per_mask": ALL, "seed": 0} | settings
    return build_blending_cache(folder, g or gaussians(), views, maps or labels(), **options)


# --------------------------------------------------------------------------- the cache
def test_every_mask_gets_its_pixels(tmp_path):
    cache, maps = build(tmp_path, pixels_per_mask=5), labels()
    assert (np.diff(cache.view) >= 0).all() and cache.ids.shape == (len(cache), 50)
    for i, v in enumerate(VIEWS):
        pixels = cache.pixel[cache.view == i]
        assert len(np.unique(pixels)) == len(pixels)
        level0, level1 = maps[v.name].reshape(2, -1)[:, pixels]
        # of the large masks 5 each, and whatever was drawn inside them for the other level
        assert (
            (level0 == 0).sum() == 1
            and (level0 == 1).sum() >= 5
            and (level0 == 2).sum() >= 5
            and (level1 == 3).sum() >= 10
        )
        assert 11 <= len(pixels) <= 16


def test_area_weighted_pixels_are_uniform_over_masks(tmp_path):
    cache, maps = build(tmp_path, pixels_per_mask=20, area_weighted=True), labels()
    for i, v in enumerate(VIEWS):
        pixels = cache.pixel[cache.view == i]
        inside = (maps[v.name] >= 0).any(0).ravel()
        assert len(np.unique(pixels)) == 80 and inside[pixels].all()  # 4 masks x 20 pixels
    share = np.mean(
        np.concatenate(
            [maps[v.name][0].ravel()[cache.pixel[cache.view == i]] for i, v in enumerate(VIEWS)]
        )
        == 2
    )
    assert abs(share - 128 / 241) < 0.1


def test_rows_are_the_blending_weights_of_their_pixels(tmp_path):
    g = gaussians()
    cache = build(tmp_path, g, top_k=3, pixels_per_mask=9)
    for i, v in enumerate(VIEWS):
        ids, weights, residual = (
            t.flatten(0, 1).numpy() for t in blending_weights(project(g, v.camera), 3)
        )
        own = cache.view == i
        assert np.array_equal(cache.ids[own], ids[cache.pixel[own]]) and np.array_equal(
            cache.weights[own], weights[cache.pixel[own]]
        )
        assert np.array_equal(cache.residual[own], residual[cache.pixel[own]])
    assert isinstance(cache.ids, np.memmap) and not cache.ids.flags.writeable


def test_truncation_is_reported(tmp_path):
    full, cut = build(tmp_path / "full").truncation(), build(tmp_path / "cut", top_k=2).truncation()
    assert full["max"] < 1e-6 < 0.05 < cut["mean"] < cut["p99"] <= cut["max"] < 1
    assert full["uncovered"] == cut["uncovered"] < 0.2


def test_same_seed_same_bytes_other_seed_other_pixels(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        build(tmp_path / name, pixels_per_mask=5, seed=seed)
    read = lambda name: {p.name: p.read_bytes() for p in sorted((tmp_path / name).iterdir())}
    assert read("a") == read("b") and set(read("a")) == {
        "cache.json",
        "view.npy",
        "pixel.npy",
        "ids.npy",
        "weights.npy",
        "residual.npy",
    }
    assert read("a")["pixel.npy"] != read("c")["pixel.npy"]


def test_a_killed_build_goes_on_with_the_next_view(tmp_path, monkeypatch):
    module = __import__("cclkit.gaussians.blending_cache", fromlist=["x"])
    seen = []

    def counted(projection, k, pixels):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(k)
        return blending_weights(projection, k, pixels)

    monkeypatch.setattr(module, "blending_weights", counted)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "killed")
    with pytest.raises(ArtefactError, match="unfinished"):
        open_blending_cache(tmp_path / "killed")
    seen[:] = [None]  # one more is allowed
    build(tmp_path / "killed")
    monkeypatch.undo()
    build(tmp_path / "straight")
    for p in (tmp_path / "straight").iterdir():
        assert (tmp_path / "killed" / p.name).read_bytes() == p.read_bytes(), p.name
    monkeypatch.setattr(module, "blending_weights", None)  # a finished one is opened, not built
    assert len(build(tmp_path / "killed")) == len(open_blending_cache(tmp_path / "straight"))


def _moved(g: Gaussians) -> Gaussians:
    return dataclasses.replace(g, means=g.means + 0.01)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"g": _moved(gaussians())}, "other gaussians "),
        ({"maps": labels(seed=1)}, "other masks "),
        ({"views": VIEWS[:2]}, "other cameras and masks"),
        ({"top_k": 4}, "top_k 50 where 4 is wanted"),
        ({"seed": 1}, "other seed"),
    ],
)
def test_a_cache_of_something_else_is_refused_with_the_reason(tmp_path, change, reason):
    build(tmp_path)
    before = (tmp_path / "ids.npy").read_bytes()
    with pytest.raises(ArtefactError, match=reason) as e:
        build(tmp_path, **change)
    assert "delete the folder" in str(e.value) and (tmp_path / "ids.npy").read_bytes() == before


def test_training_refuses_a_cache_of_something_else(tmp_path):
    cache, config = build(tmp_path), FieldConfig(mode="cached", iterations=1)
    train = lambda g=gaussians(), views=VIEWS, maps=INDEX_MAPS, cache=cache: train_field_variant(
        g, views, maps, [N, N], config, seed=0, cache=cache
    )
    with pytest.raises(ArtefactError, match="other gaussians"):
        train(_moved(gaussians()))
    with pytest.raises(ArtefactError, match="other cameras"):
        train(views=VIEWS[:2])
    with pytest.raises(FieldError, match="lie in no mask"):
        train(
            maps={n: np.where(m == 3, -1, m) * (m != 1) - (m == 1) for n, m in INDEX_MAPS.items()}
        )
    with pytest.raises(FieldError, match="no index map"):
        cache.codes({VIEWS[0].name: INDEX_MAPS[VIEWS[0].name]})
    with pytest.raises(FieldError, match="no cache was given"):
        train(cache=None)
    train(dataclasses.replace(gaussians(), sh=torch.ones(50, 1, 3)))  # colours do not matter


def test_colours_do_not_make_other_gaussians(tmp_path):
    cache = build(tmp_path)
    cache.check(dataclasses.replace(gaussians(), sh=torch.ones(50, 1, 3)), VIEWS)
    with pytest.raises(ArtefactError):
        cache.check(gaussians(49))


@pytest.mark.parametrize("content, message", [(b"{", "damaged"), (b'{"made_from": {}}', "damaged")])
def test_a_damaged_record_or_array_is_named(tmp_path, content, message):
    build(tmp_path)
    good = (tmp_path / "ids.npy").read_bytes()
    (tmp_path / "ids.npy").write_bytes(good[: len(good) // 2])
    with pytest.raises(ArtefactError, match="ids.npy: damaged"):
        open_blending_cache(tmp_path)
    (tmp_path / "cache.json").write_bytes(content)
    with pytest.raises(ArtefactError, match=f"cache.json: {message}"):
        open_blending_cache(tmp_path)
    with pytest.raises(ArtefactError, match="holds no blending cache"):
        open_blending_cache(tmp_path / "elsewhere")


def test_a_full_disk_keeps_finished_views(tmp_path, monkeypatch):
    module = __import__("cclkit.gaussians.blending_cache", fromlist=["x"])
    real, written = module.save_npz, []

    def save(path, **arrays):
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(path)
        real(path, **arrays)

    monkeypatch.setattr(module, "save_npz", save)
    with pytest.raises(ArtefactError, match="No space left on device.*finished views are kept"):
        build(tmp_path)
    assert all(p.exists() for p in written)


# --------------------------------------------------------------------------- votes as a start
def test_voted_start_is_the_weighted_mean_of_code_vectors_in_both_modes(tmp_path):
    """Against A^T by hand: every pixel of every view, its weights for all Gaussians, and the
    vectors that the codes drew.
    """
    g, cache = gaussians(), build(tmp_path)

    def start(**settings):
        config = FieldConfig(iterations=0, **settings)
        train = train_field if settings == {"init": "random"} else train_field_variant
        more = {} if train is train_field else {"cache": cache}
        return train(g, VIEWS, INDEX_MAPS, [N, N], config, seed=5, **more)[0].features

    votes = torch.zeros(2, len(g), N)
    for v in VIEWS:
        ids, weights, _ = (t.flatten(0, 1) for t in blending_weights(project(g, v.camera), len(g)))
        for own, codes in zip(votes, INDEX_MAPS[v.name].reshape(2, -1)):
            for i, w, c in zip(ids, weights, codes):
                if c >= 0:
                    own[:, c].index_add_(0, i.long(), w)
    rasterised, cached, drawn = (
        start(init="votes"),
        start(init="votes", mode="cached"),
        start(init="random"),
    )
    torch.testing.assert_close(rasterised, cached, atol=1e-5, rtol=1e-5)
    seen = votes.sum(2) > 1e-4
    assert 0.2 < seen.float().mean() < 1
    for own, found, random, here in zip(votes, rasterised, drawn, seen):
        share = own[here] / own[here].sum(1, keepdim=True)
        vectors = torch.linalg.lstsq(share, found[here]).solution  # what the codes must have drawn
        used = own.sum(0) > 0.1
        torch.testing.assert_close(
            vectors[used].norm(dim=1), torch.ones(int(used.sum())), atol=1e-3, rtol=0
        )
        torch.testing.assert_close(share @ vectors, found[here], atol=1e-4, rtol=0)
        assert torch.equal(found[own.sum(1) == 0], random[own.sum(1) == 0])  # no vote: as drawn


# --------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    "change, message",
    [
        ({"means": torch.full((50, 3), torch.nan)}, "means holds NaN"),
        # a scale of exactly zero
        (
            {"log_scales": torch.full((50, 3), -torch.inf)},
            "log_scales holds NaN or inf",
        ),
    ],
)
def test_unusable_gaussians_are_refused_in_both_modes(tmp_path, change, message):
    broken = dataclasses.replace(gaussians(), **change)
    with pytest.raises(GaussiansError, match=message):
        build(tmp_path, broken)
    assert not (tmp_path / "cache.json").exists()
    with pytest.raises(GaussiansError, match=message):
        train_field(broken, VIEWS, INDEX_MAPS, [N, N], FieldConfig(iterations=1), seed=0)


def test_scales_that_round_to_zero_are_dots_of_a_pixel(tmp_path):
    g = dataclasses.replace(gaussians(opacity=(0.8, 0.9)), log_scales=torch.full((50, 3), -200.0))
    assert g.log_scales.exp().max() == 0
    cache = build(tmp_path, g)
    assert 0 < (cache.weights > 0).sum(1).mean() < 3 and np.isfinite(cache.weights).all()


def test_a_camera_that_sees_nothing(tmp_path):
    views = [VIEWS[0], VIEWS[1], view(2, turned_away=True)]
    cache = build(tmp_path / "some", views=views)
    blind = cache.view == 2
    assert (
        blind.any()
        and not cache.weights[blind].any()
        and not cache.residual[blind].any()
        and cache.weights[~blind].any()
    )
    assert cache.truncation()["uncovered"] >= blind.mean()
    field, curves = train_field_variant(
        gaussians(),
        views,
        INDEX_MAPS,
        [N, N],
        FieldConfig(mode="cached", iterations=3, batch=64),
        seed=0,
        cache=cache,
    )
    assert torch.isfinite(field.features).all() and np.isfinite(curves["loss"]).all()
    for _ in range(2):  # neither made nor opened
        with pytest.raises(FieldError, match="no Gaussian covers"):
            build(tmp_path / "none", views=[view(i, turned_away=True) for i in range(3)])


def test_empty_label_maps(tmp_path):
    maps = labels()
    maps[VIEWS[1].name][:] = -1
    cache = build(tmp_path / "one", maps=maps)
    assert set(np.unique(cache.view)) == {0, 2}
    empty = {n: np.full_like(m, -1) for n, m in maps.items()}
    with pytest.raises(FieldError, match="lies in a mask"):
        build(tmp_path / "none", maps=empty)
    with pytest.raises(FieldError, match="lies in a mask"):
        train_field(gaussians(), VIEWS, empty, [N, N], FieldConfig(), seed=0)


def test_more_entries_than_gaussians(tmp_path):
    g = gaussians(5)
    cache = build(tmp_path, g, top_k=8)
    assert (
        not cache.weights[:, 5:].any()
        and not cache.ids[:, 5:].any()
        and cache.residual.max() < 1e-6
    )
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    own = cache.view == 0
    want = splat_features(project(g, VIEWS[0].camera), x).flatten(0, 1)[
        cache.pixel[own].astype(np.int64)
    ]
    torch.testing.assert_close(cache.splat(x, np.flatnonzero(own)), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "maps, message",
    [
        ({VIEWS[0].name: labels()[VIEWS[0].name]}, "has no label map"),
        ({v.name: np.zeros((2, H, W + 1), np.int32) for v in VIEWS}, "have shape"),
    ],
)
def test_label_maps_that_do_not_fit_the_views(tmp_path, maps, message):
    with pytest.raises(FieldError, match=message):
        build(tmp_path, maps=maps)


@pytest.mark.parametrize("settings", [{"top_k": 0}, {"pixels_per_mask": 0}])
def test_sizes_below_one_are_refused(tmp_path, settings):
    with pytest.raises(FieldError, match="at least 1"):
        build(tmp_path, **settings)


# --------------------------------------------------------------------------- cached = rasterised
@pytest.mark.parametrize("normalise", [True, False])
def test_cached_equals_rasterised(tmp_path, normalise):
    """Same pixels, nothing truncated: features, loss and gradients agree to float32 rounding
    (another order of summation).
    """
    g, dim = gaussians(), 8
    cache = build(tmp_path)
    assert cache.truncation()["max"] < 1e-6
    codes = cache.codes(INDEX_MAPS)
    rng = torch.Generator().manual_seed(0)
    decoders = [Decoder(dim, (16,), N, normalise=normalise, generator=rng) for _ in range(2)]
    start = torch.randn(len(g), 2 * dim, generator=rng)
    for i, v in enumerate(VIEWS):
        rows = np.flatnonzero(cache.view == i)
        pixels = torch.from_numpy(cache.pixel[rows]).long()
        target = torch.from_numpy(INDEX_MAPS[v.name]).flatten(1).long()
        assert torch.equal(torch.from_numpy(codes[:, rows]).long(), target[:, pixels])
        results = []
        for render, wanted in (
            (lambda x: splat_features(project(g, v.camera), x).flatten(0, 1), target),
            (lambda x: cache.splat(x, rows), target[:, pixels]),
        ):
            x = start.clone().requires_grad_()
            rendered = render(x)
            loss, accuracy = field_loss(rendered, wanted, decoders)
            grads = torch.autograd.grad(loss, [x, *(p for d in decoders for p in d.parameters())])
            results.append((rendered.detach(), loss.detach(), accuracy, grads))
        (a, loss_a, accuracy_a, grads_a), (b, loss_b, accuracy_b, grads_b) = results
        torch.testing.assert_close(b, a[pixels], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(loss_b, loss_a, rtol=1e-5, atol=0)
        assert accuracy_a == accuracy_b and grads_a[0].abs().max() > 1e-3
        for got, want in zip(grads_b, grads_a, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_cached_training_learns_and_repeats(tmp_path):
    g = gaussians(200, opacity=(0.5, 0.95))
    # upright stripes
    maps = {
        n: np.stack([np.arange(W)[None].repeat(H, 0) * N // W] * 2).astype(np.int32)
        for n in INDEX_MAPS
    }
    cache = build_blending_cache(
        tmp_path,
        g,
        VIEWS[:1],
        {VIEWS[0].name: maps[VIEWS[0].name]},
        top_k=16,
        pixels_per_mask=64,
        seed=0,
    )
    config = FieldConfig(mode="cached", iterations=120, batch=128)
    train = lambda: train_field_variant(g, VIEWS[:1], maps, [N, N], config, seed=3, cache=cache)
    (field, curves), (again, _) = train(), train()
    assert torch.equal(field.features, again.features)
    assert curves["loss"][-10:].mean() < 0.4 * curves["loss"][:5].mean()
    covered = (blending_weights(project(g, VIEWS[0].camera), 1)[1][..., 0] > 0.1).numpy()
    assert (field.codes(g, VIEWS[0].camera) == maps[VIEWS[0].name])[:, covered].mean() > 0.85


# --------------------------------------------------------------------------- closed form
def test_votes_are_the_transposed_weights_times_the_codes(tmp_path):
    """Against a dense A, built by splatting one indicator per Gaussian."""
    g = gaussians()
    cache = build(tmp_path)
    codes = cache.codes(INDEX_MAPS)
    for level in range(2):
        want = torch.zeros(len(g), N)
        for v in VIEWS:
            A = splat_features(project(g, v.camera), torch.eye(len(g))).flatten(0, 1)  # [H * W, G]
            own = torch.from_numpy(INDEX_MAPS[v.name][level]).flatten().long()
            want += A[own >= 0].T @ torch.nn.functional.one_hot(own[own >= 0], N).float()
        torch.testing.assert_close(
            code_votes(cache, codes[level], len(g), N), want, rtol=1e-5, atol=1e-5
        )


def _two_objects():
    """Two rows of opaque dots that no pixel shares: one left, one right of the middle; and one
    Gaussian nobody sees.
    """
    y = torch.linspace(-0.5, 0.5, 6)
    means = torch.cat(
        [torch.stack([torch.full_like(y, x), y, torch.full_like(y, 2.0)], 1) for x in (-0.6, 0.6)]
        + [torch.tensor([[0.0, 0.0, -5.0]])]
    )
    n = len(means)
    g = Gaussians(
        means,
        torch.tensor([[1.0, 0, 0, 0]]).repeat(n, 1),
        torch.full((n, 3), -2.5),
        torch.full((n,), 3.0),
        torch.zeros(n, 1, 3),
    )
    maps = {}
    for i, v in enumerate(VIEWS):
        m = np.full((1, H, W), -1, np.int32)
        middle = W // 2 + i  # the camera moves by about a pixel per view
        m[:, :, :middle], m[:, :, middle:] = 2, 5
        maps[v.name] = m
    return g, maps


def test_closed_form_on_a_scene_with_a_known_answer(tmp_path):
    g, maps = _two_objects()
    maps[VIEWS[1].name][0, :, :4] = -1  # a hole does not matter, nor
    maps[VIEWS[2].name][0, :, W // 2 + 2 :] = 0  # a view that takes the right object for another
    cache = build(tmp_path, g, maps=maps, area_weighted=True, top_k=8)
    field = vote_field(g, cache, maps, [6])
    assert field.code[0].tolist() == [2] * 6 + [5] * 6 + [-1]
    assert (
        (field.share[0, :6] > 0.99).all()
        and (field.share[0, 6:12] > 0.6).all()
        and (field.share[0, 6:12] < 0.73).all()
        and field.share[0, 12] == 0
    )
    novel = view(4).camera
    codes = field.codes(g, novel)
    assert (
        codes.shape == (1, H, W) and codes.dtype == np.int32 and set(np.unique(codes)) == {-1, 2, 5}
    )
    seen = splat_features(project(g, novel), torch.ones(13, 1))[..., 0].numpy() > 0
    assert np.array_equal(codes[0] >= 0, seen)
    left = np.arange(W)[None].repeat(H, 0) < W // 2 + 4
    assert (codes[0][seen & left] == 2).all() and (codes[0][seen & ~left] == 5).all()


def test_many_codes_are_decoded_in_pieces(tmp_path, monkeypatch):
    from cclkit.method import lifting as closed_form

    g = gaussians()
    rng = np.random.default_rng(0)
    maps = {v.name: rng.integers(0, 9, (1, H, W)).astype(np.int32) for v in VIEWS}
    field = vote_field(g, build(tmp_path, g, maps=maps), maps, [9])
    onehot = (
        torch.nn.functional.one_hot(field.code[0].clamp_min(0), 9).float()
        * (field.code[0] >= 0)[:, None]
    )
    weight, want = splat_features(project(g, VIEWS[0].camera), onehot).max(-1)
    want = torch.where(weight > 0, want, -1).numpy()
    for at_once in (2, 16):
        monkeypatch.setattr(closed_form, "CODES_AT_ONCE", at_once)
        assert np.array_equal(field.codes(g, VIEWS[0].camera)[0], want)


def test_closed_form_mistakes(tmp_path):
    g, cache = gaussians(), build(tmp_path)
    field = vote_field(g, cache, INDEX_MAPS, [N, N])
    with pytest.raises(FieldError, match="vote again"):
        field.codes(gaussians(7), VIEWS[0].camera)
    with pytest.raises(ArtefactError, match="other gaussians"):
        vote_field(_moved(g), cache, INDEX_MAPS, [N, N])
    with pytest.raises(FieldError, match="code 3, the codebook has 2"):
        vote_field(g, cache, INDEX_MAPS, [2, N])
    with pytest.raises(FieldError, match="2 levels and 1"):
        vote_field(g, cache, INDEX_MAPS, [N])


def test_the_written_gradient_is_that_of_the_embedding_bag(tmp_path):
    cache, rng = build(tmp_path, top_k=5), torch.Generator().manual_seed(0)
    # whatever the memory held
    buffer, features = (
        torch.full((50, 6), 7.0),
        torch.randn(50, 6, generator=rng).requires_grad_(),
    )
    for threads in (1, 2, 1):
        rows, upstream = (
            torch.randint(len(cache), (20,), generator=rng).numpy(),
            torch.randn(20, 6, generator=rng),
        )
        (wanted,) = torch.autograd.grad(cache.splat(features, rows), features, upstream)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        out = cache.splat(features, rows, buffer)
        (written,) = torch.autograd.grad(out, features, upstream)
        torch.set_num_threads(before)
        assert (
            torch.equal(out, cache.splat(features, rows))
            and written.data_ptr() == buffer.data_ptr()
        )
        torch.testing.assert_close(written, wanted, rtol=1e-5, atol=1e-6)
        features.grad = None
        cache.splat(features, rows, buffer).backward(upstream)
        # no copy
        assert features.grad.data_ptr() == buffer.data_ptr() and torch.equal(features.grad, written)


# --------------------------------------------------------------------------- joint training
@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> list[View]:
    """The views with pictures of the Gaussians, in random colours."""
    folder, truth = (
        tmp_path_factory.mktemp("photographs"),
        dataclasses.replace(
            gaussians(), sh=torch.randn(50, 1, 3, generator=torch.Generator().manual_seed(1))
        ),
    )
    out = []
    for v in VIEWS:
        path = folder / f"{v.stem}.png"
        Image.fromarray((rasterize(truth, v.camera).color.clamp(0, 1) * 255).byte().numpy()).save(
            path
        )
        out.append(View(v.name, path, v.camera))
    return out


JOINT = FieldConfig(mode="joint", hidden=(16,), lr=1e-2)
GROW = Densification(refine_start=5, refine_every=10, refine_stop=25, grow_gradient=1e-5)
FIT = FitConfig(iterations=30, seed=3, densification=GROW, log_every=10)


def same(a, b) -> bool:
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))


def test_joint_training_learns_colours_and_codes_and_densification_carries_features_along(
    photographs,
):
    start = gaussians(seed=4)
    fitted, field, history, curves = train_joint(
        start,
        photographs,
        INDEX_MAPS,
        [N, N],
        JOINT,
        dataclasses.replace(FIT, iterations=90),
        progress=False,
    )
    assert len(fitted) != len(start) and field.features.shape == (2, len(fitted), 8)
    assert sum(history["cloned"]) + sum(history["split"]) > 0 and history["count"][-1] == len(
        start
    ) + sum(history["cloned"]) + sum(history["split"]) - sum(history["pruned"]) == len(fitted)
    assert history["psnr"][-1] > history["psnr"][0] + 1 and history["ssim"][-1] > history["ssim"][0]
    assert (
        len(curves["loss"]) == 90
        and curves["loss"][-5:].mean() < 0.5 * curves["loss"][:5].mean()
        and curves["accuracy"][-5:].mean() > 0.9
    )
    decoded = field.codes(fitted, photographs[0].camera)
    inside = INDEX_MAPS[photographs[0].name] >= 0
    assert (decoded == INDEX_MAPS[photographs[0].name])[inside].mean() > 0.85


def test_without_semantic_gradients_the_gaussians_are_those_of_the_reconstruction(photographs):
    start = gaussians(seed=4)
    alone, _ = fit_rgb(start, photographs, FIT, progress=False)
    train = lambda **settings: train_joint(
        start,
        photographs,
        INDEX_MAPS,
        [N, N],
        dataclasses.replace(JOINT, **settings),
        FIT,
        progress=False,
    )
    apart, field, _, _ = train(joint_geometry=False)
    together, _, _, _ = train(joint_geometry=True)
    # through cloning, splitting and pruning, bit for bit
    assert same(apart, alone) and len(field.features[0]) == len(alone) > len(start)
    assert len(together) != len(alone) or not torch.equal(together.means, alone.means)
    _, other, _, _ = train(joint_geometry=False, joint_weight=1e-6)
    assert not torch.equal(other.features, field.features)


def test_the_semantic_gradient_reaches_the_geometry_as_the_loss_changes_with_it(
    photographs, monkeypatch
):
    """One iteration of plain gradient, seen through Adam: the step of every mean has the sign of a
    finite difference.
    """
    start, view = gaussians(seed=4), photographs[0]
    rates = dict.fromkeys(("scales", "quats", "opacities", "sh0", "shN"), 0.0)
    monkeypatch.setattr("cclkit.gaussians.reconstruct.LEARNING_RATES", rates | {"means": 1e-4})
    # next to it colour does not count
    heavy = dataclasses.replace(JOINT, joint_weight=1e4, feature_lr=1e-9, lr=1e-9)
    fitted, field, _, _ = train_joint(
        start,
        [view],
        INDEX_MAPS,
        [N, N],
        heavy,
        FitConfig(iterations=1, seed=0, densification=None),
        progress=False,
    )
    flat, target = (
        field.features.permute(1, 0, 2).flatten(1),
        torch.from_numpy(INDEX_MAPS[view.name]).long().flatten(1),
    )

    def loss(means):
        with torch.no_grad():
            g = dataclasses.replace(start, means=means).to(dtype=torch.float64)
            rendered = rasterize(g, view.camera, flat.double()).features.float()
            return float(field_loss(rendered.flatten(0, 1), target, field.decoders)[0])

    step = fitted.means - start.means
    length, agree = 1e-3, []
    for index in torch.randperm(50, generator=torch.Generator().manual_seed(0))[:12].tolist():
        for axis in range(2):
            moved = [start.means.clone() for _ in range(2)]
            moved[0][index, axis] += length
            moved[1][index, axis] -= length
            slope = (loss(moved[0]) - loss(moved[1])) / (2 * length)
            if abs(slope) > 1e-3:  # Gaussians that hardly count have no sign to speak of
                agree.append(slope * float(step[index, axis]) < 0)
    assert len(agree) >= 8 and np.mean(agree) > 0.9


def test_joint_training_repeats_and_goes_on_after_a_kill(photographs, tmp_path, monkeypatch):
    module, calls = __import__("cclkit.method.field", fromlist=["x"]), []
    real = module.field_loss

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 25:
            raise KeyboardInterrupt
        return real(*args)

    train = lambda **more: train_joint(
        gaussians(seed=4), photographs, INDEX_MAPS, [N, N], JOINT, FIT, progress=False, **more
    )
    straight = train()
    again = train()
    checkpoint = tmp_path / "checkpoint.pt"
    monkeypatch.setattr(module, "field_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(checkpoint=checkpoint, checkpoint_every=10)
    assert checkpoint.exists() and not list(tmp_path.glob("*.tmp"))
    resumed = train(checkpoint=checkpoint, checkpoint_every=10)
    assert len(calls) == 25 + 10 and not checkpoint.exists()  # iterations 21 to 30
    for other in (again, resumed):
        assert same(other[0], straight[0]) and torch.equal(other[1].features, straight[1].features)
        assert all(
            torch.equal(a, b)
            for d, e in zip(other[1].decoders, straight[1].decoders)
            for a, b in zip(d.parameters(), e.parameters())
        )
        assert {k: v for k, v in other[2].items() if k != "seconds"} == {
            k: v for k, v in straight[2].items() if k != "seconds"
        }
        assert all(np.array_equal(other[3][k], straight[3][k]) for k in straight[3])
    checkpoint.write_bytes(b"PK\x03\x04")
    with pytest.raises(GaussiansError, match="checkpoint.pt: damaged"):
        train(checkpoint=checkpoint)


def test_joint_training_refuses_what_it_cannot_train_on(photographs):
    nothing = {n: np.full_like(m, -1) for n, m in INDEX_MAPS.items()}
    with pytest.raises(FieldError, match="nothing to train"):
        train_joint(gaussians(), photographs, nothing, [N, N], JOINT, FIT)
    # a view without masks still has colours
    some = INDEX_MAPS | {photographs[0].name: nothing[photographs[0].name]}
    fitted, field, _, _ = train_joint(
        gaussians(),
        photographs,
        some,
        [N, N],
        JOINT,
        dataclasses.replace(FIT, iterations=6),
        progress=False,
    )
    assert torch.isfinite(field.features).all() and len(fitted.validate())
    with pytest.raises(FieldError, match="call train_joint"):
        train_field(gaussians(), VIEWS, INDEX_MAPS, [N, N], JOINT, seed=0)
    with pytest.raises(FieldError, match="call field.train_joint"):
        train_field_variant(gaussians(), VIEWS, INDEX_MAPS, [N, N], JOINT, seed=0)
    for ours in ({"mode": "cached"}, {"init": "votes"}):
        with pytest.raises(FieldError, match="call field_cached.train_field_variant"):
            train_field(gaussians(), VIEWS, INDEX_MAPS, [N, N], FieldConfig(**ours), seed=0)
    with pytest.raises(ConfigError, match="gaussians.iterations=0"):
        profile("mini", **{"field.mode": "joint", "gaussians.iterations": 0})
    with pytest.raises(GaussiansError, match="means holds NaN"):
        train_joint(
            dataclasses.replace(gaussians(), means=torch.full((50, 3), torch.nan)),
            photographs,
            INDEX_MAPS,
            [N, N],
            JOINT,
            FIT,
        )
