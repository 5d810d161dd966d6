"""What a protocol is: what it asks of a field, how it scores a view, how scores are averaged.

Each stands in the file of its family; `protocols` has the table of all.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import EvaluationError
from ..method.query import CANONICAL, SCALE, QueryConfig, code_relevancy
from ..scenes.scene import LabelledObject

if TYPE_CHECKING:
    from .protocols import EvaluationConfig

Maps = np.ndarray | torch.Tensor
"""A row per text: relevancy of every level [P, L, H, W], or pictures [P, H, W]."""

Rule = Callable[[torch.Tensor, np.ndarray, np.ndarray], torch.Tensor]
"""(prototypes [N, d], codes [...], texts [P, d]) -> scores [P, ...]; see `query.code_relevancy`."""


class Reader(typing.Protocol):
    """What a protocol may ask of a field. Views go by name, never by position."""

    @property
    def query(self) -> QueryConfig:
        """The run's own query settings."""

    def text_vectors(self, texts: Sequence[str]) -> np.ndarray:  # [P, d]
        """Unit vectors of texts."""

    def look_up(self, rule: Rule, view: str, texts: Sequence[str]) -> torch.Tensor:
        """Scores [P, L, H, W] of a rule, at every level, for the codes of a view."""

    def silhouettes(self, view: str, texts: Sequence[str]) -> np.ndarray:
        """Pictures [P, H, W] uint8 of the Gaussians that a text selects, and of no others."""


Scored = list[tuple[dict[str, Any], np.ndarray]]
"""Of each unit of a view, in order: columns of its row, and the mask [H, W] bool that was answered.
"iou" is one that every protocol has (NaN where it is undefined), "hit" and "accuracy" are known,
others are named in `Protocol.means`.
"""


@dataclass(frozen=True)
class Protocol:
    """One protocol.

    ``asks``, ``score`` and ``constants`` must be functions of a module: the code of its file, and
    of all that it imports, counts for the artefact keys of evaluations. Raises EvaluationError for
    anything else that can be called.
    """

    what: str  # what is scored, in a few words
    asks: Callable[[Reader, str, Sequence[str]], Maps]  # of a field, for a view and texts
    score: Callable[[Maps, Sequence[LabelledObject], EvaluationConfig], Scored]
    constants: Callable[[EvaluationConfig], dict]  # what made the numbers, for the results file
    query: tuple[str, ...] = ()  # names of the query settings that it reads
    means: tuple[str, ...] = ()  # columns that are averaged beside IoU and accuracy
    boxes: bool = False  # asks whether points lie in the boxes of the ground truth
    classes: bool = False  # every pixel must have a class, background included: 3D-OVS class masks
    absent: bool = False  # a class that a view does not show counts there
    foreground: int = 255  # how class mask pictures are read; see truth.units_of
    centres: bool = True
    # the published mean: over all "units", or over the units of a view and then over "views"
    over: str = "units"

    def __post_init__(self):
        for f in self.code:
            if not hasattr(f, "__qualname__") or hasattr(f, "__self__"):
                raise EvaluationError(
                    f"a protocol's functions: found {f!r}, expected one that is defined in a"
                    " module, whose code artefact keys can count; write it with def or lambda"
                )
            _captured(f)

    @property
    def code(self) -> tuple[Callable, ...]:
        """The functions whose code makes its numbers."""
        return self.asks, self.score, self.constants

    def settings(self, config: EvaluationConfig) -> dict:
        """All else that makes its numbers, as JSON can hold it."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "what"}
        plain = {k: v for k, v in plain.items() if not callable(v)}
        captured = [_captured(f) for f in self.code]
        return plain | {"constants": self.constants(config), "captured": captured}


def _captured(f: Callable) -> list:
    """What a function made by another captured, as JSON can hold it: it counts for keys too.

    Raises EvaluationError for anything but numbers, texts, dataclasses and functions.
    """
    found = []
    for name, cell in zip(f.__code__.co_freevars, f.__closure__ or ()):
        value = cell.cell_contents
        if is_dataclass(value) and not isinstance(value, type):
            value = repr(value)
        elif hasattr(value, "__code__"):
            value = [value.__module__, value.__qualname__, _captured(value)]
        elif not isinstance(value, (bool, int, float, str, type(None), list, tuple, dict)):
            raise EvaluationError(
                f"a protocol's functions: {f.__qualname__} captures {name}={value!r}, which"
                " artefact keys cannot count; capture numbers, texts, dataclasses or functions"
            )
        found.append([name, value])
    return found


PAIRWISE = {"scale": SCALE, "canonical": list(CANONICAL)}
"""Constants of `pairwise`."""


def pairwise(reader: Reader, view: str, texts: Sequence[str]) -> torch.Tensor:  # [P, L, H, W]
    """Asks for LERF's pairwise relevancy, with LERF's scale and canonical phrases whatever the
    run's settings are: what most protocols score.
    """
    canonical = reader.text_vectors(CANONICAL)
    return reader.look_up(lambda T, c, text: code_relevancy(T, c, text, canonical), view, texts)


@contextmanager
def naming(unit: LabelledObject) -> Iterator[None]:
    """Put the query's name before an EvaluationError that is raised inside."""
    try:
        yield
    except EvaluationError as e:
        raise EvaluationError(f"query {unit.category!r}: {e}") from e
