"""`skyheed ingest --since --until`: one night again, apart from the live stream, which is not touched."""

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from confluent_kafka import Producer
from process_tools import Program, until
from server_tools import HOME, NEEDS_APACHE
from stream_tools import ingest_all, settings_for
from test_made_again import remake
from test_surveys import ztf_packet

from skyheed.broker import app, night_replay
from skyheed.broker.cli import skyheed
from skyheed.broker.errors import ConfigError, ServiceError
from skyheed.broker.ingest import Ingest
from skyheed.broker.kafka.client import Publisher, ensure_topics, group_lag, offsets_between
from skyheed.broker.local import embedded
from skyheed.broker.settings import Settings

NOON = 1_764_158_400_000  # 2025-11-26T12:00 UTC
HOUR = 3_600_000
PARTITIONS = 3


def test_times_as_people_write_them() -> None:
    found = night_replay.night_of("2025-11-26T12:00", "61005.75", NOON + 12 * HOUR)
    assert found == night_replay.Night(NOON, NOON + 6 * HOUR)
    assert found.name == "20251126T120000-20251126T180000"
    assert night_replay.night_of("2025-11-26T13:00+01:00", "", NOON + 5) == night_replay.Night(NOON, NOON + 5)
    assert night_replay.night_of("2025-11-26", "2025-11-26T12:00:00Z", NOON) == night_replay.Night(
        NOON - 12 * HOUR, NOON
    )


@pytest.mark.parametrize(
    ("since", "end", "words"),
    [
        ("yesterday", "", "'yesterday' is not a time"), ("2025-11-26", "26.11.2025", "--until '26.11.2025' is no"),
        ("2025-11-26T13:00", "2025-11-26T12:00", "is not before"), ("2025-11-26T12:00", "2030-01-01", "in the future"),
    ],
)  # fmt: skip
def test_times_that_cannot_work(since: str, end: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        night_replay.night_of(since, end, NOON + 24 * HOUR)


@pytest.mark.parametrize("name", ["", "a.b", "a b", "a{b}", "x" * 65])
def test_names_of_key_spaces(name: str) -> None:
    with pytest.raises(ConfigError, match="--into"):
        night_replay.apart(Settings(survey="ztf"), name)


def test_nothing_of_a_replay_has_a_name_of_the_live_stream() -> None:
    live = Settings(survey="ztf")
    named = Settings(survey="ztf", topics=type(live.topics)(classifications="answers", dead_letters="dead"))
    for settings in (live, named):
        own = night_replay.apart(settings, "n1")
        assert (own.survey, own.base_survey, own.space) == ("ztf.n1", "ztf", "n1")
        assert own.ingest.group != settings.ingest.group
        assert own.ingest.topics == (settings.alert_topic,)
        for topic in ("classification_topic", "dead_letter_topic"):
            assert getattr(own, topic) == f"{getattr(settings, topic)}.n1"
            assert own.outputs.never(getattr(own, topic))
    with pytest.raises(ConfigError, match="result of a replay"):
        night_replay.apart(night_replay.apart(live, "n1"), "n2")


# --- through Kafka and Redis ------------------------------------------------------------------------------------------


def packet(number: int) -> bytes:
    return ztf_packet(top={"objectId": f"ZTF{number % 5}", "candid": number}, candid=number, jd=2_459_000.5 + number)


@pytest.fixture
def stream(kafka: embedded.Server, valkey: embedded.Server) -> Settings:
    if not HOME:
        pytest.skip(NEEDS_APACHE)
    found = settings_for(
        kafka.address, valkey.url, "ztf", f"alerts-{uuid.uuid4().hex[:8]}", **{"ingest.group": uuid.uuid4().hex}
    )
    ensure_topics(found.kafka, {found.ingest.topics[0]: {"retention.ms": "-1"}}, PARTITIONS, 1)
    return found


def publish_at(settings: Settings, numbers: Sequence[int]) -> None:
    """Detection n with Kafka's time of n minutes past noon, spread over partitions."""
    producer = Producer({"bootstrap.servers": settings.kafka["bootstrap.servers"]})
    for n in numbers:
        producer.produce(
            settings.ingest.topics[0], packet(n), partition=n % PARTITIONS, timestamp=NOON + n * 60_000
        )  # fmt: skip
    assert producer.flush(60) == 0


def written(folder: Path, settings: Settings) -> str:
    path = folder / "night.toml"
    path.write_text(
        f'survey = "ztf"\n[kafka]\n"bootstrap.servers" = "{settings.kafka["bootstrap.servers"]}"\n'
        f'[redis]\nurl = "{settings.redis.url}"\n[ingest]\ntopics = ["{settings.ingest.topics[0]}"]\n'
        f'group = "{settings.ingest.group}"\nbatch_size = 5\n'
    )
    return str(path)


def words(path: str, first: int, last: int, name: str) -> list[str]:
    """The command for minutes `first` to `last` past noon, the last left out."""
    times = [f"2025-11-26T{12 + n // 60}:{n % 60:02}" for n in (first, last)]
    return ["ingest", "--config", path, "--since", times[0], "--until", times[1], "--into", name]


def night(first: int, last: int) -> night_replay.Night:
    """The same as a range of times."""
    return night_replay.Night(NOON + first * 60_000, NOON + last * 60_000)


def kept(settings: Settings) -> set[int]:
    store = app.read_store(settings)[0]
    return {n for number in range(5) for n in store.sources(f"ZTF{number}")}


def totals(settings: Settings) -> tuple[int, int]:
    """Offsets consumed, and stored."""
    found = app.read_store(settings)[2].books().summary()
    return found["consumed"], found["stored"]


@pytest.mark.kafka
@pytest.mark.redis
def test_one_night_again_and_the_live_stream_untouched(stream: Settings, tmp_path: Path) -> None:
    publish_at(stream, range(1, 41))
    ingest_all(stream)
    publish_at(stream, range(41, 61))
    topics = stream.ingest.topics
    before = group_lag(stream.kafka, stream.ingest.group, topics)
    assert sum(before.values()) == 20
    path = written(tmp_path, stream)
    ran = CliRunner().invoke(skyheed, words(path, 15, 50, "n1"), catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    assert "skyheed work --survey ztf.n1 --drain" in ran.output
    own = night_replay.apart(stream, "n1")
    assert kept(own) == set(range(15, 50))
    assert kept(stream) == set(range(1, 41))
    assert group_lag(stream.kafka, stream.ingest.group, topics) == before
    assert app.read_store(own)[2].books().balanced
    assert totals(own) == (35, 35)
    # again: the same key space has it all, and nothing is read twice
    ran = CliRunner().invoke(skyheed, words(path, 15, 50, "n1"), catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    assert totals(own) == (35, 35)


@pytest.mark.kafka
def test_a_broker_that_does_not_know_times_is_named() -> None:
    with embedded.start_kafka() as server:
        options = {"bootstrap.servers": server.address}
        ensure_topics(options, {"alerts": {}}, 1, 1)
        with Publisher(options) as publisher:
            publisher.publish_all([("alerts", None, b"?", None)])
        with pytest.raises(ServiceError, match="does not find messages of topic alerts by their time"):
            offsets_between(options, ["alerts"], NOON, NOON + HOUR)


@pytest.mark.kafka
@pytest.mark.redis
def test_a_night_without_messages_ends_at_once(stream: Settings, tmp_path: Path) -> None:
    publish_at(stream, range(1, 10))
    ran = CliRunner().invoke(skyheed, words(written(tmp_path, stream), 20, 30, "n2"), catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    assert not kept(night_replay.apart(stream, "n2"))


@pytest.mark.kafka
@pytest.mark.redis
def test_a_killed_replay_goes_on_and_counts_nothing_twice(stream: Settings, tmp_path: Path) -> None:
    publish_at(stream, range(1, 400))
    own, path = night_replay.apart(stream, "n3"), written(tmp_path, stream)
    program = Program(tmp_path / "first", *words(path, 50, 350, "n3"))
    try:
        until(lambda: len(kept(own)) > 5, 60, "stamps")
    finally:
        program.process.kill()
        program.process.wait()
    ran = CliRunner().invoke(skyheed, words(path, 50, 350, "n3"), catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    assert totals(own) == (300, 300)
    assert kept(own) == set(range(50, 350))


@pytest.mark.kafka
@pytest.mark.redis
@pytest.mark.parametrize("second", [(5, 40), (30, 90), (80, 90), (1, 10), (35, 38)])
def test_another_night_into_the_same_space_is_read_in_full(
    stream: Settings, tmp_path: Path, second: tuple[int, int]
) -> None:
    """Earlier, later, apart, within: the group stands where the first night left it."""
    publish_at(stream, range(1, 100))
    own, path = night_replay.apart(stream, "n5"), written(tmp_path, stream)
    for first, last in ((30, 60), second, (30, 60)):
        ran = CliRunner().invoke(skyheed, words(path, first, last, "n5"), catch_exceptions=False)
        assert ran.exit_code == 0, ran.output
        assert kept(own) >= set(range(first, last))
    assert not app.run_ingest(own, True, night(30, 60))["consumed"]  # the same night once more
    both = set(range(30, 60)) | set(range(*second))
    assert kept(own) == both
    assert totals(own) == (len(both), len(both))
    assert app.read_store(own)[2].books().balanced


@pytest.mark.kafka
@pytest.mark.redis
def test_a_night_whose_topic_is_made_again_is_not_over(
    kafka: embedded.Server, stream: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new topic is read by the next attempt, from the beginning of the night."""
    topic, own = stream.ingest.topics[0], night_replay.apart(stream, "n6")
    publish_at(stream, range(1, 60))
    begin = Ingest.run

    def made_again(daemon: Ingest, *given: Any) -> Any:
        remake(kafka, topic, PARTITIONS)
        publish_at(stream, range(100, 160))
        return begin(daemon, *given)

    monkeypatch.setattr(Ingest, "run", made_again)
    with pytest.raises(ServiceError, match=f"topic {topic} .* was deleted and created again while it was read"):
        app.run_ingest(own, True, night(10, 150))
    monkeypatch.setattr(Ingest, "run", begin)
    app.run_ingest(own, True, night(10, 150))
    assert kept(own) >= set(range(100, 150))


@pytest.mark.kafka
@pytest.mark.redis
@pytest.mark.parametrize("timed", [[], [5, 6, 7]])
def test_messages_without_a_time_are_not_an_empty_night(stream: Settings, timed: list[int]) -> None:
    publish_at(stream, timed)
    producer = Producer({"bootstrap.servers": stream.kafka["bootstrap.servers"]})
    for n in range(20):
        producer.produce(stream.ingest.topics[0], packet(n), partition=n % PARTITIONS, timestamp=-1)
    assert producer.flush(60) == 0
    own = night_replay.apart(stream, "n7")
    with pytest.raises(ServiceError, match=f"messages of topic {stream.ingest.topics[0]} .* carry no time"):
        app.run_ingest(own, True, night(10, 30))
    assert not kept(own)
