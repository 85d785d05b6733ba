"""The alert stream: tom-alertstreams builds it from settings; classifications reach the handler in order."""

import sys
import types

import pytest
from django.core.exceptions import ImproperlyConfigured

pytest.importorskip("tom_alertstreams")
from tom_alertstreams.alertstreams.alertstream import get_alert_streams

NAME = "tom_skyheed.stream.SkyheedAlertStream"
HANDLED: list[object] = []


def handle(classification: object) -> None:
    HANDLED.append(classification)


class Subscriber:
    """In place of skyheed's, which has tests of its own on a real Kafka."""

    def __init__(self, kafka: str, topic: str, *, group: str, skip_bad: bool) -> None:
        self.given = (kafka, topic, group, skip_bad)

    def __enter__(self) -> "Subscriber":
        return self

    def __exit__(self, *args: object) -> None:
        HANDLED.append("closed")

    def __iter__(self):
        yield from [self.given, "second"]


def test_classifications_reach_the_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skyheed", types.SimpleNamespace(Subscriber=Subscriber))
    options = {"KAFKA": "k:9092", "TOPIC": "t", "GROUP": "g", "TOPIC_HANDLERS": {"t": "tests.test_stream.handle"}}
    (stream,) = get_alert_streams([{"NAME": NAME, "OPTIONS": options}])
    HANDLED.clear()
    stream.listen()
    assert HANDLED == [("k:9092", "t", "g", True), "second", "closed"]


def test_a_missing_option_is_named() -> None:
    with pytest.raises(ImproperlyConfigured, match="GROUP"):
        get_alert_streams([{"NAME": NAME, "OPTIONS": {"KAFKA": "k", "TOPIC": "t", "TOPIC_HANDLERS": {}}}])
