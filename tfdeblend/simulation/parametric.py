"""A population of galaxies: bulge, disk and star-forming knots, each with its own size, shape and colours; and stars.

Relations, each a function below, with its source; what has none is called a round choice:

* counts rise as 10^(0.31 mag); redshifts follow z^2 exp(-z / z0), z0 = 0.0417 mag - 0.744: LSST Science Book 2009
  (arXiv:0912.0201), section 3.7, for 20.5 < i < 25.5; brighter than that z0 stays at 0.05, a round choice.
* disk scale lengths (along the major axis) have the median exp(-1.145 - 0.269 (mag - 23)) arcsec, and disks and bulges
  have ellipticities as Miller et al. 2013 (arXiv:1210.8201, appendix B) find; a bulge's half-light radius is about the
  disk's scale length there, as here. Scatter of 0.22 and 0.2 dex: round choices, below that article's for small sizes.
* bulge fractions: a half Gaussian of width 0.1 around 0, and 10% of galaxies that are all bulge (as there) at the
  faint end; their share rising to 40% at mag 18 and their disk of up to 30%: round choices.
* Sersic indices of disks 1 +- 0.25, of bulges around 3.6 and pseudo-bulges around 1.8, knots and spiral arms, and all
  scatters of colour: round choices, compared by eye with HST and HSC images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from tfdeblend.errors import DataError
from tfdeblend.simulation.rendering import Component, Knots
from tfdeblend.simulation.surveys import Colors

BULGE, DISK, KNOTS = range(3)
MAX_KNOTS = 24
KINDS = ("disk", "early", "star")
DISK_STEPS, BULGE_STEPS = 0.2, 0.5  # Sersic indices are rounded: each costs GalSim a table


@dataclass(frozen=True, eq=False)
class Galaxies:
    """N galaxies (and stars): arrays whose first axis is N. Lengths in arcsec, y and x along the second-last axis."""

    kind: np.ndarray  # (N,) index into KINDS
    magnitude: np.ndarray  # (N,) AB, total, in the i band
    redshift: np.ndarray  # (N,)
    flux: np.ndarray  # (N, 3, C) of bulge, disk and knots, in each band's unit
    radius: np.ndarray  # (N, 2) half-light radius of bulge and disk, of the circle of equal area
    index: np.ndarray  # (N, 2) Sersic index of bulge and disk
    shear: np.ndarray  # (N, 2, 2) (g1, g2) of bulge and disk, abs(g) = (a - b) / (a + b), g1 > 0 along x
    knot_flux: np.ndarray  # (N, J) shares, summing to 1, or to 0 without knots
    knot_offset: np.ndarray  # (N, J, 2) (y, x) from the centre
    knot_sigma: np.ndarray  # (N, J) of round Gaussians

    def __len__(self) -> int:
        return len(self.kind)

    def take(self, rows: slice | np.ndarray) -> Galaxies:
        """Returns some of the galaxies."""
        return Galaxies(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    @property
    def is_star(self) -> np.ndarray:
        return self.kind == KINDS.index("star")

    def components(self, row: int) -> list[Component]:
        """Returns the components of one galaxy or star that have light."""
        import galsim

        flux = self.flux[row]
        if self.is_star[row]:
            return [Component(galsim.DeltaFunction(), flux[BULGE], 0.0)]
        found = [self._sersic(row, part) for part in (BULGE, DISK) if flux[part].any()]
        used = self.knot_flux[row] > 0
        if flux[KNOTS].any() and used.any():
            knots = Knots(self.knot_flux[row, used], self.knot_offset[row, used], self.knot_sigma[row, used])
            reach = np.abs(knots.offset).max() + 4 * knots.sigma.max()
            found.append(Component(knots, flux[KNOTS], float(reach)))
        return found

    def _sersic(self, row: int, part: int) -> Component:
        import galsim

        radius, index = float(self.radius[row, part]), float(self.index[row, part])
        g1, g2 = self.shear[row, part]
        profile = galsim.Sersic(index, half_light_radius=radius).shear(g1=g1, g2=g2)
        major = radius * np.sqrt((1 + np.hypot(g1, g2)) / (1 - np.hypot(g1, g2)))
        return Component(profile, self.flux[row, part], float(major * (3 + index)))

    def catalog(self, bands: tuple[str, ...]) -> np.ndarray:
        """Returns a structured array (N,) of magnitudes, shapes and fluxes.

        `radius` and `g1`, `g2` are means of bulge and disk (with its knots), weighted with their i-band light, or the
        band next to it; `flux_<band>` are total fluxes.
        """
        share = self.flux.mean(-1)[:, :2] + [0, 1] * self.flux.mean(-1)[:, 2:]
        share = share / share.sum(1, keepdims=True)
        total = self.flux.sum(1)
        columns = {
            "type": np.array(KINDS)[self.kind],
            "magnitude": self.magnitude,
            "redshift": self.redshift,
            "bulge_fraction": share[:, BULGE],
            "radius": (share * self.radius).sum(1),
            "g1": (share * self.shear[..., 0]).sum(1),
            "g2": (share * self.shear[..., 1]).sum(1),
            **{f"flux_{band}": total[:, b] for b, band in enumerate(bands)},
        }
        return structured(columns)


@dataclass(frozen=True)
class Population:
    """Draws galaxies and stars.

    Args:
        bright, faint: limits of the i-band AB magnitude.
        slope: of log10 of the counts, in a magnitude.
        stars: their share, 0 to 1.

    Raises:
        DataError: limits out of order, a share that is none.
    """

    bright: float = 18.0
    faint: float = 25.5
    slope: float = 0.31
    stars: float = 0.0

    def __post_init__(self) -> None:
        if not 10 <= self.bright < self.faint <= 32:
            received = f"received {self.bright:g} to {self.faint:g}"
            raise DataError("galaxies", "magnitude", f"expected a bright and a faint limit within 10 to 32, {received}")
        if not 0 <= self.stars <= 1:
            raise DataError("galaxies", "stars", f"expected a share from 0 to 1, received {self.stars:g}")
        if not 0 <= self.slope <= 1:
            raise DataError("galaxies", "slope", f"expected 0 to 1, received {self.slope:g}")

    def draw(
        self, rng: np.random.Generator, number: int, colors: Colors, zeropoints: np.ndarray, bands: Sequence[str] = ()
    ) -> Galaxies:
        """Draws `number` galaxies and stars, with fluxes in units of which `zeropoints` (C,) are the AB magnitudes.

        The names of the bands matter to real galaxies only, see `real_galaxies.RealPopulation`.
        """
        magnitude = self._magnitudes(rng, number)
        redshift = np.clip(rng.gamma(3, np.maximum(0.0417 * magnitude - 0.744, 0.05)), 0.01, 3.5)
        early = rng.random(number) < np.clip(0.10 + 0.05 * (24 - magnitude), 0.10, 0.40)
        radius, shear, index = _structure(rng, magnitude, early)
        shares = _shares(rng, early)
        relative = relative_magnitudes(rng, colors, magnitude, redshift, early)
        flux = shares[..., None] * 10 ** (0.4 * (zeropoints - magnitude[:, None, None] - relative))
        knot_flux, knot_offset, knot_sigma = _knots(rng, radius[:, 1], shear[:, 1])
        galaxies = Galaxies(
            early.astype(int), magnitude, redshift, flux, radius, index, shear, knot_flux, knot_offset, knot_sigma
        )
        is_star = rng.random(number) < self.stars
        r_minus_i = rng.gamma(2, 0.35, number)  # mostly red dwarfs at these magnitudes: a round choice
        relative = colors.star(r_minus_i) + colors.scatter(rng, (number,))
        starlight = 10 ** (0.4 * (zeropoints - magnitude[:, None] - relative))
        return _with_stars(galaxies, is_star, starlight)

    def _magnitudes(self, rng: np.random.Generator, number: int) -> np.ndarray:
        low, high = (10 ** (self.slope * limit) if self.slope else limit for limit in (self.bright, self.faint))
        drawn = rng.uniform(low, high, number)
        return np.log10(drawn) / self.slope if self.slope else drawn


def structured(columns: dict[str, np.ndarray]) -> np.ndarray:
    """Returns a structured array of columns (N,) by name."""
    table = np.empty(len(next(iter(columns.values()))), [(name, values.dtype) for name, values in columns.items()])
    for name, values in columns.items():
        table[name] = values
    return table


def _with_stars(galaxies: Galaxies, is_star: np.ndarray, starlight: np.ndarray) -> Galaxies:
    """Replaces some galaxies by stars: all their light in a "bulge" of no extent."""
    star = {field.name: getattr(galaxies, field.name).copy() for field in fields(galaxies)}
    star["kind"][is_star] = KINDS.index("star")
    star["flux"][is_star] = 0
    star["flux"][is_star, BULGE] = starlight[is_star]
    for name in ("redshift", "radius", "shear", "knot_flux"):
        star[name][is_star] = 0
    return Galaxies(**star)


def _structure(
    rng: np.random.Generator, magnitude: np.ndarray, early: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws radii (N,2), shears (N,2,2) and Sersic indices (N,2) of bulge and disk."""
    number = len(magnitude)
    median = np.exp(-1.145 - 0.269 * (magnitude - 23))
    length = np.clip(median * 10 ** rng.normal(0, 0.22, number), 0.04, 4.0)
    ellipticity = np.stack([_bulge_ellipticity(rng, number), _disk_ellipticity(rng, number)], axis=-1)
    ellipticity[~early, 0] = 0.5 * ellipticity[~early, 1]  # a disk's bulge is rounder than it
    angle = rng.uniform(0, np.pi, number)[:, None] + np.stack([rng.normal(0, 0.15, number), np.zeros(number)], -1)
    shear = ellipticity[..., None] * np.stack([np.cos(2 * angle), np.sin(2 * angle)], axis=-1)
    bulge = length * 10 ** rng.normal(0, 0.2, number) * np.where(early, 1, 0.6)  # 0.6 in a disk: a round choice
    major = np.stack([np.clip(bulge, 0.03, 3), 1.678 * length], axis=-1)
    radius = major * np.sqrt((1 - ellipticity) / (1 + ellipticity))
    classical = np.clip(3.6 * np.exp(rng.normal(0, 0.25, number)), 2, 5.5)
    pseudo = np.clip(1.8 * np.exp(rng.normal(0, 0.4, number)), 1, 4)
    index = np.where(early, classical, pseudo)
    disk_index = np.clip(rng.normal(1, 0.25, number), 0.6, 1.6)
    return radius, shear, np.stack([_rounded(index, BULGE_STEPS), _rounded(disk_index, DISK_STEPS)], axis=-1)


def _rounded(values: np.ndarray, step: float) -> np.ndarray:
    return np.round(np.round(values / step) * step, 3)


def _disk_ellipticity(rng: np.random.Generator, number: int) -> np.ndarray:
    """Draws (a - b) / (a + b) up to 0.804 by the equation for disks of Miller et al. 2013."""
    e = np.linspace(0, 0.804, 1000)
    density = e * (1 - np.exp((e - 0.804) / 0.2539)) / ((1 + e) * np.hypot(e, 0.0256))
    return _inverse(rng, e, density, number)


def _bulge_ellipticity(rng: np.random.Generator, number: int) -> np.ndarray:
    """Draws (a - b) / (a + b) by the equation for bulges of Miller et al. 2013."""
    e = np.linspace(0, 0.804, 1000)
    return _inverse(rng, e, e * np.exp(-2.368 * e - 6.691 * e**2), number)


def _inverse(rng: np.random.Generator, x: np.ndarray, density: np.ndarray, number: int) -> np.ndarray:
    total = np.cumsum(density)
    return np.interp(rng.random(number) * total[-1], total, x)


def _shares(rng: np.random.Generator, early: np.ndarray) -> np.ndarray:
    """Draws the shares (N,3) of bulge, disk and knots in the i-band light."""
    number = len(early)
    bulge = np.where(early, rng.uniform(0.7, 1, number), np.minimum(np.abs(rng.normal(0, 0.1, number)), 0.5))
    clumpy = ~early & (rng.random(number) < 0.7)
    knots = np.where(clumpy, (1 - bulge) * rng.beta(1.5, 7, number), 0)
    return np.stack([bulge, 1 - bulge - knots, knots], axis=-1)


def relative_magnitudes(
    rng: np.random.Generator, colors: Colors, magnitude: np.ndarray, redshift: np.ndarray, early: np.ndarray
) -> np.ndarray:
    """Draws magnitudes (N,3,C) of bulge, disk and knots minus their i-band magnitude.

    Disks are the bluer the fainter, and everything is bluer than today's templates where it was younger.
    """
    number = len(magnitude)
    young = 0.5 * np.maximum(redshift - 0.6, 0)
    disk = np.where(early, 0.4, 1.5 + 0.15 * (magnitude - 20)) + rng.normal(0, 0.5, number)
    bulge = np.where(early, 0.1, np.minimum(0.7, 0.6 * disk)) + rng.normal(0, 0.2, number)
    template = np.stack([bulge + young, disk + young, np.full(number, 3.0)], axis=-1)
    tilt = rng.normal(0, 0.2, (number, 1)) + rng.normal(0, 0.1, (number, 3)) - np.array([0, 0, 0.4])
    tilt -= 0.5 * np.maximum(template - 3, 0)  # bluer than the bluest template
    own = colors.scatter(rng, (number, 3))
    return colors.galaxy(template, redshift[:, None]) + colors.tilt(tilt) + own


def _knots(
    rng: np.random.Generator, radius: np.ndarray, shear: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws shares (N,J), offsets (N,J,2) and sigmas (N,J) of knots over the disk; in half of the galaxies on arms."""
    number = len(radius)
    shape = (number, MAX_KNOTS)
    used = np.arange(MAX_KNOTS) < rng.integers(6, MAX_KNOTS + 1, number)[:, None]
    distance = np.clip(rng.gamma(2, 1, shape), 0.3, 3)  # in scale lengths: an exponential disk's light
    share = np.where(used, rng.exponential(1, shape) * np.exp(-0.4 * distance), 0)
    winding = np.tan(rng.uniform(0.2, 0.5, number))[:, None]  # pitch of the spiral arms, radian
    turn = rng.choice([-1, 1], number)[:, None]
    arm = turn * np.log(distance) / winding + np.pi * rng.integers(0, 2, shape) + rng.normal(0, 0.3, shape)
    spiral = rng.random(number) < 0.5
    angle = np.where(spiral[:, None], arm, rng.uniform(0, 2 * np.pi, shape))
    round_offset = (distance * radius[:, None] / 1.678)[..., None] * np.stack([np.sin(angle), np.cos(angle)], axis=-1)
    g1, g2 = shear[:, None, 0], shear[:, None, 1]
    y, x = round_offset[..., 0], round_offset[..., 1]
    stretch = 1 / np.sqrt(1 - g1**2 - g2**2)
    offset = stretch[..., None] * np.stack([g2 * x + (1 - g1) * y, (1 + g1) * x + g2 * y], axis=-1)
    sigma = np.clip(radius[:, None] * rng.uniform(0.08, 0.25, shape), 0.01, 0.4)
    return share / share.sum(1, keepdims=True), offset, sigma
