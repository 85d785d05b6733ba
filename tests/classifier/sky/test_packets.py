"""What simulated packets say besides stamps: photometry, catalogues, the past; and where on the sky they are."""

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from test_sky import exposures

from skyheed.classifier import context as contexts
from skyheed.classifier.archives.extras import Extras
from skyheed.classifier.history import BANDS, DETECTION, FORCED, UPPER_LIMIT
from skyheed.classifier.sky import catalogue, irregular, populations
from skyheed.classifier.sky.galaxies import Galaxy, Profile
from skyheed.classifier.sky.objects import Wish
from skyheed.classifier.sky.render import Source, render
from skyheed.classifier.sky.scene import Content
from skyheed.classifier.sky.simulation import simulate_object
from skyheed.classifier.sky.surveys import Survey, survey_named

ZTF, LSST = survey_named("ztf"), survey_named("lsst")
CLASSES = ("AGN", "SNIa", "SNOther", "Variable")


@pytest.fixture(scope="module", params=["ztf", "lsst"])
def made(request: pytest.FixtureRequest) -> tuple[Survey, list[tuple[np.ndarray, Extras, float]]]:
    """Two objects of every class: rows, extras and galactic latitude."""
    survey, found = survey_named(request.param), []
    for number in range(8):
        truth = CLASSES[number % 4]
        thing, rows, extras = simulate_object(survey, 4, number, Wish(truth, truth, True), 3)
        found.append((rows, extras, contexts.galactic_latitude(thing.ra, thing.dec)))
    return survey, found


def test_photometry_reaches_back_and_never_forward(made: tuple[Survey, list[tuple[np.ndarray, Extras, float]]]) -> None:
    survey, objects = made
    for rows, extras, _ in objects:
        for index, (row, points) in enumerate(zip(rows, extras.photometry, strict=True)):
            assert (points.mjd <= row["mjd"]).all()
            assert (points.mjd > row["mjd"] - survey.history_days).all()
            own = (points.mjd == row["mjd"]) & (points.kind == DETECTION) & (points.band == BANDS.index(row["band"]))
            assert points.flux[own] == pytest.approx([row["flux"]])
            assert points.flux_error[own] == pytest.approx([row["flux_error"]])
            known = extras.until(index)
            limits = known.kind == UPPER_LIMIT
            assert (known.flux[limits] == 0).all()
            assert (known.flux_error > 0).all()
            detections = known.kind == DETECTION
            assert (np.abs(known.flux[detections]) > 4.99 * known.flux_error[detections]).all()
            assert survey.upper_limits or not limits.any()


def test_photometry_holds_limits_and_forced_points(made: tuple[Survey, list[tuple[np.ndarray, Extras, float]]]) -> None:
    survey, objects = made
    kinds = np.concatenate([extras.until(len(extras) - 1).kind for _, extras, _ in objects])
    assert (kinds == DETECTION).sum() > 30
    assert (kinds == FORCED).any()
    assert (kinds == UPPER_LIMIT).any() == survey.upper_limits


def test_context_is_what_the_survey_says(made: tuple[Survey, list[tuple[np.ndarray, Extras, float]]]) -> None:
    survey, objects = made
    told = {quantity.name for quantity in contexts.QUANTITIES if survey.name in quantity.fields}
    for rows, extras, latitude in objects:
        for context in extras.context:
            contexts.check(context)
            assert set(context) <= told
            assert context["galactic_latitude"] == pytest.approx(latitude, abs=1e-3)
            assert context.get("visits", np.inf) >= context["detections"]
        counted = [context["detections"] for context in extras.context]
        assert counted[0] >= 1
        assert (np.diff(counted) >= 1).all()
        ages = np.array([context["age_days"] for context in extras.context])
        np.testing.assert_allclose(np.diff(ages), np.diff(rows["mjd"]), atol=1e-6)
    rendered = told - {"detection_extendedness"}  # which no model reads
    assert {name for _, extras, _ in objects for context in extras.context for name in context} == rendered


def test_an_object_of_which_noise_hides_every_detection_has_alerts_nevertheless() -> None:
    wish = Wish("Variable", "Variable", confirmed=True)
    _, rows, extras = simulate_object(LSST, 77, 165, wish, 3, most=12)  # its fluxes with noise are all below 5 sigma
    assert 1 <= len(rows) == len(extras.photometry) <= 12
    assert (np.abs(rows["flux"]) > 4.99 * rows["flux_error"]).all()


def scores(content: Content, own: float, count: int = 300) -> np.ndarray:
    rng, mine = np.random.default_rng(0), np.full(3, own)
    drawn = np.array([catalogue._thing(rng, ZTF, mine, content)[0].star for _ in range(count)])
    return drawn[drawn != 0.5]


def point(magnitude: float) -> Content:
    return Content(3.0, 0.0, np.full(3, 10 ** (0.4 * (31.4 - magnitude))))


def galaxy(magnitude: float, radius: float = 2.0, offset: float = 0.0) -> Content:
    shape = (Profile(4.0, radius * 0.6, 0.9, 0.0), Profile(1.0, radius, 0.8, 0.0))
    fluxes = np.full(3, 10 ** (0.4 * (31.4 - magnitude)))
    return Content(offset, 0.0, fluxes, Galaxy("Sbc", fluxes, 0.3, shape))


def test_scores_are_sure_of_bright_sources_and_confused_of_faint_ones() -> None:
    assert np.median(scores(point(16), 0)) > 0.95
    assert np.median(scores(galaxy(17), 0)) < 0.1
    faint = scores(point(22), 0)
    assert 0.1 < (faint < 0.5).mean() < 0.5
    assert (scores(galaxy(21.5), 0) > 0.5).mean() > 0.05


def test_quasars_are_points_and_seyferts_galaxies() -> None:
    bright = 10 ** (0.4 * (31.4 - 17.0))
    assert np.median(scores(galaxy(20.0, 0.5), bright)) > 0.8
    assert np.median(scores(galaxy(16.0), bright)) < 0.3


@pytest.mark.parametrize(("magnitude", "radius"), [(17.0, 1.0), (17.0, 6.0)])
def test_large_galaxies_look_fainter_to_psf_photometry(magnitude: float, radius: float) -> None:
    _, seen = catalogue._thing(np.random.default_rng(0), ZTF, np.zeros(3), galaxy(magnitude, radius))
    lost = 31.4 - 2.5 * np.log10(seen[1]) - magnitude
    assert 0 < lost < 0.7 if radius == 1.0 else 1.0 < lost < 3.0


def test_places_are_where_astropy_puts_them() -> None:
    for longitude, b in ((0, 0), (123, -40), (250, 85), (300, 10)):
        there = SkyCoord(l=longitude, b=b, unit="deg", frame="galactic").icrs
        assert populations.equatorial(longitude, b) == pytest.approx((there.ra.deg, there.dec.deg), abs=0.01)


def test_disc_stars_gather_in_the_plane_and_galaxies_do_not() -> None:
    rng = np.random.default_rng(0)
    disc, halo, beyond = ([populations.place(rng, ZTF, kind)[2] for _ in range(400)] for kind in ("EW", "RRab", ""))
    assert np.median(disc) < 14 < 25 < np.median(halo)
    assert min(beyond) >= populations.OBSCURED
    assert populations.star_density(2) > 8 > populations.star_density(20) > 2
    assert populations.star_density(60) == pytest.approx(1, abs=0.1)
    low, high = (np.median([populations.dust(rng, ZTF, b, "") for _ in range(200)]) for b in (3, 60))
    assert low > 4 * high


def test_stars_of_the_disc_crowd_the_stamps() -> None:
    from skyheed.classifier.sky.scene import contents
    from skyheed.classifier.sky.targets import Target

    none = Target("Variable", "EW", np.nan, 0.0, np.ones(1), np.ones(1), None, 17.0, {})
    low, high = (
        np.mean([len(contents(np.random.default_rng(i), ZTF, none, 0.1, b)) for i in range(30)]) for b in (3, 60)
    )
    assert low > 2 * high


def test_template_and_science_share_the_place_and_sources_lie_anywhere_in_their_pixel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for defect in ("COSMIC_RAY", "BAD_COLUMN", "CHIP_EDGE"):
        monkeypatch.setattr(f"skyheed.classifier.sky.defects.{defect}", 0.0)
    visits = exposures(ZTF, 40, noise=1e-3)
    n = len(visits)
    star = [Source(0, 0, np.full(3, 1e7))]
    images = render(np.random.default_rng(3), ZTF, visits, star, np.zeros(n), np.zeros(n))
    assert images.template is not None
    places = np.array([[centroid(image) for image in kind] for kind in (images.science, images.template)])
    offset = places[0]
    assert np.abs(places[0] - places[1]).max() < 0.15
    assert offset.std(0) == pytest.approx([0.29, 0.29], abs=0.06)


def centroid(image: np.ndarray) -> tuple[float, float]:
    cut = image[25:38, 25:38].astype(float) - np.median(image)
    v, u = np.indices(cut.shape) - 6.0
    return float((cut * u).sum() / cut.sum()), float((cut * v).sum() / cut.sum())


def test_noise_of_templates_is_correlated_and_that_of_science_is_not() -> None:
    visits = exposures(ZTF, 4, noise=1000.0)
    n = len(visits)
    images = render(np.random.default_rng(3), ZTF, visits, [], np.zeros(n), np.zeros(n), perfect=True)
    assert images.template is not None

    def likeness(image: np.ndarray) -> float:
        return float(np.mean([np.corrcoef(i[:, 1:].ravel(), i[:, :-1].ravel())[0, 1] for i in image]))

    assert likeness(images.template) > 0.1
    assert abs(likeness(images.science)) < 0.03


@pytest.mark.parametrize("make", [irregular.young, irregular.cataclysmic, irregular.spotted, irregular.mira])
def test_irregular_stars_remember_what_they_did(make: object) -> None:
    """The same time gives the same magnitude, whatever else is asked for."""
    change, facts = make(np.random.default_rng(5), "")  # type: ignore[operator]
    mjd = np.sort(np.random.default_rng(1).uniform(58_300, 58_700, 400))
    node = np.random.default_rng(2).integers(0, 5, 400)
    whole = change(mjd, node)
    np.testing.assert_allclose(change(mjd[50:60], node[50:60]), whole[50:60], atol=1e-9)
    assert np.isfinite(whole).all()
    assert 0.03 < np.ptp(whole) < 9
    assert facts


def test_dwarf_novae_are_quiet_most_of_the_time_and_brighten_by_magnitudes() -> None:
    mjd = np.arange(58_300, 58_900, 0.5)
    for seed in range(6):
        change, facts = irregular.cataclysmic(np.random.default_rng(seed), "CV")
        light = change(mjd, np.full(len(mjd), 2))
        assert light.min() < -0.8 * facts["outburst"]
        assert np.median(light) > -1
