"""What a layout is: how the files of a scene lie on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Layout:
    """One way to lay out a scene, in a file of its own and a line of `load.LAYOUTS`.

    ``read(folder)`` returns fields of Scene: ``views``, ``points``, ``point_colors``, ``files``
    (all that were read or will be), and whichever labels the layout carries. Photographs lie in
    ``images/`` in every layout. The file where it stands, and what that imports, counts for
    artefact keys.
    """

    found: Callable[[Path], bool]  # whether a folder has what tells this layout from others
    read: Callable[[Path], dict[str, Any]]
    expected: str  # what a folder of this layout holds, for messages
