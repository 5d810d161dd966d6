"""Shared fixtures: a tiny exact scene made with numpy, and optional real data."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

os.environ.setdefault("CCLKIT_QUIET", "1")
os.environ.setdefault("MPLBACKEND", "agg")


def folder_from(variable: str) -> Path:
    """A folder named by an environment variable; the test is skipped, with the reason, when it is
    not set.
    """
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set")
    return Path(value)


@pytest.fixture
def real_data() -> Path:
    return folder_from("CCLKIT_REAL_DATA")


@pytest.fixture
def oracles() -> Path:
    return folder_from("CCLKIT_ORACLES")


WIDTH, HEIGHT, FOCAL, DISTANCE = 64, 48, 60.0, 1.0
# id -> (name, level, parent, rectangle x0 y0 x1 y1 on the plane in metres, colour)
REGIONS = {
    1: ("table", "whole", None, (-9, -9, 9, 9), (150, 120, 90)),
    2: ("bear", "whole", None, (-0.40, -0.25, -0.02, 0.25), (120, 70, 30)),
    3: ("bear head", "part", 2, (-0.40, -0.25, -0.02, 0.02), (170, 110, 60)),
    4: ("bear nose", "subpart", 3, (-0.27, -0.13, -0.13, 0.0), (30, 20, 20)),
    5: ("red apple", "whole", None, (0.08, -0.22, 0.30, 0.0), (190, 30, 30)),
    6: ("green apple", "whole", None, (0.08, 0.06, 0.30, 0.28), (40, 160, 40)),
}
QUERIES = {"bear": 2, "bear nose": 4, "red apple": 5, "green apple": 6}


def write_plane_scene(root: Path, *, n_views: int = 6, name: str = "plane") -> Path:
    """A LERF-OVS scene of coloured rectangles on the plane z = 1, seen by cameras that move
    sideways.

    Everything is exact by construction: ids and depth are evaluated per pixel, the model is COLMAP
    text.
    """
    scene = root / name
    for sub in (
        "images",
        "sparse/0",
        "depth",
        "ground_truth/whole",
        "ground_truth/part",
        "ground_truth/subpart",
    ):
        (scene / sub).mkdir(parents=True)
    labels = root / "label" / name
    labels.mkdir(parents=True)
    cx, cy = WIDTH / 2 + 1.5, HEIGHT / 2 - 1.0
    rng = np.random.default_rng(0)
    texture = rng.uniform(0.85, 1.15, (64, 64))
    images = []
    for n in range(n_views):
        shift = np.array([0.08 * (n - n_views / 2), 0.02 * (n % 3)])
        y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
        px, py = (x - cx) / FOCAL * DISTANCE + shift[0], (y - cy) / FOCAL * DISTANCE + shift[1]
        maps = {g: np.zeros((HEIGHT, WIDTH), np.uint8) for g in ("whole", "part", "subpart")}
        rgb = np.zeros((HEIGHT, WIDTH, 3))
        finer = {
            "whole": ("whole", "part", "subpart"),
            "part": ("part", "subpart"),
            "subpart": ("subpart",),
        }
        for i, (_, level, _, (x0, y0, x1, y1), color) in REGIONS.items():
            inside = (px >= x0) & (px < x1) & (py >= y0) & (py < y1)
            rgb[inside] = color
            for g in finer[level]:
                maps[g][inside] = i
        rgb *= texture[(py * 40).astype(int) % 64, (px * 40).astype(int) % 64][..., None]
        stem = f"frame_{n + 1:05d}"
        Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8)).save(
            scene / "images" / f"{stem}.jpg", quality=95
        )
        Image.fromarray(np.full((HEIGHT, WIDTH), int(DISTANCE / 1e-4), np.uint16)).save(
            scene / "depth" / f"{stem}.png"
        )
        for g, m in maps.items():
            Image.fromarray(m).save(scene / "ground_truth" / g / f"{stem}.png")
        images.append(f"{n + 1} 1 0 0 0 {-shift[0]} {-shift[1]} 0 1 {stem}.jpg\n\n")
        if n in (1, n_views - 2):
            objects = []
            for text, i in QUERIES.items():
                g = REGIONS[i][1]
                ys, xs = np.nonzero(maps[g] == i)
                if len(ys):
                    box = [int(xs.min()), int(ys.min()), int(xs.max()), int(ys.max())]
                    polygon = [
                        [box[0], box[1]],
                        [box[2], box[1]],
                        [box[2], box[3]],
                        [box[0], box[3]],
                    ]
                    objects.append({"category": text, "bbox": box, "segmentation": polygon})
            info = {"name": f"{stem}.jpg", "width": WIDTH, "height": HEIGHT}
            (labels / f"{stem}.json").write_text(json.dumps({"info": info, "objects": objects}))
    (scene / "sparse/0/cameras.txt").write_text(
        f"1 PINHOLE {WIDTH} {HEIGHT} {FOCAL} {FOCAL} {cx} {cy}\n"
    )
    (scene / "sparse/0/images.txt").write_text("".join(images))
    points = rng.uniform(-0.6, 0.6, (300, 2))
    (scene / "sparse/0/points3D.txt").write_text(
        "".join(f"{k + 1} {a} {b} {DISTANCE} 128 128 128 0.1\n" for k, (a, b) in enumerate(points))
    )
    nodes = [
        {"id": i, "name": n, "level": level, "parent": p, "stuff": i == 1}
        for i, (n, level, p, _, _) in REGIONS.items()
    ]
    queries = [{"text": t, "granularity": REGIONS[i][1], "ids": [i]} for t, i in QUERIES.items()]
    (scene / "ground_truth/objects.json").write_text(
        json.dumps({"nodes": nodes, "queries": queries})
    )
    return scene


@pytest.fixture
def plane_scene(tmp_path) -> Path:
    return write_plane_scene(tmp_path)
