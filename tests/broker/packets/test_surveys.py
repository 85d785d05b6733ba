import gzip
import io
import json
import math
import random
from collections import Counter
from importlib.resources import files

import fastavro
import numpy as np
import pytest
from astropy.io import fits
from astropy.time import Time
from astropy.wcs import WCS
from packet_tools import confluent_payload
from real_data import rubin_files, ztf_files

from skyheed.broker.errors import ConfigError, PacketError, Reason, SkipPacket
from skyheed.broker.observation import BANDS, Flag
from skyheed.broker.packets.container import Decoder, split_container
from skyheed.broker.packets.fits import read_image
from skyheed.broker.packets.reader import read_packet
from skyheed.broker.packets.surveys import base, load_survey, ztf
from skyheed.broker.packets.surveys.sdss import SCHEMA_FILE, alert_from_archive
from skyheed.broker.registry.schemas import SchemaSource

CANDIDATE = {
    "candid": "long", "jd": "double", "exptime": ["float", "null"], "fid": "int", "ra": "double", "dec": "double",
    "magpsf": "float", "sigmapsf": "float", "isdiffpos": "string", "magzpsci": ["null", "float"],
    "xpos": ["float", "null"], "ypos": ["null", "float"], "rb": ["null", "float"],
}  # fmt: skip
CUTOUTS = ("cutoutScience", "cutoutTemplate", "cutoutDifference")
ZTF_VALUES = {
    "candid": 1127561442515015001, "jd": 2458882.0614468, "exptime": 30.0, "fid": 2, "ra": 204.3369, "dec": 61.986,
    "magpsf": 20.0, "sigmapsf": 0.1, "isdiffpos": "t", "magzpsci": 26.25, "xpos": 1000.0, "ypos": 2000.0, "rb": 0.9,
}  # fmt: skip


def avro(schema, value):
    out = io.BytesIO()
    fastavro.writer(out, fastavro.parse_schema(schema, named_schemas={}), [value])
    return out.getvalue()


def record_type(name, fields):
    return {"type": "record", "name": name, "fields": [{"name": n, "type": t} for n, t in fields.items()]}


def fits_file(pixels, **cards):
    unit = fits.PrimaryHDU(np.asarray(pixels, np.float32))
    unit.header.update(cards)
    out = io.BytesIO()
    unit.writeto(out)
    return out.getvalue()


def ztf_stamp(ny=63, nx=63, source=None, peak=100.0):
    pixels = np.full((ny, nx), 150.0)
    y, x = source or (ny // 2, nx // 2)
    pixels[y, x] += peak
    return gzip.compress(fits_file(pixels, BUNIT="DN"), 1)


def ztf_packet(top=(), drop=(), types=(), **candidate):
    """A packet in ZTF's form; fields can be changed, dropped or given another Avro type."""
    values = {**ZTF_VALUES, **candidate}
    further = {n: t for n, t in dict(types).items() if n in candidate}
    inner = {n: dict(types).get(n, t) for n, t in (CANDIDATE | further).items() if n not in drop}
    cutout = record_type("cutout", {"fileName": "string", "stampData": "bytes"})
    fields = {
        "schemavsn": "string", "publisher": "string", "objectId": ["string", "null"], "candid": "long",
        "candidate": record_type("candidate", inner),
        "cutoutScience": ["null", cutout], "cutoutTemplate": ["cutout", "null"], "cutoutDifference": ["null", "cutout"],
    }  # fmt: skip
    record = {
        "schemavsn": "4.02", "publisher": "test", "objectId": "ZTF20abfcszi", "candid": values["candid"],
        "candidate": {n: v for n, v in values.items() if n not in drop},
        **{name: {"fileName": "f.gz", "stampData": ztf_stamp()} for name in CUTOUTS}, **dict(top),
    }  # fmt: skip
    kept = {n: t for n, t in fields.items() if n not in drop or n == "candidate"}
    kept |= {n: t for n, t in dict(types).items() if n in fields}
    if "top candid" in drop:
        kept.pop("candid", None)
    return avro(record_type("topLevelRecord", kept), record)


def observe(name, packet, stamp=None, bands=None, schemas=None):
    survey = load_survey(name, stamp, bands)
    (record,) = Decoder(survey.reader_schema, schemas=schemas).decode(packet)
    return survey.observation(record)


def reason_of(name, packet, **options):
    with pytest.raises(PacketError) as caught:
        observe(name, packet, **options)
    skipped = isinstance(caught.value, SkipPacket)
    return ("skipped", caught.value.reason) if skipped else caught.value.reason


def check_filtered(packet: bytes, name: str, reason: Reason | None) -> None:
    """A packet is skipped for this reason by default, or for none, and never where nothing is to be skipped."""
    if reason is None:
        assert len(read_packet(packet, name)) == 1
    else:
        with pytest.raises(SkipPacket) as skipped:
            read_packet(packet, name)
        assert skipped.value.reason is reason
    assert len(read_packet(packet, name, skip=())) == 1


# --- the choice of survey, stamp and bands


def test_known_surveys():
    for name in ("ztf", "lsst", "sdss"):
        survey = load_survey(name)
        assert survey.name == name
        assert set(survey.bands) <= set(BANDS)
        assert survey.stamp == survey.default_stamp == "science"
        assert survey.default_stamp in survey.stamp_kinds


def test_unknown_survey():
    with pytest.raises(ConfigError, match=r"unknown survey 'ps1'; known are .*lsst, sdss, ztf"):
        load_survey("ps1")


@pytest.mark.parametrize(("stamp", "bands"), [("psf", None), (None, "gx"), (None, "y")])
def test_unknown_stamp_or_band(stamp, bands):
    with pytest.raises(ConfigError, match="choose from"):
        load_survey("ztf", stamp, bands)


def test_reader_schema_names_only_the_chosen_stamp():
    for kind in ("science", "template", "difference"):
        names = [field["name"] for field in load_survey("ztf", kind).reader_schema["fields"]]
        assert [name for name in names if name.startswith("cutout")] == [f"cutout{kind.capitalize()}"]
        fastavro.parse_schema(load_survey("lsst", kind).reader_schema, named_schemas={})


def test_every_field_of_our_schemas_is_documented():
    def check(definition):
        for field in definition["fields"]:
            assert field.get("doc"), field["name"]
            check_types(field["type"])

    def check_types(branches):
        for branch in branches if isinstance(branches, list) else []:
            if isinstance(branch, dict) and branch["type"] == "array":
                check_types(branch["items"])
            elif isinstance(branch, dict) and branch["type"] == "record":
                check(branch)

    for path in ("ztf/reader.avsc", "lsst/reader.avsc", "sdss_alert/v1/reader.avsc", SCHEMA_FILE):
        check(json.loads(files("skyheed.schemas").joinpath(path).read_text()))


# --- ZTF


def test_ztf_golden():
    """Values that can be worked out by hand: 20 mag is 36310 nJy, a count of zero point 26.25 is 114.821 nJy."""
    seen = observe("ztf", ztf_packet())
    assert (seen.object_id, seen.source_id, seen.band) == ("ZTF20abfcszi", 1127561442515015001, "r")
    assert (seen.ra, seen.dec) == (204.3369, 61.986)
    assert seen.flux == pytest.approx(36310.0, rel=1e-4)
    assert seen.flux_error == pytest.approx(36310.0 * 0.0921034, rel=1e-4)
    assert seen.flags == 0
    expected = np.zeros((32, 32))
    expected[16, 16] = 100 * 114.821 / 100
    np.testing.assert_allclose(seen.stamp, expected, rtol=1e-3)


def test_ztf_time_is_mid_exposure_tai():
    start = Time(ZTF_VALUES["jd"], format="jd", scale="utc")
    expected = start.tai.mjd + 15 / 86400
    assert observe("ztf", ztf_packet()).mjd == pytest.approx(expected, abs=1e-8)
    assert observe("ztf", ztf_packet(drop=["exptime"])).mjd == pytest.approx(expected, abs=1e-8)
    assert observe("ztf", ztf_packet(exptime=300.0)).mjd == pytest.approx(expected + 135 / 86400, abs=1e-8)


@pytest.mark.parametrize(
    ("value", "kind", "sign"),
    [
        ("t", "string", 1),
        ("T", "string", 1),
        ("1", "string", 1),
        ("true", "string", 1),
        ("True", "string", 1),
        (" t ", "string", 1),
        (b"t", "bytes", 1),
        ("t", {"type": "enum", "name": "sign", "symbols": ["f", "t"]}, 1),
        (1, "int", 1),
        (1.0, "float", 1),
        (True, "boolean", 1),
        ("f", "string", -1),
        ("F", "string", -1),
        ("0", "string", -1),
        ("-1", "string", -1),
        ("False", "string", -1),
        (0, "int", -1),
        (-1, "long", -1),
        (-1.0, "double", -1),
        (False, "boolean", -1),
    ],
)
def test_ztf_isdiffpos(value, kind, sign):
    packet = ztf_packet(isdiffpos=value, types={"isdiffpos": ["null", kind]})
    seen = observe("ztf", packet)
    assert math.copysign(1, seen.flux) == sign
    assert bool(seen.flags & Flag.NEGATIVE) == (sign < 0)
    difference = observe("ztf", packet, "difference")  # the packet's difference stamp is always bright
    assert math.copysign(1, difference.stamp[16, 16]) == sign


def test_an_unknown_sign_says_what_to_write():
    with pytest.raises(PacketError, match=r"isdiffpos is 'yes'.* t, true or 1 .*f, false, 0 or -1") as caught:
        observe("ztf", ztf_packet(isdiffpos="yes"))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["ztf", "lsst", "sdss"])
@pytest.mark.parametrize("form", ["bytes", "null or bytes", "bytes or null", "with a name"])
def test_brokers_may_write_numbers_as_text_and_stamps_as_bytes_or_with_a_name(name, form):
    """The same alert in every shape that its fields may have reads the same."""
    packet, ids = SHAPES[name]
    record = next(fastavro.reader(io.BytesIO(packet)))
    schema = json.loads(json.dumps(fastavro.reader(io.BytesIO(packet)).writer_schema))
    for path in ids:
        with_text(schema, record, path)
    record["cutoutScience"], kind = shaped(record["cutoutScience"], form)
    schema["fields"] = [f for f in schema["fields"] if f["name"] not in CUTOUTS]
    schema["fields"].append({"name": "cutoutScience", "type": kind})
    expected, got = observe(name, packet), observe(name, avro(schema, record))
    assert (got.object_id, got.source_id) == (expected.object_id, expected.source_id)
    np.testing.assert_array_equal(got.stamp, expected.stamp)


def shaped(cutout, form):
    data = cutout["stampData"] if isinstance(cutout, dict) else cutout
    named = record_type("named", {"fileName": "string", "stampData": "bytes"})
    return {
        "bytes": (data, "bytes"), "null or bytes": (data, ["null", "bytes"]),
        "bytes or null": (data, ["bytes", "null"]),
        "with a name": ({"fileName": "a.fits", "stampData": data}, ["null", named]),
    }[form]  # fmt: skip


def with_text(schema, record, path):
    """Make the number at `path` text."""
    *outer, name = path.split(".")
    for step in outer:
        record, schema = record[step], record_of(schema, step)
    record[name] = str(record[name])
    field_of(schema, name)["type"] = ["null", "string"]


def field_of(schema, name):
    return next(field for field in schema["fields"] if field["name"] == name)


def record_of(schema, name):
    kinds = field_of(schema, name)["type"]
    return next(k for k in (kinds if isinstance(kinds, list) else [kinds]) if isinstance(k, dict))


@pytest.mark.parametrize(("fid", "band"), [(1, "g"), (2, "r"), (3, "i")])
def test_ztf_bands(fid, band):
    assert observe("ztf", ztf_packet(fid=fid)).band == band


@pytest.mark.parametrize("zero_point", [None, math.nan, -999.0, 0.0])
def test_ztf_without_a_zero_point(zero_point):
    seen = observe("ztf", ztf_packet(magzpsci=zero_point))
    assert seen.flags == Flag.NOMINAL_ZERO_POINT
    assert float(seen.stamp[16, 16]) == pytest.approx(3631e9 * 10 ** (-0.4 * 26.275), rel=1e-3)


def test_ztf_packets_of_brokers():
    """No schemavsn, no top-level candid, other union orders, an unknown record name."""
    seen = observe("ztf", ztf_packet(drop=["schemavsn", "publisher", "top candid", "exptime", "rb"]))
    assert seen.source_id == ZTF_VALUES["candid"]


@pytest.mark.parametrize(
    ("shape", "place", "source"),
    [
        ((58, 63), (1000.0, 26.8), (26, 31)),  # the case of a real packet
        ((58, 63), (1000.0, 3054.2), (31, 31)),
        ((63, 40), (8.9, 1500.0), (31, 8)),
        ((63, 40), (3064.4, 1500.0), (31, 31)),
        ((45, 50), (19.0, 3068.0), (31, 18)),
    ],
)
def test_ztf_stamps_at_the_edge_of_a_chip(shape, place, source):
    stamp = {"fileName": "f", "stampData": ztf_stamp(*shape, source)}
    seen = observe("ztf", ztf_packet({"cutoutScience": stamp}, xpos=place[0], ypos=place[1]))
    assert np.argwhere(np.asarray(seen.stamp) > 50).tolist() == [[16, 16]]
    assert bool(seen.flags & Flag.PADDED) == (
        min(source) < 15 or shape[0] - source[0] < 16 or shape[1] - source[1] < 16
    )


@pytest.mark.parametrize("place", [None, math.nan, -5.0, 1e9])
def test_ztf_cut_stamps_of_unknown_place_are_taken_about_a_possible_one(place):
    stamp = {"fileName": "f", "stampData": ztf_stamp(40, 20)}
    seen = observe("ztf", ztf_packet({"cutoutScience": stamp}, xpos=place, ypos=place))
    assert seen.flags & Flag.PADDED


def test_ztf_magnitude_of_nan_is_a_flux_of_nan():
    seen = observe("ztf", ztf_packet(magpsf=math.nan, sigmapsf=math.nan))
    assert math.isnan(seen.flux)
    assert math.isnan(seen.flux_error)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"top": {"objectId": None}}, Reason.NO_OBJECT_ID),
        ({"top": {"objectId": " "}}, Reason.NO_OBJECT_ID),
        ({"top": {"objectId": "x" * 300}}, Reason.NO_OBJECT_ID),
        ({"top": {"objectId": "A\x1b]0;owned\x07\n2026 ERROR forged"}}, Reason.BAD_OBJECT_ID),
        ({"top": {"objectId": "abc\u202excod.exe"}}, Reason.BAD_OBJECT_ID),
        ({"drop": ["objectId"]}, Reason.NO_OBJECT_ID),
        ({"drop": ["candid", "top candid"]}, Reason.NO_SOURCE_ID),
        ({"candid": -1}, Reason.NO_SOURCE_ID),
        ({"drop": ["jd"]}, Reason.NO_TIME),
        ({"jd": math.nan}, Reason.NO_TIME),
        ({"jd": 0.0}, Reason.NO_TIME),
        ({"jd": 1e300}, Reason.NO_TIME),
        ({"ra": math.nan}, Reason.BAD_POSITION),
        ({"dec": math.inf}, Reason.BAD_POSITION),
        ({"dec": -90.1}, Reason.BAD_POSITION),
        ({"ra": 360.1}, Reason.BAD_POSITION),
        ({"drop": ["ra"]}, Reason.BAD_POSITION),
        ({"fid": 4}, Reason.UNKNOWN_BAND),
        ({"fid": 0}, Reason.UNKNOWN_BAND),
        ({"drop": ["fid"]}, Reason.UNKNOWN_BAND),
        ({"magpsf": math.inf}, Reason.BAD_FLUX),
        ({"magpsf": -1000.0}, Reason.BAD_FLUX),
        ({"sigmapsf": 3e38}, Reason.BAD_FLUX),
        ({"sigmapsf": math.inf}, Reason.BAD_FLUX),
        ({"isdiffpos": "yes"}, Reason.BAD_FLUX),
        ({"isdiffpos": 2, "types": {"isdiffpos": "int"}}, Reason.BAD_FLUX),
        ({"isdiffpos": math.nan, "types": {"isdiffpos": "double"}}, Reason.BAD_FLUX),
        ({"isdiffpos": "\x1b[31m", "types": {"isdiffpos": "string"}}, Reason.BAD_FLUX),
        ({"isdiffpos": None, "types": {"isdiffpos": ["null", "string"]}}, Reason.BAD_FLUX),
        ({"types": {"candid": "string"}, "candid": "12x"}, Reason.NO_SOURCE_ID),
        ({"types": {"candid": "string"}, "candid": "9" * 30}, Reason.NO_SOURCE_ID),
        ({"drop": ["isdiffpos"]}, Reason.BAD_FLUX),
        ({"types": {"objectId": "double"}, "top": {"objectId": 5.5}}, Reason.WRONG_TYPE),
        ({"types": {"jd": "string"}, "jd": "yesterday"}, Reason.WRONG_TYPE),
        ({"types": {"fid": "string"}, "fid": "r"}, Reason.WRONG_TYPE),
        ({"top": {"cutoutScience": {"fileName": "", "stampData": b"GIF89a"}}}, Reason.BAD_FITS),
        ({"top": {"cutoutScience": {"fileName": "", "stampData": ztf_stamp()[:-20]}}}, Reason.BAD_GZIP),
        ({"top": {"cutoutScience": {"fileName": "", "stampData": gzip.compress(bytes(9_000_000))}}}, Reason.BOMB),
        ({"top": {"cutoutScience": {"fileName": "", "stampData": ztf_stamp(2, 1025)}}}, Reason.STAMP_TOO_LARGE),
        ({"top": {"cutoutScience": {"fileName": "", "stampData": ztf_stamp(1, 1, peak=math.nan)}}}, Reason.EMPTY_STAMP),
        ({"top": {"cutoutScience": None}}, ("skipped", Reason.NO_STAMP)),
        ({"top": {"cutoutScience": {"fileName": "", "stampData": b""}}}, ("skipped", Reason.NO_STAMP)),
        ({"drop": ["cutoutScience"], "types": {"cutoutTemplate": "null", "cutoutDifference": "null"},
          "top": {"cutoutTemplate": None, "cutoutDifference": None}}, ("skipped", Reason.NO_STAMP)),
    ],
)  # fmt: skip
def test_ztf_packets_that_cannot_be_used(changes, reason):
    assert reason_of("ztf", ztf_packet(**changes)) == reason


def test_a_band_that_is_not_in_use_is_skipped():
    assert reason_of("ztf", ztf_packet(fid=3), bands="gr") == ("skipped", Reason.BAND_UNUSED)
    assert observe("ztf", ztf_packet(fid=1), bands="gr").band == "g"


def test_records_of_something_else_altogether():
    other = avro(record_type("other", {"x": "int"}), {"x": 1})
    for name in ("ztf", "sdss"):
        assert reason_of(name, other) is Reason.NO_OBJECT_ID
    assert reason_of("lsst", other) is Reason.NO_SOURCE_ID


# --- LSST

ROTATION = math.radians(50)
SCALE = 0.2 / 3600
LSST_WCS = {
    "CRPIX1": 15.3, "CRPIX2": 15.1, "CRVAL1": 57.7, "CRVAL2": -48.2, "CDELT1": 1.0, "CDELT2": 1.0,
    "PC1_1": -SCALE * math.cos(ROTATION), "PC1_2": SCALE * math.sin(ROTATION),
    "PC2_1": SCALE * math.sin(ROTATION), "PC2_2": SCALE * math.cos(ROTATION),
}  # fmt: skip


def lsst_stamp(side=30, unit="nJy", cards=LSST_WCS, sources=((57.7, -48.2, 5000.0),)):
    """Gaussian sources drawn at their places by astropy's WCS."""
    pixels = np.zeros((side, side))
    y, x = np.indices(pixels.shape)
    wcs = WCS(fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", **LSST_WCS, **cards}))
    for ra, dec, peak in sources:
        px, py = wcs.all_world2pix(ra, dec, 0)
        pixels += peak * np.exp(-((x - px) ** 2 + (y - py) ** 2) / 4)
    return fits_file(pixels, BUNIT=unit, **cards)


def lsst_packet(top=(), drop=(), **source):
    values = {
        "diaSourceId": 169813006111211555, "diaObjectId": 169813006111211000, "ssObjectId": 0,
        "midpointMjdTai": 61041.22124337929, "ra": 57.7, "dec": -48.2, "band": "i", "psfFlux": 1448.5,
        "psfFluxErr": 120.0, **source,
    }  # fmt: skip
    numbers = {
        "diaSourceId": ["null", "long"],
        "diaObjectId": ["null", "long"],
        "ssObjectId": ["null", "long"],
        "band": ["null", "string"],
        "glint_trail": ["null", "boolean"],
    }
    kinds = {n: numbers.get(n, ["null", "double"]) for n in values if n not in drop}
    fields = {
        "diaSource": record_type("diaSource", kinds),
        "diaObject": ["null", record_type("diaObject", {"diaObjectId": "long", "ra": "double"})],
        "ssSource": ["null", record_type("ssSource", {"ssObjectId": ["null", "long"]})],
        **{name: ["null", "bytes"] for name in CUTOUTS},
    }
    record = {
        "diaSource": {n: v for n, v in values.items() if n not in drop},
        "diaObject": {"diaObjectId": values["diaObjectId"] or 1, "ra": 1.0}, "ssSource": None,
        **{name: lsst_stamp() for name in CUTOUTS}, **dict(top),
    }  # fmt: skip
    return avro(record_type("alert", {n: t for n, t in fields.items() if n not in drop}), record)


SHAPES = {  # an alert, and where its numbers are
    "ztf": (ztf_packet(), ["candid", "candidate.candid"]),
    "lsst": (lsst_packet(), [
        "diaSource.diaSourceId", "diaSource.diaObjectId", "diaSource.ssObjectId", "diaObject.diaObjectId",
    ]),
    "sdss": (
        alert_from_archive(
            object_id="170", source_id=17, mjd=54000.0, band="r", ra=10.0, dec=0.5,
            stamp=np.random.default_rng(1).normal(0, 100, (64, 64)),
        ),
        ["sourceId"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, None), ({"reliability": 0.06}, None), ({"reliability": 0.04}, Reason.ARTEFACT),
        ({"reliability": None}, None), ({"glint_trail": True}, Reason.ARTEFACT),
        ({"reliability": 0.9, "glint_trail": True}, Reason.ARTEFACT),
        ({"reliability": 0.9, "glint_trail": False}, None),
        ({"ssObjectId": 7}, Reason.SOLAR_SYSTEM),
    ],
)  # fmt: skip
def test_lsst_filters(fields, reason):
    check_filtered(lsst_packet(**fields), "lsst", reason)


def test_lsst_ids_of_zero_are_none_also_as_text():
    packet = avro_with_text_ids({"diaObjectId": "0", "ssObjectId": "77"})
    assert reason_of("lsst", packet) == ("skipped", Reason.SOLAR_SYSTEM)
    assert reason_of("lsst", avro_with_text_ids({"diaObjectId": "0", "ssObjectId": "0"})) is Reason.NO_OBJECT_ID


def avro_with_text_ids(ids):
    source = {"diaSourceId": "5", "midpointMjdTai": 61041.2, "ra": 57.7, "dec": -48.2, "band": "i", **ids}
    kinds = {name: "double" if isinstance(value, float) else "string" for name, value in source.items()}
    return avro(record_type("alert", {"diaSource": record_type("source", kinds)}), {"diaSource": source})


def test_lsst_values():
    seen = observe("lsst", lsst_packet())
    assert (seen.object_id, seen.source_id) == ("169813006111211000", 169813006111211555)
    assert (seen.mjd, seen.band, seen.ra, seen.dec) == (61041.22124337929, "i", 57.7, -48.2)
    assert (seen.flux, seen.flux_error) == (1448.5, 120.0)
    assert seen.flags == Flag.ROTATED | Flag.PADDED
    assert float(seen.stamp[16, 16]) == pytest.approx(50, rel=0.1)
    assert observe("lsst", lsst_packet(psfFlux=-5.0)).flags & Flag.NEGATIVE


def test_lsst_stamp_is_turned_to_north_up_and_east_left():
    """A neighbour 5 pixels north and one 7 pixels west, drawn at their places on the sky."""
    degree = 1 / math.cos(math.radians(48.2))
    places = [(57.7, -48.2, 8000.0), (57.7, -48.2 + 5 * SCALE, 3000.0), (57.7 - 7 * SCALE * degree, -48.2, 4000.0)]
    seen = observe("lsst", lsst_packet({"cutoutScience": lsst_stamp(sources=places)}))
    stamp = np.asarray(seen.stamp, float)
    assert stamp[21, 16] == pytest.approx(30, rel=0.1)
    assert stamp[16, 23] == pytest.approx(40, rel=0.1)
    assert stamp[11, 16] < 5
    assert stamp[16, 9] < 5


def test_lsst_source_is_in_the_middle_wherever_it_is_in_the_image():
    away = {"CRVAL1": 57.7 + 3 * SCALE, "CRVAL2": -48.2 - 4 * SCALE}
    stamp = lsst_stamp(side=61, cards={**LSST_WCS, **away, "CRPIX1": 31.0, "CRPIX2": 31.0})
    seen = observe("lsst", lsst_packet({"cutoutScience": stamp}))
    assert np.unravel_index(np.argmax(seen.stamp), (32, 32)) == (16, 16)
    assert seen.flags == Flag.ROTATED


def test_lsst_object_number_from_either_place():
    assert observe("lsst", lsst_packet({"diaObject": None})).object_id == "169813006111211000"
    assert observe("lsst", lsst_packet({"diaObject": {"diaObjectId": 5, "ra": 1.0}}, diaObjectId=0)).object_id == "5"


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        ({"top": {"diaObject": None}, "diaObjectId": 0, "ssObjectId": 21163}, ("skipped", Reason.SOLAR_SYSTEM)),
        (
            {"top": {"diaObject": None, "ssSource": {"ssObjectId": None}}, "diaObjectId": None},
            ("skipped", Reason.SOLAR_SYSTEM),
        ),
        ({"top": {"diaObject": None}, "diaObjectId": None}, Reason.NO_OBJECT_ID),
        ({"diaSourceId": None}, Reason.NO_SOURCE_ID),
        ({"midpointMjdTai": None}, Reason.NO_TIME),
        ({"drop": ["midpointMjdTai"]}, Reason.NO_TIME),
        ({"ra": math.nan}, Reason.BAD_POSITION),
        ({"band": None}, Reason.UNKNOWN_BAND),
        ({"band": "w"}, Reason.UNKNOWN_BAND),
        ({"band": "gr"}, Reason.UNKNOWN_BAND),
        ({"psfFlux": math.inf}, Reason.BAD_FLUX),
        ({"psfFluxErr": -math.inf}, Reason.BAD_FLUX),
        ({"top": {"cutoutScience": None}}, ("skipped", Reason.NO_STAMP)),
        ({"drop": ["cutoutScience"]}, ("skipped", Reason.NO_STAMP)),
        ({"top": {"cutoutScience": lsst_stamp(unit="adu")}}, Reason.BAD_FITS),
        ({"top": {"cutoutScience": fits_file(np.zeros((30, 30)), BUNIT="nJy")}}, Reason.BAD_FITS),  # no WCS
        ({"ra": 58.0}, Reason.BAD_FITS),  # not in the stamp
        ({"top": {"cutoutScience": fits_file(np.full((30, 30), np.nan), BUNIT="nJy", **LSST_WCS)}}, Reason.EMPTY_STAMP),
    ],
)
def test_lsst_packets_that_cannot_be_used(packet, reason):
    assert reason_of("lsst", lsst_packet(**packet)) == reason


# --- SDSS


def sample_alert():
    """The packet in schemas/sdss_alert/v1/sample.avro: a Gaussian source with a neighbour, made here."""
    y, x = np.indices((64, 64)) - 32
    stamp = 12_000 * np.exp(-(x**2 + y**2) / 5) + 3000 * np.exp(-((x - 6) ** 2 + (y + 4) ** 2) / 5)
    return alert_from_archive(
        object_id="SDSS-EXAMPLE-1",
        source_id=4_211_000_017,
        mjd=53_630.25,
        band="r",
        ra=10.1234,
        dec=-0.5678,
        stamp=stamp.astype(np.float32),
        flux=190_000.0,
        flux_error=2100.0,
        psf_fwhm=1.3,
        zero_point=28.3,
        sky_noise=110.0,
    )


def test_the_sample_of_the_sdss_schema():
    (fresh,) = fastavro.reader(io.BytesIO(sample_alert()))
    with files("skyheed.schemas").joinpath("sdss_alert/v1/sample.avro").open("rb") as file:
        (sample,) = fastavro.reader(file)
    assert gzip.decompress(fresh.pop("cutoutScience")) == gzip.decompress(sample.pop("cutoutScience"))
    assert fresh == sample


def test_sdss_round_trip():
    seen = observe("sdss", sample_alert())
    assert (seen.object_id, seen.source_id, seen.band) == ("SDSS-EXAMPLE-1", 4_211_000_017, "r")
    assert (seen.mjd, seen.ra, seen.dec) == (53_630.25, 10.1234, -0.5678)
    assert (seen.flux, seen.flux_error) == (190_000.0, 2100.0)
    assert seen.flags == 0
    assert float(seen.stamp[16, 16]) == pytest.approx(120, rel=1e-3)
    assert float(seen.stamp[12, 22]) == pytest.approx(30, rel=1e-2)  # columns and rows as in the archive


def test_sdss_stamp_is_what_astropy_says():
    (record,) = fastavro.reader(io.BytesIO(sample_alert()))
    data = gzip.decompress(record["cutoutScience"])
    image = read_image(record["cutoutScience"])
    with fits.open(io.BytesIO(data)) as file:
        file.verify("exception")
        np.testing.assert_array_equal(image.pixels, file[0].data)
        wcs = WCS(file[0].header)
    assert wcs.all_pix2world(32, 32, 0) == pytest.approx((10.1234, -0.5678), abs=1e-9)
    east, north = wcs.all_pix2world(31, 32, 0), wcs.all_pix2world(32, 33, 0)
    assert (east[0] - 10.1234) * math.cos(math.radians(0.5678)) * 3600 == pytest.approx(0.396, rel=1e-5)
    assert (north[1] + 0.5678) * 3600 == pytest.approx(0.396, rel=1e-5)


def test_sdss_packets_are_the_same_every_time_and_in_any_number_type():
    assert sample_alert() == sample_alert()
    packet = alert_from_archive(
        object_id="a", source_id=np.int64(3), mjd=np.float64(53_000), band=np.str_("g"),
        ra=np.float32(10), dec=np.float64(0), stamp=np.zeros((64, 64), np.float16),
        flux=np.float32(np.nan), sky_noise=np.float32(2),
    )  # fmt: skip
    seen = observe("sdss", packet)
    assert (seen.source_id, seen.band) == (3, "g")
    assert math.isnan(seen.flux)


def test_sdss_stamp_of_a_wrong_shape():
    with pytest.raises(ValueError, match=r"\(32, 32\)"):
        alert_from_archive(object_id="a", source_id=1, mjd=5e4, band="g", ra=1, dec=1, stamp=np.zeros((32, 32)))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"object_id": ""}, Reason.NO_OBJECT_ID),
        ({"source_id": -1}, Reason.NO_SOURCE_ID),
        ({"mjd": math.nan}, Reason.NO_TIME),
        ({"dec": 91.0}, Reason.BAD_POSITION),
        ({"band": "y"}, Reason.UNKNOWN_BAND),
        ({"flux": math.inf}, Reason.BAD_FLUX),
        ({"flux": -3.3e38}, Reason.BAD_FLUX),
        ({"flux_error": 3.3e38}, Reason.BAD_FLUX),
        ({"stamp": np.full((64, 64), np.nan)}, Reason.EMPTY_STAMP),
    ],
)
def test_sdss_packets_that_cannot_be_used(changes, reason):
    values = {
        "object_id": "a",
        "source_id": 1,
        "mjd": 53_000.0,
        "band": "g",
        "ra": 1.0,
        "dec": 1.0,
        "stamp": np.zeros((64, 64)),
    }
    assert reason_of("sdss", alert_from_archive(**{**values, **changes})) is reason


# --- damaged packets, all the way


@pytest.mark.parametrize("name", ["ztf", "lsst", "sdss"])
def test_mutated_packets_end_in_packet_errors_only(name):
    rng = random.Random(name)
    packet = {"ztf": ztf_packet, "lsst": lsst_packet, "sdss": sample_alert}[name]()
    survey = load_survey(name)
    decoder = Decoder(survey.reader_schema)
    outcome = Counter()
    values = packet.index(b"\x00", packet.index(b"fields"))  # behind the schema
    for _ in range(1500):
        data = bytearray(packet)
        for _ in range(rng.randint(1, 4)):
            last = len(packet) if rng.random() < 0.5 else min(values + 3000, len(packet))
            data[rng.randrange(values, last)] = rng.choice([0, 1, 2, 127, 128, 255, rng.randrange(256)])
        try:
            (record,) = decoder.decode(bytes(data))
            assert np.isfinite(survey.observation(record).stamp).all()
            outcome["used"] += 1
        except PacketError as error:
            outcome[error.reason] += 1
    assert len(outcome) >= 4


# --- times for replay


@pytest.mark.parametrize(("name", "packet"), [("ztf", ztf_packet()), ("lsst", lsst_packet()), ("sdss", sample_alert())])
def test_time_is_the_observation_s(name, packet):
    survey = load_survey(name)
    (record,) = Decoder(survey.reader_schema).decode(packet)
    assert survey.time(record) == survey.observation(record).mjd


@pytest.mark.parametrize("name", ["ztf", "lsst", "sdss"])
def test_time_of_nothing(name):
    survey = load_survey(name)
    (record,) = Decoder(survey.reader_schema).decode(avro(record_type("other", {"x": "int"}), {"x": 1}))
    with pytest.raises(PacketError) as caught:
        survey.time(record)
    assert caught.value.reason is Reason.NO_TIME


# --- real packets


def real_ztf(kind="science"):
    """Every real ZTF record with its observation and what fastavro reads."""
    survey = load_survey("ztf", kind)
    decoder = Decoder(survey.reader_schema, max_packet_bytes=2**30)
    for path in ztf_files():
        data = path.read_bytes()
        for got, full in zip(decoder.decode(data), fastavro.reader(io.BytesIO(data)), strict=True):
            yield survey.observation(got), full


def pixels_of(full, name):
    return read_image(full[name]["stampData"]).pixels


def test_every_real_ztf_packet_becomes_an_observation():
    bands, flags = Counter(), Counter()
    for seen, full in real_ztf():
        candidate = full["candidate"]
        assert (seen.object_id, seen.source_id) == (full["objectId"], candidate["candid"])
        assert seen.mjd == pytest.approx(Time(candidate["jd"], format="jd", scale="utc").tai.mjd + 15 / 86400, abs=1e-8)
        sign = 1 if candidate["isdiffpos"] in ("t", "1") else -1
        assert seen.flux == pytest.approx(sign * 3631e9 * 10 ** (-0.4 * candidate["magpsf"]), rel=1e-6)
        assert np.isfinite(seen.stamp).all()
        bands[seen.band] += 1
        flags[seen.flags & ~Flag.NEGATIVE] += 1
    assert bands == {"r": 136, "g": 106}
    assert set(flags) == {0, Flag.FILLED}


def test_real_ztf_stamp_pixel_by_pixel():
    """An independent way to the same stamp: astropy's pixels, flipped, cut, minus the border's median, scaled."""
    checked = 0
    for seen, full in real_ztf():
        pixels = pixels_of(full, "cutoutScience")
        if pixels.shape != (63, 63) or seen.flags & Flag.FILLED:
            continue
        frame = np.isfinite(pixels)
        frame[2:-2, 2:-2] = False
        scale = 3631e9 * 10 ** (-0.4 * full["candidate"]["magzpsci"]) / 100
        sky = np.sort(pixels[frame])[frame.sum() // 2]
        expected = ((pixels - sky) * scale)[::-1][15:47, 15:47]
        np.testing.assert_allclose(seen.stamp, np.clip(expected, -65504, 65504), rtol=2e-3, atol=0.02)
        checked += 1
    assert checked > 200


def test_real_ztf_stamps_run_from_north_to_south_and_from_east_to_west():
    """The nearest reference source (ranr, decnr), where it is not the object itself, is bright where we expect it."""
    votes, seen_sources = Counter(), set()
    for _, full in real_ztf():
        candidate, pixels = full["candidate"], pixels_of(full, "cutoutTemplate")
        east = (candidate["ranr"] - candidate["ra"]) * math.cos(math.radians(candidate["dec"])) * 3600 / 1.012
        north = (candidate["decnr"] - candidate["dec"]) * 3600 / 1.012
        place = (full["objectId"], round(east), round(north))
        sides = (abs(east), abs(north), abs(abs(east) - abs(north)))
        if (
            pixels.shape != (63, 63)
            or place in seen_sources
            or not (4 < math.hypot(east, north) < 28)
            or min(sides) < 2
        ):
            continue
        seen_sources.add(place)
        forms = {
            "ours": (-east, -north),
            "north up": (-east, north),
            "east right": (east, -north),
            "both": (east, north),
        }
        forms |= {f"{name} transposed": (y, x) for name, (x, y) in forms.items()}
        light = {}
        for name, (x, y) in forms.items():
            row, column = round(31 + y), round(31 + x)
            light[name] = np.nanmean(pixels[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2])
        votes[max(light, key=light.__getitem__)] += 1
    assert votes.total() >= 10
    assert votes["ours"] > 0.6 * votes.total()  # by chance 1 in 8


def test_real_ztf_science_and_template_hold_the_same_sky_and_differences_are_bright():
    ratios, bright = [], []
    for _, full in real_ztf():
        science, template, difference = (pixels_of(full, name) for name in CUTOUTS)
        if science.shape == (63, 63) and np.isfinite(template).all() and np.isfinite(science).all():
            ratios.append(np.median(template[:2]) / np.median(science[:2]))
            bright.append(np.nanmean(difference[29:34, 29:34]) > 0)
    assert np.median(ratios) == pytest.approx(1, abs=0.02)
    assert all(bright)


def test_the_real_ztf_stamp_at_a_chip_edge():
    cut = [(seen, full) for seen, full in real_ztf("difference") if pixels_of(full, CUTOUTS[2]).shape != (63, 63)]
    assert len(cut) == 1
    seen, full = cut[0]
    assert full["candidate"]["ypos"] == pytest.approx(26.8, abs=0.1)
    middle = seen.stamp[8:24, 8:24] * np.sign(seen.flux)
    assert np.unravel_index(np.argmax(middle), middle.shape) == pytest.approx((8, 8), abs=1)


def test_every_real_rubin_packet():
    pytest.importorskip("lsst.alert.packet", reason="package lsst-alert-packet is not installed")
    outcome = Counter()
    schemas = SchemaSource()
    for path in rubin_files():
        try:
            seen = observe("lsst", path.read_bytes(), schemas=schemas)
        except SkipPacket as skip:
            outcome[skip.reason] += 1
            continue
        outcome["used"] += 1
        assert seen.flags & Flag.ROTATED
        assert np.isfinite(seen.stamp).all()
    assert outcome == {"used": 37, Reason.SOLAR_SYSTEM: 2}


def test_real_rubin_difference_stamps_have_their_source_in_the_middle():
    pytest.importorskip("lsst.alert.packet", reason="package lsst-alert-packet is not installed")
    schemas, agree, seen_any = SchemaSource(), 0, 0
    for path in rubin_files():
        try:
            seen = observe("lsst", path.read_bytes(), "difference", schemas=schemas)
        except SkipPacket:
            continue
        stamp = np.asarray(seen.stamp, float) * np.sign(seen.flux)
        agree += stamp[14:19, 14:19].max() == stamp[6:27, 6:27].max()
        seen_any += 1
    assert agree > 0.8 * seen_any


@pytest.mark.parametrize("version", ["7.1", "9.0", "10.0", "11.0"])
def test_lsst_versions_without_their_stamps(version):
    """Packets written by fastavro with the observatory's own schema of each version, history and all."""
    packet = pytest.importorskip("lsst.alert.packet", reason="package lsst-alert-packet is not installed")
    major, minor = version.split(".")
    path = f"{packet.get_schema_path(major, minor)}/lsst.v{major}_{minor}.alert.avsc"
    definition = packet.Schema.from_file(path).definition
    record = simplest(definition)
    source = record["diaSource"]
    source |= {"diaSourceId": 12, "diaObjectId": 34, "midpointMjdTai": 61_000.5, "ra": 57.7, "dec": -48.2, "band": "i"}
    source |= {"psfFlux": 10.0, "psfFluxErr": 1.0}
    record |= {"cutoutScience": lsst_stamp(), "prvDiaSources": [source] * 3}
    body = io.BytesIO()
    fastavro.schemaless_writer(body, definition, record)
    seen = observe("lsst", confluent_payload(100 * int(major) + int(minor), body.getvalue()), schemas=SchemaSource())
    assert (seen.object_id, seen.source_id, seen.band, seen.flux) == ("34", 12, "i", 10.0)


def simplest(definition):
    """The simplest value of an Avro type: null where that will do."""
    if isinstance(definition, list):
        return None if "null" in definition else simplest(definition[0])
    kind = definition["type"] if isinstance(definition, dict) else definition
    if kind == "record":
        return {field["name"]: simplest(field["type"]) for field in definition["fields"]}
    if isinstance(kind, dict | list):
        return simplest(kind)
    return {"string": "", "bytes": b"", "boolean": False, "array": [], "map": {}}.get(kind, 0)


def test_the_real_sequence_is_one_object_of_21_stamps():
    objects = Counter(seen.object_id for seen, _ in real_ztf() if seen.object_id == "ZTF20abfcszi")
    assert objects["ZTF20abfcszi"] >= 21


def test_split_real_files_keep_every_observation():
    survey = load_survey("ztf")
    decoder = Decoder(survey.reader_schema)
    sources = [
        survey.observation(decoder.decode(p)[0]).source_id for f in ztf_files() for p in split_container(f.read_bytes())
    ]
    assert len(sources) == 242


def test_error_of_a_magnitude():
    assert base.flux_error_of(1000.0, 0.1) == pytest.approx(92.1, abs=0.1)
    assert base.flux_of(8.9) == pytest.approx(1e9, rel=0.001)  # 8.9 mag (AB) is 1 Jy
    assert ztf._along(63, None) == 31
