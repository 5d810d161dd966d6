"""The first line of every notebook: settings, scene, folders, and the one way to show figures."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import __version__
from ..config import Config, profile as settings_of
from ..errors import NotebookError
from ..places import results_folder
from ..runs.run import Run, check_device
from .colours import track_colors
from .provenance import changed_settings, commit, versions
from .show import FigureFolder
from .tables import save_table

DEFAULT_SCENES = {
    "mini": {"lerf_ovs": "tea_party", "3d_ovs": "breakfast_bench"},
    "paper": {"lerf_ovs": "lerf_ovs/figurines", "3d_ovs": "3d_ovs/bed"},
}
"""Scene of each profile by layout: a bundled name, or a folder below data/."""


@dataclass(frozen=True)
class Notebook:
    """What a notebook works with: a run, and the one way to show figures and tables."""

    name: str
    run: Run
    figures: FigureFolder
    tables: Path

    def show(self, fig, name: str, *, alt: str, caption: str, of: str = ""):
        """Save a figure with its provenance and display it. ``of``: what it shows, where that is
        not the run's scene; the footer then names no scene.
        """
        figures = self.figures
        if of:
            figures = figures.of(_footer(self.run.config, of), scene=of, front_end="")
        return figures.show(fig, name, alt=alt, caption=caption, artefacts=self.run.used)

    def show_animation(self, frames, name: str, *, alt: str, caption: str):
        """Save pictures [H, W, 3] in 0..1 as an animation and display it."""
        return self.figures.show_animation(
            frames, name, alt=alt, caption=caption, artefacts=self.run.used
        )

    def show_viewer(self, layers, name: str, *, alt: str, caption: str):
        """Save and display a viewer of frames in several layers."""
        return self.figures.show_viewer(
            layers, name, alt=alt, caption=caption, artefacts=self.run.used
        )

    def track_colors(self, level: str) -> np.ndarray:  # [K, 3]
        """Colours of a level's tracks, those of the objects that they follow."""
        views = [self.run.scene.training_views[s] for s in self.run.track_starts(level)]
        starts = [(v, self.run.carried(v, level)[k]) for k, v in enumerate(views)]
        return track_colors(self.run.scene, starts, level)

    def table(
        self, name: str, header: Sequence[str], rows: Sequence[Sequence[object]], caption: str
    ):
        """Save a table as Markdown and CSV and display it."""
        from IPython.display import Markdown

        stem = f"{self.name[:2]}_{name}"
        text = save_table(self.tables, stem, header, rows, caption)
        return Markdown(text, metadata={"cclkit_table": stem})  # the manifest finds it by this


def start(
    name: str, *, profile: str = "mini", scene: str = "", layout: str = "lerf_ovs", seed: int = 0
) -> Notebook:
    """First line of every notebook: settings, scene, and folders, checked before anything is
    computed.

    ``scene`` is a bundled name or a folder; empty means the profile's own for ``layout``. With
    CCLKIT_OFFLINE set, as the project's own checks have it, no connection leaves this machine from
    then on. Raises ConfigError (unknown profile, no CUDA), SceneError (no such scene).
    """
    if os.environ.get("CCLKIT_OFFLINE"):
        forbid_network()
    config = settings_of(profile, seed=seed)
    check_device(config)
    if not scene:
        scene = DEFAULT_SCENES[profile][layout]
    run = Run(scene, config)
    root = results_folder(profile)
    footer = _footer(config, f"{run.scene.name} · {run.front_end.label}")
    about = {
        "scene": run.scene.name,
        "seed": seed,
        "front_end": run.front_end.label,
        "settings": changed_settings(config),
        "versions": versions(),
        "commit": commit(name),
    }
    figures = FigureFolder(
        root / "figures", notebook=name, profile=profile, footer=footer, about=about
    )
    return Notebook(name, run, figures, root / "tables")


def _footer(config: Config, of: str) -> str:
    return f"cclkit {__version__} · profile {config.profile} · {of} · seed {config.seed}"


def forbid_network() -> None:
    """From now on every connection or look-up that would leave this machine raises NotebookError;
    for good in this process.
    """
    sys.addaudithook(_refuse_connections)


def _refuse_connections(event: str, args: tuple) -> None:
    here = ("127.", "::1", "localhost")
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = args[1]
        # a str is a local socket's path
        outside = isinstance(address, tuple) and not str(address[0]).startswith(here)
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        address = args[0]
        named = address not in (None, "", "localhost", b"localhost")
        outside = named and not str(address).startswith(("127.", "::1", "0.0.0.0"))
    else:
        return
    if outside:
        raise NotebookError(
            f"a connection to {address!r} was asked for, and CCLKIT_OFFLINE is set; notebooks work"
            " from data that are here (cclkit data fetch)"
        )
