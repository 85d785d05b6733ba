"""`skyheed screen`: a `fusion` checkpoint learns from a simulated archive which difference stamps are artefacts.

Nothing else of the checkpoint changes, and no real object is used. Half of the archive's objects fit the screen
together with simulated artefacts; the limit is what nearly all stamps of the other half pass.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skyheed.classifier.archives.histories import band_codes, model_stamps
from skyheed.classifier.archives.reader import Archive
from skyheed.classifier.errors import ModelError
from skyheed.classifier.flux_scaling import Scaling
from skyheed.classifier.models import checkpoint
from skyheed.classifier.models.checkpoint import Info
from skyheed.classifier.models.fusion.network import Fusion
from skyheed.classifier.models.fusion.screen import SHAPES, WIDEST, Screen
from skyheed.classifier.serving import load_network
from skyheed.classifier.sky import artefacts
from skyheed.classifier.training import run_state

EACH = 8  # stamps of an object, evenly over its alerts
FEWEST = 200  # usable stamps
ACCEPTED = 0.985  # of the held-out stamps
STRENGTH = 0.3  # scikit-learn's C
SEED = 1
LARGEST = float(np.finfo(np.float16).max)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Stamps:
    """Simulated alerts.

    Attributes:
        difference, template: float16 [n, 32, 32]; band: uint8 [n]; objects: int [n].
    """

    difference: NDArray[np.float16]
    template: NDArray[np.float16]
    band: NDArray[np.uint8]
    objects: NDArray[np.int64]


def run(name: str, archive: str | Path, output: str | Path, command: str = "", version: str = "") -> Info:
    """Fit the screen and write a checkpoint with it.

    Args:
        name: a checkpoint of the family fusion.
        archive: simulated objects that it did not learn from.

    Raises:
        ModelError: another family, or too few objects with difference stamps.
    """
    info = checkpoint.read_info(name)
    network = load_network(name, info)
    if not isinstance(network, Fusion) or "difference" not in network.config.kinds:
        raise ModelError(f"{name} does not read difference stamps: give a checkpoint of the family fusion that does")
    stamps = stamps_of(Archive(archive))
    network.screen = Screen()
    network.config = replace(network.config, screen=True)
    found = install(network.screen, stamps, info.scaling)
    told = {**found, "archive": run_state.card(str(archive)), "command": command}
    made = replace(
        info, version=version or f"{info.version}-screened", config=network.config.to_dict(),
        training={**info.training, "screen": told},
    )  # fmt: skip
    return checkpoint.save(output, network.state_dict(), made)


def stamps_of(archive: Archive) -> Stamps:
    """Up to `EACH` alerts of every object.

    Raises:
        ModelError: there are too few.
    """
    if "difference" not in archive.kinds or "template" not in archive.kinds:
        raise ModelError(f"{archive.path} has no difference and template stamps: simulate ztf or lsst")
    parts = [_some(archive, name) for name in archive.object_ids]
    difference, template, band = (np.concatenate(part) for part in zip(*parts, strict=True))
    if len(band) < FEWEST:
        raise ModelError(f"{archive.path} has fewer than {FEWEST} usable stamps: give a larger archive")
    return Stamps(difference, template, band, np.repeat(np.arange(len(parts)), [len(own) for *_, own in parts]))


def _some(archive: Archive, name: str) -> tuple[NDArray[np.float16], NDArray[np.float16], NDArray[np.uint8]]:
    """Difference and template stamps of some alerts of an object, and their bands."""
    rows = archive.stamps(name, kinds=("difference", "template"), alerts_only=True)
    rows = rows[np.unique(np.linspace(0, max(0, len(rows) - 1), min(EACH, len(rows))).astype(int))]
    difference, template = (model_stamps(rows, kind, archive.normalised) for kind in ("difference", "template"))
    usable = difference.any(axis=(1, 2))
    return difference[usable], template[usable], band_codes(rows["band"])[usable]


def install(screen: Screen, stamps: Stamps, scaling: Scaling) -> dict[str, Any]:
    """Fit a screen, and say what it accepts."""
    screen.gain.fill_(scaling.gain)
    fits = stamps.objects % 2 == 0
    rng = np.random.default_rng(SEED)
    painted, kinds = artefacts.artefacts(rng, stamps.difference.astype(np.float32), stamps.template.astype(np.float32))
    # the fitting half of the artefacts is chosen by chance, as they have no objects
    taught, bands = rng.random(len(kinds)) < 0.5, rng.choice(stamps.band, len(kinds))
    ours = scaled(scaling, stamps.difference, stamps.band)
    theirs = scaled(scaling, np.clip(painted, -LARGEST, LARGEST).astype(np.float16), bands)
    fit(screen, shapes_of(screen, ours[fits]), shapes_of(screen, theirs[taught]))
    held = odds_of(screen, ours[~fits])
    screen.limit.fill_(float(np.quantile(held, ACCEPTED)))
    declined = odds_of(screen, theirs[~taught]) > float(screen.limit)
    return {
        "stamps": len(fits), "objects": len(np.unique(stamps.objects)), "accepted": ACCEPTED,
        "limit": round(float(screen.limit), 4),
        "artefacts_declined": {
            kind: round(float(declined[kinds[~taught] == n].mean()), 4)
            for n, kind in enumerate(artefacts.KINDS) if (kinds[~taught] == n).any()
        },
    }  # fmt: skip


def scaled(scaling: Scaling, pixels: NDArray[np.float16], band: NDArray[np.uint8]) -> Tensor:
    """Stamps as the network sees them, [n, 32, 32]."""
    return torch.from_numpy(scaling(pixels, band))


@torch.inference_mode()
def shapes_of(screen: Screen, images: Tensor) -> Floats:
    """Shapes [k, SHAPES] of those stamps that have any."""
    shapes, known = screen.shapes(images)
    return shapes[known].double().numpy()


@torch.inference_mode()
def odds_of(screen: Screen, images: Tensor) -> Floats:
    """Log-odds of artefacts, [n]."""
    found: Floats = screen(images).double().numpy()
    return found


def fit(screen: Screen, sources: Floats, others: Floats) -> None:
    """Fit the quadratic log-odds; sources and artefacts count equally."""
    from sklearn.linear_model import LogisticRegression

    n = len(SHAPES)
    mean, scatter = sources.mean(0), np.maximum(sources.std(0), 0.02)
    z = np.clip((np.concatenate([sources, others]) - mean) / scatter, -WIDEST, WIDEST)
    first, second = np.triu_indices(n)
    labels = np.arange(len(z)) >= len(sources)
    terms = np.concatenate([z, z[:, first] * z[:, second]], 1)
    size = terms.std(0)
    made = LogisticRegression(C=STRENGTH, solver="newton-cholesky", class_weight="balanced").fit(terms / size, labels)
    weight = made.coef_[0] / size
    square = np.zeros((n, n))
    square[first, second] = weight[n:]
    values = {
        "mean": mean, "scatter": scatter, "square": square, "linear": weight[:n], "constant": made.intercept_,
    }  # fmt: skip
    with torch.no_grad():
        for name, value in values.items():
            getattr(screen, name).copy_(torch.from_numpy(value))
