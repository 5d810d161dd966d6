"""Scores of the small models on held-out random scenes, block by block of seeds."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from cclkit.config import profile
from cclkit.foundation.clicks import SamClicks
from cclkit.foundation.clip import ClipConfig, ClipEncoder, masked_crop
from cclkit.foundation.mini_clip import IMAGE_SIZE
from cclkit.foundation.sam import SamMasks
from cclkit.foundation.sam2 import Sam2Config
from cclkit.foundation.simulated import cut
from cclkit.method.masks import build_view_masks, recall
from cclkit.method.tracking import ways
from cclkit.scenes.scene import Camera, View

from .clip import MIN_AREA_PX, regions
from .data import HELD_OUT_BLOCKS, LEVELS, SCENES_PER_BLOCK, STEP_DEGREES, Scenes

CLICK_AREA_PX = 60
"""Regions from this size on count for the click score."""
SIZE_BINS = (16, 30, 60, 120, 250, 500, 1000, 2000, 5000, 50000)
TRACK_AREA_PX = 60
"""Masks are followed, and scored in a view, from this size on."""
WHOLE_AREA_PX = 400
"""Whole objects from this size on count for the recall of everything mode."""


def score_sam(sam, scenes: Scenes) -> dict:
    """Click IoU per granularity at its own output, its curve over region size, recall of everything
    mode.

    A finer map repeats the coarser region where an object has nothing finer. "subpart" counts all
    regions of the subpart map, as a click on them meets them; "subpart_own" only those that are
    finer than a part. "per_click" takes one click in each finest region and asks all three outputs
    about it: a whole then counts once for each of its visible subparts. Clicks are `SamClicks`':
    picture and crops, the piece under the click; "one_look" is SAM's own: the picture once, all of
    the mask.
    """
    config = profile("mini")
    adapter = SamMasks(sam, config.front_end.sam, config.masks)
    clicked, one_look = SamClicks(adapter), SamClicks(adapter, crop_layers=0)
    rng = np.random.default_rng(0)
    # block, area, IoU, predicted IoU, of this level itself, IoU of one look
    hits: dict[str, list[tuple[int, int, float, float, bool, float]]] = {l: [] for l in LEVELS}
    per_click: dict[str, list[tuple[int, float]]] = {l: [] for l in LEVELS}  # block, IoU
    for v in range(len(scenes.images)):
        nodes = scenes.nodes[scenes.scene[v]]
        clicks, wanted = [], []
        for k, level in enumerate(LEVELS):
            m = scenes.ids[v, k]
            for i in np.unique(m[m > 0]).tolist():
                if nodes[i]["stuff"] or (area := int((m == i).sum())) < SIZE_BINS[0]:
                    continue
                y, x = np.nonzero(m == i)
                j = rng.integers(len(y))
                clicks.append((x[j] + 0.5, y[j] + 0.5))
                wanted.append((k, level, i, area))
        for start in range(0, len(clicks), 64):
            batch = np.array(clicks[start : start + 64])
            masks, predicted = clicked.click(scenes.images[v], batch)
            once, _ = one_look.click(scenes.images[v], batch, one_piece=False)
            for (x, y), m, p, o, (k, level, i, area) in zip(
                batch, masks, predicted, once, wanted[start : start + 64]
            ):
                truth = scenes.ids[v, k] == i
                iou, iou_once = ((a & truth).sum() / (a | truth).sum() for a in (m[k], o[k]))
                hits[level].append(
                    (
                        block(scenes, v),
                        area,
                        float(iou),
                        float(p[k]),
                        nodes[i]["level"] == level,
                        float(iou_once),
                    )
                )
                for n, l in enumerate(LEVELS if k == 0 else ()):
                    here = scenes.ids[v, n] == scenes.ids[v, n, int(y), int(x)]
                    if here.sum() >= CLICK_AREA_PX:
                        per_click[l].append(
                            (block(scenes, v), float((m[n] & here).sum() / (m[n] | here).sum()))
                        )
    out: dict = {"click_min_area_px": CLICK_AREA_PX}
    for level, rows in hits.items():
        a = np.array(rows)
        large = a[:, 1] >= CLICK_AREA_PX
        out[f"click_iou_{level}"] = _blocks(a[large, 0], a[large, 2])
        out[f"click_iou_{level}_one_look"] = _blocks(a[large, 0], a[large, 5])
        own = large & (a[:, 4] > 0)
        if level != "whole" and own.any():
            out[f"click_iou_{level}_own"] = _blocks(a[own, 0], a[own, 2])
        out[f"click_iou_{level}_per_click"] = _blocks(*np.array(per_click[level]).reshape(-1, 2).T)
        out[f"click_iou_{level}_by_area"] = [
            {"from_px": lo, "to_px": hi, "n": int(s.sum()), "iou": round(float(a[s, 2].mean()), 4)}
            for lo, hi in zip(SIZE_BINS, SIZE_BINS[1:])
            if (s := (a[:, 1] >= lo) & (a[:, 1] < hi)).any()
        ]
        out[f"predicted_iou_error_{level}"] = round(
            float(np.abs(a[large, 2] - a[large, 3]).mean()), 4
        )
    return out | everything(adapter, scenes)


def everything(adapter: SamMasks, scenes: Scenes, every: int = 4) -> dict:
    """Recall at IoU 0.5 of everything mode, in every ``every``-th view: candidates, and
    final maps.
    """
    whole, sub = [], []
    for v in range(0, len(scenes.images), every):
        nodes = scenes.nodes[scenes.scene[v]]
        c = adapter.propose_image(scenes.images[v])
        final, _ = build_view_masks(c, profile("mini").masks)
        things = lambda k: np.where(
            np.isin(scenes.ids[v, k], [i for i, n in nodes.items() if not n["stuff"]]),
            scenes.ids[v, k],
            0,
        )
        ids = things(2)
        for i in np.unique(ids[ids > 0]):
            truth = ids == i
            if truth.sum() >= WHOLE_AREA_PX:
                inter = (c.masks & truth).sum((1, 2))
                union = (c.masks | truth).sum((1, 2))
                whole.append((block(scenes, v), float((inter / union).max(initial=0) > 0.5)))
        found, total = recall(final, "sp", things(0).astype(np.int64), min_area=CLICK_AREA_PX)
        sub += [(block(scenes, v), 1.0)] * found + [(block(scenes, v), 0.0)] * (total - found)
    w, s = np.array(whole), np.array(sub)
    return {
        "points_per_side": adapter.config.points_per_side,
        "predicted_iou_min": profile("mini").masks.predicted_iou_min,
        "stability_min": profile("mini").masks.stability_min,
        "everything_whole_min_area_px": WHOLE_AREA_PX,
        "everything_recall_whole": _blocks(w[:, 0], w[:, 1]),
        "sp_map_recall_subpart": _blocks(s[:, 0], s[:, 1]),
    }


def block(scenes: Scenes, v: int) -> int:
    return int(scenes.scene[v]) // SCENES_PER_BLOCK


def _blocks(which: np.ndarray, value: np.ndarray) -> dict:
    per = [float(value[which == b].mean()) for b in range(HELD_OUT_BLOCKS) if (which == b).any()]
    return {
        "mean": round(float(np.mean(per)), 4),
        "per_block": [round(p, 4) for p in per],
        "n": int(len(value)),
    }


def class_text(texts: list[list[str]]) -> str:
    """What all instances of a family may be called: their first common text, else their common
    word.
    """
    common = [t for t in texts[0] if all(t in other for other in texts)]
    if common:
        return common[0]
    words = set.intersection(*({w for t in other for w in t.split()} for other in texts)) - {
        "a",
        "of",
        "with",
        "in",
        "on",
    }
    return sorted(words, key=len)[-1] if words else texts[0][0]


def classes(scenes: Scenes) -> dict[str, str]:
    """Family -> class text, over the whole objects of these scenes."""
    named: dict[str, list[list[str]]] = {}
    for nodes in scenes.nodes:
        for n in nodes.values():
            if n["level"] == "whole" and not n["stuff"]:
                named.setdefault(n["family"], []).append(n["texts"])
    return {f: class_text(t) for f, t in sorted(named.items())}


def whole_regions(scenes: Scenes) -> Iterator[tuple[int, int, str]]:
    """(view, id, family) of all complete whole objects."""
    for v, level, i in regions(scenes):
        node = scenes.nodes[scenes.scene[v]][i]
        if level == 2 and not node["stuff"]:
            yield v, i, node["family"]


def score_clip(model, tokenizer, scenes: Scenes) -> dict:
    """Zero-shot top-1 over the families on complete crops, and what masking and missing pieces do
    to it.
    """
    encoder = ClipEncoder(model, tokenizer, ClipConfig())
    names = classes(scenes)
    text = encoder.encode_text(list(names.values()))
    row = {f: k for k, f in enumerate(names)}
    rng = np.random.default_rng(0)
    crops: dict[str, list] = {"complete": [], "masked": [], "incomplete": []}
    truth, where = [], []
    for v, i, family in whole_regions(scenes):
        mask = scenes.ids[v, 2] == i
        crops["complete"].append(context_crop(scenes.images[v], mask))
        crops["masked"].append(masked_crop(scenes.images[v], mask, IMAGE_SIZE))
        crops["incomplete"].append(
            masked_crop(scenes.images[v], cut(mask, float(rng.uniform(0.4, 0.7)), rng), IMAGE_SIZE)
        )
        truth.append(row[family])
        where.append(block(scenes, v))
    truth, where = np.array(truth), np.array(where)
    features = {k: encoder.encode_crops(c) for k, c in crops.items()}
    out: dict = {
        "classes": len(names),
        "crop_min_area_px": MIN_AREA_PX,
        "texts": list(names.values()),
    }
    for k, f in features.items():
        out[f"top1_{k}"] = _blocks(where, ((f @ text.T).argmax(1) == truth).astype(float))
    cos = features["masked"] @ features["masked"].T
    other = truth[:, None] != truth[None]
    out["cross_object_cosine_mean"] = round(float(cos[other].mean()), 4)
    out["cross_object_pairs_above_0.7"] = round(float((cos[other] > 0.7).mean()), 4)
    same = (features["masked"] * features["incomplete"]).sum(1)
    out["complete_to_incomplete_cosine"] = round(float(same.mean()), 4)
    return out | found_in_view(encoder, scenes)


def found_in_view(encoder: ClipEncoder, scenes: Scenes) -> dict:
    """How often a region's plainest text finds it, or another that may be called so, among the
    masked crops of all regions of its view.

    What a query asks for, with perfect masks; harder than naming an object, because an object
    competes with its own parts, with others' and with walls.
    """
    hits: dict[str, list[tuple[int, bool]]] = {
        kind: [] for kind in ("whole", "part", "subpart", "surface")
    }
    for v in range(len(scenes.images)):
        nodes, masks = scenes.nodes[scenes.scene[v]], {}
        for ids in scenes.ids[v][
            ::-1
        ]:  # whole first: the finer maps repeat it where it has no parts
            for i, count in zip(*np.unique(ids[ids > 0], return_counts=True)):
                if count >= MIN_AREA_PX:
                    masks.setdefault(int(i), ids == i)
        found = list(masks)
        if not found:
            continue
        features = encoder.encode_crops(
            [masked_crop(scenes.images[v], m, IMAGE_SIZE) for m in masks.values()]
        )
        asked = [i for i in found if nodes[i]["stuff"] or i in scenes.complete[v]]
        best = (encoder.encode_text([nodes[i]["texts"][0] for i in asked]) @ features.T).argmax(1)
        for i, b in zip(asked, best):
            hits["surface" if nodes[i]["stuff"] else nodes[i]["level"]].append(
                (block(scenes, v), nodes[i]["texts"][0] in nodes[found[b]]["texts"])
            )
    return {
        f"found_in_view_{kind}": _blocks(*np.array(rows, float).T)
        for kind, rows in hits.items()
        if rows
    }


def context_crop(image: np.ndarray, mask: np.ndarray) -> np.ndarray:  # [S, S, 3] uint8
    """A square of 1.1 times a region's box, with what is around it."""
    from .clip import _square

    y, x = np.nonzero(mask)
    side = 1.1 * max(np.ptp(x) + 1, np.ptp(y) + 1)
    crop = _square(
        image, (x.min() + x.max() + 1 - side) / 2, (y.min() + y.max() + 1 - side) / 2, side
    )
    return cv2.resize(
        crop,
        (IMAGE_SIZE, IMAGE_SIZE),
        interpolation=cv2.INTER_AREA if len(crop) > IMAGE_SIZE else cv2.INTER_LINEAR,
    )


def score_sam2(predictor, scenes: Scenes) -> dict:
    """J of masks of the first view followed around held-out orbits, orbit by orbit, beside two ways
    to follow nothing.

    Masks go round the orbit as the profile mini carries them, both ways; "j_one_way" are the same
    weights forward only. The two ways to follow nothing are: a propagator that copies the mask it
    gave for the view before (it ends at the first view's mask everywhere), and, knowing more than
    any propagator may, copying the true mask of the view before. J is the mean IoU over objects and
    later views in which the object is visible with `TRACK_AREA_PX` pixels or more.
    """
    from cclkit.foundation.sam2 import Sam2Propagation

    adapter = Sam2Propagation(predictor, Sam2Config(model="mini"))
    j: dict[str, list[Followed]] = {l: [] for l in LEVELS}
    alarms = absent = 0
    with tempfile.TemporaryDirectory() as folder:
        for orbit in range(len(scenes.nodes)):
            where = np.flatnonzero(scenes.scene == orbit)
            views = _written_views(Path(folder), orbit, scenes.images[where])
            seeds = _followed(scenes.ids[where[0]], scenes.nodes[orbit])
            masks = np.stack([scenes.ids[where[0], k] == i for k, i in seeds])
            one_way = _carried(adapter, views, masks, both=False)
            both_ways = _carried(adapter, views, masks, both=profile("mini").tracks.both_ways)
            for n in range(1, len(views)):
                for m, m_one_way, (k, i) in zip(both_ways[n], one_way[n], seeds):
                    truth, before, start = (scenes.ids[where[t], k] == i for t in (n, n - 1, 0))
                    if not truth.any():
                        absent += 1
                        alarms += bool(m.any())
                    elif truth.sum() >= TRACK_AREA_PX:
                        overlaps = (_overlap(x, truth) for x in (m, start, before, m_one_way))
                        j[LEVELS[k]].append((orbit, n, *overlaps))
    return {
        "orbits": len(scenes.nodes),
        "views": int(len(scenes.images) / len(scenes.nodes)),
        "min_area_px": TRACK_AREA_PX,
        "false_alarms_where_absent": round(alarms / max(1, absent), 4),
        **_means(j, len(scenes.nodes)),
    }


Followed = tuple[float, ...]
"""Orbit, view, and J: of the tracker, of copying, of copying the truth, of the tracker one way."""
J_COLUMNS = {2: "j", 3: "j_of_copying", 4: "j_of_copying_the_truth", 5: "j_one_way"}


def _written_views(folder: Path, orbit: int, images: np.ndarray) -> list[View]:
    """The views of an orbit as files, which trackers read."""
    views = []
    h, w = images.shape[1:3]
    K = np.array([[w, 0, w / 2], [0, w, h / 2], [0, 0, 1.0]])
    for n, image in enumerate(images):
        path = folder / f"{orbit}_{n:03d}.png"
        cv2.imwrite(str(path), image[..., ::-1])
        views.append(View(path.name, path, Camera(K, _orbit_pose(n), w, h)))
    return views


def _followed(first: np.ndarray, nodes: dict[int, dict]) -> list[tuple[int, int]]:
    """What is followed: (level, id) of every object that is large enough in the first view."""
    return [
        (k, i)
        for k in range(3)
        for i in np.unique(first[k][first[k] > 0]).tolist()
        if not nodes[i]["stuff"] and (first[k] == i).sum() >= TRACK_AREA_PX
    ]


def _carried(adapter, views: list[View], masks: np.ndarray, *, both: bool) -> dict[int, np.ndarray]:
    """Masks of the first view in every other one, forward or both ways round."""
    return {
        t: m
        for order in ways(views, 0, both).values()
        if len(order) > 1
        for t, (_, m) in zip(order, adapter.propagate([views[t] for t in order], masks))
    }


def _means(j: dict[str, list[Followed]], orbits: int) -> dict:
    """Means by view, and of each level by orbit."""
    every = np.array([row for rows in j.values() for row in rows])
    out: dict = {"by_view": []}
    for n in np.unique(every[:, 1]):
        at = every[every[:, 1] == n]
        means = {name: round(float(at[:, c].mean()), 4) for c, name in J_COLUMNS.items()}
        out["by_view"].append({"view": int(n)} | means)
    for level, a in (("all", every), *((l, np.array(rows)) for l, rows in j.items())):
        for c, name in J_COLUMNS.items():
            per = [float(a[a[:, 0] == o, c].mean()) for o in range(orbits) if (a[:, 0] == o).any()]
            out[f"{name}_{level}"] = {
                "mean": round(float(np.mean(per)), 4),
                "per_orbit": [round(p, 4) for p in per],
                "n": int(len(a)),
            }
    return out


def _orbit_pose(n: int) -> np.ndarray:
    """Pose of the n-th view of an orbit, as far as `ways` asks: neighbours are neighbours, and the
    last is one of the first.
    """
    a = np.radians(n * STEP_DEGREES)
    pose = np.eye(4)
    pose[:3, :3] = [[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]]
    pose[2, 3] = 1.0  # looks at the centre from one unit away
    return pose


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))
