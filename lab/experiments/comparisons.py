"""What CCL is compared with, on the same masks and the same Gaussians: how the features of masks
become a field.

- *CCL*, *matching loss only*: codebooks of a run, with and without the contrastive terms.
- *k-means*: the same number of prototypes, cosine k-means of all masks, no training.
- *autoencoder*: LangSplat's way, a scene's own autoencoder to 8 dimensions, trained with L1 and
  cosine.
- *direct lifting*: every Gaussian carries the features themselves.

So that only the representation differs, none of the fields is trained: a Gaussian takes what its
pixels vote for (codes) or their mean (vectors), weighted by alpha T (`method/lifting.py`).
LangSplat trains that step, and trains one autoencoder for three levels; ours has two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from cclkit.errors import EvaluationError
from cclkit.evaluation.protocol import pairwise
from cclkit.evaluation.protocols import PROTOCOLS, evaluate_scene, protocol_for
from cclkit.gaussians.blending_cache import BlendingCache
from cclkit.gaussians.model import Gaussians
from cclkit.gaussians.rasterize import project, splat_features
from cclkit.method.codebook import assign, index_map
from cclkit.method.codebook_fit import CodebookConfig, fit_codebook
from cclkit.method.codebook_variants import initialise
from cclkit.method.lifting import vote_field
from cclkit.method.masks import LEVELS
from cclkit.method.query import code_relevancy
from cclkit.notebook.experiments import Seen, surface_pairs, view_consistency
from cclkit.notebook.population import ARMS
from cclkit.notebook.provenance import changed_settings
from cclkit.notebook.tables import save_table
from cclkit.runs.run import Run
from cclkit.runs.scoring import text_vectors
from cclkit.scenes.scene import View

WIDTHS = (128, 64, 32)
"""Hidden widths of the autoencoder. LangSplat's has 256, 128, 64, 32 for 512 dimensions."""
LATENT = 8
METHODS = ("CCL", "matching loss only", "k-means", "autoencoder", "direct lifting")


@dataclass(frozen=True)
class Level:
    """One level of a representation: what every mask stands for, and what is lifted to the
    Gaussians in its place.
    """

    features: Tensor  # [M, d] unit: what a query sees of each mask
    codes: Tensor | None  # [M] int64, where a codebook stands between
    latent: Tensor | None  # [M, k], where none does
    decode: Callable[[Tensor], Tensor]  # latents of pixels [P, k] -> unit features [P, d]
    prototypes: Tensor | None  # [N, d]
    numbers: int  # that decoding needs: prototypes, or the decoder's weights


class Autoencoder(nn.Module):
    """Features [.., d] -> unit latents [.., 8] -> unit features [.., d]."""

    def __init__(self, dim: int, generator: torch.Generator):
        super().__init__()
        down, up = (dim, *WIDTHS, LATENT), (LATENT, *WIDTHS[::-1], dim)
        self.encoder, self.decoder = (
            nn.ModuleList(nn.Linear(a, b) for a, b in zip(w, w[1:])) for w in (down, up)
        )
        for p in (
            self.parameters()
        ):  # re-drawn from our own generator: module construction uses the global one
            bound = (p.shape[-1] if p.ndim > 1 else 64) ** -0.5
            p.data = (torch.rand(p.shape, generator=generator) * 2 - 1) * bound

    def encode(self, x: Tensor) -> Tensor:
        return _through(self.encoder, x)

    def decode(self, z: Tensor) -> Tensor:
        return _through(self.decoder, z)


def fit_autoencoder(
    features: Tensor, *, epochs: int = 100, batch: int = 64, lr: float = 7e-4, seed: int = 0
) -> Autoencoder:
    """Autoencoder of all masks of a scene [M, d]: L1 plus (1 - cosine), LangSplat's batch, epochs
    and learning rate.
    """
    generator = torch.Generator().manual_seed(seed)
    model = Autoencoder(features.shape[1], generator)
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(epochs):
        for rows in torch.randperm(len(features), generator=generator).split(batch):
            x = features[rows]
            y = model.decode(model.encode(x))
            loss = (y - x).abs().mean() + (1 - (x * y).sum(1)).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
    return model.requires_grad_(False)


def fit_kmeans(features: Tensor, N: int, *, rounds: int = 50, seed: int = 0) -> Tensor:
    """Cosine k-means of unit features [M, d]: unit prototypes [N, d], from the start that CCL has,
    until nothing moves.
    """
    T = initialise(features, N, "kmeans", torch.Generator().manual_seed(seed))
    for _ in range(rounds):
        codes = assign(T, features)
        sums = torch.zeros_like(T).index_add_(0, codes, features)
        moved = torch.where(
            sums.norm(dim=1, keepdim=True) > 1e-6, nn.functional.normalize(sums, dim=1), T
        )
        if torch.equal(moved, T):
            break
        T = moved
    return T


def represent(
    method: str,
    features: Tensor,
    labels: Tensor,
    level: Tensor,
    config: CodebookConfig,
    *,
    seed: int,
) -> list[Level]:
    """What a method makes of all masks (features [M, d], labels [M], level [M]), level by level.
    Raises EvaluationError for an unknown method.
    """
    if method not in METHODS:
        raise EvaluationError(f"method {method!r} is unknown; use one of {', '.join(METHODS)}")
    features = nn.functional.normalize(features, dim=1)
    model = fit_autoencoder(features, seed=seed) if method == "autoencoder" else None
    out = []
    for n in range(len(LEVELS)):
        F, y = features[level == n], labels[level == n]
        if model is not None:
            z = model.encode(F)
            # one decoder for all levels
            weights = sum(p.numel() for p in model.decoder.parameters()) // len(LEVELS)
            # a blend of unit latents is shorter
            out.append(
                Level(
                    model.decode(z),
                    None,
                    z,
                    lambda z: model.decode(nn.functional.normalize(z, dim=-1)),
                    None,
                    weights,
                )
            )
        elif method == "direct lifting":
            out.append(Level(F, None, F, lambda z: nn.functional.normalize(z, dim=-1), None, 0))
        else:
            arm = replace(config, **ARMS["baseline"]) if method == "matching loss only" else config
            T = (
                fit_kmeans(F, config.n_prototypes, seed=seed + n)
                if method == "k-means"
                else fit_codebook(F, y, arm, seed=seed + n).prototypes
            )
            codes = assign(T, F)
            out.append(Level(T[codes], codes, None, lambda z: z, T, T.numel()))
    return out


def lift(
    cache: BlendingCache, mask_of_pixel: np.ndarray, vectors: Tensor, n_gaussians: int
) -> Tensor:
    """Mean of the vectors [M, k] of each Gaussian's pixels, weighted by alpha T: [G, k], zero where
    it has none.

    ``mask_of_pixel`` [S] int: row of ``vectors`` for every cached pixel, -1 = none. Gaussians meet
    masks in one sparse matrix, so the cost does not grow with pixels times k.
    """
    rows = np.flatnonzero(mask_of_pixel >= 0)
    ids, weights = cache.ids[rows], cache.weights[rows]
    votes = csr_matrix(
        (weights.ravel(), (ids.ravel(), np.repeat(mask_of_pixel[rows], ids.shape[1]))),
        shape=(n_gaussians, len(vectors)),
    )
    total = np.asarray(votes.sum(1)).reshape(-1, 1)
    return torch.from_numpy(np.asarray(votes @ vectors.numpy()) / np.maximum(total, 1e-12)).float()


class Lifted:
    """A representation on the Gaussians."""

    def __init__(
        self,
        levels: Sequence[Level],
        gaussians: Gaussians,
        cache: BlendingCache,
        mask_maps: Mapping[str, np.ndarray],
    ):
        self.levels, self.gaussians = levels, gaussians
        if levels[0].codes is not None:
            maps = {
                v: np.stack([index_map(m, own.codes.numpy()) for m, own in zip(maps, levels)])
                for v, maps in mask_maps.items()
            }
            self.voted, self.vectors = (
                vote_field(gaussians, cache, maps, [len(own.prototypes) for own in levels]),
                None,
            )
        else:
            masks = cache.codes(mask_maps)
            self.voted, self.vectors = (
                None,
                [lift(cache, m, own.latent, len(gaussians)) for m, own in zip(masks, levels)],
            )

    def megabytes(self) -> float:
        """What has to be kept beside colour and geometry: a byte or two per code, four
        per number.
        """
        if self.voted is not None:
            per_gaussian = sum(1 if len(own.prototypes) <= 256 else 2 for own in self.levels)
        else:
            per_gaussian = sum(4 * x.shape[1] for x in self.vectors)
        return (
            per_gaussian * len(self.gaussians) + 4 * sum(own.numbers for own in self.levels)
        ) / 1e6

    def see(self, view: View) -> list[Seen]:
        """Both levels of a view, rendered."""
        if self.voted is not None:
            return [
                (own.prototypes, codes)
                for own, codes in zip(self.levels, self.voted.codes(self.gaussians, view.camera))
            ]
        projection, out = project(self.gaussians, view.camera), []
        for own, x in zip(self.levels, self.vectors):
            rendered = splat_features(projection, x)
            covered = rendered.norm(dim=-1) > 1e-6
            rows = np.full(covered.shape, -1, np.int32)
            rows[covered.numpy()] = np.arange(int(covered.sum()))
            out.append((own.decode(rendered[covered]), rows))
        return out


def scene_miou(
    run: Run, relevancy: Callable[[str, Sequence[str]], Tensor], *, views: str = "all"
) -> float:
    """mIoU % of the scene's own protocol, the relevancy maps [P, 2, H, W] of a view's texts coming
    from a function. Raises EvaluationError when the protocol reads something else.
    """
    config = replace(run.config.evaluation, views=views)
    name = protocol_for(run.scene, config.protocol)
    if PROTOCOLS[name].asks is not pairwise:
        raise EvaluationError(
            f"evaluation.protocol={name!r} does not score pairwise relevancy, and here are such"
            " maps; use langsplat or ovs3d_langsplat"
        )
    return 100 * evaluate_scene(run.scene, relevancy, config).aggregates["pooled"]["miou"]


def compare(
    run: Run, *, methods: Sequence[str] = METHODS, gaps: Sequence[int] = (1, 4), stride: int = 6
) -> list[dict]:
    """A row per method: mIoU % on 2D maps of labelled training views and on all labelled views
    after lifting; kappa and AUC of both; MB to keep; seconds to fit, to lift, and to answer one
    text in one view.

    Consistency is that of level wp over training views that lie ``gaps`` apart, on every
    ``stride``-th pixel that sees one surface by true depth, a mean over pairs of views. A method
    without codes has no kappa (NaN). Raises EvaluationError for a scene without true depth and ids,
    or an unknown method.
    """
    pairs = surface_pairs(run, gaps=gaps, stride=stride)  # first, because it refuses
    wp, views, c = LEVELS.index("wp"), run.scene.training_views, run.config
    features, labels, level = (torch.from_numpy(a) for a in run.training_set())
    mask_maps = _mask_maps(run)
    cache, gaussians = run.vary(field__mode="cached").blending_cache(), run.gaussians()
    canonical, out = text_vectors(run.engine, c.query.canonical), []

    def answers(see: Callable[[View], list[Seen]]):
        def relevancy(name: str, texts: Sequence[str]) -> Tensor:
            text = text_vectors(run.engine, texts)
            return torch.stack(
                [
                    code_relevancy(table, rows, text, canonical, scale=c.query.scale)
                    for table, rows in see(run.scene.view(name))
                ],
                1,
            )

        return relevancy

    for method in methods:
        begin = time.perf_counter()
        levels = represent(method, features, labels, level, c.codebook, seed=c.seed)
        fitted = time.perf_counter()
        lifted = Lifted(levels, gaussians, cache, mask_maps)
        done = time.perf_counter()
        flat = lambda view, levels=levels: [
            (own.features, rows) for own, rows in zip(levels, mask_maps[view.name])
        ]
        of_masks = (
            None
            if levels[wp].codes is None
            else lambda rows, codes=levels[wp].codes.numpy(): index_map(rows, codes)
        )
        kappa_flat, auc_flat = view_consistency(
            lambda view: flat(view)[wp], views, pairs, codes=of_masks, seed=c.seed
        )
        kappa, auc = view_consistency(
            lambda view: lifted.see(view)[wp],
            views,
            pairs,
            codes=of_masks and (lambda rows: rows),
            seed=c.seed,
        )
        row = {
            "method": method,
            "miou_2d": scene_miou(run, answers(flat), views="training"),
            "kappa_2d": kappa_flat,
            "auc_2d": auc_flat,
            "miou": scene_miou(run, answers(lifted.see)),
            "kappa": kappa,
            "auc": auc,
            "megabytes": lifted.megabytes(),
            "fit_s": fitted - begin,
            "lift_s": done - fitted,
        }
        begin = time.perf_counter()
        answers(lifted.see)(views[0].name, run.scene.queries[:1])
        out.append(row | {"query_s": time.perf_counter() - begin})
    return out


def save_comparison(run: Run, rows: Sequence[dict], folder: Path) -> str:
    """``comparison.md`` and ``.csv``; returns the Markdown table."""
    header = [
        "method",
        "mIoU % 2D",
        "κ 2D",
        "AUC 2D",
        "mIoU % lifted",
        "κ lifted",
        "AUC lifted",
        "MB to keep",
        "fit s",
        "lift s",
        "query s",
    ]
    two = lambda v: "" if np.isnan(v) else f"{v:.2f}"
    three = lambda v: "" if np.isnan(v) else f"{v:.3f}"
    table = [
        [
            r["method"],
            r["miou_2d"],
            three(r["kappa_2d"]),
            three(r["auc_2d"]),
            r["miou"],
            three(r["kappa"]),
            three(r["auc"]),
            *(two(r[k]) for k in ("megabytes", "fit_s", "lift_s", "query_s")),
        ]
        for r in rows
    ]
    changed = ", ".join(f"{name} = {value}" for name, value in changed_settings(run.config).items())
    caption = (
        f"{run.scene.name}, {run.front_end.label}, one seed, profile"
        f" {run.config.profile}{changed and f' with {changed}'}: representations on the same masks"
        f" and the same {len(run.gaussians()):,} Gaussians, lifted without training. 2D: labelled"
        " training views before any field. κ and AUC: level wp, over pairs of training views."
        " Seconds of one run on this machine; query: one text in one view, rendering included."
    )
    return save_table(folder, "comparison", header, table, caption)


def _mask_maps(run: Run) -> dict[str, np.ndarray]:  # view name -> [2, H, W] int32
    """For every pixel of every training view the row of its mask among all masks of that level, -1
    = none.
    """
    out, start = {}, [0] * len(LEVELS)
    for v in run.scene.training_views:
        masks, maps = run.masks(v), []
        for n, name in enumerate(LEVELS):
            rows = np.where(masks.level == n, start[n] + np.cumsum(masks.level == n) - 1, -1)
            maps.append(index_map(masks.label_map(name), rows))
            start[n] += int((masks.level == n).sum())
        out[v.name] = np.stack(maps)
    return out


def _through(layers: nn.ModuleList, x: Tensor) -> Tensor:
    """An MLP with ReLU between, unit vectors out."""
    for layer in layers[:-1]:
        x = torch.relu(layer(x))
    return nn.functional.normalize(layers[-1](x), dim=-1)
