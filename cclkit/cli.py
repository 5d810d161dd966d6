"""The ``cclkit`` command: run, query, evaluate, figures, settings, data.

Modules are imported where a command needs them, so that ``cclkit --help`` need not wait for torch.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import shlex
import sys
from collections.abc import Callable

from .errors import CclkitError, DataError, needed
from .machine import be_patient

IN_LAB = ("bench", "benchmark", "book", "compare", "ledger", "sweep")
"""Commands that are the laboratory's."""


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status. A CclkitError is one line on stderr and status 1."""
    be_patient()
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] and argv[0] in IN_LAB:
        line = shlex.join(["python", "-m", "lab", *argv])
        print(f"cclkit: {argv[0]} is a command of the laboratory; run: {line}", file=sys.stderr)
        return 2
    return guarded(lambda: _call(_parser().parse_args(argv)))


def _call(args: argparse.Namespace) -> int:
    return args.func(args) or 0


def guarded(command: Callable[[], int], name: str = "cclkit") -> int:
    """Run a command; what users can do something about is one line on stderr and a status."""
    try:
        with needed():
            return command()
    except CclkitError as e:
        print(f"{name}: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as e:
        said = e if e.args else "interrupted; run the same command again to go on"
        print(f"\n{name}: {said}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `cclkit settings | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
            raise
        print(
            f"{name}: {e.filename or 'a file'}: cannot be written ({e.strerror}); free space or"
            " choose another folder, then run the same command again",
            file=sys.stderr,
        )
        return 1


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="cclkit", description="CCL-LGS step by step: from photographs to answers in 3D."
    )
    sub = p.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_run, _add_query, _add_evaluate, _add_figures, _add_settings, _add_data):
        add(sub)
    return p


def _add_run(sub) -> None:
    p = sub.add_parser("run", help="take one scene through all stages and print its evaluation")
    _scene_arguments(p)
    p.add_argument(
        "--until",
        default="evaluation",
        metavar="STAGE",
        help="last stage to run (default: evaluation)",
    )
    p.add_argument(
        "--stage",
        metavar="STAGE",
        help="only this stage, with what it needs (a job of the Snakefile)",
    )
    p.set_defaults(func=_run)


def _add_query(sub) -> None:
    p = sub.add_parser(
        "query",
        help="answer a text query: masks and overlays of views, a film of them, the Gaussians as"
        " PLY",
    )
    _scene_arguments(p)
    p.add_argument("text", help='what to look for, e.g. "red apple"')
    p.add_argument(
        "--view",
        action="append",
        metavar="NAME",
        help="view by file name; repeat for several (default: all)",
    )
    p.set_defaults(func=_query)


def _add_evaluate(sub) -> None:
    p = sub.add_parser(
        "evaluate", help="print the evaluation table of a scene (computing what is missing)"
    )
    _scene_arguments(p)
    p.add_argument(
        "--protocol",
        help="protocol by name instead of the configured one; see `cclkit settings`",
    )
    p.set_defaults(func=_evaluate)


def _add_figures(sub) -> None:
    p = sub.add_parser(
        "figures", help="run the notebooks headlessly and regenerate every figure and table"
    )
    p.add_argument("--profile", default="mini", help="mini (default) or paper")
    p.add_argument(
        "--fresh",
        action="store_true",
        help="recompute from the photographs: ignore earlier artefacts",
    )
    p.add_argument(
        "--only", nargs="+", metavar="NN", help="notebooks to run, by number, e.g. --only 03 07"
    )
    p.add_argument(
        "--write-back",
        action="store_true",
        help="also copy executed notebooks and tables back into notebooks/ and README.md",
    )
    p.set_defaults(func=_figures)
    about = p.add_subparsers(metavar="verify|explain", title="about figures that are there")
    verify = about.add_parser(
        "verify",
        help="compare the figures with the committed ones: hash of the plotted data, then pixels",
    )
    verify.add_argument(
        "--against",
        default="HEAD",
        metavar="COMMIT|FOLDER",
        help="what to compare with (default: HEAD)",
    )
    verify.add_argument("--strict", action="store_true", help="ask for equal data and equal pixels")
    verify.set_defaults(func=_figures_verify)
    explain = about.add_parser(
        "explain", help="notebook, cell, settings, artefacts and counterpart in the paper"
    )
    explain.add_argument("figure", metavar="FIG", help="name or file, e.g. 03_feature_maps")
    explain.set_defaults(func=_figures_explain)
    for command in (verify, explain):
        command.add_argument("--profile", default=argparse.SUPPRESS, help="mini (default) or paper")


def _add_settings(sub) -> None:
    p = sub.add_parser("settings", help="list every setting with its value, meaning and source")
    p.add_argument("--profile", default="mini")
    p.set_defaults(func=_list_settings)


def _add_data(sub) -> None:
    data = sub.add_parser(
        "data", help="what is here, what can be fetched: status, fetch, verify"
    ).add_subparsers(required=True, metavar="status|fetch|verify")
    status = data.add_parser(
        "status",
        help="what is here, what is missing, what that blocks, what still runs (no network)",
    )
    status.add_argument("--json", action="store_true", help="as JSON")
    status.set_defaults(func=_data_status)
    fetch = data.add_parser(
        "fetch", help="download public data sets and checkpoints, or take them from this machine"
    )
    fetch.add_argument("names", nargs="+", metavar="NAME", help="as listed by `cclkit data status`")
    fetch.add_argument(
        "--from",
        dest="source",
        metavar="PATH",
        help="take a local file, archive, unpacked folder (which is linked, not copied) or folder"
        " of downloads instead of the network",
    )
    fetch.add_argument(
        "--yes", action="store_true", help="do not ask after showing licence and size"
    )
    fetch.set_defaults(func=_data_fetch)
    verify = data.add_parser(
        "verify", help="compute every digest again; status 1 if something is damaged"
    )
    verify.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="default: everything that is here, bundled data included",
    )
    verify.set_defaults(func=_data_verify)
    for command in (status, fetch, verify):
        command.add_argument(
            "--root", metavar="FOLDER", help="data root (default: CCLKIT_DATA, else data/public)"
        )


def _scene_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--scene",
        required=True,
        metavar="PATH",
        help="scene folder, or the name of a bundled scene",
    )
    p.add_argument(
        "--out", metavar="DIR", help="run folder (default: results/<profile>/runs/<scene>)"
    )
    p.add_argument("--profile", default="mini", help="mini (default) or paper")
    p.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a setting, e.g. codebook.margin=0.5",
    )
    p.add_argument("--fresh", action="store_true", help="delete this run folder's artefacts first")


def _open(args):
    from .config import profile
    from .runs.run import Run
    from .settings import parse_settings

    run = Run(args.scene, profile(args.profile, **parse_settings(args.settings)), args.out)
    if args.fresh:
        run.clear()
    return run


def _run(args) -> int:
    from .notebook.tables import evaluation_table
    from .runs.graph import known_stage

    known_stage(args.stage or args.until)  # a typo must not wait for the models
    run = _open(args)
    if args.stage:
        artefact = run.ensure(args.stage)
        print(
            f"{run.scene.name}: {args.stage} {'found' if artefact.reused else 'done'},"
            f" {artefact.record['wall_time_s']:.1f} s, in {artefact.folder}"
        )
        return 0
    print(
        f"{run.scene.name}: {run.scene.layout}, {len(run.scene.views)} views,"
        f" {run.front_end.label}, profile {run.config.profile}"
    )
    run.to(args.until)
    if args.until == "evaluation" and (run.scene.labels or run.scene.classes):
        print("\n" + evaluation_table(run))
    print(f"\nartefacts in {run.store.root}")
    return 0


def _figures(args) -> int:
    from .notebook.execute import run_notebooks

    return run_notebooks(args.profile, fresh=args.fresh, only=args.only, write_back=args.write_back)


def _figures_verify(args) -> int:
    from .notebook.provenance import verify

    return verify(args.profile, args.against, strict=args.strict)


def _figures_explain(args) -> int:
    from .notebook.provenance import explain

    print(explain(args.figure, args.profile))
    return 0


def _query(args) -> int:
    run = _open(args)
    views = [run.scene.view(n) for n in args.view] if args.view else list(run.scene.views)
    folder = run.write_answer(args.text, views)
    if unknown := run.front_end.encoder.unknown_words(args.text):
        print(
            f"note: {run.front_end.label} has never seen {', '.join(map(repr, unknown))}; its"
            " answer is a guess"
        )
    answer = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
    chosen = answer["selection"]
    print(
        f"{len(views)} views answered, {chosen['gaussians']:,} of {chosen['of']:,} Gaussians"
        f" selected (level {chosen['level']})"
    )
    print(
        f"in {folder}: VIEW_mask.png, VIEW_overlay.png, {answer['film']}"
        + (f", {chosen['file']}" if chosen["file"] else "")
    )
    return 0


def _evaluate(args) -> int:
    from .notebook.tables import evaluation_table

    run = _open(args)
    if args.protocol:
        run = run.vary(evaluation__protocol=args.protocol)
    print(evaluation_table(run))
    return 0


def _list_settings(args) -> int:
    from .config import profile
    from .settings import describe

    for name, value, meaning in describe(profile(args.profile)):
        print(f"{name} = {value!r}\n    {meaning}")
    return 0


def _data_status(args) -> int:
    from .downloads.status import as_text, status
    from .places import data_root

    items = status(args.root)
    if args.json:
        print(json.dumps([{**vars(i), "path": str(i.path)} for i in items], indent=1))
        return 0
    print("bundled\n" + as_text([i for i in items if i.bundled]))
    print(f"\nfetched, in {data_root(args.root)}\n" + as_text([i for i in items if not i.bundled]))
    return 0


def _data_fetch(args) -> int:
    from .downloads.fetching import fetch
    from .downloads.registry import entry
    from .places import data_root

    root, wanted = data_root(args.root), [entry(n) for n in args.names]
    if args.source and len(wanted) > 1 and not os.path.isdir(args.source):
        raise DataError(
            f"--from {args.source} gives one thing, found {len(wanted)} names; fetch them one by"
            " one, or give a folder that holds all of them under their own names"
        )
    failed = False
    for e in wanted:
        if not _agreed(e, root, args):
            continue
        try:
            print(f"{e.name}: in {fetch(e.name, root, args.source)}")
        except DataError as err:  # the others may still work
            failed = True
            print(f"cclkit: {err}", file=sys.stderr)
    if not failed and root != data_root():
        print(
            f"runs look for fetched things in {data_root()}; set CCLKIT_DATA={root} for"
            " them to find this folder"
        )
    return int(failed)


def _agreed(e, root, args) -> bool:
    """Whether to fetch an entry: not if it is here, nor if nobody accepts its licence and size."""
    from .downloads.checks import check
    from .downloads.records import location

    if not args.source and check(e, root).state == "here":
        print(f"{e.name}: already in {location(e, root)}, and as it should be")
        return False
    print(f"{e.name}: {e.title}\n  licence: {e.licence}\n  size: {e.size_text}")
    print(f"  goes to: {root / e.target}")
    if not e.urls or args.source or args.yes:
        return True
    if not sys.stdin.isatty():
        raise DataError(
            f"{e.name}: fetching needs a confirmation and there is no terminal to ask; add"
            " --yes if you accept licence and size"
        )
    if input("  fetch it? [y/N] ").strip().lower() in ("y", "yes"):
        return True
    print("  left out")
    return False


def _data_verify(args) -> int:
    from .downloads.status import verify_digests

    items = verify_digests(args.names, args.root)
    for i in items:
        state = "ok" if i.state == "here" else i.state
        print(f"{i.name}: {state}{', ' + i.detail if i.detail else ''}")
    return int(any(i.bad for i in items))


if __name__ == "__main__":
    sys.exit(main())
