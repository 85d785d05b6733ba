"""Stand-ins for the hosts that classifications are sent to, with the rules that their own code has."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

Reply = tuple[int, Any]  # status, JSON or bytes


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def content(self) -> Any:
        return json.loads(self.body)


@dataclass
class Stand:
    """A host: answers by `rule`, after the replies in `first`; remembers every request.

    Attributes:
        headers: of what `rule` answers.
    """

    rule: Callable[[Request], Reply]
    url: str = ""
    asked: list[Request] = field(default_factory=list)
    first: list[tuple[int, Any, dict[str, str]]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)

    def reply(self, request: Request) -> tuple[int, Any, dict[str, str]]:
        self.asked.append(request)
        if self.first:
            return self.first.pop(0)
        return (*self.rule(request), self.headers)


@contextlib.contextmanager
def standing(rule: Callable[[Request], Reply]) -> Iterator[Stand]:
    """A host on a free loopback port."""
    stand = Stand(rule)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content, headers = stand.reply(Request(self.command, self.path, dict(self.headers), body))
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = answer

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stand.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stand
    finally:
        server.shutdown()
        server.server_close()


class LasairRules:
    """Lasair's annotator: one annotation for each object and topic, replaced; unknown objects are an error."""

    def __init__(self, token: str = "t0ken", topic: str = "skyheed") -> None:
        self.token, self.topic = token, topic
        self.kept: dict[tuple[str, str], dict[str, Any]] = {}
        self.calls = 0

    def __call__(self, request: Request) -> Reply:
        self.calls += 1
        if request.headers.get("Authorization") != f"Token {self.token}":
            return 401, {"detail": "Invalid token."}
        one_alone = request.path.endswith("/annotate/")  # which the client sends as a form
        annotations = [dict(parse_qsl(request.body.decode(), True))] if one_alone else request.content["annotations"]
        if fault := next(filter(None, map(self._fault, annotations)), ""):
            return 400, {"error": fault}
        for annotation in annotations:
            self.kept[annotation["objectId"], annotation["topic"]] = annotation
        return 200, {"status": "success"}

    def _fault(self, annotation: dict[str, Any]) -> str:
        if set(annotation) != {"objectId", "topic", "classification", "version", "explanation", "classdict", "url"}:
            return f"unexpected fields {sorted(annotation)}"
        if annotation["topic"] != self.topic:
            return f"topic {annotation['topic']} is not yours"
        if not annotation["classification"] or len(annotation["version"]) > 16:
            return "classification or version cannot be stored"
        if not isinstance(json.loads(annotation["classdict"]), dict):
            return "classdict must be a JSON object"
        return f"object {annotation['objectId']} does not exist" if "nowhere" in annotation["objectId"] else ""


class SkyPortalRules:
    """SkyPortal: sources, one annotation for each origin, any number of classifications of a taxonomy's classes, and
    analyses that can be added and deleted but not changed, at most `most_analyses` of a source."""

    most_analyses = 50
    service = 7

    def __init__(self, sources: set[str], classes: set[str], token: str = "t0ken") -> None:
        self.sources, self.classes, self.token = sources, classes, token
        self.annotations: dict[int, dict[str, Any]] = {}
        self.classifications: dict[int, dict[str, Any]] = {}
        self.analyses: dict[int, dict[str, Any]] = {}
        self.services: dict[int, dict[str, Any]] = {7: {"upload_only": True}, 8: {"upload_only": False}}
        self._number = 0

    def __call__(self, request: Request) -> Reply:
        if request.headers.get("Authorization") != f"token {self.token}":
            return 401, {"status": "error", "message": "Credentials malformed"}
        parts = [unquote(part) for part in urlsplit(request.path).path.strip("/").split("/")]
        status, data = self._route(request, parts[1:])
        said = {"status": "success", "data": data} if status == 200 else {"status": "error", "message": data}
        return status, said

    def _route(self, request: Request, parts: list[str]) -> Reply:
        if parts[0] == "analysis_service":
            found = self.services.get(int(parts[1]))
            return (200, found) if found else (403, "Cannot access this Analysis Service.")
        if parts[0] == "obj":
            return self._analysis(request, parts[1:])
        if parts[0] == "sources" and parts[1] not in self.sources:
            return 400, "Source not found"
        if parts[0] == "sources" and parts[2:3] == ["annotations"]:
            return self._annotation(request, parts[1], parts[3:])
        if parts[0] == "sources" and parts[2:3] == ["classifications"]:
            return 200, [row for row in self.classifications.values() if row["obj_id"] == parts[1]]
        if parts[0] == "sources":
            return 200, {"id": parts[1]}
        return self._classification(request, parts[1:])

    def _annotation(self, request: Request, source: str, number: list[str]) -> Reply:
        mine = [row for row in self.annotations.values() if row["obj_id"] == source]
        if request.method == "GET":
            return 200, mine
        content = request.content
        if request.method == "POST" and content["origin"] in [row["origin"] for row in mine]:
            return 400, "Annotation already exists for this origin"
        return self._keep(self.annotations, {**content, "obj_id": source}, number)

    def _classification(self, request: Request, number: list[str]) -> Reply:
        content = request.content
        if content["classification"] not in self.classes:
            return 400, f"That classification ({content['classification']}) is not in the allowed classes"
        if not 0 <= content["probability"] <= 1:
            return 400, "That probability is outside the allowable range (0-1)."
        return self._keep(self.classifications, content, number)

    def _analysis(self, request: Request, parts: list[str]) -> Reply:
        if parts[0] == "analysis" and request.method == "DELETE":
            return (200, {}) if self.analyses.pop(int(parts[1]), None) else (403, "Cannot access this Analysis.")
        if parts[0] == "analysis":
            asked = dict(parse_qsl(urlsplit(request.path).query))
            if set(asked) != {"objID", "analysisServiceID"}:
                return 400, f"unexpected {sorted(asked)}"
            # as theirs: of objects whose names contain this one
            rows = [row for row in self.analyses.values() if asked["objID"] in row["obj_id"]]
            return 200, [row for row in rows if row["analysis_service_id"] == int(asked["analysisServiceID"])]
        return self._upload(request.content, parts[0], int(parts[2]))

    def _upload(self, content: dict[str, Any], source: str, service: int) -> Reply:
        known = {"status", "message", "show_parameters", "show_plots", "show_corner", "group_ids", "analysis"}
        if unknown := set(content) - known or set(content["analysis"]) - {"plots", "results", "inference_data"}:
            return 400, f"unexpected fields {sorted(unknown)}"
        if not self.services.get(service, {}).get("upload_only"):
            return 403, f"Analysis Service ID: {service} is not of type upload_only."
        if len([row for row in self.analyses.values() if row["obj_id"] == source]) >= self.most_analyses:
            return 403, "You have reached the maximum number of analyses for this object."
        row = {"obj_id": source, "analysis_service_id": service, "status_message": content["message"], **content}
        return self._keep(self.analyses, row, [])

    def _keep(self, table: dict[int, dict[str, Any]], content: dict[str, Any], number: list[str]) -> Reply:
        if number and int(number[0]) not in table:
            return 400, f"Cannot find {number[0]}"
        self._number += 1
        key = int(number[0]) if number else self._number
        table[key] = {**content, "id": key}
        return 200, {"id": key}
