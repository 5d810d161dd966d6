"""3D-OVS: cameras from ``poses_bounds.npy`` (or COLMAP), full-image masks per class on some views.

``segmentations/classes.txt`` holds one class text per line, ``segmentations/NN/<class>.png`` the
mask of a class in image NN.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SceneError
from ..files import read_array
from . import colmap
from .common import check_pose, image_files, image_size, natural_key
from .layout import Layout
from .scene import Camera, View

SAME_SHAPE = 0.02
"""Allowed relative difference of aspect ratios: rounding of small images to whole pixels."""


def read_llff(path: Path, images: Path) -> tuple[View, ...]:
    """Views of ``poses_bounds.npy``, [N, 17] float: per image a 3x5 matrix [R | t | hwf], then near
    and far.

    LLFF's camera-to-world columns are (down, right, backwards); OpenCV's are (right, down,
    forward). The focal length belongs to the height and width in the file and is rescaled to the
    actual image. Row n belongs to the n-th image sorted by code point, as LLFF lists them. The
    principal point is the image centre, which the format cannot express otherwise.

    Raises SceneError: unreadable or of another shape, as many poses as images not given, a bad
    pose.
    """
    try:
        rows = read_array(path)
    except ValueError as e:
        raise SceneError(f"{path}: cannot be read as a NumPy array ({e}); restore the file") from e
    if rows.ndim != 2 or rows.shape[1] != 17 or not np.issubdtype(rows.dtype, np.floating):
        raise SceneError(
            f"{path}: array of shape {rows.shape} and type {rows.dtype}, expected [images, 17]"
            " floats (LLFF: 3x5 pose, near, far); restore the file"
        )
    paths = image_files(images)
    if len(paths) != len(rows):
        raise SceneError(
            f"{path}: {len(rows)} poses but {len(paths)} images in {images}; LLFF pairs them in"
            " sorted order, so restore the missing images or remove the extra ones"
        )
    views = [_llff_view(path, row, image) for row, image in zip(rows.astype(np.float64), paths)]
    return tuple(sorted(views, key=lambda v: natural_key(v.name)))


def _llff_view(path: Path, row: np.ndarray, image: Path) -> View:
    """The view of one row [17] of ``poses_bounds.npy``."""
    where = f"{path}: pose of {image.name}"
    matrix = row[:15].reshape(3, 5)
    down, right, backwards, centre, (height, width, focal) = matrix.T
    if not np.isfinite(matrix).all() or min(height, width, focal) <= 0:
        raise SceneError(
            f"{where}: values are not finite, or height, width, focal {height:g}, {width:g},"
            f" {focal:g} not positive; remove the view or run LLFF's imgs2poses again"
        )
    camera_to_world = np.eye(4)
    camera_to_world[:3] = np.stack([right, down, -backwards, centre], axis=1)
    R = check_pose(camera_to_world, where)[:3, :3]
    world_to_camera = np.eye(4)
    world_to_camera[:3, :3] = R.T
    world_to_camera[:3, 3] = -R.T @ centre
    w, h = image_size(image)
    if abs((w / h) / (width / height) - 1) > SAME_SHAPE:
        raise SceneError(
            f"{image}: image is {w}x{h}, its pose was made for {width:g}x{height:g}, another"
            " shape; use the images the poses were made from"
        )
    K = np.array([[focal * w / width, 0, w / 2], [0, focal * h / height, h / 2], [0, 0, 1]])
    return View(image.name, image, Camera(K, world_to_camera, w, h))


def read_segmentations(
    folder: Path, views: tuple[View, ...]
) -> tuple[tuple[str, ...], dict[str, dict[str, Path]], tuple[Path, ...]]:
    """Classes as in ``classes.txt``, mask files by view name and class, and all files used.

    Folders NN are matched to views by name of the image, then by its number, then, if neither
    fits for all of them, by position in the sorted list of images (what the original code does).
    File names may differ from the class in case, spaces and underscores. Files that belong to no
    class, as the public data may have, are skipped, counted and named in one warning.

    Raises SceneError: no or empty ``classes.txt``, a class twice, no labelled view, a folder that
    matches no view, a class without its PNG or with two, a mask of another shape than its image.
    """
    listing = folder / "classes.txt"
    classes = _read_classes(listing)
    folders = sorted(
        (p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")),
        key=lambda p: natural_key(p.name),
    )
    if not folders:
        raise SceneError(
            f"{folder}: no labelled view; expected folders NN with one PNG per class: restore them"
        )
    masks: dict[str, dict[str, Path]] = {}
    files, skipped = [listing], []
    for sub, view in zip(folders, _match(folders, views)):
        if view.name in masks:
            raise SceneError(
                f"{sub}: a second folder of masks for view {view.name!r}; keep one of them"
            )
        masks[view.name], left = _masks_of_view(sub, view, classes, listing)
        files.extend(masks[view.name].values())
        skipped.extend(f"{sub.name}/{p.name}" for p in left)
    if skipped:
        warnings.warn(
            f"{folder}: {len(skipped)} masks belong to no class of classes.txt and are skipped:"
            f" {', '.join(skipped)}",
            stacklevel=2,
        )
    return classes, masks, tuple(files)


# ---------------------------------------------------------------------------


def _read_classes(listing: Path) -> tuple[str, ...]:
    """The class texts of ``classes.txt``, each of which can be the name of a file."""
    try:
        lines = listing.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as e:
        raise SceneError(
            f"{listing}: cannot be read ({e}); expected one class text per line: restore the file"
        ) from e
    classes = tuple(line.strip() for line in lines if line.strip())
    if not classes or len({_loose(c) for c in classes}) != len(classes):
        what = "no class" if not classes else "the same class twice"
        raise SceneError(
            f"{listing}: holds {what}; expected one class text per line, each once: correct the"
            " file"
        )
    if wrong := [c for c in classes if set(c) & set("/\\\0") or len(c.encode()) > 200]:
        raise SceneError(
            f"{listing}: class {wrong[0][:80]!r} cannot be the name of a mask file; correct the"
            " file"
        )
    return classes


def _masks_of_view(
    folder: Path, view: View, classes: tuple[str, ...], listing: Path
) -> tuple[dict[str, Path], list[Path]]:
    """The mask file of each class in the folder of a view, and the files that belong to none."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.[pP][nN][gG]")):
        found.setdefault(_loose(path.stem), []).append(path)
    masks = {}
    for name in classes:
        candidates = found.pop(_loose(name), [])
        candidates = [p for p in candidates if p.stem == name] or candidates
        expected = folder / f"{name}.png"
        if not candidates:
            raise SceneError(
                f"{expected}: no mask of class {name!r} for view {view.name}; restore the"
                f" file, or remove the class from {listing}"
            )
        if len(candidates) > 1:
            raise SceneError(
                f"{expected}: {len(candidates)} files fit class {name!r}"
                f" ({', '.join(p.name for p in candidates)}); keep one"
            )
        w, h = image_size(candidates[0])
        # Another size is fine, since protocols resize masks; another shape is another picture.
        if abs((w / h) / (view.camera.width / view.camera.height) - 1) > SAME_SHAPE:
            raise SceneError(
                f"{candidates[0]}: mask is {w}x{h}, its view {view.name}"
                f" {view.camera.width}x{view.camera.height}, another shape; restore the mask of"
                " this view"
            )
        masks[name] = candidates[0]
    return masks, [p for group in found.values() for p in group]


def _loose(name: str) -> str:
    return re.sub(r"[\s_]+", " ", name).strip().casefold()


def _match(folders: list[Path], views: tuple[View, ...]) -> list[View]:
    """The view of each folder, by one rule for all of them: a mix would match two ways at once."""
    by_stem = {v.stem: v for v in views}
    if all(f.name in by_stem for f in folders):
        return [by_stem[f.name] for f in folders]
    numbers = [int(f.name) if f.name.isdecimal() else None for f in folders]
    if None not in numbers:
        by_number = {int(v.stem): v for v in views if v.stem.isdecimal()}
        if len(by_number) == len(views) and all(n in by_number for n in numbers):
            return [by_number[n] for n in numbers]
        in_order = sorted(views, key=lambda v: v.name)
        if max(numbers) < len(in_order):
            return [in_order[n] for n in numbers]
    wrong = next(
        f
        for f, n in zip(folders, numbers)
        if f.name not in by_stem and (n is None or n >= len(views))
    )
    raise SceneError(
        f"{wrong}: matches no view by name, and no index 0..{len(views) - 1}; name mask folders"
        " after their images"
    )


def read_fields(root: Path) -> dict[str, Any]:
    """Views of ``poses_bounds.npy``, with points if a COLMAP model describes the same world; or a
    COLMAP scene; with class masks.
    """
    poses = root / "poses_bounds.npy"
    if poses.is_file():
        views, files = read_llff(poses, root / "images"), [poses]
        points, colors = np.zeros((0, 3)), np.zeros((0, 3), np.uint8)
        if (model := _model_of_same_world(root, views)) is not None:
            points, colors = colmap.read_points(model)
            files.extend(model.files)
        fields = {"views": views, "points": points, "point_colors": colors, "files": files}
    else:
        fields = colmap.read_fields(root, also="poses_bounds.npy or ")
    folder = root / "segmentations"
    if not folder.is_dir():
        raise SceneError(
            f"{folder}: no such folder; the 3D-OVS layout needs classes.txt and NN/<class>.png"
            " there: restore it, or use layout='colmap'"
        )
    classes, masks, used = read_segmentations(folder, fields["views"])
    files = [*fields["files"], *used]
    return fields | {"classes": classes, "class_masks": masks, "files": files}


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


LAYOUT = Layout(
    found=lambda root: (root / "segmentations").is_dir(),
    read=read_fields,
    expected="images/ with segmentations/ and poses_bounds.npy (3D-OVS)",
)
