"""A simulated object before it is observed, and the circumstances of its observation."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from skyheed.classifier.sky.conditions import Visits
from skyheed.classifier.sky.galaxies import Galaxy
from skyheed.classifier.sky.psf import noise_area
from skyheed.classifier.sky.spectra import Array, njy_to_magnitude
from skyheed.classifier.sky.surveys import Survey
from skyheed.classifier.sky.type_ia import IaTemplate

DETECTION = 5.0  # standard deviations


@dataclass(frozen=True)
class Sight:
    """One position, as observed by a survey during a season.

    Attributes:
        dust: E(B-V) of the Milky Way.
        limit: r magnitude at maximum; fainter objects are not drawn.
        template: spectral template of SNe Ia.
        kind: kind of variable star to draw.
        b: absolute galactic latitude, degrees.
    """

    survey: Survey
    visits: Visits
    dust: float
    limit: float
    template: IaTemplate
    kind: str = ""
    b: float = 60.0

    @property
    def wavelengths(self) -> Array:
        """Effective wavelengths of the bands, Angstrom."""
        return np.array([band.wavelength for band in self.survey.bands.values()])

    @property
    def through(self) -> Array:
        """Milky-Way dust transmission, by band."""
        return band_transmission(self.survey, self.dust)


@dataclass(frozen=True)
class Target:
    """A simulated object.

    Attributes:
        flux: [n] nJy, of the point source in each exposure; reference: [n], its flux in the template.
        host: galaxy and its position (west, north) in arcsec, if there is one.
        bright: r magnitude at its brightest, which decides about spectra.
    """

    label: str
    type: str
    redshift: float
    peak_mjd: float
    flux: Array
    reference: Array
    host: tuple[Galaxy, float, float] | None
    bright: float
    facts: dict[str, Any]


def band_transmission(survey: Survey, dust: float) -> Array:
    """Milky-Way dust transmission, by band."""
    return np.asarray(10 ** (-0.4 * dust * np.array([band.extinction for band in survey.bands.values()])))


def depth(survey: Survey) -> float:
    """r magnitude of a point source at the detection limit of a typical visit."""
    band = survey.bands["r"]
    error = survey.error_scale * band.sky_noise * float(np.sqrt(noise_area(band.seeing, survey.pixel)))
    return float(njy_to_magnitude(DETECTION * error))


def draw_magnitude(rng: np.random.Generator, bright: float, faint: float, slope: float) -> float:
    """A magnitude between two limits, with N(m) ~ 10^(slope m)."""
    return float(bright + np.log10(rng.random() * (10 ** (slope * (faint - bright)) - 1) + 1) / slope)
