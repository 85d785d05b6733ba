"""Damaged packets through the real intake: every one is accounted for, none costs much, and what is accepted is right.

    python benchmarks/fuzz.py --packets 1000000 --seed 1 [--seconds 600] [--data ../shared/data]

Copies of sound packets (our own of all surveys, and real ones where --data holds some) are damaged at random and
sorted, stored and booked as `skyheed ingest` does, in a Valkey of their own. What was accepted is compared with what
fastavro and astropy read. Bounded by --packets and --seconds; the same seed makes the same packets. The last line is
JSON:

    packets        mutants; accepted, skipped, rejected and of which origin they are stand alongside it
    unaccounted    mutants without an outcome in the books, which must balance
    unexpected     errors other than those that a packet may have
    differ         accepted packets of which fastavro or astropy read something else
    slowest_s      CPU seconds of the slowest packet, without its share of the making of stamps, which many share
    stamps         mutants that came to have a stamp decoded, well or not
    reference      accepted packets that fastavro or astropy do not read, by their error
"""

import argparse
import contextlib
import json
import logging
import os
import platform
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fuzz_reference
import mutants

from skyheed.broker.errors import PacketError, Reason, SkipPacket
from skyheed.broker.ingest import Intake
from skyheed.broker.local import embedded
from skyheed.broker.packets import stamps
from skyheed.broker.packets.container import Decoder, Headers
from skyheed.broker.packets.reader import PacketReader
from skyheed.broker.packets.surveys import load_survey
from skyheed.broker.registry.schemas import SchemaSource
from skyheed.broker.state import client as state
from skyheed.broker.state.histories import SequenceStore
from skyheed.broker.state.ledger import Ledger

SLICE = 500  # messages that are sorted and stored together
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
MOST_EXAMPLES = 20
Keyed = tuple[str, int, Any]  # partition, offset, message


class Message:
    """What a Kafka message looks like."""

    def __init__(self, topic: str, offset: int, value: bytes) -> None:
        self._topic, self._offset, self._value = topic, offset, value

    def topic(self) -> str:
        return self._topic

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def key(self) -> None:
        return None

    def value(self) -> bytes:
        return self._value

    def headers(self) -> None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return 1, 1_700_000_000_000


@dataclass
class Findings:
    """What became of the mutants."""

    outcomes: Counter[str] = field(default_factory=Counter)
    damage: Counter[str] = field(default_factory=Counter)
    origins: Counter[str] = field(default_factory=Counter)
    reference: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    stamps: int = 0
    differ: int = 0
    slowest_s: float = 0.0
    slowest: str = ""

    def example(self, number: int, what: str) -> None:
        """Keep the first few, for whoever looks into it."""
        if len(self.examples) < MOST_EXAMPLES:
            self.examples.append(f"mutant {number}: {what}")


class Recording:
    """A decoder that remembers the records of the last message."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.last: list[dict[str, Any]] = []

    def decode(self, payload: bytes, headers: Headers | None = None) -> list[dict[str, Any]]:
        self.last = self._decoder.decode(payload, headers)
        return self.last


@dataclass
class Begun:
    """A message whose reading was begun; its stamps are made together with those of others."""

    number: int
    way: str
    value: bytes
    records: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


class Watched(PacketReader):
    """A reader that measures, and compares what it accepts with the reference."""

    def watch(self, findings: Findings, decoder: Recording, schemas: dict[int, Any]) -> None:
        self.findings, self.recording, self.schemas = findings, decoder, schemas
        self.number = 0
        self.way = ""
        self.begun: dict[int, Begun] = {}

    def begin(self, value: bytes | None, *more: Any) -> list[Any]:
        """As the reader that is watched."""
        assert value is not None
        one, before = Begun(self.number, self.way, value), _Stamps.wanted
        try:
            with self._judging(one):
                found = super().begin(value, *more)
        finally:
            self.findings.stamps += _Stamps.wanted > before
        one.records = self.recording.last
        self.begun[id(found)] = one
        return found

    def finish(self, begun: Any) -> list[Any]:
        """As the reader that is watched, which also finishes what came before a bad record, when it begins."""
        one = self.begun.pop(id(begun), None)
        if one is None:
            return super().finish(begun)
        with self._judging(one):
            found = super().finish(begun)
        self._measure(one)
        self.findings.outcomes["accepted"] += 1
        self._compare(one)
        return found

    @contextlib.contextmanager
    def _judging(self, one: Begun) -> Iterator[None]:
        began = time.thread_time()
        try:
            yield
        except (SkipPacket, PacketError) as error:
            self.findings.outcomes[f"{type(error).__name__} {error.reason}"] += 1
            self._measure(one, time.thread_time() - began)
            raise
        except Exception as error:
            self.findings.example(one.number, f"{type(error).__name__}: {error}")
            raise
        one.seconds += time.thread_time() - began

    def _measure(self, one: Begun, more: float = 0.0) -> None:
        if one.seconds + more > self.findings.slowest_s:
            self.findings.slowest_s = one.seconds + more
            self.findings.slowest = f"mutant {one.number} ({self.survey.name}, {one.way})"

    def _compare(self, one: Begun) -> None:
        value = one.value
        container = value.startswith(b"Obj\x01")
        schema = None if container else self.schemas.get(int.from_bytes(value[1:5], "big"))
        if not container and schema is None:
            self.findings.reference["no schema for fastavro"] += 1
            return
        try:
            fuzz_reference.compare(self.survey, value, schema, one.records)
        except fuzz_reference.ReferenceFailed as error:
            self.findings.reference[str(error)] += 1
        except fuzz_reference.Differs as error:
            self.findings.differ += 1
            self.findings.example(one.number, str(error))
        except Exception as error:  # the comparison's own; not the intake's
            self.findings.differ += 1
            self.findings.example(one.number, f"the comparison ended with {type(error).__name__}: {error}")
        else:
            self.findings.reference["agrees"] += 1


class _Stamps:
    """Counts stamps that are to be made."""

    wanted = 0

    @classmethod
    def count(cls) -> None:
        """From now on: stamps that wait to be made are counted."""
        plain = stamps.Waiting.add

        def counted(waiting: stamps.Waiting, wanted: stamps.WantedStamps, *more: Any) -> None:
            cls.wanted += len(wanted.files)
            plain(waiting, wanted, *more)

        stamps.Waiting.add = counted  # type: ignore[method-assign]


class SetAside:
    """Instead of the dead-letter topic: acknowledges."""

    def set_aside(self, letters: list[Any], *_: object) -> None:
        """Nothing is kept."""


def intake_of(name: str, redis: str, source: SchemaSource, findings: Findings, schemas: dict[int, Any]) -> Intake:
    """The intake of one survey, watched."""
    survey = load_survey(name)
    recording = Recording(Decoder(survey.reader_schema, schemas=source))
    client = state.connect(redis)
    store, ledger = SequenceStore(client, name, shards=4), Ledger(client, name, shards=4)
    intake = Intake(survey, recording, store, ledger, SetAside())  # type: ignore[arg-type]
    watched = Watched(survey, recording, intake.reader._check)
    watched.watch(findings, recording, schemas)
    intake.reader = watched
    return intake


def run(originals: list[mutants.Original], count: int, seed: int, seconds: float, redis: str) -> dict[str, Any]:
    """Send the mutants through; what the last line says."""
    findings = Findings()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"{mutants.OWN_SCHEMA}.avsc").write_bytes(mutants.own_schema())
        source = SchemaSource(directory=folder)
        schemas = {int.from_bytes(o.prefix[1:], "big"): o.schema for o in originals if o.prefix}
        names = sorted({o.survey for o in originals})
        intakes = {name: intake_of(name, redis, source, findings, schemas) for name in names}
        load_survey("ztf")
        _Stamps.count()
        began, sent = time.monotonic(), 0
        rng = random.Random(seed)
        while sent < count and time.monotonic() - began < seconds:
            sent = _slice(rng, originals, intakes, findings, sent, min(SLICE, count - sent))
    return _summary(findings, intakes, sent, time.monotonic() - began)


def _slice(
    rng: random.Random, originals: list[mutants.Original], intakes: dict[str, Intake], findings: Findings, sent: int,
    count: int,
) -> int:  # fmt: skip
    made: dict[str, list[Keyed]] = {name: [] for name in intakes}
    ways: dict[int, str] = {}
    for number in range(sent, sent + count):
        one, way, value = mutants.mutant(rng, originals)
        ways[number] = way
        findings.damage[way] += 1
        findings.origins[f"{one.survey} {'real' if one.real else 'own'}"] += 1
        made[one.survey].append(("fuzz/0", number, Message("fuzz", number, value)))
    for name, messages in made.items():
        intake = intakes[name]
        batch = intake.sort(_watching(intake, messages, ways), 1_700_000_000_000)  # type: ignore[arg-type]
        intake.ledger.consumed({"fuzz/0": [number for _, number, _ in messages]})
        intake.settle(batch)
    return sent + count


def _watching(intake: Intake, messages: list[Keyed], ways: dict[int, str]) -> Iterator[Keyed]:
    """The messages, each known to the reader by its number before it is read."""
    reader = intake.reader
    assert isinstance(reader, Watched)
    for keyed in messages:
        reader.number, reader.way = keyed[1], ways[keyed[1]]
        yield keyed


def _summary(findings: Findings, intakes: dict[str, Intake], sent: int, seconds: float) -> dict[str, Any]:
    books = {name: intake.ledger.books() for name, intake in intakes.items()}
    totals: Counter[str] = Counter()
    for each in books.values():
        summary = each.summary()
        totals.update({k: summary[k] for k in ("consumed", "stored", "duplicates", "skipped", "rejected")})
    # also what was raised behind the reader, such as by the comparison itself
    unexpected = sum(p.rejected[Reason.UNEXPECTED] for each in books.values() for p in each.partitions)
    unexpected -= max(0, sent - sum(findings.outcomes.values()))
    settled = sum(totals[k] for k in ("stored", "duplicates", "skipped", "rejected"))
    return {
        "packets": sent, "unaccounted": abs(sent - totals["consumed"]) + abs(totals["consumed"] - settled),
        "unexpected": sent - sum(findings.outcomes.values()) + unexpected, "differ": findings.differ,
        "slowest_s": round(findings.slowest_s, 4), "slowest": findings.slowest,
        "stamps": findings.stamps, "stamps_share": round(findings.stamps / max(1, sent), 3),
        "balanced": all(each.balanced for each in books.values()), "books": dict(totals),
        "outcomes": dict(findings.outcomes.most_common()), "damage": dict(findings.damage),
        "origins": dict(findings.origins), "reference": dict(findings.reference.most_common()),
        "examples": findings.examples, "seconds": round(seconds, 1),
        "memory_mb": round(_memory_mb()), "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }  # fmt: skip


def _memory_mb() -> float:
    """Resident memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main(words: list[str] | None = None) -> dict[str, Any]:
    """Run, print, and return what was printed last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packets", type=int, default=10_000, help="how many mutants")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3600.0, help="stop after this long")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with real packets; none is needed")
    parser.add_argument("--redis", default="", help="a Redis to use, which must be empty; one is started by default")
    chosen = parser.parse_args(words)
    logging.disable(logging.ERROR)
    originals = [*mutants.own(), *mutants.real(chosen.data)]
    with contextlib.ExitStack() as stack:
        redis = chosen.redis or stack.enter_context(embedded.start_valkey()).url
        found = run(originals, chosen.packets, chosen.seed, chosen.seconds, redis)
    print(json.dumps(found))
    return found


if __name__ == "__main__":
    result = main()
    sys.exit(bool(result["unaccounted"] or result["unexpected"] or result["differ"]))
