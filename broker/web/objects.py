"""One object as the page shows it: its data in Redis, "as published". One bounded read; changes nothing."""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyheed.broker.errors import ServiceError, ServiceUnavailable, StreamError
from skyheed.broker.packets.surveys.links import pixel_arcsec
from skyheed.broker.results.formats import decode
from skyheed.broker.results.record import utc_ms
from skyheed.broker.state.histories import SequenceStore
from skyheed.broker.state.sequence import Lane, StoredSequence
from skyheed.broker.web import images as pictures
from skyheed.broker.web import positions
from skyheed.broker.web.cards import Cards
from skyheed.broker.web.index import Index
from skyheed.broker.web.object_ids import path_key
from skyheed.broker.web.problems import Problem
from skyheed.broker.web.rows import flag_names, night_of, reason_text
from skyheed.broker.web.search import Cone, SearchError
from skyheed.broker.work import history_of
from skyheed.classifier.context import CODES, QUANTITIES
from skyheed.classifier.history import BANDS, DETECTION, FORCED, UPPER_LIMIT, History, Photometry
from skyheed.classifier.stamp import STAMP_SIZE, STAMP_UNIT_NJY

AB_ZERO = 31.4  # magnitude of 1 nJy: -2.5 log10(1e-9 / 3631)
LIMIT_SIGMA = 5.0
WITHOUT_IMAGES = Lane(images=(), photometry=True, context=True)
SPLIT_ARCSEC = 2.0  # other ids within this distance may be the same object
MOST_MODELS = 20
KINDS = {DETECTION: "detection", FORCED: "forced", UPPER_LIMIT: "upper_limit"}
UNIT = (
    f"{STAMP_UNIT_NJY:g} nJy a pixel above the local background, north up, east left; the source is in pixel [16, 16]"
)


class Objects:
    """Objects of one survey.

    Args:
        shards: checked against Redis before the first read (`health.reading`).
    """

    def __init__(self, survey: str, store: SequenceStore, index: Index, cards: Cards) -> None:
        self.survey, self._store, self._index, self._cards = survey, store, index, cards

    def _sequence(self, object_id: str) -> StoredSequence | None:
        """The object's sequence; without images if any of them are no longer kept."""
        return self._store.sequence(object_id) or self._store.sequence(object_id, WITHOUT_IMAGES)

    def stored(self, object_id: str) -> StoredSequence:
        """The object's sequence.

        Raises:
            Problem: there is no such object.
            ServiceUnavailable, ServiceError: Redis is unavailable, or refuses us.
        """
        found = self._sequence(object_id)
        if found is None:
            raise Problem(
                404, "Redis has no such object: it is unknown, or has had no alert for longer than redis.ttl_days"
            )
        return found

    def history(self, object_id: str) -> tuple[History, int]:
        """The object's history and revision.

        Raises:
            As `stored`.
        """
        stored = self.stored(object_id)
        return history_of(stored, self.survey), stored.revision

    def describe(self, object_id: str) -> dict[str, Any]:
        """Everything known about an object.

        Raises:
            Problem: nothing is known.
        """
        rows, waits = self._index.of_object(object_id), False
        try:
            stored = self._sequence(object_id)
            models = self._models(rows)
            if stored is not None:
                return self._of_redis(stored, models, rows)
            away = "Redis no longer has this object's history: what the index still has is shown"
        except (ServiceUnavailable, ServiceError) as error:
            away, models, waits = str(error), sorted({row["model"] for row in rows}), True
        if not rows:
            if not waits:
                raise Problem(404, "no such object: it is unknown, or has been removed; search for a part of its id")
            raise Problem(503, away, {"Retry-After": "5"})
        return self._of_index(object_id, rows, away) | {"waits_for_redis": waits}

    def models(self) -> list[str]:
        """The models that classify the survey's objects: joined, published, or in the settings."""
        return self._models([])

    def _models(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        found = self._store.models() or [""]
        more = sorted({row["model"] for row in rows} - set(found))
        return [*found, *more][:MOST_MODELS]

    def provenance(self, object_id: str, model: str) -> dict[str, Any] | None:
        """What produced the last classification of an object."""
        latest = self._latest(object_id, model)
        return None if latest is None else latest["provenance"]

    def _latest(self, object_id: str, model: str) -> dict[str, Any] | None:
        payload = self._store.latest(object_id, model)
        if payload is None:
            return None
        try:
            record = decode(payload)
        except StreamError:  # of a release that this one does not know
            return None
        said = record.to_json()
        said["sources"] = [str(source) for source in said["sources"]]
        said["triggering_source_id"] = str(said["triggering_source_id"])
        return said | {"reason_text": reason_text(record.reason)}

    def _of_redis(
        self, stored: StoredSequence, models: Sequence[str], rows: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:  # fmt: skip
        history = history_of(stored, self.survey)
        published = {m: _lines(self._store.history(stored.object_id, m)) for m in models}
        latest = {m: self._latest(stored.object_id, m) for m in models}
        said = {m: latest[m] for m in models if latest[m] or published[m]}
        ra, dec = float(history.ra[-1]), float(history.dec[-1])
        return self._head(stored.object_id, ra, dec) | {
            "revision": stored.revision, "source": "redis", "notice": "",
            "epochs": epochs(history, stored.header), "images": images(history),
            "images_missing": pictures.missing(history),
            "photometry": photometry(history.photometry), "context": context(history),
            "models": _with_classes(
                self._cards.all({m: (latest[m] or {}).get("provenance") for m in said}), published
            ),
            "published": {m: published[m] for m in said}, "latest": said,
            "turned": {m: turned(published[m]) for m in said}, "rows": list(rows),
        }  # fmt: skip

    def _of_index(self, object_id: str, rows: Sequence[Mapping[str, Any]], notice: str) -> dict[str, Any]:
        newest = max(rows, key=lambda row: int(row["classified_ms"]))
        published = {row["model"]: [_published(row)] for row in rows}
        return self._head(object_id, _known(newest["ra"]), _known(newest["dec"])) | {
            "revision": newest["revision"], "source": "index", "notice": notice, "epochs": None, "images": {},
            "images_missing": 0, "photometry": None, "context": [],
            "models": _with_classes(self._cards.all(dict.fromkeys(published)), published),
            "published": published, "latest": dict.fromkeys(published),
            "turned": dict.fromkeys(published), "rows": list(rows),
        }  # fmt: skip

    def _head(self, object_id: str, ra: float, dec: float) -> dict[str, Any]:
        place = math.isfinite(ra) and math.isfinite(dec)
        longitude, latitude = positions.galactic(ra, dec) if place else (None, None)
        return {
            "survey": self.survey, "object_id": object_id, "path": path_key(object_id), "kind": "as published",
            "ra": ra, "dec": dec, "sexagesimal": positions.sexagesimal(ra, dec) if place else None,
            "galactic": {"l": longitude, "b": latitude},
            "stamp": {"size": STAMP_SIZE, "pixel_arcsec": pixel_arcsec(self.survey), "unit": UNIT},
            "links": positions.links(self.survey, object_id, ra, dec),
            "neighbours": self._neighbours(object_id, ra, dec) if place else [],
        }  # fmt: skip

    def _neighbours(self, object_id: str, ra: float, dec: float) -> list[dict[str, Any]]:
        try:
            near = self._index.near(Cone(ra % 360, dec, SPLIT_ARCSEC))
        except SearchError:
            return []
        names = ("object_id", "path", "separation")
        return [{name: row[name] for name in names} for row in near if row["object_id"] != object_id]


def _with_classes(models: list[dict[str, Any]], published: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The models; if a model's card is not available here, with the classes that it has published for the object."""
    return [
        model | {"classes": model["classes"] or list(dict.fromkeys(
            name for line in published.get(model["name"], ()) for name in line["probabilities"]
        ))}
        for model in models
    ]  # fmt: skip


def _known(value: float | None) -> float:
    return math.nan if value is None else value


def _lines(lines: Sequence[str]) -> list[dict[str, Any]]:
    """The lines written by `Classification.to_history`; invalid lines are left out."""
    found = []
    for line in lines:
        try:
            said = json.loads(line)
            found.append(
                {
                    "classification_id": said["id"], "revision": said["revision"], "n_stamps": said["n_stamps"],
                    "mjd": said["mjd"], "days": said["days"], "classified_ms": said["classified_ms"],
                    "status": "NOT_CLASSIFIED" if said["reason"] else "CLASSIFIED", "reason": said["reason"],
                    "reason_text": reason_text(said["reason"]), "probabilities": said["probabilities"],
                }
            )  # fmt: skip
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _published(row: Mapping[str, Any]) -> dict[str, Any]:
    names = (
        "classification_id", "revision", "n_stamps", "days", "classified_ms", "status", "reason", "reason_text",
        "probabilities",
    )  # fmt: skip
    return {name: row[name] for name in names} | {"mjd": row["last_mjd"]}


def turned(published: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The classification from which the most probable class has stayed the same; None if the last one is a decline."""
    tops = [_top(line["probabilities"]) for line in published]
    if not tops or tops[-1] is None:
        return None
    first = len(tops) - 1
    while first and tops[first - 1] == tops[-1]:
        first -= 1
    line = published[first]
    return {"index": first, "class": tops[-1], "n_stamps": line["n_stamps"], "mjd": line["mjd"]}


def _top(probabilities: Mapping[str, float]) -> str | None:
    return max(probabilities, key=lambda name: probabilities[name]) if probabilities else None


def magnitudes(flux: NDArray[Any], error: NDArray[Any]) -> tuple[list[float | None], list[float | None]]:
    """AB magnitudes of fluxes in nJy, and their errors to first order; None where the flux is not positive."""
    good = np.isfinite(flux) & (flux > 0)
    safe = np.where(good, flux, 1.0).astype(float)
    values = AB_ZERO - 2.5 * np.log10(safe)
    errors = np.where(good, error, np.nan) / safe * (2.5 / math.log(10))
    return _list(np.where(good, values, np.nan), 4), _list(errors, 4)


def _list(values: NDArray[Any], digits: int | None = None) -> list[float | None]:
    return [
        None if not math.isfinite(v) else (round(v, digits) if digits is not None else v)
        for v in np.asarray(values, float).tolist()
    ]


def _brief(values: NDArray[Any]) -> list[float | None]:
    """float32 numbers with only as many digits as they hold."""
    return [float(f"{v:.7g}") if math.isfinite(v) else None for v in np.asarray(values, float).tolist()]


def iso(mjd: float) -> str:
    """UTC of an MJD TAI, to the millisecond."""
    return datetime.fromtimestamp(utc_ms(mjd) / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def epochs(history: History, header: NDArray[Any]) -> dict[str, Any]:
    """The epochs of a history, a list for each column."""
    magnitude, error = magnitudes(history.flux, history.flux_error)
    return {
        "source_id": [str(source) for source in history.source_id.tolist()], "mjd": history.mjd.tolist(),
        "utc": [iso(mjd) for mjd in history.mjd.tolist()], "night": [night_of(mjd) for mjd in history.mjd.tolist()],
        "band": [BANDS[code] for code in history.band], "flux": _brief(history.flux),
        "flux_error": _brief(history.flux_error), "mag": magnitude, "mag_error": error,
        "ra": _list(history.ra), "dec": _list(history.dec),
        "flags": [flag_names(int(flags)) for flags in history.flags],
        "kafka_ms": header["kafka_ms"].tolist(), "ingest_ms": header["ingest_ms"].tolist(),
    }  # fmt: skip


def images(history: History) -> dict[str, list[int]]:
    """Kind of image -> the epochs that have one."""
    return {kind: pictures.of_kind(history, kind)[0].tolist() for kind in pictures.kinds(history)}


def photometry(points: Photometry | None) -> dict[str, Any] | None:
    """Points without images, as a list for each column; upper limits have a 5-sigma magnitude."""
    if points is None or not len(points):
        return None
    magnitude, error = magnitudes(points.flux, points.flux_error)
    limits, _ = magnitudes(LIMIT_SIGMA * points.flux_error, points.flux_error)
    return {
        "mjd": points.mjd.tolist(), "band": [BANDS[code] for code in points.band], "flux": _brief(points.flux),
        "flux_error": _brief(points.flux_error), "mag": magnitude, "mag_error": error, "limit": limits,
        "kind": [KINDS.get(int(kind), "other") for kind in points.kind],
    }  # fmt: skip


def context(history: History) -> list[dict[str, Any]]:
    """What is known of the surroundings, with units and meanings, in the order of the table of names."""
    named = ((name, QUANTITIES[CODES[name]]) for name in history.context if name in CODES)
    return [
        {"name": name, "value": history.context[name], "unit": quantity.unit, "meaning": quantity.meaning}
        for name, quantity in sorted(named, key=lambda item: CODES[item[0]])
    ]
