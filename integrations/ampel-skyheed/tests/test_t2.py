"""The unit against a local server that answers as `skyheed serve` does; AMPEL's own classes, no database."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from ampel.enum.DocumentCode import DocumentCode
from ampel.log.AmpelLogger import AmpelLogger
from ampel.skyheed.t2.T2Skyheed import T2Skyheed
from ampel.struct.UnitResult import UnitResult

RECORD = {
    "object_id": "ZTF25aaa", "status": "CLASSIFIED", "reason": None, "revision": 3, "n_stamps": 4,
    "classification_id": "c-3",
    "probabilities": [
        {"name": "AGN", "taxonomy_id": 2332, "probability": 0.25},
        {"name": "SNIa", "taxonomy_id": 2222, "probability": 0.75},
    ],
    "provenance": {"model_name": "fusion-ztf", "model_version": "2", "taxonomy": "elasticc-0.9.1/skyheed-2"},
}  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """One object, one that is not there, one without an answer, one that the server cannot tell of now."""

    def do_GET(self) -> None:
        name = self.path.removeprefix("/api/v1/objects/")
        answers = {
            "ZTF25aaa": (200, {"latest": {"ztf/vector": None, "ztf/fusion": RECORD}}),
            "fresh": (200, {"latest": {}}), "busy": (503, {"detail": "Redis is unavailable"}),
            "a%2Fb": (400, {"detail": "not an object id"}),
        }  # fmt: skip
        status, body = answers.get(name, (404, {"detail": "no such object"}))
        if self.headers.get("Authorization") not in (None, "Bearer right"):
            status, body = 401, {"detail": "the token is missing or wrong"}
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def result(address: str, name: str, **settings: object) -> object:
    unit = T2Skyheed(logger=AmpelLogger.get_logger(), api_url=address, **settings)
    return unit.process({"stock": 17}, [{"id": 1, "body": {"jd": 2460000.5}}, {"id": 2, "body": {"objectId": name}}])


def test_the_latest_classification_by_taxonomy_id(address: str) -> None:
    found = result(address, "ZTF25aaa")
    assert found["probabilities"] == {"2332": 0.25, "2222": 0.75}
    assert (found["model"], found["revision"], found["status"]) == ("fusion-ztf", 3, "CLASSIFIED")
    bson = pytest.importorskip("bson")
    assert bson.decode(bson.encode(found)) == found


def test_a_model_can_be_asked_for(address: str) -> None:
    assert result(address, "ZTF25aaa", model="ztf/vector")["status"] == "NOT_YET"


@pytest.mark.parametrize(("name", "status"), [("ZTF25zzz", "UNKNOWN"), ("fresh", "NOT_YET")])
def test_objects_without_an_answer(address: str, name: str, status: str) -> None:
    assert result(address, name) == {"object_id": name, "status": status}


def test_a_server_that_is_away_or_busy_is_asked_again(address: str) -> None:
    for found in (result(address, "busy"), result("http://127.0.0.1:9", "ZTF25aaa")):
        assert isinstance(found, UnitResult)
        assert found.code == DocumentCode.RERUN_REQUESTED


def test_a_refusal_is_an_error_with_its_sentence_and_without_the_token(address: str) -> None:
    found = result(address, "ZTF25aaa", token="wrong-token")
    assert found.code == DocumentCode.ERROR
    assert found.body == {"error": "the token is missing or wrong"}
    assert result(address, "ZTF25aaa", token="right")["status"] == "CLASSIFIED"
    assert result(address, "a/b").body == {"error": "not an object id"}
