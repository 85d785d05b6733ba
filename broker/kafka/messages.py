"""Properties of one Kafka message: place, time, size, and headers, which anyone may have written.

A broker accepts header names that are not UTF-8. confluent_kafka then raises a SystemError, and accessing the same
message again crashes the process, because its header list has holes. So every message is inspected once, where it is
fetched.
"""

import logging
from collections.abc import Sequence
from typing import Any, Protocol, cast

import confluent_kafka as ck
from confluent_kafka import Message

from skyheed.broker.kafka.connection import Place

log = logging.getLogger("skyheed.kafka")
Headers = Sequence[tuple[str, bytes | None]]


def make_readable(message: Message) -> Message:
    """The message, without its headers if one has a name that is not UTF-8; call once per message."""
    try:
        message.headers()
    except (SystemError, UnicodeDecodeError):
        message.set_headers([])
        log.warning(
            "topic %s partition %s offset %s: a header name is not UTF-8; read without headers",
            message.topic(), message.partition(), message.offset(),
        )  # fmt: skip
    return message


def headers_of(message: Message) -> Headers:
    """The headers of a message returned by `readable`."""
    return cast(Headers, message.headers() or ())


def size_of(message: Message) -> int:
    """Size in bytes of a message returned by `readable`, or of librdkafka's event in its place."""
    size = sum(len(name) + len(value or b"") for name, value in headers_of(message))
    return size + len(message.value() or b"") + len(message.key() or b"")


def place_of(message: Message) -> Place:
    """Topic and partition of a message."""
    return cast(Place, (message.topic(), message.partition()))


class Timed(Protocol):
    """What `time_ms` needs from a message."""

    def timestamp(self) -> Any: ...


def time_ms(message: Timed, otherwise: int) -> int:
    """Kafka's timestamp of a message, Unix ms; `otherwise` if it has none (-1 means none)."""
    kind, when = message.timestamp()
    return int(when) if kind != ck.TIMESTAMP_NOT_AVAILABLE and when >= 0 else otherwise
