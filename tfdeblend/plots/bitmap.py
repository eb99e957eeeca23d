"""Draw a result as one bitmap: each observation, its model, its residual and every source, on one stretch.

The panels are composed with NumPy, and Matplotlib draws only text and marks: a picture takes about a tenth of a
second, and thousands of scenes can have one. Figures for a paper are `tfdeblend.plots`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import IdentityTransform
from PIL import Image

from tfdeblend.catalog.result import positions_in_views
from tfdeblend.errors import one_line
from tfdeblend.io.atomic import written_whole
from tfdeblend.plots.stretch import RESIDUAL_LIMIT, Stretch, as_bytes, residual_colours, significance

if TYPE_CHECKING:
    from astropy.table import Table

    from tfdeblend.catalog.result import Deblended, View
    from tfdeblend.catalog.windows import Windows

WIDTH, MARGIN, TITLE, HEADER, TALLEST, DPI = 1200, 12, 22, 34, 480, 100  # pixels
SIDES = (16, 24, 32, 48, 64, 96, 128, 192)  # pixels, of the windows on single sources
PAGE = np.array([0.10, 0.11, 0.13])
TEXT, FAINT, MARK, DARK, ALERT = "#e8eaed", "#aab2bd", "#ffffff", "#222222", "#ff9500"


@dataclass(frozen=True)
class Window:
    """The part of an image that a panel shows: its lower left pixel and its size."""

    y: int
    x: int
    height: int
    width: int

    @classmethod
    def around(cls, light: Windows, k: int, position: np.ndarray, floor: float) -> Window:
        """Find the smallest of `SIDES` that holds all of a source's light above `floor` in the mean over bands."""
        sides = np.array(light.shape[1:])
        places = np.argwhere(light.pixels[k].mean(0) > floor) + light.corners[k]
        reach = np.abs(places - position).max() if len(places) else 0
        side = min(next((side for side in SIDES if side >= 2 * reach + 1), SIDES[-1]), max(light.shape[1:]))
        y, x = np.clip(np.round(position).astype(int) - side // 2, 0, np.maximum(sides - side, 0))
        return cls(int(y), int(x), side, side)


@dataclass(frozen=True)
class Panel:
    """A window on the bitmap: pixels from its left and its bottom, and its width."""

    window: Window
    left: int
    bottom: int
    width: int

    @property
    def height(self) -> int:
        return max(1, round(self.width * self.window.height / self.window.width))

    def paste(self, bitmap: np.ndarray, colours: np.ndarray) -> None:
        """Write the window's colours: blocks where they grow, pixel averages where they shrink.

        colours: (h, w, 3); what they lack of the window, beyond the image, has the page's colour.
        """
        part = np.broadcast_to(PAGE, (self.window.height, self.window.width, 3)).copy()
        part[: colours.shape[0], : colours.shape[1]] = colours
        step = math.ceil(part.shape[1] / self.width)
        if step > 1:  # average whole blocks first, or faint sources fall between the sampled pixels
            rows, columns = (size // step for size in part.shape[:2])
            part = part[: rows * step, : columns * step].reshape(rows, step, columns, step, 3).mean((1, 3))
        rows_at = np.arange(self.height) * part.shape[0] // self.height
        columns_at = np.arange(self.width) * part.shape[1] // self.width
        target = bitmap[self.bottom : self.bottom + self.height, self.left : self.left + self.width]
        target[:] = as_bytes(part)[rows_at][:, columns_at]

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return canvas x and y of image positions (N, 2) = (y, x), zero-based pixel centres."""
        scale = self.width / self.window.width
        y, x = positions.T
        return self.left + (x + 0.5 - self.window.x) * scale, self.bottom + (y + 0.5 - self.window.y) * scale


def arrange(image: Window, sources: Sequence[Window]) -> tuple[list[Panel], list[Panel], int]:
    """Place three panels of the image above and one of each source below; return them and the bitmap's height."""
    lines = math.ceil(len(sources) / 8)
    columns = max(3, math.ceil(len(sources) / max(lines, 1)))
    rows = [([image] * 3, 3)] + [(sources[i : i + columns], columns) for i in range(0, len(sources), columns)]
    panels: list[Panel] = []
    bottom = MARGIN
    for windows, count in reversed(rows):
        pitch = (WIDTH - MARGIN) // count
        widest = pitch - MARGIN
        row = [
            Panel(window, MARGIN + i * pitch, bottom, min(widest, round(TALLEST * window.width / window.height)))
            for i, window in enumerate(windows)
        ]
        panels = row + panels
        bottom += max(panel.height for panel in row) + TITLE
    return panels[:3], panels[3:], bottom + HEADER


class ScenePlotter:
    """Draw scenes one after another on one Matplotlib figure."""

    def __init__(self) -> None:
        self.figure = Figure(dpi=DPI)
        self.canvas = FigureCanvasAgg(self.figure)

    def draw(self, deblended: Deblended) -> np.ndarray:
        """Draw one scene, (height, width, 3) bytes, the first row on top; its observations stand below each other."""
        scene = deblended.scene
        positions = positions_in_views(scene, np.asarray(scene.positions, float).reshape(-1, 2), None)
        titles = [headline(deblended), *(headline_of_view(view) for view in deblended.views[1:])]
        views, kept = zip(deblended.views, positions, titles, strict=True), np.flatnonzero(~scene.left_out)
        shown = [(view, kept, places, title) for view, places, title in views]
        return np.concatenate([self._draw_view(deblended.catalog, *each) for each in shown])

    def _draw_view(self, catalog: Table, view: View, kept: np.ndarray, positions: np.ndarray, title: str) -> Any:
        """Draw what one observation shows of some sources, by number.

        positions: (K, 2) where the sources were declared, in its pixels.
        """
        observation, catalog, positions = view.observation, catalog[kept], positions[kept]
        seen = view.above_background
        stretch = Stretch.fit(seen)
        pairs = zip(kept, positions, strict=True)
        windows = [Window.around(view.light, k, place, stretch.softening) for k, place in pairs]
        images, panels, height = arrange(Window(0, 0, *observation.images.shape[1:]), windows)
        bitmap = np.broadcast_to(as_bytes(PAGE), (height, WIDTH, 3)).copy()
        data, model = stretch.observed(seen), stretch(view.model - view.background[:, None, None])
        sigma = significance(view.residual, observation.weights)
        for panel, colours in zip(images, [data, model, residual_colours(sigma)], strict=True):
            panel.paste(bitmap, colours)
        sides = np.array(observation.shape[1:])
        for panel, k in zip(panels, kept, strict=True):
            corner = np.array([panel.window.y, panel.window.x])
            shown = np.minimum(sides - corner, [panel.window.height, panel.window.width])
            panel.paste(bitmap, stretch(view.light.cut(k, corner, shown)))
        self.figure.clear()
        self.figure.set_size_inches(WIDTH / DPI, height / DPI)
        self._text(MARGIN, height - 24, title, size=9, color=TEXT, weight="bold")
        self._label_images(images, positions, view.undeclared, catalog["id"])
        for panel, position, caption in zip(panels, positions, captions(catalog, windows), strict=True):
            self._text(panel.left, panel.bottom + panel.height + 6, caption, size=8 if len(panels) <= 24 else 7)
            self._marks(*panel.locate(position[None]), marker="+", color=FAINT, size=5)
        renderer = self.canvas.get_renderer()
        canvas = np.asarray(renderer.buffer_rgba())
        canvas[..., :3] = bitmap[::-1]
        canvas[..., 3] = 255
        for artist in (*self.figure.texts, *self.figure.artists):
            artist.draw(renderer)
        return canvas[..., :3].copy()

    def _label_images(
        self, panels: Sequence[Panel], positions: np.ndarray, undeclared: Table | None, ids: Sequence[str]
    ) -> None:
        """Title the panels of data, model and residual, and mark what is declared there and what is not."""
        residual = f"residual in sigma, bands combined, blue -{RESIDUAL_LIMIT:.0f} to red +{RESIDUAL_LIMIT:.0f}"
        for panel, title in zip(panels, ["observation", "model", residual], strict=True):
            self._text(panel.left, panel.bottom + panel.height + 6, title)
        found = np.column_stack([undeclared["y"], undeclared["x"]]) if undeclared else np.empty((0, 2))
        for panel, color in ((panels[0], MARK), (panels[2], DARK)):
            self._marks(*panel.locate(positions), marker="+", color=color)
            self._marks(*panel.locate(found), marker="D", color=ALERT, size=8)
        for name, x, y in zip(ids, *panels[0].locate(positions), strict=True):
            self._text(x + 5, y + 4, str(name), size=7, color=MARK)

    def _text(self, x: float, y: float, text: str, size: float = 8, color: str = FAINT, weight: str = "normal") -> None:
        style: dict[str, Any] = {"fontsize": size, "color": color, "weight": weight, "parse_math": False}
        self.figure.text(x, y, one_line(text), transform=IdentityTransform(), **style)

    def _marks(self, x: np.ndarray, y: np.ndarray, marker: str, color: str, size: float = 7) -> None:
        line = Line2D(x, y, linestyle="", marker=marker, markersize=size, color=color, markeredgewidth=0.9)
        line.set(transform=IdentityTransform(), fillstyle="none")
        self.figure.add_artist(line)


def headline(deblended: Deblended) -> str:
    """Title the figure in one line: name, bands, method, prior, chi2, number of sources and undeclared detections."""
    header, count, view = deblended.header, len(deblended.stamps), deblended.views[0]
    parts = [view.observation.name, " ".join(view.observation.bands)]
    parts += [str(header[key]) for key in ("method", "prior") if key in header]
    parts += [f"chi2/pixel {view.chi2:.2f}", f"{count} source" + "s" * (count != 1), *_undeclared(view)]
    return "   ·   ".join(parts)


def headline_of_view(view: View) -> str:
    """Title what a further observation shows in one line: name, bands, chi2 and number of undeclared detections."""
    observation = view.observation
    return "   ·   ".join(
        [observation.name, " ".join(observation.bands), f"chi2/pixel {view.chi2:.2f}", *_undeclared(view)]
    )


def _undeclared(view: View) -> list[str]:
    return [f"{len(view.undeclared)} undeclared (diamonds)"] if view.undeclared else []


def captions(catalog: Table, windows: Sequence[Window]) -> list[str]:
    """Describe each source in one line: id, kind unless it is a galaxy, signal-to-noise, side of its window."""
    lines = []
    for row, window in zip(catalog, windows, strict=True):
        kind = "" if row["kind"] == "galaxy" else f" ({row['kind']})"
        lines.append(f"{row['id']}{kind}   S/N {row['snr']:.0f}   {window.width} px")
    return lines


@cache
def plotter() -> ScenePlotter:
    """Return the one plotter of this process."""
    return ScenePlotter()


def plot(deblended: Deblended, path: str | Path | None = None) -> Image.Image:
    """Draw a result, and write the picture to `path`, where given, as a PNG, whole or not at all.

    Raises: OSError where the file cannot be written.
    """
    picture = Image.fromarray(plotter().draw(deblended))
    if path is not None:
        with written_whole(Path(path)) as temporary:
            picture.save(temporary, format="png", compress_level=3)
    return picture
