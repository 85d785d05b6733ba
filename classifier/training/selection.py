"""Which objects a run uses for training, selection and measurement."""

import logging
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from skyheed.classifier import taxonomy
from skyheed.classifier.errors import ModelError
from skyheed.classifier.training import dataset
from skyheed.classifier.training.dataset import Dataset
from skyheed.classifier.training.protocol import Protocol

log = logging.getLogger("skyheed.train")
Indices = NDArray[np.int64]


def load(protocol: Protocol) -> Dataset:
    """The archive of a run, as the run sees it.

    Raises:
        ArchiveError: it cannot be read.
    """
    return dataset.load(protocol.archive, bands=protocol.bands, visits=protocol.epochs == "all")


def check_data(protocol: Protocol, data: Dataset) -> None:
    """Check, before hours of work, that there are objects for training, selection and measurement.

    Raises:
        ModelError: states what is missing.
    """
    for split, sure, why in (
        ("train", None, "learn from"),
        ("validation", None, "select on"),
        ("test", True, "test on"),
    ):
        if not len(data.choose(split, sure)):
            kind = "confirmed objects" if sure else "objects"
            raise ModelError(f"{protocol.archive} has no {kind} in its split {split} to {why}: make it larger")
    if protocol.taxonomy:
        return
    unknown = {data.label[i] for i in range(len(data.object_ids)) if label(data, i, protocol) not in protocol.classes}
    if strange := sorted(unknown):
        raise ModelError(
            f"{protocol.archive} has objects of class {strange[0]}, the run knows {', '.join(protocol.classes)}: add "
            "it to classes, or leave those objects out (skyheed archive convert)"
        )


def stages(protocol: Protocol, data: Dataset) -> tuple[Indices, Indices]:
    """Training objects with any label, and those with a spectroscopically confirmed label."""
    everything, confirmed = data.choose("train"), data.choose("train", True)
    everything = evenly(everything, data, protocol, protocol.objects)
    return everything, np.intersect1d(everything, confirmed)


def evenly(indices: Indices, data: Dataset, protocol: Protocol, count: int) -> Indices:
    """This many of the objects, evenly by class, unless the run uses natural frequencies. 0: all."""
    if not count:
        return indices
    rng = np.random.default_rng(protocol.seed)
    if not protocol.balanced:
        return np.sort(rng.permutation(indices)[:count])
    each = count // len(protocol.classes)
    names = np.array([label(data, i, protocol) for i in indices])
    return np.sort(np.concatenate([rng.permutation(indices[names == c])[:each] for c in protocol.classes]))


def label(data: Dataset, index: int, protocol: Protocol) -> str:
    """The class of an object in the run's taxonomy."""
    own = taxonomy.from_mapping(protocol.taxonomy)
    return own.class_of(data.label[index], data.kind[index], protocol.classes)


def of_known_classes(data: Dataset, protocol: Protocol) -> Dataset:
    """The data without objects that belong to no class of the run's taxonomy."""
    if not protocol.taxonomy:
        return data
    strange = [i for i in range(len(data.object_ids)) if label(data, i, protocol) not in protocol.classes]
    if strange:
        log.warning("%d of %d objects belong to no class and are left out", len(strange), len(data.object_ids))
    split = list(data.split)
    for i in strange:
        split[i] = "left out"
    return replace(data, split=split)
