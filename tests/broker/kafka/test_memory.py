"""What a consumer holds of a topic whose messages pack well."""

import json
import os
import subprocess
import sys
import time
from typing import Any

import pytest
from server_tools import HOME, NEEDS_APACHE

from skyheed.broker.kafka import client, connection
from skyheed.broker.local import embedded

UNPACKED = 320 * 2**20
MESSAGE = 100_000  # bytes, of which 500 are random: they pack two hundred times
LOOKS = 20


@pytest.mark.kafka
@pytest.mark.skipif(not HOME, reason=NEEDS_APACHE)
def test_what_a_consumer_fetches_in_advance_is_bounded(kafka: embedded.Server) -> None:
    options, topic = {"bootstrap.servers": kafka.address}, f"packs-{time.monotonic_ns()}"
    client.ensure_topics(options, {topic: {}}, 1, 1)
    with client.Publisher(options) as publisher:
        for _ in range(UNPACKED // MESSAGE // 100):
            publisher.publish_all([(topic, None, os.urandom(500) + bytes(MESSAGE - 500), None) for _ in range(100)])
    ours = most_queued(options, topic)
    assert 20 * 2**20 < ours < 220 * 2**20, "64 MiB of messages and a fetch of 576 KiB, unpacked"
    assert most_queued({**options, "fetch.message.max.bytes": "1048576"}, topic) > ours, "a setting"


def most_queued(options: dict[str, str], topic: str) -> int:
    """Bytes of messages that librdkafka had in its queue at most, of an idle reader."""
    seen: list[int] = []

    def look(text: str) -> None:
        parts = json.loads(text)["topics"].get(topic, {"partitions": {}})["partitions"]
        size = sum(part["fetchq_size"] for part in parts.values())
        if size or seen:
            seen.append(size)

    more: dict[str, Any] = {"stats_cb": look, "statistics.interval.ms": 100}
    reader = connection.consumer(options, f"memory-{time.monotonic_ns()}", connection.Connection(options), **more)
    try:
        reader.subscribe([topic])
        deadline = time.monotonic() + 120
        while len(seen) < LOOKS:
            if reader.poll(0.1):
                time.sleep(0.002)  # slower than librdkafka fetches, so that the queue is seen while it is full
            assert time.monotonic() < deadline
    finally:
        reader.close()
    return max(seen)


HOLES = """
import sys
import numpy as np
from skyheed.broker import memory

def mib():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

trim = memory.Trim()
one = np.ones(30 * 2**20, np.uint8)
del one  # from now on glibc keeps what is smaller
before = mib()
blocks = [(np.ones(512 * 1024, np.uint8), bytes(1000)) for _ in range(400)]
small = [little for _, little in blocks]
last = blocks[-1]
del blocks
assert not trim(), "not yet"
if sys.argv[1] == "yes":
    memory.EVERY_S = 0.0
    assert trim()
print(mib() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_free_memory_goes_back_to_the_system() -> None:
    kept, given = (
        float(subprocess.run([sys.executable, "-c", HOLES, way], capture_output=True, text=True, check=True).stdout)
        for way in ("no", "yes")
    )
    assert given < 20
    assert kept > 100, "without it they stay; if glibc has learned better, broker/memory.py can go"
