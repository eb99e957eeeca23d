"""What figures are made of: axes on the sky, images with a bar of some arcsec, residuals in sigma."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

from tfdeblend.io.atomic import written_whole
from tfdeblend.plots.stretch import RESIDUAL_LIMIT, RESIDUAL_MAP

if TYPE_CHECKING:
    from matplotlib.image import AxesImage

    from tfdeblend.catalog.result import Deblended
    from tfdeblend.data.observation import Observation

SMALL, TEXT = 8, 9  # points
BAR = 0.35  # of a panel's width that a scale bar may have
WHOLE = slice(None)
OUTLINED = [withStroke(linewidth=2, foreground="#202020")]


class NotebookFigure(Figure):
    """A figure that a notebook shows where it is a cell's value, also without pyplot."""

    def __init__(self, width: float, height: float) -> None:
        """Make an empty figure of so many inches."""
        super().__init__(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06))
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        from io import BytesIO

        buffer = BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


def write(figure: Figure, path: str | Path, dpi: int = 150) -> None:
    """Write a figure in the format that the file's name ends in, whole or not at all.

    Raises: ValueError for a format that Matplotlib does not know; OSError where the file cannot be written.
    """
    with written_whole(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:] or "png", dpi=dpi)


def figure_of(axes: Axes) -> Figure:
    """Give the whole figure that axes belong to."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure


def chosen(result: Deblended, sources: Sequence[str] | None, order: np.ndarray, most: int) -> list[int]:
    """Find the rows of sources by their ids; where none are given, the first `most` of those fitted in an `order` (K,).

    Raises: ValueError where there is none, for an id that the catalogue has not, or whose source was not fitted.
    """
    fitted = ~result.scene.left_out
    if sources is None:
        rows = [int(k) for k in order if fitted[k]][:most]
        if not rows:
            raise ValueError("expected a result with a source that can be drawn, received one without")
        return rows
    if isinstance(sources, str):
        raise ValueError(f"sources: expected a list of ids, received {sources!r}")
    ids = [str(name) for name in result.catalog["id"]]
    wanted = [str(name) for name in sources]
    unknown = [name for name in wanted if name not in ids or not fitted[ids.index(name)]]
    if unknown or not wanted:
        known = ", ".join(name for name, seen in zip(ids, fitted, strict=True) if seen)
        raise ValueError(
            f"sources: expected ids of fitted sources, some of {known}, received {', '.join(unknown) or 'none'}"
        )
    return [ids.index(name) for name in wanted]


def brightest(result: Deblended) -> np.ndarray:
    """Order the sources (K,) by signal-to-noise, the highest first and those without any last."""
    return np.argsort(-np.asarray(result.catalog["snr"], float), kind="stable")


def on_sky(figure: Figure, place: Any, observation: Observation, rows: slice = WHOLE, columns: slice = WHOLE) -> Axes:
    """Add axes for some pixels of an observation: of astropy's WCSAxes, where it has a WCS."""
    if observation.wcs is None:
        return figure.add_subplot(place)
    from astropy.visualization.wcsaxes import WCSAxes

    return figure.add_subplot(place, axes_class=WCSAxes, wcs=observation.wcs.celestial[rows, columns])


def label(axes: Axes, shown: bool) -> None:
    """Label the axes of an image: right ascension and declination, or pixels; or leave them bare."""
    if not hasattr(axes, "coords"):
        axes.tick_params(labelsize=SMALL - 1, bottom=shown, left=shown, labelbottom=shown, labelleft=shown)
        if shown:
            axes.set_xlabel("x [pixels]", size=SMALL)
            axes.set_ylabel("y [pixels]", size=SMALL)
        return
    for coordinate, name, side in zip(axes.coords, ("right ascension", "declination"), "bl", strict=True):
        coordinate.set_ticks(number=3)
        coordinate.set_ticks_position(side)
        coordinate.set_ticks_visible(shown)
        coordinate.set_ticklabel(size=SMALL - 1, exclude_overlapping=True)
        coordinate.set_ticklabel_visible(shown)
        coordinate.set_axislabel(name if shown else "", size=SMALL)
        coordinate.set_auto_axislabel(shown)


def show(axes: Axes, image: np.ndarray, **how: Any) -> AxesImage:
    """Show an image (H,W) or colours (H,W,3), its first row at the bottom."""
    return axes.imshow(image, origin="lower", interpolation="nearest", **how)


def show_residual(axes: Axes, sigma: np.ndarray) -> AxesImage:
    """Show a residual (H,W) in sigma: red where the data are brighter, blue where fainter, dark where masked."""
    return show(axes, sigma, cmap=RESIDUAL_MAP, vmin=-RESIDUAL_LIMIT, vmax=RESIDUAL_LIMIT)


def colour_bar(figure: Figure, image: AxesImage, axes: Any, text: str, **how: Any) -> None:
    """Add the bar that tells an image's colours as numbers."""
    bar = figure.colorbar(image, ax=axes, **how)
    bar.set_label(text, size=SMALL)
    bar.ax.tick_params(labelsize=SMALL - 1)


def scale_bar(axes: Axes, width: int, pixel_scale: float | None) -> None:
    """Draw a bar of a round number of arcsec on an image so many pixels wide; of pixels, where these are unknown."""
    scale, unit = (1.0, " pixels") if pixel_scale is None else (pixel_scale, "″")
    longest = BAR * width * scale
    power = 10.0 ** math.floor(math.log10(longest))
    length = power * max(step for step in (1, 2, 5) if step * power <= longest)
    bar = AnchoredSizeBar(
        axes.transData,
        length / scale,
        f"{length:g}{unit}",
        "lower right",
        pad=0.3,
        frameon=False,
        color="white",
        size_vertical=0.008 * width,
        fontproperties={"size": SMALL},
    )
    for part in (*bar.size_bar.get_children(), *bar.txt_label.get_children()):
        part.set_path_effects(OUTLINED)
    axes.add_artist(bar)


def names(axes: Axes, positions: np.ndarray, ids: Sequence[str]) -> None:
    """Write the sources' ids beside their positions (K,2) = (y, x), white on dark."""
    for (y, x), name in zip(positions, ids, strict=True):
        axes.annotate(
            str(name),
            (x, y),
            (4, 3),
            textcoords="offset points",
            size=SMALL - 1,
            color="white",
            path_effects=OUTLINED,
            parse_math=False,
            annotation_clip=True,
        )
