"""Who can still give the packets of past alerts: one file a provider, an entry point in `skyheed.providers`.

A provider returns a packet as the survey sent it, or one that it put together of what a broker says (`assembled`), so
that backfilled stamps take the same way as all others.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol, runtime_checkable

from skyheed.broker.options import plugin, plugins

GROUP = "skyheed.providers"


class Provider(Protocol):
    """One service.

    Attributes:
        survey: whose packets it has.
        rate: requests a second that it takes unless the settings say otherwise.
    """

    survey: ClassVar[str]
    rate: ClassVar[float]

    def packet(self, object_id: str, source_id: int) -> bytes | None:
        """The packet of one detection; None if the service does not have it.

        Raises:
            Refusal: it will not give this one.
            ServiceUnavailable: it is unavailable, or wants us to wait.
            ServiceError: it refuses us.
        """

    def close(self) -> None:
        """Let go of the service."""


@runtime_checkable
class AsksAhead(Protocol):
    """A provider that can ask for several detections at a time."""

    def expect(self, object_id: str, sources: Sequence[int]) -> None:
        """Detections of an object that `packet` will be asked for next, in this order."""


def cost(provider: Provider) -> int:
    """Requests that a detection costs: the provider's `requests`, or one."""
    return int(getattr(provider, "requests", 1))


def names() -> list[str]:
    """The providers that are installed."""
    return plugins(GROUP)


def load(name: str, options: Mapping[str, str]) -> Provider:
    """The provider of that name, with the options of its table in the settings.

    Raises:
        ConfigError: there is none, what it needs is not installed, or an option cannot work.
    """
    found: Provider = plugin(GROUP, "provider", name, options)
    return found
