"""Settings: names, types, bounds, documentation, profiles."""

from dataclasses import dataclass, field as nested
from typing import Annotated

import pytest

from cclkit import config, settings
from cclkit.errors import ConfigError
from cclkit.settings import Bound

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


# ----------------------------------------------------------------- bounds beside the setting

POSITIVE = """
    codebook.n_prototypes codebook.lr codebook.temperature codebook.split_every
    gaussians.start_gaussians gaussians.max_gaussians
    field.dim field.iterations field.lr field.feature_lr field.joint_weight field.batch field.top_k
    field.pixels_per_mask query.scale query.temperature
    front_end.simulation.dim front_end.sam2.objects_per_chunk front_end.sam2.image_size
    front_end.sam.points_per_side front_end.sam.points_per_batch front_end.sam.crop_points_divisor
    front_end.sam.stability_offset front_end.clip.batch
""".split()
"""Settings that 0 would make senseless."""
AT_MOST_ONE = """
    evaluation.paper_threshold evaluation.selection_share codebook.split_cosine codebook.ema_decay
    tracks.iou_min tracks.reseed_iou_max tracks.check_iou_min
    masks.predicted_iou_min masks.stability_min masks.overlap_iou_max masks.score_min
    masks.inner_max front_end.sam.box_nms_iou front_end.clip.cone
    front_end.simulation.incomplete_rate front_end.simulation.incomplete_cut
    front_end.simulation.split_rate front_end.simulation.merge_rate
    front_end.simulation.missing_rate front_end.simulation.track_loss_rate
    front_end.simulation.between_object_cosine front_end.simulation.hierarchy
""".split()
"""Shares and cosines, which 2 would make senseless."""
ANY_NUMBER = {"codebook.margin"}
"""Of a cosine: below -1 it pushes always, above 1 never, and both are controls."""
WHOLE_FROM_ZERO = {"seed", "front_end.simulation.seed", "tracks.reseed_every", "tracks.check_every"}
"""What a whole number can be anyway is all that these need."""


def numbers(name):
    return {
        setting: value
        for setting, value, _ in settings.describe(config.profile(name))
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def rules(setting):
    node = config.profile("mini")
    *groups, field = setting.split(".")
    for group in groups:
        node = getattr(node, group)
    return getattr(settings._hint(type(node), field), "__metadata__", ())


@pytest.mark.parametrize("name", ["mini", "paper"])
def test_every_number_has_a_bound_beside_it(name):
    unbound = {s for s in numbers(name) if not any(isinstance(r, Bound) for r in rules(s))}
    assert unbound == ANY_NUMBER | WHOLE_FROM_ZERO
    base = config.profile(name)
    refused = [(s, -1) for s in numbers(name) if s not in ANY_NUMBER]
    refused += [(s, 0) for s in POSITIVE] + [(s, 2) for s in AT_MOST_ONE]
    for setting, value in refused:
        with pytest.raises(ConfigError, match=f"^setting {setting}={value}.* is out of range"):
            base.with_settings({setting: value})
    for setting in numbers(name):
        for value in ("1e999", "1e13", "1" + "0" * 400):
            with pytest.raises(ConfigError, match=f"^setting {setting}="):
                base.with_settings({setting: value})


def test_values_on_a_bound_are_taken():
    for setting in AT_MOST_ONE:
        if setting not in ("codebook.ema_decay", "front_end.clip.cone"):  # below 1
            config.profile("mini", **{setting: 1.0})
        config.profile("mini", **{setting: 0.0})
    config.profile("mini", **{"codebook.n_prototypes": 2**16, "front_end.sam.crop_layers": 0})
    config.profile("mini", **{"codebook.margin": -2.0, "front_end.sam2.image_size": 32})


@pytest.mark.parametrize(
    "setting, names",
    {
        "front_end.masks": "sam simulated",
        "front_end.features": "clip simulated",
        "front_end.propagation": "sam2 simulated geometric none",
        "front_end.sam.model": "mini vit_b vit_l vit_h",
        "front_end.sam.precision": "float32 bfloat16",
        "front_end.sam2.precision": "float32 bfloat16",
        "front_end.clip.crop": "complete langsplat",
        "front_end.clip.prompts": "raw ensemble",
        "front_end.clip.precision": "float32 bfloat16",
        "gaussians.init": "auto depth points random",
        "field.mode": "rasterised cached joint",
        "query.decoding": "hard soft",
        "evaluation.level": "sp wp",
        "codebook.collisions": "ignore split centroids soft",
        "front_end.sam2.model": "mini "
        + " ".join(
            f"{family}_hiera_{size}"
            for family in ("sam2.1", "sam2")
            for size in ("tiny", "small", "base_plus", "large")
        ),
    }.items(),
)
def test_choices(setting, names):
    said = f"^setting {setting}='nothing' is unknown; use one of {', '.join(names.split())}$"
    with pytest.raises(ConfigError, match=said):
        config.profile("mini", **{setting: "nothing"})
    for name in names.split():
        config.profile("mini", **{setting: name})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"front_end.sam2.image_size": 100}, "image_size=100 .* a multiple of 32"),
        ({"front_end.sam.crop_layers": 9}, "crop_layers=9 .* at most 8"),
        ({"front_end.sam.points_per_side": 1}, "crop_points_divisor=2 .*leaves no click of 1"),
        ({"query.canonical": ()}, "at least one phrase, none empty"),
        ({"query.canonical": ("thing", " ")}, "at least one phrase, none empty"),
        ({"codebook.betas": (0.9, float("nan"))}, "betas"),
        ({"field.betas": (0.9, 1.0)}, "two numbers in 0..1"),
        ({"field.betas": (0.9, 0.9, 0.9)}, "two numbers in 0..1"),
        ({"field.mode": "joint", "gaussians.iterations": 0}, "nothing to train .*joint"),
    ],
)
def test_what_is_no_single_number_is_bounded_too(changes, message):
    with pytest.raises(ConfigError, match=message):
        config.profile("mini", **changes)


def test_a_public_clip_has_no_cone_unless_one_is_given():
    other = {"front_end.clip.model": "ViT-B-16"}
    assert config.profile("mini", **other).front_end.clip.cone == 0
    assert (
        config.profile("mini", **other, **{"front_end.clip.cone": 0.2}).front_end.clip.cone == 0.2
    )


# ----------------------------------------------------------------- settings of anybody's own

TABLE = {"one": 1}


@dataclass(frozen=True)
class Inner:
    """Settings of a component."""

    size: Annotated[int, settings.POSITIVE, settings.multiple_of(4)] = 8
    """How large."""
    share: Annotated[float, settings.SHARE] = 0.5
    """How much."""

    def check(self, prefix):
        if self.size > 100 and self.share > 0.9:
            raise settings.out_of_range(f"{prefix}share", self.share, "less with such a size")


@dataclass(frozen=True)
class Outer:
    """Settings of two components."""

    how: Annotated[str, settings.OneOf("auto", table=TABLE)] = "auto"
    """The rule,
    by name.
    """
    widths: tuple[float, ...] = ()
    inner: Inner = nested(default_factory=Inner)

    def check(self, prefix):
        if self.how == "one" and self.inner.size == 4:
            raise settings.out_of_range(f"{prefix}how", self.how, "another size")


def changed(**changes):
    out = Outer()
    for name, value in changes.items():
        out = settings.replaced(out, name.replace("__", "."), value)
    settings.check(out)
    return out


def test_a_table_is_looked_at_when_a_value_is_checked(monkeypatch):
    with pytest.raises(ConfigError, match="'two' is unknown; use one of auto, one$"):
        changed(how="two")
    monkeypatch.setitem(TABLE, "two", 2)
    assert changed(how="two").how == "two"
    with pytest.raises(ConfigError, match="use one of auto, one, two$"):
        changed(how="three")


def test_every_rule_of_a_setting_counts_and_so_do_rules_of_several():
    assert changed(inner__size="12", inner__share=1) == Outer(inner=Inner(12, 1.0))
    assert isinstance(changed(inner__share=1).inner.share, float)
    for changes, message in (
        ({"inner__size": 6}, "inner.size=6 is out of range; expected a multiple of 4"),
        ({"inner__size": 104, "inner__share": 0.95}, "inner.share=0.95 .* less with such a size"),
        ({"inner__size": 4, "how": "one"}, "^setting how='one' .* another size"),
    ):
        with pytest.raises(ConfigError, match=message):
            changed(**changes)


def test_the_declared_type_counts_whatever_the_value_is():
    """An empty tuple does not say of what."""
    assert changed(widths=(0.5, 2)).widths == (0.5, 2) and changed(widths="3").widths == (3,)
    for bad in ("('a',)", ("a",), "(True,)", "[[1]]"):
        with pytest.raises(ConfigError, match=r"widths=.* wrong type; expected tuple like \(\)"):
            changed(widths=bad)
    with pytest.raises(ConfigError, match="inner.share=True has the wrong type"):
        changed(inner__share=True)


def test_rows_have_the_text_under_the_field():
    assert settings.describe(Outer()) == [
        ("how", "auto", "The rule, by name."),
        ("widths", (), ""),
        ("inner.size", 8, "How large."),
        ("inner.share", 0.5, "How much."),
    ]
    assert settings.as_dict(Outer(widths=(1.0,))) == {
        "how": "auto",
        "widths": [1.0],
        "inner": {"size": 8, "share": 0.5},
    }
