"""Converts parts of an archive to other formats: a smaller archive, NumPy files, FITS files to look at, or a HATS
catalogue."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.time import Time
from numpy.typing import NDArray

from skyheed.classifier import output_paths
from skyheed.classifier.archives.extras import Extras, arrays_of
from skyheed.classifier.archives.format import FORMS, kinds_of
from skyheed.classifier.archives.hats import write_hats
from skyheed.classifier.archives.mixture import thinned, written
from skyheed.classifier.archives.reader import Archive, ArchiveObject, ArchiveWriter
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.progress import progress_bar
from skyheed.classifier.safe_names import file_name, header_text, printable
from skyheed.classifier.stamp import middle, turned


@dataclass(frozen=True)
class Cut:
    """Which stamps of an object are written: only alerts, and how many of the first."""

    alerts_only: bool
    most: int | None

    def read(self, archive: Archive, name: str) -> tuple[NDArray[np.void], Extras | None]:
        """An object's stamps, and what its packets contain besides them."""
        stamps, extras = archive.epochs(name, kinds=archive.kinds, alerts_only=self.alerts_only)
        stamps = stamps[: self.most]
        return stamps, None if extras is None else extras.take(np.arange(len(stamps)))


def convert(
    source: str | Path,
    out: str | Path,
    form: str,
    *,
    labels: tuple[str, ...] = (),
    split: str | None = None,
    objects: tuple[str, ...] = (),
    every: int = 1,
    mixture: Mapping[str, float] | None = None,
    alerts_only: bool = False,
    most: int | None = None,
    progress: bool = True,
) -> int:
    """Write the chosen objects of an archive in another form.

    Args:
        form: `archive`; `npz`: one file per object with an array per column; `fits`: one file per object with an
            image extension per stamp and its WCS; `hats`: a catalogue of objects, see `archives.hats`.
        labels, split, objects: which; all by default.
        every: of these, one in this many.
        mixture: of these, the largest selection with these class shares.
        alerts_only: only what an alert stream would have sent.
        most: stamps of each object, the first ones; all by default.

    Returns:
        the number of objects written.

    Raises:
        ArchiveError: `out` exists, nothing was chosen, or an object is not in the archive.
    """
    if form not in FORMS:
        raise ArchiveError(f"form {form!r} is not one of {', '.join(FORMS)}")
    out = Path(out)
    output_paths.check_folder(out)
    if out.exists():
        raise ArchiveError(f"{out} exists; choose another name")
    archive, cut = Archive(source), Cut(alerts_only, most)
    chosen = _choose(archive, labels, split, objects, every, mixture)
    if form == "archive":
        return _subset(archive, out, chosen, cut, _command(labels, split, objects, every, mixture, cut), progress)
    if form == "hats":
        if most is not None:
            raise ArchiveError("a catalogue of objects holds all stamps: make a smaller archive with --most first")
        return write_hats(archive, out, chosen, alerts_only=alerts_only, progress=progress)
    out.mkdir(parents=True)
    write = _write_npz if form == "npz" else _write_fits
    for name in progress_bar(chosen, "converting", show=progress, unit=" objects"):
        write(out, archive, name, cut)
    return len(chosen)


def _choose(
    archive: Archive, labels: tuple[str, ...], split: str | None, objects: tuple[str, ...], every: int,
    mixture: Mapping[str, float] | None,
) -> list[str]:  # fmt: skip
    rows: Sequence[Mapping[str, Any]] = [archive.object(name) for name in (objects or archive.object_ids)]
    rows = [row for row in rows if (not labels or row["class"] in labels) and (split is None or row["split"] == split)]
    rows = rows[::every]
    if not rows:
        raise ArchiveError("no object in the archive has that class and split")
    return [str(row["object_id"]) for row in (thinned(rows, mixture) if mixture else rows)]


def _command(
    labels: tuple[str, ...], split: str | None, objects: tuple[str, ...], every: int,
    mixture: Mapping[str, float] | None, cut: Cut,
) -> str:  # fmt: skip
    """The command that makes such a part, for its data card."""
    words = ["skyheed archive convert --to archive", *(f"--class {label}" for label in labels)]
    words += [f"--split {split}"] if split else []
    words += [f"--object {shlex.quote(name)}" for name in objects]
    words += [f"--every {every}"] if every > 1 else []
    words += [f"--mixture {written(mixture)}"] if mixture else []
    words += ["--alerts-only"] if cut.alerts_only else []
    return " ".join([*words, f"--most {cut.most}"] if cut.most else words)


def _subset(archive: Archive, out: Path, chosen: list[str], cut: Cut, command: str, progress: bool) -> int:
    card = {**archive.card, "command": f"{archive.card.get('command', '')} | {command}"}
    written = 0
    with ArchiveWriter(out, card, normalised=archive.normalised) as writer:
        for name in progress_bar(chosen, "converting", show=progress, unit=" objects"):
            stamps, extras = cut.read(archive, name)
            if len(stamps):
                writer.add(_object(archive.object(name)), stamps, extras)
                written += 1
    return written


def _object(row: Mapping[str, Any]) -> ArchiveObject:
    same = ("object_id", "type", "confirmed", "redshift", "ra", "dec", "peak_mjd", "origin", "survey", "true_class")
    try:
        parameters = json.loads(row["parameters"] or "{}")
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"object {printable(row['object_id'])} has parameters that are not JSON: {error}") from error
    return ArchiveObject(label=row["class"], parameters=parameters, **{name: row[name] for name in same})


def _write_npz(out: Path, archive: Archive, name: str, cut: Cut) -> None:
    row, (stamps, extras) = archive.object(name), cut.read(archive, name)
    columns: dict[str, Any] = {column: stamps[column] for column in stamps.dtype.names or ()}
    if extras is not None:
        columns |= arrays_of(extras)
    np.savez_compressed(out / f"{file_name(name)}.npz", label=row["class"], ra=row["ra"], dec=row["dec"], **columns)


def _write_fits(out: Path, archive: Archive, name: str, cut: Cut) -> None:
    row, (stamps, _) = archive.object(name), cut.read(archive, name)
    primary = fits.PrimaryHDU()
    for key in ("class", "type", "survey", "origin"):
        primary.header[key.upper()] = header_text(row[key])
    primary.header["OBJECT"] = header_text(name)
    parts = [primary]
    for stamp in stamps:
        parts += [_image(archive, row, stamp, kind) for kind in kinds_of(stamps)]
    fits.HDUList(parts).writeto(out / f"{file_name(name)}.fits")


def _image(archive: Archive, row: Mapping[str, Any], stamp: np.void, kind: str) -> fits.ImageHDU:
    image = fits.ImageHDU(stamp[kind], name=f"{kind}_{stamp['source_id']}")
    x, y = middle(stamp[kind].shape)
    matrix = turned(float(stamp["rotation"])) * _pixel(archive) / 3600
    image.header.update(
        {
            "BUNIT": "nJy", "FILTER": str(stamp["band"]), "MJD-AVG": float(stamp["mjd"]),
            "DATE-AVG": Time(float(stamp["mjd"]), format="mjd", scale="tai").isot, "TIMESYS": "TAI",
            "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": x + 1, "CRPIX2": y + 1,
            "CRVAL1": float(row["ra"]), "CRVAL2": float(row["dec"]),
            "CD1_1": matrix[0, 0], "CD1_2": matrix[0, 1], "CD2_1": matrix[1, 0], "CD2_2": matrix[1, 1],
        }
    )  # fmt: skip
    # FITS has no NaN: unknown values have no card
    measured = {"SEEING": "psf_fwhm", "SKYNOISE": "sky_noise", "FLUX": "flux", "FLUXERR": "flux_error"}
    image.header.update({key: float(stamp[name]) for key, name in measured.items() if np.isfinite(stamp[name])})
    return image


def _pixel(archive: Archive) -> float:
    """The side of a pixel, arcsec."""
    try:
        return float(archive.card["pixel"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArchiveError(
            f"{archive.path} does not say how large its pixels are: add pixel to its card.json"
        ) from error
