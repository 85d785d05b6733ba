"""What fastavro and astropy read from a packet that skyheed accepted; for `fuzz.py`."""

import gzip
import io
import math
import warnings
from functools import cached_property, lru_cache
from typing import Any

import fastavro
import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray

from skyheed.broker.packets.fits import Image, read_image
from skyheed.broker.packets.surveys import Survey
from skyheed.broker.packets.surveys.base import stamp_data

PRIMITIVES = frozenset("null boolean int long float double bytes string".split())
PLACE_PIXELS = 1e-3  # how far the two may put the source apart


class ReferenceFailed(Exception):
    """fastavro or astropy does not read what we accept; the message names it and its error."""


class Differs(Exception):
    """The two read another value; the message says which."""


def compare(survey: Survey, payload: bytes, schema: Any, ours: list[dict[str, Any]]) -> None:
    """Compare the records of one message, and the image of each record's stamp.

    Args:
        schema: the writer schema of a Confluent message; None for a container.

    Raises:
        ReferenceFailed, Differs
    """
    theirs = _records(payload, schema)
    if len(ours) != len(theirs):
        raise Differs(f"{len(ours)} records, fastavro has {len(theirs)}")
    for mine, other in zip(ours, theirs, strict=True):
        _agree(survey.reader_schema["fields"], mine, other, "")
        for name in sorted(mine):
            if name.startswith("cutout") and (data := stamp_data(mine[name])):
                _same_image(data, mine)


def _records(payload: bytes, schema: Any) -> list[dict[str, Any]]:
    try:
        if schema is None:
            return list(fastavro.reader(io.BytesIO(payload)))  # type: ignore[arg-type]
        return [fastavro.schemaless_reader(io.BytesIO(payload[5:]), schema, None)]  # type: ignore[list-item]
    except Exception as error:
        raise ReferenceFailed(f"fastavro: {type(error).__name__}") from error


def _agree(fields: list[dict[str, Any]], mine: dict[str, Any], other: dict[str, Any], where: str) -> None:
    for field in fields:
        name = field["name"]
        kinds = field["type"] if isinstance(field["type"], list) else [field["type"]]
        _agree_on(kinds, mine.get(name), other.get(name), f"{where}{name}")


def _agree_on(kinds: list[Any], got: Any, expected: Any, where: str) -> None:
    """One value; types that are only named (`anything` is one) are looked at where they are defined."""
    for kind in kinds:
        if not isinstance(kind, dict):
            continue
        if kind["type"] == "record" and isinstance(got, dict) and isinstance(expected, dict):
            return _agree(kind["fields"], got, expected, f"{where}.")
        if kind["type"] == "array" and isinstance(got, list) and isinstance(expected, list):
            if len(got) != len(expected):
                raise Differs(f"{where} has {len(got)} items, fastavro has {len(expected)}")
            for mine, other in zip(got, expected, strict=True):
                _agree_on([kind["items"]], mine, other, where)
            return None
    known = all(isinstance(kind, dict) or kind in PRIMITIVES for kind in kinds)
    if (known or isinstance(expected, int | float)) and not _same(got, expected):
        raise Differs(f"{where} is {str(got)[:40]!a}, fastavro has {str(expected)[:40]!a}")
    return None


def _same(got: Any, expected: Any) -> bool:
    if isinstance(got, str) and isinstance(expected, bytes):
        return got.encode() == expected
    if isinstance(got, bytes) and isinstance(expected, str):
        return got == expected.encode()
    if isinstance(got, float) and isinstance(expected, int | float):
        return got == float(expected) or (math.isnan(got) and math.isnan(expected))
    return bool(got == expected)


class Reference:
    """An image as astropy reads it, and, when first asked for, its WCS."""

    def __init__(self, data: bytes) -> None:
        self.pixels, self._header = _astropy(data)

    @cached_property
    def wcs(self) -> WCS:
        """Its WCS."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                header = self._header.copy()  # fails where a card cannot be parsed, though none needs it
                if "CTYPE1" not in header:  # Rubin's are tangential without saying so
                    header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
                return WCS(header, fix=False)
        except Exception as error:
            raise ReferenceFailed(f"astropy.wcs: {type(error).__name__}: {str(error)[:50]}") from error


@lru_cache(maxsize=2000)  # most accepted mutants are damaged elsewhere and have one of a few hundred sound stamps
def _reference(data: bytes) -> Reference:
    return Reference(data)


def _same_image(data: bytes, record: dict[str, Any]) -> None:
    ours, theirs = read_image(data), _reference(data)
    if ours.pixels.shape != theirs.pixels.shape:
        raise Differs(f"an image of {ours.pixels.shape}, astropy has {theirs.pixels.shape}")
    if not np.array_equal(ours.pixels, theirs.pixels, equal_nan=True):
        raise Differs("pixels, astropy has others")
    if ours.header.wcs is not None:
        _same_place(ours, theirs, record)


def _astropy(data: bytes) -> tuple[NDArray[np.float32], fits.Header]:
    try:
        raw = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with fits.open(io.BytesIO(raw), memmap=False) as units, np.errstate(all="ignore"):
                unit = next(unit for unit in units[:2] if unit.data is not None)
                return np.asarray(unit.data, np.float32), unit.header
    except Exception as error:
        raise ReferenceFailed(f"astropy.io.fits: {type(error).__name__}: {str(error)[:50]}") from error


def _same_place(ours: Image, theirs: Reference, record: dict[str, Any]) -> None:
    where = record.get("candidate") or record.get("diaSource") or record
    assert ours.header.wcs is not None
    x, y = ours.header.wcs.pixel_of(where["ra"], where["dec"])
    wcs = theirs.wcs
    try:
        there = wcs.all_world2pix(where["ra"], where["dec"], 0)
    except Exception as error:
        raise ReferenceFailed(f"astropy.wcs: {type(error).__name__}") from error
    far = max(1.0, *(abs(float(v)) for v in there if math.isfinite(v)), 1.0)
    if not np.allclose((x, y), there, rtol=0, atol=PLACE_PIXELS * max(1.0, far / 1e5), equal_nan=True):
        raise Differs(f"the source at ({x:.3f}, {y:.3f}), astropy has ({float(there[0]):.3f}, {float(there[1]):.3f})")
