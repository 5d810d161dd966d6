"""Figures of notebook 00: scenes, cameras, ground truth."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ...scenes.scene import GRANULARITIES, Scene, View
from ..colours import BLUE, VERMILION, region_colors
from .common import blank, grid, paint, picture, spread


def gallery_figure(scenes: Sequence[Scene]) -> Figure:
    """A row per scene: two photographs, the exact regions at two granularities, and what can be
    asked about it.
    """
    fig, axes = grid(len(scenes), 5, width=2.35, head=0.2)
    for row, scene in zip(axes, scenes):
        views = scene.training_views
        first, other = views[0], views[len(views) // 3]
        layout = scene.layout.replace("_", "-").upper()
        picture(row[0], first.image(), f"{scene.name}, {layout} layout")
        picture(row[1], other.image(), f"{len(scene.views)} views, {len(scene.held_out)} held out")
        for ax, g in zip(row[2:4], ("whole", "subpart")):
            if scene.ground_truth is None:
                ax.axis("off")
                continue
            m = scene.ground_truth.ids(other, g)
            picture(ax, paint_regions(scene, m), f"{g}: {len(np.unique(m[m > 0]))} regions")
        words = list(scene.queries or scene.classes)
        shown = textwrap.wrap(", ".join(words), 40)
        shown = shown[:11] + ["…"] if len(shown) > 12 else shown
        style = {"fontsize": 7.5, "va": "top", "linespacing": 1.25}
        row[4].text(0, 0.98, "\n".join(shown), transform=row[4].transAxes, **style)
        title = f"{len(words)} {'queries' if scene.queries else 'classes'}"
        row[4].set_title(title, fontsize=9.5, loc="left")
        row[4].axis("off")
    return fig


def paint_regions(scene: Scene, ids: np.ndarray) -> np.ndarray:  # [H, W, 3]
    """An id map of the ground truth [H, W] (0 = none) in the colours of its regions."""
    colors = region_colors(scene)
    position = np.full(max(colors) + 1, -1)
    position[list(colors)] = np.arange(len(colors))
    return paint(position[ids], np.array(list(colors.values())))


def scene_figure(scene: Scene, views: Sequence[View]) -> Figure:
    """Photographs of a scene beside its points and cameras in 3D."""
    fig = blank(11, 3.9)
    outer = fig.add_gridspec(1, 2, width_ratios=(1.75, 1))
    left = outer[0].subgridspec(2, (len(views) + 1) // 2)
    for i, v in enumerate(views):
        title = v.name + (" (held out)" if v.name in scene.held_out else "")
        picture(fig.add_subplot(left[i % 2, i // 2]), v.image(), title)
    ax = fig.add_subplot(outer[1], projection="3d")
    points, colors = scene_points(scene)
    low, high = draw_cameras(ax, scene)
    # far walls would shrink everything else
    inside = np.flatnonzero(((points >= low) & (points <= high)).all(1))
    keep = inside[np.linspace(0, len(inside) - 1, min(6000, len(inside))).astype(int)]
    ax.scatter(*points[keep].T, c=colors[keep] / 255.0, s=3, linewidths=0)
    counts = f"{len(points):,} points, {len(scene.views)} cameras"
    ax.text2D(0.5, -0.07, counts, transform=ax.transAxes, ha="center", fontsize=9.5)
    return fig


def landing_figure(view: View, panels: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> Figure:
    """Where points fall in a photograph, once per panel: title, positions [P, 2] (x, y) and colours
    [P, 3] uint8.
    """
    fig, axes = grid(1, len(panels), width=3.4)
    h, w = view.camera.height, view.camera.width
    grey = np.repeat(view.image().mean(2, keepdims=True), 3, 2) / 255.0
    for ax, (title, xy, colors) in zip(axes[0], panels):
        picture(ax, 0.6 + 0.4 * grey, title)
        inside = ((xy >= 0) & (xy <= [w, h])).all(1)
        # imshow puts a pixel's centre at whole numbers
        ax.scatter(*(xy[inside] - 0.5).T, c=colors[inside] / 255.0, s=4, linewidths=0)
        ax.set(xlim=(-0.5, w - 0.5), ylim=(h - 0.5, -0.5))
    return fig


def ground_truth_figure(scene: Scene, view: View) -> Figure:
    """A photograph and its exact regions at the three granularities."""
    fig, axes = grid(1, 4, width=2.9)
    picture(axes[0, 0], view.image(), view.name)
    for ax, g in zip(axes[0, 1:], reversed(GRANULARITIES)):
        m = scene.ground_truth.ids(view, g)
        picture(ax, paint_regions(scene, m), f"{g}: {len(np.unique(m[m > 0]))} regions")
    return fig


def scene_points(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Points [P, 3] and colours [P, 3] uint8: the scene's own, or a few from depth where it has
    none.
    """
    if len(scene.points):
        return scene.points, scene.point_colors
    points, colors = [], []
    for v in spread(scene.training_views, 4):
        depth = scene.depth(v)[::6, ::6]
        xyz = v.camera.backproject(scene.depth(v))[::6, ::6]
        points.append(xyz[depth > 0])
        colors.append(v.image()[::6, ::6][depth > 0])
    return np.concatenate(points), np.concatenate(colors)


def draw_cameras(ax, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Camera pyramids, held-out ones in red, on equal axes with the scene's up upwards; returns the
    corners shown.
    """
    centres = np.array([v.camera.centre for v in scene.views])
    points, _ = scene_points(scene)
    middle = np.median(points, axis=0)
    reach = 1.5 * np.median(np.linalg.norm(centres - middle, axis=1))
    near = points[np.linalg.norm(points - middle, axis=1) < reach]
    everything = np.concatenate([centres, np.percentile(near, [2, 98], axis=0)])
    low, high = everything.min(0), everything.max(0)
    middle, half = (low + high) / 2, 0.52 * (high - low).max()
    for v in scene.views:
        cam = v.camera
        w, h = cam.width, cam.height
        corners = np.array([[0, 0], [w, 0], [w, h], [0, h]], float)
        x, y = ((corners - cam.K[:2, 2]) / cam.K[[0, 1], [0, 1]]).T
        rays = np.stack([x, y, np.ones(4)], -1) * 0.16 * half
        c2w = cam.camera_to_world
        world = rays @ c2w[:3, :3].T + c2w[:3, 3]
        color = VERMILION if v.name in scene.held_out else BLUE
        for a, b in [(0, 1), (1, 2), (2, 3), (3, 0)]:
            ax.plot(*zip(world[a], world[b]), color=color, lw=0.9)
        for a in range(4):
            ax.plot(*zip(cam.centre, world[a]), color=color, lw=0.6)
    for setter, m in zip((ax.set_xlim, ax.set_ylim, ax.set_zlim), middle):
        setter(m - half, m + half)
    ax.set_box_aspect((1, 1, 1), zoom=1.15)
    # mean "up" of the cameras decides where to look from
    up = -np.mean([v.camera.world_to_camera[1, :3] for v in scene.views], axis=0)
    vertical = int(np.abs(up).argmax())
    if up[vertical] < 0:
        (ax.invert_xaxis, ax.invert_yaxis, ax.invert_zaxis)[vertical]()
    ax.view_init(elev=28, azim=-60, vertical_axis="xyz"[vertical])
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.set_ticklabels([])
    return middle - half, middle + half
