"""Gaussians: the parameters of a 3D Gaussian splat, and their file format.

Source of the layout: Kerbl et al. 2023, "3D Gaussian Splatting for Real-Time Radiance Field
Rendering"; the PLY opens in any splat viewer.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import GaussiansError
from .ply import read_vertices, table_bytes

SH_SIZES = (1, 4, 9, 16)
"""Number of SH coefficients per colour channel at degree 0, 1, 2, 3."""


@dataclass
class Gaussians:
    """G anisotropic 3D Gaussians in world units. All tensors share one dtype and device.

    float32 in use; float64 is allowed and meant for tests.

    >>> import torch
    >>> means, quats = torch.zeros(5, 3), torch.tensor([[1.0, 0, 0, 0]]).repeat(5, 1)
    >>> log_scales, logit_opacities = torch.full((5, 3), -2.0), torch.zeros(5)
    >>> g = Gaussians(means, quats, log_scales, logit_opacities, sh=torch.zeros(5, 4, 3))
    >>> len(g), g.sh_degree
    (5, 1)
    """

    means: Tensor  # [G, 3] world units
    quats: Tensor  # [G, 4] wxyz, not necessarily unit
    log_scales: Tensor  # [G, 3] scale = exp, world units
    logit_opacities: Tensor  # [G] opacity = sigmoid
    sh: Tensor  # [G, K, 3] K = 1, 4, 9 or 16; colour = max(SH(direction) + 0.5, 0)

    def __len__(self) -> int:
        return int(self.means.shape[0])

    @property
    def sh_degree(self) -> int:
        """Highest SH degree stored: 0..3. Raises GaussiansError if K is none of 1, 4, 9, 16."""
        k = self.sh.shape[1] if self.sh.ndim == 3 else None
        if k not in SH_SIZES:
            raise GaussiansError(
                f"sh has shape {tuple(self.sh.shape)}, expected [G, K, 3] with K in {SH_SIZES}; pad"
                " it with zeros"
            )
        return SH_SIZES.index(k)

    def to(self, device=None, dtype: torch.dtype | None = None) -> Gaussians:
        """The same Gaussians on another device or in another float type (differentiable)."""
        return Gaussians(
            *(getattr(self, f.name).to(device=device, dtype=dtype) for f in fields(self))
        )

    def detach(self) -> Gaussians:
        """The same Gaussians, cut from any autograd graph (no copy)."""
        return Gaussians(*(getattr(self, f.name).detach() for f in fields(self)))

    def select(self, keep: Tensor | np.ndarray) -> Gaussians:  # keep: [G] bool
        """The Gaussians for which ``keep`` is true, in order. Raises GaussiansError if there is not
        one value for each.
        """
        keep = torch.as_tensor(keep, device=self.means.device)
        if keep.dtype != torch.bool or keep.shape != (len(self),):
            raise GaussiansError(
                f"keep is {keep.dtype} of shape {tuple(keep.shape)}, expected bool of"
                f" ({len(self)},): one value for each Gaussian"
            )
        return Gaussians(*(getattr(self, f.name)[keep] for f in fields(self)))

    def with_sh(self, sh: Tensor) -> Gaussians:  # sh: [G, K, 3]
        """The same geometry with other colours."""
        return replace(self, sh=sh)

    def check_shapes(self) -> None:
        """Raise GaussiansError if shapes, dtypes or devices do not fit together (cheap, no data
        read).
        """
        G = self.means.shape[0] if self.means.ndim else -1
        for name, tail in (
            ("means", (3,)),
            ("quats", (4,)),
            ("log_scales", (3,)),
            ("logit_opacities", ()),
        ):
            shape = tuple(getattr(self, name).shape)
            if shape != (G, *tail):
                raise GaussiansError(
                    f"{name} has shape {shape}, expected {(G, *tail)}; G is the length of means"
                )
        if self.sh.ndim != 3 or self.sh.shape[0] != G or self.sh.shape[2] != 3:
            raise GaussiansError(
                f"sh has shape {tuple(self.sh.shape)}, expected ({G}, K, 3) with K in {SH_SIZES}"
            )
        _ = self.sh_degree  # raises on another K
        for f in fields(self):
            t = getattr(self, f.name)
            if t.dtype != self.means.dtype or t.dtype not in (torch.float32, torch.float64):
                raise GaussiansError(
                    f"{f.name} is {t.dtype} and means {self.means.dtype}, expected float32 in all;"
                    " use .to(dtype=torch.float32)"
                )
            if t.device != self.means.device:
                raise GaussiansError(
                    f"{f.name} is on {t.device}, means on {self.means.device}; use .to(device)"
                )

    def validate(self) -> Gaussians:
        """Return self, or raise GaussiansError naming what is wrong: shapes, NaN, inf, zero
        quaternions.
        """
        self.check_shapes()
        for f in fields(self):
            t = getattr(self, f.name).detach()
            bad = ~torch.isfinite(t.flatten(1) if t.ndim > 1 else t[:, None]).all(dim=1)
            if bool(bad.any()):
                first = int(torch.nonzero(bad)[0])
                raise GaussiansError(
                    f"{f.name} holds NaN or inf in {int(bad.sum())} of {len(self)} Gaussians, first"
                    f" at index {first}; lower the learning rates, or remove these Gaussians"
                )
        zero = self.quats.detach().norm(dim=1) == 0
        if bool(zero.any()):
            raise GaussiansError(
                f"quats is all zero in {int(zero.sum())} of {len(self)} Gaussians, first at index "
                f"{int(torch.nonzero(zero)[0])}; use (1, 0, 0, 0) for no rotation"
            )
        return self


def _property_names(n_sh: int) -> list[str]:
    rest = [f"f_rest_{i}" for i in range(3 * (n_sh - 1))]
    return (
        ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *rest, "opacity"]
        + [f"scale_{i}" for i in range(3)]
        + [f"rot_{i}" for i in range(4)]
    )


def save_ply(gaussians: Gaussians, path: str | Path) -> Path:
    """Write the standard 3DGS layout: binary little-endian PLY of float32, f_rest channel-major.

    The same Gaussians give the same bytes. Written beside ``path`` under a temporary name and
    renamed, so that a killed run leaves no half file. Raises GaussiansError for Gaussians that
    do not validate or a folder that cannot be written.

    >>> from torch import ones, zeros
    >>> g = Gaussians(zeros(5, 3), ones(5, 4), zeros(5, 3), zeros(5), sh=zeros(5, 1, 3))
    >>> save_ply(g, folder / "five.ply").name
    'five.ply'
    """
    path = Path(path)
    g = gaussians.detach().to("cpu", torch.float32).validate()
    sh = g.sh.numpy()
    table = np.concatenate(
        [
            g.means.numpy(),
            np.zeros((len(g), 3), np.float32),  # normals: unused, but viewers expect the columns
            sh[:, 0],
            sh[:, 1:].transpose(0, 2, 1).reshape(len(g), 3 * (sh.shape[1] - 1)),
            g.logit_opacities.numpy()[:, None],
            g.log_scales.numpy(),
            g.quats.numpy(),
        ],
        axis=1,
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as out:
            out.write(table_bytes(table, _property_names(sh.shape[1])))
        os.replace(temporary, path)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise GaussiansError(
            f"{path}: cannot be written ({e.strerror or e}); free space, or choose a folder that"
            " exists and is writable"
        ) from e
    return path


def load_ply(path: str | Path) -> Gaussians:
    """Read a 3DGS PLY of any SH degree 0..3 into float32 tensors on the CPU.

    Raises GaussiansError naming the file, what was found, what was expected and the remedy.

    >>> from torch import equal, ones, zeros
    >>> g = Gaussians(zeros(5, 3), ones(5, 4), zeros(5, 3), zeros(5), sh=zeros(5, 1, 3))
    >>> again = load_ply(save_ply(g, folder / "five.ply"))
    >>> len(again), equal(again.quats, g.quats)
    (5, True)
    """
    path = Path(path)
    remedy = "export the splat again in the standard 3DGS layout"
    vertex = read_vertices(path, remedy)
    have = vertex.dtype.names or ()
    n_rest = sum(1 for n in have if n.startswith("f_rest_"))
    n_sh = n_rest // 3 + 1
    if n_rest % 3 or n_sh not in SH_SIZES:
        raise GaussiansError(
            f"{path}: has {n_rest} f_rest_* columns, expected 0, 9, 24 or 45 (SH degree 0..3);"
            f" {remedy}"
        )
    wanted = [n for n in _property_names(n_sh) if n not in ("nx", "ny", "nz")]
    missing = [n for n in wanted if n not in have]
    if missing:
        raise GaussiansError(
            f"{path}: lacks the columns {', '.join(missing)}, has {', '.join(have) or 'none'};"
            f" {remedy}"
        )

    columns = {n: vertex[n].astype(np.float32) for n in wanted}

    def stack(*names: str) -> Tensor:
        return torch.from_numpy(np.stack([columns[n] for n in names], axis=-1))

    dc = stack("f_dc_0", "f_dc_1", "f_dc_2")[:, None]  # [G, 1, 3]
    sh = dc
    if n_rest:
        rest = stack(*(f"f_rest_{i}" for i in range(n_rest))).reshape(-1, 3, n_sh - 1)
        sh = torch.cat([dc, rest.transpose(1, 2)], dim=1)
    out = Gaussians(
        means=stack("x", "y", "z"),
        quats=stack("rot_0", "rot_1", "rot_2", "rot_3"),
        log_scales=stack("scale_0", "scale_1", "scale_2"),
        logit_opacities=stack("opacity")[:, 0].contiguous(),
        sh=sh.contiguous(),
    )
    try:
        return out.validate()
    except GaussiansError as e:
        raise GaussiansError(f"{path}: {e}") from e
