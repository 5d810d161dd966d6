"""The engine: keys, locks and reuse for any graph of stages. It knows no stage by name."""

from __future__ import annotations

import contextlib
import platform
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..config import Config
from ..errors import CclkitError, ConfigError, reason
from ..files import save_json, unwritable
from ..foundation.front_end import ROLES, build_front_end, model_of
from ..foundation.roles import FrontEnd, Setup
from ..gaussians.model import Gaussians
from ..machine import peak_memory_mb
from ..scenes.load import content_hash, readers_of
from ..scenes.scene import Scene, View
from ..settings import as_dict
from .keys import code_key, content_key
from .stage import Stage
from .store import Artefact, Store

VIEWS_REMEMBERED = 4
"""Views whose files stay in memory, for each kind of file: masks of a large one take 200 MB."""

UNREADABLE = (
    CclkitError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What goes wrong in reading a file that is not what its stage writes."""


class Engine:
    """Artefacts of one scene under one configuration: their keys, and how each comes to be.

    ``used`` collects ``scene/stage/key`` of the artefacts that were used or computed, and of those
    they come from, in order of first use; engines that are varied from one another share it.
    """

    def __init__(
        self,
        graph: Mapping[str, Stage],
        scene: Scene | None,
        config: Config,
        store: Store,
        *,
        gaussians: Callable[[], Gaussians] | None = None,
        used: dict[str, None] | None = None,
        scene_key: str | None = None,
        front_end: FrontEnd | None = None,
    ):
        self.graph, self.scene, self.config, self.store = graph, scene, config, store
        self.gaussians = gaussians  # for models that ask for them
        self.used: dict[str, None] = {} if used is None else used
        self._scene_key, self._front_end = scene_key, front_end
        self._artefacts: dict[str, Artefact] = {}
        self._kept: dict[tuple, Any] = {}
        self._views: dict[tuple, OrderedDict[str, Any]] = {}

    def vary(self, config: Config) -> Engine:
        """The same scene and store under another configuration; what is equal is shared: the
        scene's key, since hashing all images takes long, and loaded models, unless one of them
        reads a stage, which may be another under the other configuration.
        """
        same = all(
            getattr(config, k) == getattr(self.config, k) for k in ("front_end", "masks", "device")
        )
        alone = not any(model_of(config.front_end, role).inputs for role in ROLES)
        return Engine(
            self.graph,
            self.scene,
            config,
            self.store,
            used=self.used,
            scene_key=self.scene_key,
            front_end=self._front_end if same and alone else None,
        )

    # ------------------------------------------------------------------ models and keys

    @property
    def setup(self) -> Setup:
        """What the models of this run are built from."""
        c = self.config
        return Setup(c.front_end, c.masks, c.device, self.scene, self.gaussians)

    @property
    def front_end(self) -> FrontEnd:
        """The models of this run, each loaded when it is first asked for."""
        if self._front_end is None:
            self._front_end = build_front_end(self.setup)
        return self._front_end

    @property
    def scene_key(self) -> str:
        """Key of the scene: its files, and the code that reads them."""
        if self._scene_key is None:
            code = code_key(*readers_of(self.scene)) if self.scene is not None else ""
            files = content_hash(self.scene) if self.scene is not None else "not here"
            self._scene_key = content_key(files=files, code=code)
        return self._scene_key

    def key(self, stage: str) -> str:
        """Content key of a stage under this configuration, without computing anything."""
        spec = self.stage(stage)
        return content_key(
            stage=stage,
            settings=spec.settings(self.config),
            model=self._model_key(spec.role) if spec.role else None,
            inputs={"scene": self.scene_key} | {i: self.key(i) for i in self.inputs(stage)},
            code=code_key(spec.build, *spec.code(self.config)),
            seed=self.config.seed if spec.seeded else None,
        )

    def _model_key(self, role: str) -> dict:
        """What a model's answers depend on: which it is, its settings and weights, its code."""
        model = model_of(self.config.front_end, role)
        name = getattr(self.config.front_end, ROLES[role][1])
        return {
            "name": name,
            "settings": model.settings(self.setup),
            "code": code_key(model.build),
        }

    def stage(self, name: str) -> Stage:
        """A stage by name. Raises ConfigError if there is none."""
        if name not in self.graph:
            raise ConfigError(f"unknown stage {name!r}; stages are {', '.join(self.graph)}")
        return self.graph[name]

    def inputs(self, stage: str) -> tuple[str, ...]:
        """The stages that a stage, or the model it asks, reads under this configuration."""
        spec = self.stage(stage)
        model = model_of(self.config.front_end, spec.role).inputs if spec.role else ()
        return (*spec.inputs(self.config), *model)

    def stages(self, last: str) -> tuple[str, ...]:
        """The stages that this configuration has, in order, up to and with ``last``."""
        self.stage(last)
        names = list(self.graph)
        until = names[: names.index(last) + 1]
        return tuple(s for s in until if self.graph[s].needed(self.config))

    # ------------------------------------------------------------------ artefacts

    def ensure(self, stage: str) -> Artefact:
        """The artefact of a stage, computed with everything it needs if it is not there."""
        if stage in self._artefacts:
            return self._artefacts[stage]
        key = self.key(stage)
        artefact = self.store.find(stage, key)
        if artefact is None:
            for before in self.inputs(stage):
                self.ensure(before)
            # what another process is computing may be what is wanted here
            with self.store.lock(f"{stage}/{key}", wait=True):
                build = self.stage(stage).build
                about = self._about(stage)
                artefact = self.store.ensure(stage, key, lambda f: build(self, f), about=about)
        self._artefacts[stage] = artefact
        self._note(stage)
        return artefact

    def _about(self, stage: str) -> dict:
        spec, c = self.stage(stage), self.config
        needs = {i: self.key(i) for i in self.inputs(stage)}
        models = spec.role or any(self.stage(i).role for i in self._before(stage))
        return {
            "scene": self.scene.name,
            "inputs": needs | {"scene": self.scene_key},
            "settings": spec.settings(c),
            "seed": c.seed if spec.seeded else None,
            "device": c.device,
            "profile": c.profile,
            "front_end": self.front_end.label if models else None,
        }

    def _before(self, stage: str) -> set[str]:
        """All stages that a stage comes from."""
        direct = self.inputs(stage)
        return set(direct).union(*(self._before(i) for i in direct))

    def _note(self, stage: str) -> None:
        """Inputs count as used even where they need not be read, so that reused and computed runs
        leave the same list.
        """
        name = f"{self.scene.name}/{stage}/{self.key(stage)}"
        if name not in self.used:
            for before in self.inputs(stage):
                self._note(before)
            self.used[name] = None

    def read(
        self,
        stage: str,
        name: str,
        parse: Callable[[Any], Any],
        form: str = "npz",
        *,
        view: View | None = None,
    ) -> Any:
        """What a stage's file holds, read once: for good, or for the last views if it is a view's.

        ``form`` is "npz", "json" or "safetensors". Raises ArtefactError naming the file when its
        content is not what the stage writes.
        """
        where = (stage, name, parse.__qualname__)
        if view is None:
            if where not in self._kept:
                self._kept[where] = self._parsed(stage, name, parse, form)
            return self._kept[where]
        views = self._views.setdefault((stage, parse.__qualname__), OrderedDict())
        if view.name not in views:
            views[view.name] = self._parsed(stage, name, parse, form)
            if len(views) > VIEWS_REMEMBERED:
                views.popitem(last=False)
        views.move_to_end(view.name)
        return views[view.name]

    def keep(self, name: str, make: Callable[[], Any]) -> Any:
        """What ``make`` returns, made once in this run."""
        if (name,) not in self._kept:
            self._kept[name,] = make()
        return self._kept[name,]

    def _parsed(self, stage: str, name: str, parse: Callable[[Any], Any], form: str) -> Any:
        content = getattr(self.ensure(stage), form)(name)
        with self.reading(stage, name):
            return parse(content)

    @contextlib.contextmanager
    def reading(self, stage: str, name: str) -> Iterator[None]:
        """Whatever goes wrong inside means that the file is not what its stage writes."""
        try:
            yield
        except UNREADABLE as e:
            raise self.ensure(stage).damaged(name, f"{type(e).__name__}: {reason(e)}") from e

    # ------------------------------------------------------------------ views and records

    def view(self, view: View | str) -> View:
        """A view, by itself or by name."""
        return self.scene.view(view) if isinstance(view, str) else view

    def training_view(self, view: View | str) -> View:
        """A view that stages work on. Raises CclkitError for one that is held out."""
        view = self.view(view)
        if view.name in self.scene.held_out:
            names = [v.name for v in self.scene.training_views]
            raise CclkitError(
                f"view {view.name!r} is held out of training, so it has no masks; use one of"
                f" {names[0]} … {names[-1]}"
            )
        return view

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
        computed = [s["peak_memory_mb"] or 0 for s in stages.values() if not s["reused"]]
        path = self.store.root / "run.json"
        record = {
            "cclkit": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "scene": self.scene.name,
            "layout": self.scene.layout,
            "front_end": self.front_end.label,
            "config": as_dict(self.config),
            "stages": stages,
            "peak_memory_mb": max([round(peak_memory_mb()), *computed]),
        }
        try:
            save_json(path, record)
        except OSError as e:
            raise unwritable(path, e) from e
        return path


def run_stages(engine: Engine, until: str, report: Callable[[str], None] = print) -> None:
    """Compute every stage up to ``until``, reporting one line each. An interrupted run goes on
    where it stopped.

    The folder is held for all of them, so that a second run on it is refused at once and not
    between two stages.
    """
    with engine.store.lock():
        names = engine.stages(until)
        engine.key(names[-1])  # of the code as it is now: a file edited in hours does not matter
        for name in names:
            if why := engine.stage(name).unfit(engine.scene):
                report(f"{name:<11} skipped: {why}")
                continue
            try:
                artefact = engine.ensure(name)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"stopped during {name}, everything finished is kept in {engine.store.root};"
                    " run the same command again to go on"
                ) from None
            how = "found" if artefact.reused else "done "
            seconds = artefact.record["wall_time_s"]
            told = _told(artefact, engine.stage(name).told)
            report(f"{name:<11} {how} {seconds:8.1f} s  {told}")
        engine.write_record()


def _told(artefact: Artefact, names: tuple[str, ...]) -> str:
    """Entries of a record in words: "masks 812, final_accuracy 0.81"."""
    parts = []
    for name in names:
        value = artefact.record.get(name)
        if isinstance(value, dict):
            name, value = "masks", value.get("kept")
        if value is not None:
            parts.append(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}")
    return ", ".join(parts)
