"""What others write to a topic of classifications: taken if it is sound, refused in one sentence at little cost."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fastavro
import hostile_records as hostile
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packet_tools import zigzag
from test_record import classification

from skyheed.broker.errors import StreamError
from skyheed.broker.results import foreign, formats


def test_hostile_records_cost_little_time_and_memory() -> None:
    environ = {"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    said = subprocess.run(
        [sys.executable, str(Path(hostile.__file__))], capture_output=True, text=True, timeout=120, check=True,
        env=environ,
    ).stdout  # fmt: skip
    found = json.loads(said)
    ends = {name: end for name, (end, _) in found["ends"].items()}
    assert all(ends[name].startswith("not a classification: ") for name in hostile.HOSTILE), ends
    assert all(len(end) < 400 and end.isprintable() for end in ends.values())
    assert [ends[name] for name in hostile.SOUND] == ["taken", "taken"]
    assert max(seconds for _, seconds in found["ends"].values()) < 3.0, found
    assert found["grown_mib"] < 150, found


@pytest.mark.parametrize("codec", ["null", "deflate"])
def test_a_container_that_fastavro_wrote_is_read(codec: str) -> None:
    record = classification()
    out = io.BytesIO()
    schema = fastavro.parse_schema(json.loads(formats.schema_text()), named_schemas={})
    fastavro.writer(out, schema, [record.to_dict()], codec=codec)
    assert formats.decode(out.getvalue()) == record


def test_a_record_of_a_later_minor_version_is_read_in_every_envelope() -> None:
    text = hostile.more({"name": "later", "type": ["null", {"type": "array", "items": "double"}]}, first=False)
    schema: Any = fastavro.parse_schema(json.loads(text), named_schemas={})
    record = classification()
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, record.to_dict() | {"later": [1.0, 2.0]})
    assert formats.decode(hostile.container(text, out.getvalue())) == record
    wire = b"\0\0\0\0\x07" + out.getvalue()
    for given_schema in (json.loads(text), schema):
        asked: list[int] = []
        assert formats.decode(wire, lambda n, s=given_schema, a=asked: a.append(n) or s) == record
        assert asked == [7]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda text, datum: hostile.container(text, datum * 2, 2), "holds one classification, not 2"),
        (lambda text, datum: hostile.container(text, b"", 0), "holds one classification, not 0"),
        (lambda text, datum: hostile.container(text, datum, -1), "a block of -1 records"),
        (lambda text, datum: hostile.container(text, datum + b"?"), "1 bytes left over"),
        (lambda text, datum: hostile.container(text, datum[:-1]), "not a classification"),
        (lambda text, datum: hostile.container(text, datum, codec="snappy"), "null and deflate are read"),
        (lambda text, datum: hostile.container(text, datum, codec="deflate"), "deflate block that is damaged"),
        (lambda text, datum: hostile.container(text, b"", codec="deflate"), "deflate block that is cut short"),
        (lambda text, datum: hostile.container(text, datum)[:-1], "cut short"),
        (lambda text, datum: hostile.container(text, datum)[:-1] + b"?", "does not end with its sync marker"),
        (lambda text, datum: hostile.container("[]", datum), "BAD_SCHEMA|bad_schema|schema"),
        (lambda text, datum: hostile.container('"string"', b"\x02a"), "schema that is not a record"),
        (lambda text, datum: hostile.container("{", datum), "schema"),
        (lambda text, datum: hostile.container(text + " " * 2**15, datum), "a schema of .* bytes, more than 32768"),
        (lambda text, datum: b"Obj\x01" + b"\xff" * 30, "a number of more than ten bytes"),
        (lambda text, datum: b"Obj\x01" + zigzag(1) + zigzag(-5), "cut short"),
    ],
)
def test_what_is_wrong_with_a_container_is_one_sentence(make: Any, sentence: str) -> None:
    datum = formats.encode_single(classification())[10:]
    with pytest.raises(StreamError, match=sentence) as caught:
        formats.decode(make(formats.schema_text(), datum))
    assert str(caught.value).startswith("not a classification: ")
    assert len(str(caught.value)) < 400


def test_a_registrys_schema_is_measured_too() -> None:
    schema = json.loads(hostile.more({"name": "x", "type": {"type": "array", "items": "null"}}))
    with pytest.raises(StreamError, match="few bytes encode many values"):
        formats.decode(b"\0\0\0\0\x01" + zigzag(2**60) + b"\0", lambda _: schema)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_bytes_end_in_anything_but_a_record_or_a_sentence(data: st.DataObject) -> None:
    good = data.draw(st.sampled_from([
        formats.encode(classification()), formats.encode_single(classification()),
        hostile.container(hostile.more({"name": "m", "type": {"type": "map", "values": ["null", "bytes"]}}), b"\0"),
    ]))  # fmt: skip
    message = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    try:
        formats.decode(bytes(message))
        said = ""
    except StreamError as error:
        said = str(error)
    assert not said or said.startswith("not a classification: ")


def test_only_a_few_schemas_are_remembered() -> None:
    datum = formats.encode_single(classification())[10:]
    for n in range(100):
        formats.decode(hostile.container(formats.schema_text() + " " * n, datum))
    assert foreign.writer_schema.cache_info().currsize <= 16
