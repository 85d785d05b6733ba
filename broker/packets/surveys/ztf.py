"""ZTF alert packets, schema versions 3.0 to 4.02, as IPAC writes them or as brokers rewrite them.

Facts not in the schema, each checked on real packets by tests/broker/packets/test_surveys.py:
- Stamps have no WCS (one that another broker added is applied). Rows run from north to south and columns from east to
  west: the nearest reference source (candidate.ranr, decnr) is where that orientation puts it.
- Science and template stamps include the sky (border medians of 70 to 370 counts); the normaliser subtracts it.
- The template is scaled to the science image (the same sky), so magzpsci applies to all three stamps.
- Difference stamps are signed so that the source is bright, even where isdiffpos is f (E. Bellm and others,
  https://community.lsst.org/t/cutout-types-in-alerts/10619).
- At a chip's edge a stamp is truncated, and the source is not at its centre but at column xpos - 1 (xpos counts
  from 1, as does ypos) as far as the image extends to that side.

Cite Bellm+2019 (PASP 131, 018002), Masci+2019 (PASP 131, 018003), Patterson+2019 (PASP 131, 018001).
"""

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from operator import itemgetter
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyheed.broker.errors import PacketError, Reason
from skyheed.broker.observation import Flag
from skyheed.broker.packets.fits import Image, on_sky
from skyheed.broker.packets.points import AB_NJY, Points, column, counted, places
from skyheed.broker.packets.stamps import Unfinished, WantedStamps
from skyheed.broker.packets.surveys import base
from skyheed.broker.packets.surveys.previous import EarlierSchema, Named, named
from skyheed.classifier import context
from skyheed.classifier.history import DETECTION, FORCED, UPPER_LIMIT
from skyheed.classifier.stamp import Matrix

_BANDS = {1: "g", 2: "r", 3: "i"}
# TAI - UTC since 2017-01-01 (IERS Bulletin C 52), before ZTF's first alert; no leap second has been added since.
_TAI_MINUS_UTC_S = 37.0
_EXPOSURE_S = 30.0  # of the public surveys; used if the packet does not give it
_DAY_S = 86_400.0
# Magnitude of one count: F. Masci, "The ZTF Pipelines and Deliverables", section 10.1.2. The medians of 242 real
# packets are 26.27 (g) and 26.25 (r).
_NOMINAL_ZERO_POINT = {"g": 26.325, "r": 26.275, "i": 25.660}
_ZERO_POINTS = 15.0, 35.0  # anything else (-999, NaN) stands for "none"
_TO_SKY = ((-1.0, 0.0), (0.0, -1.0))
_HALF = 31  # pixels: a complete stamp has 63, with the source in the central one
_PIXEL_ARCSEC = 1.0125  # as used by distnr: 3.75 degrees / 13,333 pixels; Dekany+2020 (PASP 132, 038001), table 1
_PUBLIC = (None, 1)  # programid
_NEGATIVE = int(Flag.NEGATIVE)
_CHIP_MIDDLE = 1540.0  # a readout quadrant has 3072 x 3080 pixels
# ZTF writes t and f; brokers that rewrite packets also use 1, 0 and -1, booleans, and all of these as text.
_BRIGHTER, _FAINTER = frozenset(("t", "true", "1", "+1", "1.0")), frozenset(("f", "false", "0", "-1", "0.0", "-1.0"))

# For each of the nearest catalogue sources the packet's fields, and the names of what is made of them.
_CATALOGUE = [
    (
        [f"distpsnr{k}", f"sgscore{k}", f"sgmag{k}", f"srmag{k}", f"simag{k}"],
        [f"catalogue_{k}_{name}" for name in ("distance", "star", "magnitude", "gr", "ri")],
    )
    for k in range(1, context.CATALOGUE + 1)
]
_EARLIER = itemgetter("jd", "fid", "programid", "isdiffpos", "magpsf", "sigmapsf", "diffmaglim")
_FORCED = itemgetter("jd", "exptime", "fid", "programid", "forcediffimflux", "forcediffimfluxunc", "magzpsci")


class Ztf(base.InSteps, EarlierSchema, base.BaseSurvey):
    """The Zwicky Transient Facility."""

    name = "ztf"
    all_bands = "gri"
    schema_file = "ztf/reader.avsc"
    earlier_file = "ztf/earlier.avsc"
    history_fields = ("prv_candidates", "fp_hists")
    # Of 147 real packets of objects with a class or a catalogue match this leaves out one (of a "Planet?"); of the 90
    # that are AGN, supernovae, variables or a tidal disruption event, none. docs/surveys.md has the table.
    least_score = 0.1
    solar_system_arcsec = 5.0
    pixel_arcsec = _PIXEL_ARCSEC
    pages = MappingProxyType({  # as alert viewers and the babamul client link there
        "ALeRCE": "https://alerce.online/object/{}",
        "Fink": "https://ztf.fink-portal.org/{}",
        "Lasair": "https://lasair-ztf.lsst.ac.uk/objects/{}/",
        "Babamul": "https://babamul.caltech.edu/objects/ZTF/{}",
    })  # fmt: skip

    def begin(self, record: dict[str, Any]) -> Unfinished:
        """See `InSteps.begin`."""
        candidate = record["candidate"] or {}
        object_id = base.object_id(record["objectId"])
        top_level = record["candid"]
        source_id = base.source_id(candidate.get("candid") if top_level is None else top_level)
        mjd = self.time(record)
        ra, dec = base.position(candidate.get("ra"), candidate.get("dec"))
        fid = candidate.get("fid")
        band = self.check_band(_BANDS.get(fid or 0, f"fid {fid}"))
        sign = _sign(candidate.get("isdiffpos"))
        flux = sign * base.flux_of(candidate.get("magpsf"))
        flux_error = base.flux_error_of(flux, candidate.get("sigmapsf"))
        self._filter(candidate)
        wanted, nominal = self._wanted_stamps(record, candidate, band, (ra, dec))
        flags = nominal | (_NEGATIVE if sign < 0 else 0)
        own = base.DetectionFields(object_id, source_id, mjd, band, ra, dec, flux, flux_error, flags)
        return self.unfinished(own, wanted, lambda: _context(candidate, ra, dec), record, turned=sign < 0)

    def _filter(self, candidate: Mapping[str, Any]) -> None:
        score = candidate.get("drb") or candidate.get("rb")  # brokers that rewrite packets use 0 for none
        near, magnitude = candidate.get("ssdistnr"), candidate.get("ssmagnr")
        known = near is not None and near >= 0 and (magnitude is None or magnitude > 0)
        self.check_filters(
            public=candidate.get("programid") in _PUBLIC, score=score, solar_system=near if known else None
        )

    def _wanted_stamps(
        self, record: Mapping[str, Any], candidate: dict[str, Any], band: str, place: tuple[float, float]
    ) -> tuple[WantedStamps, int]:
        """The stamps, and the flag of a nominal zero point."""
        files = self.further_images(record)
        counts, nominal = _njy_per_count(candidate.get("magzpsci"), band)

        def where(image: Image) -> tuple[tuple[float, float] | None, Matrix | None]:
            if image.header.wcs or image.header.no_wcs:  # added by another broker, which knows how it wrote the stamp
                return on_sky(image, *place)
            return _centre(image, candidate), _TO_SKY

        return WantedStamps(files, counts, where), nominal

    def earlier_points(self, records: Sequence[Mapping[str, Any]]) -> list[Points]:
        """See `BaseSurvey.earlier_points`."""
        found = []
        for make, field, values in ((_earlier, "prv_candidates", _EARLIER), (_forced, "fp_hists", _FORCED)):
            rows = [[values(item) for item in record[field] or () if item] for record in records]
            if any(rows):
                found.append(make(counted(rows), list(zip(*chain(*rows), strict=True)), self._public_alone))
        return found

    @property
    def _public_alone(self) -> bool:
        return Reason.NOT_PUBLIC in self.wanted.skip

    def time(self, record: dict[str, Any]) -> float:
        """Mid-exposure, MJD TAI, from the start of the exposure in UTC."""
        candidate = record["candidate"] or {}
        return base.mjd(_middle(candidate.get("jd"), candidate.get("exptime")))

    def earlier(self, record: Mapping[str, Any]) -> Named:
        """See `broker.packets.surveys.previous.NamesEarlier`."""
        earlier = [item for item in record["prv_candidates"] or () if item]
        return named(record["objectId"], [(item["jd"], item["candid"]) for item in earlier])


def _middle(jd: float | None, exposure: float | None) -> float | None:
    """Mid-exposure, MJD TAI, from the start of the exposure in UTC."""
    if jd is None:
        return None
    exposure = exposure if exposure is not None and 0 < exposure < 3600 else _EXPOSURE_S
    return jd - 2_400_000.5 + (exposure / 2 + _TAI_MINUS_UTC_S) / _DAY_S


Columns = Sequence[Sequence[Any]]


def _earlier(packet: NDArray[np.int64], columns: Columns, public_alone: bool) -> Points:
    """Detections and non-detections of `prv_candidates`, which do not give their exposure time."""
    jd, fid, program, isdiffpos, magpsf, sigmapsf, diffmaglim = columns
    limit = np.array([magnitude is None for magnitude in magpsf])
    signs = {written: _known_sign(written) for written in set(isdiffpos)}
    magnitude, deepest = column(magpsf), column(diffmaglim)
    flux = _fluxes(np.where(limit, deepest, magnitude))
    sign = np.array([signs[written] for written in isdiffpos])
    error = np.where(limit, flux / 5, np.abs(flux) * base.ERROR_PER_MAG * column(sigmapsf))  # a 5-sigma limit
    mjd = _middles(column(jd), np.float64(_EXPOSURE_S))
    kind = np.where(limit, UPPER_LIMIT, DETECTION)
    found = Points(packet, mjd, _places(fid), np.where(limit, 0.0, sign * flux), error, kind)
    return found.where(_usable(program, public_alone))


def _forced(packet: NDArray[np.int64], columns: Columns, public_alone: bool) -> Points:
    """Points of `fp_hists`; an error of -99999, for a flux that could not be measured, makes one invalid."""
    jd, exptime, fid, program, counts, counts_error, magzpsci = columns
    zero = column(magzpsci)
    known = (zero > _ZERO_POINTS[0]) & (zero < _ZERO_POINTS[1])
    njy = _fluxes(np.where(known, zero, np.nan))
    mjd = _middles(column(jd), column(exptime))
    kind = np.full(len(packet), FORCED)
    found = Points(packet, mjd, _places(fid), column(counts) * njy, column(counts_error) * njy, kind)
    return found.where(_usable(program, public_alone))


def _usable(program: Sequence[int | None], public_alone: bool) -> NDArray[np.int64]:
    return np.flatnonzero([not public_alone or number in _PUBLIC for number in program])


def _places(fid: Sequence[int | None]) -> NDArray[np.int64]:
    return places(_BANDS.get(number or 0) for number in fid)


def _middles(jd: NDArray[np.float64], exposure: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
    """`_middle` for many; NaN for none."""
    seconds = np.where((exposure > 0) & (exposure < 3600), exposure, _EXPOSURE_S)
    return jd - 2_400_000.5 + (seconds / 2 + _TAI_MINUS_UTC_S) / _DAY_S


def _fluxes(magnitude: NDArray[np.float64]) -> NDArray[np.float64]:
    """nJy of magnitudes; NaN for values that cannot be a magnitude."""
    real = np.where((magnitude > 0) & (magnitude < 40), magnitude, np.nan)
    # numpy's power is not the same to the last bit on every processor
    return AB_NJY * column([10**exponent for exponent in (-0.4 * real).tolist()])


def _context(candidate: Mapping[str, Any], ra: float, dec: float) -> dict[str, float]:
    """See `classifier.context`."""
    get = candidate.get
    distance, first = get("distnr"), get("jdstarthist")
    values: dict[str, float | None] = {
        "reference_distance": None if distance is None else distance * _PIXEL_ARCSEC,
        "reference_magnitude": get("magnr"),
        "reference_shape": get("sharpnr"),
        "magnitude_over_reference": _between(get("magpsf"), get("magnr")),
        "galactic_latitude": context.galactic_latitude(ra, dec),
        "detections": get("ndethist"),
        "visits": get("ncovhist"),
        "age_days": None if not first else get("jd") - first,
    }
    for (distance_field, star_field, *magnitudes), names in _CATALOGUE:
        g, r, i = map(get, magnitudes)
        numbers = get(distance_field), get(star_field), r, _between(g, r), _between(r, i)
        values.update(zip(names, numbers, strict=True))
    return context.known(values)


def _between(one: float | None, other: float | None) -> float | None:
    """The difference of two magnitudes, if both are known."""
    known = one is not None and other is not None and 0 < one < 40 and 0 < other < 40
    return one - other if known else None  # type: ignore[operator]


def _known_sign(isdiffpos: str | float | None) -> float:
    """The sign of an earlier detection; NaN where it is unknown."""
    try:
        return _sign(isdiffpos)
    except PacketError:
        return math.nan


def _sign(isdiffpos: str | float | None) -> int:
    """1 for brighter than the reference, -1 for fainter; a missing sign is never guessed."""
    written = "null" if isdiffpos is None else str(isdiffpos).strip().lower()
    if written in _BRIGHTER:
        return 1
    if written in _FAINTER:
        return -1
    raise PacketError(
        Reason.BAD_FLUX,
        f"isdiffpos is {written[:20]!a}, so the sign of the flux is unknown: "
        "have it written as t, true or 1 (brighter than the reference), or f, false, 0 or -1 (fainter)",
    )


def _njy_per_count(zero_point: float | None, band: str) -> tuple[float, int]:
    """nJy of one count, and the flag of a nominal zero point."""
    if zero_point is not None and _ZERO_POINTS[0] < zero_point < _ZERO_POINTS[1]:
        return base.flux_of(zero_point), 0
    return base.flux_of(_NOMINAL_ZERO_POINT[band]), int(Flag.NOMINAL_ZERO_POINT)


def _centre(image: Image, candidate: dict[str, Any]) -> tuple[float, float]:
    ny, nx = image.header.shape
    return _along(nx, candidate.get("xpos")), _along(ny, candidate.get("ypos"))


def _along(size: int, place: float | None) -> float:
    """The source's column (or row) in a stamp of `size`; `place` is its column (or row) in the chip."""
    if size > 2 * _HALF or place is None or math.isnan(place):
        return size // 2
    # cut at the far side: the near side is complete; cut at the near side: the far side is
    centre = _HALF if place > _CHIP_MIDDLE else size - 1 - _HALF
    return centre if 0 <= centre < size else size // 2
