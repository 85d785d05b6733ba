"""How fast the sky is simulated: light curves and rendered stamps, objects per second and core.

    python benchmarks/sky.py [--surveys sdss,ztf,lsst] [--objects 40] [--full DIR]

Issue's targets on one core: 200 light curves, 10 objects with stamps. `--full` also writes the archive of the SDSS-II
survey's 8,249 candidates on all cores (target: 10 minutes on two). The last line is JSON.
"""

import argparse
import json
import os
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.sky import SURVEYS, simulate
from skyheed.classifier.sky.factories import MAKERS
from skyheed.classifier.sky.objects import observe
from skyheed.classifier.sky.simulation import plan, simulate_object
from skyheed.classifier.sky.surveys import Survey
from skyheed.classifier.sky.targets import Sight, depth
from skyheed.classifier.sky.type_ia import STANDARD

FULL = 8249


def light_curves_per_second(survey: Survey, count: int) -> dict[str, float]:
    """By class: light curves drawn with all their exposures, found or not, per second of CPU."""
    result = {}
    for name, make in MAKERS.items():
        rng = np.random.default_rng(1)
        wish = next(w for w in plan(8, 1, balanced=True) if w.truth == name)
        seen = observe(rng, survey, 1, 0, wish)
        sight = Sight(survey, seen.visits, 0.05, depth(survey), STANDARD, "RRab")
        start, drawn = time.process_time(), 0
        for _ in range(count):
            drawn += make(rng, sight) is not None
        result[name] = round(drawn / (time.process_time() - start), 1)
    return result


def objects_per_second(survey: Survey, count: int) -> tuple[float, float]:
    """Whole objects with stamps per second of CPU, and stamps per object; the published class counts."""
    wishes = plan(count, 2, balanced=False)
    simulate_object(survey, 2, 0, wishes[0], 1)  # tables and plans
    start, stamps = time.process_time(), 0
    for number, wish in enumerate(wishes):
        stamps += len(simulate_object(survey, 2, number, wish, 1)[1])
    return round(count / (time.process_time() - start), 1), round(stamps / count, 1)


def full(out: Path) -> dict[str, Any]:
    """Wall time of the whole archive on all cores."""
    start = time.perf_counter()
    simulate("sdss", FULL, 1, out, overwrite=True)
    seconds = time.perf_counter() - start
    card = Archive(out).card
    return {"objects": card["objects"], "stamps": card["stamps"], "seconds": round(seconds, 1), "bytes": card["bytes"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--surveys", default="sdss,ztf,lsst", help="comma-separated names")
    parser.add_argument("--objects", type=int, default=40, help="objects to render per survey")
    parser.add_argument(
        "--full", type=Path, metavar="DIR", help="also write the full SDSS archive there, and remove it"
    )
    given = parser.parse_args()
    result: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "machine": platform.processor() or platform.machine(),
    }
    for name in given.surveys.split(","):
        rate, stamps = objects_per_second(SURVEYS[name], given.objects)
        curves = light_curves_per_second(SURVEYS[name], 200)
        print(f"{name}: {rate} objects/s a core with {stamps} stamps each; light curves/s a core {curves}", flush=True)
        result[name] = {"objects_per_second": rate, "stamps_per_object": stamps, "light_curves_per_second": curves}
    if given.full:
        result["full"] = full(given.full)
        print(f"full archive: {result['full']}")
        shutil.rmtree(given.full)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
