"""What a reader wants to see: filters, and the text in the search box. Independent of SQL and HTTP."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from skyheed.broker.observation import BANDS

DEFAULT_RADIUS = 5.0  # arcsec
LARGEST_RADIUS = 3600.0
_NUMBER = r"[+-]?\d{1,6}(?:\.\d{0,20})?"
_DEGREES = re.compile(rf"\s*({_NUMBER})(?:\s*,\s*|\s+)({_NUMBER})(?:(?:\s*,\s*|\s+)({_NUMBER}))?\s*")
_SIXTY = r"(\d{{1,3}})[:hd\s]\s*(\d{{1,2}})[:m'′\s]\s*(\d{{1,2}}(?:\.\d{{0,9}})?)[s\"″]?"
_SEXAGESIMAL = re.compile(
    rf"\s*{_SIXTY.format()}\s*[,\s]?\s*([+−-]?){_SIXTY.format()}(?:(?:\s*,\s*|\s+)({_NUMBER}))?\s*"
)


class SearchError(ValueError):
    """The request makes no sense; the message says what to write instead."""


@dataclass(frozen=True)
class Cone:
    """A circle on the sky: degrees ICRS, radius in arcseconds."""

    ra: float
    dec: float
    radius: float

    def __post_init__(self) -> None:
        if not (0 <= self.ra <= 360 and -90 <= self.dec <= 90):
            raise SearchError("right ascension must be 0 to 360 and declination -90 to 90 degrees")
        if not 0 < self.radius <= LARGEST_RADIUS:
            raise SearchError(f"the radius must be above 0 and at most {LARGEST_RADIUS:.0f} arcsec")

    def separation(self, ra: float, dec: float) -> float:
        """Arcseconds from the centre (haversine, accurate for small and large angles)."""
        return separation(self.ra, self.dec, ra, dec)

    @property
    def box(self) -> tuple[float, float, float]:
        """(smallest, largest declination, half width in right ascension; 180 if the cone reaches a pole), degrees."""
        radius = self.radius / 3600
        low, high = self.dec - radius, self.dec + radius
        if low <= -90 or high >= 90:
            return max(-90.0, low), min(90.0, high), 180.0
        width = math.degrees(math.asin(min(1.0, math.sin(math.radians(radius)) / math.cos(math.radians(self.dec)))))
        return low, high, width


def separation(ra: float, dec: float, other_ra: float, other_dec: float) -> float:
    """Arcseconds between two positions in degrees."""
    a, d, b, e = map(math.radians, (ra, dec, other_ra, other_dec))
    h = math.sin((e - d) / 2) ** 2 + math.cos(d) * math.cos(e) * math.sin((b - a) / 2) ** 2
    return math.degrees(2 * math.asin(min(1.0, math.sqrt(h)))) * 3600


@dataclass(frozen=True)
class Typed:
    """What the text in a search box means.

    Attributes:
        kind: all, id (or part of one), or cone.
        sentence: the meaning in words.
    """

    kind: str
    text: str = ""
    cone: Cone | None = None
    sentence: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        place = {"ra": self.cone.ra, "dec": self.cone.dec, "radius": self.cone.radius} if self.cone else {}
        return (
            {"as": self.kind, "text": self.text, "ra": None, "dec": None, "radius": None}
            | place
            | {"sentence": self.sentence}
        )


def understand(text: str) -> Typed:
    """Interpret the text: nothing, a position with or without a radius, or an id or part of one.

    Raises:
        SearchError: it looks like a position but is not a valid one.
    """
    if not text.strip():
        return Typed("all", sentence="everything")
    if found := _DEGREES.fullmatch(text):
        return _cone(text, float(found[1]), float(found[2]), found[3])
    if found := _SEXAGESIMAL.fullmatch(text):
        ra = 15 * _sixty(found[1], found[2], found[3])
        dec = _sixty(found[5], found[6], found[7]) * (-1 if found[4] in ("-", "−") else 1)
        return _cone(text, ra, dec, found[8])
    return Typed("id", text.strip(), sentence="objects with this in their id")


def _cone(text: str, ra: float, dec: float, radius: str | None) -> Typed:
    cone = Cone(ra, dec, float(radius) if radius else DEFAULT_RADIUS)
    return Typed("cone", text.strip(), cone, f"within {cone.radius:g} arcsec of {ra:.5f} {dec:+.5f} degrees")


def _sixty(whole: str, minutes: str, seconds: str) -> float:
    if float(minutes) >= 60 or float(seconds) >= 60:
        raise SearchError("minutes and seconds must be below 60")
    return float(whole) + float(minutes) / 60 + float(seconds) / 3600


def cone_of(text: str) -> Cone:
    """A cone from "ra,dec,radius" in degrees and arcseconds.

    Raises:
        SearchError: it is not a cone.
    """
    try:
        ra, dec, *radius = (float(part) for part in text.split(","))
    except ValueError:
        raise SearchError("a cone is ra,dec,radius: degrees, degrees, arcseconds") from None
    if len(radius) > 1 or not all(map(math.isfinite, (ra, dec, *radius))):
        raise SearchError("a cone is ra,dec,radius: degrees, degrees, arcseconds")
    return Cone(ra, dec, radius[0] if radius else DEFAULT_RADIUS)


@dataclass(frozen=True)
class Filters:
    """Which classifications are wanted; fields that are None or empty are ignored.

    Attributes:
        class_: top class.
        min_probability, max_probability: of the top class.
        bands: letters of bands in which the object must have stamps.
        declined: "yes" declines only, "no" without declines, "all".
        model: name of a model; "" for all.
        night: of the last epoch.
    """

    class_: str = ""
    min_probability: float | None = None
    max_probability: float | None = None
    bands: str = ""
    min_epochs: int | None = None
    max_epochs: int | None = None
    min_days: float | None = None
    max_days: float | None = None
    declined: str = "all"
    model: str = ""
    cone: Cone | None = None
    night: int | None = None
    since_ms: int | None = None

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.bands) - set(BANDS)):
            raise SearchError(f"there is no band {unknown[0]!r}: bands are letters of {BANDS}")

    @property
    def key(self) -> str:
        """A key that is equal for filters that select the same."""
        return repr(self)

    @property
    def empty(self) -> bool:
        """Whether everything is wanted."""
        return self == Filters()

    def wants(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is wanted."""
        return self._by_answer(row) and self._by_history(row)

    def _by_answer(self, row: Mapping[str, Any]) -> bool:
        top = row["top_class"]
        if (self.class_ and top != self.class_) or (self.model and row["model"] != self.model):
            return False
        if (self.declined == "yes" and top) or (self.declined == "no" and not top):
            return False
        return _within(row["top_probability"], self.min_probability, self.max_probability)

    def _by_history(self, row: Mapping[str, Any]) -> bool:
        if not set(self.bands) <= set(row["stamps_per_band"]):
            return False
        if not _within(row["n_stamps"], self.min_epochs, self.max_epochs):
            return False
        if not _within(row["days"], self.min_days, self.max_days):
            return False
        if self.night is not None and not self.night <= row["last_mjd"] < self.night + 1:
            return False
        if self.since_ms is not None and row["classified_ms"] < self.since_ms:
            return False
        return self.cone is None or self.cone.separation(row["ra"], row["dec"]) <= self.cone.radius


def _within(value: float | None, least: float | None, most: float | None) -> bool:
    if value is None:
        return least is None and most is None
    return (least is None or value >= least) and (most is None or value <= most)
