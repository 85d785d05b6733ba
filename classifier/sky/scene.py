"""What else is in a stamp: the host, and stars and galaxies beside it."""

import numpy as np

from skyheed.classifier.sky import galaxies, stars
from skyheed.classifier.sky.render import Source
from skyheed.classifier.sky.spectra import Array, distance_modulus, magnitude_to_njy
from skyheed.classifier.sky.surveys import Survey
from skyheed.classifier.sky.targets import Target, band_transmission, draw_magnitude

# Number of neighbours brighter than r = 23 per square arcmin, and the slope of log N(m) (Yasuda et al. 2001, AJ 122,
# 1104: galaxies; stars at high latitude added), and the share of stars among them.
NEIGHBOURS, COUNT_SLOPE, STAR_SHARE = 14.0, 0.30, 0.35
BRIGHTEST, FAINTEST = 12.0, 23.0
NO_GALAXY = 17.0  # neighbours brighter than this are stars
REACH = 1.25  # stamp sides within which neighbours shed light into the stamp


def surroundings(rng: np.random.Generator, survey: Survey, target: Target, dust: float) -> list[Source]:
    """The host, and neighbours near enough to shed light into the stamp."""
    through = band_transmission(survey, dust)
    sources: list[Source] = []
    if target.host is not None:
        sources += galaxy_sources(*target.host, through)
    side = survey.size * survey.pixel * REACH / 60
    for _ in range(rng.poisson(NEIGHBOURS * side**2)):
        west, north = rng.uniform(-0.5, 0.5, 2) * side * 60
        magnitude = draw_magnitude(rng, BRIGHTEST, FAINTEST, COUNT_SLOPE)
        sources += _neighbour(rng, survey, float(west), float(north), magnitude, through)
    return sources


def galaxy_sources(galaxy: galaxies.Galaxy, west: float, north: float, through: Array) -> list[Source]:
    """Bulge and disc of a galaxy as sources."""
    shares = (galaxy.bulge, 1 - galaxy.bulge)
    return [
        Source(west, north, galaxy.fluxes * through * share, profile)
        for share, profile in zip(shares, galaxy.profiles, strict=True)
        if share > 0.01
    ]


def _neighbour(
    rng: np.random.Generator, survey: Survey, west: float, north: float, magnitude: float, through: Array
) -> list[Source]:
    red = list(survey.bands).index("r")
    if magnitude < NO_GALAXY or rng.random() < STAR_SHARE:
        colour = np.clip(rng.normal(0.8, 0.4), 0.2, 1.5)
        wavelengths = np.array([band.wavelength for band in survey.bands.values()])
        nodes = magnitude + np.array([colour * 2.4 + 0.2, colour, 0.0, -0.45 * colour, -0.65 * colour])
        return [Source(west, north, magnitude_to_njy(np.interp(wavelengths, stars.NODES, nodes)))]
    redshift = float(np.clip(0.09 * 10 ** (0.15 * (magnitude - 17)) * np.exp(rng.normal(0, 0.3)), 0.01, 1.0))
    kind = str(rng.choice(list(galaxies.SPECTRA), p=(0.2, 0.35, 0.35, 0.1)))
    absolute = magnitude - float(distance_modulus(redshift))
    galaxy = galaxies.make_galaxy(rng, survey, kind, redshift, float(np.clip(absolute, -23, -14)))
    scale = float(magnitude_to_njy(magnitude)) / galaxy.fluxes[red]
    return [Source(s.west, s.north, s.fluxes * scale, s.profile) for s in galaxy_sources(galaxy, west, north, through)]
