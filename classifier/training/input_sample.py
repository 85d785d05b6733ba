"""Statistics of a sample of the training stamps, for a model's card, as computed by `input_statistics`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from skyheed.classifier import input_statistics
from skyheed.classifier.archives.histories import history_of
from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.errors import ArchiveError
from skyheed.classifier.history import History

MOST_OBJECTS = 400  # objects examined at most
TRAIN = "train"


def of_archive(path: str | Path, most: int = MOST_OBJECTS) -> dict[str, Any]:
    """Statistics by band of some training objects, and which objects they are from; empty if there is no archive."""
    if not Path(path).is_dir():
        return {}
    archive = Archive(path)
    names = [name for name in archive.object_ids if archive.object(name)["split"] == TRAIN]
    chosen = names[:: max(1, len(names) // most)][:most]
    bands = input_statistics.summary(input_statistics.gather(_histories(archive, chosen)))
    stamps = sum(numbers["n"] for numbers in bands.values())
    made = archive.card.get("command") or archive.path.name
    return {"bands": bands, "objects": len(chosen), "of": f"{stamps:,} stamps of {len(chosen)} objects from: {made}"}


def _histories(archive: Archive, names: list[str]) -> Iterator[History]:
    for name in names:
        try:
            yield history_of(archive, name)
        except ArchiveError:  # it has no usable stamp, so training left it out, too
            continue
