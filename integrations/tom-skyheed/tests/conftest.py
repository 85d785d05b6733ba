"""A local server that answers as the JSON API of `skyheed serve` does, and refuses parameters that it does not have."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

KNOWN = {"q", "class", "min_probability", "model", "limit"}
ROW = {
    "object_id": "ZTF25aaa", "ra": 150.1, "dec": 2.2, "top_class": "SNIa", "top_probability": 0.91, "n_stamps": 6,
    "model": "ztf/fusion",
}  # fmt: skip
LOST = ROW | {"object_id": "ZTF25bbb", "ra": None, "dec": None}
EPOCHS = {
    "mjd": [60000.0, 60002.5], "band": ["g", "r"], "flux": [250000.0, -1000.0], "flux_error": [3000.0, None],
    "source_id": ["1", "2"],
}  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """Two objects."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        asked = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.server.asked.append((url.path, asked, self.headers.get("Authorization")))
        status, body = self._answer(url.path, asked)
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def _answer(self, path: str, asked: dict[str, str]) -> tuple[int, Any]:
        if unknown := set(asked) - KNOWN:
            return 422, {"detail": f"unknown parameter {unknown}"}
        if path == "/api/v1/objects":
            return 200, {"rows": [ROW, LOST], "next": None}
        if path == "/api/v1/objects/ZTF25aaa":
            return 200, {"object_id": "ZTF25aaa", "epochs": EPOCHS, "latest": {}}
        return 404, {"detail": "no such object: it is unknown"}

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def server(settings: Any) -> Iterator[ThreadingHTTPServer]:
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.asked = []
    threading.Thread(target=made.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{made.server_address[1]}/"
    settings.DATA_SERVICES = {"skyheed": {"base_url": address, "api_key": "secret"}}
    yield made
    made.shutdown()
