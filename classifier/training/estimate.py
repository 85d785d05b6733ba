"""`skyheed train --dry-run`: sizes, steps and time of a run, estimated from a few of its steps."""

import time
from collections import Counter

import numpy as np

from skyheed.classifier.models.base import parameters
from skyheed.classifier.reaper import temporary_folder
from skyheed.classifier.training import selection, train
from skyheed.classifier.training.dataset import Augmentation
from skyheed.classifier.training.protocol import STEPS, Protocol

TRIED = 3  # number of timed steps, after one untimed step


def text(protocol: Protocol) -> str:
    """A summary of what would be trained, in a few lines.

    Raises:
        ModelError, ArchiveError: it could not be trained.
    """
    data = selection.load(protocol)
    with temporary_folder("skyheed-dry-run-") as folder:
        trainer = train.Trainer(protocol, data, folder)
        everything, confirmed = selection.stages(protocol, data)
        seconds = _step(trainer, everything)
    steps = {key: getattr(protocol, key) for key in STEPS if getattr(protocol, key)}
    counts = Counter(protocol.classes[label] for label in trainer.labels[everything])
    whole = sum(count for key, count in steps.items() if "head" not in key) * seconds
    limit = f", at most {protocol.cpu_seconds / 60:.0f} CPU minutes" if protocol.cpu_seconds else ""
    return "\n".join(
        [
            f"{protocol.name}: {protocol.model}, {parameters(trainer.model):,} parameters, on {trainer.chosen}",
            f"learns from {len(everything)} objects ({', '.join(f'{k} {v}' for k, v in sorted(counts.items()))}), "
            f"{len(confirmed)} of them confirmed; selects and calibrates on {len(trainer.validation)}, "
            f"tests on {len(data.choose('test', True))}",
            f"steps: {', '.join(f'{key} {count}' for key, count in steps.items())}",
            f"about {whole / 60:.0f} minutes for the steps that are not of a head, {seconds:.2f} s each, and the "
            f"measurements between them{limit}",
        ]
    )


def _step(trainer: train.Trainer, indices: selection.Indices) -> float:
    """Time of one step in seconds."""
    p = trainer.protocol
    augmentation = Augmentation(p.longest, p.whole, p.truncate, p.stamps, drop=p.drop)
    rng = np.random.default_rng(0)
    began = 0.0
    for turn in range(TRIED + 1):
        if turn == 1:
            began = time.monotonic()
        drawn = rng.choice(indices, p.batch)
        trainer.model.train()
        views = [trainer.views(drawn, augmentation, rng) for _ in range(trainer.objective.views)]
        trainer.objective.loss(views, rng).backward()  # type: ignore[no-untyped-call]
    return (time.monotonic() - began) / TRIED
