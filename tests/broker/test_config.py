"""Settings: strength of the sources, clear refusals, no secrets in sight."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from skyheed.broker import config
from skyheed.broker import health as check
from skyheed.broker.cli import skyheed
from skyheed.broker.errors import ConfigError
from skyheed.broker.settings import STAMPS_KEPT
from skyheed.classifier.history import LONGEST


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "skyheed.toml"
    path.write_text(text)
    return path


def test_command_line_beats_environment_beats_file(tmp_path: Path) -> None:
    path = write(tmp_path, 'survey = "ztf"\n[kafka]\n"bootstrap.servers" = "file:1"\n[redis]\nurl = "redis://file"\n')
    environ = {"SKYHEED_KAFKA": "environment:1", "SKYHEED_REDIS": "redis://environment"}
    settings = config.load(path, {"redis.url": "redis://line"}, environ)
    assert settings.survey == "ztf"
    assert settings.kafka["bootstrap.servers"] == "environment:1"
    assert settings.redis.url == "redis://line"


def test_without_anything_the_defaults_work() -> None:
    settings = config.load(environ={})
    assert settings.kafka["bootstrap.servers"] == config.DEFAULT_KAFKA
    assert settings.work.min_stamps == 0


def test_the_file_can_be_named_in_the_environment(tmp_path: Path) -> None:
    path = write(tmp_path, 'survey = "lsst"\n')
    assert config.load(environ={"SKYHEED_CONFIG": str(path)}).survey == "lsst"


def test_any_librdkafka_option_passes_through_as_text(tmp_path: Path) -> None:
    path = write(tmp_path, '[kafka]\n"enable.ssl.certificate.verification" = false\n"fetch.min.bytes" = 5\n')
    options = config.load(path, environ={}).kafka
    assert options["enable.ssl.certificate.verification"] == "false"
    assert options["fetch.min.bytes"] == "5"


def test_the_input_cluster_overrides_only_what_it_names(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '[kafka]\n"bootstrap.servers"="own:1"\n"client.id"="x"\n[kafka_input]\n"bootstrap.servers"="in:1"\n',
    )
    settings = config.load(path, environ={})
    assert settings.input_options == {"bootstrap.servers": "in:1", "client.id": "x"}
    assert settings.kafka["bootstrap.servers"] == "own:1"


def test_a_password_comes_from_a_file_and_is_not_shown(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2\n")
    path = write(tmp_path, f'[kafka]\n"sasl.password_file" = "{secret}"\n[redis]\npassword_file = "{secret}"\n')
    settings = config.load(path, environ={})
    assert settings.kafka["sasl.password"] == "hunter2"
    assert settings.redis.password == "hunter2"
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize(
    "override",
    [
        {"redis.url": "redis://user:pw@host"},
        {"redis.url": "redis://:pw/x@host"},
        {"redis.url": "redis://:pw#x@host:6379/0"},
        {"redis.url": "redis://me:pw?x@host"},
        {"redis.url": "redis://host/0?password=pw"},
        {"kafka.sasl.password": "pw"},
    ],
)
def test_a_password_on_the_command_line_is_refused(override: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="command line") as caught:
        config.load(overrides=override, environ={})
    assert "pw" not in str(caught.value).replace("password", "")


@pytest.mark.parametrize("password", ["pa/ss", "pa#ss", "pa?ss", "6379/ss"])
def test_a_password_that_would_be_taken_for_the_path_is_refused_and_not_shown(password: str) -> None:
    with pytest.raises(ConfigError, match="SKYHEED_REDIS_PASSWORD") as caught:
        config.load(environ={"SKYHEED_REDIS": f"redis://:{password}@host:6379/0"})
    assert "ss@" not in str(caught.value)
    assert password not in str(caught.value)


def test_a_password_that_is_no_text_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"redis\.password must be str") as caught:
        config.load(write(tmp_path, "[redis]\npassword = 471108\n"), environ={})
    assert "471108" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("sruvey = 'ztf'", "unknown setting sruvey"),
        ("[work]\nbatchsize = 3", "unknown setting work.batchsize"),
        ("[work]\nbatch_size = '3'", "work.batch_size must be int"),
        ("[work]\ndevice = 'tpu'", "auto, cpu or cuda"),
        ("[redis]\nmax_stamps = 100", "1 to 99"),
        ("redis = 3", r"write \[redis\]"),
        ("[kafka]\nbootstrap.servers = 'a'", 'as in "bootstrap.servers"'),
        ("[kafka", "not valid TOML"),
        ("a = " + "[" * 100_000, "not valid TOML"),
        ("a" + ".a" * 5000 + " = 1", "not valid TOML"),
        ("[redis]\npassword_file = '/nowhere/x'", "cannot read /nowhere/x"),
        ("[redis]\npassword_file = 5", "redis.password_file must be the path of a file"),
        ("[redis]\nttl_days = 0", "redis.ttl_days must be 0.01 to"),
        ("[redis]\nttl_days = -1.5", "redis.ttl_days must be 0.01 to"),
        ("[redis]\nttl_days = 1e12", "redis.ttl_days must be 0.01 to"),
        ("[redis]\nttl_days = nan", "redis.ttl_days must be a finite number"),
        ("[redis]\nbooks_days = 0.0", "redis.books_days must be 0.01 to"),
        ("[ingest]\nmax_packet_bytes = 0", "every packet would be set aside"),
        ("[ingest]\nbatch_wait_s = -0.1", "ingest.batch_wait_s must not be negative"),
        ("[ingest]\nmetrics_port = 65536", "ingest.metrics_port must be 0"),
        ("[ingest]\ngroup = ''", "ingest.group must not be empty"),
        ("[ingest]\ntopics = 5", "ingest.topics must be a name or a list of names"),
        ("[ingest]\ntopics = ['a', 5]", "ingest.topics must be a name or a list of names"),
        ("[work]\nmetrics_port = -1", "work.metrics_port must be 0"),
        ("[work]\nthreads = -2", "work.threads must not be negative"),
        ("[work]\nprecision = 'float16'", "auto, float32 or bfloat16"),
        ("[work]\nlease_s = 0.0001", "work.lease_s must be at least 1"),
        ("[forward]\nrate = -1", r"forward.rate must be 0 \(the host's own\) to 1000000"),
        ("[forward]\nbatch = 0", "forward.batch must be 1 to 10000"),
        ("[forward]\nmetrics_port = 65536", "forward.metrics_port must be 0"),
        ("[backfill]\nrate = -0.5", "backfill.rate must be 0"),
        ("[backfill]\nmost = 0", "backfill.most must be 1 to 99"),
        ("[backfill]\nmost = -1", "backfill.most must be 1 to 99"),
        ("[backfill]\nmetrics_port = -1", "backfill.metrics_port must be 0"),
        ("[work]\ninterval_s = inf", "work.interval_s must be a finite number"),
        ("[topics]\npartitions = 0", "topics.partitions must be at least 1"),
        ("[topics]\npartitions = 1099511627776", "topics.partitions must be at least 1, at most"),
        ("[topics]\nreplication = 70000", "topics.replication must be at least 1, at most"),
        ("[topics]\nprefix = 'a b'", "topics.prefix: 'a b' is no topic's name"),
        ("[topics]\nprefix = '__a'", "Kafka's own"),
        ("[ingest]\nbatch_size = 2000000", "ingest.batch_size must be 1 to"),
        ("[ingest]\nbatch_bytes = 1", "ingest.batch_bytes must be"),
        ("[ingest]\nbatch_records = 0", "ingest.batch_records must be"),
        ("[ingest]\nbatch_s = 0.0", "ingest.batch_s must be"),
        ("[ingest]\nbatch_wait_s = 1e300", "ingest.batch_wait_s must not be negative, and at most"),
        ("[ingest]\nmax_packet_bytes = 99999999999", "ingest.max_packet_bytes must be"),
        ("[ingest]\ndebounce_s = 1e300", "ingest.debounce_s must not be negative, and at most"),
        ('[ingest]\ngroup = "a\\nb"', "characters that can be printed"),
        ("[work]\nthreads = 1000000000", "at most 1024"),
        ("[work]\nlease_s = 1e300", "at most 86400"),
        ("[redis]\nshards = 100000000", "redis.shards must be 1 to"),
        ("[redis]\nurl = 'http://host'", "write redis://host:port/0"),
        ("[redis]\nurl = 'host:6379'", "write redis://host:port/0"),
        ("[redis]\nurl = 'redis://host:99999'", "write redis://host:port/0"),
        ("[redis]\nurl = 'redis://host:port'", "write redis://host:port/0"),
        ("[redis]\nurl = 'redis://host/zero'", "write redis://host:port/0"),
        ("[redis]\nurl = 'redis://[::1'", "write redis://host:port/0"),
        ("[redis]\nurl = 'redis://host?nonsense=1'", "option 'nonsense' that is not known"),
        ("[redis]\nurl = 'redis://host?db=one'", "db in the Redis URL must be a number"),
        ("[registry]\nurl = 'host:8081'", "registry.url: .* write http://host:port"),
        ("[registry]\nurl = 'ftp://host'", "write http://host:port"),
        ("[registry]\noutput_url = 'file:///etc/passwd'", "registry.output_url: .* write http://host:port"),
        ("[registry]\noutput_url = 'http://host:99999'", "write http://host:port"),
        ("[registry]\noutput_url = 'http://u:p/w#x@host'", "SKYHEED_REGISTRY_PASSWORD"),
        ("[kafka]\n'bootstrap.servers' = ''", "is not a server: write host:port"),
        ("[kafka]\n'bootstrap.servers' = 'a b:9092'", "is not a server: write host:port"),
        ("[kafka]\n'bootstrap.servers' = 'http://host:9092'", "is not a server: write host:port"),
        ("[kafka]\n'bootstrap.servers' = 'host:9092,'", "is not a server: write host:port"),
        ("[kafka_input]\n'bootstrap.servers' = 'host:99999'", "port from 1 to 65535"),
        ("[kafka_input]\n'bootstrap.servers' = 'host:port'", "is not a server: write host:port"),
        ("[kafka]\n'error_cb' = 'x'", "error_cb cannot be set: skyheed sets it itself"),
        ("[kafka]\n'default.topic.config' = 'x'", "cannot be set: skyheed sets it itself"),
        ("[kafka]\n'transactional.id' = 'x'", "cannot be set: skyheed sets it itself"),
        ("[kafka]\n'acks' = '1'", "acks cannot be set: skyheed sets it itself"),
        ("[kafka_input]\n'enable.auto.commit' = true", "enable.auto.commit cannot be set"),
        ("[kafka]\n'client.id' = \"a\\u0000b\"", "holds a NUL"),
    ],
)
def test_bad_settings_say_what_to_write(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        config.load(write(tmp_path, text), environ={})


@pytest.mark.parametrize(
    "options",
    [
        {"foo.bar": "1"}, {"compression.type": "foo"}, {"security.protocol": "TLS"}, {"linger.ms": "-1"},
        {"linger.ms": "soon"}, {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "FOO"},
        {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN"}, {"max.poll.interval.ms": "1000"},
        {"security.protocol": "SSL", "ssl.ca.location": "/nowhere"}, {"group.protocol": "foo"},
        {"partition.assignment.strategy": "foo"}, {"plugin.library.paths": "nowhere"}, {"partitioner": "foo"},
        {"message.max.bytes": "99999999999999999999"}, {"topic.metadata.refresh.interval.ms": "soon"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("verb", ["ingest", "work", "redrive", "replay", "subscribe", "check", "deadletter list"])
def test_what_librdkafka_does_not_take_is_one_sentence_before_anything_starts(
    tmp_path: Path, options: dict[str, str], verb: str
) -> None:
    lines = "\n".join(f'"{key}" = "{value}"' for key, value in options.items())
    table = "kafka_input" if verb == "ingest" else "kafka"  # ingest asks for both
    path = write(tmp_path, f'survey = "sdss"\n[{table}]\n{lines}\n[redis]\nurl = "redis://127.0.0.1:1"\n')
    words = [*verb.split(), *(["sdss", str(path)] if verb == "replay" else []), "--config", str(path)]
    if verb == "check":
        assert daemon_check(path).startswith("Kafka options cannot work: ")
        return
    result = CliRunner().invoke(skyheed, words)
    assert isinstance(result.exception, ConfigError), result.exception
    assert str(result.exception).startswith("Kafka options cannot work: ")
    assert "\n" not in str(result.exception)


def daemon_check(path: Path) -> str:
    (line,) = check.check(config.load(path, environ={}), ["kafka"])
    assert not line.ok
    return line.sentence


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration /nowhere\.toml"):
        config.load("/nowhere.toml", environ={})


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "latin1.toml"
    path.write_bytes('survey = "ztf" # für'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin1\.toml is not text in UTF-8"):
        config.load(path, environ={})
    secret = write(tmp_path, f"[redis]\npassword_file = '{path}'\n")
    with pytest.raises(ConfigError, match=r"redis\.password_file: .*latin1\.toml is not text in UTF-8"):
        config.load(secret, environ={})


def test_the_environment_over_a_value_where_a_table_belongs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"write \[kafka\]"):
        config.load(write(tmp_path, "kafka = 5"), environ={"SKYHEED_KAFKA": "host:1"})


@pytest.mark.parametrize("password", ["pw", "p/w", "p#w", "p?w", "p:w", "p@w", "p/@:#?w", "6379/0"])
@pytest.mark.parametrize("user", ["", "me", "me@here"])
def test_a_redis_url_is_shown_without_its_password(user: str, password: str) -> None:
    assert config.redacted_url(f"redis://{user}:{password}@host:1/0") == f"redis://{user}:***@host:1/0"


def test_a_url_without_a_password_is_shown_as_it_is() -> None:
    for url in ("redis://host:1/0", "rediss://me@host:1/0", "unix:///run/valkey.sock?db=1", "host:9092,other:9092"):
        assert config.redacted_url(url) == url
    assert config.redacted_url("redis://host/0?password=pw&db=1") == "redis://host/0?password=***&db=1"


@pytest.mark.parametrize("what", ["settings", "secret"])
def test_a_configuration_or_secret_that_never_comes_or_never_ends_is_one_sentence(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path) -> None:
        if what == "settings":
            config.load(path, environ={})
        else:
            config.read_secret(path, "--token-file")

    monkeypatch.setattr(config, "PIPE_S", 0.2)
    silent = tmp_path / "pipe"
    os.mkfifo(silent)
    holder = os.open(silent, os.O_RDWR)  # a writer that says nothing
    with pytest.raises(ConfigError, match="it sent nothing for"):
        read(silent)
    os.close(holder)
    with pytest.raises(ConfigError):
        read(Path("/dev/zero"))


def test_a_secret_that_trickles_in_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "WHOLE_PIPE_S", 0.5)
    reading, writing = os.pipe()
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.05):
            os.write(writing, b"x")

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        with pytest.raises(ConfigError, match=r"it is not complete after 0\.5 s"):
            config.read_secret(Path(f"/dev/fd/{reading}"), "--token-file")
    finally:
        stop.set()
        thread.join()
        os.close(reading)
        os.close(writing)


def test_a_secret_is_never_a_part_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_bytes(b"a" * config.MOST_SECRET)
    assert config.read_secret(path, "--token-file") == "a" * config.MOST_SECRET
    for size in (config.MOST_SECRET + 1, 2**30):
        path.write_bytes(b"a" * config.MOST_SECRET)
        with path.open("ab") as sparse:
            sparse.truncate(size)
        with pytest.raises(ConfigError, match=r"--token-file: .*password has more than 65536 bytes: is it the right"):
            config.read_secret(path, "--token-file")


@pytest.mark.parametrize(
    "setting",
    [
        '[kafka]\n"ssl.ca.location" =', '[kafka_input]\n"ssl.key.location" =', '[kafka]\n"ssl.keystore.location" =',
        "[redis]\nurl = 'rediss://h'\nca_file =", "[redis]\nurl = 'rediss://h'\ncertificate_file =",
        "[registry]\nca_file =", "[metrics]\ncertificate_file =", "[sinks.hop]\nca_file =",
        "[sinks.fastdb]\nalert_ca_file =",
    ],
)  # fmt: skip
def test_certificates_that_are_no_files_are_refused_before_a_library_waits_for_them(
    setting: str, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    huge = tmp_path / "huge"
    with huge.open("wb") as sparse:
        sparse.truncate(2**30)
    for path in (tmp_path / "pipe", Path("/dev/zero"), huge):
        with pytest.raises(ConfigError, match=r"^[a-z_.]+: \S+ (is not an ordinary file|has more than 16 MiB)"):
            config.load(write(tmp_path, f"{setting} '{path}'\n"), environ={})
    config.load(write(tmp_path, f"{setting} '{tmp_path}'\n"), environ={})  # a folder of authorities


def test_a_secret_may_come_through_a_pipe() -> None:
    reading, writing = os.pipe()
    threading.Timer(0.3, lambda: (os.write(writing, b"s3cret"), os.write(writing, b"\n"), os.close(writing))).start()
    assert config.read_secret(Path(f"/dev/fd/{reading}"), "--token-file") == "s3cret"
    os.close(reading)


def test_the_settings_know_the_longest_history_without_numpy() -> None:
    assert STAMPS_KEPT == LONGEST
    code = "import sys, skyheed.broker.config; print('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
