"""Sums, medians and lines of many groups of numbers at once. Numpy only."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Groups:
    """Groups of neighbouring places with the same key.

    Args:
        key: [k], equal within a group; the members of a group are neighbours.

    Attributes:
        key: [g], of each group.
        first, last: [g], the place of its first and last member.
        count: [g], its members.
    """

    def __init__(self, key: NDArray[np.int64]) -> None:
        self.first = np.flatnonzero(np.diff(key, prepend=key[:1] - 1))
        self.count = np.diff(self.first, append=len(key))
        self.last = self.first + self.count - 1
        self.key = key[self.first]
        self._size = len(key)

    def spread(self, values: NDArray[Any]) -> NDArray[Any]:
        """A value of each group, [g], for each of its members, [k]."""
        return np.repeat(values, self.count)

    def total(self, values: NDArray[Any]) -> NDArray[Any]:
        """Sums [g] of values [k]."""
        return np.add.reduceat(values, self.first)

    def mean(self, values: NDArray[Any]) -> Floats:
        """Means [g] of values [k]."""
        found: Floats = self.total(values) / self.count
        return found

    def largest(self, values: Floats) -> Floats:
        """Maxima [g] of values [k]."""
        return np.maximum.reduceat(values, self.first)

    def first_where(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The place of the first chosen member of each group; each has one."""
        return np.minimum.reduceat(np.where(chosen, np.arange(self._size), self._size - 1), self.first)

    def median(self, values: Floats) -> Floats:
        """Medians [g] of values [k]."""
        ordered = values[np.lexsort((values, self.spread(np.arange(len(self.key)))))]
        middle: Floats = ordered[self.first + (self.count - 1) // 2] + ordered[self.first + self.count // 2]
        return middle / 2

    def scatter(self, values: Floats) -> Floats:
        """Standard deviations [g] of values [k]."""
        away = values - self.spread(self.mean(values))
        return np.sqrt(self.mean(away * away))

    def line(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Slopes and intercepts [g] of the least-squares lines through points [k]; NaN if all are at one x."""
        middle, level = self.mean(x), self.mean(y)
        away = x - self.spread(middle)
        slope = self.total(away * (y - self.spread(level))) / self.total(away * away)
        return slope, level - slope * middle

    def placed(self, values: Floats, size: int) -> Floats:
        """Values [g] at the places that their keys name, of [size]; NaN elsewhere."""
        found = np.full(size, np.nan)
        found[self.key] = values
        return found
