"""What the C library does with memory that is not needed any more."""

import contextlib
import ctypes

LARGE_BYTES = 256 * 1024
_M_MMAP_THRESHOLD = -3  # malloc.h of glibc


def give_back_large_blocks() -> bool:
    """Have blocks from `LARGE_BYTES` on given back to the system as soon as they are free; whether that is possible.

    glibc keeps them, once it has seen a few: the batches that librdkafka unpacks, 512 KiB of small packets each, then
    leave holes, and a process that works off a backlog holds twice what it uses. Not for one that computes with torch,
    whose tensors come and go.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES))
    return False
