"""skyheed: early classification of astronomical alert streams from sequences of image stamps.

The public face. Everything is loaded when it is first used, so that a subscriber needs neither torch nor Redis:

    from skyheed import History, Subscriber, load_model, read_packet
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skyheed.broker.errors import PacketError as PacketError
    from skyheed.broker.errors import SkipPacket as SkipPacket
    from skyheed.broker.errors import SkyheedError as SkyheedError
    from skyheed.broker.observation import Observation as Observation
    from skyheed.broker.packets.reader import read_packet as read_packet
    from skyheed.broker.results.record import Classification as Classification
    from skyheed.broker.subscribe import Subscriber as Subscriber
    from skyheed.classifier.history import History as History
    from skyheed.classifier.prediction import Prediction as Prediction
    from skyheed.classifier.serving import load_model as load_model

__all__ = [
    "Classification", "History", "Observation", "PacketError", "Prediction", "SkipPacket", "SkyheedError", "Subscriber",
    "load_model", "read_packet",
]  # fmt: skip

_PLACES = {
    "Classification": "skyheed.broker.results.record",
    "History": "skyheed.classifier.history",
    "Observation": "skyheed.broker.observation",
    "PacketError": "skyheed.broker.errors",
    "Prediction": "skyheed.classifier.prediction",
    "SkipPacket": "skyheed.broker.errors",
    "SkyheedError": "skyheed.broker.errors",
    "Subscriber": "skyheed.broker.subscribe",
    "load_model": "skyheed.classifier.serving",
    "read_packet": "skyheed.broker.packets.reader",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
