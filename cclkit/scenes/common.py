"""What all readers share: order of names, image headers, checks of poses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from ..errors import SceneError, reason

IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
"""What is decoded, whatever a file is called: Pillow would start an interpreter for some others
(EPS).
"""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


T = TypeVar("T")


def natural_key(name: str) -> list:
    """Sort key with numbers by value: frame_2 before frame_10. The name itself settles equal
    numbers (01, 1).
    """
    return [
        (0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.split(r"(\d+)", name) if p
    ] + [(2, 0, name)]


def image_files(folder: Path) -> list[Path]:
    """Images directly in ``folder``, sorted by code point, as published loaders list them; [] if
    there is no folder.
    """
    if not folder.is_dir():
        return []
    return sorted(
        p
        for p in folder.iterdir()
        if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")
    )


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) from the header only. Raises SceneError when there is no readable image."""
    return open_image(path, lambda im: im.size)


def open_image(path: Path, use: Callable[[Image.Image], T]) -> T:
    """What ``use`` makes of an image file. Raises SceneError when there is no readable image."""
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as im:
            return use(im)
    except FileNotFoundError as e:
        raise SceneError(f"{path}: no such file; restore it") from e
    except SceneError:
        raise
    except Exception as e:  # decoders raise whatever they like on a damaged file
        raise SceneError(
            f"{path}: cannot be read as an image ({reason(e)}); restore the file"
        ) from e


def check_pose(pose: np.ndarray, where: str) -> np.ndarray:  # [4, 4] float64
    """A world-to-camera matrix with its rotation made exactly orthonormal.

    Files store rotations in up to single precision, so deviations up to 1e-3 are rounding and are
    removed (nearest rotation). Raises SceneError, beginning with ``where``, for anything else.
    """
    pose = np.array(pose, np.float64)
    if not np.isfinite(pose).all():
        raise SceneError(
            f"{where}: the pose is not finite (NaN or infinite); remove the view from the model or"
            " register it again"
        )
    R = pose[:3, :3]
    # larger entries could overflow
    error = np.abs(R @ R.T - np.eye(3)).max() if np.abs(R).max() < 2 else np.inf
    if error > 1e-3 or np.linalg.det(R) <= 0:
        raise SceneError(
            f"{where}: the rotation is not orthonormal with determinant +1 (largest deviation"
            f" {error:.2g}); check the order and sign of its columns, or register the view again"
        )
    if error > 1e-12:
        u, _, vt = np.linalg.svd(R)
        pose[:3, :3] = u @ vt
    return pose


def read_json(path: Path):
    """Parsed JSON. Raises SceneError naming the file when it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as e:
        raise SceneError(f"{path}: no such file; restore it") from e
    except (OSError, ValueError, RecursionError) as e:
        raise SceneError(f"{path}: cannot be read as JSON ({e}); restore the file") from e
