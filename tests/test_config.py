"""Settings: names, types, documentation, profiles."""

import pytest

from cclkit import config
from cclkit.errors import ConfigError

NO_CLAIM = {
    "profile",
    "seed",
    "device",
    "codebook.shuffle_labels",
    *(
        f"front_end.{model}.{name}"
        for model in ("sam", "clip", "sam2")
        for name in ("checkpoint", "precision")
    ),
    "front_end.sam.points_per_batch",
    "front_end.clip.batch",
    "front_end.sam2.objects_per_chunk",
    "front_end.sam2.offload",
}
"""Where a file lies, what a run costs, and our control: settings that no paper has a say in, like
all of the simulation's.
"""


def test_every_setting_is_documented_and_says_where_it_comes_from():
    for name, _, meaning in settings.describe(config.profile("mini")):
        assert len(meaning) > 12, f"{name} has no docstring"
        if name not in NO_CLAIM and not name.startswith("front_end.simulation."):
            assert (
                "Paper: " in meaning
                or ("Paper does not say (" in meaning and "because" in meaning)
                or "Paper shows none" in meaning
            ), f"{name} does not say what the paper says"


def test_published_constants():
    paper = config.profile("paper")
    c = paper.codebook
    assert (c.lambda_pull, c.lambda_push, c.margin, c.lr, c.betas) == (
        0.25,
        0.25,
        0.7,
        1e-3,
        (0.9, 0.999),
    )
    assert (
        paper.tracks.iou_min == 0.5
        and paper.field.dim == 8
        and paper.field.iterations == 30_000
        and paper.field.lr == 1e-3
    )


def test_values_are_read_in_the_type_of_the_default():
    c = config.profile("mini").with_settings(
        settings.parse_settings(
            [
                "codebook.margin=1",
                "field.hidden=32",
                "codebook.shuffle_labels=true",
                "codebook.init=random",
                "seed=3",
            ]
        )
    )
    assert c.codebook.margin == 1.0 and isinstance(c.codebook.margin, float)
    assert (
        c.field.hidden == (32,)
        and c.codebook.shuffle_labels is True
        and c.codebook.init == "random"
        and c.seed == 3
    )


@pytest.mark.parametrize(
    "setting, message",
    [
        ("codebook.marign=0.5", "did you mean 'codebook.margin'"),
        ("codebok.margin=0.5", "did you mean 'codebook.margin'"),
        ("codebook=1", "is a group"),
        ("codebook.margin.x=1", "single value"),
        ("codebook.margin=wide", "expected float"),
        ("codebook.margin=nan", "margin"),
        ("codebook.n_prototypes=2.5", "expected int"),
        ("codebook.shuffle_labels=1", "expected bool"),
        ("codebook.margin", "NAME=VALUE"),
        ("codebook.margin={[]:1}", "cannot be read"),
        ("codebook.betas=0.9", "expected two numbers"),
        ("codebook.betas=(1.5,0.9)", "expected two numbers"),
        ("codebook.normalisation=sums", "use one of pairs, labels"),
        ("codebook.update=sgd", "use one of adam, ema"),
        ("codebook.collisions=merge", "use one of ignore, split, centroids"),
        ("codebook.init=best", "use one of kmeans, random, tracks"),
        ("codebook.ema_decay=1", "at least 0 and below 1"),
        ("codebook.batch=-1", "whole number"),
        ("codebook.revive_every=-1", "whole number"),
        ("codebook.split_every=0", "a number above 0"),
        ("codebook.split_cosine=1.5", "a number in 0..1"),
        ("codebook.shared=1", "expected bool"),
        ("field.hidden=(-3,)", "widths above 0"),
        ("field.hidden=(3.5,)", "expected tuple"),
        ("query.canonical=(1,2)", "expected tuple"),
        ("seed=-1", "whole number"),
        ("codebook.n_prototypes=100000000000", "whole number"),
        ("codebook.n_prototypes=100000000", "at most 65536"),
        ("query.rule=best", "use one of relevancy, softmax"),
        (
            "evaluation.protocol=mine",
            (
                "use one of auto, langsplat, langsplat_v2, opengaussian, ovs3d_argmax, ovs3d_occam,"
                " legaussians, paper, ovs3d_langsplat"
            ),
        ),
        ("evaluation.views=test", "use one of all, held_out, training"),
        ("evaluation.truth=exact", "use one of labels, dense"),
        ("evaluation.flat_maps=skip", "use one of error, empty"),
        ("evaluation.paper_threshold=1.5", "a number in 0..1"),
        ("field.init=zero", "use one of random, votes"),
        ("device=tpu", "use one of cpu, cuda"),
        ("profile=paper", "choose it with --profile"),
    ],
)
def test_mistakes_are_named(setting, message):
    with pytest.raises(ConfigError, match=message):
        config.profile("mini").with_settings(settings.parse_settings([setting]))


@pytest.mark.parametrize(
    "setting, value",
    [
        ("codebook.n_prototypes", 0),
        ("codebook.lr", -1.0),
        ("codebook.lambda_pull", -0.1),
        ("field.iterations", 0),
        ("tracks.iou_min", 1.5),
        ("query.scale", 0.0),
        ("query.temperature", 0.0),
    ],
)
def test_values_out_of_range_are_refused(setting, value):
    with pytest.raises(ConfigError, match=setting):
        config.profile("mini").with_settings({setting: value})


def test_joint_training_has_no_gaussians_to_vote_for():
    with pytest.raises(ConfigError, match="field.init=votes.*use field.mode=rasterised"):
        config.profile("mini").with_settings({"field.mode": "joint", "field.init": "votes"})


def test_unknown_profile():
    with pytest.raises(ConfigError, match="use 'mini' or 'paper'"):
        config.profile("maxi")


def test_profiles_differ_in_values_only():
    names = [[r[0] for r in settings.describe(config.profile(p))] for p in ("mini", "paper")]
    assert names[0] == names[1]
