"""Sends set-aside packets through again after a fix: the dead-letter topic is read as one more input.

Nothing is written back to the survey's topic (which we often may not write to), and nothing leaves the dead-letter
topic: a packet that was stored, skipped or recognised as a duplicate is marked under its place in the dead-letter
topic and passed over the next time; one that still cannot be used stays where it is.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from skyheed.broker.errors import PacketError, SkipPacket, SkyheedError
from skyheed.broker.ingest import Batch, Budget, Intake, fault_of
from skyheed.broker.kafka.deadletter import DeadLetter
from skyheed.broker.packets.container import with_key
from skyheed.broker.state.sequence import Delivery
from skyheed.broker.waiting import Stopped

log = logging.getLogger("skyheed.redrive")
BATCH = 200
BATCH_BYTES = 64 * 2**20  # of dead letters in memory, plus at most one more


def redrive(
    intake: Intake, letters: Iterable[DeadLetter], budget: Budget | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> Counter[str]:  # fmt: skip
    """Try every letter again; returns counts by outcome, including `still_rejected` and `done_before`. Safe to repeat.

    Args:
        budget: what is decoded before it is stored, as in `Intake.sort`.
        meanwhile: called before every letter and every record of one. Where it raises `Stopped`, what was decoded
            before
            is stored, and the counts are of that.

    Raises:
        ServiceUnavailable: Redis is unavailable; start again later.
        ServiceError: Redis or the schema registry refuses us.
    """
    counts: Counter[str] = Counter()
    for group in _groups(letters):
        settled = intake.ledger.settled([(letter.place, letter.offset) for letter in group])
        waiting = [letter for letter, done in zip(group, settled, strict=True) if not done]
        counts["done_before"] += len(group) - len(waiting)
        while waiting:
            found = _sort(intake, waiting, budget or Budget(), meanwhile)
            counts += found.counts + _settle(intake, found)
            if found.stopped:
                return +counts
            waiting = waiting[found.taken :]
    return +counts


def _groups(letters: Iterable[DeadLetter]) -> Iterator[list[DeadLetter]]:
    group: list[DeadLetter] = []
    size = 0
    for letter in letters:
        group.append(letter)
        size += len(letter.value or b"")
        if len(group) == BATCH or size >= BATCH_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


@dataclass
class _Slice:
    """The first `taken` of the letters, decoded; `passed` are those already dealt with."""

    taken: int = 0
    stopped: bool = False
    batch: Batch = field(default_factory=Batch)
    passed: list[DeadLetter] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def _sort(intake: Intake, letters: Sequence[DeadLetter], budget: Budget, meanwhile: Callable[[], None]) -> _Slice:
    found, faults, spending = _Slice(), [], budget.begin()
    now_ms = time.time_ns() // 1_000_000
    for letter in letters:
        if found.taken and spending.over(len(found.batch.deliveries)):
            break
        try:
            meanwhile()
            headers = with_key(letter.headers, letter.key)
            seen = intake.reader.observations(letter.value, headers, meanwhile)
        except Stopped:
            found.stopped = True
            break
        except SkipPacket as skip:
            found.batch.skipped.append((letter.place, letter.offset, skip.reason))
            found.passed.append(letter)
        except PacketError:
            found.counts["still_rejected"] += 1
        except SkyheedError:  # a server's fault, not the packet's
            raise
        except Exception as error:  # the internal error that set it aside, or another: the letters after it continue
            found.counts["still_rejected"] += 1
            faults.append(f"{letter.place} offset {letter.offset}: {fault_of(error).detail}")
        else:
            kafka_ms = letter.kafka_ms if letter.kafka_ms >= 0 else now_ms  # its packet had no timestamp
            found.batch.deliveries += [Delivery(letter.place, letter.offset, kafka_ms, now_ms, o) for o in seen]
            found.passed.append(letter)
        found.taken += 1
    if faults:
        log.error("%d dead letters failed because of an internal error, the first: %s", len(faults), faults[0])
    return found


def _settle(intake: Intake, found: _Slice) -> Counter[str]:
    offsets: dict[str, list[int]] = {}
    for letter in found.passed:
        offsets.setdefault(letter.place, []).append(letter.offset)
    # the reverse of ingest's order: a letter marked as consumed is skipped next time
    outcome = intake.settle(found.batch)
    intake.ledger.consumed(offsets)
    return outcome
