"""The simulated sky: images hold the light that went into them, and the same seed gives the same bytes."""

import hashlib
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from skyheed.classifier.archives import cli as archive_cli
from skyheed.classifier.archives.check import validate
from skyheed.classifier.archives.reader import CLASSES, Archive
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.history import FORCED, UPPER_LIMIT
from skyheed.classifier.sky import SURVEYS, simulate
from skyheed.classifier.sky.conditions import Visits, visits_at
from skyheed.classifier.sky.galaxies import Profile
from skyheed.classifier.sky.objects import Wish
from skyheed.classifier.sky.psf import noise_area
from skyheed.classifier.sky.render import Source, psf_photometry, render, render_measured
from skyheed.classifier.sky.simulation import PUBLISHED, plan, simulate_object
from skyheed.classifier.sky.surveys import Survey, survey_named
from skyheed.classifier.training import dataset

EVERY_SURVEY = pytest.mark.parametrize("survey", list(SURVEYS.values()), ids=list(SURVEYS))


def exposures(survey: Survey, per_band: int, *, noise: float = 1.0) -> Visits:
    """Each band `per_band` times, in its median conditions, at random rotations if the survey turns."""
    bands = list(survey.bands.values())
    band = np.repeat(np.arange(len(bands)), per_band)
    n = len(band)
    rng = np.random.default_rng(5)
    return Visits(
        mjd=53000.0 + np.arange(n),
        visit=np.arange(n),
        band=band,
        seeing=np.array([b.seeing for b in bands])[band],
        noise=np.array([b.sky_noise for b in bands])[band] * noise,
        depth=np.ones(n),
        rotation=rng.uniform(0, 360, n) if survey.turns else np.zeros(n),
    )


def aperture(size: int, radius: float) -> np.ndarray:
    """Share of each pixel (10 x 10 sub-pixels) that lies within a radius of the middle one."""
    fine = (np.arange(size * 10) + 0.5) / 10 - 0.5 - size // 2
    return (fine[:, None] ** 2 + fine**2 <= radius**2).reshape(size, 10, size, 10).mean((1, 3))


def aperture_flux(image: np.ndarray, radius: float) -> float:
    return float((image * aperture(len(image), radius)).sum())


def light_within(survey: Survey, fwhm: float, radius: float) -> float:
    """Share of a point source's light inside a radius (pixels), from the PSF drawn 10 times finer."""
    fine = Survey(**{**survey.__dict__, "pixel": survey.pixel / 10, "size": survey.size * 10, "oversample": 1})
    one = Visits(*(np.zeros(1, t) for t in (float, int, int, float, float, float, float)))
    one = Visits(one.mjd, one.visit, one.band, np.array([fwhm]), np.array([1e-9]), np.ones(1), one.rotation)
    rng = np.random.default_rng(0)
    image = render(rng, fine, one, [], np.array([1.0]), np.zeros(1), perfect=True).psf[0]
    y, x = np.indices(image.shape) - fine.size // 2
    return float(image[x**2 + y**2 <= (radius * 10) ** 2].sum())


@EVERY_SURVEY
def test_aperture_photometry_without_noise_gives_the_input_flux(survey: Survey) -> None:
    visits = exposures(survey, 2, noise=1e-6)
    flux = np.linspace(2e4, 9e5, len(visits))
    images = render(np.random.default_rng(1), survey, visits, [], flux, np.zeros(len(visits)), perfect=True)
    for image, true, fwhm in zip(images.clean, flux, visits.seeing, strict=True):
        radius = 2.5 * fwhm / survey.pixel
        share = light_within(survey, float(fwhm), radius)
        assert share > 0.93
        # PSFs are elliptical by a few per cent, which moves little light over the rim.
        assert aperture_flux(image, radius) / share == pytest.approx(true, rel=0.01)


@EVERY_SURVEY
def test_aperture_photometry_with_noise_gives_the_input_flux_in_every_band(survey: Survey) -> None:
    """A star alone: the flux that went in, band by band, within the error that sky and photons make."""
    per_band = 60
    visits = exposures(survey, per_band)
    flux = 60.0 * visits.noise
    n = len(visits)
    images = render(np.random.default_rng(6), survey, visits, [], flux, np.zeros(n), perfect=True)
    electrons = np.array([b.electrons for b in survey.bands.values()])[visits.band]
    for band, name in enumerate(survey.bands):
        fwhm = survey.bands[name].seeing
        radius = 1.2 * fwhm / survey.pixel
        weight, share = aperture(survey.size, radius), light_within(survey, fwhm, radius)
        of_band = visits.band == band
        measured = (images.science[of_band] * weight).sum((1, 2)) / share
        variance = visits.noise[of_band] ** 2 * (weight**2).sum() + flux[of_band] * share / electrons[of_band]
        pull = (measured - flux[of_band]) / (np.sqrt(variance) / share)
        assert abs(pull.mean()) < 3.5 / np.sqrt(per_band)
        assert pull.std() == pytest.approx(1, abs=0.3)


@EVERY_SURVEY
def test_photometry_of_noisy_stamps_scatters_as_its_errors_say(survey: Survey) -> None:
    """A faint source on a galaxy with a neighbour: aperture and PSF fluxes, every band."""
    per_band = 80
    visits = exposures(survey, per_band)
    bands = len(survey.bands)
    faint = 30 * np.array([b.sky_noise for b in survey.bands.values()])[visits.band]
    galaxy = Source(0.8, -0.5, np.full(bands, 3e4), Profile(1.0, 1.5, 0.6, 0.7))
    star = Source(-4.0, 5.0, np.full(bands, 1e4))
    rng = np.random.default_rng(11)
    images = render(rng, survey, visits, [galaxy, star], faint, np.zeros(len(visits)), perfect=True)
    pull = (images.flux - faint) / images.flux_error
    for band in range(bands):
        of_band = pull[visits.band == band]
        # The mean of 80 scatters by 0.11, their standard deviation by 0.08; the template's own mismatch adds to both.
        assert abs(of_band.mean()) < 0.45
        assert of_band.std() == pytest.approx(1, abs=0.3)
    electrons = np.array([b.electrons for b in survey.bands.values()])[visits.band]
    variance = visits.noise[:, None, None] ** 2 + np.maximum(images.clean, 0) / electrons[:, None, None]
    weight = np.array([aperture(survey.size, 1.5 * fwhm / survey.pixel) for fwhm in visits.seeing])
    error = np.sqrt((weight**2 * variance).sum((1, 2)))
    pull = ((images.science - images.clean) * weight).sum((1, 2)) / error
    assert abs(pull.mean()) < 3.5 / np.sqrt(len(pull))
    assert pull.std() == pytest.approx(1, abs=0.13)


@EVERY_SURVEY
def test_full_simulation_with_defects_recovers_fluxes_within_errors(survey: Survey) -> None:
    visits = exposures(survey, 60)
    reference = np.full(len(visits), 2e4)
    flux = reference + 40 * visits.noise
    images = render(np.random.default_rng(3), survey, visits, [], flux, reference)
    pull = (images.flux - (flux - reference)) / images.flux_error
    # Defects and astrometric errors make a tail; the middle of the distribution must be right.
    assert abs(np.median(pull)) < 0.35
    assert 0.7 < 1.4826 * np.median(np.abs(pull - np.median(pull))) < 1.35


@EVERY_SURVEY
def test_noise_area_is_that_of_the_drawn_psf(survey: Survey) -> None:
    visits = exposures(survey, 1)
    psf = render(np.random.default_rng(0), survey, visits, [], np.ones(len(visits)), np.ones(len(visits))).psf
    drawn = 1 / (psf.astype(float) ** 2).sum((1, 2))
    np.testing.assert_allclose(drawn, noise_area(visits.seeing, survey.pixel), rtol=0.06)


@EVERY_SURVEY
def test_source_is_in_the_middle_pixel(survey: Survey) -> None:
    visits = exposures(survey, 1, noise=1e-6)
    image = render(
        np.random.default_rng(0), survey, visits, [], np.full(len(visits), 1e5), np.zeros(len(visits)), perfect=True
    ).clean[0]
    y, x = np.indices(image.shape)
    assert (image * x).sum() / image.sum() == pytest.approx(survey.size // 2, abs=0.05)
    assert (image * y).sum() / image.sum() == pytest.approx(survey.size // 2, abs=0.05)


def test_north_is_up_and_east_is_left() -> None:
    survey = survey_named("sdss")
    visits = exposures(survey, 1, noise=1e-6)
    star = Source(west=4.0, north=8.0, fluxes=np.full(5, 1e6))
    image = render(np.random.default_rng(0), survey, visits, [star], np.zeros(5), np.zeros(5), perfect=True).clean[2]
    y, x = np.unravel_index(image.argmax(), image.shape)
    assert (x, y) == (32 + round(4 / 0.396), 32 + round(8 / 0.396))


def test_turned_camera_puts_a_neighbour_where_its_rotation_says() -> None:
    survey = survey_named("lsst")
    visits = exposures(survey, 3, noise=1e-6)
    star = Source(west=1.5, north=0.7, fluxes=np.full(6, 1e6))
    n = len(visits)
    images = render(np.random.default_rng(0), survey, visits, [star], np.zeros(n), np.zeros(n), perfect=True).clean
    for image, degrees in zip(images, visits.rotation, strict=True):
        angle = np.radians(degrees)
        # The image's +y points `rotation` degrees east of north, its +x 90 degrees clockwise of that.
        x = 15 + (1.5 * np.cos(angle) + 0.7 * np.sin(angle)) / 0.2
        y = 15 + (-1.5 * np.sin(angle) + 0.7 * np.cos(angle)) / 0.2
        rows, columns = np.indices(image.shape)
        bright = np.where(image > image.max() / 5, image, 0)
        assert (bright * columns).sum() / bright.sum() == pytest.approx(x, abs=0.2)
        assert (bright * rows).sum() / bright.sum() == pytest.approx(y, abs=0.2)


@pytest.mark.parametrize(("index", "radius"), [(1.0, 1.6), (4.0, 1.2)])
def test_half_of_a_galaxys_light_is_within_its_half_light_radius(index: float, radius: float) -> None:
    """The Fourier form of the profiles against the definition of the radius."""
    survey = Survey(**{**survey_named("sdss").__dict__, "pixel": 0.05, "size": 400})
    sharp = exposures(survey, 1, noise=1e-9)
    sharp = Visits(
        *(getattr(sharp, f) for f in ("mjd", "visit", "band")), np.full(5, 0.15), *([np.ones(5)] * 2), np.zeros(5)
    )
    galaxy = Source(0, 0, np.ones(5), Profile(index, radius, 1.0, 0.0))
    image = render(np.random.default_rng(0), survey, sharp, [galaxy], np.zeros(5), np.zeros(5), perfect=True).clean[0]
    assert aperture_flux(image, radius / 0.05) == pytest.approx(0.5, abs=0.03)


def test_galaxy_points_to_its_position_angle() -> None:
    survey = survey_named("sdss")
    visits = exposures(survey, 1, noise=1e-6)
    galaxy = Source(0, 0, np.full(5, 1e6), Profile(1.0, 2.5, 0.3, np.radians(60)))
    image = render(np.random.default_rng(0), survey, visits, [galaxy], np.zeros(5), np.zeros(5), perfect=True).clean[2]
    y, x = np.indices(image.shape) - 32.0
    east = -x
    angle = 0.5 * np.arctan2(2 * (image * east * y).sum(), (image * (y**2 - east**2)).sum())
    assert np.degrees(angle) == pytest.approx(60, abs=3)


@EVERY_SURVEY
def test_measured_light_curve_comes_back_exactly(survey: Survey) -> None:
    visits = exposures(survey, 8)
    rng = np.random.default_rng(2)
    error = visits.noise * np.sqrt(noise_area(visits.seeing, survey.pixel)) * rng.uniform(0.8, 1.5, len(visits))
    flux = rng.uniform(0, 20, len(visits)) * error
    galaxy = Source(0.5, 0.3, np.full(len(survey.bands), 1e4), Profile(4.0, 1.0, 0.8, 0.2))
    images, sky = render_measured(rng, survey, visits, [galaxy], flux, error, np.zeros(len(visits)))
    np.testing.assert_allclose(images.flux, flux, atol=0.01 * error.max())
    photons = (
        np.maximum(images.clean, 0) / np.array([b.electrons for b in survey.bands.values()])[visits.band][:, None, None]
    )
    noise = np.sqrt(sky[:, None, None] ** 2 + photons).astype(np.float32)
    _, implied = psf_photometry(images.science, images.psf, noise)
    # Where the photons alone would explain more than 80 % of the error, they were scaled down.
    assert (implied > 0.97 * error).all()
    assert np.median(implied / error) < 1.1


def digest(path: Path) -> dict[str, str]:
    return {str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in path.rglob("*.parquet")}


@EVERY_SURVEY
def test_same_seed_same_bytes_on_any_number_of_processes(survey: Survey, tmp_path: Path) -> None:
    one = simulate(survey.name, 40, 7, tmp_path / "one", processes=1, progress=False)
    two = simulate(survey.name, 40, 7, tmp_path / "two", processes=2, progress=False)
    assert digest(one) == digest(two)
    cards = [Archive(path).card for path in (one, two)]
    assert {name for name in cards[0] if cards[0][name] != cards[1][name]} <= {"date"}
    other = simulate(survey.name, 4, 8, tmp_path / "other", processes=1, progress=False)
    assert set(Archive(one).object_ids).isdisjoint(Archive(other).object_ids)


def test_simulated_archive_is_sound_and_balanced(tmp_path: Path) -> None:
    path = simulate("sdss", 24, 3, tmp_path / "a", seasons=1, balanced=True, processes=1, progress=False)
    assert validate(path) == []
    archive = Archive(path)
    assert {c: archive.objects["class"].to_pylist().count(c) for c in CLASSES} == dict.fromkeys(CLASSES, 6)
    assert archive.objects["class"].to_pylist() == archive.objects["true_class"].to_pylist()
    assert archive.image_shape == (64, 64)
    for row, stamps in archive.each(kinds=()):
        assert 53614 <= stamps["mjd"].min() < stamps["mjd"].max() < 53707
        assert np.isfinite(row["first_alert_mjd"])


def test_bands_of_an_sdss_visit_lie_within_five_minutes(tmp_path: Path) -> None:
    archive = Archive(simulate("sdss", 4, 3, tmp_path / "a", processes=1, progress=False))
    for _, stamps in archive.each(kinds=()):
        nights = np.split(stamps["mjd"], np.flatnonzero(np.diff(stamps["mjd"]) > 0.3) + 1)
        assert max(np.ptp(night) for night in nights) * 1440 < 5
        assert len(nights) > 8
        assert np.median([len(night) for night in nights]) == 5


@EVERY_SURVEY
@pytest.mark.parametrize("truth", CLASSES)
def test_every_flux_and_stamp_is_a_number(survey: Survey, truth: str) -> None:
    for number in range(12):
        thing, rows, *_ = simulate_object(survey, 9, number, Wish(truth, truth, True), 3)
        assert thing.label == truth
        for column in ("mjd", "flux", "flux_error", "source_flux", "psf_fwhm", "sky_noise"):
            assert np.isfinite(rows[column]).all()
        assert (np.isfinite(rows["stamp"]).mean((1, 2)) > 0.45).all()


@EVERY_SURVEY
def test_alerts_are_what_the_survey_sends(survey: Survey) -> None:
    """ZTF and LSST send detections alone, of any band; of SDSS every exposure counts from the first detection on."""
    for number, truth in enumerate(CLASSES * 2):
        _, rows, *_ = simulate_object(survey, 5, number, Wish(truth, truth, True), 3)
        high = np.abs(rows["flux"]) > 5 * rows["flux_error"]
        searched = np.isin(rows["band"], list("gri")) if survey.name == "sdss" else np.ones(len(rows), bool)
        np.testing.assert_array_equal(rows["detected"], high & searched)
        first = rows["mjd"][rows["detected"]].min()
        if survey.name == "sdss":
            assert rows["alert"][rows["mjd"] >= first].all()
            assert not rows["alert"][rows["mjd"] < first - 0.02].any()
        else:
            assert rows["alert"].all()
            assert rows["detected"].all()
            assert len(rows) <= 12


@pytest.mark.parametrize("name", ["ztf", "lsst"])
def test_what_is_no_alert_is_photometry(name: str, tmp_path: Path) -> None:
    path = simulate(name, 8, 3, tmp_path / "a", seasons=1, balanced=True, most=5, processes=1, progress=False)
    assert validate(path) == []
    archive = Archive(path)
    kinds = Counter(int(k) for name in archive.object_ids for p in archive.extras(name).photometry for k in p.kind)
    assert kinds[FORCED] > 0
    assert (kinds[UPPER_LIMIT] > 0) == (name == "ztf")
    assert max(archive.objects["stamps"].to_pylist()) <= 5
    assert len(dataset.load(path).stamps) == archive.card["stamps"]
    assert "sends a packet only for what it detects" in (path / "README.md").read_text()


def test_other_surveys_have_templates_and_differences(tmp_path: Path) -> None:
    archive = Archive(simulate("ztf", 4, 3, tmp_path / "a", processes=1, progress=False))
    stamps = archive.stamps(archive.object_ids[0], kinds=("stamp", "template", "difference"))
    assert stamps["stamp"].shape[1:] == (63, 63)
    quiet, noisy = np.nanstd(stamps["template"][:, :8]), np.nanstd(stamps["stamp"][:, :8])
    assert quiet < noisy
    # What does not change cancels: the difference keeps the noise, not the neighbours.
    assert np.nanmedian(np.abs(stamps["difference"])) < 1.3 * np.nanmedian(np.abs(stamps["stamp"]))


def test_difference_is_empty_beyond_a_chips_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skyheed.classifier.sky.defects.CHIP_EDGE", 0.5)
    survey = survey_named("ztf")
    visits = exposures(survey, 10)
    n = len(visits)
    galaxy = Source(5.0, 5.0, np.full(len(survey.bands), 1e6), Profile(1.0, 12.0, 0.6, 0.7))
    images = render(np.random.default_rng(2), survey, visits, [galaxy], np.zeros(n), np.zeros(n))
    beyond = images.science == 0
    assert beyond.any()
    assert images.difference is not None
    assert (images.difference[beyond] == 0).all()


def test_published_counts_and_label_errors() -> None:
    wishes = plan(8249, 1, balanced=False)
    found = {key: sum((w.label, w.confirmed) == key for w in wishes) for key in PUBLISHED}
    assert found == dict(PUBLISHED)
    photometric = [w for w in wishes if w.label == "SNIa" and not w.confirmed]
    assert 0.02 < np.mean([w.truth != "SNIa" for w in photometric]) < 0.06
    assert all(w.truth == w.label for w in wishes if w.confirmed)


def test_small_plans_have_exactly_the_number_asked_for() -> None:
    assert [len(plan(n, 1, balanced=b)) for n in (1, 2, 7, 101) for b in (False, True)] == [1, 1, 2, 2, 7, 7, 101, 101]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(("sdss", 0, 1), "at least one"), (("hst", 5, 1), "no sky for survey 'hst'"), (("sdss", 5, -1), "seed")],
)
def test_impossible_requests_are_refused(arguments: tuple[str, int, int], word: str, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=word):
        simulate(*arguments, tmp_path / "a")
    with pytest.raises(ArchiveError, match="seasons"):
        simulate("sdss", 5, 1, tmp_path / "a", seasons=9)


def test_killed_process_ends_the_simulation_with_a_sentence(tmp_path: Path) -> None:
    """The first worker to appear is killed, as the kernel does when memory runs out."""

    def kill_the_first_child() -> None:
        for _ in range(600):
            children = Path(f"/proc/self/task/{main}/children").read_text().split()
            workers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
            if workers:
                os.kill(int(workers[0]), signal.SIGKILL)
                return
            time.sleep(0.05)

    main = threading.get_native_id()
    killer = threading.Thread(target=kill_the_first_child)
    killer.start()
    with pytest.raises(ArchiveError, match="killed"):
        simulate("sdss", 64, 1, tmp_path / "a", processes=2, progress=False)
    killer.join()
    assert list(tmp_path.iterdir()) == []


def test_all_objects_share_the_same_nights() -> None:
    survey = survey_named("sdss")
    one, two = (visits_at(np.random.default_rng(i), survey, 0, 1, 10.0, (0,)) for i in (1, 2))
    assert set(np.floor(one.mjd)) == set(np.floor(two.mjd))


def test_command_line(tmp_path: Path) -> None:
    out = str(tmp_path / "sky")
    arguments = ["simulate", "--objects", "4", "--seasons", "1", "--balanced", "--processes", "1", "-o", out]
    result = CliRunner().invoke(archive_cli.archive, arguments)
    assert result.exit_code == 0, result.output
    assert "--objects 4 --seed 1 --seasons 1 --balanced" in Archive(out).card["command"]
