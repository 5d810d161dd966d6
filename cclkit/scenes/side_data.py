"""What any layout may carry too: depth, ground truth ids, held-out views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import SceneError
from .common import image_size, read_json
from .scene import GRANULARITIES, GroundTruth, View


def read_side_data(root: Path, views: tuple[View, ...]) -> tuple[dict[str, Any], list[Path]]:
    """Fields of Scene that stand in ``depth/``, ``ground_truth/`` (or ``instances/``) and
    ``scene.json``, and the files read. Raises SceneError for any that does not fit the views.
    """
    fields: dict[str, Any] = {}
    files: list[Path] = []
    for reader in (_depth, _ground_truth, _held_out):
        more, used = reader(root, views)
        fields.update(more)
        files.extend(used)
    return fields, files


def _check_maps(folder: Path, views: tuple[View, ...], what: str) -> list[Path]:
    paths = [folder / f"{v.stem}.png" for v in views]
    for path, v in zip(paths, views):
        if not path.is_file():
            raise SceneError(
                f"{path}: no {what} for view {v.name}; restore the file, or remove the folder"
                f" {folder.name}/ to do without"
            )
        size = image_size(path)
        if size != (v.camera.width, v.camera.height):
            raise SceneError(
                f"{path}: {what} is {size[0]}x{size[1]}, its view {v.name}"
                f" {v.camera.width}x{v.camera.height}; restore the file of this view"
            )
    return paths


def _depth(root: Path, views):
    folder = root / "depth"
    if not folder.is_dir():
        return {}, []
    return {"depth_folder": folder}, _check_maps(folder, views, "depth map")


def _ground_truth(root: Path, views):
    """``ground_truth/`` with three granularities, or YCB's ``instances/`` with whole objects."""
    if (root / "ground_truth").is_dir():
        listing = root / "ground_truth" / "objects.json"
        folders = {
            g: root / "ground_truth" / g
            for g in GRANULARITIES
            if (root / "ground_truth" / g).is_dir()
        }
        if "whole" not in folders:
            raise SceneError(
                f"{root / 'ground_truth' / 'whole'}: no such folder; finer id maps fall back on the"
                " whole ones: restore it"
            )
        truth = _objects(listing, folders)
    elif (root / "instances").is_dir():
        listing = root / "instances" / "classes.json"
        data = read_json(listing)
        try:
            names = {int(k): str(v) for k, v in data.items()}
        except (AttributeError, ValueError, OverflowError) as e:
            raise SceneError(
                f"{listing}: expected an object that maps whole numbers to names; restore the file"
            ) from e
        queries = tuple({"text": n, "granularity": "whole", "ids": [i]} for i, n in names.items())
        truth = GroundTruth({"whole": root / "instances"}, names, queries=queries)
    else:
        return {}, []
    files = [listing] + [
        p for folder in truth.folders.values() for p in _check_maps(folder, views, "id map")
    ]
    return {"ground_truth": truth}, files


def _objects(listing: Path, folders: dict[str, Path]) -> GroundTruth:
    """objects.json: {"nodes": [{"id", "name", "level", "parent", "stuff"}], "queries": [{"text",
    "granularity", "ids"}]}.
    """
    data = read_json(listing)
    try:
        nodes = {int(n["id"]): n for n in data["nodes"]}
        if len(nodes) != len(data["nodes"]):
            raise ValueError("an id occurs twice")
        names = {i: str(n["name"]) for i, n in nodes.items()}
        parents = {
            i: int(n["parent"]) for i, n in nodes.items() if n.get("parent") not in (None, 0, -1)
        }
        stuff = frozenset(i for i, n in nodes.items() if n.get("stuff"))
        queries = tuple(
            {
                "text": str(q["text"]),
                "granularity": str(q["granularity"]),
                "ids": [int(i) for i in q["ids"]],
            }
            for q in data.get("queries", [])
        )
        if unknown := [p for p in parents.values() if p not in nodes] + [
            i for q in queries for i in q["ids"] if i not in nodes
        ]:
            raise ValueError(f"id {unknown[0]} is used but no node has it")
        if wrong := [q["granularity"] for q in queries if q["granularity"] not in GRANULARITIES]:
            raise ValueError(
                f"granularity {wrong[0]!r}, expected one of {', '.join(GRANULARITIES)}"
            )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
        detail = f"key {e} is missing" if isinstance(e, KeyError) else e
        raise SceneError(
            f"{listing}: not a list of ground-truth nodes and queries ({detail}); restore the file"
            " or generate the scene again"
        ) from e
    return GroundTruth(folders, names, parents, stuff, queries)


def _held_out(root: Path, views):
    path = root / "scene.json"
    if not path.is_file():
        return {}, []
    data = read_json(path)
    held_out = data.get("held_out", []) if isinstance(data, dict) else None
    if not isinstance(held_out, list) or not all(isinstance(n, str) for n in held_out):
        raise SceneError(
            f'{path}: expected an object with "held_out": [view names]; correct the file'
        )
    if unknown := sorted(set(held_out) - {v.name for v in views}):
        raise SceneError(
            f"{path}: held_out names {unknown[0]!r}, which is no view of the scene; use image file"
            f" names such as {views[0].name!r}"
        )
    if len(set(held_out)) == len(views):
        raise SceneError(f"{path}: held_out names every view; leave at least one for training")
    return {"held_out": frozenset(held_out)}, [path]
