import io
import json
import random
import time
import zlib

import cramjam
import fastavro
import pytest
from packet_tools import confluent_payload
from real_data import real_data, rubin_files, ztf_files

from skyheed.broker.errors import PacketError, Reason
from skyheed.broker.packets import container as wire
from skyheed.broker.packets.avro import Schema, Steps
from skyheed.broker.packets.container import Decoder, split_container
from skyheed.broker.packets.surveys import Wanted, load_survey
from skyheed.broker.registry.schemas import SchemaSource

WRITER = {
    "type": "record",
    "name": "alert",
    "fields": [
        {"name": "skipped", "type": "string"},
        {"name": "id", "type": "long"},
        {"name": "history", "type": ["null", {"type": "array", "items": "double"}]},
        {"name": "flux", "type": ["null", "float"]},
        {"name": "stamp", "type": "bytes"},
        {"name": "tail", "type": "bytes"},
    ],
}
READER = {
    "type": "record",
    "name": "wanted",
    "fields": [
        {"name": "id", "type": ["null", "long"], "default": None},
        {"name": "flux", "type": ["null", "double"], "default": None},
        {"name": "stamp", "type": ["null", "bytes"], "default": None},
    ],
}
SYNC = bytes(range(16))


def value(number=1):
    return {
        "skipped": f"name {number}",
        "id": number,
        "history": [float(i) for i in range(20)],
        "flux": 1.5,
        "stamp": bytes(range(256)),
        "tail": b"t" * 300,
    }


def projected(number=1):
    return {"id": number, "flux": 1.5, "stamp": bytes(range(256))}


def container(records, codec="null", **options):
    out = io.BytesIO()
    fastavro.writer(out, fastavro.parse_schema(WRITER, named_schemas={}), records, codec=codec, **options)
    return out.getvalue()


def body(record=None, schema=WRITER):
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema, named_schemas={}), record or value())
    return out.getvalue()


def number(n):
    out = io.BytesIO()
    fastavro.schemaless_writer(out, "long", n)
    return out.getvalue()


def block(data, count=1, size=None, sync=SYNC):
    return number(count) + number(len(data) if size is None else size) + data + sync


def by_hand(*blocks, codec="null", schema=None, extra=()):
    """A container from its parts."""
    text = json.dumps(schema or WRITER).encode()
    metadata = {b"avro.schema": text, b"avro.codec": codec.encode(), **dict(extra)}
    entries = b"".join(number(len(k)) + k + number(len(v)) + v for k, v in metadata.items())
    return b"Obj\x01" + number(len(metadata)) + entries + b"\x00" + SYNC + b"".join(blocks)


def schemas(tmp_path, schema_id=7, schema=None):
    (tmp_path / f"{schema_id}.avsc").write_text(json.dumps(schema or WRITER))
    return SchemaSource(directory=tmp_path, package="")


def reason_of(payload, decoder=None):
    with pytest.raises(PacketError) as caught:
        (decoder or Decoder(READER)).decode(payload)
    return caught.value.reason


# --- sound messages


@pytest.mark.parametrize("codec", ["null", "deflate", "snappy"])
@pytest.mark.parametrize("count", [1, 5])
def test_containers_of_fastavro(codec, count):
    data = container([value(i) for i in range(count)], codec)
    assert Decoder(READER).decode(data) == [projected(i) for i in range(count)]


@pytest.mark.parametrize("options", [{"sync_interval": 1}, {"sync_marker": SYNC}, {"metadata": {"survey": "x"}}])
def test_container_options(options):
    assert Decoder(READER).decode(container([value(1), value(2)], **options)) == [projected(1), projected(2)]


def test_zstandard_blocks_with_and_without_a_length():
    plain = body()
    whole = bytes(cramjam.zstd.compress(plain))
    stream = cramjam.zstd.Compressor()
    stream.compress(plain)
    assert Decoder(READER).decode(by_hand(block(whole), codec="zstandard")) == [projected()]
    assert Decoder(READER).decode(by_hand(block(bytes(stream.finish())), codec="zstandard")) == [projected()]


def test_container_without_a_codec_entry_or_with_a_sized_header():
    text = json.dumps(WRITER).encode()
    entry = number(11) + b"avro.schema" + number(len(text)) + text
    for start in (number(1), number(-1) + number(len(entry))):
        data = b"Obj\x01" + start + entry + b"\x00" + SYNC + block(body())
        assert Decoder(READER).decode(data) == [projected()]


def test_container_of_no_records():
    assert Decoder(READER).decode(by_hand()) == []
    assert Decoder(READER).decode(by_hand(block(b"", 0))) == []


def test_many_schemas_in_turn():
    decoder = Decoder(READER)
    for i in [*range(40), *range(40)]:
        schema = WRITER | {"name": f"alert{i}"}
        assert decoder.decode(by_hand(block(body()), schema=schema)) == [projected()]
    assert len(decoder._containers._seen) <= 16


def test_confluent(tmp_path):
    decoder = Decoder(READER, schemas=schemas(tmp_path))
    payload = confluent_payload(7, body())
    assert payload[:5] == b"\x00\x00\x00\x00\x07"
    assert decoder.decode(payload) == [projected()]


def test_reader_schema_as_text():
    assert Decoder(json.dumps(READER)).decode(container([value()])) == [projected()]


def test_schemas_of_the_same_names_do_not_meet(tmp_path):
    """Two writers call different records by one name; neither sees the other's."""
    other = {"type": "record", "name": "alert", "fields": [{"name": "id", "type": "int"}]}
    decoder = Decoder(READER, schemas=schemas(tmp_path, 8, other))
    assert decoder.decode(container([value(4)]))[0]["id"] == 4
    assert decoder.decode(confluent_payload(8, number(5))) == [{"id": 5, "flux": None, "stamp": None}]
    assert decoder.decode(container([value(6)]))[0]["id"] == 6


# --- bad messages


def test_empty():
    assert reason_of(b"") is Reason.EMPTY


def test_oversized():
    data = container([value()])
    assert Decoder(READER, max_packet_bytes=len(data)).decode(data)
    assert reason_of(data, Decoder(READER, max_packet_bytes=len(data) - 1)) is Reason.OVERSIZED


@pytest.mark.parametrize("data", [b"Obj\x02", b"Obj", b"\x01", b"{}", b"PK\x03\x04", b"\x1f\x8b"])
def test_wrong_magic(data):
    assert reason_of(data) is Reason.BAD_MAGIC


def test_container_cut_anywhere():
    data = container([value()], sync_marker=SYNC)
    empty = data.index(SYNC) + len(SYNC)  # cut right behind its header it is a sound container of no records
    assert Decoder(READER).decode(data[:empty]) == []
    assert {reason_of(data[:end]) for end in range(4, len(data)) if end != empty} == {Reason.TRUNCATED}


def test_container_cut_in_a_skipped_field_with_a_block_made_to_fit():
    """The block is as long as it says and the marker is right, but the last field, which nobody wants, is short."""
    for codec, pack in [("null", bytes), ("deflate", lambda b: zlib.compress(b, wbits=-15))]:
        data = by_hand(block(pack(body()[:-100])), codec=codec)
        assert reason_of(data) is Reason.TRUNCATED


def test_confluent_cut_anywhere(tmp_path):
    decoder = Decoder(READER, schemas=schemas(tmp_path))
    payload = confluent_payload(7, body())
    for end in range(1, len(payload)):
        assert reason_of(payload[:end], decoder) in (Reason.TRUNCATED, Reason.BAD_BLOCK)


def test_trailing_bytes(tmp_path):
    decoder = Decoder(READER, schemas=schemas(tmp_path))
    assert reason_of(confluent_payload(7, body() + b"\x00"), decoder) is Reason.TRAILING_BYTES
    assert reason_of(by_hand(block(body() + b"\x00"))) is Reason.TRAILING_BYTES
    assert reason_of(by_hand(block(body() * 2, 1))) is Reason.TRAILING_BYTES


def test_wrong_sync_marker():
    for position in (0, 7, 15):
        marker = bytearray(SYNC)
        marker[position] ^= 1
        assert reason_of(by_hand(block(body(), sync=bytes(marker)))) is Reason.BAD_SYNC
    assert reason_of(by_hand(block(body()), block(body(), sync=SYNC[::-1]))) is Reason.BAD_SYNC


@pytest.mark.parametrize("count", [-1, 2**40, -(2**63), 2**62])
def test_wrong_record_count(count):
    assert reason_of(by_hand(block(body(), count))) is Reason.BAD_BLOCK


def test_more_records_than_there_are():
    assert reason_of(by_hand(block(body(), 2))) is Reason.TRUNCATED


@pytest.mark.parametrize(
    ("size", "reason"), [(-1, Reason.WRONG_TYPE), (2**50, Reason.TRUNCATED), (10, Reason.BAD_SYNC)]
)
def test_wrong_block_size(size, reason):
    assert reason_of(by_hand(block(body(), size=size))) is reason


@pytest.mark.parametrize("codec", ["deflate", "snappy", "zstandard"])
def test_damaged_blocks(codec):
    pack = {
        "deflate": lambda b: zlib.compress(b, wbits=-15),
        "snappy": lambda b: bytes(cramjam.snappy.compress_raw(b)) + zlib.crc32(b).to_bytes(4, "big"),
        "zstandard": lambda b: bytes(cramjam.zstd.compress(b)),
    }[codec]
    good = pack(body())
    assert Decoder(READER).decode(by_hand(block(good), codec=codec)) == [projected()]
    for bad in (b"", b"\x01", good[:-1], good[: len(good) // 2], good[::-1], b"\xff" * 50):
        assert reason_of(by_hand(block(bad), codec=codec)) in (Reason.BAD_BLOCK, Reason.BOMB)


def test_snappy_checksum():
    data = body()
    packed = bytes(cramjam.snappy.compress_raw(data))
    wrong = (zlib.crc32(data) ^ 1).to_bytes(4, "big")
    assert reason_of(by_hand(block(packed + wrong), codec="snappy")) is Reason.BAD_BLOCK


@pytest.mark.parametrize("codec", ["deflate", "snappy", "zstandard"])
def test_bombs(codec):
    zeros = bytes(30_000_000)
    data = {
        "deflate": lambda: zlib.compress(zeros, 9, wbits=-15),
        "snappy": lambda: bytes(cramjam.snappy.compress_raw(zeros)) + zlib.crc32(zeros).to_bytes(4, "big"),
        "zstandard": lambda: bytes(cramjam.zstd.compress(zeros)),
    }[codec]()
    assert len(data) < 2_000_000
    assert reason_of(by_hand(block(data), codec=codec)) is Reason.BOMB


def test_a_small_block_limit():
    data = by_hand(block(bytes(cramjam.zstd.compress(body()))), codec="zstandard")
    assert Decoder(READER, max_block_bytes=len(body())).decode(data)
    assert reason_of(data, Decoder(READER, max_block_bytes=len(body()) - 1)) is Reason.BOMB


def test_too_many_records():
    schema = {"type": "record", "name": "a", "fields": [{"name": "x", "type": "boolean"}]}
    assert len(Decoder(READER).decode(by_hand(block(bytes(10_000), 10_000), schema=schema))) == 10_000
    assert reason_of(by_hand(block(bytes(10_001), 10_001), schema=schema)) is Reason.BOMB
    nothing = {"type": "record", "name": "a", "fields": []}
    assert reason_of(by_hand(block(b"", 10**9), schema=nothing)) is Reason.BAD_BLOCK


@pytest.mark.parametrize("items", ["int", {"type": "array", "items": "int"}])
def test_too_many_values(items):
    """A packet of 3 kB whose only record passes over three million values of nothing."""
    schema = {"type": "record", "name": "a", "fields": [{"name": "x", "type": {"type": "array", "items": items}}]}
    packed = zlib.compress(number(3_000_000) + bytes(3_000_001), 9, wbits=-15)
    data = by_hand(block(packed), codec="deflate", schema=schema)
    assert len(data) < 5000
    assert reason_of(data) is Reason.BOMB


def test_unknown_codec():
    assert reason_of(by_hand(block(body()), codec="xz")) is Reason.BAD_BLOCK


def test_container_without_a_schema():
    data = b"Obj\x01" + number(1) + number(1) + b"a" + number(1) + b"b" + b"\x00" + SYNC
    assert reason_of(data) is Reason.BAD_SCHEMA


def test_container_with_a_damaged_schema():
    data = by_hand(block(body())).replace(b'"type": "record"', b'"type": "recoil"', 1)
    assert reason_of(data) is Reason.BAD_SCHEMA


def test_header_bombs():
    for count in (2**40, -(2**40)):
        assert reason_of(b"Obj\x01" + number(count) + number(3) + b"abc" * 9) in (
            Reason.TRUNCATED,
            Reason.WRONG_TYPE,
        )


def test_wrong_type():
    schema = {"type": "record", "name": "a", "fields": [{"name": "id", "type": "string"}]}
    assert reason_of(by_hand(block(number(3) + b"abc"), schema=schema)) is Reason.WRONG_TYPE
    assert reason_of(by_hand(block(number(3)), schema="int")) is Reason.WRONG_TYPE


def test_unknown_schema_id(tmp_path):
    assert reason_of(confluent_payload(8, body()), Decoder(READER, schemas=schemas(tmp_path))) is Reason.UNKNOWN_SCHEMA
    assert reason_of(confluent_payload(8, body())) is Reason.UNKNOWN_SCHEMA


# --- files of several records


@pytest.mark.parametrize("codec", ["null", "deflate", "snappy"])
def test_split_container(codec):
    data = container([value(i) for i in range(9)], codec, sync_interval=2000)
    parts = split_container(data)
    assert [Decoder(READER).decode(part) for part in parts] == [[projected(i)] for i in range(9)]
    assert [next(fastavro.reader(io.BytesIO(part))) for part in parts] == [value(i) for i in range(9)]


def test_a_file_of_one_record_stays_as_it_is():
    data = container([value()], "deflate")
    assert split_container(data) == [data]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.BAD_MAGIC),
        (by_hand(block(body()[:-1])), Reason.TRUNCATED),
        (by_hand(block(b"\x00")), Reason.BAD_BLOCK),
    ],
)
def test_split_container_refuses(data, reason):
    with pytest.raises(PacketError) as caught:
        split_container(data)
    assert caught.value.reason is reason


def test_single_record_containers_of_our_own():
    data = wire.container_header(json.dumps(WRITER).encode(), SYNC) + wire.container_block(body(), SYNC)
    assert list(fastavro.reader(io.BytesIO(data))) == [value()]


# --- mutations


def fuzz(rng, decoder, packets, rounds):
    """Damage packets at random; anything but records or a packet error fails, and so does taking long."""
    refused = 0
    slowest = 0.0
    for _ in range(rounds):
        data = bytearray(rng.choice(packets))
        if rng.random() < 0.25:
            del data[rng.randrange(len(data)) :]
        for _ in range(rng.randint(0, 4) if data else 0):
            # half of the damage goes to the beginning, where lengths and schemas are
            place = rng.randrange(min(len(data), 400)) if rng.random() < 0.5 else rng.randrange(len(data))
            data[place] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        began = time.process_time()
        try:
            decoder.decode(bytes(data))
        except PacketError:
            refused += 1
        slowest = max(slowest, time.process_time() - began)
    assert 0 < refused < rounds
    assert slowest < 2.0


def test_mutations_of_our_own_packets(tmp_path):
    packets = [container([value(i) for i in range(3)], codec) for codec in ("null", "deflate", "snappy")]
    packets += [confluent_payload(7, body())]
    fuzz(random.Random(1), Decoder(READER, schemas=schemas(tmp_path)), packets, 3000)


def test_mutations_of_real_ztf_packets():
    packets = [path.read_bytes() for path in ztf_files() if path.stat().st_size < 200_000][::6]
    fuzz(random.Random(2), Decoder(load_survey("ztf", wanted=Wanted()).reader_schema), packets, 400)


def test_mutations_of_real_rubin_packets():
    pytest.importorskip("lsst.alert.packet", reason="package lsst-alert-packet is not installed")
    packets = [path.read_bytes() for path in rubin_files()][::4]
    fuzz(
        random.Random(3),
        Decoder(load_survey("lsst", wanted=Wanted()).reader_schema, schemas=SchemaSource()),
        packets,
        600,
    )


# --- real packets


def agree(wanted, got, expected):
    """Every wanted field has the value that fastavro reads, or None where the packet has no such field."""
    for field in wanted["fields"]:
        agree_as(field["type"], got[field["name"]], expected.get(field["name"]), field["name"])


def agree_as(branches, got, expected, name):
    kinds = {branch["type"]: branch for branch in branches if isinstance(branch, dict)}
    if isinstance(expected, dict):
        agree(kinds["record"], got, expected)
    elif isinstance(expected, list):
        assert len(got) == len(expected), name
        for one, other in zip(got, expected, strict=True):
            agree_as(kinds["array"]["items"], one, other, name)
    else:
        assert got == expected or (got != got and expected != expected), name


@pytest.mark.parametrize("kind", ["science", "template", "difference", "all"])
def test_every_real_ztf_packet_value_by_value(kind):
    survey = load_survey("ztf", wanted=Wanted()) if kind == "all" else load_survey("ztf", kind)
    decoder = Decoder(survey.reader_schema, max_packet_bytes=2**30)
    read = 0
    for path in ztf_files():
        data = path.read_bytes()
        got = decoder.decode(data)
        parts = [record for part in split_container(data) for record in decoder.decode(part)]
        assert parts == got
        for record, expected in zip(got, fastavro.reader(io.BytesIO(data)), strict=True):
            agree(survey.reader_schema, record, expected)
            read += 1
    assert read == 242


def test_every_real_rubin_packet_value_by_value():
    pytest.importorskip("lsst.alert.packet", reason="package lsst-alert-packet is not installed")
    from lsst.alert.packet import Schema as LsstSchema
    from lsst.alert.packet import get_schema_path

    survey = load_survey("lsst", wanted=Wanted())
    decoder = Decoder(survey.reader_schema, schemas=SchemaSource())
    definitions = {}
    for path in rubin_files():
        data = path.read_bytes()
        version = divmod(int.from_bytes(data[1:5], "big"), 100)
        if version not in definitions:
            name = "lsst.v{}_{}.alert.avsc".format(*version)
            definitions[version] = LsstSchema.from_file(f"{get_schema_path(*version)}/{name}").definition
        expected = fastavro.schemaless_reader(io.BytesIO(data[5:]), definitions[version])
        (got,) = decoder.decode(data)
        agree(survey.reader_schema, got, expected)
    assert len(definitions) == 3


def test_real_packets_take_the_fast_path():
    decoder = Decoder(load_survey("ztf", wanted=Wanted()).reader_schema, max_packet_bytes=2**30)
    for path in [*ztf_files(), *ztf_files()]:  # a schema is compiled at its second use
        decoder.decode(path.read_bytes())
    readers = [header.reader for header in decoder._containers._seen.values()]
    assert all(reader._fast is not None for reader in readers)
    real = real_data("ztf", "boom", "2695378462115010012.avro").read_bytes()
    header, sync = decoder._containers.header(real)
    ((_, data),) = wire._blocks(real, header, sync, 2**30)
    assert header.reader._fast is not None
    assert header.reader._fast(data, 0, len(data), Steps()) == header.reader.plain(data, 0, len(data))


@pytest.mark.parametrize("end", [-1, -17, -40, -10_000, -20_000, -40_000])
def test_a_real_ztf_packet_cut_short(end):
    data = real_data("ztf", "boom", "2695378462115010012.avro").read_bytes()
    assert reason_of(data[:end], Decoder(load_survey("ztf").reader_schema)) is Reason.TRUNCATED


@pytest.mark.parametrize("cut", [1, 100, 10_000, 35_000, 70_000])
def test_a_real_rubin_packet_cut_short(cut):
    """The template stamp is the last field and not wanted."""
    pytest.importorskip("lsst.alert.packet", reason="package lsst-alert-packet is not installed")
    decoder = Decoder(load_survey("lsst").reader_schema, schemas=SchemaSource())
    data = real_data("rubin", "wire", "v9_0_7912941781254298.bin").read_bytes()
    assert decoder.decode(data)
    assert reason_of(data[:-cut], decoder) is Reason.TRUNCATED


def test_reader_schemas_have_defaults_for_every_field():
    for name in ("ztf", "lsst", "sdss"):
        for kind in load_survey(name).stamp_kinds:
            root = Schema(load_survey(name, kind).reader_schema).root
            assert {field for field, _ in root.fields} == set(root.defaults)
