"""Checks of single values in configurations and checkpoints, with one sentence for each that fails."""

import reprlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from skyheed.classifier import taxonomy
from skyheed.classifier.errors import ModelError
from skyheed.classifier.history import BANDS

LARGEST = sys.float_info.max  # neither inf nor an integer beyond float
MOST = 65_536  # layers, channels, epochs … of a network


def shown(value: Any) -> str:
    """A value, shortened for messages."""
    return reprlib.repr(value)


def choice(key: str, value: Any, known: Sequence[str]) -> None:
    """Raise ModelError unless a value is one of those known."""
    if value not in known:
        raise ModelError(f"{key} is {shown(value)}: use {' or '.join(known)}")


def count(key: str, value: Any, least: int = 0, most: float = LARGEST) -> None:
    """Raise ModelError unless a value is a whole number between two others."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        upto = f"from {least} to {most:g}" if most < LARGEST else f"{least} or more"
        raise ModelError(f"{key} is {shown(value)}: give a whole number, {upto}")


def size(key: str, value: Any) -> None:
    """Raise ModelError unless a value is a whole number that a network can have of anything."""
    count(key, value, 1, MOST)


def number(key: str, value: Any, least: float = 0, most: float = LARGEST) -> None:
    """Raise ModelError unless a value is a number between two others."""
    if not is_number(value) or not least <= value <= most:
        upto = f"between {least:g} and {most:g}" if most < LARGEST else f"{least:g} or more"
        raise ModelError(f"{key} is {shown(value)}: give a number, {upto}")


def switch(key: str, value: Any) -> None:
    """Raise ModelError unless a value is true or false."""
    if not isinstance(value, bool):
        raise ModelError(f"{key} is {shown(value)}: give true or false")


def positive(key: str, *values: Any) -> None:
    """Raise ModelError unless all values are finite numbers above 0."""
    for value in values:
        if not is_number(value) or not 0 < value <= LARGEST:
            raise ModelError(f"{key} has {shown(value)}: give finite numbers above 0")


def is_number(value: Any) -> bool:
    """Whether a value is a number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def text(key: str, value: Any) -> None:
    """Raise ModelError unless a value is a non-empty text."""
    if not isinstance(value, str) or not value:
        raise ModelError(f"{key} is {shown(value)}: give a text")


def classes(names: Sequence[str], known: Iterable[str] = taxonomy.CLASS_IDS) -> None:
    """Raise ModelError unless these are two or more different classes of the taxonomy."""
    for name in names:
        if not isinstance(name, str) or name not in set(known):
            raise ModelError(f"classes has {shown(name)}: known are {', '.join(known)}")
    if len(set(names)) < max(len(names), 2):
        raise ModelError(f"classes is {', '.join(names) or 'empty'}: give two or more, each once")
    merged = [n for n in names if n != taxonomy.merge_supernovae(n)]
    if "SN" in names and merged:
        raise ModelError(f"classes has SN and {merged[0]}, which is a part of it: give one or the other")


def bands(letters: str) -> None:
    """Raise ModelError unless these are different letters of `BANDS`."""
    if not set(letters) <= set(BANDS) or len(set(letters)) < len(letters):
        raise ModelError(f"bands is {shown(letters)}: give letters of {BANDS}, each once")
