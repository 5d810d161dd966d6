"""``python -m lab bench NAME [--json PATH] ...``: print the measurements, and write them if asked.

Benchmarks on seeded problems: timings to compare machines and versions.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cclkit.errors import ArtefactError
from cclkit.files import atomic_write, save_json

from .registry import BENCHMARKS, summary


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status. Raises CclkitError."""
    parser = argparse.ArgumentParser(prog="python -m lab bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, benchmark in BENCHMARKS.items():
        p = commands.add_parser(name, help=benchmark.help)
        benchmark.add_options(p)
        p.add_argument(
            "--json", type=Path, help="also write the result to this file, and a table beside it"
        )
    options = vars(parser.parse_args(argv))
    path, benchmark = options.pop("json"), BENCHMARKS[options.pop("command")]
    result = benchmark(**options).measure()
    for key, value in result.items():
        print(f"{key:20s} {value}")
    if path is not None:
        _write(path, benchmark.describe(result), result)
    return 0


def _write(path: Path, text: str, result: dict) -> None:
    """The result, its table, and beside files named ``bench_NAME.json`` the table of all."""
    try:
        save_json(path, result)
        atomic_write(path.with_suffix(".md"), f"{text}\n".encode())
        if path.name == f"bench_{result['benchmark']}.json":
            atomic_write(path.with_name("bench.md"), f"{summary(path.parent)}\n".encode())
    except OSError as e:
        raise ArtefactError(
            f"{path}: cannot be written ({e.strerror or e}); choose another --json path"
        ) from e


if __name__ == "__main__":
    sys.exit(main())
