"""Reads FITS files from others within bounds; any damage becomes one sentence."""

import bz2
import contextlib
import gzip
import io
import math
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning

from skyheed.classifier.bounded_files import open_regular
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.safe_names import printable

MOST_PIXELS = 2**26  # an SDSS frame has 3 million
MOST_BYTES = 512 * 2**20  # unpacked; a frame has 13 MB
MOST_HEADER = 2**20  # bytes, 13,000 cards; that of a frame has 100


@contextlib.contextmanager
def one_sentence(path: Path, what: str) -> Iterator[None]:
    """All that damaged files end in, from astropy and from unpacking, as one error with the file's name."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*truncated.*")
            yield
    except ArchiveError:
        raise
    except EOFError as error:
        raise ArchiveError(f"{path} cannot be read as {what}: it is cut short, get it again") from error
    except (
        OSError, LookupError, ValueError, TypeError, ArithmeticError, AttributeError, zlib.error, fits.VerifyError,
        AstropyWarning, MemoryError,
    ) as error:  # fmt: skip
        raise ArchiveError(f"{path} cannot be read as {what} ({printable(error, 200)}): get it again") from error


def refuse_large(header: fits.Header) -> None:
    """Before the pixels are unpacked; astropy makes room for as many as the header says."""
    axes = int(header["NAXIS"])
    pixels = math.prod(int(header.get(f"NAXIS{axis}", 1)) for axis in range(1, axes + 1)) if axes < 10 else -1
    if not 0 < pixels <= MOST_PIXELS:
        raise ValueError(f"its header declares {pixels} pixels")


def read_header(path: Path) -> fits.Header:
    """The primary header alone; a compressed frame is unpacked no further than that.

    Raises:
        ArchiveError: there is none.
    """
    with one_sentence(path, "a FITS file"), _stream(path) as stream:
        # of a stream without an END, astropy would read all that there is
        return fits.Header.fromfile(io.BytesIO(stream.read(MOST_HEADER)), endcard=True, padding=False)


def unpacked(path: Path) -> io.BytesIO:
    """A file's bytes, plain or out of bzip2 or gzip; in memory, because astropy reads as many as a header claims.

    Raises:
        ValueError: they are too many.
        ArchiveError, OSError, EOFError, zlib.error: they cannot be read.
    """
    with _stream(path) as stream:
        data = stream.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES / 2**20:.0f} MiB")
    return io.BytesIO(data)


@contextlib.contextmanager
def _stream(path: Path) -> Iterator[Any]:
    with open_regular(path) as file:
        begins = file.read(3)
        file.seek(0)
        if begins == b"BZh":
            with bz2.BZ2File(file) as stream:
                yield stream
        elif begins[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=file) as stream:
                yield stream
        else:
            yield file
