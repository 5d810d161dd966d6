"""Showing figures: saved to ``results/<profile>/figures`` with their provenance, and displayed with
alt text and caption.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..errors import ConfigError
from ..files import atomic_write, save_json
from .figures.common import grid, picture


class FigureFolder:
    """Where a notebook's figures go, and what is written beside them."""

    def __init__(
        self, folder: Path, *, notebook: str, profile: str, footer: str, about: Mapping[str, Any]
    ):
        self.folder, self.about = Path(folder), dict(about)
        self.notebook, self.profile, self.footer = notebook, profile, footer

    def of(self, footer: str, **about: Any) -> FigureFolder:
        """The same folder for figures of something else."""
        names = {"notebook": self.notebook, "profile": self.profile}
        return FigureFolder(self.folder, footer=footer, about={**self.about, **about}, **names)

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
        digest, png = data_digest(fig), buffer.getvalue()
        encoded = lambda record: _with_text(png, record)
        return Shown(png, self._save(name, digest, alt, caption, artefacts, encoded), alt, caption)

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

        pixels = np.stack([np.asarray(p.convert("RGB")) for p in pictures])
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()
        stem = self._save(
            name, digest, alt, caption, artefacts, lambda record: encoded(_text(record))
        )
        return Shown(encoded(None), stem, alt, caption, shrink=False)

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
        page = (
            f"<!doctype html><meta charset=utf-8><title>{html.escape(caption)}</title>"
            f"{shown._repr_html_()}\n"
        )
        atomic_write(self.folder / f"{self.notebook[:2]}_{name}.html", page.encode())
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
    """A figure as notebooks display it: HTML that keeps its alt text in JupyterLab and exports."""

    def __init__(self, png: bytes, name: str, alt: str, caption: str, *, shrink: bool = True):
        self.png, self.name, self.alt, self.caption, self.shrink = png, name, alt, caption, shrink

    def image(self) -> str:
        """An <img> with the picture inside: reduced to 256 colours, a third of the size; the file
        keeps all.
        """
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
            f'<figure id="{self.name}" style="margin:0">{self.image()}'
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
        # one picture per layer: frames below each other compress and load as one
        for name, frames in self.layers.items():
            buffer = io.BytesIO()
            sheet = (255 * np.concatenate(frames)).round().astype(np.uint8)
            Image.fromarray(sheet).save(buffer, "WEBP", quality=45, method=6)
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
        # well above rounding differences, well below what an eye can see
        if values.dtype.kind == "f":
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
            bar = hasattr(patch, "get_height")
            size = [patch.get_width(), patch.get_height()] if bar else patch.get_extents().size
            add(np.asarray(size, float))
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
