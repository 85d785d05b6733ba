"""Sends set-aside packets through again after a fix: the dead-letter topic is read as one more input.

Nothing is written back to the survey's topic (which is often not ours to write), and nothing leaves the dead-letter
topic: a packet that was stored, skipped or recognised as a duplicate is marked under its place in the dead-letter
topic and passed over the next time; one that still cannot be used stays where it is.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterable

from skyheed.broker.errors import PacketError, SkipPacket, SkyheedError
from skyheed.broker.ingest import Batch, Intake, fault_of
from skyheed.broker.kafka.deadletter import DeadLetter
from skyheed.broker.state.histories import Delivery

log = logging.getLogger("skyheed.redrive")
BATCH = 200


def redrive(intake: Intake, letters: Iterable[DeadLetter]) -> Counter[str]:
    """Try every letter again; counts by outcome, `still_rejected` and `done_before` among them. Safe to repeat.

    Raises:
        ServiceUnavailable: Redis is away; start again later.
        ServiceError: Redis or the schema registry refuses us.
    """
    counts: Counter[str] = Counter()
    group: list[DeadLetter] = []
    for letter in letters:
        group.append(letter)
        if len(group) == BATCH:
            counts += _redrive(intake, group)
            group = []
    return counts + _redrive(intake, group)


def _redrive(intake: Intake, letters: list[DeadLetter]) -> Counter[str]:
    settled = intake.ledger.settled([(letter.place, letter.offset) for letter in letters])
    waiting = [letter for letter, done in zip(letters, settled, strict=True) if not done]
    counts: Counter[str] = Counter(done_before=len(letters) - len(waiting))
    batch, passed, faults = Batch(), [], []
    now_ms = time.time_ns() // 1_000_000
    for letter in waiting:
        try:
            found = intake.reader.observations(letter.value, letter.headers)
        except SkipPacket as skip:
            batch.skipped.append((letter.place, letter.offset, skip.reason))
            passed.append(letter)
        except PacketError:
            counts["still_rejected"] += 1
        except SkyheedError:  # a server, not the packet
            raise
        except Exception as error:  # the fault of ours that set it aside, or another: the letters behind it go on
            counts["still_rejected"] += 1
            faults.append(f"{letter.place} offset {letter.offset}: {fault_of(error).detail}")
        else:
            kafka_ms = letter.kafka_ms if letter.kafka_ms >= 0 else now_ms  # its packet came without a time
            batch.deliveries += [Delivery(letter.place, letter.offset, kafka_ms, now_ms, o) for o in found]
            passed.append(letter)
    if faults:
        log.error("%d letters failed by a fault of ours, the first is %s", len(faults), faults[0])
    offsets: dict[str, list[int]] = {}
    for letter in passed:
        offsets.setdefault(letter.place, []).append(letter.offset)
    # the other way round than ingest: a letter that is marked as consumed is passed over the next time
    outcome = intake.settle(batch)
    intake.ledger.consumed(offsets)
    return counts + outcome
