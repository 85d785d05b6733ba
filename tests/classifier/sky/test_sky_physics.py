"""Physics of the simulated sky: distances, dust, spectra, light curves, populations."""

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from real_data import real_data

from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.sky import agn, galaxies, simulate, stars, supernovae, type_ia
from skyheed.classifier.sky.conditions import season, visits_at
from skyheed.classifier.sky.factories import MAKERS, supernova_flux
from skyheed.classifier.sky.objects import Wish, is_found, observe
from skyheed.classifier.sky.spectra import (
    bandpass,
    comoving_distance,
    distance_modulus,
    extinction_law,
    kpc_per_arcsec,
    magnitude_to_njy,
    njy_to_magnitude,
)
from skyheed.classifier.sky.surveys import LSST, SDSS, SURVEYS, ZTF
from skyheed.classifier.sky.targets import Sight
from skyheed.classifier.sky.templates import load_template
from skyheed.classifier.sources.lightcurves import read_light_curve


def test_distances_are_those_of_the_standard_cosmology() -> None:
    # astropy.cosmology.FlatLambdaCDM(70, 0.3): modulus 38.32, 41.81 at z = 0.1, 0.4; 6.114 kpc per arcsec at 0.5.
    assert distance_modulus(0.1) == pytest.approx(38.32, abs=0.01)
    assert distance_modulus(0.4) == pytest.approx(41.69, abs=0.03)
    assert kpc_per_arcsec(0.5) == pytest.approx(6.10, abs=0.02)
    assert comoving_distance(0.0) == 0


def test_distances_agree_with_astropy() -> None:
    from astropy.cosmology import FlatLambdaCDM

    cosmology = FlatLambdaCDM(70, 0.3)
    z = np.array([0.01, 0.2, 1.0, 3.0])
    np.testing.assert_allclose(distance_modulus(z), cosmology.distmod(z).value, atol=0.003)
    np.testing.assert_allclose(kpc_per_arcsec(z), 1 / cosmology.arcsec_per_kpc_proper(z).value, rtol=0.002)


def test_magnitudes_and_fluxes() -> None:
    assert magnitude_to_njy(31.4) == pytest.approx(1)
    assert njy_to_magnitude(3631e9) == pytest.approx(0, abs=0.001)
    assert np.isnan(njy_to_magnitude(-1))


@pytest.mark.parametrize("survey", SURVEYS.values(), ids=SURVEYS)
def test_dust_law_gives_the_tabulated_band_extinctions(survey: object) -> None:
    for name, band in survey.bands.items():  # type: ignore[attr-defined]
        wavelength, weight = bandpass(survey, name)  # type: ignore[arg-type]
        computed = 3.1 * float((extinction_law(wavelength) * weight).sum())
        # Schlafly & Finkbeiner use another law (Fitzpatrick 1999) and found dust 14 % thinner.
        assert computed * 0.86 == pytest.approx(band.extinction, rel=0.10)


def standard_ia(rng_seed: int = 0) -> supernovae.Supernova:
    return type_ia.draw_ia(np.random.default_rng(rng_seed))


def test_ia_reaches_unit_flux_in_b_at_maximum() -> None:
    flux = np.exp(type_ia.ia_light_curves(np.array([0.0])))[0]
    at_b = np.interp(type_ia.B_WAVELENGTH, type_ia.IA_LIGHT_CURVES[:, 0], flux)
    # B is wide and its middle lies in an absorption line.
    assert at_b == pytest.approx(1, abs=0.1)


def test_ia_declines_by_a_magnitude_in_fifteen_days_in_b() -> None:
    levels = np.exp(type_ia.ia_light_curves(np.array([0.0, 15.0])))
    b = [np.interp(type_ia.B_WAVELENGTH, type_ia.IA_LIGHT_CURVES[:, 0], row) for row in levels]
    assert 2.5 * np.log10(b[0] / b[1]) == pytest.approx(1.1, abs=0.15)


def test_ia_has_a_second_maximum_in_i_but_not_in_g() -> None:
    days = np.arange(0.0, 40, 1)
    flux = type_ia.draw_ia(np.random.default_rng(4)).surface(days, np.array([4700.0, 7800.0]))
    rises = (np.diff(flux, axis=0) > 0).sum(0)
    assert rises[0] == 0
    assert rises[1] > 3


def test_nothing_shines_before_the_explosion() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        for sn in (type_ia.draw_ia(rng), supernovae.draw_core_collapse(rng)):
            flux = sn.surface(np.array([sn.first_day - 5, sn.first_day - 0.5]), np.array([5000.0]))
            assert (np.abs(flux) < 1e-3).all()


@pytest.mark.parametrize("kind", supernovae.CORE_COLLAPSE)
def test_core_collapse_is_brightest_at_maximum_and_fades(kind: str) -> None:
    for seed in range(10):
        sn = supernovae.draw_core_collapse(np.random.default_rng(seed), kind)
        days = np.arange(sn.first_day, 200, 1.0)
        flux = sn.surface(days, np.array([supernovae.R_WAVELENGTH]))[:, 0]
        assert np.isfinite(flux).all()
        assert abs(days[flux.argmax()]) <= 3
        assert flux.max() == pytest.approx(1, abs=0.05)
        assert flux[-1] < 0.2


# Li et al. 2011, table 6: R in the Vega system, for H0 = 73.
LI = {"II-P": (-15.66, 1.23), "II-L": (-17.44, 0.64), "IIn": (-16.86, 1.20), "IIb": (-16.65, 1.30)}


@pytest.mark.parametrize("kind", LI)
def test_core_collapse_is_as_luminous_as_published_in_ab(kind: str) -> None:
    """What is drawn, dimmed by its dust: the published mean, nearer by H0 and 3080 Jy instead of 3631 at R = 0."""
    rng = np.random.default_rng(12)
    red = float(extinction_law(np.array(supernovae.R_WAVELENGTH)))
    drawn = [supernovae.draw_core_collapse(rng, kind) for _ in range(4000)]
    dimmed = np.array([sn.magnitude + sn.dust * red for sn in drawn])
    mean, scatter = LI[kind]
    expected = mean - 5 * np.log10(73 / 70) + 2.5 * np.log10(3631 / 3080)
    assert np.median(dimmed) == pytest.approx(expected, abs=4 * 1.25 * scatter / np.sqrt(len(drawn)))
    assert dimmed.min() >= supernovae.MOST_LUMINOUS - 1e-9


def test_a_core_collapse_supernova_at_10_pc_has_its_ab_magnitude_in_r() -> None:
    """From the drawn magnitude to the survey's flux: the band near R sees it in nJy of AB."""
    sn = supernovae.draw_core_collapse(np.random.default_rng(3), "II-P")
    bare = supernovae.Supernova(sn.type, -16.0, sn.surface, sn.first_day, sn.last_day, 0.0)
    visits = visits_at(np.random.default_rng(0), SDSS, 0, 1, 10.0, (0,))
    z = 0.01
    flux = supernova_flux(bare, Sight(SDSS, visits, 0.0, 99.0, type_ia.STANDARD), z, float(np.median(visits.mjd)))
    brightest = njy_to_magnitude(flux[visits.band == 2].max())
    assert brightest - float(distance_modulus(z)) == pytest.approx(-16.0, abs=0.1)


def test_plateau_stays_and_linear_type_falls() -> None:
    drop = {}
    for kind in ("II-P", "II-L"):
        sn = [supernovae.draw_core_collapse(np.random.default_rng(s), kind) for s in range(20)]
        red = [s.surface(np.array([5.0, 55.0]), np.array([supernovae.R_WAVELENGTH]))[:, 0] for s in sn]
        drop[kind] = np.median([2.5 * np.log10(a / b) for a, b in red])
    assert drop["II-P"] < 0.8
    assert drop["II-L"] > drop["II-P"] + 0.5


def test_supernovae_redden_as_they_cool() -> None:
    for kind in ("II-P", "Ic"):
        sn = supernovae.draw_core_collapse(np.random.default_rng(1), kind)
        flux = sn.surface(np.array([0.0, 30.0]), np.array([4400.0, 6400.0]))
        assert flux[1, 0] / flux[1, 1] < 0.8 * flux[0, 0] / flux[0, 1]


def test_supernova_dims_and_slows_with_redshift() -> None:
    sn = standard_ia()
    visits = visits_at(np.random.default_rng(0), SDSS, 0, 1, 10.0, (0,))
    peak = float(np.median(visits.mjd))
    near, far = (supernova_flux(sn, Sight(SDSS, visits, 0.0, 99.0, type_ia.STANDARD), z, peak) for z in (0.1, 0.3))
    red = visits.band == 2
    assert near[red].max() / far[red].max() == pytest.approx(10 ** (0.4 * 2.6), rel=0.5)


def test_walk_has_unit_variance_and_its_correlation_time() -> None:
    times = np.arange(0, 4000.0, 5)
    walks = agn.damped_random_walk(np.random.default_rng(0), times, 50.0, 200)
    assert walks.std() == pytest.approx(1, abs=0.03)
    correlation = (walks[:, :-10] * walks[:, 10:]).mean()
    assert correlation == pytest.approx(np.exp(-1), abs=0.05)


def test_agn_vary_more_in_the_blue_and_all_bands_together() -> None:
    rng = np.random.default_rng(1)
    nucleus = agn.draw_nucleus(rng, 0.8, -24.0)
    curves, timescale, rms = agn.light_curves(
        rng, nucleus, np.arange(0, 2000.0, 3), np.array([b.wavelength for b in SDSS.bands.values()])
    )
    assert rms[0] > rms[2] > rms[4]
    assert 30 < timescale < 10_000
    assert np.corrcoef(curves[1], curves[3])[0, 1] > 0.9


def test_agn_amplitudes_are_those_of_stripe_82() -> None:
    table = np.genfromtxt(real_data("sdss", "quasar_drw", "javelin_SDSS_chain_results_r_band.txt"), usecols=(2, 5))
    rng = np.random.default_rng(2)
    found = []
    for _ in range(300):
        z = float(np.clip(1.4 * np.exp(rng.normal(0, 0.5)), 0.3, 4))
        m = 20.5 - rng.exponential(0.9) - float(distance_modulus(z)) + 1.4 * np.log10(1 + z) - 0.6
        _, tau, rms = agn.light_curves(rng, agn.draw_nucleus(rng, z, m), np.arange(2.0), np.array([6166.0]))
        found.append((rms[0], tau))
    real, simulated = (np.median(np.log(t[(t > 0).all(1)]), axis=0) for t in (table, np.array(found)))
    np.testing.assert_allclose(simulated, real, atol=0.25)


def test_rr_lyrae_ranges_and_periods() -> None:
    drawn = [stars.draw_star(np.random.default_rng(s), "RRab") for s in range(200)]
    assert np.mean([s.facts["period"] for s in drawn]) == pytest.approx(0.58, abs=0.02)
    days = np.linspace(53000, 53001.5, 400)
    ranges = np.array([[np.ptp(s.change(days, np.full(400, node))) for node in (1, 2, 3)] for s in drawn])
    assert np.median(ranges[:, 0]) == pytest.approx(0.99, abs=0.15)  # Sesar et al. 2010, median of Ag
    assert np.median(ranges[:, 1] / ranges[:, 0]) == pytest.approx(0.72, abs=0.05)
    # They brighten faster than they fade.
    wave = drawn[0].change(np.linspace(53000, 53000 + drawn[0].facts["period"], 400), np.full(400, 1))
    assert (np.diff(wave) < 0).mean() < 0.4


@pytest.mark.parametrize("kind", stars.MIXTURE)
def test_every_kind_of_star_changes_by_a_sensible_amount(kind: str) -> None:
    days = np.arange(53000, 53100, 0.01)
    for seed in range(5):
        star = stars.draw_star(np.random.default_rng(seed), kind)
        change = star.change(days, np.full(len(days), 1))
        assert np.isfinite(change).all()
        assert 0.02 < np.ptp(change) < 8
        np.testing.assert_array_equal(change, star.change(days, np.full(len(days), 1)))


def test_flares_are_blue_and_brief() -> None:
    star = stars.draw_star(np.random.default_rng(3), "flare")
    days = np.arange(53000, 53060, 0.002)
    blue, red = star.change(days, np.zeros(len(days), int)), star.change(days, np.full(len(days), 4))
    assert blue.min() < 3 * red.min() < 0
    assert np.mean(blue < blue.min() / 2) < 0.01


@pytest.mark.parametrize("index", [1.0, 4.0])
def test_places_in_a_galaxy_follow_its_light(index: float) -> None:
    rng = np.random.default_rng(0)
    profile = galaxies.Profile(index, 2.0, 1.0, 0.0)
    radii = [np.hypot(*profile.place(rng)) for _ in range(2000)]
    assert np.mean(np.array(radii) < 2.0) == pytest.approx(0.5, abs=0.05)


def test_galaxies_get_redder_and_smaller_with_distance() -> None:
    rng = np.random.default_rng(1)
    near, far = (galaxies.make_galaxy(rng, SDSS, "E", z, -21.5) for z in (0.05, 0.35))
    colour = [float(-2.5 * np.log10(g.fluxes[1] / g.fluxes[2])) for g in (near, far)]
    assert colour[0] == pytest.approx(0.85, abs=0.15)
    assert colour[1] > colour[0] + 0.4
    assert near.profiles[1].radius > far.profiles[1].radius


@pytest.mark.parametrize("survey", [SDSS, ZTF, LSST], ids=lambda s: s.name)
@pytest.mark.parametrize("truth", MAKERS)
def test_every_class_is_found_by_every_survey(survey: object, truth: str) -> None:
    seen = observe(np.random.default_rng(1), survey, 1, 0, Wish(truth, truth, True))  # type: ignore[arg-type]
    assert is_found(survey, seen.visits, seen.target.flux, seen.target.reference, 1)  # type: ignore[arg-type]
    assert np.isfinite(seen.target.flux).all()
    assert (seen.target.flux >= 0).all()


def test_confirmed_supernovae_are_brighter() -> None:
    bright = {
        confirmed: np.median(
            [
                observe(np.random.default_rng(s), SDSS, 1, 0, Wish("SNIa", "SNIa", confirmed)).target.bright
                for s in range(25)
            ]
        )
        for confirmed in (True, False)
    }
    assert bright[True] < bright[False] - 0.4


def test_weather_comes_in_spells_and_strips_take_turns() -> None:
    plan = season(SDSS, 0, 5)
    nights = np.unique(plan.night)
    assert 35 < len(nights) < 75
    of_field = np.unique(plan.night[plan.field == 0])
    assert 12 < len(of_field) < 32
    assert (np.diff(of_field) == 1).mean() < 0.45


def test_real_and_simulated_ia_have_the_same_colours_at_maximum() -> None:
    """Median g-r and r-i within five days of maximum of the real SNe and of as many simulated at the same epochs."""
    rng = np.random.default_rng(8)
    colours: dict[str, list[tuple[float, float]]] = {"real": [], "simulated": []}
    for path in sorted(real_data("sdss", "snia_lightcurves").glob("*.dat.gz")):
        curve = read_light_curve(path)
        near = curve[np.abs(curve.mjd - curve.peak_mjd) < 5]
        if not {"g", "r", "i"} <= set(near.band):
            continue
        phase = np.array([0.0])
        sn = type_ia.draw_ia(rng)
        level = []
        for band in "gri":
            wavelength, weight = bandpass(SDSS, band)
            rest = wavelength / (1 + curve.redshift)
            level.append((sn.surface(phase, rest) @ weight)[0])
        real = [np.average(near.flux[near.band == b], weights=near.error[near.band == b] ** -2) for b in "gri"]
        for name, (g, r, i) in (("real", real), ("simulated", level)):
            colours[name].append((-2.5 * np.log10(g / r), -2.5 * np.log10(r / i)))
    real_median, simulated_median = (np.median(colours[name], axis=0) for name in ("real", "simulated"))
    np.testing.assert_allclose(simulated_median, real_median, atol=0.06)


# --- templates --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Hsiao_SED_V3.fits", "salt3-f22"])
def test_real_templates_agree_with_our_light_curves(name: str) -> None:
    if name.startswith("salt3"):
        pytest.importorskip("sncosmo")
    template = load_template(real_data("templates", name))
    days = np.array([-8.0, 0, 10, 20])
    wavelength = np.array([4400.0, 5300, 6300, 7600])
    ours, theirs = (
        type_ia.interpolate_wavelength(t.log_flux(days, 0.0), t.nodes, wavelength) for t in (type_ia.STANDARD, template)
    )
    # Half a magnitude at ten thousand kelvin's end and less elsewhere: they are fits to different supernovae.
    assert np.abs(ours - theirs).max() < 0.5
    assert np.median(np.abs(ours - theirs)) < 0.15


def test_template_takes_the_place_of_our_light_curves(tmp_path: Path) -> None:
    """A made-up template: flat in frequency, a triangle in time."""
    days, wavelength = np.arange(-20.0, 86), np.arange(1000.0, 12000, 10)
    light = np.clip(1 - np.abs(days) / 40, 1e-6, 1)[:, None] / wavelength**2
    part = fits.PrimaryHDU(light)
    part.header.update(CRVAL1=1000, CDELT1=10, CRPIX1=1, CRVAL2=-20, CDELT2=1, CRPIX2=1)
    part.writeto(tmp_path / "flat.fits")
    template = load_template(tmp_path / "flat.fits")
    flux = np.exp(template.log_flux(np.array([0.0, 20.0]), 0.0))
    np.testing.assert_allclose(flux[0], 1, rtol=0.01)
    np.testing.assert_allclose(flux[1], 0.5, rtol=0.03)
    path = simulate("sdss", 4, 1, tmp_path / "a", template=tmp_path / "flat.fits", processes=1, progress=False)
    assert "--template flat" in Archive(path).card["command"]


def test_what_is_no_template_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.fits").write_text("nothing")
    with pytest.raises(ArchiveError, match="template"):
        load_template(tmp_path / "x.fits")
    with pytest.raises(ArchiveError, match="template"):
        load_template(tmp_path / "absent.fits")
