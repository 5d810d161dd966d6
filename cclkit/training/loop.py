"""What both trainings share: a fixed number of steps, a moving average of the weights, checkpoints to resume from."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from ..artefacts import atomic_write
from ..errors import ModelError

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
    restart: int = 0,
    made_from: str = "",
    log: Callable[[str], None] = print,
) -> tuple[nn.Module, dict[str, list[float]]]:
    """Adam with a cosine schedule, begun anew at step ``restart``; returns the averaged model and the curves.

    ``loss_of(step, generator)`` gives named losses, "total" among them. Each step has its own
    generator made from (seed, step), so a resumed run sees the same data as an uninterrupted one.
    ``made_from`` names code and data: a training is not continued with others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state_path = folder / "state.pt"
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW([{"params": decay, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}], lr=lr)
    mean = copy.deepcopy(model).eval()
    curves: dict[str, list[float]] = {}
    first, spent = 0, 0.0
    if state_path.exists():
        try:
            state = torch.load(state_path, weights_only=True)
        except Exception as e:  # torch raises many kinds for a damaged file
            raise ModelError(f"{state_path}: the checkpoint of a stopped training cannot be read ({e}); delete it to start over") from e
        if (state.get("steps"), state.get("seed"), state.get("made_from")) != (steps, seed, made_from):
            raise ModelError(
                f"{state_path}: a training of {state.get('steps')} steps with seed {state.get('seed')} (code and data {state.get('made_from')}) was made here, "
                f"asked for {steps} steps with seed {seed} (code and data {made_from}); use another folder or delete the file"
            )
        model.load_state_dict(state["model"])
        mean.load_state_dict(state["mean"])
        optimiser.load_state_dict(state["optimiser"])
        first, curves, spent = state["step"], state["curves"], state["seconds"]
    start = time.monotonic()
    for step in range(first, steps):
        model.train()
        begin, end = (0, restart) if step < restart else (restart, steps)
        rate = lr * min(1, (step - begin + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - begin) / (end - begin))))
        for g in optimiser.param_groups:
            g["lr"] = rate
        torch.manual_seed(seed * 1_000_003 + step)
        losses = loss_of(step, np.random.default_rng([seed, step]))
        optimiser.zero_grad(set_to_none=True)
        losses["total"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        keep = min(average, (step + 1) / (step + 10))
        with torch.no_grad():
            for a, b in zip(mean.state_dict().values(), model.state_dict().values()):
                a.lerp_(b, 1 - keep) if a.is_floating_point() else a.copy_(b)
        for k, v in losses.items():
            curves.setdefault(k, []).append(float(v.detach()))
        if (step + 1) % 50 == 0:
            seconds = spent + time.monotonic() - start
            recent = {k: round(float(np.mean(v[-50:])), 4) for k, v in curves.items()}
            log(f"step {step + 1}/{steps}  {seconds:.0f} s, {seconds / (step + 1) * (steps - step - 1):.0f} s to go  {json.dumps(recent)}")
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            state = {"step": step + 1, "steps": steps, "seed": seed, "made_from": made_from, "seconds": spent + time.monotonic() - start, "curves": curves,
                     "model": model.state_dict(), "mean": mean.state_dict(), "optimiser": optimiser.state_dict()}
            torch.save(state, state_path.with_suffix(".part"))
            os.replace(state_path.with_suffix(".part"), state_path)
    curves["seconds"] = [spent + time.monotonic() - start]
    return mean, curves


def write_weights(model: nn.Module, path: Path) -> None:
    """Weights in half precision as safetensors."""
    tensors = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in model.state_dict().items()}
    atomic_write(path, save(tensors))
