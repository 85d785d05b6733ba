"""Alert packets for one simulated object: stamps of detections, photometry of the preceding days, context."""

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.archives.extras import Extras
from skyheed.classifier.archives.reader import stamp_rows
from skyheed.classifier.history import BANDS, DETECTION, FORCED, UPPER_LIMIT, Photometry
from skyheed.classifier.sky.catalogue import context_of, observe_field
from skyheed.classifier.sky.conditions import Visits
from skyheed.classifier.sky.objects import Observed, expected_error, stated_error
from skyheed.classifier.sky.render import Rendered, render
from skyheed.classifier.sky.spectra import Array, njy_to_magnitude
from skyheed.classifier.sky.surveys import Survey
from skyheed.classifier.sky.targets import DETECTION as SIGMAS

FROM_FIRST = 0.4  # fraction of objects whose first alert is included
SURE = 5  # exposures that are rendered if by chance an object has no detection
LOST = 0.06  # fraction of earlier measurements missing from a packet
SPURIOUS = 0.25  # fraction of supernovae with an earlier detection at their position
COUNTED = (2.0, 0.6)  # detections and visits counted in packets per simulated one: median, scatter (ln)
USUAL = (-0.5, 0.5)  # detections in earlier years relative to this season, which was selected for having some (ln)
WEAK = 4.0  # standard deviations above which a detection is counted, although no alert is sent (ZTF's ndethist)


def alerts_of(
    rng: np.random.Generator, survey: Survey, seen: Observed, first_id: int, most: int
) -> tuple[NDArray[np.void], Extras]:
    """The archive rows and accompanying data for at most this many of the object's alerts."""
    visits, change = seen.visits, seen.target.flux - seen.target.reference
    error = stated_error(rng, survey, visits, seen.target.flux, change)
    flux = change + expected_error(survey, visits, seen.target.flux) * rng.standard_normal(len(visits))
    detected = np.abs(flux) > SIGMAS * error
    picked = chosen(rng, np.flatnonzero(detected), most)
    sent, images = _rendered(rng, survey, seen, picked, error) if len(picked) else (picked, None)
    if images is None or not len(sent):  # no chosen exposure is a detection in its image: use the most significant ones
        best = np.sort(np.argsort(-np.abs(change) / error)[:SURE])
        sent, images = _rendered(rng, survey, seen, best, np.minimum(error, np.abs(change) / (SIGMAS + 2)))
        error[sent] = np.minimum(error[sent], np.abs(images.flux) / (SIGMAS + 0.1))
    flux[sent] = images.flux
    detected[sent] = True
    rows = rows_of(survey, visits[sent], images, seen.target.flux[sent], error[sent], first_id + sent)
    points = photometry(rng, survey, visits, (flux, error, detected), sent)
    return rows, Extras(points, contexts(rng, survey, seen, (flux, error), sent))


def _rendered(
    rng: np.random.Generator, survey: Survey, seen: Observed, sent: NDArray[np.intp], error: Array
) -> tuple[NDArray[np.intp], Rendered]:
    """Those exposures in whose images the object is detected, and the images."""
    flux, reference = seen.target.flux[sent], seen.target.reference[sent]
    images = render(rng, survey, seen.visits[sent], seen.sources, flux, reference)
    keep = np.abs(images.flux) > SIGMAS * error[sent]
    return sent[keep], images.take(keep)


def chosen(rng: np.random.Generator, detected: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    """Which detections are included: the first ones, or a stretch starting anywhere, as in a stream joined late."""
    first = 0 if rng.random() < FROM_FIRST or not len(detected) else int(rng.integers(len(detected)))
    return detected[first : first + most]


def rows_of(
    survey: Survey, visits: Visits, images: Rendered, source_flux: Array, error: Array, source_id: NDArray[np.intp]
) -> NDArray[np.void]:
    """The archive rows of some alerts."""
    assert images.template is not None
    assert images.difference is not None
    zero_points = np.array([band.zero_point for band in survey.bands.values()])[visits.band]
    return stamp_rows(
        {"stamp": images.science, "template": images.template, "difference": images.difference},
        {
            "source_id": source_id, "mjd": visits.mjd, "band": np.array(list(survey.bands))[visits.band],
            "detected": np.ones(len(visits), bool), "alert": np.ones(len(visits), bool), "flux": images.flux,
            "flux_error": error, "source_flux": source_flux, "psf_fwhm": visits.seeing, "sky_noise": visits.noise,
            "zero_point": zero_points + 2.5 * np.log10(visits.depth), "rotation": visits.rotation,
        },
    )  # fmt: skip


def photometry(
    rng: np.random.Generator,
    survey: Survey,
    visits: Visits,
    measured: tuple[Array, Array, NDArray[np.bool_]],
    sent: NDArray[np.intp],
) -> list[Photometry]:
    """New photometry in each packet: measurements within its look-back time that earlier packets do not contain.

    Args:
        measured: flux, error (nJy) and whether it is a detection, of every exposure.
        sent: the exposures for which packets are sent.
    """
    flux, error, detected = measured
    codes = np.array([BANDS.index(name) for name in survey.bands], np.uint8)[visits.band]
    forced = rng.random() < survey.forced
    kept = rng.random(len(visits)) >= LOST
    kept[sent] = True
    shown = kept & (detected | survey.upper_limits)
    found, before = [], -1
    for at in sent:
        # by index, not by time: two bands of a visit can have the same time
        window = visits.mjd > visits.mjd[at] - survey.history_days
        window[: before + 1] = window[at + 1 :] = False
        own, again = np.flatnonzero(window & shown), np.flatnonzero(window & kept & forced)
        rows = np.concatenate([own, again])
        kind = np.where(detected[own], DETECTION, UPPER_LIMIT)
        limit = np.concatenate([~detected[own], np.zeros(len(again), bool)])
        order = np.argsort(visits.mjd[rows], kind="stable")
        points = Photometry(
            visits.mjd[rows], codes[rows], np.where(limit, 0, flux[rows]).astype(np.float32),
            error[rows].astype(np.float32), np.concatenate([kind, np.full(len(again), FORCED)]).astype(np.uint8),
        )  # fmt: skip
        found.append(points.take(order))
        before = int(at)
    return found


def contexts(
    rng: np.random.Generator, survey: Survey, seen: Observed, measured: tuple[Array, Array], sent: NDArray[np.intp]
) -> list[dict[str, float]]:
    """Each packet's context: the object's surroundings and history."""
    (flux, _), visits = measured, seen.visits
    field = observe_field(rng, survey, seen.target, visits.band, seen.contents)
    found = []
    for at, past in zip(sent, seasons_past(rng, survey, seen, measured, sent), strict=True):
        others = {"galactic_latitude": seen.b, **past}
        magnitude = float(njy_to_magnitude(abs(flux[at])))
        found.append(context_of(rng, survey, field, int(visits.band[at]), magnitude, others))
    return found


def seasons_past(
    rng: np.random.Generator, survey: Survey, seen: Observed, measured: tuple[Array, Array], sent: NDArray[np.intp]
) -> list[dict[str, float]]:
    """Detections, visits and age stated in each packet; those of earlier years are drawn."""
    (flux, error), visits = measured, seen.visits
    weak = np.abs(flux) > WEAK * error
    weak[sent] = True
    before, past, since = _past(rng, survey, seen, float(weak.mean()))
    more = max(COUNTED[0] * np.exp(rng.normal(0, COUNTED[1])), 1.0)
    first = visits.mjd[np.argmax(weak)] - since
    found: list[dict[str, float]] = []
    for at in sent:
        own = past + 1 + int(more * weak[:at].sum())
        covered = max(before + int(more * (at + 1)), own)
        found.append({"detections": own, "visits": covered, "age_days": float(visits.mjd[at] - first)})
    return found


def _past(rng: np.random.Generator, survey: Survey, seen: Observed, share: float) -> tuple[int, int, float]:
    """Visits and detections of the years before this season, and the days since the first of them.

    Args:
        share: fraction of this season's exposures that count as detections.
    """
    years = rng.uniform(0, survey.lasts)
    median, scatter = survey.yearly
    visits = int(years * median * np.exp(rng.normal(0, scatter)))
    if seen.target.label.startswith("SN"):
        found = int(rng.geometric(0.15)) if rng.random() < SPURIOUS else 0
    else:
        found = int(rng.binomial(visits, np.clip(share * np.exp(rng.normal(*USUAL)), 0, 0.95)))
    found = min(found, visits)
    return visits, found, float(years * 365.25 * rng.beta(6, 1)) if found else 0.0
