"""A connection to Redis or Valkey, one node or a cluster: pipelines, scripts, and errors as skyheed's own.

Every call is one pipeline. A pipeline is not a transaction: what must change together is one script. Only commands
that the server has certainly not executed are repeated here (redirections, an unknown script); callers repeat after
`ServiceUnavailable`, and all our writes may be repeated.

After `ServiceUnavailable` the connections are dropped: the next call looks the name up again and reconnects,
because after a failover the old server may continue as a replica and keep its connections.
"""

import contextlib
import functools
import hashlib
import re
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, TypeVar
from urllib.parse import urlsplit

from redis import connection as redis_connection
from redis import exceptions as failure

from skyheed.broker.errors import ConfigError, ServiceUnavailable, SkyheedError
from skyheed.broker.settings import RedisSettings
from skyheed.broker.state.errors import NotReplicated, in_our_words
from skyheed.broker.state.nodes import Cluster, Command, One, Replicas, Servers
from skyheed.broker.urls import redacted_url, redis_hosts

T = TypeVar("T")
CONNECT_S = 3.0
ANSWER_S = 15.0  # a script that stores a batch takes milliseconds; a node that rewrites its file may pause for seconds
RENEW_S = 60.0  # connections are renewed this often: a name may point elsewhere without an error on the old ones
NOBODY = Replicas()
DEFAULT_PORT = 6379
SAVES = ("aof_last_write", "rdb_last_bgsave")  # in INFO
MOST_NODES = 100  # that are remembered for a cluster
INCLUDE = re.compile(r"^-- include (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Claim:
    """An object that a worker has taken from the queue for the duration of a lease.

    Attributes:
        lease: token of this claim; every claim of an object has a different one.
        sources: source ids (8 bytes each, big endian) of the sequence that was fetched under this claim.
        epochs: of the object when it was claimed; 0: unknown.
    """

    object_id: str
    shard: int
    lease: str
    sources: bytes = b""
    epochs: int = 0


@dataclass(frozen=True)
class Health:
    """What an operator must know about the server; for a cluster, about its fullest node.

    Attributes:
        used_memory, max_memory: bytes; max_memory 0 is no limit.
        eviction_policy: anything but noeviction silently loses stamps once the limit is reached.
        append_only: every node keeps an append-only file; without it, a restart loses data.
        replicas: connected replicas of the node that has the fewest.
        read_only: the server is a replica.
        cannot_save: a node failed to write its append-only file or snapshot last time, so it accepts no writes.
        version: of the server.
    """

    used_memory: int
    max_memory: int
    eviction_policy: str
    append_only: bool
    replicas: int
    read_only: bool
    cannot_save: bool
    version: str

    @property
    def evicts(self) -> bool:
        """The server may evict keys that skyheed relies on."""
        return self.max_memory > 0 and self.eviction_policy != "noeviction"


@dataclass(frozen=True)
class Script:
    """A Lua script and the digest by which a server knows it; a script that only reads needs only the right to read."""

    text: str
    sha: str

    def by_digest(self, *call: Any) -> Command:
        """The command for (key, *arguments), for a server that knows the script."""
        return (f"EVALSHA{self._suffix}", self.sha, 1, *call)

    def by_text(self, *call: Any) -> Command:
        """The same for any server."""
        return (f"EVAL{self._suffix}", self.text, 1, *call)

    @property
    def _suffix(self) -> str:
        return "_RO" if "no-writes" in self.text.partition("\n")[0] else ""


def _lua(file: str) -> str:
    """A file of broker/state/lua, with each line `-- include FILE` replaced by that file."""
    text = (resources.files("skyheed.broker.state") / "lua" / file).read_text()
    return INCLUDE.sub(lambda line: _lua(line[1]).rstrip("\n"), text)


@functools.cache
def script(name: str) -> Script:
    """The script broker/state/lua/<name>.lua, with what it includes of lua/shared/."""
    text = _lua(f"{name}.lua")
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


@dataclass(frozen=True)
class Tls:
    """Files of a TLS connection (rediss://), PEM; empty: the system's authorities, and no client certificate.

    Attributes:
        ca: certificates of trusted authorities, or a self-signed certificate itself.
        certificate, key: the client's, if the server asks for one.
    """

    ca: str = ""
    certificate: str = ""
    key: str = ""

    def options(self, url: str) -> dict[str, Any]:
        """As redis-py's options; settings in the URL (ssl_ca_certs=…) take precedence.

        Raises:
            ConfigError: a file cannot be read, or does not contain what it should.
        """
        if not url.startswith("rediss://"):
            return {}
        given = {"ssl_ca_certs": self.ca, "ssl_certfile": self.certificate, "ssl_keyfile": self.key}
        options = {name: path for name, path in given.items() if path}
        with contextlib.suppress(ValueError):  # an invalid URL is reported when it is used
            parse: Any = redis_connection.parse_url
            options |= {name: value for name, value in parse(url).items() if name in given}
        self._check(options)
        # older redis-py accepts any host name
        return {"ssl_check_hostname": True, **options}

    @staticmethod
    def _check(options: dict[str, str]) -> None:
        """redis-py reads the files when it connects, and would mistake a missing file for an unavailable
        server."""
        context = ssl.create_default_context()
        certificate, key = options.get("ssl_certfile"), options.get("ssl_keyfile")
        try:
            if ca := options.get("ssl_ca_certs"):
                context.load_verify_locations(ca)
            if certificate:
                context.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as error:
            names = ", ".join(options.values())
            raise ConfigError(f"redis: cannot use {names} for TLS: {error.strerror or error}") from None


class Client:
    """Sends batches of commands and script calls; connects on first use. Threads may share it.

    Args:
        tls: redis-py's options of the TLS connection, for rediss:// only.
        replicas: the replicas that must confirm writes requested as `durable`.

    Attributes:
        on_connect: called after every new connection, before anything else is sent on it.
    """

    def __init__(
        self,
        url: str,
        password: str | None = None,
        cluster: bool = False,
        tls: Tls | None = None,
        replicas: Replicas = NOBODY,
    ) -> None:
        self.where = redacted_url(url)
        self.cluster = cluster
        self.replicas = replicas
        self._url, self._others = _nodes(url) if cluster else (url, [])
        self._options: dict[str, Any] = {
            "socket_timeout": ANSWER_S, "socket_connect_timeout": CONNECT_S, "protocol": 2, "health_check_interval": 30,
            **(tls or Tls()).options(url),
        }  # fmt: skip
        if password:
            self._options["password"] = password
        self.on_connect: Callable[[], None] | None = None
        self._servers: Servers | None = None
        self._greeting = False
        self._since = 0.0
        self._lock = threading.Lock()

    def run(self, commands: Sequence[Command], durable: bool = False) -> list[Any]:
        """Run `commands` in one pipeline.

        Args:
            durable: return only when `replicas` have the writes, too.

        Raises:
            ServiceUnavailable: the server is unavailable or full, or has too few replicas; some commands may have been
            executed.
            ServiceError: it denies access.
        """
        return [self._good(result) for result in self._pipeline(commands, durable)]

    def call(self, name: str, calls: Sequence[Command]) -> list[Any]:
        """Call the script `name` for each (key, *arguments) in one pipeline, and again where the script was unknown.

        Raises:
            ServiceUnavailable, ServiceError: as `run`.
        """
        return self.call_each([(name, *call) for call in calls])

    def call_each(self, calls: Sequence[Command], forgive: tuple[str, ...] = (), durable: bool = False) -> list[Any]:
        """Call the scripts of (name, key, *arguments); None for one named in `forgive` that finds memory full.

        Raises:
            ServiceUnavailable, ServiceError: as `run`.
        """
        results = self._pipeline([script(name).by_digest(*rest) for name, *rest in calls], durable)
        unknown = [n for n, result in enumerate(results) if isinstance(result, failure.NoScriptError)]
        # a write and its confirmation share a pipeline: between two pipelines the server may be a different one
        again = list(range(len(calls))) if durable and unknown else unknown
        # a restarted or promoted server knows no scripts; sent as text, none can be unknown
        texts = [script(calls[n][0]).by_text(*calls[n][1:]) for n in again]
        for n, result in zip(again, self._pipeline(texts, durable), strict=True):
            results[n] = result
        return [
            None if call[0] in forgive and isinstance(result, failure.OutOfMemoryError) else self._good(result)
            for call, result in zip(calls, results, strict=True)
        ]

    def ping(self) -> None:
        """One reply from every node.

        Raises:
            ServiceUnavailable, ServiceError: as `run`.
        """
        self._translate(lambda servers: servers.ping())

    def info(self) -> list[dict[str, Any]]:
        """INFO of every primary."""
        return self._translate(lambda servers: servers.info())

    def close(self) -> None:
        """Close the connections; the next call looks the name up again and reconnects."""
        with self._lock:
            servers, self._servers = self._servers, None
        if servers is not None:
            # if the node that the URL names is gone, the others lead to its successor
            self._others = list(dict.fromkeys([*self._others, *servers.known()]))[-MOST_NODES:]
            servers.close()

    def __del__(self) -> None:
        # redis-py's cluster client is full of cycles: the collector would find the sockets first and warn about them
        with contextlib.suppress(Exception):
            self.close()

    def _connected(self) -> Servers:
        if self._servers is not None and time.monotonic() - self._since > RENEW_S:
            self.close()
        with self._lock:
            new = self._servers is None
            servers = self._servers = self._servers or self._connect()
            self._since = time.monotonic() if new else self._since
        if new and self.on_connect and not self._greeting:
            self._greet(self.on_connect)
        return servers

    def _greet(self, action: Callable[[], None]) -> None:
        self._greeting = True
        try:
            action()
        except Exception:
            self.close()  # so that the next call runs on_connect again
            raise
        finally:
            self._greeting = False

    def _connect(self) -> Servers:
        # a cluster client asks for the slots when it is created; a single one connects when it is used
        try:
            if self.cluster:
                return Cluster(self._url, self._others, **self._options)
            return One(self._url, **self._options)
        except ValueError as error:
            raise ConfigError(
                f"{self.where} is not a Redis URL: write redis://host:port/0 (rediss:// for TLS)"
            ) from error

    def _pipeline(self, commands: Sequence[Command], durable: bool) -> list[Any]:
        if not commands:
            return []
        return self._translate(lambda servers: servers.send(commands, self.replicas if durable else NOBODY))

    def _good(self, result: Any) -> Any:
        if isinstance(result, Exception):
            raise self._in_our_words(result) from None
        return result

    def _translate(self, action: Callable[[Servers], T]) -> T:
        try:
            return action(self._connected())
        except (failure.RedisError, failure.RedisClusterException, NotReplicated, OSError) as error:
            raise self._in_our_words(error) from None

    def _in_our_words(self, error: Exception) -> SkyheedError:
        found = in_our_words(error, self.where, self.cluster)
        if isinstance(found, ServiceUnavailable):
            self.close()
        return found


def connect(url: str, password: str | None = None, cluster: bool = False) -> Client:
    """A client of the server at `url`; nothing is sent to it yet.

    Args:
        url: redis://, rediss:// (TLS) or unix://; for a cluster, any node, or several separated by commas.
        password: used instead of one in the URL.
        cluster: the server is a Redis or Valkey cluster.
    """
    return Client(url, password, cluster)


def connect_as(settings: RedisSettings) -> Client:
    """A client of the server named in the settings; nothing is sent to it yet.

    Raises:
        ConfigError: a certificate or key cannot be read.
    """
    return Client(
        settings.url,
        settings.password or None,
        settings.cluster,
        Tls(settings.ca_file, settings.certificate_file, settings.key_file),
        Replicas(settings.wait_replicas, settings.wait_s),
    )


def _nodes(url: str) -> tuple[str, list[tuple[str, int]]]:
    """The URL of the first node that `url` names, and host and port of the others."""
    first, *others = redis_hosts(url)
    places = [urlsplit(other) for other in others]
    return first, [(place.hostname or "", place.port or DEFAULT_PORT) for place in places]


def health(client: Client) -> Health:
    """Memory, eviction and durability of the server.

    Raises:
        ServiceUnavailable, ServiceError: it does not answer, or denies access.
    """
    nodes = client.info()
    fullest = max(nodes, key=lambda n: n["used_memory"] / (n.get("maxmemory") or float("inf")))
    version = fullest.get("valkey_version") or fullest["redis_version"]
    return Health(
        used_memory=int(fullest["used_memory"]),
        max_memory=int(fullest.get("maxmemory", 0)),
        eviction_policy=str(fullest.get("maxmemory_policy", "noeviction")),
        append_only=all(int(node.get("aof_enabled", 0)) == 1 for node in nodes),
        replicas=min(int(node.get("connected_slaves", 0)) for node in nodes),
        read_only=any(node.get("role") == "slave" for node in nodes),
        cannot_save=any(node.get(f"{name}_status", "ok") != "ok" for node in nodes for name in SAVES),
        version=f"{'Valkey' if 'valkey_version' in fullest else 'Redis'} {version}",
    )
