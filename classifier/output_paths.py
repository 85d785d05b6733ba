"""Checks output paths before long work starts, without leaving anything behind."""

import os
import tempfile
from pathlib import Path

from skyheed.classifier.errors import ArchiveError

SPARE_NAME = 32  # extra bytes in names of unfinished files (`.NAME.partial-PID`)
PICTURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")


def check_folder(path: str | Path, error: type[Exception] = ArchiveError) -> None:
    """Check that a folder can be written to, or created.

    Raises:
        `error`: it is a file, cannot be created, or is not writable.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_dir():
            raise error(f"{path} is a file, a folder is needed: choose another name")
        _try(next(place for place in (path, *path.absolute().parents) if place.exists()), path.name)
    except (OSError, ValueError) as failed:
        raise error(f"{path}: cannot be written into ({_reason(failed)})") from failed


def check_file(path: str | Path, error: type[Exception] = ArchiveError) -> None:
    """Check that a file can be written or overwritten.

    Raises:
        `error`: its folder does not exist, it is a folder itself, or is not writable.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise error(f"cannot write {path}: it is a folder, give the name of a file")
        if not path.parent.is_dir():
            raise error(f"cannot write {path}: there is no such directory")
        if not path.exists():
            _try(path.parent, path.name)
        elif path.is_file():
            path.open("ab").close()
    except (OSError, ValueError) as failed:
        raise error(f"{path}: cannot be written ({_reason(failed)})") from failed


def check_picture(path: str | Path, error: type[Exception] = ArchiveError) -> None:
    """`check_file`, and check that it has a picture's file extension.

    Raises:
        `error`
    """
    if Path(path).suffix.lower() not in PICTURES:
        raise error(f"{path} does not end like an image file: use one of {', '.join(PICTURES)}")
    check_file(path, error)


def _try(folder: Path, name: str) -> None:
    """Write an unnamed file; permissions alone do not reveal read-only file systems, quotas and access lists."""
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file")
    longest = os.pathconf(folder, "PC_NAME_MAX")
    if len(os.fsencode(name)) + SPARE_NAME > longest:
        raise ValueError(f"its name is too long ({len(os.fsencode(name))} bytes)")
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0")


def _reason(failed: Exception) -> str:
    return (failed.strerror if isinstance(failed, OSError) else None) or str(failed)
