"""The time taken by a training run, across interruptions, and the share of its CPU time that a stage has used."""

import time
from collections.abc import Mapping
from typing import Any

from skyheed.classifier.training.protocol import Protocol

FINE_SHARE = 0.15  # of the CPU time, if it is limited, reserved for the stages on confirmed labels


class Clock:
    """Counts from its creation, on top of the time that a resumed run had already taken.

    Attributes:
        seconds, cpu_seconds: total time of the run up to the last `count`, including measurements.
        begun: stage -> CPU seconds before it.
    """

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self.seconds, self._since = 0.0, time.monotonic()
        self.cpu_seconds, self._cpu_since = 0.0, time.process_time()
        self.begun: dict[str, float] = {}

    def begin(self, stage: str) -> None:
        """Begin a stage, or resume it."""
        self.begun.setdefault(stage, self.spent())

    def count(self) -> None:
        """Bring `seconds` and `cpu_seconds` up to now."""
        now, cpu = time.monotonic(), time.process_time()
        self.seconds, self._since = self.seconds + now - self._since, now
        self.cpu_seconds, self._cpu_since = self.cpu_seconds + cpu - self._cpu_since, cpu

    def spent(self) -> float:
        """CPU seconds up to now."""
        return self.cpu_seconds + time.process_time() - self._cpu_since

    def share(self, stage: str) -> float:
        """The share of a stage's CPU time used so far; stages on confirmed labels have their own budget."""
        p = self._protocol
        if not p.cpu_seconds:
            return 0.0
        last = p.cpu_seconds * FINE_SHARE * bool(p.fine_steps or p.fine_head_steps)
        if not stage.startswith("fine"):
            return self.spent() / (p.cpu_seconds - last)
        since = min(at for name, at in self.begun.items() if name.startswith("fine"))
        return (self.spent() - since) / last

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        self.count()
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds, "begun": self.begun}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from `state_dict`."""
        self.seconds, self.cpu_seconds = state["seconds"], state.get("cpu_seconds", 0.0)
        self.begun = state.get("begun", {})
