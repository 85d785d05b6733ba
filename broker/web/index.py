"""The index: recent classifications, in one disposable SQLite file.

It is filled only from skyheed's classification topics, and stores how far it has read them together with what it read
(so that a restart neither misses nor repeats anything). It is bounded, and rebuilt from the topics if it is missing.
The topics remain the only source of truth; what is known of each object is in Redis.
"""

import json
import logging
import math
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skyheed.broker.results.record import Classification
from skyheed.broker.web.index_file import IndexFile
from skyheed.broker.web.index_query import after_cursor, cursor_of, order_of, storable, where
from skyheed.broker.web.object_ids import LONGEST as LONGEST_NAME
from skyheed.broker.web.responses import plain
from skyheed.broker.web.rows import DECLINED, night_of, row_of
from skyheed.broker.web.search import Cone, Filters

HOUR_MS = 3_600_000
COUNTED = 10_000  # matches are counted up to here; beyond it, "more"
LONGEST_LIST = 500
NIGHTS, HOURS = 400, 24 * 14  # that are kept
PRUNE_EVERY = 5_000  # classifications
log = logging.getLogger("skyheed.index")
SCANNED = 20_000  # rows that a page of a cone search scans at most
LARGEST_ROW = 2**16  # characters; ours have 2,000, but anyone could have written to the topic
MOST_NAMES = 1_000  # distinct models, and their classes in a night, that are counted separately


@dataclass(frozen=True)
class Read:
    """A classification and its position on our topics; `place` is `topic@topicid/partition`."""

    place: str
    offset: int
    record: Classification


@dataclass(frozen=True)
class Event:
    """What the live page is told about one classification."""

    seq: int
    place: str
    offset: int
    row: str


@dataclass(frozen=True)
class Page:
    """Some rows of a list, the cursor of the next page, and the number of matches (counted up to `COUNTED`)."""

    rows: list[dict[str, Any]]
    next: str | None
    count: int


class Index:
    """One file; any thread may read it, one thread writes it.

    Args:
        most_objects, most_events: how many classifications are kept, newest first.

    Raises:
        ConfigError: the file cannot be used.
    """

    def __init__(self, path: Path, survey: str, most_objects: int = 1_000_000, most_events: int = 200_000) -> None:
        self._file = IndexFile(path, survey)
        self._most_objects, self._most_events = most_objects, most_events
        self._since_pruned = 0

    def close(self) -> None:
        """Close every connection."""
        self._file.close()

    # --- writing

    def add(self, found: Sequence[Read], positions: Mapping[str, int]) -> list[Event]:
        """Store what was read, and how far, in one transaction; what is already there changes nothing.

        Args:
            positions: place -> next offset to read.

        Returns:
            Those that are new.
        """
        with self._file.writing() as base:
            known = dict(base.execute("SELECT place, next FROM positions").fetchall())
            events = [self._take(base, read) for read in found if read.offset >= known.get(read.place, 0)]
            base.executemany(
                "INSERT INTO positions (place, next) VALUES (?, ?) "
                "ON CONFLICT (place) DO UPDATE SET next = max(next, excluded.next)",
                list(positions.items()),
            )
            self._since_pruned += len(found)
            if self._since_pruned >= PRUNE_EVERY:
                self._prune(base)
        return [event for event in events if event is not None]

    def _take(self, base: sqlite3.Connection, read: Read) -> Event | None:
        record = read.record
        if len(record.object_id) > LONGEST_NAME:  # nobody could ask for it
            log.warning(
                "left out: %s offset %d: an id of %d characters", read.place, read.offset, len(record.object_id)
            )
            return None
        before = base.execute(
            "SELECT row FROM latest WHERE object_id = ? AND model = ?", (storable(record.object_id), record.model)
        ).fetchone()
        last = json.loads(before[0]) if before else None
        if last and _is_repeat(record, last):
            return None
        row = row_of(record, last)
        text = json.dumps(plain(row), separators=(",", ":"))
        if len(text) > LARGEST_ROW:
            log.warning("left out: %s offset %d: a row of %d characters", read.place, read.offset, len(text))
            return None
        if last is None or record.revision >= last["revision"]:
            self._keep(base, record, row, text)
        _count(base, record)
        cursor = base.execute(
            "INSERT OR IGNORE INTO events (place, offset, row) VALUES (?, ?, ?)", (read.place, read.offset, text)
        )
        return Event(int(cursor.lastrowid or 0), read.place, read.offset, text) if cursor.rowcount else None

    @staticmethod
    def _keep(base: sqlite3.Connection, record: Classification, row: Mapping[str, Any], text: str) -> None:
        values = (
            storable(record.object_id), record.model, record.revision, record.top_class, row["top_probability"],
            record.n_stamps, row["days"], _number(record.ra), _number(record.dec),
            "".join(sorted(record.stamps_per_band)), record.first_mjd, record.last_mjd, night_of(record.last_mjd),
            record.kafka_ms, record.classified_ms, text,
        )  # fmt: skip
        names = (
            "object_id, model, revision, top_class, top_probability, n_stamps, days, ra, dec, bands, first_mjd, "
            "last_mjd, night, kafka_ms, classified_ms, row"
        )
        changes = ", ".join(f"{name} = excluded.{name}" for name in names.split(", ")[2:])
        base.execute(
            f"INSERT INTO latest ({names}) VALUES ({', '.join('?' * len(values))}) "
            f"ON CONFLICT (object_id, model) DO UPDATE SET {changes}",
            values,
        )

    def _prune(self, base: sqlite3.Connection) -> None:
        self._since_pruned = 0
        [last] = base.execute("SELECT max(seq) FROM events").fetchone()
        first = (last or 0) - self._most_events
        gone = base.execute("SELECT place, max(offset) FROM events WHERE seq <= ? GROUP BY place", (first,)).fetchall()
        base.executemany("UPDATE positions SET pruned = max(pruned, ?) WHERE place = ?", [(n, p) for p, n in gone])
        base.execute("DELETE FROM events WHERE seq <= ?", (first,))
        [objects] = base.execute("SELECT count(*) FROM latest").fetchone()
        if objects > self._most_objects:
            base.execute(
                "DELETE FROM latest WHERE id IN (SELECT id FROM latest ORDER BY classified_ms LIMIT ?)",
                (objects - self._most_objects,),
            )
        for table, column, most in (("shares", "night", NIGHTS), ("hours", "hour_ms", HOURS)):
            base.execute(
                f"DELETE FROM {table} WHERE {column} < "
                f"(SELECT min({column}) FROM (SELECT DISTINCT {column} FROM {table} ORDER BY {column} DESC LIMIT ?))",
                (most,),
            )

    # --- reading

    def positions(self) -> dict[str, int]:
        """Place -> next offset to read."""
        return dict(self._file.reading().execute("SELECT place, next FROM positions").fetchall())

    def standing(self) -> tuple[dict[str, int], int]:
        """`positions` and `last_seq` of one moment, however much is added meanwhile."""
        with self._file.one_moment():
            return self.positions(), self.last_seq()

    def totals(self) -> dict[str, int]:
        """The approximate numbers of classifications and objects."""
        base = self._file.reading()
        [kept] = base.execute("SELECT count(*) FROM latest").fetchone()
        [events] = base.execute("SELECT count(*) FROM events").fetchone()
        [objects] = base.execute("SELECT count(DISTINCT object_id) FROM latest").fetchone()
        return {"objects": int(objects), "latest": int(kept), "events": int(events)}

    def models(self) -> list[str]:
        """The names of the models that have published."""
        base, after = self._file.reading(), ""
        found: list[str] = []
        # one index look-up for each: SELECT DISTINCT would scan the whole index
        while len(found) < MOST_NAMES:
            [name] = base.execute("SELECT min(model) FROM latest WHERE model > ?", (after,)).fetchone()
            if not name:
                break
            after = name
            found.append(str(after))
        unnamed = base.execute("SELECT 1 FROM latest WHERE model = '' LIMIT 1").fetchone()
        return [""] * bool(unnamed) + found

    def classes(self) -> list[str]:
        """The names of the classes published in the nights that are kept."""
        found = self._file.reading().execute(
            "SELECT DISTINCT label FROM shares WHERE label != ? LIMIT 200", (DECLINED,)
        )
        return sorted(str(label) for [label] in found)

    def page(
        self, filters: Filters, part: str = "", sort: str = "newest", limit: int = 100, cursor: str = ""
    ) -> Page:  # fmt: skip
        """A page of a list: the latest classification of each object.

        Args:
            part: of the object's id.
            sort: one of `SORTS`; a leading - reverses the order.
            cursor: `Page.next` of the previous page; every other argument must stay the same.

        Raises:
            SearchError: there is no such order, or the cursor is invalid.
        """
        column, falls = order_of(sort)
        clauses, values = where(filters, part)
        after, more = after_cursor(cursor, column, falls)
        base, way = self._file.reading(), "DESC" if falls else "ASC"
        found = base.execute(
            # an index alone decides which rows are wanted; only the rows of this page are read in full
            f"SELECT id, {column}, row FROM latest WHERE id IN (SELECT id FROM latest "
            f"WHERE {' AND '.join([*clauses, *after]) or '1'} ORDER BY {column} {way}, id {way} LIMIT ?) "
            f"ORDER BY {column} {way}, id {way}",
            [*values, *more, SCANNED if filters.cone else limit + 1],
        ).fetchall()
        rows = [(key, value, json.loads(text)) for key, value, text in found]
        if filters.cone:
            rows = [row for row in rows if filters.cone.separation(row[2]["ra"], row[2]["dec"]) <= filters.cone.radius]
        all_here = filters.cone or (not cursor and len(rows) <= limit)
        count = len(rows) if all_here else self._counted(clauses, values)
        last = rows[limit - 1] if len(rows) > limit else None
        return Page(
            [_with_distance(row, filters.cone) for _, _, row in rows[:limit]],
            cursor_of(last[1], last[0]) if last else None,
            count,
        )

    def _counted(self, clauses: Sequence[str], values: Sequence[Any]) -> int:
        where = " AND ".join(clauses) or "1"
        query = f"SELECT count(*) FROM (SELECT 1 FROM latest WHERE {where} LIMIT {COUNTED})"
        [count] = self._file.reading().execute(query, values).fetchone()
        return int(count)

    def of_object(self, object_id: str) -> list[dict[str, Any]]:
        """The latest row from each model."""
        query = "SELECT row FROM latest WHERE object_id = ? ORDER BY model"
        return [json.loads(text) for [text] in self._file.reading().execute(query, (storable(object_id),))]

    def near(self, cone: Cone, most: int = 20) -> list[dict[str, Any]]:
        """Objects in a cone, nearest first."""
        found = {row["object_id"]: row for row in self.page(Filters(cone=cone), limit=LONGEST_LIST).rows}
        return sorted(found.values(), key=lambda row: float(row["separation"]))[:most]

    def recent(self, filters: Filters, limit: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """The newest classifications, newest first, and the positions that follow all of them."""
        with self._file.one_moment() as base:
            positions = self.positions()
            rows: list[dict[str, Any]] = []
            query = "SELECT row FROM events ORDER BY seq DESC LIMIT ?"
            for [text] in base.execute(query, (limit if filters.empty else SCANNED,)):
                row = json.loads(text)
                if filters.wants(row):
                    rows.append(row)
                if len(rows) == limit:
                    break
        return rows, positions

    def events_after(self, seq: int, limit: int) -> list[Event]:
        """Events after a given one, oldest first."""
        query = "SELECT seq, place, offset, row FROM events WHERE seq > ? ORDER BY seq LIMIT ?"
        return [Event(*row) for row in self._file.reading().execute(query, (seq, limit))]

    def last_seq(self) -> int:
        """The number of the newest event."""
        [seq] = self._file.reading().execute("SELECT max(seq) FROM events").fetchone()
        return int(seq or 0)

    def seq_before(self, positions: Mapping[str, int]) -> tuple[int, int]:
        """Where to resume after positions (place -> next offset).

        Returns:
            The event after which everything they have not seen follows, and how many of the offsets are no longer kept.
        """
        base = self._file.reading()
        first, missed = self.last_seq(), 0
        for place, pruned in base.execute("SELECT place, pruned FROM positions").fetchall():
            at = positions.get(place, 0)
            missed += max(0, pruned + 1 - at)
            query = "SELECT min(seq) FROM events WHERE place = ? AND offset >= ?"
            [seq] = base.execute(query, (place, at)).fetchone()
            first = min(first, int(seq) - 1) if seq is not None else first
        return first, missed

    def nights(self, most: int = 60) -> list[tuple[int, int]]:
        """(night, objects whose last epoch is in it), newest first."""
        query = "SELECT night, count(DISTINCT object_id) FROM latest GROUP BY night ORDER BY night DESC LIMIT ?"
        return [(int(night), int(n)) for night, n in self._file.reading().execute(query, (most,))]

    def sky(self, night: int, model: str, most: int) -> list[dict[str, Any]]:
        """Positions of the objects of a night."""
        query = "SELECT row FROM latest WHERE night = ? AND model = ? ORDER BY classified_ms DESC LIMIT ?"
        return [json.loads(text) for [text] in self._file.reading().execute(query, (night, model, most))]

    def shares(self, most: int = 30) -> list[tuple[int, str, str, int]]:
        """(night, model, class or declined, classifications), newest nights first."""
        query = (
            "SELECT night, model, label, n FROM shares WHERE night IN "
            "(SELECT DISTINCT night FROM shares ORDER BY night DESC LIMIT ?) ORDER BY night DESC, model, label"
        )
        return self._file.reading().execute(query, (most,)).fetchall()

    def hours(self, most: int = 48) -> list[tuple[int, str, int, int]]:
        """(hour, model, classified, declined), newest hours first."""
        query = (
            "SELECT hour_ms, model, classified, declined FROM hours WHERE hour_ms IN "
            "(SELECT DISTINCT hour_ms FROM hours ORDER BY hour_ms DESC LIMIT ?) ORDER BY hour_ms DESC, model"
        )
        return self._file.reading().execute(query, (most,)).fetchall()

    def latencies(self, most: int = 5_000) -> list[int]:
        """Milliseconds from the Kafka time of the newest alert to its classification, for recent classifications."""
        query = "SELECT classified_ms - kafka_ms FROM latest WHERE kafka_ms >= 0 ORDER BY classified_ms DESC LIMIT ?"
        return [int(ms) for [ms] in self._file.reading().execute(query, (most,))]


def _is_repeat(record: Classification, last: Mapping[str, Any]) -> bool:
    """Whether this is the same classification again, as Kafka may deliver it."""
    return bool(record.revision == last["revision"] and record.classification_id == last["classification_id"])


def _count(base: sqlite3.Connection, record: Classification) -> None:
    night, hour = night_of(record.last_mjd), record.classified_ms // HOUR_MS * HOUR_MS
    declined = int(record.top_class is None)
    _add(base, "shares", {"night": night, "model": record.model, "label": record.top_class or DECLINED}, {"n": 1})
    counts = {"classified": 1 - declined, "declined": declined}
    _add(base, "hours", {"hour_ms": hour, "model": record.model}, counts)


def _add(base: sqlite3.Connection, table: str, key: Mapping[str, Any], counts: Mapping[str, int]) -> None:
    """Add to the counts of a row; create a row only while fewer than `MOST_NAMES` share the first key."""
    where = " AND ".join(f"{name} = :{name}" for name in key)
    values = {**key, **counts, "most": MOST_NAMES}
    more = ", ".join(f"{name} = {name} + :{name}" for name in counts)
    if base.execute(f"UPDATE {table} SET {more} WHERE {where}", values).rowcount:
        return
    names, first = [*key, *counts], next(iter(key))
    base.execute(
        f"INSERT INTO {table} ({', '.join(names)}) SELECT {', '.join(f':{name}' for name in names)} "
        f"WHERE (SELECT count(*) FROM {table} WHERE {first} = :{first}) < :most",
        values,
    )


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _with_distance(row: dict[str, Any], cone: Cone | None) -> dict[str, Any]:
    if cone is None:
        return row
    return row | {"separation": round(cone.separation(row["ra"], row["dec"]), 3)}


def percentiles(values: Sequence[int]) -> dict[str, Any]:
    """p50, p90 and p99 of some numbers, and how many numbers there are."""
    ordered = sorted(values)
    found = {
        f"p{p}": ordered[min(len(ordered) - 1, len(ordered) * p // 100)] if ordered else None for p in (50, 90, 99)
    }
    return {**found, "n": len(ordered)}


def by_night(shares: Iterable[tuple[int, str, str, int]]) -> list[dict[str, Any]]:
    """Class counts, one entry for each night and model."""
    found: dict[tuple[int, str], Counter[str]] = {}
    for night, model, label, n in shares:
        found.setdefault((night, model), Counter())[label] += n
    return [{"night": night, "model": model, "counts": dict(counts)} for (night, model), counts in found.items()]


def now_ms() -> int:
    """Unix milliseconds UTC."""
    return time.time_ns() // 1_000_000
