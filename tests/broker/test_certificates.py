"""What is said of a certificate that is not trusted, on every Python."""

import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tls_tools import DAY, Authority, server_side

from skyheed.broker.certificates import advice, why_refused

AGAIN = "issue it again .* RFC 5280"


@contextmanager
def server(certificate: Path, key: Path) -> Iterator[str]:
    """A TLS server that greets one client; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            with suppress(OSError), listener.accept()[0] as plain:
                server_side(certificate, key).wrap_socket(plain, server_side=True).close()

        thread = threading.Thread(target=greet)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join(10)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("certificate has expired", "renew it"), ("certificate is not yet valid", "check the clocks"),
        ("Hostname mismatch, certificate is not valid for 'a'.", "host name .* in kafka.url"),
        ("IP address mismatch, certificate is not valid for '127.0.0.1'.", "host name .* in kafka.url"),
        ("Missing Authority Key Identifier", AGAIN), ("Missing Subject Key Identifier", AGAIN),
        ("CA cert does not include key usage extension", AGAIN),
        ("Basic Constraints of CA cert not marked critical", AGAIN),
        ("self-signed certificate", "set ca_file to"), ("unable to get local issuer certificate", "set ca_file to"),
    ],
)  # fmt: skip
def test_the_advice_fits_the_reason(reason: str, expected: str) -> None:
    assert re.search(expected, advice(reason, "kafka.url", "ca_file"))


def test_why_a_certificate_is_refused(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    for files, authority, reason in (
        (ours.issue("127.0.0.1"), ours, "^$"),
        (ours.issue("127.0.0.1"), theirs, "unable to get local issuer"),
        (ours.issue("127.0.0.1", -DAY), ours, "expired"),
        (ours.issue("localhost"), ours, "mismatch|not valid for"),
    ):
        with server(*files) as address:
            assert re.search(reason, why_refused(address, str(authority.file)))


def test_librdkafka_takes_certificates_without_the_extensions_that_python_demands_since_3_13(tmp_path: Path) -> None:
    plain = Authority(tmp_path, "plain", extended=False)
    with server(*plain.issue("127.0.0.1")) as address:
        assert why_refused(address, str(plain.file)) == ""


def test_nothing_is_refused_where_nothing_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    assert why_refused(address, ssl.get_default_verify_paths().cafile or "") == ""
    assert why_refused("nonsense", "") == ""
