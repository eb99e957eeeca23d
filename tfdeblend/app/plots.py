"""Draw results: each observation, its model, its residual and every source on one stretch; and posterior samples.

The panels are composed with NumPy as one bitmap, on which Matplotlib draws only text and marks: a figure takes about a
tenth of a second, and thousands of scenes can have one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import IdentityTransform
from PIL import Image

from tfdeblend.catalog.result import positions_in_views
from tfdeblend.errors import one_line
from tfdeblend.io.atomic import written_whole

if TYPE_CHECKING:
    from astropy.table import Table

    from tfdeblend.catalog.result import Deblended, View
    from tfdeblend.catalog.windows import Windows

WIDTH, MARGIN, TITLE, HEADER, TALLEST, DPI = 1200, 12, 22, 34, 480, 100  # pixels
RESIDUAL_LIMIT = 5.0  # sigma
SIDES = (16, 24, 32, 48, 64, 96, 128, 192)  # pixels, of the windows on single sources
SOURCES, SAMPLES, SIDE = 6, 4, 48  # of the picture of samples, at most; pixels of a window around a source
PAGE, SKY, MASKED = np.array([0.10, 0.11, 0.13]), np.array([0.03, 0.035, 0.045]), np.array([0.22, 0.24, 0.27])
TEXT, FAINT, MARK, DARK, ALERT = "#e8eaed", "#aab2bd", "#ffffff", "#222222", "#ff9500"


@dataclass(frozen=True)
class Stretch:
    """Map images (C, H, W) to colours (H, W, 3) by an arcsinh of the mean intensity, hue kept (Lupton et al. 2004).

    `scale` (C,) brings the bands to one unit. In that unit, `softening` is the intensity where the stretch turns from
    linear to logarithmic, below which the hue, then the noise's, fades to grey; `white` is shown at full brightness.
    """

    scale: np.ndarray
    softening: float
    white: float

    @classmethod
    def fit(cls, images: np.ndarray, weights: np.ndarray, zeropoints: np.ndarray | None = None) -> Stretch:
        """Choose the stretch from the data: softening at 3 sigma of the sky, white at the brightest 0.3% of pixels."""
        bands, valid = len(images), weights > 0
        scale = np.ones(bands) if zeropoints is None else 10 ** (-0.4 * (np.asarray(zeropoints) - zeropoints[0]))
        variance = np.array([np.median(1 / w[v]) if v.any() else 0.0 for w, v in zip(weights, valid, strict=True)])
        share = cls.groups(np.eye(bands)).mean(0)  # of each band in the mean intensity
        sigma = float(np.sqrt(share**2 @ (scale**2 * variance)))
        intensity = np.tensordot(share * scale, np.where(valid, images, 0), 1)
        white = float(np.percentile(intensity[valid.any(0)], 99.7))
        softening = 3 * sigma
        return cls(scale, softening, max(white, 5 * softening))

    @staticmethod
    def groups(images: np.ndarray) -> np.ndarray:
        """Average the bands (C, ...), ordered from blue to red, into (red, green, blue)."""
        if len(images) < 3:
            return np.stack([images[-1], images.mean(0), images[0]])
        return np.stack([part.mean(0) for part in np.array_split(images[::-1], 3)])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Turn images (C, H, W) into colours (H, W, 3) in [0, 1]; NaN is shown as 0."""
        colours = self.groups(np.nan_to_num(images) * self.scale[:, None, None])
        intensity = np.maximum(colours.mean(0), 1e-6 * self.softening)
        colours = intensity + (colours - intensity) * (intensity / (intensity + self.softening))
        shown = np.arcsinh(intensity / self.softening) / np.arcsinh(self.white / self.softening)
        colours = np.maximum(colours, 0) * (shown / intensity)
        colours /= np.maximum(colours.max(0), 1)  # a saturated pixel keeps its hue
        return SKY + (1 - SKY) * np.moveaxis(colours, 0, -1)


def significance(residual: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Combine the bands of a residual (C, H, W) to unit variance, in sigma: sum_c r_c sqrt(w_c) / sqrt(valid bands).

    NaN where every band is masked.
    """
    count = (weights > 0).sum(0)
    total = (np.nan_to_num(residual) * np.sqrt(weights)).sum(0)
    return np.where(count > 0, total / np.sqrt(np.maximum(count, 1)), np.nan)


def residual_colours(sigma: np.ndarray) -> np.ndarray:
    """Colour a residual (H, W) in sigma, red where the data are brighter than the model, blue where fainter."""
    colours = colormaps["RdBu_r"](0.5 + 0.5 * np.nan_to_num(sigma) / RESIDUAL_LIMIT)[..., :3]
    return np.where(np.isnan(sigma)[..., None], MASKED, colours)


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


def as_bytes(colours: np.ndarray) -> np.ndarray:
    """Turn colours in [0, 1] into bytes; what lies beyond is clipped."""
    return (255 * np.clip(colours, 0, 1) + 0.5).astype(np.uint8)


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
        stretch = Stretch.fit(observation.images, observation.weights, observation.zeropoints)
        pairs = zip(kept, positions, strict=True)
        windows = [Window.around(view.light, k, place, stretch.softening / 3) for k, place in pairs]
        images, panels, height = arrange(Window(0, 0, *observation.images.shape[1:]), windows)
        bitmap = np.broadcast_to(as_bytes(PAGE), (height, WIDTH, 3)).copy()
        data = stretch(observation.images)
        data[~(observation.weights > 0).any(0)] *= 0.35
        sigma = significance(view.residual, observation.weights)
        for panel, colours in zip(images, [data, stretch(view.model), residual_colours(sigma)], strict=True):
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


def plot_samples(deblended: Deblended, path: str | Path | None = None) -> Figure:
    """Draw the data, mean, samples, deviation and residual of the brightest sources in the first observation.

    A row a source. Samples are stamps, sharper than the data: at the model PSF's resolution. path: as for `plot`.

    Raises: ValueError for a result that kept no samples; OSError where the file cannot be written.
    """
    view, samples = deblended.views[0], deblended.samples
    if samples is None or view.light_std is None:
        raise ValueError("expected a result with its samples, received one without (keep_samples=True keeps them)")
    observation, own = view.observation, list(deblended.scene.band_indices(view.observation))
    stretch = Stretch.fit(observation.images, observation.weights, observation.zeropoints)
    data, sigma = stretch(observation.images), significance(view.residual, observation.weights)
    noise = np.array([1 / np.sqrt(np.median(w[w > 0])) if (w > 0).any() else np.inf for w in observation.weights])
    fitted = int((~deblended.scene.left_out).sum())
    brightest = np.argsort(-np.asarray(deblended.catalog["snr"]))[: min(SOURCES, fitted)]  # those without S/N last
    shown = min(SAMPLES, len(samples))
    titles = ["data", "mean", *(f"sample {s + 1}" for s in range(shown)), "deviation / noise", "residual / noise"]
    figure = Figure(figsize=(1.6 * len(titles), 1.75 * len(brightest) + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(brightest), len(titles), squeeze=False)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, size=8)
    for row, k in zip(axes, brightest, strict=True):
        corner, side = deblended.corners[k], deblended.stamps.shape[-1]
        first = corner + (side - min(SIDE, side)) // 2
        spread = np.sqrt(((view.light_std.image(k) / noise[:, None, None]) ** 2).mean(0))
        panels = [_cut(data, first), _cut(stretch(view.light.image(k)), first)]
        panels += [_cut(stretch(samples[s, k, own]), first - corner) for s in range(shown)]
        panels += [_cut(spread, first), _cut(residual_colours(sigma), first)]
        for axis, panel in zip(row, panels, strict=True):
            limit = max(float(spread.max()), 1e-6)
            axis.imshow(panel, origin="lower", interpolation="nearest", cmap="magma", vmin=0, vmax=limit)
            axis.set_xticks([])
            axis.set_yticks([])
        entry = deblended.catalog[k]
        row[0].set_ylabel(f"{entry['id']}   S/N {entry['snr']:.0f}", size=8)
        row[-2].set_xlabel(f"0 to {spread.max():.2g}", size=7)
        row[-1].set_xlabel(f"-{RESIDUAL_LIMIT:.0f} to {RESIDUAL_LIMIT:.0f}", size=7)
    if path is not None:
        with written_whole(Path(path)) as temporary:
            figure.savefig(temporary, format="png", dpi=110)
    return figure


def _cut(image: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Cut SIDE x SIDE pixels out of an image, from `first` on; zero beyond the image."""
    window = np.zeros((SIDE, SIDE, *image.shape[2:]))
    low, high = np.maximum(first, 0), np.minimum(first + SIDE, image.shape[:2])
    if (high > low).all():
        (y, x), (y0, x0) = low - first, low
        height, width = high - low
        window[y : y + height, x : x + width] = image[y0 : y0 + height, x0 : x0 + width]
    return window
