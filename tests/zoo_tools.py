"""Histories and small checks that the tests of all model families share."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skyheed.classifier.flux_scaling import Scaling
from skyheed.classifier.history import History, Photometry
from skyheed.classifier.models.base import Batch, Network

SCALING = Scaling((2.0, 1.0, 1.5, 2.5, 7.0, 9.0), 0.9, (200.0, 100.0, 150.0, 250.0, 700.0, 900.0))
FIVE = "ugriz"


def history(
    n: int, seed: int = 0, fluxes: NDArray[np.float64] | None = None, bands: Sequence[int] = range(5), step: float = 5.0
) -> History:
    """Epochs some days apart, whose stamps show a source of the fluxes (in 100 nJy) in noise."""
    rng = np.random.default_rng([n, seed])
    mjd = 59_000 + np.cumsum(rng.uniform(0.6, 1.4, n) * step)
    flux = rng.uniform(0, 60, n) if fluxes is None else fluxes
    y, x = np.mgrid[-16:16, -16:16]
    source = np.exp(-(x**2 + y**2) / 8)
    stamps = (rng.normal(0, 2, (n, 32, 32)) + source * flux[:, None, None]).astype(np.float16)
    return History(
        mjd, np.resize(np.array(list(bands), np.uint8), n), {"science": stamps}, flux=(100 * flux).astype(np.float32),
        flux_error=rng.uniform(80, 120, n).astype(np.float32), source_id=rng.integers(1, 2**60, n).astype(np.uint64),
        object_id=f"object-{n}-{seed}",
    )  # fmt: skip


def photometry(seen: History, count: int, seed: int = 0) -> Photometry:
    """Points before and among the epochs of a history."""
    rng = np.random.default_rng([count, seed])
    mjd = np.sort(rng.uniform(seen.mjd[0] - 30, seen.mjd[-1], count))
    flux, error = rng.normal(500, 300, count).astype(np.float32), np.full(count, 100, np.float32)
    return Photometry(
        mjd, rng.integers(0, 5, count).astype(np.uint8), flux, error, np.arange(count, dtype=np.uint8) % 3
    )


def batch(network: Network, histories: Sequence[History]) -> Batch:
    """What the network takes."""
    return {name: torch.from_numpy(a) for name, a in network.collate(histories, SCALING).items()}


def logits(network: Network, histories: Sequence[History]) -> Tensor:
    """Of histories, in evaluation mode."""
    with torch.inference_mode():
        return network.eval()(batch(network, histories))


def lively(network: Network, seed: int = 1) -> Network:
    """With batch statistics and zeros that are not the initial ones, in evaluation mode."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


def nines(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch with other things in its padding; bands become 1."""
    valid = given["valid"]
    made = {}
    for name, value in given.items():
        made[name] = value.clone()
        if name != "valid" and value.shape[:2] == valid.shape:
            made[name][~valid] = 9 if value.is_floating_point() else 1
    return made


def learn(
    network: Network, given: Batch, labels: Tensor, steps: int, rate: float = 3e-3, until: float = 1.0
) -> Iterator[float]:
    """Train on one batch; the accuracy on it after each step, in evaluation mode, until it is reached."""
    optimiser = torch.optim.Adam(network.parameters(), rate)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
        network.train()
        loss = torch.nn.functional.cross_entropy(network(given), labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        with torch.inference_mode():
            accuracy = float((network.eval()(given).argmax(1) == labels).float().mean())
        yield accuracy
        if accuracy >= until:
            return


def count_by_name(network: nn.Module) -> dict[str, int]:
    """Parameters of each top-level part."""
    found: dict[str, Any] = {}
    for name, value in network.named_parameters():
        found[name.split(".")[0]] = found.get(name.split(".")[0], 0) + value.numel()
    return found
