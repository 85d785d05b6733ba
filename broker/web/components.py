"""State shared by all requests, created once when the page starts."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from skyheed.broker.settings import Settings
from skyheed.broker.web.guard import Token
from skyheed.broker.web.index import Index
from skyheed.broker.web.live import Hub
from skyheed.broker.web.objects import Objects
from skyheed.broker.web.recompute import Pool
from skyheed.broker.web.status import Status

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Web:
    """The components of the page of one survey."""

    settings: Settings
    index: Index
    hub: Hub
    objects: Objects
    status: Status
    pool: Pool
    token: Token | None = None
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "::1")
    limits: bool = True
    static: Path = field(default=HERE / "static")


def _web(request: Request) -> Web:
    found: Web = request.app.state.web
    return found


Here = Annotated[Web, Depends(_web)]
