"""Scenes: views, cameras, points, labels, and the readers of each layout."""
