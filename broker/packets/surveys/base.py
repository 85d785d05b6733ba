"""What surveys share: the choice of stamps, bands and further parts, and checks of the values in every packet."""

import abc
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from skyheed.broker.errors import ConfigError, PacketError, Reason, SkipPacket
from skyheed.broker.observation import Observation
from skyheed.broker.packets.fits import Image, read_image
from skyheed.broker.packets.points import (
    AB_NJY,
    MAX_FLUX_NJY,
    MJD_RANGE,
    PLACES,
    Point,
    Points,
    WantedPoints,
    own_points,
    photometry_of,
    together,
)
from skyheed.broker.packets.stamps import Stamps, Unfinished, WantedStamps
from skyheed.classifier.history import DETECTION, IMAGE_KINDS, STEPS_A_DAY, Photometry

ERROR_PER_MAG = 0.4 * math.log(10)
_MAX_MAG = 60.0
FILTERS = (Reason.NOT_PUBLIC, Reason.ARTEFACT, Reason.SOLAR_SYSTEM)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is read from a packet, and which valid packets are skipped.

    Attributes:
        images: kinds of stamps; None for all that the survey sends.
        photometry, context: see `Observation`.
        skip: which of `FILTERS` to skip.
        least_score: real-bogus score (0 to 1) below which a detection is an artefact; None for the survey's own.
        solar_system_arcsec: a detection this close to a known solar-system object is one; None for the survey's own.

    Raises:
        ConfigError
    """

    images: tuple[str, ...] | None = None
    photometry: bool = True
    context: bool = True
    skip: Collection[str] = FILTERS
    least_score: float | None = None
    solar_system_arcsec: float | None = None

    def __post_init__(self) -> None:
        if unknown := [name for name in self.skip if name not in tuple(FILTERS)]:
            raise ConfigError(f"ingest.skip: {unknown[0]!r} is not a filter; choose from {', '.join(FILTERS)}")
        if unknown := [kind for kind in self.images or () if kind not in IMAGE_KINDS]:
            raise ConfigError(
                f"ingest.images: {unknown[0]!r} is not a kind of image; choose from {', '.join(IMAGE_KINDS)}"
            )


class InSteps(abc.ABC):
    """A survey whose stamps can be made together with those of other packets."""

    @abc.abstractmethod
    def begin(self, record: dict[str, Any]) -> Unfinished:
        """The contents of a record without its stamps.

        Raises:
            SkipPacket, PacketError: as `broker.packets.surveys.Survey.observation`.
        """

    def observation(self, record: dict[str, Any]) -> Observation:
        """See `broker.packets.surveys.Survey.observation`."""
        return self.begin(record).observation()


@dataclass(slots=True)
class DetectionFields:
    """The fields of an `Observation` that need no image; `BaseSurvey.unfinished` adds the rest when stamps are made.

    Time in MJD TAI, position in degrees, flux in nJy.

    Attributes:
        flags: `Flag` bits known without the stamps.
    """

    object_id: str
    source_id: int
    mjd: float
    band: str
    ra: float
    dec: float
    flux: float
    flux_error: float
    flags: int

    @property
    def point(self) -> Point:
        """The detection as a photometry point."""
        return self.mjd, self.band, self.flux, self.flux_error, DETECTION


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
    # own light are in the science stamp, while the difference shows only what changed.
    default_stamp: ClassVar[str] = "science"
    schema_file: ClassVar[str]  # below schemas/
    history_fields: ClassVar[tuple[str, ...]] = ()  # fields of the record that are read only for photometry or context
    least_score: ClassVar[float] = 0.0
    solar_system_arcsec: ClassVar[float] = 0.0
    pixel_arcsec: ClassVar[float | None] = None
    pages: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def __init__(self, stamp: str | None = None, bands: str | None = None) -> None:
        self.stamp = stamp or self.default_stamp
        if self.stamp not in self.stamp_kinds:
            known = ", ".join(self.stamp_kinds)
            raise ConfigError(f"ingest.stamp: {self.name} packets have no {stamp!r} stamp; choose from {known}")
        self.bands = bands or self.all_bands
        if unknown := set(self.bands) - set(self.all_bands):
            letters = "".join(sorted(unknown))
            raise ConfigError(f"ingest.bands: {self.name} has no band {letters!r}; choose from {self.all_bands}")
        self.want(Wanted(images=(self.stamp,), photometry=False, context=False, skip=()))

    def want(self, wanted: Wanted) -> None:
        """Read more, or less, than the stamp from every packet; see `Wanted`.

        Raises:
            ConfigError: packets of the survey have no such images, or a stamp other than science was chosen.
        """
        self.wanted = wanted
        alone = (self.stamp,) if self.stamp != "science" else self.stamp_kinds
        self.images = tuple(kind for kind in IMAGE_KINDS if kind in (wanted.images or alone))
        if unknown := [kind for kind in self.images if kind not in self.stamp_kinds]:
            known = ", ".join(self.stamp_kinds)
            raise ConfigError(f"ingest.images: {self.name} packets have no {unknown[0]!r} stamp; choose from {known}")
        if self.stamp not in self.images or (self.stamp != "science" and len(self.images) > 1):
            raise ConfigError(
                f"ingest.images: with ingest.stamp = {self.stamp!r} the kinds kept are "
                f"{[self.stamp] if self.stamp != 'science' else 'science and others'}, not {list(self.images)}"
            )
        own = self.least_score, self.solar_system_arcsec
        given = wanted.least_score, wanted.solar_system_arcsec
        self._score, self._arcsec = (mine if asked is None else asked for mine, asked in zip(own, given, strict=True))

    @property
    def reader_schema(self) -> dict[str, Any]:
        """The reader schema without the fields that are not wanted."""
        text = files("skyheed.schemas").joinpath(self.schema_file).read_text()
        schema: dict[str, Any] = json.loads(text)
        unread = {f"cutout{kind.capitalize()}" for kind in self.stamp_kinds if kind not in self.images}
        if not (self.wanted.photometry or self.wanted.context):
            unread |= set(self.history_fields)
        schema["fields"] = [field for field in schema["fields"] if field["name"] not in unread]
        return schema

    def check_band(self, band: str) -> str:
        """The band if it is in use; raises SkipPacket or PacketError (UNKNOWN_BAND) if not."""
        if len(band) != 1 or band not in self.all_bands:
            raise PacketError(Reason.UNKNOWN_BAND, f"band {band[:20]!r}; {self.name} has {self.all_bands}")
        if band not in self.bands:
            raise SkipPacket(Reason.BAND_UNUSED, f"band {band} is not in use")
        return band

    def check_filters(self, *, public: bool, score: float | None, solar_system: float | None) -> None:
        """Raise SkipPacket for a packet that the filters drop.

        Args:
            score: real-bogus score, 0 to 1; None if the packet has none.
            solar_system: arcsec to the nearest known solar-system object; None for none.
        """
        skip = self.wanted.skip
        if not public and Reason.NOT_PUBLIC in skip:
            raise SkipPacket(Reason.NOT_PUBLIC, "the survey has not made this alert public")
        if score is not None and score < self._score and Reason.ARTEFACT in skip:
            raise SkipPacket(Reason.ARTEFACT, f"its real-bogus score is {score:.3g}, less than {self._score:g}")
        if solar_system is not None and solar_system <= self._arcsec and Reason.SOLAR_SYSTEM in skip:
            raise SkipPacket(Reason.SOLAR_SYSTEM, f"{solar_system:.2g} arcsec from a known solar-system object")

    def unfinished(
        self,
        own: DetectionFields,
        wanted: WantedStamps,
        context: Callable[[], dict[str, float]],
        record: Mapping[str, Any] | None = None,
        turned: bool = False,
    ) -> Unfinished:
        """The observation without its stamps and photometry; `context` is read when it is finished, if wanted.

        Args:
            record: that `earlier_points` reads photometry from; None for a survey without it.
            turned: reverse the sign of the difference stamp.
        """
        points = None
        if record is not None and self.wanted.photometry:
            points = WantedPoints(record, own.point, self.photometry)

        def finish(stamps: Stamps, flags: int) -> Observation:
            if turned and "difference" in stamps:
                stamps["difference"] = -stamps["difference"]
            return Observation(
                object_id=own.object_id,
                source_id=own.source_id,
                mjd=own.mjd,
                band=own.band,
                ra=own.ra,
                dec=own.dec,
                flux=own.flux,
                flux_error=own.flux_error,
                stamp=stamps.pop(self.stamp),
                flags=flags | own.flags,
                images=stamps,
                photometry=points.result() if points else None,
                context=context() if self.wanted.context else {},
            )

        return Unfinished(wanted, finish, points)

    def photometry(self, wanted: Sequence[WantedPoints]) -> list[Photometry]:
        """The photometry of packets: the points of the bands in use up to the packet's own time."""
        points = together([own_points(wanted), *self.earlier_points([one.record for one in wanted])])
        last = points.mjd[: len(wanted)] + 1 / STEPS_A_DAY
        used = np.isin(points.band, [PLACES[band] for band in self.bands])
        return photometry_of(points.where(np.flatnonzero(used & (points.mjd <= last[points.packet]))), len(wanted))

    def earlier_points(self, records: Sequence[Mapping[str, Any]]) -> list[Points]:
        """What packets say of the times before them, in parts; surveys with photometry override it."""
        return []

    def further_images(self, record: Mapping[str, Any]) -> dict[str, bytes]:
        """The files of the wanted stamps by kind, the chosen one first; missing ones of other kinds are left out.

        Raises:
            SkipPacket: the chosen one is missing.
        """
        found = {self.stamp: stamp_bytes(record[cutout_field(self.stamp)], self.stamp)}
        for kind in self.images:
            if kind != self.stamp and (data := stamp_data(record[cutout_field(kind)])):
                found[kind] = data
        return found


def cutout_field(kind: str) -> str:
    """The record's field that holds a kind of stamp."""
    return f"cutout{kind.capitalize()}"


def object_id(value: str | int | None) -> str:
    """The object's name or (positive) number as text."""
    text = "" if value is None else str(value).strip()
    if not text or text == "0" or text.startswith("-"):
        raise PacketError(Reason.NO_OBJECT_ID, f"object id {value!r}")
    if len(text) > 256:
        raise PacketError(Reason.NO_OBJECT_ID, f"object id of {len(text)} characters")
    if not text.isprintable():  # line breaks, terminal escapes, direction marks
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
    """A plausible time (MJD)."""
    if value is None or not MJD_RANGE[0] < value < MJD_RANGE[1]:
        raise PacketError(Reason.NO_TIME, f"time {value!r} (MJD)")
    return value


def position(ra: float | None, dec: float | None) -> tuple[float, float]:
    """Right ascension 0 to 360 and declination -90 to 90, deg."""
    if ra is None or dec is None or not (0 <= ra <= 360 and -90 <= dec <= 90):
        raise PacketError(Reason.BAD_POSITION, f"position ({ra!r}, {dec!r})")
    return ra, dec


def flux(value: float | None) -> float:
    """A flux or its error (nJy); NaN if the packet has none; PacketError (BAD_FLUX) beyond any real flux."""
    if value is None:
        return math.nan
    if abs(value) > MAX_FLUX_NJY:
        raise PacketError(Reason.BAD_FLUX, f"flux {value!r}")
    return value


def flux_of(magnitude: float | None) -> float:
    """AB magnitude -> nJy; NaN if there is none."""
    if magnitude is None or math.isnan(magnitude):
        return math.nan
    if not abs(magnitude) < _MAX_MAG:
        raise PacketError(Reason.BAD_FLUX, f"magnitude {magnitude!r}")
    return AB_NJY * 10 ** (-0.4 * magnitude)


def flux_error_of(flux_njy: float, magnitude_error: float | None) -> float:
    """Error of a flux (nJy) from the error of its magnitude, to first order."""
    if magnitude_error is None:
        return math.nan
    return flux(abs(flux_njy) * ERROR_PER_MAG * magnitude_error)


def stamp_data(cutout: Mapping[str, Any] | bytes | None) -> bytes | None:
    """The stamp's file: the cutout itself or its `stampData`."""
    return cutout.get("stampData") if isinstance(cutout, Mapping) else cutout


def stamp_bytes(cutout: Mapping[str, Any] | bytes | None, kind: str) -> bytes:
    """The stamp's file; raises SkipPacket (NO_STAMP) if the packet has none."""
    data = stamp_data(cutout)
    if not data:
        raise SkipPacket(Reason.NO_STAMP, f"no {kind} stamp")
    return data


def calibrated(data: bytes) -> Image:
    """The image of a stamp's file whose unit has to be nJy; raises PacketError."""
    image = read_image(data)
    if image.header.unit != "nJy":
        raise PacketError(Reason.BAD_FITS, f"the stamp's unit is {image.header.unit[:20]!r}, not nJy")
    return image


def finite(value: float | None) -> float:
    """A number; NaN for None."""
    return math.nan if value is None else value
