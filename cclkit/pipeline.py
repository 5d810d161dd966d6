"""The stages in order. A `Run` is one scene with one configuration: ask it for anything, it
computes what is missing.

candidates -> masks -> features ┐
                    -> tracks   ┴> codebook ┐
                            gaussians ──────┴> field -> evaluation

With `field.mode` "cached", masks and gaussians also make the blending cache that the field is
trained on. With "joint" there is no stage gaussians (but for tracks carried by depth): field makes
the Gaussians too, and `Run.gaussians` gives those.
"""

from __future__ import annotations

import io
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_safetensors
from tqdm.auto import tqdm

from . import __version__, config as configs
from .artefacts import (
    Artefact,
    Store,
    atomic_write,
    code_version,
    content_key,
    load_npz,
    peak_memory_mb,
    save_json,
    save_npz,
    unwritable,
)
from .blending_cache import BlendingCache, build_blending_cache, open_blending_cache
from .codebook import Codebook, fit_codebook, index_map
from .config import Config
from .errors import (
    ArtefactError,
    CclkitError,
    ConfigError,
    EvaluationError,
    FieldError,
    GaussiansError,
    QueryError,
    reason,
)
from .evaluation import legaussians, lerf_ovs, opengaussian, ovs3d
from .evaluation.metrics import write_results
from .evaluation.protocols import evaluate_scene
from .evaluation.truth import evaluated_views
from .features import view_features
from .field import SemanticField, field_from_tensors, field_tensors, train_field, train_joint
from .foundation import Candidates, FrontEnd, MaskPropagator, build_front_end, identities
from .foundation.geometric import GeometricPropagation
from .gaussians import Gaussians, fit_rgb, from_scene, lift, load_ply, project, rasterize, save_ply
from .masks import LEVELS, FilterCounts, ViewMasks, build_view_masks, pack, unpack
from .query import (
    CANONICAL,
    SELECTION_SHARE,
    by_code,
    code_cosine,
    code_relevancy,
    code_softmax_relevancy,
    select,
    select_level_by_mask_mean,
    select_level_by_maximum,
    threshold_mask,
)
from .rle import unpack_masks
from .scenes import Scene, View, content_hash, load_scene
from .tracking import ViewTracks, track_masks
from .video import write_video

STAGES = (
    "candidates",
    "masks",
    "features",
    "tracks",
    "codebook",
    "gaussians",
    "field",
    "evaluation",
)
"""The stages of every run; "blending" is one more where the field is trained on the
blending cache.
"""


@dataclass(frozen=True)
class Stage:
    """What a stage depends on: its settings, the stages before it, and the code that
    computes it.
    """

    inputs: tuple[str, ...]
    settings: Callable[[Config], dict]
    # files or folders of the package, beside scenes/ which every stage reads through
    modules: tuple[str, ...]
    methods: tuple[
        str, ...
    ] = ()  # methods of Run that the builder computes with, beside the builder itself
    seeded: bool = False
    role: str = ""  # the model it asks: "sam", "clip" or "propagation"


GRAPH: dict[str, Stage] = {
    # SAM apart from the filters that follow it: the first takes hours at full size, the second are
    # tried out
    "candidates": Stage((), lambda c: _role(c, "sam") | _thresholds(c), ("rle.py",), role="sam"),
    "masks": Stage(("candidates",), lambda c: _settings(c, "masks"), ("masks.py", "rle.py")),
    "features": Stage(("masks",), lambda c: _role(c, "clip"), ("features.py",), role="clip"),
    "tracks": Stage(
        ("masks",),
        lambda c: _role(c, "propagation") | _settings(c, "tracks"),
        ("tracking.py", "rle.py"),
        ("_propagator",),
        role="propagation",
    ),
    "codebook": Stage(
        ("masks", "features", "tracks"),
        lambda c: _settings(c, "codebook"),
        ("codebook",),
        ("training_set",),
        seeded=True,
    ),
    "gaussians": Stage(
        (),
        lambda c: _settings(c, "gaussians") | {"device": c.device},
        ("gaussians",),
        ("_start", "_save_gaussians"),
        seeded=True,
    ),
    "blending": Stage(
        ("masks", "gaussians"),
        lambda c: {"field": {k: getattr(c.field, k) for k in _OF_CACHE}},
        ("blending_cache.py", "gaussians", "masks.py"),
        ("label_maps",),
        seeded=True,
    ),
    "field": Stage(
        ("masks", "tracks", "codebook", "gaussians"),
        lambda c: _field_settings(c) | {"device": c.device},
        ("field.py", "blending_cache.py", "gaussians"),
        ("index_maps", "mask_codes", "codebooks", "_start", "_save_gaussians"),
        seeded=True,
    ),
    "evaluation": Stage(
        ("codebook", "gaussians", "field"),
        lambda c: _role(c, "clip") | _evaluation_settings(c) | {"device": c.device},
        ("query.py", "evaluation", "field.py", "gaussians"),
        ("scores", "silhouettes", "lifted_relevancy", "_looked_up", "codes", "codebooks", "_text"),
        role="clip",
    ),
}


def _settings(config: Config, *groups: str) -> dict:
    return {g: configs.as_dict(getattr(config, g)) for g in groups}


_OF_CACHE = ("top_k", "pixels_per_mask", "area_weighted")
"""Settings of the field that decide what the blending cache holds."""


_OF_JOINT = ("joint_geometry", "joint_weight")


def _field_settings(config: Config) -> dict:
    """Those that the mode reads."""
    unused = {
        "joint": (*_OF_CACHE, "batch", "iterations", "init"),
        "rasterised": (*_OF_CACHE, "batch", *_OF_JOINT),
        "cached": _OF_JOINT,
    }[config.field.mode]
    own = {"field": {k: v for k, v in configs.as_dict(config.field).items() if k not in unused}}
    return own | (_settings(config, "gaussians") if config.field.mode == "joint" else {})


def _evaluation_settings(config: Config) -> dict:
    """Of the query's settings only those that a protocol reads: the others bring their own
    constants.
    """
    query = {
        k: v for k, v in configs.as_dict(config.query).items() if k in ("canonical", "temperature")
    }
    return _settings(config, "evaluation") | (
        {"query": query} if config.evaluation.protocol == "paper" else {}
    )


_MODEL_OF = {"sam": "masks", "clip": "features", "propagation": "propagation"}
"""Role -> the setting of the front end that says what stands behind it."""
_NEUTRAL = ("checkpoint", "points_per_batch", "batch", "objects_per_chunk", "offload")
"""Settings of models that change speed or memory, never results; a checkpoint counts by its
content.
"""


def _role(config: Config, role: str) -> dict:
    """What one role of the front end ("sam", "clip" or "propagation") depends on: weights by what
    they are, not where.
    """
    f = configs.as_dict(config.front_end)
    by = f[_MODEL_OF[role]]
    if by == "simulated":
        return {"front_end": {"by": by, "simulation": f["simulation"]}}
    if by in ("none", "geometric"):
        return {"front_end": {"by": by}}
    own = {k: v for k, v in f[by].items() if k not in _NEUTRAL}
    return {
        "front_end": own | {"by": by, "weights": identities(config)[role], "device": config.device}
    }


def _role_modules(config: Config, role: str) -> tuple[str, ...]:
    """Files that answer for a role, so that an edit to one model's adapter leaves what others
    computed.
    """
    if not role:
        return ()
    by = getattr(config.front_end, _MODEL_OF[role])
    own = {
        "sam": ("models", "sam", "mini_sam"),
        "clip": ("models", "clip", "mini_clip"),
        "sam2": ("models", "sam2", "mini_sam", "mini_sam2"),
        "geometric": ("geometric",),
    }.get(by, ("simulated",))
    return tuple(f"foundation/{n}.py" for n in ("__init__", *own))


def _thresholds(config: Config) -> dict:
    """Those of the mask settings that segment_anything's generator applies itself."""
    return (
        {}
        if config.front_end.masks == "simulated"
        else {
            "masks": {k: getattr(config.masks, k) for k in ("predicted_iou_min", "stability_min")}
        }
    )


_used: dict[str, None] = {}


def artefacts_used() -> list[str]:
    """``scene/stage/key`` of the artefacts that this process has used or computed so far, and of
    those they come from, in order of first use.
    """
    return list(_used)


@dataclass(frozen=True)
class Answer:
    """Where a text is in a view."""

    relevancy: np.ndarray  # [2, H, W] float32 in 0..1, both levels
    scores: np.ndarray  # [2, H, W] float32: what the threshold was applied to
    level: int  # index into LEVELS
    mask: np.ndarray  # [H, W] bool


class Run:
    """One scene, one configuration, one folder.

    ``out`` defaults to ``results/<profile>/runs/<scene>`` below the working directory's project.
    Nothing is computed until it is asked for; everything computed is kept in the folder.
    """

    def __init__(
        self, scene: Scene | str | Path, config: Config | None = None, out: str | Path | None = None
    ):
        self.config = config if config is not None else configs.profile("mini")
        check_device(self.config)
        self.scene = scene if isinstance(scene, Scene) else load_scene(scene)
        out = (
            Path(out)
            if out is not None
            else results_folder(self.config.profile) / "runs" / self.scene.name
        )
        self.store = Store(out, bundle=bundle_folder(self.scene.name))
        self.times: dict[str, float] = {}
        self._artefacts: dict[str, Artefact] = {}
        self._codes: dict[str, np.ndarray] = {}
        self._selected: dict[str, torch.Tensor] = {}  # [G] bool by text

    @classmethod
    def planned(cls, scene: Scene | None, config: Config, out: str | Path) -> Run:
        """A run that is only asked for its keys and for what is there: nothing is written, no
        device is needed, and the scene may not be here yet (None).
        """
        run = cls.__new__(cls)
        run.config, run.scene, run.store = (
            config,
            scene,
            Store(out, bundle=bundle_folder(Path(out).name), look_only=True),
        )
        run.times, run._artefacts, run._codes, run._selected = {}, {}, {}, {}
        if scene is None:
            run.__dict__["scene_key"] = "not here"
        return run

    def vary(self, **settings: Any) -> Run:
        """The same scene and folder with other settings; stages that don't depend on them are
        shared.

        Dots of setting names are written as double underscores:
        ``vary(codebook__lambda_pull=0.0)``.
        """
        other = Run.__new__(Run)
        other.scene, other.store, other.times, other._artefacts, other._codes, other._selected = (
            self.scene,
            self.store,
            {},
            {},
            {},
            {},
        )
        # hashing all images again would take longer than most keys
        other.__dict__["scene_key"] = self.scene_key
        other.config = self.config.with_settings(
            {k.replace("__", "."): v for k, v in settings.items()}
        )
        same = all(
            getattr(other.config, k) == getattr(self.config, k)
            for k in ("front_end", "masks", "device")
        )
        if same and "front_end" in self.__dict__:
            other.__dict__["front_end"] = self.front_end  # loaded models are shared
        return other

    # ------------------------------------------------------------------ stages

    @cached_property
    def front_end(self) -> FrontEnd:
        return build_front_end(self.config, self.scene)

    @cached_property
    def scene_key(self) -> str:
        return content_hash(self.scene)

    def key(self, stage: str) -> str:
        """Content key of a stage under this configuration, without computing anything."""
        if stage not in GRAPH:
            raise ConfigError(f"unknown stage {stage!r}; stages are {', '.join(GRAPH)}")
        spec = GRAPH[stage]
        inputs = {"scene": self.scene_key} | {i: self.key(i) for i in self._inputs(stage)}
        return content_key(
            stage=stage,
            settings=spec.settings(self.config),
            inputs=inputs,
            # of this file only the stage's own builder counts
            code=code_version(
                ("scenes", *spec.modules, *_role_modules(self.config, spec.role)),
                *(getattr(type(self), m) for m in (f"_build_{stage}", *spec.methods)),
            ),
            seed=self.config.seed if spec.seeded else None,
        )

    def _inputs(self, stage: str) -> tuple[str, ...]:
        """Stages that a stage reads: those of the graph, the Gaussians if they carry the masks, the
        blending cache if the field is trained on it; no Gaussians where the field makes them.
        """
        mode, inputs = self.config.field.mode, GRAPH[stage].inputs
        if mode == "joint" and stage in ("field", "evaluation"):
            inputs = tuple(i for i in inputs if i != "gaussians")
        geometric = stage == "tracks" and self.config.front_end.propagation == "geometric"
        return (
            inputs
            + (("gaussians",) if geometric else ())
            + (("blending",) if stage == "field" and mode == "cached" else ())
        )

    def stages(self, last: str = "evaluation") -> tuple[str, ...]:
        """The stages of this run in order, up to and with ``last``."""
        mode, wanted = self.config.field.mode, stages_until(last)
        if mode == "joint" and self.config.front_end.propagation != "geometric":
            wanted = tuple(s for s in wanted if s != "gaussians")
        return tuple(
            s
            for stage in wanted
            for s in (("blending", stage) if stage == "field" and mode == "cached" else (stage,))
        )

    def ensure(self, stage: str) -> Artefact:
        """The artefact of a stage, computed with everything it needs if it is not there."""
        if stage in self._artefacts:
            return self._artefacts[stage]
        key = self.key(stage)
        artefact = self.store.find(stage, key)
        if artefact is None:
            for before in self._inputs(stage):
                self.ensure(before)
            spec = GRAPH[stage]
            about = {
                "scene": self.scene.name,
                "inputs": {i: self.key(i) for i in self._inputs(stage)} | {"scene": self.scene_key},
                "settings": spec.settings(self.config),
                "seed": self.config.seed if spec.seeded else None,
                "device": self.config.device,
                "profile": self.config.profile,
                "front_end": self.front_end.label if stage != "gaussians" else None,
            }
            start = time.monotonic()
            with self.store.lock(
                f"{stage}/{key}", wait=True
            ):  # what another process is computing may be what is wanted here
                artefact = self.store.ensure(
                    stage, key, getattr(self, f"_build_{stage}"), about=about
                )
            self.times[stage] = time.monotonic() - start
        self._artefacts[stage] = artefact
        self._note(stage)
        return artefact

    def _note(self, stage: str) -> None:
        """Inputs count as used even where they need not be read, so that reused and computed runs
        leave the same list.
        """
        name = f"{self.scene.name}/{stage}/{self.key(stage)}"
        if name not in _used:
            for before in self._inputs(stage):
                self._note(before)
            _used[name] = None

    def _build_candidates(self, folder: Path) -> dict:
        counts: dict[str, int] = {}
        found = 0
        for view in progress(self.scene.training_views, "candidates"):
            path = folder / view_file(view)
            if not path.exists():  # otherwise kept from an interrupted run with this key
                save_npz(path, **self.front_end.masks.propose(view).pack())
            data = load_npz(path)
            found += len(data["output"])
            for k in data:
                if k.startswith("count_"):
                    counts[k.removeprefix("count_")] = counts.get(
                        k.removeprefix("count_"), 0
                    ) + int(data[k])
        return {"n_candidates": found, "generator": counts}

    def _build_masks(self, folder: Path) -> dict:
        totals = dict.fromkeys(FilterCounts.__dataclass_fields__, 0)
        for view in progress(self.scene.training_views, "masks"):
            path = folder / view_file(view)
            if not path.exists():
                masks, counts = build_view_masks(self.candidates(view), self.config.masks)
                save_npz(
                    path,
                    **pack(masks),
                    counts=np.array([getattr(counts, k) for k in totals], np.int64),
                )
            for k, n in zip(totals, load_npz(path)["counts"]):
                totals[k] += int(n)
        return {"counts": totals}

    def _build_features(self, folder: Path) -> dict:
        n = 0
        for view in progress(self.scene.training_views, "features"):
            path = folder / view_file(view)
            if not path.exists():
                save_npz(
                    path, features=view_features(view, self.masks(view), self.front_end.encoder)
                )
            n += len(load_npz(path)["features"])
        return {"n_features": n, "dim": self.front_end.encoder.dim}

    def _build_tracks(self, folder: Path) -> dict:
        views = self.scene.training_views
        masks = {v.name: self.masks(v) for v in views}
        with tqdm(total=len(views) * len(LEVELS), desc="tracks", disable=quiet()) as bar:
            tracks = track_masks(
                views,
                masks,
                self._propagator(),
                self.config.tracks,
                progress=bar.update,
                keep=folder,
            )
        per_view = [tracks.views[v.name] for v in views]
        arrays = {"length": np.array([len(t.label) for t in per_view], np.int64)}
        for name in ("label", "match", "iou"):
            arrays[name] = np.concatenate([getattr(t, name) for t in per_view])
        save_npz(
            folder / "tracks.npz",
            **arrays,
            **{f"start.{level}": starts for level, starts in tracks.starts.items()},
        )
        for level, carried in tracks.carried.items():
            runs = {k: np.concatenate([c[k] for c in carried]) for k in carried[0]}
            save_npz(
                folder / f"carried_{level}.npz",
                **runs,
                runs_per_view=np.array([len(c["rle"]) for c in carried], np.int64),
            )
        return {
            "n_tracks": {level: len(starts) for level, starts in tracks.starts.items()},
            "of_them_from_later_views": {
                level: int((starts > 0).sum()) for level, starts in tracks.starts.items()
            },
            "share_unlabelled": (
                float((arrays["label"] == -1).mean()) if len(arrays["label"]) else None
            ),
        }

    def _propagator(self) -> MaskPropagator:
        if self.config.front_end.propagation == "geometric":
            gaussians = load_ply(self.ensure("gaussians").path("gaussians.ply"))

            def depth(view: View) -> np.ndarray:
                with torch.no_grad():
                    seen = rasterize(gaussians, view.camera)
                return torch.where(seen.alpha > 0.5, seen.depth, 0).numpy()

            return GeometricPropagation(depth)
        return self.front_end.propagator

    def _build_codebook(self, folder: Path) -> dict:
        tensors, about = {}, {}
        features, labels, level = (torch.from_numpy(a) for a in self.training_set())
        codes = np.full(len(level), -1, np.int32)
        shared = None
        if self.config.codebook.shared and len(level):
            shared = fit_codebook(
                features, labels, self.config.codebook, seed=self.config.seed, groups=level
            )
        for n, name in enumerate(progress(LEVELS, "codebook")):
            mine = level == n
            if (
                not mine.any()
            ):  # nothing was segmented at this level: an empty codebook that no pixel uses
                tensors |= {
                    f"prototypes.{name}": torch.zeros(0, features.shape[1]),
                    f"initial.{name}": torch.zeros(0, features.shape[1]),
                }
                continue
            book = shared or fit_codebook(
                features[mine], labels[mine], self.config.codebook, seed=self.config.seed + n
            )
            # safetensors refuses one memory under two names
            tensors |= {
                f"prototypes.{name}": book.prototypes.clone(),
                f"initial.{name}": book.initial.clone(),
            }
            tensors |= {f"curve.{k}.{name}": torch.tensor(v) for k, v in book.curves.items()}
            codes[mine] = book.codes(features[mine]).numpy().astype(np.int32)
            about[f"codes_used_{name}"] = int(len(np.unique(codes[mine])))
            about[f"final_loss_{name}"] = {
                k: float(v[-1]) for k, v in book.curves.items() if len(v)
            }
        atomic_write(folder / "codebook.safetensors", save_safetensors(tensors))
        save_npz(folder / "codes.npz", codes=codes)
        return about

    def _build_gaussians(self, folder: Path) -> dict:
        g, about, fit = self._start()
        history: dict = {}
        if self.config.gaussians.iterations:
            g, history = fit_rgb(
                g.to(self.config.device),
                self.scene.training_views,
                checkpoint=folder / "checkpoint.pt",
                **fit,
            )
        self._save_gaussians(folder, g, history)
        return about | {"n_gaussians": len(g)}

    def _start(self) -> tuple[Gaussians, dict, dict]:
        """Gaussians to start from, how they were made, and how to fit them."""
        c = self.config.gaussians
        g, how = from_scene(
            self.scene,
            how=c.init,
            max_gaussians=c.start_gaussians,
            sh_degree=c.sh_degree,
            seed=self.config.seed,
        )
        fit = {
            "iterations": c.iterations,
            "seed": self.config.seed,
            "densify": c.densify,
            "sh_degree": c.sh_degree,
            "max_gaussians": c.max_gaussians if c.densify else None,
            "progress": not quiet(),
        }
        return g, {"start": how}, fit

    def _save_gaussians(self, folder: Path, gaussians: Gaussians, history: dict) -> None:
        save_ply(gaussians.to("cpu"), folder / "gaussians.ply")
        # times are recorded once, beside the artefact, so that its content repeats bit for bit
        history.pop("seconds", None)
        save_npz(folder / "history.npz", **{k: np.asarray(v) for k, v in history.items()})

    def _build_blending(self, folder: Path) -> dict:
        c, views = self.config.field, self.scene.training_views
        with tqdm(total=len(views), desc="blending", disable=quiet()) as bar:
            cache = build_blending_cache(
                folder,
                self.gaussians(),
                views,
                {v.name: self.label_maps(v) for v in views},
                top_k=c.top_k,
                pixels_per_mask=c.pixels_per_mask,
                area_weighted=c.area_weighted,
                seed=self.config.seed,
                progress=bar.update,
            )
        return {"n_pixels": len(cache), "truncation": cache.truncation()}

    def _build_field(self, folder: Path) -> dict:
        books, views, c, about = self.codebooks(), self.scene.training_views, self.config.field, {}
        maps, n_codes = (
            {v.name: self.index_maps(v) for v in views},
            [max(1, len(books[n].prototypes)) for n in LEVELS],
        )
        if c.mode == "joint":
            g, about, fit = self._start()
            g, field, history, curves = train_joint(
                g.to(self.config.device),
                views,
                maps,
                n_codes,
                c,
                checkpoint=folder / "checkpoint.pt",
                **fit,
            )
            self._save_gaussians(folder, g, history)
            about = about | {"n_gaussians": len(g)}
        else:
            with tqdm(total=c.iterations, desc="field", disable=quiet()) as bar:
                cache = self.blending_cache() if c.mode == "cached" else None
                field, curves = train_field(
                    self.gaussians().to(self.config.device),
                    views,
                    maps,
                    n_codes,
                    c,
                    seed=self.config.seed,
                    cache=cache,
                    progress=lambda _: bar.update(),
                )
        atomic_write(folder / "field.safetensors", save_safetensors(field_tensors(field)))
        save_npz(folder / "curves.npz", **curves)
        return about | {
            "final_loss": float(np.mean(curves["loss"][-20:])),
            "final_accuracy": float(np.mean(curves["accuracy"][-20:])),
        }

    def _build_evaluation(self, folder: Path) -> dict:
        c = self.config.evaluation
        with tqdm(
            total=len(evaluated_views(self.scene, c.views, c.truth)),
            desc="evaluation",
            disable=quiet(),
            leave=False,
        ) as bar:

            def counted(reads: str, name: str, texts: Sequence[str]):
                answer = self.scores(reads, name, texts)
                bar.update()
                return answer

            e = evaluate_scene(self.scene, counted, c)
        query = (
            {
                "canonical": list(self.config.query.canonical),
                "temperature": self.config.query.temperature,
            }
            if e.protocol == "paper"
            else {}
        )
        write_results(e.rows, e.aggregates, e.protocol, e.constants | query, folder)
        return {"protocol": e.protocol}

    # ------------------------------------------------- what the stages produced

    def candidates(self, view: View | str) -> Candidates:
        """What the mask generator found in a training view, before any rule of ours."""
        view = self._training_view(view)

        def parse(arrays):
            _check(
                arrays["shape"].tolist() == [view.camera.height, view.camera.width],
                f"masks of {arrays['shape'].tolist()} for a view of"
                f" {view.camera.height}x{view.camera.width}",
            )
            return Candidates.unpack(arrays)

        return self._parsed("candidates", view_file(view), parse)

    def masks(self, view: View | str) -> ViewMasks:
        """Masks and label maps of a training view."""
        view = self._training_view(view)

        def parse(arrays):
            _check(
                arrays["sp"].shape == (view.camera.height, view.camera.width),
                f"label maps of {arrays['sp'].shape} for a view of"
                f" {view.camera.height}x{view.camera.width}",
            )
            return unpack(arrays)

        return self._parsed("masks", view_file(view), parse)

    def label_maps(self, view: View | str) -> np.ndarray:  # [2, H, W] int32
        """Mask of every pixel at each level of a training view, -1 = no mask."""
        masks = self.masks(view)
        return np.stack([masks.label_map(n) for n in LEVELS])

    def features(self, view: View | str) -> np.ndarray:  # [M, d] float32
        """Unit features of the view's masks."""
        dim = self.ensure("features").record["dim"]
        return self._parsed(
            "features",
            view_file(self._training_view(view)),
            lambda a: _array(a["features"], "f", None, dim).astype(np.float32),
        )

    def tracks(self, view: View | str) -> ViewTracks:
        """Track labels of the view's masks."""
        arrays = self._track_arrays()
        rows = self._rows(arrays["length"], view)
        return ViewTracks(arrays["label"][rows], arrays["match"][rows], arrays["iou"][rows])

    def _track_arrays(self) -> dict[str, np.ndarray]:
        def parse(a):
            _array(a["length"], "i", len(self.scene.training_views))
            _check((a["length"] >= 0).all(), "a negative number of masks")
            for name, kind in (("label", "i"), ("match", "i"), ("iou", "f")):
                _array(a[name], kind, int(a["length"].sum()))
            for level in LEVELS:
                _array(a[f"start.{level}"], "i", None)
            return a

        return self._parsed("tracks", "tracks.npz", parse)

    def track_starts(self, level: str) -> np.ndarray:  # [K] int64
        """Index of the training view in which each track of a level starts; 0 but for re-seeded
        ones.
        """
        return self._track_arrays()[f"start.{level}"]

    def carried(self, view: View | str, level: str) -> np.ndarray:  # [K, H, W] bool
        """Masks of all tracks of a level as the propagator carried them to a training view; row k
        is track k + 1.
        """
        view = self._training_view(view)
        i, K = (
            [v.name for v in self.scene.training_views].index(view.name),
            len(self.track_starts(level)),
        )

        def parse(arrays):
            start = int(arrays["runs_per_view"][:i].sum())
            runs = {
                "rle": arrays["rle"][start : start + int(arrays["runs_per_view"][i])],
                "rle_length": arrays["rle_length"][i * K : (i + 1) * K],
            }
            return unpack_masks(runs, (view.camera.height, view.camera.width))

        return self._parsed("tracks", f"carried_{level}.npz", parse)

    def training_set(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All masks of all training views, in order: features [M, d], track labels [M],
        level [M].
        """
        views = self.scene.training_views
        labels = self._track_arrays()["label"]
        features = np.concatenate([self.features(v) for v in views])
        level = np.concatenate(
            [
                self._parsed("masks", view_file(v), lambda a: _array(a["level"], "i", None))
                for v in views
            ]
        )
        if not len(features) == len(labels) == len(level):
            raise self.ensure("tracks").damaged(
                "tracks.npz",
                f"labels of {len(labels)} masks, there are {len(level)} with {len(features)}"
                " features",
            )
        return features, labels, level

    def codebooks(self) -> dict[str, Codebook]:
        """Codebook of each level."""

        def parse(t):
            for n in LEVELS:
                _array(
                    t[f"prototypes.{n}"].numpy(), "f", None, t[f"prototypes.{LEVELS[0]}"].shape[1]
                )
                _array(t[f"initial.{n}"].numpy(), "f", *t[f"prototypes.{n}"].shape)
                # of finite numbers too: squares overflow
                _check(
                    bool(t[f"prototypes.{n}"].norm(dim=1).isfinite().all()),
                    "prototypes whose length is not finite",
                )
            return {
                n: Codebook(
                    t[f"prototypes.{n}"],
                    t[f"initial.{n}"],
                    {
                        k: t[f"curve.{k}.{n}"].numpy()
                        for k in ("max", "pull", "push", "total")
                        if f"curve.{k}.{n}" in t
                    },
                )
                for n in LEVELS
            }

        return self._parsed("codebook", "codebook.safetensors", parse, "safetensors")

    def mask_codes(self, view: View | str) -> np.ndarray:  # [M] int32
        """Code of each mask of a training view."""
        lengths, most = (
            self._track_arrays()["length"],
            max(len(b.prototypes) for b in self.codebooks().values()),
        )

        def parse(arrays):
            codes = _array(arrays["codes"], "i", int(lengths.sum()))
            _check(
                not len(codes) or -1 <= codes.min() <= codes.max() < most,
                f"codes beyond the {most} prototypes",
            )
            return codes

        return self._parsed("codebook", "codes.npz", parse)[self._rows(lengths, view)]

    def index_maps(self, view: View | str) -> np.ndarray:  # [2, H, W] int32
        """Code index map of each level of a training view, -1 = no mask."""
        masks, codes = self.masks(view), self.mask_codes(view)
        return np.stack([index_map(masks.label_map(n), codes) for n in LEVELS])

    def gaussians(self) -> Gaussians:
        """The Gaussians of the scene: those that the field was trained on, or with."""
        return load_ply(self.ensure(self.gaussians_stage).path("gaussians.ply"))

    def reconstruction_history(self) -> dict[str, np.ndarray]:
        return self.ensure(self.gaussians_stage).npz("history.npz")

    @property
    def gaussians_stage(self) -> str:
        """The stage that makes the Gaussians."""
        return "field" if self.config.field.mode == "joint" else "gaussians"

    def blending_cache(self) -> BlendingCache:
        """Sampled pixels of the training views and what they are made of; needed only with
        `field.mode` "cached".
        """
        return open_blending_cache(self.ensure("blending").folder)

    def field(self) -> SemanticField:
        books = self.codebooks()

        def parse(tensors):
            field = field_from_tensors(tensors, self.config.field)
            _array(
                field.features.numpy(),
                "f",
                len(LEVELS),
                None,
                field.decoders[0].layers[0].in_features,
            )
            for n, decoder in zip(LEVELS, field.decoders):
                _check(
                    decoder.layers[-1].out_features == max(1, len(books[n].prototypes)),
                    f"a decoder to {decoder.layers[-1].out_features} codes for"
                    f" {len(books[n].prototypes)} prototypes",
                )
            return field

        return self._parsed("field", "field.safetensors", parse, "safetensors")

    def field_curves(self) -> dict[str, np.ndarray]:
        n = (
            self.config.gaussians if self.config.field.mode == "joint" else self.config.field
        ).iterations
        return self._parsed(
            "field", "curves.npz", lambda a: {k: _array(a[k], "f", n) for k in ("loss", "accuracy")}
        )

    def codes(self, view: View | str) -> np.ndarray:  # [2, H, W] int32
        """Codes decoded from the field for any view of the scene, held-out ones too."""
        view = self._view(view)
        if view.name not in self._codes:
            try:
                self._codes[view.name] = self.field().codes(self.gaussians(), view.camera)
            except (FieldError, GaussiansError) as e:
                raise ArtefactError(
                    f"{self.ensure('field').folder}: not the field of"
                    f" {self.ensure('gaussians').folder} ({e}); delete both and run again"
                ) from e
        return self._codes[view.name]

    def relevancy(
        self, view: View | str, texts: Sequence[str], *, code_maps: np.ndarray | None = None
    ) -> torch.Tensor:  # [P, 2, H, W]
        """Relevancy of texts in a view, at both levels, by the configured rule. ``code_maps`` [2,
        H, W] replaces the field's codes.
        """
        q, canonical = self.config.query, self._text(self.config.query.canonical)
        rule = {
            "relevancy": lambda T, codes, text: code_relevancy(
                T, codes, text, canonical, scale=q.scale
            ),
            "softmax": lambda T, codes, text: code_softmax_relevancy(
                T, codes, text, canonical, temperature=q.temperature
            ),
        }[q.rule]
        if code_maps is not None or q.decoding == "hard":
            return self._looked_up(rule, view, texts, code_maps)
        text = self._text(texts)
        every = [
            rule(T, np.arange(len(T)), text) if len(T) else torch.zeros(len(texts), 1)
            for T in (book.prototypes for book in self.codebooks().values())
        ]
        return self.field().expected(self.gaussians(), self._view(view).camera, every)

    def select_gaussians(
        self, text: str, *, share: float = SELECTION_SHARE
    ) -> tuple[np.ndarray, str]:  # [G] bool, level
        """The Gaussians that answer a text, and the level they were chosen at; keep them with
        `Gaussians.select`. By `query.select`, from `lifted_relevancy`.
        """
        keep, level = select(self.lifted_relevancy([text])[0], share=share)
        return keep.numpy(), LEVELS[level]

    def lifted_relevancy(
        self, texts: Sequence[str], relevancy: Callable | None = None
    ) -> torch.Tensor:  # [P, 2, G]
        """Relevancy of Gaussians: each one's mean over the training pixels that it makes up, by its
        weights in them. NaN where no training view shows one.

        A Gaussian's own feature says less: only sums over a ray were trained. ``relevancy(view,
        texts)`` [P, 2, H, W] replaces the configured rule. Raises QueryError if no Gaussian is seen
        at all.
        """
        g, shape = self.gaussians(), (len(texts), len(LEVELS))
        sums, weights = torch.zeros(len(g), shape[0] * shape[1]), torch.zeros(len(g))
        for view in progress(self.scene.training_views, "select"):
            # [H, W, 2P]
            maps = (relevancy or self.relevancy)(view, texts).flatten(0, 1).permute(1, 2, 0)
            sums, weights = (
                a + b for a, b in zip((sums, weights), lift(project(g, view.camera), maps))
            )
        if not (weights > 0).any():
            raise QueryError(
                f"{self.scene.path}: no Gaussian is seen by any training view, so none can answer"
                f" {', '.join(map(repr, texts))}; check the gaussians stage"
            )
        return (
            (sums / weights[:, None])
            .where(weights[:, None] > 0, torch.nan)
            .T.reshape(*shape, len(g))
        )

    def scores(
        self,
        reads: str,
        view: View | str,
        texts: Sequence[str],
        *,
        code_maps: np.ndarray | None = None,
    ) -> torch.Tensor | np.ndarray:
        """What an evaluation protocol reads (`evaluation.protocols.READS`), with the protocols' own
        constants: [P, 2, H, W], or [P, H, W] silhouettes.

        ``code_maps`` [2, H, W] replaces the field's codes; silhouettes can't be made of them.
        """
        if reads in ("silhouette", "cosine") and code_maps is not None:
            why = (
                "it selects Gaussians in 3D"
                if reads == "silhouette"
                else "it gives every pixel a class, and pixels outside all masks have no code"
            )
            raise EvaluationError(
                f"this protocol can't score index maps: {why}; choose another evaluation.protocol"
            )
        if reads == "silhouette":
            return self.silhouettes(view, texts)
        q = self.config.query
        canonical = self._text(q.canonical if reads == "softmax" else CANONICAL)
        rule = {
            "relevancy": lambda T, codes, text: code_relevancy(T, codes, text, canonical),
            "softmax": lambda T, codes, text: code_softmax_relevancy(
                T, codes, text, canonical, temperature=q.temperature
            ),
            "cosine": code_cosine,
            "legaussians": lambda T, codes, text: by_code(
                lambda rows, text: legaussians.relevancy(rows, text, canonical), T, codes, text
            ),
        }[reads]
        return self._looked_up(rule, view, texts, code_maps)

    def silhouettes(
        self, view: View | str, texts: Sequence[str]
    ) -> np.ndarray:  # [P, H, W] uint8, 0 or 255
        """Pictures of the Gaussians that a text selects, and of no others: what opengaussian
        scores.

        The selection belongs to a method and not to its metric, so it is that of
        `select_gaussians`, with the protocols' own relevancy.
        """
        gaussians, camera = self.gaussians(), self._view(view).camera
        new = [t for t in dict.fromkeys(texts) if t not in self._selected]
        if new:
            found = self.lifted_relevancy(new, lambda v, t: self.scores("relevancy", v, t))
            self._selected |= {
                t: select(r, share=self.config.evaluation.selection_share)[0]
                for t, r in zip(new, found)
            }
        out = np.zeros((len(texts), camera.height, camera.width), np.uint8)
        for picture, text in zip(out, texts):
            if self._selected[text].any():
                with torch.no_grad():
                    picture[:] = opengaussian.silhouette(
                        rasterize(gaussians.select(self._selected[text]), camera).alpha
                    )
        return out

    def _looked_up(
        self, rule: Callable, view: View | str, texts: Sequence[str], code_maps: np.ndarray | None
    ) -> torch.Tensor:  # [P, 2, H, W]
        """``rule(prototypes, codes, text)`` at both levels; a level without masks scores 0."""
        text, books = self._text(texts), self.codebooks()
        maps = self.codes(view) if code_maps is None else code_maps
        return torch.stack(
            [
                (
                    rule(books[n].prototypes, c, text)
                    if len(books[n].prototypes)
                    else torch.zeros(len(texts), *c.shape)
                )
                for n, c in zip(LEVELS, maps)
            ],
            1,
        )

    def answer(
        self,
        view: View | str,
        text: str,
        *,
        threshold: float | None = None,
        level: str | None = None,
        code_maps: np.ndarray | None = None,
    ) -> Answer:
        """Where a text is in a view. Mask and level follow the published protocol of the scene's
        layout unless given.

        LERF-OVS scenes (and captures without labels) smooth, normalise and vote; 3D-OVS scenes
        threshold the relevancy. ``code_maps`` as in `relevancy`. Raises QueryError for an unusable
        text, ConfigError for an unknown level.
        """
        if level not in (None, *LEVELS):
            raise ConfigError(
                f"level={level!r} is unknown; use one of {', '.join(map(repr, LEVELS))}, or None to"
                " let the relevancy choose"
            )
        maps = self.relevancy(view, [text], code_maps=code_maps)[0]
        if self.scene.classes:
            masks = threshold_mask(
                maps, ovs3d.LangSplat().threshold if threshold is None else threshold
            )
            chosen = select_level_by_mask_mean(maps, masks)
            masks, scores = masks.numpy(), maps.numpy()
        else:
            protocol = lerf_ovs.protocol_named("langsplat")
            steps = lerf_ovs.query_steps(
                maps.numpy(),
                protocol=protocol if threshold is None else replace(protocol, threshold=threshold),
            )
            chosen = select_level_by_maximum(steps.smoothed)
            masks, scores = steps.mask, steps.normalised
        n = chosen if level is None else LEVELS.index(level)
        return Answer(maps.numpy(), scores, n, masks[n].astype(bool))

    def _text(self, texts: Sequence[str]) -> np.ndarray:
        for t in texts:
            if not t.strip():
                raise QueryError(f"query {t!r} is empty; write what to look for")
            if not t.isprintable():
                raise QueryError(
                    f"query {t!r} holds characters that are no text; write it in UTF-8, on one line"
                )
        return self.front_end.encoder.encode_text(list(texts))

    def evaluation(self) -> dict:
        """Protocol, constants, rows and aggregates, as in evaluation.json."""

        def parse(e):
            _check(
                isinstance(e["protocol"], str)
                and isinstance(e["constants"], dict)
                and isinstance(e["aggregates"]["pooled"]["miou"], (int, float)),
                "no protocol or no aggregates",
            )
            _check(
                all(
                    isinstance(r["query"], str) and isinstance(r["iou"], (int, float))
                    for r in e["rows"]
                ),
                "rows without query and IoU",
            )
            return e

        return self._parsed("evaluation", "evaluation.json", parse, "json")

    def _parsed(self, stage: str, name: str, parse: Callable[[Any], Any], form: str = "npz") -> Any:
        """What a stage's file holds. Raises ArtefactError naming the file when its content is not
        what the stage writes.
        """
        artefact = self.ensure(stage)
        content = getattr(artefact, form)(name)
        try:
            return parse(content)
        except (
            CclkitError,
            ArithmeticError,
            AttributeError,
            LookupError,
            MemoryError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as e:
            raise artefact.damaged(name, f"{type(e).__name__}: {reason(e)}") from e

    def _view(self, view: View | str) -> View:
        return self.scene.view(view) if isinstance(view, str) else view

    def _training_view(self, view: View | str) -> View:
        view = self._view(view)
        if view.name in self.scene.held_out:
            names = [v.name for v in self.scene.training_views]
            raise CclkitError(
                f"view {view.name!r} is held out of training, so it has no masks; use one of"
                f" {names[0]} … {names[-1]}"
            )
        return view

    def _rows(self, lengths: np.ndarray, view: View | str) -> slice:
        i = [v.name for v in self.scene.training_views].index(self._training_view(view).name)
        start = int(lengths[:i].sum())
        return slice(start, start + int(lengths[i]))

    def write_record(self) -> Path:
        """run.json: what was run with what, how long each stage took when it was computed, and the
        most memory it held.
        """
        stages = {
            s: {
                "key": a.key,
                "reused": a.reused,
                "computed_in_s": a.record["wall_time_s"],
                "peak_memory_mb": a.record.get("peak_memory_mb"),
            }
            for s, a in self._artefacts.items()
        }
        path = self.store.root / "run.json"
        record = {
            "cclkit": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "scene": self.scene.name,
            "layout": self.scene.layout,
            "front_end": self.front_end.label,
            "config": configs.as_dict(self.config),
            "stages": stages,
            "peak_memory_mb": max(
                [
                    round(peak_memory_mb()),
                    *(s["peak_memory_mb"] or 0 for s in stages.values() if not s["reused"]),
                ]
            ),
        }
        _written(save_json, path, record)
        return path


def _check(fits: bool, otherwise: str) -> None:
    if not fits:
        raise ValueError(otherwise)


def _array(a: np.ndarray, kind: str, *shape: int | None) -> np.ndarray:
    """An array of this kind ("i", "f") and shape (None: any length) of finite numbers, or
    ValueError.
    """
    _check(
        a.dtype.kind == kind
        and a.ndim == len(shape)
        and all(s in (None, n) for s, n in zip(shape, a.shape)),
        f"an array of {a.shape} {a.dtype}, expected {shape}",
    )
    _check(kind != "f" or bool(np.isfinite(a).all()), "values that are not finite")
    return a


def check_device(config: Config) -> None:
    """Raise ConfigError when the configured device is not there, before anything is computed for
    it.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"profile {config.profile!r} needs a CUDA device and none was found; use profile"
            " 'mini', or run on a machine with a GPU"
        )


def run_pipeline(
    run: Run, *, until: str = "evaluation", report: Callable[[str], None] = print
) -> Run:
    """Run every stage up to ``until``, reporting one line each. Interrupted runs go on where they
    stopped.

    The folder is held for all of them, so that a second run on it is refused at once and not
    between two stages.
    """
    with run.store.lock():
        for stage in run.stages(until):
            if stage == "evaluation" and not (run.scene.labels or run.scene.classes):
                report("evaluation  skipped: the scene has no labels")
                continue
            try:
                artefact = run.ensure(stage)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"stopped during {stage}, everything finished is kept in {run.store.root}; run"
                    " the same command again to go on"
                ) from None
            how = "found" if artefact.reused else "done "
            report(
                f"{stage:<11} {how} {artefact.record['wall_time_s']:8.1f} s  {_summary(artefact)}"
            )
        run.write_record()
    return run


def stages_until(last: str) -> tuple[str, ...]:
    """The stages in order, up to and with ``last``. Raises ConfigError if there is no
    such stage.
    """
    if last not in STAGES:
        raise ConfigError(f"unknown stage {last!r}; stages are {', '.join(STAGES)}")
    return STAGES[: STAGES.index(last) + 1]


def answer_query(run: Run, text: str, views: Sequence[View]) -> Path:
    """A text in some views and in 3D; returns the folder of what was written.

    ``VIEW_mask.png`` and ``VIEW_overlay.png`` for each view (see `Run.answer`), ``overlays.webm``
    (or .gif) with all of them in order, ``selection.ply`` with the Gaussians that answer (see
    `Run.select_gaussians`; none: no file), and ``answer.json``. The folder's name ends in a hash of
    text and settings, so that no answer replaces another.
    """
    from PIL import Image

    run._text([text])  # refuse an unusable text before anything is computed
    slug = "".join(c if c.isalnum() else "_" for c in text.lower()).strip("_")[:40]
    query = configs.as_dict(run.config.query)
    key = content_key(text=text, field=run.key("field"), query=query)
    folder = run.store.root / "queries" / f"{slug}_{key[:6]}"
    answers, overlays = {}, []
    for view in progress(views, "query"):
        found = run.answer(view, text)
        overlays.append(_overlay(view.image(), found.mask))
        for name, picture in (
            ("mask", found.mask.astype(np.uint8) * 255),
            ("overlay", overlays[-1]),
        ):
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, "PNG")
            _written(atomic_write, folder / f"{view.stem}_{name}.png", buffer.getvalue())
        answers[view.name] = {
            "level": LEVELS[found.level],
            "highest_relevancy": float(found.relevancy[found.level].max()),
            "mask_pixels": int(found.mask.sum()),
        }
    film = _written(lambda path: write_video(overlays, path), folder / "overlays")
    keep, level = run.select_gaussians(text)
    if keep.any():
        _written(
            lambda path: save_ply(run.gaussians().select(keep), path), folder / "selection.ply"
        )
    _written(
        save_json,
        folder / "answer.json",
        {
            "text": text,
            "front_end": run.front_end.label,
            "rule": run.config.query.rule,
            "unknown_words": run.front_end.encoder.unknown_words(text),
            "views": answers,
            "film": film.name,
            "selection": {
                "gaussians": int(keep.sum()),
                "of": len(keep),
                "level": level,
                "file": "selection.ply" if keep.any() else None,
            },
        },
    )
    return folder


def _written(write: Callable, path: Path, *content: Any) -> Any:
    try:
        return write(path, *content)
    except OSError as e:
        raise unwritable(path, e) from e


def _overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:  # [H, W, 3] uint8
    """The photograph with everything outside the mask dimmed."""
    return np.where(mask[..., None], image, (0.3 * image).astype(np.uint8))


def view_file(view: View) -> str:
    return f"{view.stem}.npz"


def project_folder() -> Path:
    """Root of the checkout: the nearest folder upwards that holds notebooks/, else the working
    directory.
    """
    for folder in (Path.cwd(), *Path.cwd().parents, Path(__file__).resolve().parent.parent):
        if (folder / "notebooks").is_dir() and (folder / "pyproject.toml").is_file():
            return folder
    return Path.cwd()


def results_folder(profile: str) -> Path:
    """Where a profile's figures, tables and run folders go; CCLKIT_RESULTS replaces the project's
    results/.
    """
    return Path(os.environ.get("CCLKIT_RESULTS") or project_folder() / "results") / profile


def bundle_folder(scene: str) -> Path | None:
    """Read-only artefacts that ship with the project, unless CCLKIT_NO_BUNDLE is set."""
    if os.environ.get("CCLKIT_NO_BUNDLE"):
        return None
    return project_folder() / "data" / "artefacts" / scene


def quiet() -> bool:
    """No progress bars: in notebooks run for comparison, and where stderr is not a terminal unless
    asked for.
    """
    return bool(os.environ.get("CCLKIT_QUIET"))


def progress(items: Sequence, what: str):
    return tqdm(items, desc=what, disable=quiet(), leave=False)


def _summary(artefact: Artefact) -> str:
    keys = (
        "n_candidates",
        "counts",
        "n_features",
        "share_unlabelled",
        "n_gaussians",
        "start",
        "n_pixels",
        "final_accuracy",
        "protocol",
    )
    r = artefact.record
    parts = []
    for k in keys:
        if k in r and r[k] is not None:
            v = r[k].get("kept") if isinstance(r[k], dict) else r[k]
            parts.append(
                f"{'masks' if k == 'counts' else k} {v:.3g}"
                if isinstance(v, float)
                else f"{'masks' if k == 'counts' else k} {v}"
            )
    return ", ".join(parts)
