"""All that is bundled or can be fetched: what of it is here, and as a table."""

from __future__ import annotations

import os

from ..errors import DataError
from ..places import data_root
from .bundled import bundled_items
from .checks import Item, check, look
from .registry import entries, near


def status(root: str | os.PathLike | None = None) -> list[Item]:
    """Everything bundled and everything that can be fetched, by names and sizes."""
    where = data_root(root)
    return [*bundled_items(thorough=False), *(look(e, where) for e in entries().values())]


def verify_digests(
    names: list[str] | None = None, root: str | os.PathLike | None = None
) -> list[Item]:
    """The same (or the named ones) with every digest computed again. Raises DataError for an
    unknown name.

    "tabletop" and "models" stand for all bundled scenes and weights.
    """
    where = data_root(root)
    known = [*(i.name for i in bundled_items(thorough=False)), *entries()]
    for name in names or ():
        if not any(name in (k, k.partition("/")[0]) for k in known):
            raise DataError(
                f"nothing called {name!r} can be verified{near(name, known)}; known names:"
                f" {', '.join(known)}"
            )
    wanted = lambda name: not names or name in names or name.partition("/")[0] in names
    return [
        *bundled_items(thorough=True, wanted=wanted),
        *(check(e, where) for n, e in entries().items() if wanted(n)),
    ]


def as_text(items: list[Item]) -> str:
    """A table of items; under those that are not here, what that blocks and what still runs."""
    width = max((len(i.name) for i in items), default=0)
    lines = []
    for i, following in zip(items, [*items[1:], None]):
        lines.append(f"{i.name:{width}}  {i.state:10}  {i.size:>14}  {i.licence}".rstrip())
        if i.detail:
            lines.append(f"{'':{width}}  {i.detail}")
        same = following is not None and (following.state, following.blocks, following.without) == (
            i.state,
            i.blocks,
            i.without,
        )
        if i.state != "here" and not same:
            lines.append(f"{'':{width}}  blocks: {i.blocks}; still runs: {i.without}")
    return "\n".join(lines)
