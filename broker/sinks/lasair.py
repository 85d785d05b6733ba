"""Lasair's annotator: one annotation for each object and topic, replaced by the next (lasair-lsst, annotations.py).

The team registers the topic with Lasair first; then filters there can use our classes.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from skyheed.broker.http import Host, Refusal
from skyheed.broker.plugins import required, take
from skyheed.broker.results.record import Classification
from skyheed.broker.sinks import DELIVERED, Answer, Payload, refused

LASAIR_URL = "https://api.lasair.lsst.ac.uk/api"
LONGEST_VERSION = 16  # the client raises above it; its list form truncates silently (lasair 0.1.4)


class Lasair:
    """`skyheed forward --to lasair`.

    Options: topic (registered there), token, url, page (a URL of an object's page; {object_id} is replaced).
    """

    batch = 100
    rate = 0.0

    def __init__(self, options: Mapping[str, str]) -> None:
        given = take(options, {"topic": "", "token": "", "url": LASAIR_URL, "page": ""}, "sinks.lasair")
        self._topic = required(given, "topic", "sinks.lasair", "the topic that Lasair gave you")
        token = required(given, "token", "sinks.lasair", "your token")
        self._page = given["page"]
        self._host = Host("sinks.lasair", given["url"], {"Authorization": f"Token {token}"})

    def payload(self, record: Classification) -> Payload | None:
        """An annotation as Lasair's API accepts it, except `classdict`, which it expects as a JSON string."""
        if not record.probabilities:
            return None
        return {
            "objectId": record.object_id,
            "topic": self._topic,
            "classification": record.top_class,
            "version": short_version(record),
            "explanation": explanation(record),
            "classdict": {
                **{name: round(p, 5) for name, p in record.probability_of.items()},
                "stamps": record.n_stamps,
                "mjd_tai": round(record.last_mjd, 5),
                "model": record.provenance.model_name,
                "model_version": record.provenance.model_version,
                "weights": record.provenance.weights_digest,
                "classification_id": record.classification_id,
            },
            "url": self._page.replace("{object_id}", quote(record.object_id, safe="")) if self._page else "",
        }

    def send(self, payloads: Sequence[Payload]) -> list[Answer]:
        """Send all at once; if one of them fails, each alone, so that only that one is refused."""
        try:
            self._annotate(payloads)
        except Refusal as refusal:
            if len(payloads) == 1:
                return [refused(str(refusal))]
            return [answer for payload in payloads for answer in self.send([payload])]
        return [DELIVERED] * len(payloads)

    def close(self) -> None:
        self._host.close()

    def _annotate(self, payloads: Sequence[Payload]) -> None:
        said = self._host.post("/annotatelist/", {"annotations": [_wire(payload) for payload in payloads]})
        if not isinstance(said, dict):
            raise self._host.stranger()
        if said.get("error"):  # with status 200
            raise self._host.refusal(said)


def _wire(payload: Payload) -> Payload:
    return {**payload, "classdict": json.dumps(payload["classdict"])}


def short_version(record: Classification) -> str:
    """At most 16 characters: unchanged if it fits, otherwise its beginning and 7 digits of its digest."""
    version = record.provenance.model_version
    if len(version) <= LONGEST_VERSION:
        return version or "0"
    return f"{version[: LONGEST_VERSION - 8]}-{hashlib.sha256(version.encode()).hexdigest()[:7]}"


def explanation(record: Classification) -> str:
    """One sentence for human readers there."""
    bands = ", ".join(f"{n} {band}" for band, n in sorted(record.stamps_per_band.items()))
    return (
        f"skyheed {record.provenance.model_name}: {record.top_class} with probability {record.top_probability:.2f} "
        f"from {record.n_stamps} stamps ({bands}) over {record.days_since_first:.1f} days"
    )
