"""The client: classifications from Kafka as typed records. Needs no torch and no Redis.

    with Subscriber("localhost:9092", topic="skyheed.classifications.ztf", group="me") as stream:
        for c in stream:
            print(c.object_id, c.top_class, c.top_probability, c.stamps_per_band)

At least once: the group's position moves behind a record when the next one is asked for, so that a record whose
handling failed comes again after a restart. Within one run a `Subscriber` drops repeats itself; a program that must
see each answer once over restarts keys what it stores by `classification_id`.
"""

import contextlib
import csv
import functools
import itertools
import json
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from confluent_kafka import Message

from skyheed.broker.errors import ConfigError, ServiceUnavailable, StreamError
from skyheed.broker.kafka.client import BatchConsumer, place_of
from skyheed.broker.kafka.connection import Place
from skyheed.broker.lately import Lately
from skyheed.broker.results.record import Classification, Provenance, Schema, decode
from skyheed.classifier import outputs
from skyheed.classifier.names import printable, spreadsheet_cell

log = logging.getLogger("skyheed.subscribe")
BATCH = 500
BATCH_BYTES = 16 * 2**20  # read at a time, and the messages of one fetch more
WAIT_S = 0.1  # a batch is handed on after this even if it is not full
COMMIT_S = 1.0
REMEMBERED = 100_000  # objects, and answers, that repeats are recognised against, up to twice as many; 60 MB at most
ROW_GROUP = 10_000
SAY_S = 3.0  # what is waited for, after so long
SAY_AGAIN_S = 60.0
START = {"beginning": "earliest", "latest": "latest"}


class Subscriber:
    """Iterates over the classifications of a topic.

    Args:
        kafka: servers, "host:port,host:port".
        topic: name or names.
        group: remember the position under this Kafka consumer group; None reads all from `start`.
        start: "beginning" or "latest", where nothing is remembered.
        options: any librdkafka options, such as those of SASL and TLS.
        classes: only records with one of these top classes.
        models: only records of one of these models, by their names among the survey's.
        min_probability: only records whose top class is at least this probable.
        drain: end where the topic ended when reading began.
        drop_repeats: leave out an answer seen before, and one older than the object's last.
        skip_bad: count records that do not decode in `bad` instead of raising StreamError.
        writer_schema: schema by registry id, for topics in Confluent wire.
        timeout: seconds after which the wait for Kafka, or for the next record, is given up; None waits for ever.

    Raises:
        ConfigError: an option that cannot work.
    """

    def __init__(
        self,
        kafka: str,
        topic: str | Sequence[str],
        *,
        group: str | None = None,
        start: str = "beginning",
        options: Mapping[str, Any] | None = None,
        classes: Collection[str] = (),
        models: Collection[str] = (),
        min_probability: float = 0.0,
        drain: bool = False,
        drop_repeats: bool = True,
        skip_bad: bool = False,
        writer_schema: Callable[[int], Schema] | None = None,
        timeout: float | None = None,
    ) -> None:
        if timeout is not None and not timeout > 0:
            raise ConfigError(f"timeout must be above 0 seconds, not {timeout:g}")
        if start not in START:
            raise ConfigError(f"start must be {' or '.join(START)}, not {start!r}")
        topics = [topic] if isinstance(topic, str) else list(topic)
        self._consumer = BatchConsumer(
            {**(options or {}), "bootstrap.servers": kafka}, topics, group, START[start], drain
        )
        self._classes, self._least, self._drain = frozenset(classes), min_probability, drain
        self._models = frozenset(models)
        self._repeats = _Repeats() if drop_repeats else None
        self._consumer.on_made_again = self._begin_anew
        self._skip_bad, self._writer_schema = skip_bad, writer_schema
        self._topics, self._timeout = topics, timeout
        self._waiting: deque[Message] = deque()
        self._handed_out: Message | None = None
        self._done: dict[Place, Message] = {}  # the last that was handled, of each partition
        self._committed_at = time.monotonic()
        self._stop = threading.Event()
        self.remembers = group is not None  # the group never gets a record again that was handled
        self.hold_position = False  # move the group's position only at the end, when all has been written
        self.bad = 0
        self.ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None) -> None:
        if kind is not None and self.hold_position:
            self._done.clear()
        self.close()

    def __iter__(self) -> Iterator[Classification]:
        return self

    def __next__(self) -> Classification:
        """The next record.

        Raises:
            StreamError: a record that does not decode; asking again goes on behind it.
            ServiceError: Kafka refuses us.
            ServiceUnavailable: nothing came for `timeout` seconds.
        """
        if self._handed_out is not None:
            self._handled(self._handed_out)
            self._handed_out = None
        patience = _Patience(self._topics, self._consumer, self._timeout)
        while not self._stop.is_set():
            while self._waiting:
                self._consumer.keep_alive()  # it may take long until these are handled
                self._commit()
                record = self._next()
                if record is not None:
                    return record
            self._commit()
            self._waiting.extend(self._consumer.consume(BATCH, WAIT_S, BATCH_BYTES))
            if self._drain and not self._waiting and self._consumer.drained(alone=self.hold_position):
                break
            patience.look(bool(self._waiting))
        raise StopIteration

    def take(self, most: int, wait_s: float) -> list[Classification]:
        """Up to `most` records that are there or come within `wait_s` seconds, for one who handles them together.

        The group's position stays in front of them until `settle`; a program takes records in this way or by
        iterating, not both. After the last record of a drain `ended` is true.

        Raises:
            StreamError, ServiceError: as for the next record.
        """
        found: list[Classification] = []
        deadline = time.monotonic() + wait_s
        while len(found) < most and not self._stop.is_set():
            if not self._waiting:
                self._waiting.extend(self._consumer.consume(min(BATCH, most), WAIT_S, BATCH_BYTES))
            if not self._waiting:
                self.ended = self._drain and self._consumer.drained(alone=True)
                if self.ended or time.monotonic() > deadline:
                    break
            found += self._take_waiting(most - len(found))
        return found

    def _take_waiting(self, most: int) -> list[Classification]:
        found: list[Classification] = []
        while self._waiting and len(found) < most:
            record = self._next()
            if record is not None:
                assert self._handed_out is not None
                self._handled(self._handed_out)
                self._handed_out = None
                found.append(record)
        return found

    def settle(self) -> None:
        """What `take` returned has been handled: the group goes on behind it."""
        self._consumer.commit([*self._done.values()])
        self._done.clear()

    def keep_alive(self) -> None:
        """Stay a member of the group while records are being handled; call it as often as you like."""
        self._consumer.keep_alive()

    def _next(self) -> Classification | None:
        """The first of the waiting messages as a record, if it is one that is wanted and still ours."""
        message = self._waiting.popleft()
        if not self._consumer.holds(message):  # its partition went to another member, which hands it out
            return None
        record = self._take(message)
        if record is None:
            self._handled(message)
        else:
            self._handed_out = message
        return record

    def stop(self) -> None:
        """End the iteration, from any thread."""
        self._stop.set()

    def close(self) -> None:
        """Commit the position behind what was handled, and leave; closing again does nothing."""
        self._consumer.commit([*self._done.values()])
        self._done.clear()
        self._consumer.close()

    def _begin_anew(self, topic: str) -> None:
        """A topic that was made again is another stream: no memory of the old one passes over its records."""
        self._done = {place: message for place, message in self._done.items() if place[0] != topic}
        if self._repeats is not None:
            self._repeats = _Repeats()

    def _commit(self) -> None:
        if self._done and not self.hold_position and time.monotonic() - self._committed_at > COMMIT_S:
            self._consumer.commit([*self._done.values()])
            self._done.clear()
            self._committed_at = time.monotonic()

    def _handled(self, message: Message) -> None:
        self._done[place_of(message)] = message

    def _take(self, message: Message) -> Classification | None:
        value = message.value()
        if value is None:  # a compacted topic: somebody deleted the object
            return None
        try:
            record = decode(value if isinstance(value, bytes) else b"", self._writer_schema)
        except StreamError as error:
            topic, partition = place_of(message)
            sentence = f"{topic} partition {partition} offset {message.offset()}: {error}"
            if not self._skip_bad:
                self._handled(message)
                raise StreamError(sentence) from error
            self.bad += 1
            log.warning("skipped: %s", sentence)
            return None
        if self._repeats is not None and self._repeats.seen(record):
            return None
        return record if self._wanted(record) else None

    def _wanted(self, record: Classification) -> bool:
        if self._classes and record.top_class not in self._classes:
            return False
        if self._models and record.model not in self._models:
            return False
        return self._least <= 0 or (record.top_probability or 0.0) >= self._least


class _Patience:
    """Says what a reader waits for, and gives up after `timeout` seconds without a message."""

    def __init__(self, topics: Sequence[str], consumer: BatchConsumer, timeout: float | None) -> None:
        self._topics, self._consumer, self._timeout = ", ".join(topics), consumer, timeout
        self._since = time.monotonic()
        self._said = SAY_S

    def look(self, came: bool) -> None:
        """After each attempt to read.

        Raises:
            ServiceUnavailable: it is time to give up.
        """
        connection, now = self._consumer.connection, time.monotonic()
        if came:
            self._since, self._said = now, SAY_S
        waited = now - self._since
        if self._timeout is not None and waited >= self._timeout:
            if connection.answers():
                raise ServiceUnavailable(f"no record of {self._topics} came within {self._timeout:g} s")
            raise connection.unavailable(f"it has not answered for {self._timeout:g} s", "no answer")
        if waited >= self._said:
            self._say(waited)

    def _say(self, waited: float) -> None:
        connection = self._consumer.connection
        if connection.answers():  # a quiet stream is nothing to repeat
            self._said = float("inf")
            log.info("waiting for records of %s from Kafka at %s", self._topics, connection.hosts)
            return
        self._said = waited + SAY_AGAIN_S
        log.warning(
            "waiting for Kafka at %s, which has not answered for %.0f s (%s): is the address right?",
            connection.hosts, waited, connection.detail(),
        )  # fmt: skip


class _Repeats:
    """What was seen lately: answers by id, and the newest revision of each object; names of any length."""

    def __init__(self, size: int = REMEMBERED) -> None:
        self._answers, self._revisions = Lately(size), Lately(size)

    def seen(self, record: Classification) -> bool:
        """True for a repeat or an answer older than the object's last; remembers the record.

        The id names the sources, not their pixels: where a stored stamp was replaced, the newer answer has the same
        id and a higher revision.
        """
        object_ = (record.survey, record.object_id, record.model)
        newest = self._revisions.get(*object_)
        known = self._answers.get(record.classification_id) is not None
        repeat = newest is not None and (record.revision < newest or (record.revision == newest and known))
        self._answers.put(record.classification_id)
        self._revisions.put(*object_, number=record.revision if newest is None else max(newest, record.revision))
        return repeat


# --- output --------------------------------------------------------------------------------------------------------


def write(
    stream: Iterable[Classification], format_: str, output: str | Path | None = None, *, raw_csv: bool = False
) -> int:
    """Write the records as table, json (one object a line), csv or parquet until they or Ctrl-C end; return how many.

    Args:
        output: a file (parquet needs one, and finishes it only when the stream ends), or None for stdout. A
            subscriber with a group adds to a file that is there, because the group never gets those records again;
            without one the file is written anew.

        raw_csv: texts in CSV as they came, also what a spreadsheet would run or a terminal obey.

    Raises:
        ConfigError: an unknown format, parquet without a file, or a file that cannot be added to.
    """
    if output is not None:
        outputs.check_file(output, ConfigError)
    adds = isinstance(stream, Subscriber) and stream.remembers
    if format_ == "parquet":
        return _write_parquet(stream, output, adds)
    csv_ = functools.partial(write_csv, raw=raw_csv)
    writers: dict[str, Callable[..., int]] = {"table": write_table, "json": write_json, "csv": csv_}
    if format_ not in writers:
        raise ConfigError(f"format must be {', '.join(writers)} or parquet, not {format_!r}")
    if output is not None:
        goes_on = adds and _can_go_on(Path(output), TITLES.get(format_, ""))
        with open(output, "a" if adds else "w", newline="", encoding="utf-8") as out:
            return writers[format_](_interruptible(stream), out, not goes_on)
    try:
        return writers[format_](_interruptible(stream), sys.stdout, True)
    except BrokenPipeError:  # the reader of our pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _write_parquet(stream: Iterable[Classification], output: str | Path | None, adds: bool) -> int:
    if output is None:
        raise ConfigError("parquet cannot be written to the screen: add -o FILE")
    if adds and Path(output).exists():
        raise ConfigError(f"{output} exists, and its records will not come to this group again: give another -o FILE")
    if isinstance(stream, Subscriber):
        stream.hold_position = True
    return write_parquet(_interruptible(stream), Path(output))


def _can_go_on(path: Path, title: str) -> bool:
    """Whether the file holds lines already; refuses one that lines of ours would not fit."""
    if not path.exists() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        if title and file.readline(2 * len(title) + 2).rstrip(b"\n") != title.encode():
            raise ConfigError(f"{path} exists and begins with other columns: give another -o FILE")
        file.seek(-1, os.SEEK_END)
        if file.read() != b"\n":
            raise ConfigError(
                f"{path} ends inside a line, whose record comes again: remove it, or give another -o FILE"
            )
    return True


def _interruptible(stream: Iterable[Classification]) -> Iterator[Classification]:
    """Ctrl-C is how an endless stream ends."""
    with contextlib.suppress(KeyboardInterrupt):
        # not `yield from`: that would close the stream with this generator, if need be while Python is shutting down
        for record in stream:  # noqa: UP028
            yield record


def write_table(stream: Iterable[Classification], out: IO[str], titled: bool = True) -> int:
    """Aligned columns for people, with their titles unless `titled` is False."""
    title = TITLES["table"] if titled else ""
    return _lines(stream, out, lambda record: LAYOUT.format(*_row(record)).rstrip(), title)


def write_json(stream: Iterable[Classification], out: IO[str], _titled: bool = True) -> int:
    """One JSON object a line."""
    return _lines(stream, out, lambda record: json.dumps(record.to_json(), separators=(",", ":")))


def write_csv(stream: Iterable[Classification], out: IO[str], titled: bool = True, *, raw: bool = False) -> int:
    """A header and one line a record; what has several values (probabilities, bands, sources) is JSON in its cell.

    Args:
        titled: write the header.
        raw: leave texts as they came; otherwise none can be run by a spreadsheet (`names.spreadsheet_cell`).
    """
    writer = csv.DictWriter(out, _columns(), lineterminator="\n")
    if titled:
        writer.writeheader()
    count = 0
    for record in stream:
        row = flat(record)
        writer.writerow(row if raw else {name: spreadsheet_cell(value) for name, value in row.items()})
        out.flush()
        count += 1
    return count


def _lines(
    stream: Iterable[Classification], out: IO[str], line: Callable[[Classification], str], title: str = ""
) -> int:
    if title:
        print(title, file=out, flush=True)
    count = 0
    for record in stream:
        print(line(record), file=out, flush=True)
        count += 1
    return count


def _row(record: Classification) -> tuple[Any, ...]:
    when = _utc(record.classified_ms)
    bands = " ".join(f"{band}{number}" for band, number in sorted(record.stamps_per_band.items()))
    answer = record.top_class or f"({record.reason})"
    probability = "" if record.top_probability is None else f"{record.top_probability:.3f}"
    name, bands, answer = (printable(text) for text in (record.object_id, bands, answer))
    return when, name, record.n_stamps, bands, f"{record.days_since_first:.2f}", answer, probability


def _utc(ms: int) -> str:
    """A time as a person reads it; empty for one that no calendar has."""
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ms / 1000))
    except (ValueError, OverflowError, OSError):
        return ""


def _columns() -> list[str]:
    names = [f.name for f in fields(Classification) if f.name != "provenance"]
    return names + [f"provenance_{f.name}" for f in fields(Provenance)]


def flat(record: Classification) -> dict[str, Any]:
    """The record as one level of plain values."""
    row = record.to_json()
    row["probabilities"] = json.dumps(record.probability_of)
    row["stamps_per_band"] = json.dumps(record.stamps_per_band)
    row["sources"] = json.dumps(record.sources)
    row["estimates"] = json.dumps(row["estimates"])
    provenance = row.pop("provenance")
    return row | {f"provenance_{name}": value for name, value in provenance.items()}


LAYOUT = "{:<20} {:<20} {:>6} {:<18} {:>8} {:<16} {:>6}"
TITLES = {
    "table": LAYOUT.format("classified (UTC)", "object", "stamps", "bands", "days", "class", "prob"),
    "csv": ",".join(_columns()),
}


def write_parquet(stream: Iterable[Classification], path: Path) -> int:
    """A Parquet file with the types of the Avro schema; it appears under its name only when it is whole."""
    from pyarrow import parquet

    count = 0
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with parquet.ParquetWriter(unfinished, _arrow_schema(), compression="zstd") as writer:
            records = iter(stream)
            while rows := list(itertools.islice(records, ROW_GROUP)):
                _write_rows(writer, rows)
                count += len(rows)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def _write_rows(writer: Any, rows: Sequence[Classification]) -> None:
    import pyarrow

    plain = [row.to_dict() for row in rows]
    for row in plain:
        row["status"] = str(row["status"])
        row["stamps_per_band"] = list(row["stamps_per_band"].items())
    writer.write_table(pyarrow.Table.from_pylist(plain, _arrow_schema()))


def _arrow_schema() -> Any:
    """The Avro schema in Arrow's types."""
    import pyarrow as pa

    probability = pa.struct([("name", pa.string()), ("taxonomy_id", pa.int32()), ("probability", pa.float32())])
    text, real, whole, time_ = pa.string(), pa.float64(), pa.int64(), pa.timestamp("ms", tz="UTC")
    return pa.schema(
        [
            ("classification_id", text), ("survey", text), ("object_id", text), ("revision", whole),
            ("status", text), ("reason", text), ("probabilities", pa.list_(probability)),
            ("top_class", text), ("top_probability", pa.float32()), ("ra", real), ("dec", real),
            ("n_stamps", pa.int32()), ("stamps_per_band", pa.map_(text, pa.int32())),
            ("first_mjd", real), ("last_mjd", real), ("days_since_first", real), ("flags", pa.int32()),
            ("sources", pa.list_(whole)), ("triggering_source_id", whole),
            ("provenance", pa.struct([(f.name, text) for f in fields(Provenance)])),
            ("survey_ms", time_), ("kafka_ms", time_), ("ingest_ms", time_), ("classified_ms", time_),
            ("model", text), ("estimates", pa.list_(pa.struct([("name", text), ("value", real), ("error", real)]))),
        ]
    )  # fmt: skip
