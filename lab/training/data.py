"""Training images: random Tabletop scenes rendered once to a folder, one file a scene.

A scene's file is written to a temporary name and renamed, so a killed run continues where it
stopped.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cclkit.errors import SceneError

from ..tabletop.random_scenes import CATALOGUE_SEEDS, FIRST_SEED, STUDIO_SEEDS

HELD_OUT_SEED = 2_000_000
"""Scores are measured on seeds from here on; training seeds lie below."""
HELD_OUT_BLOCKS, SCENES_PER_BLOCK = 3, 8
"""Held-out scenes: three blocks of consecutive seeds, so that every score has a spread."""
CLIPS, CLIP_VIEWS, ORBIT_VIEWS = "clips", 8, 40
"""Folder of the orbits below that of the images; views of a training clip, and of a
held-out orbit.
"""
STEP_DEGREES = 9.0
"""Between two views of an orbit, as in the benchmark's."""
FIRST_CLIP_SEED, HELD_OUT_ORBITS = 1_200_000, range(HELD_OUT_SEED + 1000, HELD_OUT_SEED + 1003)
LEVELS = ("subpart", "part", "whole")
NEARER_M, HIDDEN_SHARE = 0.01, 0.08
"""A region counts as complete if at most this share of its outline borders something nearer by this
many metres.
"""


@dataclass(frozen=True)
class Scenes:
    """Views of many random scenes in memory."""

    images: np.ndarray  # [V, H, W, 3] uint8
    ids: np.ndarray  # [V, 3, H, W] uint16; subpart, part, whole; 0 = nothing
    scene: np.ndarray  # [V] int: index into nodes
    nodes: list[dict[int, dict]]  # per scene: id -> {"texts", "family", "level", "stuff"}
    complete: list[frozenset[int]]  # per view: ids of regions that nothing hides and no border cuts


def render(
    out: str | os.PathLike,
    scenes: int,
    studio: int,
    catalogue: int,
    views: int = 4,
    workers: int = 2,
    width: int = 256,
    height: int = 192,
) -> None:
    """Render ``scenes`` training scenes, ``studio`` studio scenes, ``catalogue`` pages of parts and
    all held-out scenes into ``out``; what exists is kept.

    Raises DependencyError without Mitsuba.
    """
    seeds = [
        *held_out_seeds(),
        *range(FIRST_SEED, FIRST_SEED + scenes),
        *STUDIO_SEEDS[:studio],
        *CATALOGUE_SEEDS[:catalogue],
    ]
    _render_all(Path(out), [(s, views, width, height, None) for s in seeds], workers)


def render_clips(
    out: str | os.PathLike, clips: int, workers: int = 2, width: int = 256, height: int = 192
) -> None:
    """Render the held-out orbits and ``clips`` short training orbits into ``out``/clips; what
    exists is kept.

    Raises DependencyError without Mitsuba.
    """
    jobs = [(s, ORBIT_VIEWS, width, height, STEP_DEGREES) for s in HELD_OUT_ORBITS]
    jobs += [
        (s, CLIP_VIEWS, width, height, STEP_DEGREES)
        for s in range(FIRST_CLIP_SEED, FIRST_CLIP_SEED + clips)
    ]
    _render_all(Path(out) / CLIPS, jobs, workers)


def _render_all(out: Path, jobs: list[tuple], workers: int) -> None:
    from ..tabletop.render import mitsuba

    mitsuba()
    out.mkdir(parents=True, exist_ok=True)
    jobs = [(out / f"{job[0]}.npz", *job) for job in jobs if not (out / f"{job[0]}.npz").exists()]
    # spawn: a forked renderer would share its threads' locks
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        from tqdm.auto import tqdm

        for _ in tqdm(pool.imap(_render_one, jobs), total=len(jobs), desc="render", unit="scene"):
            pass


def held_out_seeds() -> range:
    return range(HELD_OUT_SEED, HELD_OUT_SEED + HELD_OUT_BLOCKS * SCENES_PER_BLOCK)


def _render_one(job) -> None:
    path, seed, views, width, height, step = job
    from ..tabletop.layout import nodes
    from ..tabletop.random_scenes import random_layout, samples

    shots = list(samples(seed, views, width, height, step_degrees=step))
    table, _ = nodes(random_layout(seed, views, width, height, step_degrees=step))
    texts = shots[0].captions
    info = {
        "nodes": {
            n["id"]: {
                "texts": texts[n["id"]],
                "family": n["family"],
                "level": n["level"],
                "stuff": n["stuff"],
                "parent": n["parent"],
                "colour": n["colour"],
            }
            for n in table
        },
        "complete": [complete_ids(s.ids, s.depth) for s in shots],
    }
    new = path.with_suffix(".part")
    with open(new, "wb") as f:
        np.savez_compressed(
            f,
            images=np.stack([s.image for s in shots]),
            ids=np.stack([[s.ids[l] for l in LEVELS] for s in shots]).astype(np.uint16),
            info=json.dumps(info),
        )
    os.replace(new, path)


def complete_ids(ids: dict[str, np.ndarray], depth: np.ndarray) -> list[int]:
    """Ids whose visible region [H, W] is whole: cut by no border, hidden by nothing nearer."""
    found: set[int] = set()
    hidden: set[int] = set()
    for m in ids.values():
        m = np.asarray(m)
        edge = np.concatenate([m[0], m[-1], m[:, 0], m[:, -1]])
        outline: dict[int, list[int]] = {}
        for here, there, d, e in (
            (m[:-1], m[1:], depth[:-1], depth[1:]),
            (m[1:], m[:-1], depth[1:], depth[:-1]),
            (m[:, :-1], m[:, 1:], depth[:, :-1], depth[:, 1:]),
            (m[:, 1:], m[:, :-1], depth[:, 1:], depth[:, :-1]),
        ):
            k = (here != there) & (here > 0)
            nearer = (e[k] > 0) & (e[k] < d[k] - NEARER_M)
            for i, total, near in _tally(here[k], nearer):
                a = outline.setdefault(i, [0, 0])
                a[0] += total
                a[1] += near
        found |= set(np.unique(m[m > 0]).tolist())
        hidden |= set(edge[edge > 0].tolist()) | {
            i for i, (total, near) in outline.items() if near > HIDDEN_SHARE * total
        }
    return sorted(found - hidden)


def _tally(ids: np.ndarray, flag: np.ndarray):
    total = np.bincount(ids)
    near = np.bincount(ids, weights=flag, minlength=len(total))
    return [(int(i), int(total[i]), int(near[i])) for i in np.nonzero(total)[0]]


def training_seeds(folder: str | os.PathLike, catalogue: bool) -> list[int]:
    """Seeds of the training scenes that a folder holds, with or without those of the parts
    catalogue, sorted.

    Raises SceneError when there are none.
    """
    seeds = sorted(int(p.stem) for p in Path(folder).glob("[0-9]*.npz"))
    seeds = [s for s in seeds if s < HELD_OUT_SEED and (catalogue or s not in CATALOGUE_SEEDS)]
    if not seeds:
        raise SceneError(
            f"{folder}: no rendered scenes here; make some with `python -m lab.training render"
            f" {folder}`, or `clips` for mini-SAM2"
        )
    return seeds


def load(folder: str | os.PathLike, seeds) -> Scenes:
    """The rendered scenes of some seeds, in their order.

    Raises SceneError when one is missing or damaged.
    """
    folder = Path(folder)
    images, ids, scene, table, complete = [], [], [], [], []
    for k, seed in enumerate(seeds):
        path = folder / f"{seed}.npz"
        try:
            with np.load(path, allow_pickle=False) as z:
                info = json.loads(str(z["info"]))
                images.append(z["images"])
                ids.append(z["ids"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as e:
            raise SceneError(
                f"{path}: no rendered scene of seed {seed} can be read here ({e}); delete the file"
                f" and run `python -m lab.training render {folder}` again"
            ) from e
        scene += [k] * len(images[-1])
        table.append({int(i): n for i, n in info["nodes"].items()})
        complete += [frozenset(c) for c in info["complete"]]
    return Scenes(np.concatenate(images), np.concatenate(ids), np.array(scene), table, complete)
