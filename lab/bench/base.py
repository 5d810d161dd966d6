"""What a benchmark is: arguments, a measurement, and the words for it.

A benchmark is a frozen dataclass. Its fields are the arguments, with their defaults, and the
options of ``python -m lab bench NAME`` are made from them. ``measure`` gives a dictionary that JSON
can hold; ``describe`` and ``summarise`` put it into words. Timings compare machines and versions;
no test asserts one.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from abc import ABC, abstractmethod
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from cclkit.errors import ConfigError

T = TypeVar("T")


def option(default: Any, help: str = "", *, least: int = 1, choices: Sequence = ()) -> Any:
    """A field of a benchmark: its default, a word of help, the least number or the choices."""
    return dataclasses.field(
        default=default, metadata={"help": help, "least": least, "choices": choices}
    )


@dataclass(frozen=True)
class Benchmark(ABC):
    """One benchmark with its arguments. Making one raises ConfigError for a value out of range."""

    name: ClassVar[str]
    help: ClassVar[str]

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value, words = getattr(self, f.name), f.name.replace("_", " ")
            least, choices = f.metadata["least"], f.metadata["choices"]
            if choices and value not in choices:
                raise ConfigError(f"{words} {value}: expected {' or '.join(map(str, choices))}")
            if not choices and type(value) is int and value < least:
                raise ConfigError(f"{words} {value}: expected at least {least}")

    @abstractmethod
    def measure(self) -> dict:
        """Everything measured, beginning with {"benchmark": name, ...}; JSON can hold it."""

    @staticmethod
    @abstractmethod
    def describe(result: dict) -> str:
        """Caption and tables of a result, as Markdown."""

    @staticmethod
    @abstractmethod
    def summarise(result: dict) -> list[tuple[str, str, str]]:
        """What a visitor wants to know: (what, measured, what we wanted)."""

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        """An option of the command line for every field."""
        for f in dataclasses.fields(cls):
            flag, about = f"--{f.name.replace('_', '-')}", f.metadata["help"] or None
            if isinstance(f.default, bool):
                parser.add_argument(flag, action="store_true", help=about)
            else:
                parser.add_argument(
                    flag,
                    type=type(f.default),
                    default=f.default,
                    choices=f.metadata["choices"] or None,
                    help=about,
                )


def timed(f: Callable[[], T], repeats: int) -> tuple[float, T]:
    """Median seconds of ``repeats`` calls after one that warms up, and the last result."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        out = f()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]), out
