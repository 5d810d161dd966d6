"""Results as text: one place that turns evaluations into tables for the terminal, notebooks and
README.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ArtefactError
from ..files import atomic_write

if TYPE_CHECKING:
    from ..runs.run import Run


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, columns padded; numbers (all but the first column) to the right."""
    cells = [list(header)] + [[_text(c) for c in row] for row in rows]
    width = [max(3, *(len(r[i]) for r in cells)) for i in range(len(header))]
    right = [
        all(_is_number(r[i]) for r in cells[1:]) and len(cells) > 1 for i in range(len(header))
    ]

    def line(row):
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, width, right)]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (w - 1) + (":" if r else "-") for w, r in zip(width, right)]
    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])


def save_table(
    folder: Path, name: str, header: Sequence[str], rows: Sequence[Sequence[object]], caption: str
) -> str:
    """Write ``name.md`` (with caption) and ``name.csv`` into a folder; returns the table."""
    table = markdown_table(header, rows)
    atomic_write(folder / f"{name}.md", f"{caption}\n\n{table}\n".encode())
    csv = "\n".join(",".join(_quoted(c) for c in row) for row in [header, *rows]) + "\n"
    atomic_write(folder / f"{name}.csv", csv.encode())
    return table


def query_rows(evaluation: dict) -> tuple[list[str], list[list[object]]]:
    """Header and rows per query: mean IoU over views, hits where the protocol has them, number of
    views.
    """
    rows: dict[str, list[dict]] = {}
    for r in evaluation["rows"]:
        rows.setdefault(r["query"], []).append(r)
    has_hits = all("hit" in r for r in evaluation["rows"])
    header = ["query", "views", "IoU %"] + (["hits"] if has_hits else [])
    out = []
    for query, rs in rows.items():
        ious = [r["iou"] for r in rs if r["iou"] == r["iou"]]
        row = [query, len(rs), 100 * sum(ious) / len(ious) if ious else float("nan")]
        out.append(row + ([f"{sum(bool(r['hit']) for r in rs)}/{len(rs)}"] if has_hits else []))
    return header, out


def scene_line(evaluation: dict) -> str:
    """The scene's aggregate in one line."""
    pooled = evaluation["aggregates"]["pooled"]
    text = f"mIoU {100 * pooled['miou']:.1f} % over {pooled['units']} units"
    if "accuracy" in pooled:
        text += f", accuracy {100 * pooled['accuracy']:.1f} %"
    return f"{text} (protocol {evaluation['protocol']})"


def evaluation_table(run: Run) -> str:
    """What `cclkit run` prints: a line per query, and the scene's with the front end named."""
    evaluation = run.evaluation()
    header, rows = query_rows(evaluation)
    return (
        f"{markdown_table(header, rows)}\n\n{run.scene.name}: {scene_line(evaluation)},"
        f" {run.front_end.label}, profile {run.config.profile}"
    )


README_BLOCK = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- end -->)", re.S)
"""A part of the README that repeats a file of results/: no number there is typed by hand."""


def readme_with_tables(readme: str, root: Path) -> str:
    """The README's text with every table block replaced by the file it names (relative to the
    project).
    """

    def filled(m: re.Match) -> str:
        path = root / m[2]
        if not path.is_file():
            raise ArtefactError(
                f"{path}: the README repeats this table and it is not there; run `make figures`"
                " (and `make bench` for timings)"
            )
        return m[1] + path.read_text(encoding="utf-8").strip() + "\n" + m[4]

    return README_BLOCK.sub(filled, readme)


def _text(c: object) -> str:
    if isinstance(c, float):
        return "–" if c != c else f"{c:.1f}"
    return str(c)


def _is_number(c: str) -> bool:
    return (
        c.replace(".", "", 1)
        .replace("-", "", 1)
        .replace("+", "", 1)
        .replace("±", "")
        .replace(" ", "")
        .replace(".", "")
        .isdigit()
        or c == "–"
    )


def _quoted(c: object) -> str:
    text = f"{c:.4f}" if isinstance(c, float) else str(c)
    return '"' + text.replace('"', '""') + '"' if any(x in text for x in ',"\n') else text
