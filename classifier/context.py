"""The table of context numbers: what a packet says about an object besides images and fluxes, under survey-neutral
names.

An unknown number is absent: never -999, never NaN. There is no right ascension and no declination, because a
network would remember fields by them. Numpy only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

CATALOGUE = 3  # nearest catalogue sources included


@dataclass(frozen=True, slots=True)
class Quantity:
    """One number.

    Attributes:
        unit: "" for a number without one.
        low, high: values outside are damaged or missing.
        fields: survey -> its source in that survey's packet; other surveys do not provide it.
    """

    name: str
    unit: str
    meaning: str
    low: float
    high: float
    fields: Mapping[str, str] = field(default_factory=dict)


def _catalogue(k: int) -> tuple[Quantity, ...]:
    which = f"of the catalogue source that is number {k} by distance"
    name = f"catalogue_{k}"
    return (
        Quantity(f"{name}_distance", "arcsec", f"distance {which}", 0, 3600, {
            "ztf": f"distpsnr{k}", "lsst": f"nearbyObj{k}Dist, until schema 7"}),
        Quantity(f"{name}_star", "", f"0 galaxy to 1 star, {which}", 0, 1, {"ztf": f"sgscore{k}"}),
        Quantity(f"{name}_magnitude", "mag", f"r, AB, {which}", 0, 40, {"ztf": f"srmag{k}"}),
        Quantity(f"{name}_gr", "mag", f"g - r {which}", -20, 20, {"ztf": f"sgmag{k} - srmag{k}"}),
        Quantity(f"{name}_ri", "mag", f"r - i {which}", -20, 20, {"ztf": f"srmag{k} - simag{k}"}),
    )  # fmt: skip


# A number's place is its code in Redis and in archives: append, never reorder.
QUANTITIES: tuple[Quantity, ...] = (
    Quantity("reference_distance", "arcsec", "to the nearest source of the survey's own reference image", 0, 3600, {
        "ztf": "distnr (pixels of 1.0125 arcsec)"}),
    Quantity("reference_magnitude", "mag", "AB, of that source; if the survey names none, of the reference image at "
             "the object's position", 0, 40, {"ztf": "magnr", "lsst": "templateFlux, where it is 3 times its error"}),
    Quantity("reference_shape", "", "how extended that source is: DAOPHOT's sharpness, 0 for a star, larger for a "
             "galaxy", -100, 100, {"ztf": "sharpnr"}),
    Quantity("magnitude_over_reference", "mag", "magnitude of the absolute difference flux of this detection minus "
             "reference_magnitude", -40, 40, {"ztf": "magpsf - magnr", "lsst": "psfFlux against templateFlux"}),
    *(quantity for k in range(1, CATALOGUE + 1) for quantity in _catalogue(k)),
    Quantity("galactic_latitude", "deg", "absolute value", 0, 90, {"ztf": "ra, dec", "lsst": "ra, dec"}),
    Quantity("detections", "", "number so far, this one included", 1, 1e6, {
        "ztf": "ndethist", "lsst": "nDiaSources"}),
    Quantity("visits", "", "exposures so far that covered the position", 1, 1e7, {"ztf": "ncovhist"}),
    Quantity("age_days", "day", "since the first detection", 0, 40_000, {
        "ztf": "jd - jdstarthist", "lsst": "midpointMjdTai - firstDiaSourceMjdTai"}),
    Quantity("detection_extendedness", "", "0 for a point to 1, of this detection in the difference image", 0, 1, {
        "lsst": "extendedness"}),
)  # fmt: skip
NAMES = tuple(quantity.name for quantity in QUANTITIES)
CODES = {name: code for code, name in enumerate(NAMES)}
_BOUNDS = {quantity.name: (quantity.low, quantity.high) for quantity in QUANTITIES}
# The galactic pole: J. Liu, Z. Zhu & B. Hu 2011, A&A 526, A16 (Hipparcos catalogue, volume 1, section 1.5.3).
_POLE_RA, _POLE_DEC = math.radians(192.85948), math.radians(27.12825)
_SIN_POLE, _COS_POLE = math.sin(_POLE_DEC), math.cos(_POLE_DEC)


def known(values: Mapping[str, float | None]) -> dict[str, float]:
    """The known values: None, NaN and impossible values (such as -999) are dropped."""
    found = {}
    for name, value in values.items():
        low, high = _BOUNDS[name]
        if value is not None and low <= value <= high:
            found[name] = float(value)
    return found


def galactic_latitude(ra: float, dec: float) -> float:
    """Absolute galactic latitude, degrees, of a position in degrees (ICRS)."""
    declination = math.radians(dec)
    sine = math.sin(declination) * _SIN_POLE
    sine += math.cos(declination) * _COS_POLE * math.cos(math.radians(ra) - _POLE_RA)
    return abs(math.degrees(math.asin(max(-1.0, min(1.0, sine)))))


def check(context: Mapping[str, float]) -> None:
    """Raise ValueError for a name that is not in the table, or an impossible value."""
    for name, value in context.items():
        if name not in _BOUNDS:
            raise ValueError(f"context has no {name!r}: its names are {', '.join(NAMES)}")
        low, high = _BOUNDS[name]
        if not low <= value <= high:
            raise ValueError(f"context {name} is {value}: leave out unknown values")


def table(contexts: Sequence[Mapping[str, float]], names: Sequence[str] = NAMES) -> NDArray[np.float32]:
    """Contexts as float32 [b, len(names)]; NaN where a number is not known."""
    rows = [[context.get(name, math.nan) for name in names] for context in contexts]
    return np.array(rows, np.float32).reshape(len(rows), len(names))
