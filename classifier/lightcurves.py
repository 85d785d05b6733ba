"""Real light curves become archives: their own photometry, cadence and errors, painted into simulated surroundings.

Nobody simulated the variability of such a test set, and its stamps' PSF photometry is the measured one exactly
(`classifier.sky.render.render_measured`). What is simulated: host, neighbours, seeing and pixel noise.

Two formats are read: SNANA text (`OBS:` lines under `VARLIST:`, FLUXCAL with zero point 27.5) and CSV with columns
`time` or `mjd`, `band`, and `mag` with `magerr` or `flux` with `flux_error` (nJy).
"""

import csv
import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from .archive import CLASSES, ArchiveObject, ArchiveWriter
from .errors import ArchiveError
from .sky.conditions import visits_of
from .sky.galaxies import draw_host
from .sky.render import render_measured
from .sky.scene import surroundings
from .sky.simulation import sequence_rows
from .sky.spectra import Array, magnitude_to_njy
from .sky.surveys import AB_ZERO, Survey, survey_named
from .sky.targets import DUST, Target

SNANA_ZERO = 27.5  # magnitude of FLUXCAL 1
SEASON_GAP = 90.0  # days without observations that part two seasons
FEWEST = 5  # measurements of a light curve worth keeping
POPULATIONS = {"SNIa": "Ia", "SNOther": "core collapse", "AGN": "AGN"}

MADE = """\
## How it was made

Real light curves painted into stamps of {survey}: fluxes, errors, times and bands are the measured ones, and the PSF
photometry of each stamp gives back the measured flux and error. Host, neighbours, seeing and pixel noise are simulated
(`origin` is `rendered`). Positions that the light curves do not give are drawn in the survey's area.
"""


@dataclass(frozen=True)
class LightCurve:
    """One object's photometry in time order; every array [n].

    Attributes:
        band: letters; flux, error: nJy.
        peak_mjd, redshift, ra, dec: NaN where the file does not say.
    """

    object_id: str
    mjd: Array
    band: NDArray[np.str_]
    flux: Array
    error: Array
    peak_mjd: float = float("nan")
    redshift: float = float("nan")
    ra: float = float("nan")
    dec: float = float("nan")

    def __getitem__(self, keep: NDArray[np.bool_] | NDArray[np.intp]) -> "LightCurve":
        return replace(self, mjd=self.mjd[keep], band=self.band[keep], flux=self.flux[keep], error=self.error[keep])


def read_light_curve(path: str | Path) -> LightCurve:
    """One light curve file, SNANA text or CSV, perhaps gzipped.

    Raises:
        ArchiveError: neither format, or a value that is not a number.
    """
    path = Path(path)
    try:
        text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
        name = path.name.removesuffix(".gz").rsplit(".", 1)[0]
        curve = _read_snana(text, name) if re.search(r"^VARLIST:", text, re.MULTILINE) else _read_csv(text, name)
    except (OSError, ValueError, KeyError, EOFError, zlib.error) as error:
        raise ArchiveError(f"{path} is neither an SNANA nor a CSV light curve: {error}") from error
    sound = np.isfinite(curve.mjd) & np.isfinite(curve.flux) & np.isfinite(curve.error) & (curve.error > 0)
    return curve[sound][np.argsort(curve.mjd[sound], kind="stable")]


def _read_snana(text: str, name: str) -> LightCurve:
    facts: dict[str, str] = {}
    rows: list[list[str]] = []
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["OBS:"]:
            rows.append(words[1:])
        elif words and words[0].endswith(":"):
            facts.setdefault(words[0], " ".join(words[1:]))
    columns = {column: number for number, column in enumerate(facts["VARLIST:"].split())}
    # FLUXCAL has no use for a filter's survey: SDSS-g and g are both g; other surveys' filters fall out later.
    bands = [row[columns["FLT"]].removeprefix("SDSS-") for row in rows]
    to_njy = 10 ** (0.4 * (AB_ZERO - SNANA_ZERO))
    return LightCurve(
        facts.get("SNID:", name).split()[0],
        np.array([float(row[columns["MJD"]]) for row in rows]),
        np.array(bands),
        np.array([float(row[columns["FLUXCAL"]]) for row in rows]) * to_njy,
        np.array([float(row[columns["FLUXCALERR"]]) for row in rows]) * to_njy,
        peak_mjd=_first_number(facts, "SEARCH_PEAKMJD:", "PEAKMJD:"),
        redshift=_first_number(facts, "REDSHIFT_HELIO:", "REDSHIFT_FINAL:"),
        ra=_first_number(facts, "RA:") % 360,
        dec=_first_number(facts, "DEC:", "DECL:"),
    )


def _first_number(facts: Mapping[str, str], *names: str) -> float:
    for name in names:
        if facts.get(name):
            return float(facts[name].split()[0])
    return float("nan")


def _read_csv(text: str, name: str) -> LightCurve:
    rows = list(csv.DictReader(text.splitlines()))
    if not rows:
        raise ValueError("no rows")
    column = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    mjd = column["mjd" if "mjd" in column else "time"].astype(float)
    if "flux" in column:
        flux, error = column["flux"].astype(float), column["flux_error"].astype(float)
    else:
        magnitude, scatter = column["mag"].astype(float), column["magerr"].astype(float)
        # Catalogues write -99.99 and the like where there is no measurement.
        known = (magnitude > 0) & (magnitude < 40) & (scatter > 0) & (scatter < 5)
        flux = np.where(known, magnitude_to_njy(np.where(known, magnitude, 0)), np.nan)
        error = flux * scatter * np.log(10) / 2.5
    return LightCurve(name, mjd, column["band"], flux, error)


def best_season(curve: LightCurve) -> LightCurve:
    """The season with the most measurements, the latest of equals."""
    season = np.concatenate([[0], np.cumsum(np.diff(curve.mjd) > SEASON_GAP)])
    counts = np.bincount(season.astype(int))
    return curve[season == len(counts) - 1 - np.argmax(counts[::-1])]


def light_curve_files(place: Path) -> list[Path]:
    """The light curves of a folder, or the one file."""
    if place.is_file():
        return [place]
    found = [p for p in sorted(place.iterdir()) if re.search(r"\.(dat|txt|csv)(\.gz)?$", p.name, re.IGNORECASE)]
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
    sky = survey_named(survey)
    places = list(places)
    files = list(_labelled(places))
    # Names without their folders: where a user keeps the files is nobody's business.
    words = [f"--survey {survey} --seed {seed}", *(["--whole"] if whole else [])]
    words += [f"{label}={place.name}" for label, place in places]
    card = {
        "command": f"skyheed archive build-lightcurves {' '.join(words)}",
        "seed": seed,
        "made": MADE.format(survey=survey),
        "pixel": sky.pixel,
    }
    left_out, written = [], 0
    with ArchiveWriter(out, card, overwrite=overwrite) as writer:
        for label, file in tqdm(files, unit=" light curves", disable=not progress):
            curve = read_light_curve(file)
            done = render_light_curve(sky, curve if whole else _season(curve), label, seed)
            if done is None:
                left_out.append(curve.object_id)
                continue
            writer.add(*done)
            written += 1
    return written, left_out


def _season(curve: LightCurve) -> LightCurve:
    return best_season(curve) if len(curve.mjd) else curve


def _labelled(places: Iterable[tuple[str, Path]]) -> Iterator[tuple[str, Path]]:
    for label, place in places:
        if label not in CLASSES:
            raise ArchiveError(f"class {label!r} is none of {', '.join(CLASSES)}")
        if not place.exists():
            raise ArchiveError(f"{place} does not exist")
        for file in light_curve_files(place):
            yield label, file
