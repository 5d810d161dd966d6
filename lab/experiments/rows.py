"""Measured rows in a CSV file, each with the key of what it was measured with.

The file is written whole after every new row, so a stopped measurement goes on where it was: rows
that it holds with the same key are not measured again. `cclkit.notebook.measured` reads such files.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from cclkit.files import atomic_write
from cclkit.runs.store import Store

R = TypeVar("R")


@contextmanager
def resumed(
    path: Path, read: Callable[[Path], list[R]], key: Callable[[R], str]
) -> Iterator[dict[str, R]]:
    """The rows that the file holds, by key, while nobody else writes into its folder.

    Waits for another measurement that writes there: each would write the rows that it knows.
    """
    with Store(path.parent).lock(wait=True):
        yield {key(row): row for row in read(path)} if path.exists() else {}


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Replace the file; numbers under "miou" have four digits."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(columns)
    for row in rows:
        out.writerow([f"{v:.4f}" if c == "miou" else v for c, v in zip(columns, row)])
    atomic_write(path, text.getvalue().encode())
