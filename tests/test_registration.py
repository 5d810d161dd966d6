"""One registration each: a dummy of every kind, from outside, takes part in a run."""

import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from conftest import write_plane_scene

from cclkit.config import profile
from cclkit.errors import ConfigError
from cclkit.foundation.front_end import ENCODERS, PROPOSERS, TRACKERS
from cclkit.runs.run import Run
from cclkit.scenes.load import LAYOUTS, load_scene

PLUGIN = """
import numpy as np

from cclkit.evaluation.metrics import iou
from cclkit.evaluation.protocols import Protocol
from cclkit.foundation.roles import Model
from cclkit.method.interfaces import Candidates
from cclkit.scenes import colmap
from cclkit.scenes.layout import Layout


class Quarters:
    '''Proposes the four quarters of a picture, as wholes.'''

    def propose(self, view):
        h, w = view.camera.height, view.camera.width
        y, x = np.mgrid[:h, :w]
        masks = np.stack([(2 * y // h == k // 2) & (2 * x // w == k % 2) for k in range(4)])
        return Candidates(masks, np.full(4, 2), np.ones(4), np.ones(4))


class Still:
    '''Carries masks as if the camera stood still.'''

    def propagate(self, views, masks, keep=None):
        for view in views:
            yield view, masks


class Colours:
    '''Embeds a mask by its mean colour, a text by its length.'''

    dim = 4

    def encode_masks(self, view, masks):
        image = view.image() / 255
        rows = [np.append(image[m].mean(0), 1) for m in masks]
        rows = np.array(rows, np.float32).reshape(-1, 4)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def encode_text(self, phrases):
        rows = np.array([[len(p), 1, 2, 3] for p in phrases], np.float32).reshape(-1, 4)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def unknown_words(self, phrase):
        return []


PROPOSER = Model(build=lambda setup: Quarters(), label=lambda settings: "quarters")
TRACKER = Model(build=lambda setup: Still(), label=lambda settings: "still tracks")
ENCODER = Model(build=lambda setup: Colours(), label=lambda settings: "colours")
LAYOUT = Layout(
    found=lambda root: (root / "mine.txt").is_file(),
    read=lambda root: colmap.read_fields(root),
    expected="mine.txt beside a COLMAP scene (mine)",
)
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A module of a user's own, registered by a line for each kind."""
    name = f"plugin_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(PLUGIN))
    monkeypatch.syspath_prepend(str(tmp_path))
    module = __import__(name)
    monkeypatch.setitem(PROPOSERS, "mine", module.PROPOSER)
    monkeypatch.setitem(TRACKERS, "mine", module.TRACKER)
    monkeypatch.setitem(ENCODERS, "mine", module.ENCODER)
    yield module
    del sys.modules[name]


MINE = {f"front_end.{k}": "mine" for k in ("masks", "propagation", "features")}
SMALL = {
    "gaussians.iterations": 3,
    "gaussians.start_gaussians": 500,
    "gaussians.densify": False,
    "field.iterations": 5,
    "codebook.n_prototypes": 4,
    "codebook.steps": 5,
}


def test_models_of_ones_own_take_all_roles(plugin, tmp_path):
    scene = write_plane_scene(tmp_path / "scene")
    run = Run(scene, profile("mini", **MINE, **SMALL), tmp_path / "run")
    lines = []
    run.to(report=lines.append)
    assert len(lines) == 8 and run.front_end.label == "quarters, still tracks, colours"
    view = run.scene.training_views[1]
    assert len(run.masks(view)) == 4 and run.features(view).shape == (4, 4)
    assert sorted(run.tracks(view).label.tolist()) == [1, 2, 3, 4]
    assert run.answer(run.scene.views[0], "bear").mask.shape == run.masks(view).sp.shape
    assert run.ensure("tracks").record["front_end"] == run.front_end.label


def test_the_code_of_such_a_model_counts_for_the_keys(plugin, tmp_path, monkeypatch):
    """Another file behind the name: another key, of the stages that ask this model and no other."""
    scene = load_scene(write_plane_scene(tmp_path / "scene"))
    run = Run.planned(scene, profile("mini", **MINE, **SMALL), tmp_path / "run")
    before = {s: run.key(s) for s in ("candidates", "masks", "features", "tracks", "gaussians")}
    other = Path(plugin.__file__).with_name("other_plugin.py")
    other.write_text(
        Path(plugin.__file__).read_text().replace("len(p), 1, 2, 3", "len(p), 1, 2, 4")
    )
    monkeypatch.setitem(ENCODERS, "mine", __import__("other_plugin").ENCODER)
    after = {s: run.key(s) for s in before}
    assert {s for s in before if before[s] != after[s]} == {"features"}
    del sys.modules["other_plugin"]


def test_two_trackers_of_one_file_have_two_keys(plugin, tmp_path, monkeypatch):
    scene = load_scene(write_plane_scene(tmp_path / "scene"))
    monkeypatch.setitem(TRACKERS, "other", plugin.TRACKER)
    run = Run.planned(scene, profile("mini", **MINE, **SMALL), tmp_path / "run")
    assert run.vary(front_end__propagation="other").key("tracks") != run.key("tracks")


def test_a_name_that_nobody_registered_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="front_end.masks='mine' is unknown; use one of sam, sim"):
        profile("mini", **MINE)


def test_a_layout_of_ones_own_is_recognised(plugin, tmp_path, monkeypatch):
    folder = write_plane_scene(tmp_path / "scene")
    (folder / "mine.txt").write_text("mine")
    monkeypatch.setattr("cclkit.scenes.load.LAYOUTS", {"mine": plugin.LAYOUT} | LAYOUTS)
    scene = load_scene(folder)
    assert scene.layout == "mine" and len(scene.views) > 2 and not scene.labels
    run = Run.planned(scene, profile("mini"), tmp_path / "run")
    assert len(run.key("masks")) == 16
    monkeypatch.undo()
    assert load_scene(folder).layout == "lerf_ovs"
    assert np.array_equal(load_scene(folder).views[0].camera.K, scene.views[0].camera.K)
