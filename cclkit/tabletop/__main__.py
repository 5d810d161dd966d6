"""python -m cclkit.tabletop NAME OUT: render one benchmark scene ("all": every one) from its seed."""

from __future__ import annotations

import argparse
import sys

from ..errors import CclkitError
from . import SCENES, generate


def main(argv=None) -> int:
    p = argparse.ArgumentParser(prog="python -m cclkit.tabletop", description="Render Tabletop scenes from their seeds (needs Mitsuba 3).")
    p.add_argument("name", help=f"all, or one of {', '.join(SCENES)}")
    p.add_argument("out", help="folder that receives lerf_ovs/ and 3d_ovs/, e.g. data/tabletop")
    p.add_argument("--spp", type=int, help="paths per pixel (default: the recipe's)")
    a = p.parse_args(argv)
    try:
        for name in SCENES if a.name == "all" else [a.name]:
            print(generate(name, a.out, spp=a.spp))
    except CclkitError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
