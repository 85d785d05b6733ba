"""ZTF alert packets, schema versions 3.0 to 4.02, as IPAC writes them or as brokers wrote them again.

Facts that the schema does not tell, each checked on real packets by tests/test_surveys.py:
- Stamps have no WCS (one that another broker added is applied). Rows run from north to south and columns from east to
  west: the nearest reference source (candidate.ranr, decnr) is where that orientation puts it.
- Science and template stamps include the sky (border medians of 70 to 370 counts); the normaliser takes it off.
- The template is scaled to the science image (the same sky), so that magzpsci holds for all three stamps.
- Difference stamps are signed so that the source is bright, also where isdiffpos is f (E. Bellm and others,
  https://community.lsst.org/t/cutout-types-in-alerts/10619).
- At a chip's edge a stamp is cut short, and the source is not in its middle but at column xpos - 1 (xpos counts
  from 1, as ypos does) as far as the image reaches back.

Cite Bellm+2019 (PASP 131, 018002), Masci+2019 (PASP 131, 018003), Patterson+2019 (PASP 131, 018001).
"""

import math
from typing import Any

from skyheed.broker.errors import PacketError, Reason
from skyheed.broker.observation import Flag, Observation
from skyheed.broker.packets.fits import Image, model_stamp, read_image, sky_stamp
from skyheed.broker.packets.surveys import base

_BANDS = {1: "g", 2: "r", 3: "i"}
# TAI - UTC since 2017-01-01 (IERS Bulletin C 52), before ZTF's first alert; no leap second was added since.
_TAI_MINUS_UTC_S = 37.0
_EXPOSURE_S = 30.0  # of the public surveys; used where the packet does not say
_DAY_S = 86_400.0
# Magnitude of one count: F. Masci, "The ZTF Pipelines and Deliverables", section 10.1.2. The medians of 242 real
# packets are 26.27 (g) and 26.25 (r).
_NOMINAL_ZERO_POINT = {"g": 26.325, "r": 26.275, "i": 25.660}
_ZERO_POINTS = 15.0, 35.0  # anything else (-999, NaN) stands for "none"
_TO_SKY = ((-1.0, 0.0), (0.0, -1.0))
_HALF = 31  # pixels: a whole stamp has 63, the source in the middle one
_CHIP_MIDDLE = 1540.0  # a readout quadrant has 3072 x 3080 pixels
# ZTF writes t and f; brokers that write packets again also 1, 0 and -1, booleans, and all of these as text.
_BRIGHTER, _FAINTER = frozenset(("t", "true", "1", "+1", "1.0")), frozenset(("f", "false", "0", "-1", "0.0", "-1.0"))


class Ztf(base.BaseSurvey):
    """The Zwicky Transient Facility."""

    name = "ztf"
    all_bands = "gri"
    schema_file = "ztf/reader.avsc"

    def observation(self, record: dict[str, Any]) -> Observation:
        """See `broker.surveys.Survey.observation`."""
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
        flags = Flag.NEGATIVE if sign < 0 else 0
        counts, nominal = _njy_per_count(candidate.get("magzpsci"), band)
        image = read_image(base.stamp_bytes(record[self.stamp_field], self.stamp))
        if image.wcs or image.no_wcs:  # another broker's: it knows how it wrote the stamp
            stamp, made = sky_stamp(image, counts, ra, dec)
        else:
            stamp, made = model_stamp(image, counts, _centre(image, candidate), _TO_SKY)
        if self.stamp == "difference" and sign < 0:
            stamp = -stamp
        return Observation(
            object_id=object_id,
            source_id=source_id,
            mjd=mjd,
            band=band,
            ra=ra,
            dec=dec,
            flux=flux,
            flux_error=base.flux_error_of(flux, candidate.get("sigmapsf")),
            stamp=stamp,
            flags=int(flags | nominal | made),
        )

    def time(self, record: dict[str, Any]) -> float:
        """Mid-exposure, MJD TAI, from the start of the exposure in UTC."""
        candidate = record["candidate"] or {}
        jd, exposure = candidate.get("jd"), candidate.get("exptime")
        if jd is None:
            return base.mjd(None)
        exposure = exposure if exposure is not None and 0 < exposure < 3600 else _EXPOSURE_S
        return base.mjd(jd - 2_400_000.5 + (exposure / 2 + _TAI_MINUS_UTC_S) / _DAY_S)


def _sign(isdiffpos: str | float | None) -> int:
    """1 for brighter than the reference, -1 for fainter; no sign is guessed."""
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
    return base.flux_of(_NOMINAL_ZERO_POINT[band]), Flag.NOMINAL_ZERO_POINT


def _centre(image: Image, candidate: dict[str, Any]) -> tuple[float, float]:
    ny, nx = image.pixels.shape
    return _along(nx, candidate.get("xpos")), _along(ny, candidate.get("ypos"))


def _along(size: int, place: float | None) -> float:
    """The source's column (or row) in a stamp of `size`; `place` is its column in the chip."""
    if size > 2 * _HALF or place is None or math.isnan(place):
        return size // 2
    # cut at the far side: the near side is whole; cut at the near side: the far side is
    centre = _HALF if place > _CHIP_MIDDLE else size - 1 - _HALF
    return centre if 0 <= centre < size else size // 2
