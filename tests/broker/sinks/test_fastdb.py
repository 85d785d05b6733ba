"""`skyheed forward --to fastdb`: LSST packets found again and sent with our classifications."""

import io
import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import fastavro
import pytest
import real_data
from server_tools import HOME, NEEDS_APACHE
from test_record import classification
from test_subscribe import QUICK

from skyheed.broker.errors import ConfigError, ServiceError
from skyheed.broker.kafka.client import BatchConsumer, Publisher, ensure_topics
from skyheed.broker.kafka.lookup import Lookup
from skyheed.broker.local import embedded
from skyheed.broker.registry.schemas import SchemaSource
from skyheed.broker.results.record import Classification
from skyheed.broker.sinks.fastdb import OPTIONS, Fastdb, alert_options, classifications, encode

pytestmark = pytest.mark.kafka
SOURCE = {
    "type": "record", "name": "diaSource", "namespace": "lsst.v10_0",
    "fields": [
        {"name": "diaSourceId", "type": "long"}, {"name": "psfFlux", "type": ["null", "float"], "default": None},
    ],
}  # fmt: skip
ALERT = {
    "type": "record", "name": "alert", "namespace": "lsst.v10_0",
    "fields": [
        {"name": "diaSourceId", "type": "long"}, {"name": "diaSource", "type": SOURCE},
        {"name": "prvDiaSources", "type": ["null", {"type": "array", "items": "diaSource"}], "default": None},
        *({"name": f"cutout{kind}", "type": ["null", "bytes"]} for kind in ("Difference", "Science", "Template")),
    ],
}  # fmt: skip


def alert(number: int, version: str = "v10_0") -> bytes:
    source = {"diaSourceId": number, "psfFlux": 1000.0 + number}
    record = {
        "diaSourceId": number, "diaSource": source, "prvDiaSources": [{**source, "diaSourceId": number - 1}],
        "cutoutDifference": bytes(9000), "cutoutScience": bytes(9000), "cutoutTemplate": None,
    }  # fmt: skip
    text = json.dumps(ALERT).replace("v10_0", version)
    schema = fastavro.parse_schema(json.loads(text), named_schemas={})
    out = io.BytesIO()
    fastavro.writer(out, schema, [record])
    return out.getvalue()


def answer(number: int, kafka_ms: int, **other: Any) -> Classification:
    return replace(classification(**other), triggering_source_id=number, kafka_ms=kafka_ms, model="vector")


class Stream:
    """A topic of alerts and one for FASTDB, with the Kafka time of every alert."""

    def __init__(self, server: embedded.Server) -> None:
        self.options = {"bootstrap.servers": server.address, **QUICK}
        mark = uuid.uuid4().hex[:8]
        self.alerts, self.there = f"alerts-{mark}", f"fastdb-{mark}"
        ensure_topics(self.options, {self.alerts: {}, self.there: {}}, 3, 1)

    def publish(self, packets: list[bytes]) -> dict[bytes, int]:
        with Publisher(self.options) as publisher:
            for packet in packets:  # one by one, so that their times differ
                publisher.publish_all([(self.alerts, None, packet, None)])
        return {message.value() or b"": message.timestamp()[1] for message in self.read(self.alerts)}

    def read(self, topic: str) -> list[Any]:
        with BatchConsumer(self.options, [topic], None, drain=True) as consumer:
            found: list[Any] = []
            while not (consumer.drained() and found):
                found += consumer.consume(100, 0.3)
                if not found and consumer.drained():
                    break
            return found


@pytest.fixture
def stream(kafka: embedded.Server) -> Stream:
    if not HOME:
        pytest.skip(NEEDS_APACHE)  # the embedded one finds no message by its time
    return Stream(kafka)


@pytest.fixture
def sink(stream: Stream) -> Iterator[Callable[[], Fastdb]]:
    made: list[Fastdb] = []

    def make() -> Fastdb:
        servers = stream.options["bootstrap.servers"]
        made.append(Fastdb({"servers": servers, "topic": stream.there, "alert_topics": stream.alerts}))
        return made[0]

    yield make
    for one in made:
        one.close()


def test_the_packet_goes_without_its_stamps_and_with_our_classes(stream: Stream, sink: Callable[[], Fastdb]) -> None:
    packets = {n: alert(n) for n in range(5)}
    times = stream.publish(list(packets.values()))
    to = sink()
    payloads = [to.payload(answer(n, times[packets[n]])) for n in (1, 3)]
    assert [one.outcome for one in to.send([p for p in payloads if p])] == ["delivered", "delivered"]
    found = [next(iter(fastavro.reader(io.BytesIO(message.value())))) for message in stream.read(stream.there)]
    assert sorted(record["diaSourceId"] for record in found) == [1, 3]
    for record in found:
        assert record["diaSource"]["psfFlux"] == 1000.0 + record["diaSourceId"]
        assert [record[f"cutout{kind}"] for kind in ("Difference", "Science", "Template")] == [None] * 3
        assert (record["brokerName"], record["classifierName"]) == ("skyheed", "vector")
        assert sum(one["probability"] for one in record["classifications"]) == pytest.approx(1.0)


def test_what_is_gone_or_of_another_version_is_refused(stream: Stream, sink: Callable[[], Fastdb]) -> None:
    old = alert(7, "v9_0")
    times = stream.publish([old])
    to = sink()
    payloads = [to.payload(answer(7, times[old])), to.payload(answer(8, times[old]))]
    answers = to.send([p for p in payloads if p])
    assert [one.outcome for one in answers] == ["refused", "refused"]
    assert "lsst.v9_0" in answers[0].words
    assert "in none of the alert topics" in answers[1].words
    assert to.payload(classification(answer=None, reason="too_few_stamps")) is None


@pytest.mark.skipif(bool(HOME), reason="needs the embedded Kafka")
def test_a_broker_that_finds_nothing_by_time_is_no_reason_to_refuse(kafka: embedded.Server) -> None:
    there = Stream(kafka)
    there.publish([alert(1)])
    given = {"servers": there.options["bootstrap.servers"], "topic": there.there, "alert_topics": there.alerts}
    with closing(Fastdb(given)) as to, pytest.raises(ServiceError, match="by their time, as Apache Kafka does"):
        to.send([p for p in [to.payload(answer(1, 1_700_000_000_000))] if p])


def test_residual_takes_what_is_left() -> None:
    whole = classifications(classification())
    assert sum(one["probability"] for one in whole) == pytest.approx(1.0)
    assert 200 not in {one["classId"] for one in whole}
    record = classification()
    less = replace(record, probabilities=record.probabilities[:2])
    assert classifications(less)[-1] == {"classId": 200, "probability": pytest.approx(0.3)}


def test_only_messages_of_the_span_are_read(stream: Stream) -> None:
    packets = [alert(n) for n in range(6)]
    times = stream.publish(packets)
    past = Lookup(stream.options, [stream.alerts])
    span = sorted(times[packet] for packet in packets)[1:4]
    found = [message.timestamp()[1] for message in past.between(span[0], span[-1])]
    assert sorted(found) == [t for t in sorted(times.values()) if span[0] <= t <= span[-1]]
    assert list(past.between(span[-1] + 10**9, span[-1] + 2 * 10**9)) == []
    past.close()


def test_real_packets_fit_the_message() -> None:
    pytest.importorskip("lsst.alert.packet", reason="package lsst-alert-packet is not installed")
    files = [path for path in real_data.rubin_files() if path.name.startswith("v10_")]
    to = Fastdb.__new__(Fastdb)
    to._schemas, to._forms = SchemaSource(), {}
    for path in files:
        [(schema, record)] = to._records(path.read_bytes())
        ours = {"brokerName": "skyheed", "classifierName": "m", "classifierVersion": "1", "classifications": []}
        [sent] = fastavro.reader(io.BytesIO(encode(schema, record, ours)))
        assert isinstance(sent, dict)
        assert sent["diaSource"] == record["diaSource"]
        assert sent["cutoutScience"] is None
        assert encode(schema, record, ours) == encode(schema, record, ours)


def test_a_topic_of_alerts_that_is_not_there_is_no_reason_to_refuse(stream: Stream) -> None:
    """A wrong name must stop the program, not send every classification to the topic of refusals."""
    servers = stream.options["bootstrap.servers"]
    to = Fastdb({"servers": servers, "topic": stream.there, "alert_topics": "no-such-topic"})
    payload = to.payload(answer(7, 1_700_000_000_000))
    assert payload
    with pytest.raises(ServiceError, match="no-such-topic"):
        to.send([payload])
    to.close()


def test_the_kafka_of_the_alerts_may_be_another_one() -> None:
    given = {**OPTIONS, "servers": "there:9092", "alert_servers": "here:9093", "alert_security": "SASL_SSL"}
    with pytest.raises(ConfigError, match=r"sinks\.fastdb\.alert_user"):
        alert_options(given)
    found = alert_options({**given, "alert_user": "me", "alert_password": "x", "alert_ca_file": "/ca.pem"})
    assert found["bootstrap.servers"] == "here:9093"
    assert (found["sasl.username"], found["sasl.password"], found["ssl.ca.location"]) == ("me", "x", "/ca.pem")
    assert alert_options({**OPTIONS, "servers": "there:9092"})["bootstrap.servers"] == "there:9092"
