"""Makes names and texts from outside safe for file names, terminals, log lines and pictures.

Object ids, class names and the like are data from packets, users' tables or downloaded archives. They may contain
slashes, line ends, terminal escapes or bidirectional control characters.
"""

import hashlib
import re

LONGEST = 120  # characters of a file name; file systems take 255 bytes, and endings and marks of our own are added
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@=-]*")
# Windows opens a device for these, whatever their ending: an archive that is converted here may be unpacked there.
_RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9])(\..*)?", re.IGNORECASE)
_MARKED = re.compile(r".*-[0-9a-f]{12}")


def file_name(name: str) -> str:
    """One component of a path for any name: it has no separator, is not hidden, not reserved and not too long.

    Plain names (letters, digits, `_.+@=-`) stay as they are. In others, all other characters become `_`, and the first
    12 hex digits of the name's SHA-256 are added, so that different names never share a file.
    """
    if len(name) <= LONGEST and _PLAIN.fullmatch(name) and not _special(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    plain = re.sub(r"[^A-Za-z0-9_.+@=-]", "_", name[:LONGEST])[: LONGEST - 14].lstrip(".-")
    return f"_{plain}-{digest}" if _RESERVED.fullmatch(plain) or not plain else f"{plain}-{digest}"


def _special(name: str) -> bool:
    """Reserved, unstable (Windows drops a last dot), or of the form that `file_name` gives to others."""
    return bool(_RESERVED.fullmatch(name) or _MARKED.fullmatch(name) or name.endswith("."))


def printable(text: object, most: int = 0) -> str:
    """The text in one line that a terminal only shows: all that is not printable becomes `\\x1b`, `\\u202e` and so on.

    Args:
        most: cut after this many characters; 0 for all.
    """
    given = str(text)
    if most and len(given) > most:
        given = given[: most - 1] + "…"
    if given.isprintable():
        return given
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in given)


def printable_lines(text: str) -> str:
    """`printable` for a text of several lines; line breaks are kept."""
    return "\n".join(printable(line) for line in text.split("\n"))


def table_cell(text: object) -> str:
    """`printable` for a Markdown table, in which `|` would split a cell."""
    return printable(text).replace("|", "\\|")


def caption(text: object, most: int = 60) -> str:
    """`printable` for a picture: ASCII, which every font has, and no `$`, which would start a formula."""
    return printable(text, most).encode("ascii", "backslashreplace").decode().replace("$", r"\$")


def header_text(text: object) -> str:
    """`printable` for a FITS header: ASCII without line ends."""
    return printable(text).encode("ascii", "backslashreplace").decode()


# Spreadsheets execute cells that begin like this (OWASP, CSV injection); East Asian versions accept the full-width
# forms.
_FORMULA = "=+-@＝＋－＠"


def spreadsheet_cell(value: object) -> object:
    """A CSV cell that no spreadsheet executes: text that would start a formula is prefixed with `'`.

    Numbers stay numbers, including negative ones, and texts are `printable`.
    """
    if not isinstance(value, str):
        return value
    begins = value.lstrip()[:1]
    dangerous = (begins and begins in _FORMULA) or value[:1] in ("\t", "\r", "\n")
    return ("'" if dangerous else "") + printable(value)
