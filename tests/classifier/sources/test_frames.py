"""Real SDSS frames: positions, orientation, noise; archives built from frames and the candidate table."""

import bz2
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from click.testing import CliRunner
from real_data import real_data

from skyheed.classifier.archives import cli as archive_cli
from skyheed.classifier.archives.check import validate
from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.sources import candidates
from skyheed.classifier.sources.candidates import (
    Candidate,
    build,
    missing_frames,
    photometry,
    read_candidates,
    without_overlaps,
)
from skyheed.classifier.sources.frames import (
    Cut,
    Frame,
    FrameName,
    frame_name,
    measure_fwhm,
    pixel_of_wcs,
    upright,
)

NMGY = 0.005  # nanomaggies per count of the frames made here


def make_frame(
    folder: Path,
    *,
    band: str = "r",
    run: int = 5000,
    field: int = 100,
    mjd: float = 53640.0,
    turn: float = 90.0,
    stars: Any = (),
    shape: tuple[int, int] = (500, 600),
    centre: tuple[float, float] = (20.0, 0.5),
) -> Path:
    """A frame in SDSS's format: noise, sky, stars (ra, dec, nJy), turned by `turn` degrees, with a plain asTrans."""
    rng = np.random.default_rng(run + ord(band))
    ny, nx = shape
    angle = np.radians(turn)
    scale = 0.396 / 3600
    # Great-circle coordinates of Stripe 82 are right ascension and declination: rows run along mu, columns along nu.
    b, c = scale * np.cos(angle - np.pi / 2), -scale * np.sin(angle - np.pi / 2)
    e, f = scale * np.sin(angle - np.pi / 2), scale * np.cos(angle - np.pi / 2)
    half = np.array([ny / 2, nx / 2])
    a, d = np.array(centre) - np.array([[b, c], [e, f]]) @ half
    image = rng.normal(0, 0.03, shape)
    sigma = 1.3 / 0.396 / 2.3548
    y, x = np.indices(shape)
    for ra, dec, flux in stars:
        row, column = np.linalg.solve([[b, c], [e, f]], [ra - a, dec - d]) - 0.5
        image += flux / 3631 * np.exp(-0.5 * ((x - column) ** 2 + (y - row) ** 2) / sigma**2) / (2 * np.pi * sigma**2)
    names = [("NODE", "D"), ("INCL", "D"), *((n, "D") for n in "ABCDEF")]
    names += [(f"{axis}{k}", "D") for axis in ("DROW", "DCOL") for k in range(4)]
    values = dict(zip("ABCDEF", (a, b, c, d, e, f), strict=True)) | {"NODE": 95.0, "INCL": 0.0}
    transformation = fits.BinTableHDU.from_columns(
        [fits.Column(name, kind, array=[values.get(name, 0.0)]) for name, kind in names]
    )
    sky = fits.BinTableHDU.from_columns([fits.Column("ALLSKY", "16E", array=[np.full(16, 200.0)])])
    primary = fits.PrimaryHDU(image.astype(np.float32))
    primary.header.update(
        NMGY=NMGY, TAI=mjd * 86400, C_OBS=26322, CRVAL1=centre[0], CRVAL2=centre[1], CRPIX1=nx / 2, CRPIX2=ny / 2,
        CTYPE1="RA---TAN", CTYPE2="DEC--TAN", CD1_1=scale, CD2_2=scale, FILTER=band,
    )  # fmt: skip
    path = folder / f"frame-{band}-{run:06d}-3-{field:04d}.fits.bz2"
    plain = folder / "plain.fits"
    parts = fits.HDUList([primary, fits.ImageHDU(np.full(nx, NMGY, np.float32)), sky, transformation])
    parts.writeto(plain, overwrite=True)
    path.write_bytes(bz2.compress(plain.read_bytes(), 1))
    plain.unlink()
    return path


def middle_of_light(stamp: np.ndarray, radius: int = 6) -> np.ndarray:
    """Centre of light (x, y) about the middle pixel, relative to it."""
    cut = stamp[32 - radius : 33 + radius, 32 - radius : 33 + radius]
    cut = np.clip(cut - np.median(stamp[np.isfinite(stamp)]), 0, None)
    y, x = np.indices(cut.shape) - radius
    return np.array([(cut * x).sum(), (cut * y).sum()]) / cut.sum()


# --- the one real frame ----------------------------------------------------------------------------------------------


# photoObj has the positions of Data Release 8, which north of +41 degrees are about 200 mas too far north
# (https://www.sdss3.org/dr8/algorithms/astrometry.php); the frame has the repaired solution. Half a pixel here, nothing
# at the equator.
DR8_SHIFT = 0.2 / 3600


def real_frame() -> tuple[Frame, Any]:
    folder = real_data("sdss", "frame")
    stars = fits.getdata(folder / "photoObj-001000-1-0100.fits", 1)
    stars["DEC"] -= DR8_SHIFT
    return Frame(folder / "frame-r-001000-1-0100.fits.bz2"), stars


def test_real_positions_fall_on_their_catalogued_pixels() -> None:
    frame, stars = real_frame()
    placed = np.array([frame.pixel(ra, dec) for ra, dec in zip(stars["RA"], stars["DEC"], strict=True)])
    # photoObj's rows and columns are 0.5 at the centre of the first pixel.
    catalogued = np.stack([stars["COLC"][:, 2], stars["ROWC"][:, 2]], axis=1) - 0.5
    assert len(placed) == 19
    assert np.linalg.norm(placed - catalogued, axis=1).max() < 0.15
    # The header's WCS leaves out the optical distortion.
    assert np.median(np.linalg.norm(header_positions(frame, stars) - catalogued, axis=1)) > 0.3


def header_positions(frame: Frame, stars: Any) -> np.ndarray:
    with fits.open(frame.path) as parts:
        place = pixel_of_wcs(parts[0].header)
    return np.array([place(ra, dec) for ra, dec in zip(stars["RA"], stars["DEC"], strict=True)])


def test_real_star_lands_in_the_middle_of_its_stamp() -> None:
    """The one unblended star of the cut-out: its catalogued pixel within half a pixel, its light within the errors."""
    frame, stars = real_frame()
    inside = (stars["PSFFLUX"][:, 2] > 5) & (stars["COLC"][:, 2] < 100) & (stars["ROWC"][:, 2] < 100)
    (star,) = stars[inside]
    cut = frame.cut(star["RA"], star["DEC"])
    assert cut is not None
    placed = np.array(frame.pixel(star["RA"], star["DEC"]))
    assert np.linalg.norm(placed - (star["COLC"][2] - 0.5, star["ROWC"][2] - 0.5)) < 0.5
    # The catalogue's centroid of this faint star in 3" seeing has an error of 0.5 pixel.
    error = np.hypot(star["COLCERR"][2], star["ROWCERR"][2])
    assert np.linalg.norm(middle_of_light(cut.stamp)) < 0.5 + error
    flux, _ = photometry(cut.stamp, cut.psf_fwhm, cut.sky_noise)
    assert flux == pytest.approx(star["PSFFLUX"][2] * 3631, rel=0.25)


def test_real_frame_has_the_noise_and_seeing_of_its_psfield() -> None:
    frame, _ = real_frame()
    assert frame.psf_fwhm == pytest.approx(3.055, abs=0.001)
    blank = frame.image[60:100, 75:100]
    assert frame.sky_noise == pytest.approx(1.4826 * np.median(np.abs(blank - np.median(blank))), rel=0.15)


def test_real_frame_knows_the_middle_of_its_exposures() -> None:
    """Half of the header's own exposure time before a row is read out; the stars' TAI are those of the first row."""
    frame, stars = real_frame()
    header = fits.getheader(frame.path)
    read_out = header["TAI"] / 86400
    assert (read_out - frame.mjd(0)) * 86400 == pytest.approx(float(header["EXPTIME"]) / 2, abs=1e-4)
    assert (frame.mjd(100) - frame.mjd(0)) * 86400 == pytest.approx(100 * 0.026322, abs=1e-4)
    assert np.abs(stars["TAI"][:, 2] - header["TAI"]).max() < 60


def test_real_candidate_table_has_the_published_counts() -> None:
    found = read_candidates(real_data("sdss", "candidates", "JLA2014_SDSS_DS17_HEAD.FITS.gz"))
    assert Counter((c.label, c.confirmed) for c in found) == {
        ("AGN", True): 906,
        ("Variable", True): 3225,
        ("SNIa", False): 1448,
        ("SNIa", True): 540,
        ("SNOther", False): 2041,
        ("SNOther", True): 89,
    }


# --- made frames ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", [0, 90, 180, 270, 86.2, 30])
def test_star_is_in_the_middle_and_neighbour_to_the_north_west(tmp_path: Path, turn: float) -> None:
    ra, dec = 20.003, 0.497
    north_west = (ra - 3 / 3600, dec + 5 / 3600, 4e5)
    frame = Frame(make_frame(tmp_path, turn=turn, stars=[(ra, dec, 1e6), north_west]))
    cut = frame.cut(ra, dec)
    assert cut is not None
    assert np.abs(middle_of_light(cut.stamp, 5)).max() < 0.5 + 0.1
    y, x = np.unravel_index(np.argmax(np.where(np.hypot(*(np.indices((64, 64)) - 32)) > 8, cut.stamp, 0)), (64, 64))
    assert (x, y) == (pytest.approx(32 + 3 / 0.396, abs=1.1), pytest.approx(32 + 5 / 0.396, abs=1.1))
    assert photometry(cut.stamp, 1.3, cut.sky_noise)[0] == pytest.approx(1e6, rel=0.05)


def test_whole_turns_leave_the_pixels_as_they_are(tmp_path: Path) -> None:
    frame = Frame(make_frame(tmp_path, turn=90.0))
    cut = frame.cut(20.0, 0.5)
    assert cut is not None
    assert np.isin(cut.stamp, frame.image).all()


def test_times_are_mid_exposure(tmp_path: Path) -> None:
    """TAI is the read-out of the first row: 2,048 rows of 26.322 ms make an exposure of 53.907 s."""
    frame = Frame(make_frame(tmp_path, mjd=53640.0, turn=0.0))
    assert frame.mjd(0.0) == pytest.approx(53640.0 - 26.953728 / 86400, abs=1e-9)
    cut = frame.cut(20.0, 0.5)
    assert cut is not None
    _, row = frame.pixel(20.0, 0.5)
    assert cut.mjd == pytest.approx(53640.0 + (0.026322 * row - 26.953728) / 86400, abs=1e-9)


def test_stamp_at_the_edge_is_padded_and_beyond_it_there_is_none(tmp_path: Path) -> None:
    frame = Frame(make_frame(tmp_path, turn=90.0))
    scale = 0.396 / 3600
    near = frame.cut(20.0 + 240 * scale, 0.5)
    assert near is not None
    assert 0.1 < np.isnan(near.stamp).mean() < 0.5
    assert frame.cut(20.0 + 260 * scale, 0.5) is None


def test_seeing_is_measured_where_there_is_no_psfield(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    stars = [(20 + dx, 0.5 + dy, 4e5) for dx, dy in rng.uniform(-0.02, 0.02, (12, 2))]
    frame = Frame(make_frame(tmp_path, stars=stars))
    assert frame.psf_fwhm == pytest.approx(1.3, rel=0.05)
    assert frame.sky_noise == pytest.approx(0.03 * 3631, rel=0.05)
    assert np.isnan(measure_fwhm(np.zeros((50, 50), np.float32), 1.0))


def test_old_fpc_frames_are_calibrated_by_their_flux20(tmp_path: Path) -> None:
    data = np.full((300, 400), 1100.0)
    data[149:152, 199:202] += 200
    part = fits.PrimaryHDU(data.astype(np.uint16))
    part.header.update(
        FLUX20=2000.0, SOFTBIAS=1000, TAI=53640 * 86400.0, C_OBS=26322, CTYPE1="RA---TAN", CTYPE2="DEC--TAN",
        CRPIX1=201, CRPIX2=151, CRVAL1=20.0, CRVAL2=0.5, CD1_1=-1.1e-4, CD2_2=1.1e-4,
    )  # fmt: skip
    path = tmp_path / "fpC-005000-g3-0100.fit"
    part.writeto(path)
    frame = Frame(path)
    assert frame.name == FrameName(5000, 3, 100, "g")
    cut = frame.cut(20.0, 0.5)
    assert cut is not None
    # 1800 counts are 9 nanomaggies when 2000 are 10.
    assert cut.stamp.sum() == pytest.approx(9 * 3631, rel=1e-3)
    assert cut.zero_point == pytest.approx(22.5 - 2.5 * np.log10(0.005))


def test_names_of_frames() -> None:
    assert frame_name(Path("frame-r-001000-1-0100.fits.bz2")) == FrameName(1000, 1, 100, "r")
    assert frame_name(Path("fpC-001000-u4-0011.fit.gz")) == FrameName(1000, 4, 11, "u")
    assert frame_name(Path("frame-r-001000-1.fits")) is None
    assert frame_name(Path("photoObj-001000-1-0100.fits")) is None
    assert FrameName(1000, 1, 100, "r").file == "1000/1/frame-r-001000-1-0100.fits.bz2"


def test_damaged_frame_is_named(tmp_path: Path) -> None:
    path = tmp_path / "frame-r-001000-1-0100.fits"
    path.write_bytes(b"SIMPLE  = nonsense")
    with pytest.raises(ArchiveError, match="frame-r-001000"):
        Frame(path)


# --- archives ---------------------------------------------------------------------------------------------------------


def season(folder: Path) -> Path:
    """A candidate table of three, and five nights of frames that show two of them in four bands."""
    for night in range(5):
        brightness = 1e4 * (1 + 20 * np.exp(-0.5 * (night - 2) ** 2))
        for band in "ugri":
            make_frame(
                folder, band=band, run=5000 + night, mjd=53640.0 + 4 * night,
                stars=[(20.0, 0.5, brightness), (20.005, 0.505, 3e4)], shape=(200, 240),
            )  # fmt: skip
    table = Table(
        {
            "SNID": ["101", "102", "103", "104"],
            "RA": [20.0, 20.005, 200.0, 20.0],
            "DECL": [0.5, 0.505, 0.0, 0.5],
            "SNTYPE": [120, 5, 110, 0],
            "PEAKMJD": [53648.0, -9.0, 53648.0, 53648.0],
            "REDSHIFT_FINAL": [0.1, -9.0, 1.0, 0.1],
        }
    )
    table.write(folder / "table.csv")
    return folder / "table.csv"


def test_archive_from_frames(tmp_path: Path) -> None:
    table = season(tmp_path)
    report = build(tmp_path / "a", table, tmp_path, progress=False)
    assert (report.written, [c.object_id for c in report.without_frames]) == (2, ["103"])
    assert validate(tmp_path / "a") == []
    archive = Archive(tmp_path / "a")
    row = archive.object("SDSS-101")
    assert (row["class"], row["confirmed"], row["origin"], row["redshift"]) == (
        "SNIa",
        True,
        "real",
        pytest.approx(0.1),
    )
    stamps = archive.stamps("SDSS-101")
    assert len(stamps) == 20
    r = stamps[stamps["band"] == "r"]
    assert np.argmax(r["flux"]) == 2
    # Its quiet level, subtracted, is that of the first and last nights.
    assert r["flux"].max() == pytest.approx(2.1e5 - 3.7e4, rel=0.1)
    # Detected in the night before maximum; the first night is before the alerts.
    assert stamps["alert"].sum() == 16
    assert np.isnan(archive.object("SDSS-102")["redshift"])


def test_candidate_out_of_season_is_not_cut(tmp_path: Path) -> None:
    table = season(tmp_path)
    text = table.read_text().replace("53648.0", "54400.0")
    table.write_text(text)
    report = build(tmp_path / "a", table, tmp_path, progress=False)
    assert report.written == 1


def test_overlapping_fields_count_once() -> None:
    full, half = np.ones((64, 64), np.float32), np.full((64, 64), np.nan, np.float32)
    half[:32] = 1
    cuts = [Cut(image, mjd, "r", 1.3, 90, 24) for image, mjd in ((half, 53000.0), (full, 53000.0002), (full, 53004.0))]
    kept = without_overlaps(cuts)
    assert [c.mjd for c in kept] == [53000.0002, 53004.0]


def test_missing_frames_are_listed(tmp_path: Path) -> None:
    fields = tmp_path / "fields.csv"
    fields.write_text(
        "#Table1\nrun,rerun,camcol,field,raMin,raMax,decMin,decMax,mjd_r\n"
        "5000,40,3,100,19.9,20.1,0.4,0.6,53640\n5001,40,3,7,19.9,20.1,0.4,0.6,54640\n5002,40,3,8,29.9,30.1,0.4,0.6,53640\n"
    )
    one = Candidate("1", 20.0, 0.5, "SNIa", True, "Ia", 53650.0, 0.1)
    present = {FrameName(5000, 3, 100, "r")}
    missing = missing_frames([one], fields, present)
    assert [m.band for m in missing] == ["g", "i", "u", "z"]
    assert {(m.run, m.field) for m in missing} == {(5000, 100)}
    fields.write_text("no,such,columns\n1,2,3\n")
    with pytest.raises(ArchiveError, match="field list"):
        missing_frames([one], fields, present)


def test_nothing_to_build_from_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    table = season(tmp_path)
    with pytest.raises(ArchiveError, match="no frame-"):
        build(tmp_path / "a", table, tmp_path / "empty", progress=False)
    table.write_text("SNID,RA,DECL,SNTYPE\n1,200.0,0.0,120\n")
    with pytest.raises(ArchiveError, match="no candidate has 3 stamps"):
        build(tmp_path / "a", table, tmp_path, progress=False)
    table.write_text("NAME,RA\n1,2\n")
    with pytest.raises(ArchiveError, match="SNTYPE"):
        build(tmp_path / "a", table, tmp_path, progress=False)
    assert not (tmp_path / "a").exists()


def test_command_line_says_what_is_missing(tmp_path: Path) -> None:
    table = season(tmp_path)
    (tmp_path / "frame-z-005000-3-0100.fits.bz2").unlink(missing_ok=True)
    fields = tmp_path / "fields.csv"
    fields.write_text("run,rerun,camcol,field,raMin,raMax,decMin,decMax,mjd_r\n5000,40,3,100,19.9,20.1,0.4,0.6,53640\n")
    arguments = ["build-sdss", "--candidates", str(table), "--frames", str(tmp_path), "--fields", str(fields)]
    arguments += ["--missing", str(tmp_path / "need.txt"), "-o", str(tmp_path / "a")]
    result = CliRunner().invoke(archive_cli.archive, arguments)
    assert result.exit_code == 0, result.output
    assert "2 objects" in result.output
    assert (tmp_path / "need.txt").read_text() == "5000/3/frame-z-005000-3-0100.fits.bz2\n"


def test_frames_to_fetch_are_listed_before_there_is_any(tmp_path: Path) -> None:
    table = season(tmp_path)
    (tmp_path / "frames").mkdir()
    fields = tmp_path / "fields.csv"
    fields.write_text("run,rerun,camcol,field,raMin,raMax,decMin,decMax,mjd_r\n5000,40,3,100,19.9,20.1,0.4,0.6,53640\n")
    arguments = ["build-sdss", "--candidates", str(table), "--frames", str(tmp_path / "frames")]
    arguments += ["--missing", str(tmp_path / "need.txt"), "-o", str(tmp_path / "a")]
    result = CliRunner().invoke(archive_cli.archive, arguments)
    assert result.exit_code == 2
    assert "--fields" in result.output
    result = CliRunner().invoke(archive_cli.archive, [*arguments, "--fields", str(fields)])
    assert isinstance(result.exception, ArchiveError)
    assert "5 frames of these candidates are missing" in result.output
    assert len((tmp_path / "need.txt").read_text().splitlines()) == 5


def test_interpolated_stamp_keeps_flux() -> None:
    y, x = np.indices((200, 200))
    image = np.exp(-0.5 * ((x - 100.3) ** 2 + (y - 99.6) ** 2) / 1.5**2).astype(np.float32)
    angle = np.radians(25)
    turned = np.array([[-np.cos(angle), -np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / 0.396
    stamp = upright(image, 100.3, 99.6, turned)
    assert stamp.sum() == pytest.approx(image.sum(), rel=0.01)
    assert np.abs(middle_of_light(stamp)).max() < 0.03


def test_every_class_of_the_table_is_one_of_the_archives() -> None:
    assert {label for label, _, _ in candidates.CLASSES.values()} == {"AGN", "SNIa", "Variable", "SNOther"}
