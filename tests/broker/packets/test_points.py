"""Photometry of many packets made together: the same as one point after the other, and as each packet alone."""

import math
import random
from typing import Any

import numpy as np
import pytest

from skyheed.broker.errors import Reason
from skyheed.broker.packets import points
from skyheed.broker.packets.points import Points, WantedPoints
from skyheed.broker.packets.stamps import Waiting, WantedStamps
from skyheed.broker.packets.surveys import load_survey
from skyheed.broker.packets.surveys.base import FILTERS, Wanted
from skyheed.classifier.history import BANDS, DETECTION, FORCED, STEPS_A_DAY, UPPER_LIMIT, Photometry

AB_NJY, PER_MAG = 3631e9, 0.4 * math.log(10)
SIGNS = {"t": 1.0, "1": 1.0, 1: 1.0, "f": -1.0, "0": -1.0, 0: -1.0, -1: -1.0, "False": -1.0}
STRANGE = [None, math.nan, math.inf, -math.inf, -999.0, -99999.0, 0.0, 1e300, -1e300]
Plain = tuple[float, str, float, float, int]


def some(rng: random.Random, usual: Any, share: float = 0.15) -> Any:
    """A usual value, or a strange one."""
    return rng.choice(STRANGE) if rng.random() < share else usual


def ztf_record(rng: random.Random) -> dict[str, Any]:
    def row(**own: Any) -> dict[str, Any]:
        jd = 2460000.5 + rng.randrange(12) + rng.choice([0, 1e-7, 0.3])
        return {"jd": some(rng, jd), "fid": rng.choice([1, 2, 3, 2, 1, 0, 4, None]),
                "programid": rng.choice([1, 1, 1, 2, None]), **own}  # fmt: skip

    earlier: list[Any] = [
        row(
            isdiffpos=rng.choice([*SIGNS, True, 1.0, False, -1.0, None, "x", 2.0]),
            magpsf=some(rng, rng.choice([18.0, 19.25, None])),
            sigmapsf=some(rng, rng.choice([0.1, 0.2])), diffmaglim=some(rng, 20.5),
        )
        for _ in range(rng.randrange(40))
    ]  # fmt: skip
    forced: list[Any] = [
        row(
            exptime=some(rng, 30.0), magzpsci=some(rng, 26.3), forcediffimflux=some(rng, rng.choice([50.0, -20.0])),
            forcediffimfluxunc=some(rng, rng.choice([5.0, 6.0])),
        )
        for _ in range(rng.randrange(40))
    ]  # fmt: skip
    return {"prv_candidates": rng.choice([None, earlier, [*earlier, None]]), "fp_hists": rng.choice([None, forced])}


def middle(jd: float, exposure: float | None) -> float:
    good = exposure is not None and 0 < exposure < 3600
    return jd - 2_400_000.5 + ((exposure if good else 30.0) / 2 + 37.0) / 86_400  # type: ignore[operator]


def flux_of(magnitude: float | None) -> float:
    return AB_NJY * 10 ** (-0.4 * magnitude) if magnitude is not None and 0 < magnitude < 40 else math.nan


def number(value: float | None) -> float:
    return math.nan if value is None else value


def plain_ztf(record: dict[str, Any], public_alone: bool) -> list[Plain]:
    """The earlier points of a record, one after the other."""
    found = []
    for item in record["prv_candidates"] or ():
        if not item or item["jd"] is None or (public_alone and item["programid"] == 2):
            continue
        band, mjd = {1: "g", 2: "r", 3: "i"}.get(item["fid"] or 0, ""), middle(item["jd"], None)
        if item["magpsf"] is None:
            found.append((mjd, band, 0.0, flux_of(item["diffmaglim"]) / 5, UPPER_LIMIT))
        else:
            flux = SIGNS.get(item["isdiffpos"], math.nan) * flux_of(item["magpsf"])
            found.append((mjd, band, flux, abs(flux) * PER_MAG * number(item["sigmapsf"]), DETECTION))
    for item in record["fp_hists"] or ():
        zero = number(item["magzpsci"])
        if item["jd"] is None or (public_alone and item["programid"] == 2) or not 15 < zero < 35:
            continue
        band, counts = {1: "g", 2: "r", 3: "i"}.get(item["fid"] or 0, ""), AB_NJY * 10 ** (-0.4 * zero)
        flux, error = number(item["forcediffimflux"]), number(item["forcediffimfluxunc"])
        found.append((middle(item["jd"], item["exptime"]), band, flux * counts, error * counts, FORCED))
    return found


def plain_photometry(found: list[Plain], bands: str, until: float) -> list[tuple[float, ...]]:
    """Each point once, in time order, the newest 300."""
    best: dict[tuple[int, int, int], tuple[float, float]] = {}
    for mjd, band, flux, error, kind in found:
        fits = 15020 < mjd < 88069 and mjd <= until + 1 / STEPS_A_DAY and abs(flux) < 3e38 and 0 < error < 3e38
        if band and band in bands and fits:
            key = round(mjd * STEPS_A_DAY), BANDS.index(band), kind
            best[key] = min(best.get(key, (math.inf, 0.0)), (error, -flux))
    return [
        (step / STEPS_A_DAY, band, np.float32(-best[step, band, kind][1]), np.float32(best[step, band, kind][0]), kind)
        for step, band, kind in sorted(best)[-300:]
    ]


def rows_of(photometry: Photometry) -> list[tuple[float, ...]]:
    columns = photometry.mjd, photometry.band, photometry.flux, photometry.flux_error, photometry.kind
    assert [column.dtype.str for column in columns] == ["<f8", "|u1", "<f4", "<f4", "|u1"]
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize("bands", ["gri", "r"])
@pytest.mark.parametrize("skip", [FILTERS, ()])
def test_points_of_ztf_are_those_read_one_after_the_other(bands: str, skip: Any) -> None:
    rng = random.Random(f"{bands}{skip}")
    survey: Any = load_survey("ztf", bands=bands, wanted=Wanted(skip=skip))
    records = [ztf_record(rng) for _ in range(150)]
    own = [
        (60000.0 + rng.randrange(14), rng.choice(bands), rng.choice([5.0, math.nan]), 1.0, DETECTION) for _ in records
    ]
    wanted = [WantedPoints(r, o, survey.photometry) for r, o in zip(records, own, strict=True)]
    alone = [rows_of(WantedPoints(r, o, survey.photometry).result()) for r, o in zip(records, own, strict=True)]
    points.make(wanted)
    together = [rows_of(one.result()) for one in wanted]
    public = Reason.NOT_PUBLIC in skip
    plain = [
        plain_photometry([o, *plain_ztf(r, public)], bands, o[0]) for r, o in zip(records, own, strict=True)
    ]  # fmt: skip
    assert together == alone == plain
    kinds = {row[4] for rows in together for row in rows}
    assert kinds == {DETECTION, UPPER_LIMIT, FORCED}
    assert sum(map(len, together)) > 200
    assert all(not one.record for one in wanted), "their records are let go"


def test_points_of_rubin_are_those_read_one_after_the_other() -> None:
    rng = random.Random(3)
    survey: Any = load_survey("lsst", wanted=Wanted())

    def rows() -> list[Any] | None:
        made: list[Any] = [
            {"midpointMjdTai": some(rng, 60000.0 + rng.randrange(9)), "band": rng.choice([*"ugrizy", None, "", "gr"]),
             "psfFlux": some(rng, rng.choice([1.0, -2.0])), "psfFluxErr": some(rng, rng.choice([0.5, 0.25]))}
            for _ in range(rng.randrange(30))
        ]  # fmt: skip
        return rng.choice([made, None, [*made, None]])

    records = [{"prvDiaSources": rows(), "prvDiaForcedSources": rows()} for _ in range(80)]
    own = [(60000.0 + rng.randrange(9), rng.choice("ugrizy"), 1.0, 1.0, DETECTION) for _ in records]
    wanted = [WantedPoints(r, o, survey.photometry) for r, o in zip(records, own, strict=True)]
    points.make(wanted)
    for one, record, seen in zip(wanted, records, own, strict=True):
        plain: list[Plain] = [seen]
        for kind, field in ((DETECTION, "prvDiaSources"), (FORCED, "prvDiaForcedSources")):
            for item in record[field] or ():
                if item:
                    band = item["band"] if len(item["band"] or "") == 1 else ""
                    values = number(item["midpointMjdTai"]), band, number(item["psfFlux"]), number(item["psfFluxErr"])
                    plain.append((*values, kind))
        assert rows_of(one.result()) == plain_photometry(plain, survey.bands, seen[0])


def test_the_newest_points_of_each_packet_are_kept() -> None:
    packets = np.repeat([0, 1, 2], [400, 3, 0])
    mjd = 60000.0 + np.arange(403) % 400
    ones = np.ones(403)
    found = points.photometry_of(Points(packets, mjd, ones.astype(int), ones, ones, np.zeros(403, int)), 3)
    assert [len(one) for one in found] == [300, 3, 0]
    assert found[0].mjd[0] == 60100.0


def test_what_cannot_be_made_together_fails_with_its_own_packet() -> None:
    survey: Any = load_survey("ztf", wanted=Wanted())
    own = (60000.0, "g", 5.0, 1.0, DETECTION)
    good = WantedPoints({"prv_candidates": None, "fp_hists": None}, own, survey.photometry)
    bad = WantedPoints({"prv_candidates": [{"jd": 1.0}], "fp_hists": None}, own, survey.photometry)
    waiting = Waiting()
    for one in (good, bad):
        waiting.add(WantedStamps({"science": b"damaged"}, 1.0, lambda _: (None, None)), one)
    waiting.make()
    assert rows_of(good.result()) == [(60000.0, BANDS.index("g"), 5.0, 1.0, DETECTION)]
    with pytest.raises(KeyError):
        bad.result()
