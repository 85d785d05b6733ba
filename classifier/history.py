"""What is known of one object: its epochs in time order, their images, photometry without images, context.

Models take only histories, so that training, evaluation, the worker and notebooks give them the same input.
Numpy only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier.stamp import STAMP_SIZE

BANDS = "ugrizy"  # a band's code is its index, in Redis, archives and models: append, never reorder
IMAGE_KINDS = ("science", "difference", "template")
LONGEST = 99  # epochs that a stream keeps for an object
DETECTION, FORCED, UPPER_LIMIT = 0, 1, 2  # kinds of photometry points
POINT_KINDS = 3
MOST_POINTS = 300  # points kept for an object, the newest
STEPS_A_DAY = 100_000  # points of one band and kind are identical if their times round to the same step
_EXPONENT = np.uint16(0x7C00)  # exponent bits of a float16, all set if a pixel is not finite


class Observed(Protocol):
    """One epoch of one object, as a survey's adapter makes it (`skyheed.broker` calls it an Observation)."""

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
    images: Mapping[str, NDArray[np.float16]]
    photometry: Photometry | None
    context: Mapping[str, float]


@dataclass(frozen=True)
class Photometry:
    """Measurements without images, in time order.

    If a survey's packets include them, detections with stamps are also among the points, so that the points alone form
    the light curve; each has the time and band of its epoch.

    Attributes:
        mjd: float64 [k] days, MJD TAI.
        band: uint8 [k], indices into `BANDS`.
        flux, flux_error: float32 [k] nJy, of the difference; an upper limit has flux 0 and its 1-sigma error.
        kind: uint8 [k]: `DETECTION`, `FORCED` or `UPPER_LIMIT`.
    """

    mjd: NDArray[np.float64]
    band: NDArray[np.uint8]
    flux: NDArray[np.float32]
    flux_error: NDArray[np.float32]
    kind: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.mjd)

    def until(self, mjd: float) -> Photometry:
        """The points up to a time, to within one step."""
        rows = slice(0, int(np.searchsorted(self.mjd, mjd + 1 / STEPS_A_DAY, "right")))
        return self.take(rows)

    def take(self, rows: slice | NDArray[np.int64]) -> Photometry:
        """Some of the points."""
        return Photometry(self.mjd[rows], self.band[rows], self.flux[rows], self.flux_error[rows], self.kind[rows])

    @classmethod
    def merged(cls, parts: Sequence[Photometry]) -> Photometry:
        """The points of several packets in any order, each once, the newest `MOST_POINTS` of them.

        Points are the same if time (in `STEPS_A_DAY`), band and kind are; of two values of one point the one with the
        smaller error is kept, then the one with the larger flux. Times are rounded.
        """
        joined = cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in POINT_COLUMNS))
        step, error = np.rint(joined.mjd * STEPS_A_DAY), np.nan_to_num(joined.flux_error, nan=np.inf)
        order = np.lexsort((-joined.flux, error, joined.kind, joined.band, step))
        key = np.stack([step, joined.band, joined.kind])[:, order]
        first = np.ones(len(order), bool)
        first[1:] = (key[:, 1:] != key[:, :-1]).any(0)
        return replace(joined, mjd=step / STEPS_A_DAY).take(order[first][-MOST_POINTS:])


@dataclass(frozen=True)
class History:
    """One object's epochs in time order, and what goes with them.

    Attributes:
        mjd: float64 [n] days, MJD TAI, mid-exposure.
        band: uint8 [n], indices into `BANDS`.
        flux, flux_error: float32 [n] nJy, of the difference; NaN where the survey gave none.
        images: kind -> float16 [m, 32, 32] as `stamp.normalise` returns them, for the epochs `shown`, in order; zeros
            if an epoch was sent without that kind. difference = science - template.
        shown: int64 [m], the epochs whose images are included; the others are covered by `kept`.
        kept: what a model asked to cache, by the index of its span of epochs (`Needs.span`).
        photometry: None if not requested.
        context: name (of `context.NAMES`) -> number, from the newest epoch's packet; unknown ones are absent.
        contexts: the same for each epoch, if known; `until` and `take` use that of their last epoch, or none.
        joined: the epochs are of several objects: what is cached for one was not cached in this history, and holds for
            nothing but the epoch itself.
        source_id, ra, dec (degrees, ICRS), flags: [n].
    """

    mjd: NDArray[np.float64]
    band: NDArray[np.uint8]
    images: Mapping[str, NDArray[np.float16]] = field(default_factory=dict)
    shown: NDArray[np.int64] = None  # type: ignore[assignment]  # all epochs
    kept: Mapping[int, bytes] = field(default_factory=dict)
    flux: NDArray[np.float32] = None  # type: ignore[assignment]  # unknown
    flux_error: NDArray[np.float32] = None  # type: ignore[assignment]
    photometry: Photometry | None = None
    context: Mapping[str, float] = field(default_factory=dict)
    contexts: Sequence[Mapping[str, float]] = ()
    joined: bool = False
    object_id: str = ""
    survey: str = ""
    source_id: NDArray[np.uint64] = None  # type: ignore[assignment]
    ra: NDArray[np.float64] = None  # type: ignore[assignment]
    dec: NDArray[np.float64] = None  # type: ignore[assignment]
    flags: NDArray[np.uint16] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        n = len(self.mjd)
        unknown: dict[str, Any] = {
            "shown": np.arange(n), "source_id": np.arange(n, dtype=np.uint64), "flags": np.zeros(n, np.uint16),
            **{name: np.full(n, np.nan, np.float32) for name in ("flux", "flux_error")},
            **{name: np.full(n, np.nan) for name in ("ra", "dec")},
        }  # fmt: skip
        for name, value in unknown.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def __len__(self) -> int:
        """Number of epochs."""
        return len(self.mjd)

    @classmethod
    def by_object(cls, observations: Iterable[Observed], survey: str = "") -> dict[str, History]:
        """Histories of all objects, from observations in any order; of two with the same source id the first is used.

        Args:
            survey: for observations that do not name theirs.

        Returns:
            object id -> history, in order of first appearance.
        """
        groups: dict[str, dict[int, Observed]] = {}
        for seen in observations:
            groups.setdefault(seen.object_id, {}).setdefault(seen.source_id, seen)
        return {name: _history(name, list(own.values()), survey) for name, own in groups.items()}

    @classmethod
    def of_stamps(
        cls, mjd: NDArray[np.float64], band: NDArray[np.uint8], stamps: NDArray[np.float16],
        kept: Mapping[int, bytes] | None = None, span: int = 1, **others: Any,
    ) -> History:  # fmt: skip
        """A history with one image per epoch; `stamps` are those of epochs not covered by `kept`, in order."""
        kept = kept or {}
        shown = np.array([n for n in range(len(mjd)) if n // span not in kept], np.int64)
        return cls(mjd, band, {"science": stamps}, shown, kept, **others)

    def until(self, *, epochs: int | None = None, mjd: float | None = None) -> History:
        """The history as known after this many epochs, or at a time.

        Raises:
            ValueError: neither or both are given, or nothing was known yet.
        """
        if (epochs is None) == (mjd is None):
            raise ValueError("give either epochs or mjd")
        if epochs is None:
            assert mjd is not None
            epochs = int(np.searchsorted(self.mjd, mjd, "right"))
        last = min(epochs, len(self))
        if last < 1:
            raise ValueError(f"nothing was known of {self.object_id or 'the object'} yet: give a later time")
        return self.take(np.arange(last))

    def take(self, epochs: NDArray[np.int64]) -> History:
        """A selection of epochs, in ascending order, with photometry up to the last of them; cached values are dropped.

        Raises:
            ValueError: an epoch's images are not included.
        """
        rows = np.searchsorted(self.shown, epochs)
        if (self.images and not (rows < len(self.shown)).all()) or (self.images and (self.shown[rows] != epochs).any()):
            raise ValueError("the images of some of these epochs are missing: fetch the whole history")
        return replace(
            self,
            images={kind: pixels[rows] for kind, pixels in self.images.items()},
            shown=np.arange(len(epochs)), kept={},
            photometry=None if self.photometry is None else self.photometry.until(float(self.mjd[epochs[-1]])),
            context=self._context_at(int(epochs[-1])),
            contexts=[self.contexts[n] for n in epochs] if self.contexts else (),
            **{name: getattr(self, name)[epochs] for name in PER_EPOCH},
        )  # fmt: skip

    def _context_at(self, epoch: int) -> Mapping[str, float]:
        """The context from an epoch's own packet; numbers from later packets were not known then."""
        if self.contexts:
            return self.contexts[epoch]
        return self.context if epoch == len(self) - 1 else {}

    def newest(self, count: int) -> History:
        """The newest epochs, or all if there are fewer."""
        return self if len(self) <= count else self.take(np.arange(len(self) - count, len(self)))

    def pixels(self, kind: str, epochs: NDArray[np.int64]) -> NDArray[np.float16]:
        """The images of some epochs, float16 [k, 32, 32]."""
        return self.images[kind][np.searchsorted(self.shown, epochs)]

    def check(self, longest: int) -> None:
        """Raise ValueError if the parts are inconsistent or invalid."""
        if not 1 <= len(self) <= longest:
            raise ValueError(f"a history has 1 to {longest} epochs here, not {len(self)}")
        if any(len(getattr(self, name)) != len(self) for name in PER_EPOCH):
            raise ValueError(f"bands have shape {self.band.shape}, times {self.mjd.shape}: give one of each per epoch")
        if not np.isfinite(self.mjd).all() or not (self.mjd[1:] >= self.mjd[:-1]).all():
            raise ValueError("the MJDs of a history are finite and in time order: sort its epochs")
        if not ((self.band >= 0) & (self.band < len(BANDS))).all():
            raise ValueError(f"band codes are 0 to {len(BANDS) - 1}, the places in {BANDS}")
        for kind, pixels in self.images.items():
            _check_images(kind, pixels, len(self.shown))


POINT_COLUMNS = ("mjd", "band", "flux", "flux_error", "kind")
PER_EPOCH = ("mjd", "band", "flux", "flux_error", "source_id", "ra", "dec", "flags")


def _history(name: str, seen: Sequence[Observed], survey: str) -> History:
    seen = sorted(seen, key=lambda o: (o.mjd, o.source_id))

    def column(attribute: str, kind: Any) -> NDArray[Any]:
        return np.array([getattr(o, attribute) for o in seen], kind)

    return History(
        mjd=column("mjd", np.float64), band=np.array([BANDS.index(o.band) for o in seen], np.uint8),
        images=_images(seen),
        flux=column("flux", np.float32), flux_error=column("flux_error", np.float32),
        object_id=name, survey=getattr(seen[0], "survey", "") or survey,
        source_id=column("source_id", np.uint64), ra=column("ra", np.float64), dec=column("dec", np.float64),
        flags=column("flags", np.uint16), photometry=_points(seen), context=dict(seen[-1].context),
        contexts=[dict(o.context) for o in seen],
    )  # fmt: skip


def _images(seen: Sequence[Observed]) -> dict[str, NDArray[np.float16]]:
    """The stamps by kind; kinds other than science only if some epoch has them."""
    missing = np.zeros((STAMP_SIZE, STAMP_SIZE), np.float16)
    further = [kind for kind in IMAGE_KINDS[1:] if any(kind in o.images for o in seen)]
    return {
        "science": np.stack([o.stamp for o in seen]),
        **{kind: np.stack([o.images.get(kind, missing) for o in seen]) for kind in further},
    }


def _points(seen: Sequence[Observed]) -> Photometry | None:
    """The points of all packets, none later than the newest packet; None if no packet had any."""
    parts = [o.photometry.until(o.mjd) for o in seen if o.photometry is not None]
    return Photometry.merged(parts) if parts else None


def _check_images(kind: str, pixels: NDArray[np.float16], shown: int) -> None:
    wanted = (shown, STAMP_SIZE, STAMP_SIZE)
    if pixels.shape != wanted:
        raise ValueError(f"{kind} stamps have shape {pixels.shape}; expected {wanted}")
    if pixels.dtype != np.float16:
        raise ValueError(f"stamps must be float16, not {pixels.dtype}: make them with stamp.normalise")
    # on the bits, because numpy's isfinite is 20 times slower for float16
    if ((pixels.view(np.uint16) & _EXPONENT) == _EXPONENT).any():
        raise ValueError("a stamp has pixels that are not finite: make it with stamp.normalise, which fills them")
