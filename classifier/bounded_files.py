"""Reads files from others within bounds: no endless pipe, no device, nothing larger than memory."""

import os
import re
import stat
import zlib
from io import BufferedReader
from pathlib import Path

from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.safe_names import printable

_CHUNK, _FED = 1 << 20, 1 << 12
MOST_MEMBERS = 100_000  # of a gzip file; of 256 MiB in blocks of 64 KiB there are 4,096
MOST_LINE = 2**20  # bytes of a line of a table
_ZEROS = re.compile(b"\0+")


def open_regular(path: Path, error: type[Exception] = ArchiveError) -> BufferedReader:
    """An ordinary file, open for reading; a pipe or a device could block its reader forever.

    Raises:
        `error`: it cannot be opened, or is not an ordinary file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as failed:
        reason = failed.strerror if isinstance(failed, OSError) else failed
        raise error(f"{path} cannot be read: {reason}") from failed
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error(f"{path} is not an ordinary file: give a file")
    return os.fdopen(descriptor, "rb")


def read_file(path: Path, most: int, error: type[Exception] = ArchiveError) -> bytes:
    """The bytes of an ordinary file.

    Args:
        most: maximum size in bytes.

    Raises:
        `error`: it cannot be read, is not an ordinary file, or is larger.
    """
    with open_regular(path, error) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise error(f"{path} has more than {most / 2**20:.0f} MiB, the most that is read: is it the right file?")
    return data


def gunzip(data: bytes, most: int, path: Path, error: type[Exception] = ArchiveError) -> bytes:
    """The decompressed bytes of a gzip file of one or more members; zeros may follow the last one.

    Raises:
        `error`: cut short, damaged, other bytes after the last member, or more than `most` bytes or `MOST_MEMBERS`.
    """
    out, at = bytearray(), 0
    try:
        for _ in range(MOST_MEMBERS):
            at = _member(data, at, out, most)
            if len(out) > most:
                raise error(f"{path} unpacks to more than {most / 2**20:.0f} MiB: is it the right file?")
            at = _behind_zeros(data, at)
            if at == len(data):
                return bytes(out)
    except EOFError:
        raise error(f"{path} is cut short inside its gzip stream: get it again") from None
    except zlib.error as failed:
        raise error(f"{path} does not unpack ({printable(failed)}): get it again") from failed
    raise error(f"{path} has more than {MOST_MEMBERS} gzip members: is it the right file?")


def _member(data: bytes, at: int, out: bytearray, most: int) -> int:
    """Append the member that begins at `at` to `out`, up to one byte more than `most`; returns where it ends.

    Raises:
        EOFError, zlib.error
    """
    unpacker, view = zlib.decompressobj(31), memoryview(data)
    while not unpacker.eof and len(out) <= most:
        # small pieces, because what is not used of one is copied: a file can have a member every 20 bytes
        given = view[at : at + _FED]
        part = unpacker.decompress(given, min(_CHUNK, most + 1 - len(out)))
        out += part
        at += len(given) - len(unpacker.unconsumed_tail) - len(unpacker.unused_data)
        if not part and not given and not unpacker.eof:
            raise EOFError
    return at


def _behind_zeros(data: bytes, at: int) -> int:
    found = _ZEROS.match(data, at)
    return found.end() if found else at


def check_lines(data: bytes, path: Path) -> None:
    """Refuse text with a line that is none: it would be copied several times before anyone sees that it is no row.

    Raises:
        ArchiveError: a line of more than `MOST_LINE` bytes.
    """
    at = 0
    while len(data) - at > MOST_LINE:
        end = max(data.rfind(mark, at, at + MOST_LINE + 1) for mark in (b"\n", b"\r"))
        if end < 0:
            line = data.count(b"\n", 0, at) + 1
            raise ArchiveError(f"{path}, line {line}: more than {MOST_LINE // 2**20} MiB: is it the right file?")
        at = end + 1


def within(path: Path, folder: Path) -> bool:
    """Whether a path is inside a folder even after following links."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a link to itself
        return False
