"""What a model says of unusually bright supernovae, of which no labelled real one is at hand: simulated ones whose flux
is multiplied, as if they were very near or superluminous. Their light curves and colours stay those of ordinary ones.

    python benchmarks/bright_supernovae.py [--model ztf/fusion] [--factors 1 30 1000] [--objects 240] [--seed 205]

For each factor, after 1, 3 and 10 alerts of those objects that have as many: how many are declined, how many of the
others are called supernovae, their mean probability of being one, and the recall of both types. As served, so that
objects unlike the training data are declined. The last line of stdout is JSON.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from skyheed.classifier import serving, sky
from skyheed.classifier.archives.histories import history_of
from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.history import History
from skyheed.classifier.sky import simulation

SHARES = {"SNIa": 0.5, "SNOther": 0.5}
MOST = 12  # alerts of an object


def main() -> None:
    """Simulate and classify."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ztf/fusion")
    parser.add_argument("--factors", type=float, nargs="+", default=[1.0, 30.0, 1000.0])
    parser.add_argument("--objects", type=int, default=240)
    parser.add_argument("--seed", type=int, default=205)
    given = parser.parse_args()
    model, found = serving.load_model(given.model), {}
    for factor in given.factors:
        histories = simulated(model.info.surveys[0], factor, given.objects, given.seed)
        found[f"{factor:g}"] = {alerts: scores(model, histories, alerts) for alerts in (1, 3, 10)}
        for alerts, row in found[f"{factor:g}"].items():
            print(f"{factor:g} times as bright, {alerts} alerts: {row}")
    print(json.dumps(found))


def simulated(survey: str, factor: float, objects: int, seed: int) -> list[tuple[str, History]]:
    """Classes and histories of supernovae that are this many times as bright."""
    with tempfile.TemporaryDirectory(prefix="skyheed-bright-") as folder, brighter(factor):
        # one process: others would not know of the change
        path = sky.simulate(survey, objects, seed, Path(folder) / "sky", mixture=SHARES, most=MOST, processes=1)
        archive = Archive(path)
        made = []
        for name in archive.object_ids:
            try:
                made.append((archive.object(name)["class"], history_of(archive, name)))
            except ArchiveError:
                continue  # no stamp that can be used
        return made


@contextmanager
def brighter(factor: float) -> Iterator[None]:
    """Multiply the flux of supernovae that are simulated meanwhile, after the survey has found them as they were."""
    plain = simulation.observe

    def observe(*given: Any) -> Any:
        seen = plain(*given)
        return replace(seen, target=replace(seen.target, flux=factor * seen.target.flux))

    simulation.observe = observe
    try:
        yield
    finally:
        simulation.observe = plain


def scores(model: Any, histories: list[tuple[str, History]], alerts: int) -> dict[str, Any]:
    """What is said of those that have as many alerts, after these."""
    long = [(kind, history.until(epochs=alerts)) for kind, history in histories if len(history) >= alerts]
    said = model.judge([history for _, history in long])
    kept = [(kind, one.probabilities) for (kind, _), one in zip(long, said, strict=True) if not one.reason]
    classes = list(model.info.classes)
    types = [classes.index(kind) for kind in SHARES]
    p = np.array([probabilities for _, probabilities in kept])
    sums, top = p[:, types].sum(1), p.argmax(1)
    truth = np.array([classes.index(kind) for kind, _ in kept])
    return {
        "objects": len(long), "declined": len(long) - len(kept),
        "called supernova": round(float((sums > 0.5).mean()), 3),
        "mean probability": round(float(sums.mean()), 3),
        **{f"recall {classes[t]}": round(float((top[truth == t] == t).mean()), 3) for t in types},
    }  # fmt: skip


if __name__ == "__main__":
    main()
