"""What all trainings share: a fixed number of steps, a moving average of the weights, checkpoints
to resume from.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from cclkit.errors import ModelError
from cclkit.files import atomic_write

from . import replicas
from .muon import Muon

SAVE_EVERY = 100


def fit(
    model: nn.Module,
    loss_of: Callable[[int, np.random.Generator], dict[str, torch.Tensor]],
    folder: Path,
    *,
    steps: int,
    seed: int,
    lr: float,
    weight_decay: float = 0.02,
    warmup: int = 100,
    average: float = 0.998,
    matrices: Sequence[nn.Parameter] = (),
    made_from: str = "",
    log: Callable[[str], None] = print,
) -> tuple[nn.Module, dict[str, list[float]]]:
    """Adam, and Muon for ``matrices``, with a cosine schedule; returns the averaged model and the
    curves.

    ``loss_of(step, generator)`` gives named losses, "total" among them. Each step has its own
    generator made from (seed, step, replica), so a resumed run sees the same data as an
    uninterrupted one. ``made_from`` names code and data: a training is not continued with others.
    Within `replicas.in_replicas` every step's gradient is the mean over the replicas.
    """
    rank, n = replicas.rank(), replicas.count()
    state = resume(folder, steps, seed, made_from)
    optimisers = _optimisers(model, matrices, lr, weight_decay)
    mean = copy.deepcopy(model).eval()
    curves: dict[str, list[float]] = {}
    first, spent = 0, 0.0
    if state is not None:
        model.load_state_dict(state["model"])
        mean.load_state_dict(state["mean"])
        for o, saved in zip(optimisers, state["optimisers"], strict=True):
            o.load_state_dict(saved)
        first, curves, spent = state["step"], state["curves"], state["seconds"]
    began = time.monotonic() - spent
    for step in range(first, steps):
        model.train()
        torch.manual_seed((seed * 1_000_003 + step) * n + rank)
        losses = loss_of(step, np.random.default_rng([seed, step, rank]))
        for o in optimisers:
            for g in o.param_groups:
                g["lr"] = _rate(lr, step, steps, warmup)
            o.zero_grad(set_to_none=True)
        losses["total"].backward()
        values = torch.stack([v.detach().float() for v in losses.values()])
        if n > 1:
            _average([*(p.grad for p in model.parameters() if p.grad is not None), values])
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in optimisers:
            o.step()
        _follow(mean, model, min(average, (step + 1) / (step + 10)))
        for k, v in zip(losses, values.tolist()):
            curves.setdefault(k, []).append(v)
        if rank:  # the first replica keeps the books
            continue
        seconds = time.monotonic() - began
        if (step + 1) % 50 == 0:
            recent = {k: round(float(np.mean(v[-50:])), 4) for k, v in curves.items()}
            log(
                f"step {step + 1}/{steps}  {seconds:.0f} s,"
                f" {seconds / (step + 1) * (steps - step - 1):.0f} s to go  {json.dumps(recent)}"
            )
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            state = {
                "step": step + 1,
                "steps": steps,
                "seed": seed,
                "made_from": made_from,
                "seconds": seconds,
                "curves": curves,
                "model": model.state_dict(),
                "mean": mean.state_dict(),
                "optimisers": [o.state_dict() for o in optimisers],
            }
            torch.save(state, folder / "state.part")
            os.replace(folder / "state.part", folder / "state.pt")
    curves["seconds"] = [time.monotonic() - began]
    return mean, curves


def _optimisers(
    model: nn.Module, matrices: Sequence[nn.Parameter], lr: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Muon for ``matrices``, Adam for the others; vectors do not decay."""
    special = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in special]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=lr)
    return [adam, Muon(matrices, lr=lr, weight_decay=weight_decay)] if matrices else [adam]


def _rate(lr: float, step: int, steps: int, warmup: int) -> float:
    """The cosine schedule: up over ``warmup`` steps, then down to a fiftieth."""
    cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
    return lr * min(1, (step + 1) / warmup) * cosine


@torch.no_grad()
def _follow(mean: nn.Module, model: nn.Module, keep: float) -> None:
    """The moving average of the weights, one step on."""
    for a, b in zip(mean.state_dict().values(), model.state_dict().values()):
        a.lerp_(b, 1 - keep) if a.is_floating_point() else a.copy_(b)


def resume(folder: Path, steps: int, seed: int, made_from: str) -> dict | None:
    """The checkpoint of a stopped training in ``folder``; None if there is none.

    Raises ModelError when it cannot be read or belongs to another training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "state.pt"
    if not path.exists():
        return None
    try:
        state = torch.load(path, weights_only=True)
    except Exception as e:  # torch raises many kinds for a damaged file
        raise ModelError(
            f"{path}: the checkpoint of a stopped training cannot be read ({e}); delete it to start"
            " over"
        ) from e
    if (state.get("steps"), state.get("seed"), state.get("made_from")) != (steps, seed, made_from):
        raise ModelError(
            f"{path}: a training of {state.get('steps')} steps with seed {state.get('seed')} (code"
            f" and data {state.get('made_from')}) was made here, asked for {steps} steps with seed"
            f" {seed} (code and data {made_from}); use another folder or delete the file"
        )
    return state


def _average(tensors: list[torch.Tensor]) -> None:
    """Put the mean over all replicas into the tensors."""
    flat = torch.cat([t.reshape(-1) for t in tensors])
    replicas.add_up(flat)
    for t, mean in zip(tensors, (flat / replicas.count()).split([t.numel() for t in tensors])):
        t.copy_(mean.view_as(t))


def write_weights(model: nn.Module, path: Path) -> None:
    """Weights in half precision as safetensors."""
    tensors = {
        k: (v.half() if v.is_floating_point() else v).contiguous()
        for k, v in model.state_dict().items()
    }
    atomic_write(path, save(tensors))
