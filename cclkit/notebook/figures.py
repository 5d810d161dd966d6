"""Every figure of the notebooks, and the one way to show and save it.

A figure function takes data and returns a matplotlib figure; `show` saves it to
``results/<profile>/figures`` with its provenance and displays it with alt text and caption.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..errors import ConfigError
from ..evaluation.track_quality import GRANULARITIES as GRANULARITIES_OF_LEVEL, best_region
from ..files import atomic_write, save_json
from ..method.masks import LEVELS, ViewMasks
from ..scenes.scene import Camera, Scene, View
from .colours import BLUE, GREEN, ORANGE, PURPLE, SKY, UNLABELLED, VERMILION, YELLOW, label_colors

GREY = (0.62, 0.62, 0.62)
LEVEL_NAMES = {"sp": "sp (subpart ∪ part)", "wp": "wp (whole ∪ part)"}
ARM_COLORS = {"baseline": GREY, "pull": SKY, "push": ORANGE, "both": BLUE, "shuffled": VERMILION}

STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "image.interpolation": "nearest",
    "legend.frameon": False,
    "axes.grid": False,
    "svg.hashsalt": "cclkit",
}


# ----------------------------------------------------------------- show and save


class FigureFolder:
    """Where a notebook's figures go, and what is written beside them."""

    def __init__(
        self, folder: Path, *, notebook: str, profile: str, footer: str, about: Mapping[str, Any]
    ):
        self.folder, self.notebook, self.profile, self.footer, self.about = (
            Path(folder),
            notebook,
            profile,
            footer,
            dict(about),
        )

    def show(
        self, fig: Figure, name: str, *, alt: str, caption: str, artefacts: Sequence[str] = ()
    ):
        """Save as ``<notebook number>_<name>.png`` and return a displayable <figure> with alt text
        and caption.

        A picture that is already there, equal but for the commit that drew it, keeps its commit:
        regenerating changes no file. Only a commit with uncommitted changes gives way to one
        without.
        """
        fig.text(0.995, 0.004, self.footer, ha="right", va="bottom", fontsize=7, color="0.45")
        buffer = io.BytesIO()
        fig.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.08, facecolor="white")
        digest = data_digest(fig)
        plt.close(fig)
        png = buffer.getvalue()
        return Shown(
            png,
            self._save(
                name, digest, alt, caption, artefacts, lambda record: _with_text(png, record)
            ),
            alt,
            caption,
        )

    def show_animation(
        self,
        frames: Sequence[np.ndarray],
        name: str,
        *,
        alt: str,
        caption: str,
        seconds: float = 0.15,
        artefacts: Sequence[str] = (),
    ):  # [H, W, 3] in 0..1
        """Save pictures as an animated PNG, which everything that shows a PNG shows, and display
        it.
        """
        pictures = [_quantized(f) for f in frames]

        def encoded(text: PngInfo | None) -> bytes:
            buffer = io.BytesIO()
            pictures[0].save(
                buffer,
                "PNG",
                save_all=True,
                append_images=pictures[1:],
                duration=int(1000 * seconds),
                loop=0,
                optimize=True,
                pnginfo=text,
            )
            return buffer.getvalue()

        digest = hashlib.sha256(
            np.stack([np.asarray(p.convert("RGB")) for p in pictures]).tobytes()
        ).hexdigest()
        return Shown(
            encoded(None),
            self._save(
                name, digest, alt, caption, artefacts, lambda record: encoded(_text(record))
            ),
            alt,
            caption,
            shrink=False,
        )

    def show_viewer(
        self,
        layers: Mapping[str, Sequence[np.ndarray]],
        name: str,
        *,
        alt: str,
        caption: str,
        artefacts: Sequence[str] = (),
    ):  # name -> frames [H, W, 3] in 0..1
        """A viewer of the same frames in several layers: buttons and a slider in one piece of HTML
        that needs no network.

        Its static twin, the middle frame of every layer, is the figure that is saved, and what is
        seen where scripts do not run.
        """
        counts = {len(frames) for frames in layers.values()}
        if len(counts) != 1 or not min(counts):
            raise ConfigError(
                f"viewer {name!r}: layers of {sorted(counts)} frames; give every layer the same"
                " number, at least one"
            )
        fig, axes = grid(1, len(layers), width=2.4)
        for ax, (title, frames) in zip(axes[0], layers.items()):
            picture(ax, np.clip(frames[len(frames) // 2], 0, 1), title)
        shown = Viewer(self.show(fig, name, alt=alt, caption=caption, artefacts=artefacts), layers)
        atomic_write(
            self.folder / f"{self.notebook[:2]}_{name}.html",
            "<!doctype html><meta"
            f" charset=utf-8><title>{html.escape(caption)}</title>{shown._repr_html_()}\n".encode(),
        )
        return shown

    def _save(
        self,
        name: str,
        digest: str,
        alt: str,
        caption: str,
        artefacts: Sequence[str],
        encoded: Callable[[Mapping[str, Any]], bytes],
    ) -> str:
        """Write picture and side file; returns the figure's full name. A commit gives way only as
        `show` says.
        """
        stem = f"{self.notebook[:2]}_{name}"
        record = {
            "figure": stem,
            "notebook": self.notebook,
            "profile": self.profile,
            "alt": alt,
            "caption": caption,
            "data_sha256": digest,
            **self.about,
        }
        path, content = self.folder / f"{stem}.png", encoded(record)
        if path.is_file() and "commit" in record:
            drawn = {**record, "commit": Image.open(path).info.get("cclkit:commit", "")}
            if path.read_bytes() == encoded(drawn) and (
                "+" not in drawn["commit"] or "+" in record["commit"]
            ):
                record, content = drawn, path.read_bytes()
        atomic_write(path, content)
        save_json(self.folder / f"{stem}.json", {**record, "artefacts": list(artefacts)})
        return stem


class Shown:
    """A figure as notebooks display it: HTML that keeps its alt text in JupyterLab and
    in exports.
    """

    def __init__(self, png: bytes, name: str, alt: str, caption: str, *, shrink: bool = True):
        self.png, self.name, self.alt, self.caption, self.shrink = png, name, alt, caption, shrink

    def image(self) -> str:
        # The copy inside the notebook is reduced to 256 colours, a third of the size; the file
        # keeps all.
        small = io.BytesIO(self.png)
        if self.shrink:
            picture, small = Image.open(small), io.BytesIO()
            _quantized(np.asarray(picture.convert("RGB")) / 255.0).save(small, "PNG", optimize=True)
        return (
            f'<img alt="{html.escape(self.alt, quote=True)}" style="max-width:100%"'
            f' src="data:image/png;base64,{base64.b64encode(small.getvalue()).decode()}">'
        )

    def _repr_html_(self) -> str:
        return (
            f'<figure id="{self.name}"'
            f' style="margin:0">{self.image()}'
            f"<figcaption><em>{html.escape(self.caption)}</em></figcaption></figure>"
        )

    def __repr__(self) -> str:
        return f"[figure: {self.alt}]"


class Viewer:
    """Frames in layers behind buttons and a slider, drawn on a canvas; where scripts do not run,
    the static twin stays.
    """

    def __init__(self, twin: Shown, layers: Mapping[str, Sequence[np.ndarray]]):
        self.twin, self.layers = twin, {k: [np.clip(f, 0, 1) for f in v] for k, v in layers.items()}

    def _repr_html_(self) -> str:
        h, w = next(iter(self.layers.values()))[0].shape[:2]
        sheets = {}
        for (
            name,
            frames,
        ) in (
            self.layers.items()
        ):  # one picture per layer: frames below each other compress and load as one
            buffer = io.BytesIO()
            Image.fromarray((255 * np.concatenate(frames)).round().astype(np.uint8)).save(
                buffer, "WEBP", quality=45, method=6
            )
            sheets[name] = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
        n = len(frames)
        name = "viewer-" + hashlib.sha256("".join(sheets.values()).encode()).hexdigest()[:12]
        script = (
            _VIEWER_SCRIPT.replace("NAME", json.dumps(name))
            .replace("SHEETS", json.dumps(sheets))
            .replace("SIZE", json.dumps([w, h, n]))
        )
        return (
            f'<figure id="{self.twin.name}" class="{name}"'
            f' style="margin:0">{self.twin.image()}<div></div>'
            f"<figcaption><em>{html.escape(self.twin.caption)}</em></figcaption></figure>"
            f"<script>{script}</script>"
        )

    def __repr__(self) -> str:
        return f"[viewer: {self.twin.alt}]"


# plain DOM calls, and every viewer of the name: a notebook may show one output twice
_VIEWER_SCRIPT = """
(function () {
  var sheets = SHEETS, size = SIZE, names = Object.keys(sheets);
  document.querySelectorAll("figure." + NAME).forEach(function (figure) {
    if (figure.dataset.ready) return;
    figure.dataset.ready = "1";
    var box = figure.querySelector("div"), layer = names[0], images = {};
    var canvas = document.createElement("canvas"), slider = document.createElement("input");
    var buttons = document.createElement("div"), w = size[0], h = size[1];
    canvas.width = size[0]; canvas.height = size[1];
    canvas.style.cssText = "display:block;width:" + 2 * size[0] + "px;max-width:100%";
    slider.type = "range"; slider.min = 0; slider.max = size[2] - 1;
    slider.value = Math.floor(size[2] / 2);
    slider.style.cssText = "display:block;width:" + 2 * size[0] + "px;max-width:100%";
    slider.setAttribute("aria-label", "camera along its path");
    function draw() {
      var image = images[layer];
      var context = canvas.getContext("2d");
      if (image.complete) context.drawImage(image, 0, h * slider.value, w, h, 0, 0, w, h);
      Array.prototype.forEach.call(buttons.children, function (b) {
        b.style.fontWeight = b.textContent === layer ? "bold" : "normal";
      });
    }
    names.forEach(function (name) {
      var button = document.createElement("button");
      button.textContent = name;
      button.onclick = function () { layer = name; draw(); };
      buttons.appendChild(button);
      images[name] = new Image();
      images[name].onload = draw;
      images[name].src = sheets[name];
    });
    slider.oninput = draw;
    box.append(buttons, canvas, slider);
    figure.querySelector("img").style.display = "none";
  });
})();
"""


def _quantized(picture: np.ndarray) -> Image.Image:  # [H, W, 3] in 0..1
    return Image.fromarray((255 * np.clip(picture, 0, 1)).round().astype(np.uint8)).quantize(
        256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE
    )


def data_digest(fig: Figure) -> str:
    """Hash of what a figure plots (lines, images, points, bars, texts), whatever renders it."""
    digest = hashlib.sha256()

    def add(values):
        values = np.ma.filled(np.ma.asarray(values), 0)
        if (
            values.dtype.kind == "f"
        ):  # well above rounding differences, well below what an eye can see
            values = np.round(values.astype(np.float64), 6) + 0.0
        digest.update(str(values.shape).encode() + np.ascontiguousarray(values).tobytes())

    for ax in fig.axes:
        for line in ax.lines:
            add(np.asarray(line.get_xydata(), float))
        for image in ax.images:
            add(image.get_array())
        for points in ax.collections:
            add(np.asarray(points.get_offsets(), float))
            for path in points.get_paths():  # areas and fans of lines; of markers their shape
                add(path.vertices)
        for patch in ax.patches:
            add(
                np.asarray(
                    (
                        patch.get_extents().size
                        if not hasattr(patch, "get_height")
                        else [patch.get_width(), patch.get_height()]
                    ),
                    float,
                )
            )
        for text in [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts]:
            digest.update(text.get_text().encode())
    return digest.hexdigest()


def _with_text(png: bytes, record: Mapping[str, Any]) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(png)).save(out, "PNG", pnginfo=_text(record), optimize=True)
    return out.getvalue()


def _text(record: Mapping[str, Any]) -> PngInfo:
    """The record as text chunks, so that a figure that travels alone still says what it is."""
    info = PngInfo()
    for k, v in record.items():
        info.add_itxt(f"cclkit:{k}", v if isinstance(v, str) else json.dumps(v, sort_keys=True))
    info.add_itxt("Description", str(record["alt"]))
    return info


# ----------------------------------------------------------------- colours and small pieces


def paint(label: np.ndarray, colors: np.ndarray, none=UNLABELLED) -> np.ndarray:  # [H, W, 3]
    """Label map [H, W] (-1 none) and colours [n, 3] -> picture, with thin dark edges between
    labels.
    """
    table = np.concatenate([colors, [none]])
    out = table[label]
    edge = np.zeros(label.shape, bool)
    edge[:, 1:] |= label[:, 1:] != label[:, :-1]
    edge[1:] |= label[1:] != label[:-1]
    out[edge] *= 0.55
    return out


def overlay(image: np.ndarray, picture: np.ndarray, alpha: float = 0.6) -> np.ndarray:
    """Picture [H, W, 3] in 0..1 over a photograph [H, W, 3] uint8 turned grey."""
    grey = (image / 255.0).mean(-1, keepdims=True).repeat(3, -1)
    return (1 - alpha) * grey + alpha * picture


def highlight(image: np.ndarray, mask: np.ndarray, color=(1.0, 0.55, 0.0)) -> np.ndarray:
    """A photograph [H, W, 3] uint8 with everything outside a mask dimmed and its outline drawn."""
    out = image / 255.0
    out = np.where(mask[..., None], out, 0.35 * out + 0.10)
    ring = np.zeros_like(mask)
    ring[1:] |= mask[1:] != mask[:-1]
    ring[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    out[ring] = color
    return out


def picture(ax, image, title: str = "", **kwargs):
    ax.imshow(image, **kwargs)
    ax.set_title(title, fontsize=9.5)
    ax.axis("off")


def grid(
    rows: int,
    cols: int,
    *,
    width: float = 2.6,
    aspect: float = 0.75,
    head: float = 0.28,
    title: str = "",
):
    """A grid of axes sized for pictures of the given aspect (height / width)."""
    plt.rcParams.update(STYLE)
    fig, axes = plt.subplots(
        rows,
        cols,
        figsize=(cols * width, rows * (width * aspect + head) + (0.35 if title else 0)),
        squeeze=False,
        layout="constrained",
    )
    fig.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    _leave_room(fig)
    if title:
        fig.suptitle(title, fontsize=12)
    return fig, axes


def _leave_room(fig: Figure) -> None:
    """Make the figure a little taller and keep the drawing out of the strip where the
    footer goes.
    """
    strip = 0.22  # inches
    width, height = fig.get_size_inches()
    fig.set_size_inches(width, height + strip)
    fig.get_layout_engine().set(rect=(0, strip / (height + strip), 1, height / (height + strip)))


def plots(rows: int, cols: int, *, size: tuple[float, float] = (3.6, 2.8), **kwargs):
    """A grid of axes for plots."""
    plt.rcParams.update(STYLE)
    fig, axes = plt.subplots(
        rows,
        cols,
        figsize=(cols * size[0], rows * size[1]),
        squeeze=False,
        layout="constrained",
        **kwargs,
    )
    _leave_room(fig)
    return fig, axes


def spread(items: Sequence, n: int) -> list:
    """n items evenly spread over a sequence, ends included."""
    if len(items) <= n:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, n).round().astype(int)]


class ColorBasis:
    """Three principal directions of a set of vectors, as red, green and blue. One basis makes maps
    comparable.
    """

    def __init__(self, vectors: np.ndarray):  # [n, d]
        self.mean = vectors.mean(0)
        _, _, vt = np.linalg.svd(vectors - self.mean, full_matrices=False)
        vt = vt[:3]
        # the sign of a component is arbitrary: fix it
        vt *= np.sign(vt[np.arange(len(vt)), np.abs(vt).argmax(1)])[:, None]
        self.axes = vt
        p = (vectors - self.mean) @ vt.T
        self.low, self.high = np.percentile(p, 1, axis=0), np.percentile(p, 99, axis=0)

    def __call__(self, vectors: np.ndarray) -> np.ndarray:  # [..., d] -> [..., 3] in 0..1
        p = (vectors - self.mean) @ self.axes.T
        return np.clip((p - self.low) / np.maximum(self.high - self.low, 1e-9), 0, 1)


def map_of(label: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Label map [H, W] (-1 none) with one colour [n, 3] per label, no edges drawn."""
    return np.concatenate([colors.reshape(-1, 3), [UNLABELLED]])[label]


# ----------------------------------------------------------------- one colour per object, in every
# figure of the series


def region_colors(scene: Scene) -> dict[int, np.ndarray]:
    """Colour [3] of every region of a scene's ground truth, by id; whole objects get the first
    colours, which are farthest apart.
    """
    truth = scene.ground_truth
    ids = sorted(truth.names, key=lambda i: (i in truth.parents, i))
    return dict(zip(ids, label_colors(len(ids))))


def paint_regions(scene: Scene, ids: np.ndarray) -> np.ndarray:  # [H, W, 3]
    """An id map of the ground truth [H, W] (0 = none) in the colours of its regions."""
    colors = region_colors(scene)
    position = np.full(max(colors) + 1, -1)
    position[list(colors)] = np.arange(len(colors))
    return paint(position[ids], np.array(list(colors.values())))


def class_colors(scene: Scene) -> np.ndarray:  # [C, 3]
    """Colour of every class: that of the object of its name, else (and without ground truth) one
    that no object has.
    """
    own = {} if scene.ground_truth is None else region_colors(scene)
    names = (
        {}
        if scene.ground_truth is None
        else {
            n: i
            for i, n in sorted(scene.ground_truth.names.items(), reverse=True)
            if i not in scene.ground_truth.parents
        }
    )
    others = iter(label_colors(len(own) + len(scene.classes))[len(own) :])
    return np.array([own[names[c]] if c in names else next(others) for c in scene.classes]).reshape(
        -1, 3
    )


def track_colors(
    scene: Scene, starts: Sequence[tuple[View, np.ndarray]], level: str
) -> np.ndarray:  # [K, 3]
    """Colour of every track, from the view and the mask [H, W] that it starts with: that of the
    region which the mask overlaps most.

    A region gives its colour to one track, the one that fits best; the others, and all where a
    scene has no ground truth, get colours of their own.
    """
    if scene.ground_truth is None:
        return label_colors(len(starts))
    own, maps = region_colors(scene), {}
    for v, _ in starts:
        if v.name not in maps:
            maps[v.name] = [scene.ground_truth.ids(v, g) for g in GRANULARITIES_OF_LEVEL[level]]
    region, iou = (
        zip(*(best_region(mask, maps[v.name]) for v, mask in starts)) if starts else ((), ())
    )
    others = iter(label_colors(len(own) + len(starts))[len(own) :])
    out, given = np.zeros((len(starts), 3)), set()
    for k in np.argsort(-np.array(iou), kind="stable"):
        out[k] = own[region[k]] if region[k] in own and region[k] not in given else next(others)
        given.add(region[k])
    return out


# ----------------------------------------------------------------- 00: scenes


def scene_figure(scene: Scene, views: Sequence[View]) -> Figure:
    """Photographs of a scene beside its points and cameras in 3D."""
    plt.rcParams.update(STYLE)
    fig = plt.figure(figsize=(11, 3.9), layout="constrained")
    _leave_room(fig)
    outer = fig.add_gridspec(1, 2, width_ratios=(1.75, 1))
    left = outer[0].subgridspec(2, (len(views) + 1) // 2)
    for i, v in enumerate(views):
        picture(
            fig.add_subplot(left[i % 2, i // 2]),
            v.image(),
            v.name + (" (held out)" if v.name in scene.held_out else ""),
        )
    ax = fig.add_subplot(outer[1], projection="3d")
    points, colors = scene_points(scene)
    low, high = draw_cameras(ax, scene)
    # far walls would shrink everything else
    inside = np.flatnonzero(((points >= low) & (points <= high)).all(1))
    keep = inside[np.linspace(0, len(inside) - 1, min(6000, len(inside))).astype(int)]
    ax.scatter(*points[keep].T, c=colors[keep] / 255.0, s=3, linewidths=0)
    ax.text2D(
        0.5,
        -0.07,
        f"{len(points):,} points, {len(scene.views)} cameras",
        transform=ax.transAxes,
        ha="center",
        fontsize=9.5,
    )
    return fig


def landing_figure(view: View, panels: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> Figure:
    """Where points fall in a photograph, once per panel: title, positions [P, 2] (x, y) and colours
    [P, 3] uint8.
    """
    fig, axes = grid(1, len(panels), width=3.4)
    h, w = view.camera.height, view.camera.width
    grey = np.repeat(view.image().mean(2, keepdims=True), 3, 2) / 255.0
    for ax, (title, xy, colors) in zip(axes[0], panels):
        picture(ax, 0.6 + 0.4 * grey, title)
        inside = ((xy >= 0) & (xy <= [w, h])).all(1)
        # imshow puts a pixel's centre at whole numbers
        ax.scatter(*(xy[inside] - 0.5).T, c=colors[inside] / 255.0, s=4, linewidths=0)
        ax.set(xlim=(-0.5, w - 0.5), ylim=(h - 0.5, -0.5))
    return fig


def scene_points(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Points [P, 3] and colours [P, 3] uint8: the scene's own, or a few from depth where it has
    none.
    """
    if len(scene.points):
        return scene.points, scene.point_colors
    points, colors = [], []
    for v in spread(scene.training_views, 4):
        depth = scene.depth(v)[::6, ::6]
        xyz = v.camera.backproject(scene.depth(v))[::6, ::6]
        points.append(xyz[depth > 0])
        colors.append(v.image()[::6, ::6][depth > 0])
    return np.concatenate(points), np.concatenate(colors)


def draw_cameras(ax, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Camera pyramids, held-out ones in red, on equal axes with the scene's up upwards; returns the
    corners shown.
    """
    centres = np.array([v.camera.centre for v in scene.views])
    points, _ = scene_points(scene)
    middle = np.median(points, axis=0)
    near = points[
        np.linalg.norm(points - middle, axis=1)
        < 1.5 * np.median(np.linalg.norm(centres - middle, axis=1))
    ]
    everything = np.concatenate([centres, np.percentile(near, [2, 98], axis=0)])
    middle, half = (
        (everything.min(0) + everything.max(0)) / 2,
        0.52 * (everything.max(0) - everything.min(0)).max(),
    )
    for v in scene.views:
        cam = v.camera
        corners = np.array(
            [[0, 0], [cam.width, 0], [cam.width, cam.height], [0, cam.height]], float
        )
        rays = (
            np.stack(
                [
                    (corners[:, 0] - cam.K[0, 2]) / cam.K[0, 0],
                    (corners[:, 1] - cam.K[1, 2]) / cam.K[1, 1],
                    np.ones(4),
                ],
                -1,
            )
            * 0.16
            * half
        )
        c2w = cam.camera_to_world
        world = rays @ c2w[:3, :3].T + c2w[:3, 3]
        color = VERMILION if v.name in scene.held_out else BLUE
        for a, b in [(0, 1), (1, 2), (2, 3), (3, 0)]:
            ax.plot(*zip(world[a], world[b]), color=color, lw=0.9)
        for a in range(4):
            ax.plot(*zip(cam.centre, world[a]), color=color, lw=0.6)
    for setter, m in zip((ax.set_xlim, ax.set_ylim, ax.set_zlim), middle):
        setter(m - half, m + half)
    ax.set_box_aspect((1, 1, 1), zoom=1.15)
    # mean "up" of the cameras decides where to look from
    up = -np.mean([v.camera.world_to_camera[1, :3] for v in scene.views], axis=0)
    vertical = int(np.abs(up).argmax())
    if up[vertical] < 0:
        (ax.invert_xaxis, ax.invert_yaxis, ax.invert_zaxis)[vertical]()
    ax.view_init(elev=28, azim=-60, vertical_axis="xyz"[vertical])
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.set_ticklabels([])
    return middle - half, middle + half


def ground_truth_figure(scene: Scene, view: View) -> Figure:
    """A photograph and its exact regions at the three granularities."""
    from ..scenes.scene import GRANULARITIES

    fig, axes = grid(1, 4, width=2.9)
    picture(axes[0, 0], view.image(), view.name)
    for ax, g in zip(axes[0, 1:], reversed(GRANULARITIES)):
        m = scene.ground_truth.ids(view, g)
        picture(ax, paint_regions(scene, m), f"{g}: {len(np.unique(m[m > 0]))} regions")
    return fig


def gallery_figure(scenes: Sequence[Scene]) -> Figure:
    """A row per scene: two photographs, the exact regions at two granularities, and what can be
    asked about it.
    """
    import textwrap

    fig, axes = grid(len(scenes), 5, width=2.35, head=0.2)
    for row, scene in zip(axes, scenes):
        views = scene.training_views
        first, other = views[0], views[len(views) // 3]
        picture(
            row[0], first.image(), f"{scene.name}, {scene.layout.replace('_', '-').upper()} layout"
        )
        picture(row[1], other.image(), f"{len(scene.views)} views, {len(scene.held_out)} held out")
        for ax, g in zip(row[2:4], ("whole", "subpart")):
            if scene.ground_truth is None:
                ax.axis("off")
                continue
            m = scene.ground_truth.ids(other, g)
            picture(ax, paint_regions(scene, m), f"{g}: {len(np.unique(m[m > 0]))} regions")
        words = list(scene.queries or scene.classes)
        shown = textwrap.wrap(", ".join(words), 40)
        shown = shown[:11] + ["…"] if len(shown) > 12 else shown
        row[4].text(
            0,
            0.98,
            "\n".join(shown),
            fontsize=7.5,
            va="top",
            transform=row[4].transAxes,
            linespacing=1.25,
        )
        row[4].set_title(
            f"{len(words)} {'queries' if scene.queries else 'classes'}", fontsize=9.5, loc="left"
        )
        row[4].axis("off")
    return fig


# ----------------------------------------------------------------- 01: masks


OUTPUT_NAMES = ("output 0: subpart", "output 1: part", "output 2: whole")


def clicks_figure(
    image: np.ndarray, clicks: Sequence[tuple[str, tuple[float, float], np.ndarray, Sequence[str]]]
) -> Figure:
    """The three answers to single clicks: (name, click x y, masks [3, H, W], a note per mask), one
    row each.
    """
    fig, axes = grid(len(clicks), 4, width=2.9, head=0.42)
    for row, (name, (x, y), masks, notes) in zip(axes, clicks):
        picture(row[0], image, f"click on the {name}")
        row[0].plot(x, y, marker="*", ms=15, color=YELLOW, mec="black", mew=0.8)
        for ax, mask, output, note in zip(row[1:], masks, OUTPUT_NAMES, notes):
            picture(ax, highlight(image, mask), f"{output}\n{note}")
            ax.plot(x, y, marker="*", ms=9, color=YELLOW, mec="black", mew=0.6)
    return fig


def candidates_figure(
    view: View, masks: np.ndarray, output: np.ndarray, points_per_side: int
) -> Figure:
    """The grid of clicks on a view, and what came back, output by output (SAM's subpart, part,
    whole); 0 clicks: no grid.
    """
    fig, axes = grid(1, 4, width=2.9)
    image = view.image()
    side = points_per_side
    picture(axes[0, 0], image, f"{side} × {side} clicks on {view.name}" if side else view.name)
    if side:
        at = (np.arange(side) + 0.5) / side
        x, y = np.meshgrid(at * image.shape[1] - 0.5, at * image.shape[0] - 0.5)
        axes[0, 0].scatter(x, y, s=2.5, color=YELLOW, edgecolors="none")
    for n, (ax, name) in enumerate(zip(axes[0, 1:], OUTPUT_NAMES)):
        rows = np.flatnonzero(output == n)
        label = np.full(image.shape[:2], -1)
        for i in sorted(range(len(rows)), key=lambda i: -masks[rows[i]].sum()):  # small ones on top
            label[masks[rows[i]]] = i
        picture(
            ax,
            overlay(image, paint(label, label_colors(len(rows))), 0.75),
            f"{name}, {len(rows)} masks",
        )
    return fig


def found_figure(
    rows: Sequence[tuple[str, Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, str]]]],
) -> Figure:
    """Which true regions a view's masks found: per row (image, found [H, W], missed [H, W] ids or
    0, title).
    """
    fig, axes = grid(len(rows), len(rows[0][1]), width=2.9)
    for line, (name, cells) in zip(axes, rows):
        for ax, (image, found, missed, title) in zip(line, cells):
            out = 0.75 * image / 255.0
            for ids, color in (
                (found, matplotlib.colors.to_rgb(SKY)),
                (missed, matplotlib.colors.to_rgb(VERMILION)),
            ):
                inside = ids > 0
                out[inside] = 0.55 * out[inside] + 0.45 * np.array(color)
                edge = np.zeros(ids.shape, bool)
                edge[1:] |= ids[1:] != ids[:-1]
                edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
                out[edge & inside] = color
            picture(ax, out, title)
        line[0].text(
            -0.04,
            0.5,
            name,
            rotation=90,
            va="center",
            ha="right",
            fontsize=10,
            transform=line[0].transAxes,
        )
    return fig


def orbit_figure(
    crops: Sequence[tuple[str, np.ndarray, np.ndarray]],
    lines: Mapping[str, tuple[np.ndarray, str]],
    others: np.ndarray,
    votes: Mapping[str, tuple[np.ndarray, str]],
    name: str,
) -> Figure:
    """One object over an orbit: its crop from the full and from an incomplete mask (view, full,
    incomplete), cosines to its mean full-mask feature (title -> values per view, colour) with those
    of other objects as a band, and how well a text finds it.
    """
    plt.rcParams.update(STYLE)
    fig = plt.figure(figsize=(11.5, 5.4), layout="constrained")
    _leave_room(fig)
    top, bottom = fig.subfigures(2, 1, height_ratios=(1.05, 1.25))
    axes = top.subplots(2, len(crops), squeeze=False)
    for c, (view, full, broken) in enumerate(crops):
        picture(axes[0, c], full, view)
        picture(axes[1, c], broken)
    for r, label in enumerate(("full mask", "incomplete")):
        axes[r, 0].text(
            -0.08,
            0.5,
            label,
            rotation=90,
            va="center",
            ha="right",
            fontsize=9.5,
            transform=axes[r, 0].transAxes,
        )
    a, b = bottom.subplots(1, 2)
    x = np.arange(1, len(next(iter(lines.values()))[0]) + 1)
    low, mid, high = np.percentile(others, (5, 50, 95))
    a.axhspan(low, high, color="0.9", lw=0)
    a.axhline(mid, color="0.6", lw=1, ls=":")
    a.text(
        x[-1],
        low,
        "full masks of other objects (5–95 %)",
        ha="right",
        va="bottom",
        fontsize=8,
        color="0.35",
    )
    for ax, values in ((a, lines), (b, votes)):
        for label, (y, color) in values.items():
            ax.plot(x, y, "o-", ms=3.5, color=color, label=label)
        ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        ax.set_xlabel("view, along the orbit")
    a.legend(fontsize=8, loc="lower left")
    b.legend(fontsize=8, loc="upper right")
    a.set_ylabel(f"cosine to the mean full {name}")
    b.set_ylabel(f"relevancy of “{name}”")
    b.axhline(0.5, color="0.6", lw=1, ls=":")
    b.set_ylim(0, 1.02)
    return fig


def masks_figure(views: Sequence[View], masks: Sequence[ViewMasks]) -> Figure:
    """Photograph and both label maps of several views; colours are per view, nothing is tracked
    yet.
    """
    fig, axes = grid(3, len(views), width=2.6)
    for c, (v, m) in enumerate(zip(views, masks)):
        picture(axes[0, c], v.image(), v.name)
        for r, level in enumerate(LEVELS, 1):
            label = m.label_map(level)
            n = int((m.level == LEVELS.index(level)).sum())
            picture(
                axes[r, c],
                paint(label, label_colors(len(m))),
                f"{level}: {n} masks, {(label >= 0).mean():.0%} of the pixels",
            )
    return fig


def incompleteness_figure(
    pairs: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, str]],
) -> Figure:
    """Some masks and the true regions they stand for: (photograph, mask, region, title). Orange:
    missed; blue: of other things.
    """
    fig, axes = grid(1, len(pairs), width=2.3, aspect=1.0)
    for ax, (image, mask, region, title) in zip(axes[0], pairs):
        image = image / 255.0
        out = 0.3 * image + 0.05
        out[region & ~mask] = 0.45 * image[region & ~mask] + 0.55 * np.array([0.84, 0.37, 0.0])
        out[mask] = image[mask]
        out[mask & ~region] = 0.45 * image[mask & ~region] + 0.55 * np.array([0.0, 0.45, 0.7])
        y, x = np.nonzero(region | mask)
        side = max(np.ptp(y), np.ptp(x)) / 2 + 10  # square windows of equal size on the page
        cy, cx = (y.min() + y.max()) / 2, (x.min() + x.max()) / 2
        # beyond the photograph: as dark as what is around the object
        window = np.full((int(2 * side), int(2 * side), 3), 0.05)
        y0, x0 = int(cy - side), int(cx - side)
        inside = out[max(0, y0) : y0 + len(window), max(0, x0) : x0 + len(window)]
        window[max(0, -y0) :, max(0, -x0) :][: inside.shape[0], : inside.shape[1]] = inside
        picture(ax, window, title)
    return fig


# ----------------------------------------------------------------- 02: tracks


def tracks_figure(
    views: Sequence[View],
    label_maps: Mapping[str, Sequence[np.ndarray]],
    track_colors: Mapping[str, np.ndarray],
) -> Figure:
    """Track labels over views in each level's colours [K, 3]; masks without a track in light grey.
    Labels 1..K, 0 = unlabelled mask, -1 none.
    """
    fig, axes = grid(1 + len(label_maps), len(views), width=2.6)
    for c, v in enumerate(views):
        picture(axes[0, c], v.image(), v.name + (" (first: propagated)" if c == 0 else ""))
    for r, (level, maps) in enumerate(label_maps.items(), 1):
        colors = np.concatenate([[GREY], track_colors[level]])
        for c, m in enumerate(maps):
            share = (m == 0).sum() / max(1, (m >= 0).sum())
            picture(axes[r, c], paint(m, colors), f"{level}: {share:.0%} of mask pixels untracked")
    return fig


def association_figure(
    iou: Mapping[str, np.ndarray], unlabelled: Mapping[str, np.ndarray], iou_min: float
) -> Figure:
    """Histogram of each mask's largest IoU with a propagated mask, and the share of -1 view by
    view.
    """
    fig, axes = plots(1, 2, size=(4.6, 3.0))
    bins = np.linspace(0, 1, 26)
    for (level, values), color in zip(iou.items(), (BLUE, ORANGE)):
        axes[0, 0].hist(
            values, bins=bins, histtype="step", lw=1.8, color=color, label=LEVEL_NAMES[level]
        )
    axes[0, 0].axvline(iou_min, color="0.3", ls="--", lw=1)
    axes[0, 0].text(
        iou_min - 0.02, axes[0, 0].get_ylim()[1] * 0.92, "y = −1", ha="right", fontsize=9
    )
    axes[0, 0].text(
        iou_min + 0.02, axes[0, 0].get_ylim()[1] * 0.92, "labelled", ha="left", fontsize=9
    )
    axes[0, 0].set(xlabel="largest IoU with a propagated mask", ylabel="masks")
    axes[0, 0].legend(loc="upper center", bbox_to_anchor=(0.5, 0.8), fontsize=8)
    for (level, values), color in zip(unlabelled.items(), (BLUE, ORANGE)):
        axes[0, 1].plot(
            np.arange(1, len(values) + 1),
            100 * values,
            "o-",
            ms=3.5,
            color=color,
            label=LEVEL_NAMES[level],
        )
    axes[0, 1].xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    axes[0, 1].set(
        xlabel="view, in capture order", ylabel="masks without a track, %", ylim=(0, None)
    )
    axes[0, 1].legend(fontsize=8)
    return fig


def propagation_figure(
    views: Sequence[View],
    carried: Sequence[np.ndarray],
    tracks: Sequence[int],
    names: Sequence[str],
    colors: np.ndarray,
) -> Figure:
    """Carried masks [K, H, W] of a few tracks over views, each in its colour [K, 3]. Titles name
    the tracks that are empty there.
    """
    fig, axes = grid(1, len(views), width=2.6, head=0.5)
    for c, (view, masks) in enumerate(zip(views, carried)):
        label = np.full(masks.shape[1:], -1)
        for n, k in enumerate(tracks):
            label[masks[k]] = n
        image = np.where(
            (label >= 0)[..., None],
            overlay(view.image(), paint(label, colors[list(tracks)]), 0.65),
            0.5 * view.image() / 255,
        )
        empty = [name for k, name in zip(tracks, names) if not masks[k].any()]
        picture(
            axes[0, c],
            image,
            view.name
            + (
                "\nwhere the tracks start"
                if c == 0
                else "\nempty: " + ", ".join(empty)
                if empty
                else "\n"
            ),
        )
    return fig


def matrix_figure(iou: np.ndarray, label: np.ndarray, iou_min: float, title: str) -> Figure:
    """Association matrix of a view: IoU [M, K] of its masks with the carried ones, labelled pairs
    framed.
    """
    fig, axes = plots(
        1, 1, size=(min(9.0, 2.0 + 0.16 * iou.shape[1]), min(6.0, 1.4 + 0.16 * iou.shape[0]))
    )
    ax = axes[0, 0]
    shown = ax.imshow(iou, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    for i, y in enumerate(label):
        if y > 0:
            ax.add_patch(
                matplotlib.patches.Rectangle((y - 1.5, i - 0.5), 1, 1, fill=False, ec=BLUE, lw=1.6)
            )
        else:
            ax.plot(-1.2, i, marker=">", color=VERMILION, ms=5, clip_on=False)
    ax.set(xlabel="carried mask k", ylabel="mask i of the view", title=title)
    fig.colorbar(shown, ax=ax, label=f"IoU (blue frame: > {iou_min:g})", fraction=0.04)
    return fig


def quality_figure(
    names: Sequence[str],
    j: np.ndarray,
    copied: np.ndarray,
    causes: Sequence[tuple[str, Mapping[str, int], int]],
) -> Figure:
    """J of every track in every view; its mean over time beside copying; why masks have no label
    under each rule.
    """
    rows = min(9.0, 1.1 + 0.17 * len(names))
    fig, axes = plots(1, 3, size=(4.4, max(3.2, rows)), width_ratios=[1.35, 1, 0.9])
    ax = axes[0, 0]
    colors = matplotlib.colormaps["viridis"].copy()
    colors.set_bad("0.88")
    shown = ax.imshow(
        np.ma.masked_invalid(j),
        cmap=colors,
        vmin=0,
        vmax=1,
        aspect="auto",
        extent=(0.5, j.shape[1] + 0.5, len(names) - 0.5, -0.5),
    )
    ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    ax.set_yticks(
        range(len(names)),
        [f"{n} ({k + 1})" if list(names).count(n) > 1 else n for k, n in enumerate(names)],
        fontsize=7,
    )
    ax.set(
        xlabel="view, in capture order", title="J of each track (grey: hidden, or its first view)"
    )
    fig.colorbar(shown, ax=ax, fraction=0.05)
    ax = axes[0, 1]
    x = np.arange(1, j.shape[1] + 1)
    for values, color, name in (
        (j, BLUE, "carried"),
        (copied, GREY, "the true mask, one view late"),
    ):
        known = np.isfinite(values).any(0)
        ax.plot(
            x[known],
            [np.nanmean(v) for v in values.T[known]],
            "o-",
            ms=3,
            color=color,
            label=f"{name}: {np.nanmean(values):.2f}",
        )
    ax.set(xlabel="view, in capture order", ylabel="mean J", ylim=(0, 1), title="over the capture")
    ax.legend(fontsize=8)
    ax = axes[0, 2]
    below = np.zeros(len(causes))
    at = np.arange(len(causes))
    for cause, color in zip(causes[0][1], (VERMILION, ORANGE, SKY)):
        share = np.array([100 * counts[cause] / max(1, total) for _, counts, total in causes])
        ax.bar(at, share, 0.62, bottom=below, color=color, label=cause)
        below += share
    for a, b in zip(at, below):
        ax.text(a, b + 0.6, f"{b:.0f} %", ha="center", fontsize=9)
    ax.set_xticks(at, [name for name, _, _ in causes], fontsize=7)
    ax.set(
        ylabel="masks without a label, %", title="why y = −1", ylim=(0, 1.45 * max(below.max(), 1))
    )
    ax.legend(fontsize=7.5, loc="upper right")
    return fig


# ----------------------------------------------------------------- 03: codebook


def curves_figure(
    curves: Mapping[str, Mapping[str, np.ndarray]], usage: Mapping[str, Mapping[str, np.ndarray]]
) -> Figure:
    """Losses over steps, with and without the contrastive terms, and sorted code usage, for one
    level.

    ``curves[arm][loss]`` [steps]; ``usage[arm]["counts"]`` [N].
    """
    fig, axes = plots(1, 4, size=(3.0, 2.8))
    for ax, (key, title) in zip(
        axes[0],
        (
            ("max", "$L_{max}$: feature to its prototype"),
            ("pull", "$L_{pull}$: same label"),
            ("push", "$L_{push}$: different labels"),
        ),
    ):
        for arm, c in curves.items():
            ax.plot(c[key], color=ARM_COLORS[arm], lw=1.8, label=arm)
        ax.set(xlabel="step", title=title, ylim=(0, None))
    axes[0, 0].legend(fontsize=8)
    for arm, u in usage.items():
        counts = np.sort(u["counts"])[::-1]
        axes[0, 3].step(
            np.arange(len(counts)),
            counts,
            where="post",
            color=ARM_COLORS[arm],
            lw=1.8,
            label=f"{arm}: {(counts > 0).sum()} of {len(counts)} used",
        )
    axes[0, 3].set(
        xlabel="code, most used first", ylabel="masks", title="code usage", ylim=(0, None)
    )
    axes[0, 3].legend(fontsize=8)
    return fig


def similarity_figure(
    matrices: Sequence[tuple[str, np.ndarray]], margin: float, boundaries: Sequence[int] = ()
) -> Figure:
    """Prototype-by-prototype cosines, one matrix per stage, in one order and on one scale."""
    fig, axes = grid(1, len(matrices), width=3.3, aspect=1.0)
    for ax, (title, m) in zip(axes[0], matrices):
        im = ax.imshow(m, vmin=0.3, vmax=1, cmap="viridis")
        for b in boundaries:
            ax.axhline(b - 0.5, color="w", lw=0.35)
            ax.axvline(b - 0.5, color="w", lw=0.35)
        ax.set_title(title, fontsize=9.5)
        ax.set_xticks([]), ax.set_yticks([])
    bar = fig.colorbar(im, ax=axes[0, -1], shrink=0.85)
    bar.ax.set_title("cosine", fontsize=9)
    bar.ax.axhline(margin, color="w", lw=2)
    ticks = [0.4, 0.6, 0.8, 1.0]
    bar.set_ticks([*ticks, margin], labels=[*map(str, ticks), f"m = {margin}"])
    return fig


def label_prototype_figure(panels: Sequence[tuple[str, np.ndarray]]) -> Figure:
    """Share of each track's masks on each code [K, N], one matrix per codebook; a track's row adds
    up to 1.
    """
    fig, axes = grid(1, len(panels), width=4.2, aspect=0.85)
    for ax, (title, m) in zip(axes[0], panels):
        im = ax.imshow(m, vmin=0, vmax=1, cmap="Greys", aspect="auto")
        ax.set(
            title=title, xlabel="code in use, in the order of its main track", xticks=[], yticks=[]
        )
    axes[0, 0].set_ylabel("track")
    bar = fig.colorbar(im, ax=axes[0, -1], shrink=0.85)
    bar.ax.set_title("share of\nits masks", fontsize=9)
    return fig


def embedding_figure(
    features: np.ndarray,
    labels: np.ndarray,
    names: Mapping[int, str],
    colors: np.ndarray,
    panels: Sequence[tuple[str, np.ndarray, np.ndarray]],
) -> Figure:
    """Mask features [M, d] on two directions, coloured by track ([K, 3], track 1 first), with
    prototypes before and after.

    ``names``: the tracks in colour, by label; the rest is grey. A panel: title, prototypes before
    and after [N, d], only those in use; a prototype's cross has the colour of most of its masks,
    black where those have no name. The directions separate the named tracks best (two principal
    ones of their centroids).
    """
    centroids = np.stack([features[labels == y].mean(0) for y in names])
    centre = centroids.mean(0)
    basis = np.linalg.svd(centroids - centre, full_matrices=False)[2][:2]
    # a sign of its own, on every machine
    basis *= np.sign(basis[np.arange(2), np.abs(basis).argmax(1)])[:, None]
    at = lambda x: (x - centre) @ basis.T
    fig, axes = plots(1, len(panels), size=(4.6, 4.0))
    for ax, (title, before, after) in zip(axes[0], panels):
        rest = ~np.isin(labels, list(names))
        ax.scatter(*at(features[rest]).T, s=5, color="0.85", lw=0, zorder=0)
        for y, name in names.items():
            ax.scatter(
                *at(features[labels == y]).T,
                s=14,
                color=[colors[y - 1]],
                ec="0.35",
                lw=0.2,
                label=name,
                zorder=1,
            )
        a, b = at(before), at(after)
        ax.plot(
            np.stack([a[:, 0], b[:, 0]]),
            np.stack([a[:, 1], b[:, 1]]),
            color="0.2",
            lw=0.7,
            zorder=2,
        )
        ax.scatter(*a.T, s=14, facecolors="white", edgecolors="0.2", lw=0.8, zorder=3)
        codes = (features @ after.T).argmax(1)
        for n, place in enumerate(b):
            own, count = np.unique(labels[codes == n], return_counts=True)
            most = int(own[count.argmax()]) if len(own) else -1
            ax.scatter(
                *place,
                s=46,
                marker="X",
                facecolor=colors[most - 1] if most in names else "black",
                edgecolor="black",
                lw=0.8,
                zorder=4,
            )
        ax.set(title=title, xticks=[], yticks=[])
    axes[0, -1].legend(
        fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), title="track of", title_fontsize=9
    )
    return fig


def purity_figure(
    names: Sequence[str], arms: Mapping[str, Sequence[float]], sizes: Sequence[int]
) -> Figure:
    """Share of each track's masks on its commonest code, in %, an arm beside the other; ``sizes``:
    masks of each track.
    """
    fig, axes = plots(1, 1, size=(max(7.0, 0.26 * len(names) + 1.5), 3.4))
    ax, x = axes[0, 0], np.arange(len(names))
    for n, (arm, values) in enumerate(arms.items()):
        ax.bar(
            x + 0.4 * (n - (len(arms) - 1) / 2),
            values,
            0.38,
            color=ARM_COLORS[arm],
            label=f"{arm}: mean {np.mean(values):.0f} %",
        )
    ax.set_xticks(x, [f"{name} ({n})" for name, n in zip(names, sizes)], rotation=90, fontsize=7.5)
    ax.set(
        ylabel="masks on the track's\ncommonest code, %",
        ylim=(0, 118),
        yticks=range(0, 101, 25),
        xlim=(-0.7, len(names) - 0.3),
    )
    ax.legend(fontsize=8, ncols=len(arms), loc="upper right")
    return fig


def feature_maps_figure(
    views: Sequence[View],
    rows: Sequence[tuple[str, Sequence[np.ndarray]]],
    truth: Sequence[np.ndarray] | None = None,
) -> Figure:
    """2D feature maps, PCA to RGB on one basis: photographs on top, one row per variant."""
    fig, axes = grid(1 + len(rows), len(views), width=2.6, head=0.12)
    for c, v in enumerate(views):
        picture(axes[0, c], v.image(), v.name)
    for r, (title, maps) in enumerate(rows, 1):
        for c, m in enumerate(maps):
            picture(axes[r, c], m)
        axes[r, 0].text(
            -0.04,
            0.5,
            title,
            rotation=90,
            va="center",
            ha="right",
            fontsize=10,
            transform=axes[r, 0].transAxes,
        )
    axes[0, 0].text(
        -0.04,
        0.5,
        "photograph",
        rotation=90,
        va="center",
        ha="right",
        fontsize=10,
        transform=axes[0, 0].transAxes,
    )
    return fig


# ----------------------------------------------------------------- 04: field


def reconstruction_figure(
    rows: Sequence[tuple[str, np.ndarray, np.ndarray, float]], history: Mapping[str, np.ndarray]
) -> Figure:
    """Photographs, renderings and absolute differences of some views (title, photo, rendering,
    PSNR), and PSNR over steps.
    """
    plt.rcParams.update(STYLE)
    fig = plt.figure(figsize=(2.7 * len(rows) + 3.6, 6.6), layout="constrained")
    _leave_room(fig)
    outer = fig.add_gridspec(1, 2, width_ratios=(2.7 * len(rows), 3.4))
    left = outer[0].subgridspec(3, len(rows))
    for c, (title, photo, rendered, value) in enumerate(rows):
        picture(fig.add_subplot(left[0, c]), photo, title)
        picture(
            fig.add_subplot(left[1, c]), np.clip(rendered, 0, 1), f"rendered, PSNR {value:.1f} dB"
        )
        picture(
            fig.add_subplot(left[2, c]),
            np.clip(3 * np.abs(rendered - photo / 255.0), 0, 1),
            "difference × 3",
        )
    right = outer[1].subgridspec(2, 1)
    ax = fig.add_subplot(right[0])
    ax.plot(history["iteration"], history["psnr"], ".-", color=BLUE)
    ax.set(xlabel="step", ylabel="PSNR of the step's view, dB")
    ax = fig.add_subplot(right[1])
    ax.plot(history["iteration"], np.asarray(history["count"]) / 1000, "-", color=ORANGE)
    ax.set(xlabel="step", ylabel="Gaussians, thousands", ylim=(0, None))
    return fig


def path_cameras(cameras: Sequence[Camera], n: int, *, width: int) -> list[Camera]:
    """n cameras along the way through the given ones, equally far apart, with pictures of about the
    given width.
    """
    gaps = [float(np.linalg.norm(a.centre - b.centre)) for a, b in zip(cameras, cameras[1:])]
    at = np.concatenate([[0.0], np.cumsum(gaps)])
    out = []
    for where in np.linspace(0, at[-1], n):
        i = min(int(np.searchsorted(at, where, side="right")) - 1, len(gaps) - 1)
        out.append(
            cameras[i]
            .between(cameras[i + 1], min(float(where - at[i]) / gaps[i], 1.0) if gaps[i] else 0.0)
            .scaled(width / cameras[0].width)
        )
    return out


def pixel_figure(
    image: np.ndarray, pixel: tuple[int, int], weights: np.ndarray, colors: np.ndarray
) -> Figure:
    """One pixel (x, y) of a rendering [H, W, 3], and the weights [n] and colours [n, 3] of the
    Gaussians that it is made of, nearest first.
    """
    fig, axes = plots(1, 2, size=(4.0, 2.9))
    picture(axes[0, 0], np.clip(image, 0, 1), f"the pixel at x = {pixel[0]}, y = {pixel[1]}")
    axes[0, 0].plot(*pixel, "o", ms=12, mfc="none", mec=YELLOW, mew=2)
    ax = axes[0, 1]
    ax.bar(
        range(1, len(weights) + 1), weights, color=np.clip(colors, 0, 1), edgecolor="0.3", lw=0.6
    )
    ax.set(
        xlabel="Gaussian, from the camera backwards",
        ylabel="weight $w_g$",
        title=f"{len(weights)} Gaussians, weights sum to {weights.sum():.2f}",
    )
    ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    return fig


def modes_figure(curves: Mapping[str, Mapping[str, np.ndarray]], *, window: int = 15) -> Figure:
    """Share of right codes over steps for several ways to train the field, as running means."""
    fig, axes = plots(1, 1, size=(5.2, 2.8))
    for (name, c), color, style in zip(
        curves.items(),
        (BLUE, ORANGE, GREEN, VERMILION, "black"),
        ("-", "--", ":", "-.", "-"),
        strict=False,
    ):
        smooth = np.convolve(100 * c["accuracy"], np.ones(window) / window, "valid")
        axes[0, 0].plot(np.arange(len(smooth)) + window, smooth, color=color, ls=style, label=name)
    axes[0, 0].set(xlabel="step", ylabel="pixels with the right code, %", ylim=(0, 100))
    axes[0, 0].legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def histories_figure(histories: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Quality and number of Gaussians over steps for several reconstructions."""
    fig, axes = plots(1, 2, size=(4.2, 2.7))
    for (name, h), color in zip(histories.items(), (BLUE, ORANGE, GREEN)):
        axes[0, 0].plot(h["iteration"], h["psnr"], ".-", color=color, label=name)
        axes[0, 1].plot(h["iteration"], np.asarray(h["count"]) / 1000, "-", color=color, label=name)
    axes[0, 0].set(xlabel="step", ylabel="PSNR, dB")
    axes[0, 1].set(xlabel="step", ylabel="Gaussians, thousands", ylim=(0, None))
    axes[0, 0].legend(fontsize=9)
    return fig


def field_curves_figure(curves: Mapping[str, np.ndarray]) -> Figure:
    """Cross-entropy and share of right codes while the field trains."""
    fig, axes = plots(1, 2, size=(4.2, 2.7))
    axes[0, 0].plot(curves["loss"], color=BLUE, lw=1.2)
    axes[0, 0].set(xlabel="step", ylabel="cross-entropy, both levels", ylim=(0, None))
    axes[0, 1].plot(100 * curves["accuracy"], color=GREEN, lw=1.2)
    axes[0, 1].set(xlabel="step", ylabel="pixels with the right code, %", ylim=(0, 100))
    return fig


def field_figure(columns: Sequence[Mapping[str, np.ndarray]]) -> Figure:
    """Per view: photograph, rendered features (PCA), decoded codes; keys of the mappings are the
    row titles.
    """
    names = list(columns[0])
    fig, axes = grid(len(names), len(columns), width=2.6, head=0.12)
    for c, column in enumerate(columns):
        for r, name in enumerate(names):
            picture(axes[r, c], column[name])
            if c == 0:
                axes[r, 0].text(
                    -0.04,
                    0.5,
                    name,
                    rotation=90,
                    va="center",
                    ha="right",
                    fontsize=9.5,
                    transform=axes[r, 0].transAxes,
                )
    return fig


# ----------------------------------------------------------------- 05, 06: queries


def query_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """One row per query: photograph with ground truth, relevancy of both levels, predicted mask
    with its IoU.

    A row holds text, image, truth, relevancy [2, H, W], level, mask, iou, and optionally a note on
    the answer.
    """
    fig, axes = grid(len(rows), 4, width=2.75, head=0.32)
    for r, row in enumerate(rows):
        picture(
            axes[r, 0],
            highlight(row["image"], row["truth"], (0.0, 0.9, 0.4)),
            f"“{row['text']}” — ground truth",
        )
        for n, level in enumerate(LEVELS):
            chosen = " (chosen)" if n == row["level"] else ""
            im = axes[r, 1 + n].imshow(row["relevancy"][n], vmin=0, vmax=1, cmap="inferno")
            axes[r, 1 + n].set_title(
                f"relevancy, {level}{chosen}, at most {row['relevancy'][n].max():.2f}", fontsize=9.5
            )
            axes[r, 1 + n].axis("off")
        picture(
            axes[r, 3],
            highlight(row["image"], row["mask"]),
            f"answer, IoU {100 * row['iou']:.0f} %"
            + (f"\n{row['note']}" if row.get("note") else ""),
        )
    bar = fig.colorbar(
        im, ax=axes, location="bottom", shrink=0.3, aspect=40, pad=0.02, label="relevancy"
    )
    bar.ax.tick_params(labelsize=8)
    return fig


def steps_figure(
    image: np.ndarray,
    truth: np.ndarray,
    rows: Sequence[tuple[str, Sequence[tuple[str, np.ndarray]]]],
) -> Figure:
    """The steps of a protocol on one query, left to right, a row per level: (row title, [(step
    title, map [H, W])]). Maps share 0..1.
    """
    fig, axes = grid(len(rows), len(rows[0][1]) + 1, width=2.25)
    for r, (title, steps) in enumerate(rows):
        picture(
            axes[r, 0], highlight(image, truth, (0.0, 0.9, 0.4)), "ground truth" if r == 0 else ""
        )
        axes[r, 0].text(
            -0.04,
            0.5,
            title,
            rotation=90,
            va="center",
            ha="right",
            fontsize=10,
            transform=axes[r, 0].transAxes,
        )
        for ax, (name, m) in zip(axes[r, 1:], steps):
            picture(ax, m, name, cmap="inferno" if m.dtype != bool else "gray", vmin=0, vmax=1)
    return fig


def classes_figure(
    columns: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]],
    classes: Sequence[str],
    colors: np.ndarray,
) -> Figure:
    """3D-OVS: photograph, labelled and predicted classes of some views in the classes' colours [C,
    3] with a legend.
    """
    fig, axes = grid(3, len(columns), width=3.0, head=0.14)
    fig.set_size_inches(fig.get_figwidth() + 1.9, fig.get_figheight())  # room for the legend
    for c, (title, image, truth, predicted) in enumerate(columns):
        picture(axes[0, c], image, title)
        picture(axes[1, c], paint(truth, colors))
        picture(axes[2, c], paint(predicted, colors))
    for r, name in enumerate(("photograph", "labels", "predicted")):
        axes[r, 0].text(
            -0.03,
            0.5,
            name,
            rotation=90,
            va="center",
            ha="right",
            fontsize=10,
            transform=axes[r, 0].transAxes,
        )
    handles = [matplotlib.patches.Patch(color=c, label=n) for c, n in zip(colors, classes)]
    fig.legend(handles=handles, loc="outside right center", fontsize=9)
    return fig


def bars_figure(
    names: Sequence[str], values: Sequence[float], xlabel: str, *, mean: float | None = None
) -> Figure:
    """Horizontal bars, one per query or class, with the mean drawn in."""
    fig, axes = plots(1, 1, size=(6.4, 0.6 + 0.24 * len(names)))
    ax = axes[0, 0]
    y = np.arange(len(names))[::-1]
    ax.barh(y, values, color=BLUE, height=0.7)
    ax.set_yticks(y, names, fontsize=9)
    ax.set(xlabel=xlabel, xlim=(0, 100))
    if mean is not None:
        ax.axvline(mean, color=VERMILION, lw=1.4)
        ax.text(
            mean,
            len(names) - 0.35,
            f"mean {mean:.1f}",
            color=VERMILION,
            ha="center",
            va="bottom",
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    return fig


def thresholds_figure(curves: Sequence[tuple[str, np.ndarray, np.ndarray]], cut: float) -> Figure:
    """IoU against the threshold on the stretched map, a line per level: (name, thresholds, IoU);
    the protocol's cut is marked.
    """
    fig, axes = plots(1, 1, size=(5.4, 2.9))
    ax = axes[0, 0]
    for (name, at, iou), color in zip(curves, (ORANGE, BLUE, GREEN)):
        best = int(np.argmax(iou))
        ax.plot(
            at,
            100 * iou,
            color=color,
            lw=1.8,
            label=f"{name}: best {100 * iou[best]:.0f} % at {at[best]:.2f}",
        )
        ax.plot(at[best], 100 * iou[best], "o", color=color, ms=6)
    ax.axvline(cut, color="0.2", lw=1.1, ls="--")
    ax.text(cut + 0.01, 101, f"the protocol cuts at {cut:g}", fontsize=9, ha="center", va="bottom")
    ax.set(
        xlabel="threshold on the map stretched to 0..1", ylabel="IoU, %", xlim=(0, 1), ylim=(0, 100)
    )
    ax.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return fig


def traps_figure(rows: Sequence[tuple[str, float, float]]) -> Figure:
    """What one changed step does to the two scores: (step, mIoU %, localisation %), the protocol
    itself first.
    """
    fig, axes = plots(1, 2, size=(3.4, 0.7 + 0.3 * len(rows)), sharey=True)
    y = np.arange(len(rows))[::-1]
    for ax, column, title in ((axes[0, 0], 1, "mIoU, %"), (axes[0, 1], 2, "localisation, %")):
        values = np.array([r[column] for r in rows])
        ax.axvline(values[0], color="0.3", lw=1.0, ls="--")
        ax.hlines(
            y[1:],
            values[0],
            values[1:],
            color=[VERMILION if v < values[0] else GREEN for v in values[1:]],
            lw=2.4,
        )
        ax.plot(values, y, "o", color="0.15", ms=5)
        for v, at in zip(values, y):
            ax.text(103, at, f"{v:.1f}", va="center", fontsize=9)
        ax.set(xlabel=title, xlim=(0, 100), ylim=(-0.7, len(rows) - 0.3))
    axes[0, 0].set_yticks(y, [r[0] for r in rows], fontsize=9)
    return fig


def protocols_figure(rows: Sequence[tuple[str, float | None, str]]) -> Figure:
    """One field under every protocol: (name, mIoU % or None, what is scored or why it can't be)."""
    fig, axes = plots(1, 1, size=(8.6, 0.8 + 0.32 * len(rows)))
    ax = axes[0, 0]
    for y, (_, value, what) in zip(range(len(rows) - 1, -1, -1), rows):
        if value is not None:
            ax.barh(y, value, color=BLUE, height=0.62)
        ax.text(
            (value or 0) + 1.2,
            y,
            (f"{value:.1f}   " if value is not None else "not applicable: ") + what,
            va="center",
            fontsize=9,
            color="0.15" if value is not None else VERMILION,
        )
    ax.set_yticks(range(len(rows) - 1, -1, -1), [r[0] for r in rows], fontsize=9.5)
    ax.set(
        xlabel="mIoU, % (every bar is another quantity; none may be compared with another)",
        xlim=(0, 190),
        ylim=(-0.6, len(rows) - 0.4),
    )
    ax.set_xticks(range(0, 101, 20))
    ax.spines["bottom"].set_bounds(0, 100)  # what is beyond is text
    return fig


def answers_figure(
    rows: Sequence[tuple[str, np.ndarray, np.ndarray, Sequence[tuple[str, np.ndarray]]]],
) -> Figure:
    """What protocols answer to the same text: (text, photograph, truth [H, W], [(title, mask [H,
    W])]), a row per text.
    """
    fig, axes = grid(len(rows), 1 + max(len(r[3]) for r in rows), width=1.75, head=0.34)
    for ax in axes.flat:
        ax.axis("off")
    for r, (text, image, truth, answers) in enumerate(rows):
        picture(axes[r, 0], highlight(image, truth, (0.0, 0.9, 0.4)))
        axes[r, 0].set_title(f"“{text}”", fontsize=9)
        for ax, (title, mask) in zip(axes[r, 1:], answers):
            picture(ax, highlight(image, mask))
            ax.set_title(title, fontsize=8.5)
    return fig


def occam_figure(
    name: str,
    relevancy: np.ndarray,
    mask: np.ndarray,
    thresholds: np.ndarray,
    curves: Any,
    cut: float,
    limits: tuple[float, float, float],
) -> Figure:
    """A threshold that is found, not given: map, the two curves over all thresholds, their slopes
    with the stable stretch, and the mask.

    ``curves`` has mean, fraction, mean_slope, fraction_slope and regions; ``limits`` are the
    largest slope, the smallest and the largest share.
    """
    plt.rcParams.update(STYLE)
    fig, (a, b, c, d) = plt.subplots(1, 4, figsize=(13.2, 2.9), layout="constrained")
    _leave_room(fig)
    picture(a, relevancy, f"relevancy of “{name}”, stretched", cmap="inferno", vmin=0, vmax=1)
    b.plot(thresholds, curves.mean, color=BLUE, label="mean of what is above")
    b.plot(thresholds, curves.fraction, color=ORANGE, label="share of pixels above")
    for share, word in (
        (limits[1], "smallest share allowed"),
        (limits[2], "largest share allowed"),
    ):
        b.axhline(share, color="0.4", lw=0.8, ls=":")
        b.text(0.99, share + 0.015, word, fontsize=7.5, color="0.3", ha="right", va="bottom")
    b.set(title="two curves over all thresholds", xlabel="threshold", xlim=(0, 1), ylim=(0, 1.02))
    c.plot(thresholds, np.minimum(curves.mean_slope, 2), color=BLUE)
    c.plot(thresholds, np.minimum(curves.fraction_slope, 2), color=ORANGE)
    c.axhline(limits[0], color="0.3", lw=1, ls="--")
    c.set(
        title="their slopes; stable below the dashed line",
        xlabel="threshold",
        xlim=(0, 1),
        ylim=(0, 2),
    )
    for start, end in curves.regions:
        c.axvspan(thresholds[start], thresholds[end], color=GREEN, alpha=0.25, lw=0)
    for ax in (b, c):
        ax.axvline(cut, color=VERMILION, lw=1.4)
    b.legend(
        fontsize=8,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.22),
        ncols=2,
        handlelength=1.2,
        columnspacing=1.0,
    )
    picture(d, mask, f"above {cut:.3f}, after the vote", cmap="gray")
    return fig


def confusion_figure(matrix: np.ndarray, names: Sequence[str]) -> Figure:
    """Where the pixels of each class went: rows are true classes, columns answers, shares of a row
    in %.
    """
    fig, axes = plots(1, 1, size=(1.9 + 0.42 * len(names), 1.5 + 0.34 * len(names)))
    ax = axes[0, 0]
    ax.imshow(matrix, vmin=0, vmax=100, cmap="Blues", aspect="auto")
    for i, j in np.argwhere(matrix >= 1):
        ax.text(
            j,
            i,
            f"{matrix[i, j]:.0f}",
            ha="center",
            va="center",
            fontsize=8,
            color="w" if matrix[i, j] > 55 else "0.1",
        )
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8.5)
    ax.set_yticks(range(len(names)), names, fontsize=8.5)
    ax.set(xlabel="answered", ylabel="true class")
    return fig


# ----------------------------------------------------------------- 07: ablations


def ablation_figure(panels: Sequence[tuple[str, Mapping[str, Sequence[float]]]]) -> Figure:
    """mIoU of each arm: a dot for every seed, a line for their mean. One panel per experiment."""
    fig, axes = plots(1, len(panels), size=(4.4, 3.1))
    for ax, (title, arms) in zip(axes[0], panels):
        for i, (arm, values) in enumerate(arms.items()):
            ax.plot(
                i + np.linspace(-0.18, 0.18, len(values)),
                values,
                "o",
                ms=6,
                color=ARM_COLORS[arm],
                mec="0.2",
                mew=0.6,
                zorder=3,
            )
            ax.plot([i - 0.33, i + 0.33], [np.mean(values)] * 2, "-", color="0.1", lw=2)
            ax.annotate(
                f"{np.mean(values):.1f}",
                (i + 0.33, np.mean(values)),
                (2, 0),
                textcoords="offset points",
                ha="left",
                va="center",
                fontsize=8,
                zorder=4,
            )
        ax.axhline(np.mean(arms["baseline"]), color="0.6", lw=0.8, ls="--", zorder=0)
        ax.set_xticks(range(len(arms)), arms, fontsize=9)
        ax.set(ylabel="mIoU, %", title=title, xlim=(-0.6, len(arms) - 0.1))
    return fig


def gains_figure(
    panels: Sequence[tuple[str, Mapping[str, Mapping[float, Sequence[float]]], float]],
    heat: tuple[str, np.ndarray, Sequence[float], Sequence[float]] | None = None,
) -> Figure:
    """Gain in mIoU over what is varied: line, the mean over seeds; band, two standard errors;
    dotted, the default.

    A panel: what is varied, gains by arm, value and seed, and its default. ``heat``: title, gains
    [rows, columns] and the values of both, as one more panel.
    """
    n = len(panels) + (heat is not None)
    columns = min(4, n)
    fig, axes = plots(-(-n // columns), columns, size=(3.1, 2.5))
    flat = axes.ravel()
    span = [
        v
        for _, arms, _ in panels
        for of_x in arms.values()
        for values in of_x.values()
        for v in [np.mean(values)]
    ]
    for ax, (title, arms, default) in zip(flat, panels):
        for arm, of_x in arms.items():
            x = np.array(sorted(of_x))
            mean = np.array([np.mean(of_x[v]) for v in x])
            error = np.array(
                [
                    2 * np.std(of_x[v], ddof=1) / np.sqrt(len(of_x[v])) if len(of_x[v]) > 1 else 0.0
                    for v in x
                ]
            )
            color = ARM_COLORS.get(arm, GREEN)
            ax.fill_between(x, mean - error, mean + error, color=color, alpha=0.2, lw=0)
            ax.plot(x, mean, "o-", ms=3.5, color=color, label=arm)
        ax.axhline(0, color="0.3", lw=0.8)
        ax.axvline(default, color="0.5", lw=0.8, ls=":")
        ax.set(xlabel=title, ylim=(min(-6, 1.3 * min(span)), 1.4 * max(span)))
        ratios = [v for of_x in arms.values() for v in of_x if v > 0]
        if max(ratios, default=1) > 10 * min(
            ratios, default=1
        ):  # values that double lie evenly apart
            every = [v for of_x in arms.values() for v in of_x]
            (
                ax.set_xscale("log")
                if min(every) > 0
                else ax.set_xscale("symlog", linthresh=min(ratios))
            )
            ax.set_xticks(
                sorted({v for of_x in arms.values() for v in of_x}),
                [f"{v:g}" for v in sorted({v for of_x in arms.values() for v in of_x})],
                fontsize=7,
            )
            ax.minorticks_off()
        if len(arms) > 1 or ax is flat[0]:
            ax.legend(fontsize=7.5, loc="upper right")
    for ax in axes[:, 0]:
        ax.set_ylabel("Δ mIoU, points")
    if heat is not None:
        title, values, rows, cols = heat
        ax = flat[len(panels)]
        ax.imshow(values, cmap="viridis", aspect="auto", origin="lower")
        for (r, c), v in np.ndenumerate(values):
            ax.text(
                c,
                r,
                f"{v:+.0f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if v < (values.min() + values.max()) / 2 else "black",
            )
        ax.set_xticks(range(len(cols)), [f"{v:g}" for v in cols])
        ax.set_yticks(range(len(rows)), [f"{v:g}" for v in rows])
        ax.set(xlabel="weight of push", ylabel="weight of pull", title=title)
        ax.spines[:].set_visible(False)
    for ax in flat[n:]:
        ax.axis("off")
    return fig


def contrasts_figure(
    panels: Sequence[tuple[str, Sequence[tuple[str, float, float, float, Sequence[float]]]]],
) -> Figure:
    """Differences of arms: a dot per scene, their mean with its interval. A panel: title and
    (contrast, mean, low, high, by scene).
    """
    most = max(len(rows) for _, rows in panels)
    fig, axes = plots(1, len(panels), size=(4.4, 0.9 + 0.5 * most))
    for ax, (title, rows) in zip(axes[0], panels):
        places = most - 1 - np.arange(len(rows))
        for y, (_, mean, low, high, scenes) in zip(places, rows):
            ax.plot(
                scenes,
                np.full(len(scenes), y - 0.18),
                "o",
                ms=4,
                color=SKY,
                mec="0.3",
                mew=0.4,
                zorder=1,
            )
            if np.isfinite(low):
                ax.plot([low, high], [y, y], "-", color=BLUE, lw=3, solid_capstyle="butt", zorder=2)
            ax.plot([mean], [y], "D", ms=6, color="black", zorder=3)
        ax.axvline(0, color="0.3", lw=0.8, zorder=0)
        ax.set_yticks(places, [r[0] for r in rows])
        ax.set(xlabel="Δ mIoU, points", title=title, ylim=(-0.6, most - 0.4))
    return fig


os.environ.setdefault("MPLBACKEND", "agg")


# ----------------------------------------------------------------- 08: the playground


def panels_figure(panels: Sequence[tuple[str, np.ndarray]]) -> Figure:
    """Titled pictures [H, W, 3] uint8 in rows of three or four: what an explorer shows."""
    import textwrap

    columns = len(panels) if len(panels) <= 3 else 4 if len(panels) % 4 == 0 else 3
    width = min(2.7, 8.6 / columns)
    # a number stays with its unit
    titles = [
        textwrap.fill(t.replace(" %", "\u00a0%").replace(" px", "\u00a0px"), int(14 * width))
        for t, _ in panels
    ]
    lines = 1 + max(t.count("\n") for t in titles)
    fig, axes = grid(
        -(-len(panels) // columns),
        columns,
        width=width,
        aspect=max(p.shape[0] / p.shape[1] for _, p in panels),
        head=0.08 + 0.18 * lines,
    )
    for ax in axes.flat:
        ax.axis("off")
    for ax, title, (_, pixels) in zip(axes.flat, titles, panels):
        picture(ax, pixels, title)
    return fig


# ----------------------------------------------------------------- 90: the small models


def training_figure(
    panels: Sequence[tuple[str, Mapping[str, tuple[Sequence[float], str]], int]],
    ylabels: Sequence[str],
) -> Figure:
    """Training curves: (title, name -> (values, colour), steps per value) per panel."""
    fig, axes = plots(1, len(panels), size=(3.9, 2.9))
    for ax, (title, curves, every), ylabel in zip(axes[0], panels, ylabels):
        for label, (values, color) in curves.items():
            ax.plot(
                (np.arange(len(values)) + 0.5) * every, values, color=color, lw=1.6, label=label
            )
        ax.set(title=title, xlabel="step", ylabel=ylabel)
        if len(curves) > 1:
            ax.legend(fontsize=8)
    return fig


def tracking_figure(rows: Sequence[Mapping[str, float]], step_degrees: float, aim: float) -> Figure:
    """J of a tracker by the angle that the camera has gone round since the first view, beside two
    ways to follow nothing; dashed: what we wanted.
    """
    fig, axes = plots(1, 1, size=(6.2, 3.2))
    ax = axes[0, 0]
    angle = [r["view"] * step_degrees for r in rows]
    for key, label, color, width in (
        ("j", "tracker, both ways round", BLUE, 2.0),
        ("j_one_way", "tracker, one way", PURPLE, 1.4),
        ("j_of_copying_the_truth", "true mask, one view late", GREEN, 1.2),
        ("j_of_copying", "first mask, kept", ORANGE, 1.2),
    ):
        ax.plot(angle, [r[key] for r in rows], color=color, lw=width, label=label)
    ax.axhline(aim, color="0.4", ls="--", lw=0.9)
    ax.set(xlabel="degrees round the scene", ylabel="mean J", ylim=(0, 1), xticks=range(0, 361, 60))
    ax.legend(fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=2)
    return fig


def sizes_figure(
    curves: Mapping[str, Sequence[Mapping[str, float]]], targets: Mapping[str, float], smallest: int
) -> Figure:
    """IoU after one click over the size of the region clicked on, per granularity at its own
    output; dashed: what we wanted.
    """
    fig, axes = plots(1, 1, size=(6.2, 3.4))
    ax = axes[0, 0]
    for (level, rows), color in zip(curves.items(), (ORANGE, GREEN, BLUE)):
        x = [np.sqrt(r["from_px"] * r["to_px"]) for r in rows]
        ax.plot(x, [r["iou"] for r in rows], "o-", color=color, label=level)
        ax.plot([smallest, ax.get_xlim()[1]], [targets[level]] * 2, color=color, ls="--", lw=0.9)
    ax.axvline(smallest, color="0.6", lw=1, ls=":")
    ax.set(xscale="log", xlabel="pixels of the region", ylabel="IoU after one click", ylim=(0, 1))
    ax.legend(fontsize=9, loc="upper left")
    return fig
