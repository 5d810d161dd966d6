"""python -m lab.tabletop render | archive | verify: render scenes, pack them, check them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cclkit.downloads.bundled import verify_sums
from cclkit.errors import CclkitError, SceneError
from cclkit.places import bundled_scenes

from . import export
from .make import SCENES, generate, regenerate


def main(argv=None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m lab.tabletop",
        description=(
            "Tabletop scenes: render them from their seeds, pack them as archives, check them."
        ),
    )
    commands = p.add_subparsers(dest="command", required=True, metavar="render | archive | verify")

    c = commands.add_parser("render", help="render scenes from their seeds (needs Mitsuba 3)")
    c.add_argument("name", help=f"all, or one of {', '.join(SCENES)}")
    c.add_argument("out", help="folder that receives lerf_ovs/ and 3d_ovs/, e.g. data/tabletop")
    c.add_argument("--spp", type=int, help="paths per pixel (default: the recipe's)")
    c.set_defaults(run=_render)

    c = commands.add_parser(
        "archive", help="pack bundled scenes as one zip in the layout of the public data sets"
    )
    c.add_argument("scene", nargs="+", help="all, or names of bundled scenes, or scene folders")
    c.add_argument("out", help="the .zip file to write")
    c.add_argument(
        "--everything",
        action="store_true",
        help="also depth, ground truth, scene.json and checksums",
    )
    c.set_defaults(run=_archive)

    c = commands.add_parser(
        "verify", help="compare scenes with their checksums, and with a new render"
    )
    c.add_argument("scene", nargs="+", help="all, or names of bundled scenes, or scene folders")
    c.add_argument(
        "--render",
        type=int,
        default=0,
        metavar="N",
        help=(
            "also render N views again: ids, depth, cameras and labels of each, the photograph of"
            " the first (needs Mitsuba 3)"
        ),
    )
    c.set_defaults(run=_verify)

    a = p.parse_args(argv)
    try:
        a.run(a)
    except CclkitError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


def _render(a: argparse.Namespace) -> None:
    for name in SCENES if a.name == "all" else [a.name]:
        print(generate(name, a.out, spp=a.spp))


def _archive(a: argparse.Namespace) -> None:
    path = export.archive(folders(a.scene), a.out, everything=a.everything)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def _verify(a: argparse.Namespace) -> None:
    for folder in folders(a.scene):
        print(f"{folder.name}: {len(verify_sums(folder))} files are as in SHA256SUMS", flush=True)
        for row in regenerate(folder, a.render) if a.render else ():
            labels = ", labels" if row["labels"] else ""
            photo = (
                ""
                if row["grey_levels"] is None
                else f"; photograph within {row['grey_levels']} grey levels"
            )
            print(
                f"{folder.name}: {row['view']}: ids, depth, camera{labels} the same bit for"
                f" bit{photo}",
                flush=True,
            )


def folders(scenes: list[str]) -> list[Path]:
    """Folders of bundled scenes ("all": every one) or of scenes given by path. Raises
    SceneError.
    """
    bundled = bundled_scenes()
    found = []
    for s in bundled if scenes == ["all"] else scenes:
        path = Path(s) if Path(s).is_dir() else bundled.get(s)
        if path is None:
            raise SceneError(
                f"{s}: no such scene; give the folder of one, or a bundled one:"
                f" {', '.join(bundled) or 'none found, set CCLKIT_DATA'}"
            )
        found.append(path.resolve())
    return found


if __name__ == "__main__":
    raise SystemExit(main())
