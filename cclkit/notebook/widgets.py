"""Explorers for notebooks: controls above pictures.

An explorer's `draw` maps the values of its controls to titled pictures and a line of text. The
widget shows them as HTML; the static twin (`Explorer.figure`) puts the very same pictures into a
figure. Headless runs (CCLKIT_QUIET) display a line of text in place of controls nobody could use.

Whatever a drawing needs beyond arithmetic (photographs, masks, decoded codes) is read when the
explorer is made, so that a control answers at once.
"""

from __future__ import annotations

import base64
import html
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import ipywidgets
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure

from ..errors import CclkitError, ConfigError
from ..evaluation.codes import usage
from ..foundation.clicks import SamClicks
from ..foundation.simulated import SimulationConfig
from ..method.codebook_fit import fit_codebook
from ..method.interfaces import Candidates
from ..method.masks import LEVELS
from ..progress import progress, quiet
from ..runs.run import Run
from ..scenes.scene import View
from .figures.common import ColorBasis, highlight, map_of, spread
from .figures.playground import panels_figure
from .population import population, population_miou

BLUE, ORANGE, GREEN, VERMILION = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (213, 94, 0))
"""Okabe–Ito, as in figures."""


@dataclass(frozen=True)
class Drawing:
    """What an explorer shows for one setting of its controls."""

    panels: list[tuple[str, np.ndarray]]  # title, picture [H, W, 3] uint8
    note: str = ""


class Explorer:
    """Controls, and the pictures that one function draws from their values."""

    title = ""
    width = 250  # of a picture in the browser, pixels

    def __init__(self, **controls: ipywidgets.Widget):
        self.controls = controls
        self.seconds = 0.0  # what the last redraw took, encoding included
        self._hold = False
        drawing = self.draw(**self.values())
        self.pictures = [
            ipywidgets.HTML(layout={"width": f"{self.width}px", "margin": "2px"})
            for _ in drawing.panels
        ]
        self.note = ipywidgets.HTML()
        self._fill(drawing)
        for control in controls.values():
            control.observe(lambda change: self.update(), "value")
        self.widget = ipywidgets.VBox(
            [
                ipywidgets.HBox(list(controls.values()), layout={"flex_flow": "row wrap"}),
                ipywidgets.HBox(self.pictures, layout={"flex_flow": "row wrap"}),
                self.note,
            ]
        )

    def draw(self, **values: Any) -> Drawing:
        """Pictures and text for these values of the controls; nothing else that changes counts."""
        raise NotImplementedError

    def values(self) -> dict[str, Any]:
        return {k: c.value for k, c in self.controls.items()}

    def set(self, **values: Any) -> Explorer:
        """Move controls to these values. Raises ConfigError for a control that isn't there or a
        value it can't take.
        """
        self._check(values)
        self._hold = True  # one picture for all of them
        try:
            for name, value in values.items():
                try:
                    self.controls[name].value = value
                except Exception as e:  # traitlets' own
                    raise ConfigError(
                        f"{type(self).__name__}: {name} cannot be {value!r} ({e})"
                    ) from e
        finally:
            self._hold = False
            self.update()
        return self

    def _check(self, values: Mapping[str, Any]) -> None:
        for name in values:
            if name not in self.controls:
                raise ConfigError(
                    f"{type(self).__name__} has no control {name!r}; it has"
                    f" {', '.join(self.controls)}"
                )

    def update(self) -> None:
        """Redraw. What cannot be drawn (an empty text) becomes a message; the pictures stay."""
        if self._hold:
            return
        begin = time.perf_counter()
        try:
            self._fill(self.draw(**self.values()))
        except CclkitError as e:
            self.note.value = f'<p role="alert" style="color:#D55E00">{html.escape(str(e))}</p>'
        self.seconds = time.perf_counter() - begin

    def figure(self, **values: Any) -> Figure:
        """The static twin: the same pictures as a figure, at the controls' values or at these."""
        self._check(values)
        return panels_figure(self.draw(**(self.values() | values)).panels)

    def says(self, **values: Any) -> str:
        """The line of text that goes with the pictures."""
        self._check(values)
        return self.draw(**(self.values() | values)).note

    def _fill(self, drawing: Drawing) -> None:
        for picture, (title, pixels) in zip(self.pictures, drawing.panels):
            picture.value = _as_html(title, pixels)
        self.note.value = f"<p>{html.escape(drawing.note)}</p>"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        if quiet():  # a view without a kernel behind it would only say that its model is missing
            text = (
                f"{self.title}, with controls for {', '.join(self.controls)}: run this notebook in"
                " JupyterLab to use them. The figure below is the same drawing."
            )
            return {"text/plain": text, "text/html": f"<p><em>{html.escape(text)}</em></p>"}
        # its own text would hold every picture
        return self.widget._repr_mimebundle_() | {"text/plain": self.title}


# ----------------------------------------------------------------- masks


OUTPUTS = ("output 0, subpart", "output 1, part", "output 2, whole")


class MaskExplorer(Explorer):
    """Click on a photograph: the three masks SAM answers with, the piece under the click of each.
    Without a SAM, the simulated candidates under the pixel.

    Clicking needs ipyevents; the sliders x and y do the same from the keyboard.
    """

    title = "Mask explorer"

    def __init__(self, run: Run, views: Sequence[View] | None = None):
        self.run, self.views = run, {v.name: v for v in views or run.scene.training_views}
        self.images = _photographs(self.views.values())
        self.sam = SamClicks(run.front_end.masks) if run.config.front_end.masks == "sam" else None
        self.candidates = {} if self.sam else {n: run.candidates(v) for n, v in self.views.items()}
        x, y = _telling_point(run.candidates(next(iter(self.views))))
        height, width = (min(i.shape[axis] for i in self.images.values()) for axis in (0, 1))
        super().__init__(
            view=_view_slider(self.views),
            x=ipywidgets.IntSlider(x, 0, width - 1, description="x", **_WIDE),
            y=ipywidgets.IntSlider(y, 0, height - 1, description="y", **_WIDE),
        )
        self._listen(self.pictures[0])

    def click(self, view: str, x: int, y: int) -> tuple[np.ndarray, np.ndarray]:
        """Masks [3, H, W] bool of a click, one per output, and their predicted IoUs [3]; an output
        that finds nothing is empty and NaN.
        """
        if self.sam is not None:
            masks, scores = self.sam.click(self.images[view], np.array([[x + 0.5, y + 0.5]]))
            return masks[0].astype(bool), np.where(masks[0].any((1, 2)), scores[0], np.nan)
        return _best_at(self.candidates[view], x, y)

    def draw(self, view: str, x: int, y: int) -> Drawing:
        image = self.images[view]
        masks, scores = self.click(view, x, y)
        panels = [(f"{view}: click here", _with_point(image, x, y))]
        for name, mask, score in zip(OUTPUTS, masks, scores):
            says = f"predicted IoU {score:.2f}, {mask.sum():,} px" if mask.any() else "nothing"
            panels.append((f"{name}: {says}", _with_point(_uint8(highlight(image, mask)), x, y)))
        about = (
            "; of each mask the piece under the click"
            if self.sam is not None
            else "; simulated masks: for each output the best stored candidate that holds the pixel"
        )
        return Drawing(panels, f"{self.run.front_end.label}{about}")

    def _listen(self, picture: ipywidgets.HTML) -> None:
        from ipyevents import Event

        def clicked(event: Mapping[str, Any]) -> None:
            h, w = self.images[self.controls["view"].value].shape[:2]
            # the photograph is as wide as its widget and starts at its top
            scale = w / max(1.0, event["boundingRectWidth"])
            x, y = int(event["relativeX"] * scale), int(event["relativeY"] * scale)
            if 0 <= x <= self.controls["x"].max and 0 <= y <= self.controls["y"].max:
                self.set(x=x, y=y)

        self.events = Event(source=picture, watched_events=["click"], prevent_default_action=True)
        self.events.on_dom_event(clicked)


def _best_at(c: Candidates, x: int, y: int) -> tuple[np.ndarray, np.ndarray]:
    """For each output the best candidate that holds a pixel: masks [3, H, W] and predicted IoUs
    [3], empty and NaN where there is none.
    """
    masks, scores = np.zeros((3, *c.masks.shape[1:]), bool), np.full(3, np.nan)
    for k in range(3):
        rows = np.flatnonzero((c.output == k) & c.masks[:, y, x])
        if len(rows):
            best = rows[np.argmax((c.predicted_iou * c.stability)[rows])]
            masks[k], scores[k] = c.masks[best], c.predicted_iou[best]
    return masks, scores


def _telling_point(c: Candidates) -> tuple[int, int]:
    """Where to click first: deep inside a candidate, where the three outputs differ most in size;
    else the middle.
    """
    best, point = 0.0, (c.masks.shape[2] // 2, c.masks.shape[1] // 2)
    for i in np.flatnonzero(c.output == 0):
        padded = np.pad(c.masks[i], 1).astype(np.uint8)
        inside = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1]
        y, x = np.unravel_index(inside.argmax(), inside.shape)
        a, b, w = np.sort(_best_at(c, x, y)[0].sum((1, 2)))
        if a and min(b / a, w / b) > best and w < 0.2 * c.masks[i].size:
            best, point = min(b / a, w / b), (int(x), int(y))
    return point


# ----------------------------------------------------------------- tracks


class TrackBrowser(Explorer):
    """One track through the capture: where its mask was carried to, and which mask of each view
    took its label.
    """

    title = "Track browser"
    width = 205

    def __init__(self, run: Run, views: Sequence[View] | None = None):
        self.run = run
        self.views = spread(run.scene.training_views, 8) if views is None else list(views)
        self.images = _photographs(self.views)
        self.masks = {v.name: run.masks(v) for v in self.views}
        self.tracks = {v.name: run.tracks(v) for v in self.views}
        self.carried = {
            (v.name, level): run.carried(v, level) for v in self.views for level in LEVELS
        }
        _, self.labels, self.levels = run.training_set()
        self.sizes = {level: len(run.track_starts(level)) for level in LEVELS}
        most, track = max(1, *self.sizes.values()), self._telling_track()
        super().__init__(
            level=_level_buttons("wp"),
            track=ipywidgets.IntSlider(track, 1, most, description="track", **_WIDE),
        )

    def _telling_track(self) -> int:
        """Where to start: of the tracks below the background's size the one that most of the views
        shown join, then the largest.
        """
        name = self.views[0].name
        first = self.carried[name, "wp"].sum((1, 2))
        joined = np.zeros(len(first), int)
        for v in self.views:
            labels = self.tracks[v.name].label[self.masks[v.name].level == LEVELS.index("wp")]
            joined += np.isin(np.arange(1, len(first) + 1), labels)
        background = first >= 0.2 * self.images[name][..., 0].size
        return 1 + int(np.lexsort((-first, -joined, background))[0]) if len(first) else 1

    def draw(self, level: str, track: int) -> Drawing:
        if track > self.sizes[level]:
            raise ConfigError(
                f"level {level} has {self.sizes[level]} tracks; choose a track up to that"
            )
        panels = []
        for v in self.views:
            carried = self.carried[v.name, level][track - 1]
            t, m = self.tracks[v.name], self.masks[v.name]
            rows = np.flatnonzero((t.label == track) & (m.level == LEVELS.index(level)))
            picture = _tinted(self.images[v.name], carried, BLUE)
            for r in rows:
                picture = _outlined(picture, m.masks[r], ORANGE)
            says = "carried, no mask took the label" if carried.any() else "nothing carried"
            if len(rows):
                several = f"{len(rows)} masks, IoU ≤" if len(rows) > 1 else "IoU"
                says = f"{several} {t.iou[rows].max():.2f}"
            panels.append((f"{v.stem}: {says}", picture))
        members = int(((self.labels == track) & (self.levels == LEVELS.index(level))).sum())
        views = len(self.run.scene.training_views)
        return Drawing(
            panels,
            f"level {level}, track {track} of {self.sizes[level]}: {members} masks carry the label"
            f" y = {track} in {views} training views. Blue: carried mask; orange outline: the"
            " view's own mask that took the label.",
        )


# ----------------------------------------------------------------- codebook


THUMB = 72
"""Side of a mask's thumbnail, pixels."""


class CodebookExplorer(Explorer):
    """One prototype at a time: how often it is used, by which masks and tracks, and which
    prototypes lie nearest.
    """

    title = "Codebook explorer"
    width = 270

    def __init__(self, run: Run):
        features, self.labels, self.levels = run.training_set()
        self.features = features
        self.codes = np.concatenate([run.mask_codes(v) for v in run.scene.training_views])
        self.view_of = np.concatenate(
            [np.full(len(run.mask_codes(v)), n) for n, v in enumerate(run.scene.training_views)]
        )
        self.books = {name: b.prototypes.numpy() for name, b in run.codebooks().items()}
        thumbs = []
        for v in progress(run.scene.training_views, "thumbnails"):
            image, m = v.image(), run.masks(v)
            thumbs += [_thumbnail(image, mask, box) for mask, box in zip(m.masks, m.bbox)]
        self.thumbs = np.array(thumbs).reshape(-1, THUMB, THUMB, 3)
        codes = {n: torch.from_numpy(self.codes[self.levels == i]) for i, n in enumerate(LEVELS)}
        self.counts = {n: usage(codes[n], len(self.books[n])).numpy() for n in LEVELS}
        self.order = {name: np.argsort(-c, kind="stable") for name, c in self.counts.items()}
        self.queries = list(run.scene.queries or run.scene.classes or ())
        self.text = run.front_end.encoder.encode_text(self.queries) if self.queries else None
        most = max(1, *map(len, self.books.values()))
        super().__init__(
            level=_level_buttons("wp"),
            rank=ipywidgets.IntSlider(1, 1, most, description="rank by use", **_WIDE),
        )

    def draw(self, level: str, rank: int) -> Drawing:
        T, counts = self.books[level], self.counts[level]
        if rank > len(T):
            raise ConfigError(
                f"the codebook of level {level} has {len(T)} prototypes; choose a rank up to that"
            )
        j = int(self.order[level][rank - 1])
        mine = self._members(level, j)
        near = [int(k) for k in np.argsort(-(T @ T[j]), kind="stable") if k != j and counts[k]][:4]
        cosines = ", ".join(f"{float(T[k] @ T[j]):.2f}" for k in near)
        of_near = [_padded(self.thumbs[self._members(level, k)[:4]], 4) for k in near]
        most = f"masks per prototype, from {counts.max()} to {counts.min()}; orange: prototype {j}"
        panels = [
            (most, _bars(counts[self.order[level]], rank - 1)),
            (
                f"masks whose feature is nearest to prototype {j}, from several views",
                _montage(self.thumbs[_one_per_view(mine, self.view_of, 12)], 4),
            ),
            (
                f"nearest used prototypes, cosine {cosines}",
                _montage(np.concatenate([self.thumbs[:0], *of_near]), 4),
            ),
        ]
        labels = self.labels[mine]
        masks_of = {y: int((labels == y).sum()) for y in set(labels[labels != -1].tolist())}
        commonest = sorted(masks_of, key=lambda y: -masks_of[y])[:5]
        tracks = ", ".join(f"{y} ({masks_of[y]})" for y in commonest)
        views = len(set(self.view_of[mine].tolist()))
        parts = [
            f"Prototype {j} of level {level}: {len(mine)} masks in {views} views",
            f"tracks (masks): {tracks or 'none'}",
            f"{(labels == -1).sum()} without a track",
        ]
        if self.text is not None:
            cos = self.text @ T[j]
            near = [f"{self.queries[q]} {cos[q]:.2f}" for q in np.argsort(-cos)[:3]]
            parts.append(f"nearest texts: {', '.join(near)}")
        return Drawing(panels, "; ".join(parts) + ".")

    def _members(self, level: str, j: int) -> np.ndarray:
        """Masks of a prototype, nearest first."""
        rows = np.flatnonzero((self.levels == LEVELS.index(level)) & (self.codes == j))
        return rows[np.argsort(-(self.features[rows] @ self.books[level][j]), kind="stable")]


# ----------------------------------------------------------------- a live codebook


class LiveCCL(Explorer):
    """CCL on a population of features small enough to be trained while a slider moves: 8 classes in
    10 views, 16 prototypes.
    """

    title = "Live CCL"
    width = 270
    CLASSES, VIEWS, PROTOTYPES, STEPS, RATE, DIM = 8, 10, 16, 40, 0.04, 32

    def __init__(self, run: Run):
        small = {"n_prototypes": self.PROTOTYPES, "steps": self.STEPS, "batch": 0}
        self.config = replace(run.config.codebook, lr=self.RATE, **small)
        seed = run.config.seed
        self._of_noise: dict[tuple[float, int], tuple] = {}
        super().__init__(
            lambda_pull=_share_slider(self.config.lambda_pull, 1, "λ pull"),
            lambda_push=_share_slider(self.config.lambda_push, 1, "λ push"),
            margin=_share_slider(self.config.margin, 1, "margin m"),
            noise=_share_slider(0.4, 0.9, "noise"),
            draw_number=ipywidgets.IntSlider(seed, 0, seed + 9, description="seed", **_WIDE),
        )

    def draw(
        self, lambda_pull: float, lambda_push: float, margin: float, noise: float, draw_number: int
    ) -> Drawing:
        people, plain = self._people(round(noise, 3), draw_number)
        weights = {"lambda_pull": lambda_pull, "lambda_push": lambda_push}
        config = replace(self.config, margin=margin, **weights)
        book = fit_codebook(people.features, people.labels, config, seed=draw_number)
        score, score_plain = (population_miou(b, people) for b in (book, plain))
        panels = [
            (f"λ = 0: codes of every class, mIoU {score_plain:.0f} %", self._table(plain, people)),
            (f"with these λ: codes of every class, mIoU {score:.0f} %", self._table(book, people)),
            (
                "with these λ: cosines of the prototypes in that order, orange above m ="
                f" {margin:.2f}",
                self._cosines(book, people, margin),
            ),
        ]
        last = {k: float(v[-1]) for k, v in book.curves.items()}
        return Drawing(
            panels,
            f"L_max {last['max']:.3f}, L_pull {last['pull']:.3f}, L_push {last['push']:.3f};"
            f" {self.CLASSES} classes in {self.VIEWS} views, {self.STEPS} steps, features only"
            " (simulated). Table: a row per class, a column per prototype, brighter = more masks;"
            " a coloured cell answers to its own class (green) or to another one (orange).",
        )

    def _people(self, noise: float, seed: int):
        """The population of a noise level, and what is learned from it without the contrastive
        terms.
        """
        if (noise, seed) not in self._of_noise:
            size = {"n_classes": self.CLASSES, "n_views": self.VIEWS}
            simulation = SimulationConfig(dim=self.DIM)
            people = population(seed, incomplete=noise, simulation=simulation, **size)
            config = replace(self.config, lambda_pull=0.0, lambda_push=0.0)
            plain = fit_codebook(people.features, people.labels, config, seed=seed)
            self._of_noise[noise, seed] = people, plain
        return self._of_noise[noise, seed]

    @staticmethod
    def _answers(book, people) -> tuple[np.ndarray, np.ndarray]:
        """Class that every prototype answers to, and the order that groups the prototypes by it."""
        answers = (book.prototypes @ people.text.T).argmax(1).numpy()
        return answers, np.argsort(answers, kind="stable")

    def _cosines(self, book, people, margin: float) -> np.ndarray:
        P = book.prototypes.numpy()[self._answers(book, people)[1]]
        cos = (P @ P.T)[..., None]
        shade = np.clip(cos, 0, 1)
        color = np.where(cos > margin, shade * ORANGE + (1 - shade) * 255, 255 - 110 * shade)
        return _enlarged(color.astype(np.uint8), 15)

    def _table(self, book, people) -> np.ndarray:
        """Masks of every class [rows] at every prototype [columns, grouped by the class each
        answers to].
        """
        codes, (answers, order) = book.codes(people.features).numpy(), self._answers(book, people)
        count = np.zeros((self.CLASSES, self.PROTOTYPES))
        np.add.at(count, (people.classes, codes), 1)
        right = answers[None] == np.arange(self.CLASSES)[:, None]
        color = np.where(right[..., None], GREEN, ORANGE).astype(float)
        shade = np.sqrt(count / self.VIEWS)[..., None]
        return _enlarged((shade * color + (1 - shade) * 245)[:, order].astype(np.uint8), 15, 30)


# ----------------------------------------------------------------- queries


class QueryExplorer(Explorer):
    """Ask in any view, held-out ones too: relevancy, the level that answers, and the mask above a
    threshold.
    """

    title = "Query explorer"
    width = 270

    def __init__(self, run: Run, text: str, views: Sequence[View] | None = None):
        self.run, self.views = run, {v.name: v for v in views or run.scene.views}
        self.images = _photographs(self.views.values())
        for name in progress(list(self.views), "decoding views"):
            run.codes(name)
        super().__init__(
            view=_view_slider(self.views),
            text=_text_box(text),
            level=_level_buttons("auto", "auto"),
            threshold=_threshold(),
        )

    def draw(self, view: str, text: str, level: str, threshold: float) -> Drawing:
        chosen = None if level == "auto" else level
        found = self.run.answer(view, text, threshold=threshold, level=chosen)
        image, relevancy = self.images[view], found.relevancy[found.level]
        name, other = LEVELS[found.level], LEVELS[1 - found.level]
        held_out = ", held out" if view in self.run.scene.held_out else ""
        answer = _uint8(highlight(image, found.mask))
        panels = [
            (f"{view}{held_out}", image),
            (f"relevancy of “{text}”, level {name} (dark 0, bright 1)", _heat(image, relevancy)),
            (f"answer: {found.mask.sum():,} px above the threshold", answer),
        ]
        note = (
            f"Highest relevancy {relevancy.max():.2f} at level {name},"
            f" {found.relevancy[1 - found.level].max():.2f} at {other}."
        )
        return Drawing(panels, _about(self.run, text, note))


class SideBySide(Explorer):
    """The same view and text with two codebooks: codes as colours on one basis, and what each
    answers. Before any field.
    """

    title = "With and without CCL"
    width = 270

    def __init__(
        self, run: Run, other: Run, text: str, names: tuple[str, str] = ("with CCL", "without CCL")
    ):
        self.runs, self.names = (other, run), names[::-1]
        self.views = {v.name: v for v in run.scene.training_views}
        self.images = _photographs(self.views.values())
        self.maps = {
            (n, v): r.index_maps(v) for n, r in zip(self.names, self.runs) for v in self.views
        }
        prototypes = {
            (n, level): b.prototypes.numpy()
            for n, r in zip(self.names, self.runs)
            for level, b in r.codebooks().items()
        }
        self.colors = {}
        for level in LEVELS:
            basis = ColorBasis(np.concatenate([prototypes[n, level] for n in self.names]))
            self.colors |= {(n, level): basis(prototypes[n, level]) for n in self.names}
        super().__init__(
            view=_view_slider(self.views),
            text=_text_box(text),
            level=_level_buttons("wp"),
            threshold=_threshold(),
        )

    def draw(self, view: str, text: str, level: str, threshold: float) -> Drawing:
        image, maps, masks, counts, answers = self.images[view], [], [], [], []
        for name, run in zip(self.names, self.runs):
            codes = self.maps[name, view]
            found = run.answer(view, text, threshold=threshold, level=level, code_maps=codes)
            answers.append(found.mask)
            own = codes[LEVELS.index(level)]
            painted = _uint8(map_of(own, self.colors[name, level]))
            maps.append((f"{name}: prototypes as colours", painted))
            answer = _uint8(highlight(image, found.mask))
            masks.append((f"{name}: “{text}”, {found.mask.sum():,} px", answer))
            counts.append(f"{len(np.unique(own[own >= 0]))} {name}")
        note = (
            f"{view}, level {level}: prototypes in this view: {', '.join(counts)}. Index maps of"
            " the masks, before any field."
        )
        first, second = answers
        only, added = _tinted(image, first & ~second, VERMILION), second & ~first
        only[added] = (0.5 * image[added] + 0.5 * np.array(BLUE)).astype(np.uint8)
        difference = (f"orange: only {self.names[0]}; blue: only {self.names[1]}", only)
        return Drawing([(view, image), *maps, difference, *masks], _about(self.runs[1], text, note))


# ----------------------------------------------------------------- controls and pixels

_WIDE = {"layout": {"width": "330px"}, "style": {"description_width": "80px"}}


def _view_slider(views: Mapping[str, View]) -> ipywidgets.SelectionSlider:
    return ipywidgets.SelectionSlider(options=list(views), description="view", **_WIDE)


def _level_buttons(value: str, *more: str) -> ipywidgets.ToggleButtons:
    return ipywidgets.ToggleButtons(
        options=[*more, *LEVELS],
        value=value,
        description="level",
        style={"button_width": "60px", "description_width": "80px"},
    )


def _text_box(text: str) -> ipywidgets.Text:
    return ipywidgets.Text(text, description="text", continuous_update=False, **_WIDE)


def _share_slider(value: float, most: float, name: str) -> ipywidgets.FloatSlider:
    look = {"description": name, "readout_format": ".2f", **_WIDE}
    return ipywidgets.FloatSlider(value, min=0, max=most, step=0.05, **look)


def _threshold() -> ipywidgets.FloatSlider:
    return _share_slider(0.4, 0.95, "threshold")


def _about(run: Run, text: str, note: str) -> str:
    unknown = ", ".join(map(repr, run.front_end.encoder.unknown_words(text)))
    if not unknown:
        return note
    return f"{note} {run.front_end.label} has never seen {unknown}: its answer is a guess."


def _photographs(views) -> dict[str, np.ndarray]:
    return {v.name: v.image() for v in views}


def _as_html(title: str, picture: np.ndarray) -> str:
    """A titled picture; JPEG, since it is made and sent while a slider moves."""
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 92])
    src, title = base64.b64encode(data).decode(), html.escape(title, quote=True)
    return (
        f'<figure style="margin:0"><img alt="{title}" draggable="false"'
        f' style="width:100%;display:block" src="data:image/jpeg;base64,{src}"><figcaption'
        f' style="line-height:1.25">{title}</figcaption></figure>'
    )


def _uint8(picture: np.ndarray) -> np.ndarray:  # [H, W, 3] in 0..1
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def _with_point(picture: np.ndarray, x: int, y: int) -> np.ndarray:
    out = picture.copy()
    r = max(3, picture.shape[1] // 80)
    cv2.circle(out, (x, y), r, (0, 0, 0), -1, cv2.LINE_AA)
    cv2.circle(out, (x, y), r - 1, (255, 255, 255), -1, cv2.LINE_AA)
    cv2.circle(out, (x, y), max(1, r - 2), VERMILION, -1, cv2.LINE_AA)
    return out


def _tinted(image: np.ndarray, mask: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """A photograph turned dim and grey with a mask in colour."""
    out = (_grey(image) * 0.45 + 35).astype(np.uint8)
    out[mask] = (0.5 * image[mask] + 0.5 * np.array(color)).astype(np.uint8)
    return out


def _outlined(picture: np.ndarray, mask: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    edges, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(picture.copy(), edges, -1, color, 2)


def _heat(image: np.ndarray, values: np.ndarray) -> np.ndarray:  # values [H, W] in 0..1
    table = (colormaps["inferno"](np.arange(256))[:, :3] * 255 + 0.5).astype(np.uint8)
    colored = table[(np.clip(values, 0, 1) * 255).astype(np.uint8)]
    return (0.35 * _grey(image) + 0.65 * colored).astype(np.uint8)


def _grey(image: np.ndarray) -> np.ndarray:  # [H, W, 3] uint8
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def _enlarged(picture: np.ndarray, across: int, down: int | None = None) -> np.ndarray:
    return picture.repeat(down or across, 0).repeat(across, 1)


def _bars(counts: np.ndarray, chosen: int, size: tuple[int, int] = (300, 220)) -> np.ndarray:
    """Bars of counts as a picture, one of them in orange; the tallest fills it."""
    w, h = size
    out = np.full((h, w, 3), 255, np.uint8)
    edges = np.linspace(4, w - 4, len(counts) + 1).astype(int)
    for i, n in enumerate(counts):
        top = h - 4 - int(round((h - 12) * n / max(1, counts.max())))
        right = max(edges[i] + 1, edges[i + 1] - 1)
        out[top : h - 4, edges[i] : right] = BLUE if i != chosen else ORANGE
    # a prototype without masks has no bar
    right = max(edges[chosen] + 2, edges[chosen + 1])
    out[h - 4 : h - 2, edges[chosen] : right] = ORANGE
    return out


def _thumbnail(image: np.ndarray, mask: np.ndarray, box: Sequence[int]) -> np.ndarray:
    """The box of a mask with a margin as a square picture [THUMB, THUMB, 3] uint8, everything
    outside the mask faded.
    """
    x0, y0, x1, y1 = (int(v) for v in box)
    half = 0.56 * max(x1 - x0 + 1, y1 - y0 + 1)
    cx, cy, scale = (x0 + x1 + 1) / 2, (y0 + y1 + 1) / 2, THUMB / (2 * half)
    move = np.array([[scale, 0, THUMB / 2 - scale * cx], [0, scale, THUMB / 2 - scale * cy]])
    x0, y0 = max(0, int(cx - half) - 2), max(0, int(cy - half) - 2)
    x1, y1 = min(image.shape[1], int(cx + half) + 3), min(image.shape[0], int(cy + half) + 3)
    part = image[y0:y1, x0:x1]
    faded = (0.25 * part + 180).astype(np.uint8)
    part = np.where(mask[y0:y1, x0:x1, None], part, faded)
    move[:, 2] += move[:, :2] @ (x0, y0)
    smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    white = (255, 255, 255)
    return cv2.warpAffine(part, move, (THUMB, THUMB), flags=smooth, borderValue=white)


def _padded(thumbs: np.ndarray, n: int) -> np.ndarray:
    return np.concatenate([thumbs, np.full((n - len(thumbs), THUMB, THUMB, 3), 255, np.uint8)])


def _montage(thumbs: np.ndarray, columns: int) -> np.ndarray:
    """Thumbnails [n, THUMB, THUMB, 3] side by side with thin white gaps, in at least three rows."""
    rows, side = max(3, -(-len(thumbs) // columns)), THUMB + 4
    cells = _padded(thumbs, rows * columns).reshape(rows, columns, THUMB, THUMB, 3)
    cells = np.pad(cells, ((0, 0), (0, 0), (2, 2), (2, 2), (0, 0)), constant_values=255)
    picture = cells.transpose(0, 2, 1, 3, 4).reshape(rows * side, columns * side, 3)
    return np.ascontiguousarray(picture)


def _one_per_view(rows: np.ndarray, view_of: np.ndarray, n: int) -> np.ndarray:
    """Up to n of the rows, from as many views as there are, in order; then further ones."""
    _, first = np.unique(view_of[rows], return_index=True)
    rest = np.setdiff1d(np.arange(len(rows)), first)
    return rows[np.sort(np.concatenate([spread(sorted(first.tolist()), n), rest])[:n].astype(int))]


class Playground:
    """All explorers on one scene, made once."""

    def __init__(self, run: Run, text: str):
        without = run.vary(codebook__lambda_pull=0.0, codebook__lambda_push=0.0)
        self.masks, self.tracks = MaskExplorer(run), TrackBrowser(run)
        self.codebook, self.ccl = CodebookExplorer(run), LiveCCL(run)
        self.query, self.sides = QueryExplorer(run, text), SideBySide(run, without, text)

    @property
    def explorers(self) -> list[Explorer]:
        return [self.masks, self.tracks, self.codebook, self.ccl, self.query, self.sides]
