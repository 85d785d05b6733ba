"""Computes what the page shows as "recomputed now"; runs in a process of `recompute` and is the only part of the page
that loads models.

Leaving epochs out makes a new history, which the worker's predictor handles like any other. What the model caches
depends only on neighbouring epochs, so most of what a reduced history needs is already cached from the full one.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skyheed.broker import worker_models
from skyheed.broker.settings import Settings
from skyheed.broker.web.images import missing, without
from skyheed.broker.web.problems import Problem
from skyheed.broker.web.rows import reason_text
from skyheed.classifier.history import History
from skyheed.classifier.prediction import Prediction
from skyheed.classifier.stamp import STAMP_SIZE

if TYPE_CHECKING:
    from skyheed.classifier.models.base import Model

CONTEXT_NOTICE = "this model uses context, and all results here use that of the newest epoch: partly hindsight"
SURE = 0.8  # probability from which a class counts as recognised
KEPT = 4_000  # cached entries for epochs; a token of ConvEntion has 1.3 kB
PATCH = 4  # side in pixels of the square that is covered at a time
BATCH = 64
METHOD = (
    f"occlusion: the change of the class's log-odds when {PATCH} x {PATCH} pixels are covered with background (0); "
    "positive where the pixels are evidence for the class"
)


class Models:
    """The models in the settings, ready to compute.

    Raises:
        SkyheedError, ClassifierError: a model does not load.
    """

    def __init__(self, settings: Settings) -> None:
        quick = replace(settings, work=replace(settings.work, batch_size=1))  # warmed up for one history
        self._served = {served.name: Explained(served.model) for served in worker_models.load_models(quick)}

    def run(self, task: Any) -> dict[str, Any]:
        """Run a task.

        Raises:
            Problem: there is no such model, or the request cannot be met.
        """
        name = task.model or next(iter(self._served))
        if name not in self._served:
            raise Problem(404, f"this server does not run the model {name!a}; it runs {', '.join(self._served)}")
        own = self._served[name]
        return {"kind": "recomputed", **TASKS[task.name](own, seen_by(own, task.history), task.given)}


def seen_by(own: "Explained", history: History) -> History:
    """The history as the model needs it.

    Raises:
        Problem: it needs images, and some are no longer kept.
    """
    if not own.model.needs.images:
        return replace(history, images={}, shown=np.arange(len(history)))
    if gone := without(missing(history), len(history)):
        raise Problem(422, f"{own.model.info.name} needs images, and {gone}: what it published is shown")
    return history


class Explained:
    """One model, and what it cached for the epochs it was shown recently."""

    def __init__(self, model: "Model") -> None:
        self.model = model
        self._kept: OrderedDict[Any, bytes] = OrderedDict()

    def predict(self, histories: Sequence[History], mark: str = "") -> list[Prediction]:
        """Predict as the worker's predictor does, using what is cached for the epochs.

        Args:
            mark: what was changed in the epochs; cache entries belong to this change only.
        """
        found: list[Prediction] = []
        for first in range(0, len(histories), BATCH):
            chunk = [h.newest(self.model.needs.most) for h in histories[first : first + BATCH]]
            made = self.model.predict([self._known(h, mark) for h in chunk])
            for history, prediction in zip(chunk, made, strict=True):
                self._keep(history, prediction, mark)
            found += made
        return found

    def _keys(self, history: History, mark: str) -> list[Any]:
        span = self.model.needs.span
        sources = history.source_id.astype(">u8").tobytes()
        width = 8 * span
        name = (history.object_id, self.model.kept_as, tuple(history.images), mark)
        return [(*name, sources[at * width : (at + 1) * width]) for at in range(len(history) // span)] if span else []

    def kept(self, history: History, mark: str = "") -> dict[int, bytes]:
        """What is cached for the history's epochs, by span."""
        return {at: self._kept[key] for at, key in enumerate(self._keys(history, mark)) if key in self._kept}

    def _known(self, history: History, mark: str) -> History:
        kept = self.kept(history, mark)
        if not kept:
            return history
        span = self.model.needs.span
        shown = np.array([n for n in range(len(history)) if n // span not in kept], np.int64)
        images = {kind: history.pixels(kind, shown) for kind in history.images}
        return replace(history, images=images, shown=shown, kept=kept)

    def _keep(self, history: History, prediction: Prediction, mark: str) -> None:
        keys = self._keys(history, mark)
        for at, kept in prediction.keep.items():
            self._kept[keys[at]] = kept
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    def result(self, prediction: Prediction) -> dict[str, Any]:
        """A prediction as plain values."""
        names = self.model.classes if prediction.reason is None else ()
        probabilities = {n: round(float(p), 6) for n, p in zip(names, prediction.probabilities, strict=True)}
        top = max(probabilities, key=lambda name: probabilities[name]) if probabilities else None
        reason = None if prediction.reason is None else str(prediction.reason)
        return {
            "status": str(prediction.status), "reason": reason, "reason_text": reason_text(reason),
            "probabilities": probabilities, "top_class": top, "top_probability": probabilities.get(top or ""),
            "estimates": {n: {"value": e.value, "error": e.error} for n, e in prediction.estimates.items()},
        }  # fmt: skip

    def brief(self) -> dict[str, Any]:
        """The model that computes."""
        info = self.model.info
        return {
            "name": info.name, "version": info.version, "digest": info.digest, "classes": list(self.model.classes),
            "computed_on": self.model.chosen,
        }  # fmt: skip

    def class_index(self, asked: str, prediction: Prediction) -> int:
        """The index of the requested class, or of the most probable one."""
        if asked:
            if asked not in self.model.classes:
                raise Problem(422, f"the model knows the classes {', '.join(self.model.classes)}")
            return self.model.classes.index(asked)
        return int(np.argmax(prediction.probabilities))


def log_odds(probability: float) -> float:
    """log(p / (1 - p)), finite even where a float32 is 0 or 1."""
    p = min(max(float(probability), 1e-7), 1 - 1e-7)
    return math.log(p / (1 - p))


def prefixes(own: Explained, history: History, _given: Mapping[str, Any]) -> dict[str, Any]:
    """The probabilities after every epoch, or the reason for a decline."""
    counts = range(1, len(history) + 1)
    made = own.predict([history, *(history.until(epochs=n) for n in counts)])[1:]
    first = float(history.mjd[0])
    rows = [
        {
            "epochs": n, "source_id": str(history.source_id[n - 1]), "mjd": float(history.mjd[n - 1]),
            "days": round(float(history.mjd[n - 1]) - first, 4), **own.result(prediction),
        }
        for n, prediction in zip(counts, made, strict=True)
    ]  # fmt: skip
    # Redis keeps the context of the newest epoch only: that of an earlier epoch is no longer known
    notice = CONTEXT_NOTICE if own.model.needs.context and history.context else ""
    return {"model": own.brief(), "notice": notice, "prefixes": rows, "turned": _turned(rows), "sure": _sure(rows)}


def _turned(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The first epoch from which the most probable class stays the same as the last one's."""
    last = rows[-1]["top_class"]
    if last is None:
        return None
    first = len(rows)
    while first > 1 and rows[first - 2]["top_class"] == last:
        first -= 1
    row = rows[first - 1]
    return {"class": last} | {name: row[name] for name in ("epochs", "source_id", "mjd", "days")}


def _sure(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    last = rows[-1]["top_class"]
    found = (row for row in rows if last and row["probabilities"].get(last, 0) > SURE)
    row = next(found, None)
    return None if row is None else {"class": last, "above": SURE, "epochs": row["epochs"], "days": row["days"]}


def what_if(own: Explained, history: History, given: Mapping[str, Any]) -> dict[str, Any]:
    """The classification without some epochs and kinds of input, and that of the full history."""
    kinds = frozenset(given["kinds"])
    if "science" in kinds and "science" in own.model.needs.images:
        raise Problem(422, "every epoch needs its science stamp: leave these on, or switch epochs, nights or bands off")
    keep = np.flatnonzero(kept_epochs(history, given))
    if not len(keep):
        raise Problem(422, "nothing is left of the history: leave at least one epoch on")
    reduced = without_kinds(history.take(keep), kinds)
    whole, changed = own.predict([history])[0], own.predict([reduced], mark=" ".join(sorted(kinds)))[0]
    return {
        "model": own.brief(), "whole": own.result(whole), "reduced": own.result(changed), "epochs": len(keep),
        "off": len(history) - len(keep), "change": _changes(own, whole, changed),
    }  # fmt: skip


def kept_epochs(history: History, given: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Which epochs remain when sources, nights (whole MJD) and bands are switched off."""
    sources = np.array([str(source) for source in history.source_id])
    off = np.isin(sources, list(given["sources"])) | np.isin(np.floor(history.mjd), list(given["nights"]))
    return ~(off | np.isin(history.band, list(given["bands"])))


def without_kinds(history: History, kinds: frozenset[str]) -> History:
    """The history as if the survey had not sent some kinds of images, photometry or context.

    An image that was not sent has all pixels zero, as the store returns it.
    """
    return replace(
        history,
        images={kind: np.zeros_like(pixels) if kind in kinds else pixels for kind, pixels in history.images.items()},
        photometry=None if "photometry" in kinds else history.photometry,
        context={} if "context" in kinds else history.context,
    )


def _changes(own: Explained, whole: Prediction, reduced: Prediction) -> dict[str, float] | None:
    if whole.reason is not None or reduced.reason is not None:
        return None
    pairs = zip(own.model.classes, whole.probabilities, reduced.probabilities, strict=True)
    return {name: round(log_odds(after) - log_odds(before), 4) for name, before, after in pairs}


def influence(own: Explained, history: History, given: Mapping[str, Any]) -> dict[str, Any]:
    """How much each epoch supports a class: log-odds with it minus log-odds without it."""
    whole = own.predict([history])[0]
    if whole.reason is not None:
        raise Problem(422, f"the object is not classified: {reason_text(str(whole.reason))}")
    at = own.class_index(given["class"], whole)
    n, rest = len(history), []
    if n > 1:
        reduced = [history.take(np.delete(np.arange(n), left_out)) for left_out in range(n)]
        # this one first, alone: what is cached for its shifted epochs is then available to the others
        rest = own.predict(reduced[:1]) + own.predict(reduced[1:])
    base = log_odds(float(whole.probabilities[at]))
    rows = [
        {
            "index": i, "source_id": str(history.source_id[i]), "reason": str(p.reason) if p.reason else None,
            "log_odds": None if p.reason else round(base - log_odds(float(p.probabilities[at])), 4),
        }
        for i, p in enumerate(rest)
    ]  # fmt: skip
    return {
        "model": own.brief(), "class": own.model.classes[at], "whole": own.result(whole), "influence": rows,
    }  # fmt: skip


def saliency(own: Explained, history: History, given: Mapping[str, Any]) -> dict[str, Any]:
    """How much the pixels of one epoch's stamps support a class, found by covering patches of them."""
    whole = own.predict([history])[0]
    if whole.reason is not None:
        raise Problem(422, f"the object is not classified: {reason_text(str(whole.reason))}")
    kinds = [kind for kind in own.model.needs.images if kind in history.images]
    if not kinds:
        raise Problem(422, f"the model {own.model.info.name} does not use stamps")
    at, epoch = own.class_index(given["class"], whole), int(given["epoch"])
    base = log_odds(float(whole.probabilities[at]))
    maps = {kind: _covered(own, history, kind, epoch, at, base) for kind in kinds}
    return {
        "model": own.brief(), "class": own.model.classes[at], "whole": own.result(whole), "method": METHOD,
        "source_id": str(history.source_id[epoch]), "maps": maps,
    }  # fmt: skip


def _covered(own: Explained, history: History, kind: str, epoch: int, at: int, base: float) -> list[list[float]]:
    covered = [
        _with_rest(own, _patched(history, kind, epoch, y, x), epoch)
        for y in range(0, STAMP_SIZE, PATCH)
        for x in range(0, STAMP_SIZE, PATCH)
    ]
    made = [p for first in range(0, len(covered), BATCH) for p in own.model.predict(covered[first : first + BATCH])]
    values = [0.0 if p.reason else base - log_odds(float(p.probabilities[at])) for p in made]
    side = STAMP_SIZE // PATCH
    found: list[list[float]] = np.kron(np.round(values, 5).reshape(side, side), np.ones((PATCH, PATCH))).tolist()
    return found


def _patched(history: History, kind: str, epoch: int, y: int, x: int) -> History:
    pixels = history.images[kind].copy()
    pixels[epoch, y : y + PATCH, x : x + PATCH] = 0
    return replace(history, images={**history.images, kind: pixels})


def _with_rest(own: Explained, covered: History, epoch: int) -> History:
    """The changed history with what is cached for all epochs except those that share a span with the changed one."""
    span = max(own.model.needs.span, 1)
    kept = {at: token for at, token in own.kept(covered).items() if at != epoch // span}
    shown = np.array([n for n in range(len(covered)) if n // span not in kept], np.int64)
    images = {kind: pixels[shown] for kind, pixels in covered.images.items()}
    return replace(covered, images=images, shown=shown, kept=kept)


TASKS: dict[str, Callable[[Explained, History, Mapping[str, Any]], dict[str, Any]]] = {
    "prefixes": prefixes, "what_if": what_if, "influence": influence, "saliency": saliency,
}  # fmt: skip
