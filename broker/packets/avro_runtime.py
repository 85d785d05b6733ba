"""Functions called by the code that `avro_fast` generates: numbers, bytes and strings, and the items of arrays and
maps.

They give up with `Mismatch` on anything unusual; then the plain reader decides.
"""

import re
import struct
from collections.abc import Callable
from typing import Any

from skyheed.broker.packets.avro import ITEM_STEPS, PlainReader, Steps, Type
from skyheed.broker.packets.avro_numbers import signed

Reader = Callable[[bytes, int, int, Steps], tuple[Any, int]]
_SIGNED = [signed(n) for n in range(128)]  # most lengths and numbers take one byte


class Mismatch(Exception):
    """The fast reader does not understand these bytes."""


class Items:
    """Reads the items of one array."""

    def __init__(self, read: Reader, item: Type) -> None:
        self._read = read
        self._least = item.least
        self._cost = item.nodes + ITEM_STEPS

    def __call__(self, data: bytes, pos: int, end: int, steps: Steps) -> tuple[list[Any], int]:
        items: list[Any] = []
        while True:
            count, pos = _long(data, pos, end)
            if count == 0:
                return items, pos
            cost = 1 + count * self._cost
            if count < 0 or count * self._least > end - pos or cost > steps.left:
                raise Mismatch
            steps.left -= cost
            for _ in range(count):
                item, pos = self._read(data, pos, end, steps)
                items.append(item)


class Blocks:
    """Skips the blocks of one array or map.

    Args:
        pattern: of an item, preceded by a map's key; None if there is none.
    """

    def __init__(self, each: Type, pattern: bytes | None) -> None:
        item = each.branches[0]
        self._type = each
        self._least = item.least + (each.kind == "map")
        self._nodes = item.nodes
        self._match = None if pattern is None else re.compile(pattern, re.DOTALL).match

    def __call__(self, data: bytes, pos: int, end: int, steps: Steps) -> int:
        if self._match is None:
            return self._pass_slowly(data, pos, end, steps)
        return self._pass_over(data, pos, end, steps, self._match)

    def _pass_over(self, data: bytes, pos: int, end: int, steps: Steps, match: Callable[..., Any]) -> int:
        start, before = pos, steps.left
        while True:
            count, pos = _long(data, pos, end)
            if count == 0:
                return pos
            # a block that states its size (a negative count) is rare, so it is left to the plain reader
            count = count if self._least else min(count, 0)
            cost = 1 + count * self._nodes
            if count < 0 or count * self._least > end - pos or cost > steps.left:
                raise Mismatch
            steps.left -= cost
            for _ in range(count):
                found = match(data, pos, end)
                if found is None:  # such as a long string
                    steps.left = before
                    return self._pass_slowly(data, start, end, steps)
                pos = found.end()

    def _pass_slowly(self, data: bytes, pos: int, end: int, steps: Steps) -> int:
        reader = PlainReader(data, pos, end, steps)
        reader.skip(self._type)
        return reader.position


def _long(data: bytes, pos: int, end: int) -> tuple[int, int]:
    number = shift = 0
    while shift <= 63:
        byte = data[pos]
        pos += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            if number >> 64:
                break
            return signed(number), pos
        shift += 7
    raise Mismatch


def _skip_bytes(data: bytes, pos: int, end: int) -> int:
    size = data[pos]
    if size < 0x80:
        size, pos = _SIGNED[size], pos + 1
    else:
        size, pos = _long(data, pos, end)
    if not 0 <= size <= end - pos:
        raise Mismatch
    return pos + size


def _take_bytes(data: bytes, pos: int, end: int) -> tuple[bytes, int]:
    size, pos = _long(data, pos, end)
    if not 0 <= size <= end - pos:
        raise Mismatch
    stop = pos + size
    return data[pos:stop], stop


def _take_string(data: bytes, pos: int, end: int) -> tuple[str, int]:
    text, pos = _take_bytes(data, pos, end)
    return text.decode(), pos


class _Zigzag(dict[bytes, int]):
    """Digits -> number; single-byte digits are looked up."""

    def __missing__(self, digits: bytes) -> int:
        number = 0
        for byte in reversed(digits):
            number = number << 7 | byte & 0x7F
        return (number >> 1) ^ -(number & 1)  # `signed`, without the cost of a call for every long number


def _symbol(symbols: tuple[str, ...], index: int) -> str:
    if index < 0:
        raise Mismatch
    return symbols[index]


RUNTIME: dict[str, Any] = {
    "Mismatch": Mismatch,
    "ONE": b"\x01",
    "unpack_float": struct.Struct("<f").unpack,
    "unpack_double": struct.Struct("<d").unpack,
    "zigzag": _Zigzag({bytes([n]): _SIGNED[n] for n in range(128)}),
    "symbol": _symbol,
    "skip_bytes": _skip_bytes,
    "take_bytes": _take_bytes,
    "take_string": _take_string,
}
