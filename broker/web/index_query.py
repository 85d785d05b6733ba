"""Translates a reader's list query to SQL: filters, order, and the cursor after which a page begins."""

import base64
import json
from collections.abc import Iterable
from typing import Any

from skyheed.broker.web.search import Filters, SearchError

# what a list can be sorted by: the column, and whether the largest values come first
SORTS = {
    "newest": ("classified_ms", True), "probability": ("top_probability", True), "epochs": ("n_stamps", True),
    "days": ("days", True), "night": ("night", True), "first": ("first_mjd", True), "id": ("object_id", False),
}  # fmt: skip


def order_of(sort: str) -> tuple[str, bool]:
    """The column to sort by, and whether the largest values come first.

    Raises:
        SearchError: there is no such order.
    """
    if sort.removeprefix("-") not in SORTS:
        raise SearchError(f"lists are sorted by {', '.join(SORTS)}, with a - in front for the reverse order")
    column, falls = SORTS[sort.removeprefix("-")]
    return column, falls != sort.startswith("-")


def where(filters: Filters, part: str) -> tuple[list[str], list[Any]]:
    """SQL conditions and their values.

    Args:
        part: of the object's id.
    """
    f = filters
    given: Iterable[tuple[str, Any]] = (
        ("model = ?", f.model or None), ("top_class = ?", f.class_ or None),
        ("top_probability >= ?", f.min_probability), ("top_probability <= ?", f.max_probability),
        ("n_stamps >= ?", f.min_epochs), ("n_stamps <= ?", f.max_epochs),
        ("days >= ?", f.min_days), ("days <= ?", f.max_days), ("night = ?", f.night),
        ("classified_ms >= ?", f.since_ms), *(("instr(bands, ?)", band) for band in f.bands),
        ("object_id LIKE ? ESCAPE '\\'", f"%{_escaped(part)}%" if part else None),
        ("instr(object_id, ?)", storable(part) if "\0" in part else None),  # LIKE ends at a NUL
    )  # fmt: skip
    wanted = [(clause, value) for clause, value in given if value is not None]
    clauses, values = [clause for clause, _ in wanted], [value for _, value in wanted]
    clauses += {"yes": ["top_class IS NULL"], "no": ["top_class IS NOT NULL"]}.get(f.declined, [])
    if f.cone:
        low, high, width = f.cone.box
        clauses.append("dec BETWEEN ? AND ?")
        values += [low, high]
        if width < 180:  # the difference in right ascension, the shorter way round
            clause, places = _about(f.cone.ra, width)
            clauses.append(clause)
            values += places
    return clauses, values


def _about(ra: float, width: float) -> tuple[str, list[float]]:
    """Right ascensions around a given one, including across 0."""
    low, high = ra - width, ra + width
    if low < 0 or high > 360:
        return "(ra >= ? OR ra <= ?)", [low % 360, high % 360]
    return "ra BETWEEN ? AND ?", [low, high]


def _escaped(text: str) -> str:
    return storable(text).replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def storable(text: str) -> str:
    """Text that SQLite can store: without lone surrogates."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def after_cursor(cursor: str, column: str, falls: bool) -> tuple[list[str], list[Any]]:
    """The SQL condition for rows after a cursor, and its values.

    Raises:
        SearchError: the cursor was not made by `cursor_of`.
    """
    if not cursor:
        return [], []
    try:
        at, value, key = json.loads(base64.urlsafe_b64decode(cursor.encode() + b"=="))
        good = at == 1 and _fits(key) and (value is None or isinstance(value, float | str) or _fits(value))
        good = good and (not isinstance(value, str) or value == storable(value))
    except (ValueError, TypeError):
        good = False
    if not good:
        raise SearchError("this cursor was not made here: begin at the first page")
    sign = "<" if falls else ">"
    if value is None:  # SQLite sorts NULL before everything else
        return ([f"{column} IS NULL AND id < ?"], [key]) if falls else ([f"({column} IS NOT NULL OR id > ?)"], [key])
    tail = f" OR {column} IS NULL" if falls else ""
    return [f"({column} {sign} ? OR ({column} = ? AND id {sign} ?){tail})"], [value, value, key]


def _fits(number: object) -> bool:
    """Whether it is a number that fits in an SQLite integer."""
    return isinstance(number, int) and abs(number) < 2**63


def cursor_of(value: Any, key: int) -> str:
    """The cursor that follows a row.

    Args:
        value: of the column by which the list is sorted.
        key: the row's own key.
    """
    text = json.dumps([1, value, key], separators=(",", ":"), ensure_ascii=False)
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
