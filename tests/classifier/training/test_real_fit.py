"""The default weights for ZTF on real packets, and how they were fitted to them; skipped where there are none."""

import csv
from pathlib import Path

import numpy as np
import pytest
from real_data import real_data

from skyheed import History, load_model, read_packet
from skyheed.broker.archive_packets import build
from skyheed.classifier.errors import ModelError
from skyheed.classifier.models import checkpoint
from skyheed.classifier.training import real_fit

COARSE = {"AGN": "AGN", "SNIa": "SN", "SNother": "SN", "Variable/stellar": "Variable"}


def labels() -> dict[str, str]:
    with (real_data("ztf") / "index.csv").open() as file:
        return {row["objectId"]: COARSE[row["coarse"]] for row in csv.DictReader(file) if row["coarse"] in COARSE}


def test_classes_as_groups_and_their_prior() -> None:
    groups, of_class = real_fit.groups_of(("AGN", "SNIa", "Variable", "SNOther"))
    assert (groups, of_class) == (("AGN", "SN", "Variable"), [0, 1, 2, 1])
    prior = np.array(real_fit.prior_of(("AGN", "SNIa", "Variable", "SNOther"), groups)) / 4
    np.testing.assert_allclose(prior, [1 / 3, 0.72 / 3, 1 / 3, 0.28 / 3], atol=1e-6)
    assert real_fit.prior_of(("AGN", "SN"), ("AGN", "SN")) == (1, 1)


def test_a_paired_difference_is_of_the_same_objects() -> None:
    truth = np.repeat([0, 1], 50)
    sure, unsure = np.log([[0.9, 0.1]] * 50 + [[0.1, 0.9]] * 50), np.log([[0.9, 0.1]] * 100)
    found = real_fit.paired(sure, unsure, truth)
    assert found == {"difference": 0.5, "difference_95": [0.5, 0.5]}
    rows = real_fit.drawn(truth)[3]
    assert (truth[rows] == truth).all()


def test_real_first_alerts_by_the_default_weights() -> None:
    """In sample: these objects are what the heads were fitted to. It guards the way from bytes to probabilities."""
    known = labels()
    packets = [path.read_bytes() for path in sorted(real_data("ztf").glob("*/*.avro"))]
    seen = [o for packet in packets for o in read_packet(packet, survey="ztf", errors=[])]
    histories = {name: h for name, h in History.by_object(seen).items() if name in known}
    assert len(histories) > 50
    model = load_model("ztf")
    found = model.predict([h.until(epochs=1) for h in histories.values()])
    assert not [p.reason for p in found if p.reason]
    p = np.stack([one.probabilities for one in found])
    answer = np.array(["AGN", "SN", "Variable"])[np.stack([p[:, 0], p[:, 1] + p[:, 3], p[:, 2]], 1).argmax(1)]
    truth = np.array([known[name] for name in histories])
    assert min(float((answer[truth == group] == group).mean()) for group in set(truth)) > 0.9


def test_the_default_weights_say_what_they_learned_from() -> None:
    found = checkpoint.read_info("ztf")
    assert found.family == "fusion"
    assert any("60 labelled real ZTF objects" in line for line in found.training["learned_from"])
    held_out = found.metrics["real"]["first_alert"]["images + light curve + surroundings"]
    low, high = held_out["balanced_accuracy_95"]
    assert low < held_out["balanced_accuracy"] < high


def test_only_a_fusion_can_be_fitted(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="give a checkpoint of the family fusion"):
        real_fit.run("sdss/convention", tmp_path, tmp_path / "out")


@pytest.mark.long
def test_fitted_again_from_packets_it_says_nearly_the_same(tmp_path: Path) -> None:
    folder = real_data("ztf")
    build(tmp_path / "real", "ztf", [folder], labels=folder / "index.csv")
    made = real_fit.run("ztf", tmp_path / "real", tmp_path / "out")
    scores = made.metrics["real"]["first_alert"]["images + light curve + surroundings"]
    assert scores["balanced_accuracy"] > 0.85
    assert scores["ece"] < 0.1
