"""Bounded decompression of deflate and gzip streams; ISA-L takes half of zlib's time."""

import gzip
import io
import os
from collections.abc import Sequence
from typing import cast

from isal import igzip, isal_zlib

RAW = -15  # window bits: bare deflate, as in Avro blocks
GZIP = 31  # with gzip header and checksum
GZIP_MAGIC = b"\x1f\x8b"
MOST_MEMBERS = 100  # of a gzip file; of what compresses in blocks, these are of 64 KiB
_PLAIN = b"\x1f\x8b\x08\x00", b"\x1f\x8b\x08\x08"  # a gzip file without further fields, or with its name alone
_LEAST_PLAIN = 20  # bytes: header, an empty stream, checksum and length
_MOST_TOGETHER = 2**23  # bytes that files unpacked together may come to

# isal's type stubs call the exception type an instance
_IsalError = cast(type[Exception], isal_zlib.error)


class InflateError(Exception):
    """The stream is damaged, incomplete or fails its checksum."""


class TooLong(Exception):
    """The stream holds more than the limit: most likely a decompression bomb."""


def inflate(data: bytes, limit: int, form: int) -> bytes:
    """The bytes of one whole stream, at most `limit` of them; `form` is RAW or GZIP.

    A gzip stream may have several members and zeros after the last one (RFC 1952, 2.2; gzip pads to whole blocks on
    tapes); anything else after a member is refused, as Python's `gzip` does.

    Raises:
        InflateError, TooLong
    """
    out, rest = _stream(data, limit, form)
    return _with_further(out, rest, limit) if rest and form == GZIP else out


def _stream(data: bytes, limit: int, form: int) -> tuple[bytes, bytes]:
    """One stream, and the bytes after it."""
    stream = isal_zlib.decompressobj(wbits=form)
    try:
        out: bytes = stream.decompress(data, limit + 1)
    except _IsalError as error:
        raise InflateError(str(error)) from error
    if len(out) > limit:
        raise TooLong(f"more than {limit} bytes")
    if not stream.eof:
        raise InflateError("ends early")
    return out, stream.unused_data


def _with_further(first: bytes, rest: bytes, limit: int) -> bytes:
    """The bytes of a first member and of all that follow it."""
    parts, left = [first], limit - len(first)
    while rest := rest.lstrip(b"\0"):
        if not rest.startswith(GZIP_MAGIC):
            raise InflateError(f"{len(rest)} bytes after its end that do not begin another member")
        if len(parts) == MOST_MEMBERS:
            raise InflateError(f"more than {MOST_MEMBERS} members")
        try:
            out, rest = _stream(rest, left, GZIP)
        except TooLong:
            raise TooLong(f"more than {limit} bytes") from None
        parts.append(out)
        left -= len(out)
    return b"".join(parts)


def inflate_all(files: Sequence[bytes], limit: int) -> list[bytes | None]:
    """The bytes of many gzip files by one call, during which other threads run; None where `inflate` has to decide.

    That is so for a file of several members, for one that may be damaged or too long, and for all if one is damaged.
    The files become members of one, each followed by random bytes, so that a file cannot continue in the next.
    """
    nothing: list[bytes | None] = [None] * len(files)
    plain = [n for n, data in enumerate(files) if data.startswith(_PLAIN) and len(data) >= _LEAST_PLAIN]
    sizes = [int.from_bytes(files[n][-4:], "little") for n in plain]
    if not plain or max(sizes) > limit or sum(sizes) > _MOST_TOGETHER:
        return nothing
    mark = os.urandom(16)
    packed_mark = gzip.compress(mark, 0)
    joined = io.BytesIO(b"".join([part for n in plain for part in (files[n], packed_mark)]))
    whole = sum(sizes) + len(plain) * len(mark)
    try:
        out: bytes = igzip.IGzipFile(fileobj=joined).read(whole + 1)  # type: ignore[no-untyped-call]
    except (OSError, EOFError, _IsalError):
        return nothing
    found, at = list(nothing), 0
    for n, size in zip(plain, sizes, strict=True):
        found[n] = out[at : at + size]
        at += size + len(mark)
        if out[at - len(mark) : at] != mark:
            return nothing
    return found if len(out) == whole else nothing
