"""Pictures as a film, without a network or further programs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from .errors import ArtefactError


def write_video(frames: Iterable[np.ndarray], path: str | Path, *, fps: float = 4.0) -> Path:
    """Write frames [H, W, 3] uint8 as WebM (VP8: what OpenCV's wheels can encode and browsers
    play), or as GIF where that fails.

    All frames take the first one's size, cut to even numbers of pixels. ``path`` has no suffix;
    returns the file written, which appears under its name only when it is complete. Raises
    ArtefactError without any frame or for a folder that cannot be written.
    """
    frames = [np.ascontiguousarray(f) for f in frames]
    if not frames:
        raise ArtefactError(f"{path}: no frames to make a film of; name at least one view")
    h, w = (max(2, n // 2 * 2) for n in frames[0].shape[:2])
    frames = [
        (
            f
            if f.shape == frames[0].shape
            else cv2.resize(
                f, (frames[0].shape[1], frames[0].shape[0]), interpolation=cv2.INTER_AREA
            )
        )[:h, :w]
        for f in frames
    ]
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for suffix, write in ((".webm", _webm), (".gif", _gif)):
            temporary = path.with_name(f".{path.name}{suffix}")
            if write(frames, temporary, fps):
                os.replace(temporary, path.with_name(path.name + suffix))
                return path.with_name(path.name + suffix)
            temporary.unlink(missing_ok=True)
    except OSError as e:
        raise ArtefactError(
            f"{path}: the film cannot be written ({e.strerror or e}); choose another --out"
        ) from e
    raise ArtefactError(
        f"{path}: neither WebM nor GIF could be written; check the installation of"
        " opencv-python-headless and pillow"
    )


def _webm(frames: list[np.ndarray], path: Path, fps: float) -> bool:
    h, w = frames[0].shape[:2]
    writer = cv2.VideoWriter(
        str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"VP80"), fps, (w, h)
    )
    if not writer.isOpened():
        return False
    for f in frames:
        writer.write(cv2.cvtColor(f, cv2.COLOR_RGB2BGR))
    writer.release()
    return path.is_file() and path.stat().st_size > 0


def _gif(frames: list[np.ndarray], path: Path, fps: float) -> bool:
    from PIL import Image

    first, *rest = (Image.fromarray(f) for f in frames)
    first.save(path, "GIF", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)
    return True
