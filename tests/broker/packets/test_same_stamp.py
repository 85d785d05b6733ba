"""Training and serving see the same stamp: archive rows as a data set holds them, and as packets of their survey."""

import gzip
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_surveys import fits_file, lsst_packet, observe, ztf_packet

from skyheed.broker.errors import PacketError, Reason
from skyheed.broker.packets.index import ALERT_COLUMNS
from skyheed.broker.packets.surveys.sdss import alert_from_archive
from skyheed.classifier.archives.reader import Archive, ArchiveObject, ArchiveWriter, stamp_rows
from skyheed.classifier.sky import simulate
from skyheed.classifier.sky.surveys import SURVEYS, Survey
from skyheed.classifier.training import dataset

PLACE = (150.0, 2.2)  # degrees; of every packet here
# Turns that are made by flips, by interpolation, and nearly by either.
ANGLES = (0.0, 0.4, 89.3, 90.0, 180.6, 269.9, 1.2, 17.0, 45.0, 133.0, 222.5, 358.7)


def wcs_cards(row: Any, survey: Survey, rows_run_south: bool = False) -> dict[str, Any]:
    """The WCS of an archive's stamp: +y points `rotation` degrees east of north, the source is in the middle."""
    angle, scale, middle = math.radians(float(row["rotation"])), survey.pixel / 3600, survey.size // 2
    up = -1 if rows_run_south else 1
    return {
        "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": PLACE[0], "CRVAL2": PLACE[1],
        "CRPIX1": middle + 1.0, "CRPIX2": (survey.size - 1 - middle if rows_run_south else middle) + 1.0,
        "CD1_1": -scale * math.cos(angle), "CD1_2": up * scale * math.sin(angle),
        "CD2_1": scale * math.sin(angle), "CD2_2": up * scale * math.cos(angle),
    }  # fmt: skip


def sdss(row: Any, survey: Survey) -> bytes:
    """As replay sends it."""
    where = {"object_id": "one", "ra": PLACE[0], "dec": PLACE[1]}
    return alert_from_archive(**where, **{name: row[name] for name in ALERT_COLUMNS})


def ztf(row: Any, survey: Survey, **cards: Any) -> bytes:
    """As IPAC sends it: counts, on a sky, rows from north to south, no WCS."""
    counts = row["stamp"][::-1] / (3631e9 * 10 ** (-0.4 * float(row["zero_point"])))
    data = gzip.compress(fits_file(counts, BUNIT="DN", **cards), 1)
    fid = 1 + "gri".index(str(row["band"]))
    stamp = {"cutoutScience": {"fileName": "f", "stampData": data}}
    return ztf_packet(stamp, fid=fid, magzpsci=float(row["zero_point"]), ra=PLACE[0], dec=PLACE[1])


def ztf_with_wcs(row: Any, survey: Survey) -> bytes:
    """As a broker sends it that wrote the stamp again with a WCS."""
    return ztf(row, survey, **wcs_cards(row, survey, rows_run_south=True))


def lsst(row: Any, survey: Survey) -> bytes:
    """As Rubin sends it: nJy, in the visit's orientation, with a WCS."""
    data = fits_file(row["stamp"], BUNIT="nJy", **wcs_cards(row, survey))
    return lsst_packet({"cutoutScience": data}, band=str(row["band"]), ra=PLACE[0], dec=PLACE[1])


PACKETS = {"sdss": [sdss], "ztf": [ztf, ztf_with_wcs], "lsst": [lsst]}
EVERY_FORM = pytest.mark.parametrize(
    ("survey", "packet"), [(SURVEYS[name], form) for name, forms in PACKETS.items() for form in forms]
)


def trained(path: Path) -> tuple[Archive, dataset.Dataset]:
    return Archive(path), dataset.load(path)


def served(archive: Archive, survey: Survey, packet: Any) -> list[np.ndarray]:
    """The adapter's stamps of what an alert stream would send, without those that it sets aside as empty."""
    found = []
    for _, rows in archive.each(alerts_only=True):
        for row in rows:
            try:
                found.append(observe(survey.name, packet(row, survey)).stamp)
            except PacketError as error:
                assert error.reason is Reason.EMPTY_STAMP  # noqa: PT017 - the data set leaves it out, too
    return found


def assert_same(one: np.ndarray, other: np.ndarray) -> None:
    """Equal but for the last bit of float16, and what a position read from a WCS is worth (1e-6 pixel)."""
    one, other = one.astype(float), other.astype(float)
    brightest = np.abs(one).max(axis=(1, 2), keepdims=True)
    allowed = 2.0**-10 * np.maximum(np.abs(one), 2.0**-4) + 1e-5 * brightest
    assert (np.abs(one - other) <= allowed).all()


@EVERY_FORM
def test_simulated_exposures_are_the_same_in_training_and_serving(survey: Survey, packet: Any, tmp_path: Path) -> None:
    archive, data = trained(simulate(survey.name, 4, 3, tmp_path / "a", seasons=1, balanced=True, processes=1,
                                     progress=False))  # fmt: skip
    stamps = served(archive, survey, packet)
    assert len(stamps) == len(data.stamps) > 20
    assert_same(np.stack(stamps), np.asarray(data.stamps))


@EVERY_FORM
def test_a_point_source_is_in_the_middle_of_both_at_any_angle(survey: Survey, packet: Any, tmp_path: Path) -> None:
    """A star with a neighbour, drawn by hand, in every orientation that the survey has."""
    angles = ANGLES if survey.turns else (0.0,)
    y, x = np.indices((survey.size, survey.size)) - survey.size // 2
    image = 1e5 * np.exp(-(x**2 + y**2) / 6) + 4e4 * np.exp(-((x - 7) ** 2 + (y + 4) ** 2) / 6)
    n = len(angles)
    columns = {
        "source_id": np.arange(n), "mjd": 60_000.0 + np.arange(n), "band": np.full(n, "r"), "alert": np.ones(n, bool),
        "detected": np.ones(n, bool), "flux": np.full(n, 1e5), "flux_error": np.ones(n), "psf_fwhm": np.ones(n),
        "sky_noise": np.full(n, 50.0), "zero_point": np.full(n, 26.3), "rotation": np.array(angles),
    }  # fmt: skip
    thing = ArchiveObject("one", "Variable", "", True, math.nan, *PLACE, 60_000.0, "simulated", survey.name)
    with ArchiveWriter(tmp_path / "a", {}) as writer:
        writer.add(thing, stamp_rows({"stamp": np.repeat(image[None].astype(np.float32), n, 0)}, columns))
    archive, data = trained(tmp_path / "a")
    stamps = np.stack(served(archive, survey, packet))
    assert_same(stamps, np.asarray(data.stamps))
    light = np.clip(np.asarray(data.stamps, float)[:, 12:21, 12:21], 0, None)
    v, u = np.indices((9, 9)) - 4
    lit = light[:, np.hypot(u, v) < 4]
    for along in (u, v):
        offset = (light * along * (np.hypot(u, v) < 4)).sum((1, 2)) / lit.sum(1)
        assert np.abs(offset).max() < 0.1
