"""python -m lab.training render|clips|sam|clip|sam2|score FOLDER: how the bundled small models
were made.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cclkit.errors import CclkitError

SEED = 0
STEPS = {"sam": 16000, "clip": 5000, "sam2": 4000}


def main(argv=None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m lab.training",
        description="Make the bundled small models again (rendering needs Mitsuba 3).",
    )
    sub = p.add_subparsers(dest="what", required=True)
    r = sub.add_parser("render", help="render random scenes into FOLDER; a stopped run continues")
    r.add_argument("folder", type=Path)
    r.add_argument("--scenes", type=int, default=600)
    r.add_argument("--studio", type=int, default=150)
    r.add_argument(
        "--catalogue",
        type=int,
        default=250,
        help="pages of single parts and surfaces, which mini-CLIP learns from too",
    )
    r.add_argument("--workers", type=int, default=2)
    r = sub.add_parser(
        "clips",
        help="render random orbits into FOLDER/clips, for mini-SAM2; a stopped run continues",
    )
    r.add_argument("folder", type=Path)
    r.add_argument("--clips", type=int, default=300)
    r.add_argument("--workers", type=int, default=2)
    for name, title in (
        ("sam", "mini-SAM"),
        ("clip", "mini-CLIP"),
        ("sam2", "mini-SAM2, which starts from mini-SAM,"),
    ):
        t = sub.add_parser(
            name,
            help=(
                f"train {title} on the scenes in FOLDER and score it on held-out ones; a stopped"
                " training continues"
            ),
        )
        t.add_argument("folder", type=Path)
        t.add_argument("--out", type=Path, help="folder of the weights (default: data/models)")
        t.add_argument("--steps", type=int, default=STEPS[name])
        t.add_argument("--seed", type=int, default=SEED)
        t.add_argument("--threads", type=int, default=2)
    t = sub.add_parser("score", help="score the weights again on the held-out scenes in FOLDER")
    t.add_argument("folder", type=Path)
    t.add_argument("--out", type=Path, help="folder of the weights (default: data/models)")
    t.add_argument("--threads", type=int, default=2)
    a = p.parse_args(argv)
    try:
        if a.what == "render":
            from .data import render

            render(a.folder, a.scenes, a.studio, a.catalogue, workers=a.workers)
        elif a.what == "clips":
            from .data import render_clips

            render_clips(a.folder, a.clips, a.workers)
        elif a.what == "score":
            from .make import score_again

            score_again(a.folder, a.out, threads=a.threads)
        else:
            from .make import make_clip, make_sam, make_sam2

            {"sam": make_sam, "clip": make_clip, "sam2": make_sam2}[a.what](
                a.folder, a.out, steps=a.steps, seed=a.seed, threads=a.threads
            )
    except CclkitError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
