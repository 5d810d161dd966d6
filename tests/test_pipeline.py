"""All stages on a tiny exact scene: content of artefacts, staleness, resume, determinism, the
command line.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_plane_scene

from cclkit import cli, config
from cclkit.errors import CclkitError, ConfigError, EvaluationError, GaussiansError, QueryError
from cclkit.gaussians.rasterize import project, rasterize, splat_features
from cclkit.method.masks import LEVELS
from cclkit.runs.graph import GRAPH
from cclkit.runs.run import Run
from cclkit.runs.store import changed_files
from cclkit.scenes.load import load_scene
from lab.experiments import field_modes

STAGES = tuple(s for s in GRAPH if s != "blending")
"""The stages of a run with the default mode of the field."""
SMALL = {
    "front_end.masks": "simulated",
    "front_end.features": "simulated",
    "front_end.propagation": "simulated",
    "gaussians.iterations": 5,
    "gaussians.start_gaussians": 1500,
    "gaussians.densify": False,
    "field.iterations": 60,
    "codebook.steps": 60,
    "codebook.n_prototypes": 16,
    "field.hidden": (32,),
}


@pytest.fixture(scope="module")
def scene_folder(tmp_path_factory):
    return write_plane_scene(tmp_path_factory.mktemp("plane"))


@pytest.fixture(scope="module")
def run(scene_folder, tmp_path_factory):
    out = Run(scene_folder, config.profile("mini", **SMALL), tmp_path_factory.mktemp("out"))
    lines = []
    out.to(report=lines.append)
    assert len(lines) == len(STAGES)
    return out


def test_artefacts_fit_together(run):
    scene = run.scene
    features, labels, level = run.training_set()
    assert (
        len(features)
        == len(labels)
        == len(level)
        == sum(len(run.masks(v)) for v in scene.training_views)
    )
    assert np.allclose(np.linalg.norm(features, axis=1), 1, atol=2e-3)
    books = run.codebooks()
    for v in scene.training_views:
        masks, tracks, codes, maps = (
            run.masks(v),
            run.tracks(v),
            run.mask_codes(v),
            run.index_maps(v),
        )
        assert len(masks) == len(tracks.label) == len(codes) == len(run.features(v))
        for n, name in enumerate(LEVELS):
            label = masks.label_map(name)
            assert np.array_equal(maps[n] >= 0, label >= 0)
            for i in np.unique(label[label >= 0]):
                assert (maps[n][label == i] == codes[i]).all()
                expected = books[name].codes(torch.from_numpy(run.features(v)[i : i + 1]))
                assert codes[i] == int(expected)


def test_a_shared_codebook_serves_both_levels(run):
    shared = run.vary(codebook__shared=True)
    books = shared.codebooks()
    assert torch.equal(books["sp"].prototypes, books["wp"].prototypes) and not torch.equal(
        books["sp"].prototypes, run.codebooks()["sp"].prototypes
    )
    codes = np.concatenate([shared.mask_codes(v) for v in run.scene.training_views])
    assert np.array_equal(codes, books["sp"].codes(torch.from_numpy(run.training_set()[0])).numpy())


def test_field_codes_and_relevancy_have_the_views_shape(run):
    view = run.scene.views[0]
    h, w = view.camera.height, view.camera.width
    codes = run.codes(view)
    assert codes.shape == (2, h, w) and codes.min() >= 0 and codes.max() < 16
    maps = run.relevancy(view, ["bear", "red apple"])
    assert maps.shape == (2, 2, h, w) and 0 <= maps.min() and maps.max() <= 1


PERFECT = {
    f"front_end__simulation__{k}": 0.0
    for k in (
        "incomplete_rate",
        "split_rate",
        "merge_rate",
        "missing_rate",
        "track_loss_rate",
        "feature_noise",
        "text_noise",
    )
}


def test_other_filters_do_not_ask_the_models_again(run):
    strict = run.vary(masks__score_min=0.9)
    assert strict.ensure("candidates").reused and not strict.ensure("masks").reused
    assert (
        strict.ensure("masks").record["counts"]["kept"]
        < run.ensure("masks").record["counts"]["kept"]
    )


def test_without_imperfection_the_field_learns_its_labels_and_answers(run):
    """Consistent labels can be fitted, so what remains wrong elsewhere is due to the labels."""
    perfect = run.vary(**PERFECT, front_end__simulation__jitter_px=0, field__iterations=150)
    curves = perfect.field_curves()
    assert curves["loss"][-10:].mean() < 0.15 * curves["loss"][:10].mean()
    assert curves["accuracy"][-10:].mean() > 0.9
    assert (
        perfect.evaluation()["aggregates"]["pooled"]["miou"]
        > run.evaluation()["aggregates"]["pooled"]["miou"] + 0.05
    )


def test_the_gaussians_of_a_text_show_what_it_names(run):
    perfect = run.vary(**PERFECT, front_end__simulation__jitter_px=0, field__iterations=150)
    g, view = perfect.gaussians(), perfect.scene.views[1]
    ids = perfect.scene.ground_truth.ids(view, "whole")
    for text, own, other in (("red apple", 5, 6), ("green apple", 6, 5)):
        keep, level = perfect.select_gaussians(text)
        assert keep.shape == (len(g),) and 0 < keep.sum() < len(g) / 2 and level in LEVELS
        alone = rasterize(g.select(keep), view.camera).alpha.numpy()
        assert alone[ids == own].mean() > 0.6 > 0.2 > alone[ids == other].mean()


def test_selecting_gaussians_needs_a_value_for_each(run):
    g = run.gaussians()
    keep = torch.arange(len(g)) % 3 == 0
    some = g.select(keep)
    assert (
        len(some) == int(keep.sum())
        and torch.equal(some.means, g.means[keep])
        and torch.equal(some.sh, g.sh[keep])
    )
    for wrong in (keep[1:], keep.long()):
        with pytest.raises(GaussiansError, match="one value for each Gaussian"):
            g.select(wrong)


def test_evaluation_covers_every_labelled_unit(run):
    e = run.evaluation()
    units = {(r["view"], r["query"]) for r in e["rows"]}
    assert units == {(v, o.category) for v, objects in run.scene.labels.items() for o in objects}
    assert (
        e["protocol"] == "langsplat"
        and abs(e["aggregates"]["pooled"]["miou"] - np.mean([r["iou"] for r in e["rows"]])) < 1e-12
    )


def test_every_protocol_scores_one_field(run):
    from cclkit.evaluation.protocols import PROTOCOLS
    from cclkit.notebook.experiments import every_protocol, protocol_traps
    from cclkit.notebook.index_maps import index_map_miou

    got = every_protocol(run, flat_maps="empty")
    assert list(got) == list(PROTOCOLS) and [n for n, e in got.items() if isinstance(e, str)] == [
        "ovs3d_argmax"
    ]
    e = run.evaluation()
    assert got["langsplat"].rows == e["rows"] and got["langsplat"].constants == e["constants"]
    scores = {n: x.aggregates["pooled"]["miou"] for n, x in got.items() if not isinstance(x, str)}
    assert (
        all(0 <= v <= 1 for v in scores.values())
        and len({round(v, 6) for v in scores.values()}) >= 4
    ), scores
    # settings for looking at scenes don't reach a named protocol; those of the paper's do
    assert run.vary(query__scale=3.0, query__rule="softmax").key("evaluation") == run.key(
        "evaluation"
    )
    paper = run.vary(evaluation__protocol="paper")
    assert (
        run.vary(evaluation__protocol="paper", query__temperature=0.02).key("evaluation")
        != paper.key("evaluation")
        != run.key("evaluation")
    )
    assert (
        paper.evaluation()["constants"]["temperature"] == 0.1
        and paper.evaluation()["rows"] == got["paper"].rows
    )
    first = protocol_traps(run)[0]
    assert first[1] == pytest.approx(100 * e["aggregates"]["pooled"]["miou"], abs=1e-9) and first[
        2
    ] == pytest.approx(100 * e["aggregates"]["pooled"]["accuracy"], abs=1e-9)
    assert 0 <= index_map_miou(run.vary(evaluation__protocol="legaussians")) <= 100
    with pytest.raises(EvaluationError, match="selects Gaussians in 3D"):
        index_map_miou(run.vary(evaluation__protocol="opengaussian"))


def test_relevancy_in_3d_is_the_mean_of_the_pixels_a_gaussian_makes_up(run):
    """Against one Gaussian's alpha T in every training view, found by rendering a colour that only
    it has.
    """
    texts, g = ["bear", "red apple"], run.gaussians()
    lifted = run.lifted_relevancy(texts)
    assert lifted.shape == (2, 2, len(g))
    for one in (int(torch.nonzero(~lifted[0, 0].isnan())[k]) for k in (0, 7)):
        sums, weights = torch.zeros(2, 2), 0.0
        for view in run.scene.training_views:
            share = splat_features(
                project(g, view.camera),
                torch.nn.functional.one_hot(torch.tensor(one), len(g)).float()[:, None],
            )[..., 0]  # [H, W]
            sums, weights = (
                sums + (run.relevancy(view, texts) * share).sum((-1, -2)),
                weights + share.sum(),
            )
        torch.testing.assert_close(lifted[:, :, one], sums / weights, rtol=1e-4, atol=1e-5)
    hidden = lifted[0, 0].isnan()
    assert torch.equal(hidden, lifted.isnan().any(0).any(0))
    for text, per_level in zip(texts, lifted):
        keep, level = run.select_gaussians(text)
        best = int(per_level.nan_to_num(-1).amax(1).argmax())
        low, high = per_level[best, ~hidden].aminmax()
        assert level == LEVELS[best] and not (keep & hidden.numpy()).any()
        assert np.array_equal(keep, (per_level[best] > low + 0.7 * (high - low)).numpy())


def test_silhouettes_are_of_the_selected_gaussians_alone(run):
    view, texts, g = run.scene.views[0], ["bear", "red apple"], run.gaussians()
    pictures = run.silhouettes(view, texts)
    assert pictures.shape == (2, view.camera.height, view.camera.width) and set(
        np.unique(pictures)
    ) <= {0, 255}
    kept = [run.select_gaussians(t)[0] for t in texts]
    for picture, keep in zip(pictures, kept):
        assert 0 < keep.sum() < len(g)
        np.testing.assert_array_equal(
            picture > 0, rasterize(g.select(keep), view.camera).alpha.numpy() > 0.7
        )
    strict = run.vary(evaluation__selection_share=1.0)
    assert not strict.silhouettes(view, texts).any()  # nothing selected is an empty picture
    # a query's settings are for looking; a protocol brings its own
    other = run.vary(query__rule="softmax")
    np.testing.assert_array_equal(other.silhouettes(view, texts[::-1]), pictures[::-1])


def test_a_second_run_finds_everything(run, scene_folder):
    again = Run(scene_folder, run.config, run.store.root)
    for stage in STAGES:
        assert again.ensure(stage).reused, stage


def test_a_setting_changes_its_stage_and_what_follows_only(run):
    before = {s: run.key(s) for s in STAGES}
    cases = {
        "codebook.margin": 0.6,
        "masks.min_area_px": 25,
        "tracks.iou_min": 0.6,
        "gaussians.iterations": 6,
        "field.iterations": 61,
        "evaluation.protocol": "paper",
        "front_end.simulation.seed": 5,
    }
    first = {
        "codebook.margin": "codebook",
        "masks.min_area_px": "masks",
        "tracks.iou_min": "tracks",
        "gaussians.iterations": "gaussians",
        "field.iterations": "field",
        "evaluation.protocol": "evaluation",
        "front_end.simulation.seed": "candidates",
    }
    for setting, value in cases.items():
        changed = run.vary(**{setting.replace(".", "__"): value})
        stale = {first[setting]}
        for stage in STAGES:
            if stale & set(run.engine.inputs(stage)):
                stale.add(stage)
        if setting.startswith("front_end"):
            stale |= {"features", "tracks"}
        assert {s for s in STAGES if changed.key(s) != before[s]} == stale, setting


def test_scene_content_is_part_of_every_key(run, scene_folder, tmp_path):
    other = write_plane_scene(tmp_path)
    same = Run(other, run.config, tmp_path / "a")
    # the same bytes elsewhere are the same scene
    assert all(same.key(s) == run.key(s) for s in STAGES)
    image = other / "images" / "frame_00002.jpg"
    image.write_bytes(image.read_bytes() + b"\0")
    changed = Run(other, run.config, tmp_path / "b")
    assert all(changed.key(s) != run.key(s) for s in STAGES)


def test_same_seed_same_machine_identical_artefacts(run, scene_folder, tmp_path):
    """Everything computed twice, in another folder and another process: the same bytes."""
    settings = [x for k, v in SMALL.items() for x in ("--set", f"{k}={v}")]
    script = "import sys; from cclkit.cli import main; sys.exit(main(sys.argv[1:]))"
    subprocess.run(
        [
            sys.executable,
            "-c",
            script,
            "run",
            "--scene",
            str(scene_folder),
            "--out",
            str(tmp_path),
            *settings,
        ],
        check=True,
        capture_output=True,
    )
    other = Run(scene_folder, run.config, tmp_path)
    for stage in STAGES:
        a, b = run.ensure(stage), other.ensure(stage)
        assert b.reused and changed_files(b) == []
        assert {n: f["sha256"] for n, f in a.record["files"].items()} == {
            n: f["sha256"] for n, f in b.record["files"].items()
        }, stage


def test_a_killed_mask_stage_goes_on_with_the_next_view(scene_folder, tmp_path, monkeypatch):
    r = Run(scene_folder, config.profile("mini", **SMALL), tmp_path)
    real, seen = r.front_end.masks.propose, []

    def propose(view):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(view.name)
        return real(view)

    monkeypatch.setattr(r.front_end.masks, "propose", propose)
    with pytest.raises(KeyboardInterrupt):
        r.ensure("candidates")
    kept = {p.name: p.stat().st_mtime_ns for p in tmp_path.rglob("frame_*.npz")}
    assert len(kept) == 3
    again = Run(scene_folder, r.config, tmp_path)
    again.ensure("candidates")
    now = {p.name: p.stat().st_mtime_ns for p in tmp_path.rglob("frame_*.npz")}
    assert len(now) == 6 and all(now[n] == t for n, t in kept.items())


def test_a_truncated_view_file_is_computed_again(scene_folder, tmp_path):
    r = Run(scene_folder, config.profile("mini", **SMALL), tmp_path)
    path = r.ensure("masks").folder / "frame_00003.npz"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    assert (
        Run(scene_folder, r.config, tmp_path).ensure("masks").path("frame_00003.npz").read_bytes()
        == good
        == path.read_bytes()
    )


def test_a_deleted_earlier_stage_is_computed_again_when_a_later_one_needs_it(
    scene_folder, tmp_path
):
    import shutil

    r = Run(scene_folder, config.profile("mini", **SMALL), tmp_path)
    r.ensure("codebook")
    shutil.rmtree(tmp_path / "masks")
    again = Run(scene_folder, r.config, tmp_path).vary(codebook__margin=0.6)
    assert not again.ensure("codebook").reused and (tmp_path / "masks").is_dir()


def test_cached_mode_trains_on_a_blending_cache_of_its_own(run, monkeypatch):
    small = {
        "field__mode": "cached",
        "field__pixels_per_mask": 40,
        "field__batch": 256,
        "field__top_k": 8,
    }
    cached = run.vary(**small)
    assert (
        cached.stages()
        == (*STAGES[: STAGES.index("field")], "blending", *STAGES[STAGES.index("field") :])
        and run.stages() == STAGES
    )
    assert {s for s in STAGES if cached.key(s) != run.key(s)} == {"field", "evaluation"}
    lines = []
    cached.to(report=lines.append)
    assert [line.split()[0] for line in lines] == list(cached.stages())
    cache, record = cached.blending_cache(), cached.ensure("blending").record
    assert (
        record["n_pixels"] == len(cache)
        and record["truncation"] == cache.truncation()
        and cache.ids.shape[1] == 8
    )
    assert (
        cached.evaluation()["aggregates"]["pooled"]["miou"]
        > 0.5 * run.evaluation()["aggregates"]["pooled"]["miou"]
    )
    # the cache knows masks and Gaussians, not codes: other codebooks and lengths of training share
    # it
    for other in ({"codebook__margin": 0.6}, {"field__iterations": 61}, {"field__batch": 128}):
        assert cached.vary(**other).key("blending") == cached.key("blending") and cached.vary(
            **other
        ).key("field") != cached.key("field")
    for other in (
        {"masks__min_area_px": 25},
        {"gaussians__iterations": 6},
        {"field__top_k": 4},
        {"field__area_weighted": False},
        {"seed": 1},
    ):
        assert cached.vary(**other).key("blending") != cached.key("blending")
    # a setting of the cache is nothing to a field without one
    assert all(
        run.vary(**{k: v}).key("field") == run.key("field")
        for k, v in small.items()
        if k != "field__mode"
    )


def test_joint_mode_makes_gaussians_and_field_in_one_stage(run, tmp_path):
    plain = run.vary(gaussians__iterations=20)
    joint = plain.vary(field__mode="joint")
    assert joint.stages() == tuple(s for s in STAGES if s != "gaussians")
    assert {s for s in STAGES if joint.key(s) != plain.key(s)} == {"field", "evaluation"}
    lines = []
    joint.to(report=lines.append)
    assert [line.split()[0] for line in lines] == list(joint.stages())
    g, field = joint.gaussians(), joint.field()
    assert field.features.shape[1] == len(g) == joint.ensure("field").record[
        "n_gaussians"
    ] and not torch.equal(g.means, plain.gaussians().means)
    assert (
        len(joint.field_curves()["loss"]) == joint.reconstruction_history()["iteration"][-1] == 20
    )
    assert set(joint.ensure("field").record["files"]) == {
        "gaussians.ply",
        "history.npz",
        "field.safetensors",
        "curves.npz",
    }
    assert joint.evaluation()["aggregates"]["pooled"]["miou"] > 0
    # frozen to the semantic loss, the geometry is the reconstruction's, to the last bit of the file
    apart = joint.vary(field__joint_geometry=False)
    assert (
        apart.ensure("field").path("gaussians.ply").read_bytes()
        == plain.ensure("gaussians").path("gaussians.ply").read_bytes()
    )
    # what only other modes read is nothing to it, what the reconstruction reads is
    for name, value in (("field__iterations", 61), ("field__batch", 128), ("field__top_k", 4)):
        assert joint.vary(**{name: value}).key("field") == joint.key("field")
    for name, value in (("gaussians__iterations", 21), ("field__joint_weight", 2.0), ("seed", 1)):
        assert joint.vary(**{name: value}).key("field") != joint.key("field")
    assert run.vary(field__joint_weight=2.0).key("field") == run.key("field")
    by_depth = joint.vary(front_end__propagation="geometric")
    assert (
        by_depth.stages() == STAGES
        and "gaussians" in by_depth.engine.inputs("tracks")
        and "gaussians" not in by_depth.engine.inputs("evaluation")
    )
    assert config.profile("paper").field.mode == "joint"


def test_models_are_shared_unless_they_read_a_stage(run):
    """Tracks by depth ask for the Gaussians of their own run, not of the one it was varied from."""
    assert run.vary(codebook__margin=0.6).front_end is run.front_end
    assert run.vary(masks__min_area_px=25).front_end is not run.front_end
    by_depth = run.vary(front_end__propagation="geometric")
    other = by_depth.vary(gaussians__iterations=8)
    view = run.scene.views[0]
    depths = [r.front_end.propagator.depth(view) for r in (by_depth, other)]
    assert other.front_end is not by_depth.front_end
    assert not np.array_equal(*depths)


def test_what_was_read_is_remembered(run, monkeypatch):
    again = Run(run.scene, run.config, run.store.root)
    view, other = again.scene.training_views[:2]
    first = [again.codebooks(), again.field(), again.gaussians(), again.codes(view)]
    first += [again.masks(view), again.features(view)]
    monkeypatch.setattr("cclkit.runs.store.file_digest", lambda path: pytest.fail("read again"))
    second = [again.codebooks(), again.field(), again.gaussians(), again.codes(view)]
    second += [again.masks(view), again.features(view)]
    assert all(a is b for a, b in zip(first, second))
    monkeypatch.undo()
    assert again.masks(other) is not again.masks(view)


def test_the_field_study_compares_arms_at_equal_iterations_and_equal_time(run):
    small = run.vary(gaussians__iterations=15, field__pixels_per_mask=30, field__batch=128)
    arms = ("joint", "frozen, whole views", "frozen, cached, K = 4")
    rows = field_modes.field_study(small, iterations=15, arms=arms)
    assert [(r["arm"], r["equal"]) for r in rows] == [
        (a, e) for e in ("iterations", "time") for a in arms
    ]
    assert all(r["iterations"] == 15 for r in rows[:3]) and rows[4]["iterations"] == 15
    seconds = {
        arm: (
            small.vary(field__iterations=15, **field_modes.FIELD_ARMS[arm])
            .ensure("field")
            .record["wall_time_s"]
        )
        for arm in arms[1:]
    }
    build = small.vary(**field_modes.FIELD_ARMS[arms[2]]).ensure("blending").record["wall_time_s"]
    assert (
        rows[5]["iterations"] == max(1, round(15 * (seconds[arms[1]] - build) / seconds[arms[2]]))
        and rows[2]["seconds"] == seconds[arms[2]] + build
    )
    assert all(
        0 < r["loss"] < 10
        and -1 <= r["kappa"] <= 1
        and 0 <= r["miou"] <= 100
        and r["seconds"] > 0
        and r["memory_mb"] > 10
        for r in rows
    )
    longer = run.vary(**PERFECT, front_end__simulation__jitter_px=0, field__iterations=150)
    assert field_modes.field_cross_entropy(longer) < field_modes.field_cross_entropy(
        small.vary(field__iterations=15)
    )
    assert field_modes.view_kappa(longer) > 0.5
    with pytest.raises(ConfigError, match="lack 'frozen, whole views'"):
        field_modes.field_study(small, iterations=1, arms=("joint",))


def test_time_to_equal_miou_stops_at_the_first_training_that_reaches_it(run):
    small = run.vary(gaussians__iterations=15, field__pixels_per_mask=30, field__batch=128)
    whole, *every = field_modes.time_to_equal(small, iterations=8, doublings=2)
    assert whole["iterations"] == 8 and whole["reached"] and whole["times_faster"] == 1
    cached = [r for r in every if r["arm"] == "frozen, cached, K = 16"]
    assert (
        list(dict.fromkeys(r["arm"] for r in every)) == list(field_modes.EQUAL_ARMS)
        and every[len(cached)]["iterations"] == 2
    )
    assert [r["iterations"] for r in cached] == [2, 3, 4, 6, 8, 11, 16, 23, 32][
        : len(cached)
    ] and not any(r["reached"] for r in cached[:-1])
    assert (cached[-1]["reached"] or len(cached) == 9) and all(
        r["reached"] == (r["miou"] >= whole["miou"]) for r in cached
    )
    own = small.vary(**field_modes.FIELD_ARMS["frozen, cached, K = 16"], field__iterations=2)
    assert (
        cached[0]["seconds"]
        == own.ensure("blending").record["wall_time_s"] + own.ensure("field").record["wall_time_s"]
    )
    assert cached[0]["times_faster"] == whole["seconds"] / cached[0]["seconds"]


def test_held_out_views_are_never_used_for_training(tmp_path):
    folder = write_plane_scene(tmp_path)
    (folder / "scene.json").write_text(json.dumps({"held_out": ["frame_00002.jpg"]}))
    r = Run(folder, config.profile("mini", **SMALL), tmp_path / "out")
    r.ensure("tracks")
    assert not list((tmp_path / "out" / "masks").rglob("frame_00002*"))
    with pytest.raises(CclkitError, match="held out of training"):
        r.index_maps("frame_00002.jpg")
    assert r.codes("frame_00002.jpg").shape[0] == 2  # but the field can be asked
    assert any(row["held_out"] for row in r.evaluation()["rows"])


def test_a_level_without_masks_runs_through(scene_folder, tmp_path, monkeypatch):
    r = Run(scene_folder, config.profile("mini", **SMALL), tmp_path)
    real = r.front_end.masks.propose

    def only_whole(view):
        c = real(view)
        k = c.output == 2
        return type(c)(c.masks[k], c.output[k], c.predicted_iou[k], c.stability[k])

    monkeypatch.setattr(r.front_end.masks, "propose", only_whole)
    assert (r.index_maps(r.scene.views[0])[0] == -1).all()
    assert len(r.codebooks()["sp"].prototypes) == 0
    maps = r.relevancy(r.scene.views[0], ["bear"])
    assert (maps[0, 0] == 0).all() and maps[0, 1].max() > 0
    assert r.select_gaussians("bear")[1] == "wp"  # the level that has something to say
    assert r.silhouettes(r.scene.views[0], ["bear"]).shape[0] == 1


def test_soft_decoding_is_the_mean_over_codes(run):
    soft, view, texts = run.vary(query__decoding="soft"), run.scene.views[0], ["bear", "red apple"]
    maps = soft.relevancy(view, texts)
    field, books = run.field(), run.codebooks()
    rendered = field.render(run.gaussians(), view.camera)
    for n, _level in enumerate(LEVELS):
        p = field.decoders[n](rendered[n]).softmax(-1)  # [H, W, N]
        # [P, N]
        each = torch.stack(
            [
                run.relevancy(view, texts, code_maps=np.full((2, 1, 1), code))[:, n, 0, 0]
                for code in range(p.shape[-1])
            ],
            1,
        )
        torch.testing.assert_close(
            maps[:, n], torch.einsum("hwn,pn->phw", p, each), rtol=1e-4, atol=1e-5
        )
    assert (
        maps.shape == run.relevancy(view, texts).shape
        and not torch.equal(maps, run.relevancy(view, texts))
        and len(books["sp"].prototypes) == p.shape[-1]
    )
    # protocols decode as published
    assert soft.key("evaluation") == run.key("evaluation") and soft.key("field") == run.key("field")


def test_softmax_rule_and_unknown_rule(run):
    view = run.scene.views[0]
    soft = run.vary(query__rule="softmax").relevancy(view, ["bear"])
    assert 0 < soft.max() <= 1 and not torch.equal(soft, run.relevancy(view, ["bear"]))
    with pytest.raises(ConfigError, match="query.rule='best'"):
        run.vary(query__rule="best")
    with pytest.raises(QueryError, match="empty"):
        run.relevancy(view, [" "])
    with pytest.raises(QueryError, match="no text"):
        run.relevancy(view, ["\udcff"])


def test_a_scene_without_labels_cannot_be_evaluated_but_runs(scene_folder, tmp_path):
    import shutil

    folder = tmp_path / "bare"
    shutil.copytree(scene_folder, folder)
    r = Run(load_scene(folder), config.profile("mini", **SMALL), tmp_path / "out")
    assert r.scene.layout == "colmap"
    lines = []
    r.to(report=lines.append)
    assert "skipped" in lines[-1]
    with pytest.raises(EvaluationError, match="nothing to score"):
        r.ensure("evaluation")


# ----------------------------------------------------------------- the command line


def test_command_line_run_query_evaluate(run, scene_folder, capsys):
    settings = [x for k, v in SMALL.items() for x in ("--set", f"{k}={v}")]
    common = ["--scene", str(scene_folder), "--out", str(run.store.root), *settings]
    assert cli.main(["run", *common]) == 0
    out = capsys.readouterr().out
    assert "simulated front end" in out and "| bear " in out and "mIoU" in out
    assert cli.main(["query", *common, "red apple", "--view", "frame_00001.jpg"]) == 0
    (folder,) = (run.store.root / "queries").glob("red_apple_*")
    answer = json.loads((folder / "answer.json").read_text())
    assert (
        set(answer["views"]) == {"frame_00001.jpg"}
        and (folder / "frame_00001_mask.png").exists()
        and (folder / "frame_00001_overlay.png").exists()
    )
    assert answer["film"] == "overlays.webm" and (folder / "overlays.webm").stat().st_size > 0
    assert cli.main(["evaluate", *common]) == 0 and "mIoU" in capsys.readouterr().out
    assert (
        cli.main(["evaluate", *common, "--protocol", "legaussians"]) == 0
        and "protocol legaussians" in capsys.readouterr().out
    )
    assert (
        cli.main(["evaluate", *common, "--protocol", "ovs3d_argmax"]) == 1
        and "lets all classes compete" in capsys.readouterr().err
    )
    record = json.loads((run.store.root / "run.json").read_text())
    assert set(record["stages"]) == set(STAGES) and record["peak_memory_mb"] > 0


def test_the_paper_profile_is_refused_without_a_gpu(scene_folder, tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert (
        cli.main(
            [
                "run",
                "--scene",
                str(scene_folder),
                "--out",
                str(tmp_path / "o"),
                "--profile",
                "paper",
            ]
        )
        == 1
    )
    assert "needs a CUDA device" in capsys.readouterr().err and not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--set", "codebook.marign=1"], "did you mean 'codebook.margin'"),
        (["--profile", "maxi"], "unknown profile"),
        (["--until", "dinner"], "unknown stage 'dinner'"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(
    scene_folder, tmp_path, capsys, arguments, message
):
    assert (
        cli.main(["run", "--scene", str(scene_folder), "--out", str(tmp_path / "o"), *arguments])
        == 1
    )
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_missing_scene_unwritable_output_and_unknown_view(scene_folder, run, tmp_path, capsys):
    assert (
        cli.main(["run", "--scene", str(tmp_path / "nowhere"), "--out", str(tmp_path / "o")]) == 1
    )
    assert "nowhere" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert (
        cli.main(["run", "--scene", str(scene_folder), "--out", str(tmp_path / "file" / "o")]) == 1
    )
    assert "choose another --out" in capsys.readouterr().err
    assert (
        cli.main(
            [
                "query",
                "--scene",
                str(scene_folder),
                "--out",
                str(run.store.root),
                "bear",
                "--view",
                "x.jpg",
            ]
        )
        == 1
    )
    assert "no view named 'x.jpg'" in capsys.readouterr().err


def test_fresh_deletes_the_run_folder_only_when_asked(scene_folder, tmp_path, capsys):
    arguments = [
        "run",
        "--scene",
        str(scene_folder),
        "--out",
        str(tmp_path / "o"),
        "--until",
        "masks",
    ]
    assert cli.main(arguments) == 0
    assert cli.main(arguments) == 0 and "found" in capsys.readouterr().out.splitlines()[-3]
    assert cli.main([*arguments, "--fresh"]) == 0 and "done" in capsys.readouterr().out


def test_the_benchmark_writes_a_row_per_scene(scene_folder, tmp_path, monkeypatch):
    from cclkit.notebook import measured
    from cclkit.notebook.index_maps import index_map_miou
    from cclkit.notebook.population import ARMS
    from lab.experiments import benchmark as b

    monkeypatch.setenv("CCLKIT_RESULTS", str(tmp_path))
    tables, small = tmp_path / "tables", config.profile("mini", **SMALL)
    rows = b.benchmark(
        [str(scene_folder)], small, tables, seeds=(3,), field_seeds=(1, 0), report=lambda _: None
    )
    assert [(r.front_end, r.measured, r.arm, r.seed) for r in rows] == [
        (f, "index maps", a, 3) for f in ("own", "simulated") for a in ARMS
    ] + [("own", "field", a, s) for s in (1, 0) for a in ("baseline", "both")]
    run = Run(scene_folder, small)
    for row, changes in (
        (rows[-2], {"codebook__lambda_pull": 0.0, "codebook__lambda_push": 0.0}),
        (rows[-1], {}),
    ):
        varied = run.vary(**changes)
        assert (
            varied.ensure("evaluation").reused
            and row.miou == 100 * varied.evaluation()["aggregates"]["pooled"]["miou"]
        )
    assert (
        rows[3].miou == index_map_miou(run.vary(seed=3, front_end__simulation__seed=3))
        and rows[3].label == run.front_end.label
    )
    assert (
        rows[-3].miou
        == 100
        * run.vary(seed=1, front_end__simulation__seed=1).evaluation()["aggregates"]["pooled"][
            "miou"
        ]
    )
    assert (
        f"{(rows[-1].miou + rows[-3].miou) / 2:.1f}" in (tables / "benchmark.md").read_text()
        and "needs two scenes" in (tables / "benchmark_contrasts.md").read_text()
    )
    assert measured.outdated(rows, small) == []  # not bundled, so nobody can say
    monkeypatch.setattr(measured, "bundled_scenes", lambda: [run.scene.name])
    monkeypatch.setattr(
        measured, "Run", lambda scene, c: Run(scene_folder if scene == run.scene.name else scene, c)
    )
    assert measured.outdated(rows, small) == []
    assert {
        r.measured for r in measured.outdated(rows, small.with_settings({"field.iterations": 2}))
    } >= {"field"}
    assert len(measured.outdated(rows, small.with_settings({"codebook.margin": 0.5}))) == len(rows)
    # a second run measures nothing again and keeps what other scenes have in the file
    other = replace(rows[0], scene="other", key="of another scene")
    b._write(tables / measured.ROWS, [*rows, other], {})
    monkeypatch.setattr(
        "lab.experiments.benchmark.index_map_miou", lambda *a, **k: pytest.fail("measured again")
    )
    assert [
        r.miou
        for r in b.benchmark(
            [str(scene_folder)],
            small,
            tables,
            seeds=(3,),
            field_seeds=(1, 0),
            report=lambda _: None,
        )
    ] == pytest.approx([r.miou for r in rows], abs=1e-4)
    assert other.key in {r.key for r in measured.read_rows(tables / measured.ROWS)}


def test_settings_are_listed_with_meaning(capsys):
    assert cli.main(["settings"]) == 0
    out = capsys.readouterr().out
    assert "codebook.margin = 0.7" in out and "Paper: 0.7." in out


# ----------------------------------------------------------------- real photographs


def test_real_photographs_through_every_stage(real_data, tmp_path):
    """YCB-Video: real images, instance maps as masks, Gaussians from measured depth."""
    quick = {
        "front_end.masks": "simulated",
        "front_end.features": "simulated",
        "front_end.propagation": "simulated",
        "gaussians.iterations": 3,
        "gaussians.start_gaussians": 8000,
        "field.iterations": 6,
        "codebook.steps": 100,
    }
    r = Run(real_data / "ycb" / "0000", config.profile("mini", **quick), tmp_path)
    r.to(report=lambda _: None)
    e = r.evaluation()
    assert {row["query"] for row in e["rows"]} == {"gelatin box", "mug", "foam brick"} and len(
        e["rows"]
    ) == 15
    assert r.ensure("gaussians").record["start"] == "depth"


def test_module_runs_as_a_script():
    out = subprocess.run(
        [sys.executable, "-m", "cclkit.cli", "--help"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    assert out.returncode == 0 and "figures" in out.stdout
