"""CCL: the counted form against explicit pairs, reference vectors, degenerate input, and the mechanism."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cclkit.codebook import assign, ccl_loss, fit_codebook, index_map, initialise, perplexity, shuffled, usage
from cclkit.config import CodebookConfig
from cclkit.errors import CodebookError, FeatureError
from cclkit.experiments import ARMS, mechanism, population

SETTINGS = dict(lambda_pull=0.25, lambda_push=0.25, margin=0.7)


def ccl_loss_by_pairs(prototypes, features, labels, *, lambda_pull, lambda_push, margin):
    """The definition, pair by pair: slow, obvious, the reference."""
    unit = lambda x: x / x.norm(dim=-1, keepdim=True)
    T, F = unit(prototypes), unit(features)
    codes = (F @ T.T).detach().argmax(1)
    l_max = torch.stack([1 - F[i] @ T[codes[i]] for i in range(len(F))]).mean()
    pull, push = [], []
    for i in range(len(F)):
        for k in range(i + 1, len(F)):
            if labels[i] == -1 or labels[k] == -1:
                continue
            cos = T[codes[i]] @ T[codes[k]]
            (pull if labels[i] == labels[k] else push).append(1 - cos if labels[i] == labels[k] else torch.relu(cos - margin))
    l_pull = torch.stack(pull).mean() if pull else T.sum() * 0
    l_push = torch.stack(push).mean() if push else T.sum() * 0
    return l_max, l_pull, l_push, l_max + lambda_pull * l_pull + lambda_push * l_push


def random_case(seed, B=40, N=12, d=8, n_labels=6, unlabelled=0.3, spread=1.0):
    g = torch.Generator().manual_seed(seed)
    shared = torch.randn(1, d, generator=g, dtype=torch.float64)
    # a common direction makes cosines exceed the margin, so that push is active
    features = shared + spread * torch.randn(B, d, generator=g, dtype=torch.float64)
    prototypes = 2 * shared + spread * torch.randn(N, d, generator=g, dtype=torch.float64)
    labels = torch.randint(1, n_labels + 1, (B,), generator=g) * 7
    labels[torch.rand(B, generator=g) < unlabelled] = -1
    return prototypes, features, labels


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("unlabelled", [0.0, 0.4, 1.0])
def test_counts_equal_pairs_in_value_and_gradient(seed, unlabelled):
    prototypes, features, labels = random_case(seed, unlabelled=unlabelled, spread=0.5 + 0.2 * seed)
    a, b = prototypes.clone().requires_grad_(True), prototypes.clone().requires_grad_(True)
    fast = ccl_loss(a, features, labels, **SETTINGS)
    slow = ccl_loss_by_pairs(b, features, labels, **SETTINGS)
    for name, reference in zip(("max", "pull", "push", "total"), slow):
        value = getattr(fast, name)
        assert abs(value.item() - reference.item()) < 1e-12, name
        (ga,) = torch.autograd.grad(value, a, retain_graph=True)
        (gb,) = torch.autograd.grad(reference, b, retain_graph=True)
        assert (ga - gb).abs().max() < 1e-12, name


def test_push_and_pull_are_active_in_the_random_cases():
    fast = ccl_loss(*random_case(1, spread=0.7), **SETTINGS)
    assert fast.pull.item() > 1e-3 and fast.push.item() > 1e-3


@pytest.mark.parametrize("seed", [0, 1])
def test_equals_reference_vectors(oracles, seed):
    data = np.load(oracles / f"H_ccl_loss_seed{seed}.npz", allow_pickle=False)
    for case in data["case_names"]:
        prototypes = torch.tensor(data[f"{case}_prototypes"]).double().requires_grad_(True)
        features, labels = torch.tensor(data[f"{case}_features"]).double(), torch.tensor(data[f"{case}_labels"])
        assert np.array_equal(assign(prototypes, features).numpy(), data[f"{case}_codes"])
        for name in ("max", "pull", "push", "total"):
            value = getattr(ccl_loss(prototypes, features, labels, **SETTINGS), name)
            (gradient,) = torch.autograd.grad(value, prototypes)
            assert abs(value.item() - float(data[f"{case}_L_{name}"])) < 1e-10, (case, name)
            assert np.abs(gradient.numpy() - data[f"{case}_grad_{name}"]).max() < 1e-10, (case, name)


def test_gradient_passes_finite_differences():
    prototypes, features, labels = random_case(3, B=20, N=5, d=6)
    prototypes.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda p: ccl_loss(p, features, labels, **SETTINGS).total, prototypes, eps=1e-7, atol=1e-6)


def test_two_labels_on_one_prototype_cannot_be_pushed_apart():
    """The collision: cos = 1 there, so push is 0.3 but its gradient is zero (noted as a limit of the paper's form)."""
    prototype = torch.tensor([[1.0, 2.0, -1.0]], dtype=torch.float64, requires_grad=True)
    features = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = ccl_loss(prototype, features, torch.tensor([1, 1, 2, 2, 3, -1]), **SETTINGS)
    (gradient,) = torch.autograd.grad(loss.push, prototype)
    assert abs(loss.push.item() - 0.3) < 1e-12 and gradient.abs().max() < 1e-12


def test_bad_features_are_refused():
    prototypes, features, labels = random_case(0)
    for value in (float("nan"), 0.0, float("inf")):
        broken = features.clone()
        broken[7] = value
        with pytest.raises(FeatureError, match="feature 7"):
            ccl_loss(prototypes, broken, labels, **SETTINGS)
        with pytest.raises(FeatureError, match="feature 7"):
            fit_codebook(broken, labels, CodebookConfig(steps=2, n_prototypes=4), seed=0)
    with pytest.raises(CodebookError, match=r"labels have shape \(3,\)"):
        ccl_loss(prototypes, features, labels[:3], **SETTINGS)
    with pytest.raises(CodebookError, match="no mask features"):
        fit_codebook(features[:0], labels[:0], CodebookConfig(), seed=0)
    with pytest.raises(CodebookError, match="codebook.init='best'"):
        fit_codebook(features, labels, CodebookConfig(init="best"), seed=0)


@pytest.mark.parametrize("init", ["kmeans", "random"])
def test_fewer_features_than_prototypes_and_duplicates(init):
    features = torch.eye(5)[[0, 0, 1, 1, 2]]
    book = fit_codebook(features, torch.tensor([1, 1, 2, -1, -1]), CodebookConfig(n_prototypes=16, steps=30, init=init), seed=0)
    assert torch.isfinite(book.prototypes).all() and torch.allclose(book.prototypes.norm(dim=1), torch.ones(16), atol=1e-5)
    codes = book.codes(features)
    assert codes[0] == codes[1] and codes[2] == codes[3]


def test_all_unlabelled_uses_the_matching_loss_alone():
    _, features, _ = random_case(2, B=60)
    book = fit_codebook(features, torch.full((60,), -1), CodebookConfig(n_prototypes=8, steps=50, init="random"), seed=0)
    assert (book.curves["pull"] == 0).all() and (book.curves["push"] == 0).all()
    assert np.allclose(book.curves["total"], book.curves["max"])
    assert book.curves["max"][-1] < 0.95 * book.curves["max"][0]


def test_same_seed_same_bits_other_seed_other_start():
    _, features, labels = random_case(4, B=80)
    config = CodebookConfig(n_prototypes=8, steps=40)
    a, b, c = (fit_codebook(features, labels, config, seed=s) for s in (0, 0, 1))
    assert torch.equal(a.prototypes, b.prototypes) and not torch.equal(a.initial, c.initial)


def test_training_lowers_what_it_weighs():
    _, features, labels = random_case(5, B=120, N=10, n_labels=12, unlabelled=0.1, spread=0.9)
    config = CodebookConfig(n_prototypes=24, steps=400)
    with_ccl = fit_codebook(features, labels, config, seed=0)
    without = fit_codebook(features, labels, replace(config, lambda_pull=0.0, lambda_push=0.0), seed=0)
    assert torch.equal(with_ccl.initial, without.initial)
    assert with_ccl.curves["pull"][-1] < without.curves["pull"][-1]


def test_all_arms_of_an_ablation_start_alike():
    _, features, labels = random_case(7, B=80)
    config = CodebookConfig(n_prototypes=8, steps=3)
    starts = [fit_codebook(features, labels, replace(config, **change), seed=0).initial for change in ARMS.values()]
    assert len(starts) == 5 and all(torch.equal(starts[0], s) for s in starts)


def test_no_class_is_its_own_confuser():
    """Without drift towards another class an incomplete mask would change nothing."""
    for seed in range(5):
        whole = population(seed, n_views=1, incomplete=0.0)
        broken = population(seed, n_views=1, incomplete=1.0, missing=(0.8, 0.8))
        assert (population_rank(whole) == 0).mean() > 0.9 and (population_rank(broken) == 0).mean() < 0.2


def population_rank(people):
    """Rank of the right text for every mask, 0 = first."""
    scores = (people.features @ people.text.T).numpy()
    right = scores[np.arange(len(scores)), people.classes]
    return (scores > right[:, None]).sum(1)


def test_kmeans_starts_on_the_data():
    _, features, _ = random_case(6, B=100)
    features = features / features.norm(dim=1, keepdim=True)
    g = torch.Generator().manual_seed(0)
    started = initialise(features, 10, "kmeans", g)
    drawn = initialise(features, 10, "random", g)
    fit = lambda T: (features @ T.T).max(1).values.mean()
    assert fit(started) > fit(drawn) + 0.05


def test_shuffling_keeps_label_counts_and_the_unlabelled():
    labels = torch.tensor([1, 1, 1, 2, 2, 3, -1, -1, 4, 5])
    out = shuffled(labels, torch.Generator().manual_seed(0))
    assert torch.equal(out == -1, labels == -1) and sorted(out.tolist()) == sorted(labels.tolist()) and not torch.equal(out, labels)


def test_usage_perplexity_and_index_map():
    counts = usage(torch.tensor([0, 0, 3, 3]), 5)
    assert counts.tolist() == [2, 0, 0, 2, 0] and abs(perplexity(counts) - 2) < 1e-9
    maps = index_map(np.array([[0, -1], [1, 1]]), np.array([5, 9]))
    assert maps.tolist() == [[5, -1], [9, 9]]
    assert index_map(np.array([[-1, -1]]), np.zeros(0, np.int64)).tolist() == [[-1, -1]]


def test_mechanism_ccl_gains_and_shuffled_labels_do_not():
    """Planted confusers: the paper's λ and m gain at least 3 points (mean of 5 seeds); meaningless labels gain nothing."""
    arms = mechanism(CodebookConfig(), seeds=range(5), arms=("baseline", "both", "shuffled"))
    mean = {arm: float(np.mean(values)) for arm, values in arms.items()}
    assert mean["both"] - mean["baseline"] >= 3.0, mean
    assert mean["shuffled"] - mean["baseline"] < 1.0, mean
