"""Writes classifications for people and programs: as a table, JSON, CSV or Parquet."""

import contextlib
import csv
import functools
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

from skyheed.broker.errors import ConfigError
from skyheed.broker.results.record import Classification, Provenance
from skyheed.broker.subscribe import Subscriber
from skyheed.classifier import output_paths
from skyheed.classifier.safe_names import printable, spreadsheet_cell

ROW_GROUP = 10_000


def write(
    stream: Iterable[Classification], format_: str, output: str | Path | None = None, *, raw_csv: bool = False
) -> int:
    """Write records as table, json (one object a line), csv or parquet until they end or Ctrl-C; returns how many.

    Args:
        output: a file (parquet needs one, and finishes it only when the stream ends), or None for stdout. A subscriber
            with a group appends to an existing file, because the group never gets those records again; without a group
            the file is overwritten.

        raw_csv: leave text in CSV unchanged, even what a spreadsheet would execute or a terminal interpret.

    Raises:
        ConfigError: an unknown format, parquet without a file, or a file that cannot be appended to.
    """
    if output is not None:
        output_paths.check_file(output, ConfigError)
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
    except BrokenPipeError:  # the reader of the pipe has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _write_parquet(stream: Iterable[Classification], output: str | Path | None, adds: bool) -> int:
    if output is None:
        raise ConfigError("parquet cannot be written to the screen: add -o FILE")
    if adds and Path(output).exists():
        raise ConfigError(f"{output} exists, and this group will not receive its records again: give another -o FILE")
    if isinstance(stream, Subscriber):
        stream.hold_position = True
    return write_parquet(_interruptible(stream), Path(output))


def _can_go_on(path: Path, title: str) -> bool:
    """Whether the file already holds lines; refuses one with other columns."""
    if not path.exists() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        if title and file.readline(2 * len(title) + 2).rstrip(b"\n") != title.encode():
            raise ConfigError(f"{path} exists with different columns: give another -o FILE")
        file.seek(-1, os.SEEK_END)
        if file.read() != b"\n":
            raise ConfigError(
                f"{path} ends with an incomplete line: remove it (its record will come again), or give another -o FILE"
            )
    return True


def _interruptible(stream: Iterable[Classification]) -> Iterator[Classification]:
    """Ctrl-C is how an endless stream ends."""
    with contextlib.suppress(KeyboardInterrupt):
        # not `yield from`: that would close the stream with this generator, possibly while Python is shutting down
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
    """A header and one line per record; fields with several values (probabilities, bands, sources) are JSON in their
    cell.

    Args:
        titled: write the header.
        raw: leave text unchanged; otherwise formulas are made harmless (`names.spreadsheet_cell`).
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
    """A time in readable form; empty if outside the calendar."""
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ms / 1000))
    except (ValueError, OverflowError, OSError):
        return ""


def _columns() -> list[str]:
    names = [f.name for f in fields(Classification) if f.name != "provenance"]
    return names + [f"provenance_{f.name}" for f in fields(Provenance)]


def flat(record: Classification) -> dict[str, Any]:
    """The record as a flat dictionary of plain values."""
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
    """A Parquet file with the types of the Avro schema; it appears under its name only when complete."""
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
