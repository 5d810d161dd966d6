"""Candidates: what SAM answers to its grid of clicks, before any rule of ours.

A stage apart from the filters that follow: at full size it takes hours, the filters are tried out.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...files import load_npz, save_npz
from ...method.interfaces import Candidates
from ...progress import progress
from ...scenes.scene import View
from ..stage import Stage, of_view_size, view_file

if TYPE_CHECKING:
    from ..engine import Engine


def build(work: Engine, folder: Path) -> dict:
    """``VIEW.npz``: masks as run lengths, SAM output, scores, and what the generator dropped."""
    counts: dict[str, int] = {}
    found = 0
    for view in progress(work.scene.training_views, "candidates"):
        path = folder / view_file(view)
        if not path.exists():  # otherwise kept from an interrupted run with this key
            save_npz(path, **work.front_end.masks.propose(view).pack())
        data = load_npz(path)
        found += len(data["output"])
        for k in data:
            if k.startswith("count_"):
                name = k.removeprefix("count_")
                counts[name] = counts.get(name, 0) + int(data[k])
    return {"n_candidates": found, "generator": counts}


def candidates(work: Engine, view: View | str) -> Candidates:
    """What the mask generator found in a training view, before any rule of ours."""
    view = work.training_view(view)

    def parse(arrays):
        of_view_size(arrays["shape"].tolist(), view, "masks")
        return Candidates.unpack(arrays)

    return work.read("candidates", view_file(view), parse, view=view)


STAGE = Stage("candidates", build, role="proposer", told=("n_candidates",))
