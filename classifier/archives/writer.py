"""Writes archives that appear under their name only when complete."""

import contextlib
import glob
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skyheed.classifier import output_paths
from skyheed.classifier.archives.card import card_text
from skyheed.classifier.archives.croissant import FILE as CROISSANT
from skyheed.classifier.archives.croissant import croissant
from skyheed.classifier.archives.extras import Extras
from skyheed.classifier.archives.format import (
    FORMAT,
    OBJECT_SCHEMA,
    OBJECTS_PER_PART,
    ArchiveObject,
    Member,
    write_part,
)
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.reaper import reaper, remove_folder
from skyheed.classifier.safe_names import printable


class ArchiveWriter:
    """Writes an archive that appears under its name only when it is complete.

        with ArchiveWriter(path, {"command": ...}) as writer:
            writer.add(thing, stamps)

    Everything goes into a hidden directory alongside the target; leaving the block without an exception writes the data
    card, waits until the disk has all of it, and renames it. After an exception, or a crash of the process or the
    machine, nothing new exists under the archive's name.

    Args:
        path: the directory to make.
        card: how it was made: command, seed, and a "made" text in Markdown for people.
        overwrite: replace an archive that is there already.
        normalised: the stamps are model-ready ones, in nJy (`format.write_part`).

    Raises:
        ArchiveError: the path exists.
    """

    def __init__(
        self, path: str | Path, card: Mapping[str, Any], *, overwrite: bool = False, normalised: bool = False
    ) -> None:
        self.path = Path(path)
        self._normalised = normalised
        self._card = dict(card)
        self._overwrite = overwrite
        check_target(self.path, overwrite)
        # Workers of a simulation write their parts here themselves; see `adopt`.
        self.directory = self.path.parent / f".{self.path.name}.partial-{os.getpid()}"
        self._rows: list[dict[str, Any]] = []
        self._names: set[str] = set()
        self._waiting: list[Member] = []

    def __enter__(self) -> Self:
        self._sweep()
        (self.directory / "stamps").mkdir(parents=True)
        reaper.folder(self.directory)
        return self

    def add(self, thing: ArchiveObject, stamps: NDArray[np.void], extras: Extras | None = None) -> None:
        """Append one object with its stamps (`stamp_rows`) and what its packets say alongside them.

        Raises:
            ArchiveError: an object of that name was added before.
        """
        if thing.object_id in self._names:
            raise ArchiveError(f"object {printable(thing.object_id)} was added twice: names must differ")
        self._names.add(thing.object_id)
        self._waiting.append((thing, stamps, extras))
        if len(self._waiting) >= OBJECTS_PER_PART:
            self._flush()

    def adopt(self, rows: list[dict[str, Any]]) -> None:
        """Take in the objects of a part that `write_part` wrote into `directory`."""
        self._rows.extend(rows)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            remove_folder(self.directory)

    def _sweep(self) -> None:
        """Remove leftovers of killed writers of this archive."""
        name = glob.escape(self.path.name)
        left = [*self.path.parent.glob(f".{name}.partial-*")]
        if self.path.exists():
            # Killed between the two renames of `_replace`, a writer leaves the old archive as the only one.
            left += self.path.parent.glob(f".{name}.old-*")
        for each in left:
            owner = each.name.rpartition("-")[2]
            if owner == str(os.getpid()) or (owner.isdecimal() and not _is_running(int(owner))):
                shutil.rmtree(each, ignore_errors=True)

    def _flush(self) -> None:
        number = 1 + max((row["part"] for row in self._rows), default=-1)
        self._rows.extend(write_part(self.directory, number, self._waiting, normalised=self._normalised))
        self._waiting = []

    def _commit(self) -> None:
        if self._waiting:
            self._flush()
        if not self._rows:
            raise ArchiveError(f"{self.path} would be an empty archive: no object was added")
        objects = pa.Table.from_pylist(self._rows, schema=OBJECT_SCHEMA)
        _refuse_duplicates(objects)
        pq.write_table(objects, self.directory / "objects.parquet", compression="zstd")
        card = {**self._card, **_facts(self.directory, objects)}
        (self.directory / "card.json").write_text(json.dumps(card, indent=1) + "\n")
        (self.directory / "README.md").write_text(card_text(card))
        (self.directory / CROISSANT).write_text(json.dumps(croissant(card, self.directory), indent=1) + "\n")
        _flush_to_disk(self.directory)
        self._replace()

    def _replace(self) -> None:
        """Rename into place; an older archive stays until the new one stands."""
        if not self.path.exists():
            os.rename(self.directory, self.path)
            _synchronise(self.path.parent)
            return
        if not self._overwrite:
            raise ArchiveError(f"{self.path} appeared in the meantime; nothing was replaced")
        old = self.path.parent / f".{self.path.name}.old-{os.getpid()}"
        os.rename(self.path, old)
        os.rename(self.directory, self.path)
        _synchronise(self.path.parent)
        shutil.rmtree(old)


def check_target(path: Path, overwrite: bool = False) -> None:
    """Check that an archive of this name can be made, before long work.

    Raises:
        ArchiveError: the name is taken, or cannot be written.
    """
    output_paths.check_folder(path)
    if path.exists() and not overwrite:
        raise ArchiveError(f"{path} exists; choose another name or ask to overwrite it")
    if path.exists() and not (path / "card.json").is_file():
        raise ArchiveError(f"{path} is not an archive and will not be overwritten; choose another name")


def _flush_to_disk(directory: Path) -> None:
    """Sync to disk: a rename must not be written before the files that it puts in place."""
    for path in (*directory.rglob("*"), directory):
        _synchronise(path)


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _refuse_duplicates(objects: pa.Table) -> None:
    twice = [name for name, count in Counter(objects["object_id"].to_pylist()).items() if count > 1]
    if twice:
        raise ArchiveError(f"object {printable(twice[0])} was added twice: names must differ")


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
