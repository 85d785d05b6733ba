"""SDSS frames that are cut short, damaged, or written in another way: one sentence, or the right geometry."""

import bz2
import gzip
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from test_frames import make_frame
from test_wcs import APPLIED, astropy_of

from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.sources import fits_files
from skyheed.classifier.sources.candidates import build, find_frames
from skyheed.classifier.sources.fits_files import read_header
from skyheed.classifier.sources.frames import Frame, frame_name, pixel_of_wcs

COLUMNS = ("psf_width", "gain", "dark_variance")


def ps_field(frame: Path, **values: object) -> Path:
    """The psField file of a frame, with five bands in its sixth extension."""
    name = frame_name(frame)
    assert name is not None
    given = {"psf_width": 1.3, "gain": 4.0, "dark_variance": 1.0, **values}
    columns = [
        fits.Column(key, "5E", array=[np.full(5, given[key], np.float32)]) for key in COLUMNS if given[key] != "-"
    ]
    table = fits.BinTableHDU.from_columns(columns)
    path = frame.parent / f"psField-{name.run:06d}-{name.camcol}-{name.field:04d}.fit"
    parts = [fits.PrimaryHDU(), *(fits.ImageHDU() for _ in range(5)), table]
    fits.HDUList(parts).writeto(path, overwrite=True)
    return path


def refused(path: Path) -> str:
    with pytest.raises(ArchiveError) as error:
        Frame(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_sound_ps_field_gives_noise_and_seeing(tmp_path: Path) -> None:
    path = make_frame(tmp_path, shape=(90, 100))
    ps_field(path)
    frame = Frame(path)
    assert frame.psf_fwhm == pytest.approx(1.3)
    assert frame.sky_noise == pytest.approx(math.sqrt(200 / 4 + 1 / 16) * 0.005 * 3631, rel=1e-5)


@pytest.mark.parametrize("key", COLUMNS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -9.0, 0.0, "-"])
def test_a_ps_field_without_sense_is_named(tmp_path: Path, key: str, value: object) -> None:
    path = make_frame(tmp_path, shape=(90, 100))
    if (key, value) == ("dark_variance", 0.0):
        ps_field(path, **{key: value})
        assert Frame(path).sky_noise > 0
        return
    sentence = refused(path) if ps_field(path, **{key: value}) else ""
    assert "psField-005000-3-0100.fit" in sentence
    assert key in sentence


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_ps_field_that_is_cut_short_is_named(tmp_path: Path, share: float) -> None:
    path = make_frame(tmp_path, shape=(90, 100))
    whole = ps_field(path)
    data = whole.read_bytes()
    whole.write_bytes(data[: int(len(data) * share)])
    assert "psField-005000-3-0100.fit cannot be read as a psField file" in refused(path)


@pytest.mark.parametrize("ending", ["", ".bz2", ".gz"])
@pytest.mark.parametrize("share", [0.0, 0.005, 0.3, 0.7, 0.999])
def test_a_frame_that_is_cut_short_is_named(tmp_path: Path, ending: str, share: float) -> None:
    packed = make_frame(tmp_path, shape=(90, 100))
    plain = bz2.decompress(packed.read_bytes())
    packed.unlink()
    data = {"": lambda d: d, ".bz2": bz2.compress, ".gz": gzip.compress}[ending](plain)
    path = tmp_path / f"frame-r-005000-3-0100.fits{ending}"
    path.write_bytes(data[: int(len(data) * share)])
    assert str(path) in refused(path)


def test_building_stops_with_the_name_of_the_frame(tmp_path: Path) -> None:
    path = make_frame(tmp_path, shape=(90, 100))
    path.write_bytes(path.read_bytes()[:-2000])
    (tmp_path / "table.csv").write_text("SNID,RA,DECL,SNTYPE,PEAKMJD\n101,20.0,0.5,120,53648.0\n")
    with pytest.raises(ArchiveError, match=r"frame-r-005000-3-0100\.fits\.bz2 cannot be read .* get it again"):
        build(tmp_path / "a", tmp_path / "table.csv", tmp_path, progress=False)
    assert not (tmp_path / "a").exists()


def changed(folder: Path, change: Callable[[fits.HDUList], None]) -> Path:
    """A frame to which this was done."""
    path = make_frame(folder, shape=(90, 100))
    with fits.open(path) as parts:
        change(parts)
        parts.writeto(folder / "x.fits", overwrite=True)
    path.write_bytes(bz2.compress((folder / "x.fits").read_bytes(), 1))
    return path


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("NMGY", 0.0),
        ("NMGY", -1.0),
        ("NMGY", "null"),
        ("TAI", "unknown"),
        ("TAI", 0.0),
        ("C_OBS", -9.0),
        ("NMGY", None),
    ],
)
def test_headers_without_sense(tmp_path: Path, key: str, value: object) -> None:
    def change(parts: fits.HDUList) -> None:
        if value is None:
            del parts[0].header[key]
        else:
            parts[0].header[key] = value

    assert key in refused(changed(tmp_path, change))


@pytest.mark.parametrize("column", ["NODE", "B", "DROW0"])
def test_an_astrometric_solution_of_nan(tmp_path: Path, column: str) -> None:
    def change(parts: fits.HDUList) -> None:
        parts[3].data[column][0] = np.nan

    assert "asTrans" in refused(changed(tmp_path, change))


def test_headers_and_files_are_bounded(tmp_path: Path) -> None:
    header = "".join(
        f"{card:<80}" for card in ("SIMPLE  =                    T", "BITPIX  =                  -32",
        "NAXIS   =                    2", "NAXIS1  =              9999999", "NAXIS2  =              9999999", "END")
    )  # fmt: skip
    path = tmp_path / "frame-r-005000-3-0100.fits"
    path.write_bytes(header.ljust(2880).encode())
    assert "pixels" in refused(path)
    path.write_bytes(
        header.replace("NAXIS   =                    2", "NAXIS   =            999999999").ljust(2880).encode()
    )
    assert "pixels" in refused(path)
    endless = tmp_path / "frame-r-005001-3-0100.fits.bz2"
    endless.write_bytes(bz2.compress(b" " * 16 * 2**20))
    assert str(endless) in refused(endless)
    pipe = tmp_path / "frame-r-005002-3-0100.fits"
    os.mkfifo(pipe)
    assert "ordinary file" in refused(pipe)
    assert find_frames(tmp_path) == [path, endless]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "frame-g-005000-3-0100.fits").symlink_to(path)
    with pytest.raises(ArchiveError, match="no frame-"):
        find_frames(tmp_path / "in")


def test_frames_unpack_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_frame(tmp_path, shape=(90, 100))
    monkeypatch.setattr(fits_files, "MOST_BYTES", 2**15)
    assert "it has more than 0 MiB" in refused(path)


def test_other_bands_are_no_frames() -> None:
    assert frame_name(Path("frame-zz-005000-3-0100.fits")) is None
    assert frame_name(Path("frame-y-005000-3-0100.fits")) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("CROTA2", 40.0), ("LONPOLE", 0.0), ("PV1_1", 1.0), ("A_ORDER", 2), ("CTYPE1", "RA---TPV"), ("CUNIT1", "rad"),
        ("PC001001", 1.0), ("PC1_1", 1.0), ("CPDIS1", "LOOKUP"), ("CTYPE2", "RA---TAN"),
    ],
)  # fmt: skip
def test_corrected_frames_that_were_changed_are_refused(tmp_path: Path, key: str, value: object) -> None:
    """Their place on the sky is that of asTrans, which a turned or bent image no longer has."""
    Frame(changed(tmp_path, lambda parts: None))
    assert key in refused(changed(tmp_path, lambda parts: parts[0].header.update({key: value})))


# --- the WCS of old frames -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", APPLIED)
def test_geometry_of_headers(form: str) -> None:
    reference = astropy_of(APPLIED[form])
    place = pixel_of_wcs(fits.Header(APPLIED[form]))
    for x, y in [(0, 0), (63, 59), (31.5, 12.25)]:
        world = [float(value) for value in reference.wcs_pix2world(x, y, 0)]
        ra, dec = world[::-1] if reference.wcs.lat == 0 else world
        assert place(ra, dec) == pytest.approx((x, y), abs=1e-6)


def test_distortions_are_applied() -> None:
    cards = {
        **APPLIED["CD"],
        "CTYPE1": "RA---TAN-SIP",
        "CTYPE2": "DEC--TAN-SIP",
        "A_ORDER": 2,
        "B_ORDER": 2,
        "A_2_0": 1e-3,
    }
    reference = WCS(fits.Header(cards))
    ra, dec = (float(value) for value in reference.all_pix2world(55, 9, 0))
    assert pixel_of_wcs(fits.Header(cards))(ra, dec) == pytest.approx((55, 9), abs=1e-3)
    assert abs(reference.wcs_world2pix(ra, dec, 0)[0] - 55) > 0.3


@pytest.mark.parametrize(
    "changes",
    [
        {"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN"}, {"CTYPE1": "LINEAR", "CTYPE2": "LINEAR"}, {"RADESYS": "FK4"},
        {"EQUINOX": 1950.0}, {"CROTA2": 10.0}, {"CPDIS1": "LOOKUP"}, {"CTYPE2": "RA---TAN"}, {"CTYPE1": "RA---XXX"},
        {"CROTA1": 10.0}, {"PC1_1": 1.0, "CDELT1": 1e-4},
    ],
)  # fmt: skip
def test_geometry_that_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    header = fits.Header({**APPLIED["CD"], **changes, "FLUX20": 2000.0, "TAI": 53640.0 * 86400, "C_OBS": 26322})
    path = tmp_path / "fpC-005000-g3-0100.fit"
    fits.PrimaryHDU(np.full((60, 64), 1100, np.int16), header).writeto(path, output_verify="ignore")
    assert str(path) in refused(path)
    assert read_header(path)["NAXIS"] == 2
