"""What the tests of failing Redis servers need: a name that can be moved, servers that say what they are told to say,
a primary with a replica, and a cluster with replicas."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self

import redis as redis_py
from process_tools import until
from server_tools import CLUSTER_SLOTS, ValkeyCluster

from skyheed.broker.local import embedded


class Listener:
    """A TCP server on loopback that serves each connection in a thread; use it in a `with` block."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.opened = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://{self.address}/0"

    def serve(self, connection: socket.socket) -> None:
        raise NotImplementedError

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        self.opened += 1
        with self.kept(connection), contextlib.suppress(OSError):
            self.serve(connection)

    @contextlib.contextmanager
    def kept(self, connection: socket.socket) -> Iterator[None]:
        """Closed at the end, or when `cut` is called."""
        with self._lock:
            self._open.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def cut(self) -> None:
        """End every connection that is open."""
        with self._lock:
            found = list(self._open)
        for connection in found:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # a thread that waits in accept keeps a socket alive that was only closed
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self.cut()


class Name(Listener):
    """A stable name in front of a server: new connections go to `target`, old ones stay where they are.

    Args:
        tls: speak TLS to the clients.
    """

    def __init__(self, target: str, tls: ssl.SSLContext | None = None) -> None:
        self.target = target
        self._tls = tls
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        host, port = self.target.split(":")
        with socket.create_connection((host, int(port))) as upstream, self.kept(upstream):
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
            threading.Thread(target=_pump, args=(upstream, connection), daemon=True).start()
            _pump(connection, upstream)
            connection.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


class Says(Listener):
    """A server that answers whatever it is asked with one reply."""

    def __init__(self, reply: str) -> None:
        self.reply = reply
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        # every command of RESP begins with "*": as many replies as commands
        while data := connection.recv(65536):
            connection.sendall(f"{self.reply}\r\n".encode() * data.count(b"*"))


class Pair:
    """A primary and its replica behind one name, and a way to cut the replica off."""

    def __init__(self, primary: embedded.Server, replica: embedded.Server) -> None:
        self.primary, self.replica = primary, replica
        self.link = Name(primary.address)  # between the two
        self.name = Name(primary.address)

    def follow(self) -> None:
        """Make the replica one."""
        follow(self.replica, self.primary, self.link.address)

    def mend(self) -> None:
        """The replica hears of the primary again."""
        self.link.target = self.primary.address
        self.follow()

    def cut_off(self) -> None:
        """The replica hears no more of the primary, and cannot connect again."""
        self.link.target = "127.0.0.1:1"
        self.link.cut()

    def fail_over(self, demote: bool) -> None:
        """Promote the replica and lead the name there; the old primary becomes its replica, or is killed."""
        with redis_py.Redis.from_url(self.replica.url) as client:
            client.execute_command("REPLICAOF", "NO", "ONE")
        if demote:
            with redis_py.Redis.from_url(self.primary.url) as client:
                client.execute_command("REPLICAOF", *self.replica.address.split(":"))
        else:
            self.primary.kill()
        self.name.target = self.replica.address


def follow(replica: embedded.Server, primary: embedded.Server, link: str = "") -> None:
    """Make one server the other's replica, through `link` if that is given."""
    with redis_py.Redis.from_url(primary.url) as client:
        client.config_set("repl-diskless-sync-delay", 0)
    with redis_py.Redis.from_url(replica.url) as client:
        client.execute_command("REPLICAOF", *(link or primary.address).split(":"))
        until(lambda: client.info("replication")["master_link_status"] == "up", what="replication")


@contextlib.contextmanager
def pair() -> Iterator[Pair]:
    """A running `Pair`."""
    with embedded.start_valkey() as primary, embedded.start_valkey() as replica:
        both = Pair(primary, replica)
        with both.link, both.name:
            both.follow()
            yield both


class ClusterWithReplicas(ValkeyCluster):
    """Three primaries with a replica each; a replica takes over about two seconds after its primary is gone."""

    PRIMARIES = 3

    def __init__(self) -> None:
        super().__init__(2 * self.PRIMARIES)

    def _join(self) -> None:
        clients: list[Any] = [redis_py.Redis.from_url(node.url) for node in self.nodes]
        share = -(-CLUSTER_SLOTS // self.PRIMARIES)
        for number, client in enumerate(clients[: self.PRIMARIES]):
            last = min((number + 1) * share, CLUSTER_SLOTS) - 1
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", number * share, last)
        for client in clients:
            for port, bus in self._ports:
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", port, bus)
        until(lambda: all(self._is_whole(client) for client in clients), what="forming the cluster")
        for client in clients:
            client.config_set("repl-diskless-sync-delay", 0)
        ids = [client.execute_command("CLUSTER MYID").decode() for client in clients]
        for number, client in enumerate(clients[self.PRIMARIES :]):
            until(
                lambda c=client, n=number: _done(lambda: c.execute_command("CLUSTER REPLICATE", ids[n])),
                what="replicating",
            )
        for client in clients[self.PRIMARIES :]:
            until(lambda c=client: c.info("replication").get("master_link_status") == "up", what="replication")
        for client in clients:
            client.close()


def _done(action: Callable[[], object]) -> bool:
    try:
        action()
    except redis_py.ResponseError:  # the node does not know the other yet
        return False
    return True
