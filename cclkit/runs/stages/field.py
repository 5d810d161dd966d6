"""Field: a feature per Gaussian and level, and decoders to codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save as save_safetensors
from tqdm.auto import tqdm

from ...errors import ArtefactError, FieldError, GaussiansError
from ...files import atomic_write, save_npz
from ...method.field import Decoder, FieldConfig, SemanticField, train_field, train_joint
from ...method.field_cached import train_field_variant
from ...method.masks import LEVELS
from ...progress import quiet
from ...scenes.scene import View
from ...settings import as_dict
from ..stage import Stage, array_of, require
from .blending import SETTINGS as OF_CACHE, blending_cache
from .codebook import codebooks, index_maps
from .gaussians import fit_config, gaussians, save_gaussians, start

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
    maps = {v.name: index_maps(work, v) for v in work.scene.training_views}
    books = codebooks(work)
    n_codes = [max(1, len(books[n].prototypes)) for n in LEVELS]
    train = _with_gaussians if work.config.field.mode == "joint" else _on_gaussians
    found, curves, about = train(work, folder, maps, n_codes)
    atomic_write(folder / "field.safetensors", save_safetensors(_tensors(found)))
    save_npz(folder / "curves.npz", **curves)
    last = {f"final_{k}": float(np.mean(curves[k][-20:])) for k in ("loss", "accuracy")}
    return about | last


def _with_gaussians(
    work: Engine, folder: Path, maps: Mapping[str, np.ndarray], n_codes: Sequence[int]
) -> tuple[SemanticField, dict[str, np.ndarray], dict]:
    """Colours, geometry and features together."""
    g, how = start(work)
    g, found, history, curves = train_joint(
        g.to(work.config.device),
        work.scene.training_views,
        maps,
        n_codes,
        work.config.field,
        fit_config(work.config),
        checkpoint=folder / "checkpoint.pt",
        progress=not quiet(),
    )
    save_gaussians(folder, g, history)
    return found, curves, {"start": how, "n_gaussians": len(g)}


def _on_gaussians(
    work: Engine, folder: Path, maps: Mapping[str, np.ndarray], n_codes: Sequence[int]
) -> tuple[SemanticField, dict[str, np.ndarray], dict]:
    """Features on Gaussians that are finished."""
    c, g = work.config.field, gaussians(work).to(work.config.device)
    own = {}
    train = train_field
    if c.mode == "cached" or c.init == "votes":
        train = train_field_variant
        own["cache"] = blending_cache(work) if c.mode == "cached" else None
    with tqdm(total=c.iterations, desc="field", disable=quiet()) as bar:
        found, curves = train(
            g,
            work.scene.training_views,
            maps,
            n_codes,
            c,
            seed=work.config.seed,
            progress=lambda _: bar.update(),
            **own,
        )
    return found, curves, {}


def field(work: Engine) -> SemanticField:
    """Features per Gaussian and level, and the decoders."""
    books = codebooks(work)

    def parse(tensors):
        found = _from_tensors(tensors, work.config.field)
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


def _tensors(found: SemanticField) -> dict[str, torch.Tensor]:
    """Tensors to store: features, and the decoders' weights by level."""
    out = {"features": found.features}
    for level, decoder in zip(LEVELS, found.decoders):
        out |= {f"decoder.{level}.{k}": v.contiguous() for k, v in decoder.state_dict().items()}
    return out


def _from_tensors(tensors: Mapping[str, torch.Tensor], config: FieldConfig) -> SemanticField:
    """Inverse of `_tensors`; the widths are read from the weights."""
    decoders = []
    for level in LEVELS:
        prefix = f"decoder.{level}."
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        shapes = [own[f"layers.{i}.weight"].shape for i in range(len(own) // 2)]  # [out, in]
        decoder = Decoder(
            shapes[0][1],
            [out for out, _ in shapes[:-1]],
            shapes[-1][0],
            normalise=config.normalise,
            generator=torch.Generator(),
        )
        decoder.load_state_dict(own)
        decoders.append(decoder.requires_grad_(False))
    return SemanticField(tensors["features"], tuple(decoders))


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
