"""Finds packets on disk: in files, folders, and tar archives as the surveys publish them, intact or damaged.

Archives vary: macOS adds `._name` for every file and a folder `__MACOSX`, a night without alerts is an empty archive,
a download may be truncated, and a tar may contain a tar. Packets read before the damage are kept; each problem is
reported once, in `damaged`.
"""

import gzip
import logging
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from skyheed.broker.errors import ConfigError
from skyheed.classifier.bounded_files import open_regular, within
from skyheed.classifier.safe_names import printable

log = logging.getLogger("skyheed.replay")
PACKETS = (".avro", ".bin")  # read from folders and tar archives; a file named explicitly may have any extension
TARS = (".tar", ".tar.gz", ".tgz")
GZIP_MAGIC = b"\x1f\x8b"
LARGEST = 256 * 2**20  # bytes of one file of packets, which is split in memory; Kafka takes messages of 64 MiB
LARGEST_HEADER = 2**20  # bytes of a tar's own headers (long names, PAX); tarfile would read as many as one claims
DEEPEST = 3  # nested tars; the surveys need none
# A tar.gz may expand by this factor plus a fixed size; packets, whose stamps are compressed, expand 1 to 5 times.
MOST_UNPACKING, UNPACKING_FREE = 100, 64 * 2**20
SPARE = 2**30  # free bytes that unpacking leaves on the disk

Place = tuple[Path, int, int]  # file, offset, length


class PacketFiles:
    """Finds packets; archives are unpacked into `folder`, which the caller removes.

    Attributes:
        inputs: name, size and modification time of every file that was read, for a fingerprint.
        damaged: what could not be read completely, one sentence each.
        empty: archives with nothing in them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._unpacked = 0
        self.inputs: list[tuple[str, int, int]] = []
        self.damaged: list[str] = []
        self.empty: list[Path] = []

    def packets(self, path: Path) -> Iterator[Place]:
        """Every packet of a file, a tar archive or a folder.

        Raises:
            ConfigError: it is not a packet file, or there is no room to unpack it.
        """
        for file in self._in_folder(path) if path.is_dir() else [path]:
            self.note(file)
            if not file.name.endswith(TARS):
                yield from self._file(file)
                continue
            before = self.empty[:]
            yield from self._tar(file, str(file), 0)
            if self.empty != before:
                log.warning("%s holds nothing: an empty night, or the wrong file", printable(file))

    def note(self, path: Path) -> None:
        """Remember a file for the fingerprint."""
        with open_regular(path, ConfigError) as file:
            status = os.fstat(file.fileno())
        self.inputs.append((path.name, status.st_size, status.st_mtime_ns))

    def _in_folder(self, folder: Path) -> list[Path]:
        """Packet files and archives below a folder; links that lead out of it are left out."""
        found = [p for p in sorted(folder.rglob("*")) if p.name.endswith(PACKETS + TARS) and p.is_file()]
        found = [p for p in found if not _is_hidden(str(p.relative_to(folder)))]
        inside = [p for p in found if within(p, folder)]
        if len(inside) < len(found):
            log.warning("%d links in %s lead outside it: left out", len(found) - len(inside), printable(folder))
        return inside

    def _file(self, path: Path) -> Iterator[Place]:
        size = path.stat().st_size
        if size > LARGEST:
            self._say(f"{path} has {size} bytes, more than a file of packets may have ({LARGEST}): left out")
        else:
            yield path, 0, size

    def _tar(self, path: Path, shown: str, depth: int) -> Iterator[Place]:
        """The packets of an archive; an error that stops the reading is reported with what was read before."""
        plain, fault = self._plain(path, shown)
        found = 0
        try:
            for place in self._members(plain, shown, depth):
                found += 1
                yield place
        except (tarfile.TarError, ValueError, OverflowError, RecursionError, MemoryError) as error:
            if not fault and not plain.stat().st_size and plain != path:
                self.empty.append(path)
                return
            fault = fault or printable(error, 200)
        if fault:
            self._say(f"{shown} is damaged or not a tar archive: {fault}; {found} packets before that are kept")

    def _members(self, plain: Path, shown: str, depth: int) -> Iterator[Place]:
        with open_regular(plain, ConfigError) as file:
            size, last, seen = os.fstat(file.fileno()).st_size, -1, False
            with tarfile.open(fileobj=cast(BinaryIO, _Headers(file)), mode="r:") as tar:
                for member in tar:
                    if member.offset <= last or member.size < 0:
                        raise tarfile.ReadError("its headers lead back")
                    last, seen = member.offset, True
                    tar.members = []  # type: ignore[attr-defined]  # otherwise it keeps every header in memory
                    if member.isreg() and not _is_hidden(member.name):
                        yield from self._member(member, plain, size, shown, depth)
                end = tar.offset
            # tarfile takes an archive truncated inside or before a header for a complete one
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it ends too early")
        if not seen:
            self.empty.append(plain)

    def _member(self, member: tarfile.TarInfo, plain: Path, size: int, shown: str, depth: int) -> Iterator[Place]:
        name = f"{shown}/{printable(member.name, 100)}"
        if not member.name.endswith(PACKETS + TARS):
            return
        if member.issparse() or (member.size > LARGEST and not member.name.endswith(TARS)):
            self._say(f"{name} says that it has {member.size} bytes, more than packets have ({LARGEST}): left out")
            return
        if member.offset_data + member.size > size:
            raise tarfile.ReadError(f"it ends inside {printable(member.name, 100)}")
        if member.name.endswith(PACKETS):
            yield plain, member.offset_data, member.size
        elif depth == DEEPEST:
            self._say(f"{name} lies {depth + 1} archives deep: left out")
        else:
            yield from self._tar(self._copied(plain, member), name, depth + 1)

    def _copied(self, plain: Path, member: tarfile.TarInfo) -> Path:
        """An archive inside an archive, copied to a separate file."""
        inner = self._new_file()
        left = member.size
        with plain.open("rb") as source, inner.open("wb") as out:
            source.seek(member.offset_data)
            while left and (part := source.read(min(left, 1 << 20))):
                self._check_room(len(part))
                out.write(part)
                left -= len(part)
        return inner

    def _plain(self, path: Path, shown: str) -> tuple[Path, str]:
        """The uncompressed archive, in a temporary file (members are read again by position), and what was wrong."""
        with open_regular(path, ConfigError) as file:
            if file.read(2) != GZIP_MAGIC:
                return path, ""
            file.seek(0)
            log.warning("unpacking %s into %s: needs about its unpacked size there", printable(shown), self._folder)
            plain = self._new_file()
            most = MOST_UNPACKING * path.stat().st_size + UNPACKING_FREE
            with plain.open("wb") as out:
                return plain, self._unpack(file, out, most)

    def _unpack(self, file: BinaryIO, out: BinaryIO, most: int) -> str:
        written = 0
        try:
            with gzip.GzipFile(fileobj=file) as packed:
                while part := packed.read1(1 << 20):  # `read` would lose what precedes a truncation
                    written += len(part)
                    if written > most:
                        return f"it unpacks to more than {MOST_UNPACKING} times its size"
                    self._check_room(len(part))
                    out.write(part)
        except EOFError:
            return "its gzip stream is cut short"
        except (zlib.error, gzip.BadGzipFile) as error:
            return f"its gzip stream is damaged ({printable(error, 100)})"
        return ""

    def _check_room(self, more: int) -> None:
        if shutil.disk_usage(self._folder).free < SPARE + more:
            raise ConfigError(f"no room to unpack archives in {self._folder}: set TMPDIR to a folder on a larger disk")

    def _new_file(self) -> Path:
        self._unpacked += 1
        return self._folder / f"{self._unpacked}.tar"

    def _say(self, sentence: str) -> None:
        self.damaged.append(sentence)
        log.warning("%s", sentence)


class _Headers:
    """A file as tarfile reads it here, headers only: no header may ask for more than `LARGEST_HEADER`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self.tell = file.tell

    def seek(self, place: int) -> int:
        """Raises tarfile.ReadError beyond the end."""
        if place > self._size:
            raise tarfile.ReadError("unexpected end of data")
        return self._file.seek(place)

    def read(self, size: int = -1) -> bytes:
        """Raises tarfile.ReadError if more bytes are requested than headers have."""
        if not 0 <= size <= LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def _is_hidden(name: str) -> bool:
    """Whether it is hidden, or left by a file manager (`._name`, `.DS_Store`, `__MACOSX/`)."""
    parts = name.split("/")
    return "__MACOSX" in parts or any(part.startswith(".") and part not in (".", "..") for part in parts)
