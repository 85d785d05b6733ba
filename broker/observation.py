"""One stamp of one object in one band at one time: what every survey's packet becomes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntFlag

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier import stamp
from skyheed.classifier.history import BANDS as BANDS
from skyheed.classifier.history import Photometry


class Flag(IntFlag):
    """How a stamp was processed; stored with it."""

    NEGATIVE = 1  # the difference flux is negative
    PADDED = stamp.PADDED  # the stamp was smaller than the model's and was padded (chip edge)
    FILLED = stamp.FILLED  # some pixels were not finite and were filled with the background
    NOMINAL_ZERO_POINT = 8  # the packet has no zero point; the survey's nominal one was used
    ROTATED = stamp.ROTATED  # resampled to north up, east left
    DIFFERENCE_FILLED = 32  # as FILLED, of the difference stamp
    TEMPLATE_FILLED = 64  # as FILLED, of the template stamp


@dataclass(frozen=True, slots=True)
class Observation:
    """One stamp of one object.

    Attributes:
        object_id: the survey's object name or number, as text.
        source_id: the survey's number of this detection (candid, diaSourceId), 0..2^63-1.
        mjd: mid-exposure, days, MJD TAI.
        band: one letter of `BANDS`.
        ra, dec: degrees, ICRS.
        flux, flux_error: the survey's flux of this detection, nJy; NaN where the packet has none.
        stamp: float16 [32, 32] as `classifier.stamp.normalise` returns it (rows south to north, columns
            east to west).
        flags: `Flag` bits.
        survey: whose packet it was in; "" on the way through the daemons, which know.
        images: further kinds (`difference`, `template`) -> stamp of the same form, unit and place; a kind that the
            packet lacks is absent. difference = science - template, positive for a brightening.
        photometry: what the packet says of earlier times, up to its own, its own detection included; None where it
            was not asked for or the survey's packets have none.
        context: name (of `classifier.context.NAMES`) -> number; what the packet does not say is absent.
    """

    object_id: str
    source_id: int
    mjd: float
    band: str
    ra: float
    dec: float
    flux: float
    flux_error: float
    stamp: NDArray[np.float16]
    flags: int
    survey: str = ""
    images: Mapping[str, NDArray[np.float16]] = field(default_factory=dict)
    photometry: Photometry | None = None
    context: Mapping[str, float] = field(default_factory=dict)
