"""Replay: every packet found, in time order, at the pace asked for, again from where it stopped."""

import gzip
import io
import json
import logging
import tarfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import fastavro
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from process_tools import until
from real_data import real_data
from server_tools import HOME, NEEDS_APACHE
from test_made_again import remake

from skyheed.broker import replay
from skyheed.broker.errors import ConfigError, ServiceError
from skyheed.broker.kafka.client import BatchConsumer, Publisher
from skyheed.broker.local import embedded
from skyheed.broker.packets.container import Decoder, SchemaSource
from skyheed.broker.packets.index import PacketIndex
from skyheed.broker.packets.surveys import load_survey
from skyheed.broker.packets.surveys.sdss import alert_from_archive
from skyheed.broker.replay import due_times, order
from skyheed.classifier.archives.reader import ArchiveObject, ArchiveWriter, stamp_rows

SDSS = load_survey("sdss")


def packet(number: int, mjd: float) -> bytes:
    pixels = np.full((64, 64), number, np.float32)
    return alert_from_archive(
        object_id=f"o{number % 7}", source_id=number, mjd=mjd, band="r", ra=10.0, dec=0.0, stamp=pixels
    )


def number_of(payload: bytes) -> int:
    return int(Decoder(SDSS.reader_schema).decode(payload)[0]["sourceId"])


def several(*packets: bytes, codec: str = "deflate") -> bytes:
    """One file of several records."""
    records: list[Any] = []
    schema: Any = None
    for one in packets:
        reader = fastavro.reader(io.BytesIO(one))
        schema = reader.writer_schema
        records += reader
    out = io.BytesIO()
    fastavro.writer(out, schema, records, codec=codec)
    return out.getvalue()


def times(count: int, seed: int = 1) -> list[float]:
    return list(53600 + np.random.default_rng(seed).permutation(count) / 24)


def tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def tarred(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def sent_in_order(*paths: Path, survey: Any = SDSS) -> list[bytes]:
    with PacketIndex(survey) as index:
        for path in paths:
            index.add(path)
        return [index.payload(i) for i in order(index.mjd)]


# --- what is found -------------------------------------------------------------------------------------------------


def test_files_folders_and_archives_come_in_order_of_time(tmp_path: Path) -> None:
    mjd = times(40)
    packets = [packet(i, t) for i, t in enumerate(mjd)]
    folder = tmp_path / "night" / "deeper"
    folder.mkdir(parents=True)
    for i in range(5):
        (folder / f"{i}.avro").write_bytes(packets[i])
    (folder / "notes.txt").write_text("not a packet")
    tar(tmp_path / "night" / "a.tar", {f"{i}.avro": packets[i] for i in range(5, 15)} | {"README": b"no packet"})
    tar(tmp_path / "night" / "b.tar.gz", {f"x/{i}.avro": packets[i] for i in range(15, 25)}, "w:gz")
    (folder / "many.avro").write_bytes(several(*packets[25:39]))
    single = tmp_path / "packet-without-suffix"
    single.write_bytes(packets[39])
    found = sent_in_order(tmp_path / "night", single)
    assert [number_of(p) for p in found] == list(np.argsort(mjd))
    assert found[int(np.argsort(np.argsort(mjd))[3])] == packets[3]  # byte for byte


@pytest.mark.parametrize("codec", ["null", "deflate", "snappy"])
def test_a_file_of_several_records_becomes_messages_of_one(tmp_path: Path, codec: str) -> None:
    packets = [packet(i, 53600 - i) for i in range(6)]
    (tmp_path / "many.avro").write_bytes(several(*packets, codec=codec))
    found = sent_in_order(tmp_path)
    assert [number_of(p) for p in found] == [5, 4, 3, 2, 1, 0]
    assert all(len(Decoder(SDSS.reader_schema).decode(p)) == 1 for p in found)


def test_damaged_packets_are_sent_too_beside_their_neighbours(tmp_path: Path) -> None:
    packets = [packet(i, 53600.0 + i) for i in range(4)]
    cut, no_time, noise = packets[1][:-100], packet(9, float("nan")), b"no packet at all"
    tar(
        tmp_path / "a.tar",
        {"0.avro": packets[0], "1.avro": cut, "2.avro": packets[2], "3.avro": noise, "4.avro": no_time},
    )
    assert sent_in_order(tmp_path / "a.tar") == [packets[0], cut, packets[2], noise, no_time]
    (tmp_path / "empty.avro").write_bytes(b"")
    assert sent_in_order(tmp_path / "empty.avro") == [b""]


def test_a_damaged_record_does_not_hide_the_others_of_its_file(tmp_path: Path) -> None:
    packets = [packet(3, 53603.0), packet(9, float("nan")), packet(1, 53601.0)]
    (tmp_path / "many.avro").write_bytes(several(*packets))
    assert [number_of(p) for p in sent_in_order(tmp_path)] == [1, 3, 9]


def test_packets_that_name_their_schema_by_number_need_its_source(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader = fastavro.reader(io.BytesIO(packet(0, 53600.0)))
    schema: Any = reader.writer_schema
    [plain] = list(reader)
    (tmp_path / "7.avsc").write_text(json.dumps(schema))
    for i in range(3):
        out = io.BytesIO(b"\x00" + (7).to_bytes(4, "big"))
        out.seek(0, io.SEEK_END)
        fastavro.schemaless_writer(out, schema, {**plain, "sourceId": i, "mjd": 53600.0 - i})
        (tmp_path / f"{i}.bin").write_bytes(out.getvalue())
    for schemas, unknown in ((None, 3), (SchemaSource(directory=tmp_path, package=""), 0)):
        with PacketIndex(SDSS, schemas) as index:
            index.add(tmp_path)
            assert index.unknown_times == unknown
            replay._warn(index)
    assert index.mjd.tolist() == [53600.0, 53599.0, 53598.0]
    assert [r.getMessage()[:32] for r in caplog.records] == ["3 of 3 packets have no readable "]


def test_an_archive_of_stamp_sequences_becomes_alerts(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    with ArchiveWriter(tmp_path / "archive", {"command": "a test", "made": "by hand"}) as writer:
        for o in range(3):
            n = 4 + o
            pixels = rng.normal(0, 30, (n, 64, 64)).astype(np.float32)
            columns = {
                "source_id": np.arange(n) + 100 * o,
                "mjd": 53600 + rng.permutation(n) + o / 10,
                "band": np.array(list("grizu"))[np.arange(n) % 5],
                "detected": np.ones(n, bool),
                "alert": np.arange(n) > 0,
                "flux": np.full(n, 9.0),
                "flux_error": np.ones(n),
                "psf_fwhm": np.full(n, 1.3),
                "sky_noise": np.full(n, 30.0),
                "zero_point": np.full(n, 23.0),
            }
            thing = ArchiveObject(f"s{o}", "SNIa", "SNIa", True, 0.1, 10.0 + o, -0.5, 53600.0, "test", "sdss")
            writer.add(thing, stamp_rows({"stamp": pixels}, columns))
    observations = [
        SDSS.observation(Decoder(SDSS.reader_schema).decode(p)[0]) for p in sent_in_order(tmp_path / "archive")
    ]
    assert [o.mjd for o in observations] == sorted(o.mjd for o in observations)
    assert Counter(o.object_id for o in observations) == {"s0": 3, "s1": 4, "s2": 5}  # one stamp each was no alert
    assert {(o.object_id, o.ra) for o in observations} == {("s0", 10.0), ("s1", 11.0), ("s2", 12.0)}
    with pytest.raises(ConfigError, match="replay it as sdss, not as ztf"):
        sent_in_order(tmp_path / "archive", survey=load_survey("ztf"))


def test_nothing_to_replay_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no packets here")
    with pytest.raises(ConfigError, match=r"holds no packets: files must end with \.avro"):
        sent_in_order(tmp_path)
    with pytest.raises(ConfigError, match="holds no packets"):
        sent_in_order(tar(tmp_path / "a.tar", {"README": b"x"}))


def test_what_is_no_tar_archive_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for broken in (b"x" * 5000, b"", gzip.compress(b"x" * 5000), tarred({"0.avro": packet(0, 53600.0)})[:700]):
        path.write_bytes(broken)
        with pytest.raises(ConfigError, match=f"{path} is damaged or not a tar archive"):
            sent_in_order(path)


def test_unpacked_archives_leave_nothing_behind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tar(tmp_path / "a.tar.gz", {f"{i}.avro": packet(i, 53600.0 + i) for i in range(3)}, "w:gz")
    caplog.set_level(logging.WARNING, "skyheed.replay")
    with PacketIndex(SDSS) as index:
        index.add(path)
        folder = index._folder
        assert f"unpacking {path}" in caplog.text
        assert len(list(folder.iterdir())) == 1
    assert not folder.exists()


def test_all_real_ztf_packets_are_found() -> None:
    found = sent_in_order(real_data("ztf"), survey=load_survey("ztf"))
    assert len(found) == 242  # ../shared/data/README.md
    survey = load_survey("ztf")
    decoder = Decoder(survey.reader_schema)
    mjd = [survey.time(record) for p in found for record in decoder.decode(p)]
    assert len(mjd) == 242
    assert mjd == sorted(mjd)


def test_all_real_rubin_packets_are_found() -> None:
    pytest.importorskip("lsst.alert.packet")
    folder = real_data("rubin", "wire")
    found = sent_in_order(folder, survey=load_survey("lsst"))
    assert sorted(found) == sorted(p.read_bytes() for p in folder.glob("*.bin"))


# --- order and pace ------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(50000, 60000), max_size=50), st.floats(0, 1), st.none() | st.integers(0, 9))
def test_every_packet_goes_out_and_a_fraction_twice(mjd: list[float], duplicate: float, seed: int | None) -> None:
    found = Counter(order(np.array(mjd), seed, duplicate).tolist())
    assert set(found) == set(range(len(mjd)))
    assert set(found.values()) <= {1, 2}
    assert sum(found.values()) == len(mjd) + round(duplicate * len(mjd))


def test_a_copy_comes_behind_its_original_and_the_rest_stays_in_order() -> None:
    mjd = np.array(times(200))
    found = order(mjd, duplicate=0.25)
    first = list(dict.fromkeys(found.tolist()))
    assert first == np.argsort(mjd).tolist()


def test_shuffling_is_reproducible_and_thorough() -> None:
    mjd = np.arange(100.0)
    assert order(mjd, 7).tolist() == order(mjd, 7).tolist() != order(mjd, 8).tolist()
    assert sorted(order(mjd, 7)) == list(range(100))
    assert order(mjd, 0).tolist() != list(range(100))


def test_due_times_follow_survey_time_or_rate() -> None:
    mjd = np.array([53600.0, 53600.5, 53600.25, 53601.0])
    assert due_times(mjd, 86_400, None).tolist() == [0, 0.5, 0.5, 1.0]
    assert due_times(mjd, None, 4).tolist() == [0, 0.25, 0.5, 0.75]
    assert due_times(mjd, None, None).tolist() == [0, 0, 0, 0]


def test_nothing_left_to_send_is_due_at_no_time() -> None:
    for pace in ((86_400, None), (None, 4), (None, None)):
        assert due_times(np.array([]), *pace).tolist() == []


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"speed": 1.0, "rate": 1.0}, "not both"),
        ({"speed": 0.0}, "above 0"),
        ({"rate": -1.0}, "above 0"),
        ({"speed": 1.0, "shuffle": 1}, "does not follow survey time"),
        ({"duplicate": 1.5}, "fraction"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        replay.replay({}, SDSS, ["x"], "t", **settings)


# --- to Kafka ------------------------------------------------------------------------------------------------------


@pytest.fixture
def night(tmp_path: Path) -> Path:
    folder = tmp_path / "night"
    folder.mkdir()
    for i, mjd in enumerate(times(60)):
        (folder / f"{i:02d}.avro").write_bytes(packet(i, mjd))
    return folder


def arrived(server: embedded.Server, topic: str) -> list[int]:
    """Source ids in the order of arrival (topics here have one partition)."""
    found = []
    with BatchConsumer({"bootstrap.servers": server.address}, [topic], None, drain=True) as consumer:
        while True:
            messages = consumer.consume(100, 0.2)
            assert all(m.key() is None for m in messages)  # surveys set none
            found += [number_of(m.value() or b"") for m in messages]
            if not messages and consumer.drained():
                return found


def once_some_arrived(server: embedded.Server, topic: str, then: Callable[[], object]) -> threading.Thread:
    """Calls `then` in a thread as soon as the topic has a few messages: a time would be too short on a busy machine."""

    def watch() -> None:
        client = ck.Consumer({"bootstrap.servers": server.address, "group.id": "watch"})
        until(lambda: client.get_watermark_offsets(ck.TopicPartition(topic, 0))[1] >= 5)
        client.close()
        then()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def make_topic(server: embedded.Server) -> tuple[dict[str, str], str]:
    from skyheed.broker.kafka.client import ensure_topics

    options, topic = {"bootstrap.servers": server.address}, f"alerts-{uuid.uuid4().hex[:8]}"
    ensure_topics(options, {topic: {}}, 1, 1)
    return options, topic


BY_TIME = np.argsort(times(60)).tolist()


@pytest.mark.kafka
def test_flat_out_in_order_of_time(kafka: embedded.Server, night: Path) -> None:
    options, topic = make_topic(kafka)
    assert replay.replay(options, SDSS, [night], topic) == 60
    assert arrived(kafka, topic) == BY_TIME


@pytest.mark.kafka
def test_at_a_rate_and_at_a_speed(kafka: embedded.Server, night: Path) -> None:
    options, topic = make_topic(kafka)
    for pace in ({"rate": 60.0}, {"speed": 59 * 3600.0}):  # the packets are an hour apart
        began = time.monotonic()
        assert replay.replay(options, SDSS, [night], topic, **pace) == 60
        assert 0.9 < time.monotonic() - began < 4
    assert arrived(kafka, topic) == BY_TIME * 2


@pytest.mark.kafka
def test_shuffled_and_duplicated(kafka: embedded.Server, night: Path) -> None:
    options, topic = make_topic(kafka)
    assert replay.replay(options, SDSS, [night], topic, shuffle=3, duplicate=0.2) == 72
    found = arrived(kafka, topic)
    assert set(found) == set(range(60))
    assert found != sorted(found, key=BY_TIME.index)


@pytest.mark.kafka
def test_goes_on_where_it_stopped(kafka: embedded.Server, night: Path, tmp_path: Path) -> None:
    options, topic = make_topic(kafka)
    state, stop = tmp_path / "state.json", threading.Event()
    once_some_arrived(kafka, topic, stop.set)
    first = replay.replay(options, SDSS, [night], topic, rate=20, state=state, stop=stop)
    assert 0 < first < 60
    assert json.loads(state.read_text())["sent"] == first
    assert replay.replay(options, SDSS, [night], topic, state=state) == 60 - first
    assert arrived(kafka, topic) == BY_TIME
    assert replay.replay(options, SDSS, [night], topic, state=state) == 0
    assert replay.replay(options, SDSS, [night], topic, state=state, speed=3600.0) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["night", "state.json"]


@pytest.mark.kafka
def test_a_state_of_something_else_is_refused(kafka: embedded.Server, night: Path, tmp_path: Path) -> None:
    options, topic = make_topic(kafka)
    state = tmp_path / "state.json"
    replay.replay(options, SDSS, [night], topic, state=state)
    with pytest.raises(ConfigError, match="another replay"):
        replay.replay(options, SDSS, [night], topic, state=state, shuffle=1)
    with pytest.raises(ConfigError, match="another replay"):
        replay.replay(options, SDSS, [night], f"{topic}-2", state=state)
    (night / "60.avro").write_bytes(packet(60, 53600.0))
    with pytest.raises(ConfigError, match="another replay"):
        replay.replay(options, SDSS, [night], topic, state=state)
    state.write_text("{}")
    with pytest.raises(ConfigError, match="not the state file of a replay"):
        replay.replay(options, SDSS, [night], topic, state=state)


@pytest.mark.kafka
@pytest.mark.skipif(not HOME, reason=NEEDS_APACHE)
def test_a_state_says_nothing_about_a_topic_made_again(kafka: embedded.Server, night: Path, tmp_path: Path) -> None:
    options, topic = make_topic(kafka)
    state, stop = tmp_path / "state.json", threading.Event()
    once_some_arrived(kafka, topic, stop.set)
    assert 0 < replay.replay(options, SDSS, [night], topic, rate=20, state=state, stop=stop) < 60
    remake(kafka, topic)
    with pytest.raises(ConfigError, match=f"counts what was sent to an earlier topic {topic}, which was deleted"):
        replay.replay(options, SDSS, [night], topic, state=state)
    state.unlink()
    assert replay.replay(options, SDSS, [night], topic, state=state) == 60
    old = {name: value for name, value in json.loads(state.read_text()).items() if name != "topic_id"}
    state.write_text(json.dumps(old))  # of an earlier release
    assert replay.replay(options, SDSS, [night], topic, state=state) == 0


@pytest.mark.kafka
@pytest.mark.skipif(not HOME, reason=NEEDS_APACHE)
def test_a_topic_that_is_made_again_while_it_is_sent_to_is_an_error(kafka: embedded.Server, night: Path) -> None:
    options, topic = make_topic(kafka)
    again = once_some_arrived(kafka, topic, lambda: remake(kafka, topic))
    with pytest.raises(ServiceError, match=f"topic {topic} was deleted and created again: what was sent before"):
        replay.replay(options, SDSS, [night], topic, rate=20)
    again.join()


@pytest.mark.kafka
@pytest.mark.skipif(not HOME, reason=NEEDS_APACHE)
def test_a_broker_that_goes_away_loses_nothing(
    apache_kafka: embedded.Server, night: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, topic = make_topic(apache_kafka)
    monkeypatch.setattr(replay, "Publisher", lambda o: Publisher(o, deadline_s=2.0))
    result: list[int] = []
    run = threading.Thread(
        target=lambda: result.append(replay.replay(options, SDSS, [night], topic, rate=12, state=tmp_path / "s"))
    )
    run.start()
    once_some_arrived(apache_kafka, topic, apache_kafka.kill).join()
    time.sleep(2)
    apache_kafka.restart()
    run.join(90)
    assert result == [60]
    found = arrived(apache_kafka, topic)
    assert list(dict.fromkeys(found)) == BY_TIME
