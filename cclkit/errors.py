"""Every error a user can cause, as one family.

A message names the file (or setting), what was found, what was expected and the
remedy, in one line where possible. Nothing in cclkit raises a bare exception for
bad input: whoever drives the library catches ``CclkitError`` and prints it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class CclkitError(Exception):
    """Base of all errors caused by input, settings or the machine."""


def reason(e: BaseException) -> str:
    """The first line of what an exception says, or its type's name: libraries raise some without a
    word.
    """
    return (str(e).strip().splitlines() or [type(e).__name__])[0][:200]


class ConfigError(CclkitError):
    """An unknown setting, a value out of range, an unknown profile."""


class DependencyError(CclkitError):
    """An optional package or device is missing; the message says what to install."""


class MissingPackageError(DependencyError):
    """A package that is not installed was needed; the message says which, and what to install."""


class SceneError(CclkitError):
    """A scene folder, camera model, image or label file cannot be used."""


class DataError(CclkitError):
    """Something fetched, or to be fetched, that is missing, damaged or refused."""


class ArtefactError(CclkitError):
    """A run folder cannot be written, is locked, or holds a damaged artefact."""


class ModelError(CclkitError):
    """Weights that cannot be used: missing, damaged, of another architecture, not what they claim
    to be.
    """


class MaskError(CclkitError):
    """Masks or label maps that later stages cannot use."""


class FeatureError(CclkitError):
    """Mask features that are zero, not finite, or of the wrong shape."""


class CodebookError(CclkitError):
    """Input from which no codebook can be learned."""


class GaussiansError(CclkitError):
    """Gaussians (or a PLY file) that cannot be rendered or trained."""


class FieldError(CclkitError):
    """Input from which no semantic field can be trained."""


class QueryError(CclkitError):
    """A text query that cannot be answered."""


class EvaluationError(CclkitError):
    """Ground truth and prediction that cannot be compared."""


class NotebookError(CclkitError):
    """A notebook failed, or was given a parameter it does not have."""


class ExerciseError(CclkitError):
    """A reader's answer to an exercise lacks a property that it must have; the message
    is a hint.
    """


INSTALL_AS = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "hydra": "hydra-core",
    "open_clip": "open_clip_torch",
    "segment_anything": "segment-anything",
}
"""What to install for packages whose names for pip differ from those for import."""


@contextlib.contextmanager
def needed(package: str = "", install: str = "") -> Iterator[None]:
    """Around imports: a package that is missing raises MissingPackageError, one line.

    ``package`` is what the imports are for; what it needs in turn may be what is missing.
    ``install`` is what to give to pip, by default what brings the missing package.

    >>> with needed("sam3"):
    ...     import sam3
    Traceback (most recent call last):
    cclkit.errors.MissingPackageError: sam3 is not installed but needed; run `pip install sam3`
    """
    try:
        yield
    except ModuleNotFoundError as e:
        missing = (e.name or "").partition(".")[0]
        if missing in ("", __name__.partition(".")[0]):  # a fault of our own, or unheard of
            raise
        need = "needed" if package in ("", missing) else f"needed by {package}"
        what = install or INSTALL_AS.get(missing, missing)
        raise MissingPackageError(
            f"{missing} is not installed but {need}; run `pip install {what}`"
        ) from e
