"""Stage 4: the semantic field. Every Gaussian carries an 8-d feature per level; a view's feature
map is splatted like colour, decoded by an MLP to logits over the codes, and trained with
cross-entropy against the index maps (paper §3; the codebook is frozen here). With `field.mode`
"joint", as in the paper, colours, geometry and features are trained together; else the geometry is
frozen, and a step sees either a whole view, rasterised, or pixels of all views, from the blending
cache.

All pixels inside any mask count, those of masks without a track label (y = -1) included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import FieldError
from ..gaussians.blending_cache import BlendingCache
from ..gaussians.model import Gaussians
from ..gaussians.rasterize import project, rasterize, splat_features
from ..gaussians.reconstruct import Companion, fit_rgb
from ..scenes.scene import Camera, View
from ..settings import BETAS, POSITIVE, WIDTHS, OneOf
from .lifting import VOTERS_AT_ONCE
from .masks import LEVELS


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


class Decoder(nn.Module):
    """Rendered feature [..., d_f] -> logits over the N codes of one level [..., N]."""

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
        for layer in (
            self.layers
        ):  # re-drawn from our own generator: module construction uses the global one
            bound = layer.in_features**-0.5
            with torch.no_grad():
                layer.weight.copy_(
                    (torch.rand(layer.weight.shape, generator=generator) * 2 - 1) * bound
                )
                layer.bias.copy_(
                    (torch.rand(layer.bias.shape, generator=generator) * 2 - 1) * bound
                )

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
        """Feature maps of any camera, a training view's or a novel one."""
        L, G, d = self.features.shape
        if G != len(gaussians):
            raise FieldError(
                f"the field has features of {G} Gaussians, the reconstruction has {len(gaussians)};"
                " train the field on these Gaussians"
            )
        with torch.no_grad():
            flat = splat_features(
                project(gaussians, camera), self.features.permute(1, 0, 2).reshape(G, L * d)
            )
        return flat.view(camera.height, camera.width, L, d).permute(2, 0, 1, 3)

    def codes(self, gaussians: Gaussians, camera: Camera) -> np.ndarray:  # [levels, H, W] int32
        """Most likely code of every pixel."""
        maps = self.render(gaussians, camera)
        with torch.no_grad():
            out = [
                torch.cat([decoder(rows).argmax(-1) for rows in m.split(64)])
                for decoder, m in zip(self.decoders, maps)
            ]
        return torch.stack(out).cpu().numpy().astype(np.int32)

    def expected(
        self, gaussians: Gaussians, camera: Camera, scores: Sequence[Tensor]
    ) -> Tensor:  # per level [P, N] -> [P, levels, H, W]
        """Mean score of every pixel over the codes, weighted by the decoder's softmax."""
        maps, out = self.render(gaussians, camera), []
        with torch.no_grad():
            for decoder, m, own in zip(
                self.decoders, maps, scores
            ):  # a few rows at a time, as the probabilities of all would be N / d_f times as large
                out.append(
                    torch.cat([decoder(rows).softmax(-1) @ own.T for rows in m.split(64)]).permute(
                        2, 0, 1
                    )
                )
        return torch.stack(out, 1)


def train_field(
    gaussians: Gaussians,
    views: Sequence[View],
    index_maps: Mapping[str, np.ndarray],  # view name -> [levels, H, W] int, -1 = no mask
    n_codes: Sequence[int],  # N of each level
    config: FieldConfig,
    *,
    seed: int,
    cache: BlendingCache | None = None,
    progress: Callable[[dict], None] = lambda state: None,
) -> tuple[SemanticField, dict[str, np.ndarray]]:
    """Optimise features and decoders together, on the device of the Gaussians; geometry and colour
    stay as they are.

    Mode "rasterised": one view per step, every view once before any comes again, in an order drawn
    from ``seed``. Mode "cached": ``config.batch`` pixels per step, drawn with replacement from the
    ``cache``. Returns the field and curves "loss", "accuracy" (share of the step's masked pixels
    whose code is right) [iterations].

    Raises FieldError when no pixel of any view carries a code, or when the cache is missing or was
    made from other masks; ArtefactError when it was made from other Gaussians or cameras;
    GaussiansError for Gaussians that cannot be rendered.
    """
    if config.mode == "joint":
        raise FieldError(
            "field.mode is 'joint', which trains the Gaussians too; call train_joint, or choose"
            " 'rasterised' or 'cached'"
        )
    usable = _with_codes(views, index_maps)
    gaussians = gaussians.detach().validate()
    generator = torch.Generator().manual_seed(seed)
    features, decoders = _start(len(gaussians), n_codes, config, generator, gaussians.means.device)
    if config.mode == "cached":
        if cache is None:
            raise FieldError(
                "field.mode is 'cached' and train_field was given no cache; make one with"
                " build_blending_cache"
            )
        cache.check(gaussians, views)
        codes = cache.codes(index_maps)
        next_pixels = pixels_of_all_views(cache, codes, config.batch, generator)
        rows = [
            np.arange(i, min(i + VOTERS_AT_ONCE, len(cache)))
            for i in range(0, len(cache), VOTERS_AT_ONCE)
        ]
        everything = (
            (
                lambda x, r=r: cache.splat(x, r),
                torch.from_numpy(codes[:, r]).long().to(features.device),
            )
            for r in rows
        )
    else:
        render = _renderer(gaussians)
        next_pixels = _pixels_of_one_view(render, usable, index_maps, generator)
        everything = (
            (lambda x, v=v: render(v, x), _codes_of(v, index_maps, features.device)) for v in usable
        )
    if config.init == "votes":
        features = _voted_start(features, everything, n_codes, generator)
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


def train_joint(
    gaussians: Gaussians,
    views: Sequence[View],
    index_maps: Mapping[str, np.ndarray],  # view name -> [levels, H, W] int, -1 = no mask
    n_codes: Sequence[int],  # N of each level
    config: FieldConfig,
    *,
    seed: int,
    **reconstruction,
) -> tuple[Gaussians, SemanticField, dict, dict[str, np.ndarray]]:
    """Optimise colours, geometry, features and decoders together: one random view per iteration, as
    `fit_rgb` does.

    One rasterisation gives the colours and the features of both levels; where
    `config.joint_geometry` is off, a second one, with frozen geometry, gives the features, and the
    Gaussians come out as `fit_rgb` alone leaves them. ``reconstruction`` are the arguments of
    `fit_rgb` (its iterations count, not the field's). Returns the Gaussians, their field, and the
    histories of `fit_rgb` and `train_field`. Raises FieldError when no pixel carries a code,
    GaussiansError as `fit_rgb`.
    """
    _with_codes(views, index_maps)
    device = gaussians.means.device
    features, decoders = _start(
        len(gaussians), n_codes, config, torch.Generator().manual_seed(seed), device
    )

    def loss(view: View, rendered: Tensor) -> tuple[Tensor, float]:  # [H, W, L * d_f]
        target = torch.from_numpy(np.ascontiguousarray(index_maps[view.name])).long().to(device)
        total, accuracy = field_loss(rendered.flatten(0, 1), target.flatten(1), decoders)
        return config.joint_weight * total, accuracy

    of_decoders = torch.optim.Adam(
        [p for d in decoders for p in d.parameters()], lr=config.lr, betas=tuple(config.betas)
    )
    companion = Companion(
        features,
        loss,
        (of_decoders,),
        config.feature_lr,
        tuple(config.betas),
        config.joint_geometry,
    )
    fitted, history = fit_rgb(gaussians, views, seed=seed, companion=companion, **reconstruction)
    curves = {
        "loss": np.array(companion.curves["loss"]) / config.joint_weight,
        "accuracy": np.array(companion.curves["score"]),
    }
    return fitted, _finished(companion.features, decoders), history, curves


def _with_codes(views: Sequence[View], index_maps: Mapping[str, np.ndarray]) -> list[View]:
    usable = [v for v in views if (index_maps[v.name] >= 0).any()]
    if not usable:
        raise FieldError(
            "no pixel of any training view lies in a mask, so there is nothing to train the field"
            " on; check the masks stage"
        )
    return usable


def _start(
    n_gaussians: int,
    n_codes: Sequence[int],
    config: FieldConfig,
    generator: torch.Generator,
    device,
) -> tuple[Tensor, tuple[Decoder, ...]]:
    """Features [G, L * d_f], the levels one after the other, and decoders; drawn on the CPU, so
    that devices start alike.
    """
    features = 0.1 * torch.randn(n_gaussians, len(n_codes) * config.dim, generator=generator)
    return features.to(device), tuple(
        Decoder(config.dim, config.hidden, n, normalise=config.normalise, generator=generator).to(
            device
        )
        for n in n_codes
    )


def _finished(features: Tensor, decoders: tuple[Decoder, ...]) -> SemanticField:
    if not torch.isfinite(features).all():
        raise FieldError(
            "the field is not finite after training; lower field.feature_lr or check the Gaussians"
        )
    stacked = (
        features.detach().cpu().view(len(features), len(decoders), -1).permute(1, 0, 2).contiguous()
    )
    return SemanticField(stacked, tuple(d.cpu().requires_grad_(False) for d in decoders))


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
        logits, wanted = (
            (decoder(own), codes) if inside.all() else (decoder(own[inside]), codes[inside])
        )
        loss = loss + nn.functional.cross_entropy(logits, wanted)
        logits = logits.detach()
        # argmax takes several times as long
        right += int((logits.gather(1, wanted[:, None])[:, 0] == logits.amax(1)).sum())
        counted += len(wanted)
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


def _renderer(gaussians: Gaussians) -> Callable[[View, Tensor], Tensor]:
    """(view, features [G, C]) -> rendered [H * W, C]."""
    projections = {}  # geometry is frozen, so each view is projected and sorted once

    def render(view: View, features: Tensor) -> Tensor:
        if features.is_cuda:
            return rasterize(gaussians, view.camera, features, sh_degree=0).features.flatten(0, 1)
        if view.name not in projections:
            projections[view.name] = project(gaussians, view.camera)
        return splat_features(projections[view.name], features).flatten(0, 1)

    return render


def _codes_of(
    view: View, index_maps: Mapping[str, np.ndarray], device
) -> Tensor:  # [L, H * W] int64
    return (
        torch.from_numpy(np.ascontiguousarray(index_maps[view.name])).long().to(device).flatten(1)
    )


def _pixels_of_one_view(
    render: Callable[[View, Tensor], Tensor],
    views: Sequence[View],
    index_maps: Mapping[str, np.ndarray],
    generator: torch.Generator,
):
    """Features [G, C] -> rendered [H * W, C] and codes [L, H * W] of the view whose turn it is."""
    order: list[int] = []

    def next_pixels(features: Tensor) -> tuple[Tensor, Tensor]:
        if not order:
            order.extend(torch.randperm(len(views), generator=generator).tolist())
        view = views[order.pop()]
        return render(view, features), _codes_of(view, index_maps, features.device)

    return next_pixels


def _voted_start(
    features: Tensor,  # [G, L * d_f], which Gaussians without votes keep
    # features [G, C] -> rendered [P, C], and codes [L, P]
    batches: Iterable[tuple[Callable[[Tensor], Tensor], Tensor]],
    n_codes: Sequence[int],
    generator: torch.Generator,
) -> Tensor:  # [G, L * d_f]
    """The closed form as a start: every code gets a random unit vector, every Gaussian the mean of
    its pixels', weighted by alpha T.

    Rendering is linear in the features, F = A X, so its gradient is the transpose: one backward
    pass gives the sums of votes.
    """
    dim = features.shape[1] // len(n_codes)
    # the last channel counts, and code -1 votes for nothing
    vectors = [
        torch.cat(
            [
                nn.functional.normalize(torch.randn(n, dim, generator=generator), dim=1),
                torch.ones(n, 1),
            ],
            1,
        ).to(features.device)
        for n in n_codes
    ]
    vectors = [torch.cat([v, torch.zeros_like(v[:1])]) for v in vectors]
    votes = features.new_zeros(len(features), len(n_codes) * (dim + 1), requires_grad=True)
    for render, codes in batches:
        (render(votes) * torch.cat([v[own] for v, own in zip(vectors, codes)], 1)).sum().backward()
    sums = votes.grad.view(len(features), len(n_codes), dim + 1)
    start = features.view(len(features), len(n_codes), dim)
    return torch.where(
        sums[..., -1:] > 0,
        sums[..., :-1] / sums[..., -1:].clamp_min(torch.finfo(sums.dtype).tiny),
        start,
    ).flatten(1)


def pixels_of_all_views(
    cache: BlendingCache, codes: np.ndarray, batch: int, generator: torch.Generator
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Features [G, C] -> rendered [batch, C] and codes [L, batch] of random pixels of the cache;
    ``codes`` as `BlendingCache.codes` gives them.
    """
    gradient = None

    def next_pixels(features: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal gradient
        if gradient is None:
            gradient = torch.zeros_like(features, requires_grad=False)
        # sorted: neighbours in the cache share Gaussians, which are then still in the processor's
        # cache
        rows = np.sort(torch.randint(len(cache), (batch,), generator=generator).numpy())
        return cache.splat(features, rows, gradient), torch.from_numpy(codes[:, rows]).long().to(
            features.device
        )

    return next_pixels


def field_tensors(field: SemanticField) -> dict[str, Tensor]:
    """Tensors to store: features and the decoders' weights by level."""
    out = {"features": field.features}
    for level, decoder in zip(LEVELS, field.decoders):
        out |= {f"decoder.{level}.{k}": v.contiguous() for k, v in decoder.state_dict().items()}
    return out


def field_from_tensors(tensors: Mapping[str, Tensor], config: FieldConfig) -> SemanticField:
    """Inverse of `field_tensors`; the widths are read from the weights."""
    decoders = []
    for level in LEVELS:
        own = {
            k.removeprefix(f"decoder.{level}."): v
            for k, v in tensors.items()
            if k.startswith(f"decoder.{level}.")
        }
        weights = [own[f"layers.{i}.weight"] for i in range(len(own) // 2)]
        decoder = Decoder(
            weights[0].shape[1],
            [w.shape[0] for w in weights[:-1]],
            weights[-1].shape[0],
            normalise=config.normalise,
            generator=torch.Generator(),
        )
        decoder.load_state_dict(own)
        decoders.append(decoder.requires_grad_(False))
    return SemanticField(tensors["features"], tuple(decoders))
