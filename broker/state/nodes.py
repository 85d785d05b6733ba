"""Pipelines to one Redis server or to the nodes of a cluster; a pipeline's commands and its WAIT share a connection.

redis-py finds the nodes and keeps the connections. Where commands go, which redirections are followed and what to
wait for is decided here, because the promises depend on it:

* a write counts as replicated only if the connection that wrote it says so (a pool may reconnect between two
  pipelines, to another server behind the same name, whose replicas never heard of the write);
* MOVED is followed, ASK is not: our scripts do not declare their keys, and would see half of an object.
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import redis
import redis.cluster
from redis import exceptions as failure
from redis.backoff import NoBackoff
from redis.retry import Retry

from skyheed.broker.state.errors import NotReplicated
from skyheed.broker.state.keys import waited

Command = Sequence[Any]
MOVES = 4  # a failover or a moved slot is followed at once; more in one call means that the cluster has not settled
LARGEST_FAN = 16  # nodes contacted at the same time


@dataclass(frozen=True)
class Replicas:
    """How many replicas must confirm a write, and the time allowed."""

    number: int = 0
    wait_s: float = 5.0


class Servers(Protocol):
    """One server, or the nodes of a cluster."""

    def send(self, commands: Sequence[Command], replicas: Replicas) -> list[Any]:
        """Run `commands`, each on the server that has its key; error replies are returned in the list.

        Raises:
            NotReplicated: everything was executed, but not on enough replicas.
            RedisError, RedisClusterException, OSError: some may have been executed.
        """

    def ping(self) -> None: ...

    def info(self) -> list[dict[str, Any]]:
        """INFO of every primary."""

    def known(self) -> list[tuple[str, int]]:
        """Where else the cluster may be found when the server that was named is gone."""

    def close(self) -> None: ...


def send_on(server: Any, commands: Sequence[Command], replicas: Replicas) -> list[Any]:
    """One pipeline on one connection, as `Servers.send`."""
    with server.pipeline(transaction=False) as pipeline:
        for command in commands:
            pipeline.execute_command(*command)
        if replicas.number:
            # a repeated command may change nothing, and WAIT waits only for this connection's own writes
            pipeline.execute_command("INCR", waited(_key(commands[0])))
            pipeline.execute_command("WAIT", replicas.number, round(replicas.wait_s * 1000))
        # errors are returned in the list: if redis-py raised them, they would quote the whole command
        found = list(pipeline.execute(raise_on_error=False))
    if not replicas.number:
        return found
    *replies, marked, confirmed = found
    if not any(isinstance(reply, Exception) for reply in replies):
        _check(marked, confirmed, replicas)
    return replies


def _check(marked: Any, confirmed: Any, replicas: Replicas) -> None:
    """Raise if the mark was not written or not confirmed."""
    for reply in (marked, confirmed):
        if isinstance(reply, Exception):
            raise reply
    if confirmed < replicas.number:
        raise NotReplicated(confirmed, replicas.number, replicas.wait_s)


class One:
    """A server that is not part of a cluster."""

    def __init__(self, url: str, **options: Any) -> None:
        # our callers repeat, and reconnect first: redis-py would repeat on the connection that failed
        self._client: Any = redis.Redis.from_url(url, retry=_no_retry(), **options)

    def send(self, commands: Sequence[Command], replicas: Replicas) -> list[Any]:
        return send_on(self._client, commands, replicas)

    def ping(self) -> None:
        self._client.ping()

    def info(self) -> list[dict[str, Any]]:
        return [dict(self._client.info())]

    def known(self) -> list[tuple[str, int]]:
        return []

    def close(self) -> None:
        self._client.close()


class Cluster:
    """The nodes of a cluster.

    Args:
        url: of any node.
        others: host and port of more nodes, asked for the rest if the first is gone.
    """

    def __init__(self, url: str, others: Sequence[tuple[str, int]] = (), **options: Any) -> None:
        self._seeds: list[Any] = [_node(host, port) for host, port in others]
        make: Any = redis.cluster.RedisCluster
        try:
            self._client: Any = make(url=url, startup_nodes=self._seeds, retry=_no_retry(), **options)
        except Exception:
            self._close_seeds()
            raise
        self._threads = ThreadPoolExecutor(LARGEST_FAN, "redis")

    def send(self, commands: Sequence[Command], replicas: Replicas) -> list[Any]:
        found: list[Any] = [None] * len(commands)
        place = {n: self._client.get_node_from_key(_key(command)) for n, command in enumerate(commands)}
        for _ in range(MOVES):
            self._round(commands, place, found, replicas)
            moved = {n: error for n in place if isinstance(error := found[n], failure.MovedError)}
            if not moved:
                break
            self._client.nodes_manager.initialize()
            place = {n: self._node(error.host or place[n].host, error.port) for n, error in moved.items()}
        return found

    def _round(self, commands: Sequence[Command], place: dict[int, Any], found: list[Any], replicas: Replicas) -> None:
        """Run every node's commands in one pipeline, on all nodes at once."""
        groups: dict[str, list[int]] = defaultdict(list)
        for n, node in place.items():
            groups[node.name].append(n)

        def one(members: list[int]) -> list[Any]:
            server = self._client.get_redis_connection(place[members[0]])
            return send_on(server, [commands[n] for n in members], replicas)

        pieces = list(groups.values())
        asked = [self._threads.submit(one, members) for members in pieces[1:]]
        first: Exception | None = None
        answers: list[Callable[[], list[Any]]] = [lambda: one(pieces[0]), *(a.result for a in asked)]
        for members, answer in zip(pieces, answers, strict=True):
            try:
                for n, reply in zip(members, answer(), strict=True):
                    found[n] = reply
            except Exception as error:  # wait for the others before reporting it
                first = first or error
        if first:
            raise first

    def _node(self, host: str, port: int) -> Any:
        return self._client.get_node(host=host, port=port) or _node(host, port)

    def ping(self) -> None:
        self._client.ping(target_nodes=redis.cluster.RedisCluster.PRIMARIES)

    def info(self) -> list[dict[str, Any]]:
        nodes = redis.cluster.RedisCluster.PRIMARIES
        found = self._client.info(target_nodes=nodes)
        # with a single primary, redis-py returns its reply directly
        return [found] if "used_memory" in found else list(found.values())

    def known(self) -> list[tuple[str, int]]:
        return [(str(node.host), int(node.port)) for node in self._client.get_nodes()]

    def close(self) -> None:
        self._threads.shutdown(wait=False)
        for node in self._client.get_nodes():
            if node.redis_connection:  # redis-py leaves connections open that it made from a URL
                node.redis_connection.connection_pool.disconnect()
        self._client.close()
        self._close_seeds()

    def _close_seeds(self) -> None:
        for node in self._seeds:
            if node.redis_connection:
                with contextlib.suppress(OSError):
                    node.redis_connection.connection_pool.disconnect()


def _no_retry() -> Any:
    make: Any = Retry
    return make(NoBackoff(), 0)


def _node(host: str, port: int) -> Any:
    make: Any = redis.cluster.ClusterNode
    return make(host, port)


def _key(command: Command) -> Any:
    """The key that determines a command's node; our commands have one each."""
    return command[3] if str(command[0]).startswith("EVAL") else command[1]
