"""DESC's FASTDB: BrokerMessage v10, the LSST packet without its stamps and what we say of it.

The schema is share/avsc/fastdb.v10_0_0.BrokerMessage.avsc of LSSTDESC/FASTDB. Our records do not hold the packet. It is
read again from the alert topic, by the Kafka time of the alert that a classification answers: the classifications of a
visit are next to each other in both topics, so that a batch costs one pass over the seconds that it covers. Keeping
the newest packet of each object instead would cost a few kB of Redis an object for every user, FASTDB's or not.
"""

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import fastavro
from fastavro.schema import parse_schema

from skyheed.broker.errors import PacketError
from skyheed.broker.kafka.client import Publisher
from skyheed.broker.kafka.lookup import Lookup
from skyheed.broker.packets.avro_schema import Schema
from skyheed.broker.packets.container import MAGIC, Decoder
from skyheed.broker.plugins import required, take
from skyheed.broker.registry.schemas import SchemaSource
from skyheed.broker.results.record import BROKER_NAME, Classification
from skyheed.broker.sinks import DELIVERED, Answer, Payload, refused
from skyheed.broker.sinks.hop import kafka_options

OPTIONS = {
    "servers": "", "topic": "", "user": "", "password": "", "security": "PLAINTEXT", "mechanism": "SCRAM-SHA-512",
    "ca_file": "", "alert_servers": "", "alert_topics": "", "alert_user": "", "alert_password": "",
    "alert_security": "", "alert_mechanism": "", "alert_ca_file": "", "registry_url": "", "schemas": "",
}  # fmt: skip
KAFKA = ("servers", "user", "password", "security", "mechanism", "ca_file")
SYNC_BYTES = 16
SCHEMAS = 20  # that are kept
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


NUMBER_ALONE = {
    "type": "record", "name": "alert", "fields": [{"name": "diaSourceId", "type": ["null", "long"], "default": None}],
}  # fmt: skip


@dataclass(frozen=True)
class Form:
    """The name of a schema of packets, what reads all of their fields within bounds, and FASTDB's schema for them."""

    name: str
    whole: Decoder
    message: Any

    @classmethod
    def of(cls, schema: dict[str, Any], schemas: SchemaSource) -> "Form":
        """Of a writer schema as JSON data."""
        full = parse_schema(schema, named_schemas={})
        assert isinstance(full, dict)
        return cls(full["name"], Decoder(schema, schemas=schemas), message_schema(schema))


Packet = tuple[Form, dict[str, Any]]


class Fastdb:
    """`skyheed forward --to fastdb`.

    Options: servers, topic (where FASTDB reads; user, password, security, mechanism, ca_file), alert_topics (where the
    packets are, with commas between), alert_servers and so on (those of FASTDB where there is no alert_servers),
    registry_url or schemas (a directory) for the packets' schemas; those of lsst-alert-packet otherwise.
    """

    batch = 500
    rate = 0.0

    def __init__(self, options: Mapping[str, str]) -> None:
        given = take(options, OPTIONS, "sinks.fastdb")
        self._topic = required(given, "topic", "sinks.fastdb", "the topic that FASTDB reads")
        required(given, "servers", "sinks.fastdb", "the Kafka that FASTDB reads")
        topics = required(given, "alert_topics", "sinks.fastdb", "the topics that the alerts come from")
        self._forms: dict[str | int, Form] = {}
        self._schemas = SchemaSource(url=given["registry_url"], directory=given["schemas"])
        self._bounded = Decoder(NUMBER_ALONE, schemas=self._schemas)
        self._publisher = Publisher(kafka_options(given, "sinks.fastdb"))
        self._lookup = Lookup(alert_options(given), [name.strip() for name in topics.split(",")])

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
            elif not packet[0].name.startswith(VERSION):
                answers[place] = refused(f"the alert has the schema {packet[0].name}, FASTDB's message takes {VERSION}")
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
        self._lookup.close()

    def _packets(self, payloads: Sequence[Payload]) -> dict[int, Packet]:
        """The packets of these alerts, as far as they are still there."""
        wanted = {payload["diaSourceId"] for payload in payloads}
        times = [payload["kafka_ms"] for payload in payloads if payload["kafka_ms"] >= 0]
        found: dict[int, Packet] = {}
        if not times:
            return found
        for message in self._lookup.between(min(times), max(times)):
            packet = message.value() or b""
            for schema, record in self._records(packet) if self._numbers(packet) & wanted else ():
                if record.get("diaSourceId") in wanted:
                    found[record["diaSourceId"]] = schema, record
            if len(found) == len(wanted):
                break
        return found

    def _numbers(self, packet: bytes) -> set[int]:
        """The alerts in a packet, read within the bounds of ingest (fastavro has none); none if it is damaged."""
        try:
            return {record["diaSourceId"] for record in self._bounded.decode(packet)}
        except PacketError:
            return set()

    def _records(self, packet: bytes) -> Iterator[Packet]:
        """The records of a packet with their schema; none of one that cannot be read, which ingest has set aside."""
        try:
            form = self._read_with(_writer_of(packet))
            for record in form.whole.decode(packet):
                yield form, record
        except (PacketError, ValueError, EOFError, LookupError, TypeError):
            return

    def _read_with(self, writer: str | int) -> "Form":
        """The schema of a text, or of a number in the registry."""
        if writer not in self._forms:
            schema = Schema(writer) if isinstance(writer, str) else self._schemas.get(writer)
            if len(self._forms) >= SCHEMAS:
                self._forms.clear()
            self._forms[writer] = Form.of(schema.as_json(), self._schemas)
        return self._forms[writer]


def _writer_of(packet: bytes) -> str | int:
    """The text of a packet's schema, or its number in the registry."""
    if packet.startswith(MAGIC):
        return str(fastavro.reader(io.BytesIO(packet)).metadata["avro.schema"])
    return int.from_bytes(packet[1:5], "big")


def alert_options(given: Mapping[str, str]) -> dict[str, str]:
    """librdkafka's options for the Kafka that the alerts are on."""
    if not given["alert_servers"]:
        return kafka_options(given, "sinks.fastdb")
    apart = {name: given[f"alert_{name}"] or OPTIONS[name] for name in KAFKA}
    return kafka_options(apart, "sinks.fastdb", "alert_")


def classifications(record: Classification) -> list[dict[str, Any]]:
    """Class ids and probabilities that sum to 1; Residual takes what rounding or an unknown class leaves."""
    found = [{"classId": p.taxonomy_id, "probability": p.probability} for p in record.probabilities]
    left = 1.0 - sum(p.probability for p in record.probabilities)
    return [*found, {"classId": RESIDUAL, "probability": left}] if left > ROUNDING else found


def encode(schema: Form, record: Mapping[str, Any], payload: Payload) -> bytes:
    """A container of one message: the packet without its stamps, and our part; a repeat has the same bytes."""
    out = io.BytesIO()
    ours = {field["name"]: payload[field["name"]] for field in OUR_FIELDS}
    mark = hashlib.blake2b(repr((record["diaSourceId"], ours)).encode(), digest_size=SYNC_BYTES).digest()
    whole = {**record, **dict.fromkeys(CUTOUTS), **ours}
    fastavro.writer(out, schema.message, [whole], sync_marker=mark)
    return out.getvalue()


def message_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """FASTDB's schema for packets of this one: its fields, followed by ours."""
    fields: list[dict[str, Any]] = [
        {**field, **({"default": None} if field["name"] in CUTOUTS else {})} for field in schema["fields"]
    ]
    name = f"fastdb.{VERSION.removeprefix('lsst.')}_0.BrokerMessage"
    found: Any = parse_schema({"type": "record", "name": name, "fields": [*fields, *OUR_FIELDS]}, named_schemas={})
    assert isinstance(found, dict)
    return found
