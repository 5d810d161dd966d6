"""Tabletop: a path-traced benchmark with the structure of LERF-OVS and 3D-OVS and exact ground
truth.

``generate(name, out)`` renders one scene from its seed, ``regenerate(folder)`` compares a folder
with a new render, ``correspondences(scene, a, b)`` matches two views; ``python -m lab.tabletop``
does the first two from a shell and packs archives. Mitsuba 3 is needed for rendering only, never to
use the committed scenes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cclkit.errors import ConfigError, SceneError
from cclkit.scenes.common import read_json
from cclkit.scenes.scene import DEPTH_UNIT, Scene, read_id_map

from .recipes import RECIPES, plan as plan_scene

SCENES = tuple(RECIPES)

SAME_SURFACE = 5e-4
"""Metres by which two depths of one surface point may differ: five steps of the stored depth."""

GREY_LEVELS = 2
"""How far a photograph rendered again may be from the committed one, of 255."""


def correspondences(scene: Scene, a: str, b: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where view ``b`` sees the surface behind every pixel of view ``a``, from depth, cameras and
    ids.

    The surface point on the ray through a pixel centre of ``a`` is projected into ``b``. It is
    visible there if b's depth, interpolated between the four pixel centres around, is the point's
    own within ``SAME_SURFACE``, and if b's whole-object id at that pixel is the same. Against rays
    traced through the scene, 99.7 % or more of what is called visible is, and 87 to 95 % of what is
    visible is called so: what is lost are pixels at silhouettes, where four neighbouring depths
    belong to two surfaces.

    Args:
        scene: a scene with depth and ground truth, as every Tabletop scene. a, b: view names.
    Returns:
        xy_a [N, 2], xy_b [N, 2] float64 pixel positions (pixel centres at +0.5), visible [N] bool,
        for the N pixels of ``a`` in row order that have depth and whose points fall inside b's
        image, before its camera.
    Raises:
        SceneError: an unknown view, or a scene without depth or without ground truth.
    """
    from scipy.ndimage import map_coordinates

    if scene.ground_truth is None:
        raise SceneError(
            f"{scene.path}: the scene has no ground_truth/ ids; correspondences need depth and ids,"
            " which Tabletop scenes have"
        )
    view_a, view_b = scene.view(a), scene.view(b)
    depth_a, depth_b = scene.depth(view_a), scene.depth(view_b)
    ids_a, ids_b = (scene.ground_truth.ids(v, "whole") for v in (view_a, view_b))
    y, x = np.nonzero(depth_a > 0)
    xy_b, z = view_b.camera.project(view_a.camera.backproject(depth_a)[y, x])
    inside = (
        (z > 0) & (xy_b >= 0).all(1) & (xy_b < [view_b.camera.width, view_b.camera.height]).all(1)
    )
    x, y, xy_b, z = x[inside], y[inside], xy_b[inside], z[inside]
    there = map_coordinates(depth_b, [xy_b[:, 1] - 0.5, xy_b[:, 0] - 0.5], order=1, mode="nearest")
    column, row = np.floor(xy_b).astype(int).T
    visible = (np.abs(there - z) < SAME_SURFACE) & (ids_a[y, x] == ids_b[row, column])
    return np.stack([x, y], 1) + 0.5, xy_b, visible


def render_view(scene, plan, shot, *, spp: int | None = None, seed: int = 0, photo: bool = True):
    """One view of a built scene as an ``export.Rendered`` (black photograph if
    ``photo`` is False).
    """
    from .export import Rendered
    from .layout import LEVELS, nodes
    from .render import buffers, develop, photograph

    _, rows = nodes(plan)
    b = buffers(scene, shot.camera)
    hit = b.leaf >= 0
    ids = {
        level: np.where(hit, rows[b.leaf, k], 0).astype(np.int32) for k, level in enumerate(LEVELS)
    }
    image = np.zeros((*b.depth.shape, 3), np.uint8)
    if photo:
        glass = any(l.material.kind == "glass" for l in plan.leaves)
        image = develop(
            photograph(scene, shot, spp or plan.spp, seed, glass=glass), shot, plan.exposure, seed
        )
    return Rendered(shot, image, ids, np.rint(b.depth / DEPTH_UNIT) * DEPTH_UNIT)


def generate(name: str, out: str | Path, *, spp: int | None = None, progress: bool = True) -> Path:
    """Render a benchmark scene below ``out`` (out/lerf_ovs/NAME or out/3d_ovs/NAME); returns its
    folder.

    ``spp`` overrides the recipe's paths per pixel (the photographs then differ from the committed
    ones).

    Raises ConfigError for an unknown name and DependencyError without Mitsuba.
    """
    plan = plan_scene(name)
    from .export import write
    from .render import build

    scene = build(plan)
    shots = plan.shots
    if progress:
        from tqdm.auto import tqdm

        shots = tqdm(shots, desc=name, unit="view")
    views = [render_view(scene, plan, s, spp=spp, seed=_seed(plan, s)) for s in shots]
    return write(plan, views, Path(out))


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
    from . import export
    from .layout import LEVELS, nodes
    from .render import build

    plan = plan_scene(folder.name)
    if not 1 <= views <= len(plan.shots):
        raise ConfigError(
            f"{plan.name}: {views} views to render again; expected 1 to {len(plan.shots)}"
        )
    scene = build(plan)
    table, _ = nodes(plan)
    _same(
        folder / "ground_truth" / "objects.json", {"nodes": table, "queries": export.queries(table)}
    )
    cameras = read_json(folder / "scene.json").get("views", {})
    for k, shot in enumerate(sorted(plan.shots, key=lambda s: s.name not in plan.labelled)[:views]):
        new = render_view(scene, plan, shot, seed=_seed(plan, shot), photo=k < photographs)
        if cameras.get(shot.name) != export.camera_json(shot.camera):
            raise SceneError(
                f"{folder / 'scene.json'}: another camera for {shot.name} than the recipe's;"
                f" {_REMEDY}"
            )
        expected = {f"ground_truth/{level}": new.ids[level] for level in LEVELS} | {
            "depth": np.rint(new.depth / DEPTH_UNIT)
        }
        for sub, want in expected.items():
            path = folder / sub / f"{new.stem}.png"
            if wrong := int((read_id_map(path, want.shape) != want).sum()):
                raise SceneError(
                    f"{path}: {wrong} of {want.size} pixels differ from a new render, expected"
                    f" none; {_REMEDY}"
                )
        labelled = shot.name in plan.labelled
        if labelled and plan.kind == "lerf_ovs":
            _same(
                folder.parent / "label" / folder.name / f"{new.stem}.json",
                export.label_file(new, export.label_queries(plan, table)),
            )
        elif labelled:
            for q in (q for q in export.queries(table) if q["granularity"] == "whole"):
                path = folder / "segmentations" / new.stem / f"{q['text']}.png"
                if not np.array_equal(
                    read_id_map(path, new.depth.shape), np.isin(new.ids["whole"], q["ids"]) * 255
                ):
                    raise SceneError(f"{path}: differs from a new render; {_REMEDY}")
        grey = None
        if k < photographs:
            path = folder / "images" / shot.name
            grey = int(
                np.abs(
                    export.decoded(export.jpeg(new.image)).astype(int)
                    - export.decoded(path.read_bytes())
                ).max()
            )
            if grey > GREY_LEVELS:
                raise SceneError(
                    f"{path}: up to {grey} grey levels from a new render, expected at most"
                    f" {GREY_LEVELS}; {_REMEDY}"
                )
        yield {"view": shot.name, "labels": labelled, "grey_levels": grey}


_REMEDY = (
    "render the scene again with the recipe and Mitsuba as they are (python -m lab.tabletop"
    " render), or return to those it was made with"
)


def _seed(plan, shot) -> int:
    return plan.seed * 1000 + plan.shots.index(shot)


def _same(path: Path, want) -> None:
    if read_json(path) != json.loads(json.dumps(want)):
        raise SceneError(f"{path}: differs from what a new render gives; {_REMEDY}")
