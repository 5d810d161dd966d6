"""``python -m lab COMMAND``: how data and weights were made, experiments, benches, the book.

The laboratory is not installed with the package; run it from a checkout.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cclkit.cli import guarded
from cclkit.errors import ConfigError
from cclkit.machine import be_patient


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    be_patient()
    argv = sys.argv[1:] if argv is None else argv
    doors = {"bench": _bench, "tabletop": _tabletop, "training": _training}  # parsers of their own
    if argv[:1] and argv[0] in doors:
        return guarded(lambda: doors[argv[0]](argv[1:]) or 0, "lab")
    return guarded(lambda: _call(_parser().parse_args(argv)), "lab")


def _call(args: argparse.Namespace) -> int:
    return args.func(args) or 0


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m lab", description=__doc__.split("\n\n")[1])
    sub = p.add_subparsers(required=True, metavar="COMMAND")
    benchmark = sub.add_parser(
        "benchmark",
        help="the ablation over all bundled scenes: index maps of all arms and seeds, the field"
        " with and without the contrastive terms",
    )
    benchmark.add_argument(
        "--scene",
        action="append",
        metavar="NAME",
        help="scene by name or folder; repeat for several (default: every bundled one)",
    )
    benchmark.set_defaults(func=_benchmark)
    compare = sub.add_parser(
        "compare",
        help="CCL beside k-means, a scene autoencoder and direct lifting, on the same masks and"
        " Gaussians",
    )
    compare.add_argument(
        "--scene",
        default="tea_party",
        metavar="PATH",
        help="bundled scene (default: tea_party), or another with true depth and ids",
    )
    compare.set_defaults(func=_compare)
    sweep = sub.add_parser(
        "sweep",
        help="run a grid of experiments from a file in parallel processes; a stopped one goes on",
    )
    sweep.add_argument("file", nargs="+", help="TOML files, e.g. data/sweeps/*.toml")
    sweep.add_argument("--workers", type=int, default=2)
    sweep.set_defaults(func=_sweep)
    ledger = sub.add_parser(
        "ledger",
        help="every number of the paper beside ours, or why there is none: results/ledger.csv",
    )
    ledger.set_defaults(func=_ledger)
    book = sub.add_parser("book", help="the executed notebooks as a static site (see `make book`)")
    book.add_argument("--profile", default="mini", help="mini (default) or paper")
    book.add_argument(
        "--out", metavar="FOLDER", help="where the site goes (default: build/book/<profile>)"
    )
    book.set_defaults(func=_book)
    for name, what in (
        ("bench", "measure speed and memory of the numerical core"),
        ("tabletop", "render, pack and check the bundled scenes"),
        ("training", "make the data of the small models, train and score them"),
    ):
        sub.add_parser(name, help=what)
    adopt = sub.add_parser(
        "adopt",
        help="after a rebuild that changes no number: measure a sample of the benchmark's and the"
        " sweeps' rows again, and keep all if each comes out as it was",
    )
    adopt.add_argument("file", nargs="+", help="benchmark_rows.csv, or TOML files of sweeps")
    adopt.add_argument("--sample", type=int, default=6, help="rows of each file (default: 6)")
    adopt.add_argument(
        "--measured",
        nargs="+",
        default=["index maps", "field"],
        help="of the benchmark: what the sample is drawn from",
    )
    adopt.set_defaults(func=_adopt)
    for command in (benchmark, compare, sweep, adopt):
        command.add_argument(
            "--set",
            action="append",
            default=[],
            dest="settings",
            metavar="NAME=VALUE",
            help="change a setting",
        )
    return p


def _config(args: argparse.Namespace):
    from cclkit.config import profile
    from cclkit.settings import parse_settings

    return profile("mini", **parse_settings(args.settings))


def _benchmark(args) -> None:
    from cclkit.places import results_folder

    from .experiments.benchmark import benchmark

    benchmark(args.scene, _config(args), results_folder("mini") / "tables")


def _compare(args) -> None:
    from cclkit.places import results_folder
    from cclkit.runs.run import Run

    from .experiments.comparisons import compare, save_comparison

    run = Run(args.scene, _config(args))
    print(save_comparison(run, compare(run), results_folder("mini") / "tables"))


def _sweep(args) -> None:
    from cclkit.notebook.measured import load_sweep
    from cclkit.places import results_folder

    from .experiments.sweeps import run_sweep

    if args.workers < 1:
        raise ConfigError(f"--workers {args.workers}: expected at least 1")
    out = results_folder("mini") / "sweeps"
    for s in [load_sweep(f) for f in args.file]:  # all are read before any is run
        print(run_sweep(s, out, _config(args), workers=args.workers))


def _adopt(args) -> None:
    from cclkit.places import results_folder

    from .experiments.adopt import adopt_benchmark, adopt_sweep

    config, results = _config(args), results_folder("mini")
    for file in map(Path, args.file):
        if file.suffix == ".toml":
            n = adopt_sweep(file, results / "sweeps", config, sample=args.sample)
        else:
            n = adopt_benchmark(file, config, sample=args.sample, measured=args.measured)
        print(f"{file.stem}: {n} rows had other keys")


def _ledger(args) -> None:
    from .reproduction import ledger

    ledger.write()


def _book(args) -> None:
    from .site.book import build

    print(f"open {build(args.profile, args.out)}")


def _bench(rest: list[str]) -> int:
    from .bench.__main__ import main

    return main(rest)


def _tabletop(rest: list[str]) -> int:
    from .tabletop.__main__ import main

    return main(rest)


def _training(rest: list[str]) -> int:
    from .training.__main__ import main

    return main(rest)


if __name__ == "__main__":
    sys.exit(main())
