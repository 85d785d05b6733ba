"""Alert packets of every survey, and damaged copies of them: for `fuzz.py`.

A copy is damaged in one of six ways: bytes of the message, bytes of the record inside a sound frame, one value of the
record, bytes of the stamp's file, bytes of the image inside a sound gzip, or cards of its header.
"""

import io
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import packets
from astropy.io import fits
from isal import igzip, isal_zlib

from skyheed.broker.packets.container import container_block, container_header
from skyheed.broker.packets.surveys.sdss import alert_from_archive

OWN_SCHEMA = 77_000_077  # the number of our own LSST-shaped writer schema
SYNC = bytes(range(16))
GZIP = b"\x1f\x8b"
STAMP = "cutoutScience"
NUMBERS: list[Any] = [0, 1, -1, 2, 3, 4, -999, 2**31, 2**63 - 1, -(2**63)]
FLOATS = [0.0, -0.0, -999.0, 360.0, 90.0, -90.0, 1e-300, 1e300, 3e38, math.inf, -math.inf, math.nan, 60000.5]
WORDS = ["", "t", "f", "0", "-1", "x" * 300, "../../etc", "A\x1b]0;x\x07", "null", "nan", "r", "é", "\u202e"]
KEYWORDS = (
    "BITPIX NAXIS NAXIS1 NAXIS2 NAXIS3 BSCALE BZERO BLANK BUNIT CTYPE1 CTYPE2 CUNIT1 CRPIX1 CRVAL1 CRVAL2 CDELT1 "
    "CDELT2 CROTA1 CROTA2 CD1_1 CD1_2 CD2_1 CD2_2 PC1_1 PC001001 LONPOLE LATPOLE PV1_1 PV2_1 A_ORDER A_2_0 EQUINOX "
    "RADESYS WCSAXES EXTEND COMMENT END SIMPLE"
).split()
VALUES = (
    "0 1 -1 2 3 -32 8 16 32 64 -64 63 1024 1025 99999999999 1E400 1D-5 -0.0001 180.0 NaN T F 'deg' 'nJy' 'RA---TAN' "
    "'DEC--TAN' 'RA---SIP' 'FK4' '''' '' 0x10 1.5 /"
).split()


@dataclass(frozen=True)
class Original:
    """A sound packet, and what is needed to write it again.

    Attributes:
        prefix: Confluent's; empty for a container.
        image: the stamp's FITS file, unzipped.
    """

    survey: str
    real: bool
    payload: bytes
    schema: Any
    text: bytes
    prefix: bytes
    record: dict[str, Any]
    image: bytes

    @property
    def stamp(self) -> bytes:
        """The stamp's file."""
        found = self.record[STAMP]
        return found["stampData"] if isinstance(found, dict) else found

    def body(self) -> bytes:
        """The record, Avro binary encoding."""
        return b"".join(self._fields.values())

    def with_field(self, name: str, value: Any) -> bytes:
        """The message with another value of one field of the record."""
        return self.framed(b"".join((self._fields | {name: self._encoded(name, value)}).values()))

    def framed(self, body: bytes) -> bytes:
        """A record's bytes as a message."""
        if self.prefix:
            return self.prefix + body
        return container_header(self.text, SYNC) + container_block(body, SYNC)

    def with_stamp(self, stamp: bytes) -> bytes:
        """The message with another stamp."""
        before, _, after = self._parts
        return self.framed(before + _long(len(stamp)) + stamp + after)

    @cached_property
    def _schemas(self) -> dict[str, Any]:
        """A schema of each field, which knows the types that stand in earlier ones."""
        known: dict[str, Any] = {}
        one: dict[str, Any] = {"type": "record", "name": "skyheed.one_field"}
        return {
            field["name"]: fastavro.parse_schema(one | {"fields": [field]}, named_schemas=known, _force=True)
            for field in self.schema["fields"]
        }

    @cached_property
    def _fields(self) -> dict[str, bytes]:
        """Each field's bytes: writing a whole record takes fastavro longer than all that is measured here."""
        return {name: self._encoded(name, self.record[name]) for name in self._schemas}

    def _encoded(self, name: str, value: Any) -> bytes:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, self._schemas[name], {name: value})
        return out.getvalue()

    @cached_property
    def _parts(self) -> tuple[bytes, bytes, bytes]:
        """The record's bytes: before the stamp, its length and the stamp, behind it."""
        whole, stamp = self.body(), _long(len(self.stamp)) + self.stamp
        at = whole.index(stamp)
        return whole[:at], stamp, whole[at + len(stamp) :]

    def with_image(self, image: bytes) -> bytes:
        """The message with another image in its stamp, zipped as the stamp was."""
        return self.with_stamp(igzip.compress(image, 1) if self.stamp.startswith(GZIP) else image)


# --- sound packets -------------------------------------------------------------------------------------------


def own() -> Iterator[Original]:
    """Simulated packets of the three surveys."""
    rng = np.random.default_rng(1)
    for payload in packets.packets(6, 1, history=5):
        yield from _of_container("ztf", False, payload)
    for number in range(6):
        pixels = rng.normal(0, 100, (64, 64)).astype(np.float32)
        yield from _of_container("sdss", False, alert_from_archive(
            object_id=f"F{number}", source_id=number, mjd=54000.0 + number, band="ugriz"[number % 5], ra=10.0,
            dec=0.5, stamp=pixels, flux=2e4, flux_error=100.0, psf_fwhm=1.3, zero_point=22.5, sky_noise=100.0,
        ))  # fmt: skip
        yield _lsst(number, rng)


def own_schema() -> bytes:
    """The writer schema of our own LSST-shaped packets, JSON text."""
    return files("skyheed.schemas").joinpath("lsst/reader.avsc").read_bytes()


def _lsst(number: int, rng: np.random.Generator) -> Original:
    schema = fastavro.parse_schema(json.loads(own_schema()), named_schemas={})
    turn, scale = math.radians(25 * number), 0.2 / 3600
    cards = {
        "BUNIT": "nJy", "CRPIX1": 15.5, "CRPIX2": 15.5, "CRVAL1": 57.7, "CRVAL2": -48.2, "CDELT1": 1.0, "CDELT2": 1.0,
        "PC1_1": -scale * math.cos(turn), "PC1_2": scale * math.sin(turn), "PC2_1": scale * math.sin(turn),
        "PC2_2": scale * math.cos(turn),
    }  # fmt: skip
    unit = fits.PrimaryHDU(rng.normal(0, 50, (30, 30)).astype(np.float32))
    unit.header.update(cards)
    out = io.BytesIO()
    unit.writeto(out)
    source = {
        "diaSourceId": 5000 + number, "diaObjectId": 70 + number, "ssObjectId": None, "midpointMjdTai": 61041.2,
        "ra": 57.7, "dec": -48.2, "band": "ugrizy"[number], "psfFlux": 1448.5, "psfFluxErr": 120.0,
    }  # fmt: skip
    record = {"diaSource": source, "diaObject": {"diaObjectId": 70 + number}, STAMP: out.getvalue()}
    record = {f["name"]: record.get(f["name"]) for f in schema["fields"]}
    body = io.BytesIO()
    fastavro.schemaless_writer(body, schema, record)
    payload = b"\0" + OWN_SCHEMA.to_bytes(4, "big") + body.getvalue()
    return Original("lsst", False, payload, schema, b"", payload[:5], record, record[STAMP])


def real(folder: Path) -> Iterator[Original]:
    """The real packets below a folder (`ztf/**/*.avro`, `rubin/wire/*.bin`), the first record of each file."""
    for path in sorted(folder.glob("ztf/**/*.avro")):
        yield from _of_container("ztf", True, path.read_bytes())
    definitions: dict[int, Any] = {}
    for path in sorted(folder.glob("rubin/wire/*.bin")):
        data = path.read_bytes()
        number = int.from_bytes(data[1:5], "big")
        if number not in definitions:
            definitions[number] = rubin_schema(number)
        schema = definitions[number]
        record = fastavro.schemaless_reader(io.BytesIO(data[5:]), schema, None)
        if record[STAMP]:
            yield Original("lsst", True, data, schema, b"", data[:5], record, record[STAMP])


def rubin_schema(number: int) -> Any:
    """A writer schema of the package `lsst-alert-packet` (900 is 9.0)."""
    from lsst.alert.packet import Schema, get_schema_path

    version = divmod(number, 100)
    name = "lsst.v{}_{}.alert.avsc".format(*version)
    definition = Schema.from_file(f"{get_schema_path(*version)}/{name}").definition
    return fastavro.parse_schema(definition, named_schemas={})  # fastavro parses what is not marked as parsed each time


def _of_container(survey: str, is_real: bool, data: bytes) -> Iterator[Original]:
    reader = fastavro.reader(io.BytesIO(data))
    record, text = next(reader), reader.metadata["avro.schema"]
    schema = fastavro.parse_schema(json.loads(text), named_schemas={})
    found = record[STAMP]
    stamp = found["stampData"] if isinstance(found, dict) else found
    if stamp:
        image = igzip.decompress(stamp) if stamp.startswith(GZIP) else stamp
        made = Original(survey, is_real, data, schema, text.encode(), b"", record, image)
        yield Original(survey, is_real, made.framed(made.body()), schema, text.encode(), b"", record, image)


# --- damage --------------------------------------------------------------------------------------------------


def damaged(rng: random.Random, data: bytes) -> bytes:
    """A copy with one to four faults, half of them among the first 400 bytes, where lengths and schemas are."""
    out = bytearray(data)
    if rng.random() < 0.1:
        del out[rng.randrange(len(out)) :]
    for _ in range(rng.randint(1, 4)):
        if not out:
            break
        at = rng.randrange(min(len(out), 400)) if rng.random() < 0.5 else rng.randrange(len(out))
        rng.choice(FAULTS)(rng, out, at)
    return bytes(out)


def _set(rng: random.Random, out: bytearray, at: int) -> None:
    out[at] = rng.choice((0, 1, 2, 127, 128, 255, rng.randrange(256)))


def _flip(rng: random.Random, out: bytearray, at: int) -> None:
    out[at] ^= 1 << rng.randrange(8)


def _insert(rng: random.Random, out: bytearray, at: int) -> None:
    out[at:at] = rng.randbytes(rng.randint(1, 20))


def _delete(rng: random.Random, out: bytearray, at: int) -> None:
    del out[at : at + rng.randint(1, 40)]


def _repeat(rng: random.Random, out: bytearray, at: int) -> None:
    out[at:at] = out[max(0, at - rng.randint(1, 200)) : at]


FAULTS = (_set, _set, _flip, _flip, _insert, _delete, _repeat)


def _message(rng: random.Random, one: Original) -> bytes:
    return damaged(rng, one.payload)


def _body(rng: random.Random, one: Original) -> bytes:
    return one.framed(damaged(rng, one.body()))


def _value(rng: random.Random, one: Original) -> bytes:
    """One value of the record, or of a record in it, becomes another of its kind, or null."""
    holders = [name for name, value in one.record.items() if isinstance(value, dict) and name != STAMP]
    holder = rng.choice(holders) if holders and rng.random() < 0.8 else ""
    inside = one.record[holder] if holder else one.record
    name = rng.choice([n for n, v in inside.items() if v is None or isinstance(v, bool | int | float | str)])
    value = _other(rng, inside[name])
    try:
        return one.with_field(holder, inside | {name: value}) if holder else one.with_field(name, value)
    except (ValueError, TypeError, OverflowError, AttributeError):  # the schema has no room for it
        return _body(rng, one)


def _other(rng: random.Random, value: Any) -> Any:
    if value is None or rng.random() < 0.15:
        return None
    if isinstance(value, bool):
        return not value
    choices: list[Any] = WORDS if isinstance(value, str) else NUMBERS if isinstance(value, int) else FLOATS
    return rng.choice(choices)


def _stamp(rng: random.Random, one: Original) -> bytes:
    return one.with_stamp(damaged(rng, one.stamp))


def _image(rng: random.Random, one: Original) -> bytes:
    return one.with_image(damaged(rng, one.image))


def _cards(rng: random.Random, one: Original) -> bytes:
    header, rest = one.image[:2880], one.image[2880:]
    cards = [header[at : at + 80] for at in range(0, 2880, 80)]
    cards = cards[: next((n for n, card in enumerate(cards) if card.startswith(b"END ")), len(cards))]
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(cards) + 1)
        if at < len(cards) and rng.random() < 0.3:
            del cards[at]
        elif at < len(cards) and rng.random() < 0.6:
            cards[at] = _card(rng, cards[at][:8].decode("ascii"))
        else:
            cards.insert(at, _card(rng, rng.choice(KEYWORDS)))
    text = b"".join([*cards, b"END".ljust(80)])
    return one.with_image(text.ljust(-(-len(text) // 2880) * 2880) + rest)


def _card(rng: random.Random, key: str) -> bytes:
    value = rng.choice(VALUES)
    value = value.ljust(20) if rng.random() < 0.5 else value.rjust(20)
    return f"{key:<8}{rng.choice(('= ', '= ', '= ', '  ', '='))}{value}".encode()[:80].ljust(80)


Way = Callable[[random.Random, Original], bytes]
WAYS: dict[str, Way] = {
    "message": _message, "record": _body, "value": _value, "stamp": _stamp, "image": _image, "header": _cards,
}  # fmt: skip
WEIGHTS = (20, 15, 15, 20, 12, 18)


def mutant(rng: random.Random, originals: list[Original]) -> tuple[Original, str, bytes]:
    """A packet, how it was damaged, and the message; one in fifty is not damaged at all."""
    one = rng.choice(originals)
    if rng.random() < 0.02:
        return one, "none", one.payload
    way = rng.choices(list(WAYS), WEIGHTS)[0]
    return one, way, _codec(rng, WAYS[way](rng, one))


def _codec(rng: random.Random, message: bytes) -> bytes:
    """Some containers get a compressed block, as some producers write them."""
    if rng.random() > 0.1 or not message.startswith(b"Obj\x01") or SYNC not in message:
        return message
    header, _, block = message.partition(SYNC)
    if not block.endswith(SYNC) or b"\x08null" not in header:
        return message
    reader = io.BytesIO(block)
    count, size = _number(reader), _number(reader)
    packed = isal_zlib.compress(reader.read(max(0, size)), 1, -15)
    return header.replace(b"\x08null", b"\x0edeflate") + SYNC + _long(count) + _long(len(packed)) + packed + SYNC


def _number(reader: io.BytesIO) -> int:
    number = shift = 0
    while byte := reader.read(1):
        number |= (byte[0] & 0x7F) << shift
        shift += 7
        if byte[0] < 0x80:
            break
    return (number >> 1) ^ -(number & 1)


def _long(number: int) -> bytes:
    number = (number << 1) ^ (number >> 63)
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])
