"""Rubin/LSST alert packets, schema versions 7.1 to 11.

Stamps are calibrated (nJy) and sky-subtracted, in the visit's own orientation, so each is rotated by its WCS
(https://community.lsst.org/t/rotation-in-alert-postage-stamps-and-cutouts/12042). A source that belongs to a
solar-system object has no diaObject: there is no sequence of stamps to keep, so it is skipped.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from operator import itemgetter
from types import MappingProxyType
from typing import Any

import numpy as np

from skyheed.broker.errors import Reason, SkipPacket
from skyheed.broker.observation import BANDS, Flag
from skyheed.broker.packets.fits import on_sky
from skyheed.broker.packets.points import AB_NJY, Points, column, counted, places
from skyheed.broker.packets.stamps import Unfinished, WantedStamps
from skyheed.broker.packets.surveys import base
from skyheed.broker.packets.surveys.previous import EarlierSchema, Named, named
from skyheed.classifier import context
from skyheed.classifier.history import DETECTION, FORCED

_LEAST_SIGNAL = 3.0  # signal-to-noise ratio from which a reference flux has a magnitude
_POINT = itemgetter("midpointMjdTai", "band", "psfFlux", "psfFluxErr")


class Lsst(base.InSteps, EarlierSchema, base.BaseSurvey):
    """The Vera C. Rubin Observatory's Legacy Survey of Space and Time."""

    name = "lsst"
    all_bands = BANDS
    schema_file = "lsst/reader.avsc"
    earlier_file = "lsst/earlier.avsc"

    history_fields = ("prvDiaSources", "prvDiaForcedSources")
    least_score = 0.05  # the lowest among the available real packets is 0.11
    pixel_arcsec = 0.2
    pages = MappingProxyType({  # as Rubin's tutorials, TOM add-ons for ALeRCE and the babamul client link there
        "ALeRCE": "https://lsst.alerce.online/object/{}?survey=lsst",
        "Fink": "https://lsst.fink-portal.org/{}",
        "Lasair": "https://lasair.lsst.ac.uk/objects/{}/",
        "Babamul": "https://babamul.caltech.edu/objects/LSST/{}",
    })  # fmt: skip

    def begin(self, record: dict[str, Any]) -> Unfinished:
        """See `InSteps.begin`."""
        source = record["diaSource"] or {}
        source_id = base.source_id(source.get("diaSourceId"))
        object_id = _object_id(record, source)
        mjd = self.time(record)
        ra, dec = base.position(source.get("ra"), source.get("dec"))
        band = self.check_band(source.get("band") or "")
        flux, flux_error = base.flux(source.get("psfFlux")), base.flux(source.get("psfFluxErr"))
        score = 0.0 if source.get("glint_trail") else source.get("reliability")
        self.check_filters(public=True, score=score, solar_system=0.0 if _is_solar_system(record, source) else None)
        wanted = WantedStamps(self.further_images(record), 1.0, lambda image: on_sky(image, ra, dec), base.calibrated)
        flags = int(Flag.NEGATIVE) if flux < 0 else 0
        own = base.DetectionFields(object_id, source_id, mjd, band, ra, dec, flux, flux_error, flags)
        return self.unfinished(own, wanted, lambda: _context(record, source, mjd, (ra, dec)), record)

    def earlier_points(self, records: Sequence[Mapping[str, Any]]) -> list[Points]:
        """See `BaseSurvey.earlier_points`."""
        found = []
        for kind, field in ((DETECTION, "prvDiaSources"), (FORCED, "prvDiaForcedSources")):
            rows = [[_POINT(item) for item in record[field] or () if item] for record in records]
            if any(rows):
                mjd, band, flux, error = zip(*chain(*rows), strict=True)
                kinds = np.full(len(mjd), kind)
                found.append(Points(counted(rows), column(mjd), places(band), column(flux), column(error), kinds))
        return found

    def time(self, record: dict[str, Any]) -> float:
        """Mid-exposure, MJD TAI."""
        return base.mjd((record["diaSource"] or {}).get("midpointMjdTai"))

    def earlier(self, record: Mapping[str, Any]) -> Named:
        """See `broker.packets.surveys.previous.NamesEarlier`."""
        earlier = [item for item in record["prvDiaSources"] or () if item]
        object_id = (record["diaSource"] or {}).get("diaObjectId")
        return named(object_id, [(item["midpointMjdTai"], item["diaSourceId"]) for item in earlier])


def _object_id(record: dict[str, Any], source: dict[str, Any]) -> str:
    for holder in (record["diaObject"] or {}, source):
        if _given(holder.get("diaObjectId")):
            return base.object_id(holder["diaObjectId"])
    if _is_solar_system(record, source):
        raise SkipPacket(Reason.SOLAR_SYSTEM, f"a source of solar-system object {ascii(source.get('ssObjectId'))[:40]}")
    return base.object_id(None)


def _is_solar_system(record: Mapping[str, Any], source: Mapping[str, Any]) -> bool:
    return record["ssSource"] is not None or record["ssObject"] is not None or _given(source.get("ssObjectId"))


def _context(
    record: Mapping[str, Any], source: Mapping[str, Any], mjd: float, place: tuple[float, float]
) -> dict[str, float]:
    """See `classifier.context`; where schemas do not count an object's detections, all of them are in the packet."""
    own, earlier = record["diaObject"] or {}, [p for p in record["prvDiaSources"] or () if p]
    times = [mjd, *(p["midpointMjdTai"] for p in earlier if p["midpointMjdTai"] is not None)]
    if (first := own.get("firstDiaSourceMjdTai") or 0.0) > 0:  # brokers use NaN for none
        times.append(first)
    reference = _reference_magnitude(source)
    alert = _magnitude(abs(base.finite(source.get("psfFlux"))))
    over = None if alert is None or reference is None else alert - reference
    return context.known({
        "reference_magnitude": reference, "detection_extendedness": source.get("extendedness"),
        "magnitude_over_reference": over, "galactic_latitude": context.galactic_latitude(*place),
        "detections": own.get("nDiaSources") or len(earlier) + 1,
        "age_days": mjd - min(times),
        **{f"catalogue_{k}_distance": own.get(f"nearbyObj{k}Dist") for k in range(1, context.CATALOGUE + 1)},
    })  # fmt: skip


def _reference_magnitude(source: Mapping[str, Any]) -> float | None:
    """Magnitude of the template at the object's position, if there is a source in it."""
    flux, error = source.get("templateFlux"), source.get("templateFluxErr")
    return _magnitude(flux) if flux is not None and error is not None and flux >= _LEAST_SIGNAL * error > 0 else None


def _magnitude(flux: float) -> float | None:
    """AB magnitude of a flux (nJy), if it has one."""
    return -2.5 * math.log10(flux / AB_NJY) if 0 < flux < math.inf else None


def _given(number: int | str | None) -> bool:
    return number is not None and str(number).strip() not in ("", "0")
