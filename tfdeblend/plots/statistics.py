"""Figures of numbers: fluxes of neighbours and what they have in common, coverage of error bars, light curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from tfdeblend.data.photometry import flux_unit
from tfdeblend.errors import one_line
from tfdeblend.plots.panels import SMALL, TEXT, NotebookFigure, chosen, figure_of

if TYPE_CHECKING:
    from tfdeblend.catalog.result import Deblended
    from tfdeblend.transients import LightCurve

NEIGHBOURS = 4  # sources whose fluxes are drawn against each other, where none are named
REACH = 3.5  # sigma to either side
DARK, DRAWN = "#1f4e79", "#8fb3d9"


def corner(result: Deblended, sources: Sequence[str] | None = None, band: str | None = None) -> Figure:
    """Draw the fluxes of neighbours against each other: ellipses of 1 and 2 sigma of their covariance, and samples.

    On the diagonal is each flux alone, with its error. A negative correlation is light that the data cannot
    assign to one of the two.

    Args:
        sources: ids; None: the 4 whose fluxes are most correlated with another's.
        band: None: that in which the sources are seen best.

    Raises: ValueError for an id that was not fitted or has no flux in the band, and for an unknown band.
    """
    bands = result.scene.bands
    if band is not None and band not in bands:
        raise ValueError(f"band: expected one of {', '.join(bands)}, received {band!r}")
    signal = np.nansum(result.flux / result.flux_err, 0)
    number = int(np.argmax(signal)) if band is None else bands.index(band)
    covariance, flux = np.asarray(result.flux_cov[number], float), result.flux[:, number]
    deviation = np.sqrt(np.diag(covariance))
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = covariance / np.outer(deviation, deviation)
    np.fill_diagonal(correlation, 0)
    strength = np.abs(np.nan_to_num(correlation)).max(1, initial=0)
    usable = np.isfinite(flux) & (deviation > 0)
    order = np.argsort(np.where(usable, -strength, np.inf), kind="stable")[: int(usable.sum())]
    rows = sorted(chosen(result, None, order, NEIGHBOURS)) if sources is None else chosen(result, sources, order, 0)
    ids = [str(result.catalog["id"][k]) for k in rows]
    without = [name for name, k in zip(ids, rows, strict=True) if not usable[k]]
    if without:
        expected = f"sources: expected some with a flux and its error in {bands[number]}"
        raise ValueError(f"{expected}, received {', '.join(without)}")
    drawn = None if result.sample_catalog is None else result.sample_catalog.flux[:, :, number]

    side = len(rows)
    figure = NotebookFigure(1.7 * side + 0.8, 1.7 * side + 0.8)
    axes = figure.subplots(side, side, squeeze=False)
    for i, k in enumerate(rows):
        for j, m in enumerate(rows):
            panel = axes[i, j]
            if j > i:
                panel.axis("off")
                continue
            if i == j:
                _alone(panel, flux[k], deviation[k], None if drawn is None else drawn[:, k])
            else:
                pair = np.array([m, k])
                points = None if drawn is None else drawn[:, pair]
                _together(panel, flux[pair], covariance[np.ix_(pair, pair)], points)
            panel.tick_params(labelsize=SMALL - 1, labelbottom=i == side - 1, labelleft=j == 0 and i > 0)
            panel.locator_params(axis="both", nbins=3)
            if i == side - 1:
                panel.set_xlabel(f"source {ids[j]}", size=SMALL, parse_math=False)
            if j == 0 and i > 0:
                panel.set_ylabel(f"source {ids[i]}", size=SMALL, parse_math=False)
    unit = flux_unit(next(one.unit for one in result.scene.observations if bands[number] in one.bands))
    title = f"{result.scene.name}: fluxes in {bands[number]}{'' if unit is None else f' [{unit}]'}"
    figure.suptitle(one_line(title), size=TEXT, parse_math=False)
    return figure


def coverage(pulls: Any, axes: Axes | None = None) -> Figure:
    """Draw the share of truths that lie within central intervals of probability p, against p.

    Right errors lie on the diagonal, within the band that 95% of so many independent truths stay in at each p. Below it
    errors are too small, above too large.

    Args:
        pulls: (N,) of (estimate - truth) / error, or of `pulls_of_samples`; or several of them by name. Those that are
            not finite are left out, as the legend says.
        axes: to draw on; None: of a new figure.

    Raises: ValueError where no pull is finite.
    """
    from scipy import stats

    curves = pulls if isinstance(pulls, Mapping) else {"": pulls}
    panel = NotebookFigure(4.2, 4.2).subplots() if axes is None else axes
    probability = np.linspace(0, 1, 201)
    panel.plot([0, 1], [0, 1], color="black", linewidth=0.8)
    for number, (name, values) in enumerate(curves.items()):
        given = np.abs(np.ma.filled(np.ma.asarray(values, float), np.nan).ravel())
        known = np.sort(given[np.isfinite(given)])
        if not len(known):
            raise ValueError(f"pulls: expected some that are finite, received none{f' of {name}' if name else ''}")
        least = 2 * stats.norm.cdf(known) - 1  # the probability of the smallest interval that has the truth
        share = np.searchsorted(least, probability, side="right") / len(known)
        low, high = stats.binom.interval(0.95, len(known), probability[1:-1])
        panel.fill_between(probability[1:-1], low / len(known), high / len(known), color=f"C{number}", alpha=0.15, lw=0)
        left = "" if len(known) == len(given) else f" of {len(given)}"
        panel.plot(probability, share, color=f"C{number}", label=f"{name} ({len(known)}{left} truths)".strip())
    panel.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=np.linspace(0, 1, 6), yticks=np.linspace(0, 1, 6))
    panel.set_xlabel("probability of the interval", size=TEXT)
    panel.set_ylabel("share of truths within", size=TEXT)
    panel.tick_params(labelsize=SMALL)
    panel.legend(fontsize=SMALL, frameon=False, loc="upper left")
    return figure_of(panel)


def pulls_of_samples(truth: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Give the pulls (N,) that truths' ranks among their samples stand for: standard normal where samples are right.

    Args:
        truth: (N,). samples: (S,N) of the posterior, which need not be Gaussian.
    """
    from scipy.special import ndtri

    truth, samples = np.asarray(truth, float), np.asarray(samples, float)
    below = (samples < truth).sum(0) + 0.5 * (samples == truth).sum(0)
    unknown = np.isnan(truth) | np.isnan(samples).any(0)
    return np.where(unknown, np.nan, -ndtri((below + 0.5) / (len(samples) + 1)))


def light_curve(curve: LightCurve, axes: Axes | None = None) -> Figure:
    """Draw the flux of a transient over time, with its errors, band by band; epochs held at zero are open.

    Args:
        axes: to draw on; None: of a new figure.
    """
    panel = NotebookFigure(6.0, 3.6).subplots() if axes is None else axes
    panel.axhline(0, color="0.6", linewidth=0.8)
    for number, band in enumerate(curve.scene.bands):
        flux, error, colour = curve.flux[:, number], curve.flux_err[:, number], f"C{number}"
        measured, off = error > 0, error == 0
        panel.errorbar(
            curve.times[measured], flux[measured], error[measured], fmt="o", markersize=4, color=colour, label=band
        )
        panel.plot(curve.times[off], flux[off], "o", markersize=4, color=colour, fillstyle="none")
    unit = flux_unit(curve.scene.observation.unit)
    panel.set_xlabel("time", size=TEXT)
    panel.set_ylabel("flux" if unit is None else f"flux [{unit}]", size=TEXT)
    y, x = curve.position
    panel.set_title(f"transient at x = {x:.2f}, y = {y:.2f}", size=TEXT)
    panel.tick_params(labelsize=SMALL)
    panel.legend(fontsize=SMALL, frameon=False)
    return figure_of(panel)


def _alone(axes: Axes, flux: float, deviation: float, drawn: np.ndarray | None) -> None:
    """Draw one flux: a normal distribution of its error, and a histogram of its samples."""
    if drawn is not None:
        axes.hist(drawn, bins="auto", density=True, color=DRAWN)
    x = flux + deviation * np.linspace(-REACH, REACH, 201)
    axes.plot(x, np.exp(-0.5 * ((x - flux) / deviation) ** 2) / (deviation * np.sqrt(2 * np.pi)), color=DARK)
    axes.set_xlim(x[0], x[-1])
    axes.set_yticks([])
    digits = max(1 - math.floor(math.log10(deviation)), 0)  # two of the error's
    axes.set_title(f"{flux:.{digits}f} ± {deviation:.{digits}f}", size=SMALL)


def _together(axes: Axes, flux: np.ndarray, covariance: np.ndarray, drawn: np.ndarray | None) -> None:
    """Draw two fluxes (2,), on x and on y: ellipses of their covariance (2,2), and their samples (S,2)."""
    if drawn is not None:
        axes.plot(*drawn.T, ".", markersize=3, color=DRAWN)
    lengths, directions = np.linalg.eigh(covariance)
    angle = np.degrees(np.arctan2(directions[1, 1], directions[0, 1]))
    for sigma in (1, 2):
        minor, major = 2 * sigma * np.sqrt(np.maximum(lengths, 0))
        axes.add_patch(Ellipse((flux[0], flux[1]), major, minor, angle=angle, fill=False, color=DARK, linewidth=1.2))
    deviation = np.sqrt(np.diag(covariance))
    axes.set_xlim(flux[0] - REACH * deviation[0], flux[0] + REACH * deviation[0])
    axes.set_ylim(flux[1] - REACH * deviation[1], flux[1] + REACH * deviation[1])
    rho = covariance[0, 1] / deviation.prod()
    axes.text(0.95, 0.93, f"ρ = {rho:.2f}", transform=axes.transAxes, ha="right", va="top", size=SMALL)
