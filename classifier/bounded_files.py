"""Reads files from others within bounds: no endless pipe, no device, nothing larger than memory."""

import os
import stat
import zlib
from io import BufferedReader
from pathlib import Path

from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.safe_names import printable

_CHUNK = 1 << 20


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
    """The decompressed bytes of a gzip file with one or more members.

    Raises:
        `error`: cut short, damaged, or more than `most` bytes.
    """
    out, size = [], 0
    try:
        while data:
            unpacker = zlib.decompressobj(31)
            while not unpacker.eof:
                part = unpacker.decompress(data, min(_CHUNK, most + 1 - size))
                data = unpacker.unconsumed_tail
                size += len(part)
                out.append(part)
                if size > most:
                    raise error(f"{path} unpacks to more than {most / 2**20:.0f} MiB: is it the right file?")
                if not part and not data and not unpacker.eof:
                    raise error(f"{path} is cut short inside its gzip stream: get it again")
            data = unpacker.unused_data.lstrip(b"\0")
    except zlib.error as failed:
        raise error(f"{path} does not unpack ({printable(failed)}): get it again") from failed
    return b"".join(out)


def within(path: Path, folder: Path) -> bool:
    """Whether a path is inside a folder even after following links."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a link to itself
        return False
