"""`serve`, `forward` and `backfill` on topics that change: null values, aborted transactions, partitions added later, a
topic that is deleted and made again, shorter while they run and longer between two runs."""

import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from confluent_kafka import admin
from host_tools import Reply, Request, standing
from process_tools import Program
from server_tools import HOME, NEEDS_APACHE
from test_backfill import packet
from test_kafka import options, until
from test_made_again import make, remake
from test_offsets import begun
from test_subscribe import record

from skyheed.broker import config
from skyheed.broker.errors import ServiceError
from skyheed.broker.kafka.client import BatchConsumer, Publisher, group_lag
from skyheed.broker.local import embedded
from skyheed.broker.results.formats import encode
from skyheed.broker.web.follower import Follower
from skyheed.broker.web.index import Index

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.redis,
    pytest.mark.skipif(not HOME, reason=NEEDS_APACHE),
]
QUICKLY = {"topic.metadata.refresh.interval.ms": "1000", "session.timeout.ms": "6000"}


def send(server: embedded.Server, topic: str, values: Sequence[bytes | None]) -> None:
    with Publisher(options(server)) as publisher:
        publisher.publish_all([(topic, f"k{n}".encode(), value, None) for n, value in enumerate(values)])


def add_partitions(server: embedded.Server, topic: str, count: int) -> None:
    client = admin.AdminClient({"bootstrap.servers": server.address})
    client.create_partitions([admin.NewPartitions(topic, count)])[topic].result(10)  # type: ignore[attr-defined]


def through_every_change(
    server: embedded.Server, topic: str, value: Callable[[str], bytes], reading: Callable[[], "object"]
) -> None:
    """Change the topic as strangers do; `reading()` is a context with the names that a program has seen."""
    begun(server, topic, value("aborted1"), value("aborted2")).abort_transaction(30)
    send(server, topic, [value("a1"), None, b"", value("a2")])
    begun(server, topic, value("a3")).commit_transaction(30)
    with reading() as seen:  # type: ignore[attr-defined]
        until(lambda: seen() >= {"a1", "a2", "a3"}, 90)
        add_partitions(server, topic, 3)
        time.sleep(1.0)
        send(server, topic, [value(f"b{n}") for n in range(12)])
        until(lambda: seen() >= {f"b{n}" for n in range(12)}, 90)
        remake(server, topic)
        send(server, topic, [value("c1"), None, value("c2")])
        until(lambda: seen() >= {"c1", "c2"}, 90)
        send(server, topic, [value("c3")])
        until(lambda: seen() >= {"c3"}, 60)
        assert not {name for name in seen() if name.startswith("aborted")}
    remake(server, topic)
    send(server, topic, [value(f"d{n}") for n in range(40)])
    with reading() as seen:  # type: ignore[attr-defined]
        until(lambda: seen() >= {f"d{n}" for n in range(40)}, 90)


@pytest.mark.parametrize("again", [True, False])
def test_a_topic_that_was_read_may_be_away_for_a_while(
    kafka: embedded.Server, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skyheed.broker.kafka.assignment.REFUSED_AGAIN_S", 3600.0 if again else 4.0)
    topic, group = make(kafka, f"changing-{uuid.uuid4().hex[:8]}"), uuid.uuid4().hex
    send(kafka, topic, [b"1"])
    found: list[bytes | None] = []
    with BatchConsumer(options(kafka, **QUICKLY), [topic], group) as consumer:

        def have(value: bytes) -> bool:
            found.extend(m.value() for m in consumer.consume(10, 0.2))
            return value in found

        until(lambda: have(b"1"), 60)
        client = admin.AdminClient({"bootstrap.servers": kafka.address})
        client.delete_topics([topic])[topic].result(10)
        if not again:
            with pytest.raises(ServiceError, match=f"has no topic {topic}"):
                until(lambda: have(b"2"), 60)
            return
        deadline = time.monotonic() + 8
        while time.monotonic() < deadline:
            have(b"")
        make(kafka, topic)
        send(kafka, topic, [b"2"])
        until(lambda: have(b"2"), 60)


def of_object(name: str) -> bytes:
    """A classification of the object of that name."""
    from dataclasses import replace

    return encode(replace(record(1), object_id=name))


def test_the_page_reads_what_is_new(kafka: embedded.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skyheed.broker.kafka.client.IDENTITY_S", 1.0)
    prefix = f"p{uuid.uuid4().hex[:6]}"
    settings = config.load(
        overrides={"survey": "ztf", "topics.prefix": prefix, "kafka.bootstrap.servers": kafka.address}, environ={}
    )
    topic = make(kafka, settings.classification_topic)

    @contextmanager
    def reading() -> Iterator[Callable[[], set[str]]]:
        index, rows = Index(tmp_path / "index", "ztf"), []
        follower = Follower(settings, index, lambda events: rows.extend(event.row for event in events))
        follower.start()
        try:
            yield lambda: set(re.findall(r'"object_id":\s*"(\w+)"', " ".join(rows)))
        finally:
            follower.stop()
            follower.join(20)
            assert not follower.trouble
            index.close()

    through_every_change(kafka, topic, of_object, reading)


def toml(path: Path, kafka: embedded.Server, valkey: embedded.Server, topic: str, url: str) -> str:
    lines = [
        'survey = "ztf"', "[topics]", f'prefix = "{topic}"', "[kafka]", f'"bootstrap.servers" = "{kafka.address}"',
        *(f'"{key}" = "{value}"' for key, value in QUICKLY.items()),
        "[redis]", f'url = "{valkey.url}"', "[ingest]", f'topics = ["{topic}"]',
        "[forward]", f'group = "{topic}"', "[sinks.webhook]", f'url = "{url}"',
        "[backfill]", f'group = "{topic}"', "rate = 1000.0", "[providers.alerce]", f'url = "{url}"',
    ]  # fmt: skip
    path.write_text("\n".join(lines))
    return str(path)


@contextmanager
def running(folder: Path, words: Sequence[str], seen: Callable[[], set[str]]) -> Iterator[Callable[[], set[str]]]:
    program = Program(folder / uuid.uuid4().hex[:6], *words)

    def look() -> set[str]:
        assert program.process.poll() is None, program.said[-2000:]
        return seen()

    try:
        yield look
        program.process.terminate()
        assert program.process.wait(60) == 0, program.said[-2000:]
        assert "Traceback" not in program.said
    finally:
        program.process.kill()
        program.process.wait()


def test_forward_sends_what_is_new(kafka: embedded.Server, valkey: embedded.Server, tmp_path: Path) -> None:
    topic = make(kafka, f"changing-{uuid.uuid4().hex[:8]}")
    with standing(lambda _: (200, {})) as host:
        words = ["forward", "--to", "webhook", "--topic", topic, "--config"]
        words.append(toml(tmp_path / "c.toml", kafka, valkey, topic, host.url))

        def seen() -> set[str]:
            return {request.content["object_id"] for request in list(host.asked)}

        through_every_change(kafka, topic, of_object, lambda: running(tmp_path, words, seen))
    assert set(group_lag({"bootstrap.servers": kafka.address}, topic, [topic]).values()) == {0}


def test_backfill_examines_what_is_new(kafka: embedded.Server, valkey: embedded.Server, tmp_path: Path) -> None:
    topic = make(kafka, f"changing-{uuid.uuid4().hex[:8]}")
    asked: set[str] = set()

    def rule(request: Request) -> Reply:
        asked.update(parse_qs(urlsplit(request.path).query)["oid"])
        return 404, {}

    with standing(rule) as host:
        words = ["backfill", "--from", "alerce", "--config"]
        words.append(toml(tmp_path / "c.toml", kafka, valkey, topic, host.url))
        mark = uuid.uuid4().hex[:6]
        through_every_change(
            kafka, topic, lambda name: packet(f"ZTF{mark}{name}", 4, 2),
            lambda: running(tmp_path, words, lambda: {name.removeprefix(f"ZTF{mark}") for name in set(asked)}),
        )  # fmt: skip
