"""Archives -> Kafka: packets in survey-time order, paced by survey time, by rate, or flat out.

What is read (`packet_files`): packet files (one or more records each), folders of them, tar archives as ZTF publishes
them by night (plain or gzipped), and our own archives of stamp sequences. Only an index stays in memory (32 bytes a
packet); a packet is read again when it is sent. Packets go out as the surveys send them: no key, one record a message.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyheed.broker.errors import ConfigError, ServiceError
from skyheed.broker.kafka.client import MAX_MESSAGE_BYTES, Options, Publisher, ensure_topics
from skyheed.broker.kafka.connection import check_options
from skyheed.broker.kafka.identity import id_of
from skyheed.broker.kafka.selection import Outputs, check_name
from skyheed.broker.packets.container import SchemaSource
from skyheed.broker.packets.index import PacketIndex
from skyheed.broker.packets.surveys import Survey
from skyheed.broker.waiting import GRACE_S, Meanwhile, Stopped, patiently
from skyheed.classifier import output_paths
from skyheed.classifier.bounded_files import read_file
from skyheed.classifier.progress import progress_bar
from skyheed.classifier.reaper import end_if_asked

log = logging.getLogger("skyheed.replay")
BATCH = 500
BATCH_BYTES = 16 * 2**20
MOST_STATE = 2**16  # bytes; ours have 100
SAVE_S = 1.0  # how often the state file is written
LONGEST_SLEEP_S = 0.2


def order(mjd: NDArray[np.float64], shuffle: int | None = None, duplicate: float = 0.0) -> NDArray[np.int64]:
    """The order of sending: by time, or shuffled with the seed; a fraction is sent twice.

    Args:
        mjd: [n] times, days.

    Returns:
        indices into `mjd`, [n + round(duplicate * n)].
    """
    dice = np.random.default_rng(shuffle or 0)
    first = np.argsort(mjd, kind="stable") if shuffle is None else dice.permutation(len(mjd))
    again = dice.choice(len(mjd), round(duplicate * len(mjd)), replace=False)
    # each copy is placed somewhere after its original
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
    """How many packets, in order, Kafka has acknowledged; saved to a file if one is given, with the topic's id.

    Raises:
        ConfigError: the file belongs to another replay, or is not a state file.
    """

    def __init__(self, path: Path | None, fingerprint: str) -> None:
        self._path, self._fingerprint = path, fingerprint
        self._saved_at = 0.0
        self._topic_id = ""
        self.sent = self._load() if path and path.exists() else 0

    def of_topic(self, topic: str, topic_id: str) -> None:
        """What is sent goes to the topic of this id; empty if the broker has no ids.

        Raises:
            ConfigError: the file counts what was sent to an earlier topic of that name.
        """
        if self._topic_id and topic_id and topic_id != self._topic_id:
            raise ConfigError(
                f"{self._path} counts what was sent to an earlier topic {topic}, which was deleted: remove it to send "
                "everything to the new one, or give another --state"
            )
        self._topic_id = topic_id

    def advance(self, count: int) -> None:
        """`count` more are acknowledged."""
        self.sent += count
        if time.monotonic() - self._saved_at > SAVE_S:
            self.save()

    def save(self) -> None:
        """Write the file atomically."""
        if self._path is None:
            return
        unfinished = self._path.with_name(f".{self._path.name}.{os.getpid()}.part")
        unfinished.write_text(
            json.dumps({"fingerprint": self._fingerprint, "sent": self.sent, "topic_id": self._topic_id}) + "\n"
        )
        os.replace(unfinished, self._path)
        self._saved_at = time.monotonic()

    def _load(self) -> int:
        assert self._path is not None
        try:
            state = json.loads(read_file(self._path, MOST_STATE, ConfigError))
            fingerprint, sent = state["fingerprint"], int(state["sent"])
            self._topic_id = str(state.get("topic_id", ""))
            if sent < 0:
                raise ValueError(sent)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
            raise ConfigError(f"{self._path} is not the state file of a replay: give another --state") from error
        if fingerprint != self._fingerprint:
            raise ConfigError(
                f"{self._path} belongs to another replay (other files, --topic, --shuffle or --duplicate): "
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
    """Send the packets of `paths` to `topic`; returns how many this run sent (all acknowledged).

    Args:
        speed: relative to real time, by survey time; `rate`: packets a second; neither: flat out.
        state: file that records what was acknowledged; sending resumes from it.
        shuffle: seed of a random order. duplicate: fraction of the packets that is sent twice.
        schemas: where writer schemas come from; the installed LSST package by default.
        stop: ends the replay early when set.

    Raises:
        ConfigError: nothing to send, settings that contradict each other, or, after all else was sent, an archive that
            is damaged.
        ServiceError: Kafka or the schema registry refuses us, or the topic was made again meanwhile.
    """
    _check(speed, rate, shuffle, duplicate)
    if state is not None:
        output_paths.check_file(state, ConfigError)
    check_name(topic, "--topic")
    if fault := Outputs().fault(topic):
        raise ConfigError(f"--topic: {fault}")
    check_options(options)
    stop = stop or threading.Event()
    with PacketIndex(survey, schemas) as index:
        for path in paths:
            index.add(Path(path))
        if not len(index):
            raise ConfigError(f"nothing to replay in {', '.join(map(str, paths))}")
        _warn(index)
        mjd = index.mjd
        queue = order(mjd, shuffle, duplicate)
        progress = Progress(Path(state) if state else None, f"{index.fingerprint()}/{topic}/{shuffle}/{duplicate}")
        queue = queue[progress.sent :]
        ensure = {topic: {"max.message.bytes": str(MAX_MESSAGE_BYTES)}}
        patiently(lambda: ensure_topics(options, ensure), stop)
        topic_id = patiently(lambda: id_of(options, topic), stop)
        progress.of_topic(topic, topic_id)
        with Publisher(options) as publisher, _bar(len(queue), progress.sent) as bar:

            def send(batch: Sequence[bytes]) -> None:
                messages = [(topic, None, packet, None) for packet in batch]
                patiently(lambda: publisher.publish_all(messages, Meanwhile(stop, grace_s=GRACE_S)), stop)
                progress.advance(len(batch))
                bar.update(len(batch))

            before = progress.sent
            try:
                _send_paced(index, queue, due_times(mjd[queue], speed, rate), send, stop)
                if patiently(lambda: id_of(options, topic), stop) != topic_id:
                    raise ServiceError(f"topic {topic} was deleted and created again: what was sent before is gone")
            except Stopped:
                log.warning("stopped while Kafka was unavailable")
            finally:
                progress.save()
        sent = progress.sent - before
        if index.damaged:
            raise ConfigError(f"sent {sent} alerts to {topic}, but {index.damaged[0]}{_and_more(index.damaged)}")
    return sent


def _and_more(damaged: Sequence[str]) -> str:
    return f" (and {len(damaged) - 1} more, see the warnings)" if len(damaged) > 1 else ""


def _check(speed: float | None, rate: float | None, shuffle: int | None, duplicate: float) -> None:
    rules = [
        (speed is None or rate is None, "give --speed or --rate, not both"),
        (speed is None or speed > 0, "--speed must be above 0"),
        (rate is None or rate > 0, "--rate must be above 0"),
        (speed is None or shuffle is None, "--shuffle does not follow survey time: give --rate instead of --speed"),
        (0 <= duplicate <= 1, "--duplicate is a fraction, 0 to 1"),
    ]
    for good, sentence in rules:
        if not good:
            raise ConfigError(sentence)


def _warn(index: PacketIndex) -> None:
    if unknown := index.unknown_times:
        log.warning(
            "%d of %d packets have no readable time (damaged, or unknown schema): each follows the one before",
            unknown,
            len(index),
        )


def _bar(left: int, sent: int) -> Any:
    return progress_bar(None, "sending", left + sent, initial=sent, unit=" alerts", smoothing=0.1)


def _send_paced(
    index: PacketIndex,
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
        batch = list(_batch(index, queue[position : min(ready, position + BATCH)]))
        send(batch)
        position += len(batch)


def _batch(index: PacketIndex, numbers: Iterable[int]) -> Iterator[bytes]:
    size = 0
    for number in numbers:
        packet = index.payload(number)
        yield packet
        size += len(packet)
        if size >= BATCH_BYTES:
            return
