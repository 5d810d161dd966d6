"""COLMAP models, binary and text, through pycolmap: cameras, poses and points.

pycolmap trusts its input: a cut-off binary file makes it read garbage, allocate without bound or
end the process. So the structure of binary files is walked here first, and only a file whose
records end exactly at its end is handed on.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any, NoReturn

import numpy as np

from ..errors import SceneError
from .common import check_pose, image_size, natural_key
from .layout import Layout
from .scene import Camera, View

PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE")
"""Models without distortion: the only ones a rasteriser of pinhole views can reproduce."""

FILES = ("cameras", "images", "points3D")
OPTIONAL_FILES = ("rigs", "frames")  # written by COLMAP since 3.12, read by pycolmap when present


@dataclass(frozen=True)
class Model:
    """A model as read, cameras not yet checked for distortion."""

    folder: Path
    files: tuple[Path, ...]
    poses: dict[str, tuple[int, np.ndarray]]  # image name -> camera id, world-to-camera [4, 4]
    cameras: dict[int, tuple[str, int, int, np.ndarray]]  # id -> model name, width, height, params
    points: np.ndarray  # [P, 3] float64
    colors: np.ndarray  # [P, 3] uint8


def find_model(scene: Path) -> Path | None:
    """``sparse/0`` or, as ``colmap image_undistorter`` writes it, ``sparse``; None if neither holds
    a model.
    """
    for folder in (scene / "sparse" / "0", scene / "sparse"):
        if any((folder / f"{name}{ext}").is_file() for name in FILES for ext in (".bin", ".txt")):
            return folder
    return None


def read_model(folder: Path) -> Model:
    """Read a model folder. Binary files are preferred where both kinds exist, as COLMAP does.

    Raises SceneError: a file of the model is missing, cut off or damaged; nothing is registered.
    """
    pycolmap = _pycolmap()
    ext = next(
        (e for e in (".bin", ".txt") if all((folder / f"{n}{e}").is_file() for n in FILES)), None
    )
    if ext is None:
        found = sorted(p.name for p in folder.iterdir())
        raise SceneError(
            f"{folder}: incomplete COLMAP model, found {', '.join(found) or 'nothing'}; expected"
            " cameras, images and points3D, all .bin or all .txt: copy the missing file or export"
            " the model again (colmap model_converter)"
        )
    files = [folder / f"{n}{ext}" for n in FILES] + [
        p for n in OPTIONAL_FILES if (p := folder / f"{n}{ext}").is_file()
    ]
    if ext == ".bin":
        for path in files:
            _check_binary(path)
    try:
        reconstruction = pycolmap.Reconstruction()
        (reconstruction.read_binary if ext == ".bin" else reconstruction.read_text)(str(folder))
        cameras = {
            int(i): (c.model.name, int(c.width), int(c.height), np.array(c.params, np.float64))
            for i, c in reconstruction.cameras.items()
        }
        poses = {}
        for image in reconstruction.images.values():
            if not image.has_pose:
                continue
            if image.name in poses:
                raise SceneError(
                    f"{files[1]}: two images are named {image.name!r}; names must be unique, rename"
                    " one and register it again"
                )
            poses[image.name] = (
                int(image.camera_id),
                np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]]),
            )
        ids = sorted(reconstruction.points3D)
        points = np.array([reconstruction.points3D[i].xyz for i in ids], np.float64).reshape(-1, 3)
        colors = np.array([reconstruction.points3D[i].color for i in ids], np.uint8).reshape(-1, 3)
    except SceneError:
        raise
    except Exception as e:  # pycolmap passes C++ exceptions on as several Python types
        first = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise SceneError(
            f"{folder}: COLMAP model cannot be read ({first}); copy it again or export it anew"
            " (colmap model_converter)"
        ) from e
    if not poses:
        raise SceneError(
            f"{files[1]}: no registered image; run colmap mapper until images are registered"
        )
    return Model(folder, tuple(files), poses, cameras, points, colors)


def read_views(model: Model, images: Path) -> tuple[View, ...]:
    """Views of the registered images, in natural order of their names.

    Images on disk that are not registered are fine: COLMAP leaves out what it cannot place.
    Raises SceneError: a distorted camera, an image missing on disk or of another size, a bad pose.
    """
    views = []
    for name in sorted(model.poses, key=natural_key):
        camera_id, pose = model.poses[name]
        if camera_id not in model.cameras:
            raise SceneError(
                f"{model.files[1]}: image {name!r} uses camera {camera_id}, which"
                f" {model.files[0].name} does not hold; export the model again"
            )
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise SceneError(
                f"{model.files[1]}: image name {name!r} points outside {images}; use names relative"
                " to the image folder"
            )
        path = images / name
        if not path.is_file():
            raise SceneError(
                f"{path}: the COLMAP model {model.folder} names this image, but it is not there;"
                " restore the image or remove it from the model"
            )
        K, width, height = _intrinsics(model, camera_id, images)
        size = image_size(path)
        if size != (width, height):
            raise SceneError(
                f"{path}: image is {size[0]}x{size[1]}, its COLMAP camera {width}x{height}; use the"
                " images the model was made from, or resize both (colmap image_undistorter"
                " --max_image_size)"
            )
        pose = check_pose(pose, f"{model.files[1]}: image {name!r}")
        views.append(View(name, path, Camera(K, pose, width, height)))
    return tuple(views)


def read_points(model: Model) -> tuple[np.ndarray, np.ndarray]:
    """Points [P, 3] and colours [P, 3], without points that are not finite."""
    good = np.isfinite(model.points).all(axis=1)
    return model.points[good], model.colors[good]


# ---------------------------------------------------------------------------


def _pycolmap() -> ModuleType:
    """pycolmap, which is heavy, after torch: loaded the other way round, the two corrupt the heap
    (torch 2.14, pycolmap 4.2).
    """
    import pycolmap

    return pycolmap


def _intrinsics(model: Model, camera_id: int, images: Path) -> tuple[np.ndarray, int, int]:
    kind, width, height, params = model.cameras[camera_id]
    if kind not in PINHOLES:
        raise SceneError(
            f"{model.files[0]}: camera {camera_id} has the distorted model {kind}; expected"
            f" {' or '.join(PINHOLES)}. Undistort with: colmap image_undistorter --image_path"
            f" {images} --input_path {model.folder} --output_path {images.parent.name}_undistorted"
            " --output_type COLMAP"
        )
    fx, fy, cx, cy = params if kind == "PINHOLE" else (params[0], params[0], params[1], params[2])
    if not np.isfinite(params).all() or fx <= 0 or fy <= 0 or width <= 0 or height <= 0:
        raise SceneError(
            f"{model.files[0]}: camera {camera_id} has {width}x{height} pixels and parameters"
            f" {params.tolist()}; expected finite values, size and focal lengths > 0: calibrate"
            " again"
        )
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64), width, height


class _Walker:
    """Steps over records of a little-endian file; never beyond its end."""

    def __init__(self, path: Path, data):
        self.path, self.data, self.size, self.at = path, data, len(data), 0

    def fail(self, what: str) -> NoReturn:
        raise SceneError(
            f"{self.path}: truncated or damaged, {what} at byte {self.at} of {self.size}; copy the"
            " file again or export the model anew (colmap model_converter)"
        )

    def skip(self, count: int, what: str) -> None:
        if count > self.size - self.at:
            self.fail(f"{what} needs {count} bytes more")
        self.at += count

    def take(self, fmt: str, what: str) -> tuple:
        start = self.at
        self.skip(struct.calcsize(fmt), what)
        return struct.unpack_from(fmt, self.data, start)

    def name(self) -> None:
        end = self.data.find(b"\0", self.at)
        if end < 0:
            self.fail("an image name without its end")
        try:
            self.data[self.at : end].decode()
        except UnicodeDecodeError:
            self.fail("an image name that is not text")
        self.at = end + 1


def _check_binary(path: Path) -> None:
    """Walk every record of a .bin file; SceneError unless the last one ends where the file does."""
    with open(path, "rb") as f:
        if path.stat().st_size < 8:
            raise SceneError(
                f"{path}: truncated or damaged, {path.stat().st_size} bytes; copy the file again or"
                " export the model anew (colmap model_converter)"
            )
        with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
            w = _Walker(path, data)
            (count,) = w.take("<Q", "the number of records")
            for _ in range(count):
                _RECORDS[path.stem](w)
            if w.at != w.size:
                w.fail(f"{count} records end before the file does,")


def _camera_record(w: _Walker) -> None:
    pycolmap = _pycolmap()
    _, model, width, height = w.take("<iiQQ", "a camera")
    known = {int(m.value): m for m in pycolmap.CameraModelId.__members__.values() if m.value >= 0}
    if model not in known:
        w.fail(f"camera model number {model}, which pycolmap {pycolmap.__version__} does not know,")
    params = pycolmap.Camera.create_from_model_id(1, known[model], 1.0, 1, 1).params
    w.skip(8 * len(params), "the camera's parameters")


def _image_record(w: _Walker) -> None:
    w.skip(4 + 7 * 8 + 4, "an image")  # id, quaternion and translation, camera id
    w.name()
    (points,) = w.take("<Q", "the number of image points")
    w.skip(24 * points, "the image points")


def _point_record(w: _Walker) -> None:
    w.skip(8 + 3 * 8 + 3 + 8, "a point")  # id, position, colour, error
    (track,) = w.take("<Q", "a track length")
    w.skip(8 * track, "a track")


def _rig_record(w: _Walker) -> None:
    _, sensors = w.take("<II", "a rig")
    if sensors:
        w.skip(8, "the reference sensor")
    for _ in range(max(0, sensors - 1)):
        _, _, has_pose = w.take("<iIB", "a sensor")
        w.skip(56 if has_pose else 0, "a sensor's pose")


def _frame_record(w: _Walker) -> None:
    w.skip(4 + 4 + 56, "a frame")  # id, rig id, pose
    (images,) = w.take("<I", "the number of a frame's images")
    w.skip(16 * images, "a frame's images")


_RECORDS = {
    "cameras": _camera_record,
    "images": _image_record,
    "points3D": _point_record,
    "rigs": _rig_record,
    "frames": _frame_record,
}


def read_fields(root: Path, also: str = "") -> dict[str, Any]:
    """Views and points of a scene folder's model; ``also`` names what else could hold cameras."""
    folder = find_model(root)
    if folder is None:
        raise SceneError(
            f"{root / 'sparse' / '0'}: no camera model; expected {also}cameras, images and points3D"
            " (.bin or .txt) in sparse/0 or sparse: run COLMAP or restore the folder"
        )
    model = read_model(folder)
    views = read_views(model, root / "images")
    points, colors = read_points(model)
    return {"views": views, "points": points, "point_colors": colors, "files": [*model.files]}


LAYOUT = Layout(
    found=lambda root: find_model(root) is not None,
    read=read_fields,
    expected="images/ with sparse/0/ (COLMAP)",
)
