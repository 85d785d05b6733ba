"""`skyheed prior`: class shares of a stream from our own classifications."""

import json
import uuid
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from click.testing import CliRunner

from skyheed.broker import cli, prior
from skyheed.broker.kafka.client import Publisher, ensure_topics
from skyheed.broker.local import embedded
from skyheed.broker.results import formats
from skyheed.broker.results.record import Classification, ClassProbability, Provenance, Status

CLASSES = ("AGN", "SNIa", "Variable", "SNOther")
SHARES = np.array([0.2, 0.05, 0.7, 0.05])


def record(name: str, p: Any, version: str = "1", digest: str = "d", revision: int = 1) -> Classification:
    """One of our records of an object."""
    probabilities = (
        tuple(ClassProbability(c, 1, float(x)) for c, x in zip(CLASSES, p, strict=True)) if p is not None else ()
    )
    made_by, top = Provenance("0", "net", version, digest, "1", "t", "cpu"), max(probabilities, key=_size, default=None)
    status, own = Status.CLASSIFIED if top else Status.NOT_CLASSIFIED, f"{crc32(name.encode()):032x}"
    return Classification(
        own, "ztf", name, revision, status, None, probabilities, top and top.name, top and top.probability,
        0.0, 0.0, 1, {}, 0.0, 0.0, 0.0, 0, (), 0, made_by, 0, 0, 0, 0, "net",
    )  # fmt: skip


def _size(one: ClassProbability) -> float:
    return one.probability


def stream(n: int = 3000, assumed: Any = (1, 1, 1, 1), **more: Any) -> list[Classification]:
    """Calibrated records of objects whose classes have the shares above, under an assumed prior."""
    rng = np.random.default_rng(1)
    centres = np.array([[0, 0], [2.5, 0], [0, 2.5], [2.5, 2.5]])
    x = centres[rng.choice(4, n, p=SHARES)] + rng.normal(0, 1, (n, 2))
    density = np.exp(-((x[:, None] - centres) ** 2).sum(2) / 2) * np.array(assumed, float)
    return [record(f"o{i}", p, **more) for i, p in enumerate(density / density.sum(1, keepdims=True))]


def known(**values: Any) -> dict[str, Any]:
    facts = {
        "calibration": SimpleNamespace(prior=()),
        "metrics": {},
        "training": {},
        "version": "1",
        "digest": "d",
    } | values
    return {"d": SimpleNamespace(**facts)}


def reported(records: list[Classification], info: dict[str, Any], last: int = 5000) -> list[dict[str, Any]]:
    return [prior._of_model(*own, info) for own in prior.newest(records, last).items()]


def test_shares_of_the_stream_are_found_whatever_prior_was_assumed() -> None:
    (plain,) = reported(stream(), known())
    np.testing.assert_allclose(plain["em"]["shares"], SHARES, atol=0.03)
    low, share, high = (np.array(plain["em"][key]) for key in ("low", "shares", "high"))
    assert ((low <= share) & (share <= high)).all()
    (other,) = reported(stream(assumed=(9, 1, 1, 3), version="1+prior.9-1-1-3"), {})
    np.testing.assert_allclose(other["em"]["shares"], SHARES, atol=0.03)
    assert other["assumed"] == pytest.approx([9 / 14, 1 / 14, 1 / 14, 3 / 14], abs=1e-3)
    assert "bbse" not in other  # the confusion was counted with another prior
    assert "--prior 0.2" in prior.text([plain])
    assert "Nothing was changed" in prior.text([plain])


def test_the_confusion_of_the_checkpoint_gives_a_second_estimate() -> None:
    confusion = [[80, 9, 9, 2], [9, 80, 2, 9], [9, 2, 80, 9], [2, 9, 9, 80]]
    (found,) = reported(stream(), known(metrics={"confusion": confusion}))
    np.testing.assert_allclose(found["bbse"]["shares"], SHARES, atol=0.06)
    (fitted,) = reported(stream(), known(metrics={"confusion": confusion}, training={"few_shot": {}}))
    assert "bbse" not in fitted  # it was counted before heads were fitted to real objects
    muddled = [[25, 25, 25, 25]] * 4
    (refused,) = reported(stream(200), known(metrics={"confusion": muddled}))
    assert "does not tell all classes apart" in refused["bbse_refused"]


def test_an_object_counts_once_by_its_newest_word_and_one_version_alone() -> None:
    sure, other = (0.97, 0.01, 0.01, 0.01), (0.01, 0.97, 0.01, 0.01)
    records = [record("a", other, "0"), record("a", sure), record("b", sure), record("a", other), record("b", None)]
    ((served, own),) = prior.newest(records, 10).items()
    assert served.version == "1"
    assert [(r.object_id, r.probabilities[1].probability) for r in own] == [("a", 0.97)]
    ((_, few),) = prior.newest([record(f"o{i}", sure) for i in range(9)], 4).items()
    assert [r.object_id for r in few] == ["o5", "o6", "o7", "o8"]


def test_what_cannot_be_told_is_said() -> None:
    (few,) = reported(stream(5), known())
    assert "too few" in few["refused"]
    (strange,) = reported([replace(r, model="other") for r in stream(50)], {})
    assert "give its checkpoint" in strange["refused"]
    assert "not estimated" in prior.text([strange])
    assert prior.text([]) == "no classification is on the topic yet"


@pytest.mark.kafka
def test_the_verb_reads_our_topic(kafka: embedded.Server) -> None:
    options, topic = {"bootstrap.servers": kafka.address}, f"classifications-{uuid.uuid4().hex[:8]}"
    ensure_topics(options, {topic: {}}, 3, 1)
    sent = stream(400, (9, 1, 1, 3), version="1+prior.9-1-1-3")
    with Publisher(options) as publisher:
        publisher.publish_all([(topic, r.object_id.encode(), formats.encode(r), None) for r in sent])
    arguments = ["prior", "--survey", "ztf", "--kafka", kafka.address, "--topic", topic]
    done = CliRunner().invoke(cli.skyheed, [*arguments, "--json"], catch_exceptions=False)
    (found,) = json.loads(done.stdout)
    assert found["objects"] == 400
    np.testing.assert_allclose(found["em"]["shares"], SHARES, atol=0.08)
    assert "not applied" in CliRunner().invoke(cli.skyheed, arguments, catch_exceptions=False).stdout
