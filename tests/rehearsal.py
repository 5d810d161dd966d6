"""The paper profile in small: its scenes, arms, stages and checkpoints, with only the numbers
scaled down, on a pretended GPU.

`mirror` makes a folder of downloads: Tabletop scenes in both public formats under the public names,
and checkpoints with random weights under the public file names. Within `installed` the profile
paper is small and the GPU pretended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import open_clip
import segment_anything
import torch
from open_clip.model import CLIP
from pretend_cuda import pretend_cuda

import cclkit.foundation.sam2
from cclkit import config, places
from cclkit.foundation.mini_sam import build_mini_sam
from cclkit.foundation.mini_sam2 import build_mini_sam2
from cclkit.scenes.load import load_scene
from lab.reproduction import jobs
from lab.tabletop import export
from lab.tabletop.layout import LEVELS, Shot
from lab.tabletop.recipes import plan as recipe

NUMBERS = {
    "front_end.sam.points_per_side": 2,
    "front_end.sam2.image_size": 256,
    "front_end.sam2.objects_per_chunk": 4,
    "masks.min_area_px": 5,
    # untrained weights promise nothing, so nothing may be asked of their scores
    "masks.predicted_iou_min": 0.0,
    "masks.stability_min": 0.0,
    "masks.score_min": 0.0,
    "codebook.n_prototypes": 8,
    "codebook.steps": 5,
    "gaussians.start_gaussians": 200,
    "gaussians.max_gaussians": 250,
    "gaussians.iterations": 12,
    "field.iterations": 3,
}
SCENES = {
    "lerf_ovs": ("ramen", "figurines", "teatime", "waldo_kitchen"),
    "3d_ovs": ("bed", "bench", "sofa", "lawn"),
}
FIRST_LABEL = {"ramen": 6, "figurines": 41, "teatime": 2, "waldo_kitchen": 53}
"""Frames whose label files the registry expects."""
NAMES = ("lerf_ovs", "3d_ovs", "sam_vit_h", "sam2.1_hiera_large", "openclip_vit_b_16")
"""What the profile paper needs of the registry."""


def small_clip(*args, **kwargs):
    return CLIP(
        32,
        dict(layers=2, width=64, head_width=32, patch_size=16, image_size=32),
        dict(context_length=77, vocab_size=49408, width=32, heads=2, layers=2),
    ).eval()


def mirror(folder: Path, *, weights: dict[str, dict] | None = None, n_views: int = 3) -> Path:
    """A folder of downloads, and registry.toml beside it that asks no digest of them."""
    raw = folder.parent / "raw"
    for kind, source in (("lerf_ovs", "tea_party"), ("3d_ovs", "breakfast_bench")):
        scene, layout = load_scene(source), recipe(source)
        for k, name in enumerate(SCENES[kind]):
            shots, views = [], []
            for n, view in enumerate(scene.views[k : k + n_views]):
                cam = view.camera.scaled(0.25)
                first = FIRST_LABEL.get(name, 0)
                shot = Shot(
                    f"frame_{first + n:05d}.jpg" if kind == "lerf_ovs" else f"{n:02d}.jpg", cam
                )
                nearest = lambda a: cv2.resize(
                    a, (cam.width, cam.height), interpolation=cv2.INTER_NEAREST
                )
                ids = {
                    level: nearest(scene.ground_truth.ids(view, level).astype(np.int32))
                    for level in LEVELS
                }
                image = cv2.resize(
                    np.ascontiguousarray(view.image()),
                    (cam.width, cam.height),
                    interpolation=cv2.INTER_AREA,
                )
                shots.append(shot)
                views.append(
                    export.Rendered(shot, image, ids, nearest(scene.depth(view).astype(np.float64)))
                )
            own = dataclasses.replace(
                layout,
                name=name,
                shots=shots,
                held_out=(),
                labelled=tuple(s.name for s in shots[:2]),
            )
            export.write(own, views, raw)
        export.archive([raw / kind / name for name in SCENES[kind]], folder / f"{kind}.zip")
    torch.manual_seed(0)
    for name, state in (weights or small_weights()).items():
        torch.save(state, folder / name)
    text = (places.DATA / "registry.toml").read_text()
    text = re.sub(
        r'^sha256 = ".*"$',
        'sha256 = ""',
        re.sub(
            r"^size = .*$",
            "size = 0",
            re.sub(r'^size_is = ".*"', 'size_is = "unknown"', text, flags=re.M),
            flags=re.M,
        ),
        flags=re.M,
    )
    (folder / "registry.toml").write_text(text)
    return folder


def confident(sam) -> dict:
    """Random weights of a Sam that vary from click to click and score their own masks above 0, so
    that some are kept.
    """
    for p in sam.mask_decoder.parameters():
        p.data.mul_(1.5)
    sam.mask_decoder.iou_prediction_head.layers[-1].bias.data.fill_(0.6)
    return sam.state_dict()


def small_weights() -> dict[str, dict]:
    """Random weights of the packages' own classes, built small, as the public files hold them."""
    return {
        "sam_vit_h_4b8939.pth": confident(build_mini_sam()),
        "sam2.1_hiera_large.pt": {"model": build_mini_sam2().state_dict()},
        "open_clip_pytorch_model.bin": small_clip().state_dict(),
    }


@contextlib.contextmanager
def installed(
    *,
    scenes: dict[str, tuple[str, ...]] | None = None,
    stages: tuple[str, ...] | None = None,
    numbers: dict = NUMBERS,
    small: bool = True,
    pretend: bool = True,
):
    """The profile paper with small numbers (and small architectures under the public names), and
    the pretended GPU (or a real one).
    """
    real, grid = config.profile, jobs.GRIDS["paper"]
    assert {f"{k}/{s}" for k in SCENES for s in SCENES[k]} == set(grid.scenes)
    grid = dataclasses.replace(
        grid, scenes=scenes or grid.scenes, stages=stages or grid.stages, seeds=(0,)
    )

    def profile(name: str = "mini", **settings):
        return (real(name).with_settings(numbers) if name == "paper" else real(name)).with_settings(
            settings
        )

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(config, "profile", profile))
        stack.enter_context(mock.patch.dict(jobs.GRIDS, paper=grid))
        if small:
            stack.enter_context(
                mock.patch.dict(
                    segment_anything.sam_model_registry,
                    vit_h=lambda checkpoint=None: build_mini_sam(),
                )
            )
            stack.enter_context(
                mock.patch.object(
                    cclkit.foundation.sam2,
                    "build_sam2",
                    lambda model, image_size=1024: build_mini_sam2(image_size),
                )
            )
            stack.enter_context(mock.patch.object(open_clip, "create_model", small_clip))
        yield stack.enter_context(pretend_cuda()) if pretend else None
