"""Rubin/LSST alert packets, schema versions 7.1 to 11.

Stamps are calibrated (nJy) and sky-subtracted, in the visit's own orientation, so each is turned by its WCS
(https://community.lsst.org/t/rotation-in-alert-postage-stamps-and-cutouts/12042). A source that belongs to a
solar-system object has no diaObject: there is no sequence of stamps to keep, so it is skipped.
"""

from typing import Any

from skyheed.broker.errors import PacketError, Reason, SkipPacket
from skyheed.broker.observation import Flag, Observation
from skyheed.broker.packets.fits import read_image, sky_stamp
from skyheed.broker.packets.surveys import base


class Lsst(base.BaseSurvey):
    """The Vera C. Rubin Observatory's Legacy Survey of Space and Time."""

    name = "lsst"
    all_bands = "ugrizy"
    schema_file = "lsst/reader.avsc"

    def observation(self, record: dict[str, Any]) -> Observation:
        """See `broker.surveys.Survey.observation`."""
        source = record["diaSource"] or {}
        source_id = base.source_id(source.get("diaSourceId"))
        object_id = _object_id(record, source)
        mjd = self.time(record)
        ra, dec = base.position(source.get("ra"), source.get("dec"))
        band = self.check_band(source.get("band") or "")
        flux = base.flux(source.get("psfFlux"))
        image = read_image(base.stamp_bytes(record[self.stamp_field], self.stamp))
        if image.unit != "nJy":
            raise PacketError(Reason.BAD_FITS, f"the stamp's unit is {image.unit[:20]!r}, not nJy")
        stamp, flags = sky_stamp(image, 1.0, ra, dec)
        return Observation(
            object_id=object_id,
            source_id=source_id,
            mjd=mjd,
            band=band,
            ra=ra,
            dec=dec,
            flux=flux,
            flux_error=base.flux(source.get("psfFluxErr")),
            stamp=stamp,
            flags=int(flags | (Flag.NEGATIVE if flux < 0 else 0)),
        )

    def time(self, record: dict[str, Any]) -> float:
        """Mid-exposure, MJD TAI."""
        return base.mjd((record["diaSource"] or {}).get("midpointMjdTai"))


def _object_id(record: dict[str, Any], source: dict[str, Any]) -> str:
    for holder in (record["diaObject"] or {}, source):
        if _given(holder.get("diaObjectId")):
            return base.object_id(holder["diaObjectId"])
    solar_system = record["ssSource"] is not None or record["ssObject"] is not None or _given(source.get("ssObjectId"))
    if solar_system:
        raise SkipPacket(Reason.SOLAR_SYSTEM, f"a source of solar-system object {ascii(source.get('ssObjectId'))[:40]}")
    return base.object_id(None)


def _given(number: int | str | None) -> bool:
    return number is not None and str(number).strip() not in ("", "0")
