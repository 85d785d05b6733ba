"""Destinations of `skyheed forward`: one file per host, found through the entry points `skyheed.sinks`.

A sink converts a classification to its host's format (`payload`), and sends several of them (`send`). Sending the same
classification again must leave the host in the same state: forwarding is at least once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from skyheed.broker.filmstrip import FilmStrips
from skyheed.broker.plugins import plugin
from skyheed.broker.results.record import Classification

GROUP = "skyheed.sinks"
Payload = Mapping[str, Any]


class Outcome(StrEnum):
    """The outcome of a classification at its host."""

    DELIVERED = "delivered"
    FILTERED = "filtered"  # not applicable at the host: a decline, an object that it does not know
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Answer:
    """The host's response to one payload; `words` are its own if it refused."""

    outcome: Outcome
    words: str = ""


DELIVERED, FILTERED = Answer(Outcome.DELIVERED), Answer(Outcome.FILTERED)


def refused(words: str) -> Answer:
    """The host permanently rejects this payload, and says why."""
    return Answer(Outcome.REFUSED, words)


class Sink(Protocol):
    """One host.

    Attributes:
        batch: payloads per request.
        rate: payloads per second, unless the settings say otherwise; 0 for unlimited.
    """

    batch: int
    rate: float

    def payload(self, record: Classification) -> Payload | None:
        """What is sent for a classification, as `--dry-run` prints it; None if not applicable at this host."""

    def send(self, payloads: Sequence[Payload]) -> list[Answer]:
        """Send the payloads; returns the host's response to each.

        Raises:
            ServiceUnavailable: it is unavailable, or wants us to wait; sending all of them again is safe.
            ServiceError: it refuses us (token, address).
        """

    def close(self) -> None:
        """Release the connection."""


@runtime_checkable
class Illustrated(Protocol):
    """A sink that can show the film strip of an object; it gets `strips` if it wants them.

    Attributes:
        wants_strips: whether its settings ask for them.
        strips: None if there is no Redis to read histories from.
    """

    strips: FilmStrips | None

    @property
    def wants_strips(self) -> bool: ...


def load(name: str, options: Mapping[str, str]) -> Sink:
    """The sink of that name, with the options of its table in the settings.

    Raises:
        ConfigError: no such sink, a missing dependency, or an option that cannot work.
    """
    found: Sink = plugin(GROUP, "sink", name, options)
    return found
