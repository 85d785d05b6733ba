"""Real light curves become archives: their own photometry, cadence and errors, painted into simulated surroundings.

The variability of such a test set is real, and its stamps' PSF photometry is exactly the measured one
(`classifier.sky.render.render_measured`). What is simulated: host, neighbours, seeing and pixel noise. It is an
independent test only with light curves that the simulated sky was not calibrated on; docs/sky.md says on which it was.

Two formats are read (`photometry_files`): SNANA text (`OBS:` lines under `VARLIST:`, FLUXCAL with zero point 27.5) and
CSV with columns `time` or `mjd`, `band`, and `mag` with `magerr` or `flux` with `flux_error` (nJy).
"""

import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.archives.reader import CLASSES, ArchiveObject, ArchiveWriter
from skyheed.classifier.archives.writer import check_target
from skyheed.classifier.bounded_files import within
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.progress import progress_bar
from skyheed.classifier.sky.conditions import visits_of
from skyheed.classifier.sky.galaxies import draw_host
from skyheed.classifier.sky.populations import DUST
from skyheed.classifier.sky.render import render_measured
from skyheed.classifier.sky.scene import surroundings
from skyheed.classifier.sky.simulation import sequence_rows
from skyheed.classifier.sky.spectra import Array
from skyheed.classifier.sky.surveys import Survey, survey_named
from skyheed.classifier.sky.targets import Target
from skyheed.classifier.sources.photometry_files import LightCurve, read_light_curve

SEASON_GAP = 90.0  # days without observations that part two seasons
FEWEST = 5  # measurements of a light curve worth keeping
POPULATIONS = {"SNIa": "Ia", "SNOther": "core collapse", "AGN": "AGN"}

NAME = re.compile(r"(?!\.).*\.(dat|txt|csv)(\.gz)?", re.IGNORECASE)

MADE = """\
## How it was made

Real light curves painted into stamps of {survey}: fluxes, errors, times and bands are the measured ones, and the PSF
photometry of each stamp returns the measured flux and error. Host, neighbours, seeing and pixel noise are simulated
(`origin` is `rendered`). Positions that the light curves do not give are drawn in the survey's area. The column `alert`
is true {alerts}.
"""


def best_season(curve: LightCurve) -> LightCurve:
    """The season with the most measurements, the latest of equals."""
    season = np.concatenate([[0], np.cumsum(np.diff(curve.mjd) > SEASON_GAP)])
    counts = np.bincount(season.astype(int))
    return curve[season == len(counts) - 1 - np.argmax(counts[::-1])]


def light_curve_files(place: Path) -> list[Path]:
    """The light curves of a folder, or the one file; hidden files (macOS writes `._name`) and links out are no curves.

    Raises:
        ArchiveError: there are none.
    """
    if not place.is_dir():
        return [place]
    found = [p for p in sorted(place.iterdir()) if NAME.fullmatch(p.name) and p.is_file() and within(p, place)]
    if not found:
        raise ArchiveError(f"{place} holds no light curves (*.dat, *.txt, *.csv, perhaps .gz)")
    return found


def render_light_curve(
    survey: Survey, curve: LightCurve, label: str, seed: int
) -> tuple[ArchiveObject, NDArray[np.void]] | None:
    """One light curve as a stamp sequence; None if too little of it is in the survey's bands."""
    names = list(survey.bands)
    curve = curve[np.isin(curve.band, names)]
    if len(curve.mjd) < FEWEST:
        return None
    number = zlib.crc32(curve.object_id.encode())
    rng = np.random.default_rng([seed, number])
    visits = visits_of(rng, survey, curve.mjd, np.array([names.index(b) for b in curve.band]))
    target = _target(rng, survey, curve, label)
    reference = _reference(curve, label)
    sources = surroundings(rng, survey, target, DUST[0])
    images, sky = render_measured(rng, survey, visits, sources, curve.flux, curve.error, reference)
    rows = sequence_rows(survey, replace(visits, noise=sky), images, np.full(len(visits), np.nan), number << 12)
    return _describe(rng, survey, curve, label), rows


def _target(rng: np.random.Generator, survey: Survey, curve: LightCurve, label: str) -> Target:
    host = None
    if label in POPULATIONS:
        redshift = curve.redshift if np.isfinite(curve.redshift) else 0.15
        galaxy = draw_host(rng, survey, POPULATIONS[label], redshift)
        west, north = (0.0, 0.0) if label == "AGN" else galaxy.place(rng)
        host = (galaxy, -west, -north)
    return Target(label, "", curve.redshift, curve.peak_mjd, curve.flux, curve.flux, host, 0.0, {})


def _reference(curve: LightCurve, label: str) -> Array:
    """The template holds no supernova, and a variable at its median."""
    reference = np.zeros(len(curve.mjd))
    if not label.startswith("SN"):
        for band in np.unique(curve.band):
            reference[curve.band == band] = np.median(curve.flux[curve.band == band])
    return reference


def _describe(rng: np.random.Generator, survey: Survey, curve: LightCurve, label: str) -> ArchiveObject:
    known = np.isfinite(curve.ra) and np.isfinite(curve.dec)
    brightest = curve.mjd[np.argmax(curve.flux / curve.error)]
    return ArchiveObject(
        object_id=curve.object_id,
        label=label,
        type="Ia" if label == "SNIa" else "",
        confirmed=True,
        redshift=curve.redshift,
        ra=curve.ra if known else float(rng.uniform(*survey.ra) % 360),
        dec=curve.dec if known else float(rng.uniform(*survey.dec)),
        peak_mjd=curve.peak_mjd if np.isfinite(curve.peak_mjd) else float(brightest),
        origin="rendered",
        survey=survey.name,
        parameters={} if known else {"position": "invented"},
    )


def build(
    out: str | Path,
    places: Iterable[tuple[str, Path]],
    *,
    survey: str = "sdss",
    seed: int = 1,
    whole: bool = False,
    progress: bool = True,
    overwrite: bool = False,
) -> tuple[int, list[str]]:
    """Write an archive of real light curves.

    Args:
        places: (label, file or folder) pairs.
        whole: keep all seasons; otherwise each object's season with the most measurements.

    Returns:
        how many objects were written, and the names of those left out for too few measurements in the survey's bands.

    Raises:
        ArchiveError: unknown label, no light curves, or a file that cannot be read.
    """
    check_target(Path(out), overwrite)
    sky = survey_named(survey)
    places = list(places)
    files = list(_labelled(places))
    # names without their folders, which are private
    words = [f"--survey {survey} --seed {seed}", *(["--whole"] if whole else [])]
    words += [f"{label}={place.name}" for label, place in places]
    card = {
        "command": f"skyheed archive build-lightcurves {' '.join(words)}",
        "seed": seed,
        "made": MADE.format(survey=survey, alerts=sky.alert_rule),
        "pixel": sky.pixel,
    }
    left_out, written = [], 0
    with ArchiveWriter(out, card, overwrite=overwrite) as writer:
        for label, file in progress_bar(files, "reading", show=progress, unit=" light curves"):
            curve = read_light_curve(file, survey)
            done = render_light_curve(sky, curve if whole else _season(curve), label, seed)
            if done is None:
                left_out.append(curve.object_id)
                continue
            writer.add(*done)
            written += 1
        if not written:
            raise ArchiveError(
                f"none of {len(files)} light curves has {FEWEST} measurements in the bands {''.join(sky.bands)} of "
                f"{survey}: is it the right --survey?"
            )
    return written, left_out


def _season(curve: LightCurve) -> LightCurve:
    return best_season(curve) if len(curve.mjd) else curve


def _labelled(places: Iterable[tuple[str, Path]]) -> Iterator[tuple[str, Path]]:
    for label, place in places:
        if label not in CLASSES:
            raise ArchiveError(f"class {label!r} is not one of {', '.join(CLASSES)}")
        if not place.exists():
            raise ArchiveError(f"{place} does not exist")
        for file in light_curve_files(place):
            yield label, file
