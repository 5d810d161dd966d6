"""A simulated front end for controlled experiments: ground truth with dialled-in imperfection.

Nothing here is a model and no result made with it is a result about SAM, SAM2 or CLIP; everything
drawn from it says "simulated". It exists because imperfection can be turned up and down one kind at
a time. What it imitates of CLIP is what makes view-consistent codes hard: crops of different
objects are all alike, and the feature of an incomplete mask moves *towards another class*
(independent noise would average away in any codebook).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import cv2
import numpy as np

from ..errors import SceneError
from ..method.interfaces import Candidates
from ..scenes.scene import GRANULARITIES, Scene, View
from ..settings import NOT_NEGATIVE, POSITIVE, SHARE, as_dict
from .roles import Model, Setup

GENERIC = ("object", "things", "stuff", "texture")
"""Words that fit every crop a little: nothing of their own, as LERF's canonical phrases."""


@dataclass(frozen=True)
class SimulationConfig:
    """The simulated front end: ground truth with dialled-in imperfection (no counterpart in the
    paper).
    """

    seed: int = 0
    """Seed of all simulated imperfections. They belong to the data, so they do not follow the run's
    seed.
    """
    incomplete_rate: Annotated[float, SHARE] = 0.35
    """Share of masks that lose a piece, as SAM's do under occlusion or on parts that differ in
    colour.
    """
    incomplete_cut: Annotated[float, SHARE] = 0.55
    """Largest share of its area that an incomplete mask loses (drawn uniformly from 0.15 up to
    this).
    """
    split_rate: Annotated[float, SHARE] = 0.05
    """Share of masks that are cut into two masks."""
    merge_rate: Annotated[float, SHARE] = 0.03
    """Share of masks that swallow a touching neighbour."""
    missing_rate: Annotated[float, SHARE] = 0.05
    """Share of masks that are not found in a view."""
    jitter_px: Annotated[int, NOT_NEGATIVE] = 1
    """Boundary jitter: a mask is dilated or eroded by up to this many pixels."""
    min_area_px: Annotated[int, NOT_NEGATIVE] = 30
    """Regions smaller than this are not segmented at all."""
    track_loss_rate: Annotated[float, SHARE] = 0.10
    """Chance per view that the propagator loses an object in that view."""
    dim: Annotated[int, POSITIVE] = 64
    """Dimension of the simulated features (CLIP ViT-B/16 has 512)."""
    between_object_cosine: Annotated[float, SHARE] = 0.6
    """Mean cosine between features of different objects, 0–0.8. CLIP crops are all alike, and the
    push margin is 0.7.
    """
    hierarchy: Annotated[float, SHARE] = 0.35
    """Share of a part's own direction that it takes from its whole, so that a part is nearer its
    whole than others.
    """
    confuser_drift: Annotated[float, NOT_NEGATIVE] = 1.0
    """How far a mask that is half missing moves from its own class (0) towards a confuser class (1:
    midway and beyond).
    """
    feature_noise: Annotated[float, NOT_NEGATIVE] = 0.25
    """Length of the independent per-mask noise added to a unit feature."""
    text_gap: Annotated[float, NOT_NEGATIVE] = 0.5
    """Length of the constant offset between text and image features (CLIP's modality gap)."""
    text_noise: Annotated[float, NOT_NEGATIVE] = 0.15
    """Length of the per-phrase deviation of a text from the class it names."""


def seeded(*parts: object) -> np.random.Generator:
    """A generator that depends on its arguments only, the same on every machine and in any order of
    calls.
    """
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


class SimulatedWorld:
    """Ground truth of a scene, and the direction that each region and phrase has in
    feature space.
    """

    def __init__(self, scene: Scene, config: SimulationConfig):
        if scene.ground_truth is None:
            raise SceneError(
                f"{scene.path}: the simulated front end needs ground truth ids, the scene has none;"
                " add instances/<view>.png with instances/classes.json, or use a scene that has"
                " ground_truth/"
            )
        self.scene, self.config, self.truth = scene, config, scene.ground_truth
        self.space = FeatureSpace(config)
        self.directions: dict[int, np.ndarray] = {}
        things = sorted(i for i in self.truth.names if i not in self.truth.stuff)
        # each class gets one fixed confuser of its own depth: what its broken masks look like
        depth = {i: self._depth(i) for i in self.truth.names}
        rng = seeded(config.seed, "confusers")
        self.confuser: dict[int, int] = {}
        for level in sorted(set(depth.values())):
            peers = [i for i in things if depth[i] == level]
            order = list(rng.permutation(peers)) if peers else []
            for a, b in zip(order, order[1:] + order[:1]):
                self.confuser[int(a)] = int(b)
        self._cache: dict[str, tuple[dict[str, np.ndarray], dict[int, int]]] = {}

    def _depth(self, i: int) -> int:
        parent = self.truth.parents.get(i)
        return 0 if parent is None else 1 + self._depth(parent)

    def direction(self, i: int) -> np.ndarray:
        """What is particular to a region, without what all share: [d], unit."""
        if i not in self.directions:
            own = self.space.words(self.truth.names[i])
            parent = self.truth.parents.get(i)
            if parent is not None:
                h = self.config.hierarchy
                own = unit(np.sqrt(1 - h) * own + np.sqrt(h) * self.direction(parent))
            self.directions[i] = own
        return self.directions[i]

    def regions(self, view: View) -> tuple[dict[str, np.ndarray], dict[int, int]]:
        """Id maps of a view by granularity, and the area of every visible id."""
        if view.name not in self._cache:
            if len(self._cache) > 4:  # propagation and encoding visit views in order: a few suffice
                self._cache.pop(next(iter(self._cache)))
            maps = {g: self.truth.ids(view, g) for g in GRANULARITIES}
            area: dict[int, int] = {}
            for m in maps.values():
                ids, n = np.unique(m[m > 0], return_counts=True)
                for i, k in zip(ids.tolist(), n.tolist()):
                    area[i] = max(area.get(i, 0), k)
            self._cache[view.name] = maps, area
        return self._cache[view.name]

    def match(self, view: View, mask: np.ndarray) -> tuple[int, float]:
        """The visible region with the largest IoU with a mask [H, W], and that IoU; (0, 0.0) if
        none overlaps.
        """
        maps, area = self.regions(view)
        best, best_iou, size = 0, 0.0, int(mask.sum())
        for m in maps.values():
            ids, n = np.unique(m[mask], return_counts=True)
            for i, inter in zip(ids.tolist(), n.tolist()):
                iou = inter / (size + area[i] - inter) if i else 0.0
                if iou > best_iou:
                    best, best_iou = i, iou
        return best, best_iou


class FeatureSpace:
    """Directions of words, of what all crops share, and of the gap between texts and images."""

    def __init__(self, config: SimulationConfig):
        self.config = config
        self.shared = unit(seeded(config.seed, "shared").standard_normal(config.dim))
        self.gap = unit(seeded(config.seed, "gap").standard_normal(config.dim))

    def words(self, name: str) -> np.ndarray:  # [d], unit
        """Direction of a name: its words' directions added up, so "red apple" and "green apple" are
        relatives.
        """
        words = re.findall(r"[a-z0-9]+", name.lower()) or [name]
        return unit(
            sum(seeded(self.config.seed, "word", w).standard_normal(self.config.dim) for w in words)
        )

    def image(self, direction: np.ndarray) -> np.ndarray:  # [d], unit
        """Feature of a perfect crop: what all crops share, plus what is particular to this one
        (zero: nothing is).
        """
        c = self.config.between_object_cosine
        return unit(np.sqrt(c) * self.shared + np.sqrt(1 - c) * direction)

    def text(self, phrase: str, direction: np.ndarray) -> np.ndarray:  # [d], unit
        """Feature of a phrase with this direction: beyond the gap, plus noise of its own."""
        noise = unit(seeded(self.config.seed, "phrase", phrase).standard_normal(self.config.dim))
        return unit(
            self.image(direction) + self.config.text_gap * self.gap + self.config.text_noise * noise
        )

    def drifted(
        self, own: np.ndarray, confuser: np.ndarray, missing: float, rng: np.random.Generator
    ) -> np.ndarray:
        """Feature [d] of a crop of which a share ``missing`` is gone: pulled towards the confuser,
        plus noise.
        """
        toward = min(self.config.confuser_drift * missing, 1.0)
        noise = unit(rng.standard_normal(self.config.dim))
        return unit(
            (1 - toward) * self.image(own)
            + toward * self.image(confuser)
            + self.config.feature_noise * noise
        )


class SimulatedMasks:
    """SAM's role: every visible region at each granularity, more or less well segmented."""

    def __init__(self, world: SimulatedWorld):
        self.world = world

    def propose(self, view: View) -> Candidates:
        c = self.world.config
        maps, _ = self.world.regions(view)
        masks, outputs, ious, stabilities = [], [], [], []
        for output, granularity in enumerate(GRANULARITIES):
            m = maps[granularity]
            for i in np.unique(m[m > 0]).tolist():
                # not seeded by granularity: of an object without parts, SAM's outputs find one mask
                rng = seeded(c.seed, "mask", view.name, i)
                region = m == i
                if region.sum() < c.min_area_px or rng.random() < c.missing_rate:
                    continue
                for mask in self._imperfect(region, m, i, rng):
                    if mask.sum() >= c.min_area_px:
                        masks.append(mask)
                        outputs.append(output)
                        # scores don't tell good masks from bad: SAM is sure of broken ones too
                        ious.append(rng.uniform(0.86, 0.99))
                        stabilities.append(rng.uniform(0.90, 0.99))
        shape = (0, view.camera.height, view.camera.width)
        return Candidates(
            np.stack(masks) if masks else np.zeros(shape, bool),
            np.array(outputs, np.int64),
            np.array(ious, np.float64),
            np.array(stabilities, np.float64),
        )

    def _imperfect(
        self, region: np.ndarray, m: np.ndarray, i: int, rng: np.random.Generator
    ) -> list[np.ndarray]:
        """One region [H, W] -> the masks found for it (one, or two when it is split)."""
        c = self.world.config
        kind = rng.random()
        if kind < c.split_rate:
            first = cut(region, rng.uniform(0.35, 0.65), rng)
            pieces = [first, region & ~first]
        elif kind < c.split_rate + c.merge_rate:
            grown = cv2.dilate(region.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
            ring = grown & ~region
            near = np.unique(m[ring])
            near = near[(near > 0) & (near != i)]
            pieces = [region | (m == rng.choice(near))] if len(near) else [region]
        elif kind < c.split_rate + c.merge_rate + c.incomplete_rate:
            pieces = [cut(region, 1 - rng.uniform(0.15, max(0.15, c.incomplete_cut)), rng)]
        else:
            pieces = [region]
        return [jitter(p, c.jitter_px, rng) for p in pieces]


class SimulatedPropagation:
    """SAM2's role: the region a mask stands for, in every view where it is visible,
    sometimes lost.
    """

    def __init__(self, world: SimulatedWorld):
        self.world = world

    def propagate(
        self, views: Sequence[View], masks: np.ndarray, keep=None
    ) -> Iterator[tuple[View, np.ndarray]]:
        c = self.world.config
        ids = [self.world.match(views[0], m)[0] for m in masks]
        for n, view in enumerate(views):
            if n == 0:
                yield view, masks
                continue
            out = np.zeros((len(masks), view.camera.height, view.camera.width), bool)
            maps, _ = self.world.regions(view)
            for k, i in enumerate(ids):
                rng = seeded(c.seed, "track", view.name, k, i)
                if i == 0 or rng.random() < c.track_loss_rate:
                    continue
                region = np.zeros(out.shape[1:], bool)
                for m in maps.values():  # an id stands in several where there are no finer parts
                    region |= m == i
                if region.any():
                    out[k] = jitter(region, c.jitter_px, rng)
            yield view, out


class SimulatedEncoder:
    """CLIP's role: a feature that depends on which region a mask covers and how much of it is
    missing.
    """

    def __init__(self, world: SimulatedWorld):
        self.world, self.dim = world, world.config.dim

    def encode_masks(self, view: View, masks: np.ndarray) -> np.ndarray:
        out = np.zeros((len(masks), self.dim), np.float32)
        for n, mask in enumerate(masks):
            i, iou = self.world.match(view, mask)
            rng = seeded(
                self.world.config.seed,
                "feature",
                view.name,
                hashlib.sha256(np.packbits(mask).tobytes()).hexdigest(),
            )
            if i == 0:  # covers no labelled region: a crop of nothing in particular
                direction = unit(rng.standard_normal(self.dim))
                out[n] = self.world.space.drifted(direction, direction, 0.0, rng)
                continue
            own = self.world.direction(i)
            other = (
                self.world.direction(self.world.confuser[i]) if i in self.world.confuser else own
            )
            out[n] = self.world.space.drifted(own, other, 1 - iou, rng)
        return out

    def encode_text(self, phrases: Sequence[str]) -> np.ndarray:
        named: dict[str, list[int]] = {}
        for i, name in self.world.truth.names.items():
            named.setdefault(name.lower(), []).append(i)
        for q in self.world.truth.queries:
            named[q["text"].lower()] = list(q["ids"])
        out = np.zeros((len(phrases), self.dim), np.float32)
        for n, phrase in enumerate(phrases):
            ids = named.get(phrase.lower())
            if phrase.lower() in GENERIC:
                direction = np.zeros(self.dim)
            elif ids:
                direction = unit(sum(self.world.direction(i) for i in ids))
            else:
                direction = self.world.space.words(phrase)
            out[n] = self.world.space.text(phrase, direction)
        return out

    def unknown_words(self, phrase: str) -> list[str]:
        texts = [*self.world.truth.names.values(), *(q["text"] for q in self.world.truth.queries)]
        known = {w for text in texts for w in text.lower().split()}
        return [w for w in phrase.lower().split() if w not in known]


def cut(region: np.ndarray, keep: float, rng: np.random.Generator) -> np.ndarray:
    """The share ``keep`` of a region [H, W] that lies on one side of a straight line in a random
    direction.
    """
    y, x = np.nonzero(region)
    angle = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    order = np.argsort(along, kind="stable")[: max(1, int(round(keep * len(y))))]
    out = np.zeros_like(region)
    out[y[order], x[order]] = True
    return out


def jitter(region: np.ndarray, pixels: int, rng: np.random.Generator) -> np.ndarray:
    """Grow or shrink a region [H, W] by up to ``pixels``; a shrunk region never vanishes."""
    n = int(rng.integers(-pixels, pixels + 1)) if pixels > 0 else 0
    if n == 0:
        return region.copy()
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * abs(n) + 1,) * 2)
    out = (cv2.dilate if n > 0 else cv2.erode)(region.astype(np.uint8), kernel).astype(bool)
    return out if out.any() else region.copy()


def unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v)


def _world(setup: Setup) -> SimulatedWorld:
    """The same one for all roles of a run."""
    if "simulated" not in setup.shared:
        setup.shared["simulated"] = SimulatedWorld(setup.scene, setup.settings.simulation)
    return setup.shared["simulated"]


def _settings(setup: Setup) -> dict:
    return as_dict(setup.settings.simulation)


def _masks(setup: Setup) -> SimulatedMasks:
    return SimulatedMasks(_world(setup))


def _tracks(setup: Setup) -> SimulatedPropagation:
    return SimulatedPropagation(_world(setup))


def _features(setup: Setup) -> SimulatedEncoder:
    return SimulatedEncoder(_world(setup))


PROPOSER = Model(_masks, lambda settings: "simulated masks", _settings, truth=True)
TRACKER = Model(_tracks, lambda settings: "simulated tracks", _settings, truth=True)
ENCODER = Model(_features, lambda settings: "simulated features", _settings, truth=True)
