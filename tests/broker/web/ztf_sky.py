"""A simulated sky as ZTF's packets: three images, earlier detections and limits. For the page's tests and pictures."""

import gzip
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from test_surveys import CANDIDATE, avro, fits_file, record_type

from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.history import BANDS, UPPER_LIMIT, Photometry

FID = {"g": 1, "r": 2, "i": 3}
CUTOUTS = {"cutoutScience": "stamp", "cutoutTemplate": "template", "cutoutDifference": "difference"}
FURTHER = {"distnr": "float", "magnr": "float", "sharpnr": "float", "ndethist": "int", "ncovhist": "int"}
EARLIER = {
    "jd": "double", "fid": "int", "programid": "int", "candid": ["null", "long"], "isdiffpos": ["null", "string"],
    "magpsf": ["null", "float"], "sigmapsf": ["null", "float"], "diffmaglim": "float",
}  # fmt: skip
MJD_TO_JD = 2_400_000.5 - (15.0 + 37.0) / 86_400  # of the middle in TAI to the start in UTC


def magnitude(njy: float) -> float:
    """AB magnitude of a flux of either sign."""
    return 31.4 - 2.5 * float(np.log10(max(abs(njy), 1e-3)))


def alerts(folder: Path, most: int) -> list[bytes]:
    """The first packets of every object, in the order of time."""
    found: list[tuple[float, bytes]] = []
    archive = Archive(folder)
    for thing, rows in archive.each(kinds=tuple(CUTOUTS.values()), alerts_only=True):
        extras = archive.extras(thing["object_id"], alerts_only=True)
        points: list[dict[str, Any]] = []
        for n, row in enumerate(rows[:most]):
            found.append((float(row["mjd"]), packet(thing, row, points, extras.context[n] if extras else {})))
            points += earlier(extras.photometry[n]) if extras else []
    return [data for _, data in sorted(found, key=lambda one: one[0])]


def earlier(photometry: Photometry) -> Iterator[dict[str, Any]]:
    """Entries of `prv_candidates`."""
    columns = (photometry.mjd, photometry.band, photometry.flux, photometry.flux_error, photometry.kind)
    for mjd, band, flux, error, kind in zip(*columns, strict=True):
        common = {"jd": float(mjd) + MJD_TO_JD, "fid": FID[BANDS[band]], "programid": 1, "candid": None}
        limit = {"isdiffpos": None, "magpsf": None, "sigmapsf": None, "diffmaglim": magnitude(5 * float(error))}
        sigma = float(1.0857 * error / abs(flux or 1))
        seen = {"isdiffpos": "t" if flux > 0 else "f", "magpsf": magnitude(float(flux)), "sigmapsf": sigma}
        yield common | limit | ({} if kind == UPPER_LIMIT else seen)


def packet(thing: Mapping[str, Any], row: NDArray[Any], points: Sequence[Any], context: Mapping[str, float]) -> bytes:
    """One packet of a row of the archive."""
    flux, error, zero = (float(row[name]) for name in ("flux", "flux_error", "zero_point"))
    candidate = {
        "candid": int(row["source_id"]), "jd": float(row["mjd"]) + MJD_TO_JD, "exptime": 30.0,
        "fid": FID[str(row["band"])],
        "ra": thing["ra"], "dec": thing["dec"], "magpsf": magnitude(flux),
        "sigmapsf": 1.0857 * error / max(abs(flux), 1),
        "isdiffpos": "t" if flux > 0 else "f", "magzpsci": zero, "xpos": 1500.0, "ypos": 1500.0, "rb": 0.9,
        "distnr": context.get("reference_distance", -999.0), "magnr": context.get("reference_magnitude", -999.0),
        "sharpnr": context.get("reference_shape", -999.0), "ndethist": int(context.get("detections", 1)),
        "ncovhist": int(context.get("visits", 1)),
    }  # fmt: skip
    kinds = {name: cutout(row[kind], zero, kind == "difference" and flux < 0) for name, kind in CUTOUTS.items()}
    return encoded(thing["object_id"], candidate, points, kinds)


def cutout(njy: NDArray[Any], zero: float, negative: bool) -> bytes:
    """An archive's image, south to north in nJy, as ZTF writes it: north to south, in counts, the source bright."""
    counts = njy[::-1] / 10 ** (0.4 * (31.4 - zero))
    return gzip.compress(fits_file(-counts if negative else counts, BUNIT="DN"), 1)


def encoded(name: str, candidate: Mapping[str, Any], points: Sequence[Any], cutouts: Mapping[str, bytes]) -> bytes:
    """The packet's Avro."""
    stamp = record_type("cutout", {"fileName": "string", "stampData": "bytes"})
    fields = {
        "schemavsn": "string", "publisher": "string", "objectId": "string", "candid": "long",
        "candidate": record_type("candidate", CANDIDATE | FURTHER),
        "prv_candidates": ["null", {"type": "array", "items": record_type("prv_candidate", EARLIER)}],
        "cutoutScience": ["null", stamp], "cutoutTemplate": ["null", "cutout"], "cutoutDifference": ["null", "cutout"],
    }  # fmt: skip
    record = {
        "schemavsn": "4.02", "publisher": "simulated", "objectId": name, "candid": candidate["candid"],
        "candidate": candidate, "prv_candidates": list(points) or None,
        **{kind: {"fileName": "f.gz", "stampData": data} for kind, data in cutouts.items()},
    }  # fmt: skip
    data: bytes = avro(record_type("topLevelRecord", fields), record)
    return data


def named(name: str, number: int) -> bytes:
    """The `number`th packet of an object of any name: a point source."""
    y, x = np.mgrid[:63, :63] - 31
    rng = np.random.default_rng([sum(name.encode()), number])
    image = rng.normal(0, 1500, (63, 63)) + 4e4 / 20 * np.exp(-(x**2 + y**2) / 5)
    candidate = {
        "candid": (sum(name.encode()) * 1000 + len(name)) * 1000 + number, "jd": 2459000.5 + number / 12,
        "exptime": 30.0, "fid": 1 + number % 2, "ra": 10.0, "dec": 0.5, "magpsf": 19.9, "sigmapsf": 0.1,
        "isdiffpos": "t", "magzpsci": 26.2,
        "xpos": 1500.0, "ypos": 1500.0, "rb": 0.9, "distnr": 1.0, "magnr": 20.0, "sharpnr": 0.1, "ndethist": number,
        "ncovhist": 100,
    }  # fmt: skip
    return encoded(name, candidate, [], {kind: cutout(image, 26.2, False) for kind in CUTOUTS})
