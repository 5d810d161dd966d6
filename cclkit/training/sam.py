"""Train mini-SAM on random scenes: one click, three outputs, each taught one granularity."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from scipy.ndimage import find_objects
from segment_anything.modeling.transformer import Attention
from torch.nn import functional as F

from ..foundation.mini_sam import STRIDE, WIDTH, build_mini_sam
from .data import LEVELS, Scenes

GROUPING_SHARE, GROUPING_CLICKS = 0.75, 48
"""Share of the steps in which only the encoder learns, by grouping (see Grouping), and clicks in each.
Through the decoder a click costs as much as a view through the encoder, so a decoder that starts on an encoder that knows
nothing starves; in a dot product of features it costs nothing."""
CLICKS = 12
"""Per later step. Every step takes one view (a replica), because many small steps learn faster than few large ones here."""
ON_STUFF = 0.12
"""Share of clicks on tables and walls."""
MIN_AREA_PX = 36
"""Regions smaller than this are not clicked on in training."""
FOCAL, DICE, SCORE = 20.0, 1.0, 1.0
"""Weights of the three losses, SAM's own."""
BALANCED = (1.0, 0.2)
"""Weight of a balanced cross-entropy at the first and at the last click; the focal loss takes its place."""
GROUPING_BALANCED, BY_DECODER = 0.3, 0.5
"""Weight of the balanced cross-entropy in grouping, and of grouping by the decoder's own layers (which then know it when clicks begin)."""
GROUPING_STRIDE, GROUPING_WIDTH = 4, 16
HINTS = {"box": 0.5, "name": 0.1, "edge": 0.3}
"""Weights of what every pixel is told about its regions (see Hints). With them grouping learns in 1,000 steps what took 2,300 (measured)."""
REACH = 48.0
"""Pixels that make one unit of a box's distances."""
DENSE = 0.5
"""Weight of grouping and hints beside the decoder's losses on clicks. What they need beyond SAM is dropped after training."""
DEGRADED, ZOOMED = 0.25, 0.35
"""Share of views with a worse photograph, and zoomed in."""
PE_FREQUENCIES = (0.5, 2.0)
SMALLEST_MATRIX = 16
POINT_EMBEDDING, NECK, ATTENTION = 0.1, 0.5, 1.5


def model(seed: int) -> torch.nn.Module:
    """mini-SAM as training starts: attention between click and image already looks at the click.

    From SAM's own initialisation a decoder this narrow ends in a constant answer: what little the
    first gradients say about the click is smaller than what they gain by making all pixels alike.
    With queries and keys projected alike, and positions not drowned in learned offsets, a click
    attends to its surroundings from the first step.
    """
    torch.manual_seed(seed)
    m = build_mini_sam()
    frequencies = m.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix  # [2, WIDTH / 2]
    with torch.no_grad():
        frequencies *= torch.linspace(*PE_FREQUENCIES, frequencies.shape[1])
        for e in (*m.prompt_encoder.point_embeddings, m.prompt_encoder.not_a_point_embed, m.prompt_encoder.no_mask_embed, m.mask_decoder.iou_token):
            e.weight *= POINT_EMBEDDING
        m.image_encoder.neck[-1].weight *= NECK
        for name, module in m.mask_decoder.transformer.named_modules():
            if isinstance(module, Attention) and not name.endswith("self_attn"):
                torch.nn.init.orthogonal_(module.q_proj.weight, gain=ATTENTION)
                module.k_proj.weight.copy_(module.q_proj.weight)
                module.q_proj.bias.zero_()
                module.k_proj.bias.zero_()
    m.image_encoder.to(memory_format=torch.channels_last)
    return m


def matrices(m: torch.nn.Module) -> list[torch.nn.Parameter]:
    """What Muon trains: the encoder's convolutions but for the first, which sees colours, and the decoder's linear maps, but not those between tokens and image, which `model` sets."""
    encoder = [p for name, p in m.image_encoder.named_parameters() if p.ndim == 4 and not name.startswith("stem.0")]
    return encoder + [p for name, p in m.mask_decoder.named_parameters() if p.ndim == 2 and "token" not in name and min(p.shape) >= SMALLEST_MATRIX]


class Grouping(torch.nn.Module):
    """Which pixels belong to the region under a click, as the dot product of two features, for each of the three levels."""

    def __init__(self):
        super().__init__()
        self.up = torch.nn.ConvTranspose2d(WIDTH, WIDTH, STRIDE // GROUPING_STRIDE, STRIDE // GROUPING_STRIDE)
        self.key = torch.nn.Conv2d(WIDTH, 3 * GROUPING_WIDTH, 1)
        self.query = torch.nn.Conv2d(WIDTH, 3 * (GROUPING_WIDTH + 1), 1)

    def forward(self, embedding: torch.Tensor, xy: np.ndarray) -> torch.Tensor:
        """Logits [V, P, 3, H / 4, W / 4] of clicks xy [V, P, 2] int in embeddings [V, WIDTH, H / 8, W / 8]."""
        u = F.gelu(self.up(embedding))
        key = self.key(u).unflatten(1, (3, GROUPING_WIDTH))
        at = self.query(u).permute(0, 2, 3, 1)[np.arange(len(xy))[:, None], xy[..., 1] // GROUPING_STRIDE, xy[..., 0] // GROUPING_STRIDE]
        at = at.unflatten(-1, (3, GROUPING_WIDTH + 1))  # the last entry is an offset
        return torch.einsum("vplc,vlchw->vplhw", at[..., :-1], key) + at[..., -1, None, None]


class Hints(torch.nn.Module):
    """What every pixel can be told about the regions it lies in: how far they reach, their names, their outlines. Dropped after training."""

    def __init__(self, names: int):
        super().__init__()
        self.box = torch.nn.Conv2d(WIDTH, 12, 1)
        self.name = torch.nn.Conv2d(WIDTH, names, 1)
        self.edge = torch.nn.Conv2d(WIDTH, 3 * (STRIDE // GROUPING_STRIDE) ** 2, 1)

    def forward(self, embedding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return F.softplus(self.box(embedding).unflatten(1, (3, 4))), self.name(embedding), F.pixel_shuffle(self.edge(embedding), STRIDE // GROUPING_STRIDE)


class Losses:
    """The loss of one step, as a function of its number and its generator."""

    def __init__(self, sam, scenes: Scenes, steps: int):
        self.sam, self.scenes, self.steps, self.first_click = sam, scenes, steps, round(GROUPING_SHARE * steps)
        sam.grouping = Grouping()
        self.names = sorted({f"{n['level']} {n['texts'][0]}" for t in scenes.nodes for n in t.values()})
        at = {n: k for k, n in enumerate(self.names)}
        self.name_of = [np.array([0, *(at[f"{t[i]['level']} {t[i]['texts'][0]}"] for i in sorted(t))]) for t in scenes.nodes]
        sam.hints = Hints(len(self.names))
        self.stuff = [np.array([n["stuff"] for n in [{"stuff": False}, *(t[i] for i in sorted(t))]]) for t in scenes.nodes]

    def __call__(self, step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        views = [(v, *augmented(self.scenes.images[v], self.scenes.ids[v], rng)) for v in rng.integers(len(self.scenes.images), size=1)]
        x = torch.from_numpy(np.stack([image for _, image, _ in views])).permute(0, 3, 1, 2).float()
        x = self.sam.preprocess(x).contiguous(memory_format=torch.channels_last)
        embedding = self.sam.image_encoder(x).contiguous()
        grouping = self.grouping(embedding, views, rng)
        hints = self.hints(embedding, views)
        taught = grouping["grouping"] + sum(weight * hints[k] for k, weight in HINTS.items())
        if step < self.first_click:
            return grouping | hints | {"total": taught}
        clicks, targets = [], []
        for v, _, ids in views:
            points = sample_clicks(ids, self.stuff[self.scenes.scene[v]], CLICKS, rng)
            at = ids[:, points[:, 1], points[:, 0]]  # [3, P]
            clicks.append(points + 0.5)
            full = (ids[None] == at.T[:, :, None, None]) & (at.T > 0)[:, :, None, None]  # [P, 3, H, W]
            p, k, h, w = full.shape  # the decoder's cells are 2 x 2 pixels: a cell's target is the share of them inside
            targets.append(full.reshape(p, k, h // 2, 2, w // 2, 2).mean((3, 5), dtype=np.float32))
        where = self.sam.prompt_encoder.get_dense_pe()
        logits, scores = [], []
        for e, p in zip(embedding, clicks):
            sparse, dense = self.sam.prompt_encoder(points=(torch.from_numpy(p).float()[:, None], torch.ones(len(p), 1)), boxes=None, masks=None)
            m, s = self.sam.mask_decoder(image_embeddings=e[None], image_pe=where, sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense, multimask_output=True)
            logits.append(m)
            scores.append(s)
        target = torch.from_numpy(np.concatenate(targets))
        h, w = target.shape[-2:]
        logit = torch.cat(logits)[..., :h, :w]
        score = torch.cat(scores)
        late = (step - self.first_click) / (self.steps - self.first_click)
        balanced = BALANCED[0] + (BALANCED[1] - BALANCED[0]) * late
        iou = _iou(logit, target)
        known = target.sum((-1, -2)) > 0  # a region thinner than the decoder's grid teaches nothing
        out = {"balanced": _mean(_balanced(logit, target), known), "focal": _mean(_focal(logit, target), known), "dice": _mean(_dice(logit.sigmoid(), target), known), "score": _mean((score - iou).square(), known), "dense": taught}
        out["total"] = balanced * out["balanced"] + (1 - balanced) * FOCAL * out["focal"] + DICE * out["dice"] + SCORE * out["score"] + DENSE * taught
        for k, level in enumerate(LEVELS):
            out[f"iou_{level}"] = _mean(iou[:, k], known[:, k])
        return out

    def hints(self, embedding: torch.Tensor, views) -> dict[str, torch.Tensor]:
        """Boxes' distance and overlap, cross-entropy of names, balanced cross-entropy of outlines; and the boxes' IoU."""
        half = STRIDE // 2
        box, name, edge = self.sam.hints(embedding)
        h, w = (n // STRIDE for n in views[0][2].shape[1:])
        y, x = np.mgrid[half: h * STRIDE: STRIDE, half: w * STRIDE: STRIDE]
        far, things, names, edges = [], [], [], []
        for v, _, ids in views:
            scene = self.scenes.scene[v]
            cells = ids[:, half:: STRIDE, half:: STRIDE].astype(int)
            corners = np.zeros((int(ids.max()) + 1, 4), np.float32)
            for level in range(3):
                for i, at in enumerate(find_objects(ids[level].astype(np.int32)), 1):
                    if at is not None:
                        corners[i] = at[1].start, at[0].start, at[1].stop, at[0].stop
                # read before the next level: one id may have another region there
                c = corners[cells[level]]
                far.append(np.stack([x - c[..., 0], y - c[..., 1], c[..., 2] - x, c[..., 3] - y]) / REACH)
            things.append((cells > 0) & ~self.stuff[scene][cells])
            names.append(self.name_of[scene][cells])
            tiles = ids.reshape(3, ids.shape[1] // GROUPING_STRIDE, GROUPING_STRIDE, ids.shape[2] // GROUPING_STRIDE, GROUPING_STRIDE)
            edges.append(tiles.max((2, 4)) != tiles.min((2, 4)))
        far = torch.from_numpy(np.stack(far)).float().unflatten(0, (len(views), 3))  # [V, 3, 4, h, w]
        things, names, edges = (torch.from_numpy(np.stack(a)) for a in (things, names, edges))
        box, name, edge = box[..., :h, :w], F.log_softmax(name[..., :h, :w], 1), edge[..., : edges.shape[-2], : edges.shape[-1]]
        area = lambda b: (b[:, :, 0] + b[:, :, 2]) * (b[:, :, 1] + b[:, :, 3])  # noqa: E731
        both = area(torch.minimum(box, far))
        iou = both / (area(box) + area(far) - both).clamp(min=1e-4)
        return {
            "box": _mean(1 - iou + (box - far).abs().mean(2), things), "name": -_mean(name.gather(1, names), names > 0),
            "edge": _balanced(edge, edges.float()).mean(), "box_iou": _mean(iou.detach(), things),
        }  # fmt: skip

    def grouping(self, embedding: torch.Tensor, views, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Balanced cross-entropy and dice of masks that are dot products of features, and their IoU."""
        xy = np.stack([sample_clicks(ids, self.stuff[self.scenes.scene[v]], GROUPING_CLICKS, rng) for v, _, ids in views])
        half = GROUPING_STRIDE // 2
        at = np.stack([ids[:, p[:, 1], p[:, 0]].T for (_, _, ids), p in zip(views, xy)])  # [V, P, 3]
        cells = np.stack([ids[:, half:: GROUPING_STRIDE, half:: GROUPING_STRIDE] for _, _, ids in views])  # [V, 3, h, w]
        target = torch.from_numpy(cells[:, None] == at[..., None, None]).float()
        h, w = target.shape[-2:]
        inner = embedding[..., : h * GROUPING_STRIDE // STRIDE, : w * GROUPING_STRIDE // STRIDE]
        known = torch.from_numpy(at > 0) & (target.sum((-1, -2)) > 0)
        out, total = {}, 0.0
        for name, weight, logit in (("grouping", 1.0, self.sam.grouping(inner, xy)), ("decoder", BY_DECODER, self.by_decoder(inner, xy))):
            total = total + weight * _mean(GROUPING_BALANCED * _balanced(logit, target) + _dice(logit.sigmoid(), target), known)
            iou = _iou(logit, target)
            out |= {f"{name}_iou_{level}": _mean(iou[:, :, k], known[:, :, k]) for k, level in enumerate(LEVELS)}
        return {"grouping": total} | out

    def by_decoder(self, embedding: torch.Tensor, xy: np.ndarray) -> torch.Tensor:
        """Grouping by the decoder's own upscaling and hypernetworks, as if a mask token had already read the embedding under its click."""
        d = self.sam.mask_decoder
        key = F.avg_pool2d(d.output_upscaling(embedding), GROUPING_STRIDE * 4 // STRIDE)
        at = embedding.permute(0, 2, 3, 1)[np.arange(len(xy))[:, None], xy[..., 1] // STRIDE, xy[..., 0] // STRIDE]
        query = torch.stack([d.output_hypernetworks_mlps[k](at + d.mask_tokens.weight[k]) for k in range(1, 4)], 2)
        return torch.einsum("vplc,vchw->vplhw", query, key)


def _balanced(logit: torch.Tensor, target: torch.Tensor) -> torch.Tensor:  # [..., H, W] twice -> [...]
    """Cross-entropy in which inside and outside count alike, so that a constant answer gains nothing."""
    entropy = F.binary_cross_entropy_with_logits(logit, target, reduction="none")
    inside, outside = target.sum((-1, -2)), (1 - target).sum((-1, -2))
    return ((entropy * target).sum((-1, -2)) / inside.clamp(min=1) + (entropy * (1 - target)).sum((-1, -2)) / outside.clamp(min=1)) / 2


def _dice(p: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return 1 - (2 * (p * target).sum((-1, -2)) + 1) / (p.sum((-1, -2)) + target.sum((-1, -2)) + 1)


def _focal(logit: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (F.binary_cross_entropy_with_logits(logit, target, reduction="none") * (logit.sigmoid() - target).square()).mean((-1, -2))


@torch.no_grad()
def _iou(logit: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    hit, there = logit > 0, target > 0.5
    return (hit & there).sum((-1, -2)) / (hit | there).sum((-1, -2)).clamp(min=1)


def _mean(value: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    return (value * known).sum() / known.sum().clamp(min=1)


def sample_clicks(ids: np.ndarray, stuff: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:  # [n, 2] int x, y
    """Clicks in subparts drawn uniformly (few of them stuff), each at a random pixel of its region."""
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


def augmented(image: np.ndarray, ids: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A view and its ids [3, H, W], zoomed, mirrored, and photographed less well."""
    h, w = image.shape[:2]
    if rng.random() < ZOOMED:
        s = rng.uniform(0.55, 1)
        ch, cw = int(h * s), int(w * s)
        y, x = rng.integers(h - ch + 1), rng.integers(w - cw + 1)
        image = cv2.resize(image[y: y + ch, x: x + cw], (w, h), interpolation=cv2.INTER_LINEAR)
        ids = np.stack([cv2.resize(m[y: y + ch, x: x + cw], (w, h), interpolation=cv2.INTER_NEAREST_EXACT) for m in ids])
    if rng.random() < 0.5:
        image, ids = image[:, ::-1], ids[:, :, ::-1]
    return degraded(image, rng) if rng.random() < DEGRADED else np.ascontiguousarray(image), ids


def degraded(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:  # [H, W, 3] uint8
    """Exposure, white balance, contrast, noise, blur: what the benchmark's cameras do, and more."""
    f = image.astype(np.float32) / 255
    f = f * np.float32(2 ** (rng.uniform(-0.5, 0.9) if rng.random() < 0.85 else rng.uniform(-2, -0.5))) * rng.uniform(0.9, 1.1, 3).astype(np.float32)
    grey = f.mean(-1, keepdims=True)
    f = grey + (f - grey) * np.float32(rng.uniform(0.7, 1.3))
    f = np.clip(f, 0, 1) ** np.float32(2 ** rng.uniform(-0.4, 0.4))
    if rng.random() < 0.2:
        f = cv2.GaussianBlur(f, (0, 0), rng.uniform(0.4, 1.4))
    elif rng.random() < 0.1:  # motion
        n, a = 9, rng.uniform(0, np.pi)
        k = np.zeros((n, n), np.float32)
        r = rng.uniform(1.5, 4)
        cv2.line(k, tuple(int(round(n // 2 - r * c)) for c in (np.cos(a), np.sin(a))), tuple(int(round(n // 2 + r * c)) for c in (np.cos(a), np.sin(a))), 1)
        f = cv2.filter2D(f, -1, k / k.sum())
    if rng.random() < 0.5:
        f = f + rng.normal(0, rng.uniform(0.005, 0.04), f.shape).astype(np.float32)
    return np.clip(np.rint(f * 255), 0, 255).astype(np.uint8)
