"""The page of a stack on this machine: a daemon like the others, started where --serve was given."""

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from skyheed.broker.errors import ServiceError
from skyheed.broker.local.processes import Daemon

_SAID = re.compile(r"the page is at (http://\S+)")
START_S = 60.0


def start(arguments: Sequence[str], folder: Path, secrets: Mapping[str, str], port: int = 0) -> tuple[Daemon, str]:
    """Serve the page; gives the daemon and the page's address.

    Args:
        arguments: that bring a daemon to the servers, and those of the worker that say which models there are.
        port: 0 takes 8010 if that is free, else any.

    Raises:
        ServiceError: it ended, or did not begin within a minute.
    """
    words = [*arguments, "--index", str(folder / "index.sqlite"), "--port", str(port)]
    daemon = Daemon("serve", words, folder / "serve.log", secrets)
    deadline = time.monotonic() + START_S
    try:
        while not (said := _SAID.search(daemon.log_file.read_text(encoding="utf-8", errors="replace"))):
            daemon.check()
            if time.monotonic() > deadline:
                raise ServiceError(f"the page did not begin within {START_S:.0f} s: see {daemon.log_file}")
            time.sleep(0.1)
    except BaseException:
        daemon.stop()
        raise
    return daemon, said[1]
