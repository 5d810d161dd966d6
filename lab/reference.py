"""What the library computes quickly, once more the slow and obvious way.

Tests compare results with these forms; benches also compare times. Each follows its definition
step by step, and nothing here is meant to be used on anything large.
"""

from __future__ import annotations

import numpy as np
import torch


def mask_nms(
    masks: np.ndarray,
    predicted_iou: np.ndarray,
    stability: np.ndarray,
    *,
    iou_thr: float,
    score_thr: float,
    inner_thr: float,
) -> np.ndarray:
    """`cclkit.method.masks.mask_nms` as a double loop over pairs: rows that are kept, int64."""
    m = torch.from_numpy(masks)
    score = torch.from_numpy(predicted_iou) * torch.from_numpy(stability)
    keep, area = score > score_thr, [x.sum() for x in m]
    for i in range(len(m)):
        for j in range(i + 1, len(m)):
            inter = (m[i] & m[j]).sum().double()
            a, b = area[i], area[j]
            if inter / (a + b - inter) > iou_thr:
                keep[j if score[i] >= score[j] else i] = False
            for share, other, inside in ((inter / a, inter / b, i), (inter / b, inter / a, j)):
                if share >= 0.85 and other < 0.5 and 1 - share * other > 1 - inner_thr:
                    keep[inside] = False
    return torch.nonzero(keep)[:, 0].numpy()


def ccl_loss(
    prototypes: torch.Tensor,
    features: torch.Tensor,
    labels: torch.Tensor,
    *,
    lambda_pull: float,
    lambda_push: float,
    margin: float,
) -> torch.Tensor:
    """The total of `cclkit.method.codebook.ccl_loss` from the table of all pairs of masks.

    O(B² d) in time, O(B²) in memory. Every mask has a label here: there is no -1.
    """
    T = prototypes / prototypes.norm(dim=1, keepdim=True)
    with torch.no_grad():
        codes = (features @ T.T).argmax(1)
    own = T[codes]  # [B, d]
    cos, same = own @ own.T, labels[:, None] == labels[None, :]  # [B, B]
    different = ~same
    same.fill_diagonal_(False)
    l_max = (1 - (features * own).sum(1)).mean()
    l_pull = ((1 - cos) * same).sum() / same.sum()
    l_push = (torch.relu(cos - margin) * different).sum() / different.sum()
    return l_max + lambda_pull * l_pull + lambda_push * l_push


# ----------------------------------------------------------------- protocols langsplat (A), v2 (B)


def box_mean(image: np.ndarray, size: int = 30) -> np.ndarray:
    """Mean over a window of ``size`` x ``size`` pixels, mirrored at the borders, float32 [H, W].

    The window begins ``size // 2`` pixels before its pixel.
    """
    before, after = size // 2, size - size // 2 - 1
    around = np.pad(image.astype(np.float64), (before, after), mode="reflect")
    share = np.float64(np.float32(1 / size**2))
    out = np.empty(image.shape, np.float32)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            out[y, x] = np.float32(around[y : y + size, x : x + size].sum() * share)
    return out


def box_mean_cut(image: np.ndarray, reach: int = 14) -> np.ndarray:
    """Mean over the part of a window that lies in the image, summed pixel after pixel, float32."""
    out = np.empty(image.shape, np.float32)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            window = image[
                max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1
            ].ravel()
            total = np.add.accumulate(window, dtype=np.float32)[-1]  # one after the other
            out[y, x] = total / np.float32(window.size)
    return out


def majority(mask: np.ndarray, last_votes: bool) -> np.ndarray:
    """Pixels of whose 7 x 7 window more than half is set, bool [H, W].

    ``last_votes``: whether the last row and column count in windows; protocol A leaves them out.
    """
    h, w = mask.shape
    cut = 0 if last_votes else 1
    out = np.zeros((h, w), bool)
    for y in range(h):
        for x in range(w):
            window = mask[max(y - 3, 0) : min(y + 4, h - cut), max(x - 3, 0) : min(x + 4, w - cut)]
            out[y, x] = 2 * window.sum() > window.size
    return out


def evaluate_query(
    maps: np.ndarray, truth: np.ndarray, boxes: np.ndarray, protocol: str
) -> tuple[int, np.ndarray, float, bool, list[tuple[int, int]]]:
    """`cclkit.evaluation.lerf_ovs.evaluate_query`, one pixel at a time.

    ``maps``: relevancy [L, H, W] float32; ``truth``: bool [H, W]; ``boxes``: [n, 4] corners.
    Returns level, mask, IoU, whether a point of highest relevancy lies in a box, and these points
    (x, y).
    """
    langsplat = protocol == "langsplat"
    means, smooths, masks = [], [], []
    for r in maps:
        mean = box_mean(r) if langsplat else box_mean_cut(r)
        smooth = np.float32(0.5) * (mean + r)
        n = smooth - smooth.min()
        n = np.clip(n / (n.max() + 1e-9) * 2 - 1, 0, 1)
        means.append(mean)
        smooths.append(smooth)
        masks.append(majority(n > 0.4, last_votes=not langsplat))
    level = int(np.argmax([s.max() for s in smooths]))
    mean = means[int(np.argmax([m.max() for m in means]))]
    highest = mean.max()
    points = [
        (x, y) for y in range(mean.shape[0]) for x in range(mean.shape[1]) if mean[y, x] == highest
    ]
    hit = any(
        min(b[0], b[2]) <= x <= max(b[0], b[2]) and min(b[1], b[3]) <= y <= max(b[1], b[3])
        for x, y in points
        for b in boxes
    )
    iou = (masks[level] & truth).sum() / (masks[level] | truth).sum()
    return level, masks[level], float(iou), hit, points
