"""The picture of a scene's samples: for its brightest sources the data, the mean, samples, deviation and residual."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tfdeblend.app.plots import RESIDUAL_LIMIT, Stretch, residual_colours, significance
from tfdeblend.catalog.result import Deblended
from tfdeblend.io.atomic import written_whole

SOURCES, SAMPLES, SIDE = 6, 4, 48  # at most; pixels of a window around a source


def draw(deblended: Deblended) -> Figure:
    """A row a source, the brightest first. Samples are stamps, sharper than the data: at the model PSF's resolution.

    Raises: ValueError for a result that kept no samples.
    """
    if deblended.samples is None or deblended.sources_std is None:
        raise ValueError("expected a result with its samples, received one without (keep_samples=True keeps them)")
    observation = deblended.scene.observation
    stretch = Stretch.fit(observation.images, observation.weights, observation.zeropoints)
    sigma = significance(deblended.residual, observation.weights)
    noise = np.array([1 / np.sqrt(np.median(w[w > 0])) if (w > 0).any() else np.inf for w in observation.weights])
    brightest = np.argsort(-np.asarray(deblended.catalog["snr"]))[:SOURCES]
    shown = min(SAMPLES, len(deblended.samples))
    titles = ["data", "mean", *(f"sample {s + 1}" for s in range(shown)), "deviation / noise", "residual / noise"]
    figure = Figure(figsize=(1.6 * len(titles), 1.75 * len(brightest) + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(brightest), len(titles), squeeze=False)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, size=8)
    for row, k in zip(axes, brightest, strict=True):
        corner, side = deblended.corners[k], deblended.stamps.shape[-1]
        first = corner + (side - min(SIDE, side)) // 2
        spread = np.sqrt(((deblended.sources_std[k] / noise[:, None, None]) ** 2).mean(0))
        in_image = [stretch(observation.images), stretch(deblended.sources[k])]
        panels = [_cut(image, first) for image in in_image]
        panels += [_cut(stretch(deblended.samples[s, k]), first - corner) for s in range(shown)]
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
    return figure


def _cut(image: np.ndarray, first: np.ndarray) -> np.ndarray:
    """SIDE x SIDE pixels from `first` on; zero beyond the image."""
    window = np.zeros((SIDE, SIDE, *image.shape[2:]))
    low, high = np.maximum(first, 0), np.minimum(first + SIDE, image.shape[:2])
    if (high > low).all():
        (y, x), (y0, x0) = low - first, low
        height, width = high - low
        window[y : y + height, x : x + width] = image[y0 : y0 + height, x0 : x0 + width]
    return window


def save(deblended: Deblended, path: str | Path) -> None:
    """Writes the picture as a PNG, whole or not at all. Errors: OSError where the file cannot be written."""
    figure = draw(deblended)
    with written_whole(Path(path)) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
