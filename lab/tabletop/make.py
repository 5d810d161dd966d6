"""Scenes from their seeds: rendering them, and comparing a folder with a new render."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from cclkit.errors import ConfigError, SceneError
from cclkit.scenes.common import read_json
from cclkit.scenes.scene import DEPTH_UNIT, read_id_map

from . import export, render
from .layout import LEVELS, Layout, nodes
from .recipes import RECIPES, plan as plan_scene

SCENES = tuple(RECIPES)

GREY_LEVELS = 2
"""How far a photograph rendered again may be from the committed one, of 255."""


def render_view(scene, plan, shot, *, spp: int | None = None, seed: int = 0, photo: bool = True):
    """One view of a built scene as an ``export.Rendered`` (black photograph if
    ``photo`` is False).
    """
    _, rows = nodes(plan)
    b = render.buffers(scene, shot.camera)
    hit = b.leaf >= 0
    ids = {
        level: np.where(hit, rows[b.leaf, k], 0).astype(np.int32) for k, level in enumerate(LEVELS)
    }
    image = np.zeros((*b.depth.shape, 3), np.uint8)
    if photo:
        glass = any(l.material.kind == "glass" for l in plan.leaves)
        photograph = render.photograph(scene, shot, spp or plan.spp, seed, glass=glass)
        image = render.develop(photograph, shot, plan.exposure, seed)
    return export.Rendered(shot, image, ids, np.rint(b.depth / DEPTH_UNIT) * DEPTH_UNIT)


def generate(name: str, out: str | Path, *, spp: int | None = None, progress: bool = True) -> Path:
    """Render a benchmark scene below ``out`` (out/lerf_ovs/NAME or out/3d_ovs/NAME); returns its
    folder.

    ``spp`` overrides the recipe's paths per pixel (the photographs then differ from the committed
    ones).

    Raises ConfigError for an unknown name and DependencyError without Mitsuba.
    """
    plan = plan_scene(name)
    scene = render.build(plan)
    shots = plan.shots
    if progress:
        shots = tqdm(shots, desc=name, unit="view")
    views = [render_view(scene, plan, s, spp=spp, seed=_seed(plan, s)) for s in shots]
    return export.write(plan, views, Path(out))


def regenerate(folder: Path, views: int = 1, *, photographs: int = 1) -> Iterator[dict]:
    """Render views of a scene folder again from the seed and compare with its files, without
    writing any.

    Ids at three levels, depth, camera and labels have to be the same bit for bit, the hierarchy of
    objects too; photographs, rendered at full samples, may differ by ``GREY_LEVELS``. Labelled
    views come first. ``verify_sums`` is the check that all files are there and readable, and
    comes before this one.

    Args:
        folder: a scene folder whose name is that of a recipe. views: how many. photographs: of how
        many of them
            the photograph too (some seconds each; ids and depth take about one).
    Yields:
        Per view {"view": name, "labels": whether it has labels, "grey_levels": largest difference
        of the photograph, or None if it was not rendered}.
    Raises:
        SceneError: a file that differs, by name. ConfigError: no such recipe. DependencyError: no
        Mitsuba.
    """
    plan = plan_scene(folder.name)
    if not 1 <= views <= len(plan.shots):
        raise ConfigError(
            f"{plan.name}: {views} views to render again; expected 1 to {len(plan.shots)}"
        )
    scene = render.build(plan)
    table, _ = nodes(plan)
    objects = {"nodes": table, "queries": export.queries(table)}
    _same(folder / "ground_truth" / "objects.json", objects)
    cameras = read_json(folder / "scene.json").get("views", {})
    shots = sorted(plan.shots, key=lambda s: s.name not in plan.labelled)[:views]
    for k, shot in enumerate(shots):
        new = render_view(scene, plan, shot, seed=_seed(plan, shot), photo=k < photographs)
        if cameras.get(shot.name) != export.camera_json(shot.camera):
            raise SceneError(
                f"{folder / 'scene.json'}: another camera for {shot.name} than the recipe's;"
                f" {_REMEDY}"
            )
        _same_maps(folder, new)
        labelled = shot.name in plan.labelled
        if labelled:
            _same_labels(folder, new, plan, table)
        grey = _grey_levels(folder, new) if k < photographs else None
        yield {"view": shot.name, "labels": labelled, "grey_levels": grey}


def _same_maps(folder: Path, new: export.Rendered) -> None:
    """Ids at three levels and depth."""
    expected = {f"ground_truth/{level}": new.ids[level] for level in LEVELS}
    expected["depth"] = np.rint(new.depth / DEPTH_UNIT)
    for sub, want in expected.items():
        path = folder / sub / f"{new.stem}.png"
        if wrong := int((read_id_map(path, want.shape) != want).sum()):
            raise SceneError(
                f"{path}: {wrong} of {want.size} pixels differ from a new render, expected"
                f" none; {_REMEDY}"
            )


def _same_labels(folder: Path, new: export.Rendered, plan: Layout, table: list[dict]) -> None:
    """The label file, or the masks of all classes."""
    if plan.kind == "lerf_ovs":
        path = folder.parent / "label" / folder.name / f"{new.stem}.json"
        _same(path, export.label_file(new, export.label_queries(plan, table)))
        return
    for q in (q for q in export.queries(table) if q["granularity"] == "whole"):
        path = folder / "segmentations" / new.stem / f"{q['text']}.png"
        want = np.isin(new.ids["whole"], q["ids"]) * 255
        if not np.array_equal(read_id_map(path, new.depth.shape), want):
            raise SceneError(f"{path}: differs from a new render; {_REMEDY}")


def _grey_levels(folder: Path, new: export.Rendered) -> int:
    """How far the photograph is from the committed one at most."""
    path = folder / "images" / new.shot.name
    rendered = export.decoded(export.jpeg(new.image)).astype(int)
    grey = int(np.abs(rendered - export.decoded(path.read_bytes())).max())
    if grey > GREY_LEVELS:
        raise SceneError(
            f"{path}: up to {grey} grey levels from a new render, expected at most"
            f" {GREY_LEVELS}; {_REMEDY}"
        )
    return grey


_REMEDY = (
    "render the scene again with the recipe and Mitsuba as they are (python -m lab.tabletop"
    " render), or return to those it was made with"
)


def _seed(plan, shot) -> int:
    return plan.seed * 1000 + plan.shots.index(shot)


def _same(path: Path, want) -> None:
    if read_json(path) != json.loads(json.dumps(want)):
        raise SceneError(f"{path}: differs from what a new render gives; {_REMEDY}")
