"""What all served models share, for every runtime. Numpy only."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.errors import ModelError
from skyheed.classifier.history import BANDS, History
from skyheed.classifier.models.checkpoint import Info
from skyheed.classifier.prediction import Declined, Needs, Prediction
from skyheed.classifier.stamp import STAMP_SIZE


class BasePredictor:
    """A model that is ready to serve.

    Attributes:
        info: its card.
        needs: what it reads of a history.
        classes: in the order of the probabilities.
        chosen: a sentence that says on which device it computes, and why.
        kept_as: version of what it caches, which changes with everything the cache depends on; "" if nothing is cached.
    """

    kept_as = ""

    def __init__(self, info: Info, needs: Needs, chosen: str) -> None:
        self.info, self.needs, self.chosen = info, needs, chosen
        self.classes = tuple(info.classes)
        self._known = np.array([band in info.bands for band in BANDS])

    def predict(self, histories: Sequence[History]) -> list[Prediction]:
        """A prediction for each history; of a history longer than the model takes, for the newest epochs.

        Raises:
            ValueError: the parts of a history do not fit together.
        """
        reasons = [self.declines(h) for h in histories]
        wanted = [h.newest(self.needs.most) for h, why in zip(histories, reasons, strict=True) if why is None]
        made = iter(self.judge(wanted))
        found = [next(made) if why is None else Prediction.declined(why) for why in reasons]
        return [p if p.reason or np.isfinite(p.probabilities).all() else _not_finite() for p in found]

    def judge(self, histories: Sequence[History]) -> list[Prediction]:
        """Predictions for histories that the model accepts; a family may still decline some for their content."""
        return self.classify(histories)

    def declines(self, history: History) -> Declined | None:
        """Why a history cannot be classified; None if it can."""
        if len(history) < self.needs.fewest:
            return Declined.TOO_FEW_STAMPS
        if not self._known[history.band].all():
            return Declined.BANDS_UNKNOWN
        return None

    def classify(self, histories: Sequence[History]) -> list[Prediction]:
        """Probabilities of each history, however short it is.

        Raises:
            ValueError: the parts of a history do not fit together.
            ModelError: a history has a band that the model does not know.
        """
        if not histories:
            return []
        for history in histories:
            self.check(history)
        return self._classify(histories)

    def check(self, history: History) -> None:
        """Refuse what the model cannot take; see `classify`."""
        history.check(self.needs.most)
        if not self._known[history.band].all():
            strange = BANDS[int(history.band[~self._known[history.band]][0])]
            bands = self.info.bands
            raise ModelError(f"the model {self.info.name} knows bands {bands}, not {strange}: leave those stamps out")

    def _classify(self, histories: Sequence[History]) -> list[Prediction]:
        raise NotImplementedError

    def calibrated(self, logits: NDArray[np.float32], histories: Sequence[History]) -> NDArray[np.float32]:
        """[b, classes] logits -> probabilities."""
        found: NDArray[np.float32] = self.info.calibration(logits, np.array([len(h) for h in histories]))
        return found

    def warm_up(self, batch_size: int = 64) -> None:
        """Compute once with common shapes, so that the first alerts do not wait for it."""
        for count in {1, batch_size}:
            for n in (1, 3, 6, 9):
                self.classify([self.blank(min(n, self.needs.most))] * count)

    def blank(self, epochs: int) -> History:
        """An empty history in the model's first band."""
        band = np.full(epochs, BANDS.index(self.info.bands[0]), np.uint8)
        images = {kind: np.zeros((epochs, STAMP_SIZE, STAMP_SIZE), np.float16) for kind in self.needs.images}
        flux = np.zeros(epochs, np.float32)
        return History(np.arange(epochs, dtype=float), band, images, flux=flux, flux_error=flux + 1)


def _not_finite() -> Prediction:
    return Prediction.declined(Declined.NOT_FINITE)
