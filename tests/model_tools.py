"""Models and sequences that several tests use."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from skyheed.classifier import taxonomy
from skyheed.classifier.flux_scaling import Scaling
from skyheed.classifier.history import History
from skyheed.classifier.models import checkpoint
from skyheed.classifier.models.checkpoint import Calibration, Info
from skyheed.classifier.models.convention.network import Config, ConvEntion

SCALING = Scaling((2.0, 1.0, 1.5, 2.5, 7.0, 9.0), 0.9)


def lively(config: Config, seed: int = 1) -> ConvEntion:
    """A model whose weights and batch statistics are not the initial ones, in evaluation mode."""
    torch.manual_seed(seed)
    model = ConvEntion(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean = torch.randn_like(module.running_mean) * 0.1  # type: ignore[arg-type]
            module.running_var = torch.rand_like(module.running_var) + 0.5  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.mul_(4)  # answers far from even ones
    return model.eval()


def info(config: Config, **changes: object) -> Info:
    """What a checkpoint of such a model says of itself."""
    made = Info(
        "test", "1", config.to_dict(), taxonomy.CLASSES, "ugriz", ("sdss",), SCALING,
        Calibration((1.0, 10.0), (1.2, 0.8), (2.0, 1.0, 0.5, 0.5)),
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def write(directory: Path, config: Config | None = None, **changes: object) -> Path:
    """A checkpoint of a lively model."""
    config = config or Config()
    checkpoint.save(directory, lively(config).state_dict(), info(config, **changes))
    return directory


def sequence(stamps: int, seed: int = 0, bands: int = 5) -> History:
    """Noise with a source that comes and goes."""
    rng = np.random.default_rng([stamps, seed])
    mjd = 59000 + np.sort(rng.uniform(0, 90, stamps))
    y, x = np.mgrid[-16:16, -16:16]
    source = np.exp(-(x**2 + y**2) / 8) * rng.uniform(0, 60, (stamps, 1, 1))
    pixels = rng.normal(0, 2, (stamps, 32, 32)) + source
    return History.of_stamps(mjd, rng.integers(0, bands, stamps).astype(np.uint8), pixels.astype(np.float16))


def shown(whole: History, kept: dict[int, bytes], span: int = 1) -> History:
    """A history as a store gives it: without the images of what is kept, `span` epochs an entry."""
    epochs = np.array([n for n in range(len(whole)) if n // span not in kept], np.int64)
    images = {kind: whole.pixels(kind, epochs) for kind in whole.images}
    return replace(whole, images=images, shown=epochs, kept=kept)
