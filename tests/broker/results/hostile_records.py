"""Messages on a topic of classifications that cost more than they weigh.

Run as a program it decodes each in turn and prints, as JSON, how each ended, its seconds, and the peak of memory (MiB).
"""

import io
import json
import resource
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

import fastavro
from packet_tools import zigzag

from skyheed.broker.errors import StreamError
from skyheed.broker.results import formats
from skyheed.broker.results import record as records

SYNC = bytes(range(16))


def sized(data: bytes) -> bytes:
    return zigzag(len(data)) + data


def header(schema: str, codec: str = "null") -> bytes:
    entries = {b"avro.schema": schema.encode(), b"avro.codec": codec.encode()}
    return b"Obj\x01" + zigzag(2) + b"".join(sized(k) + sized(v) for k, v in entries.items()) + b"\0" + SYNC


def container(schema: str, datum: bytes, count: int = 1, codec: str = "null") -> bytes:
    return header(schema, codec) + zigzag(count) + sized(datum) + SYNC


def bomb() -> bytes:
    """700 MiB in 715 kB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = b"".join(packer.compress(bytes(1 << 20)) for _ in range(700)) + packer.flush()
    return container(formats.schema_text(), block, codec="deflate")


def bombs_one_behind_another() -> bytes:
    """Blocks that hold no record, each of 8 MiB unpacked."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(8 << 20)) + packer.flush()
    return header(formats.schema_text(), "deflate") + (zigzag(0) + sized(block) + SYNC) * 100


def five_blocks_of_two_mib() -> bytes:
    """Each below what a survey's container may hold, each with a record."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(2 << 20)) + packer.flush()
    return header(formats.schema_text(), "deflate") + (zigzag(1) + sized(block) + SYNC) * 5


def one_block_of_two_mib() -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return container(formats.schema_text(), packer.compress(bytes(2 << 20)) + packer.flush(), codec="deflate")


def more(*fields: dict[str, Any], first: bool = True) -> str:
    """Our schema with fields more, in front of ours."""
    schema = json.loads(formats.schema_text())
    schema["fields"] = [*fields, *schema["fields"]] if first else [*schema["fields"], *fields]
    return json.dumps(schema)


def nothing_for_ever() -> bytes:
    """An array of 2^60 items of no bytes."""
    return container(more({"name": "x", "type": {"type": "array", "items": "null"}}), zigzag(2**60) + b"\0")


def nothing_in_a_record() -> bytes:
    """The same of a record whose fields take no bytes, in a union."""
    empty = {"type": "record", "name": "E", "fields": [{"name": "n", "type": "null"}, {"name": "f", "type": {
        "type": "fixed", "name": "F", "size": 0}}]}  # fmt: skip
    return container(
        more({"name": "x", "type": ["null", {"type": "array", "items": empty}]}), b"\x02" + zigzag(2**60) + b"\0"
    )


def nothing_where_ours_are() -> bytes:
    """The same in place of `sources`."""
    schema = json.loads(formats.schema_text())
    for field in schema["fields"]:
        if field["name"] == "sources":
            field["type"] = {"type": "array", "items": "null"}
    return container(json.dumps(schema), zigzag(2**60) + b"\0" * 500)


def a_million_deep() -> bytes:
    """A list that holds itself a million times."""
    chain = {"type": "record", "name": "L", "fields": [{"name": "next", "type": ["null", "L"]}]}
    return container(more({"name": "x", "type": chain}), b"\x02" * 1_000_000 + b"\0")


def deep_schema() -> bytes:
    return container('{"type":"array","items":' * 10_000 + '"null"' + "}" * 10_000, b"")


def wide_schema() -> bytes:
    """366 kB of records, each of which holds the next."""
    chain: dict[str, Any] = {"type": "record", "name": "R0", "fields": [{"name": "v", "type": "int"}]}
    fields = [{"name": "f0", "type": chain}]
    fields += [
        {"name": f"f{n}", "type": {"type": "record", "name": f"R{n}", "fields": [
            {"name": "a", "type": f"R{n - 1}"}, {"name": "b", "type": f"R{n - 1}"}]}} for n in range(1, 4_000)
    ]  # fmt: skip
    return container(json.dumps({"type": "record", "name": "T", "fields": fields}), b"")


def twice_as_many_each_time() -> bytes:
    """60 records, each with two fields of the one before: 2^60 values of no bytes."""
    fields = [{"name": "f0", "type": {"type": "record", "name": "R0", "fields": []}}]
    fields += [
        {"name": f"f{n}", "type": {"type": "record", "name": f"R{n}", "fields": [
            {"name": "a", "type": f"R{n - 1}"}, {"name": "b", "type": f"R{n - 1}"}]}} for n in range(1, 60)
    ]  # fmt: skip
    return container(more(*fields), b"")


def many_values_a_byte() -> bytes:
    """An array of a million items, each a record of 900 nulls."""
    nothing = {"type": "record", "name": "N", "fields": [{"name": f"n{n}", "type": "null"} for n in range(900)]}
    return container(
        more({"name": "x", "type": {"type": "array", "items": ["null", nothing]}}),
        zigzag(900_000) + b"\x02" * 900_000 + b"\0",
    )


def many_values_a_key() -> bytes:
    """The same with keys of no bytes in a map."""
    nothing = {"type": "record", "name": "N", "fields": [{"name": f"n{n}", "type": "null"} for n in range(900)]}
    return container(
        more({"name": "x", "type": {"type": "map", "values": nothing}}), zigzag(900_000) + b"\0" * 900_000 + b"\0"
    )


def a_decimal_of_a_million_digits() -> bytes:
    kind = {"type": "bytes", "logicalType": "decimal", "precision": 10**9, "scale": 10**9}
    return container(more({"name": "reason", "type": kind}), sized(b"\x7f" * 900_000))


def many_entries() -> bytes:
    return b"Obj\x01" + zigzag(2**62) + b"\0" * 1000


def too_large() -> bytes:
    return formats.encode(_record())[:-16] + bytes(2**20)


def a_later_time() -> bytes:
    """A time that no calendar has, in a schema that says it is one."""
    record = _record().to_dict()
    record["kafka_ms"] = 2**62
    out = io.BytesIO()
    schema = json.loads(formats.schema_text())
    plain = json.loads(json.dumps(schema).replace('"logicalType": "timestamp-millis"', '"x": ""'))
    fastavro.schemaless_writer(out, fastavro.parse_schema(plain, named_schemas={}), record)
    return container(json.dumps(schema), out.getvalue())


def many_probabilities() -> bytes:
    """170,000 classes in a MiB: as much as may come."""
    record = _record().to_dict()
    record["probabilities"] = [{"name": "", "taxonomy_id": 0, "probability": 0.5}] * 170_000
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(json.loads(formats.schema_text()), named_schemas={}), record)
    return container(formats.schema_text(), out.getvalue())


def _record() -> records.Classification:
    from test_record import classification

    return classification()


HOSTILE: dict[str, Callable[[], bytes]] = {
    make.__name__: make
    for make in (
        bomb, bombs_one_behind_another, five_blocks_of_two_mib, one_block_of_two_mib, nothing_for_ever,
        nothing_in_a_record, nothing_where_ours_are, a_million_deep,
        deep_schema, wide_schema, twice_as_many_each_time,
        many_values_a_byte, many_values_a_key, a_decimal_of_a_million_digits, many_entries, too_large,
    )
}  # fmt: skip
SOUND: dict[str, Callable[[], bytes]] = {make.__name__: make for make in (a_later_time, many_probabilities)}


def main() -> None:
    messages = {name: make() for name, make in (HOSTILE | SOUND).items()}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ends: dict[str, Any] = {}
    for name, message in messages.items():
        began = time.process_time()
        try:
            formats.decode(message)
            end = "taken"
        except StreamError as error:
            end = str(error)
        ends[name] = end, time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"ends": ends, "grown_mib": (peak - before) / 1024}))


if __name__ == "__main__":
    sys.exit(main())
