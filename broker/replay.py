"""Archives -> Kafka: packets in survey-time order, paced by survey time, by rate, or flat out.

What is read (`packet_files`): packet files (one or more records each), folders of them, tar archives as ZTF publishes
them by night (plain or gzipped), and our own archives of stamp sequences. Only an index stays in memory (32 bytes a
packet); a packet is read again when it is sent. Packets go out as the surveys send them: no key, one record a message.
"""

import hashlib
import json
import logging
import os
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from skyheed.broker.errors import ConfigError, PacketError
from skyheed.broker.kafka.client import MAX_MESSAGE_BYTES, Options, Publisher, ensure_topics
from skyheed.broker.kafka.connection import check_options
from skyheed.broker.kafka.selection import Outputs, check_name
from skyheed.broker.packets.container import Decoder, SchemaSource, split_container
from skyheed.broker.packets.files import PACKETS, TARS, PacketFiles
from skyheed.broker.packets.surveys import Survey
from skyheed.broker.waiting import GRACE_S, Meanwhile, Stopped, patiently
from skyheed.classifier import outputs
from skyheed.classifier.bounded import read_file
from skyheed.classifier.keeper import end_if_asked, make_folder, remove_folder
from skyheed.classifier.names import printable
from skyheed.classifier.progress import progress_bar

log = logging.getLogger("skyheed.replay")
BATCH = 500
BATCH_BYTES = 16 * 2**20
MOST_STATE = 2**16  # bytes; ours have 100
SAVE_S = 1.0  # the state file is at most this old
LONGEST_SLEEP_S = 0.2
WHOLE = -1
ALERT_COLUMNS = (
    "source_id", "mjd", "band", "stamp", "flux", "flux_error", "psf_fwhm", "zero_point", "sky_noise",
)  # fmt: skip


class Shelf:
    """Where every packet lies on disk and when it was taken.

    A packet whose time cannot be read (a damaged one) takes the time of the one before it: it is the ingest's to judge.

    Args:
        schemas: where writer schemas come from, for packets that name theirs by number.
    """

    def __init__(self, survey: Survey, schemas: SchemaSource | None = None) -> None:
        self._survey = survey
        self._decoder = Decoder(survey.reader_schema, schemas=schemas or SchemaSource())
        self._files: list[Path] = []
        self._mjd, self._file = array("d"), array("l")
        self._offset, self._length, self._record = array("q"), array("q"), array("l")
        self._folder = make_folder("skyheed-replay-")
        self._found = PacketFiles(self._folder)
        self._split = lru_cache(8)(self._split_now)  # records of one file lie close together in time, too

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None) -> None:
        remove_folder(self._folder)

    def __len__(self) -> int:
        return len(self._mjd)

    @property
    def mjd(self) -> NDArray[np.float64]:
        """Time of every packet in the order of the archive, days, MJD TAI."""
        times = np.array(self._mjd)
        known = np.flatnonzero(np.isfinite(times))
        if not len(known):
            return np.zeros(len(times))
        last = np.searchsorted(known, np.arange(len(times)), "right") - 1
        return np.asarray(times[known[np.maximum(last, 0)]])

    @property
    def unknown_times(self) -> int:
        """How many packets have no time that can be read."""
        return int(np.count_nonzero(~np.isfinite(np.array(self._mjd))))

    def fingerprint(self) -> str:
        """Changes with the inputs: survey, names, sizes and times of change of the files."""
        return hashlib.sha256(json.dumps([self._survey.name, self._found.inputs]).encode()).hexdigest()[:16]

    @property
    def damaged(self) -> list[str]:
        """What could not be read whole, one sentence each; what was read of it is kept."""
        return self._found.damaged

    def add(self, path: Path) -> None:
        """Take in a file, a folder, a tar archive or an archive of stamp sequences; an empty archive adds nothing.

        Raises:
            ConfigError: nothing to replay there.
        """
        before, empty, damaged = len(self), len(self._found.empty), len(self.damaged)
        if (path / "objects.parquet").exists():
            self._spool(path, _archive_alerts(self._survey.name, path))
        else:
            for file, offset, length in self._found.packets(path):
                self._add_packet(self._number(file), offset, length)
        if len(self) > before or len(self._found.empty) > empty:
            return
        if len(self.damaged) > damaged:
            raise ConfigError(self.damaged[damaged])
        raise ConfigError(f"{path} holds no packets: files must end with {', '.join(PACKETS + TARS)}")

    def payload(self, index: int) -> bytes:
        """The packet as it goes to Kafka."""
        where = (self._file[index], self._offset[index], self._length[index])
        record = self._record[index]
        return self._read(*where) if record == WHOLE else self._split(*where)[record]

    def _number(self, path: Path) -> int:
        if not self._files or self._files[-1] != path:
            self._files.append(path)
        return len(self._files) - 1

    def _add_packet(self, file: int, offset: int, length: int) -> None:
        data = self._read(file, offset, length)
        times = self._times(data)
        for record, mjd in enumerate(times):
            self._put(mjd, file, offset, length, record if len(times) > 1 else WHOLE)

    def _put(self, mjd: float, file: int, offset: int, length: int, record: int) -> None:
        for column, value in (
            (self._file, file), (self._offset, offset), (self._length, length), (self._record, record),
        ):  # fmt: skip
            column.append(value)
        self._mjd.append(mjd)

    def _spool(self, folder: Path, alerts: Iterable[tuple[float, bytes]]) -> None:
        """Alerts made from an archive, kept in a temporary file."""
        for path in sorted(folder.rglob("*.parquet")):
            self._found.note(path)
        spool = self._folder / f"{len(self._files)}.alerts"
        number, offset = self._number(spool), 0
        with spool.open("wb") as out:
            for mjd, alert in alerts:
                out.write(alert)
                self._put(mjd, number, offset, len(alert), WHOLE)
                offset += len(alert)

    def _times(self, data: bytes) -> list[float]:
        """The time of every record; one NaN for a file without any that can be read."""
        try:
            times = [self._time(record) for record in self._decoder.decode(data)]
        except PacketError:
            pieces = _pieces(data)
            times = [self._times(piece)[0] for piece in pieces] if len(pieces) > 1 else []
        return times or [float("nan")]

    def _time(self, record: dict[str, Any]) -> float:
        try:
            return float(self._survey.time(record))
        except PacketError:
            return float("nan")

    def _read(self, file: int, offset: int, length: int) -> bytes:
        with self._files[file].open("rb") as source:
            return _read_at(source, offset, length)

    def _split_now(self, file: int, offset: int, length: int) -> list[bytes]:
        return _pieces(self._read(file, offset, length))


def _archive_alerts(survey: str, folder: Path) -> Iterator[tuple[float, bytes]]:
    """Time and alert packet of every stamp of an archive of stamp sequences.

    Raises:
        ConfigError: another survey has no packets for it.
    """
    from skyheed.broker.packets.surveys.sdss import Sdss, alert_from_archive
    from skyheed.classifier.archives.reader import Archive

    if survey != Sdss.name:
        raise ConfigError(f"{folder} is an archive of stamp sequences: replay it as {Sdss.name}, not as {survey}")
    for thing, stamps in Archive(folder).each(alerts_only=True):
        if thing["survey"] != survey:
            raise ConfigError(f"{folder} holds {thing['survey']} stamps, which have no packets of our own making")
        where = {name: thing[name] for name in ("object_id", "ra", "dec")}
        for row in stamps:
            try:
                alert = alert_from_archive(**where, **{name: row[name] for name in ALERT_COLUMNS})
            except (ValueError, OverflowError) as error:
                raise ConfigError(f"{folder}, object {printable(thing['object_id'])}: no alert: {error}") from error
            yield float(row["mjd"]), alert


def _read_at(source: BinaryIO, offset: int, length: int) -> bytes:
    source.seek(offset)
    return source.read(length)


def _pieces(data: bytes) -> list[bytes]:
    try:
        return split_container(data)
    except PacketError:
        return [data]


def order(mjd: NDArray[np.float64], shuffle: int | None = None, duplicate: float = 0.0) -> NDArray[np.int64]:
    """In which order packets go out: by time, or shuffled with the seed; a fraction goes out twice.

    Args:
        mjd: [n] times, days.

    Returns:
        indices into `mjd`, [n + round(duplicate * n)].
    """
    dice = np.random.default_rng(shuffle or 0)
    first = np.argsort(mjd, kind="stable") if shuffle is None else dice.permutation(len(mjd))
    again = dice.choice(len(mjd), round(duplicate * len(mjd)), replace=False)
    # each copy goes somewhere behind its original
    place = np.empty(len(mjd))
    place[first] = np.arange(len(mjd))
    later = dice.uniform(place[again], len(mjd))
    both = np.concatenate([first, again])
    return np.asarray(both[np.argsort(np.concatenate([np.arange(len(mjd)), later]), kind="stable")])


def due_times(mjd: NDArray[np.float64], speed: float | None, rate: float | None) -> NDArray[np.float64]:
    """When each packet is due, seconds from the start, non-decreasing; zeros for flat out.

    Args:
        mjd: [n] times in the order of sending, days.
        speed: times real time.
        rate: packets a second.
    """
    if rate is not None:
        return np.arange(len(mjd)) / rate
    if speed is None or not len(mjd):
        return np.zeros(len(mjd))
    latest = np.maximum.accumulate(mjd)
    return np.asarray((latest - latest[0]) * 86_400 / speed)


class Progress:
    """How many packets, in their order, Kafka has acknowledged; kept in a file if there is one.

    Raises:
        ConfigError: the file is of another replay, or no state file.
    """

    def __init__(self, path: Path | None, fingerprint: str) -> None:
        self._path, self._fingerprint = path, fingerprint
        self._saved_at = 0.0
        self.sent = self._load() if path and path.exists() else 0

    def advance(self, count: int) -> None:
        """`count` more are acknowledged."""
        self.sent += count
        if time.monotonic() - self._saved_at > SAVE_S:
            self.save()

    def save(self) -> None:
        """Write the file, whole or not at all."""
        if self._path is None:
            return
        unfinished = self._path.with_name(f".{self._path.name}.{os.getpid()}.part")
        unfinished.write_text(json.dumps({"fingerprint": self._fingerprint, "sent": self.sent}) + "\n")
        os.replace(unfinished, self._path)
        self._saved_at = time.monotonic()

    def _load(self) -> int:
        assert self._path is not None
        try:
            state = json.loads(read_file(self._path, MOST_STATE, ConfigError))
            fingerprint, sent = state["fingerprint"], int(state["sent"])
            if sent < 0:
                raise ValueError(sent)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
            raise ConfigError(f"{self._path} is no state of a replay: give another --state") from error
        if fingerprint != self._fingerprint:
            raise ConfigError(
                f"{self._path} is of another replay (other files, --topic, --shuffle or --duplicate): "
                "remove it, or give another --state"
            )
        return sent


def replay(
    options: Options,
    survey: Survey,
    paths: Sequence[str | Path],
    topic: str,
    *,
    speed: float | None = None,
    rate: float | None = None,
    state: str | Path | None = None,
    shuffle: int | None = None,
    duplicate: float = 0.0,
    schemas: SchemaSource | None = None,
    stop: threading.Event | None = None,
) -> int:
    """Send the packets of `paths` to `topic` and return how many this run sent (each was acknowledged).

    Args:
        speed: times real time, by survey time; `rate`: packets a second; neither: flat out.
        state: remember here what was acknowledged, and go on from there.
        shuffle: seed of a random order. duplicate: fraction of the packets that is sent twice.
        schemas: where writer schemas come from; the installed LSST package by default.
        stop: ends the replay early when set.

    Raises:
        ConfigError: nothing to send, settings that contradict each other, or, after all else was sent, an archive that
            is damaged.
        ServiceError: Kafka or the schema registry refuses us.
    """
    _check(speed, rate, shuffle, duplicate)
    if state is not None:
        outputs.check_file(state, ConfigError)
    check_name(topic, "--topic")
    if fault := Outputs().fault(topic):
        raise ConfigError(f"--topic: {fault}")
    check_options(options)
    stop = stop or threading.Event()
    with Shelf(survey, schemas) as shelf:
        for path in paths:
            shelf.add(Path(path))
        if not len(shelf):
            raise ConfigError(f"nothing to replay: {', '.join(map(str, paths))} hold nothing")
        _warn(shelf)
        mjd = shelf.mjd
        queue = order(mjd, shuffle, duplicate)
        progress = Progress(Path(state) if state else None, f"{shelf.fingerprint()}/{topic}/{shuffle}/{duplicate}")
        queue = queue[progress.sent :]
        ensure = {topic: {"max.message.bytes": str(MAX_MESSAGE_BYTES)}}
        patiently(lambda: ensure_topics(options, ensure), stop)
        with Publisher(options) as publisher, _bar(len(queue), progress.sent) as bar:

            def send(batch: Sequence[bytes]) -> None:
                messages = [(topic, None, packet, None) for packet in batch]
                patiently(lambda: publisher.publish_all(messages, Meanwhile(stop, grace_s=GRACE_S)), stop)
                progress.advance(len(batch))
                bar.update(len(batch))

            before = progress.sent
            try:
                _send_paced(shelf, queue, due_times(mjd[queue], speed, rate), send, stop)
            except Stopped:
                log.warning("stopped while Kafka was away")
            finally:
                progress.save()
        sent = progress.sent - before
        if shelf.damaged:
            raise ConfigError(f"sent {sent} alerts to {topic}, but {shelf.damaged[0]}{_and_more(shelf.damaged)}")
    return sent


def _and_more(damaged: Sequence[str]) -> str:
    return f" (and {len(damaged) - 1} more, see the warnings)" if len(damaged) > 1 else ""


def _check(speed: float | None, rate: float | None, shuffle: int | None, duplicate: float) -> None:
    rules = [
        (speed is None or rate is None, "give --speed or --rate, not both"),
        (speed is None or speed > 0, "--speed must be above 0"),
        (rate is None or rate > 0, "--rate must be above 0"),
        (speed is None or shuffle is None, "--shuffle has no survey time to follow: give --rate instead of --speed"),
        (0 <= duplicate <= 1, "--duplicate is a fraction, 0 to 1"),
    ]
    for good, sentence in rules:
        if not good:
            raise ConfigError(sentence)


def _warn(shelf: Shelf) -> None:
    if unknown := shelf.unknown_times:
        log.warning(
            "%d of %d packets have no time that can be read (damaged, or of an unknown schema): "
            "each goes out behind the one before it",
            unknown,
            len(shelf),
        )


def _bar(left: int, sent: int) -> Any:
    return progress_bar(None, "sending", left + sent, initial=sent, unit=" alerts", smoothing=0.1)


def _send_paced(
    shelf: Shelf,
    queue: NDArray[np.int64],
    due: NDArray[np.float64],
    send: Callable[[Sequence[bytes]], None],
    stop: threading.Event,
) -> None:
    began, position = time.monotonic(), 0
    while position < len(queue) and not stop.is_set():
        end_if_asked()
        wait = due[position] - (time.monotonic() - began)
        if wait > 0:
            stop.wait(min(wait, LONGEST_SLEEP_S))
            continue
        ready = int(np.searchsorted(due, time.monotonic() - began, "right"))
        batch = list(_batch(shelf, queue[position : min(ready, position + BATCH)]))
        send(batch)
        position += len(batch)


def _batch(shelf: Shelf, indices: Iterable[int]) -> Iterator[bytes]:
    size = 0
    for index in indices:
        packet = shelf.payload(index)
        yield packet
        size += len(packet)
        if size >= BATCH_BYTES:
            return
