"""CCL: the counted form against explicit pairs, reference vectors, degenerate input, and the
mechanism.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cclkit.errors import CodebookError, ConfigError, FeatureError
from cclkit.evaluation.codes import colliding_labels, perplexity, usage
from cclkit.method.codebook import assign, ccl_loss, check_batch, index_map, losses, unit
from cclkit.method.codebook_fit import CodebookConfig, fit_codebook
from cclkit.method.codebook_variants import (
    initialise,
    numbered_in_groups,
    pair_weights,
    revive,
    shuffled,
    split,
)
from cclkit.notebook.population import ARMS, mechanism, population, population_collisions

SETTINGS = dict(lambda_pull=0.25, lambda_push=0.25, margin=0.7)


def ccl_loss_by_pairs(
    prototypes,
    features,
    labels,
    *,
    lambda_pull,
    lambda_push,
    margin,
    normalisation="pairs",
    collisions="ignore",
    temperature=0.02,
    groups=None,
):
    """The definition, pair by pair: slow, obvious, the reference."""
    unit = lambda x: x / x.norm(dim=-1, keepdim=True)
    T, F = unit(prototypes), unit(features)
    codes = (F @ T.T).detach().argmax(1)
    # of every prototype for every mask
    if collisions == "soft":
        weight = torch.softmax(F @ T.T / temperature, 1).detach()
    else:
        weight = torch.nn.functional.one_hot(codes, len(T)).to(T.dtype)
    centroids = collisions == "centroids"
    l_max = torch.stack([1 - F[i] @ T[codes[i]] for i in range(len(F))]).mean()
    track = [(0 if groups is None else int(groups[i]), int(labels[i])) for i in range(len(F))]
    centre = {y: unit(F[[i for i in range(len(F)) if track[i] == y]].sum(0)) for y in track}
    pull, push = {}, {}  # by label, or by pair of labels
    for i in range(len(F)):
        for k in range(len(F)):
            if i == k or labels[i] == -1 or labels[k] == -1 or track[i][0] != track[k][0]:
                continue
            terms = pull if track[i] == track[k] else push
            value = 0
            for a in weight[i].nonzero()[:, 0]:
                for b in [None] if centroids else weight[k].nonzero()[:, 0]:
                    cos = T[a] @ (centre[track[k]] if centroids else T[b])
                    value = value + weight[i, a] * (1 if centroids else weight[k, b]) * (
                        1 - cos if terms is pull else torch.relu(cos - margin)
                    )
            terms.setdefault((track[i], track[k]), []).append(value)

    def mean(terms):
        if not terms:
            return T.sum() * 0
        return (
            torch.cat([torch.stack(t) for t in terms.values()]).mean()
            if normalisation == "pairs"
            else torch.stack([torch.stack(t).mean() for t in terms.values()]).mean()
        )

    l_pull, l_push = mean(pull), mean(push)
    return l_max, l_pull, l_push, l_max + lambda_pull * l_pull + lambda_push * l_push


def variant_loss(
    prototypes, features, labels, *, lambda_pull, lambda_push, margin, groups=None, **variant
):
    """What `fit_codebook` computes in a step of a variant."""
    check_batch(prototypes, features, labels, groups)
    T, F = unit(prototypes), unit(features.to(prototypes.dtype))
    codes = assign(prototypes, F)
    pairs = pair_weights(T, F, codes, *numbered_in_groups(labels, groups), **variant)
    weights = {"lambda_pull": lambda_pull, "lambda_push": lambda_push, "margin": margin}
    return losses(T, F, codes, pairs, **weights)


def assert_equal_losses(prototypes, features, labels, tolerance, **settings):
    """Values and gradients of the counted form (the paper's, or a variant's) and of the
    definition.
    """
    a, b = prototypes.clone().requires_grad_(True), prototypes.clone().requires_grad_(True)
    counted = variant_loss if settings else ccl_loss
    fast = counted(a, features, labels, **SETTINGS, **settings)
    slow = ccl_loss_by_pairs(b, features, labels, **SETTINGS, **settings)
    for name, definition in zip(("max", "pull", "push", "total"), slow):
        value = getattr(fast, name)
        assert abs(value.item() - definition.item()) < tolerance, name
        (ga,) = torch.autograd.grad(value, a, retain_graph=True)
        (gb,) = torch.autograd.grad(definition, b, retain_graph=True)
        assert (ga - gb).abs().max() < tolerance, name


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
    assert_equal_losses(*random_case(seed, unlabelled=unlabelled, spread=0.5 + 0.2 * seed), 1e-12)


@pytest.mark.parametrize("normalisation", ["pairs", "labels"])
@pytest.mark.parametrize("collisions", ["ignore", "centroids"])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("unlabelled", [0.2, 1.0])
def test_every_form_equals_its_pairs(normalisation, collisions, grouped, unlabelled):
    for seed, n_labels in ((10, 6), (11, 1), (12, 60)):  # some, one, and mostly one mask per label
        prototypes, features, labels = random_case(
            seed, unlabelled=unlabelled, spread=0.8, n_labels=n_labels
        )
        groups = torch.arange(len(labels)) % 3 * 5 if grouped else None
        assert_equal_losses(
            prototypes,
            features,
            labels,
            1e-12,
            normalisation=normalisation,
            collisions=collisions,
            groups=groups,
        )


@pytest.mark.parametrize("normalisation", ["pairs", "labels"])
@pytest.mark.parametrize("grouped", [False, True])
def test_soft_assignment_equals_its_pairs(normalisation, grouped):
    for seed, unlabelled in ((20, 0.2), (21, 1.0)):
        prototypes, features, labels = random_case(
            seed, B=14, N=5, n_labels=3, unlabelled=unlabelled, spread=0.8
        )
        groups = torch.arange(len(labels)) % 2 if grouped else None
        assert_equal_losses(
            prototypes,
            features,
            labels,
            1e-12,
            normalisation=normalisation,
            collisions="soft",
            temperature=0.3,
            groups=groups,
        )


def test_a_variant_that_changes_nothing_is_the_papers_form_to_the_bit():
    for seed in range(3):
        case = random_case(seed)
        paper, variant = ccl_loss(*case, **SETTINGS), variant_loss(*case, **SETTINGS)
        for name in ("max", "pull", "push", "total"):
            assert torch.equal(getattr(paper, name), getattr(variant, name))


def test_soft_assignment_at_low_temperature_is_the_papers_form():
    case = random_case(22)
    hard, soft = (
        ccl_loss(*case, **SETTINGS),
        variant_loss(*case, **SETTINGS, collisions="soft", temperature=1e-7),
    )
    assert hard.pull > 0.01 and hard.push > 0.01
    assert soft.pull.item() == pytest.approx(
        hard.pull.item(), abs=1e-9
    ) and soft.push.item() == pytest.approx(hard.push.item(), abs=1e-9)


def test_soft_assignment_gives_a_collision_a_gradient_from_a_neighbour():
    """Both labels' masks are nearest to prototype 0; prototype 1 lies 40 degrees beyond label 2.
    The paper's push sees prototype 0 alone.
    """
    features, labels, prototypes, axes = collision()
    T = (
        torch.stack([prototypes[0], torch.tensor([-0.17365, 0.98481, 0, 0])])
        .double()
        .requires_grad_(True)
    )
    assert (assign(T.detach(), features.double()) == 0).all()
    gradient = {}
    for collisions in ("ignore", "soft"):
        loss = variant_loss(
            T,
            features.double(),
            labels,
            lambda_pull=0.25,
            lambda_push=0.25,
            margin=0.2,
            collisions=collisions,
            temperature=0.1,
        )
        gradient[collisions] = torch.autograd.grad(loss.push, T)[0]
    assert gradient["ignore"].abs().max() < 1e-12
    # descent moves the shared prototype away from the neighbour, towards the larger label
    assert -(gradient["soft"][0] @ (axes[0] - axes[1]).double()) > 1e-3


def test_label_means_do_not_grow_with_a_label():
    """One big agreeing and one small disagreeing label: pair means hardly see the small one, label
    means weigh both alike.
    """
    prototypes = torch.eye(3, dtype=torch.float64)
    features = prototypes[[0] * 18 + [1, 2]]
    labels = torch.tensor([1] * 18 + [2, 2])
    by = {
        n: variant_loss(prototypes, features, labels, **SETTINGS, normalisation=n).pull.item()
        for n in ("pairs", "labels")
    }
    assert by["pairs"] == pytest.approx(1 / 154) and by["labels"] == pytest.approx(1 / 2)


def test_pairs_of_a_large_label_are_counted_exactly():
    """200,000 masks on one code: float32 would lose the single pair partner of another label among
    4e10 pairs.
    """
    prototypes = torch.eye(2)
    features = prototypes[[0] * 200_000 + [0]]
    labels = torch.tensor([1] * 200_000 + [2])
    assert ccl_loss(prototypes, features, labels, **SETTINGS).push.item() == pytest.approx(
        0.3, rel=1e-5
    )


def test_push_and_pull_are_active_in_the_random_cases():
    fast = ccl_loss(*random_case(1, spread=0.7), **SETTINGS)
    assert fast.pull.item() > 1e-3 and fast.push.item() > 1e-3


@pytest.mark.parametrize("seed", [0, 1])
def test_equals_reference_vectors(oracles, seed):
    data = np.load(oracles / f"H_ccl_loss_seed{seed}.npz", allow_pickle=False)
    for case in data["case_names"]:
        prototypes = torch.tensor(data[f"{case}_prototypes"]).double().requires_grad_(True)
        features, labels = (
            torch.tensor(data[f"{case}_features"]).double(),
            torch.tensor(data[f"{case}_labels"]),
        )
        assert np.array_equal(assign(prototypes, features).numpy(), data[f"{case}_codes"])
        for name in ("max", "pull", "push", "total"):
            value = getattr(ccl_loss(prototypes, features, labels, **SETTINGS), name)
            (gradient,) = torch.autograd.grad(value, prototypes)
            assert abs(value.item() - float(data[f"{case}_L_{name}"])) < 1e-10, (case, name)
            assert np.abs(gradient.numpy() - data[f"{case}_grad_{name}"]).max() < 1e-10, (
                case,
                name,
            )


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("normalisation", ["pairs", "labels"])
def test_reference_vectors_by_pairs_and_by_labels(oracles, seed, normalisation):
    data = np.load(oracles / f"H_ccl_loss_seed{seed}.npz", allow_pickle=False)
    for case in data["case_names"]:
        assert_equal_losses(
            torch.tensor(data[f"{case}_prototypes"]).double(),
            torch.tensor(data[f"{case}_features"]).double(),
            torch.tensor(data[f"{case}_labels"]),
            1e-10,
            normalisation=normalisation,
        )


def test_gradient_passes_finite_differences():
    prototypes, features, labels = random_case(3, B=20, N=5, d=6)
    prototypes.requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda p: ccl_loss(p, features, labels, **SETTINGS).total, prototypes, eps=1e-7, atol=1e-6
    )


def test_two_labels_on_one_prototype_cannot_be_pushed_apart():
    """The collision: cos = 1 there, so push is 0.3 but its gradient is zero (noted as a limit of
    the paper's form).
    """
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
    with pytest.raises(ConfigError, match="setting init='best' is unknown; use one of kmeans"):
        fit_codebook(features, labels, CodebookConfig(init="best"), seed=0)
    with pytest.raises(CodebookError, match="codebook.init='best'"):
        initialise(features, 4, "best", torch.Generator())


ONE_EACH = [
    {},
    {"init": "random"},
    {"init": "tracks"},
    {"normalisation": "labels"},
    {"batch": 2},
    {"update": "ema"},
    {"update": "ema", "ema_decay": 0.0},
    {"revive_every": 4},
    {"collisions": "split", "split_every": 4},
    {"collisions": "centroids"},
    {"collisions": "soft"},
    {
        "init": "random",
        "update": "ema",
        "batch": 3,
        "revive_every": 3,
        "collisions": "split",
        "split_every": 5,
        "normalisation": "labels",
    },
]


@pytest.mark.parametrize("change", ONE_EACH, ids=str)
def test_fewer_features_than_prototypes_and_duplicates(change):
    features = torch.eye(5)[[0, 0, 1, 1, 2]]
    book = fit_codebook(
        features,
        torch.tensor([1, 1, 2, -1, -1]),
        CodebookConfig(n_prototypes=16, steps=30, **change),
        seed=0,
    )
    assert torch.isfinite(book.prototypes).all() and torch.allclose(
        book.prototypes.norm(dim=1), torch.ones(16), atol=1e-5
    )
    codes = book.codes(features)
    assert codes[0] == codes[1] and codes[2] == codes[3]


@pytest.mark.parametrize("change", ONE_EACH, ids=str)
def test_every_setting_has_a_result_on_odd_input_and_repeats_bit_for_bit(change):
    features = torch.randn(12, 6, generator=torch.Generator().manual_seed(1))
    features[6:] = -features[:6]  # labels whose features cancel have no centroid
    config = CodebookConfig(n_prototypes=4, steps=12, **change)
    for labels in (
        torch.full((12,), -1),
        torch.arange(12) % 6,
        torch.arange(12),
        torch.zeros(12, dtype=torch.int64),
    ):
        a, b = (fit_codebook(features, labels, config, seed=2) for _ in range(2))
        assert torch.isfinite(a.prototypes).all() and torch.equal(a.prototypes, b.prototypes)
        assert all(
            np.isfinite(c).all() and np.array_equal(c, b.curves[k]) for k, c in a.curves.items()
        )
        if (labels == -1).all():
            assert (a.curves["pull"] == 0).all() and (a.curves["push"] == 0).all()
    for value in (float("nan"), 0.0, float("inf")):
        broken = features.clone()
        broken[7] = value
        with pytest.raises(FeatureError, match="feature 7"):
            fit_codebook(broken, labels, config, seed=0)
    one = fit_codebook(features[:1], torch.tensor([1]), config, seed=0)
    assert torch.isfinite(one.prototypes).all()


@pytest.mark.parametrize(
    "change",
    [
        {"normalisation": "sums"},
        {"update": "sgd"},
        {"collisions": "merge"},
        {"batch": -1},
        {"revive_every": -1},
        {"split_every": 0},
        {"ema_decay": 1.0},
        {"ema_decay": float("nan")},
        {"split_cosine": 1.5},
        {"n_prototypes": 0},
        {"lr": 0.0},
        {"betas": (0.9, 1.0)},
        {"margin": float("nan")},
        {"lambda_push": -0.1},
        {"temperature": 0.0},
        {"temperature": float("nan")},
    ],
    ids=str,
)
def test_unknown_settings_are_named(change):
    setting = f"setting {next(iter(change))}="
    with pytest.raises(ConfigError, match=f"{setting}.*; expected|{setting}.*; use one of"):
        config = CodebookConfig(**({"n_prototypes": 2, "steps": 2} | change))
        fit_codebook(torch.eye(4), torch.arange(4), config, seed=0)


def test_all_unlabelled_uses_the_matching_loss_alone():
    _, features, _ = random_case(2, B=60)
    book = fit_codebook(
        features,
        torch.full((60,), -1),
        CodebookConfig(n_prototypes=8, steps=50, init="random"),
        seed=0,
    )
    assert (book.curves["pull"] == 0).all() and (book.curves["push"] == 0).all()
    assert np.allclose(book.curves["total"], book.curves["max"])
    assert book.curves["max"][-1] < 0.95 * book.curves["max"][0]


def test_minibatches_see_every_mask_and_large_ones_are_the_full_batch():
    _, features, labels = random_case(4, B=80)
    config = CodebookConfig(n_prototypes=8, steps=60)
    whole, larger, small = (
        fit_codebook(features, labels, replace(config, batch=n), seed=0) for n in (0, 80, 24)
    )
    assert torch.equal(whole.prototypes, larger.prototypes) and torch.equal(
        whole.initial, small.initial
    )
    # batches of 24, 24, 24 and 8 masks make up all 80
    epoch = small.curves["max"][:4] @ np.array([24, 24, 24, 8]) / 80
    assert epoch == pytest.approx(whole.curves["max"][:4].mean(), rel=0.01)
    assert small.curves["max"][-8:].mean() < small.curves["max"][:8].mean()


def test_tracks_seed_the_codebook_with_their_centroids():
    features = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    features /= features.norm(dim=1, keepdim=True)
    labels = torch.arange(60) % 3
    labels[50:] = -1
    labels[:20] = 0  # the largest
    centroids = torch.stack(
        [features[labels == y].sum(0) / features[labels == y].sum(0).norm() for y in (0, 1, 2)]
    )
    start = lambda N, y: initialise(features, N, "tracks", torch.Generator().manual_seed(0), y)
    assert torch.allclose(start(10, labels)[:3], centroids, atol=1e-6)
    # more tracks than prototypes: the largest
    assert torch.allclose(start(2, labels), centroids[:2], atol=1e-6)
    assert torch.equal(
        start(10, torch.full_like(labels, -1)),
        initialise(features, 10, "kmeans", torch.Generator().manual_seed(0)),
    )
    with pytest.raises(CodebookError, match="needs labels"):
        initialise(features, 4, "tracks", torch.Generator().manual_seed(0))


def test_dead_codes_revive_on_the_farthest_features():
    # lies mostly along one direction
    features = torch.eye(5)[[0, 0, 0, 1, 2]] + torch.tensor([0, 0, 0, 0.5, 0])
    features /= features.norm(dim=1, keepdim=True)
    prototypes = torch.stack([features[0], -features[0], -features[3], -features[4]])
    nearest = (features @ features[0]).argsort()
    moved = revive(prototypes, features)
    assert (
        moved.tolist() == [1, 2]
        and torch.equal(prototypes[1], features[nearest[0]])
        and torch.equal(prototypes[3], -features[4])
    )
    # every feature has one, so the last code stays dead
    assert torch.allclose((features @ prototypes.T).max(1).values, torch.ones(5))
    _, features, labels = random_case(8, B=200, spread=0.3)
    config = CodebookConfig(n_prototypes=32, steps=60, init="random")
    used = [
        len(
            fit_codebook(features, labels, replace(config, revive_every=n), seed=0)
            .codes(features)
            .unique()
        )
        for n in (0, 10)
    ]
    assert used[0] < 16 and used[1] == 32


def test_averaging_without_memory_is_spherical_kmeans():
    _, features, labels = random_case(9, B=60)
    config = CodebookConfig(
        n_prototypes=5,
        steps=1,
        init="random",
        update="ema",
        ema_decay=0.0,
        lambda_pull=0.0,
        lambda_push=0.0,
    )
    book = fit_codebook(features, labels, config, seed=0)
    unit = features.float() / features.float().norm(dim=1, keepdim=True)
    codes = assign(book.initial, unit)
    for j in range(5):
        mean = unit[codes == j].sum(0)
        assert torch.allclose(
            book.prototypes[j],
            mean / mean.norm() if (codes == j).any() else book.initial[j],
            atol=1e-6,
        )


@pytest.mark.parametrize("normalisation", ["pairs", "labels"])
def test_averaging_rests_where_the_gradient_of_the_total_vanishes(normalisation):
    _, features, labels = random_case(5, B=80, n_labels=6)
    # no kink: push acts on every pair
    config = CodebookConfig(
        n_prototypes=6,
        steps=1500,
        update="ema",
        ema_decay=0.95,
        normalisation=normalisation,
        margin=-1.0,
    )
    book = fit_codebook(features, labels, config, seed=0)
    size = {}
    for name, start in (("initial", book.initial), ("learned", book.prototypes)):
        T = start.double().requires_grad_(True)
        loss = variant_loss(
            T,
            features,
            labels,
            lambda_pull=0.25,
            lambda_push=0.25,
            margin=-1.0,
            normalisation=normalisation,
        )
        size[name] = float(torch.autograd.grad(loss.total, T)[0].norm())
    assert book.curves["pull"][-1] > 0 and size["learned"] < 1e-4 < 0.02 * size["initial"]


def collision(n=(12, 6)):
    """Two labels 60 degrees apart whose masks all share prototype 0; prototype 1 looks away."""
    axes = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.75**0.5, 0, 0]])
    features = torch.cat([axes[y].expand(n[y], 4) for y in (0, 1)])
    labels = torch.tensor([1] * n[0] + [2] * n[1])
    between = axes.sum(0) / axes.sum(0).norm()
    return features, labels, torch.stack([between, -between]), axes


def test_split_hands_the_smaller_label_an_unused_prototype():
    features, labels, prototypes, axes = collision()
    assert colliding_labels(assign(prototypes, features), labels) == 2
    ids, group_of = numbered_in_groups(labels, None)
    # alike enough to share
    assert len(split(prototypes.clone(), features, ids, group_of, cosine=0.3)) == 0
    # nothing is unused
    assert len(split(prototypes[:1].clone(), features, ids, group_of, cosine=0.95)) == 0
    apart = numbered_in_groups(labels, labels)  # in different groups they never compete
    assert len(split(prototypes.clone(), features, *apart, cosine=0.95)) == 0
    assert split(prototypes, features, ids, group_of, cosine=0.95).tolist() == [1]
    assert prototypes[1] @ axes[1] > 0.99
    codes = assign(prototypes, features)
    assert (codes[labels == 2] == 1).all() and colliding_labels(codes, labels) == 0


def test_centroids_give_a_collision_the_gradient_that_the_papers_form_lacks():
    features, labels, prototypes, axes = collision()
    # a little nearer to the larger label
    T = (prototypes + 0.1 * axes[:1]).double().requires_grad_(True)
    gradient = {}
    for collisions in ("ignore", "centroids"):
        loss = variant_loss(
            T,
            features.double(),
            labels,
            lambda_pull=0.25,
            lambda_push=0.25,
            margin=0.7,
            collisions=collisions,
        )
        gradient[collisions] = [
            torch.autograd.grad(x, T, retain_graph=True)[0][0] for x in (loss.pull, loss.push)
        ]
    assert all(g.norm() < 1e-12 for g in gradient["ignore"])
    pull, push = gradient["centroids"]
    direction = (axes[0] - axes[1]).double()
    # descent of either moves the shared prototype towards the larger label
    assert -(pull @ direction) > 0.05 and -(push @ direction) > 0.01


def test_both_remedies_end_a_collision_that_the_papers_form_keeps(monkeypatch):
    """Prototype 0 holds both labels. Split needs an unused prototype, centroids a neighbour that
    takes over what prototype 0 gives up.
    """
    from cclkit.method import codebook_fit as fit

    features, labels, prototypes, _ = collision()
    # 44 degrees beyond label 2
    unused, neighbour = (
        prototypes,
        torch.stack([prototypes[0], torch.tensor([-0.242, 0.970, 0.0, 0.0])]),
    )
    left = {}
    for name, start in (
        ("ignore", unused),
        ("ignore", neighbour),
        ("split", unused),
        ("centroids", neighbour),
    ):
        start = start / start.norm(dim=1, keepdim=True)
        assert (assign(start, features) == 0).all()
        monkeypatch.setattr(fit, "initialise", lambda *a: start.clone())
        config = CodebookConfig(
            n_prototypes=2,
            steps=400,
            lr=0.01,
            lambda_pull=1.0,
            lambda_push=1.0,
            collisions=name,
            split_every=10,
        )
        left.setdefault(name, []).append(
            colliding_labels(fit_codebook(features, labels, config, seed=0).codes(features), labels)
        )
    assert left == {"ignore": [2, 2], "split": [0], "centroids": [0]}


def test_a_shared_codebook_counts_no_pairs_across_levels():
    _, features, labels = random_case(7, B=60)
    level = torch.arange(60) % 2
    together = variant_loss(features[:8].clone(), features, labels, **SETTINGS, groups=level)
    relabelled = variant_loss(
        features[:8].clone(),
        features,
        torch.where((level == 1) & (labels != -1), labels + 1000, labels),
        **SETTINGS,
        groups=level,
    )
    assert torch.equal(together.pull, relabelled.pull) and torch.equal(
        together.push, relabelled.push
    )
    book = fit_codebook(
        features,
        labels,
        CodebookConfig(
            n_prototypes=8, steps=20, shuffle_labels=True, init="tracks", collisions="split"
        ),
        seed=0,
        groups=level,
    )
    assert torch.isfinite(book.prototypes).all()
    out = shuffled(labels, torch.Generator().manual_seed(0), level)
    for g in (0, 1):
        assert sorted(out[level == g].tolist()) == sorted(labels[level == g].tolist())
    with pytest.raises(CodebookError, match=r"groups have shape \(3,\)"):
        fit_codebook(features, labels, CodebookConfig(), seed=0, groups=level[:3])


def test_same_seed_same_bits_other_seed_other_start():
    _, features, labels = random_case(4, B=80)
    config = CodebookConfig(n_prototypes=8, steps=40)
    a, b, c = (fit_codebook(features, labels, config, seed=s) for s in (0, 0, 1))
    assert torch.equal(a.prototypes, b.prototypes) and not torch.equal(a.initial, c.initial)


def test_training_lowers_what_it_weighs():
    _, features, labels = random_case(5, B=120, N=10, n_labels=12, unlabelled=0.1, spread=0.9)
    config = CodebookConfig(n_prototypes=24, steps=400)
    with_ccl = fit_codebook(features, labels, config, seed=0)
    without = fit_codebook(
        features, labels, replace(config, lambda_pull=0.0, lambda_push=0.0), seed=0
    )
    assert torch.equal(with_ccl.initial, without.initial)
    assert with_ccl.curves["pull"][-1] < without.curves["pull"][-1]


def test_all_arms_of_an_ablation_start_alike():
    _, features, labels = random_case(7, B=80)
    config = CodebookConfig(n_prototypes=8, steps=3)
    starts = [
        fit_codebook(features, labels, replace(config, **change), seed=0).initial
        for change in ARMS.values()
    ]
    assert len(starts) == 5 and all(torch.equal(starts[0], s) for s in starts)


def test_no_class_is_its_own_confuser():
    """Without drift towards another class an incomplete mask would change nothing."""
    for seed in range(5):
        whole = population(seed, n_views=1, incomplete=0.0)
        broken = population(seed, n_views=1, incomplete=1.0, missing=(0.8, 0.8))
        assert (population_rank(whole) == 0).mean() > 0.9 and (
            population_rank(broken) == 0
        ).mean() < 0.2


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
    assert (
        torch.equal(out == -1, labels == -1)
        and sorted(out.tolist()) == sorted(labels.tolist())
        and not torch.equal(out, labels)
    )


def test_usage_perplexity_and_index_map():
    counts = usage(torch.tensor([0, 0, 3, 3]), 5)
    assert counts.tolist() == [2, 0, 0, 2, 0] and abs(perplexity(counts) - 2) < 1e-9
    maps = index_map(np.array([[0, -1], [1, 1]]), np.array([5, 9]))
    assert maps.tolist() == [[5, -1], [9, 9]]
    assert index_map(np.array([[-1, -1]]), np.zeros(0, np.int64)).tolist() == [[-1, -1]]


def test_mechanism_ccl_gains_and_shuffled_labels_do_not():
    """Planted confusers: the paper's λ and m gain at least 3 points (mean of 5 seeds); meaningless
    labels gain nothing.
    """
    arms = mechanism(CodebookConfig(), seeds=range(5), arms=("baseline", "both", "shuffled"))
    mean = {arm: float(np.mean(values)) for arm, values in arms.items()}
    assert mean["both"] - mean["baseline"] >= 3.0, mean
    assert mean["shuffled"] - mean["baseline"] < 1.0, mean


def test_mechanism_dead_codes_and_collisions_of_a_random_start_are_repaired():
    arms = ("random", "random, split", "random, revive")
    collisions, miou = (
        mechanism(CodebookConfig(steps=200), seeds=range(2), arms=arms, **of)
        for of in ({"measure": population_collisions}, {})
    )
    for arm in arms[1:]:
        assert (
            np.mean(collisions[arm]) < 0.2 * np.mean(collisions["random"])
            and np.mean(miou[arm]) > np.mean(miou["random"]) + 10
        ), arm
