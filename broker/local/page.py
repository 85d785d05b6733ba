"""The page of a stack on this machine: a daemon like the others, started with --serve."""

import contextlib
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click

from skyheed.broker.errors import ServiceError
from skyheed.broker.local.processes import Daemon

_SAID = re.compile(r"the page is at (http://\S+)")
START_S = 60.0
PORT = 8010  # if it is free


def start(arguments: Sequence[str], folder: Path, secrets: Mapping[str, str]) -> tuple[Daemon, str]:
    """Serve the page; returns the daemon and the page's address.

    Args:
        arguments: those that connect a daemon to the servers, and the worker's that name the models.

    Raises:
        ServiceError: it ended, or did not start within a minute.
    """
    words = [*arguments, "--index", str(folder / "index.sqlite"), "--port", str(_port())]
    daemon = Daemon("serve", words, folder / "serve.log", secrets)
    deadline = time.monotonic() + START_S
    try:
        while not (said := _SAID.search(daemon.log_file.read_text(encoding="utf-8", errors="replace"))):
            daemon.check()
            if time.monotonic() > deadline:
                raise ServiceError(f"the page did not start within {START_S:.0f} s: see {daemon.log_file}")
            time.sleep(0.1)
    except BaseException:
        daemon.stop()
        raise
    return daemon, said[1]


def _port() -> int:
    """The usual port, or 0 for any."""
    try:
        socket.create_server(("127.0.0.1", PORT)).close()
    except OSError:
        return 0
    return PORT


@contextlib.contextmanager
def shown(arguments: Sequence[str], folder: Path, secrets: Mapping[str, str]) -> Iterator[Daemon]:
    """Serve the page for the duration of the block; prints its address.

    Raises:
        ServiceError: as `start`.
    """
    viewer, address = start(arguments, folder, secrets)
    click.echo(f"     the page is at {address}", err=True)
    try:
        yield viewer
    finally:
        viewer.stop()


def keep(viewer: Daemon | None) -> None:
    """Keep the page running until Ctrl-C, if there is one.

    Raises:
        ServiceError: it ended by itself.
    """
    if viewer is None:
        return
    click.echo("the page stays until Ctrl-C", err=True)
    with contextlib.suppress(KeyboardInterrupt):
        while viewer.process.poll() is None:
            time.sleep(0.2)
    viewer.check()
