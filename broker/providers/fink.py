"""Fink's API: the table of an object's detections and their stamps, without a login.

LSST (https://api.lsst.fink-portal.org; doc.lsst.fink-broker, docs/services/api/imagesearch.md, 3a50ad0):

    POST /api/v1/sources  {"diaObjectId", "columns", "output-format": "json"}   -> rows with names such as r:ra
    POST /api/v1/cutouts  {"diaSourceId", "kind", "output-format": "FITS"}      -> a FITS file; nothing for none

ZTF (https://api.ztf.fink-portal.org; fink-object-api, apps/routes/v1/ztf, 17051ca): /api/v1/objects {"objectId", …}
with names such as i:ra, and /api/v1/cutouts {"objectId", "candid", …}. Both fail (500) if a stamp does not exist.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from skyheed.broker.http import Host, Refusal
from skyheed.broker.plugins import take
from skyheed.broker.providers.assembled import KINDS, lsst_packet, ztf_packet
from skyheed.broker.providers.rows import RowsOfObjects, number_of

FINK_LSST_URL, FINK_ZTF_URL = "https://api.lsst.fink-portal.org", "https://api.ztf.fink-portal.org"
LSST_COLUMNS = (
    "diaSourceId diaObjectId midpointMjdTai ra dec band psfFlux psfFluxErr reliability extendedness templateFlux "
    "templateFluxErr glint_trail"
).split()
ZTF_COLUMNS = (
    "objectId candid jd fid ra dec magpsf sigmapsf isdiffpos magzpsci xpos ypos programid rb drb ssdistnr ssmagnr "
    "distnr magnr sharpnr ndethist ncovhist jdstarthist"
).split()


class Fink:
    """`skyheed backfill --from fink`. Option: url."""

    survey: ClassVar[str] = "lsst"
    rate: ClassVar[float] = 2.0
    requests: ClassVar[int] = len(KINDS)  # per detection; plus one per object
    _url: ClassVar[str] = FINK_LSST_URL
    _number: ClassVar[str] = "diaSourceId"

    def __init__(self, options: Mapping[str, str]) -> None:
        table = f"providers.{self.name()}"
        self._host = Host(table, take(options, {"url": self._url}, table)["url"])
        self._rows = RowsOfObjects(self._ask_rows)

    @classmethod
    def name(cls) -> str:
        """Options as in the settings."""
        return "fink"

    def packet(self, object_id: str, source_id: int) -> bytes | None:
        row = self._rows.of(object_id, source_id)
        if row is None:
            return None
        stamps = {kind: self._stamp(object_id, source_id, kind) for kind in KINDS}
        return self._assembled(row, stamps) if stamps["Science"] else None

    def close(self) -> None:
        self._host.close()

    def _assembled(self, row: Mapping[str, Any], stamps: Mapping[str, bytes]) -> bytes:
        return lsst_packet(row, stamps)

    def _ask_rows(self, object_id: str) -> dict[int, dict[str, Any]]:
        return self._rows_at("/api/v1/sources", {"diaObjectId": object_id}, "r:", LSST_COLUMNS)

    def _rows_at(
        self, path: str, what: Mapping[str, str], prefix: str, columns: list[str]
    ) -> dict[int, dict[str, Any]]:
        asked = {**what, "columns": ",".join(prefix + name for name in columns), "output-format": "json"}
        found = self._host.post(path, asked)
        if not isinstance(found, list):
            raise Refusal(200, f"an answer of {type(found).__name__}, not a list of rows")
        plain = [
            {key.removeprefix(prefix): value for key, value in row.items()} for row in found if isinstance(row, dict)
        ]
        return {n: row for row in plain if (n := number_of(row.get(self._number))) is not None}

    def _stamp(self, object_id: str, source_id: int, kind: str) -> bytes:
        asked = {**self._which(object_id, source_id), "kind": kind, "output-format": "FITS"}
        return self._host.fetch("/api/v1/cutouts", asked)

    def _which(self, object_id: str, source_id: int) -> dict[str, str]:
        return {"diaSourceId": str(source_id)}


class FinkZtf(Fink):
    """`skyheed backfill --from fink-ztf`. Option: url."""

    survey: ClassVar[str] = "ztf"
    _url: ClassVar[str] = FINK_ZTF_URL
    _number: ClassVar[str] = "candid"

    @classmethod
    def name(cls) -> str:
        return "fink-ztf"

    def _ask_rows(self, object_id: str) -> dict[int, dict[str, Any]]:
        return self._rows_at("/api/v1/objects", {"objectId": object_id}, "i:", ZTF_COLUMNS)

    def _which(self, object_id: str, source_id: int) -> dict[str, str]:
        return {"objectId": object_id, "candid": str(source_id)}

    def _assembled(self, row: Mapping[str, Any], stamps: Mapping[str, bytes]) -> bytes:
        return ztf_packet(str(row.get("objectId")), row, stamps)
