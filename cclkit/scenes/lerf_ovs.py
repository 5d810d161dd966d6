"""LERF-OVS labels: ``<scene>/../label/<scene name>/*.json``, polygons and boxes per labelled view.

Units of evaluation are (view, category): objects of one category in one view are merged (masks
united, boxes collected), in order of first appearance (protocol A).
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..errors import SceneError
from . import colmap
from .common import natural_key, read_json
from .layout import Layout
from .scene import LabelledObject, View

FAR = 4
"""A vertex further outside than this many image sizes is an error of the file, not an overhanging
polygon.
"""


def label_folder(scene: Path) -> Path:
    """Where the labels of a scene lie: beside the scenes, in a folder named ``label``."""
    scene = scene.resolve()
    return scene.parent / "label" / scene.name


def read_labels(
    folder: Path, views: tuple[View, ...]
) -> tuple[dict[str, tuple[LabelledObject, ...]], tuple[Path, ...]]:
    """Labels by view name, and the files they came from.

    The public data may hold entries that cannot be used; these are skipped, counted and named in
    one warning: a file whose view is not registered, an object without a polygon, a polygon that
    lies wholly outside its image. Everything else that does not fit is a SceneError: no file, a
    file without any polygon, another image size, coordinates that are no numbers, a missing box.
    """
    files = (
        sorted(folder.glob("*.json"), key=lambda p: natural_key(p.name)) if folder.is_dir() else []
    )
    if not files:
        raise SceneError(
            f"{folder}: no label file (*.json); copy the labels of this scene there, or load the"
            " scene with layout='colmap' to do without"
        )
    by_name = {v.name: v for v in views}
    by_stem = {v.stem: v for v in views}
    labels: dict[str, tuple[LabelledObject, ...]] = {}
    skipped: list[str] = []
    for path in files:
        data = read_json(path)
        info = data.get("info") if isinstance(data, dict) else None
        objects = data.get("objects") if isinstance(data, dict) else None
        if not isinstance(info, dict) or not isinstance(objects, list):
            raise SceneError(
                f"{path}: not a LERF-OVS label file; expected the keys 'info' (name, height, width)"
                " and 'objects' (a list): restore the file"
            )
        # The file's own name is the key; info.name is the fallback, never a list position.
        view = by_stem.get(path.stem) or by_name.get(str(info.get("name")))
        if view is None:
            skipped.append(f"{path.name}: its view is not in the camera model")
            continue
        if view.name in labels:
            raise SceneError(
                f"{path}: a second label file for view {view.name!r}; keep one of them"
            )
        size = (info.get("width"), info.get("height"))
        if size != (view.camera.width, view.camera.height):
            raise SceneError(
                f"{path}: info says {size[0]}x{size[1]} pixels, the view {view.name} has"
                f" {view.camera.width}x{view.camera.height}; use the images the labels were"
                " drawn on"
            )
        labels[view.name] = _merge(path, objects, view, skipped)
    if skipped:
        warnings.warn(
            f"{folder}: {len(skipped)} label entries skipped: {'; '.join(skipped)}", stacklevel=2
        )
    if not labels:
        raise SceneError(
            f"{folder}: none of the {len(files)} label files belongs to a registered view"
            f" ({views[0].name} … {views[-1].name}); check that labels and images are of one scene"
        )
    return labels, tuple(files)


def fill_polygon(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:  # [H, W] bool
    """Mask of one polygon: outline and even-odd interior, coordinates cut towards zero (protocol
    A).

    ``points`` [n, 2] are x, y. Inside the image this is cv2.fillPoly exactly. OpenCV first clips
    edges that leave the image, with a rounding that changed between its versions; here the polygon
    is filled on a canvas large enough to hold it and the image is cut out, which is the written
    rule without clipping, the same on every version.
    """
    h, w = shape
    p = np.trunc(np.asarray(points, np.float64)).astype(np.int64)
    low = np.minimum(p.min(axis=0), 0)
    high = np.maximum(p.max(axis=0), [w - 1, h - 1])
    canvas = np.zeros((high - low + 1)[::-1], np.uint8)
    cv2.fillPoly(canvas, [(p - low).astype(np.int32)], 1)
    return canvas[-low[1] : h - low[1], -low[0] : w - low[0]].astype(bool)


# ---------------------------------------------------------------------------


def _merge(path: Path, objects: list, view: View, skipped: list[str]) -> tuple[LabelledObject, ...]:
    shape = (view.camera.height, view.camera.width)
    masks: dict[str, np.ndarray] = {}
    boxes: dict[str, list] = {}
    for number, item in enumerate(objects):
        where = f"{path}: object {number}"
        category = item.get("category") if isinstance(item, dict) else None
        if not isinstance(category, str) or not category.strip():
            raise SceneError(
                f"{where}: category is {category!r}, expected a text; correct the label file"
            )
        where += f" ({category!r})"
        polygon = item.get("segmentation")
        if polygon is None or polygon == []:
            skipped.append(f"{path.name}: {category!r} has no polygon")
            continue
        points = _numbers(polygon, 2)
        if points is None:
            raise SceneError(
                f"{where}: segmentation is not one list of finite [x, y] points; correct the label"
                " file"
            )
        if (np.abs(points) > FAR * max(shape)).any():
            raise SceneError(
                f"{where}: the polygon reaches {np.abs(points).max():g} in an image of"
                f" {shape[1]}x{shape[0]}; coordinates must be pixels: correct the label file"
            )
        box = _numbers([item.get("bbox")], 4)
        if box is None:
            raise SceneError(
                f"{where}: bbox is {item.get('bbox')!r}, expected [x1, y1, x2, y2] in pixels;"
                " correct the label file"
            )
        mask = fill_polygon(points, shape)
        if not mask.any():
            skipped.append(f"{path.name}: the polygon of {category!r} lies outside the image")
            continue
        masks[category] = masks[category] | mask if category in masks else mask
        boxes.setdefault(category, []).append(box[0])
    if not masks:
        raise SceneError(
            f"{path}: no object with a polygon inside the image ({len(objects)} objects in all);"
            " draw one, or remove the file"
        )
    return tuple(LabelledObject(c, m, np.array(boxes[c], np.float64)) for c, m in masks.items())


def _numbers(rows, columns: int) -> np.ndarray | None:
    """[n, columns] float64, or None when the value is anything else."""
    if not isinstance(rows, list) or not rows:
        return None
    for row in rows:
        if not isinstance(row, list) or len(row) != columns:
            return None
        if not all(
            isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)
            for v in row
        ):
            return None
    return np.array(rows, np.float64)


def read_fields(root: Path) -> dict[str, Any]:
    """A COLMAP scene with labels."""
    fields = colmap.read_fields(root)
    labels, used = read_labels(label_folder(root), fields["views"])
    return fields | {"labels": labels, "files": [*fields["files"], *used]}


LAYOUT = Layout(
    found=lambda root: label_folder(root).is_dir(),
    read=read_fields,
    expected="the same with labels in ../label/<scene>/ (LERF-OVS)",
)
