"""The cost of an update that a family says of itself, against what torch counts while one is made."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from model_tools import shown
from test_models import PAPER, build, configured, family_of
from torch.utils.flop_counter import FlopCounterMode
from zoo_tools import SCALING, history

from skyheed.classifier import serving, taxonomy
from skyheed.classifier.history import History
from skyheed.classifier.models import checkpoint
from skyheed.classifier.models.base import Network
from skyheed.classifier.models.checkpoint import Calibration, Info

BANDS = 5


def nightly(epochs: int) -> History:
    """A history in which every band is observed each night, as `expected_rows` assumes."""
    return replace(history(epochs), mjd=59_000.0 + np.arange(epochs) // BANDS + 0.01 * (np.arange(epochs) % BANDS))


def places(preset: str) -> dict[str, int]:
    """All places of the published form, which other tests give few."""
    return {"stamps": 99} if preset == PAPER else {}


def served(preset: str, folder: Path) -> serving.Served:
    network: Network = build(preset, **places(preset))
    about = Info(
        "test", "1", network.config.to_dict(), taxonomy.CLASSES, "ugriz", ("sdss",), SCALING,
        family=family_of(preset).name, calibration=Calibration(),
    )  # fmt: skip
    checkpoint.save(folder, network.state_dict(), about)
    return serving.load(folder, survey="sdss", device="cpu")


def counted(model: serving.Served, seen: History, new: int) -> float:
    """Multiply-adds of an update by the last `new` epochs, with all that was kept of those before."""
    (before,) = model.predict([seen.until(epochs=len(seen) - new)])
    given = shown(seen, dict(before.keep), new) if before.keep else seen
    with FlopCounterMode(display=False) as counter:
        model.predict([given])
    return counter.get_total_flops() / 2


@pytest.mark.parametrize(
    ("preset", "epochs", "new"),
    [
        ("convention", 12, 3), ("convention", 48, 3), ("convention-2d", 12, 1), ("convention-2d", 48, 1),
        ("convention-paper", 12, 3), ("convention-paper", 48, 3), ("vector", 12, 1), ("vector", 48, 1),
        ("physnet", 12, 1), ("vit", 12, 1), ("swin", 12, 1), ("cnn-gru", 10, 5), ("cnn-gru", 30, 5),
        ("cnn-lstm", 10, 5), ("sits-bert", 10, 5), ("sits-bert", 45, 5),
    ],
)  # fmt: skip
def test_an_update_costs_what_the_family_says(preset: str, epochs: int, new: int, tmp_path: Path) -> None:
    found = counted(served(preset, tmp_path), nightly(epochs), new)
    said = family_of(preset).operations(configured(preset, **places(preset)), epochs)
    assert found == pytest.approx(said, rel=0.09)  # torch counts no attention on a CPU; sequences are padded


@pytest.mark.parametrize(("preset", "draws"), [("lstm", 1), ("supernnova", 1), ("supernnova-bayes", 50)])
def test_a_night_costs_a_recurrent_network_each_of_its_weights_once(preset: str, draws: int) -> None:
    weights = [
        value.numel() for name, value in build(preset).named_parameters()
        if value.dim() == 2 and "head" not in name and ".rho." not in name
    ]  # fmt: skip
    cost = [family_of(preset).operations(configured(preset), nights * BANDS) for nights in (3, 4)]
    assert cost[1] - cost[0] == draws * sum(weights)
    assert torch.tensor(cost).gt(0).all()
