"""Images of packets -> model-ready stamps, for many packets at once; their photometry waits with them.

numpy takes as long for one stamp as for five, so stamps are collected and made together. While some are collected,
those before them are unpacked in another thread. What is wrong with a packet's images is found when its stamps are
made, and recorded with the packet.
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from skyheed.broker.errors import PacketError, Reason
from skyheed.broker.observation import Flag, Observation
from skyheed.broker.packets import points
from skyheed.broker.packets.fits import Image, pixels_of, read_image, unpacked
from skyheed.broker.packets.points import WantedPoints
from skyheed.classifier.stamp import Matrix, Place, StampError, normalise_at, place, rounded

MOST_BYTES = 2**20  # of waiting files, and of images made together, which stay in a core's cache
MOST_FILES = 96  # that wait: what is done at a time, small as they may be, takes a fraction of a second
FEW_BYTES = 2**17  # of files that are not worth another thread
Files = dict[str, bytes]
Stamps = dict[str, NDArray[np.float16]]
Where = Callable[[Image], tuple[tuple[float, float] | None, Matrix | None]]
Placed = dict[str, tuple[Place, Image]]

_FILLED = {"science": Flag.FILLED, "difference": Flag.DIFFERENCE_FILLED, "template": Flag.TEMPLATE_FILLED}


@dataclass(eq=False, slots=True)
class WantedStamps:
    """The stamps of one packet, to be made.

    Attributes:
        files: kind -> FITS file, gzipped or not, the main one first; empty once the stamps are made.
        njy_per_count: nJy per pixel unit.
        where: for an image, the (x, y) of the source and the matrix to the sky, as for `classifier.stamp.normalise`;
            called once for images of the same shape and geometry.
        read: file -> image.
        stamps, flags, error: the result.
    """

    files: Files
    njy_per_count: float
    where: Where
    read: Callable[[bytes], Image] = read_image
    stamps: Stamps = field(default_factory=dict)
    flags: int = 0
    error: Exception | None = None

    @property
    def size(self) -> int:
        """Bytes of files held."""
        return sum(map(len, self.files.values()))

    def images(self) -> Placed:
        """The images by kind, each with the place of its stamp.

        Raises:
            PacketError: as `read`, and BAD_FITS for a stamp that cannot be made there.
        """
        places: dict[object, Place] = {}
        placed = {}
        for kind, image in {kind: self.read(data) for kind, data in self.files.items()}.items():
            if image.header not in places:
                places[image.header] = self._place(image)
            placed[kind] = places[image.header], image
        return placed

    def _place(self, image: Image) -> Place:
        centre, to_sky = self.where(image)
        try:
            return place(image.header.shape, self.njy_per_count, centre, to_sky)
        except StampError as error:
            raise PacketError(Reason.BAD_FITS, str(error)) from error

    def result(self) -> tuple[Stamps, int]:
        """Stamps by kind, all but the first `rounded`, and the flags: those of the first, and which others were filled.

        Kinds without pixels are left out; the first must have some.

        Raises:
            PacketError: as `images`, or EMPTY_STAMP.
        """
        if self.files:
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
        self._size = self._files = 0
        self._unpacking: tuple[list[WantedStamps], Future[list[Files]]] | None = None

    def add(self, wanted: WantedStamps, photometry: WantedPoints | None = None) -> None:
        """Add the stamps and photometry of one packet; once there are enough stamps, those before them are made."""
        self._wanted.append(wanted)
        if photometry:
            self._points.append(photometry)
        self._size += wanted.size
        self._files += len(wanted.files)
        if self._size >= MOST_BYTES or self._files >= MOST_FILES:
            self._next()

    def make(self) -> None:
        """Make all that waits."""
        self._next()
        waiting, self._points = self._points, []
        with contextlib.suppress(Exception):  # it is found again when its packet is finished, alone
            points.make(waiting)
        self._next()

    def _next(self) -> None:
        """Start to unpack what was added since the last call, and make the stamps of what was started then."""
        last, self._unpacking = self._unpacking, None
        if self._size < FEW_BYTES and not last:
            make(self._wanted)
        elif self._wanted:
            self._unpacking = self._wanted, _unpacker().submit(_unpacked, [one.files for one in self._wanted])
        self._wanted, self._size, self._files = [], 0, 0
        if last:
            waiting, unpacking = last
            for wanted, files in zip(waiting, unpacking.result(), strict=True):
                wanted.files = files if wanted.files else {}  # its packet may be finished already
            make([wanted for wanted in waiting if wanted.files])


@lru_cache(1)
def _unpacker() -> ThreadPoolExecutor:
    """A thread that lets others run while it unpacks; one is ahead of what is done with the stamps."""
    return ThreadPoolExecutor(1, "unpack")


def _unpacked(packets: Sequence[Files]) -> list[Files]:
    """The files of packets, unpacked as far as that is possible without a fault."""
    files = iter(unpacked([data for own in packets for data in own.values()]))
    return [{kind: next(files) for kind in own} for own in packets]


def make(waiting: Sequence[WantedStamps]) -> None:
    """Make the stamps of packets, as many at once as `MOST_BYTES` allow; their files are then released."""
    ready: list[tuple[WantedStamps, Placed]] = []
    size = 0
    for wanted in waiting:
        try:
            images = wanted.images()
        except Exception as error:
            wanted.error = error
        else:
            ready.append((wanted, images))
            size += sum(image.header.bytes for _, image in images.values())
        wanted.files = {}
        if size >= MOST_BYTES:
            _make_or_blame(ready)
            ready, size = [], 0
    _make_or_blame(ready)


def _make_or_blame(ready: Sequence[tuple[WantedStamps, Placed]]) -> None:
    """Make stamps; after an unexpected error one packet after the other, so that it is told of its packet alone."""
    try:
        _make(ready)
    except Exception as error:
        if len(ready) == 1:
            ready[0][0].error = error
            return
        for one in ready:
            _make_or_blame([one])


def _make(ready: Sequence[tuple[WantedStamps, Placed]]) -> None:
    """Make stamps, as many at once as their places allow."""
    groups: dict[object, list[tuple[WantedStamps, str, Place, Image]]] = defaultdict(list)
    for wanted, images in ready:
        for kind, (at, image) in images.items():
            groups[at.group].append((wanted, kind, at, image))
    made: dict[tuple[WantedStamps, str], tuple[NDArray[np.float16], int] | None] = {}
    for members in groups.values():
        scales = np.array([wanted.njy_per_count for wanted, *_ in members])
        pixels = pixels_of([image for *_, image in members])
        stamps = normalise_at(pixels, scales, [at for *_, at, _ in members])
        made.update(((wanted, kind), stamp) for (wanted, kind, *_), stamp in zip(members, stamps, strict=True))
    for wanted, images in ready:
        _sort(wanted, {kind: made[wanted, kind] for kind in images})
    _round([wanted for wanted, _ in ready])


def _sort(wanted: WantedStamps, made: dict[str, tuple[NDArray[np.float16], int] | None]) -> None:
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
