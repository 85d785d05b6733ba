"""Which earlier detections a packet names, for surveys whose packets do so."""

import json
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any, ClassVar, Protocol, runtime_checkable

from skyheed.broker.packets.surveys import base

Named = tuple[str, list[int]]  # object, its earlier detections in time order


@runtime_checkable
class NamesEarlier(Protocol):
    """A survey whose packets name their object's earlier detections.

    Attributes:
        earlier_schema: Avro schema of the fields that name them.
    """

    name: str

    @property
    def earlier_schema(self) -> dict[str, Any]: ...

    def earlier(self, record: Mapping[str, Any]) -> Named:
        """The object and its earlier detections; none for an object without a name."""


class EarlierSchema:
    """Reads the schema from a file below schemas/."""

    earlier_file: ClassVar[str]

    @property
    def earlier_schema(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(files("skyheed.schemas").joinpath(self.earlier_file).read_text())
        return found


def named(object_id: str | int | None, detections: Iterable[tuple[float | None, str | int | None]]) -> Named:
    """From (time, number) of each earlier detection; those without a number have no packet.

    Raises:
        PacketError: an invalid name or number.
    """
    if object_id is None or str(object_id).strip() in ("", "0"):
        return "", []
    known = sorted((time or 0.0, base.source_id(number)) for time, number in detections if number is not None)
    return base.object_id(object_id), [number for _, number in known]
