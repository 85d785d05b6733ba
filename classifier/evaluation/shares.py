"""Estimates class frequencies from a model's own probabilities: for reporting only, never applied.

Two estimates, neither of which needs labels from the stream: by expectation maximisation of the probabilities, and from
predicted classes and the model's confusion matrix (`training.label_shift`). Both are valid only if each class looks as
it did when the model was calibrated. Numpy only.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.errors import ModelError
from skyheed.classifier.models.checkpoint import Info
from skyheed.classifier.models.priors import PRIOR
from skyheed.classifier.safe_names import table_cell
from skyheed.classifier.training import label_shift

DRAWS = 200
FEWEST = 30  # minimum number of objects for an estimate
INTERVAL = (2.5, 97.5)
Floats = NDArray[np.float64]
TITLE = "Class shares, estimated without labels (95 % intervals; not applied)"
UNKNOWN = (
    "the model's confusion matrix was counted with another class prior, or before its heads were fitted to real objects"
)
HOLDS = "They are valid only if each class looks as it did when the model was calibrated."


def estimate(
    probabilities: NDArray[np.floating[Any]], classes: Sequence[str], prior: Sequence[float],
    confusion: Sequence[Sequence[int]] | None, truth: NDArray[np.int64] | None = None, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Both estimates with their 95 % intervals, from bootstrap over objects.

    Args:
        probabilities: [n, classes], one row per object.
        prior: assumed by the probabilities; empty: all classes equal.
        confusion: [truth, predicted] for objects of the kind that the model was calibrated on, with the same prior;
            None if unknown, or computed with another prior.
        truth: [n] if labels are known, so that the estimates can be compared with the true shares.

    Raises:
        ModelError: there are too few objects.
    """
    if len(probabilities) < FEWEST:
        raise ModelError(
            f"there are {len(probabilities)} objects, too few to estimate class shares: {FEWEST} are needed"
        )
    assumed = np.asarray(prior, np.float64) if len(prior) else np.ones(len(classes))
    assumed = assumed / assumed.sum()
    p, rng = np.asarray(probabilities, np.float64), np.random.default_rng(seed)
    draws = [rng.integers(len(p), size=len(p)) for _ in range(DRAWS)]
    found: dict[str, Any] = {
        "objects": len(p), "classes": list(classes), "assumed": _rounded(assumed),
        "em": _with_interval(lambda rows: label_shift.expectation_maximisation(p[rows], assumed, 300, 1e-6), draws, p),
    }  # fmt: skip
    if confusion is not None:
        found |= _black_box(p, np.asarray(confusion, np.int64), draws, rng)
    else:
        found["bbse_refused"] = UNKNOWN
    if truth is not None:
        found["true"] = _rounded(np.bincount(truth, minlength=len(classes)) / len(truth))
    return found


def confusion_of(info: Info) -> Sequence[Sequence[int]] | None:
    """The confusion matrix stored in a checkpoint, if it describes its present output: not if another prior is assumed,
    or if heads were fitted to real objects after it was computed."""
    if PRIOR in info.version or "few_shot" in info.training:
        return None
    found: Sequence[Sequence[int]] | None = info.metrics.get("confusion")
    return found


def _black_box(
    p: Floats, confusion: NDArray[np.int64], draws: Sequence[NDArray[np.int64]], rng: np.random.Generator
) -> dict[str, Any]:
    """The estimate from predicted classes; the objects behind the confusion matrix are resampled, too."""
    count = len(confusion)
    truth, said = np.divmod(np.repeat(np.arange(count**2), confusion.ravel()), count)
    target = p.argmax(1)

    def of(rows: Any) -> Floats:
        known = slice(None) if isinstance(rows, slice) else rng.integers(len(truth), size=len(truth))
        return label_shift.black_box(truth[known], said[known], target[rows], count)

    try:
        return {"bbse": _with_interval(of, draws, p)}
    except ModelError as error:
        return {"bbse_refused": str(error)}


def _with_interval(of: Callable[[Any], Floats], draws: Sequence[NDArray[np.int64]], p: Floats) -> dict[str, Any]:
    low, high = np.percentile([of(rows) for rows in draws], INTERVAL, axis=0)
    return {"shares": _rounded(of(slice(None))), "low": _rounded(low), "high": _rounded(high)}


def _rounded(values: NDArray[np.floating[Any]]) -> list[float]:
    return [round(float(v), 4) for v in values]


def lines(found: Mapping[str, Any]) -> list[str]:
    """The estimates as a table in Markdown, and how to apply them."""
    columns = ["class", "assumed now", "EM", *(["BBSE"] if "bbse" in found else [])]
    columns += ["true"] if "true" in found else []
    made = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for n, name in enumerate(found["classes"]):
        cells = [table_cell(name), f"{found['assumed'][n]:.3f}"]
        cells += [_shown(found[way], n) for way in ("em", "bbse") if way in found]
        cells += [f"{found['true'][n]:.3f}"] if "true" in found else []
        made.append(f"| {' | '.join(cells)} |")
    if "bbse_refused" in found:
        made += ["", f"No BBSE: {found['bbse_refused']}."]
    prior = ",".join(f"{max(share, 1e-3):.3g}" for share in found["em"]["shares"])
    return [*made, "", f"{found['objects']} objects. {HOLDS} Nothing was changed; to assume them: --prior {prior}"]


def _shown(way: Mapping[str, Any], n: int) -> str:
    return f"{way['shares'][n]:.3f} [{way['low'][n]:.2f}, {way['high'][n]:.2f}]"
