"""Reads light-curve files that people write: SNANA text and CSV, by column name. `tables` says what is tolerated.
Filters may be written with their survey or their whole path (`SDSS-g`, `sdss_g`,
`SDSS.g`, `filters/SDSS_Doi2010/G.dat`); filters of other surveys keep their name and fall out later.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.safe_names import printable
from skyheed.classifier.sky.spectra import Array, magnitude_to_njy
from skyheed.classifier.sky.surveys import AB_ZERO
from skyheed.classifier.sources import tables
from skyheed.classifier.sources.tables import Column, Sheet
from skyheed.classifier.sources.times import MJD_RANGE, MJD_TEXT, mjd

SNANA_ZERO = 27.5  # magnitude of FLUXCAL 1
JD_ZERO = 2_400_000.5
MJD = ("mjd", "time", "obsmjd", "mjdobs", "midpointmjdtai", "t")
JD = ("jd", "hjd", "bjd")
BAND = ("band", "flt", "filter", "passband", "filt", "fltname")
MAG = ("mag", "magnitude", "psfmag", "magpsf")
MAG_ERROR = ("magerr", "magerror", "emag", "dmag", "sigmapsf", "magnitudeerror", "psfmagerr", "magunc")
FLUX = ("flux", "fluxnjy", "psfflux")
FLUX_ERROR = ("fluxerror", "fluxerr", "eflux", "dflux", "psffluxerr", "fluxerrnjy", "fluxunc")
# Not oid, objid and sourceid: archives number an object's measurements with them, by filter or by image.
OBJECT = ("objectid", "diaobjectid", "objectname", "object", "snid", "transient")
FLUXCAL, FLUXCAL_ERROR = ("fluxcal",), ("fluxcalerr",)
_ALIASES = {"sdss": ("sdss", "sloan"), "lsst": ("lsstcam", "lsst", "rubin"), "ztf": ("ztf",)}


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


def read_light_curve(path: str | Path, survey: str = "sdss") -> LightCurve:
    """One light curve file, SNANA text or CSV, perhaps gzipped; measurements without value, error or time are left out.

    Args:
        survey: whose filters count.

    Raises:
        ArchiveError: neither format, or something in it that cannot be understood.
    """
    path = Path(path)
    text = tables.text_of(tables.read_bytes(path), path)
    name = path.name.removesuffix(".gz").rsplit(".", 1)[0]
    if not name.isprintable():
        raise ArchiveError(f"{printable(path)} has characters in its name that no object's name has: rename it")
    if re.search(r"(^|[\r\n])\s*VARLIST:", text, re.IGNORECASE):
        curve = _read_snana(text, path, name, survey)
    else:
        curve = _read_csv(text, path, name, survey)
    sound = (
        (curve.band != "")
        & np.isfinite(curve.mjd)
        & np.isfinite(curve.flux)
        & np.isfinite(curve.error)
        & (curve.error > 0)
    )
    return curve[sound][np.argsort(curve.mjd[sound], kind="stable")]


def band_of(name: str, survey: str) -> str:
    """The letter of a filter of the survey, however it is written; the name as it is for any other filter."""
    *folders, last = [part for part in re.split(r"[\\/]", name.strip()) if part] or [""]
    stem = re.sub(r"\.(dat|txt|xml|csv|fits?)$", "", last, flags=re.IGNORECASE)
    own = "|".join(_ALIASES.get(survey, (survey,)))
    with_survey = re.fullmatch(rf"(?:{own})[-_. ]?([ugrizy])['p]?|([ugrizy])['p]?[-_. ](?:{own})", stem, re.IGNORECASE)
    if with_survey:
        return (with_survey[1] or with_survey[2]).lower()
    if re.fullmatch(r"[ugrizy]'?", stem) and not folders:
        return stem[0]
    if re.fullmatch(r"[ugrizy]", stem, re.IGNORECASE) and any(re.match(own, f, re.IGNORECASE) for f in folders):
        return stem.lower()
    return name.strip()


# --- SNANA text ----------------------------------------------------------------------------------------------------


@dataclass
class _Snana:
    """What an SNANA file says: its facts, each with its line, and its rows."""

    path: Path
    facts: dict[str, tuple[int, str]] = field(default_factory=dict)
    rows: list[list[str]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    def words(self, key: str) -> list[str]:
        """The words after a key."""
        return self.facts.get(key, (0, ""))[1].split()

    def count(self, key: str) -> int | None:
        """A whole number after a key; None where there is none."""
        words = self.words(key)
        return int(words[0]) if words and words[0].isdecimal() else None

    def number(self, keys: Sequence[str], least: float, most: float, what: str) -> float:
        """The first of the keys that gives a known number in the range; NaN without any."""
        for key in keys:
            line, text = self.facts.get(key, (0, ""))
            sheet = Sheet(self.path, [], [line], "line")
            known = sheet.known(0, Column(key, "", [(text.split() or [""])[0]]), least, most, what)
            if not math.isnan(known):
                return known
        return math.nan

    def angle(self, keys: Sequence[str], hours: bool) -> float:
        """Degrees; NaN where the file does not say."""
        for key in keys:
            if key in self.facts:
                line, text = self.facts[key]
                text = text.partition("#")[0].partition("+-")[0]
                words = re.sub(r"\s*\(?deg(rees)?\)?\.?\s*$", "", text, flags=re.IGNORECASE).strip()
                return Sheet(self.path, [], [line], "line").angle(0, Column(key, "", [words]), hours)
        return math.nan


def _read_snana(text: str, path: Path, name: str, survey: str) -> LightCurve:
    said = _snana(text, path)
    sheet = _observations(said)
    wanted = {"MJD": ("mjd",), "BAND": BAND, "FLUXCAL": FLUXCAL, "FLUXCALERR": FLUXCAL_ERROR}
    mjd, band, flux, error = sheet.require("an SNANA light curve", wanted)
    to_njy = 10 ** (0.4 * (AB_ZERO - SNANA_ZERO))
    ra, dec = _snana_position(said)
    return LightCurve(
        _snana_name(said, name),
        np.array([_time(sheet, row, mjd) for row in range(sheet.rows)], float),
        np.array([_band(sheet, row, band, survey) for row in range(sheet.rows)], str),
        np.array([_fluxcal(sheet, row, flux) for row in range(sheet.rows)], float) * to_njy,
        np.array([_fluxcal(sheet, row, error) for row in range(sheet.rows)], float) * to_njy,
        peak_mjd=said.number(("SEARCH_PEAKMJD", "PEAKMJD"), *MJD_RANGE, MJD_TEXT),
        redshift=_positive(said.number(("REDSHIFT_HELIO", "REDSHIFT_FINAL"), -1, 20, "a redshift")),
        ra=ra,
        dec=dec,
    )


def _positive(value: float) -> float:
    return value if value > 0 else math.nan


def _snana(text: str, path: Path) -> _Snana:
    said, inside = _Snana(path), True
    for line, written in enumerate(text.splitlines(), 1):
        words = written.split()
        key = words[0].upper() if words else ""
        if key in ("DOCUMENTATION:", "DOCUMENTATION_END:"):
            inside = key == "DOCUMENTATION_END:"
        elif inside and key == "OBS:":
            said.rows.append(_without_comment(words[1:]))
            said.places.append(line)
        elif inside and key == "SNID:" and "SNID" in said.facts:
            raise ArchiveError(f"{path}, line {line}: a second SNID: write one file for each object")
        elif inside and key.endswith(":"):
            said.facts.setdefault(key[:-1], (line, " ".join(words[1:])))
    return said


def _without_comment(words: list[str]) -> list[str]:
    return words[: next((at for at, word in enumerate(words) if word.startswith("#")), len(words))]


def _observations(said: _Snana) -> Sheet:
    """The OBS rows as a table; every row has as many values as VARLIST names, and none is missing."""
    names = said.words("VARLIST")
    for line, row in zip(said.places, said.rows, strict=True):
        if len(row) != len(names):
            raise ArchiveError(
                f"{said.path}, line {line}: OBS has {len(row)} values, VARLIST names {len(names)} columns: "
                "the file is cut short or damaged"
            )
    told = said.count("NOBS")
    if told is not None and told != len(said.rows):
        raise ArchiveError(f"{said.path} has {len(said.rows)} rows of OBS, NOBS says {told}: get the whole file")
    if not said.rows:
        raise ArchiveError(f"{said.path} is an SNANA file without a row OBS")
    columns = [Column(name, "", [row[number] for row in said.rows]) for number, name in enumerate(names)]
    return Sheet(said.path, columns, said.places, "line")


def _snana_name(said: _Snana, name: str) -> str:
    if "SNID" not in said.facts:
        return name
    line, text = said.facts["SNID"]
    words = text.split()
    if not words or words[0].casefold() in tables.MISSING or words[0].startswith("-9"):
        raise ArchiveError(f"{said.path}, line {line}: SNID names no object: write its name after it")
    if not words[0].isprintable():
        raise ArchiveError(
            f"{said.path}, line {line}: SNID {printable(words[0], 40)} has characters that names cannot have"
        )
    return words[0]


def _snana_position(said: _Snana) -> tuple[float, float]:
    """RA and Dec, degrees; NaN both where one is not known."""
    ra, dec = said.angle(("RA",), hours=True), said.angle(("DEC", "DECL"), hours=False)
    inside = -180 <= ra <= 360 and abs(dec) <= 90
    if math.isnan(ra) or math.isnan(dec) or (tables.is_sentinel(ra) and (ra < 0 or not inside)):
        return math.nan, math.nan
    if not inside:
        raise ArchiveError(f"{said.path}: RA {ra:g} and DEC {dec:g} are not a position in degrees")
    return ra % 360, dec


def _fluxcal(sheet: Sheet, row: int, column: Column) -> float:
    """FLUXCAL may be negative, also -9; -99, -999 and so on stand for what was not measured."""
    value = sheet.number(row, column)
    return math.nan if value <= -99 and tables.is_sentinel(value) else value


# --- CSV -----------------------------------------------------------------------------------------------------------


def _read_csv(text: str, path: Path, name: str, survey: str) -> LightCurve:
    wanted = (MJD + JD, BAND, MAG, MAG_ERROR, FLUX, FLUX_ERROR)
    sheet = tables.read_text(text, path, wanted)
    if not sheet.rows:
        raise ArchiveError(f"{path} is a light curve without a row")
    _one_object(sheet)
    by_flux = sheet.has(FLUX)
    measurement = {"flux": FLUX, "flux_error": FLUX_ERROR} if by_flux else {"mag": MAG, "magerr": MAG_ERROR}
    needed: Mapping[str, Sequence[str]] = {"mjd": MJD + JD, "band": BAND, **measurement}
    times, bands, values, errors = sheet.require("a light curve", needed)
    measured = list(_fluxes(sheet, values, errors) if by_flux else _magnitudes(sheet, values, errors))
    return LightCurve(
        name,
        np.array([_time(sheet, row, times) for row in range(sheet.rows)], float),
        np.array([_band(sheet, row, bands, survey) for row in range(sheet.rows)], str),
        np.array([flux for flux, _ in measured], float),
        np.array([scatter for _, scatter in measured], float),
    )


def _one_object(sheet: Sheet) -> None:
    """Refuse a file that holds several objects: their measurements would pass as those of one."""
    column = sheet.optional(OBJECT)
    names = {str(cell).strip() for cell in column.cells if cell is not None} - {""}
    if len(names) > 1:
        raise ArchiveError(
            f"{sheet.path} holds {len(names)} objects (column {printable(column.name, 60)}): write one file for each"
        )


def _fluxes(sheet: Sheet, values: Column, errors: Column) -> Iterator[tuple[float, float]]:
    """nJy, unless the column's unit says otherwise, which is refused."""
    for column in (values, errors):
        if column.unit.strip().casefold() not in ("", "njy"):
            sheet.fail(0, column, f"its unit is {printable(column.unit)}: give nJy")
    for row in range(sheet.rows):
        yield _fluxcal(sheet, row, values), _fluxcal(sheet, row, errors)


def _magnitudes(sheet: Sheet, values: Column, errors: Column) -> Iterator[tuple[float, float]]:
    """Flux and error, nJy; catalogues write -99.99 and the like where there is no measurement."""
    for row in range(sheet.rows):
        magnitude = sheet.known(row, values, -200, 200, "a magnitude")
        scatter = sheet.known(row, errors, -200, 200, "an error of a magnitude")
        if 0 < magnitude < 40 and 0 < scatter < 5:
            flux = float(magnitude_to_njy(np.float64(magnitude)))
            yield flux, flux * scatter * math.log(10) / 2.5
        else:
            yield math.nan, math.nan


def _time(sheet: Sheet, row: int, column: Column) -> float:
    """MJD; NaN where it is not known."""
    value = sheet.number(row, column)
    if tables.simple(column.name) in JD:
        value -= JD_ZERO
    return mjd(sheet, row, column, value, "name the column jd or subtract 2400000.5")


def _band(sheet: Sheet, row: int, column: Column, survey: str) -> str:
    """Empty, which no survey has, where the row does not say."""
    cell = column.cells[row]
    return "" if cell is None or str(cell).strip().casefold() in tables.MISSING else band_of(str(cell), survey)
