"""Publishing in batches, with a delivery report for every message. Independent of message contents."""

import contextlib
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NoReturn, Self

from confluent_kafka import KafkaError, KafkaException, Message

from skyheed.broker.kafka.connection import (
    AWAY,
    DELIVERY_S,
    NO_TOPIC,
    REFUSED_RIGHT,
    REFUSED_USER,
    Connection,
    Options,
    producer,
)

Headers = Sequence[tuple[str, bytes]]
Outgoing = tuple[str, bytes | None, bytes | None, Headers | None]  # topic, key, value, headers
LOOK_S = 0.1  # how often a waiting publisher calls `meanwhile`


class Publisher:
    """Publishes batches and waits for every delivery report; at least once."""

    def __init__(self, options: Options, deadline_s: float = DELIVERY_S) -> None:
        self._options = {**options, "message.timeout.ms": int(deadline_s * 1000)}
        self._deadline_s = deadline_s
        self.connection = Connection(options)
        self._producer = producer(self._options, self.connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None) -> None:
        self.close()

    def publish(
        self, messages: Sequence[Outgoing], meanwhile: Callable[[], None] = lambda: None
    ) -> list[KafkaError | None]:
        """Publish, wait, and return for every message None or the reason why the broker rejects that message.

        Args:
            meanwhile: called several times a second while waiting. An exception from it ends the wait; what was
                delivered is then unknown.

        Raises:
            ServiceError: the broker refuses us (user, right, no such topic).
            ServiceUnavailable: not everything was acknowledged in time; publishing all again is safe.
        """
        errors = self._publish(messages, meanwhile)
        large = [i for i, error in enumerate(errors) if error and error.code() == KafkaError.MSG_SIZE_TOO_LARGE]
        if len(messages) > 1:
            for (
                index
            ) in large:  # the broker refuses a batch as a whole: only a message sent alone is known to be the cause
                errors[index] = self._publish([messages[index]], meanwhile)[0]
        return errors

    def publish_all(self, messages: Sequence[Outgoing], meanwhile: Callable[[], None] = lambda: None) -> None:
        """Publish and wait; all messages or an error. `meanwhile` as in `publish`.

        Raises:
            ServiceError: as `publish`, and when the broker rejects one of the messages.
            ServiceUnavailable: as `publish`.
        """
        for message, error in zip(messages, self.publish(messages, meanwhile), strict=True):
            if error is not None:
                size = len(message[2] or b"")
                raise self.connection.refusal(error, f"a message of {size} bytes on topic {message[0]}")

    def close(self) -> None:
        """Release the connection; nothing is in flight after `publish` has returned."""
        self._producer.purge()
        with contextlib.suppress(KafkaException):  # a fatal error no longer matters here
            self._producer.flush(0.1)

    def _publish(self, messages: Sequence[Outgoing], meanwhile: Callable[[], None]) -> list[KafkaError | None]:
        report = _Report(len(messages))
        deadline = time.monotonic() + self._deadline_s + 5.0  # librdkafka gives up first and reports it
        try:
            for index, message in enumerate(messages):
                self._produce(index, message, report, deadline, meanwhile)
            while report.waiting and time.monotonic() < deadline:
                meanwhile()
                self.connection.check()
                self._producer.flush(LOOK_S)
        except KafkaException as error:  # librdkafka's fatal errors come out of poll and flush, not to error_cb
            self._start_afresh(error.args[0])
        except BaseException:  # refused, or asked to stop
            self._producer.purge()
            raise
        self._judge(messages, report)
        return report.errors

    def _produce(
        self, index: int, message: Outgoing, report: "_Report", deadline: float, meanwhile: Callable[[], None]
    ) -> None:
        topic, key, value, headers = message
        while True:
            try:
                self._producer.produce(
                    topic, value, key, headers=list(headers or ()) or None, on_delivery=report.callback(index)
                )
                return
            except BufferError:  # the local queue is full: send some first
                meanwhile()
                self.connection.check()
                if time.monotonic() > deadline:
                    raise self.connection.unavailable("the local queue stays full", "queue full") from None
                self._producer.poll(LOOK_S)
            except KafkaException as error:  # refused before it was queued: too large, or the producer has failed
                if error.args[0].code() == KafkaError._FATAL:
                    self._producer.poll(0)  # raises what was fatal
                report.settle(index, error.args[0])
                return

    def _judge(self, messages: Sequence[Outgoing], report: "_Report") -> None:
        failed = [(m, e) for m, e in zip(messages, report.errors, strict=True) if e is not None]
        fatal = [error for _, error in failed if error.fatal() or error.code() == KafkaError._FATAL]
        if fatal or report.waiting:
            self._start_afresh(fatal[0] if fatal else None)
        for message, error in failed:
            if error.code() in REFUSED_USER | REFUSED_RIGHT:
                raise self.connection.refusal(error, f"to write topic {message[0]}")
            if error.code() in NO_TOPIC:
                raise self.connection.refusal(error, f"topic {message[0]}")
        away = [error for _, error in failed if error.code() in AWAY]
        if away:
            raise self.connection.unavailable(f"{len(away)} of {len(messages)} messages not taken", away[0].str())
        self.connection.works()

    def _start_afresh(self, fatal: KafkaError | None) -> NoReturn:
        """Create a new producer: this one's sequence numbers are unusable; the caller republishes everything."""
        self._producer.purge()
        self._producer = producer(self._options, self.connection)
        if fatal is not None:
            self.connection.on_error(fatal)
            self.connection.check()
        raise self.connection.unavailable("the producer starts afresh", fatal.str() if fatal else "no delivery report")


class _Report:
    """The delivery reports of one `publish`."""

    def __init__(self, count: int) -> None:
        self.errors: list[KafkaError | None] = [None] * count
        self.waiting = count

    def settle(self, index: int, error: KafkaError | None) -> None:
        self.errors[index] = error
        self.waiting -= 1

    def callback(self, index: int) -> Callable[[KafkaError | None, Message], None]:
        return lambda error, _message: self.settle(index, error)
