"""Predictions of ConvEntion's stream variant from cached tokens, for every runtime. Numpy only.

A token never changes, so a new stamp costs one group. A prediction does not depend on whether a token was cached or
just computed, or on what else is in the batch.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.base_predictor import BasePredictor
from skyheed.classifier.history import History
from skyheed.classifier.models.convention.config import Config
from skyheed.classifier.models.convention.groups import Layout, check_kept, groups, layout, padded_width, uncached
from skyheed.classifier.prediction import Prediction

TOGETHER = 16  # histories processed after the CNN at once on a CPU, as many as fit its caches alongside other work
Token = NDArray[np.generic]


class Grouped(BasePredictor):
    """A model that computes a token for each group of stamps, and a classification from the tokens.

    Attributes:
        config: configuration of the network.
        token_dtype: of cached tokens.
        tokens_of: [g, t, 32, 32] scaled pixels and [g, t] band ids -> float32 [g, channels, y, x].
        together: histories processed after the CNN at once.
    """

    config: Config
    token_dtype: np.dtype[np.generic]
    tokens_of: Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.float32]]
    together = TOGETHER

    def logits_of(self, tokens: NDArray[np.float32], where: Layout) -> NDArray[np.float32]:
        """Logits [b, classes] of tokens [b, n, channels, y, x]."""
        raise NotImplementedError

    @property
    def _group(self) -> int:
        return self.config.group

    @property
    def _token_shape(self) -> tuple[int, int, int]:
        return self.config.channels, self.config.map, self.config.map

    def check(self, history: History) -> None:
        """See `BasePredictor.check`."""
        super().check(history)
        check_kept(history, self._group)

    def _classify(self, histories: Sequence[History]) -> list[Prediction]:
        computed = self.tokens(histories)
        logits = np.empty((len(histories), len(self.classes)), np.float32)
        for width, rows in self._batches(histories):
            logits[rows] = self._logits([histories[r] for r in rows], [computed[r] for r in rows], width)
        probabilities = self.calibrated(logits, histories)
        return [
            Prediction(p, keep=self._full(h, c)) for p, h, c in zip(probabilities, histories, computed, strict=True)
        ]

    def tokens(self, histories: Sequence[History]) -> list[dict[int, Token]]:
        """The tokens of each history that are not cached, computed as one batch of groups."""
        made = [uncached(h, self.info.scaling, self._group) for h in histories]
        pixels, bands = np.concatenate([g.pixels for g in made]), np.concatenate([g.bands for g in made])
        flat = np.empty((0, *self._token_shape), self.token_dtype)
        if len(pixels):
            flat = self.tokens_of(pixels, bands).astype(self.token_dtype)
        found: list[dict[int, Token]] = []
        at = 0
        for history in histories:
            missing = [i for i in range(groups(history, self._group)) if i not in history.kept]
            found.append(dict(zip(missing, flat[at : at + len(missing)], strict=True)))
            at += len(missing)
        return found

    def _batches(self, histories: Sequence[History]) -> list[tuple[int, list[int]]]:
        """A width, and rows whose histories are padded to it, so that short ones are not padded to the longest."""
        rows: dict[int, list[int]] = {}
        for row, history in enumerate(histories):
            width = padded_width(groups(history, self._group), self.config.tokens)
            rows.setdefault(width, []).append(row)
        return [
            (width, own[at : at + self.together])
            for width, own in rows.items()
            for at in range(0, len(own), self.together)
        ]

    def _logits(
        self, histories: Sequence[History], computed: Sequence[dict[int, Token]], width: int
    ) -> NDArray[np.float32]:
        where = layout(histories, width, self._group)
        tokens = np.zeros((len(histories), width, *self._token_shape), self.token_dtype)
        for row, (history, fresh) in enumerate(zip(histories, computed, strict=True)):
            known = {**{group: self._token(raw) for group, raw in history.kept.items()}, **fresh}
            tokens[row, : len(known)] = np.stack([known[group] for group in range(len(known))])
        return self.logits_of(tokens.astype(np.float32, copy=False), where)

    def _token(self, raw: bytes) -> Token:
        return np.frombuffer(raw, self.token_dtype).reshape(self._token_shape)

    def _full(self, history: History, computed: dict[int, Token]) -> dict[int, bytes]:
        n = self._group
        return {group: token.tobytes() for group, token in computed.items() if n * group + n <= len(history)}
