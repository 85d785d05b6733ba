import re
import time
from collections import Counter
from pathlib import Path

import pytest
from server_tools import ValkeyCluster, start_valkey_cluster

from skyheed.broker.errors import ConfigError, ServiceError, ServiceUnavailable
from skyheed.broker.local import embedded
from skyheed.broker.state import client as state

SECRET = "hunter2-5731"
NO_OBJECTS = [[0] * 3, [b"", *[0] * 6]]  # what the script says of a shard without any


def test_scripts_are_loaded_where_they_are_unknown(valkey: embedded.Server) -> None:
    client = state.connect(valkey.url)
    for _ in range(2):
        assert client.call("objects", [("sh:{t:0}:",)] * 3) == [NO_OBJECTS] * 3
        client.run([("SCRIPT", "FLUSH")])


def test_scripts_on_a_cluster(valkey_cluster: ValkeyCluster) -> None:
    client = state.connect(valkey_cluster.url, cluster=True)
    calls = [(f"sh:{{t:{n}}}:",) for n in range(32)]
    assert client.call("objects", calls) == [NO_OBJECTS] * 32
    with_one = state.connect(valkey_cluster.nodes[1].url)
    with_one.run([("SCRIPT", "FLUSH")])
    assert client.call("objects", calls) == [NO_OBJECTS] * 32


def test_every_script_is_in_the_package_and_starts_with_its_flags() -> None:
    for file in (Path(state.__file__).parent / "lua").glob("*.lua"):
        assert state.script(file.stem).text.startswith("#!lua")


def test_scripts_share_what_they_include_and_define_nothing_twice() -> None:
    lua = Path(state.__file__).parent / "lua"
    used, defined = set(), Counter()
    for file in lua.rglob("*.lua"):
        defined.update(re.findall(r"^local function (\w+)", file.read_text(), re.MULTILINE))
        used.update(state.INCLUDE.findall(file.read_text()))
    assert [name for name, times in defined.items() if times > 1] == []
    assert used == {f"shared/{file.name}" for file in (lua / "shared").iterdir()}
    for file in lua.glob("*.lua"):
        text = state.script(file.stem).text
        assert not state.INCLUDE.search(text)
        names = re.findall(r"^local (?:function )?(\w+)", text, re.MULTILINE)
        assert len(names) == len(set(names)), file.name


def test_nothing_to_do(valkey: embedded.Server) -> None:
    client = state.connect(valkey.url)
    assert client.run([]) == []
    assert client.call("objects", []) == []


def test_a_server_that_is_away() -> None:
    client = state.connect(f"redis://127.0.0.1:{embedded.free_port()}/0")
    for action in (client.ping, lambda: client.run([("PING",)]), lambda: state.health(client)):
        with pytest.raises(ServiceUnavailable, match="is unavailable"):
            action()


def test_a_cluster_that_is_away() -> None:
    client = state.connect(f"redis://127.0.0.1:{embedded.free_port()}/0", cluster=True)
    with pytest.raises(ServiceUnavailable, match="is unavailable"):
        client.ping()


def test_a_server_that_comes_back(valkey_of_our_own: embedded.Server) -> None:
    client = state.connect(valkey_of_our_own.url)
    client.ping()
    valkey_of_our_own.kill()
    with pytest.raises(ServiceUnavailable):
        client.ping()
    valkey_of_our_own.restart()
    assert client.call("objects", [("sh:{t:0}:",)]) == [NO_OBJECTS]


@pytest.fixture
def valkey_of_our_own():  # type: ignore[no-untyped-def]
    with embedded.start_valkey() as server:
        yield server


def test_a_cluster_of_which_a_node_is_away_and_comes_back() -> None:
    with start_valkey_cluster(3) as cluster:
        client = state.connect(cluster.url, cluster=True)
        calls = [(f"sh:{{t:{n}}}:",) for n in range(16)]
        client.call("objects", calls)
        cluster.nodes[1].kill()
        began = time.monotonic()
        with pytest.raises(ServiceUnavailable, match="is unavailable"):
            client.call("objects", calls)
        assert time.monotonic() - began < 30
        cluster.nodes[1].restart()
        deadline = time.monotonic() + 30
        while True:
            try:
                assert client.call("objects", calls) == [NO_OBJECTS] * 16
                break
            except ServiceUnavailable:
                assert time.monotonic() < deadline


def test_passwords() -> None:
    with embedded.start_valkey(password=SECRET) as server:
        state.connect(server.url, SECRET).ping()
        state.connect(server.url.replace("redis://", f"redis://:{SECRET}@")).ping()
        for wrong in ("", "wrong-pw"):
            with pytest.raises(ServiceError, match="SKYHEED_REDIS_PASSWORD") as refused:
                state.connect(server.url, wrong).run([("GET", "x")])
            assert "wrong-pw" not in str(refused.value)
        with pytest.raises(ServiceError, match="SKYHEED_REDIS_PASSWORD") as refused:
            state.connect(server.url.replace("redis://", "redis://:wrong-pw@")).ping()
        assert "wrong-pw" not in str(refused.value)


def test_a_user_without_rights(valkey_of_our_own: embedded.Server) -> None:
    url = valkey_of_our_own.url
    state.connect(url).run([("ACL SETUSER", "reader", "on", f">{SECRET}", "~*", "+@read", "+ping")])
    client = state.connect(url.replace("redis://", f"redis://reader:{SECRET}@"))
    client.ping()
    with pytest.raises(ServiceError, match="may not") as refused:
        client.run([("SET", "key", "value")])
    assert SECRET not in str(refused.value)
    with pytest.raises(ServiceError, match="may not"):
        client.call("objects", [("sh:{t:0}:",)])


def test_a_cluster_that_is_none_and_the_other_way(valkey: embedded.Server, valkey_cluster: ValkeyCluster) -> None:
    with pytest.raises(ServiceError, match=r"redis\.cluster = false"):
        state.connect(valkey.url, cluster=True).ping()
    keys = [("GET", f"key{n}") for n in range(20)]
    with pytest.raises(ServiceError, match=r"redis\.cluster = true"):
        state.connect(valkey_cluster.url).run(keys)


def test_a_bad_url() -> None:
    with pytest.raises(ConfigError, match="redis://host:port"):
        state.connect("localhost:6379").ping()


def test_one_bad_command_is_an_error_that_does_not_quote_the_data(valkey: embedded.Server) -> None:
    client = state.connect(valkey.url)
    with pytest.raises(ServiceError, match="WRONGTYPE") as refused:
        client.run([("SET", "key", "a stamp of secret bytes"), ("SADD", "key", "more secret bytes")])
    assert "secret" not in str(refused.value)


def test_health(valkey: embedded.Server) -> None:
    health = state.health(state.connect(valkey.url))
    assert health.used_memory > 0
    assert (health.max_memory, health.append_only, health.evicts) == (0, False, False)
    assert health.version.startswith("Valkey ")


def test_health_of_a_server_that_evicts(durable_valkey: embedded.Server) -> None:
    client = state.connect(durable_valkey.url)
    client.run([("CONFIG SET", "maxmemory", "200mb"), ("CONFIG SET", "maxmemory-policy", "allkeys-lru")])
    health = state.health(client)
    assert (health.max_memory, health.eviction_policy, health.evicts) == (200 * 2**20, "allkeys-lru", True)
    assert health.append_only


def test_health_of_a_cluster_is_its_fullest_node(valkey_cluster: ValkeyCluster) -> None:
    full = state.connect(valkey_cluster.nodes[2].url)
    full.run([("CONFIG SET", "maxmemory", "10mb")])
    try:
        assert state.health(state.connect(valkey_cluster.url, cluster=True)).max_memory == 10 * 2**20
    finally:
        full.run([("CONFIG SET", "maxmemory", "0")])
