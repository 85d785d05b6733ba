"""A what-if that leaves kinds of input out, against the history of packets that never had them, through Redis."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from state_tools import deliveries, observation
from stream_tools import settings_for

from skyheed.broker import app as daemon
from skyheed.broker.local import embedded
from skyheed.broker.observation import Observation
from skyheed.broker.web.explain import Explained, what_if
from skyheed.broker.web.problems import Problem
from skyheed.broker.work import history_of
from skyheed.classifier.history import DETECTION, History, Photometry

pytestmark = pytest.mark.redis
EPOCHS = 5


@pytest.fixture(scope="module")
def model() -> Any:
    pytest.importorskip("torch")
    from skyheed.classifier.serving import load

    return load(Path("ztf/fusion"), survey="ztf", device="cpu", precision="float32", threads=1)


def seen(epoch: int, name: str) -> Observation:
    """One epoch of a brightening source off a galaxy's centre, with everything that a ZTF packet brings."""
    y, x = np.mgrid[:32, :32] - 16
    galaxy = 40 * np.exp(-((x + 3) ** 2 + y**2) / 30)
    source = 8 * (epoch + 1) * np.exp(-(x**2 + y**2) / 4)
    noise = np.random.default_rng(epoch).normal(0, 1, (3, 32, 32))
    mjd = 60000.0 + 2 * epoch
    times = mjd - np.arange(3.0)[::-1] / 4
    flux = np.full(3, 2e4 * (epoch + 1), np.float32)
    points = Photometry(times, np.full(3, 1, np.uint8), flux, flux / 50, np.full(3, DETECTION, np.uint8))
    images = {"difference": source + noise[1], "template": galaxy + noise[2]}
    return observation(
        name, source_id=epoch + 1, mjd=mjd, band="gr"[epoch % 2], flux=float(flux[0]), flux_error=400.0,
        stamp=(galaxy + source + noise[0]).astype(np.float16),
        images={kind: pixels.astype(np.float16) for kind, pixels in images.items()},
        photometry=points, context={"reference_distance": 1.5, "reference_magnitude": 18.0},
    )  # fmt: skip


def without(one: Observation, kinds: list[str]) -> Observation:
    """The epoch as a packet brings it that lacks these."""
    images = {kind: pixels for kind, pixels in one.images.items() if kind not in kinds}
    return replace(
        one, images=images, photometry=None if "photometry" in kinds else one.photometry,
        context={} if "context" in kinds else one.context,
    )  # fmt: skip


def stored(valkey: embedded.Server, name: str, without_kinds: list[str]) -> History:
    """What a worker reads of it."""
    store = daemon.connect_store(settings_for("127.0.0.1:9", valkey.url, "ztf", "none"))[0]
    store.store(deliveries([without(seen(n, name), without_kinds) for n in range(EPOCHS)], f"alerts/{name}"))
    found = store.sequence(name)
    assert found is not None
    return history_of(found, "ztf")


@pytest.mark.parametrize(
    "kinds",
    [["difference"], ["template"], ["photometry"], ["context"], ["difference", "template", "photometry", "context"]],
    ids=" ".join,
)
def test_it_is_what_the_worker_says_of_packets_that_lack_them(
    valkey: embedded.Server, model: Any, kinds: list[str]
) -> None:
    whole = stored(valkey, f"whole-{kinds}", [])
    own = Explained(model)
    found = what_if(own, whole, {"sources": [], "nights": [], "bands": [], "kinds": kinds})
    [expected] = model.predict([stored(valkey, f"reduced-{kinds}", kinds)])
    got = [found["reduced"]["probabilities"][name] for name in model.classes]
    assert got == pytest.approx(expected.probabilities.tolist(), abs=2e-5)
    [everything] = model.predict([whole])
    assert got != pytest.approx(everything.probabilities.tolist(), abs=1e-4), "it must matter to the model"


def test_every_epoch_has_its_science_stamp(valkey: embedded.Server, model: Any) -> None:
    given = {"sources": [], "nights": [], "bands": [], "kinds": ["science"]}
    with pytest.raises(Problem, match="every epoch needs its science stamp"):
        what_if(Explained(model), stored(valkey, "whole", []), given)
