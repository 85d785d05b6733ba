"""Records that no worker writes: neither `forward` nor its sinks may stop at one, now or after every start."""

import io
import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastavro
import pytest
from click.testing import CliRunner
from host_tools import standing
from server_tools import HOME, NEEDS_APACHE
from test_fastdb import ALERT, Stream, alert, answer
from test_forward import refused_of, settings
from test_http import OPTIONS
from test_record import classification
from test_subscribe import Topic, record

from skyheed.broker import sinks
from skyheed.broker.cli import skyheed
from skyheed.broker.errors import StreamError
from skyheed.broker.forward import _send
from skyheed.broker.http import Refusal, segment
from skyheed.broker.local import embedded
from skyheed.broker.results.formats import decode, encode
from skyheed.broker.results.record import Classification, ClassProbability, Estimate
from skyheed.broker.sinks import DELIVERED, Answer, Outcome, Payload
from skyheed.broker.sinks.fastdb import Fastdb

NAN, INF = float("nan"), float("inf")
HARMS: dict[str, dict[str, Any]] = {
    "probabilities that are no numbers": {"probabilities": tuple(ClassProbability(n, 1, NAN) for n in "ab")},
    "a probability without end": {"probabilities": (ClassProbability("AGN", 1, INF),)},
    "a top probability that is no number": {"top_probability": NAN},
    "no top probability": {"top_probability": None},
    "no top class": {"top_class": None},
    "a top class of nothing": {"probabilities": ()},
    "no position": {"ra": NAN},
    "no declination": {"dec": INF},
    "no times": {"last_mjd": NAN},
    "no first time": {"first_mjd": -INF},
    "no days": {"days_since_first": NAN},
    "no object": {"object_id": ""},
    "no survey": {"survey": ""},
    "an id that is a header": {"classification_id": "a\r\nX-Other: 1"},
    "an id that is a path": {"classification_id": "../../x"},
    "an id of letters": {"classification_id": "é" * 32},
    "no id": {"classification_id": ""},
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_record_that_no_worker_writes_is_no_classification(harm: str) -> None:
    payload = encode(replace(classification(), **HARMS[harm]))
    with pytest.raises(StreamError, match="not a classification: ") as refused:
        decode(payload)
    assert str(refused.value).isprintable()


def test_estimates_that_are_no_numbers_are_left_out() -> None:
    made = (Estimate("a", 1.0, 0.1), Estimate("b", NAN, 0.1), Estimate("c", 1.0, INF))
    assert [e.name for e in decode(encode(replace(classification(), estimates=made))).estimates] == ["a"]


def test_a_decline_is_a_classification() -> None:
    assert decode(encode(classification(answer=None, reason="too_few_stamps"))).top_class is None


NAMES = [
    "..", ".", "...", "", "../../etc/passwd", "a/b", "a?b=c#d", "-rf", "CON", "a\0b", "a\nb", "x" * 300, "é\u202e",
    "%2e%2e", "\ud7ff", "{object_id}", "'\"<script>",
]  # fmt: skip


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_names_from_data_are_one_segment_of_an_address(name: str) -> None:
    with standing(lambda _: (200, {"status": "success", "data": []})) as stand:
        prefix = {"skyportal": ["/api/sources/", "/api/classification", "/api/obj/", "/api/analysis_service/"]}
        with closing(sinks.load(name, {**OPTIONS[name], "url": stand.url})) as sink:
            for object_id in NAMES:
                payload = sink.payload(replace(classification(), object_id=object_id))
                assert payload is not None
                before = len(stand.asked)
                answers = sink.send([payload])
                assert [a.outcome for a in answers] in ([Outcome.DELIVERED], [Outcome.REFUSED])
                if name == "skyportal" and not object_id.strip("."):
                    assert answers[0].outcome is Outcome.REFUSED
                    assert len(stand.asked) == before
        for request in stand.asked:
            path = request.path.partition("?")[0]
            assert ".." not in path.split("/")
            assert any(path.startswith(p) for p in prefix.get(name, ["/"])), path
            assert path.count("/") <= 5


@pytest.mark.parametrize("name", ["", ".", "..", "..."])
def test_no_name_climbs(name: str) -> None:
    with pytest.raises(Refusal, match="cannot be in an address"):
        segment(name)


class Clumsy:
    """A sink that fails of one record in a way that nobody foresaw."""

    batch, rate = 10, 0.0

    def payload(self, record: Classification) -> Payload:
        if record.object_id.endswith("1"):
            raise KeyError("payload")
        return {"object_id": record.object_id}

    def send(self, payloads: Sequence[Payload]) -> list[Answer]:
        if any(payload["object_id"].endswith("2") for payload in payloads):
            raise ZeroDivisionError
        return [DELIVERED] * len(payloads)

    def close(self) -> None:
        pass


@pytest.mark.kafka
def test_what_a_sink_cannot_deal_with_is_set_aside_and_the_rest_goes_on(
    kafka: embedded.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = Topic(kafka)
    given = [record(i) for i in range(5)]
    topic.publish(*given)
    monkeypatch.setattr("skyheed.broker.sinks.load", lambda *_: Clumsy())
    words = ["forward", "--config", settings(tmp_path, topic, "webhook", url="http://127.0.0.1:9"), "--to", "webhook"]
    shown = CliRunner().invoke(skyheed, [*words, "--topic", topic.name, "--dry-run"])
    assert shown.exit_code == 0, shown.output
    bad = [r for r in given if r.object_id[-1] in "12"]
    assert len(bad) == 2
    ran = CliRunner().invoke(skyheed, [*words, "--topic", topic.name, "--drain"])
    assert ran.exit_code == 0, ran.output
    assert "read=5 delivered=3 filtered=0 refused=2" in ran.output
    assert {r.object_id for r in refused_of(topic, "webhook")} == {r.object_id for r in bad}


def test_each_payload_is_tried_alone() -> None:
    answers = _send(Clumsy(), [{"object_id": f"o{n}"} for n in range(4)])
    assert [a.outcome for a in answers] == ["delivered", "delivered", "refused", "delivered"]
    assert answers[2].words == "an internal error: ZeroDivisionError"


# --- FASTDB, which reads alert packets again --------------------------------------------------------------------------


def container(number: int, change: Callable[[dict[str, Any]], object], codec: str = "null") -> bytes:
    """An alert whose schema has one more field."""
    schema = json.loads(json.dumps(ALERT))
    value: dict[str, Any] = {"diaSourceId": number, "diaSource": {"diaSourceId": number, "psfFlux": 1.0}}
    value |= dict.fromkeys(("cutoutDifference", "cutoutScience", "cutoutTemplate"))
    change(schema | {"value": value})
    out = io.BytesIO()
    fastavro.writer(out, fastavro.parse_schema(schema, named_schemas={}), [value], codec=codec)
    return out.getvalue()


def bomb(number: int) -> bytes:
    def change(parts: dict[str, Any]) -> None:
        parts["value"]["cutoutScience"] = bytes(200 * 2**20)

    return container(number, change, "deflate")


def empty_items(number: int) -> bytes:
    """Two hundred million items of no bytes, in one varint."""

    def change(parts: dict[str, Any]) -> None:
        parts["fields"].append({"name": "many", "type": {"type": "array", "items": "null"}})
        parts["value"]["many"] = [None] * 5

    packet = container(number, change)
    at = packet.rindex(b"\x0a\x00")  # five items, and the end of the array
    size_at = packet.index(packet[-16:]) + 16  # the header's sync, then count and size of the block
    longer = packet[:at] + b"\x80\x88\xde\xbe\x01" + packet[at + 1 :]
    head, rest = longer[: size_at + 1], longer[size_at + 1 :]
    size, used = 0, 0
    while True:
        size |= (rest[used] & 0x7F) << 7 * used
        used += 1
        if rest[used - 1] < 0x80:
            break
    size = (size >> 1) + 4
    coded, z = bytearray(), size << 1
    while z > 0x7F:
        coded.append(z & 0x7F | 0x80)
        z >>= 7
    return head + bytes([*coded, z]) + rest[used:]


@pytest.mark.kafka
@pytest.mark.skipif(not HOME, reason=NEEDS_APACHE)
@pytest.mark.parametrize("harm", [bomb, empty_items, lambda n: alert(n)[:-40], lambda n: b"Obj\x01" + b"\xff" * 50])
def test_a_packet_that_ingest_sets_aside_is_not_read_by_fastavro(
    kafka: embedded.Server, harm: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream(kafka)
    good, bad = alert(1), harm(2)
    times = stream.publish([bad, good])
    servers = stream.options["bootstrap.servers"]
    with closing(Fastdb({"servers": servers, "topic": stream.there, "alert_topics": stream.alerts})) as sink:
        payloads = [sink.payload(answer(n, times[packet])) for n, packet in ((1, good), (2, bad))]
        payloads += [sink.payload(answer(3, -1))]
        began = time.process_time()
        answers = sink.send([payload for payload in payloads if payload])
        assert time.process_time() - began < 5
    assert [a.outcome for a in answers] == ["delivered", "refused", "refused"]
