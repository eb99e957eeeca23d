"""Mosaic: the result of a whole field from those of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import scipy.fft

from tfdeblend.catalog import builder, measure
from tfdeblend.catalog.result import Deblended
from tfdeblend.data.psf import transfer_function
from tfdeblend.data.scene import Scene
from tfdeblend.forward.shapes import fast_fourier_size
from tfdeblend.inference.parts import Part

# How the headers of parts become one: what they share, and the largest, least and mean of numbers.
SHARED = "method", "prior", "priorwhy", "seed", "modelsig", "optimize", "samples", "sampler", "covar", "begin"
LARGEST, SMALLEST, MEAN = ("steps", "distance", "rhat"), ("ess",), ("ppchi2",)


class Mosaic:
    """The sources of a field of one observation, each from the result of the part that owns it.

    Args:
      scene: the whole. parts: they own each source of it once. results: of the parts, in their order. sky: (C,) the
        constant in each band that was subtracted from all parts.
    """

    def __init__(self, scene: Scene, parts: Sequence[Part], results: Sequence[Deblended], sky: np.ndarray):
        self.scene, self.parts, self.results, self.sky = scene, parts, results, sky
        side = max(result.stamps.shape[-1] for result in results)
        count, bands = len(scene.sources), scene.observation.shape[0]
        self.stamps = np.zeros((count, bands, side, side), np.float32)
        self.corners = np.zeros((count, 2), int)
        self.flux_cov = np.zeros((bands, count, count))
        for part, result in zip(parts, results, strict=True):
            rows, own = part.rows[part.own], result.stamps.shape[-1]
            self.stamps[rows, :, :own, :own] = result.stamps[part.own]
            self.corners[rows] = result.corners[part.own] + part.corner
            self.flux_cov[:, rows[:, None], rows] = result.flux_cov[:, part.own][:, :, part.own]
        self.model_sigma = float(results[0].header["modelsig"])  # that of all, since all have one PSF
        self._transfers: dict[int, np.ndarray] = {}

    def sources(self) -> np.ndarray:
        """Render (K,C,H,W) each source as observed."""
        shown = np.zeros((len(self.stamps), *self.scene.observation.shape), np.float32)
        for image, stamp, corner in zip(shown, self.stamps, self.corners, strict=True):
            _paste(image, *self._observed(stamp, corner))
        return shown

    def beyond(self) -> list[np.ndarray]:
        """Give for each part the light (C,h,w) in its window that its own sources and guests do not account for."""
        total, found = self.total, []
        for part in self.parts:
            left = total[:, *part.window].copy()
            for row in part.rows:
                light, corner = self._observed(self.stamps[row], self.corners[row])
                _paste(left, -light, corner - part.corner)
            found.append(left)
        return found

    @cached_property
    def total(self) -> np.ndarray:
        """Render (C,H,W) all sources together."""
        image = np.zeros(self.scene.observation.shape)
        for stamp, corner in zip(self.stamps, self.corners, strict=True):
            _paste(image, *self._observed(stamp, corner))
        return image

    def left_over(self) -> np.ndarray:
        """Measure (C,) the weighted mean of the images less all sources; 0 in a band that is all masked."""
        one = self.scene.observation
        total = one.weights.sum((1, 2), dtype=float)
        mean = (one.weights * (one.images - self.total)).sum((1, 2)) / np.where(total > 0, total, 1)
        return np.asarray(mean)

    def result(self, seconds: float, moving: Sequence[int]) -> Deblended:
        """Join the results to that of the whole.

        Args:
          seconds: that it took. moving: the parts, by number, that light from beyond would still move.
        """
        sources = self.sources()
        flags = self._column("flags")
        settled = self._of_parts([np.full(int(part.own.sum()), n not in moving) for n, part in enumerate(self.parts)])
        flux = np.stack([self._column(f"flux_{band}") for band in self.scene.bands], 1)
        fit = builder.Fit(
            models=[sources.sum(0, dtype=float) + self.sky[:, None, None]],
            sources=[sources],
            backgrounds=[self.sky],
            stamps=self.stamps,
            corners=self.corners,
            flux=np.where(np.isfinite(flux), flux, self.stamps.sum((2, 3))),
            flux_cov=self.flux_cov,
            shapes=self._shapes(),
            converged=((flags & measure.NOT_CONVERGED) == 0) & settled,
            beyond_prior=(flags & measure.BEYOND_PRIOR) > 0,
            taken=(flags & measure.TAKEN_AS_POINT) > 0,
        )
        whole = builder.build(self.scene, fit, self._facts() | {"walltime": seconds})
        return whole if self.results[0].sources_std is None else self._sampled(whole)

    def _facts(self) -> builder.Facts:
        """Gather the headers: what all parts have in common, and the largest, least or mean of numbers."""
        headers = [result.header for result in self.results]
        facts: builder.Facts = {name: headers[0][name] for name in SHARED if name in headers[0]}
        for join, names in ((max, LARGEST), (min, SMALLEST), (np.mean, MEAN)):
            for name in names:
                if name in headers[0]:
                    value: Any = join([header[name] for header in headers])
                    facts[name] = value
        return facts | {"parts": len(self.parts)}

    def _sampled(self, whole: Deblended) -> Deblended:
        """Complete the result by what only samples tell."""
        deviation = np.zeros_like(whole.sources)
        for part, result in zip(self.parts, self.results, strict=True):
            assert result.sources_std is not None
            deviation[(part.rows[part.own], slice(None), *part.window)] = result.sources_std[part.own]
        header = {name: value for name, value in whole.header.items() if name != "converged"}
        return replace(
            whole,
            header=header,
            catalog=measure.with_chi2(whole.catalog, self._column("chi2"), whole.views),
            views=(replace(whole.views[0], sources_std=deviation),),
            samples=self._stacked("samples", 1),
            prior_share=self._stacked("prior_share", 0, np.nan),
        )

    def _stacked(self, name: str, axis: int, empty: float = 0.0) -> np.ndarray | None:
        """Gather an array of the stamps' pixels, whose `axis` is that of the sources; `empty` where stamps end."""
        every = [getattr(result, name) for result in self.results]
        if any(one is None for one in every):
            return None
        full = np.full((*every[0].shape[:axis], *self.stamps.shape), empty, np.float32)
        for part, one in zip(self.parts, every, strict=True):
            side = one.shape[-1]
            full[(*[slice(None)] * axis, part.rows[part.own], ..., slice(side), slice(side))] = np.compress(
                part.own, one, axis
            )
        return full

    def _shapes(self) -> measure.Shapes:
        names = "y", "x", "size", "e1", "e2"
        y, x, size, e1, e2 = (self._column(name) for name in names)
        corner = self._of_parts([np.tile(part.corner, (int(part.own.sum()), 1)) for part in self.parts])
        errors = np.stack([self._column(f"{name}_err") for name in names], 1)
        return measure.Shapes(y + corner[:, 0], x + corner[:, 1], size, e1, e2, errors)

    def _column(self, name: str) -> np.ndarray:
        """Gather (K,) a column of the catalogues."""
        pairs = zip(self.parts, self.results, strict=True)
        return self._of_parts([np.asarray(result.catalog[name])[part.own] for part, result in pairs])

    def _of_parts(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """Order what the parts say of their own sources as the sources of the whole are."""
        order = np.argsort(np.concatenate([part.rows[part.own] for part in self.parts]))
        return np.concatenate(values)[order]

    def _observed(self, stamp: np.ndarray, corner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Convolve a stamp (C,P,P): the light (C,n,n) as observed, and the pixel under its first one."""
        psf, side = self.scene.observation.psf, stamp.shape[-1]
        border = max(psf.shape[1:]) // 2 + 1
        n = fast_fourier_size(side + 2 * border)
        padded = np.pad(stamp, ((0, 0), (border, n - side - border), (border, n - side - border)))
        return scipy.fft.irfft2(scipy.fft.rfft2(padded) * self._transfer(n), s=(n, n)), corner - border

    def _transfer(self, side: int) -> np.ndarray:
        if side not in self._transfers:
            found = transfer_function(self.scene.observation.psf.astype(float), self.model_sigma, side)
            self._transfers[side] = found.astype(np.complex64)
        return self._transfers[side]


def largest_pull(result: Deblended, own: np.ndarray, light: np.ndarray) -> float:
    """Tell by how many of its errors, of white noise alone, light (C,h,w) may move a flux of a part's own sources."""
    weights, sources = result.scene.observation.weights, result.sources[own].astype(float)
    moved = np.einsum("kchw,chw->kc", sources, weights * light)
    size = np.sqrt(np.einsum("kchw,chw->kc", sources**2, weights))
    return float(np.max(np.abs(moved) / np.where(size > 0, size, np.inf)))


def _paste(image: np.ndarray, light: np.ndarray, corner: np.ndarray) -> None:
    """Add light (C,n,n), whose first pixel lies at `corner`, to an image (C,H,W) where they overlap."""
    n, sides = light.shape[-1], np.array(image.shape[1:])
    first, last = np.clip(corner, 0, sides), np.clip(corner + n, 0, sides)
    here = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    there = tuple(slice(a, b) for a, b in zip(first - corner, last - corner, strict=True))
    image[:, *here] += light[:, *there]
