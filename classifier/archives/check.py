"""Reads a whole archive and reports its problems."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.archives.reader import CLASSES, SPLITS, UNLABELLED, Archive, Extras
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.history import BANDS, STEPS_A_DAY

MOST = 20  # problems reported


def validate(path: str | Path) -> list[str]:
    """All problems, one sentence each, at most `MOST`; empty if the archive is valid."""
    problems: list[str] = []
    try:
        for problem in _problems(Archive(path)):
            problems.append(problem)
            if len(problems) == MOST:
                break
    except ArchiveError as error:
        problems.append(str(error))
    return problems


def _problems(archive: Archive) -> Iterator[str]:
    if archive.card["objects"] != len(archive):
        yield f"the card says {archive.card['objects']} objects, the table has {len(archive)}"
    sources: set[int] = set()
    total = 0
    for row, stamps in archive.each():
        extras = archive.extras(row["object_id"])
        for problem in (*_object_problems(row), *_stamp_problems(row, stamps), *_extra_problems(stamps, extras)):
            yield f"{row['object_id']}: {problem}"
        ids = set(stamps["source_id"].tolist())
        if len(ids) < len(stamps) or not sources.isdisjoint(ids):
            yield f"{row['object_id']}: a source id occurs twice"
        sources |= ids
        total += len(stamps)
    if archive.card["stamps"] != total:
        yield f"the card says {archive.card['stamps']} stamps, the parts hold {total}"


def _object_problems(row: dict[str, Any]) -> Iterator[str]:
    if row["class"] not in (*CLASSES, UNLABELLED):
        yield f"class {row['class']!r} is not one of {', '.join(CLASSES)}"
    if row["split"] not in SPLITS:
        yield f"split {row['split']!r} is not one of {', '.join(SPLITS)}"
    if not (0 <= row["ra"] < 360 and -90 <= row["dec"] <= 90):
        yield f"position ({row['ra']}, {row['dec']}) is not on the sky"


def _stamp_problems(row: dict[str, Any], stamps: NDArray[np.void]) -> Iterator[str]:
    if len(stamps) != row["stamps"]:
        yield f"{len(stamps)} stamps, the table says {row['stamps']}"
    if not (np.isfinite(stamps["mjd"]).all() and (np.diff(stamps["mjd"]) >= 0).all()):
        yield "its times are not finite, or not in order"
    if not set(stamps["band"].tolist()) <= set(BANDS):
        yield f"a band is not one of {BANDS}"
    for name in ("flux_error", "psf_fwhm", "sky_noise"):
        values = stamps[name]
        if not (values[np.isfinite(values)] > 0).all():
            yield f"{name} is not positive"
    if not np.isfinite(stamps["stamp"]).any(axis=(1, 2)).all():
        yield "a stamp has no finite pixel"
    if not stamps["alert"][stamps["detected"]].all():
        yield "a detection is not marked as an alert"


def _extra_problems(stamps: NDArray[np.void], extras: Extras | None) -> Iterator[str]:
    if extras is None:
        return
    for mjd, points in zip(stamps["mjd"], extras.photometry, strict=True):
        if not (np.isfinite(points.mjd).all() and (points.mjd <= mjd + 1 / STEPS_A_DAY).all()):
            yield "photometry is later than the packet that brings it"
        if not (points.flux_error[np.isfinite(points.flux_error)] > 0).all():
            yield "an error of photometry is not positive"
