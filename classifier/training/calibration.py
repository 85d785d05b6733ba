"""Temperatures by number of stamps, and the prior, fitted on objects that the model was not trained on."""

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.evaluation.evaluate import after_stamps
from skyheed.classifier.models.base import Model
from skyheed.classifier.models.checkpoint import Calibration
from skyheed.classifier.training.dataset import Dataset
from skyheed.classifier.training.protocol import Protocol

AT = (1, 2, 3, 5, 8, 13, 20, 30, 50, 99)  # stamps
ENOUGH = 50  # objects needed to fit a temperature
GRID = np.exp(np.linspace(np.log(0.3), np.log(5), 80))


def fit(
    model: Model, data: Dataset, indices: NDArray[np.int64], labels: NDArray[np.int64], protocol: Protocol
) -> Calibration:
    """A temperature for each number of stamps (Guo et al. 2017, arXiv 1706.04599); the prior is applied afterwards.

    Args:
        model: without calibration.
        labels: true classes of `indices`.
    """
    weight = np.ones(len(indices))
    if protocol.balanced:  # classes had equal weight in training, so they do here; the prior is corrected afterwards
        weight = 1 / np.bincount(labels, minlength=len(protocol.classes))[labels]
    stamps, temperatures = [], []
    for n, (rows, p) in after_stamps(model, data, indices, AT).items():
        if len(rows) >= ENOUGH:
            stamps.append(float(n))
            temperatures.append(temperature(np.log(p.astype(float) + 1e-9), labels[rows], weight[rows]))
    prior = np.asarray(protocol.prior, float)
    relative = tuple(float(x) for x in prior * len(prior) / prior.sum()) if protocol.balanced and len(prior) else ()
    return Calibration(tuple(stamps) or (1.0,), tuple(temperatures) or (1.0,), relative)


def temperature(logits: NDArray[np.float64], truth: NDArray[np.int64], weight: NDArray[np.float64]) -> float:
    """The divisor of the logits with the smallest weighted log-loss."""
    losses = []
    for t in GRID:
        scaled = logits / t - np.logaddexp.reduce(logits / t, axis=1, keepdims=True)
        losses.append(-float((weight * scaled[np.arange(len(truth)), truth]).sum()))
    return float(GRID[int(np.argmin(losses))])
