"""`skyheed serve`: the page and its JSON API, on this machine unless a token protects it."""

import contextlib
import hashlib
import ipaddress
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn

from skyheed.broker import app as daemon
from skyheed.broker import config
from skyheed.broker.errors import ConfigError
from skyheed.broker.settings import Settings
from skyheed.broker.state import client as state
from skyheed.broker.web import app as page
from skyheed.broker.web.cards import Cards
from skyheed.broker.web.components import Web
from skyheed.broker.web.follower import Follower
from skyheed.broker.web.guard import Token
from skyheed.broker.web.index import Index
from skyheed.broker.web.live import Hub
from skyheed.broker.web.objects import Objects
from skyheed.broker.web.recompute import LIMIT_S, Pool
from skyheed.broker.web.status import Sources, Status

log = logging.getLogger("skyheed.serve")
HOST, PORT = "127.0.0.1", 8010
STOP_S = 3
SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class Options:
    """How the page is served.

    Attributes:
        host, port: to listen on; port 0 takes a free one.
        names: further host names of the page, such as that of a proxy.
        token: opens the page; required unless the address is a loopback address.
        index: file; by default one per survey and Kafka in the user's cache.
        processes: number of processes that recompute.
        limits: whether request rates of clients are limited.
    """

    host: str = HOST
    port: int = PORT
    names: tuple[str, ...] = ()
    token: str = ""
    index: Path | None = None
    processes: int = 1
    limit_s: float = LIMIT_S
    limits: bool = True


def read_token(path: Path) -> str:
    """The token in a file.

    Raises:
        ConfigError: it cannot be read, or is too short to protect anything.
    """
    found = config.read_secret(path, "--token-file")
    if len(found) < SHORTEST_TOKEN:
        raise ConfigError(
            f"--token-file: {path} has fewer than {SHORTEST_TOKEN} characters: make one with "
            "python -c 'import secrets; print(secrets.token_urlsafe(24))'"
        )
    return found


def check(options: Options) -> None:
    """Refuse to show the page to others without a token.

    Raises:
        ConfigError
    """
    if not own_address(options.host) and not options.token:
        raise ConfigError(
            f"--host {options.host} is reachable from other machines: add --token-file FILE, or use {HOST} and a tunnel"
        )


def own_address(host: str) -> bool:
    """Whether an address is reachable only from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def index_path(settings: Settings) -> Path:
    """The default place of the index for a survey and a Kafka.

    Raises:
        ConfigError: the folder cannot be made.
    """
    place = hashlib.sha256(settings.kafka["bootstrap.servers"].encode()).hexdigest()[:8]
    folder = Path.home() / ".cache" / "skyheed"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"the index cannot be kept in {folder} ({error.strerror}): give --index FILE") from error
    return folder / f"index-{settings.survey}-{place}.sqlite"


@contextlib.contextmanager
def parts(settings: Settings, options: Options) -> Iterator[Web]:
    """Everything that a page needs, running: the index, the thread that fills it, and the processes that recompute.

    Raises:
        ConfigError: a setting that cannot work.
    """
    daemon.checked(settings)
    index = Index(options.index or index_path(settings), settings.survey)
    pool = Pool(settings, options.processes, options.limit_s)
    hub = Hub(index)
    follower = Follower(settings, index, hub.tell)
    hub.caught_up = lambda: follower.behind == 0
    store, _, ledger = daemon.read_store(settings)
    cards = Cards(settings, can_compute=not pool.missing)
    client = state.connect_as(settings.redis)
    sources = Sources(settings, index, follower, pool, cards, store, ledger, client)
    objects = Objects(settings.survey, store, index, cards)
    token = Token(options.token) if options.token else None
    hosts = tuple(dict.fromkeys(("localhost", "127.0.0.1", "::1", options.host.strip("[]"), *options.names)))
    follower.start()
    try:
        yield Web(settings, index, hub, objects, Status(sources), pool, token, hosts, options.limits)
    finally:
        follower.stop()
        pool.close()
        follower.join(10)
        client.close()
        index.close()


class Server(uvicorn.Server):
    """Closes open streams before waiting for them."""

    def __init__(self, settings: uvicorn.Config, web: Web) -> None:
        super().__init__(settings)
        self._web = web

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On a signal, shut down in order with status 0, like every daemon; uvicorn itself would die of the signal."""
        self._web.hub.close()
        super().handle_exit(sig, frame)
        self._captured_signals.clear()


def listen(options: Options) -> socket.socket:
    """A listening socket, so that an occupied port is noticed before anything starts.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    host = options.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, options.port), family=family, backlog=256)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"the page cannot be served at {host}:{options.port} ({reason}): choose another --host or --port"
        ) from error


def address(listening: socket.socket) -> str:
    """The page's address."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def server_of(web: Web) -> Server:
    """A server that is ready to run."""
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    made = uvicorn.Config(
        page.make(web), log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=STOP_S,
        timeout_keep_alive=20, proxy_headers=False, h11_max_incomplete_event_size=65_536, limit_concurrency=2_000,
        lifespan="on",
    )  # fmt: skip
    return Server(made, web)


def run(settings: Settings, options: Options, say: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        say: called with the address before the first request.

    Raises:
        ConfigError: a setting that cannot work, or an address that cannot be listened on.
    """
    check(options)
    with listen(options) as listening, parts(settings, options) as web:
        web.pool.start()
        say(address(listening))
        with contextlib.suppress(KeyboardInterrupt):
            server_of(web).run(sockets=[listening])


@contextlib.contextmanager
def serving(settings: Settings, options: Options) -> Iterator[str]:
    """Serve in a thread for the duration of the block; yields the address."""
    check(options)
    with listen(options) as listening, parts(settings, options) as web:
        server = server_of(web)
        thread = threading.Thread(target=server.run, args=([listening],), name="serve", daemon=True)
        thread.start()
        try:
            yield address(listening)
        finally:
            web.hub.close()
            server.should_exit = True
            thread.join(STOP_S + 5)
