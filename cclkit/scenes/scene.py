"""What a scene is: named views with cameras, points, labels, and sometimes ground truth.

Views are keyed by file NAME everywhere, never by list position: picking rendered
maps by position is the index bug that has distorted published LERF-OVS scores.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation, Slerp

from ..errors import SceneError
from .common import open_image

GRANULARITIES = ("subpart", "part", "whole")
"""SAM's three granularities, finest first; also the outputs 0, 1, 2 of one SAM prompt."""

DEPTH_UNIT = 1e-4
"""Metres per step of a 16-bit depth PNG; 0 means no measurement."""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera. OpenCV axes (x right, y down, z forward), pixel centres at +0.5.

    >>> import numpy as np
    >>> K = np.array([[100.0, 0, 32], [0, 100, 24], [0, 0, 1]])
    >>> camera = Camera(K, world_to_camera=np.eye(4), width=64, height=48)
    >>> xy, depth = camera.project(np.array([[0.1, 0.0, 2.0]]))
    >>> xy.tolist(), depth.tolist()
    ([[37.0, 24.0]], [2.0])
    """

    K: np.ndarray  # [3, 3] float64, pixels
    world_to_camera: np.ndarray  # [4, 4] float64, rigid
    width: int
    height: int

    @property
    def centre(self) -> np.ndarray:  # [3]
        """Camera centre in world units."""
        R, t = self.world_to_camera[:3, :3], self.world_to_camera[:3, 3]
        return -R.T @ t

    @property
    def camera_to_world(self) -> np.ndarray:  # [4, 4]
        out = np.eye(4)
        out[:3, :3] = self.world_to_camera[:3, :3].T
        out[:3, 3] = self.centre
        return out

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """World points [P, 3] -> pixel positions [P, 2] (x, y) and depths [P]."""
        cam = points @ self.world_to_camera[:3, :3].T + self.world_to_camera[:3, 3]
        z = cam[:, 2]
        safe = np.where(np.abs(z) < 1e-12, 1e-12, z)
        xy = cam[:, :2] / safe[:, None] * [self.K[0, 0], self.K[1, 1]] + [
            self.K[0, 2],
            self.K[1, 2],
        ]
        return xy, z

    def backproject(self, depth: np.ndarray) -> np.ndarray:
        """Depth along z [H, W] (0 = none) -> world points [H, W, 3] of the pixel centres."""
        y, x = np.mgrid[: self.height, : self.width] + 0.5
        rays = np.stack(
            [(x - self.K[0, 2]) / self.K[0, 0], (y - self.K[1, 2]) / self.K[1, 1], np.ones_like(x)],
            -1,
        )
        c2w = self.camera_to_world
        return (rays * depth[..., None]) @ c2w[:3, :3].T + c2w[:3, 3]

    def between(self, other: Camera, t: float) -> Camera:
        """The camera a share ``t`` of the way to another one: centres and intrinsics linearly,
        rotation along the shortest arc.
        """
        turn = Slerp(
            [0, 1],
            Rotation.from_matrix([self.world_to_camera[:3, :3], other.world_to_camera[:3, :3]]),
        )
        pose = np.eye(4)
        pose[:3, :3] = turn(t).as_matrix()
        pose[:3, 3] = -pose[:3, :3] @ ((1 - t) * self.centre + t * other.centre)
        return Camera((1 - t) * self.K + t * other.K, pose, self.width, self.height)

    def scaled(self, factor: float) -> Camera:
        """The same view at another resolution; the principal point scales with the pixel grid."""
        w, h = int(round(self.width * factor)), int(round(self.height * factor))
        K = self.K.copy()
        K[0] *= w / self.width
        K[1] *= h / self.height
        return Camera(K, self.world_to_camera, w, h)


@dataclass(frozen=True)
class View:
    """One photograph and its camera."""

    name: str  # file name, e.g. "frame_00001.jpg"; the key of the view everywhere
    image_path: Path
    camera: Camera

    @property
    def stem(self) -> str:
        return Path(self.name).stem

    def image(self) -> np.ndarray:  # [H, W, 3] uint8
        """The photograph as RGB. Raises SceneError if it cannot be read or has another size."""
        rgb = open_image(self.image_path, lambda im: np.asarray(im.convert("RGB")))
        if rgb.shape[:2] != (self.camera.height, self.camera.width):
            raise SceneError(
                f"{self.image_path}: image is {rgb.shape[1]}x{rgb.shape[0]}, its camera says"
                f" {self.camera.width}x{self.camera.height}; use the images the camera model was"
                " made from"
            )
        return rgb


@dataclass(frozen=True)
class LabelledObject:
    """One category in one labelled view of the LERF-OVS layout: the unit of evaluation."""

    category: str  # the text query
    mask: np.ndarray  # [H, W] bool, union of the category's polygons in this view
    boxes: np.ndarray  # [n, 4] float64, x1 y1 x2 y2 as in the file


@dataclass(frozen=True)
class GroundTruth:
    """Dense ids at three granularities, where a scene has them (rendered or RGB-D scenes).

    ``names`` maps id -> name, ``parents`` id -> id of the next coarser region. A map that is
    absent falls back to the next coarser one, as SAM's finer outputs do on objects without parts.
    """

    # granularity -> folder of <stem>.png (uint8/uint16 ids, 0 = unlabelled)
    folders: dict[str, Path]
    names: dict[int, str]
    parents: dict[int, int] = field(default_factory=dict)
    stuff: frozenset[int] = frozenset()  # ids of background surfaces (table, wall)
    queries: tuple[dict, ...] = ()  # {"text", "granularity", "ids"}: named queries of the scene

    def ids(self, view: View, granularity: str) -> np.ndarray:  # [H, W] int32, 0 = unlabelled
        """Id map of one view. Raises SceneError when the file is missing or of another size."""
        if granularity not in GRANULARITIES:
            raise SceneError(
                f"granularity {granularity!r} is unknown; use one of {', '.join(GRANULARITIES)}"
            )
        for g in GRANULARITIES[GRANULARITIES.index(granularity) :]:
            if g in self.folders:
                path = self.folders[g] / f"{view.stem}.png"
                return read_id_map(path, (view.camera.height, view.camera.width))
        raise SceneError(
            f"no id maps at granularity {granularity!r} or coarser; has {sorted(self.folders)}"
        )


@dataclass(frozen=True)
class Scene:
    """A scene: views keyed by name, points, and whichever labels its layout carries."""

    name: str
    path: Path
    layout: str  # a name of `load.LAYOUTS`, e.g. "lerf_ovs"
    views: tuple[View, ...]  # sorted by capture order (numeric name)
    points: np.ndarray  # [P, 3] float64; may be empty
    point_colors: np.ndarray  # [P, 3] uint8
    # view name -> units, LERF-OVS
    labels: dict[str, tuple[LabelledObject, ...]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()  # 3D-OVS, as in classes.txt
    # view name -> class -> mask PNG, 3D-OVS
    class_masks: dict[str, dict[str, Path]] = field(default_factory=dict)
    depth_folder: Path | None = None
    ground_truth: GroundTruth | None = None
    held_out: frozenset[str] = frozenset()  # views never used for training
    # every file the scene was read from or will read: what content_hash covers
    files: tuple[Path, ...] = ()

    def view(self, name: str) -> View:
        for v in self.views:
            if v.name == name:
                return v
        raise SceneError(
            f"{self.path}: no view named {name!r}; the scene has {self.views[0].name} …"
            f" {self.views[-1].name}"
        )

    @property
    def training_views(self) -> tuple[View, ...]:
        return tuple(v for v in self.views if v.name not in self.held_out)

    @property
    def queries(self) -> tuple[str, ...]:
        """The texts the scene is evaluated with, in order of first appearance."""
        if self.classes:
            return self.classes
        seen: dict[str, None] = {}
        for name in sorted(self.labels):
            for obj in self.labels[name]:
                seen.setdefault(obj.category)
        return tuple(seen)

    def depth(self, view: View) -> np.ndarray:  # [H, W] float64 metres, 0 = none
        """Measured or rendered depth along the camera's z axis."""
        if self.depth_folder is None:
            raise SceneError(
                f"{self.path}: the scene has no depth folder; reconstruct from points instead"
            )
        path = self.depth_folder / f"{view.stem}.png"
        return read_id_map(path, (view.camera.height, view.camera.width)) * DEPTH_UNIT


def read_id_map(path: Path, shape: tuple[int, int]) -> np.ndarray:  # [H, W] int32
    """Read an 8- or 16-bit grey PNG and check its size (h, w)."""

    def grey(im: Image.Image) -> np.ndarray:
        found = (im.size[1], im.size[0], *((len(im.getbands()),) if len(im.getbands()) > 1 else ()))
        if found != shape:  # before anything is decoded
            raise SceneError(
                f"{path}: has shape {found}, expected {shape}; it belongs to another image size"
            )
        return np.asarray(im)

    return open_image(path, grey).astype(np.int32)
