"""Certificates that are not trusted: why, and how to fix it."""

import socket
import ssl
from pathlib import Path

ANSWER_S = 3.0


def advice(reason: str, address: str, authority: str) -> str:
    """For OpenSSL's reason.

    Args:
        address: the setting that holds the server's name.
        authority: the setting that names a PEM file of authorities.
    """
    lowered = reason.lower()
    if "expired" in lowered:
        return "renew it on the server"
    if "not yet valid" in lowered:
        return "check the clocks of both machines"
    if "mismatch" in lowered or "not valid for" in lowered:
        return f"use the host name that it was issued for in {address}"
    if "key identifier" in lowered or "key usage" in lowered or "basic constraints" in lowered:
        return "issue it again with the extensions of RFC 5280, which Python demands from version 3.13 on"
    return f"set {authority} to the certificate of the authority that signed it, or to itself if it is self-signed"


def why_refused(server: str, authorities: str) -> str:
    """OpenSSL's reason for refusing the certificate of "host:port", for clients that do not report it.

    Args:
        authorities: a PEM file or a folder of authorities; "" for those of the system.

    Returns:
        "" if the certificate is not refused, or nothing answers.
    """
    host, _, port = server.rpartition(":")
    try:
        folder = Path(authorities).is_dir() if authorities else False
        context = ssl.create_default_context(
            cafile=authorities if authorities and not folder else None, capath=authorities if folder else None
        )
        context.verify_flags &= (
            ~ssl.VERIFY_X509_STRICT
        )  # which librdkafka does not demand, and Python only from 3.13 on
        with socket.create_connection((host.strip("[]"), int(port)), ANSWER_S) as plain:
            context.wrap_socket(plain, server_hostname=host.strip("[]")).close()
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except (OSError, ValueError):
        pass
    return ""
