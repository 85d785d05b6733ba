"""Skies under changed conditions, for models that are trained under conditions other than those of their use.

For experiments with known truth: train on one sky and evaluate on a shifted one.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType

from skyheed.classifier.archives.mixture import pairs
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.sky.surveys import Survey, survey_named

FACTORS = (0.2, 5.0)  # outside this range it would be a different survey
MOST_ZERO_POINT = 0.5
_HOW = "write --shift noise=1.4,seeing=1.3,zero_point=0.05, or some of these"


@dataclass(frozen=True)
class Shift:
    """How conditions differ from the survey's own.

    Attributes:
        noise, seeing: factors on the sky noise and on the FWHM of the PSF, in every band.
        zero_point: scatter of the visits' zero points, relative, on top of the survey's own.
    """

    noise: float = 1.0
    seeing: float = 1.0
    zero_point: float = 0.0

    def __str__(self) -> str:
        """In the format of `--shift`; "" for no shift."""
        values = {"noise": (self.noise, 1), "seeing": (self.seeing, 1), "zero_point": (self.zero_point, 0)}
        return ",".join(f"{name}={value:g}" for name, (value, none) in values.items() if value != none)


NO_SHIFT = Shift()


@lru_cache(8)  # surveys are compared by identity
def survey_under(name: str, shift: Shift = NO_SHIFT) -> Survey:
    """The survey of that name under changed conditions.

    Raises:
        ArchiveError: no such survey.
    """
    survey = survey_named(name)
    if shift == NO_SHIFT:
        return survey
    bands = {
        letter: replace(band, seeing=band.seeing * shift.seeing, sky_noise=band.sky_noise * shift.noise)
        for letter, band in survey.bands.items()
    }
    error = (survey.calibration_error**2 + shift.zero_point**2) ** 0.5
    return replace(survey, bands=MappingProxyType(bands), calibration_error=error)


def read_shift(text: str) -> Shift:
    """A shift from the value of `--shift`.

    Raises:
        ArchiveError: it does not have that form, or a number is out of range.
    """
    made = Shift(**pairs(text, ("noise", "seeing", "zero_point"), _HOW))
    low, high = FACTORS
    if not (low <= made.noise <= high and low <= made.seeing <= high and 0 <= made.zero_point <= MOST_ZERO_POINT):
        raise ArchiveError(
            f"--shift {text}: noise and seeing are factors from {low:g} to {high:g}, zero_point is a scatter from 0 to "
            f"{MOST_ZERO_POINT:g}"
        )
    return made
