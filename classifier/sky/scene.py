"""Other sources in a stamp: the host, and nearby stars and galaxies."""

from dataclasses import dataclass

import numpy as np

from skyheed.classifier.sky import galaxies, stars
from skyheed.classifier.sky.populations import population_of, star_density
from skyheed.classifier.sky.render import Source
from skyheed.classifier.sky.spectra import Array, distance_modulus, magnitude_to_njy
from skyheed.classifier.sky.surveys import Survey
from skyheed.classifier.sky.targets import Target, band_transmission, draw_magnitude

# Number of neighbours brighter than r = 23 per square arcmin, and the slope of log N(m) (Yasuda et al. 2001, AJ 122,
# 1104: galaxies; stars at high latitude added), and the share of stars among them.
NEIGHBOURS, COUNT_SLOPE, STAR_SHARE = 14.0, 0.30, 0.35
BRIGHTEST, FAINTEST = 12.0, 23.0
FAINTEST_CROWD = 21.5  # of the stars added at low galactic latitudes; fainter ones are part of the sky's noise
STAR_SLOPE = 0.20  # of log N(m) of stars of the disc between r = 14 and 21 (Bahcall & Soneira 1980, ApJS 44, 73)
NO_GALAXY = 17.0  # neighbours brighter than this are stars
REACH = 1.25  # stamp sides within which neighbours contribute light to the stamp
FAR = 60.0  # arcsec: side of the field in which a catalogue lists neighbours


@dataclass(frozen=True)
class Content:
    """A constant object in the field: a star, or a galaxy.

    Attributes:
        west, north: arcsec from the variable source.
        fluxes: [bands] nJy, after Galactic extinction.
        galaxy: its shape; None for a star.
    """

    west: float
    north: float
    fluxes: Array
    galaxy: galaxies.Galaxy | None = None

    def sources(self) -> list[Source]:
        """The rendered components: a point, or bulge and disc."""
        if self.galaxy is None:
            return [Source(self.west, self.north, self.fluxes)]
        shares = (self.galaxy.bulge, 1 - self.galaxy.bulge)
        return [
            Source(self.west, self.north, self.fluxes * share, profile)
            for share, profile in zip(shares, self.galaxy.profiles, strict=True)
            if share > 0.01
        ]


def surroundings(rng: np.random.Generator, survey: Survey, target: Target, dust: float) -> list[Source]:
    """The host, and neighbours close enough to contribute light to the stamp."""
    return drawn(survey, contents(rng, survey, target, dust))


def drawn(survey: Survey, field: list[Content]) -> list[Source]:
    """The sources of a field that contribute light to the stamp."""
    reach = survey.size * survey.pixel * REACH / 2
    near = [each for each in field if each.galaxy or max(abs(each.west), abs(each.north)) <= reach]
    return [source for each in near for source in each.sources()]


def contents(rng: np.random.Generator, survey: Survey, target: Target, dust: float, b: float = 60.0) -> list[Content]:
    """The host and neighbours of an object at an absolute galactic latitude `b`, degrees."""
    through = band_transmission(survey, dust)
    field: list[Content] = []
    if target.host is not None:
        galaxy, west, north = target.host
        field.append(Content(west, north, galaxy.fluxes * through, galaxy))
    side = survey.size * survey.pixel * REACH / 60
    if population_of(survey).latitude:
        side = max(side, FAR / 60)
    for _ in range(rng.poisson(NEIGHBOURS * side**2)):
        west, north = rng.uniform(-0.5, 0.5, 2) * side * 60
        magnitude = draw_magnitude(rng, BRIGHTEST, FAINTEST, COUNT_SLOPE)
        field.append(_neighbour(rng, survey, float(west), float(north), magnitude, through))
    if population_of(survey).latitude:
        field += _crowd(rng, survey, side * 60, through, b)
    return field


def _crowd(rng: np.random.Generator, survey: Survey, side: float, through: Array, b: float) -> list[Content]:
    """The stars added at galactic latitudes below 60 degrees, in a square with this side in arcsec."""
    at_high_latitude = NEIGHBOURS * STAR_SHARE * 10 ** (COUNT_SLOPE * (FAINTEST_CROWD - FAINTEST))
    more = max(star_density(b) - 1, 0) * at_high_latitude * (side / 60) ** 2
    field = []
    for _ in range(rng.poisson(more)):
        west, north = rng.uniform(-0.5, 0.5, 2) * side
        magnitude = draw_magnitude(rng, BRIGHTEST, FAINTEST_CROWD, STAR_SLOPE)
        field.append(_star(rng, survey, float(west), float(north), magnitude))
    return field


def _star(rng: np.random.Generator, survey: Survey, west: float, north: float, magnitude: float) -> Content:
    colour = np.clip(rng.normal(0.8, 0.4), 0.2, 1.5)
    wavelengths = np.array([band.wavelength for band in survey.bands.values()])
    nodes = magnitude + np.array([colour * 2.4 + 0.2, colour, 0.0, -0.45 * colour, -0.65 * colour])
    return Content(west, north, magnitude_to_njy(np.interp(wavelengths, stars.NODES, nodes)))


def _neighbour(
    rng: np.random.Generator, survey: Survey, west: float, north: float, magnitude: float, through: Array
) -> Content:
    red = list(survey.bands).index("r")
    if magnitude < NO_GALAXY or rng.random() < STAR_SHARE:
        return _star(rng, survey, west, north, magnitude)
    redshift = float(np.clip(0.09 * 10 ** (0.15 * (magnitude - 17)) * np.exp(rng.normal(0, 0.3)), 0.01, 1.0))
    kind = str(rng.choice(list(galaxies.SPECTRA), p=(0.2, 0.35, 0.35, 0.1)))
    absolute = magnitude - float(distance_modulus(redshift))
    galaxy = galaxies.make_galaxy(rng, survey, kind, redshift, float(np.clip(absolute, -23, -14)))
    scale = float(magnitude_to_njy(magnitude)) / galaxy.fluxes[red]
    return Content(west, north, galaxy.fluxes * through * scale, galaxy)
