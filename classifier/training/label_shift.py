"""Class shares in an unlabelled stream whose classes look as they did in training (label shift). Numpy only.

Both methods need calibrated source probabilities, and fail if classes look different in the target: adapt, calibrate,
then correct. They only estimate; they do not change the class prior of any model.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.errors import ModelError

Floats = NDArray[np.floating[Any]]
SINGULAR = 1e3  # condition number above which a confusion matrix cannot be inverted usefully


def expectation_maximisation(
    probabilities: Floats, prior: Floats, steps: int = 1000, tolerance: float = 1e-8
) -> NDArray[np.float64]:
    """Class shares [c] of a target (Saerens et al. 2002, Neural Computation 14, 21).

    Args:
        probabilities: [n, c], of the target samples.
        prior: [c], assumed by the probabilities.
    """
    prior = np.asarray(prior, np.float64) / np.sum(prior)
    evidence = np.asarray(probabilities, np.float64) / prior
    shares = prior
    for _ in range(steps):
        posterior = evidence * shares
        posterior /= posterior.sum(1, keepdims=True)
        found: NDArray[np.float64] = posterior.mean(0)
        if np.abs(found - shares).max() < tolerance:
            return found
        shares = found
    return shares


def black_box(
    labels: NDArray[np.integer[Any]],
    predicted: NDArray[np.integer[Any]],
    target: NDArray[np.integer[Any]],
    classes: int,
) -> NDArray[np.float64]:
    """Class shares [c] of a target from the classes predicted there (BBSE: Lipton et al. 2018, ICML).

    Args:
        labels, predicted: [n], of the source validation samples.
        target: [m], predicted.
        classes: how many.

    Raises:
        ModelError: the classifier confuses the classes too much for an estimate.
    """
    joint = np.zeros((classes, classes))
    np.add.at(joint, (predicted, labels), 1 / len(labels))
    if (joint.sum(0) == 0).any() or np.linalg.cond(joint) > SINGULAR:
        raise ModelError(
            "the classifier does not tell all classes apart on the validation objects, so their shares in the stream "
            "cannot be estimated: use more objects, or a better model"
        )
    seen = np.bincount(target, minlength=classes) / len(target)
    ratios = np.clip(np.linalg.solve(joint, seen), 0, None)
    shares = ratios * joint.sum(0)
    made: NDArray[np.float64] = shares / shares.sum()
    return made
