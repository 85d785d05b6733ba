"""Statistics of the stamps of recent nights, by night and band, compared with the training data on the model's card: a
stream that drifts away from them is classified less well, and nothing else shows it.

From a sample of objects in Redis, in the background.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from skyheed.broker.errors import SkyheedError
from skyheed.broker.state.histories import SequenceStore
from skyheed.broker.web.index import Index
from skyheed.broker.work import history_of
from skyheed.classifier import inputs
from skyheed.classifier.history import History

log = logging.getLogger("skyheed.drift")
EVERY_S = 600.0
NIGHTS, OBJECTS = 7, 20  # that are looked at: nights, and objects of each


class Drift:
    """The newest look at the last nights; made again in the background when it is old."""

    def __init__(self, survey: str, store: SequenceStore, index: Index) -> None:
        self._survey, self._store, self._index = survey, store, index
        self._rows: list[dict[str, Any]] | None = None
        self._looked = -EVERY_S
        self._lock = threading.Lock()

    def rows(self) -> list[dict[str, Any]] | None:
        """One entry for each night and band, newest night first; None until the first look has ended."""
        with self._lock:
            old = time.monotonic() - self._looked >= EVERY_S
            if old:
                self._looked = time.monotonic()
        if old:
            threading.Thread(target=self.look, name="drift", daemon=True).start()
        return self._rows

    def look(self) -> None:
        """Look now; what fails is tried again with the next call."""
        try:
            self._rows = list(self._look())
        except (SkyheedError, OSError) as error:
            log.warning("the last nights' stamps cannot be looked at: %s", error)
            self._looked = -EVERY_S
        if not self._rows:  # nothing was classified yet: soon again
            self._looked = time.monotonic() - EVERY_S + 5

    def _look(self) -> Iterator[dict[str, Any]]:
        models = self._index.models()
        for night, _ in self._index.nights(NIGHTS):
            found = inputs.summary(inputs.gather(self._histories(night, models[0]), night))
            yield from ({"night": night, "band": band, **numbers} for band, numbers in found.items())

    def _histories(self, night: int, model: str) -> Iterator[History]:
        for row in self._index.sky(night, model, OBJECTS):
            stored = self._store.sequence(row["object_id"])
            if stored is not None:
                yield history_of(stored, self._survey)


def reference(models: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What the first model's card says of the stamps that it was trained on; None where no card is here.

    Args:
        models: as `Cards.all` gives them.
    """
    first = next((entry for entry in models if entry["card"]), None)
    if first is None:
        return None
    name, given = first["name"], first["card"].get("training", {}).get("inputs")
    if not given:
        sentence = f"The card of {name} does not describe its training data: there is nothing to compare with."
        return {"model": name, "bands": None, "sentence": sentence}
    return {
        "model": first["name"],
        "bands": given["bands"],
        "sentence": f"Training data of {first['name']}: {given['of']}.",
    }
