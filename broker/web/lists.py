"""Lists of classifications from the index, for the page, the API and downloads."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from skyheed.broker.web.components import Web
from skyheed.broker.web.index import Page
from skyheed.broker.web.problems import Problem
from skyheed.broker.web.search import Filters, SearchError, Typed
from skyheed.classifier.safe_names import spreadsheet_cell

MOST_EXPORTED = 10_000
ALL = "*"
COLUMNS = (
    "object_id", "model", "status", "reason", "top_class", "top_probability", "n_stamps", "days", "ra", "dec",
    "first_mjd", "last_mjd", "classified_ms", "classification_id", "revision",
)  # fmt: skip


def of_one_model(web: Web, filters: Filters) -> Filters:
    """The filters, with a model: `*` means all models, an empty name the first one."""
    if filters.model == ALL:
        return replace(filters, model="")
    if filters.model:
        return filters
    models = web.status.published()
    return replace(filters, model=models[0]) if models else filters


def page(web: Web, filters: Filters, typed: Typed, sort: str, limit: int, cursor: str) -> Page:
    """A page of the latest classification of each object.

    Raises:
        Problem: there is no such order, or the cursor is invalid.
    """
    wanted = of_one_model(web, filters)
    if typed.cone:
        wanted = replace(wanted, cone=typed.cone)
    try:
        return web.index.page(wanted, typed.text if typed.kind == "id" else "", sort, limit, cursor)
    except SearchError as error:
        raise Problem(422, str(error)) from error


def everything(web: Web, filters: Filters, typed: Typed, sort: str) -> list[dict[str, Any]]:
    """All rows of a list, at most `MOST_EXPORTED`."""
    rows: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None and len(rows) < MOST_EXPORTED:
        found = page(web, filters, typed, sort, min(1000, MOST_EXPORTED - len(rows)), cursor)
        rows += found.rows
        cursor = found.next
    return rows


def _flat(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows of a table: one column for each class's probability and each band's number of stamps."""
    classes = sorted({name for row in rows for name in row["probabilities"]})
    bands = sorted({band for row in rows for band in row["stamps_per_band"]})
    columns = [*COLUMNS, *(f"p_{name}" for name in classes), *(f"n_{band}" for band in bands)]
    flat = [
        {name: row[name] for name in COLUMNS}
        | {f"p_{name}": row["probabilities"].get(name) for name in classes}
        | {f"n_{band}": row["stamps_per_band"].get(band, 0) for band in bands}
        for row in rows
    ]
    return columns, flat


def as_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The rows as CSV, with cells that no spreadsheet will execute as formulas."""
    columns, flat = _flat(rows)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([spreadsheet_cell(name) for name in columns])
    writer.writerows([spreadsheet_cell(row[name]) for name in columns] for row in flat)
    return out.getvalue().encode("utf-8", "backslashreplace")


def as_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The rows as Parquet.

    Raises:
        Problem: pyarrow is missing.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise Problem(501, "pyarrow is not installed here: pip install 'skyheed[classifier]', or take CSV") from None
    columns, flat = _flat(rows)
    table = pa.table({name: [row[name] for row in flat] for name in columns})
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


_LIGHT = ("mjd", "band", "flux", "flux_error", "mag", "mag_error")


def light_curve(described: Mapping[str, Any]) -> bytes:
    """Epochs and photometry points of an object as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["mjd_tai", "band", "flux_njy", "flux_error_njy", "mag_ab", "mag_error", "kind", "source_id"])
    rows: list[list[Any]] = []
    rows += [[*row[:-1], "epoch", row[-1]] for row in _columns(described["epochs"], "source_id")]
    rows += [[*row, ""] for row in _columns(described["photometry"], "kind")]
    rows.sort(key=lambda row: float(row[0]))
    writer.writerows(rows)
    return out.getvalue().encode()


def _columns(found: Mapping[str, Any] | None, last: str) -> list[tuple[Any, ...]]:
    return list(zip(*(found[name] for name in (*_LIGHT, last)), strict=True)) if found else []
