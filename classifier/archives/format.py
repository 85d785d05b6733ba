"""How an archive's tables are laid out: schemas, and stamps between pixels and bytes."""

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skyheed.classifier.archives.damage import BoundedFile, damaged
from skyheed.classifier.archives.extras import Extras, columns_of
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.safe_names import printable
from skyheed.classifier.taxonomy import CLASSES as CLASSES

FORMS = ("archive", "npz", "fits", "hats")  # that `convert` writes
FORMAT = 1  # raised when a reader of the last version could not read the next
UNLABELLED = ""  # class of a real object that nobody has classified
SPLITS = {"train": 70, "validation": 10, "test": 20}  # per cent of the objects
KINDS = ("stamp", "template", "difference")
OBJECTS_PER_PART = 32
NORMALISED = "normalised"  # stamp_form of stamps that are model-ready already
# Of a unit, in the images of each kind: a template has a fifth of the noise of the visits, and keeps its own depth.
PARTS = {"stamp": 1, "difference": 1, "template": 32}
STEPS_PER_NOISE = 4  # levels per standard deviation of the sky

OBJECT_SCHEMA = pa.schema(
    [
        ("object_id", pa.string()),
        ("class", pa.string()),
        ("type", pa.string()),
        ("true_class", pa.string()),
        ("confirmed", pa.bool_()),
        ("redshift", pa.float32()),
        ("ra", pa.float64()),
        ("dec", pa.float64()),
        ("peak_mjd", pa.float64()),
        ("origin", pa.string()),
        ("split", pa.string()),
        ("survey", pa.string()),
        ("first_alert_mjd", pa.float64()),
        ("stamps", pa.int32()),
        ("parameters", pa.string()),
        ("part", pa.int32()),
        ("row_group", pa.int32()),
    ]
)
# One row of Archive.stamps() but for the pixels.
_COLUMNS: tuple[tuple[str, str], ...] = (
    ("source_id", "<i8"),
    ("mjd", "<f8"),
    ("band", "U1"),
    ("detected", "?"),
    ("alert", "?"),
    ("flux", "<f4"),
    ("flux_error", "<f4"),
    ("source_flux", "<f4"),
    ("psf_fwhm", "<f4"),
    ("sky_noise", "<f4"),
    ("zero_point", "<f4"),
    ("rotation", "<f4"),
)
STAMP_COLUMNS = tuple(name for name, _ in _COLUMNS)
_ARROW = {"<i8": pa.int64(), "<f8": pa.float64(), "<f4": pa.float32(), "?": pa.bool_(), "U1": pa.string()}


@dataclass(frozen=True)
class ArchiveObject:
    """One object of an archive; the meaning of the fields is in `archive_card.OBJECT_FIELDS`."""

    object_id: str
    label: str
    type: str
    confirmed: bool
    redshift: float
    ra: float
    dec: float
    peak_mjd: float
    origin: str
    survey: str
    true_class: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def split(self) -> str:
        return split_of(self.object_id)


def split_of(object_id: str) -> str:
    """The split an object belongs to, from its name alone, so that it never changes sides."""
    place = zlib.crc32(f"split:{object_id}".encode()) % 100
    for name, share in SPLITS.items():
        place -= share
        if place < 0:
            return name
    raise AssertionError("the shares of SPLITS do not sum to 100")


def stamp_rows(pixels: Mapping[str, NDArray[np.float32]], columns: Mapping[str, NDArray[Any]]) -> NDArray[np.void]:
    """One object's stamps as the structured array that `Archive.stamps` returns.

    Args:
        pixels: by kind, float32 [n, ny, nx], nJy per pixel; NaN where the camera has no pixel.
        columns: every name of `STAMP_COLUMNS`, [n]; missing ones are 0, NaN for `source_flux`.
    """
    shape = next(iter(pixels.values())).shape
    dtype = [*_COLUMNS, *((kind, "<f4", shape[1:]) for kind in pixels)]
    rows = np.zeros(shape[0], dtype)
    rows["source_flux"] = np.nan
    for name, values in {**columns, **pixels}.items():
        rows[name] = values
    return rows


# An object, its stamps, and what its packets say alongside them: all objects of an archive have that, or none has.
Member = tuple[ArchiveObject, NDArray[np.void]] | tuple[ArchiveObject, NDArray[np.void], Extras | None]


def write_part(
    directory: Path, number: int, sequences: Iterable[Member], *, normalised: bool = False
) -> list[dict[str, Any]]:
    """Write one part of the stamps, one row group per object, and return the rows of the objects' table.

    Args:
        normalised: the pixels are those of model-ready stamps (`stamp.normalise`) in nJy, to be left as they are.
    """
    rows: list[dict[str, Any]] = []
    writer: pq.ParquetWriter | None = None
    try:
        for group, (thing, stamps, *more) in enumerate(sequences):
            table = stamp_table(thing.object_id, stamps, more[0] if more else None, normalised)
            if writer is None:
                writer = pq.ParquetWriter(
                    part_path(directory, number), table.schema, compression="zstd", compression_level=1,
                    use_dictionary=["object_id", "band"], write_statistics=["mjd"], write_page_checksum=True,
                )  # fmt: skip
            if table.schema != writer.schema:
                raise ArchiveError(
                    f"object {printable(thing.object_id)} has different columns from the objects before it"
                )
            writer.write_table(table, row_group_size=max(len(stamps), 1))
            rows.append(_object_row(thing, stamps, number, group))
    finally:
        if writer is not None:
            writer.close()
    return rows


def stamp_table(object_id: str, stamps: NDArray[np.void], extras: Extras | None, normalised: bool) -> pa.Table:
    """One object's stamps, in time order, as they are written; raises ArchiveError for what cannot be kept."""
    if not len(stamps):
        raise ArchiveError(f"object {printable(object_id)} has no stamps; leave it out of the archive")
    order = np.lexsort((stamps["source_id"], stamps["mjd"]))
    stamps = stamps[order]
    noise = stamps["sky_noise"]
    if not (np.isfinite(noise) & (noise > 0)).all():
        raise ArchiveError(
            f"object {printable(object_id)} has a stamp without sky noise; it sets the unit of its pixels"
        )
    unit = (noise / STEPS_PER_NOISE).astype(np.float32)
    columns = {"object_id": pa.array([object_id] * len(stamps))}
    columns |= {name: pa.array(stamps[name].tolist(), _ARROW[kind]) for name, kind in _COLUMNS}
    columns["stamp_unit"] = pa.array(unit)
    for kind in kinds_of(stamps):
        columns[kind] = _pack(stamps[kind], unit, PARTS[kind])
    if extras is not None:
        columns |= columns_of(extras.take(order))
    shape = ",".join(map(str, stamps[kinds_of(stamps)[0]].shape[1:]))
    facts = {"stamp_shape": shape, "stamp_dtype": "<f2", "stamp_form": NORMALISED if normalised else "survey"}
    return pa.table(columns).replace_schema_metadata(facts)


def kinds_of(stamps: NDArray[np.void]) -> list[str]:
    """The kinds of images in a structured array of stamps."""
    return [kind for kind in KINDS if kind in (stamps.dtype.names or ())]


def _pack(images: NDArray[np.float32], unit: NDArray[np.float32], parts: int) -> pa.Array:
    largest = np.float32(np.finfo(np.float16).max)
    packed = np.rint(images / (unit / np.float32(parts))[:, None, None]) / np.float32(parts)
    packed = np.minimum(np.maximum(packed, -largest, out=packed), largest, out=packed).astype("<f2")
    size = packed[0].nbytes
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), len(packed), [None, pa.py_buffer(packed.tobytes())])


def _object_row(thing: ArchiveObject, stamps: NDArray[np.void], part: int, group: int) -> dict[str, Any]:
    alerts = stamps["mjd"][stamps["alert"]]
    return {
        "object_id": thing.object_id,
        "class": thing.label,
        "type": thing.type,
        "true_class": thing.true_class or thing.label,
        "confirmed": thing.confirmed,
        "redshift": thing.redshift,
        "ra": thing.ra,
        "dec": thing.dec,
        "peak_mjd": thing.peak_mjd,
        "origin": thing.origin,
        "split": thing.split,
        "survey": thing.survey,
        "first_alert_mjd": float(alerts.min()) if alerts.size else float("nan"),
        "stamps": len(stamps),
        "parameters": json.dumps(thing.parameters, sort_keys=True),
        "part": part,
        "row_group": group,
    }


def part_path(directory: Path, number: int) -> Path:
    return directory / "stamps" / f"part-{number:05d}.parquet"


MOST_STAMPS = 100_000  # of one object; a survey of ten years makes 1,000 to 10,000
MOST_SIDE = 1024  # pixels
MOST_SEQUENCE = 2**31  # bytes of one object's stamps


def read_group(file: BoundedFile, group: int, kinds: tuple[str, ...]) -> NDArray[np.void]:
    """The rows of one object as `Archive.stamps` returns them; their size is checked before they are unpacked.

    Raises:
        ArchiveError: they are damaged, not what they should be, or more than are read.
    """
    missing = [kind for kind in kinds if kind not in file.schema_arrow.names]
    if missing:
        raise ArchiveError(f"this archive has no {missing[0]!r} images")
    with damaged():
        shape = shape_of(file)
        _check_size(file.metadata.row_group(group).num_rows, shape, len(kinds), file.values_of(group, [""])[0])
        types = types_of(kinds, shape)
        for name, kind in types.items():
            if not alike(file.schema_arrow.field(name).type, kind):
                raise ValueError(_of_another_type(name, file.schema_arrow.field(name).type, kind))
        table = file.read_row_group(group, columns=list(types))
    return rows_of(table, kinds, shape)


def shape_of(file: pq.ParquetFile) -> tuple[int, int]:
    """(ny, nx) of the stamps; raises KeyError, TypeError or ValueError if the file does not say it."""
    ny, nx = map(int, file.schema_arrow.metadata[b"stamp_shape"].decode().split(","))
    return ny, nx


def _check_size(stamps: int, shape: tuple[int, int], kinds: int, packed: int) -> None:
    ny, nx = shape
    sound = 0 < ny <= MOST_SIDE and 0 < nx <= MOST_SIDE and stamps <= MOST_STAMPS and packed <= MOST_SEQUENCE
    if not sound or stamps * ny * nx * 4 * max(kinds, 1) > MOST_SEQUENCE:
        raise ArchiveError(
            f"an object has {stamps} stamps of {nx} x {ny} pixels, more than are read ({packed} bytes in the file)"
        )


def types_of(kinds: Sequence[str], shape: tuple[int, int]) -> dict[str, pa.DataType]:
    """The columns of a part's table that `rows_of` reads, and their types."""
    ny, nx = shape
    pixels = dict.fromkeys(kinds, pa.binary(2 * ny * nx))
    return {**{name: _ARROW[kind] for name, kind in _COLUMNS}, "stamp_unit": pa.float32(), **pixels}


def _of_another_type(name: str, given: pa.DataType, wanted: pa.DataType) -> str:
    size = f" ({wanted.byte_width // 2} float16)" if pa.types.is_fixed_size_binary(wanted) else ""
    return f"{name} is {printable(given, 60)}, not {wanted}{size}"


def alike(given: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a column can be read as another type without growing: numbers as numbers, texts as texts."""
    if pa.types.is_dictionary(given):
        given = given.value_type
    numbers = [pa.types.is_integer(t) or pa.types.is_floating(t) for t in (given, wanted)]
    texts = [pa.types.is_string(t) or pa.types.is_large_string(t) for t in (given, wanted)]
    return given == wanted or all(numbers) or all(texts)


def rows_of(table: pa.Table, kinds: Sequence[str], shape: tuple[int, int]) -> NDArray[np.void]:
    """Rows of a part's table as the structured array that `Archive.stamps` returns; `shape` is (ny, nx).

    Raises:
        ArchiveError: a column is missing, has another type or gaps, or a value that none can be.
    """
    with damaged():
        types = types_of(kinds, shape)
        if gaps := [name for name in types if table[name].null_count]:
            raise ValueError(f"stamps without {gaps[0]}")
        _check_bands(table["band"])
        columns = {name: table[name].cast(kind) for name, kind in types.items()}
        rows = np.zeros(table.num_rows, [*_COLUMNS, *((kind, "<f4", shape) for kind in kinds)])
        for name in STAMP_COLUMNS:
            rows[name] = columns[name].to_numpy()
        if not np.isfinite(rows["mjd"]).all():
            raise ValueError("a stamp's mjd is no number")
        unit = columns["stamp_unit"].to_numpy()
        for kind in kinds:
            rows[kind] = _unpack(columns[kind], (table.num_rows, *shape)) * unit[:, None, None]
        return rows


def _check_bands(column: pa.ChunkedArray) -> None:
    """Every band is one character, all that a row holds; of a dictionary each text is measured once."""
    for chunk in column.chunks:
        texts = chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
        if (longest := pc.max(pc.utf8_length(texts)).as_py() or 0) > 1:
            raise ValueError(f"a band of {longest} characters")


def _unpack(column: pa.ChunkedArray, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    chunks = [np.frombuffer(chunk.buffers()[1], "<f2")[_extent(chunk)] for chunk in column.chunks]
    return np.concatenate(chunks).reshape(shape).astype(np.float32)


def _extent(chunk: pa.Array) -> slice:
    per_row = chunk.type.byte_width // 2
    return slice(chunk.offset * per_row, (chunk.offset + len(chunk)) * per_row)
