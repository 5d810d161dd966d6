"""Numbers and scenes at their limits: custom gradients, half precision, the smallest scenes, other
thread counts.
"""

import ast
import json
import shutil
from pathlib import Path

import conftest
import numpy as np
import pytest
import torch
from conftest import write_plane_scene
from PIL import Image
from test_rasterize import camera, problem

from cclkit import config
from cclkit.errors import (
    CclkitError,
    CodebookError,
    FeatureError,
    FieldError,
    GaussiansError,
    QueryError,
)
from cclkit.gaussians.blending import _Entries
from cclkit.gaussians.rasterize import _build_tiles, _Project, _Splat, rasterize
from cclkit.method.codebook import ccl_loss
from cclkit.method.codebook_fit import CodebookConfig, fit_codebook
from cclkit.method.features import check_features
from cclkit.method.query import relevancy
from cclkit.runs.run import Run

ROOT = Path(__file__).parent.parent
SMALL = {
    "front_end.masks": "simulated",
    "front_end.features": "simulated",
    "front_end.propagation": "simulated",
    "gaussians.iterations": 3,
    "gaussians.start_gaussians": 300,
    "gaussians.densify": False,
    "field.iterations": 10,
    "codebook.steps": 20,
    "codebook.n_prototypes": 8,
    "field.hidden": (8,),
    "field.pixels_per_mask": 20,
    "field.batch": 64,
    "field.top_k": 4,
}


# ----------------------------------------------------------------- gradients


def test_every_custom_gradient_is_checked_here():
    found = set()
    for path in (ROOT / "cclkit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and any(
                "Function" in ast.unparse(b) for b in node.bases
            ):
                found.add(node.name)
    assert found == {
        "_Project",
        "_Splat",
        "_Entries",
    }, "check a new one against finite differences, as below"


def _few(seed):
    cam = camera(5, 4, focal=6.0)
    g = problem(4, degree=1, cam=cam, seed=seed)
    # clear of the thresholds, where nothing is smooth
    return cam, type(g)(g.means, g.quats, g.log_scales + 1.5, g.logit_opacities * 0.3, g.sh)


@pytest.mark.parametrize("seed", [4, 5])
def test_projection_gradients_by_finite_differences(seed):
    cam, g = _few(seed)
    inputs = [t.clone().requires_grad_() for t in vars(g).values()]
    assert torch.autograd.gradcheck(
        lambda *t: _Project.apply(*t, t[4].shape[1], cam)[:5],
        inputs,
        eps=1e-6,
        atol=1e-5,
        rtol=1e-4,
    )


@pytest.mark.parametrize("channels", [1, 5])
def test_blending_gradients_by_finite_differences(channels):
    cam, g = _few(4)
    means2d, conics, opacities, depths, _, radii = _Project.apply(
        *vars(g).values(), g.sh.shape[1], cam
    )
    tiles = _build_tiles(means2d, conics, opacities, depths, radii, cam)
    features = torch.randn(
        (4, channels), generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    inputs = [t.detach().clone().requires_grad_() for t in (means2d, conics, opacities, features)]
    assert torch.autograd.gradcheck(
        lambda *t: _Splat.apply(*t, tiles, cam.width, cam.height),
        inputs,
        eps=1e-6,
        atol=1e-5,
        rtol=1e-4,
    )


def test_gradient_of_cached_pixels_by_finite_differences():
    """`blend_entries` writes its gradient into memory that stays, in single precision: central
    differences of a function linear in the features are exact.
    """
    rng = torch.Generator().manual_seed(0)
    features = torch.randn((6, 3), generator=rng).requires_grad_()
    ids, weights = (
        torch.randint(0, 6, (5, 4), generator=rng).int(),
        torch.rand((5, 4), generator=rng),
    )
    upstream = torch.randn((5, 3), generator=rng)
    memory = torch.full((6, 3), 7.0)  # what it held before must not matter
    out = lambda f: (_Entries.apply(f, ids, weights, memory.clone()) * upstream).sum()
    out(features).backward()
    basis = torch.eye(18).reshape(18, 6, 3)
    numeric = torch.stack(
        [(out(features.detach() + d) - out(features.detach() - d)) / 2 for d in basis]
    ).reshape(6, 3)
    torch.testing.assert_close(features.grad, numeric, rtol=1e-4, atol=1e-5)


# ----------------------------------------------------------------- half precision


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_or_computed_in_single(half):
    cam = camera()
    g = (
        problem(20, dtype=torch.float32)
        if "dtype" in problem.__code__.co_varnames
        else problem(20).to(dtype=torch.float32)
    )
    with pytest.raises(GaussiansError, match="expected float32"):
        rasterize(g.to(dtype=half), cam)
    with pytest.raises(CclkitError):
        rasterize(g, cam, torch.zeros(len(g), 3, dtype=half))
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(60, 16, generator=generator), dim=1)
    labels = torch.arange(60) % 5 + 1
    settings = CodebookConfig(n_prototypes=6, steps=20)
    rounded = features.to(half)
    book = _refused_or(lambda: fit_codebook(rounded, labels, settings, seed=0))
    if book is not None:
        assert book.prototypes.dtype == torch.float32 and torch.equal(
            book.prototypes, fit_codebook(rounded.float(), labels, settings, seed=0).prototypes
        )
    loss = _refused_or(
        lambda: (
            ccl_loss(
                rounded[:6], rounded, labels, lambda_pull=1.0, lambda_push=1.0, margin=0.7
            ).total
        )
    )
    if loss is not None:
        assert (
            abs(
                float(loss)
                - float(
                    ccl_loss(
                        rounded[:6].float(),
                        rounded.float(),
                        labels,
                        lambda_pull=1.0,
                        lambda_push=1.0,
                        margin=0.7,
                    ).total
                )
            )
            < 1e-6
        )
    answer = _refused_or(lambda: relevancy(rounded, rounded[:2], rounded[2:5]))
    if answer is not None:
        single = relevancy(rounded.float(), rounded[:2].float(), rounded[2:5].float())
        assert answer.dtype == torch.float32 and torch.allclose(answer, single, atol=1e-6)


def _refused_or(compute):
    try:
        return compute()
    except CclkitError:
        return None


def test_what_overflows_in_half_precision_is_noticed():
    with np.errstate(over="ignore"):
        overflown = (
            np.array([[1e5, 0.0], [0.6, 0.8]], np.float32).astype(np.float16).astype(np.float32)
        )
        vanished = np.array([[1e-9, 0.0]], np.float32).astype(np.float16).astype(np.float32)
    with pytest.raises(FeatureError, match="row 0 is not finite"):
        check_features(overflown, "a view")
    with pytest.raises(FeatureError, match="row 0 is zero"):
        check_features(vanished, "a view")


# ----------------------------------------------------------------- the smallest scenes


def _whole_run(scene, out, **settings):
    run = Run(
        scene,
        config.profile("mini", **SMALL | {k.replace("__", "."): v for k, v in settings.items()}),
        out,
    )
    return run.to(report=lambda _: None)


def _is_finite(run):
    pooled = run.evaluation()["aggregates"]["pooled"]
    return pooled["units"] > 0 and 0 <= pooled["miou"] <= 1


@pytest.mark.parametrize("mode", ["rasterised", "cached", "joint"])
def test_one_training_view(tmp_path, mode):
    scene = write_plane_scene(tmp_path, n_views=2)
    (scene / "scene.json").write_text(json.dumps({"held_out": ["frame_00002.jpg"]}))
    run = _whole_run(scene, tmp_path / "out", field__mode=mode)
    assert len(run.scene.training_views) == 1 and _is_finite(run)


def test_one_view_at_all(tmp_path):
    scene = write_plane_scene(tmp_path, n_views=1)
    shutil.rmtree(tmp_path / "label")
    run = _whole_run(scene, tmp_path / "out")
    assert (
        run.codes("frame_00001.jpg").shape[0] == 2
        and torch.isfinite(run.relevancy("frame_00001.jpg", ["bear"])).all()
    )


@pytest.mark.parametrize("mode", ["rasterised", "cached", "joint"])
def test_one_gaussian(tmp_path, mode):
    run = _whole_run(
        write_plane_scene(tmp_path, n_views=3),
        tmp_path / "out",
        gaussians__start_gaussians=1,
        field__mode=mode,
    )
    assert len(run.gaussians()) == 1 and _is_finite(run)
    keep, _ = run.select_gaussians("bear")  # nothing to stand out from: no answer in 3D
    assert (
        keep.tolist() == [False]
        and run.vary(evaluation__protocol="opengaussian").evaluation()["aggregates"]["pooled"][
            "miou"
        ]
        == 0
    )
    answer = json.loads((run.write_answer("bear", run.scene.views[:1]) / "answer.json").read_text())
    assert answer["selection"]["gaussians"] == 0 and answer["selection"]["file"] is None


def test_gaussians_that_no_view_shows_cannot_answer(tmp_path, monkeypatch):
    run = _whole_run(write_plane_scene(tmp_path, n_views=2), tmp_path / "out")
    behind = run.gaussians().detach()
    behind.means.add_(torch.tensor([1e4, 0.0, 0.0]))
    monkeypatch.setattr("cclkit.runs.scoring.gaussians", lambda work: behind)
    with pytest.raises(
        QueryError, match="no Gaussian is seen by any training view, so none can answer 'bear'"
    ):
        run.select_gaussians("bear")


@pytest.fixture
def one_thing(monkeypatch):
    """Scenes of nothing but a table."""
    monkeypatch.setattr(conftest, "REGIONS", {1: conftest.REGIONS[1]})
    monkeypatch.setattr(conftest, "QUERIES", {"table": 1})


PERFECT = {
    f"front_end__simulation__{k}": 0.0
    for k in ("split_rate", "merge_rate", "missing_rate", "track_loss_rate", "incomplete_rate")
}


def test_one_mask(tmp_path, one_thing):
    run = _whole_run(write_plane_scene(tmp_path, n_views=3), tmp_path / "out", **PERFECT)
    assert (
        all(len(run.masks(v)) <= 2 for v in run.scene.training_views)
        and sum(len(run.masks(v)) for v in run.scene.training_views) > 0
    )
    assert _is_finite(run)


def test_one_prototype(tmp_path):
    run = _whole_run(
        write_plane_scene(tmp_path, n_views=3), tmp_path / "out", codebook__n_prototypes=1
    )
    assert {len(b.prototypes) for b in run.codebooks().values()} == {1} and _is_finite(run)


def test_no_mask_at_all_is_refused_with_the_reason(tmp_path):
    with pytest.raises((CodebookError, FieldError), match="mask"):
        _whole_run(
            write_plane_scene(tmp_path, n_views=3), tmp_path / "out", masks__min_area_px=10**6
        )


@pytest.mark.parametrize("protocol", ["ovs3d_argmax", "ovs3d_langsplat"])
def test_one_class(tmp_path, one_thing, protocol):
    scene = write_plane_scene(tmp_path, n_views=3)
    folder = scene / "segmentations/frame_00001"
    folder.mkdir(parents=True)
    (scene / "segmentations/classes.txt").write_text("table\n")
    Image.fromarray(np.full((conftest.HEIGHT, conftest.WIDTH), 255, np.uint8)).save(
        folder / "table.png"
    )
    run = _whole_run(scene, tmp_path / "out", evaluation__protocol=protocol, **PERFECT)
    assert run.scene.layout == "3d_ovs" and _is_finite(run)


# ----------------------------------------------------------------- other thread counts


@pytest.mark.parametrize("mode", ["rasterised", "cached"])
def test_another_number_of_threads_changes_next_to_nothing(tmp_path, mode):
    """At least 99.9 % equal codes in all views, mIoU within 0.2 %."""
    import numba

    scene = write_plane_scene(tmp_path, n_views=4)
    longer = {
        "gaussians__iterations": 30,
        "gaussians__start_gaussians": 1500,
        "field__iterations": 80,
        "codebook__steps": 60,
        "codebook__n_prototypes": 16,
    }
    before, codes, miou = torch.get_num_threads(), [], []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            numba.set_num_threads(min(n, numba.config.NUMBA_NUM_THREADS))
            run = _whole_run(scene, tmp_path / str(n), field__mode=mode, **longer)
            codes.append(np.stack([run.codes(v) for v in run.scene.views]))
            miou.append(100 * run.evaluation()["aggregates"]["pooled"]["miou"])
    finally:
        torch.set_num_threads(before)
        numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    assert (codes[0] == codes[1]).mean() >= 0.999 and abs(miou[0] - miou[1]) <= 0.2
