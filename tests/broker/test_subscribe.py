"""The client: what it hands out, when it moves on, what it writes; and that strangers can read the topic."""

import csv
import io
import json
import logging
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import fastavro
import pytest
from pyarrow import parquet
from test_record import classification, header

from skyheed.broker import record_writers, subscribe
from skyheed.broker.errors import ConfigError, ServiceError, StreamError
from skyheed.broker.kafka.client import Publisher, ensure_topics
from skyheed.broker.local import embedded
from skyheed.broker.results import formats
from skyheed.broker.results.record import Classification, Wanted
from skyheed.broker.subscribe import Subscriber

pytestmark = pytest.mark.kafka
QUICK = {"session.timeout.ms": "6000"}  # the embedded broker lets a new group wait for half of it


def record(number: int, revision: int = 1, **answer: float) -> Classification:
    """A classification of object `number`; another id for every revision."""
    rows = header(3 + revision)
    rows["source_id"] += number * 1000
    probabilities = [(name, 2000, p) for name, p in (answer or {"SNIa": 0.9, "AGN": 0.1}).items()]
    return classification(rows, probabilities, object_id=f"object-{number}", revision=revision)


def declined(number: int) -> Classification:
    return classification(header(2), None, "too_few_stamps", object_id=f"object-{number}", revision=1)


class Topic:
    """A topic of classifications."""

    def __init__(self, server: embedded.Server) -> None:
        self.kafka = server.address
        self.name = f"classifications-{uuid.uuid4().hex[:8]}"
        ensure_topics({"bootstrap.servers": self.kafka}, {self.name: {}}, 3, 1)

    def publish(self, *messages: Classification | bytes) -> None:
        with Publisher({"bootstrap.servers": self.kafka}) as publisher:
            publisher.publish_all([self._outgoing(m) for m in messages])

    def _outgoing(self, message: Classification | bytes) -> Any:
        if isinstance(message, bytes):
            return self.name, b"?", message, None
        return self.name, message.object_id.encode(), formats.encode(message), message.headers()

    def subscriber(self, **options: Any) -> Subscriber:
        return Subscriber(self.kafka, topic=self.name, drain=True, options=QUICK, **options)

    def read(self, **options: Any) -> list[Classification]:
        with self.subscriber(**options) as stream:
            return list(stream)


@pytest.fixture
def topic(kafka: embedded.Server) -> Topic:
    return Topic(kafka)


def numbers(found: list[Classification]) -> list[int]:
    return sorted(int(r.object_id.split("-")[1]) for r in found)


def test_typed_records_come_out(topic: Topic) -> None:
    sent = [record(i) for i in range(30)]
    topic.publish(*sent)
    assert sorted(topic.read(), key=lambda r: r.object_id) == sorted(sent, key=lambda r: r.object_id)


def test_filters_by_class_and_probability(topic: Topic) -> None:
    topic.publish(record(1, SNIa=0.9, AGN=0.1), record(2, SNIa=0.6, AGN=0.4), record(3, SNIa=0.1, AGN=0.9), declined(4))
    assert numbers(topic.read()) == [1, 2, 3, 4]
    assert numbers(topic.read(classes=["SNIa"])) == [1, 2]
    assert numbers(topic.read(min_probability=0.8)) == [1, 3]
    assert numbers(topic.read(classes=["SNIa", "AGN"], min_probability=0.95)) == []


def test_repeats_and_older_answers_are_dropped(topic: Topic) -> None:
    topic.publish(record(1, 1), record(1, 2), record(1, 2), record(1, 1), record(1, 3), record(2, 1), record(2, 1))
    seen = {(r.object_id, r.revision) for r in topic.read()}
    assert seen == {("object-1", 1), ("object-1", 2), ("object-1", 3), ("object-2", 1)}
    assert len(topic.read()) == 4
    assert len(topic.read(drop_repeats=False)) == 7


def test_an_older_answer_that_was_never_seen_is_dropped_too(topic: Topic) -> None:
    topic.publish(record(1, 5), record(1, 4))
    assert [r.revision for r in topic.read()] == [5]


def test_a_newer_answer_to_the_same_sources_is_no_repeat() -> None:
    repeats = subscribe._Repeats()
    first = record(1, 3)
    replaced = replace(first, revision=4, top_class="AGN")  # a stored stamp was replaced: same sources, same id
    assert replaced.classification_id == first.classification_id
    assert [repeats.seen(r) for r in (first, first, replaced, replaced, first)] == [False, True, False, True, True]


def test_the_memory_of_repeats_is_bounded() -> None:
    repeats = subscribe._Repeats(size=100)
    assert not any(repeats.seen(record(i)) for i in range(1000))
    assert repeats.seen(record(999))
    assert max(len(repeats._answers), len(repeats._revisions)) <= 200


def test_a_group_goes_on_behind_the_last_record_that_was_handled(topic: Topic) -> None:
    topic.publish(*[record(i) for i in range(12)])
    handled: list[Classification] = []

    def handle_until_it_fails() -> None:
        with topic.subscriber(group="me") as stream:
            for r in stream:
                if len(handled) == 5:
                    raise RuntimeError("the reader's own trouble")
                handled.append(r)

    with pytest.raises(RuntimeError):
        handle_until_it_fails()
    rest = topic.read(group="me")
    assert numbers(handled + rest) == list(range(12))  # the sixth, whose handling failed, came again
    assert topic.read(group="me") == []
    assert len(topic.read()) == 12  # without a group from the beginning


def test_a_held_position_holds_no_messages(topic: Topic) -> None:
    topic.publish(*map(record, range(300)))
    with topic.subscriber(group="held") as stream:
        stream.hold_position = True
        assert sum(1 for _ in stream) == 300
        assert len(stream._done) <= 3  # partitions
    assert topic.read(group="held") == []


def test_what_the_filter_left_out_is_not_read_again(topic: Topic) -> None:
    topic.publish(*[record(i, AGN=1.0) for i in range(5)])
    assert topic.read(group="g", classes=["SNIa"]) == []
    assert topic.read(group="g") == []


def test_a_record_that_does_not_decode_is_named_and_passed(topic: Topic) -> None:
    topic.publish(b"not avro")
    topic.publish(*[record(i) for i in range(5)])
    found = []
    with topic.subscriber() as stream:
        with pytest.raises(StreamError, match=rf"{topic.name} partition \d offset 0: not a classification"):
            found.extend(stream)
        found += list(stream)
    assert numbers(found) == list(range(5))


def test_bad_records_can_be_counted_instead(topic: Topic, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "skyheed.subscribe")
    topic.publish(record(1), b"", b"Obj\x01\x00", record(2))
    with topic.subscriber(skip_bad=True) as stream:
        assert numbers(list(stream)) == [1, 2]
        assert stream.bad == 2
    assert caplog.text.count("skipped:") == 2


def test_the_command_line_passes_over_bad_records_only_when_told(topic: Topic) -> None:
    topic.publish(record(1), b"Obj\x01\x00", record(2))
    words = ["subscribe", "--topic", topic.name, "--kafka", topic.kafka, "--format", "json", "--drain"]
    command = [sys.executable, "-m", "skyheed.broker.cli", *words]
    strict = subprocess.run(command, capture_output=True, text=True, check=False)
    assert strict.returncode == 1
    assert strict.stderr.splitlines()[-1].startswith(f"skyheed: {topic.name} partition")
    assert strict.stderr.rstrip().endswith("--skip-bad skips such records")
    lenient = subprocess.run([*command, "--skip-bad"], capture_output=True, text=True, check=False)
    assert lenient.returncode == 0, lenient.stderr
    assert len(lenient.stdout.splitlines()) == 2
    assert "skipped 1 records that are not classifications" in lenient.stderr


def test_confluent_wire_is_read_with_the_schema_of_its_id(topic: Topic) -> None:
    asked: list[int] = []

    def schema(number: int) -> dict[str, Any]:
        asked.append(number)
        return dict(json.loads(formats.schema_text()))

    topic.publish(formats.encode_wire(record(1), 12))
    assert topic.read(writer_schema=schema) == [record(1)]
    assert asked == [12]


def test_stop_ends_an_endless_stream(topic: Topic) -> None:
    topic.publish(record(1))
    with Subscriber(topic.kafka, topic=topic.name) as stream:
        for _ in stream:
            stream.stop()


def test_a_wrong_start_and_a_missing_topic_are_errors(kafka: embedded.Server) -> None:
    with pytest.raises(ConfigError, match="beginning or latest"):
        Subscriber(kafka.address, topic="t", start="now")
    with (
        Subscriber(kafka.address, topic="no-such-topic", drain=True) as stream,
        pytest.raises(ServiceError, match="no-such-topic"),
    ):
        list(stream)


def test_neither_torch_nor_redis_is_needed() -> None:
    code = "import sys, broker.subscribe; sys.exit(bool({'torch', 'redis', 'pyarrow', 'isal'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- strangers -----------------------------------------------------------------------------------------------------


def test_a_stranger_reads_the_topic_with_fastavro_alone(topic: Topic) -> None:
    topic.publish(record(1), declined(2))
    reader = ck.Consumer(
        {"bootstrap.servers": topic.kafka, "group.id": "stranger", "auto.offset.reset": "earliest", **QUICK}
    )
    reader.subscribe([topic.name])
    found: dict[str, Any] = {}
    for _ in range(100):
        for message in reader.consume(10, 0.3):
            (read,) = fastavro.reader(io.BytesIO(message.value() or b""))
            assert isinstance(read, dict)
            found[(message.key() or b"").decode()] = read
        if len(found) == 2:
            break
    reader.close()
    assert found["object-1"]["top_class"] == "SNIa"
    assert found["object-1"]["classified_ms"] == datetime.fromtimestamp(1_600_000_009, UTC)
    assert (found["object-2"]["status"], found["object-2"]["reason"]) == ("NOT_CLASSIFIED", "too_few_stamps")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_stranger_reads_the_topic_with_hop_client(topic: Topic) -> None:
    pytest.importorskip("six", reason="hop-client imports six without asking for it")
    hop = pytest.importorskip("hop")
    topic.publish(*[record(i) for i in range(3)])
    stream = hop.io.Stream(auth=False, until_eos=True, start_at=hop.io.StartPosition.EARLIEST)
    with stream.open(f"kafka://{topic.kafka}/{topic.name}", "r", group_id=f"hop-{uuid.uuid4().hex}") as messages:
        found = list(messages)
    assert {type(m).__name__ for m in found} == {"AvroBlob"}
    assert sorted(m.content["object_id"] for m in found) == ["object-0", "object-1", "object-2"]


# --- output --------------------------------------------------------------------------------------------------------


@pytest.fixture
def answers() -> list[Classification]:
    return [record(1), record(2, 4, AGN=0.7, SNIa=0.3), declined(3)]


def test_the_table_is_aligned(answers: list[Classification]) -> None:
    out = io.StringIO()
    assert record_writers.write_table(answers, out) == 3
    title, *rows = out.getvalue().splitlines()
    assert [row.split()[:3] for row in rows] == [
        ["2020-09-13T12:26:49", "object-1", "4"],
        ["2020-09-13T12:26:49", "object-2", "7"],
        ["2020-09-13T12:26:49", "object-3", "2"],
    ]
    start = title.index("class ")
    assert [row[start:].split()[0] for row in rows] == ["SNIa", "AGN", "(too_few_stamps)"]
    assert rows[0].endswith("0.900")


def test_json_is_one_object_a_line(answers: list[Classification], tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    assert record_writers.write(answers, "json", path) == 3
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [a.to_json() for a in answers]
    assert lines[2]["status"] == "NOT_CLASSIFIED"


def test_csv_has_a_header_and_plain_cells(answers: list[Classification], tmp_path: Path) -> None:
    path = tmp_path / "answers.csv"
    assert record_writers.write(answers, "csv", path) == 3
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["object_id"] for row in rows] == ["object-1", "object-2", "object-3"]
    assert json.loads(rows[1]["probabilities"])["AGN"] == pytest.approx(0.7)
    assert json.loads(rows[0]["sources"]) == list(answers[0].sources)
    assert rows[0]["provenance_model_name"] == "ConvEntion"
    assert (rows[2]["top_class"], rows[2]["reason"]) == ("", "too_few_stamps")


def test_parquet_keeps_types_and_values(answers: list[Classification], tmp_path: Path) -> None:
    path = tmp_path / "answers.parquet"
    assert record_writers.write(answers, "parquet", path) == 3
    table = parquet.read_table(path)
    rows = table.to_pylist(maps_as_pydicts="strict")
    for row in rows:
        for name in ("survey_ms", "kafka_ms", "ingest_ms", "classified_ms"):
            row[name] = round(row[name].timestamp() * 1000)
    assert [Classification.from_dict(row) for row in rows] == answers
    assert table.column_names == [f["name"] for f in json.loads(formats.schema_text())["fields"]]
    assert list(tmp_path.iterdir()) == [path]


def test_a_parquet_file_is_there_only_when_it_is_whole(tmp_path: Path) -> None:
    def broken() -> Iterator[Classification]:
        yield record(1)
        raise StreamError("bad record")

    with pytest.raises(StreamError):
        record_writers.write(broken(), "parquet", tmp_path / "answers.parquet")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_finishes_a_parquet_file(tmp_path: Path) -> None:
    def interrupted() -> Iterator[Classification]:
        yield record(1)
        raise KeyboardInterrupt

    path = tmp_path / "answers.parquet"
    assert record_writers.write(interrupted(), "parquet", path) == 1
    assert parquet.read_metadata(path).num_rows == 1


def test_the_group_moves_only_when_the_parquet_file_is_whole(
    topic: Topic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic.publish(*[record(i) for i in range(5)])
    monkeypatch.setattr(subscribe, "COMMIT_S", 0.0)

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(record_writers, "_write_rows", full_disk)
        with pytest.raises(OSError, match="no space"), topic.subscriber(group="files") as stream:
            record_writers.write(stream, "parquet", tmp_path / "answers.parquet")
    with topic.subscriber(group="files") as stream:
        assert record_writers.write(stream, "parquet", tmp_path / "answers.parquet") == 5
    assert topic.read(group="files") == []


class Remembered(Subscriber):
    """What a group hands out in one run, without a Kafka."""

    def __init__(self, *found: Classification) -> None:
        self.remembers, self._found = True, iter(found)

    def __next__(self) -> Classification:
        return next(self._found)


@pytest.mark.parametrize(("format_", "titles"), [("csv", 1), ("table", 1), ("json", 0)])
def test_a_group_adds_to_the_file_that_is_there(tmp_path: Path, format_: str, titles: int) -> None:
    path = tmp_path / "answers"
    for night in range(2):
        assert record_writers.write(Remembered(record(2 * night), record(2 * night + 1)), format_, path) == 2
    lines = path.read_text().splitlines()
    assert len(lines) == titles + 4
    assert all(sum(f"object-{n}" in line for line in lines) == 1 for n in range(4))
    assert record_writers.write([record(n) for n in range(3)], format_, path) == 3
    assert len(path.read_text().splitlines()) == titles + 3  # without a group all comes again: written again


def test_nightly_runs_of_one_group_fill_one_file(topic: Topic, tmp_path: Path) -> None:
    path = tmp_path / "answers.csv"
    for night in range(2):
        topic.publish(record(night))
        with topic.subscriber(group="nightly") as stream:
            assert record_writers.write(stream, "csv", path) == 1
    assert [row["object_id"] for row in csv.DictReader(path.read_text().splitlines())] == ["object-0", "object-1"]


def test_a_group_adds_only_to_a_file_of_its_own_kind(topic: Topic, tmp_path: Path) -> None:
    topic.publish(record(1))
    path = tmp_path / "answers"
    with topic.subscriber(group="careful") as stream:
        path.write_text("object,class\n")
        with pytest.raises(ConfigError, match="different columns"):
            record_writers.write(stream, "csv", path)
        path.write_text('{"object": "o1"')
        with pytest.raises(ConfigError, match="incomplete line"):
            record_writers.write(stream, "json", path)
        with pytest.raises(ConfigError, match="give another -o FILE"):
            record_writers.write(stream, "parquet", path)
    assert path.read_text() == '{"object": "o1"'
    assert numbers(topic.read(group="careful")) == [1]  # nothing was taken from the group meanwhile


def test_output_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="add -o FILE"):
        record_writers.write([], "parquet")
    with pytest.raises(ConfigError, match="table, json, csv or parquet"):
        record_writers.write([], "xml")
    with pytest.raises(ConfigError, match="no such directory"):
        record_writers.write([], "csv", tmp_path / "nowhere" / "file.csv")


def test_only_the_records_of_some_models_are_handed_out() -> None:
    wanted = Wanted(models=frozenset({"vector"}))
    assert [replace(record(1), model=name) in wanted for name in ("vector", "convention", "")] == [True, False, False]


@pytest.mark.parametrize("least", [-0.1, 1.5, float("nan"), float("inf")])
def test_a_least_probability_that_is_none_is_refused(least: float) -> None:
    with pytest.raises(ConfigError, match="min_probability must be 0 to 1"):
        Wanted(min_probability=least)
