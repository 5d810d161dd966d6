"""All protocols by name: which run on which scene, rows, means, held-out views, dense ground truth,
results files, trouble in labels.
"""

import csv
import dataclasses
import functools
import json
import sys
import warnings

import cv2
import numpy as np
import pytest
import torch
from conftest import HEIGHT, QUERIES, REGIONS, WIDTH, write_plane_scene
from PIL import Image

from cclkit.config import profile
from cclkit.errors import ArtefactError, ConfigError, EvaluationError
from cclkit.evaluation import legaussians, opengaussian
from cclkit.evaluation.metrics import confusion, write_results
from cclkit.evaluation.protocols import (
    PROTOCOLS,
    EvaluationConfig,
    aggregate,
    evaluate_scene,
    protocol_for,
)
from cclkit.evaluation.truth import SMALLEST, boxes_of, evaluated_views, units_of
from cclkit.method import query
from cclkit.method.query import QueryConfig
from cclkit.notebook.experiments import FAILURES, best_threshold, failure
from cclkit.runs.graph import GRAPH
from cclkit.runs.run import Run
from cclkit.scenes.load import load_scene
from cclkit.scenes.scene import Camera, LabelledObject, Scene, View

H, W = 40, 50


def square(x0, y0, x1, y1):
    mask = np.zeros((H, W), bool)
    mask[y0 : y1 + 1, x0 : x1 + 1] = True
    return mask


def scene_of(names=("frame_2.jpg", "frame_10.jpg", "frame_11.jpg"), **fields):
    camera = Camera(np.array([[40.0, 0, 25], [0, 40, 20], [0, 0, 1]]), np.eye(4), W, H)
    views = tuple(View(n, None, camera) for n in names)
    return Scene(
        "s",
        None,
        fields.pop("layout", "lerf_ovs"),
        views,
        np.zeros((0, 3)),
        np.zeros((0, 3), np.uint8),
        **fields,
    )


def lerf_scene(held_out=()):
    unit = lambda c, m: LabelledObject(c, m, boxes_of(m))
    a, b = square(10, 10, 30, 30), square(35, 5, 45, 20)
    return scene_of(
        labels={"frame_10.jpg": (unit("a", a), unit("b", b)), "frame_2.jpg": (unit("a", a),)},
        held_out=frozenset(held_out),
    )


def ovs_scene(folder, held_out=("1.png",)):
    """Two labelled views, pictures of masks at twice the size; 'moth' is in no view."""
    truth = {
        "zebra": square(0, 0, 49, 19),
        "Apple": square(0, 20, 49, 39),
        "moth": np.zeros((H, W), bool),
    }
    masks = {}
    for v in ("1.png", "0.png"):
        masks[v] = {c: folder / f"{v}_{c}.png" for c in truth}
        for c, m in truth.items():
            Image.fromarray((np.kron(m, np.ones((2, 2))) * 255).astype(np.uint8)).convert(
                "RGB"
            ).save(masks[v][c])
    return (
        scene_of(
            ("0.png", "1.png", "2.png"),
            layout="3d_ovs",
            classes=tuple(truth),
            class_masks=masks,
            held_out=frozenset(held_out),
        ),
        truth,
    )


def perfect(truth, pictures=False):
    """What a field would answer that knows the truth {(view or None, text): mask}; two equal
    levels, records what it was asked. With ``pictures``, what opengaussian scores.
    """
    asked = []

    def scores(view, texts):
        asked.append((view, texts))
        masks = np.stack([truth.get((view, t), truth.get((None, t))) for t in texts])
        if pictures:
            return masks.astype(np.uint8) * 255
        # just above and below every threshold and limit, with no area left in between
        return np.where(masks, 0.9, 0.1).astype(np.float32)[:, None].repeat(2, 1)

    scores.asked = asked
    return scores


def truth_of(scene):
    return {(v, u.category): u.mask for v, units in scene.labels.items() for u in units}


# ---- by name -------------------------------------------------------------------------------------


def test_the_settings_know_every_protocol():
    assert len(PROTOCOLS) >= 8
    for name in ("auto", *PROTOCOLS):
        assert profile("mini", **{"evaluation.protocol": name}).evaluation.protocol == name
    with pytest.raises(ConfigError, match="evaluation.protocol='mine' is unknown.*auto, langsplat"):
        profile("mini", **{"evaluation.protocol": "mine"})


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_every_protocol_runs_on_class_masks(name, tmp_path):
    scene, truth = ovs_scene(tmp_path)
    e = evaluate_scene(
        scene,
        perfect({(None, c): m for c, m in truth.items()}, pictures=name == "opengaussian"),
        EvaluationConfig(protocol=name, flat_maps="empty"),
    )
    asked_for_absent = PROTOCOLS[name].absent
    assert (
        len(e.rows) == 2 * (3 if asked_for_absent else 2)
        and [r["view"] for r in e.rows][0] == "0.png"
    )
    seen = [r["iou"] for r in e.rows if r["query"] != "moth"]
    # smoothing rounds corners and Occam's vote leaves out the last row; the others are exact
    assert min(seen) > (
        0.85
        if name in ("langsplat", "langsplat_v2")
        else 0.95
        if name == "ovs3d_occam"
        else 0.999999
    )
    # absent and not predicted is 0 in C and D, as published
    assert all(r["iou"] == 0 for r in e.rows if r["query"] == "moth")
    assert e.protocol == name and e.constants["views"] == "all" and json.dumps(e.constants)
    assert e.aggregates["pooled"]["units"] == len(e.rows)


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_every_protocol_but_one_runs_on_labels(name):
    scene = lerf_scene()
    field = perfect(truth_of(scene), pictures=name == "opengaussian")
    if name == "ovs3d_argmax":
        with pytest.raises(
            EvaluationError,
            match="lets all classes compete.*langsplat, langsplat_v2.*3D-OVS layout",
        ):
            evaluate_scene(scene, field, EvaluationConfig(protocol=name))
        assert not field.asked
        return
    e = evaluate_scene(scene, field, EvaluationConfig(protocol=name))
    assert [(r["view"], r["query"]) for r in e.rows] == [
        ("frame_2.jpg", "a"),
        ("frame_10.jpg", "a"),
        ("frame_10.jpg", "b"),
    ]
    # capture order, never list position
    assert field.asked == [
        ("frame_2.jpg", ("a",)),
        ("frame_10.jpg", ("a", "b")),
    ]
    assert e.aggregates["pooled"]["miou"] > 0.6 and ("hit" in e.rows[0]) == (
        name in ("langsplat", "langsplat_v2", "paper")
    )


def test_auto_follows_the_layout_and_mistakes_are_named(tmp_path):
    assert (
        protocol_for(lerf_scene()) == "langsplat"
        and protocol_for(ovs_scene(tmp_path)[0]) == "ovs3d_langsplat"
    )
    with pytest.raises(
        EvaluationError, match="'lerf' is unknown.*langsplat, langsplat_v2.*paper.*'auto'"
    ):
        protocol_for(lerf_scene(), "lerf")
    with pytest.raises(EvaluationError, match="frame_2.jpg: query 'a': gt_mask"):
        evaluate_scene(lerf_scene(), lambda n, t: np.zeros((len(t), 1, 3, 3), np.float32))
    with pytest.raises(EvaluationError, match="0 score maps for 1"):
        evaluate_scene(lerf_scene(), lambda n, t: [])
    with pytest.raises(EvaluationError, match="nothing to score"):
        evaluate_scene(scene_of(), perfect({}))
    flat = lambda n, t: np.full((len(t), 2, H, W), 0.5, np.float32)
    with pytest.raises(EvaluationError, match="frame_2.jpg: class 'a': level 0: no threshold"):
        evaluate_scene(lerf_scene(), flat, EvaluationConfig(protocol="ovs3d_occam"))
    assert (
        evaluate_scene(
            lerf_scene(), flat, EvaluationConfig(protocol="ovs3d_occam", flat_maps="empty")
        ).aggregates["pooled"]["miou"]
        == 0
    )


def test_the_paper_protocol_obeys_its_settings():
    scene = lerf_scene()
    ramp = np.linspace(0, 0.8, H * W, dtype=np.float32).reshape(H, W)
    scores = lambda n, t: np.broadcast_to(ramp, (len(t), 2, H, W))
    counted = lambda **s: evaluate_scene(
        scene, scores, EvaluationConfig(protocol="paper", **s)
    ).rows[0]["mask_pixels"]
    assert (
        counted() == (ramp / ramp.max() > 0.5).sum()
        and counted(paper_min_max=False) == (ramp > 0.5).sum()
        and counted(paper_threshold=0.75) == (ramp / ramp.max() > 0.75).sum()
    )
    e = evaluate_scene(scene, scores, EvaluationConfig(protocol="paper", paper_threshold=0.75))
    assert (
        e.constants["threshold"] == 0.75
        and "scale" not in e.constants
        and PROTOCOLS["paper"].query == ("canonical", "temperature")
    )


def test_single_level_protocols_take_the_configured_level(tmp_path):
    scene, truth = ovs_scene(tmp_path)

    def scores(view, texts):
        right = np.stack([truth[t] for t in texts]).astype(np.float32)
        return np.stack([1 - right, right], 1)  # sp all wrong, wp all right

    for name in ("ovs3d_argmax", "legaussians"):
        sp, wp = (
            evaluate_scene(scene, scores, EvaluationConfig(protocol=name, level=level))
            for level in ("sp", "wp")
        )
        assert (
            sp.aggregates["pooled"]["miou"] < 0.4 < 0.6 < wp.aggregates["pooled"]["miou"]
            and wp.constants["level"] == "wp"
        )


def test_legaussians_and_opengaussian_rows_are_their_modules():
    """Rows against the slow way: every unit by itself, means as the published scripts take them."""
    rng = np.random.default_rng(3)
    scene = lerf_scene()
    maps = {
        (v, u.category): rng.random((2, H, W), dtype=np.float32) * 0.2 + 0.4 + 0.15 * u.mask
        for v, us in scene.labels.items()
        for u in us
    }
    e = evaluate_scene(
        scene,
        lambda v, ts: np.stack([maps[v, t] for t in ts]),
        EvaluationConfig(protocol="legaussians"),
    )
    per_view = {}
    for v, units in scene.labels.items():
        for u in units:
            predicted = [[float(x) >= 0.5 for x in row] for row in maps[v, u.category][1]]
            per_view.setdefault(v, []).append(legaussians.mask_scores(predicted, u.mask))
    columns = ("iou", "accuracy", "precision", "recall")
    published = [  # over texts, then over images
        np.mean([np.mean([getattr(s, k) for s in scores]) for scores in per_view.values()])
        for k in columns
    ]
    got = e.aggregates["pooled"]
    assert [got["miou"], *(got[k] for k in columns[1:])] == pytest.approx(published, abs=1e-12)
    assert got["miou"] != pytest.approx(np.mean([r["iou"] for r in e.rows]), abs=1e-6)

    pictures = {k: (m[1] > 0.55).astype(np.uint8) * 255 for k, m in maps.items()}
    e = evaluate_scene(
        scene,
        lambda v, ts: np.stack([pictures[v, t] for t in ts]),
        EvaluationConfig(protocol="opengaussian"),
    )
    units = [(v, u) for v in ("frame_2.jpg", "frame_10.jpg") for u in scene.labels[v]]
    slow = np.array(
        [
            opengaussian.unit_iou(pictures[v, u.category], u.mask.astype(np.uint8) * 255)
            for v, u in units
        ]
    )
    got = e.aggregates["pooled"]
    assert [r["iou"] for r in e.rows] == slow.tolist()
    assert (got["miou"], got["acc_025"], got["acc_050"]) == (
        slow.mean(),
        (slow > 0.25).mean(),
        (slow > 0.5).mean(),
    )


# ---- what a protocol asks of a field -------------------------------------------------------------


class Codes:
    """A field of three prototypes: a `Reader` that says what it was asked."""

    query = QueryConfig(canonical=("any", "thing"), temperature=0.3)
    prototypes = np.random.default_rng(5).normal(size=(3, 6))
    codes = np.array([[0, 1, 2], [2, -1, 0]])

    def __init__(self):
        self.asked = []

    def text_vectors(self, texts):
        rows = [np.random.default_rng(list(t.encode())).normal(size=6) for t in texts]
        return np.stack([r / np.linalg.norm(r) for r in rows])

    def look_up(self, rule, view, texts):
        self.asked.append((view, tuple(texts)))
        return rule(self.prototypes, self.codes, self.text_vectors(texts))

    def silhouettes(self, view, texts):
        return np.full((len(texts), 2, 3), 255, np.uint8)


def test_every_protocol_asks_for_its_own_rule():
    """Each rule against its formula, one pixel and text at a time, in double precision."""
    field, texts = Codes(), ("a", "b")
    text, plain = field.text_vectors(texts), field.text_vectors(query.CANONICAL)
    own = field.text_vectors(field.query.canonical)
    cosine = lambda a, b: a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    loose = lambda a, b: a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-6)

    def pairwise(f, q, similarity=cosine):
        e = np.exp(10 * similarity(f, q))
        return min(e / (e + np.exp(10 * similarity(f, c))) for c in plain)

    def softmax(f, q):  # the text joins the phrases
        e = [np.exp(cosine(f, c) / 0.3) for c in (q, *own)]
        return e[0] / sum(e)

    rules = {
        "paper": softmax,
        "ovs3d_argmax": cosine,
        "legaussians": lambda f, q: pairwise(f, q, loose),
    }
    for name, protocol in PROTOCOLS.items():
        got = np.asarray(protocol.asks(field, "view", texts))
        if name == "opengaussian":
            assert got.dtype == np.uint8 and (got == 255).all()
            continue
        rule = rules.get(name, pairwise)
        wanted = [
            [[rule(field.prototypes[c], t) if c >= 0 else 0 for c in row] for row in field.codes]
            for t in text
        ]
        np.testing.assert_allclose(got, wanted, atol=1e-6, err_msg=name)
        assert field.asked.pop() == ("view", texts)


# ---- a protocol of one's own ---------------------------------------------------------------------

PLUGIN = """
import numpy as np

from cclkit.evaluation.metrics import iou
from cclkit.evaluation.protocol import Protocol
from cclkit.method.query import code_cosine


def asks(reader, view, texts):
    return reader.look_up(code_cosine, view, texts)


def score(maps, units, config):
    masks = [np.asarray(m).max(0) > CUT for m in maps]
    return [
        ({"iou": iou(m, u.mask, empty=0.0), "pixels": int(m.sum())}, m)
        for m, u in zip(masks, units)
    ]


CUT = 0.5
MINE = Protocol("cosine above CUT", asks, score, lambda config: {"cut": CUT}, means=("pixels",))
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A module with a protocol of a user's own, registered by one line."""
    (tmp_path / "protocol_of_mine.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = __import__("protocol_of_mine")
    monkeypatch.setitem(PROTOCOLS, "mine", module.MINE)
    yield module
    del sys.modules["protocol_of_mine"]


def test_a_protocol_of_ones_own_scores_any_method(plugin):
    scene = lerf_scene()
    e = evaluate_scene(scene, perfect(truth_of(scene)), EvaluationConfig(protocol="mine"))
    assert e.protocol == "mine" and [r["iou"] for r in e.rows] == [1, 1, 1]
    assert e.constants["cut"] == 0.5
    pixels = [u.mask.sum() for units in scene.labels.values() for u in units]
    assert e.aggregates["pooled"]["pixels"] == np.mean(pixels)
    with pytest.raises(EvaluationError, match="'yours' is unknown; use one of langsplat.*mine, or"):
        evaluate_scene(scene, perfect({}), EvaluationConfig(protocol="yours"))


SMALL = {
    "front_end.masks": "simulated",
    "front_end.features": "simulated",
    "front_end.propagation": "simulated",
    "gaussians.iterations": 3,
    "gaussians.start_gaussians": 500,
    "gaussians.densify": False,
    "field.iterations": 20,
    "codebook.steps": 20,
    "codebook.n_prototypes": 8,
    "evaluation.protocol": "mine",
}


def test_a_protocol_of_ones_own_evaluates_a_run(plugin, tmp_path):
    run = Run(write_plane_scene(tmp_path / "scene"), profile("mini", **SMALL), tmp_path / "run")
    lines = []
    run.to(report=lines.append)
    assert "protocol mine" in lines[-1]
    found = run.evaluation()
    assert found["protocol"] == "mine" and found["constants"]["cut"] == 0.5
    assert found["rows"] and found["aggregates"]["pooled"]["pixels"] >= 0
    again = evaluate_scene(run.scene, run.reader, run.config.evaluation)
    assert again.rows == found["rows"]
    view = run.scene.views[0].name
    asked = run.reader.look_up(query.code_cosine, view, ["bear"])
    assert torch.equal(run.scores(view, ["bear"]), asked)
    assert not torch.equal(run.scores(view, ["bear"], protocol="langsplat"), asked)


def test_its_code_and_constants_count_for_the_key_of_evaluation(plugin, tmp_path, monkeypatch):
    scene = load_scene(write_plane_scene(tmp_path / "scene"))

    def keys(protocol=plugin.MINE, name="mine"):
        monkeypatch.setitem(PROTOCOLS, name, protocol)
        config = profile("mini", **SMALL | {"evaluation.protocol": name})
        run = Run.planned(scene, config, tmp_path / "run")
        return {stage: run.key(stage) for stage in GRAPH}

    before = keys()
    assert keys() == before == keys(dataclasses.replace(plugin.MINE, what="in other words"))
    (tmp_path / "other_protocol.py").write_text(PLUGIN.replace(".max(0)", ".min(0)"))
    other = __import__("other_protocol").MINE
    changed = [
        keys(other),
        keys(dataclasses.replace(plugin.MINE, over="views")),
        keys(dataclasses.replace(plugin.MINE, query=("scale",))),
    ]
    monkeypatch.setattr(plugin, "CUT", 0.6)  # the same code, made with another number
    changed.append(keys())
    for after in changed:
        assert {s for s in before if before[s] != after[s]} == {"evaluation"}
    assert len({after["evaluation"] for after in changed}) == len(changed)
    del sys.modules["other_protocol"]


def test_a_function_that_keys_cannot_see_is_refused():
    with pytest.raises(EvaluationError, match="expected one that is defined in a module"):
        dataclasses.replace(PROTOCOLS["langsplat"], score=functools.partial(print))


# ---- views and ground truth ----------------------------------------------------------------------


def test_held_out_and_training_views(tmp_path):
    scene = lerf_scene(["frame_2.jpg"])
    only = lambda views: {
        r["view"]
        for r in evaluate_scene(scene, perfect(truth_of(scene)), EvaluationConfig(views=views)).rows
    }
    assert (
        only("held_out") == {"frame_2.jpg"}
        and only("training") == {"frame_10.jpg"}
        and only("all") == {"frame_2.jpg", "frame_10.jpg"}
    )
    row = evaluate_scene(scene, perfect(truth_of(scene)), EvaluationConfig(views="held_out")).rows[
        0
    ]
    assert row["held_out"] is True
    with pytest.raises(
        EvaluationError,
        match="no view with ground truth among the held_out.*frame_2.jpg, frame_10.jpg",
    ):
        evaluate_scene(lerf_scene(), perfect({}), EvaluationConfig(views="held_out"))
    with pytest.raises(EvaluationError, match="'test' is unknown"):
        evaluated_views(scene, "test")
    ovs, truth = ovs_scene(tmp_path)
    e = evaluate_scene(
        ovs, perfect({(None, c): m for c, m in truth.items()}), EvaluationConfig(views="held_out")
    )
    assert {r["view"] for r in e.rows} == {"1.png"} and e.constants["views"] == "held_out"


def test_dense_ground_truth_scores_views_without_labels(tmp_path):
    folder = write_plane_scene(tmp_path)
    (folder / "scene.json").write_text(json.dumps({"held_out": ["frame_00004.jpg"]}))
    scene = load_scene(folder)
    assert "frame_00004.jpg" not in scene.labels
    with pytest.raises(EvaluationError, match="no view with ground truth among the held_out"):
        evaluated_views(scene, "held_out")
    assert (
        evaluated_views(scene, "held_out", "dense") == ["frame_00004.jpg"]
        and len(evaluated_views(scene, "all", "dense")) == 6
    )
    view = scene.view("frame_00004.jpg")
    units = units_of(scene, view.name, "dense")
    ids = {
        g: np.asarray(Image.open(folder / "ground_truth" / g / "frame_00004.png"))
        for g in ("whole", "part", "subpart")
    }
    expected = {t: ids[REGIONS[i][1]] == i for t, i in QUERIES.items()}
    assert {u.category for u in units} == {t for t, m in expected.items() if m.sum() >= SMALLEST}
    for u in units:
        np.testing.assert_array_equal(u.mask, expected[u.category])
        ys, xs = np.nonzero(u.mask)
        assert u.boxes.tolist() == [[xs.min(), ys.min(), xs.max(), ys.max()]] and u.mask.shape == (
            HEIGHT,
            WIDTH,
        )
    field = perfect({(None, t): m for t, m in expected.items()})
    e = evaluate_scene(
        scene, field, EvaluationConfig(views="held_out", truth="dense", protocol="paper")
    )
    assert (
        e.aggregates["pooled"]["miou"] == 1
        and all(r["held_out"] for r in e.rows)
        and "ours" in e.constants["boxes"]
    )
    with pytest.raises(EvaluationError, match="no dense ground truth"):
        evaluated_views(lerf_scene(), "all", "dense")
    with pytest.raises(EvaluationError, match="'exact' is unknown"):
        evaluated_views(scene, "all", "exact")


def test_dense_ground_truth_equals_the_class_masks_of_a_bundled_scene():
    scene = load_scene("breakfast_bench")
    name = next(v.name for v in scene.views if v.name in scene.class_masks)
    labels, dense = units_of(scene, name, absent=True), units_of(scene, name, "dense", absent=True)
    assert {u.category for u in labels} == {u.category for u in dense} == set(scene.classes)
    exact = {u.category: u.mask for u in dense}
    for u in labels:
        np.testing.assert_array_equal(u.mask, exact[u.category])


def test_boxes_of_pieces():
    assert boxes_of(square(3, 4, 10, 8) | square(20, 30, 20, 30)).tolist() == [
        [3, 4, 10, 8],
        [20, 30, 20, 30],
    ]
    diagonal = np.eye(6, dtype=bool)
    assert boxes_of(diagonal).tolist() == [[0, 0, 5, 5]] and boxes_of(diagonal * False).shape == (
        0,
        4,
    )


# ---- means and files -----------------------------------------------------------------------------


def test_aggregate_scene_mean_and_pooled_mean():
    rows = [{"scene": "x", "view": "1", "iou": 1.0, "hit": True}] + [
        {"scene": "y", "view": "1", "iou": 0.0, "hit": False}
    ] * 3
    got = aggregate(rows)
    assert (
        got["mean_of_scenes"]["miou"] == 0.5
        and got["pooled"]["miou"] == 0.25
        and got["scenes"]["y"]["units"] == 3
        and got["pooled"]["accuracy"] == 0.25
    )
    nan = {"scene": "x", "view": "2", "iou": float("nan"), "hit": True}
    undefined = aggregate(rows + [nan])["scenes"]["x"]
    assert (
        np.isnan(undefined["miou"])
        and undefined["miou_defined"] == 1
        and undefined["undefined"] == 1
    )
    assert (
        aggregate(
            [rows[0], rows[0] | {"iou": 0.0}, rows[0] | {"iou": 0.0, "view": "2"}], over="views"
        )["pooled"]["miou"]
        == 0.25
    )
    assert aggregate([nan], over="views")["pooled"]["undefined"] == 1
    with pytest.raises(EvaluationError, match="no rows"):
        aggregate([])


def test_results_files(tmp_path):
    scene = lerf_scene()
    e = evaluate_scene(scene, perfect(truth_of(scene)))
    rows = [dict(r) for r in e.rows]
    rows[1]["iou"] = float("nan")
    csv_path, json_path = write_results(
        rows, aggregate(rows), e.protocol, e.constants, tmp_path / "out"
    )
    table = list(csv.DictReader(csv_path.open()))
    document = json.loads(json_path.read_text())
    assert (
        [t["query"] for t in table] == ["a", "a", "b"]
        and table[1]["iou"] == ""
        and float(table[0]["iou"]) == rows[0]["iou"]
    )
    assert (
        document["rows"][1]["iou"] is None
        and document["constants"]["threshold"] == 0.4
        and document["aggregates"]["pooled"]["undefined"] == 1
    )
    assert sorted(p.name for p in csv_path.parent.iterdir()) == [
        "evaluation.csv",
        "evaluation.json",
    ]
    before = json_path.read_bytes()
    write_results(rows, aggregate(rows), e.protocol, e.constants, tmp_path / "out")
    assert json_path.read_bytes() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match="choose a folder"):
        write_results(rows, {}, "langsplat", {}, tmp_path / "file")


# ---- failures, confusion, benchmark
# ---------------------------------------------------------------


def test_best_threshold_counts_every_pixel():
    rng = np.random.default_rng(0)
    values, truth = rng.integers(0, 5, (13, 17)) / 4, rng.random((13, 17)) < 0.3
    at, iou = best_threshold(values, truth)
    for t, v in zip(at, iou):
        above = values > t
        assert v == pytest.approx((above & truth).sum() / (above | truth).sum(), abs=1e-12)
    assert best_threshold(np.zeros((3, 3)), np.ones((3, 3), bool))[1].tolist() == [0.0] * 100


def test_failures_are_told_apart():
    def kind(*levels):
        a = square(10, 10, 30, 30)
        blurred = np.stack(
            [cv2.GaussianBlur(np.full((H, W), 0.1, np.float32) + m, (0, 0), 1) for m in levels]
        )
        return failure(blurred, LabelledObject("a", a, boxes_of(a)))

    a, b, nothing = (
        square(10, 10, 30, 30) * np.float32(0.6),
        square(40, 30, 48, 38) * np.float32(0.7),
        np.zeros((H, W), np.float32),
    )
    around = square(5, 3, 36, 38) * np.float32(0.5)
    assert kind(a, nothing) == FAILURES[0]
    assert kind(a, square(0, 0, 49, 39) * np.float32(0.8)) == FAILURES[1]  # the larger maximum wins
    assert kind(a * 0.7 + b, nothing) == FAILURES[2]
    assert kind(b, nothing) == FAILURES[3]
    assert (
        kind(
            around
            + square(5, 3, 36, 8) * np.float32(0.3)
            + square(25, 3, 36, 38) * np.float32(0.3),
            nothing,
        )
        == FAILURES[4]
    )


def test_confusion_is_shares_of_true_classes():
    truth, answer = np.array([[0, 0, 0, 1], [2, 2, -1, 1]]), np.array([[0, 1, 0, 1], [0, -1, 1, 1]])
    np.testing.assert_allclose(
        confusion(truth, answer, 4),
        [[200 / 3, 100 / 3, 0, 0], [0, 100, 0, 0], [100, 0, 0, 0], [0, 0, 0, 0]],
    )


# ---- trouble in labels: the same number, or an error
# ----------------------------------------------


def evaluated(folder):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scene = load_scene(folder)
    blurred = lambda v, t: cv2.GaussianBlur(
        (
            scene.ground_truth.ids(scene.view(v), REGIONS[QUERIES.get(t, 1)][1])
            == QUERIES.get(t, 1)
        ).astype(np.float32),
        (0, 0),
        1.5,
    )
    e = evaluate_scene(
        scene,
        lambda v, ts: np.stack([blurred(v, t)[None] for t in ts]),
        EvaluationConfig(protocol="langsplat"),
    )
    return e, [str(w.message) for w in caught]


def test_trouble_in_label_files_never_changes_a_number(tmp_path):
    clean, warned = evaluated(write_plane_scene(tmp_path / "clean"))
    assert not warned and len(clean.rows) == 8
    folder = write_plane_scene(tmp_path / "bad")
    path = next((folder.parent / "label" / folder.name).glob("*2.json"))
    data = json.loads(path.read_text())
    first = data["objects"][0]
    for o in data["objects"]:
        x1, y1, x2, y2 = o["bbox"]
        o["bbox"] = [x2, y2, x1, y1]  # swapped corners
    data["objects"] += [
        {"category": "duck", "segmentation": [], "bbox": [0, 0, 5, 5]},  # a class without polygon
        # outside the image
        {
            "category": "goose",
            "segmentation": [[-50, -50], [-40, -50], [-40, -40]],
            "bbox": [0, 0, 5, 5],
        },
        dict(first),  # a category twice, the same region: merged into one unit
    ]
    path.write_text(json.dumps(data))
    bad, warned = evaluated(folder)
    assert bad.rows == clean.rows and bad.aggregates == clean.aggregates
    assert (
        len(warned) == 1
        and "2 label entries skipped" in warned[0]
        and "'duck' has no polygon" in warned[0]
        and "'goose'" in warned[0]
    )


def test_a_polygon_that_overhangs_counts_inside_only(tmp_path):
    folder = write_plane_scene(tmp_path)
    path = next((folder.parent / "label" / folder.name).glob("*2.json"))
    data = json.loads(path.read_text())
    data["objects"] = [
        {
            "category": "table",
            "segmentation": [[-30, -30], [20, -30], [20, 10], [-30, 10]],
            "bbox": [-30, -30, 20, 10],
        }
    ]
    path.write_text(json.dumps(data))
    e, warned = evaluated(folder)
    assert not warned and next(r for r in e.rows if r["query"] == "table")["gt_pixels"] == 21 * 11


def test_class_pictures_that_cannot_be_read(tmp_path):
    scene, truth = ovs_scene(tmp_path)
    scene.class_masks["0.png"]["zebra"].write_bytes(b"no picture")
    with pytest.raises(EvaluationError, match="0.png_zebra.png: cannot be read.*restore the mask"):
        evaluate_scene(scene, perfect({(None, c): m for c, m in truth.items()}))


def test_a_configuration_is_not_changed_by_evaluating():
    c = EvaluationConfig(protocol="paper")
    evaluate_scene(lerf_scene(), perfect(truth_of(lerf_scene())), c)
    assert c == EvaluationConfig(protocol="paper") == dataclasses.replace(c)
