"""Train mini-SAM on random scenes: one click, three outputs, each taught one granularity."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from scipy.ndimage import find_objects
from torch.nn import functional as F

from cclkit.foundation.mini_sam import STRIDE, WIDTH, build_mini_sam

from .data import LEVELS, Scenes

VIEWS, CLICKS = 2, 40
"""Views in a step of a replica, and clicks in each of them."""
ON_STUFF = 0.12
"""Share of clicks on tables and walls."""
MIN_AREA_PX = 36
"""Regions smaller than this are not clicked on in training."""
FOCAL, DICE = 20.0, 1.0
"""Weights of two losses, SAM's own."""
BALANCED, SCORE = 0.3, 1.0
"""Weights beside dice of a balanced cross-entropy and of the predicted IoU's squared error."""
HINTS = {"box": 0.5, "name": 0.1, "edge": 0.3}
"""Weights of what every pixel is told about its regions (see Hints). With them regions are grouped
after 1,000 steps as after 2,300 without (measured).
"""
HINT_STRIDE = 8
REACH = 48.0
"""Pixels that make one unit of a box's distances."""
DEGRADED, ZOOMED = 0.25, 0.5
"""Share of views with a worse photograph, and zoomed in."""
PE_FREQUENCIES = (0.5, 6.0)
SMALLEST_MATRIX = 16
POINT_EMBEDDING, NECK, ATTENTION = 0.1, 0.5, 1.5


def model(seed: int) -> torch.nn.Module:
    """mini-SAM as training starts: a click reads the one cell it lies in, and its readers look for
    what is like it.
    """
    torch.manual_seed(seed)
    m = build_mini_sam()
    frequencies = m.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix  # [2, WIDTH / 2]
    with torch.no_grad():
        frequencies *= torch.linspace(*PE_FREQUENCIES, frequencies.shape[1])
        for e in (
            *m.prompt_encoder.point_embeddings,
            m.prompt_encoder.not_a_point_embed,
            m.prompt_encoder.no_mask_embed,
            m.mask_decoder.iou_token,
        ):
            e.weight *= POINT_EMBEDDING
        m.image_encoder.neck["mixed"][-1].weight *= NECK
        for reader in m.mask_decoder.transformer:
            torch.nn.init.orthogonal_(reader.image.q_proj.weight, gain=ATTENTION)
            reader.image.k_proj.weight.copy_(reader.image.q_proj.weight)
            reader.image.q_proj.bias.zero_()
            reader.image.k_proj.bias.zero_()
            for last in (reader.among.out_proj, reader.image.out_proj, reader.mlp.layers[-1]):
                last.weight *= 0.1
                last.bias.zero_()
    m.image_encoder.to(memory_format=torch.channels_last)
    return m


def matrices(m: torch.nn.Module) -> list[torch.nn.Parameter]:
    """What Muon trains: the encoder's convolutions but for the first, which sees colours, and the
    decoder's linear maps.
    """
    encoder = [
        p
        for name, p in m.image_encoder.named_parameters()
        if p.ndim == 4 and not name.startswith("stem.0")
    ]
    return encoder + [
        p
        for name, p in m.mask_decoder.named_parameters()
        if p.ndim == 2 and "token" not in name and min(p.shape) >= SMALLEST_MATRIX
    ]


class Hints(torch.nn.Module):
    """What every pixel can be told about the regions it lies in: how far they reach, their names,
    their outlines. Dropped after training.
    """

    def __init__(self, names: int):
        super().__init__()
        self.box = torch.nn.Conv2d(WIDTH, 12, 1)
        self.name = torch.nn.Conv2d(WIDTH, names, 1)
        self.edge = torch.nn.Conv2d(WIDTH, 3, 1)

    def forward(self, embedding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        coarse = F.avg_pool2d(embedding, HINT_STRIDE // STRIDE)
        return (
            F.softplus(self.box(coarse).unflatten(1, (3, 4))),
            self.name(coarse),
            self.edge(embedding),
        )


class Losses:
    """The loss of one step, as a function of its number and its generator."""

    def __init__(self, sam, scenes: Scenes):
        self.sam, self.scenes = sam, scenes
        self.names = sorted(
            {f"{n['level']} {n['texts'][0]}" for t in scenes.nodes for n in t.values()}
        )
        at = {n: k for k, n in enumerate(self.names)}
        self.name_of = [
            np.array([0, *(at[f"{t[i]['level']} {t[i]['texts'][0]}"] for i in sorted(t))])
            for t in scenes.nodes
        ]
        sam.hints = Hints(len(self.names))
        self.stuff = [
            np.array([n["stuff"] for n in [{"stuff": False}, *(t[i] for i in sorted(t))]])
            for t in scenes.nodes
        ]

    def __call__(self, step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        views = [
            (v, *augmented(self.scenes.images[v], self.scenes.ids[v], rng))
            for v in rng.integers(len(self.scenes.images), size=VIEWS)
        ]
        x = torch.from_numpy(np.stack([image for _, image, _ in views])).permute(0, 3, 1, 2).float()
        x = self.sam.preprocess(x).contiguous(memory_format=torch.channels_last)
        with torch.autocast(
            "cpu", torch.bfloat16
        ):  # where a processor multiplies such matrices, the encoder takes a third of the time
            embedding = self.sam.image_encoder(x)
        h, w = (n // STRIDE for n in views[0][2].shape[1:])
        inner, where = (
            m.float()[..., :h, :w] for m in (embedding, self.sam.prompt_encoder.get_dense_pe())
        )
        hints = self.hints(inner, views)
        logits, scores, targets, known = [], [], [], []
        for e, (v, _, ids) in zip(inner, views):
            points = sample_clicks(ids, self.stuff[self.scenes.scene[v]], CLICKS, rng)
            at = ids[:, points[:, 1], points[:, 0]].T  # [P, 3]
            # a cell's target is the share inside of four places in it
            targets.append(
                sum(
                    (ids[:, y::STRIDE, x::STRIDE] == at[..., None, None]).astype(np.float32)
                    for y in (1, 3)
                    for x in (1, 3)
                )
                / 4
            )
            known.append(at > 0)
            sparse, dense = self.sam.prompt_encoder(
                points=(torch.from_numpy(points + 0.5).float()[:, None], torch.ones(CLICKS, 1)),
                boxes=None,
                masks=None,
            )
            m, s = self.sam.mask_decoder(
                image_embeddings=e[None],
                image_pe=where,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
            logits.append(m)
            scores.append(s)
        logit, score, target = (
            torch.cat(logits),
            torch.cat(scores),
            torch.from_numpy(np.concatenate(targets)),
        )
        iou = _iou(logit, target)
        # a region thinner than the decoder's grid teaches nothing
        known = torch.from_numpy(np.concatenate(known)) & (target.sum((-1, -2)) > 0)
        out = {
            "balanced": _mean(_balanced(logit, target), known),
            "dice": _mean(_dice(logit.sigmoid(), target), known),
            "score": _mean((score - iou).square(), known),
        }
        out["total"] = (
            BALANCED * out["balanced"]
            + DICE * out["dice"]
            + SCORE * out["score"]
            + sum(weight * hints[k] for k, weight in HINTS.items())
        )
        for k, level in enumerate(LEVELS):
            out[f"iou_{level}"] = _mean(iou[:, k], known[:, k])
        return hints | out

    def hints(self, embedding: torch.Tensor, views) -> dict[str, torch.Tensor]:
        """Boxes' distance and overlap, cross-entropy of names, balanced cross-entropy of outlines;
        and the boxes' IoU.
        """
        half = HINT_STRIDE // 2
        box, name, edge = self.sam.hints(embedding)
        h, w = (n // HINT_STRIDE for n in views[0][2].shape[1:])
        y, x = np.mgrid[half : h * HINT_STRIDE : HINT_STRIDE, half : w * HINT_STRIDE : HINT_STRIDE]
        far, things, names, edges = [], [], [], []
        for v, _, ids in views:
            scene = self.scenes.scene[v]
            cells = ids[:, half::HINT_STRIDE, half::HINT_STRIDE].astype(int)
            corners = np.zeros((int(ids.max()) + 1, 4), np.float32)
            for level in range(3):
                for i, at in enumerate(find_objects(ids[level].astype(np.int32)), 1):
                    if at is not None:
                        corners[i] = at[1].start, at[0].start, at[1].stop, at[0].stop
                # read before the next level: one id may have another region there
                c = corners[cells[level]]
                far.append(
                    np.stack([x - c[..., 0], y - c[..., 1], c[..., 2] - x, c[..., 3] - y]) / REACH
                )
            things.append((cells > 0) & ~self.stuff[scene][cells])
            names.append(self.name_of[scene][cells])
            tiles = ids.reshape(3, ids.shape[1] // STRIDE, STRIDE, ids.shape[2] // STRIDE, STRIDE)
            edges.append(tiles.max((2, 4)) != tiles.min((2, 4)))
        # [V, 3, 4, h, w]
        far = torch.from_numpy(np.stack(far)).float().unflatten(0, (len(views), 3))
        things, names, edges = (torch.from_numpy(np.stack(a)) for a in (things, names, edges))
        name = F.log_softmax(name, 1)
        area = lambda b: (b[:, :, 0] + b[:, :, 2]) * (b[:, :, 1] + b[:, :, 3])
        both = area(torch.minimum(box, far))
        iou = both / (area(box) + area(far) - both).clamp(min=1e-4)
        return {
            "box": _mean(1 - iou + (box - far).abs().mean(2), things),
            "name": -_mean(name.gather(1, names), names > 0),
            "edge": _balanced(edge, edges.float()).mean(),
            "box_iou": _mean(iou.detach(), things),
        }


def _balanced(
    logit: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:  # [..., H, W] twice -> [...]
    """Cross-entropy in which inside and outside count alike, so that a constant answer gains
    nothing.
    """
    entropy = F.binary_cross_entropy_with_logits(logit, target, reduction="none")
    inside, outside = target.sum((-1, -2)), (1 - target).sum((-1, -2))
    return (
        (entropy * target).sum((-1, -2)) / inside.clamp(min=1)
        + (entropy * (1 - target)).sum((-1, -2)) / outside.clamp(min=1)
    ) / 2


def _dice(p: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return 1 - (2 * (p * target).sum((-1, -2)) + 1) / (p.sum((-1, -2)) + target.sum((-1, -2)) + 1)


def _focal(logit: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (
        F.binary_cross_entropy_with_logits(logit, target, reduction="none")
        * (logit.sigmoid() - target).square()
    ).mean((-1, -2))


@torch.no_grad()
def _iou(logit: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    hit, there = logit > 0, target > 0.5
    return (hit & there).sum((-1, -2)) / (hit | there).sum((-1, -2)).clamp(min=1)


def _mean(value: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    return (value * known).sum() / known.sum().clamp(min=1)


def sample_clicks(
    ids: np.ndarray, stuff: np.ndarray, n: int, rng: np.random.Generator
) -> np.ndarray:  # [n, 2] int x, y
    """Clicks in subparts drawn uniformly (few of them stuff), each at a random pixel of
    its region.
    """
    flat = ids[0].ravel()
    order = np.argsort(flat, kind="stable")
    found, start, count = np.unique(flat[order], return_index=True, return_counts=True)
    large = (found > 0) & (count >= MIN_AREA_PX)
    things, grounds = np.flatnonzero(large & ~stuff[found]), np.flatnonzero(large & stuff[found])
    out = []
    for on_stuff in rng.random(n) < ON_STUFF:
        pool = grounds if (on_stuff and len(grounds)) or not len(things) else things
        if not len(pool):  # an empty crop: anywhere
            out.append(int(rng.integers(flat.size)))
            continue
        k = pool[rng.integers(len(pool))]
        out.append(int(order[start[k] + rng.integers(count[k])]))
    y, x = np.divmod(np.array(out), ids.shape[2])
    return np.stack([x, y], 1)


def augmented(
    image: np.ndarray, ids: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A view and its ids [3, H, W], zoomed, mirrored, and photographed less well."""
    h, w = image.shape[:2]
    if rng.random() < ZOOMED:
        s = rng.uniform(0.55, 1)
        ch, cw = int(h * s), int(w * s)
        y, x = rng.integers(h - ch + 1), rng.integers(w - cw + 1)
        image = cv2.resize(image[y : y + ch, x : x + cw], (w, h), interpolation=cv2.INTER_LINEAR)
        ids = np.stack(
            [
                cv2.resize(m[y : y + ch, x : x + cw], (w, h), interpolation=cv2.INTER_NEAREST_EXACT)
                for m in ids
            ]
        )
    if rng.random() < 0.5:
        image, ids = image[:, ::-1], ids[:, :, ::-1]
    return degraded(image, rng) if rng.random() < DEGRADED else np.ascontiguousarray(image), ids


def degraded(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:  # [H, W, 3] uint8
    """Exposure, white balance, contrast, noise, blur: what the benchmark's cameras do, and more."""
    f = image.astype(np.float32) / 255
    f = (
        f
        * np.float32(
            2 ** (rng.uniform(-0.5, 0.9) if rng.random() < 0.85 else rng.uniform(-2, -0.5))
        )
        * rng.uniform(0.9, 1.1, 3).astype(np.float32)
    )
    grey = f.mean(-1, keepdims=True)
    f = grey + (f - grey) * np.float32(rng.uniform(0.7, 1.3))
    f = np.clip(f, 0, 1) ** np.float32(2 ** rng.uniform(-0.4, 0.4))
    if rng.random() < 0.2:
        f = cv2.GaussianBlur(f, (0, 0), rng.uniform(0.4, 1.4))
    elif rng.random() < 0.1:  # motion
        n, a = 9, rng.uniform(0, np.pi)
        k = np.zeros((n, n), np.float32)
        r = rng.uniform(1.5, 4)
        cv2.line(
            k,
            tuple(int(round(n // 2 - r * c)) for c in (np.cos(a), np.sin(a))),
            tuple(int(round(n // 2 + r * c)) for c in (np.cos(a), np.sin(a))),
            1,
        )
        f = cv2.filter2D(f, -1, k / k.sum())
    if rng.random() < 0.5:
        f = f + rng.normal(0, rng.uniform(0.005, 0.04), f.shape).astype(np.float32)
    return np.clip(np.rint(f * 255), 0, 255).astype(np.uint8)
