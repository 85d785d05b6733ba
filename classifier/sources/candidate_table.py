"""The table of the SDSS-II Supernova Survey's candidates.

It is the SNANA HEAD file of all 10,258 candidates (Sako et al. 2018, PASP 130, 064002) or any FITS, CSV or Parquet
table with the columns SNID, RA, DECL (or DEC), SNTYPE and, if known, PEAKMJD and REDSHIFT_FINAL.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.safe_names import printable
from skyheed.classifier.sources import tables
from skyheed.classifier.sources.tables import Column, Sheet
from skyheed.classifier.sources.times import mjd

# SNTYPE -> class, confirmed, type: the grouping of Bairouk et al. 2023 (A&A 673, A141). AGN and variables were not
# typed by supernova photometry, so they count as confirmed. 0 is unknown and left out.
CLASSES: Mapping[int, tuple[str, bool, str]] = MappingProxyType(
    {
        110: ("AGN", True, "AGN"),
        5: ("Variable", True, ""),
        103: ("SNIa", False, "Ia"),
        106: ("SNIa", False, "Ia"),
        118: ("SNIa", True, "Ia"),
        119: ("SNIa", True, "Ia"),
        120: ("SNIa", True, "Ia"),
        101: ("SNOther", False, ""),
        102: ("SNOther", False, ""),
        104: ("SNOther", False, ""),
        105: ("SNOther", False, ""),
        111: ("SNOther", True, ""),
        112: ("SNOther", True, ""),
        113: ("SNOther", True, ""),
        114: ("SNOther", True, ""),
        115: ("SNOther", True, ""),
    }
)
SNID = ("snid", "id", "objectid", "objid", "name", "cid", "candidate")
RA = ("ra", "raj2000", "radeg", "alpha", "rightascension")
DEC = ("decl", "dec", "dej2000", "decj2000", "decdeg", "de", "delta", "declination")
TYPE = ("sntype", "type")
PEAK = ("peakmjd", "mjdpeak", "searchpeakmjd", "tmax", "t0")
REDSHIFT = ("redshiftfinal", "redshifthelio", "zhelio", "zhel", "zspec", "redshift", "z")
LARGEST_REDSHIFT = 20.0


@dataclass(frozen=True)
class Candidate:
    """One row of the candidate table."""

    object_id: str
    ra: float
    dec: float
    label: str
    confirmed: bool
    type: str
    peak_mjd: float
    redshift: float


def read_candidates(path: str | Path) -> list[Candidate]:
    """The candidates with a known class, from a FITS, CSV or Parquet table (`tables` says what is understood).

    Raises:
        ArchiveError: no such table, a column is missing, a cell cannot be understood, or no candidate has a class.
    """
    sheet = tables.read(path, (SNID, RA, DEC, TYPE, PEAK, REDSHIFT))
    needed = {"SNID": SNID, "RA": RA, "DECL": DEC, "SNTYPE": TYPE}
    snid, ra, dec, kind = sheet.require("a candidate table", needed)
    peak, redshift = sheet.optional(PEAK), sheet.optional(REDSHIFT)
    found: dict[str, tuple[int, Candidate]] = {}
    for row in range(sheet.rows):
        code = _type_code(sheet, row, kind)
        if code not in CLASSES:
            continue
        name = _name(sheet, row, snid)
        if name in found:
            sheet.fail(row, snid, f"{name} is also in {sheet.place(found[name][0])}: keep one")
        east, north = _position(sheet, row, ra, dec)
        when, z = _peak(sheet, row, peak), sheet.known(row, redshift, -1, LARGEST_REDSHIFT, "a redshift")
        found[name] = row, Candidate(name, east, north, *CLASSES[code], when, z if z > 0 else float("nan"))
    if not found:
        known = ", ".join(map(str, sorted(CLASSES)))
        raise ArchiveError(f"{path} has no candidate of a known class: {kind.name} must be one of {known}")
    return [candidate for _, candidate in found.values()]


def _type_code(sheet: Sheet, row: int, column: Column) -> int:
    """SNTYPE; 0 where it is not known."""
    code = sheet.number(row, column)
    if np.isnan(code):
        return 0
    if code != int(code):
        sheet.fail(row, column, f"{code:g} is not a type: types are whole numbers, such as 120")
    return int(code)


def _name(sheet: Sheet, row: int, column: Column) -> str:
    value = column.cells[row]
    if isinstance(value, float) and value == int(value):  # a column of whole numbers that somewhere had a gap
        value = int(value)
    text = "" if value is None else str(value).strip()
    if text.casefold() in tables.MISSING or text.startswith("-9"):
        sheet.fail(row, column, f"the candidate has no name ({printable(text, 20) or 'empty'})")
    if not text.isprintable():
        sheet.fail(row, column, f"{printable(text, 40)} has characters that names cannot have")
    return text


def _position(sheet: Sheet, row: int, ra: Column, dec: Column) -> tuple[float, float]:
    east, north = sheet.angle(row, ra, hours=True), sheet.angle(row, dec, hours=False)
    if not -180 <= east <= 360 or (east < 0 and tables.is_sentinel(east)):
        sheet.fail(row, ra, f"{east:g} is not a right ascension: give degrees from 0 to 360, or hh:mm:ss")
    if not -90 <= north <= 90:
        sheet.fail(row, dec, f"{north:g} is not a declination: give degrees from -90 to 90, or dd:mm:ss")
    return east % 360, north


def _peak(sheet: Sheet, row: int, column: Column) -> float:
    """SNANA writes -9 where it does not know, others 0."""
    value = sheet.number(row, column)
    return mjd(sheet, row, column, value, "subtract 2400000.5") if value else float("nan")
