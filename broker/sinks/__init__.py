"""Where `skyheed forward` sends classifications to: one file a host, found through the entry points `skyheed.sinks`.

A sink turns a classification into what its host takes (`payload`), and sends several of them (`send`). It must leave
the host in the same state when it sends the same classification again: forwarding is at least once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from skyheed.broker.filmstrip import FilmStrips
from skyheed.broker.options import plugin, plugins
from skyheed.broker.results.record import Classification

GROUP = "skyheed.sinks"
Payload = Mapping[str, Any]


class Outcome(StrEnum):
    """What became of a classification at its host."""

    DELIVERED = "delivered"
    FILTERED = "filtered"  # the host has no use for it: a decline, an object that it does not know
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the host said to one payload; `words` are its own where it refused."""

    outcome: Outcome
    words: str = ""


DELIVERED, FILTERED = Answer(Outcome.DELIVERED), Answer(Outcome.FILTERED)


def refused(words: str) -> Answer:
    """The host will never take this payload, and says why."""
    return Answer(Outcome.REFUSED, words)


class Sink(Protocol):
    """One host.

    Attributes:
        batch: payloads that it takes at a time.
        rate: payloads a second that it takes unless the settings say otherwise; 0 for any.
    """

    batch: int
    rate: float

    def payload(self, record: Classification) -> Payload | None:
        """What is sent of a classification, as `--dry-run` prints it; None if this host has no use for it."""

    def send(self, payloads: Sequence[Payload]) -> list[Answer]:
        """What the host says to each payload.

        Raises:
            ServiceUnavailable: it is unavailable, or wants us to wait; sending all of them again is safe.
            ServiceError: it refuses us (token, address).
        """

    def close(self) -> None:
        """Let go of the host."""


@runtime_checkable
class Illustrated(Protocol):
    """A sink that can show the film strip of an object; it gets `strips` when it wants them.

    Attributes:
        wants_strips: whether its settings ask for them.
        strips: None where there is no Redis to read histories from.
    """

    strips: FilmStrips | None

    @property
    def wants_strips(self) -> bool: ...


def names() -> list[str]:
    """The sinks that are installed."""
    return plugins(GROUP)


def load(name: str, options: Mapping[str, str]) -> Sink:
    """The sink of that name, with the options of its table in the settings.

    Raises:
        ConfigError: there is none, what it needs is not installed, or an option cannot work.
    """
    found: Sink = plugin(GROUP, "sink", name, options)
    return found
