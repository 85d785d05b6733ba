"""Tables in FITS and Parquet: their columns as `tables` knows them."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.safe_names import printable
from skyheed.classifier.sources.tables import MOST_BYTES, Column, Sheet, seen, unit_of


def read_fits(data: bytes, path: Path, wanted: Sequence[Sequence[str]]) -> Sheet:
    """The table of a FITS file that has most of the wanted columns.

    Raises:
        ArchiveError: no table, a damaged one, or one that claims more than its bytes hold.
    """
    from astropy.io import fits
    from astropy.table import Table

    try:
        with warnings.catch_warnings(), fits.open(io.BytesIO(data)) as parts:
            warnings.simplefilter("ignore")  # units and lengths that astropy corrects
            tables = [part for part in parts if isinstance(part, fits.BinTableHDU | fits.TableHDU)]
            if not tables:
                raise ArchiveError(f"{path} holds no table")
            best = max(tables, key=lambda part: seen(part.columns.names, wanted))
            _check_fits(best, len(data), path)
            table = Table.read(best, mask_invalid=True)
            columns = [
                Column(name, str(table[name].unit or ""), _plain(table[name])) for name in table.colnames
                if table[name].ndim == 1
            ]  # fmt: skip
    except ArchiveError:
        raise
    except Exception as error:  # damaged headers end in errors of many kinds
        raise ArchiveError(f"{path} is not a valid FITS table: {printable(error, 200)}") from error
    return Sheet(path, columns, range(1, len(table) + 1), "row")


def _check_fits(part: Any, size: int, path: Path) -> None:
    """Refuse rows that the file has no bytes for: of columns without width there may be any number.

    Raises:
        ArchiveError
    """
    width, rows, columns = (part.header[key] for key in ("NAXIS1", "NAXIS2", "TFIELDS"))
    if not 0 < width * rows <= size or rows * columns * 8 > MOST_BYTES:
        raise ArchiveError(f"{path} has {rows} rows of {width} bytes, too many for a table of this kind or none")
    if any("P" in form or "Q" in form for form in part.columns.formats):
        raise ArchiveError(f"{path} has columns of lists (TFORM P or Q): leave them out")


def _plain(column: Any) -> list[Any]:
    """Cells as Python values: None where masked, bytes as text."""
    return [cell.decode("utf-8", "replace") if isinstance(cell, bytes) else cell for cell in column.tolist()]


def read_parquet(data: bytes, path: Path) -> Sheet:
    """The columns of single values of a Parquet file; lists and records are passed over.

    Raises:
        ArchiveError: a damaged file, or one that claims more than its bytes hold.
    """
    import pyarrow as pa

    from skyheed.classifier.archives.damage import BoundedFile, longest_text

    try:
        file = BoundedFile(data, MOST_BYTES)
        if file.metadata.num_rows * max(file.metadata.num_columns, 1) * 8 > MOST_BYTES:
            raise ArchiveError(f"{path} has {file.metadata.num_rows} rows, too many for a table of this kind")
        table = file.read(columns=[field.name for field in file.schema_arrow if not pa.types.is_nested(field.type)])
        if sum(longest_text(column) for column in table.columns) * table.num_rows > file.room:
            raise ArchiveError(f"{path} has texts that are too long for a table of this kind")
        columns = [
            Column(name, unit_of(name), column.to_pylist())
            for name, column in zip(table.column_names, table.columns, strict=True)
        ]
    except (OSError, ValueError, LookupError, pa.ArrowException) as error:
        raise ArchiveError(f"{path} is not a valid Parquet file: {printable(error, 200)}") from error
    return Sheet(path, columns, range(1, table.num_rows + 1), "row")
