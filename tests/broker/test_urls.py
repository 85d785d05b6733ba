"""URLs and lists of servers: what may be in them, and passwords that are never shown."""

import traceback
from pathlib import Path
from typing import Any

import pytest

from skyheed.broker import config, urls
from skyheed.broker.errors import ConfigError


@pytest.mark.parametrize("password", ["secret", "with/slash", "with#hash", "with?mark", "with@at", "with:colon"])
def test_a_password_is_never_shown(password: str) -> None:
    shown = urls.redacted_url(f"redis://user:{password}@host:6379/0")
    assert password not in shown
    assert "host:6379" in shown


MARK = "hidden"
MISTYPED = [
    f"us:{MARK}@h:1", f"//us:{MARK}@h:1/0", f"redis:us:{MARK}@h:1", f"redis:/us:{MARK}@h:1", f"redis://us:{MARK}h:1",
    f"redis://us%3A{MARK}%40h/0", f"redis://h:1:{MARK}", f"redis://us:a@b{MARK}@h:1/x", f"us:p://{MARK}@h",
    f"redis://h/0?pass%77ord={MARK}", f"redis://h/0?PASSWORD={MARK}", f"redis://h/0?{MARK}", f"redis://h/0#{MARK}",
    f"redis://h/0;password={MARK}", f"redis://h/0?ssl_password={MARK}&db=1", f"http://h:1/?token={MARK}",
    f"http://h:1/path?sig={MARK}", f"http:us:{MARK}@h", f"SASL_SSL://us:{MARK}@h:9092", f"h:1;sasl.password={MARK}",
]  # fmt: skip


@pytest.mark.parametrize("url", MISTYPED)
def test_no_spelling_of_an_address_shows_its_secret_wherever_it_is_refused(url: str, tmp_path: Path) -> None:
    """A forgotten scheme, a forgotten @, an option quoted or in capitals: what cannot be read may hold the password."""
    for fault in (urls.redis_fault, urls.http_fault, urls.servers_fault):
        assert MARK not in fault(url), fault
    own = tmp_path / "own.toml"
    own.write_text(f'survey = "ztf"\n[kafka]\n"bootstrap.servers" = "{url}"\n')
    variables = ("SKYHEED_REDIS", "SKYHEED_REGISTRY", "SKYHEED_KAFKA")
    tries: list[dict[str, Any]] = [{"environ": {name: url, "SKYHEED_SURVEY": "ztf"}} for name in variables]
    for given in (*tries, {"path": own, "environ": {}}, {"overrides": {"redis.url": url}, "environ": {}}):
        try:
            config.load(**given)
        except ConfigError as error:
            assert MARK not in "".join(traceback.format_exception(error)), given  # noqa: PT017
        else:
            assert MARK not in urls.redacted_url(url), given


def test_a_password_where_its_file_belongs_is_not_shown(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(f'[redis]\npassword_file = "{MARK}"\n')
    with pytest.raises(ConfigError, match=r"redis\.password_file: cannot read the file that it names") as refused:
        config.load(own, environ={})
    assert MARK not in "".join(traceback.format_exception(refused.value))


def test_what_is_harmless_in_a_url_is_shown() -> None:
    url = "rediss://us@host:6379/0?db=1&client_name=we&ssl_password=x&pass%77ord=y&other=z#w"
    shown = "rediss://us@host:6379/0?db=1&client_name=we&ssl_password=***&***&***#***"
    assert urls.redacted_url(url) == shown
    assert urls.redis_fault("localhost:6379").startswith("'localhost:6379' is not a Redis URL")
    assert urls.servers_fault("http://host:9092").startswith("'http://host:9092' is not a server")


def test_a_url_without_a_password_is_shown_as_it_is() -> None:
    assert urls.redacted_url("redis://host:6379/0") == "redis://host:6379/0"


def test_the_nodes_of_a_cluster_have_a_url_each() -> None:
    assert urls.redis_hosts("redis://u@a:1,b:2/0") == ["redis://u@a:1/0", "redis://u@b:2/0"]


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://host", "is not a Redis URL"),
        ("redis://a:1,b:2", "set redis.cluster = true"),
        ("redis://host?nonsense=1", "option 'nonsense'"),
    ],
)
def test_urls_that_cannot_be_redis(url: str, why: str) -> None:
    assert why in urls.redis_fault(url)
    assert urls.redis_fault("redis://a:1,b:2", cluster=True) == ""


@pytest.mark.parametrize("servers", ["host:0", "host:99999", "http://host:9092", "a:1,"])
def test_servers_that_cannot_be_kafka(servers: str) -> None:
    assert urls.servers_fault(servers)
    assert urls.servers_fault("a:9092, b:9092") == ""
