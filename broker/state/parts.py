"""How Redis stores what a packet brings besides its header and science stamp: further stamps, photometry, context.

Storage is lossless. A further stamp comes with `stamp.SHARP` significant bits (`stamp.rounded`), so that its pixels
are 11 bits, of which the noisy lower 3 stay unchanged and the upper 8 are deflated; other stamps are stored unchanged.
"""

import struct
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import chain

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from skyheed.broker.observation import Observation
from skyheed.classifier import context as contexts
from skyheed.classifier.history import MOST_POINTS, POINT_COLUMNS, POINT_KINDS, STEPS_A_DAY, Photometry
from skyheed.classifier.stamp import SHARP, STAMP_SIZE

SHAPE = (STAMP_SIZE, STAMP_SIZE)
_PIXELS = STAMP_SIZE**2
_WHOLE = 2 * _PIXELS  # bytes of a stamp that is stored as it is
_LOW = SHARP - 3  # bits used of a pixel's lower byte: sign, exponent and 2 more bits are in the upper one
_LOW_BITS = np.uint8(0xFF << (8 - _LOW) & 0xFF)
_LOW_BYTES = _PIXELS * _LOW // 8
_U8 = np.uint64
RAW = -15  # window bits: bare deflate
DIGEST_BYTES = 8
# A point: its time in steps, band and kind as one number, which sorts as the points do, then flux and error in nJy.
# store.lua merges points by this number and knows the three positions.
POINT = np.dtype([("key", "<f8"), ("flux", "<f4"), ("flux_error", "<f4")])
_PLACES = 32  # for band and kind in a key
_NUMBER = np.dtype([("code", "u1"), ("value", "<f4")])


Words = tuple[bytes, bytes, bytes, bytes, bytes]


def words(seen: Sequence[Observation]) -> list[Words]:
    """The arguments of `store.lua` for observations: difference, digest of the template, template, points, context."""
    packed = iter(pack_stamps([stamp for one in seen for stamp in one.images.values()]))
    points = pack_points_of([one.photometry for one in seen])
    return [
        _words(one, {kind: next(packed) for kind in one.images}, own) for one, own in zip(seen, points, strict=True)
    ]


def _words(seen: Observation, packed: Mapping[str, bytes], points: bytes) -> Words:
    template = packed.get("template", b"")
    digest = blake2b(template, digest_size=DIGEST_BYTES).digest() if template else b""
    return packed.get("difference", b""), digest, template, points, pack_context(seen.context)


def pack_stamps(stamps: Sequence[NDArray[np.float16]]) -> list[bytes]:
    """Further stamps, each packed separately."""
    if not stamps:
        return []
    bits = np.array(stamps, "<f2").view("<u2").reshape(len(stamps), _PIXELS)
    low, high = bits.astype(np.uint8), (bits >> 8).astype(np.uint8)
    whole: NDArray[np.bool_] = (low & ~_LOW_BITS).max(axis=1) > 0  # not rounded by its survey
    noise = _three_bytes(low >> np.uint8(8 - _LOW))
    return [
        bits[n].tobytes() if whole[n] else noise[n].tobytes() + isal_zlib.compress(high[n].tobytes(), 1, RAW)
        for n in range(len(stamps))
    ]


def _three_bytes(low: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack eight numbers of three bits each into three bytes: [n, pixels] -> [n, pixels / 8, 3].

    Neighbours are moved together within each 8 bytes: two numbers in 16 bits, four in 32, eight in 64.
    """
    eight = low.view("<u8")
    eight = eight & _U8(0x0007000700070007) | eight >> _U8(5) & _U8(0x0038003800380038)
    eight = eight & _U8(0x0000003F0000003F) | eight >> _U8(10) & _U8(0x00000FC000000FC0)
    eight = eight & _U8(0xFFF) | eight >> _U8(20) & _U8(0xFFF000)
    return np.ascontiguousarray(eight.view(np.uint8).reshape(len(low), -1, 8)[:, :, :3])


def _eight_numbers(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The numbers packed by `_three_bytes`, for any number of stamps; its steps in reverse."""
    eight = np.zeros(len(packed) // 3, "<u8")
    eight.view(np.uint8).reshape(-1, 8)[:, :3] = packed.reshape(-1, 3)
    eight = eight & _U8(0xFFF) | (eight & _U8(0xFFF000)) << _U8(20)
    eight = eight & _U8(0x0000003F0000003F) | (eight & _U8(0x00000FC000000FC0)) << _U8(10)
    eight = eight & _U8(0x0007000700070007) | (eight & _U8(0x0038003800380038)) << _U8(5)
    return eight.view(np.uint8)


def unpack_stamps(packed: Sequence[bytes]) -> NDArray[np.float16]:
    """The stamps packed by `pack_stamps`, float16 [n, 32, 32]; zeros where empty."""
    made = np.zeros((len(packed), _PIXELS), "<f2")
    for n, one in enumerate(packed):
        if len(one) == _WHOLE:
            made[n] = np.frombuffer(one, "<f2")
    halves = [n for n, one in enumerate(packed) if len(one) not in (0, _WHOLE)]
    low = np.frombuffer(b"".join(packed[n][:_LOW_BYTES] for n in halves), np.uint8)
    high = np.frombuffer(b"".join(_inflated(packed[n][_LOW_BYTES:]) for n in halves), np.uint8)
    bits = (_eight_numbers(low) << np.uint8(8 - _LOW)).astype("<u2") | high.astype("<u2") << np.uint16(8)
    made[halves] = bits.view("<f2").reshape(-1, _PIXELS)
    return made.reshape(-1, *SHAPE)


def _inflated(packed: bytes) -> bytes:
    """The upper bytes of one stamp; fewer are an error, or they would be another stamp's."""
    found = isal_zlib.decompressobj(wbits=RAW).decompress(packed, _PIXELS)
    if len(found) != _PIXELS:
        raise ValueError(f"a packed stamp of {len(found)} pixels instead of {_PIXELS}")
    return found


def pack_points(photometry: Photometry | None) -> bytes:
    """Points by their keys, each once."""
    return pack_points_of([photometry])[0]


def pack_points_of(many: Sequence[Photometry | None]) -> list[bytes]:
    """`pack_points` for several, at once."""
    full = [one for one in many if one is not None and len(one)]
    if not full:
        return [b""] * len(many)
    mjd, band, kind, flux, error = (
        np.concatenate([getattr(one, name) for one in full]) for name in ("mjd", "band", "kind", "flux", "flux_error")
    )
    packed = np.empty(len(mjd), POINT)
    keys = np.rint(mjd * STEPS_A_DAY) * _PLACES + (band * np.uint8(POINT_KINDS) + kind)
    packed["key"], packed["flux"], packed["flux_error"] = keys, flux, error
    whole, rises = packed.tobytes(), np.append(keys[1:] > keys[:-1], True)
    made, start = [], 0
    for one in many:
        size = 0 if one is None else len(one)
        if one is None or size < 2 or (rises[start : start + size - 1].all() and size <= MOST_POINTS):
            made.append(whole[start * POINT.itemsize : (start + size) * POINT.itemsize])
        else:  # from a survey that did not merge them
            made.append(pack_points(Photometry.merged([one])))
        start += size
    return made


def unpack_points(packed: bytes) -> Photometry:
    """The points packed by `pack_points`."""
    points = np.frombuffer(packed, POINT)
    steps, place = np.divmod(points["key"], _PLACES)
    band, kind = np.divmod(place.astype(np.uint8), POINT_KINDS)
    return Photometry(steps / STEPS_A_DAY, band, points["flux"].copy(), points["flux_error"].copy(), kind)


def pack_context(context: Mapping[str, float]) -> bytes:
    """Numbers by their codes, which later releases will keep."""
    pairs = sorted(zip(map(contexts.CODES.__getitem__, context), context.values(), strict=True))
    return struct.pack("<" + "Bf" * len(pairs), *chain(*pairs))


def unpack_context(packed: bytes) -> dict[str, float]:
    """The numbers packed by `pack_context`; those of a later release are left out."""
    numbers = np.frombuffer(packed, _NUMBER).tolist()
    return {contexts.NAMES[code]: value for code, value in numbers if code < len(contexts.NAMES)}


def images_of(
    found: Sequence[tuple[Sequence[bytes], Sequence[bytes]]], kinds: Sequence[str]
) -> list[dict[str, NDArray[np.float16]]]:
    """The further stamps of some epochs of each object, float16 [m, 32, 32] by kind.

    Args:
        found: of each object, for each epoch the template's digest and the packed difference, empty if the epoch has
            neither; and digest, packed template, digest, …
        kinds: the kinds wanted.
    """
    packed: list[bytes] = [b""]  # of an epoch without that kind
    places: list[dict[str, list[int]]] = []
    for further, templates in found:
        own: dict[str, list[int]] = {}
        if "difference" in kinds:
            own["difference"] = list(range(len(packed), len(packed) + len(further)))
            packed += [one[DIGEST_BYTES:] for one in further]
        if "template" in kinds:
            known = {digest: len(packed) + n for n, digest in enumerate(templates[::2])}
            own["template"] = [known.get(one[:DIGEST_BYTES], 0) for one in further]
            packed += templates[1::2]
        places.append(own)
    stamps = unpack_stamps(packed)
    return [{kind: stamps[rows] for kind, rows in own.items()} for own in places]


def check(seen: Observation) -> None:
    """Raise for what `words` or a reader could not handle."""
    for kind, stamp in seen.images.items():
        if kind not in ("difference", "template") or stamp.shape != SHAPE or stamp.dtype != np.float16:
            raise ValueError(f"a {kind} stamp is {stamp.dtype} {stamp.shape}, not float16 {SHAPE}")
    contexts.check(seen.context)
    if seen.photometry is not None and len({len(getattr(seen.photometry, name)) for name in POINT_COLUMNS}) != 1:
        raise ValueError("photometry whose columns differ in length")
