"""SkyPortal and Fritz: a classification and an annotation on sources that are saved there.

The API allows one annotation for each origin, and any number of classifications: we look for ours (by origin) and
change it, so that sending again changes nothing (skyportal/handlers/api/classification.py, annotation.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from skyheed.broker.errors import ConfigError
from skyheed.broker.http import Host, Refusal
from skyheed.broker.options import required, take
from skyheed.broker.results.record import Classification
from skyheed.broker.sinks import DELIVERED, FILTERED, Answer, Payload, refused

OPTIONS = {"url": "", "token": "", "taxonomy_id": "", "group_ids": "", "classes": "", "origin": "skyheed"}
NOT_THERE = (400, 404)  # what it answers for an object that nobody saved


class SkyPortal:
    """`skyheed forward --to skyportal`.

    Options: url, token, taxonomy_id (there), classes ("SNIa=Ia, SNOther=Supernova, …": ours = theirs; others are
    annotated but not classified), group_ids ("1,5"; all of the token's otherwise), origin.
    """

    batch = 1
    rate = 5.0  # a source's page is refreshed for everybody at each

    def __init__(self, options: Mapping[str, str]) -> None:
        given = take(options, OPTIONS, "sinks.skyportal")
        token = required(given, "token", "sinks.skyportal", "a token with the rights Annotate and Classify")
        url = required(given, "url", "sinks.skyportal", "the address of the instance")
        self._taxonomy = _number(given["taxonomy_id"], "taxonomy_id") if given["taxonomy_id"] else None
        self._groups = [_number(part, "group_ids") for part in given["group_ids"].split(",") if part.strip()]
        self._classes = _pairs(given["classes"])
        if self._classes and self._taxonomy is None:
            raise ConfigError("sinks.skyportal.classes needs taxonomy_id, the taxonomy that those classes are of")
        self._origin = given["origin"]
        self._host = Host("sinks.skyportal", url, {"Authorization": f"token {token}"})

    def payload(self, record: Classification) -> Payload | None:
        """The annotation, and the classification where our top class has a name there."""
        if not record.probabilities:
            return None
        origin = f"{self._origin}:{record.model or record.provenance.model_name}"
        found: dict[str, Any] = {
            "obj_id": record.object_id,
            "annotation": {"origin": origin, "data": _data(record), "group_ids": self._groups},
        }
        if theirs := self._classes.get(str(record.top_class)):
            found["classification"] = {
                "obj_id": record.object_id, "classification": theirs, "taxonomy_id": self._taxonomy,
                "probability": record.top_probability, "origin": origin, "ml": True, "group_ids": self._groups,
            }  # fmt: skip
        return found

    def send(self, payloads: Sequence[Payload]) -> list[Answer]:
        return [self._send(payload) for payload in payloads]

    def close(self) -> None:
        self._host.close()

    def _send(self, payload: Payload) -> Answer:
        source = f"/api/sources/{quote(payload['obj_id'], safe='')}"
        try:
            self._host.get(source)
        except Refusal as refusal:
            return FILTERED if refusal.status in NOT_THERE else refused(str(refusal))
        try:
            self._put(payload["annotation"], f"{source}/annotations", f"{source}/annotations")
            if "classification" in payload:
                self._put(payload["classification"], f"{source}/classifications", "/api/classification")
        except Refusal as refusal:
            return refused(str(refusal))
        return DELIVERED

    def _put(self, content: Mapping[str, Any], listed: str, posted: str) -> None:
        """Change what is there of our origin, or add it."""
        content = {key: value for key, value in content.items() if key != "group_ids" or value}
        there = [row for row in _data_of(self._host.get(listed)) if row.get("origin") == content["origin"]]
        if there:
            self._host.put(f"{posted}/{there[0]['id']}", content)
        else:
            self._host.post(posted, content)


def _data(record: Classification) -> dict[str, Any]:
    return {
        **{name: round(p, 4) for name, p in record.probability_of.items()},
        "top_class": record.top_class,
        "stamps": record.n_stamps,
        "days": round(record.days_since_first, 3),
        "mjd_tai": round(record.last_mjd, 5),
        "model": f"{record.provenance.model_name} {record.provenance.model_version}",
        "weights": record.provenance.weights_digest,
        "classification_id": record.classification_id,
    }


def _data_of(answer: Any) -> list[dict[str, Any]]:
    """The rows in SkyPortal's envelope {"status": "success", "data": …}."""
    data = answer.get("data") if isinstance(answer, dict) else None
    rows = data if isinstance(data, list) else []
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("id"), int)]


def _number(text: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"sinks.skyportal.{name} must be a number, as its pages show it, not {text!r}") from None


def _pairs(text: str) -> dict[str, str]:
    pairs = [part.split("=") for part in text.split(",") if part.strip()]
    if any(len(pair) != 2 or not all(side.strip() for side in pair) for pair in pairs):
        raise ConfigError('sinks.skyportal.classes must be like "SNIa=Ia, AGN=AGN": our class = theirs')
    return {ours.strip(): theirs.strip() for ours, theirs in pairs}
