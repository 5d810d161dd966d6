"""Scenes: views, cameras, points, labels, and the readers of each layout."""

from .scene import GRANULARITIES, Camera, GroundTruth, LabelledObject, Scene, View

__all__ = ["GRANULARITIES", "Camera", "GroundTruth", "LabelledObject", "Scene", "View"]
