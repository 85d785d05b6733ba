"""Tokens of random views, computed once: the layers after ConvEntion's CNN then learn at a hundredth of the cost.

A token depends only on the stamps of its group, so sequences of tokens may begin and end at any group.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.flux_scaling import Scaling
from skyheed.classifier.history import History
from skyheed.classifier.models.convention.groups import groups as groups_of
from skyheed.classifier.models.convention.groups import padded_width, uncached
from skyheed.classifier.progress import progress_bar
from skyheed.classifier.training.dataset import Augmentation, Dataset

TokenMaker = Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.float32]]
TOGETHER = 16  # views whose groups are computed at once
GAPS = 0.5  # half of the sequences lack up to this fraction of their groups
PARTIAL = 0.2  # fraction of groups also stored with only some of their first stamps


@dataclass(frozen=True)
class TokenBatch:
    """Padded sequences of tokens as `ConvEntion.classify` takes them, and the objects they belong to."""

    tokens: NDArray[np.float32]
    valid: NDArray[np.bool_]
    days: NDArray[np.float32]
    present: NDArray[np.bool_]
    objects: NDArray[np.int64]


class Bank:
    """Tokens of views of many objects.

    Args:
        make: scaled pixels [g, group, 32, 32] and band ids [g, group] -> tokens.
        indices: the objects.
        views: number of views of each object.
        seed: random draws for an object depend only on this and the object, not on the other objects.
        group: stamps of a token.
    """

    def __init__(
        self,
        make: TokenMaker,
        data: Dataset,
        indices: NDArray[np.int64],
        augmentation: Augmentation,
        scaling: Scaling,
        views: int,
        seed: Sequence[int],
        group: int,
    ) -> None:
        self._group = group
        self._views: dict[int, list[int]] = {int(i): [] for i in indices}
        self._made: list[NDArray[np.float16]] = []
        self._start, self._groups = [0], list[int]()
        parts: list[tuple[NDArray[np.generic], ...]] = []
        wanted = [(int(i), np.random.default_rng([*seed, int(i), k])) for i in indices for k in range(views)]
        for at in progress_bar(range(0, len(wanted), TOGETHER), "tokens", unit=f"{TOGETHER} views"):
            drawn = wanted[at : at + TOGETHER]
            shown = [(i, augmentation.view(data, i, rng)[0]) for i, rng in drawn]
            cuts = [self._partial_of(view, rng) for (_, rng), (_, view) in zip(drawn, shown, strict=True)]
            for (index, view), cut in zip(shown, cuts, strict=True):
                self._views[index].append(len(self._groups))
                parts.append(self._rows(view, cut))
                self._groups.append(groups_of(view, group))
            every = [s for (_, view), cut in zip(shown, cuts, strict=True) for s in (view, *cut.values())]
            computed = [uncached(s, scaling, group) for s in every]
            made = make(np.concatenate([g.pixels for g in computed]), np.concatenate([g.bands for g in computed]))
            self._made.append(made.astype(np.float16))
        self._longest = max(self._groups)
        self._tokens = np.concatenate(self._made)
        del self._made
        self._mjd, self._count, self._cut = (np.concatenate(column) for column in zip(*parts, strict=True))

    def _rows(self, view: History, cut: dict[int, History]) -> tuple[NDArray[np.generic], ...]:
        """Times, stamps and the partial group of every token of a view; full groups first, then partial ones."""
        own = groups_of(view, self._group)
        partial = np.full(own + len(cut), -1)
        partial[list(cut)] = self._start[-1] + own + np.arange(len(cut))
        self._start.append(self._start[-1] + len(partial))
        every = (view, *cut.values())
        steps = np.concatenate([_steps(s, self._group) for s in every])
        return steps, np.concatenate([_counts(s, self._group) for s in every]), partial

    def _partial_of(self, view: History, rng: np.random.Generator) -> dict[int, History]:
        """Some full groups of a view (always the first), cut to some of their first stamps; none for groups of one."""
        found: dict[int, History] = {}
        if self._group == 1:
            return found
        for group in range(len(view) // self._group):
            if group == 0 or rng.random() < PARTIAL:
                first = group * self._group
                found[group] = view.take(np.arange(first, first + int(rng.integers(1, self._group))))
        return found

    def draw(self, objects: NDArray[np.int64], late: float, truncate: float, rng: np.random.Generator) -> TokenBatch:
        """A random stretch of a random view of each object.

        Args:
            late: fraction that begin at a random group.
            truncate: fraction that end at a random group, log-uniform in their number.
        """
        rows = [self._stretch(int(index), late, truncate, rng) for index in objects]
        longest = max(len(r) for r in rows)
        width = padded_width(longest, self._longest)
        tokens = np.zeros((len(rows), width, *self._tokens.shape[1:]), np.float32)
        days = np.zeros((len(rows), width, self._group), np.float32)
        present = np.zeros((len(rows), width, self._group), bool)
        for k, r in enumerate(rows):
            tokens[k, : len(r)] = self._tokens[r]
            present[k, : len(r)] = np.arange(self._group) < self._count[r][:, None]
            days[k, : len(r)] = np.where(present[k, : len(r)], self._mjd[r] - self._mjd[r[0], 0], 0)
        valid: NDArray[np.bool_] = np.any(present, axis=-1)
        return TokenBatch(tokens, valid, days, present, objects)

    def _stretch(self, index: int, late: float, truncate: float, rng: np.random.Generator) -> NDArray[np.int64]:
        view = int(rng.choice(self._views[index]))
        n = self._groups[view]
        first = int(rng.integers(n)) if rng.random() < late else 0
        last = n
        if rng.random() < truncate:
            last = first + int(np.exp(rng.uniform(0, np.log(n - first + 1))))
        rows = np.arange(first, max(last, first + 1)) + self._start[view]
        if rng.random() < 0.5:  # gaps
            kept = rng.random(len(rows)) >= rng.uniform(0, GAPS)
            kept[-1] = True
            rows = rows[kept]
        cut = self._cut[rows[-1]]
        if cut >= 0 and rng.random() < 0.7:
            rows[-1] = cut
        return rows


def _steps(view: History, group: int) -> NDArray[np.float64]:
    padded = np.full(groups_of(view, group) * group, view.mjd[-1])
    padded[: len(view)] = view.mjd
    return padded.reshape(-1, group)


def _counts(view: History, group: int) -> NDArray[np.int64]:
    full = np.full(groups_of(view, group), group)
    full[-1] = len(view) - group * (len(full) - 1)
    return full
