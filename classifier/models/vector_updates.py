"""Predictions of `vector` and `fusion` from cached earlier epochs, for every runtime. Numpy only."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.base_predictor import BasePredictor
from skyheed.classifier.flux_scaling import Scaling
from skyheed.classifier.history import History
from skyheed.classifier.models import token_cache
from skyheed.classifier.models.vector_inputs import Arrays, Inputs
from skyheed.classifier.nights import padded
from skyheed.classifier.prediction import Declined, Prediction

FORM = 1  # increment when cached values are computed differently, so that old and new ones are not mixed
TOGETHER = 256  # stamps that are encoded at once


class Engine(Protocol):
    """The two parts of the network."""

    def vectors(self, images: NDArray[np.float32], band: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors [m, width] of scaled stamps [m, kinds, 32, 32] of the bands [m]."""

    def behind(self, arrays: Arrays) -> Arrays:
        """Everything after the vectors, as computed by `vector_parts.Behind` and `vector_parts.Among`."""


class Updates:
    """Predictions for histories, from cached values."""

    def __init__(self, engine: Engine, inputs: Inputs) -> None:
        self.engine, self.inputs, self.config = engine, inputs, inputs.config

    def __call__(self, histories: Sequence[History], scaling: Scaling) -> tuple[Arrays, list[dict[int, bytes]]]:
        """Outputs for histories that may contain cached values, and values to cache for their new epochs.

        Only stamps without a cached vector are encoded, and only epochs from the first new one on pass the blocks.

        Returns:
            logits: [b, classes], and any further outputs of the network; the values to cache are given per history.

        Raises:
            ValueError: the cached values do not belong to their epochs, whose images are not available.
        """
        dtype = np.dtype(self.config.kept)
        found = token_cache.find(histories, self.config.keeps, dtype)
        missing = [~f.stamps for f in found]
        self._encode_missing(histories, found, scaling)
        changed = missing if self.config.photometry else [np.arange(len(f.own)) >= f.whole for f in found]
        said: Arrays = {}
        for rows in _alike(changed):
            arrays = self.inputs.without_images([histories[r] for r in rows], scaling)
            for name, part in self._behind([found[r] for r in rows], arrays).items():
                said.setdefault(name, np.empty((len(histories), *part.shape[1:]), part.dtype))[rows] = part
        return said, [_new(f, c, dtype) for f, c in zip(found, changed, strict=True)]

    def _encode_missing(
        self, histories: Sequence[History], found: Sequence[token_cache.Found], scaling: Scaling
    ) -> None:
        """Fill in missing vectors of stamps."""
        epochs = [np.flatnonzero(~f.stamps) for f in found]
        images = self.inputs.pixels(histories, epochs, scaling)
        band = np.concatenate([h.band[e] for h, e in zip(histories, epochs, strict=True)]).astype(np.int64)
        vectors = np.empty((len(images), self.config.per_stamp), self.config.kept)
        for at in range(0, len(images), TOGETHER):
            rows = slice(at, at + TOGETHER)
            vectors[rows] = self.engine.vectors(images[rows], band[rows])
        ends = np.cumsum([len(e) for e in epochs])[:-1]
        for f, e, own in zip(found, epochs, np.split(vectors, ends), strict=True):
            f.values[e, : self.config.per_stamp] = own

    def _behind(self, found: Sequence[token_cache.Found], arrays: Arrays) -> Arrays:
        """Outputs for histories for which the vectors of all stamps are known; fills in the values to cache."""
        if self.config.photometry:
            return self.engine.behind({"vectors": padded([f.values for f in found]), **arrays})
        width, n = self.config.width, arrays["valid"].shape[1]
        begin, length = (np.array(v)[:, None] for v in ([f.whole for f in found], [len(f.own) for f in found]))
        epochs = begin + np.arange(max(1, (length - begin).max()))
        given = {
            "values": padded([f.values for f in found], n + 1),
            "times": np.pad(arrays["times"], ((0, 0), (0, 1), (0, 0))),
            "valid": arrays["valid"],
            "epochs": np.where(epochs < length, epochs, n),
            **self.inputs.beside_of(arrays),
        }
        said = self.engine.behind(given)
        for f, fresh in zip(found, said.pop("fresh"), strict=True):
            f.values[f.whole :, width:] = fresh[: len(f.own) - f.whole]
        return said


def _alike(changed: Sequence[NDArray[np.bool_]]) -> list[list[int]]:
    """Rows of histories that need about the same computation, so that short ones are not padded to the long ones."""
    rows: dict[int, list[int]] = {}
    for row, own in enumerate(changed):
        rows.setdefault(int(own.sum()).bit_length(), []).append(row)
    return list(rows.values())


def _new(found: token_cache.Found, changed: NDArray[np.bool_], dtype: np.dtype[Any]) -> dict[int, bytes]:
    """Values to cache for the epochs that were just computed."""
    return {
        int(n): token_cache.pack(found.own[n], found.upto[n], found.values[n].astype(dtype))
        for n in np.flatnonzero(changed)
    }


class Updated(BasePredictor):
    """A model served by `Updates`; objects unlike the training data are declined, if the network can detect them."""

    _update: Updates

    def judge(self, histories: Sequence[History]) -> list[Prediction]:
        """See `BasePredictor.judge`: unlike `classify`, it declines objects far from all training data."""
        if not histories:
            return []
        for history in histories:
            self.check(history)
        found, far = self._said(histories)
        unlike = Declined.UNLIKE_TRAINING
        return [
            Prediction(np.empty(0, np.float32), unlike, keep=p.keep) if f > 1 else p
            for p, f in zip(found, far, strict=True)
        ]

    def _classify(self, histories: Sequence[History]) -> list[Prediction]:
        return self._said(histories)[0]

    def _said(self, histories: Sequence[History]) -> tuple[list[Prediction], list[float]]:
        """Predictions, and the distance of each history from the training data; beyond 1 it is unlike them."""
        said, keep = self._update(histories, self.info.scaling)
        probabilities = self.calibrated(said["logits"], histories)
        far: list[float] = said["far"].tolist() if "far" in said else [0.0] * len(histories)
        return [Prediction(p, keep=own) for p, own in zip(probabilities, keep, strict=True)], far
