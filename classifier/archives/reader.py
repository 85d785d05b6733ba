"""Archives: Parquet data sets of stamp sequences, real or simulated, for training and replay.

    DIR/
      README.md            the data card: how it was made, what is in it, what the columns mean
      card.json            the same for programs
      croissant.json       the same for catalogues of data sets (Croissant)
      objects.parquet      one row per object
      stamps/part-*.parquet  one row per stamp; every object is one row group; may hold photometry and context

A stamp is stored as little-endian float16 in units of a quarter of its own sky noise (`stamp_unit` nJy), rounded to
whole units in the sky (templates, which are deeper, to 1/32 of them): that adds 0.5 % to the variance of the noise (the
step of `fpack -q 4`, Pence et al. 2010, PASP 122, 1065), cannot overflow below 16,000 times the sky noise in one pixel,
and compresses to 40 % of float16.
Readers return float32 nJy. Rows run from south to north, columns from east to west (unless `rotation` says how the
camera was turned), and the source is in pixel [n // 2, n // 2], counted from 0, give or take the astrometric error.
Archives of real packets hold model-ready stamps instead (`Archive.normalised`), which are not normalised again.

Independent of Kafka, Redis, Avro and torch.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skyheed.classifier.archives.damage import BoundedFile, damaged, longest_text
from skyheed.classifier.archives.extras import Extras, read_extras
from skyheed.classifier.archives.format import (
    CLASSES,
    FORMAT,
    KINDS,
    NORMALISED,
    OBJECT_SCHEMA,
    OBJECTS_PER_PART,
    SPLITS,
    STAMP_COLUMNS,
    UNLABELLED,
    ArchiveObject,
    alike,
    part_path,
    read_group,
    shape_of,
    split_of,
    stamp_rows,
    write_part,
)
from skyheed.classifier.archives.writer import ArchiveWriter
from skyheed.classifier.bounded_files import open_regular, read_file, within
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.safe_names import printable

__all__ = [
    "CLASSES",
    "KINDS",
    "OBJECTS_PER_PART",
    "OBJECT_SCHEMA",
    "SPLITS",
    "STAMP_COLUMNS",
    "UNLABELLED",
    "Archive",
    "ArchiveObject",
    "ArchiveWriter",
    "Extras",
    "split_of",
    "stamp_rows",
    "write_part",
]


CARD_KEYS = ("format", "objects", "stamps", "surveys", "bytes", "counts", "date", "code_version")
MOST_CARD = 16 * 2**20  # bytes of card.json; ours have 3 kB
MOST_OBJECTS = 5_000_000  # rows; each is 2 kB of Python
MOST_TABLE = 2**31  # bytes that objects.parquet may unpack to


def _objects(path: Path) -> pa.Table:
    """The table of objects; its size is checked before it is unpacked.

    Raises:
        ArchiveError, OSError, ValueError, LookupError, pa.ArrowException: it is not what it should be.
    """
    open_regular(path).close()
    with BoundedFile(path, MOST_TABLE) as file:
        facts, schema = file.metadata, file.schema_arrow
        if missing := set(OBJECT_SCHEMA.names) - set(schema.names):
            raise ArchiveError(f"{path.name} has no column {min(missing)}")
        for wanted in OBJECT_SCHEMA:
            if not alike(given := schema.field(wanted.name).type, wanted.type):
                raise ArchiveError(f"column {wanted.name} of {path.name} is {printable(given, 60)}, not {wanted.type}")
        if facts.num_rows > MOST_OBJECTS:
            raise ArchiveError(f"{path.name} has {facts.num_rows} rows, more than are read")
        table, room = file.read(columns=OBJECT_SCHEMA.names), file.room
    for name in OBJECT_SCHEMA.names:  # a few long texts repeated by number would unpack to any size
        if (longest := longest_text(table[name])) * len(table) > room:
            raise ArchiveError(
                f"{path.name} has texts of {longest} characters in its column {name}, more than are read"
            )
    for name in OBJECT_SCHEMA.names:
        if table[name].null_count:
            raise ArchiveError(f"{path.name} has rows without {name}")
    return table.select(OBJECT_SCHEMA.names).cast(OBJECT_SCHEMA)


def _check_card(card: dict[str, Any]) -> None:
    """Raise ValueError for a card that lacks what readers take from it."""
    if missing := [key for key in CARD_KEYS if key not in card]:
        raise ValueError(f"card.json has no {missing[0]}")
    for key in ("objects", "stamps"):
        if not isinstance(card[key], int) or card[key] < 0:
            raise ValueError(f"{key} of card.json is {printable(card[key], 40)}, not a number of them")
    surveys = card["surveys"]
    if not isinstance(surveys, list) or not all(isinstance(name, str) for name in surveys):
        raise ValueError(f"surveys of card.json is {printable(surveys, 40)}, not a list of names")


class Archive:
    """Reads an archive, an object at a time.

    Args:
        path: the archive's directory.

    Attributes:
        card: the data card, as a dictionary.
        objects: pyarrow table, one row per object (`OBJECT_SCHEMA`).

    Raises:
        ArchiveError: there is no archive, or it is incomplete.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not os.path.isdir(self.path):  # also for names that no folder can have
            raise ArchiveError(f"no archive at {self.path}; make one with `skyheed archive simulate -o {self.path}`")
        try:
            self.card: dict[str, Any] = json.loads(read_file(self.path / "card.json", MOST_CARD))
            if not isinstance(self.card, dict):
                raise ValueError("card.json holds no keys")
            _check_card(self.card)
            self.objects = _objects(self.path / "objects.parquet")
        except ArchiveError as error:
            raise ArchiveError(f"{self.path} is not a complete archive: {error}") from error
        except (OSError, ValueError, LookupError, RecursionError, MemoryError, pa.ArrowException) as error:
            raise ArchiveError(f"{self.path} is not a complete archive: {printable(error, 300)}") from error
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
            alerts_only: only what an alert stream would have sent (column `alert`).

        Returns:
            structured array: `STAMP_COLUMNS` and, for each kind, float32 [ny, nx] in nJy per pixel.
        """
        row = self.object(object_id)
        rows = read_group(self._open(row["part"]), row["row_group"], tuple(kinds))
        return rows[rows["alert"]] if alerts_only else rows

    def extras(self, object_id: str, *, alerts_only: bool = False) -> Extras | None:
        """What the packets of one object say alongside their stamps, one epoch each as `stamps`; None if not kept."""
        row = self.object(object_id)
        file, group = self._open(row["part"]), row["row_group"]
        found = read_extras(file, group)
        return found.take(read_group(file, group, ())["alert"]) if alerts_only and found is not None else found

    def epochs(
        self, object_id: str, *, kinds: Sequence[str] = ("stamp",), alerts_only: bool = False
    ) -> tuple[NDArray[np.void], Extras | None]:
        """`stamps` and `extras` of one object together, so that its rows are read once."""
        row = self.object(object_id)
        file, group = self._open(row["part"]), row["row_group"]
        rows, extras = read_group(file, group, tuple(kinds)), read_extras(file, group)
        if not alerts_only:
            return rows, extras
        alert = rows["alert"]
        return rows[alert], None if extras is None else extras.take(alert)

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

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of images the archive has, of `KINDS`."""
        if not len(self):
            return ()
        return tuple(kind for kind in KINDS if kind in self._first_part().schema_arrow.names)

    @property
    def normalised(self) -> bool:
        """Whether the stamps are model-ready ones, in nJy."""
        facts = (self._first_part().schema_arrow.metadata or {}) if len(self) else {}
        return bool(facts.get(b"stamp_form") == NORMALISED.encode())

    @property
    def image_shape(self) -> tuple[int, int]:
        """(ny, nx) of the stamps."""
        with damaged():
            return shape_of(self._first_part())

    def _first_part(self) -> BoundedFile:
        return self._open(int(self.objects["part"][0].as_py()))

    def _open_part(self, number: int) -> BoundedFile:
        path = part_path(self.path, number)
        try:
            if not within(path, self.path):
                raise ArchiveError(f"{path} is a link that leads out of the archive: copy the file instead")
            open_regular(path).close()
            return BoundedFile(path)
        except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
            raise ArchiveError(f"{path} is missing or damaged: {printable(str(error).strip(), 300)}") from error
