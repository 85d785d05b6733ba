"""Services that still provide packets of past alerts: one file per provider, found through the entry points
`skyheed.providers`.

A provider returns a packet as the survey sent it, or one assembled from a broker's data (`assembled`), so that
backfilled stamps follow the same path as all others.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol, runtime_checkable

from skyheed.broker.plugins import plugin

GROUP = "skyheed.providers"


class Provider(Protocol):
    """One service.

    Attributes:
        survey: whose packets it has.
        rate: requests per second, unless the settings say otherwise.
    """

    survey: ClassVar[str]
    rate: ClassVar[float]

    def packet(self, object_id: str, source_id: int) -> bytes | None:
        """The packet of one detection; None if the service does not have it.

        Raises:
            Refusal: it does not release this one.
            ServiceUnavailable: it is unavailable, or wants us to wait.
            ServiceError: it refuses us.
        """

    def close(self) -> None:
        """Release the connection."""


@runtime_checkable
class AsksAhead(Protocol):
    """A provider that can request several detections at a time."""

    def expect(self, object_id: str, sources: Sequence[int]) -> None:
        """Detections of an object that will be requested next from `packet`, in this order."""


def cost(provider: Provider) -> int:
    """Requests that a detection costs: the provider's `requests`, or one."""
    return int(getattr(provider, "requests", 1))


def load(name: str, options: Mapping[str, str]) -> Provider:
    """The provider of that name, with the options of its table in the settings.

    Raises:
        ConfigError: no such provider, a missing dependency, or an option that cannot work.
    """
    found: Provider = plugin(GROUP, "provider", name, options)
    return found
