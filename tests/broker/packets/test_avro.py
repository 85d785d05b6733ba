"""The compiled reader, the plain reader and fastavro read the same values from records of any schema."""

import io
import json
import random
import struct
from typing import Any

import fastavro
import pytest
from packet_tools import zigzag

from skyheed.broker.errors import PacketError, Reason
from skyheed.broker.packets.avro import PlainReader, Schema, Steps
from skyheed.broker.packets.avro_fast import RecordReader


def encode(definition, value):
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(definition, named_schemas={}), value)
    return out.getvalue()


def record(*fields, name="r"):
    return {"type": "record", "name": name, "fields": [{"name": n, "type": t} for n, t in fields]}


def wanted(*fields, name="w"):
    """A reader schema: each field nullable, with default null."""
    made = []
    for field, kind in fields:
        kinds = kind if isinstance(kind, list) else [kind]
        made.append({"name": field, "type": ["null", *kinds], "default": None})
    return {"type": "record", "name": name, "fields": made}


def read(writer, reader, data):
    """The record by the compiled and by the plain reader, which must agree."""
    whole = RecordReader(Schema(writer), Schema(reader))
    assert whole._fast is not None
    fast, stop = whole._fast(data, 0, len(data), Steps())
    plain = whole.plain(data, 0, len(data))
    assert (fast, stop) == plain
    assert stop == len(data)
    return fast


def reason_of(writer, reader, data):
    reasons = []
    for compiled in (True, False):
        with pytest.raises(PacketError) as caught:
            RecordReader(Schema(writer), Schema(reader), compiled=compiled)(data, 0, len(data))
        reasons.append(caught.value.reason)
    assert reasons[0] == reasons[1]
    return reasons[0]


# --- runs of values that nobody wants


SEVERAL = [
    ["null", "float"], ["double", "null"], ["null", "long"], "long", ["null", "boolean"], ["null", "string"],
    ["null", {"type": "record", "name": "in{n}", "fields": [{"name": "a", "type": ["null", "int"]}]}],
    ["long", "null", "string"], {"type": "enum", "name": "e{n}", "symbols": ["A", "B"]}, "float",
]  # fmt: skip


def drawn(kind, rng):
    """A value of a kind: often null, and numbers of every length."""
    if isinstance(kind, list):
        return None if "null" in kind and rng.random() < 0.4 else drawn(next(k for k in kind if k != "null"), rng)
    if isinstance(kind, dict):
        return rng.choice("AB") if kind["type"] == "enum" else {"a": rng.choice([None, 5, -(2**31)])}
    return {
        "float": 0.5, "double": -1.5, "boolean": True, "string": "x" * rng.choice([0, 15, 16, 63, 64, 79, 80, 127]),
        "long": rng.choice([0, -64, 64, 2**31, 2**62, 2**63 - 1, -(2**63)]),
    }[kind]  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_runs_of_passed_values(seed):
    """Alone, in an array, whole, and cut or changed anywhere: as the plain reader says."""
    rng = random.Random(seed)
    kinds = [json.loads(json.dumps(rng.choice(SEVERAL)).replace("{n}", str(n))) for n in range(rng.randint(1, 40))]
    item = record(*((f"f{n}", kind) for n, kind in enumerate(kinds)), ("own", ["null", "long"]), name="item")
    writer = record(("skipped", {"type": "array", "items": item}), ("one", "item"), ("end", "long"))
    values = [{f"f{n}": drawn(kind, rng) for n, kind in enumerate(kinds)} | {"own": 3} for _ in range(4)]
    data = encode(writer, {"skipped": values[1:], "one": values[0], "end": 9})
    reader = wanted(("end", "long"))
    assert read(writer, reader, data) == {"end": 9}
    whole = RecordReader(Schema(writer), Schema(reader))
    for _ in range(200):
        at = rng.randrange(len(data))
        damaged = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :] if rng.random() < 0.7 else data[:at]
        results = []
        for one in (whole, whole.plain):
            try:
                results.append(one(damaged, 0, len(damaged)))
            except PacketError as error:
                results.append(error.reason)
        assert results[0] == results[1], damaged


# --- resolution


def test_fields_are_found_by_name_whatever_the_record_is_called():
    writer = record(("skipped", "string"), ("b", "double"), ("a", "long"), name="topLevelRecord")
    got = read(
        writer,
        wanted(("a", "long"), ("b", "double"), ("missing", "long")),
        encode(writer, {"skipped": "x" * 300, "b": 1.5, "a": -7}),
    )
    assert got == {"a": -7, "b": 1.5, "missing": None}


@pytest.mark.parametrize(
    ("kind", "value", "reader", "expected"),
    [
        ("int", -5, "long", -5),
        ("int", 2**31 - 1, "double", 2.0**31 - 1),
        ("long", -(2**63), "long", -(2**63)),
        ("long", 2**63 - 1, "long", 2**63 - 1),
        ("long", 3, "float", 3.0),
        ("float", 1.5, "double", 1.5),
        ("double", 1e300, "double", 1e300),
        ("boolean", True, "boolean", True),
        ("string", "Grüße", "string", "Grüße"),
        ("bytes", b"t", "string", "t"),
        ("string", "t", "bytes", b"t"),
        ({"type": "enum", "name": "e", "symbols": ["g", "r"]}, "r", "string", "r"),
    ],
)
@pytest.mark.parametrize("union", [None, "null first", "null last", "with others"])
def test_promotions_and_union_orders(kind, value, reader, expected, union):
    others = {"type": "array", "items": "string"}
    forms = {
        None: kind,
        "null first": ["null", kind],
        "null last": [kind, "null"],
        "with others": [others, "null", kind],
    }
    writer = record(("before", "float"), ("a", forms[union]), ("after", "string"))
    data = encode(writer, {"before": 1.0, "a": value, "after": "z"})
    got = read(writer, wanted(("a", reader)), data)["a"]
    assert got == expected
    assert type(got) is type(expected)


def test_null_in_a_union_is_none():
    writer = record(("a", ["double", "null"]), ("b", ["null", "string"]), ("c", "null"))
    reader = wanted(("a", "double"), ("b", "string"), ("c", "long"))
    assert read(writer, reader, encode(writer, {"a": None, "b": None, "c": None})) == dict.fromkeys("abc")


def test_reader_takes_the_branch_that_fits():
    reader = wanted(("a", ["string", "long", "boolean"]))
    for kind, value in [("string", "t"), ("int", 1), ("boolean", False), (["null", "string", "int"], 0)]:
        writer = record(("a", kind))
        assert read(writer, reader, encode(writer, {"a": value})) == {"a": value}


def test_nested_records_and_their_null():
    cutout = record(("fileName", "string"), ("stampData", "bytes"), name="cutout")
    writer = record(("first", ["null", cutout]), ("second", ["cutout", "null"]), ("third", "cutout"))
    reader = wanted(
        ("first", wanted(("stampData", "bytes"), name="x")), ("second", wanted(("stampData", "bytes"), name="y"))
    )
    made = {"fileName": "f" * 500, "stampData": bytes(range(256)) * 50}
    got = read(writer, reader, encode(writer, {"first": made, "second": None, "third": made}))
    assert got == {"first": {"stampData": made["stampData"]}, "second": None}


def test_an_empty_reader_record_says_that_the_value_is_there():
    writer = record(("ss", ["null", record(("number", "long"), name="s")]), ("end", "int"))
    reader = wanted(("ss", wanted(name="x")))
    assert read(writer, reader, encode(writer, {"ss": {"number": 9}, "end": 1})) == {"ss": {}}
    assert read(writer, reader, encode(writer, {"ss": None, "end": 1})) == {"ss": None}


def test_namespaces():
    writer = {
        "type": "record", "name": "alert", "namespace": "ztf",
        "fields": [
            {"name": "a", "type": {"type": "record", "name": "other.cutout", "fields": [{"name": "x", "type": "int"}]}},
            {"name": "b", "type": {"type": "fixed", "name": "cutout", "size": 3}},
            {"name": "c", "type": ["null", "cutout"]},
            {"name": "d", "type": "other.cutout"},
        ],
    }  # fmt: skip
    data = encode(writer, {"a": {"x": 1}, "b": b"abc", "c": b"xyz", "d": {"x": 5}})
    assert read(writer, wanted(("d", wanted(("x", "long"), name="q"))), data) == {"d": {"x": 5}}


def test_types_from_a_library():
    top = {"type": "record", "name": "alert", "namespace": "lsst", "fields": [{"name": "s", "type": "lsst.source"}]}
    library = {
        "lsst.source": {
            "type": "record",
            "name": "source",
            "namespace": "lsst",
            "fields": [{"name": "x", "type": "int"}],
        }
    }
    reader = RecordReader(Schema(top, library), Schema(wanted(("s", wanted(("x", "long"), name="q")))))
    assert reader(b"\x0a", 0, 1) == ({"s": {"x": 5}}, 1)


# --- arrays and maps


@pytest.mark.parametrize("count", [0, 1, 30, 63, 64, 200])
@pytest.mark.parametrize("length", [0, 5, 127, 128, 5000])
def test_arrays_and_maps_are_passed_over(count, length):
    item = record(("jd", "double"), ("name", ["null", "string"]), ("list", {"type": "array", "items": "int"}), name="i")
    plain = record(("jd", "double"), ("name", ["string", "null"]), name="p")
    writer = record(
        ("a", {"type": "array", "items": item}),
        ("b", ["null", {"type": "array", "items": plain}]),
        ("c", {"type": "map", "values": "long"}),
        ("d", {"type": "array", "items": "null"}),
        ("end", "int"),
    )
    text = "s" * length
    value = {
        "a": [{"jd": 1.0, "name": text, "list": [1, 2, 3]}] * count,
        "b": [{"jd": 2.0, "name": text}, {"jd": 2.0, "name": None}] * count,
        "c": {f"{text}{i}": i for i in range(count)},
        "d": [None] * count,
        "end": 77,
    }
    assert read(writer, wanted(("end", "long")), encode(writer, value)) == {"end": 77}


ARRAY = record(("a", {"type": "array", "items": "int"}), ("end", "int"))


def test_blocks_that_say_their_size():
    for compiled in (True, False):
        reader = RecordReader(Schema(ARRAY), Schema(wanted(("end", "long"))), compiled=compiled)
        data = zigzag(-3) + zigzag(3) + b"\x02\x02\x02" + zigzag(1) + b"\x04" + b"\x00" + zigzag(9)
        assert reader(data, 0, len(data)) == ({"end": 9}, len(data))


@pytest.mark.parametrize("size", [0, 2, 4])
def test_blocks_with_a_wrong_size_are_refused(size):
    data = zigzag(-3) + zigzag(size) + b"\x02\x02\x02" + b"\x00" + zigzag(9)
    assert reason_of(ARRAY, wanted(("end", "long")), data) is Reason.BAD_BLOCK


@pytest.mark.parametrize("count", [5, 1000, 2**40, -(2**40), 2**62, -(2**63)])
def test_array_bombs_are_refused(count):
    size = zigzag(1) if count < 0 else b""
    assert reason_of(ARRAY, wanted(("end", "long")), zigzag(count) + size + b"\x02\x02") is Reason.BAD_BLOCK


@pytest.mark.parametrize("item", ["null", record(name="e"), {"type": "fixed", "name": "f", "size": 0}])
def test_huge_arrays_of_nothing_cost_nothing(item):
    writer = record(("a", {"type": "array", "items": item}), ("end", "int"))
    assert read(writer, wanted(("end", "long")), zigzag(2**62) + b"\x00" + zigzag(4)) == {"end": 4}


# --- damaged values


@pytest.mark.parametrize(
    ("kind", "data", "reason"),
    [
        ("double", b"\x00" * 7, Reason.TRUNCATED),
        ("string", zigzag(5) + b"abcd", Reason.TRUNCATED),
        ("string", zigzag(2**62) + b"abcd", Reason.TRUNCATED),
        ("string", zigzag(-1), Reason.WRONG_TYPE),
        ("string", zigzag(2) + b"\xff\xfe", Reason.WRONG_TYPE),
        ("long", b"\xff" * 11, Reason.WRONG_TYPE),
        ("long", b"\xff" * 3, Reason.TRUNCATED),
        ("boolean", b"\x02", Reason.WRONG_TYPE),
        (["null", "long"], b"\x04\x02", Reason.WRONG_TYPE),
        (["null", "long"], b"\x01", Reason.WRONG_TYPE),
        ({"type": "enum", "name": "e", "symbols": ["a"]}, zigzag(1), Reason.WRONG_TYPE),
        ({"type": "enum", "name": "e", "symbols": ["a"]}, zigzag(-1), Reason.WRONG_TYPE),
    ],
)
def test_damaged_values(kind, data, reason):
    reader = wanted(("a", ["double", "string", "long", "boolean"]))
    assert reason_of(record(("a", kind)), reader, data) is reason


@pytest.mark.parametrize(
    "kind", ["string", "bytes", {"type": "array", "items": "int"}, {"type": "map", "values": "int"}]
)
def test_a_cut_in_a_skipped_field_is_seen(kind):
    value = {"string": "x" * 50, "bytes": b"x" * 50}.get(
        str(kind), [1] * 50 if "array" in str(kind) else dict.fromkeys("abc", 1)
    )
    writer = record(("a", "int"), ("b", kind))
    data = encode(writer, {"a": 1, "b": value})
    for end in range(len(data)):
        assert reason_of(writer, wanted(("a", "long")), data[:end]) in (Reason.TRUNCATED, Reason.BAD_BLOCK)


@pytest.mark.parametrize("kind", ["int", "bytes", {"type": "array", "items": "string"}, record(("x", "int"), name="q")])
def test_a_wrong_type_is_named(kind):
    value = {"int": 1, "bytes": b"\xff"}.get(str(kind), {"x": 1} if "record" in str(kind) else ["a"])
    writer = record(("objectId", kind))
    with pytest.raises(PacketError, match=r"objectId has type|not UTF-8") as caught:
        RecordReader(Schema(writer), Schema(wanted(("objectId", "string"))))(encode(writer, {"objectId": value}), 0, 99)
    assert caught.value.reason is Reason.WRONG_TYPE


def test_a_wrong_branch_matters_only_when_it_comes_up():
    writer = record(("a", ["null", "int", "string"]))
    reader = RecordReader(Schema(writer), Schema(wanted(("a", "string"))))
    assert reader(encode(writer, {"a": "x"}), 0, 3)[0] == {"a": "x"}
    assert reader(encode(writer, {"a": None}), 0, 1)[0] == {"a": None}
    with pytest.raises(PacketError, match="a has type int"):
        reader(encode(writer, {"a": 1}), 0, 2)


def test_a_record_that_is_none():
    with pytest.raises(PacketError) as caught:
        RecordReader(Schema('"int"'), Schema(wanted(("a", "int"))))(b"\x02", 0, 1)
    assert caught.value.reason is Reason.WRONG_TYPE


# --- odd schemas


@pytest.mark.parametrize(
    "definition",
    [
        "", "nonsense", "{", "5", "[]", '{"type": "record"}', '{"type": "record", "name": "a"}', "null" * 9,
        '{"type": "record", "name": "a", "fields": [{"name": "x"}]}',
        '{"type": "record", "name": "a", "fields": [{"name": "x", "type": "b"}]}',
        '{"type": "record", "name": "", "fields": []}',
        '{"type": "record", "name": "a", "fields": [{"name": "x", "type": "a"}]}',
        '{"type": "fixed", "name": "a", "size": -1}', '{"type": "fixed", "name": "a", "size": 1e99}',
        '{"type": "fixed", "name": "a", "size": 99999999999}', '["int", ["int"]]', '{"type": ["int"], "x"}',
        '[{"type": "fixed", "name": "a", "size": 1}, {"type": "fixed", "name": "a", "size": 2}]',
        '{"type": "array"}', '{"type": {"type": 5}}', "[" * 5000,
        '{"type":' * 3000, '{"type":' * 200 + '"int"' + "}" * 200,
    ],
)  # fmt: skip
def test_senseless_schemas(definition):
    with pytest.raises(PacketError) as caught:
        Schema(definition)
    assert caught.value.reason is Reason.BAD_SCHEMA


def test_a_huge_schema_is_refused_unread():
    with pytest.raises(PacketError, match="more than"):
        Schema("[" + '"int",' * 200_000 + '"null"]')


def doubling(levels):
    """Types that, written out in full, take 2^levels fields."""
    inner: Any = "int"
    for level in range(levels):
        inner = {
            "type": "record",
            "name": f"l{level}",
            "fields": [{"name": "a", "type": inner}, {"name": "b", "type": f"l{level - 1}" if level else "int"}],
        }
    return inner


def test_a_schema_that_explodes_is_read_plainly():
    reader = RecordReader(Schema(doubling(18)), Schema(wanted(("a", "int"))))
    assert reader._fast is None
    with pytest.raises(PacketError):
        reader(b"\x02" * 100, 0, 100)
    small = RecordReader(Schema(doubling(8)), Schema(wanted(name="w")))
    assert small._fast is not None
    assert small(b"\x02" * 256, 0, 256) == ({}, 256)


NODE = {
    "type": "record",
    "name": "node",
    "fields": [{"name": "x", "type": "int"}, {"name": "next", "type": ["null", "node"]}],
}


def test_recursive_schemas_are_read_plainly():
    writer = record(("list", NODE), ("end", "int"))
    value = None
    for x in range(20):
        value = {"x": x, "next": value}
    data = encode(writer, {"list": value, "end": 3})
    reader = RecordReader(Schema(writer), Schema(wanted(("end", "long"))))
    assert reader._fast is None
    assert reader(data, 0, len(data)) == ({"end": 3}, len(data))


def test_values_nested_without_end_are_refused():
    writer = record(("list", NODE), ("end", "int"))
    data = b"\x02\x02" * 100_000
    with pytest.raises(PacketError, match="deep"):
        RecordReader(Schema(writer), Schema(wanted(("end", "long"))))(data, 0, len(data))


def test_names_of_the_writer_never_become_code():
    evil = '");import os;os.abort()#'
    writer = record((evil, "int"), ("a", ["null", "int", "string"]), name="x")
    reader = {"type": "record", "name": "w", "fields": [{"name": evil, "type": ["null", "long"], "default": None}]}
    assert read(json.dumps(writer), reader, b"\x02\x00") == {evil: 1}


def test_least_bytes():
    schema = record(
        ("a", "double"),
        ("b", ["null", "double"]),
        ("c", "string"),
        ("d", "null"),
        ("e", {"type": "array", "items": "long"}),
    )
    assert Schema(schema).root.least == 8 + 1 + 1 + 0 + 1
    assert Schema(NODE).root.least == 2


# --- any schema


def random_type(rng, depth, names):
    """A random Avro type and a function that makes random values of it."""
    simple = {
        "null": lambda: None,
        "boolean": lambda: rng.random() < 0.5,
        "int": lambda: rng.randint(-(2**31), 2**31 - 1),
        "long": lambda: rng.choice([0, -1, 63, 64, -(2**63), 2**63 - 1, rng.randint(-(10**6), 10**6)]),
        "float": lambda: struct.unpack("<f", struct.pack("<f", rng.uniform(-1e3, 1e3)))[0],
        "double": lambda: rng.uniform(-1e300, 1e300),
        "string": lambda: "é" * rng.choice([0, 1, 5, 64, 200]),
        "bytes": lambda: rng.randbytes(rng.choice([0, 1, 63, 64, 127, 128, 9000])),
    }
    kinds = [*simple, "fixed", "enum"] + (["array", "map", "record", "union", "union"] * 2 if depth else [])
    kind = rng.choice(kinds)
    if kind in simple:
        return kind, simple[kind]
    name = f"n{next(names)}"
    if kind == "fixed":
        size = rng.randint(0, 20)
        return {"type": "fixed", "name": name, "size": size}, lambda: rng.randbytes(size)
    if kind == "enum":
        symbols = [f"s{i}" for i in range(rng.randint(1, 70))]
        return {"type": "enum", "name": name, "symbols": symbols}, lambda: rng.choice(symbols)
    if kind == "record":
        return random_record(rng, depth - 1, names, name)
    if kind == "union":
        return random_union(rng, depth, names)
    item, make = random_type(rng, depth - 1, names)
    if kind == "array":
        return {"type": "array", "items": item}, lambda: [make() for _ in range(rng.choice([0, 1, 2, 9]))]
    return {"type": "map", "values": item}, lambda: {f"k{i}": make() for i in range(rng.choice([0, 1, 3]))}


def random_union(rng, depth, names):
    """A union of null and one to three other types of different kinds."""
    branches = {"null": ("null", lambda: None)}
    for _ in range(rng.randint(1, 3)):
        kind, make = random_type(rng, depth - 1, names)
        if not isinstance(kind, list):
            branches.setdefault(kind if isinstance(kind, str) else kind["type"], (kind, make))
    # fastavro guesses the branch of a value: leave no two that it could mix up
    for one, other in [("int", "long"), ("float", "double"), ("int", "float"), ("int", "double"), ("long", "float"),
                       ("long", "double"), ("bytes", "fixed"), ("string", "enum"), ("map", "record")]:  # fmt: skip
        if one in branches:
            branches.pop(other, None)
    chosen = list(branches.values())
    rng.shuffle(chosen)
    return [kind for kind, _ in chosen], lambda: rng.choice(chosen)[1]()


def random_record(rng, depth, names, name):
    fields = [(f"f{i}", *random_type(rng, depth, names)) for i in range(rng.randint(0, 7))]
    definition = record(*((n, kind) for n, kind, _ in fields), name=name)
    return definition, lambda: {n: make() for n, _, make in fields}


def reader_of(rng, definition, name="w"):
    """A reader schema that takes some of the fields as they are, and what it leaves of a value."""
    fields = []
    takes = {}
    for i, field in enumerate(definition["fields"]):
        kind = field["type"]
        branches = kind if isinstance(kind, list) else [kind]
        if rng.random() < 0.4 or not all(isinstance(b, str) or b["type"] in ("enum", "record") for b in branches):
            continue
        records = [b for b in branches if isinstance(b, dict) and b["type"] == "record"]
        if len(records) > 1:
            continue
        made, inner = reader_of(rng, records[0], f"{name}{i}") if records else (None, None)
        options = ["null", "boolean", "long", "double", "bytes", "string", *([made] if made else [])]
        fields.append({"name": field["name"], "type": options, "default": None})
        takes[field["name"]] = inner
    rng.shuffle(fields)
    reader = {"type": "record", "name": name, "fields": fields}

    def project(value):
        return {n: inner(value[n]) if inner and isinstance(value[n], dict) else value[n] for n, inner in takes.items()}

    return reader, project


@pytest.mark.parametrize("seed", range(120))
def test_random_schemas_against_fastavro(seed):
    rng = random.Random(seed)
    names = iter(range(10_000))
    writer, make = random_record(rng, 3, names, "top")
    reader, project = reader_of(rng, writer)
    whole = RecordReader(Schema(json.dumps(writer)), Schema(reader))
    skipping = RecordReader(Schema(writer), None)
    assert whole._fast is not None
    parsed = fastavro.parse_schema(writer, named_schemas={})
    for _ in range(6):
        value = make()
        out = io.BytesIO()
        fastavro.schemaless_writer(out, parsed, value)
        data = out.getvalue()
        expected = project(fastavro.schemaless_reader(io.BytesIO(data), parsed, None))
        padded = b"\x00" + data + b"\xff" * 20  # a reader must stop by itself
        assert whole.plain(padded, 1, len(data) + 1) == (expected, len(data) + 1)
        assert whole(padded, 1, len(data) + 1) == (expected, len(data) + 1)
        assert skipping(padded, 1, len(data) + 1)[1] == len(data) + 1
        for _ in range(15):
            check_mutation(rng, whole, data)


def check_mutation(rng, reader, data):
    """A damaged record gives the same on both ways: the same value, or a packet error."""
    mutated = bytearray(data[: rng.randint(0, len(data))] if rng.random() < 0.3 else data)
    for _ in range(rng.randint(0, 3) if mutated else 0):
        mutated[rng.randrange(len(mutated))] = rng.choice([0, 1, 2, 127, 128, 255, rng.randrange(256)])
    results = []
    for read_record in (reader, reader.plain):
        try:
            value, stop = read_record(bytes(mutated), 0, len(mutated))
            results.append((repr(value), stop))
        except PacketError as error:
            results.append(error.reason)
    assert results[0] == results[1]


def test_plain_reader_reads_longs_at_the_limits():
    for number in [0, 1, -1, 2**63 - 1, -(2**63)]:
        data = encode("long", number)
        assert PlainReader(data, 0, len(data)).long() == number


@pytest.mark.parametrize("last", [2, 3, 64, 126, 127, 128])
@pytest.mark.parametrize("wanted_too", [True, False])
def test_numbers_of_more_than_64_bits_are_refused(last, wanted_too):
    """fastavro lets them wrap round; a packet in which one stands is damaged."""
    writer = record(("a", "long"), ("b", "long"))
    reader = wanted(("a", "long")) if wanted_too else wanted(("b", "long"))
    data = b"\xff" * 9 + bytes([last]) + b"\x02" * (2 if last > 127 else 1)
    assert reason_of(writer, reader, data) is Reason.WRONG_TYPE
    assert read(writer, reader, encode(writer, {"a": -(2**63), "b": 1})) == {"a": -(2**63)} if wanted_too else {"b": 1}
