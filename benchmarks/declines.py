"""What a model declines as unlike its training data, on real ZTF packets.

    python benchmarks/declines.py --model ztf/fusion [--packets ../shared/data/ztf ../shared/data/ztf-unlabelled]

Each packet is classified alone, as a first alert, also those that the stream's filters would skip. Prints how many are
declined as `unlike_training`, with 95 % Wilson intervals: by the survey's real-bogus score, of known solar-system
objects, and of objects with a class in `index.csv`, where there is one.
"""

import argparse
import csv
import math
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from skyheed.broker.errors import PacketError
from skyheed.broker.packets.files import PacketFiles
from skyheed.broker.packets.reader import read_packet
from skyheed.classifier import serving
from skyheed.classifier.history import History
from skyheed.classifier.prediction import Declined

SCORES = (0.1, 0.5, 0.8)  # real-bogus scores that divide the packets; below the first the stream skips them
BATCH = 64


def packets(folders: Iterable[Path]) -> Iterator[bytes]:
    """The bytes of every packet."""
    with tempfile.TemporaryDirectory() as scratch:
        files = PacketFiles(Path(scratch))
        for folder in folders:
            for file, offset, length in files.packets(folder):
                with file.open("rb") as source:
                    source.seek(offset)
                    yield source.read(length)


def lowest(payload: bytes) -> tuple[float, bool, list[Any]]:
    """Highest limit of `SCORES` that a packet's score reaches (0: none), whether it is of the solar system, and its
    observations."""

    def passes(skip: tuple[str, ...], least: float | None = None) -> bool:
        return bool(read_packet(payload, "ztf", errors=[], skip=skip, least_score=least))

    seen = read_packet(payload, "ztf", errors=[], skip=())
    reached = max((limit for limit in SCORES if seen and passes(("artefact",), limit)), default=0.0)
    return reached, bool(seen) and not passes(("solar_system",)), list(seen)


def groups_of(folders: Iterable[Path]) -> tuple[list[History], list[list[str]]]:
    """A history of one epoch for each detection, and the groups that it counts in."""
    labels, found, groups, done = labels_of(folders), list[History](), list[list[str]](), set[int]()
    for payload in packets(folders):
        try:
            reached, moving, seen = lowest(payload)
        except PacketError:
            continue
        for one in seen:
            if one.source_id in done:
                continue
            done.add(one.source_id)
            found.extend(History.by_object([one], "ztf").values())
            own = ["solar system"] if moving else [_named(reached)]
            if label := labels.get(one.object_id):
                own.append(label)
            groups.append(own)
    return found, groups


def _named(reached: float) -> str:
    if not reached:
        return f"score below {SCORES[0]} (skipped by the stream)"
    above = [limit for limit in SCORES if limit > reached]
    return f"score {reached} to {above[0]}" if above else f"score {reached} or more"


def labels_of(folders: Iterable[Path]) -> dict[str, str]:
    """Object -> its label in the folders' index.csv."""
    found: dict[str, str] = {}
    for index in (folder / "index.csv" for folder in folders):
        if index.is_file():
            with index.open(newline="") as rows:
                found |= {row["objectId"]: row["coarse"] for row in csv.DictReader(rows) if row["coarse"]}
    return found


def wilson(k: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share."""
    p, extra = k / n, z * z / n
    middle, half = (p + extra / 2) / (1 + extra), z * math.sqrt(p * (1 - p) / n + extra / (4 * n)) / (1 + extra)
    return max(0.0, middle - half), min(1.0, middle + half)


def main() -> None:
    """See the module."""
    asked = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    data = Path(__file__).resolve().parents[2] / "shared" / "data"
    asked.add_argument("--model", default="ztf/fusion")
    asked.add_argument("--packets", nargs="+", type=Path, default=[data / "ztf", data / "ztf-unlabelled"])
    given = asked.parse_args()
    model = serving.load(given.model, survey="ztf", device="cpu")
    histories, groups = groups_of(given.packets)
    declined: dict[str, list[bool]] = defaultdict(list)
    for at in range(0, len(histories), BATCH):
        said = model.predict(histories[at : at + BATCH])
        for own, prediction in zip(groups[at : at + BATCH], said, strict=True):
            for group in own:
                declined[group].append(prediction.reason == Declined.UNLIKE_TRAINING)
    print(f"{model.info.name} {model.info.version}\n\n| packets | declined | share [95 %] |\n|---|---|---|")
    for group, values in sorted(declined.items()):
        low, high = wilson(sum(values), len(values))
        print(f"| {group} | {sum(values)} of {len(values)} | {sum(values) / len(values):.3f} [{low:.3f}, {high:.3f}] |")


if __name__ == "__main__":
    main()
