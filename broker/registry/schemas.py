"""Writer schemas by id: from a schema registry, then a local directory, then an installed package.

A local directory holds `<id>.avsc` or `<GUID>.avsc` (one file with everything in it) or `<major>/<minor>/*.avsc` as in
the LSST schema repository, where id = major * 100 + minor; the file named `*.alert.avsc` is the top of it.
The installed package `lsst-alert-packet` has the same layout.
"""

import functools
import importlib.util
import logging
import time
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

from skyheed.broker.errors import (
    ConfigError,
    PacketError,
    Reason,
    ServiceError,
    ServiceUnavailable,
)
from skyheed.broker.packets.avro_schema import MAX_SCHEMA_BYTES, Library, Schema, bad_schema, load_json
from skyheed.broker.registry.client import MAX_ANSWER_BYTES, Away, CertificateRefused, RegistryClient
from skyheed.classifier.bounded_files import read_file

log = logging.getLogger("skyheed.registry")

LSST_PACKAGE = "lsst.alert.packet"
RETRY_S = 3.0  # all attempts for one schema together
FIRST_WAIT_S = 0.2  # between attempts, then doubled
RECHECK_S = 30.0  # an unknown id, or an unavailable registry, is retried after this
KEPT, KEPT_RECENT = 200, 1000  # schemas from the registry; ids to retry
_MAX_REFERENCES = 50

SchemaId = int | UUID  # number, or GUID since Confluent Platform 8


class SchemaSource:
    """Writer schemas by Confluent schema id or GUID, cached.

    Answers of the registry are kept (an id never changes its meaning), for the 200 schemas used last; schemas from a
    fallback, and the fact that an id is unknown or its schema bad, for 30 s.

    Args:
        url: base URL of a Confluent-compatible registry; empty for none.
        user, password: for HTTP basic authentication; never logged nor shown in an error.
        directory: local schemas, used if the registry is unavailable or does not know the id.
        ca_file: PEM certificates that sign the registry's; empty for those that the system trusts.
        package: importable package with LSST schemas, used last; empty for none.

    Raises:
        ConfigError: a URL that cannot work, or a directory that does not exist.
    """

    def __init__(
        self,
        url: str = "",
        user: str = "",
        password: str = "",
        directory: str | Path = "",
        package: str = LSST_PACKAGE,
        ca_file: str = "",
    ) -> None:
        self._registry = _Registry(RegistryClient(url, user, password, ca_file)) if url else None
        self._directory = Path(directory) if directory else None
        if self._directory and not self._directory.is_dir():
            raise ConfigError(f"registry.directory: {self._directory} is not a directory")
        self._package = package
        self._known: OrderedDict[SchemaId, Schema] = OrderedDict()
        self._recent: dict[SchemaId, tuple[float, Schema | PacketError]] = {}
        self._away_since: float | None = None

    def get(self, schema_id: SchemaId) -> Schema:
        """The schema with this id.

        Raises:
            PacketError: UNKNOWN_SCHEMA, REGISTRY_UNAVAILABLE or BAD_SCHEMA.
            ServiceError: the registry refuses the user or password.
        """
        if schema_id in self._known:
            self._known.move_to_end(schema_id)
            return self._known[schema_id]
        until, answer = self._recent.get(schema_id, (0.0, None))
        if answer is None or time.monotonic() > until:
            answer = self._look_up(schema_id)
        if isinstance(answer, PacketError):
            raise PacketError(answer.reason, answer.detail)
        return answer

    def ping(self) -> None:
        """Check that the registry answers, if one is set.

        Raises:
            ServiceUnavailable: it does not.
            ServiceError: it refuses the user or password, or is not a schema registry.
        """
        if self._registry is None:
            return
        try:
            self._registry.fetch("/subjects", 0.0)
        except CertificateRefused as error:
            raise ServiceError(f"the schema registry {self._registry.url} cannot be trusted: {error}") from None
        except Away as away:
            raise ServiceUnavailable(
                f"the schema registry {self._registry.url} does not answer: {away}", server="registry"
            ) from None
        except PacketError:
            raise ServiceError(f"{self._registry.url} is not a schema registry: it has no /subjects") from None

    def describe(self) -> str:
        """Where schemas are searched for, in order."""
        places = [f"registry {self._registry.url}"] if self._registry else []
        if self._directory:
            places.append(f"directory {self._directory}")
        if _package_root(self._package):
            places.append(f"package {self._package}")
        return "schemas from " + ", then ".join(places) if places else "schemas only from the packets"

    def _look_up(self, schema_id: SchemaId) -> Schema | PacketError:
        away = False
        if self._registry is not None:
            try:
                return self._keep(schema_id, self._ask(self._registry, schema_id))
            except Away:
                away = True
            except PacketError as error:
                if error.reason is not Reason.UNKNOWN_SCHEMA:
                    return self._remember(schema_id, error)
        try:
            local = self._local(schema_id)
        except PacketError as error:
            return self._remember(schema_id, error)
        if local is not None and self._registry is None:
            return self._keep(schema_id, local)
        return self._remember(schema_id, local or _not_found(schema_id, away))

    def _keep(self, schema_id: SchemaId, schema: Schema) -> Schema:
        self._known[schema_id] = schema
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
        return schema

    def _remember(self, schema_id: SchemaId, answer: Schema | PacketError) -> Schema | PacketError:
        if len(self._recent) > KEPT_RECENT:  # ids come from packets: a broken producer can send any
            self._recent.clear()
        self._recent[schema_id] = (time.monotonic() + RECHECK_S, answer)
        return answer

    def _ask(self, registry: "_Registry", schema_id: SchemaId) -> Schema:
        """Ask with retries; while the registry is known to be unavailable, at most once in 30 s and without retries."""
        patience = RETRY_S
        if self._away_since is not None:
            if time.monotonic() - self._away_since < RECHECK_S:
                raise Away("it did not answer before")
            patience = 0.0
        try:
            schema = registry.schema(schema_id, patience)
        except Away:
            if self._away_since is None:
                log.warning("the schema registry %s does not answer; using local schemas", registry.url)
            self._away_since = time.monotonic()
            raise
        self._away_since = None
        return schema

    def _local(self, schema_id: SchemaId) -> Schema | None:
        roots = [root for root in (self._directory, _package_root(self._package)) if root]
        for root in roots:
            flat = root / f"{schema_id}.avsc"
            try:
                if flat.is_file():
                    return Schema(read_file(flat, MAX_ANSWER_BYTES, ValueError))
                if isinstance(schema_id, int) and (root / Path(*map(str, divmod(schema_id, 100)))).is_dir():
                    return _read_directory(root / Path(*map(str, divmod(schema_id, 100))))
            except (OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
                raise PacketError(Reason.BAD_SCHEMA, f"schema {schema_id} in {root}: {error}") from error
        return None


def _not_found(schema_id: SchemaId, away: bool) -> PacketError:
    if away:
        detail = f"the schema registry does not answer and there is no local schema {schema_id}"
        return PacketError(Reason.REGISTRY_UNAVAILABLE, detail)
    detail = f"no schema {schema_id} in the registry, registry.directory or the LSST package"
    return PacketError(Reason.UNKNOWN_SCHEMA, detail)


@functools.cache
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
    library: list[tuple[str, Any]] = []
    top = None
    for path in sorted(directory.glob("*.avsc")):
        definition = load_json(read_file(path, MAX_ANSWER_BYTES, ValueError))
        if path.name.endswith(".alert.avsc"):
            top = definition
        else:
            library.append((f"{definition.get('namespace', '')}.{definition['name']}".lstrip("."), definition))
    return None if top is None else Schema(top, library)


class _Registry:
    """Schemas of a Confluent-compatible registry, with all that they refer to."""

    def __init__(self, client: RegistryClient) -> None:
        self.client = client
        self.url = client.url

    def schema(self, schema_id: SchemaId, patience_s: float) -> Schema:
        """The schema and the schemas that it refers to."""
        kind = "guids" if isinstance(schema_id, UUID) else "ids"
        answer = self.fetch(f"/schemas/{kind}/{schema_id}", patience_s)
        try:
            if (answer.get("schemaType") or "AVRO") != "AVRO":
                raise PacketError(Reason.BAD_SCHEMA, f"schema {schema_id} is not Avro")
            return Schema(_text(answer), self._library(answer, patience_s))
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise PacketError(Reason.BAD_SCHEMA, f"the registry's answer for schema {schema_id}") from error

    def _library(self, answer: dict[str, Any], patience_s: float) -> Library:
        """What the schema refers to, nearest first. Names of references are arbitrary; types matter."""
        library: list[tuple[str, Any]] = []
        known: dict[str, dict[str, Any]] = {}
        waiting, size = deque(answer.get("references") or []), len(answer["schema"])
        while waiting:
            reference = waiting.popleft()
            if len(library) >= _MAX_REFERENCES:
                bad_schema(f"more than {_MAX_REFERENCES} references")
            place = f"/subjects/{quote(reference['subject'], safe='')}/versions/{_version(reference['version'])}"
            if place not in known:
                known[place] = part = self._part(place, patience_s)
                waiting.extend(part.get("references") or [])
                size += len(part["schema"])
            if size > MAX_SCHEMA_BYTES:
                bad_schema(f"more than {MAX_SCHEMA_BYTES} bytes with all references")
            library.append((str(reference["name"]), load_json(_text(known[place]))))
        return library

    def _part(self, place: str, patience_s: float) -> Any:
        try:
            return self.fetch(place, patience_s)
        except PacketError as error:
            if error.reason is not Reason.UNKNOWN_SCHEMA:
                raise
        return self.fetch(f"{place}?deleted=true", patience_s)  # retired, but old packets still need it

    def fetch(self, path: str, patience_s: float) -> Any:
        """GET, retried with growing pauses for `patience_s` while there is no answer."""
        deadline, wait = time.monotonic() + patience_s, FIRST_WAIT_S
        while True:
            try:
                return self.client.get(path)
            except Away:
                if time.monotonic() + wait > deadline:
                    raise
                time.sleep(wait)
                wait *= 2


def _text(answer: dict[str, Any]) -> str:
    if not isinstance(answer["schema"], str):
        raise TypeError("a schema that is not text")
    return answer["schema"]


def _version(version: Any) -> str:
    return "latest" if version in (-1, "-1", "latest") else str(int(version))
