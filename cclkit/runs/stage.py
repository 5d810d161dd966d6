"""What a stage is. Each stands in a file of `stages`, with the readers of what it made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..scenes.scene import Scene, View

if TYPE_CHECKING:
    from ..config import Config
    from .engine import Engine


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    ``build`` computes into a folder and returns what is recorded beside the files. The code that
    counts for a stage's key is the file where ``build`` stands and all that it imports, and those
    of ``code``, which an import of ``build`` need not reach.
    """

    name: str
    build: Callable[[Engine, Path], Mapping[str, Any]]
    inputs: Callable[[Config], tuple[str, ...]] = lambda config: ()  # stages that it reads
    settings: Callable[[Config], dict] = lambda config: {}  # of the configuration, what it reads
    # functions of tables that the configuration chooses from: users may register their own
    code: Callable[[Config], tuple[Callable, ...]] = lambda config: ()
    role: str = ""  # the model it asks: "proposer", "tracker" or "encoder"
    seeded: bool = False  # draws numbers that follow the run's seed
    needed: Callable[[Config], bool] = lambda config: True  # whether a run has it at all
    unfit: Callable[[Scene], str] = lambda scene: ""  # why a scene can't have it
    told: tuple[str, ...] = ()  # entries of its record that `cclkit run` prints


def require(fits: bool, otherwise: str) -> None:
    """Raise ValueError unless something fits: what a reader finds wrong in a file."""
    if not fits:
        raise ValueError(otherwise)


def array_of(a: np.ndarray, kind: str, *shape: int | None) -> np.ndarray:
    """An array of this kind ("i", "f") and shape (None: any length) of finite numbers, or
    ValueError.
    """
    same = a.ndim == len(shape) and all(s in (None, n) for s, n in zip(shape, a.shape))
    require(a.dtype.kind == kind and same, f"an array of {a.shape} {a.dtype}, expected {shape}")
    require(kind != "f" or bool(np.isfinite(a).all()), "values that are not finite")
    return a


def of_view_size(shape: tuple[int, ...], view: View, what: str) -> None:
    """Raise ValueError for masks or maps [H, W] of another size than their view's."""
    wanted = (view.camera.height, view.camera.width)
    found = "x".join(map(str, shape))
    require(tuple(shape) == wanted, f"{what} of {found} for a view of {wanted[0]}x{wanted[1]}")


def view_file(view: View) -> str:
    """Name of a view's file in a stage's folder."""
    return f"{view.stem}.npz"
