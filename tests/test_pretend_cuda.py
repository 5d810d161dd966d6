"""The pretended device refuses what a real one refuses; with it, the CUDA branch of the rasteriser
equals the CPU's.
"""

import numpy as np
import pytest
import torch
from pretend_cuda import pretend_cuda

from cclkit.gaussians.model import Gaussians
from cclkit.gaussians.rasterize import rasterize
from cclkit.scenes.scene import Camera


def test_it_behaves_as_a_device():
    with pretend_cuda():
        a, b = torch.ones(3), torch.ones(3, device="cuda")
        c = a.to("cuda")
        assert (
            c.is_cuda and c.device.type == "cuda" and not a.is_cuda and c.data_ptr() != a.data_ptr()
        )
        assert (
            (b + c).is_cuda
            and (c * 2).sum().is_cuda
            and not c.cpu().is_cuda
            and torch.zeros_like(c).is_cuda
        )
        for wrong in (
            lambda: a + b,
            lambda: torch.cat([a, b]),
            lambda: b.numpy(),
            lambda: np.asarray(b),
            lambda: a[b > 0],
            lambda: torch.rand(2, device="cuda", generator=torch.Generator()),
        ):
            with pytest.raises((RuntimeError, TypeError), match="device|cuda"):
                wrong()
        # indices and single numbers may come from the CPU
        assert b[torch.tensor([0])].is_cuda and (b * torch.tensor(2.0)).is_cuda
        net = torch.nn.Linear(3, 2).to("cuda")
        assert next(net.parameters()).device.type == "cuda" and net(b).is_cuda
        with pytest.raises(RuntimeError, match="device"):
            net(a)
        net(b).sum().backward()
        torch.optim.Adam(net.parameters()).step()
        assert net.weight.grad.is_cuda
    assert not torch.cuda.is_available() or torch.ones(1).device.type == "cpu"


def problem(n=60):
    g = torch.Generator().manual_seed(0)
    r = lambda *s: torch.randn(s, generator=g)
    return Gaussians(
        r(n, 3) * 0.3 + torch.tensor([0, 0, 2.0]),
        r(n, 4),
        r(n, 3) * 0.2 - 2.5,
        r(n),
        r(n, 9, 3) * 0.3,
    ), r(n, 8)


def test_the_cuda_branch_equals_the_cpu_in_values_and_gradients():
    """gsplat's own Python, its kernels replaced: arguments, channels, depth, and what the strategy
    reads.
    """
    cam = Camera(np.array([[40.0, 0, 20], [0, 40, 15], [0, 0, 1]]), np.eye(4), 41, 30)

    def render(g, f):
        tensors = [
            t.detach().clone().requires_grad_()
            for t in (g.means, g.quats, g.log_scales, g.logit_opacities, g.sh, f)
        ]
        leaf = Gaussians(*tensors[:5])
        with_device = [t.to(device) for t in tensors]
        out = rasterize(
            Gaussians(*with_device[:5]),
            cam,
            with_device[5],
            background=torch.tensor([0.2, 0.1, 0.3]).to(device),
            sh_degree=1,
        )
        out.info["means2d"].retain_grad()
        (
            out.color.square().sum()
            + out.features.square().sum()
            + out.depth.sum()
            + out.alpha.sum()
        ).backward()
        assert leaf.sh.grad is not None
        return (
            [out.color, out.features, out.depth, out.alpha, out.info["means2d"].grad],
            [t.grad for t in tensors],
            out,
        )

    g, f = problem()
    device = "cpu"
    want, want_grads, _ = render(g, f)
    with pretend_cuda() as gpu:
        device = "cuda"
        got, got_grads, out = render(g, f)
        assert (
            all(t.is_cuda for t in got)
            and out.info["n_cameras"] == 1
            and out.info["gaussian_ids"] is None
        )
        assert out.info["radii"].shape == (1, len(g), 2) and out.info["means2d"].shape == (
            1,
            len(g),
            2,
        )
        got, got_grads = [t.cpu() for t in got], [t.cpu() for t in got_grads]
    assert set(gpu.calls) == {
        "spherical_harmonics",
        "fully_fused_projection",
        "isect_tiles",
        "isect_offset_encode",
        "rasterize_to_pixels",
    }
    for a, b in zip(want + want_grads, got + got_grads, strict=True):
        assert (a - b).norm() <= 1e-3 * a.norm() + 1e-4
