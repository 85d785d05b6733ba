"""TLS to Kafka: which certificates are taken, and what is said of those that are not."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka_tools import with_tls
from redis_tools import Name
from server_tools import HOME, NEEDS_APACHE, SCRAM_USERS, scram_options
from tls_tools import DAY, Authority, server_side

from skyheed.broker.certificates import why_refused
from skyheed.broker.errors import ServiceError, ServiceUnavailable
from skyheed.broker.kafka import client as kafka
from skyheed.broker.local import embedded

pytestmark = [pytest.mark.kafka, pytest.mark.skipif(not HOME, reason=NEEDS_APACHE)]


@pytest.fixture
def kafka_(request: pytest.FixtureRequest) -> embedded.Server:
    """The session's broker, by a name that is not the module's."""
    server: embedded.Server = request.getfixturevalue("kafka")
    return server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kafka-tls")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder, "ours")


@pytest.fixture(scope="module")
def addresses(folder: Path, authority: Authority) -> Iterator[tuple[str, str]]:
    """Of a broker with TLS: for SASL_SSL, for SSL."""
    (folder / "kafka").mkdir()
    server, other = with_tls(HOME, folder / "kafka", authority, SCRAM_USERS)
    with server:
        yield server.address, other


def options_for(address: str, authority: Authority | None, user: str = "admin") -> dict[str, str]:
    options = scram_options(user, SCRAM_USERS[user]) if user else {}
    options |= {"security.protocol": "SASL_SSL" if user else "SSL", "bootstrap.servers": address}
    return options | ({"ssl.ca.location": str(authority.file)} if authority else {})


def refusal(options: dict[str, str]) -> str:
    with pytest.raises(ServiceError) as refused:
        kafka.end_offsets(options, ["any"])
    said = str(refused.value)
    assert not isinstance(refused.value, ServiceUnavailable), said
    assert SCRAM_USERS["admin"] not in said
    return said


def test_packets_pass_over_tls_with_and_without_a_user(addresses: tuple[str, str], authority: Authority) -> None:
    for address, user in zip(addresses, ("admin", ""), strict=True):
        options, topic = options_for(address, authority, user), f"over-tls-{user}"
        kafka.ensure_topics(options, {topic: {}}, 1, 1)
        with kafka.Publisher(options) as publisher:
            publisher.publish_all([(topic, None, b"one", None)])
        with kafka.BatchConsumer(options, [topic], group=f"g{user}", drain=True) as consumer:
            found: list[bytes | None] = []
            while not consumer.drained():
                found += [message.value() for message in consumer.consume(10, 0.5)]
        assert found == [b"one"]


def test_a_stranger_is_refused_and_the_sentence_names_the_option(
    addresses: tuple[str, str], authority: Authority, tmp_path: Path
) -> None:
    for address, user in zip(addresses, ("admin", ""), strict=True):
        for trusted in (None, Authority(tmp_path, "theirs")):
            assert "set ssl.ca.location to the certificate" in refusal(options_for(address, trusted, user))


def test_a_certificate_for_another_name_is_refused(addresses: tuple[str, str], authority: Authority) -> None:
    elsewhere = addresses[0].replace("127.0.0.1", "localhost")
    said = refusal(options_for(elsewhere, authority))
    assert "host name that it was issued for in bootstrap.servers" in said


def test_an_expired_certificate_is_refused(kafka_: embedded.Server, authority: Authority) -> None:
    with Name(kafka_.address, server_side(*authority.issue("127.0.0.1", -DAY))) as name:
        said = refusal(options_for(name.address, authority, ""))
        assert "has expired" in said
        assert "renew it" in said


def test_a_self_signed_certificate_is_its_own_authority(kafka_: embedded.Server, tmp_path: Path) -> None:
    itself = Authority(tmp_path, "itself", host="127.0.0.1")
    with Name(kafka_.address, server_side(itself.file, itself.key_file)) as name:
        assert "or to itself if it is self-signed" in refusal(options_for(name.address, None, ""))
        assert why_refused(name.address, str(itself.file)) == ""


def test_tls_to_a_listener_without_it(kafka_: embedded.Server) -> None:
    with pytest.raises(ServiceUnavailable, match="connecting to a PLAINTEXT broker listener"):
        kafka.end_offsets(options_for(kafka_.address, None, ""), ["any"])
