import re

from state_tools import LANE, SURVEY, answer, deliveries, observation, open_state

from skyheed.broker.local import embedded
from skyheed.broker.state import client as state
from skyheed.broker.state import keys


def test_an_objects_shard_never_changes() -> None:
    # CRC-32 of "123456789" is its published check value: what is stored must be found by every release
    assert keys.shard_of("123456789", 2**32) == 0xCBF43926


def test_shards_share_the_objects_evenly() -> None:
    counts = [0] * 16
    for n in range(16_000):
        counts[keys.shard_of(f"ZTF18{n:07d}", 16)] += 1
    assert min(counts) > 800
    assert max(counts) < 1200


def test_everything_of_a_shard_lies_in_one_slot() -> None:
    names = keys.Keys("ztf")
    tags = {re.search(r"\{(.*?)\}", key)[1] for key in names.of_object("odd{name}", 3)}  # type: ignore[index]
    assert tags == {"ztf:3"}
    assert re.search(r"\{(.*?)\}", names.partition("alerts@id/0"))[1] == "ztf|alerts@id/0"  # type: ignore[index]


def test_every_key_in_redis_is_described(valkey: embedded.Server) -> None:
    """What the scripts and the ledger write is in the table of keys.py, and nothing else."""
    store, queue, ledger = open_state(valkey.url)
    ledger.ping()
    ledger.consumed({"alerts/0": range(5)})
    store.store(deliveries([observation("a", 1), observation("a", 2), observation("a", 3), observation("a", 1)]))
    ledger.skipped([("alerts/0", 4, "no_stamp")])
    sequences = store.fetch(queue.claim(1, 10.0), LANE)
    store.settle([answer(s, tokens={0: b"token"}) for s in sequences], LANE)
    store.store(deliveries([observation("a", 4), observation("b", 1)], first=10))
    queue.claim(1, 10.0)
    keys_found = state.connect(valkey.url).run([("KEYS", "*")])[0]
    table = keys.__doc__ or ""
    for key in keys_found:
        text = key.decode()
        tag = re.fullmatch(r"sh:\{(.*?)\}:(.*)", text)
        assert tag, text
        name = tag[2].split(":")[0].split(".")[0]
        known = name if name not in ("consumed", "skipped", "rejected") else "<mark>"
        assert re.search(rf"^    .*{re.escape(known)}", table, re.MULTILINE), text
        assert tag[1].startswith(SURVEY)


def test_the_scripts_forget_every_part_of_an_object() -> None:
    parts = ", ".join(f"'{part}'" for part in keys.OBJECT_PARTS)
    for name in ("sweep", "drop"):
        assert f"{{{parts}}}" in state.script(name).text
