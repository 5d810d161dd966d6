"""A `Run` is one scene with one configuration: ask it for anything, it computes what is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import Config, profile
from ..errors import ConfigError
from ..evaluation.protocol import Maps
from ..foundation.roles import FrontEnd
from ..gaussians.blending_cache import BlendingCache
from ..gaussians.model import Gaussians
from ..method.codebook_fit import Codebook
from ..method.field import SemanticField
from ..method.interfaces import Candidates
from ..method.masks import ViewMasks
from ..method.query import SELECTION_SHARE
from ..method.tracking import ViewTracks
from ..places import results_folder
from ..scenes.load import load_scene
from ..scenes.scene import Scene, View
from . import answers, scoring
from .answers import Answer
from .engine import Engine, run_stages
from .graph import GRAPH
from .scoring import FieldReader
from .stages import (
    blending,
    candidates,
    codebook,
    features,
    field,
    gaussians,
    masks,
    tracks,
)
from .stages.evaluation import evaluation
from .store import Artefact, Store


class Run:
    """One scene, one configuration, one folder.

    ``scene`` is a Scene, a folder, or a bundled scene by name; ``out`` defaults to
    ``results/<profile>/runs/<scene>`` below the project. Nothing is computed until it is asked for;
    everything computed is kept in the folder. What was read is remembered and handed out again:
    copy it before changing it.

    Raises SceneError (no such scene), ConfigError (no such device), ArtefactError (a folder that
    can't be written).

    >>> run = Run("tea_party", profile("mini"), out=folder)
    >>> len(run.key("masks"))
    16
    """

    def __init__(
        self,
        scene: Scene | str | Path,
        config: Config | None = None,
        out: str | Path | None = None,
        *,
        engine: Engine | None = None,
    ):
        if engine is None:
            config = config if config is not None else profile("mini")
            check_device(config)
            scene = scene if isinstance(scene, Scene) else load_scene(scene)
            out = out if out is not None else results_folder(config.profile) / "runs" / scene.name
            engine = Engine(GRAPH, scene, config, Store(out))
        engine.gaussians = lambda: gaussians.load_gaussians(engine, "gaussians")
        self.engine = engine

    @classmethod
    def planned(cls, scene: Scene | None, config: Config, out: str | Path) -> Run:
        """A run that is only asked for its keys and for what is there: nothing is written, no
        device is needed, and the scene may not be here yet (None).
        """
        store = Store(out, look_only=True)
        return cls(scene, engine=Engine(GRAPH, scene, config, store))

    def vary(self, **settings: Any) -> Run:
        """The same scene and folder with other settings; stages that don't depend on them are
        shared.

        Dots of setting names are written as double underscores:
        ``vary(codebook__lambda_pull=0.0)``.
        """
        changes = {k.replace("__", "."): v for k, v in settings.items()}
        config = self.config.with_settings(changes)
        return Run(self.scene, engine=self.engine.vary(config))

    # ------------------------------------------------------------------ what it is

    @property
    def scene(self) -> Scene:
        return self.engine.scene

    @property
    def config(self) -> Config:
        return self.engine.config

    @property
    def store(self) -> Store:
        return self.engine.store

    @property
    def front_end(self) -> FrontEnd:
        """SAM, SAM2 and CLIP as configured, each loaded when it is first asked for."""
        return self.engine.front_end

    @property
    def used(self) -> list[str]:
        """``scene/stage/key`` of the artefacts that this run, and those varied from it, used or
        computed so far, and of those they come from, in order of first use.
        """
        return list(self.engine.used)

    def key(self, stage: str) -> str:
        """Content key of a stage under this configuration, without computing anything."""
        return self.engine.key(stage)

    def stages(self, last: str = "evaluation") -> tuple[str, ...]:
        """The stages of this run in order, up to and with ``last``."""
        return self.engine.stages(last)

    def ensure(self, stage: str) -> Artefact:
        """The artefact of a stage, computed with everything it needs if it is not there."""
        return self.engine.ensure(stage)

    def to(self, until: str = "evaluation", *, report: Callable[[str], None] = print) -> Run:
        """Every stage up to ``until``, reporting one line each; the run itself is returned."""
        run_stages(self.engine, until, report)
        return self

    def clear(self) -> None:
        """Delete the artefacts of all stages in this run's folder."""
        with self.store.lock():
            self.store.clear(GRAPH)

    # ------------------------------------------------------------------ what the stages made

    def candidates(self, view: View | str) -> Candidates:
        """What the mask generator found in a training view, before any rule of ours."""
        return candidates.candidates(self.engine, view)

    def masks(self, view: View | str) -> ViewMasks:
        """Masks and label maps of a training view."""
        return masks.masks(self.engine, view)

    def label_maps(self, view: View | str) -> np.ndarray:  # [2, H, W] int32
        """Mask of every pixel at each level of a training view, -1 = no mask."""
        return masks.label_maps(self.engine, view)

    def features(self, view: View | str) -> np.ndarray:  # [M, d] float32
        """Unit features of the view's masks."""
        return features.features(self.engine, view)

    def tracks(self, view: View | str) -> ViewTracks:
        """Track labels of the view's masks."""
        return tracks.tracks(self.engine, view)

    def track_starts(self, level: str) -> np.ndarray:  # [K] int64
        """Index of the training view in which each track of a level starts."""
        return tracks.track_starts(self.engine, level)

    def carried(self, view: View | str, level: str) -> np.ndarray:  # [K, H, W] bool
        """Masks of all tracks of a level as carried to a training view; row k is track k + 1."""
        return tracks.carried(self.engine, view, level)

    def training_set(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All masks of all training views, in order: features [M, d], track labels [M], level
        [M].
        """
        return codebook.training_set(self.engine)

    def codebooks(self) -> dict[str, Codebook]:
        """Codebook of each level."""
        return codebook.codebooks(self.engine)

    def mask_codes(self, view: View | str) -> np.ndarray:  # [M] int32
        """Code of each mask of a training view."""
        return codebook.mask_codes(self.engine, view)

    def index_maps(self, view: View | str) -> np.ndarray:  # [2, H, W] int32
        """Code index map of each level of a training view, -1 = no mask."""
        return codebook.index_maps(self.engine, view)

    def gaussians(self) -> Gaussians:
        """The Gaussians of the scene: those that the field was trained on, or with."""
        return gaussians.gaussians(self.engine)

    @property
    def gaussians_stage(self) -> str:
        """The stage that makes the Gaussians: field where they are trained together."""
        return gaussians.stage_with_gaussians(self.config)

    def reconstruction_history(self) -> dict[str, np.ndarray]:
        """Curves of the reconstruction."""
        return gaussians.reconstruction_history(self.engine)

    def blending_cache(self) -> BlendingCache:
        """Sampled pixels of the training views and what they are made of; needed only with
        `field.mode` "cached".
        """
        return blending.blending_cache(self.engine)

    def field(self) -> SemanticField:
        """Features per Gaussian and level, and the decoders."""
        return field.field(self.engine)

    def field_curves(self) -> dict[str, np.ndarray]:
        """Loss and accuracy of every step of the field's training."""
        return field.field_curves(self.engine)

    def codes(self, view: View | str) -> np.ndarray:  # [2, H, W] int32
        """Codes decoded from the field for any view of the scene, held-out ones too."""
        return field.codes(self.engine, view)

    def evaluation(self) -> dict:
        """Protocol, constants, rows and aggregates, as in evaluation.json."""
        return evaluation(self.engine)

    # ------------------------------------------------------------------ texts

    def relevancy(
        self, view: View | str, texts: Sequence[str], *, code_maps: np.ndarray | None = None
    ) -> torch.Tensor:  # [P, 2, H, W]
        """Relevancy of texts in a view, at both levels, by the configured rule. ``code_maps`` [2,
        H, W] replaces the field's codes.
        """
        return scoring.view_relevancy(self.engine, view, texts, code_maps=code_maps)

    @property
    def reader(self) -> FieldReader:
        """The field as evaluation protocols ask it: for `evaluate_scene`, under any of them."""
        return FieldReader(self.engine)

    def scores(
        self,
        view: View | str,
        texts: Sequence[str],
        *,
        protocol: str | None = None,
        code_maps: np.ndarray | None = None,
    ) -> Maps:
        """What an evaluation protocol scores, by default the configured one; see
        `scoring.scores`.
        """
        return scoring.scores(self.engine, view, texts, protocol=protocol, code_maps=code_maps)

    def silhouettes(self, view: View | str, texts: Sequence[str]) -> np.ndarray:  # [P, H, W] uint8
        """Pictures of the Gaussians that a text selects, and of no others."""
        return scoring.silhouettes(self.engine, view, texts)

    def answer(
        self,
        view: View | str,
        text: str,
        *,
        threshold: float | None = None,
        level: str | None = None,
        code_maps: np.ndarray | None = None,
    ) -> Answer:
        """Where a text is in a view; see `answers.answer`."""
        return answers.answer(
            self.engine, view, text, threshold=threshold, level=level, code_maps=code_maps
        )

    def select_gaussians(
        self, text: str, *, share: float = SELECTION_SHARE
    ) -> tuple[np.ndarray, str]:  # [G] bool, level
        """The Gaussians that answer a text, and the level they were chosen at."""
        return answers.select_gaussians(self.engine, text, share=share)

    def lifted_relevancy(self, texts: Sequence[str]) -> torch.Tensor:  # [P, 2, G]
        """Relevancy of Gaussians: each one's mean over the training pixels that it makes up."""
        return scoring.lifted_relevancy(self.engine, texts)

    def write_answer(self, text: str, views: Sequence[View]) -> Path:
        """A text in some views and in 3D, as pictures, film, PLY and JSON; see
        `answers.answer_query`.
        """
        return answers.answer_query(self.engine, text, views)


def check_device(config: Config) -> None:
    """Raise ConfigError when the configured device is not there, before anything is computed for
    it.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"profile {config.profile!r} needs a CUDA device and none was found; use profile"
            " 'mini', or run on a machine with a GPU"
        )
