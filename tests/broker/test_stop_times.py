"""How long every daemon takes to end on SIGTERM: under load, and while Kafka and Redis are gone or silent."""

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from host_tools import standing
from process_tools import Program, until
from stream_tools import publish, save_checkpoint, settings_for
from test_backfill import packet
from test_subscribe import QUICK

from skyheed.broker import app as daemon
from skyheed.broker.kafka.client import CLOSE_S
from skyheed.broker.local import embedded
from skyheed.broker.settings import Settings

pytestmark = [pytest.mark.kafka, pytest.mark.redis]
DEPLOY = Path(__file__).parents[2] / "deploy"
ENDS_S = 5.0 + CLOSE_S  # of which the second part is librdkafka's, for a broker that does not answer
BUSY_S = 15.0  # several of them end at once on two cores, among other work
CONFIG = """\
survey = "ztf"
[kafka]
"bootstrap.servers" = "{kafka}"
"session.timeout.ms" = "{session}"
[redis]
url = "{redis}"
[ingest]
topics = ["{topic}"]
group = "{topic}"
images = ["science"]
[work]
model = "{model}"
[forward]
group = "forward-{topic}"
[backfill]
group = "backfill-{topic}"
rate = 20.0
[sinks.webhook]
url = "{host}"
[providers.alerce]
url = "{host}"
"""


@dataclass
class Stack:
    """All daemons at work on one stream."""

    kafka: embedded.Server
    redis: embedded.Server
    settings: Settings
    topic: str
    programs: dict[str, Program]
    folder: Path
    config: str

    def load(self, alerts: int) -> None:
        name = uuid.uuid4().hex[:6]
        publish(self.settings, self.topic, [packet(f"ZTF{name}{n:04}", 5, 3) for n in range(alerts)])

    def start(self, verb: str, *words: str) -> None:
        folder = self.folder / f"{verb}-{len(self.programs)}"
        self.programs[verb] = Program(folder, verb, *words, "--config", self.config)

    def kill(self) -> None:
        for program in self.programs.values():
            program.process.kill()
            program.process.wait()

    def end(self) -> dict[str, float]:
        """SIGTERM to all at once; verb -> seconds until it ended."""
        took, began = {}, time.monotonic()
        for program in self.programs.values():
            program.process.send_signal(signal.SIGTERM)
        while len(took) < len(self.programs) and time.monotonic() - began < 90:
            for verb, program in self.programs.items():
                if verb not in took and program.process.poll() is not None:
                    took[verb] = time.monotonic() - began
            time.sleep(0.02)
        return took

    def statuses(self) -> dict[str, int | None]:
        return {verb: program.process.poll() for verb, program in self.programs.items()}


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with ExitStack() as opened:
        kafka = opened.enter_context(embedded.start_kafka())
        redis = opened.enter_context(embedded.start_valkey(tmp_path / "valkey"))
        host = opened.enter_context(standing(lambda _: (404, {})))
        topic = f"alerts-{uuid.uuid4().hex[:8]}"
        settings = settings_for(kafka.address, redis.url, "ztf", topic)
        config = tmp_path / "all.toml"
        config.write_text(CONFIG.format(
            kafka=kafka.address, redis=redis.url, topic=topic, host=host.url, session=QUICK["session.timeout.ms"],
            model=save_checkpoint(tmp_path / "model", "ztf"),
        ))  # fmt: skip
        made = Stack(kafka, redis, settings, topic, {}, tmp_path, str(config))
        opened.callback(made.kill)
        made.load(50)
        for verb, *words in (
            ("ingest",), ("work", "--device", "cpu"), ("forward", "--to", "webhook"), ("backfill", "--from", "alerce"),
            ("serve", "--port", str(embedded.free_port()), "--index", str(tmp_path / "index.sqlite")),
        ):  # fmt: skip
            made.start(verb, *words)
        ledger = daemon.read_store(settings)[2]
        until(lambda: ledger.books().summary()["stored"] >= 50, 180, "alerts stored")
        until(lambda: any(r.method == "POST" for r in host.asked), 240, "a classification sent")
        until(lambda: any(r.method == "GET" for r in host.asked), 120, "a detection asked for")
        made.start("subscribe", "--group", f"me-{topic}", "--format", "json")
        made.programs["subscribe"].until_it_says("object_id")
        made.programs["serve"].until_it_says("http://")
        yield made


def at_work(stack: Stack) -> None:
    stack.load(1500)
    time.sleep(3.0)


def gone(stack: Stack) -> None:
    stack.load(500)
    stack.kafka.kill()
    stack.redis.kill()
    time.sleep(6.0)  # until they have noticed


def silent(stack: Stack) -> None:
    """They take connections and say nothing."""
    stack.load(500)
    for server in (stack.kafka, stack.redis):
        assert server._process is not None
        os.kill(server._process.pid, signal.SIGSTOP)
    time.sleep(6.0)


def speaking_again(stack: Stack) -> None:
    for server in (stack.kafka, stack.redis):
        assert server._process is not None
        os.kill(server._process.pid, signal.SIGCONT)


@pytest.mark.parametrize("trouble", [at_work, pytest.param(gone, marks=pytest.mark.long), silent])
def test_every_daemon_ends_within_its_time(stack: Stack, trouble: Callable[[Stack], None]) -> None:
    trouble(stack)
    stack.start("redrive")
    time.sleep(4.0)
    try:
        took = stack.end()
    finally:
        if trouble is silent:
            speaking_again(stack)
    late = {verb: stack.programs[verb].said[-2000:] for verb in stack.programs if took.get(verb, 99) > ENDS_S + BUSY_S}
    assert not late, (took, late)
    wrong = {
        verb: status for verb, status in stack.statuses().items() if status and verb not in ("redrive", "subscribe")
    }
    assert not wrong, {verb: stack.programs[verb].said[-2000:] for verb in wrong}
    assert not [verb for verb, program in stack.programs.items() if "Traceback" in program.said]


def test_what_deploys_them_grants_more_than_that() -> None:
    """`tests/packaging/test_deploy.py` compares every file with the code; this one with what is measured here."""
    [grace] = {
        service["stop_grace_period"]
        for service in yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].values()
        if "stop_grace_period" in service
    }
    assert float(grace.removesuffix("s")) > ENDS_S + BUSY_S
