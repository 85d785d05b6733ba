"""Sequences of stamps as arrays, and as the padded batches that training and serving share. Numpy only.

A sequence of n stamps is cut into ceil(n / 3) groups in the order of time; the last group is filled up with steps
without a stamp. Pixels are brought from linear flux to the model's input here, and nowhere else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import stamp
from .scaling import Scaling as Scaling
from .stamp import STAMP_SIZE

BANDS = "ugrizy"  # a band's code is its index; the broker stores the same code
GROUP = 3
VERSION = f"{stamp.PREPROCESSING}/sequence-1"  # recorded with every checkpoint and classification
NO_STAMP = 0  # band id of a step without a stamp; bands are 1 to 6
_EXPONENT = np.uint16(0x7C00)  # of a float16: all of it is set where a pixel is not finite


@dataclass(frozen=True)
class StampSequence:
    """One object's stamps in the order of time.

    Attributes:
        mjd: [n] days.
        band: [n] index into `BANDS`.
        stamps: float16 [m, 32, 32] as `stamp.normalise` returns them; of all steps, or (m < n) only of the steps of
            those groups that are not in `tokens`, in order.
        tokens: group index -> cached token of a full group.
    """

    mjd: NDArray[np.float64]
    band: NDArray[np.uint8]
    stamps: NDArray[np.float16]
    tokens: Mapping[int, NDArray[Any]] = field(default_factory=dict)

    @property
    def groups(self) -> int:
        """Number of groups, the last one perhaps not full."""
        return -(-len(self.mjd) // GROUP)

    def check(self, longest: int) -> None:
        """Raise ValueError if the parts do not fit together, or hold what no stamp has."""
        full = len(self.mjd) // GROUP
        if not 1 <= len(self.mjd) <= longest:
            raise ValueError(f"a sequence has 1 to {longest} stamps, not {len(self.mjd)}")
        if any(not 0 <= group < full for group in self.tokens):
            raise ValueError("a token belongs to a full group")
        wanted = (len(self.mjd) - GROUP * len(self.tokens), STAMP_SIZE, STAMP_SIZE)
        if self.stamps.shape != wanted or len(self.band) != len(self.mjd):
            raise ValueError(f"stamps have shape {self.stamps.shape}, bands {self.band.shape}; expected {wanted}")
        self._check_values()

    def _check_values(self) -> None:
        if not np.isfinite(self.mjd).all() or not (self.mjd[1:] >= self.mjd[:-1]).all():
            raise ValueError("the MJDs of a sequence are finite and in the order of time: sort its stamps")
        if not ((self.band >= 0) & (self.band < len(BANDS))).all():
            raise ValueError(f"band codes are 0 to {len(BANDS) - 1}, the places in {BANDS}")
        if self.stamps.dtype != np.float16:
            raise ValueError(f"stamps are float16, not {self.stamps.dtype}: make them by stamp.normalise")
        # of the bits, because numpy takes 20 times as long for isfinite of float16
        if ((self.stamps.view(np.uint16) & _EXPONENT) == _EXPONENT).any():
            raise ValueError("a stamp has pixels that are not finite: make it by stamp.normalise, which fills them")


@dataclass(frozen=True)
class GroupBatch:
    """Groups to compute: pixels [g, 3, 32, 32] scaled, band ids [g, 3] (0: no stamp)."""

    pixels: NDArray[np.float32]
    bands: NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """Where the groups of a batch stand, padded to [b, n].

    Attributes:
        valid: bool [b, n].
        days: float32 [b, n, 3] since the first stamp of the sequence; 0 for steps without a stamp.
        present: bool [b, n, 3].
    """

    valid: NDArray[np.bool_]
    days: NDArray[np.float32]
    present: NDArray[np.bool_]


def layout(sequences: Sequence[StampSequence], width: int | None = None) -> Layout:
    """The layout of a batch, `width` groups wide (the longest sequence by default)."""
    width = width or max(s.groups for s in sequences)
    days = np.zeros((len(sequences), width * GROUP), np.float32)
    present = np.zeros((len(sequences), width * GROUP), bool)
    for row, s in enumerate(sequences):
        days[row, : len(s.mjd)] = s.mjd - s.mjd[0]
        present[row, : len(s.mjd)] = True
    shape = (len(sequences), width, GROUP)
    present = present.reshape(shape)
    return Layout(np.any(present, axis=-1), days.reshape(shape), present)


def collate(
    sequences: Sequence[StampSequence], scaling: Scaling, width: int | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_], NDArray[np.float32], NDArray[np.bool_]]:
    """A padded batch of whole sequences: pixels, band ids, valid, days, present, as `ConvEntion.forward` takes them."""
    where = layout(sequences, width)
    pixels = np.zeros((*where.valid.shape, GROUP, STAMP_SIZE, STAMP_SIZE), np.float32)
    bands = np.zeros((*where.valid.shape, GROUP), np.int64)
    for row, sequence in enumerate(sequences):
        groups = uncached(sequence, scaling)
        pixels[row, : sequence.groups], bands[row, : sequence.groups] = groups.pixels, groups.bands
    return pixels, bands, where.valid, where.days, where.present


def uncached(sequence: StampSequence, scaling: Scaling) -> GroupBatch:
    """The groups of a sequence that have no token, in order."""
    steps = np.ones(len(sequence.mjd), bool)
    for group in sequence.tokens:
        steps[GROUP * group : GROUP * group + GROUP] = False
    count = sequence.groups - len(sequence.tokens)
    pixels = np.zeros((count * GROUP, STAMP_SIZE, STAMP_SIZE), np.float32)
    bands = np.zeros(count * GROUP, np.int64)
    own = sequence.band[steps]
    # groups with a token are full, so the others stay aligned
    pixels[: len(own)] = scaling(sequence.stamps, own)
    bands[: len(own)] = own.astype(np.int64) + 1
    return GroupBatch(pixels.reshape(count, GROUP, STAMP_SIZE, STAMP_SIZE), bands.reshape(count, GROUP))
