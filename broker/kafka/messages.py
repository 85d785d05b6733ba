"""What is asked of one Kafka message: its place, time and size, and its headers, which anybody may have written.

A header's name need not be UTF-8 for a broker. confluent_kafka then raises a SystemError, and the next look at the same
message ends the process: its list of headers has holes. So every message is looked at once, where it is fetched.
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
    """The message, without its headers where one of them has a name that is not UTF-8; look at each message once."""
    try:
        message.headers()
    except (SystemError, UnicodeDecodeError):
        message.set_headers([])
        log.warning(
            "topic %s partition %s offset %s: a header's name is not UTF-8, read without its headers",
            message.topic(), message.partition(), message.offset(),
        )  # fmt: skip
    return message


def headers_of(message: Message) -> Headers:
    """The headers of a message that was made readable."""
    return cast(Headers, message.headers() or ())


def size_of(message: Message) -> int:
    """Bytes of a message that was made readable, or of what librdkafka says in its place."""
    size = sum(len(name) + len(value or b"") for name, value in headers_of(message))
    return size + len(message.value() or b"") + len(message.key() or b"")


def place_of(message: Message) -> Place:
    """Topic and partition of a message."""
    return cast(Place, (message.topic(), message.partition()))


class Timed(Protocol):
    """What `time_ms` needs of a message."""

    def timestamp(self) -> Any: ...


def time_ms(message: Timed, otherwise: int) -> int:
    """Kafka's time of a message, Unix ms; `otherwise` where it has none (-1 is no time)."""
    kind, when = message.timestamp()
    return int(when) if kind != ck.TIMESTAMP_NOT_AVAILABLE and when >= 0 else otherwise
