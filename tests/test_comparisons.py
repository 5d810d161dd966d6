"""What CCL is compared with: k-means, a scene autoencoder, direct lifting, on a tiny
exact scene.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import write_plane_scene

from cclkit import config
from cclkit.errors import EvaluationError
from cclkit.method.codebook_variants import initialise
from cclkit.runs.run import Run
from lab.experiments import comparisons as c

PERFECT = {
    f"front_end.simulation.{k}": 0
    for k in (
        "incomplete_rate",
        "split_rate",
        "merge_rate",
        "missing_rate",
        "jitter_px",
        "track_loss_rate",
        "feature_noise",
    )
}
SMALL = {
    "front_end.masks": "simulated",
    "front_end.features": "simulated",
    "front_end.propagation": "simulated",
    "gaussians.iterations": 40,
    "gaussians.start_gaussians": 2500,
    "gaussians.densify": False,
    "codebook.steps": 60,
    "codebook.n_prototypes": 12,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(
        write_plane_scene(tmp_path_factory.mktemp("plane")),
        config.profile("mini", **SMALL, **PERFECT),
        tmp_path_factory.mktemp("out"),
    )


def some_features(seed=0, n=90, d=24, classes=6):
    g = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(torch.randn(classes, d, generator=g), dim=1)
    return torch.nn.functional.normalize(
        centres[torch.arange(n) % classes] + 0.1 * torch.randn(n, d, generator=g), dim=1
    )


def test_kmeans_never_worsens_its_start_and_rests():
    F = some_features()
    fit = lambda T: float((F @ T.T).max(1).values.mean())
    start, T = (
        initialise(F, 6, "kmeans", torch.Generator().manual_seed(1)),
        c.fit_kmeans(F, 6, seed=1),
    )
    assert fit(T) >= fit(start) - 1e-6 and torch.allclose(T.norm(dim=1), torch.ones(6), atol=1e-5)
    assert torch.equal(c.fit_kmeans(F, 6, rounds=200, seed=1), T)
    assert torch.isfinite(c.fit_kmeans(F[:2], 6, seed=0)).all()  # fewer masks than prototypes


def test_the_autoencoder_learns_its_scene_through_eight_numbers():
    F = some_features()
    model = c.fit_autoencoder(F, epochs=150, batch=32, lr=3e-3)
    z, back = model.encode(F), model.decode(model.encode(F))
    assert z.shape == (90, 8) and torch.allclose(z.norm(dim=1), torch.ones(90), atol=1e-5)
    before = c.fit_autoencoder(F, epochs=0)
    error = lambda m: float(1 - (F * m.decode(m.encode(F))).sum(1).mean())
    assert (
        error(model) < 0.1
        and error(before) > 0.5
        and torch.allclose(back.norm(dim=1), torch.ones(90), atol=1e-5)
    )
    again = c.fit_autoencoder(F, epochs=2)
    assert all(
        torch.equal(a, b)
        for a, b in zip(again.parameters(), c.fit_autoencoder(F, epochs=2).parameters())
    )


def test_lifting_is_the_weighted_mean_by_hand():
    """Gaussian 0 is seen by masks 0 (0.6) and 1 (0.2), Gaussian 1 by mask 1 twice; the last pixel
    lies in no mask, Gaussian 2 in none of them.
    """
    cache = SimpleNamespace(
        ids=np.array([[0, 1], [0, 1], [2, 0]]),
        weights=np.array([[0.6, 0.0], [0.2, 0.5], [0.9, 0.1]], np.float32),
    )
    vectors = torch.tensor([[1.0, 0.0], [0.0, 4.0]])
    out = c.lift(cache, np.array([0, 1, -1]), vectors, 3)
    assert torch.allclose(out, torch.tensor([[0.75, 1.0], [0.0, 4.0], [0.0, 0.0]]), atol=1e-6)


def test_every_method_answers_on_an_exact_scene(run):
    rows = {r["method"]: r for r in c.compare(run, gaps=(1,), stride=3)}
    assert list(rows) == list(c.METHODS)
    for name, r in rows.items():
        coded = name in ("CCL", "matching loss only", "k-means")
        assert r["miou_2d"] > 40 and r["auc_2d"] > 0.95 and r["miou"] > 25 and r["auc"] > 0.85, r
        assert np.isnan(r["kappa"]) != coded and (
            not coded or (r["kappa_2d"] > 0.6 and r["kappa"] > 0.6)
        ), r
        assert all(r[k] > 0 for k in ("fit_s", "lift_s", "query_s"))
    G, d, N = len(run.gaussians()), run.front_end.encoder.dim, 12
    assert rows["direct lifting"]["megabytes"] == pytest.approx(2 * 4 * d * G / 1e6)
    assert (
        rows["CCL"]["megabytes"]
        == rows["k-means"]["megabytes"]
        == pytest.approx((2 * G + 2 * 4 * N * d) / 1e6)
    )
    assert (
        rows["CCL"]["megabytes"]
        < rows["autoencoder"]["megabytes"]
        < rows["direct lifting"]["megabytes"]
    )


def test_table_and_refusals(run, tmp_path):
    rows = c.compare(run, methods=["k-means"], gaps=(2,), stride=6)
    assert (
        "k-means" in c.save_comparison(run, rows, tmp_path)
        and "lifted without training" in (tmp_path / "comparison.md").read_text()
    )
    with pytest.raises(EvaluationError, match="'magic' is unknown.*direct lifting"):
        c.compare(run, methods=["magic"])
    bare = SimpleNamespace(scene=SimpleNamespace(ground_truth=None, depth_folder=None, path="here"))
    with pytest.raises(EvaluationError, match="here: consistency needs true depth"):
        c.compare(bare)
