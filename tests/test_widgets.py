"""Explorers: every control changes the picture, the twin holds the same pixels, mistakes are
messages.
"""

import base64
import re

import cv2
import ipywidgets
import nbformat
import numpy as np
import pytest
import torch
from conftest import write_plane_scene
from segment_anything import SamPredictor
from test_pipeline import SMALL

from cclkit import config
from cclkit.errors import ConfigError
from cclkit.foundation.clicks import SamClicks
from cclkit.foundation.weights import load_weights
from cclkit.method.masks import LEVELS
from cclkit.notebook import widgets
from cclkit.runs.run import Run


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    scene = write_plane_scene(tmp_path_factory.mktemp("plane"))
    return widgets.Playground(
        Run(scene, config.profile("mini", **SMALL), tmp_path_factory.mktemp("out")), "red apple"
    )


OTHER = {
    "masks": {"view": "frame_00004.jpg", "x": 3, "y": 5},
    "tracks": {"level": "sp", "track": 2},
    "codebook": {"level": "sp", "rank": 3},
    "ccl": {"lambda_pull": 1.0, "lambda_push": 1.0, "margin": 0.2, "noise": 0.8, "draw_number": 3},
    "query": {"view": "frame_00002.jpg", "text": "bear nose", "level": "other", "threshold": 0.95},
    "sides": {"view": "frame_00003.jpg", "text": "bear nose", "level": "sp", "threshold": 0.95},
}


def shown(explorer):
    return [p.value for p in explorer.pictures] + [explorer.note.value]


@pytest.mark.parametrize("name, control", [(n, c) for n, cs in OTHER.items() for c in cs])
def test_every_control_changes_what_is_shown_and_back(play, name, control):
    explorer = getattr(play, name)
    before, value = shown(explorer), explorer.values()[control]
    other = OTHER[name][control]
    if (name, control) == ("query", "level"):  # not the one that answers by itself
        other = LEVELS[
            1 - explorer.run.answer(explorer.values()["view"], explorer.values()["text"]).level
        ]
    assert other != value
    explorer.set(**{control: other})
    assert explorer.values()[control] == other and explorer.seconds > 0
    changed = shown(explorer)
    explorer.set(**{control: value})
    assert shown(explorer) == before
    assert changed != before


def test_the_controls_of_the_table_are_all_there_are(play):
    assert {n: set(e.controls) for n, e in vars(play).items()} == {
        n: set(c) for n, c in OTHER.items()
    }
    assert [type(e) for e in play.explorers] == [type(e) for e in vars(play).values()]


def test_the_static_twin_holds_the_same_pixels(play):
    for explorer in play.explorers:
        drawing = explorer.draw(**explorer.values())
        axes = [ax for ax in explorer.figure().axes if ax.images]
        assert len(axes) == len(drawing.panels) == len(explorer.pictures)
        for ax, (title, pixels), html in zip(axes, drawing.panels, explorer.pictures):
            assert pixels.dtype == np.uint8 and np.array_equal(ax.images[0].get_array(), pixels)
            # a number stays in a line with its unit
            assert ax.get_title().replace("\n", " ").replace("\u00a0", " ") == title.replace(
                "\u00a0", " "
            )
            alt, data = re.search(r'<img alt="([^"]+)".*base64,([^"]+)"', html.value).groups()
            sent = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)[
                ..., ::-1
            ]
            # JPEG
            assert sent.shape == pixels.shape and np.abs(sent.astype(int) - pixels).mean() < 12
            assert "<figcaption" in html.value and len(alt) > 5


def test_a_click_answers_with_the_candidates_under_the_pixel(play):
    view = "frame_00002.jpg"
    truth = play.masks.run.scene.ground_truth
    nose = truth.ids(play.masks.views[view], "subpart") == 4
    y, x = (int(v) for v in np.argwhere(nose)[len(np.argwhere(nose)) // 2])
    masks, scores = play.masks.click(view, x, y)
    c = play.masks.candidates[view]
    for k in range(3):
        rows = np.flatnonzero((c.output == k) & c.masks[:, y, x])
        assert masks[k].any() == bool(len(rows)) == bool(np.isfinite(scores[k]))
        if len(rows):
            assert (
                masks[k][y, x]
                and scores[k] in c.predicted_iou[rows]
                and any(np.array_equal(masks[k], m) for m in c.masks[rows])
            )


def test_a_mouse_click_moves_the_point(play):
    picture = play.masks.pictures[0]
    assert play.masks.events.source is picture
    h, w = play.masks.images[play.masks.values()["view"]].shape[:2]
    event = {
        "event": "click",
        "boundingRectWidth": 4 * w,
        "boundingRectHeight": 4 * h + 40,
        "relativeX": 4 * 10 + 1,
        "relativeY": 4 * 20 + 3,
    }
    play.masks.events._handle_mouse_msg(None, event, None)
    assert (play.masks.values()["x"], play.masks.values()["y"]) == (10, 20)
    # on the caption
    play.masks.events._handle_mouse_msg(None, event | {"relativeY": 4 * h + 30}, None)
    assert (play.masks.values()["x"], play.masks.values()["y"]) == (10, 20)


def test_a_sam_answers_clicks_and_encodes_a_view_once(play, tmp_path, monkeypatch):
    """The same explorer on a run whose masks come from SAM; untrained weights, which answer
    something.
    """
    from safetensors.torch import save_file

    from cclkit.foundation.mini_sam import build_mini_sam

    torch.manual_seed(0)
    save_file(build_mini_sam().state_dict(), tmp_path / "w.safetensors")
    assert load_weights(tmp_path / "w.safetensors", "mini-SAM")
    run = play.masks.run.vary(
        front_end__masks="sam",
        front_end__sam__model="mini",
        front_end__sam__checkpoint=str(tmp_path / "w.safetensors"),
        front_end__sam__points_per_side=2,
        masks__predicted_iou_min=0.0,
        masks__stability_min=0.0,
    )
    explorer = widgets.MaskExplorer(run, run.scene.training_views[:2])
    encoded, encode = [], SamPredictor.set_image
    monkeypatch.setattr(
        SamPredictor,
        "set_image",
        lambda self, image, *a: (encoded.append(1), encode(self, image, *a)),
    )
    explorer.set(view="frame_00002.jpg", x=5, y=6)
    explorer.set(x=50)
    # the view and its crops
    assert len(encoded) == 1 + 4 * (run.config.front_end.sam.crop_layers == 1)
    image = explorer.images["frame_00002.jpg"]
    expected, _ = SamClicks(run.front_end.masks).click(image, np.array([[50.5, 6.5]]))
    masks, _ = explorer.click("frame_00002.jpg", 50, 6)
    assert (
        np.array_equal(masks, expected[0])
        and "mini-SAM" in explorer.says()
        and "simulated masks" not in explorer.says()
    )


def test_answers_follow_threshold_and_level(play):
    run = play.query.run
    low, high = (run.answer("frame_00001.jpg", "red apple", threshold=t).mask for t in (0.1, 0.9))
    assert low.sum() >= high.sum() and not (high & ~low).any()
    for level in LEVELS:
        assert run.answer("frame_00001.jpg", "red apple", level=level).level == LEVELS.index(level)
    with pytest.raises(ConfigError, match="level='pp' is unknown"):
        run.answer("frame_00001.jpg", "red apple", level="pp")


def test_mistakes_become_messages_and_pictures_stay(play):
    before = [p.value for p in play.query.pictures]
    play.query.set(text="  ")
    assert (
        'role="alert"' in play.query.note.value
        and "empty" in play.query.note.value
        and [p.value for p in play.query.pictures] == before
    )
    play.query.set(text="<b>zyx</b>")
    assert (
        "alert" not in play.query.note.value
        and "<b>" not in "".join(shown(play.query))
        and "never seen" in play.query.note.value
    )
    play.query.set(text="red apple")
    play.tracks.set(track=play.tracks.controls["track"].max)
    with pytest.raises(ConfigError, match="no control 'lambda'.*margin"):
        play.ccl.set(**{"lambda": 1})
    with pytest.raises(ConfigError, match="view cannot be 'x.jpg'"):
        play.query.set(view="x.jpg")
    with pytest.raises(ConfigError, match="no control 'colour'"):
        play.query.figure(colour=1)


def test_headless_runs_get_a_sentence_and_kernels_get_controls(play, monkeypatch):
    monkeypatch.setenv("CCLKIT_QUIET", "1")
    assert (
        set(play.ccl._repr_mimebundle_()) == {"text/plain", "text/html"}
        and "JupyterLab" in play.ccl._repr_mimebundle_()["text/html"]
    )
    monkeypatch.delenv("CCLKIT_QUIET")
    assert (
        "application/vnd.jupyter.widget-view+json" in play.ccl._repr_mimebundle_()
        and play.ccl._repr_mimebundle_()["text/plain"] == "Live CCL"
    )
    assert isinstance(play.ccl.widget, ipywidgets.VBox)


def test_the_live_codebook_answers_to_its_labels(play):
    """At noise 0 there is nothing to gain; the table counts every mask once."""
    people, plain = play.ccl._people(0.0, 0)
    assert "100 %" in play.ccl.draw(0.25, 0.25, 0.7, 0.0, 0).panels[1][0]
    titles = [[t for t, _ in play.ccl.draw(pull, 0.25, 0.7, 0.4, 0).panels] for pull in (0.0, 1.0)]
    # the baseline does not know λ
    assert titles[0][0] == titles[1][0] and titles[0][1] != titles[1][1]
    assert (
        len(people.features)
        == play.ccl.CLASSES * play.ccl.VIEWS
        == int(np.bincount(plain.codes(people.features)).sum())
    )


def test_the_notebook_shows_every_explorer_with_a_twin():
    from test_notebooks import ROOT

    nb = nbformat.read(ROOT / "notebooks/08_playground.ipynb", 4)
    code = [c.source for c in nb.cells if c.cell_type == "code"]
    for name in OTHER:
        assert f"play.{name}" in code, name
        assert any(f"play.{name}.figure(" in c for c in code), name
