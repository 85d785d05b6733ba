"""Classification records: what goes in, the envelopes, versions, ELAsTiCC."""

import base64
import io
import json
import struct
import threading
from collections.abc import Iterator
from dataclasses import fields, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.resources import files
from typing import Any

import fastavro
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from skyheed.broker.errors import ServiceError, ServiceUnavailable, StreamError
from skyheed.broker.results import formats
from skyheed.broker.results import record as records
from skyheed.broker.results.record import Classification, Provenance, Status
from skyheed.broker.settings import FORMATS

HEADER = np.dtype(
    [("mjd", "f8"), ("band", "u1"), ("flags", "u2"), ("ra", "f8"), ("dec", "f8"), ("kafka_ms", "i8"),
     ("ingest_ms", "i8"), ("source_id", "u8")]
)  # fmt: skip
PROVENANCE = Provenance("0.1.0", "ConvEntion", "1", "ab12", "stamp-1", "convention-4/1", "cpu float32")
ANSWER = [("AGN", 2332, 0.1), ("SNIa", 2222, 0.6), ("Variable", 2000, 0.2), ("SNOther", 2221, 0.1)]


def header(n: int = 5) -> np.ndarray[Any, np.dtype[Any]]:
    rows = np.zeros(n, HEADER)
    rows["mjd"] = 59000.5 + np.arange(n)
    rows["band"] = np.arange(n) % 2 + 1
    rows["flags"] = [1 << (i % 3) for i in range(n)]
    rows["ra"], rows["dec"] = 10.0 + np.arange(n) / 1e4, -5.0
    rows["kafka_ms"] = 1_600_000_000_000 + np.arange(n) * 1000
    rows["ingest_ms"] = rows["kafka_ms"] + 40
    rows["source_id"] = 2**60 + np.arange(n) * 7
    return rows


def classification(rows: Any = None, answer: Any = ANSWER, reason: str | None = None, **other: Any) -> Classification:
    rows = header() if rows is None else rows
    values = {"survey": "ztf", "object_id": "ZTF18abc", "revision": 7, "classified_ms": 1_600_000_009_000, **other}
    return Classification.of(header=rows, probabilities=answer, reason=reason, provenance=PROVENANCE, **values)


def test_a_record_says_what_the_sequence_was() -> None:
    record = classification()
    assert record.status is Status.CLASSIFIED
    assert (record.top_class, record.reason) == ("SNIa", None)
    assert record.top_probability == pytest.approx(0.6)
    assert record.stamps_per_band == {"g": 3, "r": 2}
    assert (record.first_mjd, record.last_mjd, record.days_since_first) == (59000.5, 59004.5, 4.0)
    assert record.sources == tuple(2**60 + 7 * i for i in range(5))
    assert record.flags == 7
    assert (record.ra, record.dec) == (10.0004, -5.0)


def test_the_trigger_is_the_source_that_came_in_last() -> None:
    rows = header()
    rows["ingest_ms"][1] += 1_000_000
    record = classification(rows)
    assert record.triggering_source_id == rows["source_id"][1]
    assert (record.kafka_ms, record.ingest_ms) == (rows["kafka_ms"][1], rows["ingest_ms"][1])
    assert record.survey_ms == records.utc_ms(59004.5)


def test_of_stamps_that_came_together_the_newest_is_the_trigger() -> None:
    rows = header()
    rows["ingest_ms"] = 5
    assert classification(rows).triggering_source_id == rows["source_id"][-1]


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6))
def test_probabilities_sum_to_one(weights: list[float]) -> None:
    record = classification(answer=[(f"c{i}", i, w) for i, w in enumerate(weights)])
    assert sum(p.probability for p in record.probabilities) == pytest.approx(1, abs=1e-6)
    assert record.top_probability == max(record.probability_of.values())


def test_a_declined_object_has_a_reason_and_no_class() -> None:
    record = classification(header(2), None, "too_few_stamps")
    assert record.status is Status.NOT_CLASSIFIED
    assert (record.reason, record.top_class, record.top_probability, record.probabilities) == (
        "too_few_stamps", None, None, (),
    )  # fmt: skip


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_answer_that_is_not_finite_is_declined(bad: float) -> None:
    record = classification(answer=[("AGN", 2332, bad), ("SNIa", 2222, 0.5)])
    assert (record.status, record.reason) == (Status.NOT_CLASSIFIED, "not_finite")


@given(st.permutations(range(5)))
def test_the_id_depends_on_the_set_of_sources_only(order: list[int]) -> None:
    ids = header()["source_id"]
    assert records.classification_id("ztf", "a", ids[order], PROVENANCE) == records.classification_id(
        "ztf", "a", ids, PROVENANCE
    )


def test_the_id_depends_on_object_sources_and_model() -> None:
    ids = header()["source_id"]
    same = records.classification_id("ztf", "a", ids, PROVENANCE)
    assert same == records.classification_id("ztf", "a", ids, replace(PROVENANCE, device="cuda", skyheed_version="9"))
    others = {
        same,
        records.classification_id("lsst", "a", ids, PROVENANCE),
        records.classification_id("ztf", "b", ids, PROVENANCE),
        records.classification_id("ztf", "a", ids[:-1], PROVENANCE),
        records.classification_id("ztf", "a", ids, replace(PROVENANCE, weights_digest="cd")),
        records.classification_id("ztf", "a", ids, replace(PROVENANCE, preprocessing="stamp-2")),
    }
    assert len(others) == 6
    assert all(len(i) == 32 and int(i, 16) >= 0 for i in others)


@pytest.mark.parametrize(
    ("mjd_tai", "seconds"),
    [(51179.0, 32), (53735.9999, 32), (53736.001, 33), (54832.001, 34), (57754.001, 37), (60000.0, 37)],
)
def test_tai_to_utc_knows_the_leap_seconds(mjd_tai: float, seconds: int) -> None:
    # TAI - UTC: IERS Bulletin C
    assert records.utc_ms(mjd_tai) == round((mjd_tai - 40587) * 86_400_000) - seconds * 1000


@pytest.mark.parametrize("record", [classification(), classification(header(2), None, "too_few_stamps")])
def test_every_envelope_comes_back_equal(record: Classification) -> None:
    assert formats.decode(formats.encode(record)) == record
    assert formats.decode(formats.encode_wire(record, 42)) == record
    assert formats.decode(formats.encode_single(record)) == record


def test_fastavro_alone_reads_the_container() -> None:
    record = classification()
    (read,) = fastavro.reader(io.BytesIO(formats.encode(record)))
    assert isinstance(read, dict)
    assert read["object_id"] == "ZTF18abc"
    assert {p["name"]: p["taxonomy_id"] for p in read["probabilities"]} == {n: i for n, i, _ in ANSWER}
    assert round(read["kafka_ms"].timestamp() * 1000) == record.kafka_ms


def test_wire_is_magic_id_and_datum() -> None:
    message = formats.encode_wire(classification(), 901)
    assert struct.unpack(">bI", message[:5]) == (0, 901)
    schema = fastavro.parse_schema(json.loads(formats.schema_text()), named_schemas={})
    read = fastavro.schemaless_reader(io.BytesIO(message[5:]), schema, None)
    assert isinstance(read, dict)
    assert read["revision"] == 7


LONGS = st.integers(-(2**63), 2**63 - 1)
NUMBERS = st.floats(allow_nan=False)


@given(st.text(), LONGS, st.integers(0, 2**31 - 1), st.lists(LONGS, max_size=5), NUMBERS, st.booleans())
@example("", -(2**63), 0, [2**63 - 1], 0.0, False)
def test_the_datum_is_that_of_a_general_writer(
    text: str, number: int, small: int, sources: list[int], value: float, declined: bool
) -> None:
    """`datum.py` knows the schema by heart."""
    record = classification(header(2), None, text) if declined else classification()
    estimates = tuple(records.Estimate(text, value, -value) for _ in range(small % 3))
    record = replace(
        record, survey=text, object_id=text + "é", revision=number, n_stamps=small, sources=tuple(sources),
        ra=value, dec=-value, days_since_first=value, flags=small, survey_ms=number, kafka_ms=-small, model=text,
        stamps_per_band={band: small for band in text}, estimates=estimates,
        provenance=replace(PROVENANCE, model_name=text),
    )  # fmt: skip
    out = io.BytesIO()
    schema = fastavro.parse_schema(json.loads(formats.schema_text()), named_schemas={})
    times = {name: int(getattr(record, name)) for name in ("survey_ms", "kafka_ms", "ingest_ms", "classified_ms")}
    bare = json.loads(json.dumps(schema).replace('"logicalType": "timestamp-millis"', '"doc": ""'))
    fastavro.schemaless_writer(out, bare, record.to_dict() | times)
    assert formats.written(record) == out.getvalue()


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1])
def test_a_number_of_more_than_64_bits_is_refused(number: int) -> None:
    with pytest.raises(OverflowError):
        formats.written(replace(classification(), revision=number))


def test_two_workers_write_the_same_bytes() -> None:
    assert formats.encode(classification()) == formats.encode(classification())


def rewritten(record: Classification, change: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schema and the values of a record after `change(schema, values)`."""
    schema, values = json.loads(formats.schema_text()), record.to_dict()
    change(schema, values)
    return schema, values


def later_minor_version(schema: dict[str, Any], values: dict[str, Any]) -> None:
    schema["fields"].insert(3, {"name": "calibration", "type": "string", "default": "none"})
    values["calibration"] = "temperature-1.3"


def earlier_minor_version(schema: dict[str, Any], values: dict[str, Any]) -> None:
    schema["fields"] = [f for f in schema["fields"] if f["name"] != "flags"]
    del values["flags"]


@pytest.mark.parametrize(("change", "flags"), [(later_minor_version, 7), (earlier_minor_version, 0)])
def test_other_minor_versions_decode(change: Any, flags: int) -> None:
    record = classification()
    schema, values = rewritten(record, change)
    out, bare = io.BytesIO(), io.BytesIO()
    parsed = fastavro.parse_schema(schema, named_schemas={})
    fastavro.writer(out, parsed, [values], codec="deflate")
    fastavro.schemaless_writer(bare, parsed, values)
    expected = replace(record, flags=flags)
    assert formats.decode(out.getvalue()) == expected
    wire = b"\x00" + struct.pack(">I", 5) + bare.getvalue()
    assert formats.decode(wire, {5: schema}.__getitem__) == expected


def containers() -> Iterator[tuple[str, bytes]]:
    whole = formats.encode(classification())
    yield "cut in the middle", whole[: len(whole) // 2]
    yield "cut at the end", whole[:-1]
    yield "wrong sync marker", whole[:-5] + b"12345"
    yield "bytes behind it", whole + b"x"
    yield "empty", b""
    yield "text", b'{"object_id": "ZTF18abc"}'
    yield "wire without a record", b"\x00\x00\x00\x00\x01"
    yield "wire cut", formats.encode_wire(classification(), 1)[:-1]
    yield "wire with more", formats.encode_wire(classification(), 1) + b"x"
    yield "single cut", formats.encode_single(classification())[:-2]
    out = io.BytesIO()
    schema = fastavro.parse_schema(json.loads(formats.schema_text()), named_schemas={})
    fastavro.writer(out, schema, [classification().to_dict()] * 2)
    yield "two records", out.getvalue()
    other = io.BytesIO()
    fastavro.writer(other, {"type": "record", "name": "x", "fields": [{"name": "a", "type": "int"}]}, [{"a": 1}])
    yield "another schema", other.getvalue()


@pytest.mark.parametrize("payload", [pytest.param(p, id=name) for name, p in containers()])
def test_what_is_no_classification_is_a_stream_error(payload: bytes) -> None:
    with pytest.raises(StreamError, match=r".+"):
        formats.decode(payload)


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J", "a\x9b31m", "\u202egpj", "\ta", "a\0", "a\u2028b", ""])
def test_a_name_that_no_worker_writes_is_no_classification(name: str) -> None:
    """Ingest sets alerts with such names aside, so whoever wrote the record was no worker."""
    with pytest.raises(StreamError, match="not a classification") as refused:
        formats.decode(formats.encode(replace(classification(), object_id=name)))
    assert str(refused.value).isprintable()


def test_elasticc_has_the_fields_of_the_desc() -> None:
    record = classification()
    schema = formats.load_schema("elasticc", "v0_9_1", "brokerClassification.avsc")
    assert (schema["namespace"], schema["name"]) == ("elasticc.v0_9_1", "brokerClassfication")
    assert [f["name"] for f in schema["fields"]] == [
        "alertId", "diaSourceId", "elasticcPublishTimestamp", "brokerIngestTimestamp", "brokerName", "brokerVersion",
        "classifierName", "classifierParams", "classifications",
    ]  # fmt: skip
    # bare Avro, as the DESC's own clients read it: schemaless_reader with the published schema
    read = fastavro.schemaless_reader(
        io.BytesIO(formats.encode_elasticc(record)), fastavro.parse_schema(schema, named_schemas={}), None
    )
    assert isinstance(read, dict)
    assert read["diaSourceId"] == record.triggering_source_id
    assert {c["classId"] for c in read["classifications"]} == {2332, 2222, 2000, 2221}
    assert sum(c["probability"] for c in read["classifications"]) == pytest.approx(1, abs=1e-6)
    assert json.loads(read["classifierParams"])["objectId"] == "ZTF18abc"


def test_elasticc_says_not_classified_with_probability_one() -> None:
    message = classification(header(1), None, "too_few_stamps").to_elasticc()
    assert message["classifications"] == [{"classId": 300, "probability": 1.0}]


RELEASED = files("skyheed.schemas").joinpath("classification", "v1", "released")


def test_records_of_the_first_release_are_read() -> None:
    sample = json.loads(RELEASED.joinpath("1.0.json").read_text())
    old = RELEASED.joinpath("1.0.avro").read_bytes()
    assert formats.decode(old).to_json() == sample | {"model": "", "estimates": []}
    # as it was kept in Redis
    schema = fastavro.parse_schema(json.loads(RELEASED.joinpath("1.0.avsc").read_text()), named_schemas={})
    (record,) = fastavro.reader(io.BytesIO(old))
    datum = io.BytesIO()
    fastavro.schemaless_writer(datum, schema, record)
    canonical = fastavro.schema.to_parsing_canonical_form(schema)
    fingerprint = bytes.fromhex(fastavro.schema.fingerprint(canonical, "CRC-64-AVRO"))
    assert formats.decode(b"\xc3\x01" + fingerprint + datum.getvalue()).to_json() == formats.decode(old).to_json()


def test_readers_of_the_first_release_read_our_records() -> None:
    record = replace(classification(), model="vector", estimates=(records.Estimate("phase_days", -3.5, 1.2),))
    reader = fastavro.parse_schema(json.loads(RELEASED.joinpath("1.0.avsc").read_text()), named_schemas={})
    (found,) = fastavro.reader(io.BytesIO(formats.encode(record)), reader)
    assert found["object_id"] == record.object_id
    assert "estimates" not in found
    assert found["provenance"]["schema_version"] == "1.1"


def test_a_record_has_the_fields_of_the_schema() -> None:
    """A field with a default that only one of them has would be dropped without a word."""
    schema = formats.load_schema("classification", "v1", "classification.avsc")
    assert [f["name"] for f in schema["fields"]] == [f.name for f in fields(Classification)]
    types = {f["name"]: f["type"] for f in schema["fields"]}
    assert [f["name"] for f in types["provenance"]["fields"]] == [f.name for f in fields(Provenance)]
    for name, kind in (("probabilities", records.ClassProbability), ("estimates", records.Estimate)):
        assert [f["name"] for f in types[name]["items"]["fields"]] == [f.name for f in fields(kind)]


def test_a_record_names_its_model_and_carries_further_numbers() -> None:
    record = replace(classification(), model="vector", estimates=(records.Estimate("phase_days", -3.5, 1.2),))
    assert formats.decode(formats.encode(record)) == record
    assert formats.decode(formats.encode_single(record)) == record
    other = records.classification_id("ztf", "a", np.arange(3), PROVENANCE, "vector")
    assert other != records.classification_id("ztf", "a", np.arange(3), PROVENANCE, "convention")


def test_history_and_headers() -> None:
    record = classification()
    line = json.loads(record.to_history())
    assert (line["n_stamps"], line["days"], line["probabilities"]["SNIa"]) == (5, 4.0, 0.6)
    assert dict(record.headers())["_format"] == b"avro"
    assert "_format" not in dict(record.headers(container=False))


class Registry(BaseHTTPRequestHandler):
    """Answers as a schema registry does, to one user."""

    status = 200
    seen: list[tuple[str, dict[str, Any]]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.path, body))
        right = "Basic " + base64.b64encode(b"me:secret").decode()
        status = self.status if self.headers.get("Authorization") == right else 401
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps({"id": 17}).encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def registry() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Registry)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_register_posts_the_schema_and_returns_its_id(registry: str) -> None:
    assert formats.register(registry, "topic-value", "me", "secret") == 17
    path, body = Registry.seen[-1]
    assert path == "/subjects/topic-value/versions"
    assert json.loads(body["schema"])["name"] == "Classification"


def test_a_registry_that_refuses_is_named_without_the_password(registry: str) -> None:
    with pytest.raises(ServiceError, match=r"refuses topic-value with 401.*registry\.user") as caught:
        formats.register(registry, "topic-value", "me", "hunter2")
    assert "hunter2" not in str(caught.value)


def test_a_registry_that_is_away_or_ill_can_be_asked_again(registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServiceUnavailable, match="does not answer"):
        formats.register("http://127.0.0.1:9", "topic-value")
    monkeypatch.setattr(Registry, "status", 503)
    with pytest.raises(ServiceUnavailable, match="503"):
        formats.register(registry, "topic-value", "me", "secret")


def test_every_output_format_of_the_settings_has_an_encoder() -> None:
    assert tuple(formats.FORMATS) == FORMATS
    for form in formats.FORMATS.values():
        record = classification(header(1))
        assert form.encode(record, formats.datum_of(formats.encode_single(record)))


def test_a_record_that_is_kept_and_published_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    record, written = classification(header(3)), []
    writer = formats.written
    monkeypatch.setattr(formats, "written", lambda record: (written.append(record), writer(record))[1])
    kept = formats.encode_single(record)
    published = formats.FORMATS["avro"].encode(record, formats.datum_of(kept))
    assert len(written) == 1
    assert formats.decode(published) == formats.decode(kept) == record
    formats.encode_wire(record, 7, formats.datum_of(kept))
    assert len(written) == 1
    assert published == formats.encode(record), "and the same as by itself"
    assert len(written) == 2
