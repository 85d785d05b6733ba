"""What packets contain besides stamps, as stored in an archive: photometry and context by epoch.

Two further kinds of columns in the table of stamps, both optional:

    photometry       list of points (mjd, band's code, flux, flux_error, kind) that this epoch's packet adds to what the
                     object's earlier packets said, so that the points known at an epoch are those of all rows up to it
    context_<name>   one column for each name of `classifier.context`; null where the packet does not say it
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skyheed.classifier import context as contexts
from skyheed.classifier.archives.damage import BoundedFile, damaged
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.history import BANDS, UPPER_LIMIT, Photometry
from skyheed.classifier.safe_names import printable

PHOTOMETRY, CONTEXT = "photometry", "context_"
MOST_BYTES = 2**28  # of one object's photometry and context; 300 points an epoch and 10,000 epochs have 78 MB
_POINT = {"mjd": "<f8", "band": "u1", "flux": "<f4", "flux_error": "<f4", "kind": "u1"}
_ARROW = {"<f8": pa.float64(), "<f4": pa.float32(), "u1": pa.uint8()}


@dataclass(frozen=True)
class Extras:
    """What an object's packets contain besides stamps.

    Attributes:
        photometry: [n], the points that each epoch's packet adds to those before it.
        context: [n], name -> number; what is not known is absent.
    """

    photometry: Sequence[Photometry]
    context: Sequence[Mapping[str, float]]

    def __len__(self) -> int:
        return len(self.context)

    def take(self, rows: NDArray[Any]) -> "Extras":
        """Some of the epochs, in this order; `rows` are indices, or a mask.

        Points of a dropped epoch move to the next one kept, whose packet would have included them.
        """
        kept = np.arange(len(self))[rows]
        if not len(kept):
            return Extras([], [])
        if (np.diff(kept) < 0).any():
            return Extras([self.photometry[i] for i in kept], [self.context[i] for i in kept])
        starts = [0, *(kept[:-1] + 1)]
        points = [joined(self.photometry[a : b + 1]) for a, b in zip(starts, kept, strict=True)]
        return Extras(points, [self.context[i] for i in kept])

    def until(self, epoch: int) -> Photometry:
        """All points from the packets up to this epoch."""
        return Photometry.merged(self.photometry[: epoch + 1])


def joined(parts: Sequence[Photometry]) -> Photometry:
    """The points of several packets, one packet after the other."""
    return Photometry(*(np.concatenate([getattr(part, name) for part in parts]) for name in _POINT))


def no_points() -> Photometry:
    """Photometry of nothing."""
    return Photometry(*(np.empty(0, kind) for kind in _POINT.values()))


def arrays_of(extras: Extras) -> dict[str, NDArray[Any]]:
    """The same as plain arrays: `photometry_epoch` (of the packet that brought a point), `photometry_mjd` and so on
    [points], and `context_<name>` [n] with NaN for what is not known."""
    whole = joined(extras.photometry) if len(extras) else no_points()
    numbers = contexts.table(extras.context)
    epoch = np.repeat(np.arange(len(extras)), [len(points) for points in extras.photometry])
    return {
        f"{PHOTOMETRY}_epoch": epoch,
        **{f"{PHOTOMETRY}_{name}": getattr(whole, name) for name in _POINT},
        **{CONTEXT + name: numbers[:, column] for column, name in enumerate(contexts.NAMES)},
    }


def columns_of(extras: Extras) -> dict[str, pa.Array]:
    """The columns of a table of stamps that hold these.

    Raises:
        ArchiveError: a name that no context has, or a value that none can be.
    """
    try:
        for each in extras.context:
            contexts.check(each)
    except ValueError as error:
        raise ArchiveError(str(error)) from error
    ends = np.cumsum([0, *(len(points) for points in extras.photometry)], dtype=np.int32)
    whole = joined(extras.photometry)
    values = [pa.array(getattr(whole, name), _ARROW[kind]) for name, kind in _POINT.items()]
    found = {PHOTOMETRY: pa.ListArray.from_arrays(ends, pa.StructArray.from_arrays(values, list(_POINT)))}
    numbers = contexts.table(extras.context)
    for column, name in enumerate(contexts.NAMES):
        known = np.isfinite(numbers[:, column])
        found[CONTEXT + name] = pa.array(numbers[:, column], pa.float32(), mask=~known)
    return found


def read_extras(file: BoundedFile, group: int) -> Extras | None:
    """What the packets of one object say; None in archives that do not hold it.

    Raises:
        ArchiveError: it is damaged, or more than is read.
    """
    names = [name for name in file.schema_arrow.names if name == PHOTOMETRY or name.startswith(CONTEXT)]
    if PHOTOMETRY not in names:
        return None
    with damaged():
        _check_types(file.schema_arrow)
        if (size := _size(file, group)) > MOST_BYTES:
            raise ValueError(f"photometry of {size} bytes, more than is read")
        return extras_of(file.read_row_group(group, columns=names))


def extras_of(table: pa.Table) -> Extras | None:
    """The same of rows of a part's table.

    Raises:
        ArchiveError: they hold what cannot be there.
    """
    if PHOTOMETRY not in table.column_names:
        return None
    with damaged():
        _check_types(table.schema)
        points = table[PHOTOMETRY].combine_chunks()
        return Extras(_points(points.chunk(0) if isinstance(points, pa.ChunkedArray) else points), _contexts(table))


def _check_types(schema: pa.Schema) -> None:
    """Raise ValueError unless photometry is a list of points and context is numbers: texts could unpack to any size."""
    points = schema.field(PHOTOMETRY).type
    if not pa.types.is_list(points) or not pa.types.is_struct(points.value_type):
        raise ValueError(f"{PHOTOMETRY} is {printable(points, 60)}, not a list of points")
    numbers = [*points.value_type, *(field for field in schema if field.name.startswith(CONTEXT))]
    for field in numbers:
        if not (pa.types.is_integer(field.type) or pa.types.is_floating(field.type)):
            raise ValueError(f"{printable(field.name, 60)} is {printable(field.type, 60)}, not a number")


def _size(file: BoundedFile, group: int) -> int:
    """Bytes of the columns in the file or in memory, whichever is more: one number repeated takes a few in the file."""
    unpacked, values = file.values_of(group, (PHOTOMETRY, CONTEXT))
    return max(unpacked, values * 8)


def _points(column: pa.ListArray) -> list[Photometry]:
    if column.null_count or column.values.null_count:
        raise ValueError("stamps without photometry")
    ends, values = column.offsets.to_numpy(), column.values
    parts = {name: values.field(name).to_numpy().astype(kind) for name, kind in _POINT.items()}
    if (parts["band"] >= len(BANDS)).any() or (parts["kind"] > UPPER_LIMIT).any():
        raise ValueError("photometry of an unknown band or kind")
    return [Photometry(*(values[start:end] for values in parts.values())) for start, end in itertools.pairwise(ends)]


def _contexts(table: pa.Table) -> list[dict[str, float]]:
    known = {name: CONTEXT + name for name in contexts.NAMES if CONTEXT + name in table.column_names}
    columns = {name: table[column].to_pylist() for name, column in known.items()}
    return [contexts.known({name: values[i] for name, values in columns.items()}) for i in range(table.num_rows)]
