"""All benchmarks by name, in the order of the table that sums them up."""

from __future__ import annotations

import json
from pathlib import Path

from cclkit.errors import ArtefactError
from cclkit.notebook.tables import markdown_table

from .base import Benchmark
from .codebook import Codebook
from .explorers import Widgets
from .field import Field, FieldSize
from .masks import MaskNms
from .modes import Modes
from .propagation import Propagation
from .query import Query
from .rasterising import Rasterize

BENCHMARKS: dict[str, type[Benchmark]] = {
    b.name: b
    for b in (
        Rasterize,
        MaskNms,
        Propagation,
        Codebook,
        Field,
        Modes,
        FieldSize,
        Query,
        Widgets,
    )
}


def summary(folder: Path) -> str:
    """One table of the benchmarks whose ``bench_NAME.json`` the folder holds.

    Raises ArtefactError for files that are no results of theirs.
    """
    rows, threads = [], set()
    for name, benchmark in BENCHMARKS.items():
        path = Path(folder) / f"bench_{name}.json"
        if not path.is_file():
            continue
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            rows += benchmark.summarise(result)
            threads.add(result["threads"])
        except (OSError, ValueError, LookupError, TypeError) as e:
            raise ArtefactError(
                f"{path}: no result of `python -m lab bench {name}` ({type(e).__name__}: {e}); run"
                f" it again with --json {path}"
            ) from e
    caption = (
        f"Measured on the CPU with {' or '.join(str(t) for t in sorted(threads, key=str))} threads;"
        " sizes, medians and whole curves stand in the tables of the single benchmarks. Aim: what"
        " we wanted."
    )
    return f"{caption}\n\n" + markdown_table(["what", "measured", "aim"], rows)
