"""``load_scene``: find out which layout a folder has, read it, check it."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path

import numpy as np

from .. import registry
from ..errors import SceneError
from . import colmap, lerf_ovs, ovs3d
from .common import image_size, read_json
from .scene import GRANULARITIES, GroundTruth, Scene, View

LAYOUTS = ("3d_ovs", "lerf_ovs", "colmap")
"""In the order in which content decides."""


def load_scene(path, *, layout: str | None = None) -> Scene:
    """Read a scene folder, or a bundled or fetched scene by its name.

    Layouts are told apart by content: a ``segmentations`` folder is 3D-OVS; labels in
    ``../label/<scene name>`` are LERF-OVS; a COLMAP model alone is ``colmap``. Any layout may also
    carry ``depth/<stem>.png``, ``ground_truth/`` or ``instances/`` id maps, and ``scene.json`` with
    "held_out": [view names]. Images are not loaded; their headers are checked.

    Args:
        path: a folder, a bare name such as "tea_party" found among ``bundled_scenes()``, or a
        fetched
            scene such as "lerf_ovs/teatime".
        layout: "3d_ovs", "lerf_ovs" or "colmap" instead of detection.
    Returns:
        A Scene, views in natural numeric order of their names.
    Raises:
        SceneError naming the file, what was found, what was expected and the remedy.
    """
    root = _resolve(path)
    if layout is None:
        layout = detect_layout(root)
    elif layout not in LAYOUTS:
        raise SceneError(
            f"layout {layout!r} is unknown; use one of {', '.join(LAYOUTS)}, or leave it out to"
            " detect it"
        )
    try:
        return _read(root, layout)
    except OSError as e:  # a file that vanished or may not be read between two steps
        raise SceneError(
            f"{e.filename or root}: cannot be read ({e.strerror or e}); check that it exists and"
            " that you may read it"
        ) from e


def detect_layout(root: Path) -> str:
    """ "3d_ovs", "lerf_ovs" or "colmap". Raises SceneError saying what the folder holds."""
    if (root / "segmentations").is_dir():
        return "3d_ovs"
    if lerf_ovs.label_folder(root).is_dir():
        return "lerf_ovs"
    if colmap.find_model(root) is not None:
        return "colmap"
    found = sorted(p.name + ("/" if p.is_dir() else "") for p in root.iterdir())
    shown = ", ".join(found[:12]) + (" …" if len(found) > 12 else "")
    raise SceneError(
        f"{root}: not a scene, found {shown or 'an empty folder'}; expected images/ with sparse/0/"
        f" (COLMAP), the same with labels in ../label/{root.resolve().name}/ (LERF-OVS), or images/"
        " with segmentations/ and poses_bounds.npy (3D-OVS). Point at the folder of one scene"
    )


def data_folder() -> Path:
    """Folder of the bundled data: CCLKIT_DATA if it holds ``tabletop``, else ``data`` beside the
    package.
    """
    chosen = os.environ.get("CCLKIT_DATA")
    return Path(chosen) if chosen and (Path(chosen) / "tabletop").is_dir() else registry.DATA


def bundled_scenes() -> dict[str, Path]:
    """Bundled scenes by name, LERF-OVS layout first; empty if the data folder is not there."""
    found: dict[str, Path] = {}
    for layout in ("lerf_ovs", "3d_ovs"):
        parent = data_folder() / "tabletop" / layout
        if parent.is_dir():
            for folder in sorted(p for p in parent.iterdir() if (p / "images").is_dir()):
                found.setdefault(folder.name, folder)
    return found


def content_hash(scene: Scene) -> str:
    """sha256 (hex) over layout, names and bytes of all files the scene uses: its artefact key.

    Names are relative to the scene (label files, which lie beside it, count as ``label/<name>``),
    so a copy elsewhere has the same hash. Raises SceneError if a file has vanished.
    """
    root = scene.path.resolve()
    names = {}
    for path in scene.files:
        full = path.resolve()
        names[
            full.relative_to(root).as_posix() if full.is_relative_to(root) else f"label/{path.name}"
        ] = path
    total = hashlib.sha256(f"cclkit-scene-1\n{scene.layout}\n".encode())
    for name in sorted(names):
        try:
            with open(names[name], "rb") as f:
                digest = hashlib.file_digest(f, "sha256").hexdigest()
        except OSError as e:
            raise SceneError(
                f"{names[name]}: cannot be read ({e.strerror or e}); restore the file, it was there"
                " when the scene was loaded"
            ) from e
        total.update(f"{name}\n{digest}\n".encode())
    return total.hexdigest()


# ---------------------------------------------------------------------------


def _resolve(path) -> Path:
    root = Path(path)
    if root.is_dir():
        return root
    bundled = bundled_scenes()
    if str(path) in bundled:
        return bundled[str(path)]
    if root.exists():
        raise SceneError(f"{root}: is a file; expected the folder of a scene")
    if (fetched := registry.scene(str(path))) is not None:
        return fetched
    hint = (
        f"or one of the bundled scenes: {', '.join(bundled)}"
        if bundled
        else f"(no bundled scene found in {data_folder()})"
    )
    raise SceneError(
        f"{root}: no such folder; give the path of a scene, {hint}; fetched data sets are looked"
        f" for in {registry.data_root()} (CCLKIT_DATA)"
    )


def _read(root: Path, layout: str) -> Scene:
    images = root / "images"
    if not images.is_dir():
        raise SceneError(
            f"{images}: no such folder; a scene keeps its photographs in images/: restore it"
        )
    fields: dict = {}
    files: list[Path] = []
    points, colors = np.zeros((0, 3)), np.zeros((0, 3), np.uint8)
    poses = root / "poses_bounds.npy"
    if layout == "3d_ovs" and poses.is_file():
        views = ovs3d.read_llff(poses, images)
        files.append(poses)
        if (model := _model_of_same_world(root, views)) is not None:
            points, colors = colmap.read_points(model)
            files.extend(model.files)
    else:
        folder = colmap.find_model(root)
        if folder is None:
            also = "poses_bounds.npy or " if layout == "3d_ovs" else ""
            raise SceneError(
                f"{root / 'sparse' / '0'}: no camera model; expected {also}cameras, images and"
                " points3D (.bin or .txt) in sparse/0 or sparse: run COLMAP or restore the folder"
            )
        model = colmap.read_model(folder)
        views = colmap.read_views(model, images)
        points, colors = colmap.read_points(model)
        files.extend(model.files)
    _unique_stems(root, views)
    if layout == "3d_ovs":
        folder = root / "segmentations"
        if not folder.is_dir():
            raise SceneError(
                f"{folder}: no such folder; the 3D-OVS layout needs classes.txt and NN/<class>.png"
                " there: restore it, or use layout='colmap'"
            )
        fields["classes"], fields["class_masks"], used = ovs3d.read_segmentations(folder, views)
        files.extend(used)
    elif layout == "lerf_ovs":
        fields["labels"], used = lerf_ovs.read_labels(lerf_ovs.label_folder(root), views)
        files.extend(used)
    files.extend(v.image_path for v in views)
    for reader in (_depth, _ground_truth, _held_out):
        more, used = reader(root, views)
        fields.update(more)
        files.extend(used)
    return Scene(
        root.resolve().name, root, layout, views, points, colors, files=tuple(files), **fields
    )


def _model_of_same_world(root: Path, views: tuple[View, ...]):
    """The COLMAP model beside ``poses_bounds.npy``, for its points, if both describe one world.

    LLFF keeps COLMAP's world. A model whose camera centres differ was made separately, and its
    points would float beside the views; it, or one that cannot be read, is left out with a warning.
    """
    folder = colmap.find_model(root)
    if folder is None:
        return None
    try:
        model = colmap.read_model(folder)
    except SceneError as e:
        warnings.warn(
            "cameras come from poses_bounds.npy, and the COLMAP model beside it gives no"
            f" points: {e}",
            stacklevel=4,
        )
        return None
    centres = {v.name: v.camera.centre for v in views}
    shared = [n for n in model.poses if n in centres]
    theirs = np.array([-model.poses[n][1][:3, :3].T @ model.poses[n][1][:3, 3] for n in shared])
    ours = np.array([centres[n] for n in shared])
    if len(shared) and np.isfinite(theirs).all():
        spread = max(np.ptp(ours, axis=0).max(), 1e-9)
        if np.abs(theirs - ours).max() <= 1e-2 * spread:
            return model
    warnings.warn(
        f"{folder}: its cameras are not those of poses_bounds.npy, so its points are not used",
        stacklevel=4,
    )
    return None


def _unique_stems(root: Path, views: tuple[View, ...]) -> None:
    """Depth, id maps and artefacts are filed by stem, so two views must not share one."""
    seen: dict[str, str] = {}
    for v in views:
        if v.stem in seen:
            raise SceneError(
                f"{root}: views {seen[v.stem]!r} and {v.name!r} share the stem {v.stem!r}; files of"
                " a view are found by stem, so rename one and register it again"
            )
        seen[v.stem] = v.name


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
    """``ground_truth/`` with three granularities, or YCB's ``instances/`` with whole
    objects only.
    """
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
