"""Tables of objects' detections from providers: requested once, cached for a while."""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

Rows = dict[int, dict[str, Any]]  # detection -> its columns
STALE_S = 60.0  # after this a table that lacks a detection is requested again
MOST_OBJECTS = 64  # cached tables: a packet's detections are requested one after the other


class RowsOfObjects:
    """The detections of objects, with a cache of the last few tables.

    Args:
        ask: requests the table of one object.
    """

    def __init__(self, ask: Callable[[str], Rows]) -> None:
        self._ask = ask
        self._kept: OrderedDict[str, tuple[float, Rows]] = OrderedDict()

    def of(self, object_id: str, source_id: int) -> dict[str, Any] | None:
        """The columns of a detection; None if the provider does not have it. Errors as for the provider's host."""
        asked, rows = self._kept.get(object_id, (-STALE_S, {}))
        if source_id not in rows and time.monotonic() - asked >= STALE_S:
            rows = self._ask(object_id)
            self._kept[object_id] = time.monotonic(), rows
            self._kept.move_to_end(object_id)
            if len(self._kept) > MOST_OBJECTS:
                self._kept.popitem(last=False)
        return rows.get(source_id)


def number_of(value: Any) -> int | None:
    """A detection's number, which some send as text; None if invalid, such as a rounded float."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None
