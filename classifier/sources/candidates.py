"""From the SDSS-II candidate table and a folder of SDSS frames to an archive of real stamps.

`candidate_table` reads the table.
"""

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.archives.reader import ArchiveObject, ArchiveWriter, stamp_rows
from skyheed.classifier.archives.writer import check_target
from skyheed.classifier.bounded_files import within
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.progress import progress_bar
from skyheed.classifier.safe_names import printable
from skyheed.classifier.sky.conditions import SAME_VISIT
from skyheed.classifier.sky.surveys import SDSS
from skyheed.classifier.sources import tables
from skyheed.classifier.sources.candidate_table import CLASSES, Candidate, read_candidates
from skyheed.classifier.sources.fits_files import read_header
from skyheed.classifier.sources.frames import STAMP, Cut, Frame, FrameName, frame_name
from skyheed.classifier.sources.tables import simple

SEASON = 150.0  # days before and after the peak that belong to a candidate's season
DETECTION = 5.0
QUIET = 20  # per cent of a season's fluxes lie below what is taken for the flux in a template
SAME_EXPOSURE = 0.001  # days: neighbouring fields overlap and show the same pixels of one drift scan

__all__ = ["CLASSES", "Candidate", "Report", "build", "frames_to_fetch", "missing_frames", "read_candidates"]

MADE = """\
## How it was made

64x64 stamps cut from SDSS frames at the positions of the SDSS-II Supernova Survey's candidates (Sako et al. 2018), one
season each. `flux` is PSF photometry of the stamp (a Gaussian of `psf_fwhm`) less the object's quiet level in the
season (per band, its 20th percentile). Frames are cut at whole pixels where they are turned by multiples of 90 degrees,
else interpolated.
"""
FIELDS_QUERY = """\
-- Run at https://skyserver.sdss.org/CasJobs (context Stripe82 or DR7 and later), save as CSV and pass it with --fields.
SELECT run, rerun, camcol, field, raMin, raMax, decMin, decMax, mjd_r FROM Field
WHERE decMin < 1.3 AND decMax > -1.3 AND (raMax > 300 OR raMin < 60) AND mjd_r BETWEEN 53500 AND 54500
"""


def find_frames(folder: Path) -> list[Path]:
    """All SDSS frames below a folder.

    Raises:
        ArchiveError: there are none.
    """
    found = _frames_below(folder)
    if not found:
        raise ArchiveError(
            f"no frame-*.fits[.bz2|.gz] and no fpC-*.fit[.gz] below {folder}; "
            "--fields with --missing lists the frames to download"
        )
    return found


def _frames_below(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("f*") if frame_name(p) and p.is_file() and within(p, folder))


def _middle(path: Path) -> tuple[float, float, float]:
    """RA, Dec and MJD of a frame from its header, degrees and days; the middle lies within 0.15 degrees."""
    header = read_header(path)
    try:
        middle = float(header["CRVAL1"]) % 360, float(header["CRVAL2"]), float(header["TAI"]) / 86400
    except (KeyError, ValueError, TypeError) as error:
        raise ArchiveError(f"{path} has no position or time in its header: {printable(error, 200)}") from error
    if not np.isfinite(middle).all():
        raise ArchiveError(f"{path} has no position or time in its header: CRVAL1, CRVAL2 or TAI is not finite")
    return middle


FIELD_COLUMNS = ("run", "camcol", "field", "ramin", "ramax", "decmin", "decmax", "mjd_r")
WHOLE = FIELD_COLUMNS[:3]
REACH = 0.2  # degrees: no pixel of a frame is farther from its reference point


def _near(candidates: Sequence[Candidate], path: Path, window: float) -> list[int]:
    """Indices of the candidates that a frame may show in their season."""
    ra, dec, mjd = _middle(path)
    where = np.array([(c.ra, c.dec, c.peak_mjd) for c in candidates]).T
    east = ((where[0] - ra + 180) % 360 - 180) * np.cos(np.radians(dec))
    in_season = ~(np.abs(where[2] - mjd) > window)
    return list(np.flatnonzero((np.abs(east) < REACH) & (np.abs(where[1] - dec) < REACH) & in_season))


class _Spill:
    """Stamps on disk until all frames were read: each frame is read once, an archive needs one object at a time."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._cuts: dict[int, list[tuple[int, Cut]]] = defaultdict(list)
        self._size = STAMP * STAMP * 4

    def put(self, candidate: int, cut: Cut) -> None:
        at = self._stream.seek(0, 2)
        self._stream.write(cut.stamp.astype("<f4").tobytes())
        self._cuts[candidate].append((at, Cut(np.empty(0, np.float32), *_facts(cut))))

    def get(self, candidate: int) -> list[Cut]:
        return [Cut(self._image(at), *_facts(cut)) for at, cut in self._cuts.get(candidate, [])]

    def _image(self, at: int) -> NDArray[np.float32]:
        self._stream.seek(at)
        return np.frombuffer(self._stream.read(self._size), "<f4").reshape(STAMP, STAMP)


def _facts(cut: Cut) -> tuple[float, str, float, float, float]:
    return cut.mjd, cut.band, cut.psf_fwhm, cut.sky_noise, cut.zero_point


def photometry(stamp: NDArray[np.float32], fwhm: float, noise: float) -> tuple[float, float]:
    """Flux and error (nJy) of a Gaussian PSF in the middle pixel above the median of the rim; NaN if cut off."""
    sigma = fwhm / SDSS.pixel / 2.3548
    y, x = np.indices(stamp.shape) - STAMP // 2
    weight = np.where(np.isfinite(stamp), np.exp(-0.5 * (x**2 + y**2) / sigma**2) / (2 * np.pi * sigma**2), 0)
    norm = float((weight**2).sum())
    if weight.sum() < 0.7:
        return float("nan"), float("nan")
    rim = stamp[(x**2 + y**2 > 20**2) & np.isfinite(stamp)]
    level = float(np.median(rim)) if rim.size else 0.0
    return float((weight * np.nan_to_num(stamp - level)).sum()) / norm, noise / float(np.sqrt(norm))


def without_overlaps(cuts: Iterable[Cut]) -> list[Cut]:
    """In time order, of several stamps of one exposure the one with the most pixels."""
    kept: list[Cut] = []
    for cut in sorted(cuts, key=lambda cut: (cut.band, cut.mjd)):
        if kept and kept[-1].band == cut.band and cut.mjd - kept[-1].mjd < SAME_EXPOSURE:
            kept[-1] = max(kept[-1], cut, key=lambda one: int(np.isfinite(one.stamp).sum()))
        else:
            kept.append(cut)
    return sorted(kept, key=lambda cut: (cut.mjd, cut.band))


def sequence(number: int, cuts: list[Cut]) -> NDArray[np.void]:
    """The archive's rows of one candidate; its fluxes are those above its quiet level."""
    mjd, band = np.array([c.mjd for c in cuts]), np.array([c.band for c in cuts])
    flux, error = np.array([photometry(c.stamp, c.psf_fwhm, c.sky_noise) for c in cuts]).T
    for each in np.unique(band):
        of_band = band == each
        known = flux[of_band & np.isfinite(flux)]
        flux[of_band] -= float(np.percentile(known, QUIET)) if known.size else 0.0
    with np.errstate(invalid="ignore"):
        detected = np.isin(band, list(SDSS.search)) & (np.abs(flux) > DETECTION * error)
    visit = np.concatenate([[0], np.cumsum(np.diff(mjd) > SAME_VISIT)])
    first = visit[detected].min() if detected.any() else 0
    return stamp_rows(
        {"stamp": np.stack([c.stamp for c in cuts])},
        {
            "source_id": (number << 12) + np.arange(len(cuts)),
            "mjd": mjd,
            "band": band,
            "detected": detected,
            "alert": visit >= first,
            "flux": flux,
            "flux_error": error,
            "psf_fwhm": np.array([c.psf_fwhm for c in cuts]),
            "sky_noise": np.array([c.sky_noise for c in cuts]),
            "zero_point": np.array([c.zero_point for c in cuts]),
        },
    )


@dataclass(frozen=True)
class Report:
    """What happened to the candidates."""

    written: int
    without_frames: list[Candidate]


def build(
    out: str | Path,
    table: str | Path,
    folder: str | Path,
    *,
    window: float = SEASON,
    fewest: int = 3,
    progress: bool = True,
    overwrite: bool = False,
) -> Report:
    """Cut every candidate out of every frame that shows it in its season, and write the archive.

    Args:
        table: the candidate table; folder: where the frames are.
        window: days before and after a candidate's peak.
        fewest: stamps that a candidate must have.

    Raises:
        ArchiveError: unreadable table or frame, no frames, or no candidate on any frame.
    """
    check_target(Path(out), overwrite)
    candidates, paths = read_candidates(table), find_frames(Path(folder))
    card = {
        "command": f"skyheed archive build-sdss --candidates {Path(table).name} --frames DIR --window {window:g}",
        "made": MADE,
        "pixel": SDSS.pixel,
        "frames": len(paths),
    }
    # The stamps of all candidates wait alongside the archive, where there must be room for it anyway.
    Path(out).absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=Path(out).absolute().parent) as stream:
        spill = _Spill(stream)
        cut_all(candidates, paths, spill, window, progress)
        alone = []
        with ArchiveWriter(out, card, overwrite=overwrite) as writer:
            written = 0
            for number, candidate in enumerate(candidates):
                cuts = without_overlaps(spill.get(number))
                if len(cuts) < fewest:
                    alone.append(candidate)
                    continue
                writer.add(_object(candidate, cuts), sequence(number, cuts))
                written += 1
            if not written:
                raise ArchiveError(
                    f"no candidate has {fewest} stamps on the {len(paths)} frames below {folder}; "
                    "get the field list with the query of `--help` and pass it with --fields to see which are needed"
                )
    return Report(written, alone)


def cut_all(candidates: Sequence[Candidate], paths: Iterable[Path], spill: Any, window: float, progress: bool) -> None:
    """Read every frame that may show a candidate, once, and put away its stamps."""
    for path in progress_bar(list(paths), "cutting", show=progress, unit=" frames"):
        near = _near(candidates, path, window)
        if not near:
            continue
        frame = Frame(path)
        for number in near:
            cut = frame.cut(candidates[number].ra, candidates[number].dec)
            if cut is not None:
                spill.put(number, cut)


def _object(candidate: Candidate, cuts: list[Cut]) -> ArchiveObject:
    peak = candidate.peak_mjd if np.isfinite(candidate.peak_mjd) else max(c.mjd for c in cuts)
    return ArchiveObject(
        object_id=f"SDSS-{candidate.object_id}",
        label=candidate.label,
        type=candidate.type,
        confirmed=candidate.confirmed,
        redshift=candidate.redshift,
        ra=candidate.ra,
        dec=candidate.dec,
        peak_mjd=peak,
        origin="real",
        survey=SDSS.name,
    )


def frames_to_fetch(
    table: str | Path, folder: str | Path, fields: str | Path, window: float = SEASON
) -> list[FrameName]:
    """The frames that `build` could use and that are not in the folder, all of them if it is empty.

    Args:
        table: the candidate table.
        fields: CSV of the survey's fields (`FIELDS_QUERY`).
        window: days before and after a candidate's peak.

    Raises:
        ArchiveError: the table or the field list cannot be read.
    """
    present = {frame_name(path) for path in _frames_below(Path(folder))}
    return missing_frames(read_candidates(table), fields, present, window)


def missing_frames(
    candidates: Sequence[Candidate], fields: str | Path, present: set[FrameName | None], window: float = SEASON
) -> list[FrameName]:
    """The frames that show a candidate in its season and are not among those present.

    Raises:
        ArchiveError: the field list cannot be read.
    """
    rows = list(_fields(Path(fields)))
    where = np.array([(c.ra, c.dec, c.peak_mjd) for c in candidates]).T
    needed: set[FrameName] = set()
    for row in rows:
        inside = (where[0] >= row["ramin"]) & (where[0] <= row["ramax"])
        inside &= (
            (where[1] >= row["decmin"]) & (where[1] <= row["decmax"]) & ~(np.abs(where[2] - row["mjd_r"]) > window)
        )
        if inside.any():
            run, camcol, field = (int(row[name]) for name in ("run", "camcol", "field"))
            needed |= {FrameName(run, camcol, field, band) for band in SDSS.bands}
    return sorted(needed - present)


def _fields(path: Path) -> Iterator[dict[str, float]]:
    sheet = tables.read(path, [(simple(name),) for name in FIELD_COLUMNS])
    found = sheet.require("a field list as the query gives it", {name: (simple(name),) for name in FIELD_COLUMNS})
    columns = dict(zip(FIELD_COLUMNS, found, strict=True))
    for row in range(sheet.rows):
        values = {name: sheet.number(row, column) for name, column in columns.items()}
        for name, value in values.items():
            if np.isnan(value) or (name in WHOLE and value != int(value)):
                sheet.fail(row, columns[name], "a whole number is needed" if name in WHOLE else "a number is needed")
        yield values
