"""Where things are: the checkout, its data, results, fetched things."""

from __future__ import annotations

import os
from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "data"
"""Folder ``data`` of a checkout; an installed package has none."""


def project_folder() -> Path:
    """Root of the checkout: the nearest folder upwards that holds notebooks/, else the working
    directory.
    """
    for folder in (Path.cwd(), *Path.cwd().parents, Path(__file__).resolve().parent.parent):
        if (folder / "notebooks").is_dir() and (folder / "pyproject.toml").is_file():
            return folder
    return Path.cwd()


def results_folder(profile: str) -> Path:
    """Where a profile's figures, tables and run folders go; CCLKIT_RESULTS replaces the project's
    results/.
    """
    return Path(os.environ.get("CCLKIT_RESULTS") or project_folder() / "results") / profile


def registry_file() -> Path:
    """The list of what can be fetched; CCLKIT_REGISTRY names another one, e.g. of a laboratory's
    own mirror.
    """
    return Path(os.environ.get("CCLKIT_REGISTRY") or DATA / "registry.toml")


def data_root(root: str | os.PathLike | None = None) -> Path:
    """Folder of fetched things: ``root``, else CCLKIT_DATA, else data/public of a checkout, else
    the user's data folder.
    """
    if chosen := root or os.environ.get("CCLKIT_DATA"):
        return Path(chosen).expanduser().absolute()
    if registry_file().is_file():
        return DATA / "public"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "cclkit"


def data_folder() -> Path:
    """Folder of the bundled data: CCLKIT_DATA if it holds ``tabletop``, else ``data`` beside the
    package.
    """
    chosen = os.environ.get("CCLKIT_DATA")
    return Path(chosen) if chosen and (Path(chosen) / "tabletop").is_dir() else DATA


def bundled_scenes() -> dict[str, Path]:
    """Bundled scenes by name, LERF-OVS layout first; empty if the data folder is not there.

    >>> "tea_party" in bundled_scenes()
    True
    """
    found: dict[str, Path] = {}
    for layout in ("lerf_ovs", "3d_ovs"):
        parent = data_folder() / "tabletop" / layout
        if parent.is_dir():
            for folder in sorted(p for p in parent.iterdir() if (p / "images").is_dir()):
                found.setdefault(folder.name, folder)
    return found
