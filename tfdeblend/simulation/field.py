"""Fields: one wide image of galaxies and stars with their truth, any rectangle of which can be drawn by itself.

Nothing depends on how a field is cut into tiles. Objects are drawn by cells of the sky and noise by blocks of pixels,
each from a random stream of its own, and the whole light of an object falls into every tile that it reaches, in the
order of the catalogue. The laws, u and v being the place in the field, -1 to 1 from edge to edge:

* places: stars, and `1 - clustering` of the galaxies, are a Poisson process. The others are members of groups, a
  Neyman-Scott process (Neyman & Scott 1952): centres are a Poisson process, each with Poisson(4) members at Gaussian
  offsets of 10 arcsec (`MEMBERS`, `SPREAD`: round choices). With n galaxies in a unit of area pairs at distance r are
  more by w(r) = clustering MEMBERS exp(-r^2 / 4 SPREAD^2) / (4 pi SPREAD^2 n): 0.1 at small r for half of 60 galaxies
  an arcmin^2.
* galaxies: `parametric.Population`. Stars: counts rise as 10^(0.15 mag), a round choice, from `brightest_star` to
  the population's faint limit.
* PSF: FWHM(u, v) = FWHM_survey (1 + psf_variation p(u, v)); (e1, e2) = psf_ellipticity (q1, q2) / sqrt(2), of
  (a - b) / (a + b), e1 > 0 along x. An object has the PSF of its centre.
* noise: the sky's variance times 1 + depth_variation p(u, v), and the light's own.
* p, q1, q2: a polynomial of second order each, of every band: sum_t c_t t(u, v) over the terms u, v, u^2 - 1/3, u v,
  v^2 - 1/3, whose mean over the field is 0; the c_t are drawn, and scaled so that the largest value is 1.
* saturation: a pixel holds what the central one of a star of magnitude `saturation` has, in each band. The light of a
  star above that flows along its column, half up and half down, and fills pixel after pixel, at most 1,024 each way.
* bad pixels, in each band: columns, one in 2,000, and 20 discs of radius 1 to 8 pixels in a million. They read 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.special import gammaln

from tfdeblend.errors import DataError
from tfdeblend.io.masks import LSST
from tfdeblend.simulation.parametric import DISK, KNOTS, Galaxies, Population
from tfdeblend.simulation.rendering import LEAK, SIDES, Camera, Component
from tfdeblend.simulation.scenes import NOISE_REACH, NOISES, correlated
from tfdeblend.simulation.surveys import Colors, Survey

if TYPE_CHECKING:
    from astropy.wcs import WCS

CELL = 512  # pixels a side, of the squares by which objects are drawn
BLOCK = 256  # pixels a side, of the squares by which noise and holes are drawn
FIRST = 1 << 20  # number of cell and block 0 in the streams of random numbers, as some lie before the image
OBJECTS, NOISE, COLUMNS, HOLES, LAWS = range(5)  # streams
MEMBERS, SPREAD = 4.0, 10.0  # of a group: mean number, standard deviation of each coordinate in arcsec
TRUNCATED = 4.0  # times SPREAD, where offsets end
STAR_SLOPE = 0.15
LONGEST = 1024  # pixels that a star bleeds up and down
COLUMN_SHARE, HOLE_DENSITY, HOLE_RADIUS = 5e-4, 2e-5, (1.0, 8.0)  # of columns; in a pixel; pixels
INVISIBLE = 0.1  # of the sky's noise in a pixel: light fainter than that may be left out or wrap around
TERMS = ("U", "V", "UU", "UV", "VV")
SAT, BAD, NO_DATA = (1 << LSST.bits[name] for name in ("SAT", "BAD", "NO_DATA"))


@dataclass(frozen=True)
class FieldConfig:
    """Holds everything that a field depends on.

    Args:
        survey, population: what is seen, and of what; the population's `stars` are a share of all objects.
        side: pixels, 64 to 65,536.
        density: mean number of objects in a square arcmin.
        clustering: share of the galaxies that are in groups, 0 to 1.
        noise: "white", or "correlated" as by the resampling of a coadd (`scenes.noise_kernel`).
        center: right ascension and declination of the field's centre in degrees, away from the poles by 1 at least.
        saturation: AB magnitude of a star that fills its central pixel, in every band.
        brightest_star: i-band AB magnitude of the brightest star, at most 6 brighter than `saturation`.
        psf_variation: largest relative change of the PSF's width over the field, below 0.3.
        psf_ellipticity: largest ellipticity of the PSF, below 0.3.
        depth_variation: largest relative change of the sky's variance over the field, below 1.
        border: pixels at each edge without data.
        seed: of the random numbers.

    Raises:
        DataError: a value that cannot be used, by its name.
    """

    survey: Survey
    population: Population
    side: int = 4096
    density: float = 60.0
    clustering: float = 0.5
    noise: str = "white"
    center: tuple[float, float] = (150.0, 2.2)
    saturation: float = 18.0
    brightest_star: float = 14.0
    psf_variation: float = 0.05
    psf_ellipticity: float = 0.03
    depth_variation: float = 0.2
    border: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.population, Population):
            expected = "expected galaxies by their parameters, a parametric.Population"
            raise DataError("field", "population", f"{expected}, received {type(self.population).__name__}")
        if self.noise not in NOISES:
            raise DataError("field", "noise", f"expected {' or '.join(NOISES)}, received {self.noise!r}")
        spans: dict[str, tuple[float, float]] = {
            "side": (64, 65_536),
            "density": (0, 1000),
            "clustering": (0, 1),
            "saturation": (10, 32),
            "brightest_star": (self.saturation - 6, self.population.faint - 1),
            "psf_variation": (0, 0.3),
            "psf_ellipticity": (0, 0.3),
            "depth_variation": (0, 0.95),
            "border": (0, self.side // 4),
            "seed": (0, 2**63),
        }
        for name, (least, most) in spans.items():
            if not least <= getattr(self, name) <= most:
                expected = f"expected {least:g} to {most:g}"
                raise DataError("field", name, f"{expected}, received {getattr(self, name):g}")
        ra, dec = self.center
        if not (0 <= ra < 360 and abs(dec) <= 89):
            expected = "expected a right ascension of 0 to 360 and a declination of -89 to 89 degrees"
            raise DataError("field", "center", f"{expected}, received {ra:g}, {dec:g}")

    def stream(self, *numbers: int) -> np.random.Generator:
        """Returns the random stream of these numbers, independent of all others."""
        return np.random.default_rng([self.seed, *numbers])


class Box(NamedTuple):
    """A rectangle of pixels, its last row and column not included."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left

    def grown(self, by: int) -> Box:
        return Box(self.top - by, self.left - by, self.bottom + by, self.right + by)

    def squares(self, side: int) -> Iterator[tuple[int, int]]:
        """Yields the rows and columns of the squares of a side, counted from pixel (0, 0), that it touches."""
        for row in range(self.top // side, (self.bottom - 1) // side + 1):
            yield from ((row, column) for column in range(self.left // side, (self.right - 1) // side + 1))

    def overlap(self, other: Box) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
        """Returns the pixels that two rectangles share, as slices into each of them; None where they share none."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        bottom, right = min(self.bottom, other.bottom), min(self.right, other.right)
        if bottom <= top or right <= left:
            return None
        own, others = (
            (slice(top - box.top, bottom - box.top), slice(left - box.left, right - box.left)) for box in (self, other)
        )
        return own, others


def tiles(side: int, tile: int) -> list[Box]:
    """Cuts an image of `side` pixels into squares of `tile` pixels, smaller at its ends."""
    starts = range(0, side, tile)
    return [Box(y, x, min(y + tile, side), min(x + tile, side)) for y in starts for x in starts]


@dataclass(frozen=True, eq=False)
class Law:
    """A polynomial of second order over the field in each of C bands: `coefficients` (C, 5) of TERMS."""

    coefficients: np.ndarray
    side: int

    @classmethod
    def draw(cls, rng: np.random.Generator, bands: int, side: int, largest: float) -> Law:
        """Draws a polynomial for each band whose absolute value over the field is `largest` at most, and there once."""
        law = cls(rng.uniform(-1, 1, (bands, len(TERMS))), side)
        grid = np.linspace(0, side - 1, 65)
        most = np.abs(law(grid[:, None], grid)).max((1, 2))
        return cls(law.coefficients * (largest / most)[:, None], side)

    def __call__(self, y: Any, x: Any) -> np.ndarray:
        """Returns the values (C, ...) at pixels (y, x)."""
        v, u = (2 * np.asarray(place) / (self.side - 1) - 1 for place in (y, x))
        terms = np.stack(np.broadcast_arrays(u, v, u**2 - 1 / 3, u * v, v**2 - 1 / 3))
        return np.einsum("ct,t...->c...", self.coefficients, terms)


@dataclass(frozen=True, eq=False)
class Objects:
    """N galaxies and stars with their places.

    Args:
        y, x: (N,) pixels.
        galaxies: what they are.
        reach: (N,) arcsec that the light reaches, where it is bright enough to be seen.
        sharp: (N,) bool, so bright that the finer camera draws them.
        half: (N,) pixels from the centre to the edge of their images.
        trail: (N,) pixels by which bleeding columns may reach beyond their images.
    """

    y: np.ndarray
    x: np.ndarray
    galaxies: Galaxies
    reach: np.ndarray
    sharp: np.ndarray
    half: np.ndarray
    trail: np.ndarray

    def __len__(self) -> int:
        return len(self.y)

    def near(self, box: Box) -> np.ndarray:
        """Returns the rows of the objects whose image or bleeding columns may reach a rectangle."""
        high = self.half + self.trail + 1
        rows = (self.y + high >= box.top) & (self.y - high <= box.bottom)
        columns = (self.x + self.half + 1 >= box.left) & (self.x - self.half - 1 <= box.right)
        return np.flatnonzero(rows & columns)


class Tile(NamedTuple):
    """A rectangle of a field in C bands, in electrons: `light` is noiseless and unsaturated."""

    box: Box
    images: np.ndarray  # (C,h,w) float32
    masks: np.ndarray  # (C,h,w) int32, bits of `io.masks.LSST`
    variances: np.ndarray  # (C,h,w) float32
    light: np.ndarray  # (C,h,w) float64


class Field:
    """Draws the tiles and the truth of one configuration."""

    def __init__(self, config: FieldConfig) -> None:
        self.config = config
        self.survey = config.survey
        self.bands = len(config.survey.bands)
        self.zeropoints = np.array(config.survey.flux_zeropoints)
        self.objects = lru_cache(maxsize=512)(self._objects)

    @cached_property
    def wcs(self) -> WCS:
        """The gnomonic projection (TAN) around the field's centre, north up and east to the left."""
        from astropy.wcs import WCS

        wcs = WCS(naxis=2)
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        wcs.wcs.cunit = ["deg", "deg"]
        wcs.wcs.crval = self.config.center
        wcs.wcs.crpix = [(self.config.side + 1) / 2] * 2
        degrees = self.survey.pixel_scale / 3600
        wcs.wcs.cdelt = [-degrees, degrees]
        wcs.wcs.radesys = "ICRS"
        wcs.wcs.set()
        return wcs

    @cached_property
    def colors(self) -> Colors:
        return Colors.of(self.survey.throughputs)

    @cached_property
    def laws(self) -> dict[str, Law]:
        """The laws of the PSF's FWHM, its ellipticity E1 and E2, and of the sky's variance, DEPTH."""
        config, half = self.config, self.config.psf_ellipticity / np.sqrt(2)
        largest = {"FWHM": config.psf_variation, "E1": half, "E2": half, "DEPTH": config.depth_variation}
        return {
            name: Law.draw(config.stream(LAWS, number), self.bands, config.side, value)
            for number, (name, value) in enumerate(largest.items())
        }

    @cached_property
    def camera(self) -> Camera:
        """Bounds all PSFs of the field by the sharpest and the widest of each band, which are round."""
        psfs = [self._psf(base, factor, 0.0, 0.0) for factor in self._extremes for base in self._bases]
        return Camera(psfs, self.survey.pixel_scale)

    @cached_property
    def sharp_camera(self) -> Camera:
        """For bright objects: its errors are a hundredth of the other's."""
        return replace(self.camera, leak=LEAK / 100)

    @property
    def _extremes(self) -> tuple[float, float]:
        """Width of the sharpest and the widest PSF along any direction, of that of the survey's."""
        change, e = self.config.psf_variation, self.config.psf_ellipticity
        stretch = ((1 + e) / (1 - e)) ** 0.5
        return (1 - change) / stretch, (1 + change) * stretch

    @cached_property
    def _bases(self) -> list[Any]:
        return self.survey.psfs()

    def _psf(self, base: Any, factor: float, e1: float, e2: float) -> Any:
        import galsim

        return galsim.Convolve(base.dilate(factor).shear(g1=e1, g2=e2), galsim.Pixel(self.survey.pixel_scale))

    def psf_shape(self, y: Any, x: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns FWHM (arcsec, without the pixel), e1 and e2 of the PSF, each (C, ...), at pixels (y, x)."""
        fwhm = np.array(self.survey.psf_fwhm).reshape(-1, *[1] * np.ndim(y))
        return fwhm * (1 + self.laws["FWHM"](y, x)), self.laws["E1"](y, x), self.laws["E2"](y, x)

    def psfs(self, y: float, x: float) -> list[Any]:
        """Returns the C PSFs at a pixel as GalSim profiles, averaged over pixels."""
        fwhm, e1, e2 = self.psf_shape(y, x)
        factor = fwhm / np.array(self.survey.psf_fwhm)
        return [self._psf(*each) for each in zip(self._bases, *np.stack([factor, e1, e2]).tolist(), strict=True)]

    def psf_images(self, y: float, x: float, side: int) -> np.ndarray:
        """Draws the PSFs (C, side, side) at a pixel of the field, centred on their middle pixel, summing to 1."""
        middle = side // 2
        images = self.sharp_camera.draw([self._point(self.bands)], middle, middle, (side, side), self.psfs(y, x))
        return images / images.sum((1, 2), keepdims=True)

    def _point(self, bands: int) -> Component:
        import galsim

        return Component(galsim.DeltaFunction(), np.ones(bands), 0.0)

    @cached_property
    def _sharpest(self) -> np.ndarray:
        """(2,C) shares of a star's light in its brightest pixel and in its brightest column, of the sharpest PSF."""
        images = self.sharp_camera.draw([self._point(2 * self.bands)], 32, 32, (65, 65))[: self.bands]
        return np.stack([images.max((1, 2)), images.sum(1).max(1)])

    @cached_property
    def levels(self) -> np.ndarray:
        """(C,) electrons that a pixel holds: of the central pixel of a star, under the survey's PSF."""
        camera = Camera([self._psf(base, 1.0, 0.0, 0.0) for base in self._bases], self.survey.pixel_scale)
        peak = camera.draw([self._point(self.bands)], 32, 32, (65, 65)).max((1, 2))
        return peak * 10 ** (0.4 * (self.zeropoints - self.config.saturation))

    @cached_property
    def _invisible(self) -> np.ndarray:
        """(C,) electrons in a pixel."""
        return INVISIBLE * np.sqrt(np.array(self.survey.sky_variance))

    @cached_property
    def _wings(self) -> tuple[np.ndarray, np.ndarray]:
        """Radii in arcsec, falling, and the logarithm of the largest share of light in a pixel from there outwards."""
        radii = np.geomspace(0.01, 300, 600)
        shares = np.zeros(len(radii))
        for base in self._bases:
            profile = base.dilate(self._extremes[1])
            shares = np.maximum(shares, [profile.xValue(r, 0) * self.survey.pixel_scale**2 for r in radii])
        outside = np.maximum.accumulate(shares[::-1])  # of profiles with rings, too
        return radii[::-1], np.log(np.maximum(outside, 1e-300))

    def reach(self, galaxies: Galaxies) -> np.ndarray:
        """Returns how far (N,) in arcsec the light of objects is brighter than INVISIBLE, beside the PSF's own reach.

        Of a Sersic profile it is where I_e exp(-b ((r / r_e)^(1/n) - 1)) falls below it, b = 2 n - 1/3 + 4 / (405 n)
        (Ciotti & Bertin 1999); of the PSF's wings where the whole light as a point does.
        """
        flux, n = galaxies.flux[:, : DISK + 1], galaxies.index
        g = np.hypot(galaxies.shear[..., 0], galaxies.shear[..., 1])
        lit = np.any(flux, axis=-1) & ~galaxies.is_star[:, None]
        major = galaxies.radius * np.sqrt((1 + g) / (1 - g))
        b = 2 * n - 1 / 3 + 4 / (405 * n)
        radius = np.where(lit, galaxies.radius, 1.0)
        share = np.exp(2 * n * np.log(b) - b - gammaln(2 * n)) / (2 * np.pi * n * radius**2)
        contrast = (flux / self._invisible).max(-1) * share * self.survey.pixel_scale**2
        seen = (1 + np.log(np.maximum(contrast, 1e-300)) / b).clip(0) ** n
        sersic = np.where(lit, major * np.maximum(seen, 3 + n), 0).max(1)
        knotty = (galaxies.knot_flux > 0) & np.any(galaxies.flux[:, KNOTS], axis=-1)[:, None]
        offset = np.hypot(galaxies.knot_offset[..., 0], galaxies.knot_offset[..., 1]) + 4 * galaxies.knot_sigma
        radii, shares = self._wings
        total = (galaxies.flux.sum(1) / self._invisible).max(-1)
        wings = np.interp(-np.log(np.maximum(total, 1e-300)), shares, radii, right=0.0)
        core = self.camera.reach  # grids extend that far beyond a profile as it is
        return np.max([sersic, np.where(knotty, offset, 0).max(1), wings - core, np.zeros(len(galaxies))], 0)

    def _objects(self, row: int, column: int) -> Objects:
        """Draws the objects of a cell: those of its groups lie around it, too; none lies outside the image."""
        config, survey = self.config, self.survey
        rng, scale = config.stream(OBJECTS, FIRST + row, FIRST + column), survey.pixel_scale
        stars = config.population.stars
        mean = config.density * (CELL * scale / 60) ** 2  # of objects
        single, starry = rng.poisson(mean * (1 - stars) * (1 - config.clustering)), rng.poisson(mean * stars)
        sizes = rng.poisson(MEMBERS, rng.poisson(mean * (1 - stars) * config.clustering / MEMBERS))
        offsets = np.clip(rng.normal(size=(sizes.sum(), 2)), -TRUNCATED, TRUNCATED) * SPREAD / scale
        groups = np.repeat(rng.random((len(sizes), 2)), sizes, axis=0) * CELL + offsets
        alone = rng.random((single + starry, 2)) * CELL
        places = np.concatenate([groups, alone]) + np.array([row * CELL - 0.5, column * CELL - 0.5])
        galaxies = replace(config.population, stars=0.0)
        star = replace(galaxies, bright=config.brightest_star, slope=STAR_SLOPE, stars=1.0)
        drawn = [
            population.draw(rng, number, self.colors, self.zeropoints, survey.bands)
            for population, number in ((galaxies, len(groups) + single), (star, starry))
        ]
        inside = np.all((places >= -0.5) & (places < config.side - 0.5), axis=1)
        kept = _joined(drawn).take(inside)
        y, x = places[inside].T
        reach, total = self.reach(kept), kept.flux.sum(1)
        peak, line = self._sharpest
        sharp = (total * peak * LEAK > self._invisible).any(-1)
        bled = np.where(kept.is_star, (total * line / self.levels).max(-1), 0) * (total * peak > self.levels).any(-1)
        cameras = (self.camera, self.sharp_camera)
        half = [cameras[fine].grid(far).side // 2 for fine, far in zip(sharp.tolist(), reach.tolist(), strict=True)]
        trail = np.minimum(np.ceil(bled / 2), LONGEST)
        return Objects(y, x, kept, reach, sharp, np.array(half, int), trail)

    @cached_property
    def _cells(self) -> Box:
        """The cells whose objects may lie in the image."""
        around = int(np.ceil(TRUNCATED * SPREAD / self.survey.pixel_scale / CELL))
        return Box(0, 0, *[-(-self.config.side // CELL)] * 2).grown(around)

    def _cells_near(self, box: Box) -> Iterator[tuple[int, int]]:
        """Yields the cells some of whose objects may be seen in a rectangle, in the order of the catalogue."""
        across = SIDES[-1] // 2 + int(np.ceil(TRUNCATED * SPREAD / self.survey.pixel_scale)) + 1
        high = max(across, SIDES[-1] // 2 + LONGEST + 1)
        around, cells = Box(box.top - high, box.left - across, box.bottom + high, box.right + across), self._cells
        for row, column in around.squares(CELL):
            if cells.top <= row < cells.bottom and cells.left <= column < cells.right:
                yield row, column

    def light(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """Draws the noiseless light (C,h,w) in a rectangle, and the pixels (C,h,w) into which saturated stars bleed."""
        light, bled = np.zeros((self.bands, *box.shape)), np.zeros((self.bands, *box.shape), bool)
        for cell in self._cells_near(box):
            objects = self.objects(*cell)
            for row in objects.near(box):
                where, image = self._image(objects, int(row))
                if shared := box.overlap(where):
                    light[:, *shared[0]] += image[:, *shared[1]]
                if objects.trail[row]:
                    for band, trail in self._trails(where, image):
                        if shared := box.overlap(trail):
                            bled[band][shared[0]] = True
        return light, bled

    def _image(self, objects: Objects, row: int) -> tuple[Box, np.ndarray]:
        """Draws an object's whole image (C, S, S), the same in all tiles, and says where it lies."""
        y, x, reach = (float(values[row]) for values in (objects.y, objects.x, objects.reach))
        camera = self.sharp_camera if objects.sharp[row] else self.camera
        side = camera.grid(reach).side
        top, left = (int(np.floor(place + 0.5)) - side // 2 for place in (y, x))
        parts = [part._replace(reach=reach) for part in objects.galaxies.components(row)]
        image = camera.draw(parts, y - top, x - left, (side, side), self.psfs(y, x))
        return Box(top, left, top + side, left + side), image

    def _trails(self, where: Box, image: np.ndarray) -> Iterator[tuple[int, Box]]:
        """Yields band and pixels of the columns that the light above the level of a star's image fills."""
        excess = np.maximum(image - self.levels[:, None, None], 0)
        for band, column in zip(*np.nonzero(excess.any(1)), strict=True):
            rows = np.flatnonzero(excess[band, :, column])
            filled = min(int(np.ceil(excess[band, :, column].sum() / self.levels[band])), 2 * LONGEST)
            top, left = where.top + rows[0] - filled // 2, where.left + column
            yield (
                int(band),
                Box(int(top), int(left), int(where.top + rows[-1] + 1 + filled - filled // 2), int(left) + 1),
            )

    def noise(self, box: Box) -> np.ndarray:
        """Draws noise (C,h,w) of unit variance."""
        wanted = box if self.config.noise == "white" else box.grown(NOISE_REACH)
        white = np.empty((self.bands, *wanted.shape), np.float32)
        for row, column in wanted.squares(BLOCK):
            rng = self.config.stream(NOISE, FIRST + row, FIRST + column)
            block = Box(row * BLOCK, column * BLOCK, (row + 1) * BLOCK, (column + 1) * BLOCK)
            ours, theirs = wanted.overlap(block)  # type: ignore[misc]
            white[:, *ours] = rng.standard_normal((self.bands, BLOCK, BLOCK), np.float32)[:, *theirs]
        return white if self.config.noise == "white" else correlated(white)

    def bad_pixels(self, box: Box) -> np.ndarray:
        """Draws which pixels (C,h,w) are in bad columns or holes."""
        bad = np.empty((self.bands, *box.shape), bool)
        rng = self.config.stream(COLUMNS)
        bad[:] = (rng.random((self.bands, self.config.side)) < COLUMN_SHARE)[:, None, box.left : box.right]
        y, x = np.arange(box.top, box.bottom)[:, None], np.arange(box.left, box.right)
        for row, column in box.grown(int(HOLE_RADIUS[1])).squares(BLOCK):
            rng = self.config.stream(HOLES, FIRST + row, FIRST + column)
            for band, count in enumerate(rng.poisson(HOLE_DENSITY * BLOCK**2, self.bands)):
                for cy, cx in (rng.random((count, 2)) + np.array([row, column])) * BLOCK:
                    bad[band] |= (y - cy) ** 2 + (x - cx) ** 2 < rng.uniform(*HOLE_RADIUS) ** 2
        return bad

    def tile(self, box: Box) -> Tile:
        """Draws a rectangle of the field."""
        light, bled = self.light(box)
        rows, columns = np.arange(box.top, box.bottom)[:, None], np.arange(box.left, box.right)
        level = self.levels[:, None, None]
        sky = np.array(self.survey.sky_variance)[:, None, None] * (1 + self.laws["DEPTH"](rows, columns))
        variances = sky + np.clip(light, 0, level)
        images = light + self.noise(box) * np.sqrt(variances)
        full = bled | (images >= level)
        images = np.where(full, level, images)
        bad = self.bad_pixels(box)
        images[bad] = 0
        masks = (SAT * full + BAD * bad).astype(np.int32)
        edge = self.config.border
        inside = [(at >= edge) & (at < self.config.side - edge) for at in (rows, columns)]
        outside = ~(inside[0] & inside[1])
        images[:, outside], variances[:, outside], masks[:, outside] = np.nan, np.nan, NO_DATA
        return Tile(box, images.astype(np.float32), masks, variances.astype(np.float32), light)

    def catalog(self) -> Iterator[Objects]:
        """Yields all objects of the field, cell by cell in the order of the catalogue."""
        for cell in self._cells.squares(1):
            yield self._objects(*cell)


def _joined(parts: list[Galaxies]) -> Galaxies:
    return Galaxies(
        **{field.name: np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(Galaxies)}
    )


@lru_cache(maxsize=1)
def field_of(config: FieldConfig) -> Field:
    """Returns the field of a configuration; a process that draws many of its tiles keeps it."""
    return Field(config)
