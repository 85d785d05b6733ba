"""Statistics of recent stamps by night and band, compared with the training data on the model's card. If a stream
drifts away from the training data, it is classified less well, and nothing else reveals that.

Computed in the background from a sample of objects in Redis.
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
from skyheed.classifier import input_statistics
from skyheed.classifier.history import History

log = logging.getLogger("skyheed.drift")
EVERY_S = 600.0
NIGHTS, OBJECTS = 7, 20  # the number of nights, and of objects in each


class Drift:
    """The latest statistics of recent nights; recomputed in the background when they are old."""

    def __init__(self, survey: str, store: SequenceStore, index: Index) -> None:
        self._survey, self._store, self._index = survey, store, index
        self._rows: list[dict[str, Any]] | None = None
        self._looked = -EVERY_S
        self._lock = threading.Lock()

    def rows(self) -> list[dict[str, Any]] | None:
        """One entry for each night and band, newest night first; None until the first computation has finished."""
        with self._lock:
            old = time.monotonic() - self._looked >= EVERY_S
            if old:
                self._looked = time.monotonic()
        if old:
            threading.Thread(target=self.look, name="drift", daemon=True).start()
        return self._rows

    def look(self) -> None:
        """Compute now; if this fails, the next call tries again."""
        try:
            self._rows = list(self._look())
        except (SkyheedError, OSError) as error:
            log.warning("cannot examine the stamps of the last nights: %s", error)
            self._looked = -EVERY_S
        if not self._rows:  # nothing has been classified yet: try again soon
            self._looked = time.monotonic() - EVERY_S + 5

    def _look(self) -> Iterator[dict[str, Any]]:
        models = self._index.models()
        for night, _ in self._index.nights(NIGHTS):
            found = input_statistics.summary(input_statistics.gather(self._histories(night, models[0]), night))
            yield from ({"night": night, "band": band, **numbers} for band, numbers in found.items())

    def _histories(self, night: int, model: str) -> Iterator[History]:
        for row in self._index.sky(night, model, OBJECTS):
            stored = self._store.sequence(row["object_id"])
            if stored is not None:
                yield history_of(stored, self._survey)


def reference(models: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The statistics of the training stamps on the first model's card; None if no card is available here.

    Args:
        models: as returned by `Cards.all`.
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
