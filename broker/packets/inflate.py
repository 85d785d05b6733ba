"""Bounded decompression of deflate and gzip streams; ISA-L takes half of zlib's time."""

from typing import cast

from isal import isal_zlib

RAW = -15  # window bits: bare deflate, as in Avro blocks
GZIP = 31  # with gzip header and checksum
GZIP_MAGIC = b"\x1f\x8b"
MOST_MEMBERS = 100  # of a gzip file; of what compresses in blocks, these are of 64 KiB

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
