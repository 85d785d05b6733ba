"""The index's file: its tables, one connection per thread, and recovery if it is damaged or from another release."""

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from skyheed.broker.errors import ConfigError
from skyheed.classifier.bounded_files import open_regular

log = logging.getLogger("skyheed.index")
FORMAT = 2  # of the tables: a file with another format is rebuilt
_TABLES = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS positions (place TEXT PRIMARY KEY, next INTEGER NOT NULL, pruned INTEGER NOT NULL DEFAULT -1)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS latest (
    id INTEGER PRIMARY KEY, object_id TEXT NOT NULL, model TEXT NOT NULL, revision INTEGER, top_class TEXT,
    top_probability REAL, n_stamps INTEGER, days REAL, ra REAL, dec REAL, bands TEXT, first_mjd REAL, last_mjd REAL,
    night INTEGER, kafka_ms INTEGER, classified_ms INTEGER, row TEXT NOT NULL, UNIQUE (object_id, model));
CREATE INDEX IF NOT EXISTS latest_list ON latest (
    model, classified_ms, top_class, top_probability, n_stamps, days, night, first_mjd, bands, object_id, ra, dec);
CREATE INDEX IF NOT EXISTS latest_time ON latest (classified_ms, id);
CREATE INDEX IF NOT EXISTS latest_place ON latest (dec, ra, model, classified_ms);
CREATE INDEX IF NOT EXISTS latest_night ON latest (night, model);
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, place TEXT NOT NULL, offset INTEGER NOT NULL, row TEXT NOT NULL,
    UNIQUE (place, offset));
CREATE TABLE IF NOT EXISTS shares (
    night INTEGER, model TEXT, label TEXT, n INTEGER NOT NULL, PRIMARY KEY (night, model, label)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS hours (
    hour_ms INTEGER, model TEXT, classified INTEGER NOT NULL, declined INTEGER NOT NULL, PRIMARY KEY (hour_ms, model))
    WITHOUT ROWID;
"""


# the header of every SQLite file, and at byte 68 the application id: https://www.sqlite.org/fileformat.html
_BEGIN, _OWNER_AT = b"SQLite format 3\x00", 68
_OWNER = 0x736B7968  # "skyh"


def _check_ours(path: Path) -> None:
    """Refuse what must not be replaced because it is not an index: devices, links elsewhere, other people's files.

    Raises:
        ConfigError
    """
    if not (path.exists() or path.is_symlink()):
        return
    try:
        with open_regular(path, ConfigError) as file:
            begin = file.read(_OWNER_AT + 4)
    except OSError as error:
        raise ConfigError(f"the index {path} cannot be opened ({error}): give another --index") from error
    ours = begin.startswith(_BEGIN) and begin[_OWNER_AT:] == _OWNER.to_bytes(4, "big")
    if begin and not ours:
        raise ConfigError(f"{path} is not an index of skyheed and is not overwritten: give another --index")


class IndexFile:
    """A disposable SQLite file; any thread may read it, one thread writes it.

    Raises:
        ConfigError: the file cannot be used.
    """

    def __init__(self, path: Path, survey: str) -> None:
        self.path, self.survey = path, survey
        self._own = threading.local()
        self._open: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        _check_ours(path)
        try:
            self._prepare()
        except sqlite3.DatabaseError as error:
            self._begin_anew(error)

    def _prepare(self) -> None:
        with self.writing() as base:
            base.executescript(_TABLES)
            known = dict(base.execute("SELECT name, value FROM meta").fetchall())
            wanted = {"format": FORMAT, "survey": self.survey}
            if known and known != wanted:
                raise sqlite3.DatabaseError(f"it is of {known}")
            base.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(wanted.items()))

    def _begin_anew(self, error: Exception) -> None:
        """The file is damaged, or from another release or survey: start again, since everything is on the topics."""
        log.warning("the index %s cannot be used (%s): rebuilding it from the topics", self.path, error)
        self.close()
        try:
            for path in (self.path, *(self.path.with_name(self.path.name + end) for end in ("-wal", "-shm"))):
                path.unlink(missing_ok=True)
            self._prepare()
        except (OSError, sqlite3.Error) as failed:
            raise ConfigError(f"the index {self.path} cannot be written ({failed}): give another --index") from failed

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            for base in self._open:
                base.close()
            self._open.clear()
            self._own = threading.local()

    def reading(self) -> sqlite3.Connection:
        """This thread's connection.

        Raises:
            ConfigError: the file cannot be opened.
        """
        base: sqlite3.Connection | None = getattr(self._own, "base", None)
        if base is None:
            try:
                base = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
            except sqlite3.Error as error:
                raise ConfigError(f"the index {self.path} cannot be opened ({error}): give another --index") from error
            if base.execute("PRAGMA application_id").fetchone()[0] != _OWNER:
                base.execute(f"PRAGMA application_id = {_OWNER}")  # before WAL, so that the file itself has it at once
            for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "cache_size = -16000", "temp_store = MEMORY"):
                base.execute(f"PRAGMA {pragma}")
            self._own.base = base
            with self._lock:
                self._open.append(base)
        return base

    @contextlib.contextmanager
    def one_moment(self) -> Iterator[sqlite3.Connection]:
        """This thread's connection; everything read in the block is of the moment of its first query."""
        base = self.reading()
        base.execute("BEGIN")
        try:
            yield base
        finally:
            base.execute("COMMIT")

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """This thread's connection in a transaction, which is rolled back if anything fails."""
        base = self.reading()
        base.execute("BEGIN IMMEDIATE")
        try:
            yield base
        except BaseException:
            if base.in_transaction:
                base.execute("ROLLBACK")
            raise
        if base.in_transaction:
            base.execute("COMMIT")
