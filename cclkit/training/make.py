"""From rendered scenes to the files of data/models: weights, vocabulary, scores, provenance."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import numpy as np
import torch

from .. import __version__
from ..artefacts import atomic_write, code_version, save_json
from ..foundation import models
from ..foundation.mini_clip import WordTokenizer
from . import clip, sam, score
from .data import Scenes, held_out_seeds, load
from .loop import fit, write_weights


def make_sam(folder: Path, out: Path | None, *, steps: int, seed: int, threads: int) -> dict:
    """Train mini-SAM on the scenes of ``folder``, score it on held-out ones, write weights and provenance to ``out``."""
    torch.set_num_threads(threads)
    code = _code()
    scenes = load(folder)
    model = sam.model(seed)
    mean, curves = fit(model, sam.Losses(model, scenes, steps), folder / "sam", steps=steps, seed=seed, lr=1e-3, log=_say)
    path = (out or models.folder()) / "mini_sam.safetensors"
    write_weights(mean, path)
    return _provenance(path, "mini-SAM", "python -m cclkit.training sam", folder, scenes, curves, steps, seed, code, score.score_sam(models.load_mini_sam(path), load(folder, held_out_seeds())))


def make_clip(folder: Path, out: Path | None, *, steps: int, seed: int, threads: int) -> dict:
    """Train mini-CLIP on the scenes of ``folder``, score it on held-out ones, write weights, vocabulary and provenance to ``out``."""
    torch.set_num_threads(threads)
    code = _code()
    scenes = load(folder)
    tokenizer = WordTokenizer(clip.vocabulary(scenes))
    model = clip.model(seed, tokenizer)
    mean, curves = fit(model, clip.Losses(model, tokenizer, scenes), folder / "clip", steps=steps, seed=seed, lr=1.5e-3, log=_say)
    path = (out or models.folder()) / "mini_clip.safetensors"
    write_weights(mean, path)
    atomic_write(path.with_name("mini_clip_words.txt"), ("\n".join(tokenizer.words) + "\n").encode())
    return _provenance(path, "mini-CLIP", "python -m cclkit.training clip", folder, scenes, curves, steps, seed, code, score.score_clip(*models.load_mini_clip(path), load(folder, held_out_seeds())))


def _say(line: str) -> None:
    print(line, flush=True)


def _provenance(path: Path, name: str, command: str, folder: Path, scenes: Scenes, curves: dict, steps: int, seed: int, code: dict, scores: dict) -> dict:
    seconds = curves.pop("seconds")[0]
    smooth = {k: [round(float(x.mean()), 5) for x in np.array_split(np.asarray(v), max(1, len(v) // 20))] for k, v in curves.items()}
    record = {
        "model": name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
        "command": f"{command} FOLDER --steps {steps} --seed {seed}",
        "licence": "Apache-2.0",
        "data": {
            "source": "random Tabletop scenes (cclkit.tabletop.random_scenes), from seeds disjoint from the benchmark's",
            "training_scenes": len(scenes.nodes),
            "training_views": len(scenes.images),
            "held_out_seeds": [held_out_seeds()[0], held_out_seeds()[-1]],
        },
        "training": {"steps": steps, "seed": seed, "seconds": round(seconds), "threads": torch.get_num_threads(), "torch": torch.__version__, **code},
        "cclkit": __version__,
        "scores": scores,
        "curves_mean_of_20_steps": smooth,
    }
    save_json(path.with_suffix(".json"), record)
    _say(json.dumps(scores, indent=1))
    return record


def _code() -> dict:
    """The code a training starts from: its digest, and the commit if these folders are as committed."""
    where = Path(__file__).resolve().parents[1]
    folders = ("training", "foundation", "tabletop")
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=where, capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "--", *folders], cwd=where, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit, changed = None, ""
    return {"code": code_version(folders), "commit": commit and commit + ("+changes" if changed else "")}
