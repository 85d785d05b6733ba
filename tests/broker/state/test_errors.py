"""What a Redis says goes wrong: what passes and what does not, and that what passes gets a new connection."""

import contextlib
import signal
import socket
import threading
import time

import pytest
import redis as redis_py
from process_tools import until
from redis_tools import Name, Pair, Says, pair

from skyheed.broker import waiting
from skyheed.broker.errors import MissingRight, ServiceError, ServiceUnavailable
from skyheed.broker.local import embedded
from skyheed.broker.state import client as state

pytestmark = pytest.mark.redis
SHARD = "sh:{t:0}:"
PASSES = [
    "-READONLY You can't write against a read only replica.",
    "-READONLY You can't write against a read only replica. script: 2d6b, on @user_script:1.",
    "-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "-LOADING Valkey is loading the dataset in memory",
    "-BUSY Valkey is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "-OOM command not allowed when used memory > 'maxmemory'.",
    "-MISCONF Valkey is configured to save RDB snapshots, but it's currently unable to persist to disk.",
    "-NOREPLICAS Not enough good replicas to write.",
    "-NOSCRIPT No matching script.",
    "-CLUSTERDOWN The cluster is down",
    "-TRYAGAIN Multiple keys request during rehashing of slot",
    "-UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
    "-ERR max number of clients reached",
    "-ERR upstream failure",
    "-ERR proxy temporarily unavailable",
]
STAYS = [
    ("-WRONGPASS invalid username-password pair or user is disabled.", "SKYHEED_REDIS_PASSWORD"),
    ("-NOAUTH Authentication required.", "SKYHEED_REDIS_PASSWORD"),
    ("-NOPERM User x has no permissions to run the 'set' command", "may not do this"),
    ("-MOVED 3999 127.0.0.1:6381", r"redis\.cluster = true"),
    ("-WRONGTYPE Operation against a key holding the wrong kind of value", "refuses"),
    ("-ERR unknown command 'EVALSHA'", "refuses"),
]


@pytest.mark.parametrize("reply", PASSES)
def test_what_passes_is_asked_again_on_a_new_connection(reply: str) -> None:
    with Says(reply) as server:
        client = state.connect(server.url)
        for attempt in range(3):
            with pytest.raises(ServiceUnavailable) as away:
                client.call("objects", [(SHARD,)])
            assert away.value.server == "redis"
            assert server.opened == attempt + 1
        client.close()


@pytest.mark.parametrize(("reply", "sentence"), STAYS)
def test_what_does_not_pass_ends_with_one_sentence(reply: str, sentence: str) -> None:
    with Says(reply) as server:
        client = state.connect(server.url)
        with pytest.raises(ServiceError, match=sentence) as refused:
            client.call("objects", [(SHARD,)])
        assert isinstance(refused.value, MissingRight) == ("NOPERM" in reply)
        client.close()


def test_a_name_that_now_leads_to_another_server() -> None:
    with embedded.start_valkey() as one, embedded.start_valkey() as other, Name(one.address) as name:
        client = state.connect(name.url)
        client.run([("SET", "where", "one")])
        state.connect(other.url).run([("SET", "where", "other")])
        name.target = other.address
        name.cut()
        assert waiting.patiently(lambda: client.run([("GET", "where")]), threading.Event()) == [b"other"]
        client.close()


def test_a_name_that_moved_without_a_word_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old server answers on as if nothing had happened: connections have an end."""
    with embedded.start_valkey() as one, embedded.start_valkey() as other, Name(one.address) as name:
        client = state.connect(name.url)
        client.run([("SET", "where", "one")])
        state.connect(other.url).run([("SET", "where", "other")])
        name.target = other.address
        assert client.run([("GET", "where")]) == [b"one"]
        monkeypatch.setattr(state, "RENEW_S", 0.0)
        time.sleep(0.01)
        assert client.run([("GET", "where")]) == [b"other"]
        client.close()


def test_a_failover_that_leaves_the_old_primary_as_a_replica() -> None:
    with pair() as servers:
        client = state.connect(servers.name.url)
        client.call("wake", [(SHARD, "")])
        servers.fail_over(demote=True)
        with pytest.raises(ServiceUnavailable, match="replica"):
            client.call("wake", [(SHARD, "")])
        # the promoted server knows no script
        assert client.call("wake", [(SHARD, "")])[0][:2] == [0, 0]
        client.close()


def test_a_primary_that_misses_its_replicas_and_one_that_is_busy(valkey: embedded.Server) -> None:
    """The real thing, alongside the replies above."""
    client, admin = state.connect(valkey.url), redis_py.Redis.from_url(valkey.url)
    with admin:
        admin.config_set("min-replicas-to-write", 1)
        with pytest.raises(ServiceUnavailable, match="replicas"):
            client.run([("SET", "key", "value")])
        admin.config_set("min-replicas-to-write", 0)
        admin.config_set("busy-reply-threshold", 50)
        loop = threading.Thread(target=_loop, args=(valkey.url,))
        loop.start()
        until(lambda: _is_busy(client), what="noticing a busy server")
        admin.script_kill()
        loop.join()
        assert waiting.patiently(lambda: client.run([("SET", "key", "value")]), threading.Event()) == [True]


def _loop(url: str) -> None:
    with redis_py.Redis.from_url(url) as client, contextlib.suppress(redis_py.ResponseError):
        client.eval("while true do end", 0)


def _is_busy(client: state.Client) -> bool:
    try:
        client.run([("SET", "key", "value")])
    except ServiceUnavailable as away:
        return "busy" in str(away).lower()
    return False


def test_a_server_that_does_not_answer_is_away_and_not_waited_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "ANSWER_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = state.connect(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        began = time.monotonic()
        with pytest.raises(ServiceUnavailable, match="is unavailable"):
            client.run([("GET", "x")])
        assert time.monotonic() - began < 3, "redis-py repeats nothing by itself"
        client.close()


def test_a_primary_that_hangs_is_left_when_the_name_leads_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing ends its connections: only the time for an answer does, and with it the pause."""
    monkeypatch.setattr(state, "ANSWER_S", 0.5)
    with pair() as servers:
        client = state.connect(servers.name.url)
        client.run([("SET", "key", "value")])
        process = servers.primary._process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        try:
            with redis_py.Redis.from_url(servers.replica.url) as other:
                other.execute_command("REPLICAOF", "NO", "ONE")
            servers.name.target = servers.replica.address
            began = time.monotonic()
            assert waiting.patiently(lambda: client.run([("SET", "key", "new")]), threading.Event()) == [True]
            assert time.monotonic() - began < 5
        finally:
            process.send_signal(signal.SIGCONT)
        client.close()


def test_a_plain_connection_that_is_closed_at_once_is_told_of_tls() -> None:
    class Closes(Says):
        def serve(self, connection: socket.socket) -> None:
            connection.recv(1024)

    with Closes("") as server:
        client = state.connect(server.url)
        with pytest.raises(ServiceUnavailable, match="rediss://"):
            client.run([("GET", "x")])
        client.close()


def test_pair_is_a_pair() -> None:
    """The tools of these tests: what the primary has, the replica has, until it is cut off."""
    with pair() as servers:
        assert isinstance(servers, Pair)
        with redis_py.Redis.from_url(servers.name.url) as one, redis_py.Redis.from_url(servers.replica.url) as other:
            one.set("a", 1)
            until(lambda: other.get("a") == b"1", what="replication")
            servers.cut_off()
            one.set("a", 2)
            assert one.wait(1, 300) == 0
            assert other.get("a") == b"1"
