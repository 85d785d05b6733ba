"""Simulated surveys: from a number of objects and a seed to an archive of stamp sequences."""

import contextlib
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Generator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.archives.format import Member
from skyheed.classifier.archives.mixture import counts, written
from skyheed.classifier.archives.reader import (
    CLASSES,
    OBJECTS_PER_PART,
    ArchiveObject,
    ArchiveWriter,
    stamp_rows,
    write_part,
)
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.progress import progress_bar
from skyheed.classifier.sky.conditions import Visits
from skyheed.classifier.sky.domain_shift import NO_SHIFT, Shift, survey_under
from skyheed.classifier.sky.injection import TRIES, Scene, name_in, painted, scaled, scenes_of, suited
from skyheed.classifier.sky.objects import Observed, Wish, observe
from skyheed.classifier.sky.packets import alerts_of
from skyheed.classifier.sky.render import Rendered, render
from skyheed.classifier.sky.surveys import AB_ZERO, Survey
from skyheed.classifier.sky.targets import DETECTION
from skyheed.classifier.sky.templates import load_template
from skyheed.classifier.sky.type_ia import STANDARD, IaTemplate

MOST = 12  # alerts per object
# The labelled candidates of the SDSS-II Supernova Survey (Sako et al. 2018, PASP 130, 064002, as grouped by Bairouk et
# al. 2023, A&A 673, A141): class, confirmed -> number.
PUBLISHED: Mapping[tuple[str, bool], int] = MappingProxyType(
    {
        ("AGN", True): 906,
        ("SNIa", True): 540,
        ("SNIa", False): 1448,
        ("Variable", True): 3225,
        ("SNOther", True): 89,
        ("SNOther", False): 2041,
    }
)
# Photometric typing makes errors: fraction of photometric labels whose true class is the other supernova class. SN Ia:
# contamination of 4 % (Sako et al. 2018, section 7); core collapse: fewer checks exist, 10 % is our assumption.
MISTAKES = MappingProxyType({"SNIa": 0.04, "SNOther": 0.10})

MADE = """\
## How it was made

Simulated sky for {survey}: light curves from published population parameters, images rendered with hosts, neighbours,
a PSF with wings, noise and defects; see docs/sky.md. Each object is observed through the season in which the survey
finds it. A detection is {detection:g} sigma in a band of {search}. The column `alert` is true {alerts}. Alerts are what
replay sends and what an early classifier must be trained on. {kept}

SNe Ia: {ia}. Labels: {labels}.
"""


KEPT = {
    True: "Only alerts have stamps, and only some alerts of each object are included; earlier ones are photometry, as "
    "in packets, and each alert has the context that a packet would have.",
    False: "The sequence contains **every** exposure of the season at the object's position (forced, as in Bairouk et "
    "al. 2023); exposures that are not alerts are forced photometry.",
}

PAINTED = (
    " Everything constant is real: the objects are painted on templates of real packets, with their noise, PSF width "
    "and catalogues, turned and flipped; an object is in the split of its packet's object (`scene` in its parameters)."
)

SHIFTED = " Conditions are not the survey's own, but shifted as the command says, for experiments."


def plan(objects: int, seed: int, *, balanced: bool, mixture: Mapping[str, float] | None = None) -> list[Wish]:
    """The objects to make, in shuffled order.

    Args:
        balanced: equal classes and no wrong labels, instead of the published class counts.
        mixture: shares of the classes, with no wrong labels.
    """
    if objects < 1:
        raise ArchiveError("an archive needs at least one object")
    if mixture and balanced:
        raise ArchiveError("class shares and equal classes were both requested: give one or the other")
    rng = np.random.default_rng([seed, 0xA11])
    sure = balanced or mixture is not None
    shares = mixture or dict.fromkeys(CLASSES, 1 / len(CLASSES))
    each = _half_confirmed(counts(objects, shares)) if sure else _in_proportion(objects)
    wishes = [_wish(rng, label, confirmed, sure) for (label, confirmed), n in each.items() for _ in range(n)]
    return [wishes[i] for i in rng.permutation(len(wishes))]


def _wish(rng: np.random.Generator, label: str, confirmed: bool, sure: bool) -> Wish:
    other = {"SNIa": "SNOther", "SNOther": "SNIa"}.get(label, label)
    mistaken = not confirmed and not sure and rng.random() < MISTAKES[label]
    return Wish(label, other if mistaken else label, confirmed)


def _in_proportion(objects: int) -> dict[tuple[str, bool], int]:
    """The published counts scaled to a total, by largest remainder."""
    total = sum(PUBLISHED.values())
    exact = {key: count * objects / total for key, count in PUBLISHED.items()}
    found = {key: int(value) for key, value in exact.items()}
    for key in sorted(exact, key=lambda k: found[k] - exact[k])[: objects - sum(found.values())]:
        found[key] += 1
    return found


def _half_confirmed(each: Mapping[str, int]) -> dict[tuple[str, bool], int]:
    """The same number of each class; half of the supernovae confirmed."""
    found: dict[tuple[str, bool], int] = {}
    for label, n in each.items():
        photometric = n // 2 if label.startswith("SN") else 0
        found[label, True] = n - photometric
        found[label, False] = photometric
    return found


def simulate_object(
    survey: Survey, seed: int, number: int, wish: Wish, seasons: int, template: IaTemplate = STANDARD, most: int = MOST
) -> Member:
    """One object with its stamps and the accompanying data of its packets; depends only on the arguments."""
    rng = np.random.default_rng([seed, _code(survey.name), number])
    season = int(rng.integers(seasons))
    seen = observe(rng, survey, seed, season, wish, template)
    # 23 bits of the seed, 28 of the object, 12 of the stamp: unique among archives of different seeds.
    first_id = ((seed & 0x7FFFFF) << 40) + (number << 12)
    if survey.detections_only:
        return _describe(survey, seed, number, wish, seen), *alerts_of(rng, survey, seen, first_id, most)
    images = render(rng, survey, seen.visits, seen.sources, seen.target.flux, seen.target.reference)
    rows = sequence_rows(survey, seen.visits, images, seen.target.flux, first_id)
    return _describe(survey, seed, number, wish, seen), rows


def paint_object(
    survey: Survey, seed: int, number: int, wish: Wish, seasons: int, ia: IaTemplate, most: int, scenes: list[Scene]
) -> Member:
    """One simulated object injected into a real scene; depends only on the arguments.

    Raises:
        ArchiveError: the scenes are not suitable for such an object.
    """
    rng = np.random.default_rng([seed, _code(survey.name), number, 0x5CE])
    first_id = ((seed & 0x7FFFFF) << 40) + (number << 12)
    for _ in range(TRIES):
        scene = suited(rng, scenes, wish.truth)
        seen = scaled(observe(rng, survey, seed, int(rng.integers(seasons)), wish, ia), scene, survey)
        made = painted(rng, survey, seen, scene, first_id, most) if seen else None
        if seen and made:
            thing = _describe(survey, seed, number, wish, seen)
            facts = {**thing.parameters, "scene": scene.object_id}
            name = name_in(scene.split, thing.object_id)
            return replace(thing, object_id=name, origin="painted", parameters=facts), *made
    raise ArchiveError(f"no {wish.truth} is detected on {TRIES} of the scenes: add packets")


def _code(name: str) -> int:
    return int.from_bytes(name.encode()[:4], "big")


def _describe(survey: Survey, seed: int, number: int, wish: Wish, seen: Observed) -> ArchiveObject:
    target = seen.target
    return ArchiveObject(
        object_id=f"{survey.name}-sim{seed}-{number:06d}",
        label=wish.label,
        true_class=target.label,
        type=target.type,
        confirmed=wish.confirmed,
        redshift=target.redshift,
        ra=seen.ra,
        dec=seen.dec,
        peak_mjd=target.peak_mjd,
        origin="simulated",
        survey=survey.name,
        parameters={name: round(float(value), 5) for name, value in target.facts.items()},
    )


def sequence_rows(
    survey: Survey, visits: Visits, images: Rendered, source_flux: NDArray[np.float64], first_id: int
) -> NDArray[np.void]:
    """The archive rows of one object's rendered exposures; source ids count up from `first_id`."""
    names = list(survey.bands)
    searched = np.isin(visits.band, [i for i, name in enumerate(names) if name in survey.search])
    height = np.abs(images.flux) / images.flux_error * searched
    detected = height > DETECTION
    if not detected.any():
        detected[np.argmax(height)] = True
    pixels = {"stamp": images.science}
    if images.template is not None and images.difference is not None:
        pixels |= {"template": images.template, "difference": images.difference}
    zero_points = np.array([band.zero_point for band in survey.bands.values()])[visits.band]
    return stamp_rows(
        pixels,
        {
            "source_id": first_id + np.arange(len(visits)),
            "mjd": visits.mjd,
            "band": np.array(names)[visits.band],
            "detected": detected,
            "alert": alerts(survey, visits, detected),
            "flux": images.flux,
            "flux_error": images.flux_error,
            "source_flux": source_flux,
            "psf_fwhm": visits.seeing,
            "sky_noise": visits.noise,
            "zero_point": zero_points + 2.5 * np.log10(visits.depth),
            "rotation": visits.rotation,
        },
    )


def alerts(survey: Survey, visits: Visits, detected: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The exposures, [n], for which the survey would send an alert with stamps.

    Args:
        detected: [n], at least one.
    """
    return detected if survey.detections_only else visits.visit >= visits.visit[detected].min()


def _simulate_part(
    survey_name: str,
    seed: int,
    seasons: int,
    template: Path | None,
    directory: Path,
    most: int,
    scenes: Path | None,
    shift: Shift,
    task: tuple[int, list[tuple[int, Wish]]],
) -> list[dict[str, Any]]:
    """Simulate the objects of one part and write them; runs in a worker process."""
    part, wishes = task
    survey, ia = survey_under(survey_name, shift), load_template(template)
    if scenes is not None:
        real = scenes_of(scenes, survey)
        made = (paint_object(survey, seed, number, wish, seasons, ia, most, real) for number, wish in wishes)
        return write_part(directory, part, made, normalised=True)
    made = (simulate_object(survey, seed, number, wish, seasons, ia, most) for number, wish in wishes)
    return write_part(directory, part, made)


def simulate(
    survey: str,
    objects: int,
    seed: int,
    out: str | Path,
    *,
    seasons: int = 3,
    balanced: bool = False,
    template: Path | None = None,
    most: int = MOST,
    scenes: str | Path | None = None,
    shift: Shift = NO_SHIFT,
    mixture: Mapping[str, float] | None = None,
    processes: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> Path:
    """Simulate a survey and write the archive; the same arguments give the same bytes for any number of processes.

    Args:
        survey: sdss, ztf or lsst.
        objects: how many; 8249 with the published class counts equals the labelled candidates of the SDSS-II search.
        seed: random seed for everything.
        out: directory of the archive.
        seasons: number of seasons of the survey over which the objects are spread, 1 to 3.
        balanced: equal classes and no wrong labels, instead of the published class counts.
        template: a spectral template of SNe Ia (`templates.load_template`) instead of our own light curves.
        most: alerts per object, if the survey sends alerts for detections only.
        scenes: an archive of real packets into whose templates the objects are injected (`painted`).
        shift: changes to the survey's own conditions.
        mixture: shares of the classes, with no wrong labels, instead of the published class counts.
        processes: by default one per core.

    Raises:
        ArchiveError: unknown survey, invalid numbers, scenes that cannot be used, or `out` exists.
    """
    sky = survey_under(survey, shift)
    if not 1 <= seasons <= len(sky.cadence.seasons):
        raise ArchiveError(f"{survey} has 1 to {len(sky.cadence.seasons)} seasons, not {seasons}")
    if not 0 <= seed < 2**23:
        raise ArchiveError(f"the seed must be from 0 to {2**23 - 1}, not {seed}")
    ia = load_template(template)
    scenes = None if scenes is None else Path(scenes)
    if scenes is not None:
        if not sky.detections_only:
            raise ArchiveError(f"{survey} sends no templates: --scenes is for ztf and lsst")
        if shift != NO_SHIFT:
            raise ArchiveError("--scenes has its packets' conditions, so --shift would do nothing: give only one")
        scenes_of(scenes, sky)  # errors are reported before the work
    wishes = list(enumerate(plan(objects, seed, balanced=balanced, mixture=mixture)))
    tasks = [
        (part, wishes[start : start + OBJECTS_PER_PART])
        for part, start in enumerate(range(0, len(wishes), OBJECTS_PER_PART))
    ]
    card = _card(sky, objects, seed, seasons, balanced, ia, most, scenes, shift, mixture)
    with ArchiveWriter(out, card, overwrite=overwrite) as writer:
        work = partial(_simulate_part, survey, seed, seasons, template, writer.directory, most, scenes, shift)
        with progress_bar(None, "simulating", objects, show=progress, unit=" objects") as bar:
            each = _each(work, tasks, processes or len(os.sched_getaffinity(0)))
            with contextlib.closing(each):  # its processes end with this one
                for rows in each:
                    writer.adopt(rows)
                    bar.update(len(rows))
    return Path(out)


def _each(work: Any, tasks: list[Any], processes: int) -> Generator[list[dict[str, Any]]]:
    if processes == 1 or len(tasks) == 1:
        yield from map(work, tasks)
        return
    # Not fork: the caller may have threads (Kafka, torch), and a fork would copy their locks.
    context = multiprocessing.get_context("spawn")
    # a pool process waits for work on a pipe that it also holds open itself: it would outlive this process
    lives, we_live = context.Pipe(duplex=False)
    try:
        with ProcessPoolExecutor(
            min(processes, len(tasks)), mp_context=context, initializer=_end_with, initargs=(lives,)
        ) as pool:
            try:
                # not `map`, which cancels what is left: a pool whose processes end cannot deal with that (Python 3.11)
                made = deque(pool.submit(work, task) for task in tasks)
                while made:
                    yield made.popleft().result()
            except BaseException:
                we_live.close()  # otherwise the pool would first finish its current work
                raise
    except BrokenProcessPool as error:
        raise ArchiveError("a process of the simulation was killed (out of memory?); try fewer --processes") from error
    finally:
        we_live.close()
        lives.close()


def _end_with(parent: Connection) -> None:
    """End this process when the other end of the pipe is closed: by the parent, or because it was killed."""

    def wait() -> None:
        parent.poll(None)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _card(
    survey: Survey,
    objects: int,
    seed: int,
    seasons: int,
    balanced: bool,
    template: IaTemplate,
    most: int,
    scenes: Path | None,
    shift: Shift,
    mixture: Mapping[str, float] | None,
) -> dict[str, Any]:
    classes = " --balanced" if balanced else ""
    if mixture:
        classes = f" --mixture {written(mixture)}"
    classes += f" --most {most}" if survey.detections_only else ""
    other = "" if template is STANDARD else f" --template {template.name}"
    # without its folders, which are private
    other += "" if scenes is None else f" --scenes {scenes.name}"
    other += f" --shift {shift}" if str(shift) else ""
    share = ", ".join(f"{label} {share:.0%}" for label, share in MISTAKES.items())
    labels = (
        "all classes equally often, no label is wrong"
        if balanced
        else "the mixture of the command, no label is wrong"
        if mixture
        else f"the published class counts; of the photometric supernova labels these shares are wrong: {share}"
    )
    return {
        "command": f"skyheed archive simulate --survey {survey.name} --objects {objects} --seed {seed} "
        f"--seasons {seasons}{classes}{other}",
        "seed": seed,
        "made": MADE.format(
            survey=survey.name,
            detection=DETECTION,
            search=survey.search,
            alerts=survey.alert_rule,
            kept=KEPT[survey.detections_only] + ("" if scenes is None else PAINTED) + (SHIFTED if str(shift) else ""),
            labels=labels,
            ia=template.name,
        ),
        "pixel": survey.pixel,
        "zero_point_njy": AB_ZERO,
    }
