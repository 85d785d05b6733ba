"""URLs and lists of servers: what may be in them, and passwords that are never shown."""

import pytest

from skyheed.broker import urls


@pytest.mark.parametrize("password", ["secret", "with/slash", "with#hash", "with?mark", "with@at", "with:colon"])
def test_a_password_is_never_shown(password: str) -> None:
    shown = urls.redacted_url(f"redis://user:{password}@host:6379/0")
    assert password not in shown
    assert "host:6379" in shown


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
