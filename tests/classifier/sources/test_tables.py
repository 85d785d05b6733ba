"""Files that people write: what is understood, and one sentence with file, row and column for what is not."""

import codecs
import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import MaskedColumn, Table
from click.testing import CliRunner

from skyheed.classifier.archives import cli as archive_cli
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.sources.candidates import FrameName, missing_frames, read_candidates
from skyheed.classifier.sources.lightcurves import build, read_light_curve
from skyheed.classifier.sources.photometry_files import band_of
from skyheed.classifier.sources.tables import is_sentinel

TABLE = "SNID,RA,DECL,SNTYPE,PEAKMJD,REDSHIFT_FINAL\n101,20.0,0.5,120,53648.0,0.1\n102,20.001,-0.501,5,{0},{0}\n"
TWO = [("101", 20.0, 0.5, "SNIa", 53648.0, 0.1), ("102", 20.001, -0.501, "Variable", None, None)]


def candidates_of(path: Path) -> list[tuple[object, ...]]:
    found = read_candidates(path)
    values = [(c.object_id, c.ra, c.dec, c.label, c.peak_mjd, c.redshift) for c in found]
    return [tuple(None if isinstance(v, float) and np.isnan(v) else v for v in row) for row in values]


def refusal(path: Path, data: str | bytes) -> str:
    """The sentence with which a candidate table is refused; it names the file."""
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    with pytest.raises(ArchiveError) as refused:
        read_candidates(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# --- candidate tables ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "unknown", ["", "null", "NULL", "nan", "NaN", "N/A", "-", "?", "-9", "-9.0", "-99.99", "-999", "99.99", "9999", "0"]
)  # fmt: skip
def test_what_stands_for_not_known(tmp_path: Path, unknown: str) -> None:
    (tmp_path / "t.csv").write_text(TABLE.format(unknown))
    assert candidates_of(tmp_path / "t.csv") == TWO


@pytest.mark.parametrize(
    "change",
    [
        lambda text: codecs.BOM_UTF8 + text.encode(),
        lambda text: text.encode("utf-16"),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.replace("\n", "\r").encode(),
        lambda text: text.replace(",", ";").encode(),
        lambda text: text.replace(",", "\t").encode(),
        lambda text: text.replace(",", " | ").encode(),
        lambda text: text.replace(",", ", ").encode(),
        lambda text: text.lower().encode(),
        lambda text: text.replace("DECL", "Dec [deg]").replace("RA", "ra (deg)").encode(),
        lambda text: text.replace("PEAKMJD", "peak_mjd").replace("REDSHIFT_FINAL", "z").encode(),
        lambda text: ("# my table, of 2020, with notes\n\n" + text + "\n\n,,,,,\n").encode(),
        lambda text: ("#" + text).encode(),
        lambda text: ("sep=;\r\n" + text.replace(",", ";")).encode(),
        lambda text: gzip.compress(text.encode()),
        lambda text: text.replace("\n", ",\n").encode(),
        lambda text: text.replace("SNID", '"SNID"').replace("101", '"101"').encode(),
        lambda text: "".join(f"{n},{line}\n" for n, line in zip(("", 0, 1), text.splitlines(), strict=True)).encode(),
        lambda text: text.replace("20.0,0.5", "01:20:00.0,+00:30:00").replace("120,", "120.0,").encode(),
        lambda text: text.replace("20.0,0.5", "01 20 00.0,+00 30 00").encode(),
        lambda text: text.replace("20.0,0.5", "1h20m00s,0d30m0.0s").encode(),
        lambda text: text.replace("-0.501", "-00:30:03.6").encode(),
        lambda text: text.replace("102,20.001", "102,-339.999").replace("-339.999", "20.001").encode(),
    ],
)  # fmt: skip
def test_tables_of_any_editor_say_the_same(tmp_path: Path, change) -> None:
    (tmp_path / "t.csv").write_bytes(change(TABLE.format("null")))
    found = candidates_of(tmp_path / "t.csv")
    assert [row[0] for row in found] == ["101", "102"]
    for row, expected in zip(found, TWO, strict=True):
        assert row[1:3] == pytest.approx(expected[1:3], abs=1e-9)
        assert row[3:] == expected[3:]


def test_binary_tables_say_the_same(tmp_path: Path) -> None:
    columns = {
        "SNID": ["101", "102"], "RA": [20.0, 20.001], "Dec": [0.5, -0.501], "SNTYPE": [120.0, 5.0],
        "PEAKMJD": [53648.0, np.nan], "REDSHIFT_FINAL": [0.1, -9.0],
    }  # fmt: skip
    Table(columns).write(tmp_path / "t.fits")
    assert candidates_of(tmp_path / "t.fits") == TWO
    (tmp_path / "t.fits.gz").write_bytes(gzip.compress((tmp_path / "t.fits").read_bytes()))
    assert candidates_of(tmp_path / "t.fits.gz") == TWO
    numbered = pa.table({**columns, "SNID": pa.array([101.0, 102.0]), "PEAKMJD": pa.array([53648.0, None])})
    pq.write_table(numbered, tmp_path / "t.parquet")
    assert candidates_of(tmp_path / "t.parquet") == TWO
    gaps = Table({**columns, "SNTYPE": MaskedColumn([120, 5], mask=[False, True])})
    gaps.write(tmp_path / "gaps.fits")
    assert candidates_of(tmp_path / "gaps.fits") == TWO[:1]


def test_a_type_that_is_not_known_leaves_its_row_out(tmp_path: Path) -> None:
    for unknown in ("", "nan", "-9", "0", "null"):
        (tmp_path / "t.csv").write_text(TABLE.format("").replace(",5,", f",{unknown},"))
        assert candidates_of(tmp_path / "t.csv") == TWO[:1]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("120", "Ia", ["line 2", "SNTYPE", "Ia is not a number"]),
        ("120", "120.5", ["line 2", "SNTYPE", "whole numbers"]),
        ("20.001", "20;001", ["line 3", "RA", "20;001"]),
        ("20.001", '"20,001"', ["line 3", "RA", "decimal comma", "decimal point"]),
        ("20.001", "20,001", ["line 3", "7 cells", "6 columns", "decimal point"]),
        (",5,,", ",5", ["line 3", "4 cells", "6 columns"]),
        ("102,", ",", ["line 3", "SNID", "no name"]),
        ("102,", "null,", ["line 3", "SNID", "no name"]),
        ("102,", "101,", ["line 3", "SNID", "line 2"]),
        ("102,", "1\x1b[2J,", ["line 3", "SNID"]),
        ("20.001", "", ["line 3", "RA"]),
        ("20.001", "400", ["line 3", "RA", "400"]),
        ("-0.501", "-91", ["line 3", "DECL", "-91"]),
        ("20.001,-0.501", "-999,-999", ["line 3", "RA", "-999"]),
        ("20.001", "inf", ["line 3", "RA", "finite"]),
        ("20.0,", "01:70:00,", ["line 2", "RA", "sexagesimal"]),
        ("20.0,", "1_0,", ["line 2", "RA", "not a number"]),
        ("53648.0", "2453648.5", ["line 2", "PEAKMJD", "Julian date"]),
        ("53648.0", "2005-10-05", ["line 2", "PEAKMJD", "not a number"]),
        ("0.1\n", "50.3\n", ["line 2", "REDSHIFT_FINAL", "50.3"]),
        ("0.1\n", "0:1:2\n", ["line 2", "REDSHIFT_FINAL"]),
        ("SNTYPE", "KIND", ["SNTYPE", "KIND"]),
        ("RA,", "RA [rad],", ["line 2", "rad", "degrees"]),
        ("REDSHIFT_FINAL", "ra", ["2 columns", "RA"]),
        ("120", '"120', ["quotation mark"]),
        (",120,", ",7,", []),
    ],
)
def test_one_sentence_says_where_and_what(tmp_path: Path, old: str, new: str, words: list[str]) -> None:
    text = TABLE.format("")
    assert old in text
    if not words:  # a type that no class has: the others stay
        (tmp_path / "t.csv").write_text(text.replace(old, new))
        assert candidates_of(tmp_path / "t.csv") == TWO[1:]
        return
    sentence = refusal(tmp_path / "my table.csv", text.replace(old, new))
    for word in words:
        assert word in sentence, sentence


def test_a_row_without_decimal_points_under_semicolons(tmp_path: Path) -> None:
    sentence = refusal(tmp_path / "t.csv", TABLE.format("").replace(",", ";").replace("20.001", "20,001"))
    assert "line 3, column RA: 20,001 has a decimal comma: write a decimal point" in sentence


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\n\n", b"SNID,RA,DECL,SNTYPE\n", b"SNID,RA,DECL,SNTYPE\n1,2,3,0\n", b"\x00\x01\x02", b"\xff" * 50,
        b"SIMPLE  =" + b" " * 3000, b"PAR1 and nothing else", gzip.compress(b"SNID", mtime=0)[:-9], b"\x1f\x8b\x08",
        gzip.compress(TABLE.encode(), mtime=0)[:60], b"SNID RA DECL SNTYPE\n1 2 3 120\n",
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused(tmp_path: Path, data: bytes) -> None:
    assert len(refusal(tmp_path / "t.fits", data)) < 400


def test_field_lists(tmp_path: Path) -> None:
    one = candidates_of  # a table and its fields share the reader
    (tmp_path / "t.csv").write_text(TABLE.format(""))
    assert len(one(tmp_path / "t.csv")) == 2
    path = tmp_path / "fields.csv"
    text = (
        "#Table1\r\nRun;rerun;CamCol;field;RAMIN;raMax;decMin;decMax;MJD_R\r\n5000;40;3;100;19.9;20.1;0.4;0.6;53640\r\n"
    )
    path.write_bytes(codecs.BOM_UTF8 + text.encode())
    found = missing_frames(read_candidates(tmp_path / "t.csv"), path, set())
    assert found[0] == FrameName(5000, 3, 100, "g")
    for old, new, words in (
        ("53640", "null", ["line 3", "MJD_R"]), (";100;", ";1.5;", ["line 3", "field", "whole"]),
        ("19.9", "19,9", ["line 3", "RAMIN", "decimal comma"]), (";0.6", "", ["line 3", "8 cells"]),
        ("CamCol", "column", ["camcol"]),
    ):  # fmt: skip
        path.write_text(text.replace(old, new))
        with pytest.raises(ArchiveError) as refused:
            missing_frames(read_candidates(tmp_path / "t.csv"), path, set())
        assert all(word in str(refused.value) for word in [str(path), *words]), refused.value


# --- light curves --------------------------------------------------------------------------------------------------

SNANA = """\
SURVEY: SDSS
SNID: 900001
RA: 12.345 deg
DECL: 0.456 deg
REDSHIFT_HELIO: 0.1510 +- 0.0005
SEARCH_PEAKMJD: 53640.0
NOBS: 3
VARLIST: MJD BAND FIELD FLUXCAL FLUXCALERR PHOTFLAG
OBS: 53615.000 g 82S 71.016 18.000 0
OBS: 53620.000 r 82S -9.0 18.000 0
OBS: 53625.000 i 82S 358.186 18.000 0
END:
"""


def snana(path: Path, *changes: tuple[str, str]) -> Path:
    text = SNANA
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_bytes(text.encode())
    return path


def test_todays_snana_layout_and_any_editor(tmp_path: Path) -> None:
    expected = read_light_curve(snana(tmp_path / "a.dat"))
    assert expected.object_id == "900001"
    assert (expected.ra, expected.dec) == (12.345, 0.456)
    assert (expected.redshift, expected.peak_mjd) == (0.151, 53640.0)
    assert expected.band.tolist() == ["g", "r", "i"]
    for data in (
        codecs.BOM_UTF8 + SNANA.replace("\n", "\r\n").encode(), SNANA.encode("utf-16"),
        SNANA.replace("BAND", "FLT").encode(), gzip.compress(SNANA.lower().replace("end:", "END:").encode()),
        SNANA.replace("VARLIST", "  VARLIST").replace(" 0\n", " 0   # good\n").encode(),
        SNANA.replace("12.345 deg", "00:49:22.8").replace("0.456 deg", "+00:27:21.6").encode(),
        SNANA.replace(" g ", " SDSS-g ").replace(" r ", " sdss_r ").replace(" i ", " /x/SDSS_Doi2010/I.dat ").encode(),
    ):  # fmt: skip
        (tmp_path / "b.dat").write_bytes(data)
        curve = read_light_curve(tmp_path / "b.dat")
        assert (curve.object_id, curve.redshift, curve.peak_mjd) == ("900001", 0.151, 53640.0)
        assert (curve.ra, curve.dec) == pytest.approx((12.345, 0.456))
        assert curve.band.tolist() == ["g", "r", "i"]
        np.testing.assert_array_equal(curve.flux, expected.flux)


@pytest.mark.parametrize("unknown", ["-9.000000 +- -9.000000", "-9", "nan", "NULL", "-99", "999", ""])
def test_snana_unknowns(tmp_path: Path, unknown: str) -> None:
    both = ("REDSHIFT_HELIO: 0.1510 +- 0.0005", f"REDSHIFT_HELIO: {unknown}\nREDSHIFT_FINAL: 0.15 +- 0.0005")
    curve = read_light_curve(snana(tmp_path / "a.dat", both, ("53640.0", unknown)))
    assert curve.redshift == 0.15
    assert np.isnan(curve.peak_mjd)
    curve = read_light_curve(snana(tmp_path / "a.dat", ("0.1510 +- 0.0005", unknown), ("12.345 deg", unknown)))
    assert np.isnan(curve.redshift)
    assert np.isnan(curve.ra)


def test_snana_measurements_that_are_none_are_left_out(tmp_path: Path) -> None:
    for old, new in (
        ("71.016 18.000", "nan nan"),
        ("71.016", "-999"),
        ("71.016 18.000", "null -9"),
        ("53615.000", "-9"),
    ):
        curve = read_light_curve(snana(tmp_path / "a.dat", (old, new)))
        assert curve.band.tolist() == ["r", "i"]
    assert curve.flux[0] == pytest.approx(-9 * 36.3078, rel=1e-5)  # FLUXCAL -9 is a measurement


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("71.016", "71,016", ["line 9", "FLUXCAL", "decimal comma"]),
        ("71.016", "x", ["line 9", "FLUXCAL", "not a number"]),
        (" 18.000 0\nOBS: 53620", " 18.000\nOBS: 53620", ["line 9", "5 values", "6 columns"]),
        (" 18.000 0\nOBS: 53620", " 18.000 0 7\nOBS: 53620", ["line 9", "7 values", "6 columns"]),
        ("OBS: 53625.000 i 82S 358.186 18.000 0\nEND:\n", "", ["2 rows", "NOBS says 3"]),
        ("BAND", "BND", ["BAND"]),
        ("SNID: 900001", "SNID:", ["line 2", "SNID"]),
        ("SNID: 900001", "SNID: null", ["line 2", "SNID"]),
        ("0.1510", "0,1510", ["line 5", "REDSHIFT_HELIO", "decimal comma"]),
        ("53640.0", "2453640.5", ["line 6", "SEARCH_PEAKMJD"]),
        ("12.345 deg", "east", ["line 3", "RA"]),
        ("53615.000", "2453615.5", ["line 9", "MJD", "Julian"]),
        ("12.345 deg", "412.3", ["RA 412.3"]),
    ],
)
def test_snana_one_sentence(tmp_path: Path, old: str, new: str, words: list[str]) -> None:
    path = snana(tmp_path / "my curve.dat", (old, new))
    with pytest.raises(ArchiveError) as refused:
        read_light_curve(path)
    assert "\n" not in str(refused.value)
    assert all(word in str(refused.value) for word in [str(path), *words]), refused.value


@pytest.mark.parametrize(
    "text",
    [
        "mjd,mag,magerr,band\n53001.5,20.0,0.1,r\n53002.5,99.99,99.99,r\n53003.5,null,,r\n53004.5,20.0,0.1,\n",
        "\ufeffMJD;Mag;MAG_ERR;Filter\r\n53001.5;20.0;0.1;SDSS-r\r\n",
        "Time\tMAGNITUDE\tmag_error\tpassband\n53001.5\t20.0\t0.1\tsdssr\n",
        "JD,band,mag,magerr\n2453002.0,/data/filters/sdss/r.dat,20.0,0.1\n",
        "mjd,flux [nJy],fluxerr [nJy],flt\n53001.5,36307.805,3344.077,r'\n53002.5,nan,nan,r\n53003.5,-999,-999,r\n",
    ],
)
def test_csv_light_curves_of_any_editor(tmp_path: Path, text: str) -> None:
    (tmp_path / "star.csv").write_bytes(text.encode())
    curve = read_light_curve(tmp_path / "star.csv")
    assert (curve.mjd.tolist(), curve.band.tolist()) == ([53001.5], ["r"])
    assert curve.flux[0] == pytest.approx(36307.805)
    assert curve.error[0] == pytest.approx(3344.077, rel=1e-3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mjd,mag,magerr,band\n53001.5,20.0,0.1\n", ["line 2", "3 cells"]),
        ("mjd,mag,magerr,band\n53001.5,20,0,0.1,r\n", ["line 2", "5 cells", "decimal point"]),
        ('mjd,mag,magerr,band\n53001.5,"20,0",0.1,r\n', ["line 2", "mag", "decimal comma"]),
        ("mjd,mag,magerr,band\n53001.5,12000,0.1,r\n", ["line 2", "mag", "12000"]),
        ("mjd,mag,magerr,band\n2453001.5,20,0.1,r\n", ["line 2", "mjd", "Julian"]),
        ("mjd,mag,band\n53001.5,20,r\n", ["magerr"]),
        ("mjd,flux [uJy],fluxerr,band\n53001.5,20,1,r\n", ["line 2", "uJy", "nJy"]),
        ("53001.5,20.0,0.1,r\n53002.5,20.0,0.1,r\n", ["mjd"]),
        ("mjd,mag,magerr,band\n", ["without a row"]),
    ],
)
def test_csv_light_curves_one_sentence(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "a star.csv"
    path.write_text(text)
    with pytest.raises(ArchiveError) as refused:
        read_light_curve(path)
    assert all(word in str(refused.value) for word in [str(path), *words]), refused.value


def test_filters_by_any_of_their_names() -> None:
    for name in (
        "r",
        "r'",
        "SDSS-r",
        "SDSS_R",
        "sdssr",
        "SDSS.r",
        "r_SDSS",
        "SDSS/SDSS.r",
        "x/SDSS_Doi2010/R.dat",
        " r ",
    ):
        assert band_of(name, "sdss") == "r", name
    for name in ("R", "V", "CSP-r", "ps1/r.dat", "ztfr", "r_ztf", "", "ri", "SDSS"):
        assert band_of(name, "sdss") not in set("ugriz"), name
    assert (band_of("ztf_g", "ztf"), band_of("lsstr", "lsst"), band_of("LSST-Y", "lsst")) == ("g", "r", "y")


def test_an_archive_of_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("mjd,mag,magerr,band\n53001.5,20.0,0.1,V\n")
    with pytest.raises(ArchiveError, match="none of 1 light curves"):
        build(tmp_path / "a", [("SNIa", tmp_path / "one.csv")], progress=False)
    result = CliRunner().invoke(
        archive_cli.archive, ["build-lightcurves", f"SNIa={tmp_path / 'one.csv'}", "-o", str(tmp_path / "a")]
    )
    assert result.exit_code == 1
    assert not list(tmp_path.glob("*a*/"))


def test_leavings_of_other_systems_are_no_light_curves(tmp_path: Path) -> None:
    import os

    folder = tmp_path / "curves"
    folder.mkdir()
    lines = [f"{53000 + n},20.0,0.1,r" for n in range(8)]
    (folder / "one.csv").write_text("\n".join(["mjd,mag,magerr,band", *lines]))
    (folder / "._one.csv").write_bytes(bytes.fromhex("00051607"))
    (folder / "folder.csv").mkdir()
    os.mkfifo(folder / "pipe.csv")
    (tmp_path / "secret.csv").write_text("not to be read")
    (folder / "link.csv").symlink_to(tmp_path / "secret.csv")
    assert build(tmp_path / "a", [("Variable", folder)], progress=False) == (1, [])
    with pytest.raises(ArchiveError, match=r"pipe\.csv is not an ordinary file"):
        read_light_curve(folder / "pipe.csv")


@pytest.mark.parametrize("name", ["a\x1b[2Jb.csv", "a\nb.csv", "a\u202eb.csv"])
def test_a_file_whose_name_is_no_objects_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mjd,mag,magerr,band\n53001.5,20.0,0.1,r\n")
    with pytest.raises(ArchiveError, match="rename it") as refused:
        read_light_curve(tmp_path / name)
    assert str(refused.value).isprintable()


def test_a_columns_name_is_shown_without_its_commands(tmp_path: Path) -> None:
    sentence = refusal(tmp_path / "t.csv", TABLE.format("").replace("RA", "R\u202eA").replace("20.001", "x"))
    assert r"column R\u202eA: x is not a number" in sentence


def test_sentinels() -> None:
    assert all(map(is_sentinel, (-9.0, -9.9, -99, -99.9, -99.99, -999, -999.9, -9999, 99, 99.9, 99.99, 999, 9999.99)))
    assert not any(map(is_sentinel, (9.0, 9.9, -90, 0.99, -0.9, 98.9, 100, -1, 0)))
