"""Weights on disk: find them, check them, load them into a model.

Nothing is ever unpickled: safetensors, or torch files with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path

import torch

from ..downloads import lookup
from ..downloads.records import digest
from ..errors import ModelError, reason

FETCHED = {
    "vit_b": "sam_vit_b",
    "vit_l": "sam_vit_l",
    "vit_h": "sam_vit_h",
    "ViT-B-16": "openclip_vit_b_16",
} | {
    name: name
    for family in ("sam2.1", "sam2")
    for size in ("tiny", "small", "base_plus", "large")
    for name in (f"{family}_hiera_{size}",)
}
"""Names in the registry of the checkpoints that are used when a model is named without one."""
MINI_SAM = "mini_sam.safetensors"
MINI_SAM2 = "mini_sam2.safetensors"
MINI_CLIP, MINI_CLIP_WORDS = "mini_clip.safetensors", "mini_clip_words.txt"


def folder() -> Path:
    """Where the bundled weights are."""
    return Path(__file__).resolve().parents[2] / "data" / "models"


def load_weights(
    path: str | os.PathLike, what: str, sha256: str | None = None
) -> dict[str, torch.Tensor]:
    """Tensors of a .safetensors or torch file, on the CPU.

    Raises ModelError when the file is missing, damaged, holds code, or differs from ``sha256`` (for
    a fetched checkpoint of the registry: from its digest there, or from the one recorded at first
    use).
    """
    path = Path(path)
    sha256 = sha256 or lookup.digest_of_checkpoint(path)
    if not path.is_file():
        raise ModelError(f"{path}: no weights of {what} here; {remedy(what)}")
    if sha256 is not None and (found := digest(path)) != sha256:
        raise ModelError(
            f"{path}: weights of {what} have sha256 {found[:12]}…, expected {sha256[:12]}…, so they"
            " are not used; restore the file or remove it and fetch it again"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise ModelError(
            f"{path}: holds more than tensors (or is no torch file) and was not opened, since a"
            f" pickle can run code; expected a state dict of {what}; {remedy(what)}"
        ) from e
    except Exception as e:  # zipfile, torch and safetensors each raise their own on a damaged file
        raise ModelError(
            f"{path}: cannot be read as weights of {what} ({reason(e)}); it may be cut short: fetch"
            " it again"
        ) from e
    for wrapper in ("state_dict", "model"):  # what open_clip's and sam2's training code save
        state = state.get(wrapper, state) if isinstance(state, dict) else None
    table = isinstance(state, dict) and state
    if not table or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ModelError(f"{path}: holds no table of tensors; expected a state dict of {what}")
    return {k.removeprefix("module."): v for k, v in state.items()}


def load_mini(name: str, what: str, path: Path | None) -> dict[str, torch.Tensor]:
    """Tensors of a small model: of a file, or (None) the bundled ones, whose digest is checked."""
    return load_weights(*bundled(name, what)) if path is None else load_weights(path, what)


def fill(
    model: torch.nn.Module, weights: dict[str, torch.Tensor], path: str | os.PathLike, what: str
) -> torch.nn.Module:
    """Load weights into a model. Raises ModelError, naming the first misfits, when they belong to
    another architecture.
    """
    own = model.state_dict()
    missing = [k for k in own if k not in weights]
    extra = [k for k in weights if k not in own]
    shape = [
        f"{k} is {tuple(weights[k].shape)}, not {tuple(own[k].shape)}"
        for k in own
        if k in weights and weights[k].shape != own[k].shape
    ]
    if missing or extra or shape:
        misfits = (
            f"{len(missing)} tensors missing ({missing[0]} …)" if missing else "",
            f"{len(extra)} unknown ({extra[0]} …)" if extra else "",
            f"{len(shape)} of another shape ({shape[0]})" if shape else "",
        )
        raise ModelError(
            f"{path}: not the weights of {what}: {'; '.join(filter(None, misfits))}; choose the"
            " architecture that the file was made for"
        )
    if not all(torch.isfinite(v).all() for v in weights.values() if v.is_floating_point()):
        raise ModelError(
            f"{path}: weights of {what} hold values that are not finite; fetch the file again"
        )
    model.load_state_dict({k: v.to(own[k].dtype) for k, v in weights.items()})
    return model.eval().requires_grad_(False)


SETTINGS_OF = {"SAM": "sam", "SAM2": "sam2", "OpenCLIP": "clip"}
"""Kind of model -> its group of settings in front_end."""


def label(kind: str, model: str) -> str:
    """How figures name a model: "mini-SAM", "SAM vit_h"."""
    return f"mini-{kind}" if model == "mini" else f"{kind} {model}"


def identity(model: str, checkpoint: str, bundled: str) -> str:
    """What tells one set of weights from another, for artefact keys: the file's sha256, never its
    path.
    """
    if checkpoint:
        path = Path(checkpoint)
    else:
        path = folder() / bundled if model == "mini" else fetched(model)
    if path is None or not path.is_file():
        return f"{model}:none"
    parts = [digest(path)]
    words = path.with_name(MINI_CLIP_WORDS)
    if model == "mini" and bundled == MINI_CLIP and words.is_file():
        parts.append(hashlib.sha256(words.read_bytes()).hexdigest())
    return ":".join([model, *parts])


def fetched(model: str) -> Path | None:
    """The fetched checkpoint of a model, its digest verified (DataError if it differs); None when
    there is none.
    """
    return lookup.checkpoint(FETCHED[model]) if model in FETCHED else None


def provenance(name: str) -> dict:
    """The record beside a bundled model: how it was made, what it scored."""
    path = (folder() / name).with_suffix(".json")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or not isinstance(record.get("sha256"), str):
            raise ValueError("expected an object with the sha256 of the weights")
        return record
    except (OSError, ValueError, RecursionError) as e:
        raise ModelError(
            f"{path}: the record of a bundled model cannot be read ({e}); restore it from the"
            " repository"
        ) from e


def bundled(name: str, what: str) -> tuple[Path, str, str]:
    """File, description and recorded sha256 of a bundled model: what `load_weights` takes."""
    path = folder() / name
    if not path.is_file():
        raise ModelError(f"{path}: no weights of {what} here; {remedy(what)}")
    return path, what, provenance(name)["sha256"]


def remedy(what: str) -> str:
    """How to get the weights of a model, for messages."""
    if what.startswith("mini"):
        return "restore it from the repository, or train it again with python -m lab.training"
    kind, _, model = what.partition(" ")
    if model in FETCHED:
        return (
            f"run `cclkit data fetch {FETCHED[model]}` (or give the path of that checkpoint in"
            f" front_end.{SETTINGS_OF[kind]}.checkpoint)"
        )
    return "give the path of a checkpoint that open_clip can read in front_end.clip.checkpoint"
