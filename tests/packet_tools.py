"""Packets as brokers send them."""

import struct


def confluent_payload(schema_id: int, body: bytes) -> bytes:
    """One record in Confluent's wire form: byte 0, the schema's number, and the record in Avro's binary encoding."""
    return struct.pack(">bI", 0, schema_id) + body
