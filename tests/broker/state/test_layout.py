"""What all daemons of a survey have to agree on: recorded by the first, compared by the others, whatever the order."""

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import redis as redis_py
from process_tools import run_verb
from state_tools import deliveries, observation
from stream_tools import ingest_all, publish, sdss_alert, settings_for

from skyheed.broker import app as daemon
from skyheed.broker import config
from skyheed.broker.errors import ConfigError, ServiceError
from skyheed.broker.kafka.client import Publisher
from skyheed.broker.local import embedded
from skyheed.broker.settings import Settings
from skyheed.broker.state import client as state
from skyheed.broker.state import histories as sequences
from skyheed.broker.state import layout
from skyheed.broker.state.histories import SequenceStore
from skyheed.broker.state.layout import Layout
from skyheed.broker.state.ledger import Ledger

pytestmark = pytest.mark.redis


@pytest.fixture
def admin(valkey: embedded.Server) -> Iterator[redis_py.Redis]:
    with redis_py.Redis.from_url(valkey.url) as client:
        yield client


def settings(url: str, **more: Any) -> Settings:
    dotted = {name.replace("__", "."): value for name, value in more.items()}
    return config.load(overrides={"survey": "sdss", "redis.url": url, **dotted}, environ={})


def ingest_on(url: str, **more: Any) -> None:
    """What an ingest does at its start."""
    given = settings(url, **more)
    agreement = layout.of_ingest(given.redis, daemon.survey_of(given))
    Layout(state.connect(url), "sdss").agree(agreement)


def worker_on(url: str, bands: str = "ugrizy", **more: Any) -> None:
    """What a worker does at its start."""
    Layout(state.connect(url), "sdss").agree(layout.of_worker(settings(url, **more).redis, bands))


def recorded(url: str) -> dict[str, str]:
    return Layout(state.connect(url), "sdss").recorded()


AGREED = {
    "shards": "16", "max_stamps": "99", "stamp": "science", "images": "science", "bands": "ugriz",
    "record_version": "1", "queues": "2", "preprocessing": "stamp-1", "keep_pixels": "always",
}  # fmt: skip


def test_the_first_ingest_records_and_others_like_it_go_on(valkey: embedded.Server) -> None:
    worker_on(valkey.url)
    assert recorded(valkey.url) == {"shards": "16", "record_version": "1", "queues": "2", "keep_pixels": "always"}
    ingest_on(valkey.url)
    assert recorded(valkey.url) == AGREED
    ingest_on(valkey.url)
    worker_on(valkey.url)
    ingest_on(valkey.url, ingest__bands="zirgu")  # the same bands
    assert recorded(valkey.url) == AGREED


@pytest.mark.parametrize(
    ("setting", "value", "sentence"),
    [
        ("redis__shards", 8, r"redis\.shards = 16 and it is 8 here: set redis\.shards = 16, or start with an empty"),
        ("redis__max_stamps", 10, r"redis\.max_stamps = 99 and it is 10 here: set redis\.max_stamps = 99, or stop all"),
        ("ingest__bands", "gr", r'ingest\.bands = ugriz and it is gr here: set ingest\.bands = "ugriz", or stop all'),
        ("redis__keep_pixels", "until-seen", r'is until-seen here: set redis\.keep_pixels = "always", or stop all'),
    ],
)
def test_an_ingest_with_other_settings_is_refused(
    valkey: embedded.Server, setting: str, value: Any, sentence: str
) -> None:
    ingest_on(valkey.url)
    with pytest.raises(ConfigError, match=sentence):
        ingest_on(valkey.url, **{setting: value})
    assert recorded(valkey.url) == AGREED


def test_ingest_and_worker_agree_on_whether_pixels_stay(valkey: embedded.Server) -> None:
    ingest_on(valkey.url, redis__keep_pixels="until-seen")
    with pytest.raises(ConfigError, match=r"until-seen and it is always here: .*--set keep_pixels=always"):
        worker_on(valkey.url)
    Layout(state.connect(valkey.url), "sdss").change("keep_pixels", "always")
    worker_on(valkey.url)
    with pytest.raises(ConfigError, match="keep_pixels cannot be 'never': write 1 to 99"):
        Layout(state.connect(valkey.url), "sdss").change("keep_pixels", "never")


def test_other_stamps_are_refused(valkey: embedded.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings(valkey.url, survey="ztf", ingest__stamp="difference")
    found = Layout(state.connect(valkey.url), "ztf")
    found.agree(layout.of_ingest(given.redis, daemon.survey_of(given)))
    science = daemon.survey_of(settings(valkey.url, survey="ztf"))
    with pytest.raises(ConfigError, match=r'= difference and it is science here: set ingest.stamp = "difference"'):
        found.agree(layout.of_ingest(given.redis, science))


def ztf_ingest(url: str, **more: Any) -> None:
    given = settings(url, survey="ztf", **more)
    Layout(state.connect(url), "ztf").agree(layout.of_ingest(given.redis, daemon.survey_of(given)))


def test_ingests_keep_the_same_images_and_workers_find_theirs(valkey: embedded.Server) -> None:
    ztf_ingest(valkey.url, ingest__images=("science", "template"))
    found = Layout(state.connect(valkey.url), "ztf")
    assert found.recorded()["images"] == "science,template"
    with pytest.raises(
        ConfigError, match=r'set ingest.images = \["science", "template"\], or stop all daemons and run'
    ):
        ztf_ingest(valkey.url)
    own = settings(valkey.url, survey="ztf").redis
    found.agree(layout.of_worker(own, "gri", ("science", "template")))
    with pytest.raises(
        ConfigError, match="the model looks at difference as well: stop all daemons and let ingest keep"
    ):
        found.agree(layout.of_worker(own, "gri", ("science", "difference", "template")))
    found.change("images", "template,science,difference")
    ztf_ingest(valkey.url)
    for wrong in ("", "template", "science,psf"):
        with pytest.raises(ConfigError, match="such as science,difference,template"):
            found.change("images", wrong)


def test_images_of_the_release_before_are_completed(valkey: embedded.Server, admin: redis_py.Redis) -> None:
    """It recorded everything but the images, and kept science alone; histories continue with what comes."""
    ztf_ingest(valkey.url)
    admin.hdel("sh:{ztf}:agreed", "images")
    found = Layout(state.connect(valkey.url), "ztf")
    found.agree(layout.of_worker(settings(valkey.url, survey="ztf").redis, "gri", ("science", "difference")))
    ztf_ingest(valkey.url)
    assert found.recorded()["images"] == "science,difference,template"


@pytest.mark.parametrize("name", ["RECORD_VERSION", "QUEUES", "PREPROCESSING"])
def test_another_release_is_refused(valkey: embedded.Server, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    ingest_on(valkey.url)
    monkeypatch.setattr(layout, name, 7)
    for start in (ingest_on, worker_on):
        with pytest.raises(ConfigError, match="run the release that wrote it, or start with an empty Redis"):
            start(valkey.url)


@pytest.mark.parametrize("name", ["record_version", "queues", "preprocessing"])
def test_a_reader_of_another_release_is_refused(valkey: embedded.Server, admin: redis_py.Redis, name: str) -> None:
    """Verbs that look, and what `serve`, `forward` and `backfill` read of histories."""
    ingest_on(valkey.url)
    given = settings(valkey.url)
    assert daemon.read_store(given)[0].sequence("a") is None
    admin.hset("sh:{sdss}:agreed", name, "7")
    with pytest.raises(ServiceError, match=r" 7 and this release writes .*: run the release that wrote it"):
        daemon.read_store(given)[0].sequence("a")
    for verb in (["object", "a"], ["audit"]):
        ran = run_verb(*verb, "--survey", "sdss", "--redis", valkey.url)
        assert ran.returncode == 1
        assert re.fullmatch(r"skyheed: Redis holds sdss with .* 7 and this release writes .*\n", ran.stderr)
    assert admin.hget("sh:{sdss}:agreed", name) == b"7"
    shown = run_verb("layout", "--survey", "sdss", "--redis", valkey.url)
    assert f"{name:<15} 7" in shown.stdout  # which says what is there


def test_a_worker_that_cannot_read_what_ingest_writes_is_refused(valkey: embedded.Server) -> None:
    ingest_on(valkey.url)
    with pytest.raises(ConfigError, match="does not know u, z: run a model that does"):
        worker_on(valkey.url, bands="gri")
    with pytest.raises(ConfigError, match=r"redis\.max_stamps = 99 and it is 24 here"):
        worker_on(valkey.url, redis__max_stamps=24)


def old_state(url: str, stamps: int, band: str = "r") -> None:
    """What the release before wrote: the layout holds the shards alone."""
    client = state.connect(url)
    Ledger(client, "sdss").ping()
    store = SequenceStore(client, "sdss")
    store.store(deliveries([observation("old", n, band=band) for n in range(stamps)]))
    assert client.run([("GET", "sh:{sdss}:layout"), ("EXISTS", "sh:{sdss}:agreed")]) == [b"16", 0]


def test_state_of_the_release_before_is_completed(valkey: embedded.Server, admin: redis_py.Redis) -> None:
    old_state(valkey.url, 20)
    worker_on(valkey.url)
    ingest_on(valkey.url)
    assert recorded(valkey.url) == AGREED
    # what the release before looks for is where and as it was
    assert admin.get("sh:{sdss}:layout") == b"16"
    Ledger(state.connect(valkey.url), "sdss").ping()


@pytest.mark.parametrize(
    ("setting", "value", "sentence"),
    [
        ("redis__shards", 8, r"redis\.shards = 16 and it is 8 here"),
        ("redis__max_stamps", 10, r"redis\.max_stamps = at least 20 and it is 10 here: set redis\.max_stamps = 20"),
        ("ingest__bands", "g", r"ingest\.bands = r and it is g here"),
    ],
)
def test_state_of_the_release_before_is_refused_where_it_does_not_fit(
    valkey: embedded.Server, admin: redis_py.Redis, setting: str, value: Any, sentence: str
) -> None:
    old_state(valkey.url, 20)
    with pytest.raises(ConfigError, match=sentence):
        ingest_on(valkey.url, **{setting: value})
    assert not admin.exists("sh:{sdss}:agreed")
    assert admin.zcard(sequences.Keys("sdss").shard(sequences.shard_of("old", 16)) + "order:old") == 20


def test_what_a_later_release_adds_is_passed_over(valkey: embedded.Server, admin: redis_py.Redis) -> None:
    ingest_on(valkey.url)
    admin.hset("sh:{sdss}:agreed", "something_new", "7")
    ingest_on(valkey.url)
    worker_on(valkey.url)


def test_a_running_daemon_records_again_after_redis_forgot_and_stops_when_it_no_longer_agrees(
    valkey: embedded.Server, admin: redis_py.Redis
) -> None:
    given = settings(valkey.url)
    client = state.connect(valkey.url)
    agreement = layout.of_ingest(given.redis, daemon.survey_of(given))
    client.on_connect = partial(Layout(client, "sdss").agree, agreement)
    client.run([("GET", "x")])
    admin.flushall()
    client.close()  # as after a restart of the server, and once a minute
    client.run([("GET", "x")])
    assert recorded(valkey.url) == AGREED
    Layout(state.connect(valkey.url), "sdss").change("max_stamps", "10")
    client.close()
    for _ in range(2):
        with pytest.raises(ConfigError, match="it is 99 here"):
            client.run([("GET", "x")])


def test_the_verb_shows_and_changes(valkey: embedded.Server) -> None:
    ingest_on(valkey.url)
    words = ("layout", "--survey", "sdss", "--redis", valkey.url)
    done = run_verb(*words, "--set", "max_stamps=10", "--set", "bands=rg")
    assert done.returncode == 0, done.stderr
    assert dict(line.split() for line in done.stdout.splitlines()) == AGREED | {"max_stamps": "10", "bands": "gr"}
    ingest_on(valkey.url, redis__max_stamps=10, ingest__bands="gr")
    for change in ("stamp=difference", "shards=8", "max_stamps=0", "max_stamps=many", "bands=", "bands=Q", "x"):
        refused = run_verb(*words, "--set", change)
        assert refused.returncode == 1
        assert len(refused.stderr.splitlines()) == 1, refused.stderr
        assert "cannot be" in refused.stderr


@pytest.mark.kafka
def test_an_ingest_that_would_cut_histories_stops_before_it_reads(
    kafka: embedded.Server, valkey: embedded.Server
) -> None:
    topic = "layout"
    given = settings_for(kafka.address, valkey.url, "sdss", topic)
    publish(given, topic, [sdss_alert("L", n) for n in range(20)])
    assert ingest_all(given)["stored"] == 20
    other = settings_for(kafka.address, valkey.url, "sdss", topic, **{"redis.max_stamps": 10})  # type: ignore[arg-type]
    with Publisher(other.kafka) as publisher, pytest.raises(ConfigError, match=r"set redis\.max_stamps = 99"):
        daemon.make_intake(other, publisher).ledger.ping()  # an ingest begins with it
    found = daemon.connect_store(given)[0].sequence("L")
    assert found is not None
    assert len(found.header) == 20
