"""Codebook: prototypes of each level, and the code of every mask."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save as save_safetensors

from ...files import atomic_write, save_npz
from ...method.codebook import index_map
from ...method.codebook_fit import Codebook, fit_codebook
from ...method.masks import LEVELS
from ...progress import progress
from ...scenes.scene import View
from ...settings import as_dict
from ..stage import Stage, array_of, require
from .features import features
from .masks import mask_levels, masks
from .tracks import rows_of, track_arrays

if TYPE_CHECKING:
    from ..engine import Engine

CURVES = ("max", "pull", "push", "total")


def build(work: Engine, folder: Path) -> dict:
    """``codebook.safetensors``: prototypes and initial prototypes per level, training curves;
    ``codes.npz``: code of every mask.
    """
    tensors, about = {}, {}
    config, seed = work.config.codebook, work.config.seed
    found, labels, level = (torch.from_numpy(a) for a in training_set(work))
    codes = np.full(len(level), -1, np.int32)
    shared = None
    if config.shared and len(level):
        shared = fit_codebook(found, labels, config, seed=seed, groups=level)
    for n, name in enumerate(progress(LEVELS, "codebook")):
        mine = level == n
        if not mine.any():  # nothing was segmented at this level: a codebook that no pixel uses
            empty = torch.zeros(0, found.shape[1])
            tensors |= {f"prototypes.{name}": empty, f"initial.{name}": empty.clone()}
            continue
        book = shared or fit_codebook(found[mine], labels[mine], config, seed=seed + n)
        # safetensors refuses one memory under two names
        tensors[f"prototypes.{name}"] = book.prototypes.clone()
        tensors[f"initial.{name}"] = book.initial.clone()
        tensors |= {f"curve.{k}.{name}": torch.tensor(v) for k, v in book.curves.items()}
        codes[mine] = book.codes(found[mine]).numpy().astype(np.int32)
        about[f"codes_used_{name}"] = int(len(np.unique(codes[mine])))
        final = {k: float(v[-1]) for k, v in book.curves.items() if len(v)}
        about[f"final_loss_{name}"] = final
    atomic_write(folder / "codebook.safetensors", save_safetensors(tensors))
    save_npz(folder / "codes.npz", codes=codes)
    return about


def training_set(work: Engine) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All masks of all training views, in order: features [M, d], track labels [M], level [M]."""
    views = work.scene.training_views
    labels = track_arrays(work)["label"].copy()  # what is remembered stays as it was read
    found = np.concatenate([features(work, v) for v in views])
    level = np.concatenate([mask_levels(work, v) for v in views])
    if not len(found) == len(labels) == len(level):
        raise work.ensure("tracks").damaged(
            "tracks.npz",
            f"labels of {len(labels)} masks, there are {len(level)} with {len(found)} features",
        )
    return found, labels, level


def codebooks(work: Engine) -> dict[str, Codebook]:
    """Codebook of each level."""

    def parse(t):
        d = t[f"prototypes.{LEVELS[0]}"].shape[1]
        for n in LEVELS:
            prototypes = t[f"prototypes.{n}"]
            array_of(prototypes.numpy(), "f", None, d)
            array_of(t[f"initial.{n}"].numpy(), "f", *prototypes.shape)
            # of finite numbers too: squares overflow
            finite = bool(prototypes.norm(dim=1).isfinite().all())
            require(finite, "prototypes whose length is not finite")
        return {n: Codebook(t[f"prototypes.{n}"], t[f"initial.{n}"], curves(t, n)) for n in LEVELS}

    def curves(t, level):
        return {k: t[f"curve.{k}.{level}"].numpy() for k in CURVES if f"curve.{k}.{level}" in t}

    return work.read("codebook", "codebook.safetensors", parse, "safetensors")


def mask_codes(work: Engine, view: View | str) -> np.ndarray:  # [M] int32
    """Code of each mask of a training view."""
    most = max(len(b.prototypes) for b in codebooks(work).values())
    total = int(track_arrays(work)["length"].sum())

    def parse(arrays):
        codes = array_of(arrays["codes"], "i", total)
        known = not len(codes) or -1 <= codes.min() <= codes.max() < most
        require(known, f"codes beyond the {most} prototypes")
        return codes

    return work.read("codebook", "codes.npz", parse)[rows_of(work, view)]


def index_maps(work: Engine, view: View | str) -> np.ndarray:  # [2, H, W] int32
    """Code index map of each level of a training view, -1 = no mask."""
    found, codes = masks(work, view), mask_codes(work, view)
    return np.stack([index_map(found.label_map(n), codes) for n in LEVELS])


STAGE = Stage(
    "codebook",
    build,
    inputs=lambda config: ("masks", "features", "tracks"),
    settings=lambda config: as_dict(config.codebook),
    seeded=True,
)
