"""SDSS, replayed from an archive: skyheed's own alert schema, written and read.

SDSS had no alert stream; `alert_from_archive` writes the packets that it would have sent, and `Sdss` reads them.
"""

import io
import json
import math
from functools import lru_cache
from hashlib import md5
from importlib.resources import files
from typing import Any

import fastavro
import numpy as np
from isal import igzip
from numpy.typing import NDArray

from skyheed.broker.observation import Flag
from skyheed.broker.packets.container import container_block, container_header
from skyheed.broker.packets.fits import on_sky
from skyheed.broker.packets.stamps import Unfinished, WantedStamps
from skyheed.broker.packets.surveys import base
from skyheed.classifier import context

SCHEMA_FILE = "sdss_alert/v1/alert.avsc"
STAMP_SIDE = 64  # pixels
PIXEL_ARCSEC = 0.396  # Gunn+1998, AJ 116, 3040
CENTRE = STAMP_SIDE // 2  # the object's column and row, counted from 0, as in classifier.archive
_BLOCK, _CARD = 2880, 80


class Sdss(base.InSteps, base.BaseSurvey):
    """The SDSS-II Supernova Survey and Stripe 82."""

    name = "sdss"
    all_bands = "ugriz"
    stamp_kinds = ("science",)
    schema_file = "sdss_alert/v1/reader.avsc"
    pixel_arcsec = PIXEL_ARCSEC

    def begin(self, record: dict[str, Any]) -> Unfinished:
        """See `InSteps.begin`."""
        object_id = base.object_id(record["objectId"])
        source_id = base.source_id(record["sourceId"])
        mjd = self.time(record)
        ra, dec = base.position(record["ra"], record["dec"])
        band = self.check_band(record["band"] or "")
        flux = base.flux(record["flux"])
        wanted = WantedStamps(self.further_images(record), 1.0, lambda image: on_sky(image, ra, dec), base.calibrated)
        flux_error, flags = base.flux(record["fluxError"]), int(Flag.NEGATIVE) if flux < 0 else 0
        own = base.DetectionFields(object_id, source_id, mjd, band, ra, dec, flux, flux_error, flags)
        return self.unfinished(
            own, wanted, lambda: context.known({"galactic_latitude": context.galactic_latitude(ra, dec)})
        )

    def time(self, record: dict[str, Any]) -> float:
        """Mid-exposure, MJD TAI."""
        return base.mjd(record["mjd"])


def alert_from_archive(
    *,
    object_id: str,
    source_id: int,
    mjd: float,
    band: str,
    ra: float,
    dec: float,
    stamp: NDArray[np.floating[Any]],
    flux: float | None = None,
    flux_error: float | None = None,
    psf_fwhm: float | None = None,
    zero_point: float | None = None,
    sky_noise: float | None = None,
) -> bytes:
    """One alert packet (Avro container with its schema); the same values always give the same bytes.

    Args:
        source_id: 0 to 2^63-1.
        mjd: mid-exposure, MJD TAI.
        ra, dec: degrees, ICRS, of the object, which is at pixel [32, 32] of the stamp.
        stamp: [64, 64], nJy per pixel, rows from south to north, columns from east to west, 0.396 arcsec a pixel.
        flux, flux_error: nJy.
        psf_fwhm: arcsec.
        zero_point: AB magnitude of one count of the original frame.
        sky_noise: nJy per pixel.
    """
    schema, header, sync = _container()
    record = {
        "objectId": object_id,
        "sourceId": int(source_id),
        "mjd": float(mjd),
        "band": band,
        "ra": float(ra),
        "dec": float(dec),
        "flux": _known(flux),
        "fluxError": _known(flux_error),
        # higher levels take longer and gain nothing on noise
        "cutoutScience": igzip.compress(_fits(stamp, ra, dec), 1, mtime=0),
        "psfFwhm": _known(psf_fwhm),
        "zeroPoint": _known(zero_point),
        "skyNoise": _known(sky_noise),
    }
    body = io.BytesIO()
    fastavro.schemaless_writer(body, schema, record)
    return header + container_block(body.getvalue(), sync)


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


@lru_cache(1)
def _container() -> tuple[Any, bytes, bytes]:
    """The parsed schema, the beginning of every packet and the sync marker."""
    definition = json.loads(files("skyheed.schemas").joinpath(SCHEMA_FILE).read_text())
    text = json.dumps(definition, separators=(",", ":")).encode()
    sync = md5(text, usedforsecurity=False).digest()
    # a separate dict, because fastavro keeps the named types of all schemas in a global one
    schema = fastavro.parse_schema(definition, named_schemas={})
    return schema, container_header(text, sync), sync


def _fits(stamp: NDArray[np.floating[Any]], ra: float, dec: float) -> bytes:
    """The stamp as a FITS file with a tangent-plane WCS."""
    if stamp.shape != (STAMP_SIDE, STAMP_SIDE):
        raise ValueError(f"a stamp of shape {stamp.shape}, not {(STAMP_SIDE, STAMP_SIDE)}")
    pixels = stamp.astype(">f4").tobytes()
    padding = bytes(-len(pixels) % _BLOCK)
    position = _card("CRVAL1", f"{ra:.10f}") + _card("CRVAL2", f"{dec:.10f}")
    return (_fixed_cards() + position + b"END").ljust(_BLOCK) + pixels + padding


@lru_cache(1)
def _fixed_cards() -> bytes:
    step = PIXEL_ARCSEC / 3600
    cards = {
        "SIMPLE": "T", "BITPIX": "-32", "NAXIS": "2", "NAXIS1": str(STAMP_SIDE), "NAXIS2": str(STAMP_SIDE),
        "BUNIT": "'nJy     '", "CTYPE1": "'RA---TAN'", "CTYPE2": "'DEC--TAN'", "CUNIT1": "'deg     '",
        "CUNIT2": "'deg     '", "CRPIX1": f"{CENTRE + 1}.0", "CRPIX2": f"{CENTRE + 1}.0",
        "CD1_1": f"{-step:.12E}", "CD1_2": "0.0", "CD2_1": "0.0", "CD2_2": f"{step:.12E}",
        "RADESYS": "'ICRS    '",
    }  # fmt: skip
    return b"".join(_card(key, value) for key, value in cards.items())


def _card(key: str, value: str) -> bytes:
    value = value.ljust(20) if value.startswith("'") else value.rjust(20)
    return f"{key:<8}= {value}".ljust(_CARD).encode()
