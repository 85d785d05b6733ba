"""Photometry of packets, for many packets at once: numpy takes as long for the points of one as for those of ten."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from skyheed.broker.observation import BANDS
from skyheed.classifier.history import MOST_POINTS, POINT_KINDS, STEPS_A_DAY, Photometry

AB_NJY = 3631e9  # nJy of magnitude 0 (Oke & Gunn 1983)
MJD_RANGE = 15020.0, 88069.0  # the years 1900 to 2100: anything else is a damaged or missing time
MAX_FLUX_NJY = 3e38  # fluxes are kept as float32, which ends at 3.4e38
PLACES = {band: place for place, band in enumerate(BANDS)}
NO_BAND = -1
_KEY_BITS = 38  # a point's time, band and kind as one number; the packet's number goes above it
Point = tuple[float, str, float, float, int]  # MJD, band, flux and its error (nJy), kind of `classifier.history`


class Points(NamedTuple):
    """Points of several packets, in any order and unchecked.

    Attributes:
        packet: int64 [k], whose they are.
        mjd: float64 [k] days, TAI.
        band: int64 [k], places in `BANDS`, or NO_BAND.
        flux, flux_error: float64 [k] nJy.
        kind: int64 [k], of `classifier.history`.
    """

    packet: NDArray[np.int64]
    mjd: NDArray[np.float64]
    band: NDArray[np.int64]
    flux: NDArray[np.float64]
    flux_error: NDArray[np.float64]
    kind: NDArray[np.int64]

    def where(self, rows: NDArray[Any]) -> Self:
        """Some of the points, or all in another order."""
        return type(self)(*(column[rows] for column in self))


Read = Callable[[Sequence["WantedPoints"]], list[Photometry]]


@dataclass(eq=False, slots=True)
class WantedPoints:
    """The photometry of one packet, to be made.

    Attributes:
        record: as decoded; it is released once the photometry is made.
        own: the detection itself.
        read: makes the photometry of several packets.
    """

    record: Mapping[str, Any]
    own: Point
    read: Read
    made: Photometry | None = None

    def result(self) -> Photometry:
        """The photometry, made now if it has not been yet."""
        if self.made is None:
            make([self])
        assert self.made is not None
        return self.made


def make(waiting: Iterable[WantedPoints]) -> None:
    """Make the photometry of packets, those of one survey together."""
    groups: dict[Read, list[WantedPoints]] = {}
    for one in waiting:
        groups.setdefault(one.read, []).append(one)
    for read, members in groups.items():
        for one, made in zip(members, read(members), strict=True):
            one.made, one.record = made, {}


def own_points(wanted: Sequence[WantedPoints]) -> Points:
    """The packets' own detections."""
    mjd, band, flux, error, kind = zip(*(one.own for one in wanted), strict=True)
    return Points(
        np.arange(len(wanted)), np.array(mjd, float), places(band), np.array(flux, float), np.array(error, float),
        np.array(kind, np.int64),
    )  # fmt: skip


def places(bands: Iterable[str | None]) -> NDArray[np.int64]:
    """Places in `BANDS`; NO_BAND for anything else."""
    return np.array([PLACES.get(band or "", NO_BAND) for band in bands], np.int64)


def column(values: Sequence[float | None]) -> NDArray[np.float64]:
    """Numbers as float64; NaN for None."""
    return np.array(values, np.float64)


def counted(rows: Sequence[Sequence[Any]]) -> NDArray[np.int64]:
    """For each row of all packets, given packet by packet, the packet's number."""
    return np.repeat(np.arange(len(rows)), [len(own) for own in rows])


def together(parts: Sequence[Points]) -> Points:
    """All points; of equal ones `photometry_of` keeps the one from the first part."""
    return Points(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


@np.errstate(invalid="ignore", over="ignore")
def photometry_of(points: Points, packets: int) -> list[Photometry]:
    """The points of each packet in time order, each once, the newest `MOST_POINTS`.

    The same as `Photometry.merged` of each packet; damaged points (no band, no finite flux, no positive error) are
    dropped. Of two values of one point the one with the smaller error is kept, then the one with the larger flux.
    """
    _, mjd, band, flux, error, _ = points
    good = (mjd > MJD_RANGE[0]) & (mjd < MJD_RANGE[1]) & (band != NO_BAND)
    good &= (flux > -MAX_FLUX_NJY) & (flux < MAX_FLUX_NJY) & (error > 0) & (error < MAX_FLUX_NJY)
    points = points.where(np.flatnonzero(good))
    step = np.rint(points.mjd * STEPS_A_DAY)
    key = (points.packet << _KEY_BITS) + (step.astype(np.int64) * len(BANDS) + points.band) * POINT_KINDS + points.kind
    order = np.argsort(key, kind="stable")
    if (np.diff(key[order]) == 0).any():
        order = np.lexsort((-points.flux, points.flux_error, key))
        order = order[np.append(True, np.diff(key[order]) != 0)]
    packet, _, band, flux, error, kind = points.where(order)
    found = Photometry(
        step[order] / STEPS_A_DAY, band.astype(np.uint8), flux.astype(np.float32), error.astype(np.float32),
        kind.astype(np.uint8),
    )  # fmt: skip
    ends = np.searchsorted(packet, np.arange(packets), "right").tolist()
    return [found.take(slice(max(start, end - MOST_POINTS), end)) for start, end in zip([0, *ends], ends, strict=False)]
