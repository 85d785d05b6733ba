"""Groups of epochs, and the padded batches of groups that ConvEntion's training and serving share. Numpy only.

A history of n epochs is split into ceil(n / group) groups in time order; the last one is padded with steps without a
stamp. A group has three epochs for the 3-D CNN and one for the 2-D CNN.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier import stamp
from skyheed.classifier.flux_scaling import Scaling
from skyheed.classifier.history import History
from skyheed.classifier.stamp import STAMP_SIZE

GROUP = 3  # epochs per group for the 3-D CNN
VERSION = f"{stamp.PREPROCESSING}/sequence-1"  # recorded with every checkpoint and classification
IMAGES = "science"  # the kind of stamps used by ConvEntion
WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 36, 48, 72)  # groups that batches are padded to; longer ones to the longest


@dataclass(frozen=True)
class GroupBatch:
    """Groups to compute: pixels [g, group, 32, 32] scaled, band ids [g, group] (0: no stamp)."""

    pixels: NDArray[np.float32]
    bands: NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """The arrangement of groups in a batch, padded to [b, n].

    Attributes:
        valid: bool [b, n].
        days: float32 [b, n, group] since the first stamp of the history; 0 for steps without a stamp.
        present: bool [b, n, group].
    """

    valid: NDArray[np.bool_]
    days: NDArray[np.float32]
    present: NDArray[np.bool_]


def groups(history: History, group: int = GROUP) -> int:
    """Number of groups; the last one may be incomplete."""
    return -(-len(history) // group)


def padded_width(count: int, most: int) -> int:
    """Number of groups to which histories of this many are padded: few shapes, so that kernels are rarely chosen."""
    return min(next((w for w in WIDTHS if w >= count), most), most)


def layout(histories: Sequence[History], width: int | None = None, group: int = GROUP) -> Layout:
    """The layout of a batch, `width` groups wide (the longest history by default)."""
    width = width or max(groups(h, group) for h in histories)
    days = np.zeros((len(histories), width * group), np.float32)
    present = np.zeros((len(histories), width * group), bool)
    for row, h in enumerate(histories):
        days[row, : len(h)] = h.mjd - h.mjd[0]
        present[row, : len(h)] = True
    shape = (len(histories), width, group)
    present = present.reshape(shape)
    return Layout(np.any(present, axis=-1), days.reshape(shape), present)


def collate(
    histories: Sequence[History], scaling: Scaling, width: int | None = None, group: int = GROUP
) -> dict[str, NDArray[np.generic]]:
    """A padded batch of whole histories, as `ConvEntion.forward` takes it.

    Returns:
        pixels, bands, valid, days, present.
    """
    where = layout(histories, width, group)
    pixels = np.zeros((*where.valid.shape, group, STAMP_SIZE, STAMP_SIZE), np.float32)
    bands = np.zeros((*where.valid.shape, group), np.int64)
    for row, history in enumerate(histories):
        made = uncached(history, scaling, group)
        pixels[row, : len(made.pixels)], bands[row, : len(made.pixels)] = made.pixels, made.bands
    return {"pixels": pixels, "bands": bands, "valid": where.valid, "days": where.days, "present": where.present}


def uncached(history: History, scaling: Scaling, group: int = GROUP) -> GroupBatch:
    """The groups of a history that have no cached token, in order."""
    steps = np.ones(len(history), bool)
    for token in history.kept:
        steps[group * token : group * token + group] = False
    count = groups(history, group) - len(history.kept)
    pixels = np.zeros((count * group, STAMP_SIZE, STAMP_SIZE), np.float32)
    bands = np.zeros(count * group, np.int64)
    own = history.band[steps]
    # groups with a token are full, so the others stay aligned
    pixels[: len(own)] = scaling(history.pixels(IMAGES, np.flatnonzero(steps)), own)
    bands[: len(own)] = own.astype(np.int64) + 1  # 0 is a step without a stamp
    return GroupBatch(pixels.reshape(count, group, STAMP_SIZE, STAMP_SIZE), bands.reshape(count, group))


def check_kept(history: History, group: int = GROUP) -> None:
    """Raise ValueError if a token's group is incomplete, or the stamps of a group without a token are missing."""
    full = len(history) // group
    if any(not 0 <= token < full for token in history.kept):
        raise ValueError("a token belongs to a full group")
    missing = np.setdiff1d(np.arange(len(history)), history.shown)
    if not set((missing // group).tolist()) <= set(history.kept):
        raise ValueError(
            f"stamps have shape {history.images[IMAGES].shape}: those of groups without a token are missing"
        )
