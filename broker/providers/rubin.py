"""Rubin's Alerts API (Herald): the packet of any alert as an Avro container, for holders of data rights.

`GET /api/alerts?ID=<diaSourceId>` with a token of the Rubin Science Platform
(https://rsp.lsst.io/guides/api/alerts.html, as of lsst/rsp_lsst_io 1e3fd21).
"""

from collections.abc import Mapping
from typing import ClassVar

from skyheed.broker.http import Host, Refusal
from skyheed.broker.plugins import required, take

RUBIN_URL = "https://data.lsst.cloud"


class Rubin:
    """`skyheed backfill --from rubin`. Options: token, url."""

    survey: ClassVar[str] = "lsst"
    rate: ClassVar[float] = 2.0

    def __init__(self, options: Mapping[str, str]) -> None:
        given = take(options, {"url": RUBIN_URL, "token": ""}, "providers.rubin")
        token = required(given, "token", "providers.rubin", "a token of the Rubin Science Platform")
        self._host = Host("providers.rubin", given["url"], {"Authorization": f"Bearer {token}"})

    def packet(self, object_id: str, source_id: int) -> bytes | None:
        return packet_at(self._host, f"/api/alerts?ID={source_id}")

    def close(self) -> None:
        self._host.close()


def packet_at(host: Host, path: str) -> bytes | None:
    """The bytes at a path; None if the host has nothing there."""
    try:
        return host.fetch(path)
    except Refusal as refusal:
        if refusal.status in (404, 410):
            return None
        raise
