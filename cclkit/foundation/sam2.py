"""SAM2's role, by sam2's video predictor: the views are frames, the first view's masks its prompts
(paper §3).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from torch.nn import functional as F

from ..errors import ModelError, needed
from ..files import load_npz, save_npz
from ..rle import pack_masks, unpack_masks
from ..settings import POSITIVE, OneOf, as_dict, multiple_of
from . import weights
from .mini_sam2 import FOLLOW_SIZE, build_mini_sam2
from .roles import Model, Setup, kept
from .weights import MINI_SAM2, fetched, fill, folder, load_mini, load_weights

if TYPE_CHECKING:
    from ..scenes.scene import View
    from .front_end import FrontEndConfig

CONFIGS = {
    f"{family}_{size}": f"configs/{family.removesuffix('_hiera')}/{family}_{letter}.yaml"
    for family in ("sam2.1_hiera", "sam2_hiera")
    for size, letter in (("tiny", "t"), ("small", "s"), ("base_plus", "b+"), ("large", "l"))
}
"""Model name -> its configuration inside the sam2 package."""


@dataclass(frozen=True)
class Sam2Config:
    """The sam2 video predictor that carries masks from view to view."""

    model: Annotated[str, OneOf("mini", *CONFIGS)] = "mini"
    """"mini" (bundled, trained on random Tabletop orbits; 256 pixels, whatever image_size says), or
    "sam2.1_hiera_" or "sam2_hiera_" with tiny, small, base_plus or large. Paper: SAM2, variant not
    given (ours: 2.1 large in paper).
    """
    checkpoint: str = ""
    """Path of the weights; empty: the bundled ones of mini, else what `cclkit data fetch` brought.
    The file's sha256 counts for artefact keys, not its path.
    """
    image_size: Annotated[int, multiple_of(32)] = 1024
    """Side of the square that views are resized to, pixels; a multiple of 32. Paper does not say
    (ours: 1024, because the public weights were trained with it; mini-SAM2 has a size of its own).
    """
    objects_per_chunk: Annotated[int, POSITIVE] = 16
    """Objects carried through the views at once; memory grows with it, and with fewer the images
    are encoded more often.
    """
    offload: bool = True
    """Keep images and memory of the sequence in main memory, not on the device."""
    precision: Annotated[str, OneOf("float32", "bfloat16")] = "float32"
    """"float32" or "bfloat16"."""


class Sam2Propagation:
    """Carries masks with a `SAM2VideoPredictor`. Memory is bounded by the number of objects tracked
    at once.
    """

    def __init__(self, predictor, config: Sam2Config, device: str = "cpu"):
        self.predictor, self.config, self.device = predictor.to(device).eval(), config, device

    def propagate(
        self, views: Sequence[View], masks: np.ndarray, keep: Path | None = None
    ) -> Iterator[tuple[View, np.ndarray]]:
        """Masks [K, H, W] bool of views[0] in every view, in the order given; yields (view, [K, H,
        W] bool).

        Objects go through the whole sequence in chunks; what a chunk found is held as run lengths,
        and written to the folder ``keep`` if there is one, where a stopped run finds it again. An
        empty mask stays empty. In the first view the masks are returned as they came.
        """
        size = self.config.objects_per_chunk
        chunks = [range(i, min(i + size, len(masks))) for i in range(0, len(masks), size)]
        done = [self._found(keep, c, chunk, views) for c, chunk in enumerate(chunks)]
        if any(d is None for d in done):
            _silence()
            with self._frames(views) as folder:
                state = self.predictor.init_state(
                    folder,
                    offload_video_to_cpu=self.config.offload,
                    offload_state_to_cpu=self.config.offload,
                )
                for c, chunk in enumerate(chunks):
                    if done[c] is None:
                        done[c] = self._chunk(state, views, masks[chunk.start : chunk.stop])
                        if keep is not None:
                            save_npz(_file(keep, c), **done[c])
        starts = [np.concatenate([[0], np.cumsum(d["rle_length"])]) for d in done]
        for n, view in enumerate(views):
            out = _nothing(view, len(masks))
            for chunk, d, start in zip(chunks, done, starts):
                rows = range(n * len(chunk), (n + 1) * len(chunk))
                runs = {
                    "rle": d["rle"][start[rows.start] : start[rows.stop]],
                    "rle_length": d["rle_length"][rows.start : rows.stop],
                }
                out[chunk.start : chunk.stop] = unpack_masks(runs, out.shape[1:])
            yield view, masks if n == 0 else out

    def _chunk(
        self, state: dict, views: Sequence[View], masks: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Run lengths of all masks [k, H, W] in all views, views first."""
        p = self.predictor
        p.reset_state(state)
        shown = np.flatnonzero(masks.any((1, 2)))
        if len(shown) == 0:
            return _joined([pack_masks(_nothing(v, len(masks))) for v in views])
        packed = []
        bfloat16 = self.config.precision == "bfloat16"
        device = torch.device(self.device).type
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            for k in shown:
                p.add_new_mask(state, frame_idx=0, obj_id=int(k), mask=torch.from_numpy(masks[k]))
            for n, ids, logits in p.propagate_in_video(state):
                out = _nothing(views[n], len(masks))
                size = out.shape[1:]
                if logits.shape[-2:] != size:  # it answers in the size of its last frame
                    logits = F.interpolate(
                        logits.float(), size=size, mode="bilinear", align_corners=False
                    )
                for k, m in zip(ids, (logits[:, 0] > 0).cpu().numpy()):
                    out[k] = m
                packed.append(pack_masks(out))
                self._forget(state, n)
        return _joined(packed)

    def _forget(self, state: dict, frame: int) -> None:
        """Drop what no later frame looks at: memory holds the last frames only, pointers a few
        more.
        """
        oldest = frame - max(self.predictor.num_maskmem, self.predictor.max_obj_ptrs_in_encoder)
        for outputs in state["output_dict_per_obj"].values():
            kept = outputs["non_cond_frame_outputs"]
            for n in [n for n in kept if n < oldest]:
                del kept[n]

    @contextlib.contextmanager
    def _frames(self, views: Sequence[View]) -> Iterator[str]:
        """A folder in which the views stand under integer names, as the predictor wants them."""
        with tempfile.TemporaryDirectory() as folder:
            for n, view in enumerate(views):
                # only the ending is looked at: a PNG is read all the same
                name = os.path.join(folder, f"{n:06d}.jpg")
                try:
                    os.symlink(Path(view.image_path).resolve(), name)
                except OSError:  # no links on this file system
                    shutil.copyfile(view.image_path, name)
            yield folder

    def _found(
        self, keep: Path | None, c: int, chunk: range, views: Sequence[View]
    ) -> dict[str, np.ndarray] | None:
        if keep is None or not _file(keep, c).is_file():
            return None
        found = load_npz(_file(keep, c))
        if len(found["rle_length"]) != len(chunk) * len(views):
            return None
        return {k: found[k] for k in ("rle", "rle_length")}


def sam2_propagation(config: Sam2Config, device: str = "cpu") -> Sam2Propagation:
    """The adapter with its weights loaded. Raises ModelError."""
    return Sam2Propagation(
        load_sam2(config.model, config.checkpoint, config.image_size), config, device
    )


def load_sam2(model: str, checkpoint: str = "", image_size: int = 1024):
    """A `SAM2VideoPredictor`: "mini", or of the 2.0 or 2.1 family, by name and checkpoint. Raises
    ModelError.
    """
    if model == "mini":
        return load_mini_sam2(Path(checkpoint) if checkpoint else None)
    path = checkpoint or fetched(model)
    if not path:
        raise ModelError(
            f"front_end.sam2.model={model!r} has no weights here; run `cclkit data fetch {model}`"
            " (or give the path of that checkpoint in front_end.sam2.checkpoint)"
        )
    return fill(
        build_sam2(model, image_size), load_weights(path, f"SAM2 {model}"), path, f"SAM2 {model}"
    )


def build_sam2(model: str, image_size: int = 1024):
    """The architecture with fresh weights, on the CPU. Raises MissingPackageError without sam2."""
    with needed("sam2"):
        from sam2.build_sam import build_sam2_video_predictor

    # what the package sets for predicting, without its filling of small holes, which needs a
    # compiled CUDA extension
    settings = [
        f"++model.image_size={image_size}",
        "++model.sam_mask_decoder_extra_args.dynamic_multimask_via_stability=true",
        "++model.sam_mask_decoder_extra_args.dynamic_multimask_stability_delta=0.05",
        "++model.sam_mask_decoder_extra_args.dynamic_multimask_stability_thresh=0.98",
        "++model.binarize_mask_from_pts_for_mem_enc=true",
    ]
    return build_sam2_video_predictor(
        CONFIGS[model],
        None,
        device="cpu",
        apply_postprocessing=False,
        hydra_overrides_extra=settings,
    )


def _silence() -> None:
    """The package's own progress bars would stand in notebooks and logs, one a chunk."""
    with needed("sam2"):
        import sam2.sam2_video_predictor
        import sam2.utils.misc

    sam2.sam2_video_predictor.tqdm = sam2.utils.misc.tqdm = lambda items, **_: items


def _nothing(view: View, K: int) -> np.ndarray:
    """No pixel in any of K masks of a view: [K, H, W] bool."""
    return np.zeros((K, view.camera.height, view.camera.width), bool)


def _joined(packed: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {k: np.concatenate([a[k] for a in packed]) for k in ("rle", "rle_length")}


def _file(folder: Path, chunk: int) -> Path:
    return Path(folder) / f"carried_{chunk:03d}.npz"


def load_mini_sam2(path: Path | None = None):
    """mini-SAM2 from a file (None: the bundled weights, whose digest is checked)."""
    tensors = load_mini(MINI_SAM2, "mini-SAM2", path)
    return fill(build_mini_sam2(FOLLOW_SIZE), tensors, path or folder() / MINI_SAM2, "mini-SAM2")


def _build(setup: Setup) -> Sam2Propagation:
    return sam2_propagation(setup.settings.sam2, setup.device)


def _label(settings: FrontEndConfig) -> str:
    model = settings.sam2.model
    return "mini-SAM2" if model == "mini" else model.replace("sam2", "SAM2", 1)


def _settings(setup: Setup) -> dict:
    c = setup.settings.sam2
    own = kept(as_dict(c), "checkpoint", "objects_per_chunk", "offload")
    own |= {"weights": weights.identity(c.model, c.checkpoint, MINI_SAM2), "device": setup.device}
    return own


TRACKER = Model(_build, _label, _settings)
