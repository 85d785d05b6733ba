"""Regular expressions that skip Avro values.

Every pattern is deterministic and possessive, thus linear. Neighbouring values that are nearly always present, or all
null, are first tried as a run without alternatives: a run of 70 floats takes 0.6 us this way, with alternatives 4 us.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from skyheed.broker.packets.avro_schema import MAX_DEPTH, Type

SHORT = 128  # bytes; longer strings inside arrays take the slow path
SHORT_PARTS = 20
_VARINT = rb"[\x80-\xff]{0,8}+(?:[\x00-\x7f]|[\x80-\xff][\x00\x01])"  # of 64 bits
FIXED_WIDTH = {
    "null": b"", "boolean": rb"[\x00\x01]", "int": _VARINT, "long": _VARINT, "enum": _VARINT,
    "float": b".{4}", "double": b".{8}",
}  # fmt: skip
_SMALL_VARINT = rb"[\x80-\xff]{0,8}+[\x00-\x7f]"
_USUAL = FIXED_WIDTH | {"int": _SMALL_VARINT, "long": _SMALL_VARINT, "enum": _SMALL_VARINT}
_USUAL |= {"float": b"." * 4, "double": b"." * 8}  # dots are faster than a count
_RUN = 8  # values: in longer runs a single null would cost more than the run saves
_LONGEST_USUAL = 256  # bytes of a pattern


class Unsupported(Exception):
    """The schema is too unusual for the compiler."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Patterns that skip one value.

    Attributes:
        any: matches every value of the type.
        usual: matches some values in a faster way; whatever it matches, `any` matches to the same length.
            None if there is none.
        null: the same for null; None if the value cannot be null.
    """

    any: bytes
    usual: bytes | None = None
    null: bytes | None = None


Strings = Callable[[Type], bytes]  # the pattern of a type's strings


def passing(each: Type, count: Callable[[int], None], short: Strings | None = None, depth: int = 0) -> Piece | None:
    """Patterns that skip a value of the type, or None if no pattern can.

    Args:
        count: called with the number of parts of the type.
        short: patterns of strings; None if strings cannot be skipped.

    Raises:
        Unsupported: nested too deeply; also anything that `count` raises.
    """
    count(1)
    if depth > MAX_DEPTH:
        raise Unsupported
    if each.kind == "fixed":
        return Piece(b".{%d}" % each.size)
    if each.kind in ("record", "union"):
        parts = [passing(part, count, short, depth + 1) for part in each.branches or [part for _, part in each.fields]]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        return _union(each, known) if each.kind == "union" else Piece(joined(known), _usual(known))
    if each.kind in ("string", "bytes"):
        count(SHORT_PARTS if short else 0)
        return None if short is None else Piece(short(each))
    if each.kind not in FIXED_WIDTH:
        return None
    return Piece(FIXED_WIDTH[each.kind], _USUAL[each.kind])


def joined(pieces: Iterable[Piece]) -> bytes:
    """The pattern of the values one after the other."""
    out = []
    for quick, members in groupby(pieces, lambda piece: piece.usual is not None):
        own = list(members)
        for first in range(0, len(own), _RUN):
            run = own[first : first + _RUN]
            out.append(_run(run) if quick and len(run) > 1 else b"".join(piece.any for piece in run))
    return b"".join(out)


def literal(index: int) -> bytes:
    """The pattern of a branch number or length, zig-zag encoded."""
    number, out = 2 * index, bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return re.escape(bytes([*out, number]))


def short_strings(longest: int = SHORT) -> bytes:
    """Strings and bytes of less than `longest` bytes."""
    return b"(?>" + b"|".join(_of_lengths(first) for first in range(0, longest, 16)) + b")"


def of_length(size: int) -> bytes:
    """Strings and bytes of this many bytes."""
    return literal(size) + b".{%d}" % size


def usually(lengths: Iterable[int], otherwise: bytes) -> bytes:
    """A pattern of strings that tries these lengths first."""
    return b"(?>" + b"|".join([*map(of_length, lengths), otherwise]) + b")"


def _of_lengths(first: int) -> bytes:
    """Strings of 16 neighbouring lengths, after a look-ahead at the first byte that may rule out all of them."""
    lengths = range(first, first + 16)
    ends = lengths[0], lengths[-1]
    low, high = (re.escape(bytes([2 * size & 0x7F | (0x80 if size >= 64 else 0)])) for size in ends)
    choices = b"|".join(map(of_length, lengths))
    return b"(?=[%s-%s])(?>%s)" % (low, high, choices)


def _run(run: Sequence[Piece]) -> bytes:
    ways = [b"".join(piece.usual or b"" for piece in run)]
    if all(piece.null is not None for piece in run):
        ways.append(b"".join(piece.null or b"" for piece in run))
    return b"(?>" + b"|".join([*ways, b"".join(piece.any for piece in run)]) + b")"


def _union(each: Type, branches: Sequence[Piece]) -> Piece:
    """The usual branch is the first one that is not null."""
    kinds = [branch.kind for branch in each.branches]
    order = sorted(range(len(kinds)), key=lambda index: kinds[index] == "null")
    alternatives = b"|".join(literal(index) + branches[index].any for index in order)
    usual = branches[order[0]].usual
    return Piece(
        b"(?>" + alternatives + b")",
        None if usual is None else literal(order[0]) + usual,
        literal(kinds.index("null")) if "null" in kinds else None,
    )


def _usual(pieces: Sequence[Piece]) -> bytes | None:
    if any(piece.usual is None for piece in pieces):
        return None
    whole = b"".join(piece.usual or b"" for piece in pieces)
    return whole if len(whole) <= _LONGEST_USUAL else None
