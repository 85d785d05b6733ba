"""Which topics are read: one dialect of patterns, legal names, and never what skyheed writes itself."""

import time
import uuid
from collections.abc import Callable

import confluent_kafka as ck
import pytest
from stream_tools import ingest_all, publish, sdss_alert, settings_for

from skyheed.broker import app as daemon
from skyheed.broker import config
from skyheed.broker.errors import ConfigError, ServiceError
from skyheed.broker.kafka import client as kafka
from skyheed.broker.kafka.selection import MOST_REPEATS, Outputs, Selection, compiled
from skyheed.broker.local import embedded
from skyheed.broker.packets.surveys import load_survey
from skyheed.broker.replay import replay
from skyheed.broker.subscribe import Subscriber

NIGHT = "ztf_20260401_programid1"


@pytest.mark.parametrize(
    ("pattern", "matched", "passed_over"),
    [
        ("^ztf_.*_programid1$", [NIGHT], ["ztf_20260401_programid12", "xztf_1_programid1"]),
        ("^ztf_[0-9]{8}_programid1$", [NIGHT], ["ztf_2026_programid1"]),
        (r"^ztf_\d{8}_programid1$", [NIGHT], ["ztf_2026040a_programid1"]),
        (r"^ztf_\d+_programid(1|2)$", [NIGHT, "ztf_1_programid2"], ["ztf_1_programid3"]),
        (r"^\w+$", [NIGHT], ["a.b", "a-b"]),
        ("^ztf", [NIGHT, "ztf"], ["ZTF", "my-ztf"]),
        (r"^a\.b", ["a.b.c"], ["axb"]),
        ("^[^a-c]x?(-y)?$", ["d", "dx", "d-y"], ["a", "dxx"]),
        ("^a{2,3}$", ["aa", "aaa"], ["a", "aaaa"]),
        ("^.*", ["anything"], ["__consumer_offsets"]),
    ],
)
def test_a_pattern_means_what_the_table_says(pattern: str, matched: list[str], passed_over: list[str]) -> None:
    assert Selection((pattern,)).among([*matched, *passed_over]) == sorted(matched)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("^", "nothing follows"), ("^*", "nothing that could be repeated"), ("^(?!_)x", "nothing that could be"),
        ("^(?i)x", "nothing that could be"), ("^ztf_(20260401", "not closed"), ("^ztf)", "closes nothing"),
        ("^ztf_[", "begins no set"), ("^[z-a]", "backwards"), ("^[[:digit:]]", "begins no set"),
        ("^a{2,1}", "is not a count"), ("^a{3", "begins no count"), ("^a|b", "parentheses"), ("^(a+)+$", "a group"),
        ("^a**", "nothing that could"), ("^a+?", "nothing that could"), ("^a$b", "no meaning"), ("^\\", "not known"),
        (r"^\s", "not known"), (r"^(a)\1", "not known"), ("^é", "no meaning"), ("^a b", "no meaning"),
        ("^^a", "no meaning"), ("^" + "a*" * (MOST_REPEATS + 1), "several patterns"),
        ("^" + "a" * 300, "more than 249"),
    ],
)  # fmt: skip
def test_a_wrong_pattern_is_one_sentence_before_anything_starts(pattern: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        config.load(overrides={"ingest.topics": [pattern]}, environ={})
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("the topic pattern ")
    with pytest.raises(ConfigError, match=why):  # whatever asks: nothing is asked of a broker
        Subscriber("127.0.0.1:1", pattern)


def test_no_pattern_takes_long_whatever_the_names() -> None:
    pattern = compiled("^" + ".*a" * (MOST_REPEATS - 1) + "b$")
    began = time.process_time()
    for _ in range(3):
        assert not pattern.match("a" * 249)
    assert time.process_time() - began < 10


@pytest.mark.parametrize("name", ["ztf_*", "a b", "", ".", "..", "a/b", "é", "a" * 250, "a\n", "a,b"])
def test_what_no_topic_can_be_called_is_refused_by_everyone(name: str) -> None:
    settings: list[dict[str, object]] = [{"topics.classifications": name}, {"topics.dead_letters": name}]
    if name:
        settings += [{"ingest.topics": [name]}, {"topics.prefix": name}]
        for override in settings:
            with pytest.raises(ConfigError, match="topic"):
                config.load(overrides=override, environ={})
    with pytest.raises(ConfigError):
        Subscriber("127.0.0.1:1", name)
    with pytest.raises(ConfigError):
        replay({"bootstrap.servers": "127.0.0.1:1"}, load_survey("sdss"), [], name)


@pytest.mark.parametrize(
    "name",
    [
        "skyheed.deadletter.ztf", "skyheed.deadletter.lsst", "skyheed.classifications.ztf",
        "skyheed.classifications.ztf.second", "skyheed.anything", "night.deadletter.sdss", "bad-packets",
        "__consumer_offsets", "__share_group_state",
    ],
)  # fmt: skip
def test_what_skyheed_writes_and_what_is_kafkas_own_is_never_input(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = {"survey": "ztf", "topics.prefix": "night", "topics.dead_letters": "bad-packets"}
    good = config.load(overrides={**overrides, "ingest.topics": ["^.*", "^night", "^skyheed"]}, environ={})
    assert good.alerts.among([name, "skyheed.alerts.ztf", NIGHT]) == ["skyheed.alerts.ztf", NIGHT]
    with pytest.raises(ConfigError, match=r"ingest\.topics: topic .* name a topic of alerts"):
        config.load(overrides={**overrides, "ingest.topics": [name]}, environ={})
    if name.startswith(("skyheed", "__")):
        with pytest.raises(ConfigError, match="--topic: topic"):
            replay({"bootstrap.servers": "127.0.0.1:1"}, load_survey("sdss"), [], name)


def test_our_own_topics_are_three() -> None:
    for key, name in (("classifications", "skyheed.alerts.ztf"), ("dead_letters", "skyheed.classifications.ztf")):
        with pytest.raises(ConfigError, match="must differ"):
            config.load(overrides={"survey": "ztf", f"topics.{key}": name}, environ={})
    assert "skyheed.alerts.ztf" not in Outputs()


# --- on a broker ---------------------------------------------------------------------------------------------------


def wait_for(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline, f"{what} takes longer than a minute"


@pytest.mark.kafka
@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_both_group_protocols_read_what_a_pattern_matches_also_later(kafka_: embedded.Server, protocol: str) -> None:
    night = f"night{uuid.uuid4().hex[:8]}"
    options = {
        "bootstrap.servers": kafka_.address, "group.protocol": protocol,
        "topic.metadata.refresh.interval.ms": "500",
    }  # fmt: skip
    with kafka.AlertConsumer(options, [rf"^{night}_\d{{3}}$"], uuid.uuid4().hex) as consumer:
        assert consumer.consume(10, 0.2) == []  # none is there yet
        seen: list[str] = []

        def read() -> None:
            seen.extend(str(message.topic()) for message in consumer.consume(10, 0.2))

        for number in ("001", "002"):
            send(options, [f"{night}_{number}", f"{night}_{number}x"])
            wait_for(lambda n=number: read() or f"{night}_{n}" in seen, f"topic {number}")  # type: ignore[misc]
    assert set(seen) == {f"{night}_001", f"{night}_002"}


def send(options: dict[str, str], topics: list[str]) -> None:
    servers = {"bootstrap.servers": options["bootstrap.servers"]}
    kafka.ensure_topics(servers, {topic: {} for topic in topics}, 1, 1)
    with kafka.Publisher(servers) as publisher:
        publisher.publish_all([(topic, None, b"x", None) for topic in topics])


@pytest.mark.kafka
@pytest.mark.redis
def test_a_pattern_for_everything_reads_no_dead_letter(kafka_: embedded.Server, valkey: embedded.Server) -> None:
    name = f"all{uuid.uuid4().hex[:8]}"
    settings = settings_for(kafka_.address, valkey.url, "sdss", f"^{name}", **{"topics.prefix": name})
    publish(settings, f"{name}-alerts", [sdss_alert("A", 1), b"bad", b"worse"], 1)
    publish(settings, f"{name}.deadletter.ztf", [b"another survey's"], 1)
    for _ in range(3):  # the dead letters of the first time are there the second time
        ingest_all(settings)
    books = daemon.connect_store(settings)[2].books()
    assert books.consumed == 3
    assert books.balanced
    with ck_consumer(kafka_.address) as client:
        ends = [client.get_watermark_offsets(p)[1] for p in partitions(client, settings.dead_letter_topic)]
    assert sum(ends) == 2


class ck_consumer:
    def __init__(self, address: str) -> None:
        self.client = ck.Consumer({"bootstrap.servers": address, "group.id": "look"})

    def __enter__(self) -> ck.Consumer:
        return self.client

    def __exit__(self, *_: object) -> None:
        self.client.close()


def partitions(client: ck.Consumer, topic: str) -> list[ck.TopicPartition]:
    return [ck.TopicPartition(topic, n) for n in client.list_topics(topic).topics[topic].partitions]


@pytest.mark.kafka
def test_a_drain_of_a_pattern_that_matches_only_ours_says_so(kafka_: embedded.Server) -> None:
    with (
        kafka.AlertConsumer({"bootstrap.servers": kafka_.address}, ["^__"], uuid.uuid4().hex, drain=True) as consumer,
        pytest.raises(ServiceError, match=r"no topic that matches \^__"),
    ):
        wait_for(lambda: bool(consumer.consume(1, 0.1)), "the refusal")


@pytest.fixture
def kafka_(kafka: embedded.Server) -> embedded.Server:
    """The session's Kafka; the module of that name is needed here too."""
    return kafka
