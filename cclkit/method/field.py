"""Stage 4: the semantic field (paper §3; the codebook is frozen here).

Every Gaussian carries an 8-d feature per level. A view's feature map is splatted as colours are,
decoded by an MLP to logits over the N codes, and trained with cross-entropy against the index maps:

    F      = sum of α T f over the Gaussians of a pixel       `SemanticField.render`
    logits = MLP(F / |F|)                                     `Decoder`
    L      = mean over masked pixels of CE(logits, code)      `field_loss`, summed over the levels

All pixels inside any mask count, those of masks without a track label (y = -1) included.

`train_joint` is the paper's form: colours, geometry, features and decoders together. `train_field`
trains features and decoders on Gaussians that are finished. What is ours beside them, pixels from a
cache and a start by votes, stands in `field_cached`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import FieldError
from ..gaussians.model import Gaussians
from ..gaussians.rasterize import Projection, project, rasterize, splat_features
from ..gaussians.reconstruct import FitConfig, JointFeatures, fit_rgb
from ..scenes.scene import Camera, View
from ..settings import BETAS, POSITIVE, WIDTHS, OneOf


@dataclass(frozen=True)
class FieldConfig:
    """Stage 4: the semantic field."""

    mode: Annotated[str, OneOf("rasterised", "cached", "joint")] = "rasterised"
    """"joint" (colours, geometry and features together, one whole view per step), or, with the
    Gaussians frozen after their reconstruction, "rasterised" (one whole view per step) or "cached"
    (pixels of all views, their blending weights computed once). Paper: joint (ours: joint in paper;
    rasterised in mini, so that codebooks can be compared on one reconstruction).
    """
    init: Annotated[str, OneOf("random", "votes")] = "random"
    """Features at the start, with frozen Gaussians: "random", or "votes" (every code a random unit
    vector, every Gaussian the mean of those its pixels vote for, as in the closed form). Paper does
    not say (ours: random, because joint training has no other way).
    """
    dim: Annotated[int, POSITIVE] = 8
    """Length d_f of the feature carried by each Gaussian. Paper: 8."""
    hidden: Annotated[tuple[int, ...], WIDTHS] = (64,)
    """Hidden widths of the MLP decoder. Paper does not say (ours: 64 in mini because it is fast;
    128, 256 in paper because LEGaussians has them).
    """
    iterations: Annotated[int, POSITIVE] = 200
    """Steps, both levels at once, of one view each or of `batch` pixels (see mode); with mode
    "joint", gaussians.iterations count instead. Paper: 30,000.
    """
    lr: Annotated[float, POSITIVE] = 2e-3
    """Adam learning rate of the decoder. Paper: 0.001 over 30,000 steps, without saying for which
    stage (ours in mini: 0.002 over few steps).
    """
    feature_lr: Annotated[float, POSITIVE] = 5e-2
    """Adam learning rate of the Gaussians' features. Paper: 0.001 over 30,000 steps, without saying
    for which stage (ours in mini: 0.05, since a feature cannot move further than rate × steps).
    """
    betas: Annotated[tuple[float, float], BETAS] = (0.9, 0.999)
    """Adam betas. Paper: (0.9, 0.999), without saying for which stage."""
    normalise: bool = True
    """L2-normalise the rendered feature before decoding, as LEGaussians does. Paper does not say
    (ours: on, because the decoder should not see how opaque a pixel is).
    """
    joint_geometry: bool = True
    """With mode "joint": let the semantic loss move, shape and densify the Gaussians too. Paper:
    its framework figure marks position, rotation, scale and opacity as trained along (on).
    """
    joint_weight: Annotated[float, POSITIVE] = 1.0
    """With mode "joint": weight of the semantic loss beside the colour's. Paper does not say (ours:
    1, because LEGaussians adds them as they are).
    """
    batch: Annotated[int, POSITIVE] = 4096
    """Pixels per step, with mode "cached". Paper does not say (it renders whole views; ours: 4,096,
    because that takes about as long as the update of 300,000 Gaussians).
    """
    top_k: Annotated[int, POSITIVE] = 16
    """Gaussians kept per cached pixel, those with the largest weights; disk and time grow with it.
    Paper does not say (it has no cache; ours: 16, because disk and time grow with it; what they
    miss is reported).
    """
    pixels_per_mask: Annotated[int, POSITIVE] = 1024
    """Pixels sampled from every mask of every view for the cache; disk and build time grow with it.
    Paper does not say (it has no cache; ours: 1,024, because Gaussians between sparser pixels stay
    untrained: with 128 per mask mIoU fell by 6 and 13 points on two bundled scenes).
    """
    area_weighted: bool = True
    """Sample as many pixels uniformly over all masked ones instead of the same number from each
    mask, which keeps the loss's weights. Paper does not say (it uses all pixels; ours: on, because
    whole views weigh so too, and mIoU was 1 and 3 points higher on two bundled scenes; off, small
    objects count as much as large ones).
    """


# ----------------------------------------------------------------- the field


class Decoder(nn.Module):
    """Rendered feature [..., d_f] -> logits over the N codes of one level [..., N].

    Weights are drawn from the generator, uniform within 1/sqrt(inputs) as PyTorch's own are.
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int],
        n_codes: int,
        *,
        normalise: bool,
        generator: torch.Generator,
    ):
        super().__init__()
        widths = [dim, *hidden, n_codes]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))
        self.normalise = normalise
        for layer in self.layers:  # drawn again: the modules drew from the global generator
            bound = layer.in_features**-0.5
            for p in (layer.weight, layer.bias):
                p.data.copy_((torch.rand(p.shape, generator=generator) * 2 - 1) * bound)

    def forward(self, x: Tensor) -> Tensor:
        if self.normalise:
            x = nn.functional.normalize(x, dim=-1, eps=1e-6)
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)


@dataclass(frozen=True)
class SemanticField:
    """Features and decoders of both levels."""

    features: Tensor  # [levels, G, d_f] float32
    decoders: tuple[Decoder, ...]  # one per level

    def render(self, gaussians: Gaussians, camera: Camera) -> Tensor:  # [levels, H, W, d_f]
        """Feature maps of any camera, a training view's or a novel one.

        Raises FieldError for other Gaussians than those that the field was trained on.
        """
        L, G, d = self.features.shape
        if G != len(gaussians):
            raise FieldError(
                f"the field has features of {G} Gaussians, the reconstruction has {len(gaussians)};"
                " train the field on these Gaussians"
            )
        flat = self.features.permute(1, 0, 2).reshape(G, L * d)
        with torch.no_grad():
            maps = splat_features(project(gaussians, camera), flat)
        return maps.view(camera.height, camera.width, L, d).permute(2, 0, 1, 3)

    def codes(self, gaussians: Gaussians, camera: Camera) -> np.ndarray:  # [levels, H, W] int32
        """Most likely code of every pixel."""
        maps, out = self.render(gaussians, camera), []
        with torch.no_grad():
            for decoder, m in zip(self.decoders, maps):
                out.append(torch.cat([decoder(rows).argmax(-1) for rows in m.split(64)]))
        return torch.stack(out).cpu().numpy().astype(np.int32)

    def expected(
        self,
        gaussians: Gaussians,
        camera: Camera,
        scores: Sequence[Tensor],  # per level [P, N]: of P phrases for N codes
    ) -> Tensor:  # [P, levels, H, W]
        """Mean score of every pixel over the codes, weighted by the decoder's softmax."""
        maps, out = self.render(gaussians, camera), []
        with torch.no_grad():
            for decoder, m, own in zip(self.decoders, maps, scores):
                # a few rows at a time: all probabilities would be N / d_f times as large as a map
                rows = [decoder(some).softmax(-1) @ own.T for some in m.split(64)]
                out.append(torch.cat(rows).permute(2, 0, 1))
        return torch.stack(out, 1)


# ----------------------------------------------------------------- training


def train_joint(
    gaussians: Gaussians,
    views: Sequence[View],
    index_maps: Mapping[str, np.ndarray],  # view name -> [levels, H, W] int, -1 = no mask
    n_codes: Sequence[int],  # N of each level
    config: FieldConfig,
    fit: FitConfig,
    **run,
) -> tuple[Gaussians, SemanticField, dict[str, list], dict[str, np.ndarray]]:
    """Optimise colours, geometry, features and decoders together: one random view per iteration, as
    `fit_rgb` does.

    One rasterisation gives the colours and the features of both levels; where
    `config.joint_geometry` is off, a second one, with frozen geometry, gives the features, and the
    Gaussians come out as `fit_rgb` alone leaves them. ``fit`` says how many iterations and which
    seed; ``run`` are `fit_rgb`'s checkpoint, checkpoint_every and progress. Returns the Gaussians,
    their field, and the histories of `fit_rgb` and `train_field`. Raises FieldError when no pixel
    carries a code, GaussiansError as `fit_rgb`.
    """
    with_codes(views, index_maps)
    device = gaussians.means.device
    generator = torch.Generator().manual_seed(fit.seed)
    features, decoders = start_field(len(gaussians), n_codes, config, generator, device)

    def loss(view: View, rendered: Tensor) -> tuple[Tensor, float]:  # [H, W, L * d_f]
        target = codes_of(view, index_maps, device)
        total, accuracy = field_loss(rendered.flatten(0, 1), target, decoders)
        return config.joint_weight * total, accuracy

    betas = tuple(config.betas)
    weights = [p for d in decoders for p in d.parameters()]
    joint = JointFeatures(
        features,
        loss,
        (torch.optim.Adam(weights, lr=config.lr, betas=betas),),
        config.feature_lr,
        betas,
        config.joint_geometry,
    )
    fitted, history = fit_rgb(gaussians, views, fit, joint=joint, **run)
    curves = {
        "loss": np.array(joint.curves["loss"]) / config.joint_weight,
        "accuracy": np.array(joint.curves["score"]),
    }
    return fitted, _finished(joint.features, decoders), history, curves


def train_field(
    gaussians: Gaussians,
    views: Sequence[View],
    index_maps: Mapping[str, np.ndarray],  # view name -> [levels, H, W] int, -1 = no mask
    n_codes: Sequence[int],  # N of each level
    config: FieldConfig,
    *,
    seed: int,
    progress: Callable[[dict], None] = lambda state: None,
) -> tuple[SemanticField, dict[str, np.ndarray]]:
    """Optimise features and decoders on the device of the Gaussians, which stay as they are; one
    view per step, in an order drawn from ``seed``.

    Returns the field and curves "loss", "accuracy" (share of the step's masked pixels whose code is
    right) [iterations]. Raises FieldError when no pixel of any view carries a code or the settings
    ask for another training than this, GaussiansError for Gaussians that cannot be rendered.
    """
    if (config.mode, config.init) != ("rasterised", "random"):
        other = "train_joint" if config.mode == "joint" else "field_cached.train_field_variant"
        raise FieldError(
            f"field.mode is {config.mode!r} and field.init {config.init!r}, expected 'rasterised'"
            f" and 'random'; call {other}"
        )
    usable = with_codes(views, index_maps)
    gaussians = gaussians.detach().validate()
    generator = torch.Generator().manual_seed(seed)
    device = gaussians.means.device
    features, decoders = start_field(len(gaussians), n_codes, config, generator, device)
    pixels = WholeViews(gaussians, usable, index_maps, generator)
    return optimise(features, decoders, pixels, config, progress)


def optimise(
    features: Tensor,  # [G, L * d_f]
    decoders: tuple[Decoder, ...],
    next_pixels: Callable[[Tensor], tuple[Tensor, Tensor]],  # see `WholeViews`
    config: FieldConfig,
    progress: Callable[[dict], None],
) -> tuple[SemanticField, dict[str, np.ndarray]]:
    """The training loop. Returns the field and its curves, see `train_field`."""
    features.requires_grad_(True)
    optimiser = field_optimiser(features, decoders, config)
    curves = {"loss": np.zeros(config.iterations), "accuracy": np.zeros(config.iterations)}
    for step in range(config.iterations):
        rendered, target = next_pixels(features)
        loss, accuracy = field_loss(rendered, target, decoders)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        curves["loss"][step] = float(loss.detach())
        curves["accuracy"][step] = accuracy
        progress({"loss": curves["loss"][step]})
    return _finished(features, decoders), curves


def field_loss(
    rendered: Tensor,  # [P, L * d_f] float32, the levels one after the other
    target: Tensor,  # [L, P] int64 codes, -1 = no mask
    decoders: Sequence[Decoder],
) -> tuple[Tensor, float]:
    """Cross-entropy of the codes, a mean over masked pixels per level, summed over levels; and the
    share of them that is right.
    """
    loss, right, counted = rendered.new_zeros(()), 0, 0
    for decoder, own, codes in zip(decoders, rendered.chunk(len(decoders), dim=1), target):
        inside = codes >= 0
        if not inside.any():
            continue
        if not inside.all():
            own, codes = own[inside], codes[inside]
        logits = decoder(own)
        loss = loss + nn.functional.cross_entropy(logits, codes)
        logits = logits.detach()
        # argmax takes several times as long
        right += int((logits.gather(1, codes[:, None])[:, 0] == logits.amax(1)).sum())
        counted += len(codes)
    return loss, right / max(counted, 1)


def field_optimiser(
    features: Tensor, decoders: Sequence[Decoder], config: FieldConfig
) -> torch.optim.Adam:
    """Dense Adam, with a learning rate for the features and one for the decoders."""
    groups = [
        {"params": [features], "lr": config.feature_lr},
        {"params": [p for d in decoders for p in d.parameters()], "lr": config.lr},
    ]
    # a cached step is so short that plain Adam over all Gaussians would take most of it
    return torch.optim.Adam(groups, betas=tuple(config.betas), fused=config.mode == "cached")


# ----------------------------------------------------------------- what training starts from


def with_codes(views: Sequence[View], index_maps: Mapping[str, np.ndarray]) -> list[View]:
    """The views of which any pixel carries a code. Raises FieldError if there is none."""
    usable = [v for v in views if (index_maps[v.name] >= 0).any()]
    if not usable:
        raise FieldError(
            "no pixel of any training view lies in a mask, so there is nothing to train the field"
            " on; check the masks stage"
        )
    return usable


def start_field(
    n_gaussians: int,
    n_codes: Sequence[int],  # N of each level
    config: FieldConfig,
    generator: torch.Generator,
    device: torch.device,
) -> tuple[Tensor, tuple[Decoder, ...]]:
    """Features [G, L * d_f], the levels one after the other, and decoders; drawn on the CPU, so
    that devices start alike.
    """
    features = 0.1 * torch.randn(n_gaussians, len(n_codes) * config.dim, generator=generator)
    decoders = [
        Decoder(config.dim, config.hidden, n, normalise=config.normalise, generator=generator)
        for n in n_codes
    ]
    return features.to(device), tuple(d.to(device) for d in decoders)


def codes_of(
    view: View, index_maps: Mapping[str, np.ndarray], device: torch.device
) -> Tensor:  # [L, H * W] int64
    """Codes of a view's pixels, -1 = no mask."""
    maps = torch.from_numpy(np.ascontiguousarray(index_maps[view.name]))
    return maps.long().to(device).flatten(1)


class WholeViews:
    """Where a step's pixels come from: one view, every view once before any comes again.

    Called with features [G, C], it returns the view's rendered features [H * W, C] and its codes
    [L, H * W].
    """

    def __init__(
        self,
        gaussians: Gaussians,
        views: Sequence[View],
        index_maps: Mapping[str, np.ndarray],
        generator: torch.Generator,
    ):
        self.gaussians, self.views, self.index_maps = gaussians, views, index_maps
        self._generator = generator
        self._order: list[int] = []
        # geometry is frozen, so each view is projected and sorted once
        self._projections: dict[str, Projection] = {}

    def __call__(self, features: Tensor) -> tuple[Tensor, Tensor]:
        if not self._order:
            self._order = torch.randperm(len(self.views), generator=self._generator).tolist()
        return self.of_view(self.views[self._order.pop()], features)

    def of_view(self, view: View, features: Tensor) -> tuple[Tensor, Tensor]:
        """Rendered features and codes of one view."""
        rendered = self._render(view, features).flatten(0, 1)
        return rendered, codes_of(view, self.index_maps, features.device)

    def _render(self, view: View, features: Tensor) -> Tensor:  # [G, C] -> [H, W, C]
        if features.is_cuda:
            return rasterize(self.gaussians, view.camera, features, sh_degree=0).features
        if view.name not in self._projections:
            self._projections[view.name] = project(self.gaussians, view.camera)
        return splat_features(self._projections[view.name], features)


def _finished(features: Tensor, decoders: tuple[Decoder, ...]) -> SemanticField:
    if not torch.isfinite(features).all():
        raise FieldError(
            "the field is not finite after training; lower field.feature_lr or check the Gaussians"
        )
    by_level = features.detach().cpu().view(len(features), len(decoders), -1).permute(1, 0, 2)
    frozen = tuple(d.cpu().requires_grad_(False) for d in decoders)
    return SemanticField(by_level.contiguous(), frozen)
