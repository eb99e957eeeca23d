"""Mosaic: the result of a whole field from those of its parts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import scipy.fft
from astropy.table import Table

from tfdeblend.catalog import builder, measure
from tfdeblend.catalog.result import Deblended, SampleCatalog
from tfdeblend.catalog.windows import Windows, trimmed
from tfdeblend.data.psf import transfer_function
from tfdeblend.data.scene import Scene
from tfdeblend.forward.shapes import fast_fourier_size
from tfdeblend.inference.parts import Part

# How the headers of parts become one: what they share, and the largest, least and mean of numbers.
SHARED = "method", "prior", "priorwhy", "seed", "modelsig", "optimize", "samples", "sampler", "covar", "begin"
LARGEST, SMALLEST, MEAN = ("steps", "distance", "rhat"), ("ess",), ("ppchi2",)

# Of a band's least noise, and of a source's own brightest pixel there: where no pixel is brighter, its light ends.
INVISIBLE = 1e-3


class Own(NamedTuple):
    """What the result of a part says of the part's own sources: the rows of these, see `Deblended`.

    corners: (K,2) of the stamps in the whole.
    """

    header: Mapping[str, str | int | float | bool]
    catalog: Table
    stamps: np.ndarray
    corners: np.ndarray
    flux_cov: np.ndarray
    samples: np.ndarray | None
    sample_catalog: SampleCatalog | None
    prior_share: np.ndarray | None


class Mosaic:
    """The sources of a field of one observation, each from the result of the part that owns it.

    Of each result it keeps the part's own sources alone, and their light in windows that just hold it.

    Args:
      scene: the whole. parts: they own each source of it once. sky: (C,) the constant in each band that was subtracted
        from all parts.
    """

    def __init__(self, scene: Scene, parts: Sequence[Part], sky: np.ndarray):
        self.scene, self.parts, self.sky = scene, parts, sky
        self.results: dict[int, Own] = {}
        self._pixels = [np.zeros((scene.observation.shape[0], 0, 0), np.float32) for _ in scene.sources]
        self._corners = np.zeros((len(scene.sources), 2), int)
        self._deviations: dict[int, np.ndarray] = {}  # of the samples, in the same windows
        with np.errstate(divide="ignore"):  # a band that is all masked shows nothing
            self._noise = scene.observation.weights.max((1, 2)).astype(float) ** -0.5
        self._transfers: dict[tuple[float, int], np.ndarray] = {}

    @property
    def light(self) -> Windows:
        """The light of all sources as observed."""
        return Windows(tuple(self._pixels), self._corners, self.scene.observation.shape)

    def keep(self, number: int, result: Deblended) -> None:
        """Take the result of a part, by its number, in place of an earlier one."""
        part, own = self.parts[number], self.parts[number].own
        kept = self.results[number] = Own(
            header=result.header,
            catalog=result.catalog[own],
            stamps=result.stamps[own],
            corners=result.corners[own] + part.corner,
            flux_cov=result.flux_cov[:, own][:, :, own],
            samples=None if result.samples is None else result.samples[:, own],
            sample_catalog=result.sample_catalog,
            prior_share=None if result.prior_share is None else result.prior_share[own],
        )
        deviation, sigma = result.views[0].light_std, float(result.header["modelsig"])
        rows, places = part.rows[own].tolist(), np.flatnonzero(own).tolist()
        for row, k, stamp, corner in zip(rows, places, kept.stamps, kept.corners, strict=True):
            self._pixels[row], self._corners[row] = self._observed(stamp, corner, sigma)
            if deviation is not None:
                sides = self._pixels[row].shape[1:]
                self._deviations[row] = deviation.cut(k, self._corners[row] - part.corner, sides)

    def bare(self) -> Iterator[tuple[int, Part]]:
        """Yield each part, with its number, less the sky and all light but that of its own sources and guests."""
        light = self.light
        total = light.total()
        for number, part in enumerate(self.parts):
            beyond = total[:, *part.window] + self.sky[:, None, None]
            for row in part.rows:
                beyond -= light.cut(row, part.corner, beyond.shape[1:])
            yield number, part.less(beyond)

    def left_over(self) -> np.ndarray:
        """Measure (C,) the weighted mean of the images less all sources; 0 in a band that is all masked."""
        one = self.scene.observation
        total = one.weights.sum((1, 2), dtype=float)
        mean = (one.weights * (one.images - self.light.total())).sum((1, 2)) / np.where(total > 0, total, 1)
        return np.asarray(mean)

    def largest_pull(self, fitted: Part, bare: Part) -> float:
        """Tell by how many of its errors, of white noise alone, a flux of a part's own sources would move.

        Args:
          fitted: the part as it was fitted. bare: with other light taken off it.
        """
        light, one, most = self.light, fitted.scene.observation, 0.0
        moved = one.weights * (one.images - bare.scene.observation.images)
        for row in fitted.rows[fitted.own]:
            m = light.cut(row, fitted.corner, one.shape[1:]).astype(float)
            size = np.sqrt((m**2 * one.weights).sum((1, 2)))
            pull = np.abs((m * moved).sum((1, 2))) / np.where(size > 0, size, np.inf)
            most = max(most, float(pull.max()))
        return most

    def result(self, seconds: float, moving: Collection[int]) -> Deblended:
        """Join the results to that of the whole.

        Args:
          seconds: that it took. moving: the parts, by number, that light from beyond would still move.
        """
        light, stamps = self.light, self._stacked("stamps", 0)
        assert stamps is not None
        flags = self._column("flags")
        settled = self._of_parts([np.full(int(part.own.sum()), n not in moving) for n, part in enumerate(self.parts)])
        flux = np.stack([self._column(f"flux_{band}") for band in self.scene.bands], 1)
        fit = builder.Fit(
            models=[light.total() + self.sky[:, None, None]],
            light=[light],
            backgrounds=[self.sky],
            stamps=stamps,
            corners=self._of_parts([one.corners for one in self._ordered]),
            flux=np.where(np.isfinite(flux), flux, stamps.sum((2, 3))),
            flux_cov=self._flux_cov(),
            shapes=self._shapes(),
            converged=((flags & measure.NOT_CONVERGED) == 0) & settled,
            beyond_prior=(flags & measure.BEYOND_PRIOR) > 0,
            taken=(flags & measure.TAKEN_AS_POINT) > 0,
        )
        whole = builder.build(self.scene, fit, self._facts() | {"walltime": seconds})
        return self._sampled(whole) if self._deviations else whole

    @property
    def _ordered(self) -> list[Own]:
        """The results in the order of the parts."""
        return [self.results[number] for number in range(len(self.parts))]

    def _flux_cov(self) -> np.ndarray:
        """(C,K,K), 0 between sources of different parts."""
        count = len(self.scene.sources)
        full = np.zeros((len(self.scene.bands), count, count))
        for part, one in zip(self.parts, self._ordered, strict=True):
            rows = part.rows[part.own]
            full[:, rows[:, None], rows] = one.flux_cov
        return full

    def _facts(self) -> builder.Facts:
        """Gather the headers: what all parts have in common, and the largest, least or mean of numbers."""
        headers = [one.header for one in self._ordered]
        facts: builder.Facts = {name: headers[0][name] for name in SHARED if name in headers[0]}
        for join, names in ((max, LARGEST), (min, SMALLEST), (np.mean, MEAN)):
            for name in names:
                if name in headers[0]:
                    value: Any = join([header[name] for header in headers])
                    facts[name] = value
        return facts | {"parts": len(self.parts)}

    def _sampled(self, whole: Deblended) -> Deblended:
        """Complete the result by what only samples tell."""
        deviation = replace(whole.light, pixels=tuple(self._deviations[row] for row in range(len(self._pixels))))
        header = {name: value for name, value in whole.header.items() if name != "converged"}
        return replace(
            whole,
            header=header,
            catalog=measure.with_chi2(whole.catalog, self._column("chi2"), whole.views),
            views=(replace(whole.views[0], light_std=deviation),),
            samples=self._stacked("samples", 1),
            sample_catalog=self._sample_catalog(),
            prior_share=self._stacked("prior_share", 0, np.nan),
        )

    def _sample_catalog(self) -> SampleCatalog:
        """Gather what the samples of each part say of its own sources; every part is a group."""
        flux, shapes, group = [], [], []
        for number, (part, one) in enumerate(zip(self.parts, self._ordered, strict=True)):
            found = one.sample_catalog
            assert found is not None
            flux.append(found.flux.swapaxes(0, 1)[part.own])
            shapes.append(found.shapes.swapaxes(0, 1)[part.own] + [*part.corner, 0, 0, 0])
            group.append(np.full(int(part.own.sum()), number))
        ordered = self._of_parts(flux).swapaxes(0, 1), self._of_parts(shapes).swapaxes(0, 1)
        return SampleCatalog(*ordered, group=self._of_parts(group))

    def _stacked(self, name: str, axis: int, empty: float = 0.0) -> np.ndarray | None:
        """Gather an array of the stamps' pixels, whose `axis` is that of the sources; `empty` where stamps end."""
        every = [getattr(one, name) for one in self._ordered]
        if any(one is None for one in every):
            return None
        side, count = max(one.shape[-1] for one in every), len(self.scene.sources)
        shape = (*every[0].shape[:axis], count, len(self.scene.bands), side, side)
        full = np.full(shape, empty, np.float32)
        for part, one in zip(self.parts, every, strict=True):
            own = one.shape[-1]
            full[(*[slice(None)] * axis, part.rows[part.own], ..., slice(own), slice(own))] = one
        return full

    def _shapes(self) -> measure.Shapes:
        names = "y", "x", "size", "e1", "e2"
        y, x, size, e1, e2 = (self._column(name) for name in names)
        corner = self._of_parts([np.tile(part.corner, (int(part.own.sum()), 1)) for part in self.parts])
        errors = np.stack([self._column(f"{name}_err") for name in names], 1)
        return measure.Shapes(y + corner[:, 0], x + corner[:, 1], size, e1, e2, errors)

    def _column(self, name: str) -> np.ndarray:
        """Gather (K,) a column of the catalogues."""
        return self._of_parts([np.asarray(one.catalog[name]) for one in self._ordered])

    def _of_parts(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """Order what the parts say of their own sources as the sources of the whole are."""
        order = np.argsort(np.concatenate([part.rows[part.own] for part in self.parts]))
        return np.concatenate(values)[order]

    def _observed(self, stamp: np.ndarray, corner: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
        """Convolve a stamp (C,P,P) of a model PSF of `sigma` pixels: its light as observed, and its window's corner."""
        psf, side = self.scene.observation.psf, stamp.shape[-1]
        border = max(psf.shape[1:]) // 2 + 1
        n = fast_fourier_size(side + 2 * border)
        padded = np.pad(stamp, ((0, 0), (border, n - side - border), (border, n - side - border)))
        light = scipy.fft.irfft2(scipy.fft.rfft2(padded) * self._transfer(sigma, n), s=(n, n))
        floor = INVISIBLE * np.minimum(self._noise, np.abs(light).max((1, 2)))
        return trimmed(light, corner - border, self.scene.observation.shape, floor)

    def _transfer(self, sigma: float, side: int) -> np.ndarray:
        if (sigma, side) not in self._transfers:
            found = transfer_function(self.scene.observation.psf.astype(float), sigma, side)
            self._transfers[sigma, side] = found.astype(np.complex64)
        return self._transfers[sigma, side]
