"""TLS to Redis: which certificates are taken, and what is said of those that are not."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis_tools import Name
from tls_tools import DAY, Authority, server_side

from skyheed.broker import config
from skyheed.broker.errors import ConfigError, ServiceError, ServiceUnavailable, SkyheedError
from skyheed.broker.local import embedded
from skyheed.broker.state import client as state

pytestmark = pytest.mark.redis


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


def client_of(name: Name, **redis: str) -> state.Client:
    url = redis.pop("url", f"rediss://{name.address}/0")
    settings = config.load(overrides={"redis.url": url, **{f"redis.{k}": v for k, v in redis.items()}}, environ={})
    return state.connect_as(settings.redis)


@pytest.fixture
def tls(valkey: embedded.Server, authority: Authority) -> Iterator[Name]:
    """A Valkey behind TLS, with a certificate for its address."""
    with Name(valkey.address, server_side(*authority.issue("127.0.0.1"))) as name:
        yield name


def refusal(client: state.Client, kind: type[SkyheedError] = ServiceError) -> str:
    with pytest.raises(kind) as refused:
        client.run([("GET", "x")])
    client.close()
    return str(refused.value)


def test_a_certificate_is_taken_from_an_authority_that_we_were_told_of(tls: Name, authority: Authority) -> None:
    for client in (
        client_of(tls, ca_file=str(authority.file)),
        client_of(tls, url=f"rediss://{tls.address}/0?ssl_ca_certs={authority.file}"),
    ):
        assert client.run([("SET", "x", 1), ("GET", "x")]) == [True, b"1"]
        client.close()


def test_a_stranger_is_refused_and_the_sentence_names_the_option(tls: Name, tmp_path: Path) -> None:
    assert "set redis.ca_file" in refusal(client_of(tls))
    assert "set redis.ca_file" in refusal(client_of(tls, ca_file=str(Authority(tmp_path, "theirs").file)))


def test_a_self_signed_certificate_is_its_own_authority(valkey: embedded.Server, tmp_path: Path) -> None:
    other = Authority(tmp_path, "itself", host="127.0.0.1")
    with Name(valkey.address, server_side(other.file, other.key_file)) as name:
        assert "cannot be trusted" in refusal(client_of(name))
        client = client_of(name, ca_file=str(other.file))
        client.ping()
        client.close()


def test_a_certificate_for_another_name_is_refused(valkey: embedded.Server, authority: Authority) -> None:
    with Name(valkey.address, server_side(*authority.issue("valkey.example.org"))) as name:
        sentence = refusal(client_of(name, ca_file=str(authority.file)))
        assert "not valid for '127.0.0.1'" in sentence
        assert "host name that it was issued for in redis.url" in sentence


def test_an_expired_certificate_is_refused(valkey: embedded.Server, authority: Authority) -> None:
    with Name(valkey.address, server_side(*authority.issue("127.0.0.1", -DAY))) as name:
        sentence = refusal(client_of(name, ca_file=str(authority.file)))
        assert "has expired" in sentence
        assert "renew it" in sentence


def test_a_server_that_asks_for_our_certificate(valkey: embedded.Server, authority: Authority) -> None:
    certificate, key = authority.issue("ingest")
    with Name(valkey.address, server_side(*authority.issue("127.0.0.1"), authority.file)) as name:
        # whether the server's alert or its end is read first is a race
        assert "redis.certificate_file" in refusal(client_of(name, ca_file=str(authority.file)), SkyheedError)
        client = client_of(
            name, ca_file=str(authority.file), certificate_file=str(certificate), key_file=str(key)
        )  # fmt: skip
        client.ping()
        client.close()


def test_tls_and_plain_that_are_mixed_up(
    valkey: embedded.Server, tls: Name, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "ANSWER_S", 1.0)
    with Name(valkey.address) as plain:
        # Valkey takes the greeting for the beginning of a command and waits for the rest
        assert "write redis:// in redis.url" in refusal(
            client_of(plain, ca_file=str(authority.file)), ServiceUnavailable
        )
    client = client_of(tls, url=tls.url)
    with pytest.raises(ServiceUnavailable, match="rediss://"):
        client.run([("GET", "x")])
    client.close()


def test_files_that_cannot_be_used_stop_the_start(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    for wrong in (tmp_path / "missing.pem", empty):
        settings = config.load(overrides={"redis.url": "rediss://h/0", "redis.ca_file": str(wrong)}, environ={})
        with pytest.raises(ConfigError, match=wrong.name):
            state.connect_as(settings.redis)
    with pytest.raises(ConfigError, match="write rediss://"):
        config.load(overrides={"redis.ca_file": str(empty)}, environ={})
