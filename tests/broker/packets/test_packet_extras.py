"""What packets say alongside the science stamp, against values that are read with fastavro and astropy and worked out
here in another way."""

import collections
import gzip
import io
import math
import random
from collections.abc import Iterator
from typing import Any

import fastavro
import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.time import Time
from real_data import real_data, rubin_files, ztf_files
from test_surveys import check_filtered, ztf_packet, ztf_stamp

from skyheed.broker.errors import ConfigError, Reason, SkipPacket
from skyheed.broker.observation import Flag, Observation
from skyheed.broker.packets.reader import read_packet
from skyheed.broker.packets.surveys import Wanted, load_survey
from skyheed.classifier.history import BANDS, DETECTION, FORCED, UPPER_LIMIT, History, Photometry

Record = dict[str, Any]
Point = tuple[float, str, float, float, int]
BAND = {1: "g", 2: "r", 3: "i"}


def real_ztf() -> Iterator[tuple[Record, Observation]]:
    """Every real packet as fastavro reads it, and its observation; most files hold one, some many."""
    for path in ztf_files():
        data = path.read_bytes()
        records = list(fastavro.reader(io.BytesIO(data)))
        seen = read_packet(data, "ztf", skip=())
        assert len(seen) == len(records)
        yield from zip(records, seen, strict=True)


def real_rubin() -> Iterator[tuple[Record, Observation]]:
    """Every real Rubin packet of an object that is not in the solar system."""
    schema = pytest.importorskip("lsst.alert.packet", reason="package lsst-alert-packet is not installed")
    known: dict[tuple[int, int], Any] = {}
    for path in rubin_files():
        data = path.read_bytes()
        version = divmod(int.from_bytes(data[1:5], "big"), 100)
        if version not in known:
            name = "lsst.v{}_{}.alert.avsc".format(*version)
            known[version] = schema.Schema.from_file(f"{schema.get_schema_path(*version)}/{name}").definition
        record: Any = fastavro.schemaless_reader(io.BytesIO(data[5:]), known[version])
        if record["diaObject"]:
            yield record, read_packet(data, "lsst", skip=())[0]


def points_of(photometry: Photometry | None) -> list[Point]:
    assert photometry is not None
    return [
        (float(t), BANDS[b], float(f), float(e), int(k))
        for t, b, f, e, k in zip(
            photometry.mjd, photometry.band, photometry.flux, photometry.flux_error, photometry.kind, strict=True
        )
    ]


def assert_same_points(got: list[Point], expected: list[Point]) -> None:
    assert len(got) == len(expected)
    key = lambda point: (round(point[0], 4), point[1], point[4])  # noqa: E731
    for one, other in zip(sorted(got, key=key), sorted(expected, key=key), strict=True):
        assert (one[1], one[4]) == (other[1], other[4])
        assert one[0] == pytest.approx(other[0], abs=1e-5, rel=0)
        assert one[2:4] == pytest.approx(other[2:4], rel=1e-4, abs=1e-3)


# --- photometry


def middle_of(jd: float) -> float:
    """Of an exposure of 30 s."""
    return float((Time(jd, format="jd", scale="utc") + 15 * units.s).tai.mjd)


def njy(magnitude: float) -> float:
    return float((magnitude * units.ABmag).to_value(units.nJy))


def ztf_points(record: Record) -> list[Point]:
    found = []
    for one in [record["candidate"], *(record["prv_candidates"] or [])]:
        when, band = middle_of(one["jd"]), BAND[one["fid"]]
        if one["magpsf"] is None:
            found.append((when, band, 0.0, njy(one["diffmaglim"]) / 5, UPPER_LIMIT))
        else:
            sign = 1 if one["isdiffpos"] in ("t", "1") else -1
            flux = njy(one["magpsf"])
            # 1.0857 = 2.5 / ln 10, by which a relative error becomes one of magnitude
            found.append((when, band, sign * flux, flux * one["sigmapsf"] / 1.0857362, DETECTION))
    for one in record.get("fp_hists") or []:
        if one["forcediffimflux"] > -99998 and one["forcediffimfluxunc"] > 0:
            scale = njy(one["magzpsci"])
            flux, error = one["forcediffimflux"] * scale, one["forcediffimfluxunc"] * scale
            found.append((middle_of(one["jd"]), BAND[one["fid"]], flux, error, FORCED))
    return found


def once(points: list[Point]) -> list[Point]:
    """Each (time, band, kind) once: the smallest error, then the largest flux."""
    best: dict[Any, Point] = {}
    for point in sorted(points, key=lambda p: (-p[3], p[2])):
        best[round(point[0] * 86400), point[1], point[4]] = point
    return list(best.values())


def test_photometry_of_every_real_ztf_packet() -> None:
    kinds: collections.Counter[int] = collections.Counter()
    lengths = []
    for record, seen in real_ztf():
        expected = once(ztf_points(record))
        got = points_of(seen.photometry)
        assert_same_points(got, expected)
        assert max(p[0] for p in got) <= seen.mjd + 1e-5
        kinds.update(p[4] for p in got)
        lengths.append(len(got))
    assert kinds[DETECTION] > 1500
    assert kinds[UPPER_LIMIT] > 3000
    assert kinds[FORCED] > 200
    assert 10 < np.median(lengths) < 30


def test_the_packets_own_detection_is_a_point_at_its_epoch() -> None:
    for _, seen in real_ztf():
        own = [p for p in points_of(seen.photometry) if abs(p[0] - seen.mjd) < 2e-5 and p[4] == DETECTION]
        assert [(p[1], pytest.approx(p[2], rel=1e-5)) for p in own] == [(seen.band, seen.flux)]


def test_photometry_of_every_real_rubin_packet() -> None:
    kinds: collections.Counter[int] = collections.Counter()
    for record, seen in real_rubin():
        expected: list[Point] = []
        groups = ([record["diaSource"], *(record["prvDiaSources"] or [])], record["prvDiaForcedSources"] or [])
        for kind, sources in zip((DETECTION, FORCED), groups, strict=True):
            for s in sources:
                if s["psfFlux"] is not None and math.isfinite(s["psfFlux"]) and s["psfFluxErr"] > 0:
                    expected.append((s["midpointMjdTai"], s["band"], s["psfFlux"], s["psfFluxErr"], kind))
        expected = [p for p in expected if p[0] <= seen.mjd + 1e-9]
        assert_same_points(points_of(seen.photometry), once(expected))
        kinds.update(p[4] for p in expected)
    assert kinds[DETECTION] > 200
    assert kinds[FORCED] >= 20


def test_the_real_sequence_has_one_light_curve_in_any_order() -> None:
    files = sorted(real_data("ztf", "sequence_tde_ZTF20abfcszi").glob("*.avro"))
    packets = [read_packet(path.read_bytes(), "ztf")[0] for path in files]
    straight = History.by_object(packets)["ZTF20abfcszi"]
    assert straight.photometry is not None
    total = sum(len(seen.photometry) for seen in packets if seen.photometry)
    assert 40 < len(straight.photometry) < total / 4
    detections = np.array([p[0] for p in points_of(straight.photometry) if p[4] == DETECTION])
    assert all(np.abs(detections - seen.mjd).min() < 1e-5 for seen in packets)
    rng = random.Random(4)
    for _ in range(5):
        mixed = packets * 2
        rng.shuffle(mixed)
        again = History.by_object(mixed)["ZTF20abfcszi"]
        assert points_of(again.photometry) == points_of(straight.photometry)
        assert again.context == straight.context


# --- context


def test_context_of_every_real_ztf_packet() -> None:
    distances = []
    counted: collections.Counter[str] = collections.Counter()
    for record, seen in real_ztf():
        c, got = record["candidate"], seen.context
        expected: dict[str, float] = {
            "reference_magnitude": c["magnr"], "reference_shape": c["sharpnr"], "detections": c["ndethist"],
            "visits": c["ncovhist"], "age_days": c["jd"] - c["jdstarthist"],
            "magnitude_over_reference": c["magpsf"] - c["magnr"],
            "reference_distance": c["distnr"] * 1.0125,
            "galactic_latitude": abs(SkyCoord(c["ra"], c["dec"], unit="deg").galactic.b.deg),
        }  # fmt: skip
        for k in (1, 2, 3):
            g, r, i = (c[f"s{band}mag{k}"] for band in "gri")
            expected[f"catalogue_{k}_distance"], expected[f"catalogue_{k}_star"] = c[f"distpsnr{k}"], c[f"sgscore{k}"]
            expected |= {f"catalogue_{k}_magnitude": r, f"catalogue_{k}_gr": g - r, f"catalogue_{k}_ri": r - i}
        missing = {name for name, value in expected.items() if value is None or value < -99}
        for name, value in expected.items():
            if name in got:
                assert got[name] == pytest.approx(value, rel=1e-6, abs=2e-4), name
            elif not (name in missing or is_colour_of_nothing(c, name)):
                raise AssertionError(f"{name} is {value} and was not given")
        assert all(math.isfinite(value) and abs(value) != 999 for value in got.values())
        assert not {"ra", "dec"} & set(got)
        counted.update(list(got))
        if "reference_distance" in got and got["reference_distance"] > 1:
            nearest = SkyCoord(c["ranr"], c["decnr"], unit="deg")
            arcsec = nearest.separation(SkyCoord(c["ra"], c["dec"], unit="deg")).arcsec
            distances.append(got["reference_distance"] / arcsec)
    assert counted["catalogue_1_star"] > 200
    assert np.median(distances) == pytest.approx(1, abs=0.01)  # in arcsec, not in pixels


def is_colour_of_nothing(candidate: Record, name: str) -> bool:
    """-999 minus -999 is 0, and no colour."""
    if not name.endswith(("_gr", "_ri")):
        return False
    k = name[len("catalogue_")]
    return any(candidate[f"s{band}mag{k}"] < 0 for band in name[-2:])


def test_context_of_every_real_rubin_packet() -> None:
    seen_names: collections.Counter[str] = collections.Counter()
    for record, seen in real_rubin():
        s, o, got = record["diaSource"], record["diaObject"], seen.context
        earlier = record["prvDiaSources"] or []
        assert got["detections"] == len(earlier) + 1 == (o.get("nDiaSources") or len(earlier) + 1)
        first = min([s["midpointMjdTai"], *(p["midpointMjdTai"] for p in earlier)])
        assert got["age_days"] == pytest.approx(
            s["midpointMjdTai"] - min(first, o.get("firstDiaSourceMjdTai") or first)
        )
        latitude = SkyCoord(s["ra"], s["dec"], unit="deg").galactic.b.deg
        assert got["galactic_latitude"] == pytest.approx(abs(latitude), abs=2e-4)
        shape = s["extendedness"]
        assert got.get("detection_extendedness") == (None if shape is None or math.isnan(shape) else shape)
        assert "reference_shape" not in got  # which would be of the source in the reference image
        flux, error = s.get("templateFlux"), s.get("templateFluxErr")
        if flux is not None and flux > 3 * error:
            reference = (flux * units.nJy).to_value(units.ABmag)
            assert got["reference_magnitude"] == pytest.approx(reference, abs=1e-3)
            over = (abs(s["psfFlux"]) * units.nJy).to_value(units.ABmag) - reference
            assert got["magnitude_over_reference"] == pytest.approx(over, abs=1e-3)
        else:
            assert not {"reference_magnitude", "magnitude_over_reference", "visits"} & set(got)
        seen_names.update(list(got))
    assert seen_names["reference_magnitude"] >= 4


# --- images


def pixels_of(cutout: Record) -> np.ndarray:
    return np.asarray(fits.getdata(io.BytesIO(gzip.decompress(cutout["stampData"]))), float)


@pytest.mark.filterwarnings("ignore:.*SIMPLE card")
def test_three_images_of_every_real_ztf_packet() -> None:
    """The middle part of each stamp, worked out from astropy's pixels: median of the border, rows turned."""
    filled: collections.Counter[str] = collections.Counter()
    for record, seen in real_ztf():
        assert set(seen.images) == {"difference", "template"}
        fainter = record["candidate"]["isdiffpos"] not in ("t", "1")
        zero = record["candidate"]["magzpsci"]
        for kind, stamp in (("science", seen.stamp), *seen.images.items()):
            pixels = pixels_of(record[f"cutout{kind.capitalize()}"])
            assert stamp.dtype == np.float16
            assert np.isfinite(stamp).all()
            bad = ~np.isfinite(pixels) | (pixels < -3.4e38)
            if pixels.shape != (63, 63) or not zero or zero < 0:
                continue
            frame = np.ones((63, 63), bool)
            frame[2:-2, 2:-2] = False
            border = np.sort(pixels[frame & ~bad])
            expected = (np.where(bad, border[border.size // 2], pixels) - border[border.size // 2]) * njy(zero) / 100
            expected = expected[::-1][15:47, 15:47] * (-1 if kind == "difference" and fainter else 1)
            near = 2e-3 if kind == "science" else 2e-2  # further stamps keep six significant bits
            np.testing.assert_allclose(stamp, np.clip(expected, -65504, 65504), rtol=near, atol=0.05)
            inside = bad[::-1][15:47, 15:47].any()
            bit = {"science": Flag.FILLED, "difference": Flag.DIFFERENCE_FILLED, "template": Flag.TEMPLATE_FILLED}[kind]
            assert bool(seen.flags & bit) == inside
            filled[kind] += inside
    assert filled["template"] > 0
    assert filled["science"] > 0


def test_real_differences_are_science_minus_template() -> None:
    """A source fainter than its reference has negative pixels, and the difference agrees with the two others."""
    signs: collections.Counter[bool] = collections.Counter()
    agree = []
    for _, seen in real_ztf():
        core = (slice(15, 18), slice(15, 18))
        difference = float(seen.images["difference"][core].astype(float).sum())
        others = float((seen.stamp[core].astype(float) - seen.images["template"][core].astype(float)).sum())
        signs[seen.flux < 0, difference < 0] += 1  # type: ignore[index]
        if abs(difference) > 500:
            agree.append(difference * others > 0)
    assert signs[True, True] > 40  # type: ignore[index]
    assert (signs[True, False] + signs[False, True]) <= 5  # type: ignore[index]
    assert np.mean(agree) > 0.8


def test_three_images_of_every_real_rubin_packet() -> None:
    sums = []
    for _, seen in real_rubin():
        assert set(seen.images) == {"difference", "template"}
        residual = seen.stamp.astype(float) - seen.images["template"].astype(float) - seen.images["difference"]
        sums.append((np.std(residual[8:24, 8:24]), np.std(seen.stamp[8:24, 8:24].astype(float))))
        if seen.flux > 3000:
            assert seen.images["difference"][15:18, 15:18].astype(float).sum() > 0
    # the difference is convolved with another kernel, so that noise stays, but what is there goes away
    assert np.median([residual / science for residual, science in sums]) < 0.8


def test_a_kind_that_the_packet_lacks_is_absent_and_science_is_not() -> None:
    types = {"cutoutTemplate": ["null", "cutout"]}
    (seen,) = read_packet(ztf_packet(top={"cutoutTemplate": None}, types=types), "ztf")
    assert list(seen.images) == ["difference"]
    (seen,) = read_packet(ztf_packet(), "ztf", images=("science", "template"))
    assert list(seen.images) == ["template"]
    (seen,) = read_packet(ztf_packet(), "ztf", images=("science",))
    assert list(seen.images) == []
    with pytest.raises(SkipPacket, match="no_stamp"):
        read_packet(ztf_packet(top={"cutoutScience": None}), "ztf")
    (seen,) = read_packet(ztf_packet(), "ztf", stamp="difference")
    assert list(seen.images) == []


def test_images_of_other_shapes_and_without_pixels() -> None:
    """A difference that ends at the chip's edge, where the others do not; a template of NaN alone is absent."""
    nothing = np.full((63, 63), np.nan, np.float32)
    file = io.BytesIO()
    fits.PrimaryHDU(nothing).writeto(file)
    cutout = lambda data: {"fileName": "f", "stampData": data}  # noqa: E731
    packet = ztf_packet(
        top={"cutoutDifference": cutout(ztf_stamp(63, 50, (31, 18))), "cutoutTemplate": cutout(file.getvalue())}
    )
    (seen,) = read_packet(packet, "ztf")
    assert list(seen.images) == ["difference"]
    assert seen.images["difference"].argmax() == seen.stamp.argmax() == 16 * 32 + 16
    brighter, fainter = (
        read_packet(ztf_packet(isdiffpos=sign), "ztf")[0].images["difference"][16, 16] for sign in ("t", "f")
    )
    assert brighter == -fainter > 0


def test_unknown_images_and_filters_are_refused() -> None:
    for options in ({"images": ("psf",)}, {"images": ("template",)}, {"skip": ("stars",)}):
        with pytest.raises(ConfigError, match="ingest"):
            read_packet(ztf_packet(), "ztf", **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"sdss packets have no 'template' stamp"):
        load_survey("sdss", wanted=Wanted(images=("science", "template")))


# --- filters


def with_fields(**values: Any) -> bytes:
    """A packet with further fields of the candidate."""
    types = {name: ["null", "float"] for name in ("rb", "drb", "ssdistnr", "ssmagnr")} | {"programid": ["null", "int"]}
    return ztf_packet(types=types, **dict.fromkeys(types, None) | values)


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        ({}, None),
        ({"programid": 1}, None),
        ({"programid": 2}, Reason.NOT_PUBLIC),
        ({"programid": 3}, Reason.NOT_PUBLIC),
        ({"drb": 0.05}, Reason.ARTEFACT),
        ({"drb": 0.11}, None),
        ({"drb": 0.0, "rb": 0.6}, None),  # 0 stands for none where brokers write packets again
        ({"drb": None, "rb": 0.05}, Reason.ARTEFACT),
        ({"ssdistnr": 4.9, "ssmagnr": 19.0}, Reason.SOLAR_SYSTEM),
        ({"ssdistnr": 0.0, "ssmagnr": 19.0}, Reason.SOLAR_SYSTEM),
        ({"ssdistnr": 0.0, "ssmagnr": 0.0}, None),
        ({"ssdistnr": 5.1, "ssmagnr": 19.0}, None),
        ({"ssdistnr": -999.0, "ssmagnr": -999.0}, None),
    ],
)
def test_ztf_filters(candidate: dict[str, Any], reason: Reason | None) -> None:
    check_filtered(with_fields(**candidate), "ztf", reason)


def test_filters_can_be_set() -> None:
    packet = with_fields(drb=0.3)
    assert read_packet(packet, "ztf")
    with pytest.raises(SkipPacket, match="artefact"):
        read_packet(packet, "ztf", least_score=0.5)
    assert read_packet(packet, "ztf", least_score=0.5, skip=("solar_system",))


def test_what_the_filters_leave_out_of_the_real_ztf_packets() -> None:
    """Nothing of a known class; one packet is not public."""
    reasons: collections.Counter[str] = collections.Counter()
    for path in ztf_files():
        errors: list[Exception] = []
        read_packet(path.read_bytes(), "ztf", errors=errors)
        reasons.update(error.reason.value for error in errors if isinstance(error, SkipPacket))
    assert reasons["not_public"] == 1
    assert reasons["artefact"] <= 3


def test_the_filters_leave_out_no_real_rubin_packet_but_those_of_the_solar_system() -> None:
    scores = []
    for record, _ in real_rubin():
        if record["diaSource"]["reliability"] is not None:
            scores.append(record["diaSource"]["reliability"])
    assert min(scores) > 0.1
    kept = [path for path in rubin_files() if kept_by_default(path.read_bytes())]
    assert len(kept) == len(list(real_rubin()))


def kept_by_default(data: bytes) -> bool:
    try:
        return bool(read_packet(data, "lsst"))
    except SkipPacket as skipped:
        return skipped.reason is not Reason.SOLAR_SYSTEM
