"""SCiMMA Hopskotch: publishes records on a topic there, in the form that hop-client reads (Avro container, header
`_format`).

Hopskotch is Kafka with SASL, so skyheed's own producer publishes here, too, with delivery reports, which hop-client's
producer leaves to its callbacks. The header `_id` is derived from the classification, so that a reader can recognise a
repeat.
"""

import struct
import uuid
from collections.abc import Mapping, Sequence

from skyheed.broker.kafka.client import Publisher
from skyheed.broker.plugins import required, take
from skyheed.broker.results import formats
from skyheed.broker.results.record import Classification
from skyheed.broker.sinks import DELIVERED, Answer, Payload, refused

HOP_SERVERS = "kafka.scimma.org:9092"
OPTIONS = {
    "servers": HOP_SERVERS, "topic": "", "user": "", "password": "",
    "security": "SASL_SSL", "mechanism": "SCRAM-SHA-512", "ca_file": "", "sender": "",
}  # fmt: skip


class Hop:
    """`skyheed forward --to hop`.

    Options: topic, user, password (of a Hopskotch credential), servers, security, mechanism, ca_file, sender (header
    `_sender`; the user otherwise).
    """

    batch = 500
    rate = 0.0

    def __init__(self, options: Mapping[str, str]) -> None:
        given = take(options, OPTIONS, "sinks.hop")
        self._topic = required(given, "topic", "sinks.hop", "a topic, such as group.topic")
        self._sender = (given["sender"] or given["user"]).encode()
        self._publisher = Publisher(kafka_options(given, "sinks.hop"))

    def payload(self, record: Classification) -> Payload:
        return record.to_json()

    def send(self, payloads: Sequence[Payload]) -> list[Answer]:
        found = [Classification.from_dict(payload) for payload in payloads]
        messages = [
            (self._topic, record.object_id.encode(), formats.encode(record), self._headers(record)) for record in found
        ]
        errors = self._publisher.publish(messages)
        return [DELIVERED if error is None else refused(error.str()) for error in errors]

    def close(self) -> None:
        self._publisher.close()

    def _headers(self, record: Classification) -> list[tuple[str, bytes]]:
        own = [("_id", message_id(record)), *([("_sender", self._sender)] if self._sender else [])]
        return [*record.headers(), *own]


def message_id(record: Classification) -> bytes:
    """16 bytes, the same for the same classification."""
    name = bytes.fromhex(record.classification_id) + struct.pack(">q", record.revision)
    return uuid.uuid5(uuid.NAMESPACE_OID, name.hex()).bytes


def kafka_options(given: Mapping[str, str], table: str, prefix: str = "") -> dict[str, str]:
    """librdkafka's options from those of a sink's table: servers, security, ca_file, and with SASL
    mechanism, user, password."""
    options = {"bootstrap.servers": given["servers"], "security.protocol": given["security"]}
    if given["ca_file"]:
        options["ssl.ca.location"] = given["ca_file"]
    if given["security"].startswith("SASL"):
        options |= {
            "sasl.mechanism": given["mechanism"],
            "sasl.username": _credential(given, "user", table, prefix, "a user"),
            "sasl.password": _credential(given, "password", table, prefix, "its password"),
        }
    return options


def _credential(given: Mapping[str, str], name: str, table: str, prefix: str, meaning: str) -> str:
    return required({prefix + name: given[name]}, prefix + name, table, meaning)
