"""Blending cache: what sampled pixels of all views are made of, computed once for frozen geometry.

With frozen Gaussians a rendered feature is a fixed sum over Gaussians, F = A X: X holds a feature
per Gaussian, a row of A the weights alpha T of one pixel. The cache keeps the rows of sampled
pixels, each cut to its K largest entries, so that a training step is a gather and a weighted sum
over pixels of all views, without a rasteriser.

On disk: ``view.npy``, ``pixel.npy``, ``ids.npy``, ``weights.npy``, ``residual.npy`` (memory-mapped
when read) and ``cache.json``, which says what the cache was made from and is marked complete last.
Until then ``parts/`` holds a file per finished view, and a killed build goes on with the views that
are missing.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import ArtefactError, FieldError
from ..files import load_npz, read_array, save_json, save_npz
from ..scenes.scene import View
from .blending import blending_weights, splat_entries
from .model import Gaussians
from .rasterize import project

ABOUT = "cache.json"
ARRAYS = {
    "view": np.int32,
    "pixel": np.int32,
    "ids": np.int32,
    "weights": np.float32,
    "residual": np.float32,
}


@dataclass(frozen=True)
class BlendingCache:
    """The cut rows of S sampled pixels, views in the order of ``names``. Arrays are memory-mapped
    and read-only.
    """

    folder: Path
    made_from: dict  # digests of Gaussians, cameras and masks; the settings of the sample
    names: tuple[str, ...]  # views, by name
    view: np.ndarray  # [S] int32 index into names
    pixel: np.ndarray  # [S] int32 row-major place in the view, y * width + x
    ids: np.ndarray  # [S, K] int32 Gaussians, largest weight first; 0 where unused
    weights: np.ndarray  # [S, K] float32 alpha T; 0 where unused
    residual: np.ndarray  # [S] float32 share of a pixel's weight that its K entries miss

    def __len__(self) -> int:
        return len(self.pixel)

    def splat(
        self, features: Tensor, rows: np.ndarray, gradient: Tensor | None = None
    ) -> Tensor:  # [G, C], [P] int -> [P, C]
        """Rendered features of some sampled pixels, differentiable in ``features`` (float32);
        ``gradient`` as in `splat_entries`.
        """
        ids, weights = (
            torch.from_numpy(a.take(rows, axis=0)).to(features.device)
            for a in (self.ids, self.weights)
        )
        return splat_entries(features, ids, weights, gradient)

    def codes(
        self,
        index_maps: Mapping[str, np.ndarray],  # view name -> [L, H, W] int, -1 = no mask
    ) -> np.ndarray:  # [L, S] int32
        """Code of every sampled pixel at each level, -1 = no mask.

        Raises FieldError for index maps that cannot come from the masks of this cache: a view is
        missing, or a sampled pixel lies in none of their masks.
        """
        remedy = "train on the masks that the cache was made from, or build the cache again"
        ends = np.searchsorted(self.view, np.arange(len(self.names) + 1))
        out = []
        for name, start, end in zip(self.names, ends, ends[1:]):
            if start == end:
                continue
            if name not in index_maps:
                raise FieldError(
                    f"{self.folder}: the blending cache holds pixels of view {name!r}, which has no"
                    f" index map; {remedy}"
                )
            maps, pixels = index_maps[name], self.pixel[start:end]
            here = maps[0].size
            codes = maps.reshape(len(maps), -1)[:, pixels] if pixels.max() < here else None
            outside = (pixels >= here).sum() if codes is None else (codes < 0).all(0).sum()
            if outside:
                raise FieldError(
                    f"{self.folder}: {outside} of the {len(pixels)} pixels cached for view {name!r}"
                    f" lie in no mask of its index maps; {remedy}"
                )
            out.append(codes.astype(np.int32))
        return np.concatenate(out, 1)

    def truncation(self) -> dict[str, float]:
        """What K entries miss of a pixel's weight (mean, 99th percentile, maximum), and the share
        of sampled pixels that no Gaussian covers.
        """
        r = np.asarray(self.residual)
        return {
            "mean": float(r.mean()),
            "p99": float(np.quantile(r, 0.99)),
            "max": float(r.max()),
            "uncovered": float((self.weights[:, 0] == 0).mean()),
        }

    def check(self, gaussians: Gaussians, views: Sequence[View] | None = None) -> None:
        """Raise ArtefactError unless the cache was made from these Gaussians, and from these views
        if given.
        """
        wanted = {"gaussians": _gaussians_digest(gaussians)}
        if views is not None:
            wanted["cameras"] = _cameras_digest(views)
        _refuse_others(self.folder, self.made_from, wanted)
        if (most := int(self.ids.max())) >= len(gaussians):
            raise ArtefactError(
                f"{self.folder / 'ids'}.npy: damaged, names Gaussian {most} of {len(gaussians)};"
                f" delete {self.folder} and build the cache again"
            )


def build_blending_cache(
    folder: Path | str,
    gaussians: Gaussians,
    views: Sequence[View],
    label_maps: Mapping[str, np.ndarray],  # view name -> [levels, H, W] int, -1 = no mask
    *,
    top_k: int,
    pixels_per_mask: int,
    area_weighted: bool = False,
    seed: int,
    progress: Callable[[], None] = lambda: None,
) -> BlendingCache:
    """Sample pixels of all views and store their ``top_k`` largest weights; goes on where a killed
    build stopped.

    Stratified: ``pixels_per_mask`` pixels of every mask of every level (all of them where a mask
    has fewer), so that a small object counts as much as a large one. A pixel that is drawn at one
    level also serves the mask it lies in at the other. ``area_weighted``: about as many pixels in
    total, the same number in every view, uniform over those that lie in any mask, which keeps the
    weights that a loss over whole views has (but for views with fewer masked pixels).

    A finished cache of the same content is opened, not built. Raises ArtefactError if the folder
    holds a cache that was made from anything else or cannot be written, FieldError if no pixel lies
    in a mask or no sampled pixel is covered by a Gaussian, GaussiansError for Gaussians that cannot
    be rendered. The weights are computed on the CPU.
    """
    folder = Path(folder)
    if min(top_k, pixels_per_mask) < 1:
        raise FieldError(
            f"top_k is {top_k} and pixels_per_mask {pixels_per_mask}, expected at least 1 of each"
        )
    gaussians = gaussians.detach().to("cpu").validate()
    masks = {v.name: _mask_count(v, label_maps) for v in views}
    usable = [v for v in views if masks[v.name]]
    if not usable:
        raise FieldError(
            f"no pixel of any of the {len(views)} views lies in a mask, so there is nothing to"
            " sample; check the masks stage"
        )
    about = {
        "gaussians": _gaussians_digest(gaussians),
        "cameras": _cameras_digest(views),
        "masks": _digest(*(np.asarray(label_maps[v.name], np.int32) for v in views)),
        "top_k": top_k,
        "pixels_per_mask": pixels_per_mask,
        "area_weighted": area_weighted,
        "seed": seed,
    }
    if _is_cache(folder):
        found = _read_about(folder)
        _refuse_others(folder, found["made_from"], about)
        if found["complete"] and all((folder / f"{name}.npy").exists() for name in ARRAYS):
            return open_blending_cache(folder)
    per_view = math.ceil(pixels_per_mask * sum(masks.values()) / len(usable))
    names = [v.name for v in views]

    def sample(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if area_weighted:
            return _uniform_sample(labels, per_view, rng)
        return _stratified_sample(labels, pixels_per_mask, rng)

    try:
        # what it is made from comes first: parts of a killed build are only worth something with it
        save_json(folder / ABOUT, {"made_from": about, "names": names, "complete": False})
        for view in usable:
            if not _part(folder, view).exists():
                # of its own, so that a view's sample does not depend on the views before it
                rng = np.random.default_rng([seed, *view.name.encode()])
                pixels = sample(np.asarray(label_maps[view.name]), rng)
                _save_part(_part(folder, view), gaussians, view, pixels, top_k)
            progress()
        _join(folder, views, usable)
        save_json(folder / ABOUT, {"made_from": about, "names": names, "complete": True})
        shutil.rmtree(folder / "parts")
    except OSError as e:
        raise ArtefactError(
            f"{folder}: cannot be written ({e.strerror or e}); free space or choose another folder,"
            " then build again: finished views are kept"
        ) from e
    return open_blending_cache(folder)


def open_blending_cache(folder: Path | str) -> BlendingCache:
    """A finished cache, memory-mapped.

    Raises ArtefactError if it is missing, unfinished or damaged, FieldError if its pixels are all
    empty.
    """
    folder = Path(folder)
    if not _is_cache(folder):
        raise ArtefactError(
            f"{folder}: holds no blending cache ({ABOUT} is missing); build one with"
            " build_blending_cache"
        )
    about = _read_about(folder)
    if not about["complete"]:
        raise ArtefactError(
            f"{folder}: the blending cache is unfinished; call build_blending_cache again, which"
            " keeps its finished views"
        )
    arrays = {}
    for name in ARRAYS:
        path = folder / f"{name}.npy"
        try:
            arrays[name] = read_array(path)
        except ValueError as e:
            raise ArtefactError(
                f"{path}: damaged ({e}); delete {folder} and build the cache again"
            ) from e
    _check_arrays(folder, arrays, len(about["names"]))
    if not arrays["weights"][:, 0].any():
        raise FieldError(
            f"{folder}: no Gaussian covers any of the {len(arrays['view'])} sampled pixels; check"
            " that cameras and Gaussians share one world"
        )
    return BlendingCache(folder, about["made_from"], tuple(about["names"]), **arrays)


# --------------------------------------------------------------------------- sampling
def _mask_count(view: View, label_maps: Mapping[str, np.ndarray]) -> int:
    """Number of masks of a view, over all levels."""
    if view.name not in label_maps:
        raise FieldError(
            f"view {view.name!r} has no label map; pass one for each of the views, all -1 where"
            " nothing was segmented"
        )
    maps = np.asarray(label_maps[view.name])
    if maps.ndim != 3 or maps.shape[1:] != (view.camera.height, view.camera.width):
        raise FieldError(
            f"label maps of view {view.name!r} have shape {maps.shape}, expected [levels,"
            f" {view.camera.height}, {view.camera.width}]; pass those of its own size"
        )
    return sum(len(np.unique(m[m >= 0])) for m in maps)


def _stratified_sample(
    labels: np.ndarray, n: int, rng: np.random.Generator
) -> np.ndarray:  # [levels, H, W] -> [P] int32
    drawn = []
    for level in labels.reshape(len(labels), -1):
        for mask in np.unique(level[level >= 0]):
            inside = np.flatnonzero(level == mask)
            drawn.append(rng.choice(inside, min(n, len(inside)), replace=False))
    return np.unique(np.concatenate(drawn)).astype(np.int32)


def _uniform_sample(
    labels: np.ndarray, n: int, rng: np.random.Generator
) -> np.ndarray:  # [levels, H, W] -> [P] int32
    inside = np.flatnonzero((labels >= 0).any(0))
    return np.sort(rng.choice(inside, min(n, len(inside)), replace=False)).astype(np.int32)


# --------------------------------------------------------------------------- what it was made from
def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for a in arrays:
        digest.update(f"{a.dtype}{a.shape}".encode())
        digest.update(np.ascontiguousarray(a).data)
    return digest.hexdigest()[:16]


def _gaussians_digest(g: Gaussians) -> str:
    """Of all that decides weights: colours don't."""
    return _digest(
        *(t.detach().cpu().numpy() for t in (g.means, g.quats, g.log_scales, g.logit_opacities))
    )


def _cameras_digest(views: Sequence[View]) -> str:
    arrays = []
    for v in views:
        c = v.camera
        arrays += [
            np.frombuffer(v.name.encode(), np.uint8),
            np.asarray(c.K, float),
            np.asarray(c.world_to_camera, float),
            np.array([c.width, c.height]),
        ]
    return _digest(*arrays)


def _refuse_others(folder: Path, found: Mapping, wanted: Mapping) -> None:
    different = [k for k in wanted if found.get(k) != wanted[k]]
    if different:
        reasons = ", ".join(f"{k} {found.get(k)} where {wanted[k]} is wanted" for k in different)
        raise ArtefactError(
            f"{folder}: the blending cache was made from other {' and '.join(different)}"
            f" ({reasons}); delete the folder, or build the cache in another one"
        )


# --------------------------------------------------------------------------- files
def _is_cache(folder: Path) -> bool:
    return (folder / ABOUT).exists()


def _read_about(folder: Path) -> dict:
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if (
            not isinstance(about["made_from"], dict)
            or not isinstance(about["names"], list)
            or not all(isinstance(n, str) for n in about["names"])
        ):
            raise ValueError("expected what it was made from, and names of views")
        return {k: about[k] for k in ("made_from", "names", "complete")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise ArtefactError(
            f"{folder / ABOUT}: damaged ({e}); delete {folder} and build the cache again"
        ) from e


def _part(folder: Path, view: View) -> Path:
    return folder / "parts" / f"{view.stem}.npz"


def _check_arrays(folder: Path, arrays: Mapping[str, np.ndarray], n_views: int) -> None:
    """Raise ArtefactError for arrays that do not fit together or hold values out of range."""
    S, K = arrays["view"].size, arrays["ids"].shape[-1] if arrays["ids"].ndim else 0
    remedy = f"delete {folder} and build the cache again"
    for name, dtype in ARRAYS.items():
        a, shape = arrays[name], (S, K) if name in ("ids", "weights") else (S,)
        if a.dtype != dtype or a.shape != shape or not a.size:
            raise ArtefactError(
                f"{folder / name}.npy: damaged, holds {a.shape} of {a.dtype}, expected {shape} of"
                f" {np.dtype(dtype)}; {remedy}"
            )
        least, most = a.min(), a.max()  # of a NaN both are NaN
        fits = np.isfinite(least) and np.isfinite(most)
        fits = fits and least >= (-1e-3 if name == "residual" else 0)
        if name == "view":  # in order, which `codes` searches by
            fits = fits and most < n_views and not (np.diff(a) < 0).any()
        if not fits:
            raise ArtefactError(
                f"{folder / name}.npy: damaged, holds values out of their range; {remedy}"
            )


def _save_part(
    path: Path, gaussians: Gaussians, view: View, pixels: np.ndarray, top_k: int
) -> None:
    found = blending_weights(project(gaussians, view.camera), top_k, pixels)
    ids, weights, residual = (t.numpy() for t in found)
    # it lives until the build ends: compressing it took longer than finding the weights
    save_npz(path, compress=False, pixel=pixels, ids=ids, weights=weights, residual=residual)


def _join(folder: Path, views: Sequence[View], usable: Sequence[View]) -> None:
    """The parts one after the other, as one .npy file per array.

    Written as a stream: a memory map would be shorter, but writing to one on a full disk kills the
    process.
    """
    position = {v.name: i for i, v in enumerate(views)}
    lengths, top_k = [], 0
    for view in usable:
        part = load_npz(_part(folder, view))
        lengths.append(len(part["pixel"]))
        top_k = part["ids"].shape[1]
    with ExitStack() as stack:
        files = {}
        for name, dtype in ARRAYS.items():
            files[name] = stack.enter_context(open(folder / f"{name}.npy.tmp", "wb"))
            shape = (sum(lengths), top_k) if name in ("ids", "weights") else (sum(lengths),)
            np.lib.format.write_array_header_1_0(
                files[name], {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
            )
        for view, length in zip(usable, lengths):
            arrays = {"view": np.full(length, position[view.name], np.int32)} | load_npz(
                _part(folder, view)
            )
            for name, dtype in ARRAYS.items():
                files[name].write(np.ascontiguousarray(arrays[name], dtype).tobytes())
    for name in ARRAYS:
        (folder / f"{name}.npy.tmp").replace(folder / f"{name}.npy")
