"""Gaussians: PLY files, initialisation, RGB reconstruction, benchmark."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cclkit.errors import GaussiansError
from cclkit.gaussians.densify import Densification
from cclkit.gaussians.extent import scene_extent
from cclkit.gaussians.model import Gaussians, load_ply, save_ply
from cclkit.gaussians.quality import psnr, ssim
from cclkit.gaussians.rasterize import rasterize
from cclkit.gaussians.reconstruct import FitConfig, fit_rgb
from cclkit.gaussians.start import from_depth, from_frusta, from_points, from_scene
from cclkit.scenes.scene import Camera, Scene, View


def random_gaussians(n=50, degree=3, seed=0) -> Gaussians:
    rng = torch.Generator().manual_seed(seed)
    r = lambda *s: torch.randn(s, generator=rng)
    return Gaussians(r(n, 3), r(n, 4), r(n, 3), r(n), r(n, (degree + 1) ** 2, 3))


# --------------------------------------------------------------------------- model and PLY
def test_helpers():
    g = random_gaussians(7, 2)
    assert len(g) == 7 and g.sh_degree == 2
    assert g.to(dtype=torch.float64).means.dtype == torch.float64
    g.means.requires_grad_()
    assert not g.detach().means.requires_grad and g.validate() is g


@pytest.mark.parametrize("degree", range(4))
def test_ply_round_trip_is_exact(tmp_path, degree):
    g = random_gaussians(33, degree)
    path = save_ply(g, tmp_path / "a.ply")
    back = load_ply(path)
    for name, t in vars(g).items():
        assert torch.equal(getattr(back, name), t), name
    save_ply(back, tmp_path / "b.ply")
    assert path.read_bytes() == (tmp_path / "b.ply").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ply", "b.ply"]  # no temporary files


def test_ply_layout_is_the_one_of_splat_viewers(tmp_path):
    """The header to the byte, and rows by the column names that viewers use; f_rest is
    channel-major.
    """
    g = random_gaussians(3, 1)
    names = (
        "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2".split()
        + [f"f_rest_{i}" for i in range(9)]
        + "opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3".split()
    )
    head, rows = save_ply(g, tmp_path / "a.ply").read_bytes().split(b"end_header\n", 1)
    assert head.decode() == "ply\nformat binary_little_endian 1.0\nelement vertex 3\n" + "".join(
        f"property float {n}\n" for n in names
    )
    rows = np.frombuffer(rows, "<f4").reshape(3, len(names))
    # channel 1, second of three coefficients
    assert np.array_equal(rows[:, names.index("f_rest_4")], g.sh[:, 2, 1])
    assert np.array_equal(rows[:, names.index("rot_0")], g.quats[:, 0]) and not rows[:, 3:6].any()


@pytest.mark.parametrize("form", ["binary_big_endian", "ascii"])
def test_ply_of_other_writers(tmp_path, form):
    """The other byte order and text, doubles, unknown columns and elements, comments, and lines
    that end as on Windows.
    """
    g = random_gaussians(5, 1)
    path = save_ply(g, tmp_path / "a.ply")
    head, rows = path.read_bytes().split(b"end_header\n", 1)
    rows = np.frombuffer(rows, "<f4").reshape(5, -1)
    head = (
        head.decode()
        .replace(
            "binary_little_endian 1.0\n",
            f"{form} 1.0\ncomment made elsewhere, \u00e9\nelement camera 2\nproperty uchar"
            " id\nproperty int n\n",
        )
        .replace("float x", "double x")
    )
    head = (
        (
            head + "property uint8 label\nelement face 0\nproperty list uchar int"
            " vertex_indices\nend_header\n"
        )
        .replace("\n", "\r\n")
        .encode()
    )
    if form == "ascii":
        body = b"1 2\r\n3 4\r\n" + b"".join(
            " ".join([*(f"{x:.9g}" for x in row), "7"]).encode() + b"\r\n" for row in rows
        )
    else:
        body = bytes(10) + b"".join(
            row[:1].astype(">f8").tobytes() + row[1:].astype(">f4").tobytes() + b"\x07"
            for row in rows
        )
    path.write_bytes(head + body)
    back = load_ply(path)
    for name, t in vars(g).items():
        assert torch.equal(getattr(back, name), t), name
    # the last value is gone
    path.write_bytes(head + body[:-3] + (b"\r\n" if form == "ascii" else b""))
    with pytest.raises(GaussiansError, match="a.ply: not a complete PLY"):
        load_ply(path)


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (b"ply\n", b"plx\n", "first line isn't 'ply'"),
        (
            b"binary_little_endian",
            b"binary_middle_endian",
            "line 2 of its header is 'format binary_middle_endian 1.0'",
        ),
        (b"format binary_little_endian 1.0\n", b"", "'end_header'"),
        (b"property float y", b"property float x", "'property float x'"),
        (b"property float y", b"property half y", "'property half y'"),
        (
            b"property float y",
            b"property list uchar float y",
            "'vertex' has a property that is a list",
        ),
        (b"property float x", b"element vertex 1\nproperty float x", "'element vertex 1'"),
        (b"vertex 50", b"vertex -1", "'element vertex -1'"),
        (
            b"vertex 50",
            b"vertex 999999999999999999",
            "bytes fewer than its header counts, 999999999999999999 vertices",
        ),
        (b"vertex 50", b"vertex 9999999999999999999", "'element vertex 9999999999999999999'"),
        (b"binary_little_endian", b"ascii", "rows, its header counts 50"),
        (
            b"end_header\n",
            b"comment " + b"x" * 70_000 + b"\nend_header\n",
            "doesn't end within 65536 bytes",
        ),
    ],
)
def test_ply_headers_that_are_refused(tmp_path, old, new, found):
    path = save_ply(random_gaussians(50, 1), tmp_path / "a.ply")
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(
        GaussiansError,
        match=r"a\.ply: not a complete PLY file \(.*expected a 3DGS PLY; export the splat again",
    ) as e:
        load_ply(path)
    assert found in str(e.value)


def test_ply_of_no_gaussians(tmp_path):
    assert len(load_ply(save_ply(random_gaussians(0, 1), tmp_path / "a.ply"))) == 0


def test_bad_ply_files(tmp_path):
    path = save_ply(random_gaussians(), tmp_path / "a.ply")
    whole = path.read_bytes()
    for cut in (0, 2, 40, 900, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(GaussiansError, match="a.ply.*expected"):
            load_ply(path)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    with pytest.raises(GaussiansError, match="a.ply"):
        load_ply(path)
    path.write_text("ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1.0\n")
    with pytest.raises(GaussiansError, match="lacks the columns y, z"):
        load_ply(path)
    path.write_text("ply\nformat ascii 1.0\nelement face 1\nproperty float x\nend_header\n1.0\n")
    with pytest.raises(GaussiansError, match="vertex"):
        load_ply(path)
    path.write_bytes(whole.replace(b"property float f_rest_44\n", b"")[: -4 * 50])
    with pytest.raises(GaussiansError, match="44 f_rest"):
        load_ply(path)
    path.write_bytes(whole.replace(b"vertex 50", b"vertex 49"))
    with pytest.raises(GaussiansError, match="bytes more than its header counts"):
        load_ply(path)
    path.write_bytes(whole.replace(b"vertex 50", b"vertex 9000000000000000"))
    with pytest.raises(GaussiansError, match="a.ply.*expected"):
        load_ply(path)
    with pytest.raises(GaussiansError, match="missing.ply"):
        load_ply(tmp_path / "missing.ply")
    with pytest.raises(GaussiansError, match="cannot be written"):
        save_ply(random_gaussians(), tmp_path / "no" / "folder.ply")
    broken = random_gaussians()
    broken.means[3, 1] = torch.nan
    with pytest.raises(GaussiansError, match="index 3"):
        save_ply(broken, tmp_path / "nan.ply")


# --------------------------------------------------------------------------- image quality
def test_psnr_and_ssim():
    rng = torch.Generator().manual_seed(0)
    a = torch.rand((24, 31, 3), generator=rng)
    b = (a + 0.1 * torch.randn(a.shape, generator=rng)).clamp(0, 1)
    assert torch.isinf(psnr(a, a)) and psnr(
        torch.zeros(4, 4, 3), torch.full((4, 4, 3), 0.1)
    ) == pytest.approx(20)
    assert ssim(a, a) == pytest.approx(1)
    # by the definition, one window at a time in numpy
    x = np.arange(11) - 5
    window = np.exp(-(x[:, None] ** 2 + x[None] ** 2) / 4.5)
    window = (window / window.sum())[..., None]
    pad = lambda t: np.pad(t.double().numpy(), ((5, 5), (5, 5), (0, 0)))
    A, B, total = pad(a), pad(b), []
    for i in range(24):
        for j in range(31):
            p, q = A[i : i + 11, j : j + 11], B[i : i + 11, j : j + 11]
            mp, mq = (window * p).sum((0, 1)), (window * q).sum((0, 1))
            vp, vq, c = ((window * u * v).sum((0, 1)) for u, v in ((p, p), (q, q), (p, q)))
            vp, vq, c = vp - mp**2, vq - mq**2, c - mp * mq
            total.append(
                (2 * mp * mq + 1e-4) * (2 * c + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4))
            )
    assert float(ssim(a, b)) == pytest.approx(np.mean(total), abs=1e-5)


# --------------------------------------------------------------------------- a tiny scene
def make_scene(folder: Path, n_views=6, size=(48, 40), baseline=1.0) -> Scene:
    """Photographs and depth of 60 coloured Gaussians, from cameras on an arc of the given width."""
    rng = torch.Generator().manual_seed(5)
    n = 60
    truth = Gaussians(
        means=(torch.rand((n, 3), generator=rng) - 0.5) * torch.tensor([2.0, 1.6, 0.6]),
        quats=torch.randn((n, 4), generator=rng),
        log_scales=torch.log(0.08 + 0.12 * torch.rand((n, 3), generator=rng)),
        logit_opacities=torch.full((n,), 3.0),
        sh=torch.randn((n, 1, 3), generator=rng),
    )
    (folder / "images").mkdir(parents=True)
    (folder / "depth").mkdir()
    w, h = size
    K = np.array([[50.0, 0, w / 2], [0, 50.0, h / 2], [0, 0, 1]])
    views = []
    for i in range(n_views):
        a = baseline * (i / max(n_views - 1, 1) - 0.5)
        w2c = np.eye(4)
        w2c[:3, :3] = [[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]]
        w2c[2, 3] = 3.0
        view = View(
            f"frame_{i:05d}.png", folder / "images" / f"frame_{i:05d}.png", Camera(K, w2c, w, h)
        )
        out = rasterize(truth, view.camera)
        Image.fromarray((out.color.clamp(0, 1) * 255).round().byte().numpy()).save(view.image_path)
        depth = torch.where(out.alpha > 0.5, out.depth * 1e4, 0).round().numpy().astype(np.uint16)
        Image.fromarray(depth).save(folder / "depth" / f"{view.stem}.png")
        views.append(view)
    points = truth.means.double().numpy()
    colors = ((truth.sh[:, 0] * 0.282 + 0.5).clamp(0, 1) * 255).byte().numpy()
    return Scene(
        "tiny", folder, "colmap", tuple(views), points, colors, depth_folder=folder / "depth"
    )


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Scene:
    return make_scene(tmp_path_factory.mktemp("tiny") / "scene")


def score(g: Gaussians, views) -> float:
    each = []
    for v in views:
        each.append(
            float(
                psnr(
                    rasterize(g, v.camera).color.clamp(0, 1),
                    torch.from_numpy(v.image() / 255.0).float(),
                )
            )
        )
    return float(np.mean(each))


# --------------------------------------------------------------------------- initialisation
def test_from_points():
    points = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 2], [0, 0, 2]], float)
    g = from_points(points, np.full((5, 3), 255, np.uint8), sh_degree=2, seed=0)
    assert g.sh.shape == (5, 9, 3)
    assert torch.exp(g.log_scales[0]).numpy() == pytest.approx((1 + 1 + 2) / 3)
    torch.testing.assert_close(torch.sigmoid(g.logit_opacities), torch.full((5,), 0.1))
    assert (g.sh[:, 0] * 0.28209479 + 0.5).numpy() == pytest.approx(1)
    same = np.zeros((4, 3))
    from_points(
        same, np.zeros((4, 3), np.uint8), sh_degree=0, seed=0
    ).validate()  # duplicates: no log(0)
    from_points(same[:1], np.zeros((1, 3), np.uint8), sh_degree=0, seed=0).validate()
    assert len(from_points(points, np.zeros((5, 3), np.uint8), max_gaussians=2)) == 2
    for bad, colors, message in [
        (np.zeros((0, 3)), np.zeros((0, 3)), "P > 0"),
        (points, np.zeros((4, 3)), "one RGB per point"),
        (points * np.nan, np.zeros((5, 3)), "NaN"),
    ]:
        with pytest.raises(GaussiansError, match=message):
            from_points(bad, colors)


def test_from_depth(scene):
    a = from_depth(scene, max_gaussians=800, seed=1, sh_degree=1)
    b = from_depth(scene, max_gaussians=800, seed=1, sh_degree=1)
    assert 600 < len(a) <= 800 and torch.equal(a.means, b.means)
    assert score(a, scene.views) > 15  # already looks like the scene
    assert len(from_depth(scene, max_gaussians=1)) == 1


def test_from_frusta_and_from_scene(scene):
    g = from_frusta(scene.views, n_gaussians=300, seed=0, sh_degree=1).validate()
    # the axes of this scene meet 3 units away
    z = np.concatenate([v.camera.project(g.means.double().numpy())[1] for v in scene.views])
    assert 2 < np.median(z) < 4
    assert len(from_scene(scene, max_gaussians=100)[0]) <= 100
    bare = Scene(
        "bare", scene.path, "colmap", scene.views, np.zeros((0, 3)), np.zeros((0, 3), np.uint8)
    )
    assert len(from_scene(bare, max_gaussians=70)[0]) == 70
    single = from_frusta(scene.views[:1], n_gaussians=10)
    assert len(single.validate()) == 10


def test_extent_does_not_collapse_with_cameras_close_together(tmp_path):
    near = make_scene(tmp_path / "s", n_views=3, baseline=1e-4)
    g = from_points(near.points, near.point_colors)
    assert 0.5 < scene_extent(g, near.views) < 2  # 0.3 of 3 units, not 1e-4
    behind = Gaussians(
        g.means - torch.tensor([0, 0, 100.0]), g.quats, g.log_scales, g.logit_opacities, g.sh
    )
    with pytest.raises(GaussiansError, match="in front of"):
        scene_extent(behind, near.views)


# --------------------------------------------------------------------------- fitting
def fit(start, views, densification=None, **config):
    """A fit with no bar."""
    config = FitConfig(**{"seed": 0, "densification": densification} | config)
    return fit_rgb(start, views, config, progress=False)


def test_fit_rgb_improves_and_repeats(scene, tmp_path):
    start = from_points(scene.points, scene.point_colors, sh_degree=1, seed=0)
    densification = Densification(refine_every=20, grow_gradient=5e-5)
    options = dict(iterations=60, seed=3, densification=densification, log_every=20)
    before = torch.random.get_rng_state()
    a, history = fit(start, scene.views, **options)
    assert torch.equal(before, torch.random.get_rng_state())  # nobody else's random numbers change
    assert score(a, scene.views) > score(start, scene.views) + 2
    assert history["iteration"] == [20, 40, 60] and history["loss"][-1] < history["loss"][0]
    assert len(a) != len(start) and history["count"][-1] == len(a)  # DefaultStrategy was at work
    torch.manual_seed(99)  # must not matter
    b, _ = fit(start, scene.views, **options)
    assert (
        save_ply(a, tmp_path / "a.ply").read_bytes() == save_ply(b, tmp_path / "b.ply").read_bytes()
    )
    c, _ = fit(start, scene.views, **{**options, "seed": 4})
    assert len(c) != len(a) or not torch.equal(a.means, c.means)


def test_fit_rgb_goes_on_after_a_kill(scene, tmp_path, monkeypatch):
    """Killed between two checkpoints and called again: the same Gaussians and history."""
    start = from_points(scene.points, scene.point_colors, sh_degree=1, seed=0)
    densification = Densification(refine_every=10, refine_start=5, grow_gradient=5e-5)
    config = FitConfig(iterations=40, seed=3, densification=densification, log_every=15)
    checkpoint, steps = tmp_path / "checkpoint.pt", []

    def killed_at_25(a, b):
        steps.append(1)
        if len(steps) == 25:
            raise KeyboardInterrupt
        return psnr(a, b)

    go = lambda **run: fit_rgb(start, scene.views, config, progress=False, **run)
    straight, history = go()
    monkeypatch.setattr("cclkit.gaussians.reconstruct.psnr", killed_at_25)
    with pytest.raises(KeyboardInterrupt):
        go(checkpoint=checkpoint, checkpoint_every=10)
    assert checkpoint.exists() and not list(tmp_path.glob("*.tmp"))
    torch.manual_seed(99)  # must not matter
    resumed, other = go(checkpoint=checkpoint, checkpoint_every=10)
    assert len(steps) == 25 + 20 and not checkpoint.exists()  # iterations 21 to 40
    assert len(straight) != len(start)
    for name, t in vars(straight).items():
        assert torch.equal(getattr(resumed, name), t), name
    assert all(history[k] == other[k] for k in history if k != "seconds")
    # a checkpoint of a fit with another number of parameters is none of this fit
    plain = FitConfig(iterations=40, seed=3, sh_degree=0, densification=None)
    with pytest.raises(KeyboardInterrupt):
        steps[:] = [1] * 13
        fit_rgb(start, scene.views, plain, checkpoint=checkpoint, checkpoint_every=5)
    with pytest.raises(GaussiansError, match="checkpoint.pt: damaged"):
        go(checkpoint=checkpoint)
    checkpoint.write_bytes(b"PK\x03\x04")
    with pytest.raises(GaussiansError, match="checkpoint.pt: damaged"):
        go(checkpoint=checkpoint)


def test_fit_rgb_options(scene):
    start = from_depth(scene, max_gaussians=300, sh_degree=2)
    g, history = fit(start, scene.views, iterations=12, sh_degree=1)
    assert len(g) == len(start) and g.sh.shape == start.sh.shape and not g.sh[:, 4:].any()
    assert history["iteration"] == [12]
    assert history["cloned"] == history["split"] == history["pruned"] == [0]
    same, history = fit(start, scene.views, iterations=0)
    assert torch.equal(same.means, start.means) and history["loss"] == []
    with pytest.raises(GaussiansError, match="no views"):
        fit(start, [], iterations=1)
    with pytest.raises(GaussiansError, match="sh_degree"):
        fit(start, scene.views, iterations=1, sh_degree=3)


def test_max_gaussians_and_opacity_reset(scene):
    start = from_points(scene.points, scene.point_colors, sh_degree=0, seed=0)
    options = dict(refine_start=0, refine_every=5, refine_stop=100, grow_gradient=0.0)
    run = lambda iterations, **more: fit(
        start, scene.views, Densification(**options, **more), iterations=iterations
    )[0]
    free, capped = run(22), run(22, max_gaussians=100)
    assert len(capped) < len(free) and len(capped) <= 200
    reset = run(11, reset_every=10)
    # twice prune_opacity, right after the reset
    assert torch.sigmoid(reset.logit_opacities).max() < 0.02


def test_strategy_reads_our_info(scene):
    """The fields DefaultStrategy uses, with the meaning it gives them."""
    from gsplat.strategy import DefaultStrategy

    g = from_points(scene.points, scene.point_colors, sh_degree=0, seed=0)
    params = torch.nn.ParameterDict(
        {
            "means": g.means,
            "quats": g.quats,
            "scales": g.log_scales,
            "opacities": g.logit_opacities,
            "sh": g.sh,
        }
    )
    optimizers = {k: torch.optim.Adam([p]) for k, p in params.items()}
    strategy = DefaultStrategy()
    strategy.check_sanity(params, optimizers)
    state = strategy.initialize_state()
    out = rasterize(
        Gaussians(*(params[k] for k in ("means", "quats", "scales", "opacities", "sh"))),
        scene.views[0].camera,
    )
    strategy.step_pre_backward(params, optimizers, state, 0, out.info)
    out.color.square().sum().backward()
    strategy.step_post_backward(params, optimizers, state, 0, out.info)
    grad, visible = out.info["means2d"].grad, (out.info["radii"][0] > 0).all(1)
    assert grad.shape == (1, len(g), 2) and out.info["radii"].shape == (1, len(g), 2)
    assert torch.equal(state["count"].bool(), visible)
    w, h = out.info["width"], out.info["height"]
    torch.testing.assert_close(
        state["grad2d"], (grad[0] * torch.tensor([w / 2, h / 2])).norm(dim=1) * visible
    )


def test_garden_points_render():
    """Real points: every view of the garden fills with them."""
    path = Path(os.environ.get("CCLKIT_REAL_DATA", "")) / "garden" / "test_garden.npz"
    if not os.environ.get("CCLKIT_REAL_DATA") or not path.exists():
        pytest.skip("set CCLKIT_REAL_DATA to the folder that holds garden/test_garden.npz")
    z = np.load(path)
    g = from_points(z["means3d"], z["colors"], sh_degree=0, seed=0, max_gaussians=20_000)
    for viewmat, K in zip(z["viewmats"], z["Ks"], strict=True):
        cam = Camera(
            K.astype(float), viewmat.astype(float), int(z["width"]), int(z["height"])
        ).scaled(0.25)
        assert rasterize(g, cam).alpha.mean() > 0.3
