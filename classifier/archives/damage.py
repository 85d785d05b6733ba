"""Parquet of others: opened so that no text unpacks to any size; what damage ends in, as one sentence."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.safe_names import printable


@contextlib.contextmanager
def damaged() -> Iterator[None]:
    """All that reading a part ends in if it is not what it should be, as one error.

    Raises:
        ArchiveError
    """
    try:
        yield
    except (
        OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError, pa.ArrowException,
    ) as error:  # fmt: skip
        raise ArchiveError(f"a part of the stamps is damaged: {printable(error, 200)}") from error


def open_parquet(path: Path, texts: Sequence[str]) -> pq.ParquetFile:
    """A file whose columns of these names stay in their dictionaries: a long text in every row takes no more than one.

    Raises:
        OSError, ValueError, pa.ArrowException: it is not Parquet, or damaged.
    """
    plain = pq.ParquetFile(path, page_checksum_verification=True)
    kept = [field.name for field in plain.schema_arrow if field.name in texts and pa.types.is_string(field.type)]
    with plain:
        return pq.ParquetFile(path, metadata=plain.metadata, page_checksum_verification=True, read_dictionary=kept)
