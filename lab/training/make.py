"""From rendered scenes to the files of data/models: weights, vocabulary, scores, provenance."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import numpy as np
import torch

from cclkit import __version__
from cclkit.errors import ModelError
from cclkit.files import atomic_write, save_json
from cclkit.foundation import clip as clip_model, sam as sam_model, sam2 as sam2_model, weights
from cclkit.foundation.mini_clip import WordTokenizer
from cclkit.runs.keys import code_of_files, content_key

from ..tabletop.random_scenes import CATALOGUE_SEEDS, STUDIO_SEEDS
from . import clip, sam, sam2, score
from .data import CLIPS, HELD_OUT_ORBITS, held_out_seeds, load, training_seeds
from .loop import fit, resume, write_weights
from .replicas import in_replicas


def make_sam(folder: Path, out: Path | None, *, steps: int, seed: int, threads: int) -> dict:
    """Train mini-SAM on the scenes of ``folder``, write weights and provenance to ``out``, score it
    on held-out scenes.

    Each of the ``threads`` is a replica with its own view in every step, so their number is part of
    the recipe.
    """
    torch.set_num_threads(threads)
    code, recipe = _code(), _recipe(folder, catalogue=False)
    made_from = content_key(code=_made_with("sam"), data=recipe, replicas=threads)
    if (state := resume(folder / "sam", steps, seed, made_from)) is None or state["step"] < steps:
        in_replicas(threads, _fit_sam, folder, steps, seed, made_from)
    mean, curves = _fit_sam(folder, steps, seed, made_from)  # reads where the replicas ended
    del mean.hints  # only there to teach
    path = (out or weights.folder()) / weights.MINI_SAM
    write_weights(mean, path)
    return _provenance(
        path,
        "mini-SAM",
        "python -m lab.training sam",
        recipe,
        curves,
        steps,
        seed,
        code,
        score_weights("sam", folder, path),
    )


def _fit_sam(folder: Path, steps: int, seed: int, made_from: str) -> tuple[torch.nn.Module, dict]:
    model = sam.model(seed)
    # adds what is trained beside the model, so before the optimiser sees it
    losses = sam.Losses(model, load(folder, training_seeds(folder, catalogue=False)))
    return fit(
        model,
        losses,
        folder / "sam",
        steps=steps,
        seed=seed,
        lr=3e-3,
        matrices=sam.matrices(model),
        made_from=made_from,
        log=_say,
    )


def make_clip(folder: Path, out: Path | None, *, steps: int, seed: int, threads: int) -> dict:
    """Train mini-CLIP on the scenes of ``folder``, write weights, vocabulary and provenance to
    ``out``, score it on held-out scenes.
    """
    torch.set_num_threads(threads)
    code, recipe = _code(), _recipe(folder, catalogue=True)
    scenes = load(folder, training_seeds(folder, catalogue=True))
    tokenizer = WordTokenizer(clip.vocabulary(scenes))
    model = clip.model(seed, tokenizer)
    mean, curves = fit(
        model,
        clip.Losses(model, tokenizer, scenes),
        folder / "clip",
        steps=steps,
        seed=seed,
        lr=1.5e-3,
        made_from=content_key(code=_made_with("clip"), data=recipe),
        log=_say,
    )
    path = (out or weights.folder()) / weights.MINI_CLIP
    write_weights(mean, path)
    atomic_write(
        path.with_name(weights.MINI_CLIP_WORDS), ("\n".join(tokenizer.words) + "\n").encode()
    )
    return _provenance(
        path,
        "mini-CLIP",
        "python -m lab.training clip",
        recipe,
        curves,
        steps,
        seed,
        code,
        score_weights("clip", folder, path),
    )


def make_sam2(folder: Path, out: Path | None, *, steps: int, seed: int, threads: int) -> dict:
    """Train mini-SAM2 on the clips of ``folder`` from mini-SAM's trunk in ``out``, write weights
    and provenance to ``out``, score it on held-out orbits.

    Each of the ``threads`` is a replica with its own clip in every step, so their number is part of
    the recipe.
    """
    torch.set_num_threads(threads)
    start = (out or weights.folder()) / weights.MINI_SAM
    code, recipe = (
        _code(),
        _recipe(folder / CLIPS, "clips", HELD_OUT_ORBITS, catalogue=False)
        | {
            "starts_from": {
                "file": start.name,
                "sha256": weights.digest(start) if start.is_file() else None,
            }
        },
    )
    sam_model.load_mini_sam(start)  # complains here, not in a replica
    made_from = content_key(code=_made_with("sam2"), data=recipe, replicas=threads)
    if (state := resume(folder / "sam2", steps, seed, made_from)) is None or state["step"] < steps:
        in_replicas(threads, _fit_sam2, folder, start, steps, seed, made_from)
    mean, curves = _fit_sam2(folder, start, steps, seed, made_from)
    path = (out or weights.folder()) / weights.MINI_SAM2
    write_weights(mean, path)
    return _provenance(
        path,
        "mini-SAM2",
        "python -m lab.training sam2",
        recipe,
        curves,
        steps,
        seed,
        code,
        score_weights("sam2", folder, path),
    )


def _fit_sam2(
    folder: Path, start: Path, steps: int, seed: int, made_from: str
) -> tuple[torch.nn.Module, dict]:
    model = sam2.model(seed, sam2.trunk_of(sam_model.load_mini_sam(start)))
    losses = sam2.Losses(
        model, load(folder / CLIPS, training_seeds(folder / CLIPS, catalogue=False)), steps
    )
    return fit(
        model,
        losses,
        folder / "sam2",
        steps=steps,
        seed=seed,
        lr=1e-3,
        matrices=sam2.matrices(model),
        made_from=made_from,
        log=_say,
    )


def score_weights(which: str, folder: Path, path: Path) -> dict:
    """Scores of weights on the held-out scenes of ``folder``."""
    if which == "sam2":
        return score.score_sam2(
            sam2_model.load_mini_sam2(path), load(folder / CLIPS, HELD_OUT_ORBITS)
        )
    held_out = load(folder, held_out_seeds())
    return (
        score.score_sam(sam_model.load_mini_sam(path), held_out)
        if which == "sam"
        else score.score_clip(*clip_model.load_mini_clip(path), held_out)
    )


def score_again(folder: Path, out: Path | None, *, threads: int) -> None:
    """Score the weights in ``out`` again and write the scores into their records: after a change of
    the scores or of the filters.
    """
    torch.set_num_threads(threads)
    paths = {
        which: (out or weights.folder()) / name
        for which, name in (
            ("sam", weights.MINI_SAM),
            ("clip", weights.MINI_CLIP),
            ("sam2", weights.MINI_SAM2),
        )
    }
    there = {which: path for which, path in paths.items() if path.is_file()}
    if not there:
        raise ModelError(
            f"{out or weights.folder()}: no weights here to score; train some with `python -m"
            f" lab.training sam {folder}`, `clip` or `sam2`"
        )
    for which, path in there.items():
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if weights.digest(path) != record["sha256"]:
            raise ModelError(
                f"{path}: not the weights that {path.with_suffix('.json').name} describes; train"
                " them again"
            )
        save_json(
            path.with_suffix(".json"), record | {"scores": score_weights(which, folder, path)}
        )
        _say(f"{path.name}: scored")


def _say(line: str) -> None:
    print(line, flush=True)


def _provenance(
    path: Path,
    name: str,
    command: str,
    recipe: dict,
    curves: dict,
    steps: int,
    seed: int,
    code: dict,
    scores: dict,
) -> dict:
    seconds = curves.pop("seconds")[0]
    smooth = {
        k: [round(float(x.mean()), 5) for x in np.array_split(np.asarray(v), max(1, len(v) // 20))]
        for k, v in curves.items()
    }
    record = {
        "model": name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
        "command": f"{command} FOLDER --steps {steps} --seed {seed}",
        "licence": "Apache-2.0",
        "data": recipe,
        "training": {
            "steps": steps,
            "seed": seed,
            "seconds": round(seconds),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            **code,
        },
        "cclkit": __version__,
        "scores": scores,
        "curves_mean_of_20_steps": smooth,
    }
    save_json(path.with_suffix(".json"), record)
    _say(json.dumps(scores, indent=1))
    return record


def _recipe(
    folder: Path, what: str = "render", held_out: range | None = None, *, catalogue: bool
) -> dict:
    """Which rendered scenes a training reads, and what they hold: a half-rendered folder is another
    recipe.
    """
    held_out = held_out_seeds() if held_out is None else held_out
    training = training_seeds(folder, catalogue)
    digest = hashlib.sha256()
    for s in [*training, *(s for s in held_out if (folder / f"{s}.npz").exists())]:
        digest.update(hashlib.sha256((folder / f"{s}.npz").read_bytes()).digest())
    studio, pages = (
        [s for s in training if s in seeds] for seeds in (STUDIO_SEEDS, CATALOGUE_SEEDS)
    )
    with np.load(folder / f"{training[0]}.npz", allow_pickle=False) as z:
        views, height, width = z["images"].shape[:3]
    sizes = (
        f"--clips {len(training)}"
        if what == "clips"
        else f"--scenes {len(training) - len(studio) - len(pages)} --studio {len(studio)}"
        + (f" --catalogue {len(pages)}" if catalogue else "")
    )
    return {
        "source": (
            "random Tabletop scenes (lab.tabletop.random_scenes), from seeds disjoint from the"
            " benchmark's"
        ),
        "command": f"python -m lab.training {what} FOLDER {sizes}",
        "training_scenes": len(training),
        "of_them_studio": len(studio),
        "of_them_catalogue": len(pages),
        "first_seed": training[0],
        "training_views": len(training) * views,
        "size": [width, height],
        "held_out_seeds": [held_out[0], held_out[-1]],
        "files_sha256": digest.hexdigest(),
    }


def _made_with(which: str) -> str:
    """Digest of the code that decides what a training ends in."""
    here = Path(__file__).parent
    return code_of_files([here / "loop.py", here / f"{which}.py"])


def _code() -> dict:
    """The code a training starts from: its digest, and the commit if it is as committed."""
    here = Path(__file__).parent
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--", "lab", "cclkit")
    except (OSError, subprocess.CalledProcessError):
        commit, changed = None, ""
    return {
        "code": code_of_files(sorted(here.glob("*.py"))),
        "commit": commit and commit + ("+changes" if changed else ""),
    }


def _git(*args: str) -> str:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()
