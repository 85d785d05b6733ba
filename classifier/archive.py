"""Archives: Parquet data sets of stamp sequences, real or simulated; what the model learns from and replay streams.

    DIR/
      README.md            the data card: how it was made, what is in it, what the columns mean
      card.json            the same for programs
      objects.parquet      one row per object
      stamps/part-*.parquet  one row per stamp; every object is one row group

A stamp is stored as little-endian float16 in units of a quarter of its own sky noise (`stamp_unit` nJy), rounded to
whole units in the sky: that adds 0.5 % to the variance of the noise (the step of `fpack -q 4`, Pence et al. 2010,
PASP 122, 1065), cannot overflow below 16,000 times the sky noise in one pixel, and compresses to 40 % of float16.
Readers return float32 nJy. Rows run from south to north, columns from east to west (unless `rotation` says how the
camera was turned), and the source is in pixel [n // 2, n // 2], counted from 0, give or take the astrometric error.

Knows nothing of Kafka, Redis, Avro or torch.
"""

import contextlib
import json
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .archive_card import card_text
from .errors import ArchiveError

FORMAT = 1  # raised when a reader of the last version could not read the next
CLASSES = ("AGN", "SNIa", "Variable", "SNOther")
SPLITS = {"train": 70, "validation": 10, "test": 20}  # per cent of the objects
KINDS = ("stamp", "template", "difference")
OBJECTS_PER_PART = 32
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


def write_part(
    directory: Path, number: int, sequences: Iterable[tuple[ArchiveObject, NDArray[np.void]]]
) -> list[dict[str, Any]]:
    """Write one part of the stamps, one row group per object, and return the rows of the objects' table."""
    rows: list[dict[str, Any]] = []
    writer: pq.ParquetWriter | None = None
    try:
        for group, (thing, stamps) in enumerate(sequences):
            table = _stamp_table(thing.object_id, stamps)
            if writer is None:
                writer = pq.ParquetWriter(
                    _part_path(directory, number), table.schema, compression="zstd", compression_level=1,
                    use_dictionary=["object_id", "band"], write_statistics=["mjd"], write_page_checksum=True,
                )  # fmt: skip
            writer.write_table(table, row_group_size=max(len(stamps), 1))
            rows.append(_object_row(thing, stamps, number, group))
    finally:
        if writer is not None:
            writer.close()
    return rows


def _stamp_table(object_id: str, stamps: NDArray[np.void]) -> pa.Table:
    if not len(stamps):
        raise ArchiveError(f"object {object_id} has no stamps; leave it out of the archive")
    order = np.lexsort((stamps["source_id"], stamps["mjd"]))
    stamps = stamps[order]
    noise = stamps["sky_noise"]
    if not (np.isfinite(noise) & (noise > 0)).all():
        raise ArchiveError(f"object {object_id} has a stamp without sky noise; it sets the unit of its pixels")
    unit = (noise / STEPS_PER_NOISE).astype(np.float32)
    columns = {"object_id": pa.array([object_id] * len(stamps))}
    columns |= {name: pa.array(stamps[name].tolist(), _ARROW[kind]) for name, kind in _COLUMNS}
    columns["stamp_unit"] = pa.array(unit)
    for kind in kinds_of(stamps):
        columns[kind] = _pack(stamps[kind], unit)
    shape = ",".join(map(str, stamps[kinds_of(stamps)[0]].shape[1:]))
    return pa.table(columns).replace_schema_metadata({"stamp_shape": shape, "stamp_dtype": "<f2"})


def kinds_of(stamps: NDArray[np.void]) -> list[str]:
    """The kinds of images in a structured array of stamps."""
    return [kind for kind in KINDS if kind in (stamps.dtype.names or ())]


def _pack(images: NDArray[np.float32], unit: NDArray[np.float32]) -> pa.Array:
    largest = np.float32(np.finfo(np.float16).max)
    packed = np.rint(images / unit[:, None, None])
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


def _part_path(directory: Path, number: int) -> Path:
    return directory / "stamps" / f"part-{number:05d}.parquet"


class ArchiveWriter:
    """Writes an archive that appears under its name only when it is complete.

        with ArchiveWriter(path, {"command": ...}) as writer:
            writer.add(thing, stamps)

    Everything goes into a hidden directory beside the target; leaving the block without an exception writes the data
    card and renames it. After an exception, or a crash, nothing stands under the archive's name.

    Args:
        path: the directory to make.
        card: how it was made: command, seed, and a "made" text in Markdown for people.
        overwrite: replace an archive that is there already.

    Raises:
        ArchiveError: the path exists.
    """

    def __init__(self, path: str | Path, card: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.path = Path(path)
        self._card = dict(card)
        self._overwrite = overwrite
        if self.path.exists() and not overwrite:
            raise ArchiveError(f"{self.path} exists; choose another name or ask to overwrite it")
        if self.path.exists() and not (self.path / "card.json").is_file():
            raise ArchiveError(f"{self.path} is not an archive and will not be overwritten; choose another name")
        # Workers of a simulation write their parts here themselves; see `adopt`.
        self.directory = self.path.parent / f".{self.path.name}.partial-{os.getpid()}"
        self._rows: list[dict[str, Any]] = []
        self._waiting: list[tuple[ArchiveObject, NDArray[np.void]]] = []

    def __enter__(self) -> Self:
        shutil.rmtree(self.directory, ignore_errors=True)
        (self.directory / "stamps").mkdir(parents=True)
        return self

    def add(self, thing: ArchiveObject, stamps: NDArray[np.void]) -> None:
        """Append one object with its stamps (`stamp_rows`)."""
        self._waiting.append((thing, stamps))
        if len(self._waiting) >= OBJECTS_PER_PART:
            self._flush()

    def adopt(self, rows: Sequence[dict[str, Any]]) -> None:
        """Take in the objects of a part that `write_part` wrote into `directory`."""
        self._rows.extend(rows)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _flush(self) -> None:
        number = 1 + max((row["part"] for row in self._rows), default=-1)
        self._rows.extend(write_part(self.directory, number, self._waiting))
        self._waiting = []

    def _commit(self) -> None:
        if self._waiting:
            self._flush()
        objects = pa.Table.from_pylist(self._rows, schema=OBJECT_SCHEMA)
        _refuse_duplicates(objects)
        pq.write_table(objects, self.directory / "objects.parquet", compression="zstd")
        card = {**self._card, **_facts(self.directory, objects)}
        (self.directory / "card.json").write_text(json.dumps(card, indent=1) + "\n")
        (self.directory / "README.md").write_text(card_text(card))
        self._replace()

    def _replace(self) -> None:
        """Rename into place; an older archive stays until the new one stands."""
        if not self.path.exists():
            os.rename(self.directory, self.path)
            return
        if not self._overwrite:
            raise ArchiveError(f"{self.path} appeared meanwhile; nothing was replaced")
        old = self.path.parent / f".{self.path.name}.old-{os.getpid()}"
        os.rename(self.path, old)
        os.rename(self.directory, self.path)
        shutil.rmtree(old)


def _refuse_duplicates(objects: pa.Table) -> None:
    twice = [name for name, count in Counter(objects["object_id"].to_pylist()).items() if count > 1]
    if twice:
        raise ArchiveError(f"object {twice[0]} was added twice")


def _facts(directory: Path, objects: pa.Table) -> dict[str, Any]:
    counts = Counter(
        zip(
            objects["class"].to_pylist(),
            objects["split"].to_pylist(),
            objects["confirmed"].to_pylist(),
            strict=True,
        )
    )
    size = sum(file.stat().st_size for file in directory.rglob("*.parquet"))
    return {
        "format": FORMAT,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "code_version": code_version(),
        "surveys": sorted(set(objects["survey"].to_pylist())),
        "objects": objects.num_rows,
        "stamps": pc.sum(objects["stamps"]).as_py() or 0,
        "bytes": size,
        "counts": [
            {"class": label, "split": split, "confirmed": confirmed, "objects": n}
            for (label, split, confirmed), n in sorted(counts.items())
        ],
    }


def code_version() -> str:
    """Version of the installed skyheed distribution."""
    with contextlib.suppress(PackageNotFoundError):
        return version("skyheed")
    return "unknown"


class Archive:
    """Reads an archive, an object at a time.

    Args:
        path: the archive's directory.

    Attributes:
        card: the data card, as a dictionary.
        objects: pyarrow table, one row per object (`OBJECT_SCHEMA`).

    Raises:
        ArchiveError: there is no archive, or it is not complete.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise ArchiveError(f"no archive at {self.path}; make one with `skyheed archive simulate -o {self.path}`")
        try:
            self.card: dict[str, Any] = json.loads((self.path / "card.json").read_text())
            self.objects = pq.read_table(self.path / "objects.parquet")
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ArchiveError(f"{self.path} is not a complete archive: {error}") from error
        if self.card.get("format") != FORMAT:
            raise ArchiveError(f"{self.path} has format {self.card.get('format')}, this version reads {FORMAT}")
        self._rows: dict[str, dict[str, Any]] = {row["object_id"]: row for row in self.objects.to_pylist()}
        # An open file is a parsed footer; a few suffice for readers that go through the parts in order.
        self._open = lru_cache(8)(self._open_part)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def object_ids(self) -> list[str]:
        return list(self._rows)

    def object(self, object_id: str) -> dict[str, Any]:
        """The row of one object.

        Raises:
            ArchiveError: the archive does not have it.
        """
        if object_id not in self._rows:
            raise ArchiveError(f"{self.path} has no object {object_id!r}")
        return self._rows[object_id]

    def stamps(
        self, object_id: str, *, kinds: Sequence[str] = ("stamp",), alerts_only: bool = False
    ) -> NDArray[np.void]:
        """The stamps of one object in time order.

        Args:
            kinds: which images to read, of `KINDS`; none reads the photometry alone.
            alerts_only: only what an alert stream would have sent: everything from the first detection on.

        Returns:
            structured array: `STAMP_COLUMNS` and, for each kind, float32 [ny, nx] in nJy per pixel.
        """
        row = self.object(object_id)
        rows = _read_group(self._open(row["part"]), row["row_group"], tuple(kinds))
        return rows[rows["alert"]] if alerts_only else rows

    def each(
        self,
        object_ids: Iterable[str] | None = None,
        *,
        kinds: Sequence[str] = ("stamp",),
        alerts_only: bool = False,
    ) -> Iterator[tuple[dict[str, Any], NDArray[np.void]]]:
        """Stream (object, stamps), by default the whole archive in the order in which it is stored."""
        for object_id in self._rows if object_ids is None else object_ids:
            yield self._rows[object_id], self.stamps(object_id, kinds=kinds, alerts_only=alerts_only)

    def in_time_order(
        self, *, kinds: Sequence[str] = ("stamp",), alerts_only: bool = True, memory_bytes: int = 512 * 2**20
    ) -> Iterator[tuple[dict[str, Any], np.void]]:
        """Stream (object, one stamp) of the whole archive by (MJD, source id), as a survey sends alerts.

        Reads the archive once per window of time; the windows are as long as `memory_bytes` allows.
        """
        mjd = self._times(alerts_only)
        size = sum(2 * self.image_shape[0] * self.image_shape[1] * 4 for _ in kinds) + 200
        per_window = max(memory_bytes // size, 1)
        edges = [*mjd[::per_window].tolist(), np.inf]
        # Equal times are never cut apart: a window takes start <= mjd < end.
        for start, end in zip(dict.fromkeys(edges[:-1]), [*list(dict.fromkeys(edges))[1:]], strict=True):
            yield from self._window(start, end, kinds, alerts_only)

    @property
    def image_shape(self) -> tuple[int, int]:
        """(ny, nx) of the stamps."""
        metadata = self._open(int(self.objects["part"][0].as_py())).schema_arrow.metadata
        ny, nx = metadata[b"stamp_shape"].decode().split(",")
        return int(ny), int(nx)

    def _times(self, alerts_only: bool) -> NDArray[np.float64]:
        times = [rows["mjd"] for _, rows in self.each(kinds=(), alerts_only=alerts_only)]
        return np.sort(np.concatenate(times)) if times else np.empty(0)

    def _window(
        self, start: float, end: float, kinds: Sequence[str], alerts_only: bool
    ) -> Iterator[tuple[dict[str, Any], np.void]]:
        found: list[tuple[float, int, dict[str, Any], np.void]] = []
        for row in self._rows.values():
            file = self._open(row["part"])
            if not _overlaps(file, row["row_group"], start, end):
                continue
            stamps = _read_group(file, row["row_group"], tuple(kinds))
            keep = (stamps["mjd"] >= start) & (stamps["mjd"] < end) & (stamps["alert"] | (not alerts_only))
            # A copy of each row, so that the rest of the object's stamps can go.
            found += [(float(s["mjd"]), int(s["source_id"]), row, s.copy()) for s in stamps[keep]]
        found.sort(key=lambda item: item[:2])
        for _, _, row, stamp in found:
            yield row, stamp

    def _open_part(self, number: int) -> pq.ParquetFile:
        path = _part_path(self.path, number)
        try:
            return pq.ParquetFile(path, page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            raise ArchiveError(f"{path} is missing or damaged: {error}") from error


def _overlaps(file: pq.ParquetFile, group: int, start: float, end: float) -> bool:
    column = file.schema_arrow.names.index("mjd")
    statistics = file.metadata.row_group(group).column(column).statistics
    return statistics is None or not statistics.has_min_max or (statistics.max >= start and statistics.min < end)


def _read_group(file: pq.ParquetFile, group: int, kinds: tuple[str, ...]) -> NDArray[np.void]:
    missing = [kind for kind in kinds if kind not in file.schema_arrow.names]
    if missing:
        raise ArchiveError(f"this archive has no {missing[0]!r} images")
    try:
        table = file.read_row_group(group, columns=[*STAMP_COLUMNS, "stamp_unit", *kinds])
    except (OSError, pa.ArrowException) as error:
        raise ArchiveError(f"a part of the stamps is damaged: {error}") from error
    ny, nx = map(int, file.schema_arrow.metadata[b"stamp_shape"].decode().split(","))
    rows = np.zeros(table.num_rows, [*_COLUMNS, *((kind, "<f4", (ny, nx)) for kind in kinds)])
    for name in STAMP_COLUMNS:
        rows[name] = table[name].to_numpy()
    unit = table["stamp_unit"].to_numpy()
    for kind in kinds:
        rows[kind] = _unpack(table[kind], (table.num_rows, ny, nx)) * unit[:, None, None]
    return rows


def _unpack(column: pa.ChunkedArray, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    chunks = [np.frombuffer(chunk.buffers()[1], "<f2")[_extent(chunk)] for chunk in column.chunks]
    return np.concatenate(chunks).reshape(shape).astype(np.float32)


def _extent(chunk: pa.Array) -> slice:
    per_row = chunk.type.byte_width // 2
    return slice(chunk.offset * per_row, (chunk.offset + len(chunk)) * per_row)
