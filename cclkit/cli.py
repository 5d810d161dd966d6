"""The ``cclkit`` command: run, figures, query, evaluate, settings, bench."""

from __future__ import annotations

import argparse
import os
import sys

from .errors import CclkitError


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status. A CclkitError is one line on stderr and status 1."""
    args = _parser().parse_args(argv)
    try:
        return args.func(args) or 0
    except CclkitError as e:
        print(f"cclkit: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("cclkit: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `cclkit settings | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="cclkit", description="CCL-LGS step by step: from photographs to answers in 3D.")
    sub = p.add_subparsers(required=True, metavar="COMMAND")

    run = sub.add_parser("run", help="take one scene through all stages and print its evaluation")
    _scene_arguments(run)
    run.add_argument("--until", default="evaluation", metavar="STAGE", help="last stage to run (default: evaluation)")
    run.set_defaults(func=_run)

    figures = sub.add_parser("figures", help="run the notebooks headlessly and regenerate every figure and table")
    figures.add_argument("--profile", default="mini", help="mini (default) or paper")
    figures.add_argument("--fresh", action="store_true", help="recompute from the photographs: ignore bundled and earlier artefacts")
    figures.add_argument("--only", nargs="+", metavar="NN", help="notebooks to run, by number, e.g. --only 03 07")
    figures.add_argument("--write-back", action="store_true", help="copy the executed notebooks over notebooks/ (for maintainers)")
    figures.set_defaults(func=_figures)

    query = sub.add_parser("query", help="answer a text query in one or all views of a scene")
    _scene_arguments(query)
    query.add_argument("text", help='what to look for, e.g. "red apple"')
    query.add_argument("--view", action="append", metavar="NAME", help="view by file name; repeat for several (default: all)")
    query.set_defaults(func=_query)

    evaluate = sub.add_parser("evaluate", help="print the evaluation table of a scene (computing what is missing)")
    _scene_arguments(evaluate)
    evaluate.add_argument("--protocol", help="protocol by name instead of the configured one")
    evaluate.set_defaults(func=_evaluate)

    settings = sub.add_parser("settings", help="list every setting with its value, meaning and source")
    settings.add_argument("--profile", default="mini")
    settings.set_defaults(func=_list_settings)

    bench = sub.add_parser("bench", help="measure speed and memory", add_help=False)
    bench.add_argument("rest", nargs=argparse.REMAINDER)
    bench.set_defaults(func=_bench)
    return p


def _scene_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--scene", required=True, metavar="PATH", help="scene folder, or the name of a bundled scene")
    p.add_argument("--out", metavar="DIR", help="run folder (default: results/<profile>/runs/<scene>)")
    p.add_argument("--profile", default="mini", help="mini (default) or paper")
    p.add_argument("--set", dest="settings", action="append", default=[], metavar="NAME=VALUE", help="change a setting, e.g. codebook.margin=0.5")
    p.add_argument("--fresh", action="store_true", help="delete this run folder's artefacts first, and ignore bundled ones")


def _open(args):
    # imported late: `cclkit --help` must not wait for torch
    from . import config
    from .pipeline import STAGES, Run

    settings = config.parse_settings(args.settings)
    if args.fresh:
        os.environ["CCLKIT_NO_BUNDLE"] = "1"
    run = Run(args.scene, config.profile(args.profile).with_settings(settings), args.out)
    if args.fresh:
        with run.store.lock():
            run.store.clear(STAGES)
    return run


def _run(args) -> int:
    from .pipeline import run_pipeline
    from .tables import evaluation_table

    run = _open(args)
    print(f"{run.scene.name}: {run.scene.layout}, {len(run.scene.views)} views, {run.front_end.label}, profile {run.config.profile}")
    run_pipeline(run, until=args.until)
    if args.until == "evaluation" and (run.scene.labels or run.scene.classes):
        print("\n" + evaluation_table(run))
    print(f"\nartefacts in {run.store.root}")
    return 0


def _figures(args) -> int:
    from .notebooks import run_notebooks

    return run_notebooks(args.profile, fresh=args.fresh, only=args.only, write_back=args.write_back)


def _query(args) -> int:
    from .pipeline import Run, answer_query

    run: Run = _open(args)
    views = [run.scene.view(n) for n in args.view] if args.view else list(run.scene.views)
    folder = answer_query(run, args.text, views)
    if unknown := run.front_end.encoder.unknown_words(args.text):
        print(f"note: {run.front_end.label} has never seen {', '.join(map(repr, unknown))}; its answer is a guess")
    print(f"{len(views)} views answered; masks and overlays in {folder}")
    return 0


def _evaluate(args) -> int:
    from .tables import evaluation_table

    run = _open(args)
    if args.protocol:
        name = "evaluation.lerf_protocol" if run.scene.labels else "evaluation.ovs_protocol"
        run = run.vary(**{name.replace(".", "__"): args.protocol})
    print(evaluation_table(run))
    return 0


def _list_settings(args) -> int:
    from . import config

    for name, value, meaning in config.describe(config.profile(args.profile)):
        print(f"{name} = {value!r}\n    {meaning}")
    return 0


def _bench(args) -> int:
    from . import bench

    return bench.main(args.rest)


if __name__ == "__main__":
    sys.exit(main())
