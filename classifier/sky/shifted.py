"""Another sky of the same survey: what a model meets that was trained on conditions, or class shares, other than real.

For experiments in which the truth is known: train on one sky, and be measured on a shifted one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType

from skyheed.classifier.archives.format import CLASSES
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.sky.surveys import Survey, survey_named

FACTORS = (0.2, 5.0)  # beyond these the survey would be another one
MOST_ZERO_POINT = 0.5
_HOW = "write --shift noise=1.4,seeing=1.3,zero_point=0.05, or some of these"


@dataclass(frozen=True)
class Shift:
    """How conditions differ from the survey's own.

    Attributes:
        noise, seeing: factors on the sky noise and on the FWHM of the PSF, of every band.
        zero_point: scatter of the visits' zero points, relative, on top of the survey's own.
    """

    noise: float = 1.0
    seeing: float = 1.0
    zero_point: float = 0.0

    def __str__(self) -> str:
        """As `--shift` takes it; "" for no shift."""
        values = {"noise": (self.noise, 1), "seeing": (self.seeing, 1), "zero_point": (self.zero_point, 0)}
        return ",".join(f"{name}={value:g}" for name, (value, none) in values.items() if value != none)


NO_SHIFT = Shift()


@lru_cache(8)  # a survey is compared as the one object it is
def survey_under(name: str, shift: Shift = NO_SHIFT) -> Survey:
    """The survey of that name in shifted conditions.

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
    """A shift from what `--shift` was given.

    Raises:
        ArchiveError: it is not of that form, or a number cannot be.
    """
    made = Shift(**_pairs(text, ("noise", "seeing", "zero_point"), _HOW))
    low, high = FACTORS
    if not (low <= made.noise <= high and low <= made.seeing <= high and 0 <= made.zero_point <= MOST_ZERO_POINT):
        raise ArchiveError(
            f"--shift {text}: noise and seeing are factors from {low:g} to {high:g}, zero_point is a scatter from 0 to "
            f"{MOST_ZERO_POINT:g}"
        )
    return made


def read_mixture(text: str) -> dict[str, float]:
    """Shares of the classes, of sum 1, from what `--mixture` was given; classes that are not named have none.

    Raises:
        ArchiveError: it is not of that form, or a number cannot be.
    """
    given = _pairs(text, CLASSES, "write --mixture AGN=0.2,SNIa=0.1,Variable=0.6,SNOther=0.1")
    total = sum(given.values())
    if not (0 < total < float("inf")) or min(given.values()) < 0:
        raise ArchiveError(f"--mixture {text}: give numbers that are not negative, and not all 0")
    return {label: given.get(label, 0.0) / total for label in CLASSES}


def counts(objects: int, mixture: Mapping[str, float]) -> dict[str, int]:
    """How many objects of every class, by largest remainder."""
    exact = {label: objects * share for label, share in mixture.items()}
    made = {label: int(value) for label, value in exact.items()}
    for label in sorted(exact, key=lambda k: made[k] - exact[k])[: objects - sum(made.values())]:
        made[label] += 1
    return made


def _pairs(text: str, known: tuple[str, ...], how: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        name = name.strip()
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if name not in known or name in found or number != number:
            raise ArchiveError(f"{part!r} is not understood: {how}")
        found[name] = number
    return found
