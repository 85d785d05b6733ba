"""Rubin-shaped alert messages of our own making: the size and the nesting of the real ones, with simulated stamps.

Fields follow the public schema 10.0 (package lsst-alert-packet); values are drawn at random. Cutouts have what Rubin's
have: 30x30 pixels and their uncertainties in float32, a PSF image of 41x41 pixels in float64, each with a header,
uncompressed: 34,560 bytes.
"""

import functools
import io
from collections.abc import Iterator
from typing import Any

import fastavro
import numpy as np
from astropy.io import fits

SCHEMA = 1000  # the number of version 10.0 in the first bytes of a message
STAMP, PSF = 30, 41  # pixels on a side
PIXEL_DEG = 0.2 / 3600
START_MJD, NIGHTS = 61000.0, 1.5  # days between the earlier points of an object
POOL = 64
PRODUCER = {"compression.type": "snappy"}  # as Rubin's own (lsst/ap_association, packageAlerts.py)
FORCED = 10  # forced points in a packet
FIRST_OBJECT = 10**17
PLACES = (-999.125, -89.125)  # of the placeholders in a header, right ascension and declination
KINDS = ("Science", "Template", "Difference")
KNOWN = {"band": "r", "psfFlux": 2e4, "psfFluxErr": 120.0, "reliability": 0.9, "glint_trail": False, "ssObjectId": None}


def name(number: int) -> str:
    """The id of an object as skyheed reads it."""
    return str(FIRST_OBJECT + number)


@functools.cache
def schema() -> Any:
    """The parsed writer schema."""
    from lsst.alert.packet import Schema, get_schema_path

    version = divmod(SCHEMA, 100)
    path = f"{get_schema_path(*version)}/lsst.v{version[0]}_{version[1]}.alert.avsc"
    return fastavro.parse_schema(Schema.from_file(path).definition, named_schemas={})


def packets(objects: int, epochs: int, seed: int = 1, history: int = 20) -> Iterator[bytes]:
    """Messages of `objects` seen at `epochs` times each, as benchmarks/packets.py.

    Args:
        history: number of earlier detections in each packet.
    """
    rng = np.random.default_rng(seed)
    pool = [cutouts(rng) for _ in range(POOL)]
    fillings = {kind: _fillings(rng, kind) for kind in ("diaSource", "diaForcedSource", "diaObject")}
    places = np.column_stack([rng.uniform(0, 360, objects), rng.uniform(-70, 10, objects)]).tolist()
    for epoch in range(epochs):
        for number in range(objects):
            detection = (epoch * objects + number + 1) * 1000 + 15
            where, first = dict(zip(("ra", "dec"), places[number], strict=True)), int(rng.integers(POOL))
            ids = {"diaObjectId": FIRST_OBJECT + number, **where}
            record = _photometry(fillings, ids, detection, START_MJD + 2 * epoch, history, first)
            stamps = {f"cutout{kind}": put(part, **where) for kind, part in zip(KINDS, pool[first], strict=True)}
            yield _message({**record, **stamps})


def _photometry(
    fillings: dict[str, list[dict[str, Any]]], ids: dict[str, Any], detection: int, mjd: float, history: int, first: int
) -> dict[str, Any]:
    """Everything in a packet but its cutouts."""

    def of(kind: str, ago: int) -> dict[str, Any]:
        return {**fillings[kind][(first + ago) % POOL], **ids, "midpointMjdTai": mjd - NIGHTS * ago}

    earlier = range(history, 0, -1)
    return {
        "diaSourceId": detection, "observation_reason": "survey", "target_name": "field",
        "diaSource": {**of("diaSource", 0), "diaSourceId": detection},
        "prvDiaSources": [{**of("diaSource", ago), "diaSourceId": detection * 100 + ago} for ago in earlier],
        "prvDiaForcedSources": [of("diaForcedSource", ago) for ago in range(FORCED, 0, -1)],
        "diaObject": {
            **fillings["diaObject"][first], **ids, "nDiaSources": history + 1,
            "firstDiaSourceMjdTai": mjd - NIGHTS * history,
        },
    }  # fmt: skip


def _message(record: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    out.write(b"\0" + SCHEMA.to_bytes(4, "big"))
    fastavro.schemaless_writer(out, schema(), record)
    return out.getvalue()


def cutouts(rng: np.random.Generator) -> list[tuple[bytes, int, int]]:
    """The three cutouts of a point source, which have the same header, as Rubin's do."""
    turn, flux = rng.uniform(0, 2 * np.pi), 10 ** rng.uniform(3, 5)
    return [_cutout(rng, turn, flux * (kind != "Template")) for kind in KINDS]


def _cutout(rng: np.random.Generator, turn: float, flux: float) -> tuple[bytes, int, int]:
    """A FITS file of a point source, and where in it the right ascension and the declination stand."""
    y, x = np.mgrid[:STAMP, :STAMP] - STAMP / 2 + 0.5
    image = rng.normal(0, 50, (STAMP, STAMP)) + flux / 25 * np.exp(-(x**2 + y**2) / 8)
    primary = fits.PrimaryHDU(image.astype(np.float32))
    cos, sin = PIXEL_DEG * np.cos(turn), PIXEL_DEG * np.sin(turn)
    primary.header.update({
        "CUTMINX": 100, "CUTMINY": 200, "ROTPA": float(np.degrees(turn)), "BUNIT": "nJy", "WCSAXES": 2,
        "CRPIX1": 15.5, "CRPIX2": 15.5, "PC1_1": -cos, "PC1_2": sin, "PC2_1": sin, "PC2_2": cos,
        "CDELT1": 1.0, "CDELT2": 1.0, "CUNIT1": "deg", "CUNIT2": "deg", "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN",
        "CRVAL1": PLACES[0], "CRVAL2": PLACES[1],
    })  # fmt: skip
    error = fits.ImageHDU(np.full((STAMP, STAMP), 50, np.float32), name="UNCERT")
    psf = fits.ImageHDU(rng.normal(0, 1e-3, (PSF, PSF)), name="PSFIMAGE")
    out = io.BytesIO()
    fits.HDUList([primary, error, psf]).writeto(out)
    data = out.getvalue()
    return data, data.index(b"CRVAL1") + 10, data.index(b"CRVAL2") + 10


def put(stamp: tuple[bytes, int, int], ra: float, dec: float) -> bytes:
    """A cutout moved to a place on the sky (deg)."""
    data, *starts = stamp
    out = bytearray(data)
    for start, value in zip(starts, (ra, dec), strict=True):
        out[start : start + 20] = b"%20.12f" % value
    return bytes(out)


def _fillings(rng: np.random.Generator, record: str) -> list[dict[str, Any]]:
    """Values for all fields of a record, drawn at random but for those that filters read."""
    fields = _fields(record)
    return [{f["name"]: KNOWN.get(f["name"], _value(f["type"], rng)) for f in fields} for _ in range(POOL)]


def _fields(record: str) -> Any:
    top = {f["name"]: f["type"] for f in schema()["fields"]}
    found = {
        "diaSource": top["diaSource"],
        "diaForcedSource": top["prvDiaForcedSources"][1]["items"],
        "diaObject": top["diaObject"][1],
    }
    return found[record]["fields"]


def _value(kind: Any, rng: np.random.Generator) -> Any:
    if isinstance(kind, list):
        kind = next((k for k in kind if k != "null"), "null")
    if kind in ("float", "double"):
        return float(rng.normal())
    if kind in ("int", "long"):
        return int(rng.integers(9999))
    return {"boolean": False, "string": "text", "null": None}.get(kind if isinstance(kind, str) else "")
