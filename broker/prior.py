"""`skyheed prior`: class frequencies in a running stream, estimated from its classifications.

It only reports: the prior that workers assume is set by `work.prior` alone. It reads the newest classification of each
of the newest objects on the output topic, and needs no tensors.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from skyheed.broker.results.record import Classification
from skyheed.broker.settings import Settings
from skyheed.broker.subscribe import Subscriber
from skyheed.classifier.errors import ModelError
from skyheed.classifier.evaluation import shares
from skyheed.classifier.models import checkpoint, priors
from skyheed.classifier.models.checkpoint import Info
from skyheed.classifier.safe_names import printable


@dataclass(frozen=True)
class Served:
    """The model of a record: one prior and one confusion matrix."""

    model: str
    version: str
    digest: str


def report(settings: Settings, topics: Sequence[str], last: int, timeout: float | None) -> list[dict[str, Any]]:
    """Estimates for every model with classifications on these topics, newest version only.

    Args:
        last: objects of each model, the newest.
        timeout: seconds to wait for Kafka; None: forever.

    Raises:
        ServiceUnavailable, StreamError: Kafka cannot be read.
        ModelError: a checkpoint of the settings cannot be read.
    """
    known = {info.digest: info for info in _infos(settings)}
    with Subscriber(
        settings.kafka["bootstrap.servers"], topic=list(topics), options=settings.kafka, drain=True, timeout=timeout
    ) as stream:
        return [_of_model(*own, known) for own in newest(stream, last).items()]


def _infos(settings: Settings) -> list[Info]:
    return [checkpoint.card_of(m.model or settings.base_survey, settings.base_survey) for m in settings.models]


def newest(records: Iterable[Classification], last: int) -> dict[Served, list[Classification]]:
    """The newest classification of each of the `last` objects of every model, for its most recent version.

    A decline counts as the newest, so that an object's older classification is not used.
    """
    found: dict[str, OrderedDict[str, Classification]] = {}
    served: dict[str, Served] = {}
    for record in records:
        name = record.model or record.provenance.model_name
        own = Served(name, record.provenance.model_version, record.provenance.weights_digest)
        if served.get(name) != own:  # another prior or other weights: earlier records are not comparable
            served[name], found[name] = own, OrderedDict()
        found[name].pop(record.object_id, None)
        found[name][record.object_id] = record
        if len(found[name]) > last:
            found[name].popitem(last=False)
    return {served[name]: [r for r in own.values() if r.probabilities] for name, own in found.items()}


def _of_model(served: Served, records: Sequence[Classification], known: dict[str, Info]) -> dict[str, Any]:
    found: dict[str, Any] = {"model": served.model, "version": served.version, "objects": len(records)}
    info = known.get(served.digest)
    _, changed, written = served.version.partition(priors.PRIOR)
    if info is None and not changed:
        why = "the prior that its probabilities assume is unknown: give its checkpoint with --model"
        return {**found, "refused": why}
    classes = [p.name for p in records[0].probabilities] if records else []
    prior = tuple(map(float, written.split("-"))) if changed else info.calibration.prior if info else ()
    confusion = shares.confusion_of(info) if info and not changed else None
    p = np.array([[c.probability for c in r.probabilities] for r in records]).reshape(-1, len(classes))
    try:
        return {**found, **shares.estimate(p, classes, prior, confusion)}
    except ModelError as error:
        return {**found, "refused": str(error)}


def text(found: Sequence[dict[str, Any]]) -> str:
    """The report for a person."""
    if not found:
        return "no classification is on the topic yet"
    made = [shares.TITLE]
    for own in found:
        made += ["", f"{printable(own['model'])} {printable(own['version'])}"]
        made += [f"not estimated: {own['refused']}"] if "refused" in own else shares.lines(own)
    return "\n".join(made)
