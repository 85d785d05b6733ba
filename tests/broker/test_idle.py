"""What daemons that have nothing to do ask of Redis."""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from process_tools import Program, until
from stream_tools import settings_for

from skyheed.broker import app as daemon
from skyheed.broker.kafka.client import ensure_topics
from skyheed.broker.local import embedded
from skyheed.broker.state import client as state

pytestmark = [pytest.mark.kafka, pytest.mark.redis]
LOOKED_S, A_SECOND = 3.0, 5.0
VERBS = {
    "ingest": ["ingest", "--metrics-port", "0"],
    "serve": ["serve", "--port", "0", "--processes", "1"],
    "backfill": ["backfill", "--from", "alerce", "--metrics-port", "0"],
    "forward": ["forward", "--to", "skyportal", "--metrics-port", "0"],
}


@contextmanager
def running(folder: Path, config: str) -> Iterator[dict[str, Program]]:
    programs = {verb: Program(folder / verb, *words, "--config", config) for verb, words in VERBS.items()}
    try:
        yield programs
    finally:
        for program in programs.values():
            program.process.terminate()
        for program in programs.values():
            program.process.wait(60)


def test_idle_daemons_ask_redis_rarely(kafka: embedded.Server, tmp_path: Path) -> None:
    with embedded.start_valkey() as valkey:
        settings = settings_for(kafka.address, valkey.url, "ztf", f"idle-{uuid.uuid4().hex[:8]}")
        wanted = [*daemon.own_topics(settings), *settings.ingest.topics, settings.backfill_topic]
        ensure_topics(settings.kafka, {topic: {} for topic in wanted}, 1, 1)
        config = tmp_path / "idle.toml"
        config.write_text(
            f'survey = "ztf"\n[kafka]\n"bootstrap.servers" = "{kafka.address}"\n[redis]\nurl = "{valkey.url}"\n'
            f'[ingest]\ntopics = ["{settings.ingest.topics[0]}"]\ngroup = "{uuid.uuid4().hex}"\n'
            f'[forward]\ngroup = "{uuid.uuid4().hex}"\n[backfill]\ngroup = "{uuid.uuid4().hex}"\n'
            '[sinks.skyportal]\nurl = "http://127.0.0.1:9"\ntoken = "t"\nanalysis_service_id = "7"\n'
            '[providers.alerce]\nurl = "http://127.0.0.1:9"\n'
        )
        client = state.connect(valkey.url)

        def asked() -> int:
            return int(client.info()[0]["total_commands_processed"])

        def rate() -> float:
            before, began = asked(), time.monotonic()
            time.sleep(LOOKED_S)
            return (asked() - before) / (time.monotonic() - began)

        with running(tmp_path, str(config)) as programs:
            programs["serve"].until_it_says("the page is at")
            until(lambda: client.run([("HLEN", "sh:{ztf}:daemons")])[0] == 1, 120, "the ingest's first beat")
            until(lambda: rate() < A_SECOND * len(programs), 60, "that they leave Redis alone")
            assert not {verb: one.said for verb, one in programs.items() if one.process.poll() is not None}
