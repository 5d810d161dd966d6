"""Field: a feature per Gaussian and level, and decoders to codes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.torch import save as save_safetensors
from tqdm.auto import tqdm

from ...errors import ArtefactError, FieldError, GaussiansError
from ...files import atomic_write, save_npz
from ...method.field import (
    SemanticField,
    field_from_tensors,
    field_tensors,
    train_field,
    train_joint,
)
from ...method.masks import LEVELS
from ...progress import quiet
from ...scenes.scene import View
from ...settings import as_dict
from ..stage import Stage, array_of, require
from .blending import SETTINGS as OF_CACHE, blending_cache
from .codebook import codebooks, index_maps
from .gaussians import gaussians, save_gaussians, start

if TYPE_CHECKING:
    from ...config import Config
    from ..engine import Engine

OF_JOINT = ("joint_geometry", "joint_weight")
UNUSED = {
    "joint": (*OF_CACHE, "batch", "iterations", "init"),
    "rasterised": (*OF_CACHE, "batch", *OF_JOINT),
    "cached": OF_JOINT,
}
"""Mode -> settings of the field that it does not read."""


def build(work: Engine, folder: Path) -> dict:
    """``field.safetensors``: features [levels, Gaussians, 8] and decoders; ``curves.npz``; with
    mode "joint" the files of a reconstruction too.
    """
    c, views, about = work.config.field, work.scene.training_views, {}
    maps = {v.name: index_maps(work, v) for v in views}
    books = codebooks(work)
    n_codes = [max(1, len(books[n].prototypes)) for n in LEVELS]
    if c.mode == "joint":
        g, about, fit = start(work)
        fit["checkpoint"] = folder / "checkpoint.pt"
        g = g.to(work.config.device)
        g, field, history, curves = train_joint(g, views, maps, n_codes, c, **fit)
        save_gaussians(folder, g, history)
        about = about | {"n_gaussians": len(g)}
    else:
        with tqdm(total=c.iterations, desc="field", disable=quiet()) as bar:
            field, curves = train_field(
                gaussians(work).to(work.config.device),
                views,
                maps,
                n_codes,
                c,
                seed=work.config.seed,
                cache=blending_cache(work) if c.mode == "cached" else None,
                progress=lambda _: bar.update(),
            )
    atomic_write(folder / "field.safetensors", save_safetensors(field_tensors(field)))
    save_npz(folder / "curves.npz", **curves)
    last = {f"final_{k}": float(np.mean(curves[k][-20:])) for k in ("loss", "accuracy")}
    return about | last


def field(work: Engine) -> SemanticField:
    """Features per Gaussian and level, and the decoders."""
    books = codebooks(work)

    def parse(tensors):
        found = field_from_tensors(tensors, work.config.field)
        dim = found.decoders[0].layers[0].in_features
        array_of(found.features.numpy(), "f", len(LEVELS), None, dim)
        for n, decoder in zip(LEVELS, found.decoders):
            N, to = len(books[n].prototypes), decoder.layers[-1].out_features
            require(to == max(1, N), f"a decoder to {to} codes for {N} prototypes")
        return found

    return work.read("field", "field.safetensors", parse, "safetensors")


def field_curves(work: Engine) -> dict[str, np.ndarray]:
    """Loss and accuracy of every step."""
    c = work.config
    n = (c.gaussians if c.field.mode == "joint" else c.field).iterations

    def parse(a):
        return {k: array_of(a[k], "f", n) for k in ("loss", "accuracy")}

    return work.read("field", "curves.npz", parse)


def codes(work: Engine, view: View | str) -> np.ndarray:  # [2, H, W] int32
    """Codes decoded from the field for any view of the scene, held-out ones too."""
    view = work.view(view)
    return work.keep(f"codes of {view.name}", lambda: _decoded(work, view))


def _decoded(work: Engine, view: View) -> np.ndarray:
    try:
        return field(work).codes(gaussians(work), view.camera)
    except (FieldError, GaussiansError) as e:
        raise ArtefactError(
            f"{work.ensure('field').folder}: does not fit the Gaussians of this run ({e}); delete"
            " both and run again"
        ) from e


def _settings(config: Config) -> dict:
    """Those that the mode reads."""
    unused = UNUSED[config.field.mode]
    own = {k: v for k, v in as_dict(config.field).items() if k not in unused}
    joint = {"gaussians": as_dict(config.gaussians)} if config.field.mode == "joint" else {}
    return own | joint | {"device": config.device}


def _inputs(config: Config) -> tuple[str, ...]:
    """No Gaussians where the field makes them; the blending cache if it is trained on that."""
    own = {"joint": (), "rasterised": ("gaussians",), "cached": ("gaussians", "blending")}
    return ("masks", "tracks", "codebook", *own[config.field.mode])


STAGE = Stage(
    "field",
    build,
    inputs=_inputs,
    settings=_settings,
    seeded=True,
    told=("start", "n_gaussians", "final_accuracy"),
)
