"""Babamul (BOOM's public API): the table of an object's detections and their stamps, with an API token.

As its client asks (babamul 0.2.0, api.py), under https://babamul.caltech.edu/api/babamul:

    GET  /surveys/{ZTF|LSST}/alerts?object_id=…&limit=…&skip=…   -> {"data": [{"candid", "objectId", "candidate"}, …]}
    POST /surveys/{ZTF|LSST}/cutouts  {"candids": [… at most 100]}
         -> {"data": {"cutouts": [{"candid", "cutoutScience", "cutoutTemplate", "cutoutDifference": base64}, …]}}
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import urlencode

from skyheed.broker.http import Host, Refusal
from skyheed.broker.plugins import required, take
from skyheed.broker.providers.assembled import KINDS, lsst_packet, ztf_packet
from skyheed.broker.providers.rows import RowsOfObjects, number_of

BABAMUL_URL = "https://babamul.caltech.edu/api/babamul"
PAGE = 1000  # rows requested at a time
MOST_PAGES = 20
STAMPS = 10  # detections whose stamps are requested at a time: 2 MB of LSST data as base64


class Babamul:
    """`skyheed backfill --from babamul`. Options: token, url."""

    survey: ClassVar[str] = "lsst"
    rate: ClassVar[float] = 2.0

    def __init__(self, options: Mapping[str, str]) -> None:
        table = f"providers.{self.name()}"
        given = take(options, {"url": BABAMUL_URL, "token": ""}, table)
        token = required(given, "token", table, "an API token of Babamul")
        self._host = Host(table, given["url"], {"Authorization": f"Bearer {token}"})
        self._path = f"/surveys/{self.survey.upper()}"
        self._rows = RowsOfObjects(self._ask_rows)
        self._expected: list[int] = []
        self._stamps: dict[int, dict[str, bytes]] = {}

    @classmethod
    def name(cls) -> str:
        """Options as in the settings."""
        return "babamul"

    def expect(self, object_id: str, sources: Sequence[int]) -> None:
        """Detections to be requested next; their stamps are fetched several at a time."""
        self._expected, self._stamps = list(sources), {}

    def packet(self, object_id: str, source_id: int) -> bytes | None:
        row = self._rows.of(object_id, source_id)
        if row is None:
            return None
        if source_id not in self._stamps:
            self._stamps |= self._ask_stamps(self._next(source_id))
        stamps = self._stamps.pop(source_id, {})
        return self._assembled(row, stamps) if stamps.get("Science") else None

    def close(self) -> None:
        self._host.close()

    def _assembled(self, row: Mapping[str, Any], stamps: Mapping[str, bytes]) -> bytes:
        return lsst_packet(row["candidate"], stamps)

    def _next(self, source_id: int) -> list[int]:
        """This detection and those that are expected after it."""
        start = self._expected.index(source_id) if source_id in self._expected else len(self._expected)
        return [source_id, *self._expected[start + 1 : start + STAMPS]]

    def _ask_rows(self, object_id: str) -> dict[int, dict[str, Any]]:
        rows: list[Any] = []
        for page in range(MOST_PAGES):
            asked = urlencode({"object_id": object_id, "limit": PAGE, "skip": page * PAGE})
            found = _data(self._host.get(f"{self._path}/alerts?{asked}"), list)
            rows += found
            if len(found) < PAGE:
                break
        sound = [row for row in rows if isinstance(row, dict) and isinstance(row.get("candidate"), dict)]
        return {n: row for row in sound if (n := number_of(row.get("candid", row.get("_id")))) is not None}

    def _ask_stamps(self, sources: Sequence[int]) -> dict[int, dict[str, bytes]]:
        found = _data(self._host.post(f"{self._path}/cutouts", {"candids": list(sources)}), dict).get("cutouts")
        rows = [row for row in found or () if isinstance(row, dict)]
        return {n: _files(row) for row in rows if (n := number_of(row.get("candid"))) is not None}


class BabamulZtf(Babamul):
    """`skyheed backfill --from babamul-ztf`. Options: token, url."""

    survey: ClassVar[str] = "ztf"

    @classmethod
    def name(cls) -> str:
        return "babamul-ztf"

    def _assembled(self, row: Mapping[str, Any], stamps: Mapping[str, bytes]) -> bytes:
        return ztf_packet(str(row.get("objectId")), row["candidate"], stamps)


def _data(answer: Any, kind: type) -> Any:
    """The contents of the envelope {"data": …}."""
    data = answer.get("data", answer) if isinstance(answer, dict) else answer
    if not isinstance(data, kind):
        raise Refusal(200, f"an answer of {type(data).__name__} where a {kind.__name__} should be")
    return data


def _files(row: Mapping[str, Any]) -> dict[str, bytes]:
    """The FITS files of one detection; anything that is not base64 is dropped."""
    found = {}
    for kind in KINDS:
        try:
            found[kind] = base64.b64decode(row.get(f"cutout{kind}") or "", validate=True)
        except (binascii.Error, ValueError, TypeError):
            found[kind] = b"?"
    return found
