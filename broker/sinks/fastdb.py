"""DESC's FASTDB: BrokerMessage v10, the LSST packet without its stamps and what we say of it.

The schema is share/avsc/fastdb.v10_0_0.BrokerMessage.avsc of LSSTDESC/FASTDB. Our records do not hold the packet. It is
read again from the alert topic, by the Kafka time of the alert that a classification answers: the classifications of a
visit stand next to each other in both topics, so that a batch costs one pass over the seconds that it covers. Keeping
the newest packet of each object instead would cost a few kB of Redis an object for every user, FASTDB's or not.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import fastavro
from fastavro.schema import parse_schema

from skyheed.broker.errors import PacketError
from skyheed.broker.kafka.client import Publisher
from skyheed.broker.kafka.past import Past
from skyheed.broker.options import required, take
from skyheed.broker.packets.avro_schema import Schema
from skyheed.broker.registry.schemas import SchemaSource
from skyheed.broker.results.record import BROKER_NAME, Classification
from skyheed.broker.sinks import DELIVERED, Answer, Payload, refused
from skyheed.broker.sinks.hop import kafka_options

OPTIONS = {
    "servers": "", "topic": "", "user": "", "password": "", "security": "PLAINTEXT", "mechanism": "SCRAM-SHA-512",
    "alert_servers": "", "alert_topics": "", "registry_url": "", "schemas": "",
}  # fmt: skip
RESIDUAL = 200  # ELAsTiCC's class for what the others leave
VERSION = "lsst.v10_0"  # of the packets that a BrokerMessage v10 can hold
CUTOUTS = ("cutoutDifference", "cutoutScience", "cutoutTemplate")
ROUNDING = 1e-6
CLASS_RECORD = {
    "type": "record", "name": "classificationDict",
    "fields": [{"name": "classId", "type": "int"}, {"name": "probability", "type": "float"}],
}  # fmt: skip
OUR_FIELDS: list[dict[str, Any]] = [
    *({"name": name, "type": "string"} for name in ("brokerName", "classifierName", "classifierVersion")),
    {"name": "classifications", "type": {"type": "array", "items": CLASS_RECORD}},
]


class Fastdb:
    """`skyheed forward --to fastdb`.

    Options: servers, topic (where FASTDB reads; user, password, security, mechanism), alert_topics (where the packets
    are, with commas between), alert_servers (`servers` otherwise), registry_url or schemas (a directory) for the
    packets' schemas; those of lsst-alert-packet otherwise.
    """

    batch = 500
    rate = 0.0

    def __init__(self, options: Mapping[str, str]) -> None:
        given = take(options, OPTIONS, "sinks.fastdb")
        self._topic = required(given, "topic", "sinks.fastdb", "the topic that FASTDB reads")
        servers = required(given, "servers", "sinks.fastdb", "the Kafka that FASTDB reads")
        topics = required(given, "alert_topics", "sinks.fastdb", "the topics that the alerts come from")
        self._schemas = SchemaSource(url=given["registry_url"], directory=given["schemas"])
        self._publisher = Publisher(kafka_options(given, "sinks.fastdb"))
        alerts = {"bootstrap.servers": given["alert_servers"] or servers}
        self._past = Past(alerts, [name.strip() for name in topics.split(",")])

    def payload(self, record: Classification) -> Payload | None:
        """Our part of the message, and by what its packet is found."""
        if not record.probabilities:
            return None
        return {
            "diaSourceId": record.triggering_source_id,
            "kafka_ms": record.kafka_ms,
            "brokerName": BROKER_NAME,
            "classifierName": record.model or record.provenance.model_name,
            "classifierVersion": f"{record.provenance.model_version} {record.provenance.weights_digest[:12]}",
            "classifications": classifications(record),
        }

    def send(self, payloads: Sequence[Payload]) -> list[Answer]:
        packets = self._packets(payloads)
        answers: list[Answer | None] = [None] * len(payloads)
        messages = []
        for place, payload in enumerate(payloads):
            packet = packets.get(payload["diaSourceId"])
            if packet is None:
                answers[place] = refused(f"alert {payload['diaSourceId']} is in none of the alert topics any more")
            elif not packet[0]["name"].startswith(VERSION):
                answers[place] = refused(
                    f"the alert has the schema {packet[0]['name']}, FASTDB's message takes {VERSION}"
                )
            else:
                messages.append(
                    (place, (self._topic, str(payload["diaSourceId"]).encode(), encode(*packet, payload), None))
                )
        errors = self._publisher.publish([message for _, message in messages])
        for (place, _), error in zip(messages, errors, strict=True):
            answers[place] = DELIVERED if error is None else refused(error.str())
        return [answer for answer in answers if answer is not None]

    def close(self) -> None:
        self._publisher.close()
        self._past.close()

    def _packets(self, payloads: Sequence[Payload]) -> dict[int, tuple[dict[str, Any], dict[str, Any]]]:
        """(schema, record) of the packets of these alerts, as far as they are still there."""
        wanted = {payload["diaSourceId"] for payload in payloads}
        times = [payload["kafka_ms"] for payload in payloads]
        found = {}
        for message in self._past.between(min(times), max(times)):
            for schema, record in self._records(message.value() or b""):
                if record.get("diaSourceId") in wanted:
                    found[record["diaSourceId"]] = schema, record
            if len(found) == len(wanted):
                break
        return found

    def _records(self, packet: bytes) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """The records of a packet with their schema; none of one that cannot be read, which ingest has set aside."""
        record: Any
        try:
            if packet.startswith(b"Obj\x01"):
                reader = fastavro.reader(io.BytesIO(packet))
                schema = Schema(reader.metadata["avro.schema"]).as_json()
                for record in reader:
                    yield schema, record
            elif packet.startswith(b"\x00"):
                schema = self._schemas.get(int.from_bytes(packet[1:5], "big")).as_json()
                parsed = parse_schema(schema, named_schemas={})
                record = fastavro.schemaless_reader(io.BytesIO(packet[5:]), parsed, None)
                yield schema, record
        except (PacketError, ValueError, EOFError, KeyError, IndexError, TypeError):
            return


def classifications(record: Classification) -> list[dict[str, Any]]:
    """Class ids and probabilities that sum to 1; Residual takes what rounding or a class of nobody leaves."""
    found = [{"classId": p.taxonomy_id, "probability": p.probability} for p in record.probabilities]
    left = 1.0 - sum(p.probability for p in record.probabilities)
    return [*found, {"classId": RESIDUAL, "probability": left}] if left > ROUNDING else found


def encode(schema: Mapping[str, Any], record: Mapping[str, Any], payload: Payload) -> bytes:
    """A container of one message: the packet without its stamps, and our part."""
    out = io.BytesIO()
    ours = {field["name"]: payload[field["name"]] for field in OUR_FIELDS}
    fastavro.writer(out, message_schema(schema), [{**record, **dict.fromkeys(CUTOUTS), **ours}])
    return out.getvalue()


def message_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """FASTDB's schema for packets of this one: its fields, and ours behind them."""
    fields: list[dict[str, Any]] = [
        {**field, **({"default": None} if field["name"] in CUTOUTS else {})} for field in schema["fields"]
    ]
    name = f"fastdb.{VERSION.removeprefix('lsst.')}_0.BrokerMessage"
    found: Any = parse_schema({"type": "record", "name": name, "fields": [*fields, *OUR_FIELDS]}, named_schemas={})
    assert isinstance(found, dict)
    return found
