"""The rasteriser against a slow, readable reference of the same name, and against published
renders.
"""

import dataclasses
import inspect
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import cclkit.gaussians.rasterize as G
from cclkit.errors import DependencyError, GaussiansError
from cclkit.gaussians.blending import blending_weights, lift
from cclkit.gaussians.model import Gaussians
from cclkit.scenes.scene import Camera


# --------------------------------------------------------------------------- reference
def sh_color(sh, d):  # [G, K, 3], [G, 3] unit -> [G, 3]
    """SH by its definition: real spherical harmonics, as constants times Cartesian polynomials."""
    x, y, z = d.T
    pi = torch.pi
    one = torch.ones_like(x)
    basis = [0.5 * (1 / pi) ** 0.5 * one]
    c = (3 / (4 * pi)) ** 0.5
    basis += [-c * y, c * z, -c * x]
    c = (15 / pi) ** 0.5
    basis += [
        c / 2 * x * y,
        -c / 2 * y * z,
        (5 / pi) ** 0.5 / 4 * (3 * z * z - 1),
        -c / 2 * x * z,
        c / 4 * (x * x - y * y),
    ]
    a, b, e = (35 / (2 * pi)) ** 0.5 / 4, (105 / pi) ** 0.5, (21 / (2 * pi)) ** 0.5 / 4
    basis += [
        -a * y * (3 * x * x - y * y),
        b / 2 * x * y * z,
        -e * y * (5 * z * z - 1),
        (7 / pi) ** 0.5 / 4 * (5 * z**3 - 3 * z),
        -e * x * (5 * z * z - 1),
        b / 4 * z * (x * x - y * y),
        -a * x * (x * x - 3 * y * y),
    ]
    return (torch.stack(basis[: sh.shape[1]], 1)[..., None] * sh).sum(1).add(0.5).clamp_min(0)


def rasterize(g: Gaussians, camera: Camera, features=None):
    """Every Gaussian at every pixel, nearest first. Returns color, alpha, depth, features, weights
    [H, W, G].
    """
    dtype = g.means.dtype
    K, w2c = torch.tensor(camera.K, dtype=dtype), torch.tensor(camera.world_to_camera, dtype=dtype)
    W, H = camera.width, camera.height
    R, t = w2c[:3, :3], w2c[:3, 3]
    w, x, y, z = torch.nn.functional.normalize(g.quats, dim=1).T
    rot = torch.stack(
        [
            1 - 2 * (y**2 + z**2),
            2 * (x * y - w * z),
            2 * (x * z + w * y),
            2 * (x * y + w * z),
            1 - 2 * (x**2 + z**2),
            2 * (y * z - w * x),
            2 * (x * z - w * y),
            2 * (y * z + w * x),
            1 - 2 * (x**2 + y**2),
        ],
        -1,
    ).reshape(-1, 3, 3)
    M = rot * g.log_scales.exp()[:, None]
    cov3d = R @ M @ M.transpose(1, 2) @ R.T
    cam = g.means @ R.T + t
    front = (cam[:, 2] > 0.01).detach()
    zc = torch.where(front, cam[:, 2], torch.ones_like(cam[:, 2]))
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    u = (cam[:, 0] / zc).clamp(-(cx + 0.15 * W) / fx, (W - cx + 0.15 * W) / fx)
    v = (cam[:, 1] / zc).clamp(-(cy + 0.15 * H) / fy, (H - cy + 0.15 * H) / fy)
    O = torch.zeros_like(zc)
    J = torch.stack([fx / zc, O, -fx * u / zc, O, fy / zc, -fy * v / zc], -1).reshape(-1, 2, 3)
    cov2d = J @ cov3d @ J.transpose(1, 2) + 0.3 * torch.eye(2, dtype=dtype)
    conic = torch.linalg.inv(cov2d)
    mean2d = torch.stack([fx * cam[:, 0] / zc + cx, fy * cam[:, 1] / zc + cy], -1)
    opacity = g.logit_opacities.sigmoid()
    direction = torch.nn.functional.normalize(
        g.means - torch.tensor(camera.centre, dtype=dtype), dim=1
    )
    f = [sh_color(g.sh, direction), cam[:, 2:3]] + ([] if features is None else [features])
    f = torch.cat(f, 1)

    py, px = torch.meshgrid(
        torch.arange(H, dtype=dtype) + 0.5, torch.arange(W, dtype=dtype) + 0.5, indexing="ij"
    )
    T = torch.ones(H, W, dtype=dtype)
    done = torch.zeros(H, W, dtype=torch.bool)
    # a graph even when nothing is drawn
    out = torch.zeros(H, W, f.shape[1], dtype=dtype) + 0 * f.sum()
    weights = torch.zeros(H, W, len(g), dtype=dtype)
    for i in torch.argsort(cam[:, 2].detach(), stable=True).tolist():
        if not front[i]:
            continue
        d = torch.stack([px, py], -1) - mean2d[i]
        power = 0.5 * torch.einsum("hwi,ij,hwj->hw", d, conic[i], d)
        alpha = (opacity[i] * torch.exp(-power)).clamp_max(0.999)
        seen = (alpha >= 1 / 255) & ~done
        done = done | (seen & (T * (1 - alpha) <= 1e-4))
        draw = seen & ~done
        alpha = torch.where(draw, alpha, torch.zeros_like(alpha))
        weights[..., i] = (alpha * T).detach()
        out = out + (alpha * T)[..., None] * f[i]
        T = T * (1 - alpha)
    alpha = 1 - T
    depth = out[..., 3] / alpha.clamp_min(1e-10)
    return out[..., :3], alpha, depth, None if features is None else out[..., 4:], weights


# --------------------------------------------------------------------------- problems
def camera(width=37, height=29, focal=30.0) -> Camera:
    """Turned, moved, with an off-centre principal point, so that no term of the
    projection is zero.
    """
    a, b = 0.3, -0.2
    Ry = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    Rx = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    w2c = np.eye(4)
    w2c[:3, :3] = Rx @ Ry
    w2c[:3, 3] = [0.1, -0.2, 0.3]
    K = np.array([[focal, 0, width / 2 + 1.3], [0, focal * 1.05, height / 2 - 0.7], [0, 0, 1]])
    return Camera(K, w2c, width, height)


def problem(n=40, degree=2, seed=0, cam=None, case="plain", dtype=torch.float64) -> Gaussians:
    """Gaussians in front of the camera, with the awkward ones that a case asks for."""
    cam = cam or camera()
    rng = torch.Generator().manual_seed(seed)
    rand = lambda *s: torch.rand(s, generator=rng, dtype=torch.float64)
    z = 1 + 4 * rand(n)
    xy = (rand(n, 2) * 1.2 - 0.1) * torch.tensor([cam.width, cam.height])
    scales = torch.log(0.02 + 0.2 * rand(n, 3))
    opacity = 0.05 + 0.9 * rand(n)
    if case == "behind":
        z[::3] = -z[::3]
        z[1] = 0.005  # in front of the camera, nearer than the near plane
    if case == "offscreen":
        # far outside the clamp of the Jacobian
        xy[::2] += 3 * torch.tensor([cam.width, cam.height])
        scales[::2] += 1.5
    if case == "huge":
        scales[::2] = 1.0
        opacity[::2] *= 0.3
    if case == "saturating":
        opacity[:] = 0.9999  # hits the cap of alpha and ends pixels
    if case == "faint":
        opacity[::2] = 0.5 / 255  # below the threshold everywhere
    if case == "invisible":
        z[:] = -1
    if case == "needles":
        scales[:, 0] += 1.5
        scales[:, 1:] -= 3
    focal, centre = torch.tensor([cam.K[0, 0], cam.K[1, 1]]), torch.tensor(cam.K[:2, 2])
    at = torch.cat([(xy - centre) / focal * z[:, None], z[:, None]], 1)
    c2w = torch.tensor(cam.camera_to_world)
    return Gaussians(
        means=at @ c2w[:3, :3].T + c2w[:3, 3],
        quats=torch.randn((n, 4), generator=rng, dtype=torch.float64),
        log_scales=scales,
        logit_opacities=torch.logit(opacity),
        sh=0.4 * torch.randn((n, (degree + 1) ** 2, 3), generator=rng, dtype=torch.float64),
    ).to(dtype=dtype)


def outputs_and_gradients(render, g: Gaussians, cam: Camera, features, seed=9):
    """Values and the gradients of a random linear function of all outputs."""
    leaves = [t.detach().clone().requires_grad_() for t in vars(g).values()]
    f = None if features is None else features.detach().clone().requires_grad_()
    out = render(Gaussians(*leaves), cam, f)
    values = (
        list(out[:4]) if isinstance(out, tuple) else [out.color, out.alpha, out.depth, out.features]
    )
    values = [v for v in values if v is not None]
    rng = torch.Generator().manual_seed(seed)
    loss = sum(
        (v * torch.randn(v.shape, generator=rng, dtype=torch.float64).to(v.dtype)).sum()
        for v in values
    )
    loss.backward()
    leaves += [] if f is None else [f]
    return [v.detach() for v in values], [
        torch.zeros_like(t) if t.grad is None else t.grad for t in leaves
    ]


CASES = ["plain", "behind", "offscreen", "huge", "saturating", "faint", "invisible", "needles"]


# --------------------------------------------------------------------------- parity
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "degree,channels,size", [(0, 0, (37, 29)), (1, 1, (16, 16)), (2, 8, (40, 1)), (3, 16, (33, 35))]
)
def test_matches_reference_in_float64(case, degree, channels, size):
    cam = camera(*size)
    g = problem(degree=degree, cam=cam, case=case)
    f = (
        torch.randn(
            (len(g), channels), generator=torch.Generator().manual_seed(3), dtype=torch.float64
        )
        if channels
        else None
    )
    expected, expected_grads = outputs_and_gradients(rasterize, g, cam, f)
    values, grads = outputs_and_gradients(G.rasterize, g, cam, f)
    for got, want in zip(values, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    for got, want in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("case", CASES)
def test_float32_is_close_to_the_float64_reference(case):
    cam = camera(33, 35)
    g = problem(degree=3, cam=cam, case=case)
    f = torch.randn((len(g), 8), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected, expected_grads = outputs_and_gradients(rasterize, g, cam, f)
    values, grads = outputs_and_gradients(G.rasterize, g.to(dtype=torch.float32), cam, f.float())
    for got, want in zip(values, expected, strict=True):
        assert got.dtype == torch.float32
        # one alpha at the threshold may be decided the other way: 1/255 of a value
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)
    for got, want in zip(grads, expected_grads, strict=True):
        assert (got.double() - want).norm() <= 1e-3 * want.norm() + 1e-6


def test_many_channels():
    cam, f = (
        camera(20, 20),
        torch.randn((15, 64), dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    )
    g = problem(15, cam=cam)
    torch.testing.assert_close(
        G.rasterize(g, cam, f).features, rasterize(g, cam, f)[3], rtol=1e-9, atol=1e-10
    )


def test_gradcheck():
    """Finite differences, through a smooth function of all outputs; sizes keep clear of the
    thresholds.
    """
    cam = camera(5, 4, focal=6.0)
    g = problem(4, degree=1, cam=cam, seed=4)
    g = Gaussians(g.means, g.quats, g.log_scales + 1.5, g.logit_opacities * 0.3, g.sh)
    f = torch.randn((4, 2), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs = [t.requires_grad_() for t in [*vars(g).values(), f]]

    def render(*t):
        out = G.rasterize(Gaussians(*t[:5]), cam, t[5])
        return out.color, out.alpha, out.depth, out.features

    assert torch.autograd.gradcheck(render, inputs, eps=1e-6, atol=1e-5, rtol=1e-4)


def test_sh_degree_and_background():
    cam, g = camera(), problem(degree=3)
    low = g.with_sh(g.sh[:, :4].contiguous())
    assert torch.equal(G.rasterize(g, cam, sh_degree=1).color, G.rasterize(low, cam).color)
    black, white = G.rasterize(g, cam), G.rasterize(g, cam, background=torch.ones(3))
    torch.testing.assert_close(white.color, black.color + (1 - black.alpha)[..., None])


@pytest.mark.parametrize("name", ["tiny", "basic"])
def test_oracle(name):
    """Pictures that gsplat's CUDA kernels rendered (from the Brush project, Apache-2.0)."""
    root = os.environ.get("CCLKIT_REAL_DATA")
    path = Path(root or "") / "oracles" / "rasterizer" / f"{name}_case.npz"
    if not root or not path.exists():
        pytest.skip("set CCLKIT_REAL_DATA to the folder that holds oracles/rasterizer/*.npz")
    z = np.load(path)
    g = Gaussians(
        *(
            torch.from_numpy(z[k])
            for k in ("means", "quats_wxyz", "log_scales", "logit_opacities", "sh")
        )
    )
    cam = Camera(
        z["K"].astype(float), z["viewmat"].astype(float), int(z["width"]), int(z["height"])
    )
    out = G.rasterize(g, cam)
    rgba = torch.cat([out.color, out.alpha[..., None]], -1).numpy()
    assert np.abs(rgba - z["expected"]).max() < 1e-5


def test_projection_matches_gsplat():
    impl = pytest.importorskip("gsplat.cuda._torch_impl")
    cam, g = camera(), problem(200, seed=5, case="offscreen")
    covars, _ = impl._quat_scale_to_covar_preci(g.quats, g.log_scales.exp(), True, False)
    radii, means2d, depths, conics, _ = impl._fully_fused_projection(
        g.means,
        covars,
        torch.tensor(cam.world_to_camera)[None],
        torch.tensor(cam.K)[None],
        cam.width,
        cam.height,
    )
    p = G.project(g, cam)
    drawn = (p.radii > 0).all(1)
    assert drawn.sum() > 20
    torch.testing.assert_close(p.means2d[drawn], means2d[0, drawn])
    torch.testing.assert_close(p.conics[drawn], conics[0, drawn])
    torch.testing.assert_close(p.depths, depths[0])
    # ours know the opacity, gsplat's reference does not: never larger
    assert (p.radii <= radii[0]).all()


# --------------------------------------------------------------------------- determinism
def test_same_bits_for_any_number_of_threads():
    cam = camera(130, 100, 90.0)
    g = problem(400, degree=3, cam=cam, dtype=torch.float32)
    f = torch.randn((400, 5), generator=torch.Generator().manual_seed(0))
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (2, 2, 1, 3):
            torch.set_num_threads(threads)
            values, grads = outputs_and_gradients(G.rasterize, g, cam, f)
            results.append(values + grads)
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_two_python_threads_at_once():
    """Widgets and data loaders call from threads of their own."""
    cam = camera(130, 100, 90.0)
    g = problem(400, cam=cam, dtype=torch.float32)
    want = G.rasterize(g, cam).color
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: G.rasterize(g, cam).color, range(16)):
            assert torch.equal(got, want)


# --------------------------------------------------------------------------- frozen geometry
def test_splat_features_equals_rasterize():
    cam = camera()
    g = problem(60, dtype=torch.float32)
    f = torch.randn((60, 12), generator=torch.Generator().manual_seed(0)).requires_grad_()
    full = G.rasterize(g, cam, f).features
    split = G.splat_features(G.project(g, cam), f)
    torch.testing.assert_close(split, full, rtol=1e-6, atol=1e-7)
    upstream = torch.randn(full.shape, generator=torch.Generator().manual_seed(1))
    (a,) = torch.autograd.grad(full, f, upstream)
    (b,) = torch.autograd.grad(split, f, upstream)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", ["plain", "saturating", "invisible"])
def test_blending_weights(case):
    cam = camera()
    g = problem(60, case=case)
    p = G.project(g, cam)
    weights = rasterize(g, cam)[4]  # [H, W, 60]
    # all of them: rebuilds the features
    ids, w, residual = blending_weights(p, 60)
    assert (ids.dtype, w.dtype, residual.dtype) == (torch.int32, torch.float32, torch.float32)
    f = torch.randn((60, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rebuilt = torch.nn.functional.embedding_bag(
        ids.flatten(0, 1).long(), f, per_sample_weights=w.flatten(0, 1).double(), mode="sum"
    ).reshape(cam.height, cam.width, 3)
    torch.testing.assert_close(rebuilt, G.splat_features(p, f), rtol=1e-5, atol=1e-5)
    assert residual.abs().max() < 1e-5
    # the top 4
    ids, w, residual = blending_weights(p, 4)
    top = weights.topk(4, dim=-1).values
    torch.testing.assert_close(w.double(), top, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights.gather(2, ids.long()) * (w > 0), top, rtol=1e-6, atol=1e-6)
    assert (ids[w == 0] == 0).all()
    mass = weights.sum(-1)
    share = torch.where(mass > 0, 1 - top.sum(-1) / mass.clamp_min(1e-30), 0)
    torch.testing.assert_close(residual.double(), share, rtol=1e-4, atol=1e-5)
    # of some pixels, in any order: the same numbers
    rng = np.random.default_rng(0)
    for some in (
        rng.permutation(cam.height * cam.width),
        rng.choice(cam.height * cam.width, 37, replace=False),
        np.array([cam.height * cam.width - 1]),
        np.zeros(0, int),
    ):
        for own, every in zip(blending_weights(p, 4, some), (ids, w, residual)):
            assert torch.equal(own, every.flatten(0, 1)[some])
    for wrong in ([-1], [cam.height * cam.width], [3, 5, 3]):
        with pytest.raises(GaussiansError, match="each once"):
            blending_weights(p, 4, wrong)


@pytest.mark.parametrize("case", ["plain", "saturating", "invisible"])
def test_lift_is_the_transpose_of_splatting(case):
    cam, rng = camera(), torch.Generator().manual_seed(2)
    p = G.project(problem(60, case=case), cam)
    features, image = (
        torch.randn((*shape, 3), generator=rng, dtype=torch.float64)
        for shape in ((60,), (cam.height, cam.width))
    )
    sums, weights = lift(p, image)
    torch.testing.assert_close(
        (sums * features).sum(), (image * G.splat_features(p, features)).sum()
    )
    alpha = G.splat_features(p, torch.ones((60, 1), dtype=torch.float64))
    torch.testing.assert_close(weights.sum(), alpha.sum())
    with pytest.raises(GaussiansError, match="the size of its camera"):
        lift(p, image[1:])


# --------------------------------------------------------------------------- CUDA and errors
def test_cuda_arguments_fit_the_installed_gsplat():
    """The CUDA branch cannot run everywhere, but its call can be checked everywhere."""
    gsplat = pytest.importorskip("gsplat")
    g, cam = problem(degree=1, dtype=torch.float32), camera()
    arguments = G._cuda_arguments(g, cam, torch.zeros(len(g), 11))
    bound = inspect.signature(gsplat.rasterization).bind(**arguments)
    bound.apply_defaults()
    a = bound.arguments
    # defaults our rules rely on
    assert (a["far_plane"], a["radius_clip"], a["rasterize_mode"], a["camera_model"]) == (
        1e10,
        0.0,
        "classic",
        "pinhole",
    )
    assert (
        a["viewmats"].shape == (1, 4, 4) and a["Ks"].shape == (1, 3, 3) and a["backgrounds"] is None
    )
    inspect.signature(gsplat.spherical_harmonics).bind(1, g.means, g.sh)


def test_cuda_branch_with_a_stand_in_for_gsplat(monkeypatch):
    """Shapes and the split of channels, with gsplat replaced by our CPU back end."""
    gsplat = pytest.importorskip("gsplat")
    g, cam = problem(degree=2, dtype=torch.float32), camera()
    f = torch.randn((len(g), 8), generator=torch.Generator().manual_seed(0))

    def stand_in(**a):
        p = G.project(g, cam)
        image = G.splat_features(p, torch.cat([a["colors"], p.depths[:, None]], 1))
        alpha = G.splat_features(p, torch.ones(len(g), 1))
        image = torch.cat([image[..., :-1], image[..., -1:] / alpha.clamp_min(1e-10)], -1)
        meta = dict(
            means2d=p.means2d[None],
            radii=p.radii[None],
            width=a["width"],
            height=a["height"],
            n_cameras=1,
        )
        return image[None], alpha[None], meta

    def harmonics(degree, dirs, coeffs):
        return sh_color(coeffs, torch.nn.functional.normalize(dirs, dim=1)) - 0.5

    monkeypatch.setattr(gsplat, "rasterization", stand_in)
    monkeypatch.setattr(gsplat, "spherical_harmonics", harmonics)
    image, alpha, depth, info = G._rasterize_cuda(g, cam, f, 9)
    want = G.rasterize(g, cam, f)
    torch.testing.assert_close(
        image, torch.cat([want.color, want.features], -1), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(alpha, want.alpha, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(depth, want.depth, rtol=1e-4, atol=1e-4)
    assert set(want.info) >= set(info)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_matches_cpu():
    cam = camera(64, 48, 50.0)
    g = problem(200, degree=3, cam=cam, dtype=torch.float32)
    f = torch.randn((200, 8), generator=torch.Generator().manual_seed(0))
    values, grads = outputs_and_gradients(G.rasterize, g, cam, f)
    other, other_grads = outputs_and_gradients(G.rasterize, g.to("cuda"), cam, f.cuda())
    for a, b in zip(values + grads, other + other_grads, strict=True):
        assert (a - b.cpu()).norm() <= 2e-3 * a.norm() + 1e-5


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
def test_missing_cuda_is_one_line():
    with pytest.raises(DependencyError, match="CUDA") as e:
        G.rasterize(problem(dtype=torch.float32), camera(), backend="cuda")
    assert "\n" not in str(e.value)


def _broken(**changes):
    return dataclasses.replace(problem(dtype=torch.float32), **changes)


@pytest.mark.parametrize(
    "g,options,message",
    [
        (_broken(means=torch.full((40, 3), torch.nan)), {}, "NaN"),
        (_broken(quats=torch.zeros(40, 4)), {}, "zero"),
        (_broken(quats=torch.zeros(40, 3)), {}, "quats has shape"),
        (_broken(sh=torch.zeros(40, 5, 3)), {}, "K in"),
        (_broken(log_scales=torch.full((40, 3), 1e4)), {}, "overflow"),
        (_broken(log_scales=torch.zeros(40, 3, dtype=torch.float64)), {}, "float64"),
        (_broken(), {"features": torch.zeros(39, 8)}, "features"),
        (_broken(), {"sh_degree": 3}, "sh_degree"),
        (_broken(), {"background": torch.zeros(4)}, "background"),
        (_broken(), {"backend": "metal"}, "metal"),
    ],
)
def test_errors_say_what_is_wrong(g, options, message):
    with pytest.raises(GaussiansError, match=message):
        G.rasterize(g, camera(), **options)


def test_no_gaussians_at_all():
    g = Gaussians(
        torch.zeros(0, 3),
        torch.zeros(0, 4),
        torch.zeros(0, 3),
        torch.zeros(0),
        torch.zeros(0, 4, 3),
    )
    out = G.rasterize(g, camera(), torch.zeros(0, 8))
    assert out.color.shape == (29, 37, 3) and out.features.shape == (29, 37, 8)
    assert not out.color.any() and not out.alpha.any() and not out.depth.any()
