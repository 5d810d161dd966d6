"""``load_scene``: find out which layout a folder has, read it, check it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from ..downloads import lookup
from ..errors import SceneError
from ..places import bundled_scenes, data_folder, data_root
from . import colmap, lerf_ovs, ovs3d
from .layout import Layout
from .scene import Scene, View
from .side_data import read_side_data

LAYOUTS: dict[str, Layout] = {
    "3d_ovs": ovs3d.LAYOUT,
    "lerf_ovs": lerf_ovs.LAYOUT,
    "colmap": colmap.LAYOUT,
}
"""All layouts, in the order in which content decides: a line each."""


def load_scene(path: str | Path, *, layout: str | None = None) -> Scene:
    """Read a scene folder, or a bundled or fetched scene by its name.

    Layouts are told apart by content: a ``segmentations`` folder is 3D-OVS; labels in
    ``../label/<scene name>`` are LERF-OVS; a COLMAP model alone is ``colmap``. Any layout may also
    carry ``depth/<stem>.png``, ``ground_truth/`` or ``instances/`` id maps, and ``scene.json`` with
    "held_out": [view names]. Images are not loaded; their headers are checked.

    Args:
        path: a folder, a bare name such as "tea_party" found among ``bundled_scenes()``, or a
            fetched scene such as "lerf_ovs/teatime".
        layout: a name of LAYOUTS ("3d_ovs", "lerf_ovs", "colmap") instead of detection.
    Returns:
        A Scene, views in natural numeric order of their names.
    Raises:
        SceneError naming the file, what was found, what was expected and the remedy.

    >>> scene = load_scene("tea_party")
    >>> scene.layout, len(scene.views), scene.queries[0]
    ('lerf_ovs', 24, 'stuffed bear')
    >>> scene.views[0].image().shape  # height, width, RGB
    (240, 320, 3)
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
    """The first of LAYOUTS that a folder has. Raises SceneError saying what the folder holds."""
    for name, layout in LAYOUTS.items():
        if layout.found(root):
            return name
    found = sorted(p.name + ("/" if p.is_dir() else "") for p in root.iterdir())
    shown = ", ".join(found[:12]) + (" …" if len(found) > 12 else "")
    expected = [layout.expected for layout in reversed(LAYOUTS.values())]
    raise SceneError(
        f"{root}: not a scene, found {shown or 'an empty folder'}; expected"
        f" {', '.join(expected[:-1])}, or {expected[-1]}. Point at the folder of one scene"
    )


def readers_of(scene: Scene) -> tuple[Callable, ...]:
    """The functions that read a scene: their files count for keys of all that is made from it."""
    return LAYOUTS[scene.layout].read, read_side_data


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


def _resolve(path: str | Path) -> Path:
    root = Path(path)
    if root.is_dir():
        return root
    bundled = bundled_scenes()
    if str(path) in bundled:
        return bundled[str(path)]
    if root.exists():
        raise SceneError(f"{root}: is a file; expected the folder of a scene")
    if (fetched := lookup.scene(str(path))) is not None:
        return fetched
    hint = (
        f"or one of the bundled scenes: {', '.join(bundled)}"
        if bundled
        else f"(no bundled scene found in {data_folder()})"
    )
    raise SceneError(
        f"{root}: no such folder; give the path of a scene, {hint}; fetched data sets are looked"
        f" for in {data_root()} (CCLKIT_DATA)"
    )


def _read(root: Path, layout: str) -> Scene:
    images = root / "images"
    if not images.is_dir():
        raise SceneError(
            f"{images}: no such folder; every layout keeps its photographs in images/: restore it"
        )
    fields = LAYOUTS[layout].read(root)
    views: tuple[View, ...] = fields["views"]
    _unique_stems(root, views)
    more, used = read_side_data(root, views)
    files = (*fields.pop("files"), *(v.image_path for v in views), *used)
    return Scene(root.resolve().name, root, layout, **fields, **more, files=files)


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
