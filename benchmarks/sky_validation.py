"""Compares the simulated SDSS sky with real light curves; writes the plots of docs/sky.md.

    python benchmarks/sky_validation.py --data ../shared/data/sdss [--plots docs/sky]

Real: the SNe Ia of SALT3.K21 (SNANA text), the RR Lyrae of Sesar et al. 2010 (CSV), the damped random walks of Stripe
82 quasars. Simulated light curves get the times, bands and errors of real ones, so that only astrophysics can differ;
`full` repeats the test with simulated cadence and errors as well. A gradient-boosted classifier tries to tell real from
simulated in five-fold cross-validation: an AUC of 0.5 means that it cannot. The last line is JSON.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.inspection import permutation_importance
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from skyheed.classifier.sky import agn, objects, stars, type_ia
from skyheed.classifier.sky.conditions import Visits
from skyheed.classifier.sky.factories import supernova_flux
from skyheed.classifier.sky.render import render
from skyheed.classifier.sky.spectra import distance_modulus, magnitude_to_njy, njy_to_magnitude
from skyheed.classifier.sky.surveys import SDSS
from skyheed.classifier.sky.targets import Sight
from skyheed.classifier.sources.lightcurves import (
    LightCurve,
    best_season,
    light_curve_files,
    read_light_curve,
)

BANDS = "ugriz"
Features = dict[str, float]


# --- light curves ---------------------------------------------------------------------------------------------------


def sdss_only(curve: LightCurve) -> LightCurve:
    return curve[np.isin(curve.band, list(BANDS))]


def exposures_of(curve: LightCurve) -> Visits:
    """The times and bands of a light curve as exposures; conditions do not matter here."""
    n = len(curve.mjd)
    index = np.array([BANDS.index(b) for b in curve.band])
    visit = np.concatenate([[0], np.cumsum(np.diff(curve.mjd) > 0.02)])
    return Visits(curve.mjd, visit, index, np.full(n, 1.3), np.full(n, 100.0), np.ones(n), np.zeros(n))


def with_errors_of(curve: LightCurve, flux: np.ndarray, rng: np.random.Generator) -> LightCurve:
    """A simulated light curve at the times of a real one, noisy by the real errors, rescaled for photon noise."""
    electrons = np.array([SDSS.bands[b].electrons for b in curve.band])
    photons = (np.maximum(flux, 0) - np.maximum(curve.flux, 0)) / electrons
    calibration = (SDSS.calibration_error**2) * (flux**2 - curve.flux**2)
    error = np.sqrt(np.maximum(curve.error**2 + photons + calibration, (0.5 * curve.error) ** 2))
    return LightCurve(
        curve.object_id, curve.mjd, curve.band, flux + rng.normal(0, error), error, redshift=curve.redshift
    )


def simulated_ia(curve: LightCurve, rng: np.random.Generator) -> LightCurve:
    """A SN Ia at the redshift and epochs of a real one that would have got a spectrum too."""
    visits = exposures_of(curve)
    while True:
        sn = type_ia.draw_ia(rng)
        peak = curve.peak_mjd + rng.normal(-0.45, 0.3)
        flux = supernova_flux(sn, Sight(SDSS, visits, 0.04, 99.0, type_ia.STANDARD), curve.redshift, peak)
        bright = njy_to_magnitude(flux[curve.band == "r"].max(initial=1e-3))
        middle, width = objects.SPECTRUM
        if rng.random() < 1 / (1 + np.exp((bright - middle) / width)):
            return with_errors_of(curve, flux, rng)


def simulated_rr(curve: LightCurve, kind: str, rng: np.random.Generator) -> tuple[LightCurve, float]:
    """An RR Lyrae of the same mean magnitude, kind and epochs as a real one, and its period."""
    star = stars.draw_star(rng, kind)
    level = np.median(njy_to_magnitude(curve.flux[curve.band == "r"]))
    mean = star.magnitudes - star.magnitudes[2] + level
    node = np.array([BANDS.index(b) for b in curve.band])
    flux = magnitude_to_njy(mean[node] + star.change(curve.mjd, node))
    return with_errors_of(curve, flux, rng), star.facts["period"]


# --- features -------------------------------------------------------------------------------------------------------


def smooth(curve: LightCurve, band: str, days: np.ndarray, width: float = 4.0) -> np.ndarray:
    """Kernel estimate of a band's flux at given days; NaN where fewer than two points are near."""
    of_band = curve.band == band
    t, f, e = curve.mjd[of_band], curve.flux[of_band], curve.error[of_band]
    weight = np.exp(-0.5 * ((days[:, None] - t) / width) ** 2) / e**2
    near = (np.abs(days[:, None] - t) < 2 * width).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(near >= 2, (weight * f).sum(1) / weight.sum(1), np.nan)


def ia_features(curve: LightCurve) -> Features:
    """Shape, colour and luminosity about the r maximum, from the photometry and the redshift alone."""
    grid = np.arange(curve.mjd.min(), curve.mjd.max(), 0.5)
    r = smooth(curve, "r", grid)
    peak = grid[np.nanargmax(r)]
    stretch = 1 + curve.redshift
    modulus = float(distance_modulus(curve.redshift))
    result = {"z": curve.redshift, "M_r": float(njy_to_magnitude(np.nanmax(r))) - modulus}
    for day in (-10, -5, 0, 10, 20, 30):
        values = {b: float(smooth(curve, b, np.array([peak + day * stretch]))[0]) for b in "ugriz"}
        magnitudes = {b: float(njy_to_magnitude(v)) for b, v in values.items()}
        result[f"g-r {day:+d}"] = magnitudes["g"] - magnitudes["r"]
        result[f"r-i {day:+d}"] = magnitudes["r"] - magnitudes["i"]
        if day:
            result[f"r {day:+d}"] = values["r"] / float(np.nanmax(r))
            result[f"g {day:+d}"] = values["g"] / float(np.nanmax(smooth(curve, "g", grid)))
        else:
            result["u-g +0"] = magnitudes["u"] - magnitudes["g"]
            result["i-z +0"] = magnitudes["i"] - magnitudes["z"]
    return result


def quality_features(curve: LightCurve) -> Features:
    """Cadence and errors: what the survey, not the sky, decides."""
    nights = np.unique(np.floor(curve.mjd))
    gaps = np.diff(nights)
    result = {"nights": float(len(nights)), "gap": float(np.median(gaps)), "longest": float(gaps.max())}
    for band in BANDS:
        of_band = curve.band == band
        result[f"error {band}"] = float(np.log10(np.median(curve.error[of_band]))) if of_band.any() else np.nan
    return result


def rr_features(curve: LightCurve) -> Features:
    """Amplitudes, colours and skewness of a variable star, from the photometry alone."""
    result: Features = {}
    magnitudes = {}
    for band in BANDS:
        of_band = (curve.band == band) & (curve.flux > 0)
        m = njy_to_magnitude(curve.flux[of_band])
        if len(m) < 8:
            m = np.full(8, np.nan)
        low, high = np.nanpercentile(m, [5, 95]) if np.isfinite(m).any() else (np.nan, np.nan)
        middle = np.nanmedian(m) if np.isfinite(m).any() else np.nan
        magnitudes[band] = middle
        result[f"range {band}"] = float(high - low)
        result[f"skew {band}"] = float((high + low - 2 * middle) / (high - low))
    for one, two in ("ug", "gr", "ri", "iz"):
        result[f"{one}-{two}"] = float(magnitudes[one] - magnitudes[two])
    result["range g/r"] = result["range g"] / result["range r"]
    return result


# --- two samples ----------------------------------------------------------------------------------------------------


def two_sample(real: list[Features], simulated: list[Features]) -> dict[str, Any]:
    """AUC of a classifier that knows the features, and which of them it leans on."""
    names = list(real[0])
    x = np.array([[row[name] for name in names] for row in (*real, *simulated)])
    y = np.array([1] * len(real) + [0] * len(simulated))
    model = HistGradientBoostingClassifier(
        max_iter=100, learning_rate=0.06, max_leaf_nodes=6, min_samples_leaf=10, class_weight="balanced", random_state=0
    )
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    guess = cross_val_predict(model, x, y, cv=folds, method="predict_proba")[:, 1]
    train, test = next(iter(folds.split(x, y)))
    model.fit(x[train], y[train])
    weight = permutation_importance(model, x[test], y[test], scoring="roc_auc", n_repeats=10, random_state=0)
    order = np.argsort(-weight.importances_mean)[:5]
    return {
        "auc": round(float(roc_auc_score(y, guess)), 3),
        "error": round(_auc_error(y, guess), 3),
        "real": len(real),
        "simulated": len(simulated),
        "gives it away": [names[i] for i in order if weight.importances_mean[i] > 0.005],
    }


def _auc_error(y: np.ndarray, guess: np.ndarray) -> float:
    """Scatter of the AUC over bootstrap samples of the objects."""
    rng = np.random.default_rng(0)
    draws = (rng.integers(0, len(y), len(y)) for _ in range(200))
    return float(np.std([roc_auc_score(y[d], guess[d]) for d in draws if len(set(y[d])) == 2]))


# --- the comparisons ------------------------------------------------------------------------------------------------


def compare_ia(data: Path, plots: Path | None, copies: int) -> dict[str, Any]:
    curves = [
        sdss_only(read_light_curve(p)) for p in light_curve_files(data / "snia_lightcurves") if "README" not in p.name
    ]
    curves = [c for c in curves if len(c.mjd) > 20 and c.redshift > 0.02]
    rng = np.random.default_rng(1)
    simulated = [simulated_ia(c, rng) for c in curves for _ in range(copies)]
    real_rows, rows = [ia_features(c) for c in curves], [ia_features(c) for c in simulated]
    if plots:
        plot_ia(plots / "snia.png", real_rows, rows)
        plot_redshift(plots / "snia_redshift.png", real_rows, rows)
    return two_sample(real_rows, rows)


def compare_rr(data: Path, plots: Path | None, copies: int) -> dict[str, Any]:
    kinds = {}
    for line in (data / "rrlyrae" / "periods.csv").read_text().splitlines()[1:]:
        number, kind, period = line.split(",")
        kinds[number] = f"RR{kind}", float(period)
    rng = np.random.default_rng(2)
    real_rows, rows = [], []
    for path in light_curve_files(data / "rrlyrae" / "light-curves"):
        curve = sdss_only(read_light_curve(path))
        kind, period = kinds[path.stem]
        real_rows.append({**rr_features(curve), "period": period})
        for _ in range(copies):
            drawn, period = simulated_rr(curve, kind, rng)
            rows.append({**rr_features(drawn), "period": period})
    if plots:
        plot_rr(plots / "rrlyrae.png", real_rows, rows)
        plot_periods(plots / "rrlyrae_period.png", real_rows, rows)
    periods = {
        name: _quartiles(np.array([row["period"] for row in one]))
        for name, one in (("real", real_rows), ("simulated", rows))
    }
    return {**two_sample(real_rows, rows), "period": periods}


def compare_agn(data: Path, plots: Path | None) -> dict[str, Any]:
    """Asymptotic rms and timescale in r of simulated AGN against fits to Stripe 82 quasars."""
    table = np.genfromtxt(data / "quasar_drw" / "javelin_SDSS_chain_results_r_band.txt", usecols=(2, 5))
    sigma, tau = table[np.isfinite(table).all(1) & (table > 0).all(1)].T
    rng = np.random.default_rng(3)
    found = [_one_agn(rng) for _ in range(3000)]
    sim_sigma, sim_tau = np.array([f for f in found if f]).T
    if plots:
        plot_agn(plots / "agn.png", (sigma, tau), (sim_sigma, sim_tau))
    return {
        "rms_r": {"real": _quartiles(sigma), "simulated": _quartiles(sim_sigma)},
        "tau_r": {"real": _quartiles(tau), "simulated": _quartiles(sim_tau)},
    }


def _one_agn(rng: np.random.Generator) -> tuple[float, float] | None:
    """Brighter than i = 20.5 and at z > 0.3, as the spectroscopic quasars of Stripe 82 are."""
    redshift = float(np.clip(1.4 * np.exp(rng.normal(0, 0.5)), 0.3, 4))
    apparent = 20.5 - rng.exponential(0.9)
    magnitude = apparent - float(distance_modulus(redshift)) + 1.4 * np.log10(1 + redshift) - 0.6
    nucleus = agn.draw_nucleus(rng, redshift, magnitude)
    wavelengths = np.array([b.wavelength for b in SDSS.bands.values()])
    _, tau, rms = agn.light_curves(rng, nucleus, np.arange(3.0), wavelengths)
    return float(rms[2]), tau


def _quartiles(values: np.ndarray) -> list[float]:
    return [round(float(v), 3) for v in np.percentile(values, [25, 50, 75])]


def compare_full(data: Path) -> dict[str, Any]:
    """SNe Ia with simulated cadence and errors as well."""
    curves = [
        sdss_only(read_light_curve(p)) for p in light_curve_files(data / "snia_lightcurves") if "README" not in p.name
    ]
    curves = [best_season(c) for c in curves if len(c.mjd) > 20 and c.redshift > 0.02]
    rng = np.random.default_rng(4)
    redshifts = np.array([c.redshift for c in curves])
    simulated = [_survey_ia(rng, float(rng.choice(redshifts))) for _ in range(4 * len(curves))]
    rows = [[{**ia_features(c), **quality_features(c)} for c in sample] for sample in (curves, simulated)]
    cadence = [[quality_features(c) for c in sample] for sample in (curves, simulated)]
    return {"all": two_sample(*rows), "cadence and errors alone": two_sample(*cadence)}


def _survey_ia(rng: np.random.Generator, redshift: float) -> LightCurve:
    wish = objects.Wish("SNIa", "SNIa", True)
    while True:
        seen = objects.observe(rng, SDSS, 1, int(rng.integers(3)), wish)
        if abs(seen.target.redshift - redshift) < 0.05:
            break
    images = render(rng, SDSS, seen.visits, seen.sources, seen.target.flux, seen.target.reference)
    band = np.array(list(BANDS))[seen.visits.band]
    return LightCurve("", seen.visits.mjd, band, images.flux, images.flux_error, redshift=seen.target.redshift)


# --- plots ----------------------------------------------------------------------------------------------------------


def histograms(path: Path, names: list[str], real: list[Features], simulated: list[Features], title: str) -> None:
    figure, axes = plt.subplots(3, 4, figsize=(11, 7))
    for axis, name in zip(axes.flat, names, strict=False):
        values = [np.array([row[name] for row in rows]) for rows in (real, simulated)]
        values = [v[np.isfinite(v)] for v in values]
        low, high = np.percentile(np.concatenate(values), [1, 99])
        bins = np.linspace(low, high, 22)
        axis.hist(values[0], bins, density=True, color="k", histtype="step", lw=1.5, label="real")
        axis.hist(values[1], bins, density=True, color="tab:orange", alpha=0.5, label="simulated")
        axis.set_xlabel(name)
        axis.set_yticks([])
    axes.flat[0].legend(fontsize=8)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=70)
    plt.close(figure)


def plot_ia(path: Path, real: list[Features], simulated: list[Features]) -> None:
    names = [
        "M_r",
        "u-g +0",
        "g-r +0",
        "r-i +0",
        "i-z +0",
        "g-r +20",
        "r-i +20",
        "r -10",
        "r -5",
        "r +10",
        "r +20",
        "g +20",
    ]
    histograms(
        path,
        names,
        real,
        simulated,
        f"{len(real)} real SDSS-II SNe Ia and simulated ones at the same redshifts and epochs",
    )


def plot_redshift(path: Path, real: list[Features], simulated: list[Features]) -> None:
    """Peak magnitude, rise and decline against redshift."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2))
    for axis, name, label in zip(
        axes,
        ("peak", "r -10", "g +20"),
        ("r at maximum", "r flux at -10 d / maximum", "g flux at +20 d / maximum"),
        strict=True,
    ):
        for rows, style in ((simulated, {"color": "tab:orange", "s": 4}), (real, {"color": "k", "s": 9})):
            z = np.array([row["z"] for row in rows])
            y = np.array(
                [row["M_r"] + float(distance_modulus(row["z"])) if name == "peak" else row[name] for row in rows]
            )
            axis.scatter(z, y, **style)
        axis.set_xlabel("redshift")
        axis.set_ylabel(label)
    axes[0].invert_yaxis()
    axes[1].set_ylim(-0.1, 1.1)
    axes[2].set_ylim(-0.1, 0.8)
    figure.tight_layout()
    figure.savefig(path, dpi=70)
    plt.close(figure)


def plot_rr(path: Path, real: list[Features], simulated: list[Features]) -> None:
    names = [f"range {b}" for b in BANDS] + ["skew g", "skew r", "range g/r", "u-g", "g-r", "r-i", "i-z"]
    histograms(
        path, names, real, simulated, f"{len(real)} real Stripe 82 RR Lyrae and simulated ones at the same epochs"
    )


def plot_periods(path: Path, real: list[Features], simulated: list[Features]) -> None:
    """Period, and amplitude against it (Bailey's diagram)."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2))
    for rows, style in ((simulated, {"color": "tab:orange", "s": 3}), (real, {"color": "k", "s": 6})):
        axes[1].scatter([row["period"] for row in rows], [row["range g"] for row in rows], **style)
    bins = np.linspace(0.2, 0.9, 36)
    axes[0].hist([r["period"] for r in real], bins, density=True, color="k", histtype="step", lw=1.5, label="real")
    axes[0].hist([r["period"] for r in simulated], bins, density=True, color="tab:orange", alpha=0.5, label="simulated")
    axes[0].legend(fontsize=8)
    axes[0].set_yticks([])
    axes[1].set_ylabel("range g (mag)")
    for axis in axes:
        axis.set_xlabel("period (d)")
        axis.set_xlim(0.2, 0.9)
    figure.tight_layout()
    figure.savefig(path, dpi=70)
    plt.close(figure)


def plot_agn(path: Path, real: tuple[np.ndarray, np.ndarray], simulated: tuple[np.ndarray, np.ndarray]) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(8, 3))
    for axis, one, two, label in zip(axes, real, simulated, ("rms in r (mag)", "tau in r (observed d)"), strict=True):
        bins = np.geomspace(*np.percentile(np.concatenate([one, two]), [1, 99]), 30)
        # Shares per bin: a density per day would blow up the bins at short times.
        shares = [np.full(len(values), 1 / len(values)) for values in (one, two)]
        axis.hist(one, bins, weights=shares[0], color="k", histtype="step", label="Stripe 82 fits")
        axis.hist(two, bins, weights=shares[1], color="tab:orange", alpha=0.5, label="simulated")
        axis.set_xscale("log")
        ticks = [t for t in (0.03, 0.05, 0.1, 0.2, 0.4, 10, 30, 100, 300, 1000, 3000) if bins[0] < t < bins[-1]]
        axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axis.tick_params(which="minor", labelbottom=False)
        axis.set_xlabel(label)
        axis.set_yticks([])
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=70)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with snia_lightcurves, rrlyrae and quasar_drw")
    parser.add_argument("--plots", type=Path, help="folder for the plots")
    parser.add_argument("--copies", type=int, default=4, help="simulated objects per real one")
    given = parser.parse_args()
    if given.plots:
        given.plots.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "SN Ia": lambda: compare_ia(given.data, given.plots, given.copies),
        "RR Lyrae": lambda: compare_rr(given.data, given.plots, given.copies),
        "AGN": lambda: compare_agn(given.data, given.plots),
        "SN Ia, full simulation": lambda: compare_full(given.data),
    }
    results = {}
    for name, part in parts.items():
        results[name] = part()
        print(f"{name}: {results[name]}", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
