"""What a setting is: a typed field of a frozen dataclass, with its bounds beside it.

Each component keeps its settings in its own file. The string under a field says what it means and
where its value comes from: "paper: VALUE" for a published constant, "paper does not say (ours: …,
because …)" otherwise. Bounds and choices stand in the field's type:

    n_prototypes: Annotated[int, POSITIVE, at_most(2**16)] = 64
    update: Annotated[str, OneOf("adam", "ema")] = "adam"

What two settings forbid each other stands in a method ``check(self, prefix)`` of their class.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import math
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from .errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Bound:
    """What a value must be, and how a message says so."""

    fits: Callable[[Any], bool]
    wanted: str


POSITIVE = Bound(lambda v: v > 0, "a number above 0")
NOT_NEGATIVE = Bound(lambda v: v >= 0, "a number of at least 0")
SHARE = Bound(lambda v: 0 <= v <= 1, "a number in 0..1")
BELOW_ONE = Bound(lambda v: 0 <= v < 1, "a number of at least 0 and below 1")
BETAS = Bound(
    lambda v: len(v) == 2 and all(0 <= b < 1 for b in v),
    "two numbers in 0..1, e.g. (0.9, 0.999)",
)
WIDTHS = Bound(lambda v: all(w > 0 for w in v), "widths above 0, e.g. (64,)")
PHRASES = Bound(lambda v: bool(v) and all(p.strip() for p in v), "at least one phrase, none empty")


def at_most(most: int) -> Bound:
    """A bound from above."""
    return Bound(lambda v: v <= most, f"at most {most}")


def multiple_of(n: int) -> Bound:
    """A bound for sizes that a model takes in steps."""
    return Bound(lambda v: v > 0 and v % n == 0, f"a multiple of {n} above 0")


class OneOf:
    """A choice among names: ``OneOf("adam", "ema")``, or among the entries of a table.

    A table is looked at when a value is checked, so what was registered since counts. Names that
    are no entries, such as "auto", stand beside it: ``OneOf("auto", table=PROTOCOLS)``.
    """

    def __init__(self, *names: str, table: Collection[str] = ()):
        self.own, self.table = names, table

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in order."""
        return (*self.own, *self.table)


# ----------------------------------------------------------------- reading and changing


def describe(config: Any) -> list[tuple[str, Any, str]]:
    """Rows (dotted name, value, meaning) of every setting, in order; the meaning is the field's own
    docstring.
    """
    return [
        (name, getattr(node, field), _field_docs(type(node)).get(field, ""))
        for name, node, field in _leaves(config)
    ]


def as_dict(config: Any) -> dict[str, Any]:
    """Nested plain dict (tuples as lists), the form that is hashed and stored beside artefacts."""
    out = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            value = as_dict(value)
        elif isinstance(value, tuple):
            value = list(value)
        out[f.name] = value
    return out


def replaced(config: T, name: str, value: Any) -> T:
    """A copy with one dotted setting replaced, texts parsed to the field's type; not checked yet.

    Raises ConfigError for an unknown name or a value of another type.
    """
    return _replaced(config, config, name.split("."), value, name)


def check(config: Any) -> None:
    """Raise ConfigError for the first setting outside its bounds, naming what was expected."""
    for name, node, field in _leaves(config):
        _check_value(name, getattr(node, field), _hint(type(node), field))
    _check_together(config, "")


def parse_settings(pairs: list[str]) -> dict[str, str]:
    """``["codebook.margin=0.5"]`` -> ``{"codebook.margin": "0.5"}``.

    Raises ConfigError for a pair without a value.
    """
    out = {}
    for pair in pairs:
        name, sep, value = pair.partition("=")
        if not sep or not name:
            raise ConfigError(
                f"setting {pair!r} has no value; write it as NAME=VALUE, e.g. codebook.margin=0.5"
            )
        out[name.strip()] = value.strip()
    return out


def out_of_range(name: str, value: Any, wanted: str) -> ConfigError:
    """The error for a value outside its bounds."""
    return ConfigError(f"setting {name}={value!r} is out of range; expected {wanted}")


# ----------------------------------------------------------------- one value


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Dotted name, dataclass and field of every setting, in order."""
    for f in fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, config, f.name


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _hint(cls: type, field: str) -> Any:
    """The type of a field, with bounds and choices."""
    return _hints(cls)[field]


def _check_value(name: str, value: Any, hint: Any) -> None:
    if isinstance(value, int) and not isinstance(value, bool) and not 0 <= value < 2**31:
        raise out_of_range(name, value, f"a whole number in 0..{2**31 - 1}")
    if isinstance(value, float) and not abs(value) < 1e12:
        raise out_of_range(name, value, "a finite number")
    for rule in getattr(hint, "__metadata__", ()):
        if isinstance(rule, OneOf) and value not in rule.names:
            raise ConfigError(
                f"setting {name}={value!r} is unknown; use one of {', '.join(rule.names)}"
            )
        if isinstance(rule, Bound) and not rule.fits(value):
            raise out_of_range(name, value, rule.wanted)


def _check_together(config: Any, prefix: str) -> None:
    """What settings forbid each other: innermost first, since outer ones may read inner ones."""
    for f in fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            _check_together(value, f"{prefix}{f.name}.")
    if hasattr(config, "check"):
        config.check(prefix)


def _replaced(root: Any, node: Any, path: list[str], value: Any, full: str) -> Any:
    first, rest = path[0], path[1:]
    names = [f.name for f in fields(node)]
    if first not in names:
        raise _unknown(root, names, first, full)
    current = getattr(node, first)
    if dataclasses.is_dataclass(current):
        if not rest:
            inner = fields(current)[0].name
            raise ConfigError(
                f"setting {full!r} is a group; name one of its fields, e.g. {full}.{inner}"
            )
        return replace(node, **{first: _replaced(root, current, rest, value, full)})
    if rest:
        single = full.removesuffix("." + ".".join(rest))
        raise ConfigError(f"unknown setting {full!r}; {single!r} is a single value")
    return replace(node, **{first: _coerced(value, current, _hint(type(node), first), full)})


def _unknown(root: Any, names: list[str], name: str, full: str) -> ConfigError:
    """The error for a name that is none, with the nearest one that is."""
    every = [row[0] for row in _leaves(root)]
    near = difflib.get_close_matches(full, every, n=1, cutoff=0.5)
    near = near or difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    return ConfigError(
        f"unknown setting {full!r}; did you mean {near[0]!r}? `cclkit settings` lists all"
    )


def _coerced(value: Any, current: Any, hint: Any, name: str) -> Any:
    """`value` in the type of its field, so that a typo cannot change a type; a text is parsed."""
    if get_origin(hint) is Annotated:
        hint = hint.__origin__
    kind, parts = get_origin(hint) or hint, get_args(hint)  # tuple[int, ...]: tuple, (int, ...)
    expected = f"expected {kind.__name__} like {current!r}"
    if isinstance(value, str) and kind is not str:
        try:
            value = ast.literal_eval({"true": "True", "false": "False"}.get(value.lower(), value))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as e:
            raise ConfigError(f"setting {name}={value!r} cannot be read; {expected}") from e
    if kind is tuple:
        value = (value,) if isinstance(value, (int, float, str)) else value
        fits = isinstance(value, (tuple, list)) and all(_is(v, parts[0]) for v in value)
    else:
        fits = _is(value, kind)
    if not fits:
        raise ConfigError(f"setting {name}={value!r} has the wrong type; {expected}")
    if kind is float and abs(value) > sys.float_info.max:
        raise out_of_range(name, value, "a finite number")
    return kind(value)


def _is(value: Any, kind: type) -> bool:
    """Whether a value can stand for a type: a whole number for a float, too, but no NaN."""
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is float:
        return isinstance(value, int) or (isinstance(value, float) and not math.isnan(value))
    return isinstance(value, kind)


@functools.cache
def _field_docs(cls: type) -> dict[str, str]:
    """The string under each field of a dataclass, read from its source."""
    body = ast.parse(inspect.getsource(cls)).body[0].body
    docs = {}
    for a, b in zip(body, body[1:]):
        if isinstance(a, ast.AnnAssign) and isinstance(b, ast.Expr):
            if isinstance(b.value, ast.Constant):
                docs[a.target.id] = " ".join(str(b.value.value).split())
    return docs
