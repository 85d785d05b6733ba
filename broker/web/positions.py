"""Positions: sexagesimal, galactic, and links to the same position elsewhere. Sends no requests."""

import math
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np

from skyheed.broker.packets.surveys.links import brokers

# ICRS -> galactic (Hipparcos catalogue, ESA SP-1200, vol. 1, eq. 1.5.11)
_GALACTIC = np.array(
    [
        [-0.0548755604162154, -0.8734370902348850, -0.4838350155487132],
        [0.4941094278755837, -0.4448296299600112, 0.7469822444972189],
        [-0.8676661490190047, -0.1980763734312015, 0.4559837761750669],
    ]
)
NEAR = 5  # arcsec: the search radius around the position at other services


def galactic(ra: float, dec: float) -> tuple[float, float]:
    """Galactic longitude and latitude in degrees of a position in degrees ICRS."""
    a, d = math.radians(ra), math.radians(dec)
    x, y, z = _GALACTIC @ (math.cos(d) * math.cos(a), math.cos(d) * math.sin(a), math.sin(d))
    return math.degrees(math.atan2(y, x)) % 360, math.degrees(math.asin(max(-1.0, min(1.0, z))))


def sexagesimal(ra: float, dec: float) -> dict[str, str]:
    """hh:mm:ss.sss and ±dd:mm:ss.ss of a position in degrees."""
    return {"ra": _sixty(ra % 360 / 15, 3, 24), "dec": ("-" if dec < 0 else "+") + _sixty(abs(dec), 2)}


def _sixty(value: float, digits: int, turn: int = 0) -> str:
    unit = 10**digits
    ticks = round(value * 3600 * unit)  # rounded once, so that 60 never appears
    ticks = ticks % (turn * 3600 * unit) if turn else ticks
    minutes, seconds = divmod(ticks, 60 * unit)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds / unit:0{digits + 3}.{digits}f}"


def links(survey: str, object_id: str, ra: float, dec: float) -> list[dict[str, Any]]:
    """Where a reader can look further: services by position, other brokers by object id."""
    found = [{"name": name, "url": url, "group": "broker"} for name, url in brokers(survey, object_id)]
    if not (math.isfinite(ra) and math.isfinite(dec)):
        return found
    place = f"{ra:.6f} {dec:+.6f}"
    a, d = f"{ra:.6f}", f"{dec:.6f}"
    services: tuple[tuple[str, str, dict[str, Any]], ...] = (
        (
            "SIMBAD", "https://simbad.cds.unistra.fr/simbad/sim-coo",
            {"Coord": place, "Radius": NEAR, "Radius.unit": "arcsec"},
        ),
        (
            "NED", "https://ned.ipac.caltech.edu/conesearch",
            {"search_type": "Near Position Search", "coordinates": f"{a}d {dec:+.6f}d", "radius": NEAR / 60,
             "in_csys": "Equatorial", "in_equinox": "J2000.0"},
        ),
        (
            "TNS", "https://www.wis-tns.org/search", {"ra": a, "decl": d, "radius": NEAR, "coords_unit": "arcsec"},
        ),
        (
            "Legacy Survey", "https://www.legacysurvey.org/viewer",
            {"ra": a, "dec": d, "zoom": 16, "layer": "ls-dr10", "mark": f"{a},{d}"},
        ),
        (
            "Gaia DR3", "https://vizier.cds.unistra.fr/viz-bin/VizieR-4",
            {"-source": "I/355/gaiadr3", "-c": place, "-c.rs": NEAR},
        ),
    )  # fmt: skip
    sky = [
        {"name": name, "url": f"{address}?{urlencode(query, quote_via=quote)}", "group": "sky"}
        for name, address, query in services
    ]
    return sky + found
