"""The worker daemon: claim -> fetch -> classify -> publish -> acknowledge, for each of its models.

Every model has its own queue, books, topic and thread, so that a slow one does not delay the others.

A claimed object leaves the queue only after the output broker acknowledged its record, and only if the lease is still
valid and the object's revision has not changed; otherwise it is classified again. Nothing is ever popped.

Claimed objects are fetched, classified and settled in small batches (`batching`), so that memory, the time to stop and
the part of the lease used are bounded for any batch size and model; one is published while the next is classified.
Objects not started when a signal comes, or when half of the lease is over, return to the queue.
"""

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from skyheed.broker.batching import Batching, BatchLimits
from skyheed.broker.errors import ServiceUnavailable
from skyheed.broker.kafka.client import Publisher
from skyheed.broker.logs import event
from skyheed.broker.memory import Trim
from skyheed.broker.metrics import WorkMetrics
from skyheed.broker.results.formats import Form, datum_of, encode_single
from skyheed.broker.results.record import Classification, Provenance
from skyheed.broker.state.histories import SequenceStore
from skyheed.broker.state.joined import Joined
from skyheed.broker.state.queue import Claim, DueQueue
from skyheed.broker.state.sequence import SOURCE_BYTES, Answer, Lane, Settled, StoredSequence
from skyheed.broker.waiting import GRACE_S, Meanwhile, Started, Stopped, Unfinished, patiently
from skyheed.classifier.history import History
from skyheed.classifier.prediction import Declined, Prediction, Status

if TYPE_CHECKING:  # so that readers of histories need no torch
    from skyheed.classifier.models.base import Model

log = logging.getLogger("skyheed.worker")
POLL_S = 0.02  # how often the queue is checked while a batch fills; less and less often while nothing is ready


@dataclass(frozen=True)
class Pace:
    """When the worker wakes and how much it claims."""

    batch_size: int
    interval_s: float
    lease_s: float
    limits: BatchLimits = field(default_factory=BatchLimits)


@dataclass(frozen=True)
class Output:
    """Where a model's classifications go, and in which format.

    Attributes:
        model: its name within the survey.
        shared: whether other models publish to the same topic; a compacted copy then keeps one record of each.
    """

    model: str
    topic: str
    form: Form
    provenance: Provenance
    shared: bool = False

    def key(self, object_id: str) -> bytes:
        """The Kafka key of an object's records."""
        return f"{object_id} {self.model}".encode() if self.shared else object_id.encode()


@dataclass(frozen=True)
class _Publishing:
    """A portion's answers on their way to Kafka and Redis."""

    answers: Sequence[tuple[Classification, Answer]]
    clock: tuple[float, float, float]  # when fetching began, when classifying began and ended (monotonic)
    settled: Started[tuple[list[Settled], float]]  # what became of it, and when


class Worker:
    """Classifies the objects that are due for one model; any number of workers may share one queue."""

    def __init__(
        self,
        survey: str,
        queue: DueQueue,
        store: SequenceStore,
        model: "Model",
        publisher: Publisher,
        output: Output,
        metrics: WorkMetrics,
        pace: Pace,
        joined: Joined | None = None,
    ) -> None:
        self.survey = survey
        self.queue = queue
        self.store = store
        self.model = model
        self.publisher = publisher
        self.output = output
        self.lane = lane_of(output.model, model)
        self.metrics = metrics
        self.pace = pace
        self.joined = joined
        self.batching = Batching(pace.limits, pace.lease_s, model.needs, self.lane)
        self.totals: Counter[str] = Counter()
        self._pause = POLL_S
        self._publishing: _Publishing | None = None

    def run(self, stop: threading.Event, drain: bool = False) -> Counter[str]:
        """Classify until `stop` is set or, with `drain`, until nothing is pending.

        Raises:
            ServiceError: Kafka or Redis refuses us for good.
            Unfinished: `stop` came before the end of the drain.
        """
        done, trim = False, Trim()
        try:
            while not done and not stop.is_set():
                if self._batch(stop):
                    trim()
                    continue
                done = drain and patiently(self._pending, stop) == 0
                if not done:
                    patiently(lambda: self._wait(stop), stop)
            self._end(stop)
        except Stopped as stopped:
            log.warning("stopped while waiting; claimed objects return when their lease ends: %s", stopped)
        finally:
            if self._publishing:  # after an error: let it finish
                self._publishing.settled.wait(GRACE_S)
        event(log, f"worker of {self.output.model} ends:", **dict(sorted(self.totals.items())))
        if drain and not done:
            raise Unfinished
        return self.totals

    def _pending(self) -> int:
        return sum(self.queue.depth().values())

    def _wait(self, stop: threading.Event) -> None:
        """Sleep until a batch is full or the interval is over."""
        deadline = time.monotonic() + self.pace.interval_s
        while not stop.wait(max(0.0, min(self._pause, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                self._pause = min(2 * self._pause, self.pace.interval_s)
                return
            ready = self.queue.ready()
            if ready >= self.pace.batch_size:
                return
            self._pause = POLL_S if ready else min(2 * self._pause, self.pace.interval_s)

    def _batch(self, stop: threading.Event) -> int:
        """Claim a batch and classify as much of it as time allows; returns how many were claimed.

        The last answers of a full batch may still be on their way to Kafka afterwards: the next batch is ready.
        """
        claimed = time.monotonic()
        claims = patiently(lambda: self.queue.claim(self.pace.batch_size, self.pace.lease_s), stop)
        if not claims:
            self._end(stop)
            return 0
        self._pause = POLL_S
        left = {claim.object_id: claim for claim in claims}
        try:
            for sequences, fetch_s in self.portions(claims, stop):
                self._portion(sequences, fetch_s, stop)
                for sequence in sequences:
                    del left[sequence.object_id]
                if stop.is_set() or self.batching.late(claimed):
                    break
            if len(claims) < self.pace.batch_size:
                self._end(stop)
        except Stopped as stopped:
            if getattr(stopped.__cause__, "server", "") != "redis":
                self._give_back(left.values())
            raise
        self._give_back(left.values())
        return len(claims)

    def _portion(self, sequences: Sequence[StoredSequence], fetch_s: float, stop: threading.Event) -> None:
        """Classify while the previous answers are being published, then start to publish."""
        began = time.monotonic()
        answers = self.answer(sequences)
        classified = time.monotonic()
        self.batching.took(sequences, classified - began)
        self._end(stop)
        waiting = Meanwhile(stop, grace_s=GRACE_S)
        clock = (began - fetch_s, began, classified)
        self._publishing = _Publishing(
            answers, clock, Started(lambda: (self._publish(answers, waiting), time.monotonic()))
        )

    def _end(self, stop: threading.Event) -> None:
        """Wait for what is being published, if anything."""
        if self._publishing is None:
            return
        own, self._publishing = self._publishing, None
        waiting = Meanwhile(stop, grace_s=GRACE_S)
        try:
            settled, at = patiently(lambda: own.settled.result(waiting), stop)
        except Stopped as stopped:
            if getattr(stopped.__cause__, "server", "") != "redis":
                self._give_back([answer.claim for _, answer in own.answers])
            raise
        self._report(own.answers, settled, (*own.clock, at), patiently(self.queue.depth, stop))

    def _give_back(self, claims: Iterable[Claim]) -> None:
        """Silent if Redis is unavailable: they return when their leases end."""
        if held := list(claims):
            with contextlib.suppress(ServiceUnavailable):
                log.info("%d claimed objects went back to the queue", self.queue.release(held))

    def portions(
        self, claims: Sequence[Claim], stop: threading.Event
    ) -> Iterator[tuple[Sequence[StoredSequence], float]]:
        """The sequences of claimed objects in portions to classify at once, each with the seconds that fetching took.

        Raises:
            Stopped: `stop` came while Redis was unavailable.
            ServiceError: Redis refuses us.
        """
        for piece in self.batching.fetched(claims, self.joined is not None):
            began = time.monotonic()
            sequences = patiently(lambda piece=piece: self.fetch(piece), stop)  # type: ignore[misc]
            fetch_s = time.monotonic() - began
            while sequences:
                count = self.batching.first(sequences)
                portion, sequences = sequences[:count], sequences[count:]
                yield portion, fetch_s
                fetch_s = 0.0

    def fetch(self, claims: Sequence[Claim]) -> list[StoredSequence]:
        """The sequences of claimed objects, cut to the newest stamps where the model takes fewer.

        A sequence outlives a change of model or of redis.max_stamps; only its next stamp cuts it in the store.

        Raises:
            ServiceUnavailable, ServiceError: Redis is unavailable, or refuses us.
        """
        found = self.store.fetch(claims, self.lane)
        longest = self.model.needs.most
        if self.joined:
            read = self.joined.read(found, self.lane)
            found = [sequence for sequence in read if not sequence.members]
            return [*self._cut(found, longest), *(_newest(sequence, longest) for sequence in read if sequence.members)]
        return self._cut(found, longest)

    def _cut(self, found: list[StoredSequence], longest: int) -> list[StoredSequence]:
        long = [sequence.claim for sequence in found if len(sequence.header) > longest]
        if self.lane.span <= 1 or not long:
            return [_newest(sequence, longest) for sequence in found]
        # tokens of groups that are counted from the start, which is cut off: use all stamps and no tokens
        whole = self.store.fetch(long, replace(self.lane, span=0))
        return [s for s in found if len(s.header) <= longest] + [_newest(s, longest) for s in whole]

    def answer(self, sequences: Sequence[StoredSequence]) -> list[tuple[Classification, Answer]]:
        """Classify or decline every sequence."""
        made = iter(self.model.predict([history_of(s, self.survey) for s in sequences if not s.gone]))
        predictions = [Prediction.declined(Declined.IMAGES_NOT_KEPT) if s.gone else next(made) for s in sequences]
        now_ms = time.time_ns() // 1_000_000
        return [self._answer(s, p, now_ms) for s, p in zip(sequences, predictions, strict=True)]

    def _answer(self, sequence: StoredSequence, prediction: Prediction, now_ms: int) -> tuple[Classification, Answer]:
        probabilities = None if prediction.reason else _named(self.model, prediction)
        record = Classification.of(
            survey=self.survey,
            object_id=sequence.name,
            revision=sequence.published_revision,
            header=sequence.header,
            probabilities=probabilities,
            reason=prediction.reason,
            provenance=self.output.provenance,
            model=self.output.model,
            estimates={name: (e.value, e.error) for name, e in prediction.estimates.items()},
            classified_ms=now_ms,
        )
        answer = Answer(
            claim=sequence.claim,
            revision=sequence.revision,
            classified=record.status is Status.CLASSIFIED,
            latest=encode_single(record),
            history=record.to_history(),
            tokens={n: t for n, t in prediction.keep.items() if sequence.keeps is None or n in sequence.keeps},
            spoken=(record.object_id, record.revision) if sequence.members else ("", 0),
        )
        return record, answer

    def _publish(self, answers: Sequence[tuple[Classification, Answer]], waiting: Meanwhile) -> list[Settled]:
        """Publish the results still pending, wait for the broker's acknowledgement, then settle. Safe to repeat."""
        held = self.queue.still_held([answer.claim for _, answer in answers])
        kept = [pair for pair, ours in zip(answers, held, strict=True) if ours]
        # the members of a group that were claimed together bring the same record
        records = {(r.classification_id, r.revision): (r, a) for r, a in kept}
        self.publisher.publish_all(
            [
                (
                    self.output.topic,
                    self.output.key(r.object_id),
                    self.output.form.encode(r, datum_of(a.latest)),
                    r.headers(self.output.form.container),
                )
                for r, a in records.values()
            ],
            waiting,
        )
        return self.store.settle([answer for _, answer in kept], self.lane)

    def _report(
        self,
        answers: Sequence[tuple[Classification, Answer]],
        settled: Sequence[Settled],
        clock: tuple[float, float, float, float],
        depth: dict[str, int],
    ) -> None:
        records = [record for record, _ in answers]
        counts = Counter(outcome.name.lower() for outcome in settled)
        counts["classified"] = sum(answer.classified for _, answer in answers)
        counts["declined"] = len(answers) - counts["classified"]
        counts["lost_lease"] = len(answers) - len(settled)
        self.totals.update(counts)
        fetch, classify, publish = np.diff(clock)
        self.metrics.batch(self.output.model, records, counts, fetch, classify, publish, depth)
        event(
            log, "batch", model=self.output.model, objects=len(answers), classified=counts["classified"],
            declined=counts["declined"], requeued=counts["requeued"], stale=counts["stale"] + counts["lost_lease"],
            fetch=float(fetch), classify=float(classify), publish=float(publish),
        )  # fmt: skip


def lane_of(name: str, model: "Model") -> Lane:
    """A model's place in the state.

    Args:
        name: within the survey.
    """
    needs = model.needs
    return Lane(name, model.kept_as, needs.span, needs.images, needs.photometry, needs.context, needs.most)


def history_of(stored: StoredSequence, survey: str) -> History:
    """A sequence in the form that models take; epochs whose images are gone are neither shown nor kept."""
    header = stored.header
    images = {"science": stored.stamps, **stored.images} if stored.looked else {}
    return History(
        header["mjd"], header["band"], images, stored.shown, stored.tokens, joined=bool(stored.members),
        photometry=stored.photometry, context=stored.context,
        flux=header["flux"], flux_error=header["flux_error"], object_id=stored.name, survey=survey,
        source_id=header["source_id"], ra=header["ra"], dec=header["dec"], flags=header["flags"],
    )  # fmt: skip


def _newest(sequence: StoredSequence, longest: int) -> StoredSequence:
    """The last epochs of a sequence that was fetched without tokens, or with tokens of single epochs."""
    first = len(sequence.header) - longest
    if first <= 0:
        return sequence
    rows = slice(int((sequence.shown < first).sum()), None)
    keeps = sequence.keeps
    return replace(
        sequence,
        claim=replace(sequence.claim, sources=sequence.claim.sources[first * SOURCE_BYTES :]),
        header=sequence.header[first:],
        stamps=sequence.stamps[rows] if sequence.looked else sequence.stamps,
        images={kind: stamps[rows] for kind, stamps in sequence.images.items()},
        tokens={n - first: token for n, token in sequence.tokens.items() if n >= first},
        gone=frozenset(n - first for n in sequence.gone if n >= first),
        keeps=keeps if keeps is None else frozenset(n - first for n in keeps if n >= first),
    )


def _named(model: "Model", prediction: Prediction) -> list[tuple[str, int, float]]:
    ids = model.info.class_ids
    return [(name, ids[name], float(p)) for name, p in zip(model.classes, prediction.probabilities, strict=True)]
