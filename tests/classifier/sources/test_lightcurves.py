"""Real light curves painted into stamps: what was measured is what the stamps' photometry gives."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from real_data import real_data

from skyheed.classifier.archives import cli as archive_cli
from skyheed.classifier.archives.check import validate
from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.sky.surveys import survey_named
from skyheed.classifier.sources.candidates import photometry
from skyheed.classifier.sources.lightcurves import best_season, build, read_light_curve, render_light_curve

SNANA = """\
SURVEY: SDSS
SNID: 77
RA: -10.5
DECL: 0.43
SEARCH_PEAKMJD: 53633.3
REDSHIFT_HELIO: 0.1193 +- 0.0001
NVAR: 5
VARLIST:  MJD   FLT       FIELD    FLUXCAL   FLUXCALERR
OBS: 53634.25 SDSS-g VOID 2434.4 81.9
OBS: 53622.30 SDSS-g VOID 1284.6 28.2
OBS: 53634.25 SDSS-r VOID 2189.7 121.6
OBS: 53648.29 SDSS-r VOID 1200.0 nan
OBS: 53655.20 CSP-r VOID 1200.0 20.0
"""


def write_csv(path: Path, seasons: int = 1, points: int = 12) -> Path:
    rng = np.random.default_rng(1)
    lines = ["time,mag,magerr,band"]
    for season in range(seasons):
        for night in range(points + season):
            for band in "gr":
                lines.append(f"{53000 + 365 * season + 3 * night},{18 + 0.3 * rng.random():.3f},0.02,{band}")
    path.write_text("\n".join([*lines, "53050,-99.99,0.1,g"]) + "\n")
    return path


def test_snana_text(tmp_path: Path) -> None:
    path = tmp_path / "SDSS_77.dat.gz"
    path.write_bytes(gzip.compress(SNANA.encode()))
    curve = read_light_curve(path)
    assert (curve.object_id, curve.ra, curve.dec) == ("77", 349.5, 0.43)
    assert (curve.redshift, curve.peak_mjd) == (0.1193, 53633.3)
    assert curve.mjd.tolist() == [53622.30, 53634.25, 53634.25, 53655.20]
    assert curve.band.tolist() == ["g", "g", "r", "CSP-r"]
    # FLUXCAL has zero point 27.5, nJy 31.4.
    assert curve.flux[0] == pytest.approx(1284.6 * 36.3078, rel=1e-5)


def test_csv_of_magnitudes(tmp_path: Path) -> None:
    path = tmp_path / "star.csv"
    path.write_text("time,mag,magerr,band\n53001.5,20.0,0.1,r\n53000.5,-99.99,-1,g\n")
    curve = read_light_curve(path)
    assert len(curve.mjd) == 1
    assert curve.flux[0] == pytest.approx(10 ** (0.4 * 11.4))
    assert curve.error[0] / curve.flux[0] == pytest.approx(0.1 / 1.0857, rel=1e-3)


def test_csv_of_fluxes(tmp_path: Path) -> None:
    path = tmp_path / "star.csv"
    path.write_text("mjd,flux,flux_error,band\n53001.5,-20.5,3,r\n")
    curve = read_light_curve(path)
    assert (curve.object_id, curve.flux[0], curve.error[0]) == ("star", -20.5, 3.0)


@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2\n", "VARLIST: MJD FLT\nOBS: x y\n", "time,mag,magerr,band\n1,x,0.1,g\n"]
)
def test_other_files_are_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "odd.csv"
    path.write_text(text)
    with pytest.raises(ArchiveError, match=r"odd\.csv"):
        read_light_curve(path)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("two.csv", "objectId,mjd,band,flux,flux_error\na,53001,r,20,3\nb,53002,r,20,3\n", "2 objects .column obj"),
        ("two.dat", SNANA + SNANA.replace("77", "78"), "line 15: a second SNID"),
    ],
)
def test_a_file_of_several_objects_is_refused(tmp_path: Path, name: str, text: str, words: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ArchiveError, match=rf"{words}.*: write one file for each"):
        read_light_curve(path)


def test_numbers_of_measurements_name_no_object(tmp_path: Path) -> None:
    path = tmp_path / "irsa.csv"
    path.write_text("oid,mjd,band,flux,flux_error\n686103,53001,g,20,3\n686203,53001,r,20,3\n")
    assert len(read_light_curve(path).mjd) == 2


def test_snana_text_with_carriage_returns_alone(tmp_path: Path) -> None:
    path = tmp_path / "mac.dat"
    path.write_bytes(SNANA.replace("\n", "\r").encode())
    assert len(read_light_curve(path).mjd) == 4


def test_season_with_most_points_is_kept(tmp_path: Path) -> None:
    curve = read_light_curve(write_csv(tmp_path / "s.csv", seasons=3))
    season = best_season(curve)
    assert len(season.mjd) == 28
    assert season.mjd.min() > 53700


def test_stamps_give_back_the_measurements(tmp_path: Path) -> None:
    curve = read_light_curve(write_csv(tmp_path / "s.csv"))
    done = render_light_curve(survey_named("sdss"), curve, "Variable", 1)
    assert done is not None
    thing, rows = done
    assert (thing.origin, thing.label, thing.parameters) == ("rendered", "Variable", {"position": "invented"})
    np.testing.assert_array_equal(rows["mjd"], curve.mjd)
    for band in "gr":
        of_band = curve.band == band
        expected = curve.flux[of_band] - np.median(curve.flux[of_band])
        np.testing.assert_allclose(rows["flux"][of_band], expected, atol=1.0 + 1e-4 * curve.flux.max())
    np.testing.assert_allclose(rows["flux_error"], curve.error, rtol=1e-5)
    # A Gaussian is not the PSF with its wings; relative fluxes must agree.
    measured = np.array([photometry(r["stamp"], float(r["psf_fwhm"]), float(r["sky_noise"]))[0] for r in rows])
    ratio = measured / curve.flux
    assert 0.75 < np.median(ratio) < 1.05
    assert np.std(ratio) < 0.05


def test_same_seed_same_stamps(tmp_path: Path) -> None:
    curve = read_light_curve(write_csv(tmp_path / "s.csv"))
    one, two, three = (render_light_curve(survey_named("sdss"), curve, "Variable", seed) for seed in (1, 1, 2))
    assert one is not None
    assert two is not None
    assert three is not None
    for column in ("stamp", "flux", "psf_fwhm"):
        np.testing.assert_array_equal(one[1][column], two[1][column])
    assert not np.array_equal(one[1]["stamp"], three[1]["stamp"])


def test_archive_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "stars").mkdir()
    write_csv(tmp_path / "stars" / "one.csv")
    write_csv(tmp_path / "stars" / "few.csv", points=1)
    (tmp_path / "sn.dat").write_text(SNANA)
    written, left_out = build(
        tmp_path / "a", [("Variable", tmp_path / "stars"), ("SNIa", tmp_path / "sn.dat")], progress=False
    )
    assert (written, left_out) == (1, ["few", "77"])
    assert validate(tmp_path / "a") == []


def test_wrong_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="class 'Kilonova'"):
        build(tmp_path / "a", [("Kilonova", tmp_path)], progress=False)
    with pytest.raises(ArchiveError, match="does not exist"):
        build(tmp_path / "a", [("SNIa", tmp_path / "nothing")], progress=False)
    with pytest.raises(ArchiveError, match="holds no light curves"):
        build(tmp_path / "a", [("SNIa", tmp_path)], progress=False)


def test_command_line(tmp_path: Path) -> None:
    star = write_csv(tmp_path / "one.csv")
    out = str(tmp_path / "a")
    result = CliRunner().invoke(
        archive_cli.archive, ["build-lightcurves", f"Variable={star}", "--survey", "ztf", "-o", out]
    )
    assert result.exit_code == 0, result.output
    assert Archive(out).image_shape == (63, 63)
    assert Archive(out).card["command"].endswith("build-lightcurves --survey ztf --seed 1 Variable=one.csv")
    rows = Archive(out).stamps("one", kinds=())
    assert 0 < rows["alert"].sum() < len(rows)
    np.testing.assert_array_equal(rows["alert"], np.abs(rows["flux"]) > 5 * rows["flux_error"])
    result = CliRunner().invoke(archive_cli.archive, ["build-lightcurves", str(star), "-o", out])
    assert result.exit_code == 2
    assert "CLASS=PATH" in result.output


def test_real_supernovae_keep_their_photometry(tmp_path: Path) -> None:
    folder = real_data("sdss", "snia_lightcurves")
    files = sorted(folder.glob("*.dat.gz"))
    assert len(files) == 101
    build(tmp_path / "a", [("SNIa", file) for file in files[:4]], progress=False)
    assert validate(tmp_path / "a") == []
    archive = Archive(tmp_path / "a")
    curve = read_light_curve(files[0])
    stamps = archive.stamps(curve.object_id)
    assert 0.01 < archive.object(curve.object_id)["redshift"] < 0.5
    peak = stamps[np.argmax(np.where(stamps["band"] == "r", stamps["flux"], 0))]
    nearest = np.argmin(np.abs(curve.mjd - peak["mjd"]) + 10 * (curve.band != "r"))
    assert peak["flux"] == pytest.approx(curve.flux[nearest], rel=1e-3)


def test_real_rr_lyrae_are_read() -> None:
    files = sorted(real_data("sdss", "rrlyrae", "light-curves").glob("*.csv"))
    assert len(files) >= 241
    curve = best_season(read_light_curve(files[0]))
    assert set(curve.band) == set("ugriz")
    assert len(curve.mjd) > 20
