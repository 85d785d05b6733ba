"""ZTF-shaped alert packets of our own making: the size and the nesting of the real ones, with simulated stamps.

Field names follow the public ZTF avro-alert schema 4.02 (Patterson et al. 2019); values are drawn at random.
"""

import functools
import gzip
import io
import math
from collections.abc import Iterator
from typing import Any

import fastavro
import numpy as np

FLOATS = (
    "diffmaglim chipsf magap sigmagap distnr magnr sigmagnr chinr sharpnr sky magdiff fwhm classtar mindtoedge "
    "magfromlim seeratio aimage bimage aimagerat bimagerat elong rb ssdistnr ssmagnr sumrat magapbig sigmagapbig "
    "sgmag1 srmag1 simag1 szmag1 sgscore1 distpsnr1 sgmag2 srmag2 simag2 szmag2 sgscore2 distpsnr2 sgmag3 srmag3 "
    "simag3 szmag3 sgscore3 distpsnr3 jdstartref jdendref neargaia neargaiabright maggaia maggaiabright exptime drb "
    "magzpsci magzpsciunc magzpscirms clrcoeff clrcounc zpclrcov zpmed clrmed clrrms dsnrms ssnrms dsdiff scorr"
).split()
INTEGERS = (
    "pid programid tblid nid rcid field nneg nbad ndethist ncovhist tooflag objectidps1 objectidps2 objectidps3 "
    "nmtchps rfid nframesref nmatches"
).split()
STRINGS = ["pdiffimfilename", "programpi", "ssnamenr", "rbversion", "drbversion"]
STAMP = 63  # pixels on a side
GAIN_ZERO_POINT = 26.3
START_JD = 2460000.5
NIGHTS = 1.5  # days between the earlier points of an object
PRODUCER: dict[str, Any] = {}  # of the sender's Kafka options, those unlike skyheed's


def name(number: int) -> str:
    """The id of an object."""
    return f"BEN{number:08d}"


@functools.cache
def schema() -> Any:
    """The parsed writer schema."""

    def optional(kind: str) -> list[str]:
        return ["null", kind]

    def candidate(name: str) -> dict[str, Any]:
        head = [
            ("jd", "double"),
            ("fid", "int"),
            ("candid", optional("long")),
            ("isdiffpos", optional("string")),
        ]
        head += [("ra", optional("double")), ("dec", optional("double"))]
        head += [("magpsf", optional("float")), ("sigmapsf", optional("float"))]
        rest = [(f, optional("float")) for f in FLOATS] + [(i, optional("long")) for i in INTEGERS]
        rest += [(s, optional("string")) for s in STRINGS]
        return {
            "type": "record",
            "name": f"benchmark.{name}",
            "fields": [{"name": n, "type": t, "doc": f"{n} of the {name}"} for n, t in head + rest],
        }

    cutout = {
        "type": "record",
        "name": "benchmark.cutout",
        "fields": [{"name": "fileName", "type": "string"}, {"name": "stampData", "type": "bytes"}],
    }
    previous = {"type": "array", "items": candidate("prv_candidate")}
    fields = [
        {"name": "schemavsn", "type": "string"},
        {"name": "publisher", "type": "string"},
        {"name": "objectId", "type": "string"},
        {"name": "candid", "type": "long"},
        {"name": "candidate", "type": candidate("candidate")},
        {"name": "prv_candidates", "type": ["null", previous], "default": None},
        {"name": "cutoutScience", "type": ["null", cutout], "default": None},
        {"name": "cutoutTemplate", "type": ["null", "benchmark.cutout"], "default": None},
        {"name": "cutoutDifference", "type": ["null", "benchmark.cutout"], "default": None},
    ]
    return fastavro.parse_schema({"type": "record", "name": "benchmark.alert", "fields": fields})


def stamps(count: int, rng: np.random.Generator) -> list[bytes]:
    """Gzipped FITS stamps: a point source in sky noise."""
    y, x = np.mgrid[:STAMP, :STAMP] - STAMP // 2
    made = []
    for flux in 10 ** rng.uniform(2, 5, count):
        image = rng.normal(150.0, 12.0, (STAMP, STAMP)) + flux / 25 * np.exp(-(x**2 + y**2) / 8.0)
        made.append(gzip.compress(_fits(image.astype(">f4")), 6))
    return made


def _fits(image: np.ndarray) -> bytes:
    cards = [
        "SIMPLE  =                    T",
        "BITPIX  =                  -32",
        "NAXIS   =                    2",
    ]
    cards += [f"NAXIS1  = {image.shape[1]:20d}", f"NAXIS2  = {image.shape[0]:20d}", "END"]
    header = "".join(card.ljust(80) for card in cards).encode().ljust(2880)
    data = image.tobytes()
    return header + data + bytes(-len(data) % 2880)


def _candidate(rng: np.random.Generator, jd: float, fid: int, candid: int, ra: float, dec: float) -> dict[str, Any]:
    values: dict[str, Any] = {"jd": jd, "fid": fid, "candid": candid, "isdiffpos": "t", "ra": ra, "dec": dec}
    values |= {"magpsf": rng.uniform(16, 20), "sigmapsf": rng.uniform(0.02, 0.2)}
    values |= dict(zip(FLOATS, rng.normal(size=len(FLOATS)), strict=True))
    values |= {name: int(n) for name, n in zip(INTEGERS, rng.integers(0, 9999, len(INTEGERS)), strict=True)}
    values |= {name: f"{name}_{candid % 97}_scimrefdiffimg.fits.fz" for name in STRINGS}
    values |= {
        "magzpsci": GAIN_ZERO_POINT,
        "programid": 1,
        "rb": 0.9,
        "drb": 0.99,
        "ssdistnr": -999.0,
        "diffmaglim": 20.5,
    }
    return values


def packets(objects: int, epochs: int, seed: int = 1, history: int = 20) -> Iterator[bytes]:
    """Container packets of `objects` seen at `epochs` times each, all objects at one time before the next.

    Args:
        history: number of previous candidates (photometry only) in each packet, each at a time of its own; packets
            of an object share those of the same nights.
    """
    rng = np.random.default_rng(seed)
    pool = stamps(64, rng)
    positions = np.column_stack([rng.uniform(0, 360, objects), rng.uniform(-30, 60, objects)])
    # the candidates' random filling is drawn from a pool: making it must not take longer than reading it
    fillings = [_candidate(rng, START_JD, 1, 0, 0.0, 0.0) for _ in range(64)]
    for epoch in range(epochs):
        for number in range(objects):
            candid = (epoch * objects + number + 1) * 1000 + 15
            ra, dec = positions[number]
            own = {"jd": START_JD + 2 * epoch, "fid": 1 + epoch % 2, "candid": candid, "ra": ra, "dec": dec}
            first = int(rng.integers(64))
            earlier = [_earlier(fillings, number, night) for night in _nights(own["jd"], history)]
            yield _packet(number, candid, {**fillings[first], **own}, earlier, pool, first)


def _nights(jd: float, count: int) -> range:
    """Numbers of the last nights before a time."""
    last = math.ceil((jd - START_JD) / NIGHTS) - 1
    return range(last - count + 1, last + 1)


def _earlier(fillings: list[dict[str, Any]], number: int, night: int) -> dict[str, Any]:
    """What was measured of an object in a night, the same in all of its packets."""
    place = {"jd": START_JD + NIGHTS * night + number % 97 * 1e-3, "fid": 1 + night % 2}
    return {**fillings[(number + night) % len(fillings)], **place, "candid": (number * 1000 + night % 1000) * 1000 + 15}


def _packet(
    number: int, candid: int, candidate: dict[str, Any], previous: list[Any], pool: list[bytes], first: int
) -> bytes:
    alert: dict[str, Any] = {
        "schemavsn": "4.02",
        "publisher": "skyheed benchmark",
        "objectId": name(number),
        "candid": candid,
        "candidate": candidate,
        "prv_candidates": previous,
    }
    for shift, kind in enumerate(("Science", "Template", "Difference")):
        stamp = pool[(first + shift) % len(pool)]
        alert[f"cutout{kind}"] = {"fileName": f"{candid}_{kind}.fits.gz", "stampData": stamp}
    out = io.BytesIO()
    fastavro.writer(out, schema(), [alert])
    return out.getvalue()
