"""Fink Livestream's form: a bare record, whose schema is the key of the Kafka message."""

import io
import json
import uuid
from collections.abc import Callable
from pathlib import Path

import fastavro
import numpy as np
import pytest
import real_data
from stream_tools import ingest_all, record_of, settings_for
from test_surveys import lsst_packet, ztf_packet

from skyheed.broker import app
from skyheed.broker.errors import PacketError, Reason, SkipPacket
from skyheed.broker.kafka.client import Publisher, ensure_topics
from skyheed.broker.local import embedded
from skyheed.broker.packets.container import Decoder, Headers, with_key
from skyheed.broker.packets.reader import PacketReader, read_packet
from skyheed.broker.packets.surveys import load_survey
from skyheed.broker.packets.surveys.base import Wanted


def live(packet: bytes) -> tuple[bytes, bytes]:
    """The key and the value of the message that holds the one record of a container."""
    schema, record = record_of(packet)
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema, named_schemas={}), record)
    return json.dumps(schema).encode(), out.getvalue()


def reader(survey: str) -> PacketReader:
    found = load_survey(survey, wanted=Wanted())
    return PacketReader(found, Decoder(found.reader_schema))


def reason_of(value: bytes, headers: Headers) -> Reason:
    with pytest.raises(PacketError) as caught:
        reader("ztf").observations(value, list(headers))
    return caught.value.reason


@pytest.mark.parametrize(("survey", "packet"), [("ztf", ztf_packet()), ("lsst", lsst_packet())])
def test_a_bare_record_is_read_by_the_schema_in_its_key(survey: str, packet: bytes) -> None:
    key, value = live(packet)
    [seen] = reader(survey).observations(value, list(with_key([], key)))
    [wanted] = read_packet(packet, survey)
    np.testing.assert_array_equal(seen.stamp, wanted.stamp)
    assert (seen.object_id, seen.source_id, seen.mjd, seen.flux) == (
        wanted.object_id, wanted.source_id, wanted.mjd, wanted.flux,
    )  # fmt: skip


def test_a_record_that_begins_like_another_form_is_still_read_by_its_key() -> None:
    schema = {"type": "record", "name": "r", "fields": [{"name": "objectId", "type": "string"}]}
    decoder = Decoder(load_survey("ztf").reader_schema)
    assert decoder.decode(b"\x00", with_key([], json.dumps(schema).encode()))[0]["objectId"] == ""
    with pytest.raises(PacketError):
        decoder.decode(b"\x00")


def test_damaged_messages_say_what_is_wrong() -> None:
    key, value = live(ztf_packet())
    assert reason_of(value + b"?", with_key([], key)) == Reason.TRAILING_BYTES
    assert reason_of(value[:-5], with_key([], key)) == Reason.TRUNCATED
    assert reason_of(value, with_key([], b'{"type": "record", "fields": 7}')) == Reason.BAD_SCHEMA


@pytest.mark.parametrize("key", [None, b"", b"ZTF18abc", b"1.0_3.2", b'{"objectId": "ZTF18abc"}', b"{" + b" " * 2**24])
def test_keys_that_are_no_schema_are_left_alone(key: bytes | None) -> None:
    assert list(with_key([("a", b"b")], key)) == [("a", b"b")]
    [seen] = reader("ztf").observations(ztf_packet(), list(with_key([], key)))
    assert seen.object_id == "ZTF20abfcszi"


def test_a_container_with_a_schema_in_its_key_is_a_container() -> None:
    key, _ = live(ztf_packet())
    assert reader("ztf").observations(ztf_packet(), list(with_key([], key)))


@pytest.mark.parametrize(
    ("survey", "files"), [("ztf", lambda: sorted(real_data.real_data("ztf", "fink-client").glob("*.avro")))]
)
def test_real_packets_of_fink(survey: str, files: Callable[[], list[Path]]) -> None:
    checked = 0
    for path in files():
        if len(list(fastavro.reader(io.BytesIO(path.read_bytes())))) != 1:
            continue
        try:
            [wanted] = read_packet(path.read_bytes(), survey)
        except (SkipPacket, PacketError):
            continue
        key, value = live(path.read_bytes())
        [seen] = reader(survey).observations(value, list(with_key([], key)))
        np.testing.assert_array_equal(seen.stamp, wanted.stamp)
        checked += 1
    assert checked >= 3


@pytest.mark.kafka
@pytest.mark.redis
def test_through_kafka(kafka: embedded.Server, valkey: embedded.Server) -> None:
    settings = settings_for(
        kafka.address, valkey.url, "ztf", f"fink-{uuid.uuid4().hex[:8]}", **{"ingest.group": uuid.uuid4().hex}
    )
    topic = settings.ingest.topics[0]
    ensure_topics(settings.kafka, {topic: {}}, 1, 1)
    name = f"ZTF{uuid.uuid4().hex[:8]}"
    packets = [ztf_packet(top={"objectId": name, "candid": n}, candid=n, jd=2_459_000.5 + n) for n in (1, 2)]
    with Publisher(settings.kafka) as publisher:
        publisher.publish_all([(topic, *live(packet), None) for packet in packets])
        publisher.publish_all([(topic, live(packets[0])[0], b"cut", None)])
    counts = ingest_all(settings)
    assert (counts["stored"], counts["rejected"]) == (2, 1)
    assert app.read_store(settings)[0].sources(name) == {1, 2}
