"""Speed of what follows training: decoding, text queries, evaluation."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from cclkit.errors import EvaluationError
from cclkit.evaluation import lerf_ovs
from cclkit.method.field import Decoder, FieldConfig, SemanticField
from cclkit.method.query import code_relevancy
from cclkit.notebook.tables import markdown_table

from .. import reference
from .base import Benchmark, option, timed
from .problems import field_of_stripes

PROTOCOLS = ("langsplat", "langsplat_v2")
DIM = 512  # of CLIP
TEXTS = 10  # asked of every view
CANONICAL = 4


@dataclass(frozen=True)
class Query(Benchmark):
    """Time decoding a view, a text query on it, one evaluated query, and many of them.

    The evaluated query is compared with literal loops, which run once. A unit is one text in one
    decoded view, from the lookup to IoU and localisation. Texts are vectors here: encoding them is
    the encoder's time. Seconds are medians of ``repeats`` after one warm-up. Measuring raises
    EvaluationError when the loops find another mask.
    """

    name = "query"
    help = "decoding, text queries and evaluation of a full-size view, against literal loops"

    gaussians: int = option(300_000)
    width: int = option(988)
    height: int = option(731)
    codes: int = option(64)
    units: int = option(60, "evaluated (view, query) pairs")
    repeats: int = option(9)
    seed: int = option(0, least=0)

    def measure(self) -> dict:
        prototypes, maps, texts, canonical = self.problem()
        query_s, relevancy = timed(
            lambda: _stacks(prototypes, maps[0], texts[:1], canonical)[0], self.repeats
        )
        truth = maps[0, 0] == int((prototypes @ texts[0]).argmax())
        ys, xs = np.nonzero(truth)
        box = [[xs.min(), ys.min(), xs.max(), ys.max()]] if len(xs) else []
        one_s, ours = {}, {}
        for p in PROTOCOLS:
            one_s[p], ours[p] = timed(
                lambda: lerf_ovs.evaluate_query(relevancy, truth, box, protocol=p), self.repeats
            )
        loop = _checked_loops(relevancy, truth, box, ours["langsplat"])

        def all_units(protocol: str) -> int:
            done = 0
            for view in maps:
                for stack in _stacks(prototypes, view, texts, canonical)[: self.units - done]:
                    lerf_ovs.evaluate_query(stack, truth, box, protocol=protocol)
                    done += 1
            return done

        many_s = {}
        for p in PROTOCOLS:
            many_s[p], count = timed(lambda: all_units(p), 1)
        return {
            "benchmark": self.name,
            "gaussians": self.gaussians,
            "width": self.width,
            "height": self.height,
            "codes": self.codes,
            "levels": 2,
            "seed": self.seed,
            "threads": torch.get_num_threads(),
            "repeats": self.repeats,
            "decode_per_level_s": round(self._decode() / 2, 3),
            "query_s": round(query_s, 4),
            "evaluate_s": round(one_s["langsplat"], 4),
            "evaluate_v2_s": round(one_s["langsplat_v2"], 4),
            "literal_loops_s": round(loop, 2),
            "times_faster": round(loop / one_s["langsplat"], 1),
            "units": count,
            "units_s": round(many_s["langsplat"], 2),
            "units_v2_s": round(many_s["langsplat_v2"], 2),
        }

    def _decode(self) -> float:
        """Seconds that a view takes at both levels."""
        gaussians, view, _ = field_of_stripes(
            self.gaussians, self.width, self.height, self.codes, seed=self.seed
        )
        config, generator = FieldConfig(), torch.Generator().manual_seed(self.seed)
        decoders = tuple(
            Decoder(
                config.dim,
                config.hidden,
                self.codes,
                normalise=config.normalise,
                generator=generator,
            ).requires_grad_(False)
            for _ in range(2)
        )
        features = torch.randn(2, self.gaussians, config.dim, generator=generator)
        field = SemanticField(features, decoders)
        return timed(lambda: field.codes(gaussians, view.camera), 3)[0]

    def problem(self) -> tuple[torch.Tensor, np.ndarray, torch.Tensor, torch.Tensor]:
        """Prototypes [N, d], code maps, texts [10, d], canonical phrases [4, d].

        The maps [views, 2, H, W] int32 show the cells around random points; there are as many views
        as ``units`` take with ten texts each.
        """
        rng = np.random.default_rng(self.seed)
        generator = torch.Generator().manual_seed(self.seed)
        size, n, views = (self.height, self.width), self.codes, -(-self.units // TEXTS)
        y, x = np.mgrid[: self.height, : self.width].astype(np.float32)
        maps = np.zeros((views, 2, *size), np.int32)
        for codes in maps.reshape(-1, *size):
            nearest = np.full(size, np.inf, np.float32)
            for code, (cy, cx) in enumerate(rng.random((n, 2)) * size):
                distance = (y - np.float32(cy)) ** 2 + (x - np.float32(cx)) ** 2
                codes[distance < nearest] = code
                nearest = np.minimum(nearest, distance)
        vectors = torch.randn(n + TEXTS + CANONICAL, DIM, generator=generator)
        vectors = torch.nn.functional.normalize(vectors, dim=1)
        return vectors[:n], maps, vectors[n : n + TEXTS], vectors[n + TEXTS :]

    @staticmethod
    def describe(result: dict) -> str:
        r = result
        caption = (
            f"After training, at {r['width']}×{r['height']}, two levels, {r['codes']} codes,"
            f" {r['threads']} threads. Decoding is per level, from {r['gaussians']:,} Gaussians; a"
            " query is the relevancy of one text on decoded maps (encoding the text apart);"
            " evaluating is mask, level, IoU and localisation. Literal loops over pixels take"
            f" {r['literal_loops_s']:.1f} s for the same langsplat evaluation,"
            f" {r['times_faster']:.0f} times as long."
        )
        rows = [
            ["decode a view, per level", f"{r['decode_per_level_s']:.3f}"],
            ["text query", f"{r['query_s']:.4f}"],
            ["evaluate one query, langsplat", f"{r['evaluate_s']:.3f}"],
            ["evaluate one query, langsplat_v2", f"{r['evaluate_v2_s']:.3f}"],
            [f"{r['units']} units, langsplat", f"{r['units_s']:.2f}"],
            [f"{r['units']} units, langsplat_v2", f"{r['units_v2_s']:.2f}"],
        ]
        return f"{caption}\n\n" + markdown_table(["step", "s"], rows)

    @staticmethod
    def summarise(result: dict) -> list[tuple[str, str, str]]:
        r = result
        return [
            (
                f"decode a {r['width']}×{r['height']} view, one level",
                f"{r['decode_per_level_s']:.2f} s",
                "≤ 5 s",
            ),
            ("ask it a text", f"{1e3 * r['query_s']:.1f} ms", "≤ 20 ms"),
            (
                f"evaluate {r['units']} of them",
                f"{r['units_s']:.1f} s, a query {r['times_faster']:.0f} × as fast as loops over"
                " pixels",
                "≤ 30 s, ≥ 30 ×",
            ),
        ]


def _stacks(
    prototypes: torch.Tensor, codes: np.ndarray, texts: torch.Tensor, canonical: torch.Tensor
) -> np.ndarray:
    """Relevancy [texts, levels, H, W] of one view's code maps [levels, H, W]."""
    return torch.stack([code_relevancy(prototypes, m, texts, canonical) for m in codes], 1).numpy()


def _checked_loops(relevancy: np.ndarray, truth: np.ndarray, box: list, ours) -> float:
    """Seconds of the literal loops. Raises EvaluationError when they find another mask."""
    start = time.perf_counter()
    level, mask, *_ = reference.evaluate_query(relevancy, truth, box, "langsplat")
    seconds = time.perf_counter() - start
    if ours.level != level or not np.array_equal(ours.mask, mask):
        raise EvaluationError(
            f"evaluate_query and the loops differ in level ({ours.level}, {level}) or in"
            f" {np.count_nonzero(ours.mask != mask)} pixels; one of them is wrong, so a timing"
            " means nothing"
        )
    return seconds
