"""Packets and numbers as brokers send them, written without the code that is tested."""

import struct


def zigzag(number: int) -> bytes:
    """A number as Avro and Kafka write it."""
    number, out = number << 1 if number >= 0 else (-number << 1) - 1, bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def confluent_payload(schema_id: int, body: bytes) -> bytes:
    """One record in Confluent's wire form: byte 0, the schema's number, and the record in Avro's binary encoding."""
    return struct.pack(">bI", 0, schema_id) + body
