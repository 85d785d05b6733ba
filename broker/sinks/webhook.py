"""A webhook: every classification as a signed JSON POST, with an idempotency key.

X-Skyheed-Timestamp: 1764158400
X-Skyheed-Signature: sha256=<HMAC-SHA256 with the secret of "<timestamp>.<body>">
Idempotency-Key: <classification_id>-<revision>
"""

import hashlib
import hmac
import json
import time
from collections.abc import Mapping, Sequence

from skyheed.broker.http import Host, Refusal
from skyheed.broker.plugins import required, take
from skyheed.broker.results.record import Classification
from skyheed.broker.sinks import DELIVERED, Answer, Payload, refused


class Webhook:
    """`skyheed forward --to webhook`. Options: url, secret (signs every request), token (sent as a bearer's)."""

    batch = 1
    rate = 0.0

    def __init__(self, options: Mapping[str, str]) -> None:
        given = take(options, {"url": "", "secret": "", "token": ""}, "sinks.webhook")
        token = given["token"]
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._host = Host("sinks.webhook", required(given, "url", "sinks.webhook", "an address"), headers)
        self._secret = given["secret"].encode()

    def payload(self, record: Classification) -> Payload:
        """The whole record, with the probabilities by class; source ids as strings, because JavaScript rounds them."""
        plain = record.to_json()
        plain["sources"] = [str(source) for source in record.sources]
        plain["triggering_source_id"] = str(record.triggering_source_id)
        return plain | {"probability_of": record.probability_of}

    def send(self, payloads: Sequence[Payload]) -> list[Answer]:
        return [self._send(payload) for payload in payloads]

    def close(self) -> None:
        self._host.close()

    def _send(self, payload: Payload) -> Answer:
        body = json.dumps(payload, allow_nan=False).encode()
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": f"{payload['classification_id']}-{payload['revision']}",
            **(signature(self._secret, body, int(time.time())) if self._secret else {}),
        }
        try:
            self._host.ask("POST", "", body=body, headers=headers)
        except Refusal as refusal:
            return refused(str(refusal))
        return DELIVERED


def signature(secret: bytes, body: bytes, timestamp: int) -> dict[str, str]:
    """The headers by which a receiver knows that a request is ours and new (Unix seconds)."""
    digest = hmac.new(secret, f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()
    return {"X-Skyheed-Timestamp": str(timestamp), "X-Skyheed-Signature": f"sha256={digest}"}
