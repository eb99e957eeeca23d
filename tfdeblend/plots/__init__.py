"""Figures of results, for notebooks and papers. Each function returns a `matplotlib.figure.Figure`, and leaves pyplot
alone.

Images of a figure share one stretch, an arcsinh of intensity that keeps faint light visible: one band is grey, three
are three colours. Residuals are in units of the noise. Axes have the sky's coordinates where the observation has a WCS,
and a bar says how long some arcsec are. `write` writes a figure to a file, whole or not at all.
"""

from tfdeblend.plots.images import em_iterations, residuals, samples, scene, sources
from tfdeblend.plots.panels import write
from tfdeblend.plots.statistics import corner, coverage, light_curve, pulls_of_samples

__all__ = [
    "corner",
    "coverage",
    "em_iterations",
    "light_curve",
    "pulls_of_samples",
    "residuals",
    "samples",
    "scene",
    "sources",
    "write",
]
