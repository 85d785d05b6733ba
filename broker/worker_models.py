"""The models that a worker runs: loaded as configured, checked against what ingest keeps, registered in Redis."""

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from skyheed.broker import metrics, waiting
from skyheed.broker.app import connect_store, neighbours_of, survey_of
from skyheed.broker.errors import ConfigError
from skyheed.broker.kafka import client as kafka
from skyheed.broker.packets.surveys import Survey
from skyheed.broker.results import formats
from skyheed.broker.results import record as records
from skyheed.broker.settings import UNTIL_SEEN, ModelSettings, Settings
from skyheed.broker.settings_rules import LONGEST_MODEL_NAME
from skyheed.broker.state import client as state
from skyheed.broker.state import layout
from skyheed.broker.state.queue import DueQueue

if TYPE_CHECKING:
    from skyheed.broker.work import Worker
    from skyheed.classifier.models.base import Model

log = logging.getLogger("skyheed.daemon")
WARM_UP = 64  # objects, at most, in the warm-up batch at the start


@dataclass(frozen=True)
class ServedModel:
    """A model that a worker runs.

    Attributes:
        name: unique among the survey's models.
        shared: whether other models publish to the same topic.
        backlog: whether it also classifies objects that exist when it joins.
    """

    name: str
    model: "Model"
    topic: str
    shared: bool
    backlog: bool


def load_models(settings: Settings) -> list[ServedModel]:
    """The models of the settings, ready to compute.

    Raises:
        ClassifierError: one does not load or does not run here.
        ConfigError: two have the same name, or one cannot use what ingest keeps.
    """
    # read when torch is imported: by default its threads spin while they wait, on cores that ingest and servers need
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    survey = survey_of(settings)
    loaded = [_load_model(settings, survey, asked) for asked in settings.models]
    names = [
        asked.name or model_name(asked.model or settings.base_survey, model)
        for asked, model in zip(settings.models, loaded, strict=True)
    ]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"two models are called {twice[0]}: give one of them another name in [[work.models]]")
    topics = [settings.topic_of(number, name) for number, name in enumerate(names)]
    for name, topic, model in zip(names, topics, loaded, strict=True):
        info = model.info
        log.info("work model=%s topic=%s: %s %s, %s", name, topic, info.name, info.version, model.chosen)
    return [
        ServedModel(name, model, topic, topics.count(topic) > 1, asked.backlog)
        for name, model, topic, asked in zip(names, loaded, topics, settings.models, strict=True)
    ]


def _load_model(settings: Settings, survey: Survey, asked: ModelSettings) -> "Model":
    from skyheed.classifier.serving import load

    work = settings.work
    model = load(
        asked.model or settings.base_survey, survey=settings.base_survey, device=work.device, precision=work.precision,
        threads=work.threads or None, prior=asked.prior, fewest=work.min_stamps or None,
    )  # fmt: skip
    check_fit(settings, survey, model)
    model.warm_up(min(work.batch_size, WARM_UP))
    return model


def model_name(asked: str, model: "Model") -> str:
    """A model's name within the survey: from SURVEY/MODEL, or from its checkpoint."""
    return name_of(asked, str(model.info.name), model.info.surveys)


def name_of(asked: str, called: str, surveys: Sequence[str]) -> str:
    """The same for a model that is not loaded: what was requested, the name on its card, and its surveys."""
    from skyheed.classifier.models.checkpoint import shipped_name

    name = shipped_name(asked, surveys) or called
    cleaned = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in name)
    return cleaned[:LONGEST_MODEL_NAME] or "model"


def join(settings: Settings, models: Sequence[ServedModel], stop: threading.Event) -> None:
    """Register the models with the survey's queues; waits for Redis if it is unavailable."""
    from skyheed.broker.work import lane_of

    store = connect_store(settings)[0]
    backlog = [served.name for served in models if served.backlog]
    sees: dict[str, str] = {}
    if settings.redis.keep_pixels == UNTIL_SEEN:
        sees = {served.name: lane_of(served.name, served.model).sees for served in models}
        warn_of_pixels(waiting.patiently(store.sees, stop), sees)
    left = waiting.patiently(lambda: store.join(*(served.name for served in models), backlog=backlog, sees=sees), stop)
    for name, objects in left.items():
        if objects:
            log.info(
                "model %s: %d objects that were stored before it joined become due for it when they change",
                name,
                objects,
            )


def warn_of_pixels(before: Mapping[str, str], own: Mapping[str, str]) -> None:
    """Say what follows from pixels that are not kept any more, or that stay.

    Args:
        before: of all known models `Lane.sees` as they last joined.
        own: of those that join now.
    """
    for name, needs in own.items():
        if before.get(name, needs) not in ("", needs):
            log.warning(
                "model %s does not cache what the earlier model of this name did: objects whose images are not "
                "kept any more (redis.keep_pixels) are declined as images_not_kept until newer stamps fill its history",
                name,
            )
    for name in sorted(name for name, needs in (dict(before) | dict(own)).items() if not needs):
        log.warning("images stay until model %s joins with redis.keep_pixels = until-seen, or is retired", name)


def make_worker(
    settings: Settings, served: ServedModel, publisher: kafka.Publisher, measured: metrics.WorkMetrics
) -> "Worker":
    """The worker of one model."""
    from skyheed.broker.batching import BatchLimits
    from skyheed.broker.state.joined import Joined
    from skyheed.broker.work import Output, Pace, Worker

    agreement = layout.of_worker(settings.redis, served.model.info.bands, served.model.needs.images)
    store, queue, _ = connect_store(settings, served.name, agreement)
    measured.begin(served.name)
    output = Output(
        served.name, served.topic, output_form(settings, served.topic), provenance_of(served.model), served.shared
    )
    work = settings.work
    pace = Pace(work.batch_size, work.interval_s, work.lease_s, BatchLimits(work.batch_bytes, work.batch_s))
    joined = None
    if settings.ingest.join_arcsec:
        found = neighbours_of(state.connect_as(settings.redis), settings)
        joined = Joined(store, found, settings.ingest.join_arcsec)
    return Worker(settings.survey, queue, store, served.model, publisher, output, measured, pace, joined)


def depth_of(client: state.Client, settings: Settings, name: str, measured: metrics.WorkMetrics) -> Callable[[], None]:
    """Reports the depth of a model's queue to the metrics."""
    queue = DueQueue(client, settings.survey, shards=settings.redis.shards, model=name)
    return lambda: measured.queue(name, queue.depth())


def check_fit(settings: Settings, survey: Survey, model: "Model") -> None:
    """Refuse a model that cannot use what ingest keeps.

    Raises:
        ConfigError: it does not know a band, or needs images that are not kept.
    """
    from skyheed.broker.work import lane_of

    info = model.info
    if settings.redis.keep_pixels == UNTIL_SEEN and not lane_of("", model).can_do_without_pixels:
        raise ConfigError(
            f"the model {info.name} has to see the images of earlier epochs again, and redis.keep_pixels = "
            '"until-seen" drops them: set redis.keep_pixels = "always", or run a model of the family fusion or vector'
        )
    if unknown := set(survey.bands) - set(info.bands):
        raise ConfigError(
            f"the model {info.name} does not know band {', '.join(sorted(unknown))}: "
            f'set ingest.bands = "{"".join(b for b in survey.bands if b in info.bands)}"'
        )


def output_form(settings: Settings, topic: str) -> formats.Form:
    """The configured output format; Avro is in Confluent wire format if a registry is set."""
    registry = settings.registry
    if settings.work.format == "avro" and registry.output_url:
        client_of = registry.user, registry.password, registry.ca_file
        schema_id = formats.register(registry.output_url, f"{topic}-value", *client_of)
        return formats.Form(lambda record, datum: formats.encode_wire(record, schema_id, datum), False)
    return formats.FORMATS[settings.work.format]


def provenance_of(model: "Model") -> records.Provenance:
    """The provenance of a classification."""
    info = model.info
    return records.Provenance(
        skyheed_version=version("skyheed"),
        model_name=info.name,
        model_version=info.version,
        weights_digest=info.digest,
        preprocessing=info.preprocessing,
        taxonomy=info.taxonomy,
        device=model.chosen,
    )
