"""Figures of images: a scene and its model, single sources, residuals, samples, a prior's iterations."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tfdeblend.errors import DataError, one_line
from tfdeblend.plots.bitmap import Window
from tfdeblend.plots.panels import (
    SMALL,
    TEXT,
    NotebookFigure,
    brightest,
    chosen,
    colour_bar,
    label,
    names,
    on_sky,
    scale_bar,
    show,
    show_residual,
)
from tfdeblend.plots.stretch import RESIDUAL_LIMIT, SKY, Stretch, significance

if TYPE_CHECKING:
    from tfdeblend.catalog.result import Deblended, View

SIDE = 2.4  # inches of a panel
SOURCES = 24  # shown one by one, at most
SAMPLED, SAMPLES, SAMPLED_SIDE = 6, 4, 48  # sources and samples of them, at most; pixels of their windows
GALAXIES = 6  # of a prior
ALERT = "#ff9500"


def scene(result: Deblended) -> Figure:
    """Draw observation, model and residual of a result; a row an observation.

    Crosses are where the sources were fitted, diamonds what no source accounts for. The residual combines the bands, in
    sigma. Observation and model of a row are less the fitted background, and share a stretch.
    """
    figure = NotebookFigure(3 * SIDE + 1.5, sum(_height(view) for view in result.views) + 0.2)
    grid = figure.add_gridspec(len(result.views), 3, height_ratios=[_height(view) for view in result.views])
    for row, view in enumerate(result.views):
        seen = view.above_background
        stretch = Stretch.fit(seen)
        axes = [on_sky(figure, grid[row, column], seen) for column in range(3)]
        show(axes[0], stretch.observed(seen))
        show(axes[1], stretch(view.model - view.background[:, None, None]))
        image = show_residual(axes[2], significance(view.residual, seen.weights))
        colour_bar(figure, image, axes[2], "residual [σ]", shrink=0.8)
        kept = ~result.scene.left_out
        names(axes[0], view.positions[kept], result.catalog["id"][kept])
        for one, colour in ((axes[0], "white"), (axes[2], "black")):
            y, x = view.positions[kept].T
            one.plot(x, y, "+", color=colour, markersize=6, markeredgewidth=0.8)
            if view.undeclared:
                one.plot(view.undeclared["x"], view.undeclared["y"], "D", color=ALERT, fillstyle="none", markersize=7)
        titles = f"{seen.name}: {' '.join(seen.bands)}", "model", f"residual, χ² a pixel {view.chi2:.2f}"
        for column, (one, title) in enumerate(zip(axes, titles, strict=True)):
            _finish(one, view, title, labelled=column == 0)
    return figure


def sources(result: Deblended, sources: Sequence[str] | None = None) -> Figure:
    """Draw the light of each source as the first observation shows it, in a window of its own size.

    All share the stretch of the observation, so that a source is as bright as it is there.

    Args:
        sources: ids; None: the brightest, 24 at most.

    Raises: ValueError for an id that was not fitted.
    """
    view = result.views[0]
    seen = view.above_background
    stretch = Stretch.fit(seen)
    rows = chosen(result, sources, brightest(result), SOURCES)
    columns = min(len(rows), 6)
    lines = math.ceil(len(rows) / columns)
    figure = NotebookFigure(max(1.7 * columns, 2.5), 1.95 * lines + 0.3)
    grid = figure.add_gridspec(lines, columns)
    for place, k in enumerate(rows):
        window = Window.around(view.light, k, view.positions[k], stretch.softening)
        corner = np.array([window.y, window.x])
        height, width = np.minimum(np.array(seen.shape[1:]) - corner, [window.height, window.width])
        area = slice(window.y, window.y + height), slice(window.x, window.x + width)
        axes = on_sky(figure, grid[place // columns, place % columns], seen, *area)
        show(axes, stretch(view.light.cut(k, corner, (height, width))))
        y, x = view.positions[k] - corner
        axes.plot(x, y, "+", color="white", alpha=0.7, markersize=7, markeredgewidth=0.8)
        entry = result.catalog[k]
        axes.set_title(f"{entry['id']}   S/N {entry['snr']:.0f}", size=SMALL, parse_math=False)
        label(axes, False)
        scale_bar(axes, width, seen.pixel_scale)
    fitted = int((~result.scene.left_out).sum())
    some = "" if len(rows) == fitted else f", {len(rows)} of {fitted} sources"
    figure.suptitle(one_line(f"{seen.name}: {' '.join(seen.bands)}{some}"), size=TEXT, parse_math=False)
    return figure


def residuals(result: Deblended) -> Figure:
    """Draw each band's residual over its noise, and how its pixels are distributed; a row an observation.

    Pixels of noise alone follow the black line, a normal distribution, also where noise is correlated.
    """
    views = result.views
    columns = max(len(view.observation.bands) for view in views) + 1
    shapes = [view.observation.shape for view in views]
    heights = [1.6 * min(max(height / width, 0.8), 1.6) + 0.5 for _, height, width in shapes]
    figure = NotebookFigure(1.9 * columns + 0.7, sum(heights) + 0.3)
    grid = figure.add_gridspec(len(views), columns, height_ratios=heights)
    for row, view in enumerate(views):
        seen = view.observation
        sigma = view.residual * np.sqrt(seen.weights)
        panels = []
        for column, (band, one) in enumerate(zip(seen.bands, sigma, strict=True)):
            axes = on_sky(figure, grid[row, column], seen)
            image = show_residual(axes, one)
            known = np.isfinite(one)
            chi2 = f"{np.mean(one[known] ** 2):.2f}" if known.any() else "none, all masked"
            _finish(axes, view, f"{band}, χ² a pixel {chi2}", labelled=False)
            panels.append(axes)
        panels[0].set_title(f"{seen.name}\n{panels[0].get_title()}", size=SMALL, parse_math=False)
        colour_bar(figure, image, panels, "residual [σ]", shrink=0.8, pad=0.01)
        _distribution(figure.add_subplot(grid[row, columns - 1]), seen.bands, sigma)
    return figure


def samples(result: Deblended, sources: Sequence[str] | None = None) -> Figure:
    """Draw data, mean, samples, deviation and residual of sources in the first observation; a row a source.

    Samples are stamps in the model frame, sharper than the data. Deviations are a pixel's, over its noise, in the
    quadratic mean of the bands.

    Args:
        sources: ids; None: the brightest, 6 at most.

    Raises: ValueError for a result that kept no samples, and for an id that was not fitted.
    """
    view, drawn = result.views[0], result.samples
    if drawn is None or view.light_std is None:
        raise ValueError("expected a result with its samples, received one without (keep_samples=True keeps them)")
    seen, own = view.above_background, list(result.scene.band_indices(view.observation))
    stretch = Stretch.fit(seen)
    data, sigma = stretch.observed(seen), significance(view.residual, seen.weights)
    noise = np.array([1 / np.sqrt(np.median(w[w > 0])) if (w > 0).any() else np.inf for w in seen.weights])
    rows = chosen(result, sources, brightest(result), SAMPLED)
    shown = min(SAMPLES, len(drawn))
    spreads = [np.sqrt(((view.light_std.image(k) / noise[:, None, None]) ** 2).mean(0)) for k in rows]
    titles = ["data", "mean", *(f"sample {s + 1}" for s in range(shown)), "deviation", "residual"]
    figure = NotebookFigure(1.5 * len(titles) + 0.3, 1.5 * len(rows) + 0.8)
    grid = figure.add_gridspec(len(rows) + 1, len(titles), height_ratios=[*[1.5] * len(rows), 0.1])
    axes = np.array([[figure.add_subplot(grid[i, j]) for j in range(len(titles))] for i in range(len(rows))])
    limit = max(float(max(spread.max() for spread in spreads)), 1e-6)
    for line, k, spread in zip(axes, rows, spreads, strict=True):
        corner, side = result.corners[k], result.stamps.shape[-1]
        first = corner + (side - min(SAMPLED_SIDE, side)) // 2
        show(line[0], _cut(data, first, SKY))
        show(line[1], _cut(stretch(view.light.image(k)), first, SKY))
        for s in range(shown):
            show(line[2 + s], _cut(stretch(drawn[s, k, own]), first - corner, SKY))
        of_spread = show(line[-2], _cut(spread, first, 0.0), cmap="magma", vmin=0, vmax=limit)
        of_residual = show_residual(line[-1], _cut(sigma, first, np.nan))
        for one in line:
            label(one, False)
        scale_bar(line[0], SAMPLED_SIDE, seen.pixel_scale)
        entry = result.catalog[k]
        line[0].set_ylabel(f"{entry['id']}   S/N {entry['snr']:.0f}", size=SMALL, parse_math=False)
    for one, title in zip(axes[0], titles, strict=True):
        one.set_title(title, size=SMALL)
    for image, column in ((of_spread, len(titles) - 2), (of_residual, len(titles) - 1)):
        place = figure.add_subplot(grid[-1, column])
        colour_bar(figure, image, None, "over the noise", cax=place, orientation="horizontal")
    return figure


def em_iterations(out: str | Path) -> Figure:
    """Draw what the iterations of expectation-maximisation made of a prior: galaxies drawn from it, and its scores.

    A column an iteration. Below are the held-out blends' scores and the dispersion that is left of the samples: a
    factor below 1 in each iteration is a prior that collapses.

    Args:
        out: the folder of a run of `tfdeblend em`, which may still go on.

    Raises: DataError where it has no iteration that is done.
    """
    folders = [path.parent for path in sorted(Path(out).glob("iteration_*/scores.json"))]
    if not folders:
        raise DataError(out, None, "expected the folder of a run of tfdeblend em, received one without iterations")
    scores = [json.loads((folder / "scores.json").read_text()) for folder in folders]
    drawn = [_drawn(folder)[:GALAXIES] for folder in folders]
    stretch, count = Stretch.of_light(np.concatenate(drawn)), max(len(stamps) for stamps in drawn)
    figure = NotebookFigure(max(1.2 * len(folders), 7.0), 1.2 * count + 2.8)
    grid = figure.add_gridspec(2, 1, height_ratios=[1.2 * count + 0.3, 2.5])
    above, below = (figure.add_subfigure(grid[row]) for row in range(2))
    axes = above.subplots(count, len(folders), squeeze=False)
    for column, stamps, one in zip(axes.T, drawn, scores, strict=True):
        column[0].set_title(f"k = {one['iteration']}", size=TEXT)
        for panel, stamp in zip(column, stamps, strict=False):
            show(panel, stretch(stamp))
    for panel in axes.flat:
        label(panel, False)
    curves = {
        "log predictive [nats]": ("log_predictive",),
        "χ² a pixel of samples": ("chi2",),
        "dispersion": ("dispersion", "kept"),
    }
    for panel, (title, keys) in zip(below.subplots(1, 3), curves.items(), strict=True):
        for key in keys:
            known = [(one["iteration"], one[key]) for one in scores if key in one]
            panel.plot(*zip(*known, strict=True) if known else ([], []), "o-", markersize=3, label=key)
        if len(keys) > 1:
            panel.axhline(1, color="0.6", linewidth=0.8)
            panel.legend(["of an iteration", "product so far"], fontsize=SMALL - 1, frameon=False)
        panel.set_title(title, size=TEXT)
        panel.set_xlabel("iteration", size=SMALL)
        panel.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        panel.tick_params(labelsize=SMALL - 1)
    return figure


def _drawn(folder: Path) -> np.ndarray:
    """Read the galaxies (N,C,P,P) drawn from the prior of an iteration."""
    path = folder / "drawn.npz"
    if not path.exists():
        raise DataError(path, None, "expected galaxies drawn from the prior, received no such file")
    with np.load(path) as file:
        return file["stamps"]


def _height(view: View) -> float:
    """Give the inches of a row of panels that show an observation."""
    _, height, width = view.observation.shape
    return SIDE * min(max(height / width, 0.5), 2) + 0.5


def _finish(axes: Axes, view: View, title: str, labelled: bool) -> None:
    """Title and label an image of an observation, with its scale bar."""
    axes.set_title(one_line(title), size=SMALL, parse_math=False)
    label(axes, labelled)
    scale_bar(axes, view.observation.shape[2], view.observation.pixel_scale)


def _distribution(axes: Axes, bands: Sequence[str], sigma: np.ndarray) -> None:
    """Draw a histogram of each band's residuals (C,H,W) and the normal distribution."""
    edges = np.linspace(-RESIDUAL_LIMIT, RESIDUAL_LIMIT, 41)
    middle = (edges[1:] + edges[:-1]) / 2
    for band, one in zip(bands, sigma, strict=True):
        known = np.clip(one[np.isfinite(one)], *edges[[0, -1]])  # what lies beyond is in the last bins
        density = np.histogram(known, edges)[0] / max(len(known), 1) / np.diff(edges)
        axes.stairs(density, edges, label=band)
    axes.plot(middle, np.exp(-0.5 * middle**2) / math.sqrt(2 * math.pi), color="black", linewidth=1, label="normal")
    axes.set_yscale("log")
    axes.set_ylim(1e-4, 1)
    axes.set_xlabel("residual [σ]", size=SMALL)
    axes.set_ylabel("share of pixels in 1 σ", size=SMALL)
    axes.tick_params(labelsize=SMALL - 1)
    axes.legend(fontsize=SMALL - 2, frameon=False, ncols=2, loc="lower center")


def _cut(image: np.ndarray, first: np.ndarray, beyond: float) -> np.ndarray:
    """Cut a window out of an image (H,W,...), from the pixel `first` on, with a value for what is beyond the image."""
    window = np.full((SAMPLED_SIDE, SAMPLED_SIDE, *image.shape[2:]), beyond)
    low, high = np.maximum(first, 0), np.minimum(first + SAMPLED_SIDE, image.shape[:2])
    if (high > low).all():
        (y, x), (y0, x0) = low - first, low
        height, width = high - low
        window[y : y + height, x : x + width] = image[y0 : y0 + height, x0 : x0 + width]
    return window
