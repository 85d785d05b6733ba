"""A connection to Redis or Valkey, one node or a cluster: pipelines, scripts, and errors in our words.

Every call is one pipeline. A pipeline is not a transaction: what must change together is one script. Nothing here is
repeated by itself but what the server has certainly not done (redirections, a script it does not know); callers repeat
after `ServiceUnavailable`, and every write of ours may be repeated.
"""

import contextlib
import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, TypeVar

import redis
import redis.cluster
from redis import exceptions as failure

from .config import redacted_url
from .errors import ConfigError, ServiceError, ServiceUnavailable, SkyheedError

T = TypeVar("T")
Command = Sequence[Any]
CONNECT_S = 3.0
ANSWER_S = 15.0  # a script that stores a batch takes milliseconds; a node that rewrites its file may pause for seconds
# What a server says while it starts, fails over or cannot write; all of it passes.
PASSING = ("LOADING", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "READONLY", "MISCONF", "NOREPLICAS", "BUSY")


@dataclass(frozen=True, slots=True)
class Claim:
    """An object that a worker has taken from the queue for the time of a lease.

    Attributes:
        lease: token of this claim; another claim of the same object has another one.
        sources: source ids (8 bytes each, big endian) of the sequence that was fetched under this claim.
    """

    object_id: str
    shard: int
    lease: str
    sources: bytes = b""


@dataclass(frozen=True)
class Health:
    """What an operator must know of the server; of a cluster, of its fullest node.

    Attributes:
        used_memory, max_memory: bytes; max_memory 0 is no limit.
        eviction_policy: anything but noeviction loses stamps in silence once a limit is reached.
        append_only: every node keeps an append-only file; without it a restart forgets.
        version: of the server.
    """

    used_memory: int
    max_memory: int
    eviction_policy: str
    append_only: bool
    version: str

    @property
    def evicts(self) -> bool:
        """The server may throw away what we count on."""
        return self.max_memory > 0 and self.eviction_policy != "noeviction"


@dataclass(frozen=True)
class Script:
    """A Lua script and the digest under which a server knows it."""

    text: str
    sha: str


@functools.cache
def script(name: str) -> Script:
    """The script broker/lua/<name>.lua."""
    text = (resources.files("broker") / "lua" / f"{name}.lua").read_text()
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


class Client:
    """Sends batches of commands and script calls; connects on first use. Threads may share it."""

    def __init__(self, url: str, password: str | None = None, cluster: bool = False) -> None:
        self.where = redacted_url(url)
        self._url = url
        self._cluster = cluster
        self._options: dict[str, Any] = {
            "socket_timeout": ANSWER_S, "socket_connect_timeout": CONNECT_S, "protocol": 2, "health_check_interval": 30,
        }  # fmt: skip
        if password:
            self._options["password"] = password
        self._connection: Any = None

    def run(self, commands: Sequence[Command]) -> list[Any]:
        """Run `commands` in one pipeline.

        Raises:
            ServiceUnavailable: the server is away or full; some of the commands may have been done.
            ServiceError: it refuses us.
        """
        return [self._good(result) for result in self._pipeline(commands)]

    def call(self, name: str, calls: Sequence[Command]) -> list[Any]:
        """Call the script `name` for each (key, *arguments) in one pipeline, and once more where it was unknown.

        Raises:
            ServiceUnavailable, ServiceError: as `run`.
        """
        return self.call_each([(name, *call) for call in calls])

    def call_each(self, calls: Sequence[Command], forgive: tuple[str, ...] = ()) -> list[Any]:
        """Call the scripts of (name, key, *arguments); where one named in `forgive` finds memory full it gives None.

        Raises:
            ServiceUnavailable, ServiceError: as `run`.
        """
        commands = [("EVALSHA", script(name).sha, 1, *rest) for name, *rest in calls]
        results = self._pipeline(commands)
        unknown = [n for n, result in enumerate(results) if isinstance(result, failure.NoScriptError)]
        if unknown:
            for name in {calls[n][0] for n in unknown}:
                self._load(script(name).text)
            for n, result in zip(unknown, self._pipeline([commands[n] for n in unknown]), strict=True):
                results[n] = result
        return [
            None if call[0] in forgive and isinstance(result, failure.OutOfMemoryError) else self._good(result)
            for call, result in zip(calls, results, strict=True)
        ]

    def ping(self) -> None:
        """One answer from every node.

        Raises:
            ServiceUnavailable, ServiceError: as `run`.
        """
        self._translate(lambda: self._connected().ping())

    def info(self) -> list[dict[str, Any]]:
        """INFO of every master."""
        if not self._cluster:
            return [self._translate(lambda: dict(self._connected().info()))]
        nodes = redis.cluster.RedisCluster.PRIMARIES
        return list(self._translate(lambda: self._connected().info(target_nodes=nodes)).values())

    def close(self) -> None:
        """Close the connections."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        for node in connection.get_nodes() if self._cluster else ():
            if node.redis_connection:  # redis-py leaves those open that it made from a URL
                node.redis_connection.connection_pool.disconnect()
        connection.close()

    def __del__(self) -> None:
        # redis-py's cluster client is full of cycles: the collector would find the sockets first and warn of them
        with contextlib.suppress(Exception):
            self.close()

    def _connected(self) -> Any:
        # a cluster client asks for the slots when it is made; a single one connects when it is used
        if self._connection is None:
            make: Any = redis.cluster.RedisCluster if self._cluster else redis.Redis
            try:
                self._connection = make.from_url(self._url, **self._options)
            except ValueError as error:
                raise ConfigError(
                    f"{self.where} is no Redis URL: write redis://host:port/0 (rediss:// for TLS)"
                ) from error
        return self._connection

    def _pipeline(self, commands: Sequence[Command]) -> list[Any]:
        if not commands:
            return []

        def run() -> list[Any]:
            connection = self._connected()
            pipeline = connection.pipeline() if self._cluster else connection.pipeline(transaction=False)
            with pipeline:
                for command in commands:
                    pipeline.execute_command(*command)
                # errors come back in the list: raised by redis-py they would quote the whole command
                return list(pipeline.execute(raise_on_error=False))

        return self._translate(run)

    def _load(self, text: str) -> None:
        nodes = {"target_nodes": redis.cluster.RedisCluster.PRIMARIES} if self._cluster else {}
        self._translate(lambda: self._connected().execute_command("SCRIPT LOAD", text, **nodes))

    def _good(self, result: Any) -> Any:
        if isinstance(result, Exception):
            raise self._in_our_words(result) from None
        return result

    def _translate(self, action: Callable[[], T]) -> T:
        try:
            return action()
        except (failure.RedisError, failure.RedisClusterException, OSError) as error:
            raise self._in_our_words(error) from None

    def _in_our_words(self, error: Exception) -> SkyheedError:
        text = str(error)
        if isinstance(error, failure.AuthenticationError | failure.AuthorizationError) or _is_about_login(text):
            return ServiceError(f"Redis at {self.where} refuses the user or password: set SKYHEED_REDIS_PASSWORD")
        if isinstance(error, failure.NoPermissionError):
            return ServiceError(f"the user may not do this on Redis at {self.where}: {text}")
        if isinstance(error, failure.OutOfMemoryError):
            return ServiceUnavailable(f"Redis at {self.where} is full: raise its maxmemory; nothing is lost meanwhile")
        if isinstance(error, failure.MovedError | failure.AskError) and not self._cluster:
            return ServiceError(f"Redis at {self.where} is a cluster: set redis.cluster = true")
        if "Cluster mode is not enabled" in text:
            return ServiceError(f"Redis at {self.where} is not a cluster: set redis.cluster = false")
        if isinstance(error, failure.ResponseError) and not text.startswith(PASSING) and not _passes(error):
            return ServiceError(f"Redis at {self.where} refuses: {text}")
        return ServiceUnavailable(f"Redis at {self.where} is away: {text or type(error).__name__}")


def _is_about_login(text: str) -> bool:
    return any(word in text for word in ("WRONGPASS", "NOAUTH", "invalid username-password", "AUTH <password> called"))


def _passes(error: Exception) -> bool:
    return isinstance(error, failure.ClusterError | failure.ReadOnlyError | failure.TryAgainError | failure.AskError)


def connect(url: str, password: str | None = None, cluster: bool = False) -> Client:
    """A client of the server at `url`; nothing is asked of it yet.

    Args:
        url: redis://, rediss:// (TLS) or unix://; of a cluster, any node.
        password: instead of one in the URL.
        cluster: the server is a Redis or Valkey cluster.
    """
    return Client(url, password, cluster)


def health(client: Client) -> Health:
    """Memory, eviction and durability of the server.

    Raises:
        ServiceUnavailable, ServiceError: it does not answer, or not to us.
    """
    nodes = client.info()
    fullest = max(nodes, key=lambda n: n["used_memory"] / (n.get("maxmemory") or float("inf")))
    version = fullest.get("valkey_version") or fullest["redis_version"]
    return Health(
        used_memory=int(fullest["used_memory"]),
        max_memory=int(fullest.get("maxmemory", 0)),
        eviction_policy=str(fullest.get("maxmemory_policy", "noeviction")),
        append_only=all(int(node.get("aof_enabled", 0)) == 1 for node in nodes),
        version=f"{'Valkey' if 'valkey_version' in fullest else 'Redis'} {version}",
    )
