"""Arrays that are read: the compiled reader gives what the plain one and fastavro give, of damaged bytes too."""

import io
import json
import random
from typing import Any

import fastavro
import pytest

from skyheed.broker.errors import PacketError, Reason
from skyheed.broker.packets.avro import ITEM_STEPS, MAX_STEPS, Schema, Steps
from skyheed.broker.packets.avro_fast import Credit, RecordReader

ITEM = {
    "type": "record", "name": "item", "fields": [
        {"name": "jd", "type": "double"}, {"name": "name", "type": ["null", "string"]},
        {"name": "fid", "type": ["null", "int"]}, {"name": "sign", "type": ["null", "string"]},
        {"name": "flux", "type": ["null", "float"]}, {"name": "flag", "type": "boolean"},
    ],
}  # fmt: skip
WRITER = {
    "type": "record", "name": "packet", "fields": [
        {"name": "first", "type": "long"}, {"name": "items", "type": ["null", {"type": "array", "items": ITEM}]},
        {"name": "odd", "type": {"type": "map", "values": "item"}}, {"name": "last", "type": "long"},
        {"name": "numbers", "type": {"type": "array", "items": "float"}},
    ],
}  # fmt: skip
ANYTHING = {"type": "fixed", "name": "anything", "size": 0}
WANTED_ITEM = {
    "type": "record", "name": "i", "fields": [
        {"name": "jd", "type": ["null", "double", ANYTHING], "default": None},
        {"name": "fid", "type": ["null", "long", "anything"], "default": None},
        {"name": "sign", "type": ["null", "string"], "default": None},
        {"name": "flux", "type": ["null", "double"], "default": None},
        {"name": "absent", "type": ["null", "double"], "default": None},
    ],
}  # fmt: skip
WANTED = {
    "type": "record", "name": "r", "fields": [
        {"name": "items", "default": None,
         "type": ["null", {"type": "array", "items": ["null", WANTED_ITEM, "anything"]}, "anything"]},
        {"name": "numbers", "default": None, "type": ["null", {"type": "array", "items": ["null", "double"]}]},
        {"name": "last", "type": ["null", "long"], "default": None},
    ],
}  # fmt: skip
Outcome = tuple[Any, int] | Reason


def item(n: int, name: str | None = "a name") -> dict[str, Any]:
    return {"jd": 2.5 * n, "name": name, "fid": n or None, "sign": "t" if n % 2 else None, "flux": n / 4, "flag": True}


def value(items: list[dict[str, Any]] | None, numbers: int = 3) -> dict[str, Any]:
    return {"first": 7, "items": items, "odd": {"key": item(3)}, "last": 9, "numbers": [n / 2 for n in range(numbers)]}


def body(datum: dict[str, Any], writer: Any = WRITER) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, writer, datum)
    return out.getvalue()


def readers(writer: Any = WRITER, wanted: Any = WANTED) -> tuple[RecordReader, RecordReader]:
    made = [RecordReader(Schema(writer), Schema(wanted), compiled=fast) for fast in (True, False)]
    assert made[0]._fast is not None
    return made[0], made[1]


def outcome(reader: RecordReader, data: bytes) -> Outcome:
    try:
        return reader(data, 0, len(data))
    except PacketError as error:
        return error.reason


def projected(items: list[dict[str, Any]] | None, numbers: int = 3) -> dict[str, Any]:
    kept = ("jd", "fid", "sign", "flux")
    taken = None if items is None else [{k: one[k] for k in kept} | {"absent": None} for one in items]
    return {"items": taken, "last": 9, "numbers": [n / 2 for n in range(numbers)]}


@pytest.mark.parametrize("count", [None, 0, 1, 2, 40])
def test_items_as_fastavro_reads_them(count: int | None) -> None:
    items = None if count is None else [item(n, "é" * n) for n in range(count)]
    data = body(value(items))
    for reader in readers():
        assert outcome(reader, data) == (projected(items), len(data))


def test_the_fast_path_is_taken_and_long_strings_leave_it() -> None:
    fast, plain = readers()
    assert fast._fast is not None
    short, long = [item(n) for n in range(5)], [item(1, "x" * 300), item(2)]
    data = body(value(short))
    assert fast._fast(data, 0, len(data), Steps()) == plain(data, 0, len(data))
    data = body(value(long))
    assert outcome(fast, data) == outcome(plain, data) == (projected(long), len(data))


@pytest.mark.parametrize("size", [0, 1, 63, 64, 127, 128, 300, 9000])
def test_strings_as_long_as_in_the_first_records_are_read_quickly(size: int) -> None:
    learning, plain = RecordReader(Schema(WRITER), Schema(WANTED), credit=Credit()), readers()[1]
    sample = body(value([item(n, "x" * size) for n in range(4)]))
    assert outcome(learning, sample) == outcome(learning, sample) == outcome(plain, sample)
    assert learning._fast is not None, "it was compiled at the second record"
    for other in (*range(0, 200, 7), size - 1, size, size + 1):
        items = [item(1, "y" * max(other, 0)), item(2, "y" * size), item(3, None)]
        data = body(value(items))
        assert outcome(learning, data) == outcome(plain, data) == (projected(items), len(data))
    assert learning._fast(sample, 0, len(sample), Steps()) == plain(sample, 0, len(sample)), "however long they are"


def test_a_damaged_second_record_teaches_nothing_and_is_refused() -> None:
    learning = RecordReader(Schema(WRITER), Schema(WANTED), credit=Credit())
    sample = body(value([item(n) for n in range(4)]))
    assert outcome(learning, sample) == (projected([item(n) for n in range(4)]), len(sample))
    assert outcome(learning, sample[:-20]) is Reason.TRUNCATED
    assert outcome(learning, sample) == (projected([item(n) for n in range(4)]), len(sample))


def number(n: int) -> bytes:
    return body(n, "long")  # type: ignore[arg-type]


def test_blocks_that_say_their_size() -> None:
    """Two blocks, the second with its size in bytes, as the specification allows."""
    one = [body(item(n), ITEM) for n in range(3)]
    tail = body(value(None))[2:]  # behind `first` and the branch of null
    blocks = number(1) + one[0] + number(-2) + number(len(one[1]) + len(one[2])) + one[1] + one[2] + number(0)
    data = number(7) + number(1) + blocks + tail
    wanted = (projected([item(n) for n in range(3)]), len(data))
    for reader in readers():
        assert outcome(reader, data) == wanted
    wrong = number(1) + one[0] + number(-2) + number(len(one[1]) + len(one[2]) + 1) + one[1] + one[2] + number(0)
    for reader in readers():
        assert outcome(reader, number(7) + number(1) + wrong + tail) is Reason.BAD_BLOCK


def test_every_cut_and_many_damages_end_alike() -> None:
    data = body(value([item(n) for n in range(4)]))
    fast, plain = readers()
    for end in range(len(data)):
        assert outcome(fast, data[:end]) == outcome(plain, data[:end])
        assert isinstance(outcome(fast, data[:end]), Reason)
    rng = random.Random(5)
    for _ in range(3000):
        bad = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            bad[rng.randrange(len(bad))] = rng.choice([0, 1, 2, 127, 128, 255, rng.randrange(256)])
        # compared as text, because NaN is not equal to itself
        one, other = (json.dumps(outcome(reader, bytes(bad)), sort_keys=True) for reader in (fast, plain))
        assert one == other


@pytest.mark.parametrize("count", [MAX_STEPS // ITEM_STEPS + 1, 2**40, 2**62])
def test_items_without_bytes_are_no_bomb(count: int) -> None:
    writer = {"type": "record", "name": "w", "fields": [{"name": "items", "type": {"type": "array", "items": "null"}}]}
    numbers = ["null", {"type": "array", "items": ["null", "double"]}]
    wanted = {"type": "record", "name": "r", "fields": [{"name": "items", "type": numbers, "default": None}]}
    for reader in readers(writer, wanted):
        assert outcome(reader, number(count) + number(0)) is Reason.BOMB
        assert outcome(reader, number(5) + number(0)) == ({"items": [None] * 5}, 2)


def test_a_count_that_the_bytes_do_not_pay_for() -> None:
    for reader in readers():
        data = number(7) + number(1) + number(2**40) + body(item(1), ITEM)
        assert outcome(reader, data) is Reason.BAD_BLOCK


@pytest.mark.parametrize(
    ("kind", "sample"),
    [("string", "text"), ({"type": "array", "items": "string"}, ["a"]), ({"type": "map", "values": "long"}, {"k": 4})],
)
def test_a_value_of_another_type_is_null_where_anything_is_taken(kind: Any, sample: Any) -> None:
    odd_item = {**ITEM, "fields": [{"name": "jd", "type": kind}, *ITEM["fields"][1:]]}  # type: ignore[misc]
    inner = {"jd": None, "fid": 2, "sign": None, "flux": 0.5, "absent": None}
    cases = [
        ({"type": "array", "items": odd_item}, [item(2) | {"jd": sample}], [inner]),
        ({"type": "array", "items": kind}, [sample], [None]),
        ({"type": "map", "values": kind}, {"key": sample}, None),
    ]
    for field, written, wanted in cases:
        writer = {"type": "record", "name": "w", "fields": [{"name": "items", "type": field}]}
        data = body({"items": written}, writer)
        for reader in readers(writer):
            assert outcome(reader, data) == ({"items": wanted, "numbers": None, "last": None}, len(data))
