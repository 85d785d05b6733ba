"""What the C library does with memory that is not needed any more."""

import contextlib
import ctypes
import time

EVERY_S = 2.0


class Trim:
    """Gives free memory back to the system, every two seconds at most.

    glibc keeps what librdkafka, numpy and torch have freed: the batches that librdkafka unpacks, 512 KiB of small
    packets each, leave holes, and a daemon that works off a backlog holds twice what it uses. Blocks that are given
    back one by one, as soon as they are free (`M_MMAP_THRESHOLD`), cost an eighth of the ingest's time in page faults.
    """

    def __init__(self) -> None:
        self._at = time.monotonic()
        self._trim = None
        with contextlib.suppress(OSError, AttributeError):  # another C library
            self._trim = ctypes.CDLL(None).malloc_trim

    def __call__(self) -> bool:
        """Whether memory was given back now."""
        if self._trim is None or time.monotonic() - self._at < EVERY_S:
            return False
        self._trim(0)
        self._at = time.monotonic()
        return True
