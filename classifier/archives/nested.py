"""Objects with nested epochs, as `hats` writes them and LSDB hands them on, as rows of an archive's part again."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skyheed.classifier.archives.extras import PHOTOMETRY
from skyheed.classifier.archives.format import KINDS
from skyheed.classifier.errors import ArchiveError

EPOCHS = "epochs"
FACTS = ("stamp_form", "stamp_shape")  # said of every object, because few tools pass a table's metadata on


def is_nested(table: pa.Table) -> bool:
    """Whether a row of the table is an object with its epochs in it."""
    return EPOCHS in table.column_names


def unnested(table: pa.Table) -> pa.Table:
    """A row for each epoch, with the columns of an archive's part, and what they have to be known by as metadata.

    Raises:
        ArchiveError: the table is not one of a catalogue of `archive convert --to hats`.
    """
    try:
        counts, columns = _lists(table[EPOCHS])
        columns = {name: _packed(column) if name in KINDS else column for name, column in columns.items()}
        ids = np.repeat(np.arange(table.num_rows), counts)
        columns["object_id"] = table["object_id"].combine_chunks().take(pa.array(ids)).cast(pa.string())
        if PHOTOMETRY in table.column_names:
            columns[PHOTOMETRY] = _points(table[PHOTOMETRY], counts)
        return pa.table(columns).replace_schema_metadata(_facts(table))
    except (KeyError, ValueError, TypeError, AttributeError, pa.ArrowException) as error:
        raise ArchiveError(
            f"these are not objects of a catalogue that `skyheed archive convert --to hats` wrote: {str(error)[:200]}"
        ) from error


def _lists(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """How many values each row has, and all of them by name: a struct of lists, or a list of structs."""
    whole = column.combine_chunks()
    if not pa.types.is_struct(whole.type):
        return _counts(whole), dict(zip(_names(whole.type.value_type), whole.flatten().flatten(), strict=True))
    lists = dict(zip(_names(whole.type), whole.flatten(), strict=True))
    counts = [_counts(one) for one in lists.values()]
    if any((other != counts[0]).any() for other in counts):
        raise ValueError("lists of one row have different lengths")
    return counts[0], {name: one.flatten() for name, one in lists.items()}


def _names(kind: pa.StructType) -> list[str]:
    return [kind.field(n).name for n in range(kind.num_fields)]


def _counts(lists: Any) -> NDArray[np.int64]:
    return np.array(lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False), np.int64)


def _packed(images: Any) -> Any:
    """Images as archives have them: all of one size."""
    return images.cast(pa.binary(len(images[0].as_py()))) if len(images) else images.cast(pa.binary(0))


def _points(column: pa.ChunkedArray, epochs: NDArray[np.int64]) -> Any:
    """The points of each epoch, from those of each object, which say which epoch's packet brought them."""
    counts, values = _lists(column)
    of_object = np.repeat(np.arange(len(epochs)), counts)
    starts = np.cumsum(epochs) - epochs
    brought = starts[of_object] + values.pop("epoch").to_numpy(zero_copy_only=False)
    if (np.diff(brought) < 0).any():
        raise ValueError("photometry is not in the order of its epochs")
    ends = np.cumsum([0, *np.bincount(brought, minlength=int(epochs.sum()))], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), pa.StructArray.from_arrays(list(values.values()), list(values)))


def _facts(table: pa.Table) -> Mapping[str, str]:
    found = {}
    for name in FACTS:
        said = set(table[name].to_pylist()) if name in table.column_names else set()
        if len(said) > 1:
            raise ValueError(f"objects of more than one {name}")
        if said:
            found[name] = str(said.pop())
    return found
