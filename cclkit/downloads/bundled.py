"""Bundled scenes and weights: whether they are as the repository has them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..errors import SceneError
from ..files import file_digest
from ..places import DATA, bundled_scenes
from .checks import Item
from .registry import human

BUNDLED_MODELS = ("mini_sam.safetensors", "mini_clip.safetensors", "mini_sam2.safetensors")
RESTORE = "restore it from the repository"


def bundled_items(
    *, thorough: bool, wanted: Callable[[str], bool] = lambda name: True
) -> list[Item]:
    """Bundled scenes by their SHA256SUMS, bundled weights by the sha256 in the record beside them.

    Digests are computed if ``thorough``, else only names and sizes are looked at.
    """
    items = []
    for scene, folder in bundled_scenes().items():
        if wanted(name := f"tabletop/{scene}"):
            items.append(_scene_item(name, folder, thorough))
    for file in BUNDLED_MODELS:
        if wanted(name := f"models/{Path(file).stem}"):
            items.append(_model_item(name, DATA / "models" / file, thorough))
    return items


def verify_sums(scene: Path) -> list[str]:
    """Check every file of a scene folder against SHA256SUMS; returns their paths, relative to the
    folder.

    Raises SceneError naming the first file that is missing or was edited.
    """
    sums = scene / "SHA256SUMS"
    remedy = "restore it, or regenerate the scene with python -m lab.tabletop render"
    if not sums.is_file():
        raise SceneError(f"{sums}: missing; {remedy}")
    names = []
    for line in sums.read_text(encoding="utf-8").splitlines():
        want, _, name = line.partition("  ")
        path = scene / name
        if not path.is_file():
            raise SceneError(f"{path}: missing but listed in {sums}; {remedy}")
        if (got := file_digest(path)) != want:
            raise SceneError(
                f"{path}: edited (sha256 {got[:12]}…, expected {want[:12]}…); {remedy}"
            )
        names.append(name)
    return names


def _scene_item(name: str, folder: Path, thorough: bool) -> Item:
    item = Item(
        name,
        "here",
        folder,
        "",
        "CC BY 4.0",
        blocks="this scene",
        without="the other scenes",
        bundled=True,
    )
    try:
        lines = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    except OSError:
        return replace(item, state="incomplete", detail=f"SHA256SUMS is missing; {RESTORE}")
    listed = [folder / line.partition("  ")[2] for line in lines]
    item = replace(item, size=human(sum(p.stat().st_size for p in listed if p.is_file())))
    if gone := [p for p in listed if not p.is_file()]:
        detail = f"{len(gone)} files lack, e.g. {gone[0].name}; restore them from the repository"
        return replace(item, state="incomplete", detail=detail)
    try:
        if thorough:
            verify_sums(folder)
    except SceneError as e:
        return replace(item, state="damaged", detail=str(e))
    return item


def _model_item(name: str, path: Path, thorough: bool) -> Item:
    simulated = " ".join(f"front_end.{k}=simulated" for k in ("masks", "propagation", "features"))
    item = Item(
        name,
        "here",
        path,
        "",
        "Apache-2.0",
        blocks="the profile mini with its real models",
        without=f"the simulated front end ({simulated})",
        bundled=True,
    )
    if not path.is_file():
        detail = f"{RESTORE}, or train it: python -m lab.training"
        return replace(item, state="missing", detail=detail)
    size, record = path.stat().st_size, path.with_suffix(".json")
    item = replace(item, size=human(size))
    try:
        about = json.loads(record.read_text(encoding="utf-8"))
        want, length = about["sha256"], about["bytes"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        detail = f"{record.name} cannot be read ({e!r}); {RESTORE}"
        return replace(item, state="incomplete", detail=detail)
    if size != length:
        return replace(item, state="damaged", detail=f"{size} bytes, expected {length}; {RESTORE}")
    if thorough and (found := file_digest(path)) != want:
        detail = f"sha256 {found[:12]}…, expected {want[:12]}…; {RESTORE}"
        return replace(item, state="damaged", detail=detail)
    return item
