"""Reads tables that people write: CSV from any editor or spreadsheet, FITS and Parquet, by column name.

Tolerated: byte order marks, UTF-16, any line ends, `,` `;` tab or `|` between cells, capitals, spaces and
underscores in column names, synonyms, units in brackets, gzip, comment lines (#), empty rows. Anything else is refused
in one sentence with file, line and column; nothing is read by its position.
"""

import csv
import io
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from skyheed.classifier.bounded_files import check_lines, gunzip, read_file
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.safe_names import printable

MOST_BYTES = 256 * 2**20  # unpacked; the SDSS-II table has 10 MB, the list of all SDSS fields 100
DELIMITERS = ",;\t|"
MISSING = frozenset(
    ["", "null", "none", "nan", "na", "n/a", "#n/a", "-", "--", "---", "...", "?", "unknown", "undefined", "\\n", "nil"]
)
_GZIP, _FITS, _PARQUET = b"\x1f\x8b", b"SIMPLE  =", b"PAR1"
_UNIT = re.compile(r"[\[(]([^\])]*)[\])]")
_SEPARATOR = re.compile(r'"?sep=."?')  # the first line of what Excel is to open; the header shows the same
_NINES = re.compile(r"-9+(\.9*)?|99+(\.9*)?")
_SEXAGESIMAL = re.compile(
    r"[+-]?\d{1,3}(\s*[:hd°]\s*|\s+)\d{1,2}(\s*[:m'′]\s*|\s+)\d{1,2}(\.\d*)?\s*[s\"″]?", re.IGNORECASE
)
_DEGREES = frozenset(["", "deg", "degree", "degrees", "°"])


@dataclass(frozen=True)
class Column:
    """One column: its name as written, its unit (empty if not given) and its cells."""

    name: str
    unit: str
    cells: Sequence[Any]


class Sheet:
    """A table: columns by name, and where each row is in the file.

    Attributes:
        rows: how many.
    """

    def __init__(self, path: Path, columns: Sequence[Column], places: Sequence[int], word: str) -> None:
        self.path = path
        self._columns: dict[str, list[Column]] = {}
        for column in columns:
            self._columns.setdefault(simple(column.name), []).append(column)
        self._places, self._word = places, word
        self.rows = len(places)

    @property
    def names(self) -> str:
        """The columns as written."""
        return printable(", ".join(c.name for same in self._columns.values() for c in same if c.name), 200)

    def has(self, names: Sequence[str]) -> bool:
        """Whether there is a column of one of these names."""
        return any(name in self._columns for name in names)

    def column(self, names: Sequence[str]) -> Column:
        """The column of the first of these (simple) names that there is.

        Raises:
            ArchiveError: there is none, or there are several of one name.
        """
        for name in names:
            found = self._columns.get(name, [])
            if len(found) > 1:
                raise ArchiveError(f"{self.path} has {len(found)} columns {found[0].name!r}: keep one")
            if found:
                return found[0]
        raise ArchiveError(f"{self.path} has no column {names[0]}; it has {self.names}")

    def require(self, what: str, wanted: Mapping[str, Sequence[str]]) -> list[Column]:
        """The columns that a file of this kind (`a candidate table`) must have.

        Args:
            wanted: each with the name to show and its (simple) names.

        Raises:
            ArchiveError: one is missing.
        """
        if missing := [shown for shown, names in wanted.items() if not self.has(names)]:
            raise ArchiveError(
                f"{self.path} is not {what} with the columns {', '.join(wanted)}: it has no {missing[0]}, "
                f"only {self.names or 'nothing'}"
            )
        return [self.column(names) for names in wanted.values()]

    def optional(self, names: Sequence[str]) -> Column:
        """The same, with a column of nothing where there is none."""
        return self.column(names) if self.has(names) else Column(names[0], "", [None] * self.rows)

    def fail(self, row: int, column: Column, words: str) -> NoReturn:
        """Raise ArchiveError: file, row, column, and what is wrong there."""
        raise ArchiveError(
            f"{self.path}, {self._word} {self._places[row]}, column {printable(column.name, 60)}: {words}"
        )

    def place(self, row: int) -> str:
        """Where a row stands, for messages."""
        return f"{self._word} {self._places[row]}"

    def number(self, row: int, column: Column) -> float:
        """The cell as a number, NaN where it is empty or says in words that it is not known.

        Raises:
            ArchiveError: something else.
        """
        try:
            return number(column.cells[row])
        except ValueError as error:
            self.fail(row, column, str(error))

    def known(self, row: int, column: Column, least: float, most: float, what: str) -> float:
        """The number in a range, NaN where it is not known (also -9, -99.99, 999 and the like, outside of the range).

        Raises:
            ArchiveError: it is beyond the range, or no number.
        """
        value = self.number(row, column)
        if math.isnan(value) or least <= value <= most:
            return value
        if is_sentinel(value) or value == 0:
            return math.nan
        self.fail(row, column, f"{value:g} is not {what}")

    def angle(self, row: int, column: Column, hours: bool) -> float:
        """Degrees, from decimal degrees or sexagesimal text; NaN where it is not known.

        Args:
            hours: whether sexagesimal text is in hours (right ascension).

        Raises:
            ArchiveError
        """
        value = column.cells[row]
        if isinstance(value, str) and _SEXAGESIMAL.fullmatch(value.strip()):
            try:
                return sexagesimal(value, hours)
            except ValueError as error:
                self.fail(row, column, str(error))
        if column.unit.strip().casefold() not in _DEGREES:
            self.fail(row, column, f"its unit is {printable(column.unit)}: give degrees, or hh:mm:ss and dd:mm:ss")
        return self.number(row, column)


def simple(name: str) -> str:
    """A column's name without capitals, spaces, marks and unit: `Peak_MJD [d]` and `peakmjd` are the same."""
    return re.sub(r"[^a-z0-9]", "", _UNIT.sub("", name.casefold()))


def number(value: Any) -> float:
    """A cell as a number; NaN for what is empty or not known.

    Raises:
        ValueError: one sentence that says what it is instead.
    """
    if value is None:
        return math.nan
    if isinstance(value, bool):
        raise ValueError(f"{value} is not a number")
    if not isinstance(value, str):
        return _finite(float(value), value)
    text = value.strip()
    if text.casefold() in MISSING:
        return math.nan
    try:
        found = float(text.replace("_", "x"))  # Python's 1_000 is not a number here
    except ValueError:
        _refuse(text)
    return _finite(found, text)


def _finite(value: float, written: Any) -> float:
    if math.isinf(value):
        raise ValueError(f"{written} is not a finite number")
    return value


def _refuse(text: str) -> NoReturn:
    shown = printable(text, 40)
    if re.fullmatch(r"[+-]?\d+,\d*|[+-]?,\d+", text):
        raise ValueError(f"{shown} has a decimal comma: write a decimal point")
    if _SEXAGESIMAL.fullmatch(text):
        raise ValueError(f"{shown} is an angle in sexagesimal form: a number is needed here")
    raise ValueError(f"{shown} is not a number")


def is_sentinel(value: float) -> bool:
    """Whether a number is one of those that stand for "not known": -9, -99.99, -999, 99.99, 9999 and so on."""
    return bool(_NINES.fullmatch(f"{value:.8g}"))


def sexagesimal(text: str, hours: bool) -> float:
    """Degrees from `12:34:56.7`, `12 34 56.7`, `12h34m56.7s` or `+12d34m56.7s`.

    Raises:
        ValueError: no such angle.
    """
    import astropy.units as u
    from astropy.coordinates import Angle

    unit = u.hourangle if hours else u.deg
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # 60 minutes or seconds
            return float(Angle(text.strip(), unit).deg)
    except Exception as error:  # astropy raises of several trees
        raise ValueError(f"{printable(text, 40)} is not an angle in sexagesimal form") from error


# --- reading -------------------------------------------------------------------------------------------------------


def read_bytes(path: Path) -> bytes:
    """A file's bytes, unpacked if they are gzipped.

    Raises:
        ArchiveError: it cannot be read, is no ordinary file, damaged, or too large.
    """
    data = read_file(path, MOST_BYTES)
    return gunzip(data, MOST_BYTES, path) if data.startswith(_GZIP) else data


def text_of(data: bytes, path: Path) -> str:
    """Text in UTF-8, or in UTF-16 with a byte order mark, without the mark.

    Raises:
        ArchiveError: something else, or a line that is too long.
    """
    check_lines(data, path)
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ArchiveError(f"{path} is not text in UTF-8 (line {line}): save it as UTF-8") from None
    if "\0" in text:
        raise ArchiveError(f"{path} contains bytes that no text file has: give a table as text, FITS or Parquet")
    return text


def read(path: str | Path, wanted: Sequence[Sequence[str]]) -> Sheet:
    """A table of any of the forms.

    Args:
        wanted: the columns that the reader needs, each with its (simple) names; they tell the delimiter and the table.

    Raises:
        ArchiveError: it cannot be read, or holds no rows.
    """
    from skyheed.classifier.sources.binary_tables import read_fits, read_parquet  # which know our columns

    path = Path(path)
    data = read_bytes(path)
    if data.startswith(_FITS):
        sheet = read_fits(data, path, wanted)
    elif data.startswith(_PARQUET):
        sheet = read_parquet(data, path)
    else:
        sheet = read_text(text_of(data, path), path, wanted)
    if not sheet.rows:
        raise ArchiveError(f"{path} has no rows")
    return sheet


def read_text(text: str, path: Path, wanted: Sequence[Sequence[str]]) -> Sheet:
    """A table as text; `read` says how it is understood."""
    lines = _lines(text, path, wanted)
    first = next(lines, None)
    if first is None:
        raise ArchiveError(f"{path} is empty")
    line, header = first
    delimiter = _delimiter(header, wanted)
    names = _cells(header.lstrip("# \t") if header.lstrip().startswith("#") else header, delimiter, path, line)
    rows, places = [], []
    for line, written in lines:
        cells = _cells(written, delimiter, path, line)
        if not any(cell.strip() for cell in cells):
            continue
        rows.append(_fitted(cells, names, path, line))
        places.append(line)
    columns = [
        Column(name.strip(), unit_of(name), [row[number] for row in rows])
        for number, name in enumerate(names)
        if name.strip()
    ]
    return Sheet(path, columns, places, "line")


def _lines(text: str, path: Path, wanted: Sequence[Sequence[str]]) -> Iterator[tuple[int, str]]:
    """Number and text of every row, without comments; a quoted cell may continue on the next line."""
    written, began, header = "", 0, False
    for line, part in enumerate(io.StringIO(text, newline=None), 1):
        comment = part.lstrip().startswith("#") and (header or not _named(part, wanted))
        if not written and (comment or not part.strip() or (line == 1 and _SEPARATOR.fullmatch(part.strip()))):
            continue
        began = began if written else line
        written += part
        if written.count('"') % 2 == 0:
            header = True
            yield began, written.rstrip("\n")
            written = ""
    if written:
        raise ArchiveError(f"{path}, line {began}: a quotation mark is opened and not closed")


def _named(line: str, wanted: Sequence[Sequence[str]]) -> bool:
    """Whether a line names columns: some programs write the header after a #."""
    return max(seen(line.lstrip("# \t").split(delimiter), wanted) for delimiter in DELIMITERS) >= 2


def seen(names: Iterable[str], wanted: Sequence[Sequence[str]]) -> int:
    """How many of the wanted columns are among these."""
    there = {simple(name) for name in names}
    return sum(any(name in there for name in one) for one in wanted)


def _delimiter(header: str, wanted: Sequence[Sequence[str]]) -> str:
    """The one that shows most of the wanted columns."""
    return max(DELIMITERS, key=lambda mark: (seen(header.lstrip("# \t").split(mark), wanted), header.count(mark)))


def _cells(written: str, delimiter: str, path: Path, line: int) -> list[str]:
    try:
        (cells,) = csv.reader([written.replace("\n", " ")], delimiter=delimiter, strict=True, skipinitialspace=True)
    except (csv.Error, ValueError) as error:
        raise ArchiveError(f"{path}, line {line}: {printable(error)}") from None
    return cells


def _fitted(cells: list[str], names: list[str], path: Path, line: int) -> list[str]:
    """A row of as many cells as there are columns: a decimal comma would move all after it by one."""
    if len(cells) != len(names):
        hint = (
            "; write decimal points, or put texts with commas into quotation marks" if len(cells) > len(names) else ""
        )
        raise ArchiveError(f"{path}, line {line} has {len(cells)} cells, the header names {len(names)} columns{hint}")
    return cells


def unit_of(name: str) -> str:
    """The unit in brackets of a column's name; empty without one."""
    found = _UNIT.search(name)
    return found[1] if found else ""
