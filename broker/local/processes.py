"""The whole stack on one machine: servers (embedded unless given) and the daemons as child processes.

Children run in their own sessions, so that Ctrl-C and a closing terminal reach only the parent, which then stops them
in an order that leaves nothing behind: first the intake, then, when nothing is pending, the worker, then the servers.
If the parent is killed, `reaper` stops them.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from skyheed.broker import config
from skyheed.broker.errors import ServiceError
from skyheed.broker.local import embedded
from skyheed.broker.settings import Settings
from skyheed.classifier.reaper import DAEMON, end_if_asked, reaper, undisturbed

STOP_S = 20.0  # a daemon that does not finish its batch within this is killed (which loses nothing)


@dataclass(frozen=True)
class Servers:
    """Addresses of a Kafka and a Redis, and where each came from. An embedded Redis has a random password, in a file
    that only this user can read; for a given one none is kept here.
    """

    kafka: str
    redis: str
    kafka_origin: str
    redis_origin: str
    redis_password: str = field(default="", repr=False)
    redis_password_file: Path | None = None

    def settings(self, given: Settings) -> Settings:
        """The given settings on these servers."""
        return config.with_servers(given, self.kafka, self.redis, self.redis_password)

    @property
    def secrets(self) -> dict[str, str]:
        """The environment that gives a daemon access to the embedded Redis."""
        return {"SKYHEED_REDIS_PASSWORD": self.redis_password} if self.redis_password else {}


@contextlib.contextmanager
def servers(kafka: str | None, redis: str | None, data: Path | None = None) -> Iterator[Servers]:
    """The given servers, or embedded ones for those not given; embedded ones stop at the end.

    Args:
        data: keep the embedded Valkey's state here; otherwise everything is in memory.
    """
    with contextlib.ExitStack() as running:
        kafka_origin = redis_origin = "yours"
        password, file = "", None
        if not kafka:
            kafka = running.enter_context(embedded.start_kafka()).address
            kafka_origin = "embedded, in memory"
        if not redis:
            password = secrets.token_urlsafe(24)
            valkey = embedded.start_valkey(data_dir=data, appendonly=data is not None, password=password)
            redis = running.enter_context(valkey).url
            file = embedded.private_file(valkey.log_file.parent / "password", password)
            redis_origin = f"embedded, kept in {data}" if data else "embedded, in memory"
        yield Servers(kafka, redis, kafka_origin, redis_origin, password, file)


def shared_arguments(settings: Settings, settings_path: str | None) -> list[str]:
    """Options that give a daemon the same servers, survey and file; secrets are passed by environment and file."""
    words = ["--survey", settings.survey, "--kafka", settings.kafka["bootstrap.servers"]]
    if (
        config.redacted_url(settings.redis.url) == settings.redis.url
    ):  # otherwise the file or environment names it there, too
        words += ["--redis", settings.redis.url]
    return [*words, "--config", settings_path] if settings_path else words


class Daemon:
    """A skyheed verb as a child process, logging to a file; `secrets` go into its environment."""

    def __init__(
        self, verb: str, arguments: Sequence[str], log_file: Path, secrets: Mapping[str, str] | None = None
    ) -> None:
        self.verb = verb
        self.log_file = log_file
        # private, because the folder may be the user's and readable by others
        self._log: IO[bytes] = os.fdopen(os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")
        # -P: ignore folders named broker or classifier in the user's working directory
        with undisturbed():
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "skyheed.broker.cli", verb, *arguments],
                stdout=self._log,
                stderr=self._log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=config.child_environment(secrets or {}),
            )
            reaper.process(self.process.pid, DAEMON)

    def check(self) -> None:
        """Raise ServiceError with the daemon's last words if it ended."""
        if self.process.poll() not in (None, 0):
            raise ServiceError(f"{self.verb} ended with status {self.process.returncode}: {self.last_words()}")

    def last_words(self) -> str:
        """The last line of the daemon's log."""
        lines = self.log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def stop(self) -> None:
        """Ask it to finish its batch; kill it if it does not."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        reaper.forget_process(self.process.pid, DAEMON)
        self._log.close()


def wait_until(ready: Callable[[], bool], what: str, daemons: Sequence[Daemon], limit_s: float) -> None:
    """Poll `ready` while watching the daemons.

    Raises:
        ServiceError: a daemon ended, or the limit passed.
    """
    deadline = time.monotonic() + limit_s
    while not ready():
        for daemon in daemons:
            daemon.check()
        if time.monotonic() > deadline:
            raise ServiceError(f"{what} took longer than {limit_s:.0f} s; logs: {daemons[0].log_file.parent}")
        end_if_asked()
        time.sleep(0.1)
