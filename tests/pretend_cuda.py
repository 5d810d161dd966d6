"""A GPU that isn't there: tensors that were sent to "cuda" stay in main memory and remember where
they were sent.

What a real device would refuse is refused: an operation on tensors of two devices, `.numpy()` of a
device tensor, a CPU generator for device numbers. gsplat's own Python code runs; only its compiled
kernels are replaced, by the CPU rasteriser, each call checked against the signature of the
installed wrapper. So every CUDA branch can be driven where there is none.
"""

from __future__ import annotations

import contextlib
import inspect
from types import SimpleNamespace
from unittest import mock

import gsplat
import gsplat.rendering
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import cclkit.gaussians.rasterize as CPU

MARK = "_sent_to_cuda"
MOVES = {
    "to",
    "cuda",
    "cpu",
    "copy_",
    "__getitem__",
    "__setitem__",
    "index_put_",
    "index_put",
    "_has_compatible_shallow_copy_type",
}
"""Calls whose tensor arguments may lie on two devices: copies, and indices that a device takes from
the CPU.
"""
HOST_ONLY = {"numpy", "__array__"}


def on_cuda(t) -> bool:
    return isinstance(t, Tensor) and getattr(t, MARK, False)


def sent(t: Tensor) -> Tensor:
    setattr(t, MARK, True)
    return t


def is_cuda_name(x) -> bool:
    return (isinstance(x, str) and x.split(":")[0] == "cuda") or (
        isinstance(x, torch.device) and x.type == "cuda"
    )


def is_cpu_name(x) -> bool:
    return (isinstance(x, str) and x == "cpu") or (isinstance(x, torch.device) and x.type == "cpu")


def leaves(x):
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, (tuple, list)):
        for y in x:
            yield from leaves(y)
    elif isinstance(x, dict):
        for y in x.values():
            yield from leaves(y)


def replaced(x):
    """Names of the device, wherever they stand, by "cpu"."""
    if is_cuda_name(x):
        return torch.device("cpu")
    if type(x) in (tuple, list):
        return type(x)(replaced(y) for y in x)
    return x


class PretendCuda(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.moves = self.operations = 0  # to the device, and on it

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        owner = getattr(func, "__self__", None)
        if name == "__get__" and owner is Tensor.is_cuda:
            return on_cuda(args[0])
        if name == "__get__" and owner is Tensor.device:
            return torch.device("cuda", 0) if on_cuda(args[0]) else func(*args, **kwargs)
        if name == "_parse_to":  # of Module.to: reads its arguments and moves nothing
            return func(*args, **kwargs)
        if name == "pin_memory":
            return args[0]
        if name in HOST_ONLY and on_cuda(args[0]):
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the"
                " tensor to host memory first."
            )
        # its memo holds everything copied so far
        tensors = [args[0]] if name == "__deepcopy__" else list(leaves((args, kwargs)))
        here = any(map(on_cuda, tensors))
        if here and name not in MOVES and name != "__set__":
            stray = [t for t in tensors if not on_cuda(t) and t.ndim > 0]
            if stray:
                raise RuntimeError(
                    f"{name}: expected all tensors to be on the same device, found cuda:0 and a"
                    f" tensor {tuple(stray[0].shape)} on cpu"
                )
        named = [x for x in (*args, *kwargs.values()) if is_cuda_name(x) or is_cpu_name(x)]
        target = is_cuda_name(named[0]) if named else None
        if name == "cuda":
            return self._moved(args[0], args[0], True)
        if name == "cpu":
            return self._moved(args[0], func(*args, **kwargs), False)
        if name == "to" and target is None and len(args) > 1 and isinstance(args[1], Tensor):
            target = on_cuda(args[1])
        if target and isinstance(kwargs.get("generator"), torch.Generator):
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        result = func(*map(replaced, args), **{k: replaced(v) for k, v in kwargs.items()})
        if name in ("to", "as_tensor") and isinstance(args[0], Tensor):
            return self._moved(args[0], result, on_cuda(args[0]) if target is None else target)
        if name == "copy_":
            return result
        if name in ("__getitem__", "__setitem__"):
            here = on_cuda(args[0])
            if not here and any(on_cuda(t) for t in leaves(args[1])):
                raise RuntimeError(
                    "indices should be either on cpu or on the same device as the indexed tensor"
                    " (cpu)"
                )
        if name == "__set__":  # x.data = y, x.grad = y
            if isinstance(args[1], Tensor):
                if owner is Tensor.data:
                    setattr(args[0], MARK, on_cuda(args[1]))
                if owner is Tensor.grad and on_cuda(args[0]) != on_cuda(args[1]):
                    raise RuntimeError("assigned grad has data of a different device")
            return result
        if target or (here and target is None):
            self.operations += 1
            for t in leaves(result):
                sent(t)
        return result

    def _moved(self, before: Tensor, after: Tensor, to_cuda: bool) -> Tensor:
        if on_cuda(before) == to_cuda:
            return sent(after) if to_cuda else after
        self.moves += to_cuda
        with torch._C.DisableTorchFunction():
            # a copy on another device shares no memory
            after = after.clone() if after is before else after
        setattr(after, MARK, to_cuda)
        return after


class Autocast(torch.autocast):
    """autocast("cuda") by the CPU's."""

    def __init__(self, device_type, *args, **kwargs):
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


# ---------------------------------------------------------------- gsplat's kernels, by the CPU
# rasteriser


class Kernels:
    """Stand-ins for the compiled functions that gsplat.rasterization calls."""

    def __init__(self):
        self.calls: dict[str, int] = {}
        self.seen = None

    def checked(self, real, stand_in):
        signature = inspect.signature(real)

        def call(*args, **kwargs):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            for t in leaves(list(bound.arguments.values())):
                if not on_cuda(t):
                    raise RuntimeError(
                        f"gsplat.{real.__name__}: got a tensor {tuple(t.shape)} on cpu"
                    )
            self.calls[real.__name__] = self.calls.get(real.__name__, 0) + 1
            with torch._C.DisableTorchFunction():
                result = stand_in(
                    SimpleNamespace(
                        **{
                            k: v.view_as(v) if isinstance(v, Tensor) else v
                            for k, v in bound.arguments.items()
                        }
                    )
                )
                for t in leaves(result):
                    sent(t)
            return result

        return call

    def fully_fused_projection(self, a):
        assert (
            not a.packed
            and a.covars is None
            and a.camera_model == "pinhole"
            and a.viewmats.shape == (1, 4, 4)
            and a.means.dtype == torch.float32
        )
        assert (a.eps2d, a.near_plane) == (CPU._cpu.EPS2D, CPU._cpu.NEAR)
        camera = SimpleNamespace(
            width=a.width,
            height=a.height,
            K=a.Ks[0].double().numpy(),
            world_to_camera=a.viewmats[0].double().numpy(),
            centre=None,
        )
        means2d, conics, _, depths, _, radii = CPU._Project.apply(
            a.means,
            a.quats,
            a.scales.log(),
            a.opacities.logit(),
            a.means.new_zeros(len(a.means), 1, 3),
            1,
            camera,
        )
        return radii[None], means2d[None], depths[None], conics[None], None

    def isect_tiles(self, a):
        self.seen = (a.depths[0].detach(), a.radii[0])
        return (
            torch.zeros_like(a.radii[..., 0]),
            torch.zeros(0, dtype=torch.int64),
            torch.zeros(0, dtype=torch.int32),
        )

    def isect_offset_encode(self, a):
        return torch.zeros(a.n_images, a.tile_height, a.tile_width, dtype=torch.int32)

    def rasterize_to_pixels(self, a):
        assert a.tile_size == CPU._cpu.TILE and not a.packed and a.backgrounds is None
        depths, radii = self.seen
        size = SimpleNamespace(width=a.image_width, height=a.image_height)
        m, q, o = a.means2d[0], a.conics[0], a.opacities[0]
        tiles = CPU._build_tiles(m, q, o, depths, radii, size)
        # colours per camera or shared; the graph runs through means2d as given, which densification
        # reads
        image, alpha = CPU._Splat.apply(
            m, q, o, a.colors[0] if a.colors.ndim == 3 else a.colors, tiles, size.width, size.height
        )
        return image[None], alpha[None, ..., None]


@contextlib.contextmanager
def pretend_cuda():
    """Within it torch believes in a GPU, and gsplat runs. Yields the mode and the kernels, which
    count.
    """
    from gsplat.cuda._torch_impl import _spherical_harmonics

    kernels, mode = Kernels(), PretendCuda()
    parameter = torch.nn.Parameter.__new__

    def new_parameter(cls, data=None, requires_grad=True):
        p = parameter(cls, data, requires_grad)
        return sent(p) if on_cuda(data) else p

    with contextlib.ExitStack() as stack:
        patch = lambda target, name, value: stack.enter_context(
            mock.patch.object(target, name, value)
        )
        for name in (
            "fully_fused_projection",
            "isect_tiles",
            "isect_offset_encode",
            "rasterize_to_pixels",
        ):
            patch(
                gsplat.rendering,
                name,
                kernels.checked(getattr(gsplat.rendering, name), getattr(kernels, name)),
            )
        patch(
            gsplat,
            "spherical_harmonics",
            kernels.checked(
                gsplat.spherical_harmonics,
                lambda a: _spherical_harmonics(a.degrees_to_use, a.dirs, a.coeffs),
            ),
        )
        patch(torch.cuda, "is_available", lambda: True)
        patch(torch.cuda, "synchronize", lambda *a: None)
        patch(torch, "autocast", Autocast)
        # asks the driver
        patch(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda self: None)
        patch(torch.nn.Parameter, "__new__", new_parameter)
        fork = torch.random.fork_rng
        patch(torch.random, "fork_rng", lambda devices=None, **kw: fork(devices=[], **kw))
        stack.enter_context(mode)
        yield SimpleNamespace(mode=mode, calls=kernels.calls)
