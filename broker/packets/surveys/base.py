"""What the surveys share: the choice of stamp and bands, and the checks of values that every packet needs."""

import json
import math
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, ClassVar

from skyheed.broker.errors import ConfigError, PacketError, Reason, SkipPacket

AB_NJY = 3631e9  # nJy of magnitude 0 (Oke & Gunn 1983)
_ERROR_PER_MAG = 0.4 * math.log(10)
_MJD_RANGE = 15020.0, 88069.0  # the years 1900 to 2100: anything else is a damaged or missing time
_MAX_MAG = 60.0
_MAX_FLUX_NJY = 3e38  # fluxes are kept as float32, which ends at 3.4e38


class BaseSurvey:
    """A survey whose reader schema is a file in `schemas/` and whose stamps are top-level fields.

    Args:
        stamp: one of `stamp_kinds`; None for the default.
        bands: letters of the bands to keep; None for all.

    Raises:
        ConfigError
    """

    name: ClassVar[str]
    all_bands: ClassVar[str]
    stamp_kinds: ClassVar[tuple[str, ...]] = ("science", "template", "difference")
    # The model sees the source with its host and its quiescent state: an AGN's galaxy nucleus and a variable star's
    # own light are in the science stamp, while the difference has only what changed.
    default_stamp: ClassVar[str] = "science"
    schema_file: ClassVar[str]  # below schemas/

    def __init__(self, stamp: str | None = None, bands: str | None = None) -> None:
        self.stamp = stamp or self.default_stamp
        if self.stamp not in self.stamp_kinds:
            known = ", ".join(self.stamp_kinds)
            raise ConfigError(f"ingest.stamp: {self.name} packets have no {stamp!r} stamp; choose from {known}")
        self.bands = bands or self.all_bands
        if unknown := set(self.bands) - set(self.all_bands):
            letters = "".join(sorted(unknown))
            raise ConfigError(f"ingest.bands: {self.name} has no band {letters!r}; choose from {self.all_bands}")

    @property
    def stamp_field(self) -> str:
        """The record's field that holds the chosen stamp."""
        return f"cutout{self.stamp.capitalize()}"

    @property
    def reader_schema(self) -> dict[str, Any]:
        """The reader schema without the stamps that are not chosen."""
        text = files("skyheed.schemas").joinpath(self.schema_file).read_text()
        schema: dict[str, Any] = json.loads(text)
        schema["fields"] = [
            field
            for field in schema["fields"]
            if not field["name"].startswith("cutout") or field["name"] == self.stamp_field
        ]
        return schema

    def check_band(self, band: str) -> str:
        """The band if it is in use; SkipPacket or PacketError (UNKNOWN_BAND) if not."""
        if len(band) != 1 or band not in self.all_bands:
            raise PacketError(Reason.UNKNOWN_BAND, f"band {band[:20]!r}; {self.name} has {self.all_bands}")
        if band not in self.bands:
            raise SkipPacket(Reason.BAND_UNUSED, f"band {band} is not in use")
        return band


def object_id(value: str | int | None) -> str:
    """The object's name or (positive) number as text."""
    text = "" if value is None else str(value).strip()
    if not text or text == "0" or text.startswith("-"):
        raise PacketError(Reason.NO_OBJECT_ID, f"object id {value!r}")
    if len(text) > 256:
        raise PacketError(Reason.NO_OBJECT_ID, f"object id of {len(text)} characters")
    if not text.isprintable():  # line ends, terminal escapes, marks of direction
        raise PacketError(Reason.BAD_OBJECT_ID, f"object id {text!a} has characters that cannot be printed")
    return text


def source_id(value: int | str | None) -> int:
    """The detection's number, 0 to 2^63-1; some brokers write it as text."""
    text = "" if value is None else str(value).strip()
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1
    if not 0 <= number < 1 << 63:
        raise PacketError(Reason.NO_SOURCE_ID, f"source id {ascii(value)[:40]}")
    return number


def mjd(value: float | None) -> float:
    """A time (MJD) that can be one."""
    if value is None or not _MJD_RANGE[0] < value < _MJD_RANGE[1]:
        raise PacketError(Reason.NO_TIME, f"time {value!r} (MJD)")
    return value


def position(ra: float | None, dec: float | None) -> tuple[float, float]:
    """Right ascension 0 to 360 and declination -90 to 90, deg."""
    if ra is None or dec is None or not (0 <= ra <= 360 and -90 <= dec <= 90):
        raise PacketError(Reason.BAD_POSITION, f"position ({ra!r}, {dec!r})")
    return ra, dec


def flux(value: float | None) -> float:
    """A flux or its error (nJy); NaN where the packet has none; PacketError (BAD_FLUX) beyond every real one."""
    if value is None:
        return math.nan
    if abs(value) > _MAX_FLUX_NJY:
        raise PacketError(Reason.BAD_FLUX, f"flux {value!r}")
    return value


def flux_of(magnitude: float | None) -> float:
    """AB magnitude -> nJy; NaN where there is none."""
    if magnitude is None or math.isnan(magnitude):
        return math.nan
    if not abs(magnitude) < _MAX_MAG:
        raise PacketError(Reason.BAD_FLUX, f"magnitude {magnitude!r}")
    return AB_NJY * 10 ** (-0.4 * magnitude)


def flux_error_of(flux_njy: float, magnitude_error: float | None) -> float:
    """Error of a flux (nJy) from the error of its magnitude, to first order."""
    if magnitude_error is None:
        return math.nan
    return flux(abs(flux_njy) * _ERROR_PER_MAG * magnitude_error)


def stamp_bytes(cutout: Mapping[str, Any] | bytes | None, kind: str) -> bytes:
    """The stamp's file, which is the cutout or its `stampData`; SkipPacket (NO_STAMP) where the packet has none."""
    data: bytes | None = cutout.get("stampData") if isinstance(cutout, Mapping) else cutout
    if not data:
        raise SkipPacket(Reason.NO_STAMP, f"no {kind} stamp")
    return data
