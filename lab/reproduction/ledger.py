"""The reproduction ledger: every number of the paper's Tables 1 to 3 beside ours, or why there is
none.

``data/ledger.toml`` holds the paper's numbers. Ours come only from finished evaluations of the
profile paper, found by their keys, with colour and semantics trained jointly as the paper does
(field.mode "joint"). What the bundled scenes score is other data and stands in a table of its own.
"""

from __future__ import annotations

import csv
import io
import json
import math
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from cclkit.errors import DataError, EvaluationError
from cclkit.files import atomic_write
from cclkit.notebook.tables import markdown_table
from cclkit.places import DATA, project_folder, results_folder

from .jobs import PlannedRun, planned_runs

FILE = DATA / "ledger.toml"
AVERAGE = "average"
NOT_OURS = "another method, quoted"


@dataclass(frozen=True)
class Row:
    """One number of the paper and its counterpart."""

    table: int
    dataset: str
    family: str
    paper_protocol: str
    method: str
    scene: str  # or "average"
    seen_in_paper: bool
    paper: float  # mIoU %
    ours: float | None  # mIoU %, mean over seeds
    seeds: str  # "3 of 3"
    our_protocol: str
    profile: str
    tolerance: float  # points of mIoU
    status: str  # "reproduced", "differs" or "not run: why"
    minutes: float | None  # of all stages that ours comes from
    cell: str  # link to the notebook cell that computes it


@dataclass(frozen=True)
class Measured:
    """What one finished run says."""

    miou: float  # %
    protocol: str
    minutes: dict[Path, float]  # artefact -> its run time: stages shared by several runs count once


def load_tables(path: Path = FILE) -> list[dict]:
    """The paper's tables. Raises DataError when the file is not there, or a table does not hold
    what it should.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))["table"]
        for t in tables:
            for r in t["rows"]:
                values, means = r["values"], sum(r["values"][:-1]) / (len(r["values"]) - 1)
                if len(values) != len(t["scenes"]) + 1 or not (
                    abs(means - values[-1]) < 0.1 or not r["seen"]
                ):
                    raise ValueError(
                        f"table {t['number']}, {r['method']}: {values} are not {len(t['scenes'])}"
                        " numbers and their average"
                    )
            (
                len(t["tolerance"]),
                len(t["cell"]),
                t["family"],
                t["protocol"],
                t["title"],
                t["dataset"],
            )
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; the ledger belongs to a checkout of the project: work from one"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DataError(
            f"{path}: cannot be read as the paper's tables ({e!r}); restore it from the repository"
        ) from e
    return tables


def rows(profile: str = "paper", tables: Sequence[dict] | None = None) -> list[Row]:
    """The whole ledger. Computes nothing: it looks for finished runs of the profile."""
    tables = load_tables() if tables is None else tables
    runs: dict[tuple[str, str], list[PlannedRun]] = {}
    for r in planned_runs(profile):
        runs.setdefault((r.scene, r.arm), []).append(r)
    out = []
    for t in tables:
        link = cell_link(*t["cell"])
        for row in t["rows"]:
            arm, ours, protocols, spent = row.get("arm"), {}, set(), {}
            for scene, paper in zip([*t["scenes"], AVERAGE], row["values"]):
                if arm is None:
                    value, seeds, status, minutes = None, "", f"not run: {NOT_OURS}", None
                elif scene == AVERAGE:
                    missing = [s for s in t["scenes"] if s not in ours]
                    value = None if missing else sum(ours.values()) / len(ours)
                    seeds, minutes = "", sum(spent.values()) if value is not None else None
                    status = f"not run: {', '.join(missing)} not run" if missing else ""
                else:
                    mine = runs.get((f"{t['dataset']}/{scene}", arm), [])
                    found = [m for m in map(measured, mine) if m]
                    value = sum(m.miou for m in found) / len(found) if found else None
                    seeds = f"{len(found)} of {len(mine)}"
                    times = {k: v for m in found for k, v in m.minutes.items()}
                    minutes = sum(times.values()) if found else None
                    status = "" if found else f"not run: {why_not(mine)}"
                    if found:
                        ours[scene] = value
                        spent |= times
                        protocols |= {m.protocol for m in found}
                tolerance = t["tolerance"][scene == AVERAGE]
                if not status:
                    status = "reproduced" if abs(value - paper) <= tolerance else "differs"
                if len(protocols) > 1:
                    raise EvaluationError(
                        f"table {t['number']}, {row['method']}: runs were evaluated by"
                        f" {' and '.join(sorted(protocols))}; numbers of two protocols do not share"
                        " a table"
                    )
                out.append(
                    Row(
                        t["number"],
                        t["dataset"],
                        t["family"],
                        t["protocol"],
                        row["method"],
                        scene,
                        row["seen"],
                        paper,
                        value,
                        seeds,
                        *(protocols or ("",)),
                        profile,
                        tolerance,
                        status,
                        minutes,
                        link,
                    )
                )
    return out


def measured(r: PlannedRun) -> Measured | None:
    """What a run of the grid has measured, if its evaluation is there and it counts for
    the paper.
    """
    if reason(r) or (artefact := r.found("evaluation")) is None:
        return None
    e = artefact.json("evaluation.json")
    miou = e["aggregates"]["pooled"]["miou"]
    if miou is None or not math.isfinite(miou):
        raise EvaluationError(
            f"{artefact.folder / 'evaluation.json'}: mIoU is {miou}; the scene has no unit that can"
            " be scored: check its labels"
        )
    found = [r.found(stage) for stage in r.keys]
    return Measured(
        100 * miou, e["protocol"], {a.folder: a.record["wall_time_s"] / 60 for a in found if a}
    )


def reason(r: PlannedRun) -> str:
    """Why a run does not count for the paper whatever it scores, or ""."""
    mode = r.run.config.field.mode
    return (
        ""
        if mode == "joint"
        else (
            f"the profile trains the field with field.mode={mode}, the paper colour and semantics"
            " jointly"
        )
    )


def why_not(runs: Sequence[PlannedRun]) -> str:
    """What stands in the way of a scene's runs, in words."""
    if not runs:
        return "not in the profile's list of runs"
    r = runs[0]
    if reason(r):
        return reason(r)
    lacking = [r.scene] if r.run.scene is None else []
    lacking += (
        [] if torch.cuda.is_available() or r.run.config.device == "cpu" else ["a CUDA device"]
    )
    return (
        f"{' and '.join(lacking)} missing"
        if lacking
        else "make figures PROFILE=paper has not got there"
    )


def cell_link(number: str, table: str) -> str:
    """The cell of a notebook that makes a table, as a link from the project's folder; the notebook
    alone if it has no such table.
    """
    for path in sorted((project_folder() / "notebooks").glob(f"{number}_*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code" and f'nb.table("{table}"' in "".join(cell["source"]):
                return f"notebooks/{path.name}#cell-id={cell['id']}"
        return f"notebooks/{path.name}"
    return ""


# ---------------------------------------------------------------- as files


def write(
    folder: Path | None = None, *, profile: str = "paper", report: Callable[[str], None] = print
) -> Path:
    """ledger.csv (every number) and ledger.md (the three tables), and tabletop.md with what the
    bundled scenes scored, into results/.
    """
    folder = results_folder(profile).parent if folder is None else Path(folder)
    every = rows(profile)
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    names = [f.name for f in fields(Row)]
    out.writerow(names)
    for row in every:
        out.writerow(
            [
                "" if v is None else f"{v:.1f}" if isinstance(v, float) else v
                for v in (getattr(row, n) for n in names)
            ]
        )
    atomic_write(folder / "ledger.csv", text.getvalue().encode())
    atomic_write(folder / "ledger.md", as_markdown(every).encode())
    if tabletop := tabletop_table():
        atomic_write(folder / "ledger_tabletop.md", tabletop.encode())
    counts = {
        s: sum(r.status.partition(":")[0] == s for r in every)
        for s in ("reproduced", "differs", "not run")
    }
    report(
        f"{len(every)} numbers of the paper: {', '.join(f'{n} {s}' for s, n in counts.items())};"
        f" {folder / 'ledger.csv'}"
    )
    return folder / "ledger.csv"


def as_markdown(every: Sequence[Row]) -> str:
    """The paper's tables with a line of ours under each line that cclkit computes."""
    out = [
        "The paper's Tables 1 to 3, mIoU %, with ours where the profile paper has been run. A tick:"
        " within the tolerance of results/ledger.csv."
    ]
    titles = {t["number"]: t["title"] for t in load_tables()}
    for number in sorted({r.table for r in every}):
        mine = [r for r in every if r.table == number]
        family, protocol, ours = (
            one(mine, name, number) for name in ("family", "paper_protocol", "our_protocol")
        )
        scenes, body = list(dict.fromkeys(r.scene for r in mine)), []
        for method in dict.fromkeys(r.method for r in mine):
            line = [r for r in mine if r.method == method]
            body.append(
                [
                    method + ("" if line[0].seen_in_paper else " (not seen in the paper)"),
                    *(f"{r.paper:.1f}" for r in line),
                ]
            )
            if not line[0].status.endswith(NOT_OURS):
                body.append(
                    [
                        f"{method}, cclkit",
                        *(
                            (
                                "not run"
                                if r.ours is None
                                else f"{r.ours:.1f}{' ✓' if r.status == 'reproduced' else ''}"
                            )
                            for r in line
                        ),
                    ]
                )
        caption = (
            f"Table {number}: {titles.get(number, '')}. Published: {family}; protocol {protocol}."
            + (f" cclkit: protocol {ours}." if ours else "")
        )
        out.append(f"{caption}\n\n{markdown_table(['method', *scenes], body)}")
    return "\n\n".join(out) + "\n"


def one(table: Sequence[Row], name: str, number: int) -> str:
    """The only value of a column that a table may not mix. Raises EvaluationError when it does."""
    values = sorted({getattr(r, name) for r in table} - {""})
    if len(values) > 1:
        raise EvaluationError(
            f"table {number}: {name} is {' and '.join(map(repr, values))}; such numbers are not"
            " comparable, give each a table of its own"
        )
    return values[0] if values else ""


def tabletop_table() -> str:
    """What the bundled scenes scored under the profile mini, a line a scene; "" when nothing has
    been run.
    """
    lines, label = [], set()
    for r in planned_runs("mini"):
        if (artefact := r.found("evaluation")) is None:
            continue
        e = artefact.json("evaluation.json")
        pooled = e["aggregates"]["pooled"]
        label.add(artefact.record["front_end"])
        lines.append([r.scene, r.arm, e["protocol"], pooled["units"], 100 * pooled["miou"]])
    if not lines:
        return ""
    caption = (
        "Tabletop, rendered scenes: another data set than the paper's, and not comparable with it."
        f" Profile mini, {', '.join(sorted(label))}."
    )
    return (
        f"{caption}\n\n{markdown_table(['scene', 'arm', 'protocol', 'units', 'mIoU %'], lines)}\n"
    )
