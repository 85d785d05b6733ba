"""Settings: strength of the sources, clear refusals, no secrets in sight."""

from pathlib import Path

import pytest

from broker import config
from broker.errors import ConfigError


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
    assert settings.work.min_stamps == 3


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


@pytest.mark.parametrize("override", [{"redis.url": "redis://user:pw@host"}, {"kafka.sasl.password": "pw"}])
def test_a_password_on_the_command_line_is_refused(override: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="command line") as caught:
        config.load(overrides=override, environ={})
    assert "pw" not in str(caught.value).replace("password", "")


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
        ("[redis]\npassword_file = '/nowhere/x'", "cannot read /nowhere/x"),
    ],
)
def test_bad_settings_say_what_to_write(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        config.load(write(tmp_path, text), environ={})


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration /nowhere\.toml"):
        config.load("/nowhere.toml", environ={})


def test_a_redis_url_is_shown_without_its_password() -> None:
    assert config.redacted_url("redis://me:pw@host:1/0") == "redis://me:***@host:1/0"
    assert config.redacted_url("redis://host:1/0") == "redis://host:1/0"
