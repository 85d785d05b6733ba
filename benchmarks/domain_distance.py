"""How far apart a model's features of simulated and of real first alerts are: A-distances, in all and within groups.

    python benchmarks/domain_distance.py MODEL --source SIMULATED --target REAL

Features are what the network computes from a history before it chooses classes, from images alone and from all that a
packet has. 0: the two are never distinguished, 2: always; half of the objects to learn from, the mean of three seeds.
The control compares the simulated objects with themselves, as many as there are of each group of real ones, so that it
is 0 within its error. Needs labels. The last line of stdout is JSON.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from adaptation_map import features
from numpy.typing import NDArray

from skyheed.classifier import taxonomy
from skyheed.classifier.history import History
from skyheed.classifier.models import checkpoint
from skyheed.classifier.training import dataset
from skyheed.classifier.training.adaptation_scores import mean_distance

MOST, FEWEST = 400, 10
Features = NDArray[np.float32]


def main() -> None:
    """Measure one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--source", required=True, help="archive of simulated objects; its test objects are used")
    parser.add_argument("--target", required=True, help="archive of real objects")
    given = parser.parse_args()
    simulated, own = first_alerts(given.model, given.source, "test")
    real, others = first_alerts(given.model, given.target, "all")
    found = {
        name: distances(features(given.model, made(simulated)), own, features(given.model, made(real)), others)
        for name, made in (("images alone", images_alone), ("everything", list))
    }
    for name, rows in found.items():
        print(name)
        for group, row in rows.items():
            (value, error), (control, its_error), count = row["distance"], row["control"], row["objects"]
            print(f"  {group}: {value:.2f} ± {error:.2f}, control {control:.2f} ± {its_error:.2f}")
            print(f"    {count[0]} simulated, {count[1]} real objects")
    print(json.dumps(found))


def first_alerts(model: str, archive: str, split: str) -> tuple[list[History], NDArray[np.str_]]:
    """Histories of one alert, and the group of each object."""
    data = dataset.load(archive, bands=checkpoint.read_info(model).bands)
    chosen = [int(i) for i in data.choose(split) if data.label[i]][:MOST]
    return [data.history(i, 0, 1) for i in chosen], np.array([taxonomy.merge_supernovae(data.label[i]) for i in chosen])


def images_alone(histories: Sequence[History]) -> list[History]:
    return [replace(history, photometry=None, context={}, contexts=()) for history in histories]


def distances(
    simulated: Features, own: NDArray[np.str_], real: Features, others: NDArray[np.str_]
) -> dict[str, dict[str, Any]]:
    """The A-distance of every group that has enough objects, its control, and how many objects there are."""
    found = {}
    for group in ("all", *sorted(set(others.tolist()))):
        one = simulated if group == "all" else simulated[own == group]
        other = real if group == "all" else real[others == group]
        if len(other) < FEWEST or len(one) < 2 * len(other):
            continue
        found[group] = {
            "distance": mean_distance(one, other),
            "control": mean_distance(one[: len(other)], one[len(other) : 2 * len(other)]),
            "objects": [len(one), len(other)],
        }
    return found


if __name__ == "__main__":
    main()
