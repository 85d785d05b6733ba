"""Class shares from the command line, and parts of an archive with such shares."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from skyheed.classifier.archives.format import CLASSES
from skyheed.classifier.errors import ArchiveError


def read_mixture(text: str) -> dict[str, float]:
    """Shares of the classes, of sum 1, from what `--mixture` was given; classes that are not named have none.

    Raises:
        ArchiveError: it is not of that form, or a number cannot be.
    """
    given = pairs(text, CLASSES, "write --mixture AGN=0.2,SNIa=0.1,Variable=0.6,SNOther=0.1")
    total = sum(given.values())
    if not (0 < total < float("inf")) or min(given.values()) < 0:
        raise ArchiveError(f"--mixture {text}: give numbers that are not negative, and not all 0")
    return {label: given.get(label, 0.0) / total for label in CLASSES}


def written(mixture: Mapping[str, float]) -> str:
    """The shares as `--mixture` takes them."""
    return ",".join(f"{label}={share:g}" for label, share in mixture.items() if share)


def counts(objects: int, mixture: Mapping[str, float]) -> dict[str, int]:
    """How many objects of each class, by largest remainder."""
    exact = {label: objects * share for label, share in mixture.items()}
    made = {label: int(value) for label, value in exact.items()}
    for label in sorted(exact, key=lambda k: made[k] - exact[k])[: objects - sum(made.values())]:
        made[label] += 1
    return made


def thinned(rows: Sequence[Mapping[str, Any]], mixture: Mapping[str, float]) -> list[Mapping[str, Any]]:
    """The largest selection of an archive's objects with these shares in each split, always the same.

    Raises:
        ArchiveError: a requested class does not occur.
    """
    kept = []
    for split in sorted({row["split"] for row in rows}):
        own = {label: [r for r in rows if r["split"] == split and r["class"] == label] for label in mixture}
        if missing := [label for label, share in mixture.items() if share and not own[label]]:
            raise ArchiveError(f"the split {split} has no {missing[0]}: leave it out of the mixture")
        objects = min(len(own[label]) / share for label, share in mixture.items() if share)
        for label, share in mixture.items():
            order = sorted(own[label], key=lambda row: zlib.crc32(f"mixture:{row['object_id']}".encode()))
            kept += order[: round(objects * share)]
    chosen = {row["object_id"] for row in kept}
    return [row for row in rows if row["object_id"] in chosen]


def pairs(text: str, known: Sequence[str], how: str) -> dict[str, float]:
    """Numbers by name from `NAME=NUMBER,…`.

    Args:
        how: what to write, for the message.

    Raises:
        ArchiveError: it is not of that form, or a name is unknown or given twice.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        name = name.strip()
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if name not in known or name in found or number != number:
            raise ArchiveError(f"{part!r} is not understood: {how}")
        found[name] = number
    return found
