"""Scenes: views, cameras, points, labels, and the readers of each layout."""

from .load import bundled_scenes, content_hash, data_folder, detect_layout, load_scene
from .scene import (
    DEPTH_UNIT,
    GRANULARITIES,
    Camera,
    GroundTruth,
    LabelledObject,
    Scene,
    View,
    read_id_map,
)

__all__ = [
    "DEPTH_UNIT",
    "GRANULARITIES",
    "Camera",
    "GroundTruth",
    "LabelledObject",
    "Scene",
    "View",
    "bundled_scenes",
    "content_hash",
    "data_folder",
    "detect_layout",
    "load_scene",
    "read_id_map",
]
