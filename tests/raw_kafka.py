"""Messages that no client library would write: a Kafka producer of one request, bytes as given."""

import socket
import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache

from packet_tools import zigzag

Headers = Sequence[tuple[bytes, bytes | None]]
Record = tuple[bytes | None, bytes | None, Headers]  # key, value, headers


def produce(address: str, topic: str, records: Iterable[Record], partition: int = 0) -> None:
    """Write one batch of records to a partition and wait for the leader's word."""
    batch = _batch(list(records))
    name = topic.encode()
    body = struct.pack(">hhii", -1, -1, 10_000, 1) + struct.pack(">h", len(name)) + name
    body += struct.pack(">iii", 1, partition, len(batch)) + batch
    head = struct.pack(">hhih", 0, 3, 7, 4) + b"test"  # Produce, version 3
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(struct.pack(">i", len(head + body)) + head + body)
        size = struct.unpack(">i", _read(connection, 4))[0]
        answer = _read(connection, size)
    # correlation, topics, name, partitions, number, error
    code = struct.unpack_from(">h", answer, 4 + 4 + 2 + len(name) + 4 + 4)[0]
    assert code == 0, f"the broker answers with error {code}"


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        assert more, "the broker hung up"
        data += more
    return data


def _batch(records: Sequence[Record]) -> bytes:
    body = b"".join(_record(n, *record) for n, record in enumerate(records))
    times = struct.pack(">qq", 1_700_000_000_000, 1_700_000_000_000)
    tail = struct.pack(">hi", 0, len(records) - 1) + times + struct.pack(">qhii", -1, -1, -1, len(records)) + body
    checked = struct.pack(">ibI", 0, 2, _crc32c(tail)) + tail
    return struct.pack(">qi", 0, len(checked)) + checked


def _record(number: int, key: bytes | None, value: bytes | None, headers: Headers) -> bytes:
    body = b"\0" + zigzag(0) + zigzag(number) + _sized(key) + _sized(value) + zigzag(len(headers))
    body += b"".join(_sized(name) + _sized(content) for name, content in headers)
    return zigzag(len(body)) + body


def _sized(data: bytes | None) -> bytes:
    return zigzag(-1) if data is None else zigzag(len(data)) + data


def _crc32c(data: bytes) -> int:
    table, crc = _table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@lru_cache(1)
def _table() -> list[int]:
    made = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        made.append(value)
    return made
