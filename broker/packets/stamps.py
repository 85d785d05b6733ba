"""Images of packets -> model-ready stamps, for many packets at once; their photometry waits with them.

numpy takes as long for one stamp as for five, so stamps are collected and made together. Errors in a packet's images
are found before that, in the same order as for a single packet; an empty stamp is noticed when it is made, and
recorded with its packet.
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from skyheed.broker.errors import PacketError, Reason
from skyheed.broker.observation import Flag, Observation
from skyheed.broker.packets import points
from skyheed.broker.packets.fits import Image
from skyheed.broker.packets.points import WantedPoints
from skyheed.classifier.stamp import Matrix, Place, StampError, normalise_at, place, rounded

MOST_BYTES = 2**20  # bytes of waiting images: what is made together stays in a core's cache
Stamps = dict[str, NDArray[np.float16]]
Where = Callable[[Image], tuple[tuple[float, float] | None, Matrix | None]]

_FILLED = {"science": Flag.FILLED, "difference": Flag.DIFFERENCE_FILLED, "template": Flag.TEMPLATE_FILLED}


@dataclass(eq=False, slots=True)
class WantedStamps:
    """The stamps of one packet, to be made.

    Attributes:
        images: kind -> its source position and pixels, the main one first; empty once the stamps are made.
        njy_per_count: nJy per pixel unit.
        stamps, flags, error: the result.
    """

    images: dict[str, tuple[Place, NDArray[np.float32]]]
    njy_per_count: float
    stamps: Stamps = field(default_factory=dict)
    flags: int = 0
    error: PacketError | None = None

    @property
    def size(self) -> int:
        """Bytes of pixels held."""
        return sum(pixels.nbytes for _, pixels in self.images.values())

    def result(self) -> tuple[Stamps, int]:
        """Stamps by kind, all but the first `rounded`, and the flags: those of the first, and which others were filled.

        Raises:
            PacketError: EMPTY_STAMP.
        """
        if self.images:
            make([self])
        if self.error:
            raise self.error
        return self.stamps, self.flags


@dataclass(eq=False, slots=True)
class Unfinished:
    """An observation that lacks its stamps; `finish` completes it with the stamps and their flags.

    Attributes:
        points: its photometry, which `finish` makes if it has not been yet; None for none.
    """

    wanted: WantedStamps
    finish: Callable[[Stamps, int], Observation]
    points: WantedPoints | None = None

    def observation(self) -> Observation:
        """The observation; its stamps are made now if they have not been yet.

        Raises:
            PacketError
        """
        return self.finish(*self.wanted.result())


class Waiting:
    """Stamps and photometry that wait to be made together."""

    def __init__(self) -> None:
        self._wanted: list[WantedStamps] = []
        self._points: list[WantedPoints] = []
        self._size = 0

    def add(self, wanted: WantedStamps, photometry: WantedPoints | None = None) -> None:
        """Add the stamps and photometry of one packet; all stamps are made once there are enough."""
        self._wanted.append(wanted)
        if photometry:
            self._points.append(photometry)
        self._size += wanted.size
        if self._size >= MOST_BYTES:
            self._make_stamps()

    def make(self) -> None:
        """Make all that waits."""
        self._make_stamps()
        waiting, self._points = self._points, []
        with contextlib.suppress(Exception):  # it is found again when its packet is finished, alone
            points.make(waiting)

    def _make_stamps(self) -> None:
        waiting, self._wanted, self._size = self._wanted, [], 0
        make(waiting)


def wanted_of(images: Mapping[str, Image], njy_per_count: float, where: Where) -> WantedStamps:
    """The stamps that `classifier.stamp.normalise` is to make from one packet's images.

    Args:
        images: kind -> image; the first must have pixels, others without pixels are left out.
        where: for an image, the (x, y) of the source and the matrix to the sky, as for `normalise`; called once for
            images of the same shape and geometry.

    Raises:
        PacketError: BAD_FITS.
    """
    places: dict[object, Place] = {}
    placed = {}
    for kind, image in images.items():
        key = image.pixels.shape, image.wcs, image.no_wcs
        if key not in places:
            places[key] = _place(image, njy_per_count, where)
        placed[kind] = places[key], image.pixels
    return WantedStamps(placed, njy_per_count)


def _place(image: Image, njy_per_count: float, where: Where) -> Place:
    ny, nx = image.pixels.shape
    centre, to_sky = where(image)
    try:
        return place((ny, nx), njy_per_count, centre, to_sky)
    except StampError as error:
        raise PacketError(Reason.BAD_FITS, str(error)) from error


def make(waiting: Sequence[WantedStamps]) -> None:
    """Make the stamps of packets, those at the same source position together; their images are then released."""
    groups: dict[Place, list[tuple[WantedStamps, str]]] = defaultdict(list)
    for wanted in waiting:
        for kind, (at, _) in wanted.images.items():
            groups[at].append((wanted, kind))
    made: dict[tuple[WantedStamps, str], tuple[NDArray[np.float16], int] | None] = {}
    for at, members in groups.items():
        pixels = np.array([wanted.images[kind][1] for wanted, kind in members])
        scales = np.array([wanted.njy_per_count for wanted, _ in members])
        made.update(zip(members, normalise_at(pixels, scales, at), strict=True))
    for wanted in waiting:
        _sort(wanted, {kind: made[wanted, kind] for kind in wanted.images})
    _round(waiting)


def _sort(wanted: WantedStamps, made: dict[str, tuple[NDArray[np.float16], int] | None]) -> None:
    wanted.images = {}
    main = next(iter(made))
    first = made[main]
    if first is None:
        wanted.error = PacketError(Reason.EMPTY_STAMP, "the stamp has no finite pixel about the source")
        return
    found = {kind: own for kind, own in made.items() if own}
    wanted.stamps = {kind: stamp for kind, (stamp, _) in found.items()}
    wanted.flags = int(first[1]) | sum(
        _FILLED[kind] for kind, (_, flags) in found.items() if kind != main and flags & Flag.FILLED
    )


def _round(waiting: Sequence[WantedStamps]) -> None:
    """Round all but the first stamps of the packets, all at once."""
    further = [(wanted.stamps, kind) for wanted in waiting for kind in list(wanted.stamps)[1:]]
    if further:
        for (stamps, kind), stamp in zip(further, rounded(np.array([s[k] for s, k in further])), strict=True):
            stamps[kind] = stamp
