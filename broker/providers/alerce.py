"""ALeRCE's archive of ZTF packets: `GET /get_avro?oid=<objectId>&candid=<candid>`, without a login.

https://alerce.readthedocs.io, "ALeRCE AVRO/Stamps Access API".
"""

from collections.abc import Mapping
from typing import ClassVar
from urllib.parse import urlencode

from skyheed.broker.http import Host
from skyheed.broker.plugins import take
from skyheed.broker.providers.rubin import packet_at

ALERCE_URL = "https://avro.alerce.online"


class Alerce:
    """`skyheed backfill --from alerce`. Option: url."""

    survey: ClassVar[str] = "ztf"
    rate: ClassVar[float] = 2.0

    def __init__(self, options: Mapping[str, str]) -> None:
        self._host = Host("providers.alerce", take(options, {"url": ALERCE_URL}, "providers.alerce")["url"])

    def packet(self, object_id: str, source_id: int) -> bytes | None:
        return packet_at(self._host, f"/get_avro?{urlencode({'oid': object_id, 'candid': source_id})}")

    def close(self) -> None:
        self._host.close()
