"""What a run keeps of itself, so that an interrupted one goes on and another one is told apart."""

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
    """The checkpoint of a run that is there already.

    Raises:
        ModelError: it is of another run.
    """
    done = checkpoint.read_info(output)
    archived = done.training.get("archive", {})
    if not same(done.training.get("protocol", {}), protocol):
        raise ModelError(f"{output} holds a checkpoint of another configuration: choose another output, or remove it")
    if archived.get("digest") not in (None, card(protocol.archive).get("digest")):
        raise ModelError(f"{output} was trained on another archive of that name: choose another output, or remove it")
    return done


def write(output: Path, protocol: Protocol, state: Mapping[str, Any]) -> None:
    """Keep the state of a run; a half-written one never takes the place of a whole one."""
    about = {"archive": card(protocol.archive).get("digest"), "protocol": plain(protocol)}
    torch.save({**state, **about}, output / f".{PROGRESS}")
    os.replace(output / f".{PROGRESS}", output / PROGRESS)


def read(output: Path, protocol: Protocol) -> dict[str, Any]:
    """The state of an interrupted run; empty if there is none.

    Raises:
        ModelError: it is damaged, or of another run.
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
    """As JSON gives it back; where it is computed, and on how many cores, makes no other run."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(protocol).items()}
    return {key: value for key, value in values.items() if key not in ("device", "threads")}


def same(known: Mapping[str, Any], protocol: Protocol) -> bool:
    """Whether a run was of this protocol; keys that it did not know yet had their present defaults."""
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
    """One more line of a CSV file, which begins with the names of the columns."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)
