"""The saved state of a run, so that an interrupted one can resume and a different one is recognised."""

import csv
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from skyheed.classifier.archives import reader as archive
from skyheed.classifier.errors import ModelError
from skyheed.classifier.models import checkpoint
from skyheed.classifier.models.checkpoint import Info
from skyheed.classifier.training.protocol import Protocol

PROGRESS = "progress.pt"


def finished(output: Path, protocol: Protocol) -> Info:
    """The checkpoint of a run that is already complete.

    Raises:
        ModelError: it belongs to a different run.
    """
    done = checkpoint.read_info(output)
    archived = done.training.get("archive", {})
    if not same(done.training.get("protocol", {}), protocol):
        raise ModelError(f"{output} holds a checkpoint of another configuration: choose another output, or remove it")
    if archived.get("digest") not in (None, card(protocol.archive).get("digest")):
        raise ModelError(f"{output} was trained on another archive of that name: choose another output, or remove it")
    return done


def write(output: Path, protocol: Protocol, state: Mapping[str, Any]) -> None:
    """Save the state of a run; a partly written file never replaces a complete one."""
    about = {"archive": card(protocol.archive).get("digest"), "protocol": plain(protocol)}
    torch.save({**state, **about}, output / f".{PROGRESS}")
    os.replace(output / f".{PROGRESS}", output / PROGRESS)


def read(output: Path, protocol: Protocol) -> dict[str, Any]:
    """The saved state of an interrupted run; empty if there is none.

    Raises:
        ModelError: it is damaged, or belongs to a different run.
    """
    path = output / PROGRESS
    if not path.exists():
        return {}
    try:
        found: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except (RuntimeError, EOFError, OSError, UnpicklingError) as error:
        raise ModelError(f"{path} is damaged ({str(error)[:80]}): remove it to start again") from error
    digest = card(protocol.archive).get("digest")
    if not same(found["protocol"], protocol) or found.get("archive", digest) != digest:
        raise ModelError(
            f"{path} is of another configuration or archive: choose another output, or remove it to start again"
        )
    return found


def plain(protocol: Protocol) -> dict[str, Any]:
    """A protocol as JSON returns it; the device and number of cores are left out, as they do not define a run."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(protocol).items()}
    return {key: value for key, value in values.items() if key not in ("device", "threads")}


def same(known: Mapping[str, Any], protocol: Protocol) -> bool:
    """Whether a run used this protocol; keys added since then are taken to have had their present defaults."""
    return plain(Protocol(archive="")) | dict(known) == plain(protocol)


def card(path: str) -> dict[str, Any]:
    """What identifies an archive; empty if there is none."""
    if not Path(path).is_dir():
        return {}
    known = archive.Archive(path).card
    digest = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:16]
    told = {key: known[key] for key in ("command", "seed", "objects", "stamps", "date") if key in known}
    return told | {"digest": digest}


def add_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append a line to a CSV file, which begins with the names of the columns."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)
