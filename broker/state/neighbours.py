"""Which objects lie close to a position on the sky: an index of small cells in Redis, for `joined`.

Written at ingest if `ingest.join_arcsec` is set: an object's name goes into the cell of each of its detections. The
cells only say which objects to check, because an object whose detections scatter is in several; the distances are
computed from what is stored for the objects themselves. So the index needs no order, and a name may be added twice.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

from skyheed.broker.observation import Observation
from skyheed.broker.state.client import Client
from skyheed.broker.state.keys import Keys

CELL_ARCSEC = 10.0  # fixed for the life of the data: part of every key
MOST_NAMES = 64  # in a cell; a cell with more is full of artefacts, and nothing in it is joined
DEGREE = 3600.0
Place = tuple[float, float]  # right ascension, declination, degrees
Cell = tuple[int, int]


class Neighbours:
    """The index of one survey.

    Args:
        ttl_s: a cell in which nothing has happened for this long is forgotten.
    """

    def __init__(self, client: Client, survey: str, ttl_s: float) -> None:
        self._client, self._keys = client, Keys(survey)
        self._ttl_ms = round(ttl_s * 1000)

    def note(self, seen: Iterable[Observation]) -> None:
        """Put the objects of these detections into their cells. Safe to repeat.

        Raises:
            ServiceUnavailable, ServiceError: Redis is unavailable or full, or denies access.
        """
        names: dict[str, dict[str, None]] = {}
        for one in seen:
            if math.isfinite(one.ra) and math.isfinite(one.dec):
                names.setdefault(self._keys.near(*cell_of(one.ra, one.dec)), {})[one.object_id] = None
        commands = [("SADD", key, *own) for key, own in names.items()]
        self._client.run([*commands, *(("PEXPIRE", key, self._ttl_ms) for key in names)], durable=True)

    def near(self, places: Sequence[Place], arcsec: float) -> list[set[str]]:
        """For each position, the objects that may lie within `arcsec` of it, and possibly others.

        Raises:
            ServiceUnavailable, ServiceError: as `note`.
        """
        keys = [
            [self._keys.near(*cell) for cell in cells_around(place, arcsec)] if all(map(math.isfinite, place)) else []
            for place in places
        ]
        every = list(dict.fromkeys(key for own in keys for key in own))
        sizes = dict(zip(every, self._client.run([("SCARD", key) for key in every]), strict=True))
        asked = [key for key in every if 0 < sizes[key] <= MOST_NAMES]
        found = dict(zip(asked, self._client.run([("SMEMBERS", key) for key in asked]), strict=True))
        return [{name.decode() for key in own for name in found.get(key, ())} for own in keys]


def cell_of(ra: float, dec: float) -> Cell:
    """The cell of a position: a band of declination, and a part of it."""
    band = math.floor((min(max(dec, -90.0), 90.0) + 90.0) * DEGREE / CELL_ARCSEC)
    return band, _part(ra, _parts(band))


def cells_around(place: Place, arcsec: float) -> Iterator[Cell]:
    """Every cell that a circle touches."""
    ra, dec = place
    radius = arcsec / DEGREE
    for band in range(cell_of(ra, max(dec - radius, -90.0))[0], cell_of(ra, min(dec + radius, 90.0))[0] + 1):
        parts = _parts(band)
        # near a pole, a small circle may extend around it
        reach = math.sin(math.radians(radius)) / max(math.cos(math.radians(dec)), 1e-12)
        if reach >= 1.0 or parts < 4:
            yield from ((band, part) for part in range(parts))
            continue
        half = math.degrees(math.asin(reach))
        first, last = (math.floor((ra + side) / 360.0 * parts) for side in (-half, half))
        yield from ((band, part % parts) for part in range(first, min(last, first + parts - 1) + 1))


def _parts(band: int) -> int:
    """The number of parts of a band, each at least `CELL_ARCSEC` wide where the band is longest."""
    edges = (band * CELL_ARCSEC / DEGREE - 90.0, (band + 1) * CELL_ARCSEC / DEGREE - 90.0)
    widest = 1.0 if edges[0] < 0.0 < edges[1] else max(math.cos(math.radians(edge)) for edge in edges)
    return max(1, math.floor(360.0 * DEGREE / CELL_ARCSEC * widest))


def _part(ra: float, parts: int) -> int:
    return math.floor(ra / 360.0 * parts) % parts
