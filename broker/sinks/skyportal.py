"""SkyPortal and Fritz: a classification, an annotation and an analysis with the film strip on sources saved there.

The API allows one annotation per origin, and any number of classifications: we look for ours (by origin) and update
it, so that sending again changes nothing (skyportal/handlers/api/classification.py, annotation.py). Analyses
cannot be changed, and a source has at most 50 of one author (analysis.py, as of 8bd346c): the new one is uploaded,
then our previous one is deleted; an existing one of the same classification is kept.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from skyheed.broker.errors import ConfigError
from skyheed.broker.filmstrip import FilmStrips
from skyheed.broker.http import Host, Refusal, Unwelcome, segment
from skyheed.broker.plugins import required, take
from skyheed.broker.results.record import Classification
from skyheed.broker.sinks import DELIVERED, FILTERED, Answer, Payload, refused

OPTIONS = {
    "url": "", "token": "", "taxonomy_id": "", "group_ids": "", "classes": "", "origin": "skyheed",
    "analysis_service_id": "",
}  # fmt: skip
NOT_THERE = (400, 404)  # its response for an object that nobody saved


class SkyPortal:
    """`skyheed forward --to skyportal`.

    Options: url, token, taxonomy_id (there), classes ("SNIa=Ia, SNOther=Supernova, …": ours = theirs; others are
    annotated but not classified), group_ids ("1,5"; by default all of the token's), origin, analysis_service_id (of an
    upload-only analysis service there: sources get an analysis with the film strip).

    Attributes:
        strips: draws film strips; None if there is no Redis to read histories from.
    """

    batch = 1
    rate = 5.0  # each one refreshes the source's page for all users

    def __init__(self, options: Mapping[str, str]) -> None:
        given = take(options, OPTIONS, "sinks.skyportal")
        token = required(given, "token", "sinks.skyportal", "a token with the rights Annotate and Classify")
        url = required(given, "url", "sinks.skyportal", "the address of the instance")
        self._taxonomy = _number(given["taxonomy_id"], "taxonomy_id") if given["taxonomy_id"] else None
        self._groups = [_number(part, "group_ids") for part in given["group_ids"].split(",") if part.strip()]
        self._classes = _pairs(given["classes"])
        if self._classes and self._taxonomy is None:
            raise ConfigError("sinks.skyportal.classes needs taxonomy_id, the taxonomy of those classes")
        self._origin = given["origin"]
        service = given["analysis_service_id"]
        self._service = _number(service, "analysis_service_id") if service else None
        self._service_checked = False
        self.strips: FilmStrips | None = None
        self._host = Host("sinks.skyportal", url, {"Authorization": f"token {token}"})

    @property
    def wants_strips(self) -> bool:
        """Whether the settings ask for film strips."""
        return self._service is not None

    def payload(self, record: Classification) -> Payload | None:
        """The annotation, the classification if our top class has a name there, and the analysis if wanted."""
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
        if self.wants_strips:
            found["analysis"] = _analysis(record, origin) | {"group_ids": self._groups}
            found["sources"] = list(record.sources)
        return found

    def send(self, payloads: Sequence[Payload]) -> list[Answer]:
        return [self._send(payload) for payload in payloads]

    def close(self) -> None:
        self._host.close()

    def _send(self, payload: Payload) -> Answer:
        try:
            source = f"/api/sources/{segment(payload['obj_id'])}"
        except Refusal as refusal:
            return refused(str(refusal))
        try:
            self._ask("GET", source)
        except Refusal as refusal:
            return FILTERED if refusal.status in NOT_THERE else refused(str(refusal))
        try:
            self._put(payload["annotation"], f"{source}/annotations", f"{source}/annotations")
            if "classification" in payload:
                self._put(payload["classification"], f"{source}/classifications", "/api/classification")
            if "analysis" in payload:
                self._show(payload)
        except Refusal as refusal:
            return refused(str(refusal))
        return DELIVERED

    def _ask(self, method: str, path: str, content: Any = None) -> Any:
        """`data` in the envelope {"status": "success", "data": …} of every answer; errors as `Host.ask`."""
        said = self._host.ask(method, path, content)
        if not isinstance(said, dict) or "status" not in said:
            raise self._host.stranger()
        if said["status"] != "success":
            raise self._host.refusal(said)
        return said.get("data")

    def _put(self, content: Mapping[str, Any], listed: str, posted: str) -> None:
        """Update what exists with our origin, or add it."""
        content = {key: value for key, value in content.items() if key != "group_ids" or value}
        there = [row for row in _rows(self._ask("GET", listed)) if row.get("origin") == content["origin"]]
        if there:
            self._ask("PUT", f"{posted}/{there[0]['id']}", content)
        else:
            self._ask("POST", posted, content)

    def _show(self, payload: Payload) -> None:
        """Upload the analysis unless it exists, and delete our previous one."""
        self._check_service()
        name, analysis = payload["obj_id"], payload["analysis"]
        asked = urlencode({"objID": name, "analysisServiceID": self._service})
        mark = f"{payload['annotation']['origin']} "
        ours = [
            row for row in _rows(self._ask("GET", f"/api/obj/analysis?{asked}"))
            if row.get("obj_id") == name and str(row.get("status_message")).startswith(mark)
        ]  # fmt: skip
        same = [row for row in ours if row["status_message"] == analysis["message"]]
        if not same:
            self._upload(name, self._with_strip(payload))
        for row in ours:
            if row not in same[:1]:
                self._ask("DELETE", f"/api/obj/analysis/{row['id']}")

    def _upload(self, name: str, analysis: Mapping[str, Any]) -> None:
        content = {key: value for key, value in analysis.items() if key != "group_ids" or value}
        try:
            self._ask("POST", f"/api/obj/{segment(name)}/analysis_upload/{self._service}", content)
        except Unwelcome as error:  # also if the source already has the maximum number of analyses
            if error.status != 403:
                raise
            raise Refusal(error.status, f"{error.status} {error.words}") from error

    def _with_strip(self, payload: Payload) -> dict[str, Any]:
        analysis, strips = dict(payload["analysis"]), self.strips
        picture = strips.of(payload["obj_id"], payload["sources"], analysis["message"]) if strips else None
        if picture:
            plot = {"format": "png", "data": base64.b64encode(picture).decode()}
            analysis["analysis"] = {**analysis["analysis"], "plots": [plot]}
        return analysis

    def _check_service(self) -> None:
        if self._service_checked:
            return
        try:
            service = self._ask("GET", f"/api/analysis_service/{self._service}")
        except Refusal as refusal:
            raise ConfigError(f"sinks.skyportal.analysis_service_id = {self._service}: {refusal}") from refusal
        if not (isinstance(service, dict) and service.get("upload_only")):
            raise ConfigError(
                f"sinks.skyportal.analysis_service_id: service {self._service} is not upload_only; make one that is"
            )
        self._service_checked = True


def _analysis(record: Classification, origin: str) -> dict[str, Any]:
    """An analysis in the form of SkyPortal's doc/analysis.md, except its picture."""
    results = {
        "external_provenance": {
            "hash": record.provenance.weights_digest,
            "model": f"{record.provenance.model_name} {record.provenance.model_version}",
            "classification_id": record.classification_id,
        },
        "classification": record.top_class,
        "classification_proba": record.top_probability,
        "probabilities": record.probability_of,
        "stamps": record.n_stamps,
        "days": round(record.days_since_first, 3),
    }
    words = f"{record.top_class} {record.top_probability:.2f} from {record.n_stamps} stamps"
    return {
        "status": "success",
        "message": f"{origin} {words} [{record.classification_id}]",
        "show_parameters": False,
        "show_plots": True,
        "show_corner": False,
        "analysis": {"results": {"format": "json", "data": results}},
    }


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


def _rows(data: Any) -> list[dict[str, Any]]:
    """The rows of a list, without what cannot be one."""
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
