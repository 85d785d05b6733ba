"""Inputs of `fusion` in addition to stamps and points. Numpy only."""

from collections.abc import Sequence

import numpy as np

from skyheed.classifier.history import History
from skyheed.classifier.models.fusion.features import table
from skyheed.classifier.models.vector_inputs import Arrays, Inputs


class FusionInputs(Inputs):
    """See the module."""

    def beside(self, histories: Sequence[History]) -> Arrays:
        """The hand-chosen numbers [b, NUMBERS], NaN where unknown, and whether there are images [b, 1]."""
        shown = [[float(any(len(h.images[k]) for k in h.images) or bool(h.kept))] for h in histories]
        return {"numbers": table(histories), "imaged": np.array(shown, np.float32)}
