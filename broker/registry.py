"""Writer schemas by number: schema registry, then a local directory, then an installed package.

A local directory holds `<id>.avsc` (one file with everything in it) or `<major>/<minor>/*.avsc` as the LSST
schema repository has them, where id = major * 100 + minor; the file named `*.alert.avsc` is the top of it.
The installed package `lsst-alert-packet` has the same layout.
"""

import base64
import http.client
import importlib.util
import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from .avro import MAX_SCHEMA_BYTES, Schema
from .errors import ConfigError, PacketError, Reason, ServiceError, ServiceUnavailable

log = logging.getLogger("skyheed.registry")

LSST_PACKAGE = "lsst.alert.packet"
RETRY_S = 3.0  # all attempts for one schema together
FIRST_WAIT_S = 0.2  # between attempts, then doubled
RECHECK_S = 30.0  # an unknown id, or a registry that was away, is asked about again after this
_ACCEPT = "application/vnd.schemaregistry.v1+json, application/json"
_MAX_REFERENCES = 50


class _Away(Exception):
    """The registry did not answer, or answered that it cannot now; the message says which."""


class SchemaSource:
    """Writer schemas by Confluent schema id, cached.

    What the registry said is kept for ever (an id never changes its meaning); what came from a fallback, and that
    an id is unknown, for 30 s.

    Args:
        url: base URL of a Confluent-compatible registry; empty for none.
        user, password: for HTTP basic authentication; never logged nor shown in an error.
        directory: local schemas, used when the registry is away or does not know the id.
        package: importable package with LSST schemas, used last; empty for none.

    Raises:
        ConfigError: a URL that cannot work, or a directory that is not there.
    """

    def __init__(
        self,
        url: str = "",
        user: str = "",
        password: str = "",
        directory: str | Path = "",
        package: str = LSST_PACKAGE,
    ) -> None:
        self._registry = _Registry(url, user, password) if url else None
        self._directory = Path(directory) if directory else None
        if self._directory and not self._directory.is_dir():
            raise ConfigError(f"registry.directory: {self._directory} is not a directory")
        self._package = package
        self._known: dict[int, Schema] = {}
        self._recent: dict[int, tuple[float, Schema | PacketError]] = {}
        self._away_since: float | None = None

    def get(self, schema_id: int) -> Schema:
        """The schema of this number.

        Raises:
            PacketError: UNKNOWN_SCHEMA, REGISTRY_UNAVAILABLE or BAD_SCHEMA.
            ServiceError: the registry refuses the user or password.
        """
        if schema_id in self._known:
            return self._known[schema_id]
        until, answer = self._recent.get(schema_id, (0.0, None))
        if answer is None or time.monotonic() > until:
            answer = self._look_up(schema_id)
        if isinstance(answer, PacketError):
            raise PacketError(answer.reason, answer.detail)
        return answer

    def ping(self) -> None:
        """See that the registry answers, if one is set.

        Raises:
            ServiceUnavailable: it does not.
            ServiceError: it refuses the user or password, or is no schema registry.
        """
        if self._registry is None:
            return
        try:
            self._registry.fetch("/subjects", 0.0)
        except _Away as away:
            raise ServiceUnavailable(
                f"the schema registry {self._registry.url} does not answer: {away}", server="registry"
            ) from None
        except PacketError:
            raise ServiceError(f"{self._registry.url} is no schema registry: it knows no /subjects") from None

    def describe(self) -> str:
        """Where schemas are looked for, in order."""
        places = [f"registry {self._registry.url}"] if self._registry else []
        if self._directory:
            places.append(f"directory {self._directory}")
        if self._package and _package_root(self._package):
            places.append(f"package {self._package}")
        return "schemas from " + ", then ".join(places) if places else "schemas only from the packets"

    def _look_up(self, schema_id: int) -> Schema | PacketError:
        away = False
        if self._registry is not None:
            try:
                self._known[schema_id] = found = self._ask(self._registry, schema_id)
                return found
            except _Away:
                away = True
            except PacketError as error:
                if error.reason is not Reason.UNKNOWN_SCHEMA:
                    return self._remember(schema_id, error)
        local = self._local(schema_id)
        if local is not None and self._registry is None:
            self._known[schema_id] = local
            return local
        return self._remember(schema_id, local or _not_found(schema_id, away))

    def _remember(self, schema_id: int, answer: Schema | PacketError) -> Schema | PacketError:
        if len(self._recent) > 1000:  # ids come from packets: a broken producer can send any number
            self._recent.clear()
        self._recent[schema_id] = (time.monotonic() + RECHECK_S, answer)
        return answer

    def _ask(self, registry: "_Registry", schema_id: int) -> Schema:
        """Ask with retries; while the registry is known to be away, at most once in 30 s and without retries."""
        patience = RETRY_S
        if self._away_since is not None:
            if time.monotonic() - self._away_since < RECHECK_S:
                raise _Away("it did not answer before")
            patience = 0.0
        try:
            schema = registry.schema(schema_id, patience)
        except _Away:
            if self._away_since is None:
                log.warning("the schema registry %s does not answer; using local schemas", registry.url)
            self._away_since = time.monotonic()
            raise
        self._away_since = None
        return schema

    def _local(self, schema_id: int) -> Schema | None:
        roots = [root for root in (self._directory, _package_root(self._package)) if root]
        for root in roots:
            flat, nested = root / f"{schema_id}.avsc", root / str(schema_id // 100) / str(schema_id % 100)
            try:
                if flat.is_file():
                    return Schema(flat.read_bytes())
                if nested.is_dir():
                    return _read_directory(nested)
            except (OSError, KeyError, TypeError, ValueError) as error:
                raise PacketError(Reason.BAD_SCHEMA, f"schema {schema_id} in {root}: {error}") from error
        return None


def _not_found(schema_id: int, away: bool) -> PacketError:
    if away:
        detail = f"the schema registry does not answer and there is no local schema {schema_id}"
        return PacketError(Reason.REGISTRY_UNAVAILABLE, detail)
    detail = f"no schema {schema_id} in the registry, registry.directory or the LSST package"
    return PacketError(Reason.UNKNOWN_SCHEMA, detail)


def _package_root(package: str) -> Path | None:
    try:
        found = importlib.util.find_spec(package) if package else None
    except ModuleNotFoundError:
        return None
    if found is None or found.origin is None:
        return None
    root = Path(found.origin).parent / "schema"
    return root if root.is_dir() else None


def _read_directory(directory: Path) -> Schema | None:
    """One LSST version: the alert schema and the types it refers to, a file each."""
    library: dict[str, Any] = {}
    top = None
    for path in sorted(directory.glob("*.avsc")):
        definition = json.loads(path.read_bytes())
        if path.name.endswith(".alert.avsc"):
            top = definition
        else:
            name, namespace = definition["name"], definition.get("namespace", "")
            library[name if "." in name or not namespace else f"{namespace}.{name}"] = definition
    return None if top is None else Schema(top, library)


class _Registry:
    """The two requests of the Confluent schema registry's HTTP interface that a reader needs."""

    def __init__(self, url: str, user: str, password: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("registry.url must be http://HOST:PORT or https://HOST:PORT")
        if parts.username or parts.password:
            raise ConfigError("registry.url holds a user or password: set registry.user and registry.password")
        self.url = url.rstrip("/")
        self._authorization = ""
        if user:
            secret = base64.b64encode(f"{user}:{password}".encode()).decode()
            self._authorization = f"Basic {secret}"

    def schema(self, schema_id: int, patience_s: float) -> Schema:
        """The schema and the schemas that it refers to."""
        answer = self.fetch(f"/schemas/ids/{schema_id}", patience_s)
        library: dict[str, Any] = {}
        try:
            if answer.get("schemaType", "AVRO") != "AVRO":
                raise PacketError(Reason.BAD_SCHEMA, f"schema {schema_id} is not Avro")
            self._add_references(answer, library, patience_s)
            return Schema(answer["schema"], library)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise PacketError(Reason.BAD_SCHEMA, f"the registry's answer for schema {schema_id}") from error

    def _add_references(self, answer: dict[str, Any], library: dict[str, Any], patience_s: float) -> None:
        for reference in answer.get("references") or []:
            if reference["name"] in library:
                continue
            if len(library) >= _MAX_REFERENCES:
                raise PacketError(Reason.BAD_SCHEMA, f"more than {_MAX_REFERENCES} references")
            path = f"/subjects/{quote(reference['subject'], safe='')}/versions/{int(reference['version'])}"
            part = self.fetch(path, patience_s)
            library[reference["name"]] = json.loads(part["schema"])
            self._add_references(part, library, patience_s)

    def fetch(self, path: str, patience_s: float) -> Any:
        """GET, again and again with growing pauses for `patience_s` while there is no answer."""
        deadline, wait = time.monotonic() + patience_s, FIRST_WAIT_S
        while True:
            try:
                return self._fetch_once(path)
            except _Away:
                if time.monotonic() + wait > deadline:
                    raise
                time.sleep(wait)
                wait *= 2

    def _fetch_once(self, path: str) -> Any:
        request = urllib.request.Request(self.url + path, headers={"Accept": _ACCEPT})
        if self._authorization:
            # not repeated to where a redirect points
            request.add_unredirected_header("Authorization", self._authorization)
        try:
            with urllib.request.urlopen(request, timeout=1.0) as response:
                return _read_json(response.read1)
        except urllib.error.HTTPError as error:
            error.close()
            raise self._refusal(error.code, path) from None
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise _Away(str(reason) or type(error).__name__) from error

    def _refusal(self, status: int, path: str) -> Exception:
        if status in (401, 403):
            return ServiceError(f"the schema registry {self.url} refuses registry.user and registry.password")
        if status == 404:
            return PacketError(Reason.UNKNOWN_SCHEMA, f"the registry does not know {path}")
        return _Away(f"HTTP status {status}")


def _read_json(read: Callable[[int], bytes]) -> Any:
    """A JSON answer, at most 2 MiB (a schema in a JSON string) and within 2 s, also when it comes in drops."""
    deadline, text = time.monotonic() + 2.0, bytearray()
    while chunk := read(1 << 16):
        text += chunk
        if len(text) > 2 * MAX_SCHEMA_BYTES or time.monotonic() > deadline:
            raise _Away("its answer is too long or too slow")
    try:
        return json.loads(text)
    except ValueError as error:
        raise _Away("its answer is not JSON") from error
