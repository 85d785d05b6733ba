"""Bounded decompression of deflate and gzip streams; ISA-L takes half of zlib's time."""

from typing import cast

from isal import isal_zlib

RAW = -15  # window bits: bare deflate, as in Avro blocks
GZIP = 31  # with gzip header and checksum

# isal's type stubs call the exception type an instance
_IsalError = cast(type[Exception], isal_zlib.error)


class InflateError(Exception):
    """The stream is damaged, incomplete or fails its checksum."""


class TooLong(Exception):
    """The stream holds more than the limit: most likely a decompression bomb."""


def inflate(data: bytes, limit: int, form: int) -> bytes:
    """The bytes of one whole stream, at most `limit` of them; `form` is RAW or GZIP.

    Raises:
        InflateError, TooLong
    """
    stream = isal_zlib.decompressobj(wbits=form)
    try:
        out: bytes = stream.decompress(data, limit + 1)
    except _IsalError as error:
        raise InflateError(str(error)) from error
    if len(out) > limit:
        raise TooLong(f"more than {limit} bytes")
    if not stream.eof:
        raise InflateError("ends early")
    return out
