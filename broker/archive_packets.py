"""`skyheed archive build-packets`: turns real alert packets into an archive, for domain adaptation or as scenes.

Stamps are model-ready, as the stream keeps them, of every kind in the packets, with photometry and context. Objects
within `SAME` of each other are merged, because a survey numbers an object in two overlapping fields twice.
"""

import re
import shlex
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from skyheed.broker.errors import ConfigError, PacketError
from skyheed.broker.observation import Observation
from skyheed.broker.packets.files import PacketFiles
from skyheed.broker.packets.reader import read_packet
from skyheed.broker.packets.surveys.links import pixel_arcsec
from skyheed.classifier.archives.extras import Extras, no_points
from skyheed.classifier.archives.reader import UNLABELLED, ArchiveObject, ArchiveWriter, stamp_rows
from skyheed.classifier.archives.writer import check_target
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.history import STEPS_A_DAY, Photometry
from skyheed.classifier.safe_names import printable
from skyheed.classifier.sources import tables
from skyheed.classifier.sources.tables import Column, Sheet
from skyheed.classifier.stamp import STAMP_SIZE, STAMP_UNIT_NJY
from skyheed.classifier.training.dataset import sky_noise

SAME = 2.0  # arcsec
KINDS = {"template": "template", "difference": "difference"}  # an observation's -> an archive's, beyond science
# Names that tables of labels use for our classes; any other name is kept as the object's type, without a class.
LABELS = {
    "agn": "AGN", "qso": "AGN", "snia": "SNIa", "sn ia": "SNIa", "snother": "SNOther", "slsn": "SNOther",
    "variable": "Variable", "variable/stellar": "Variable",
}  # fmt: skip
NAME_COLUMNS = ("objectid", "diaobjectid", "oid")  # simple names: capitals and underscores do not count
LABEL_COLUMNS = ("class", "coarse", "label")
BRIGHTEST = 15_000  # sky noises in one pixel that an archive can hold
MOST_LABELS = 5_000_000
MOST_LETTERS = 200
ROUNDED = re.compile(r"\d(\.\d+)?e\+\d+", re.IGNORECASE)
MADE = """\
## How it was made

Real alert packets of {survey}; stamps as a stream keeps them (32 x 32 pixels, north up, background taken off), of every
kind that the packets have, with the photometry and context that the packets carry. An object's epochs are the packets
that were available, not all that the survey sent. Objects within {same:g} arcsec are one. Labels: {labels}.
"""


@dataclass
class Report:
    """What happened to the packets."""

    objects: int = 0
    stamps: int = 0
    labelled: int = 0
    other_labels: Counter[str] = field(default_factory=Counter)  # those that are none of the classes, by text
    reasons: Counter[str] = field(default_factory=Counter)


def build(
    out: Path, survey: str, paths: Sequence[Path], *, labels: Path | None = None, overwrite: bool = False,
    schemas: str | None = None,
) -> Report:  # fmt: skip
    """Make an archive of the packets in files, folders and tar archives.

    Args:
        labels: a table with columns objectId (or object_id, diaObjectId, oid) and class (or coarse, label).
        schemas: directory of writer schemas, for Rubin's packets.

    Raises:
        ConfigError, ArchiveError: nothing to read, or the output cannot be written.
    """
    check_target(out, overwrite)
    known = labels_of(labels) if labels else {}
    report = Report()
    seen = observations(survey, paths, report, schemas)
    if not seen:
        reasons = ", ".join(f"{n} {why}" for why, n in report.reasons.most_common(5))
        raise ArchiveError(f"no packet of {survey} in {paths[0]} can be used ({reasons or 'there are none'})")
    words = [survey, *map(str, paths), *(["--labels", str(labels)] if labels else [])]
    said = f"{labels.name}, for {len(known)} objects" if labels else "none"
    card = {
        "command": shlex.join(["skyheed", "archive", "build-packets", *words]),
        "made": MADE.format(survey=survey, same=SAME, labels=said),
        "pixel": pixel_arcsec(survey),
    }
    with ArchiveWriter(out, card, overwrite=overwrite, normalised=True) as writer:
        for group in one_object_each(seen):
            thing = describe(group, known, survey)
            writer.add(thing, rows_of(group), extras_of(group))
            report.objects += 1
            report.stamps += len(group)
            report.labelled += thing.label != UNLABELLED
            if thing.type and thing.label == UNLABELLED:
                report.other_labels[thing.type] += 1
    return report


def labels_of(path: Path) -> dict[str, str]:
    """Object -> its label; rows without a label say nothing.

    Raises:
        ConfigError: no such table, or not one that can be understood (`classifier.sources.tables` says what can).
    """
    try:
        return _labels(tables.read(path, (NAME_COLUMNS, LABEL_COLUMNS)))
    except ArchiveError as error:
        raise ConfigError(str(error)) from None


def _labels(sheet: Sheet) -> dict[str, str]:
    name, label = sheet.require("a table of labels", {"objectId": NAME_COLUMNS, "class": LABEL_COLUMNS})
    found: dict[str, str] = {}
    for row in range(sheet.rows):
        text = _text(sheet, row, label)
        if text.casefold() in tables.MISSING or text.startswith("-9"):
            continue
        thing = _text(sheet, row, name)
        if thing.casefold() in tables.MISSING:
            sheet.fail(row, name, f"the object labelled {text} has no name")
        other = found.setdefault(thing, text)
        if other != text:
            sheet.fail(row, label, f"{thing} is {text} here and {other} in an earlier row: keep one")
        if len(found) > MOST_LABELS:
            raise ConfigError(f"{sheet.path} has more than {MOST_LABELS} labels: split it")
    return found


def _text(sheet: Sheet, row: int, column: Column) -> str:
    """A cell as text."""
    cell = column.cells[row]
    text = "" if cell is None else str(cell).strip()
    if isinstance(cell, float) or ROUNDED.fullmatch(text):  # by a spreadsheet or pandas
        sheet.fail(row, column, f"{text} is a rounded number: write it as text, with all digits")
    if len(text) > MOST_LETTERS or not text.isprintable():
        sheet.fail(row, column, f"{printable(text, 40)} is too long, or has characters that names cannot have")
    return text


def observations(survey: str, paths: Iterable[Path], report: Report, schemas: str | None = None) -> list[Observation]:
    """The usable observations of all packets, each source once; the reasons for the others are counted in the
    report."""
    found: dict[int, Observation] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = PacketFiles(Path(folder))
        for path in paths:
            for file, offset, length in files.packets(path):
                for seen in _read(file, offset, length, survey, report, schemas):
                    found.setdefault(seen.source_id, seen)
    return list(found.values())


def _read(file: Path, offset: int, length: int, survey: str, report: Report, schemas: str | None) -> list[Observation]:
    with file.open("rb") as source:
        source.seek(offset)
        payload = source.read(length)
    errors: list[Exception] = []
    try:
        kept = read_packet(payload, survey, schemas=schemas, errors=errors, skip=())  # ingest skips artefacts
    except PacketError as error:
        kept, errors = [], [error]
    report.reasons.update(error.reason.value for error in errors if isinstance(error, PacketError))
    return kept


def one_object_each(seen: Sequence[Observation]) -> list[list[Observation]]:
    """The observations of each object in time order; merged by name, then by position."""
    by_name: dict[str, list[Observation]] = {}
    for each in seen:
        by_name.setdefault(each.object_id, []).append(each)
    names = sorted(by_name)
    groups: dict[int, list[Observation]] = {}
    for name, group in zip(names, _same_place([by_name[name] for name in names]), strict=True):
        groups.setdefault(int(group), []).extend(by_name[name])
    return [sorted(group, key=lambda o: (o.mjd, o.source_id)) for group in groups.values()]


def _same_place(objects: Sequence[Sequence[Observation]]) -> NDArray[np.int32]:
    """The group number of each object; objects within `SAME` of each other share a group."""
    place = np.radians([[np.median([o.ra for o in seen]), np.median([o.dec for o in seen])] for seen in objects])
    ra, dec = place.T
    points = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], 1)
    pairs = cKDTree(points).query_pairs(np.radians(SAME / 3600), output_type="ndarray")
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(objects), len(objects)))
    return np.asarray(connected_components(links, directed=False)[1])


def describe(group: Sequence[Observation], labels: Mapping[str, str], survey: str) -> ArchiveObject:
    """The row of one object; its name is that of its earliest observation."""
    said = next((labels[o.object_id] for o in group if o.object_id in labels), "")
    label = LABELS.get(said.lower(), UNLABELLED)
    flux = [abs(o.flux) if np.isfinite(o.flux) else 0.0 for o in group]
    return ArchiveObject(
        object_id=group[0].object_id, label=label, type=said, confirmed=label != UNLABELLED, redshift=float("nan"),
        ra=float(np.median([o.ra for o in group])), dec=float(np.median([o.dec for o in group])),
        peak_mjd=group[int(np.argmax(flux))].mjd, origin="real", survey=survey,
    )  # fmt: skip


def rows_of(group: Sequence[Observation]) -> NDArray[np.void]:
    """The stamps of one object as an archive keeps them; NaN where an epoch has no image of a kind."""

    def images(kind: str) -> NDArray[np.float32]:
        missing = np.full((STAMP_SIZE, STAMP_SIZE), np.nan, np.float32)
        return np.stack([np.asarray(o.images.get(kind, missing), np.float32) for o in group]) * STAMP_UNIT_NJY

    science = np.stack([o.stamp for o in group]).astype(np.float32)
    pixels = {"stamp": science * STAMP_UNIT_NJY} | {name: images(kind) for kind, name in KINDS.items()}
    # the unit of the pixels must fit the brightest of them (`archives.format`)
    brightest = np.max([np.abs(np.nan_to_num(image)).max(axis=(1, 2)) for image in pixels.values()], axis=0)
    noise = np.maximum(
        [sky_noise(stamp[None]) * STAMP_UNIT_NJY for stamp in science], np.maximum(brightest, 1) / BRIGHTEST
    )
    unknown = np.full(len(group), np.nan)
    columns = {
        "source_id": [o.source_id for o in group], "mjd": [o.mjd for o in group], "band": [o.band for o in group],
        "detected": True, "alert": True, "flux": [o.flux for o in group], "flux_error": [o.flux_error for o in group],
        "psf_fwhm": unknown, "sky_noise": noise, "zero_point": unknown,
    }  # fmt: skip
    return stamp_rows(pixels, {name: np.asarray(values) for name, values in columns.items()})


def extras_of(group: Sequence[Observation]) -> Extras:
    """What the packets hold besides their stamps; of the photometry, only what each packet adds to earlier ones."""
    known: set[tuple[int, int, int]] = set()
    added = [_new(o.photometry.until(o.mjd) if o.photometry else no_points(), known) for o in group]
    return Extras(added, [dict(o.context) for o in group])


def _new(points: Photometry, known: set[tuple[int, int, int]]) -> Photometry:
    steps = np.rint(points.mjd * STEPS_A_DAY).astype(np.int64)
    keys = list(zip(steps.tolist(), points.band.tolist(), points.kind.tolist(), strict=True))
    keep = []
    for index, key in enumerate(keys):
        if key not in known:
            known.add(key)
            keep.append(index)
    return points.take(np.array(keep, np.int64))
