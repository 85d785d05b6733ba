"""A dead-letter topic to which anybody may write: what is not a dead letter is skipped and counted; nothing grows."""

import resource
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from process_tools import run_verb
from raw_kafka import produce
from server_tools import HOME, NEEDS_APACHE
from stream_tools import sdss_alert, settings_for
from test_deadletter import Message, make_topic, rejected, set_aside

from skyheed.broker import app as daemon
from skyheed.broker.errors import Reason
from skyheed.broker.kafka import deadletter
from skyheed.broker.kafka.client import Publisher, ensure_topics
from skyheed.broker.kafka.deadletter import Assembler, DeadLetter, DeadLetters
from skyheed.broker.local import embedded
from skyheed.broker.recently_seen import Recent

DIGITS = b"9" * 4_300
NOBODY = b'{"key": null, "headers": []}\nvalue'
# (headers, value) of messages that must end nothing; the second is whether it is shown as a letter
STRANGE: dict[str, tuple[list[tuple[bytes, bytes | None]], bytes | None, bool]] = {
    "numbers beyond int64": ([(b"skyheed-" + n, DIGITS[:20]) for n in (b"time", b"offset", b"partition")], b"x", True),
    "a year that no calendar has": ([(b"skyheed-time", b"99999999999999")], b"x", True),
    "negative": ([(b"skyheed-time", b"-99999999999999999"), (b"skyheed-kafka-time", b"-5")], b"x", True),
    "4,300 digits": ([(b"skyheed-time", DIGITS), (b"skyheed-kafka-time", DIGITS)], b"x", True),
    "digits of other alphabets": ([(b"skyheed-time", "١٢٣".encode())], b"x", True),
    "a name that is no UTF-8": ([(b"skyheed-time", b"1"), (b"\xff\xfe", b"1")], b"x", True),
    "a name with NUL": ([(b"skyheed-\0reason", b"bomb")], b"x", True),
    "an error of a MiB": ([(b"skyheed-error", b"\x1b[2J" * 2**15)], b"x", True),
    "values that are null": ([(b"skyheed-reason", None), (b"skyheed-time", None)], None, True),
    "no header": ([], b"x", True),
    "part of nothing": ([(b"skyheed-part", None)], NOBODY, False),
    "part one of words": ([(b"skyheed-part", b"one/two")], NOBODY, False),
    "part of 4,300 digits": ([(b"skyheed-part", b"1/" + DIGITS)], NOBODY, False),
    "part of three numbers": ([(b"skyheed-part", b"1/1/1")], NOBODY, False),
    "part zero": ([(b"skyheed-part", b"0/1")], NOBODY, False),
    "part behind the last": ([(b"skyheed-part", b"2/1")], NOBODY, False),
    "part of a million": ([(b"skyheed-part", b"1/1000000")], NOBODY, False),
    "no JSON": ([(b"skyheed-part", b"1/1")], b"no JSON", False),
    "JSON of another shape": ([(b"skyheed-part", b"1/1")], b'["key"]\nx', False),
    "JSON without headers": ([(b"skyheed-part", b"1/1")], b'{"key": null}\nx', False),
    "headers without names": ([(b"skyheed-part", b"1/1")], b'{"key": null, "headers": [[1, null]]}\nx', False),
    "headers of three": ([(b"skyheed-part", b"1/1")], b'{"key": null, "headers": [["a", "b", "c"]]}\nx', False),
    "no base64": ([(b"skyheed-part", b"1/1")], b'{"key": "\xc3\xa9", "headers": []}\nx', False),
    "a key that is a number": ([(b"skyheed-part", b"1/1")], b'{"key": 5, "headers": []}\nx', False),
    "JSON nested deep": ([(b"skyheed-part", b"1/1")], b"[" * 100_000, False),
    "a number of JSON of 5,000 digits": ([(b"skyheed-part", b"1/1")], b"9" * 5_000 + b"\n", False),
    "no text": ([(b"skyheed-part", b"1/1")], b"\xff\xfe\n", False),
    "one half of a character": ([(b"skyheed-part", b"1/1")], b'{"key": null, "headers": [["\\ud800", null]]}\n', True),
}
SHOWN = sum(shown for _, _, shown in STRANGE.values())


def cli(*words: str) -> subprocess.CompletedProcess[str]:
    return run_verb(*words, LC_ALL="C.UTF-8")


@pytest.mark.kafka
@pytest.mark.redis
@pytest.mark.skipif(not HOME, reason=NEEDS_APACHE)
def test_strange_letters_end_neither_the_list_nor_redrive(
    kafka: embedded.Server, valkey: embedded.Server, tmp_path: Path
) -> None:
    settings = settings_for(kafka.address, valkey.url, "sdss", "strange-in", **{"topics.prefix": "strange"})
    topic = settings.dead_letter_topic
    ensure_topics(settings.kafka, {topic: {}}, 1, 1)
    daemon.connect_store(settings)[2].ping()
    odd = [(name.encode(), value, headers) for name, (headers, value, _) in STRANGE.items()]
    with Publisher(settings.kafka) as publisher:
        letters = DeadLetters(publisher, topic)
        letters.set_aside([rejected(Message(sdss_alert("L", 1), 1), Reason.UNEXPECTED)])
        produce(kafka.address, topic, odd)
        letters.set_aside([rejected(Message(sdss_alert("L", 2), 2), Reason.UNEXPECTED)])
    file = tmp_path / "skyheed.toml"
    file.write_text('[topics]\nprefix = "strange"\n')
    servers = ["--survey", "sdss", "--kafka", kafka.address, "--config", str(file)]
    listed = cli("deadletter", "list", *servers, "--limit", "1000")
    assert listed.returncode == 0, listed.stderr
    lines = listed.stdout.splitlines()
    assert len(lines) == SHOWN + 2
    assert "\x1b" not in listed.stdout
    assert max(map(len, lines)) < 2 * deadletter.ERROR_CHARACTERS * 4
    assert f"skipped {len(STRANGE) - SHOWN} messages that are not dead letters" in listed.stderr
    assert listed.stderr.count("skipped, not a skyheed dead letter") == deadletter.SAID
    assert "Traceback" not in listed.stderr
    again = cli("redrive", *servers, "--redis", valkey.url)
    assert again.returncode == 0, again.stderr
    assert again.stdout.split() == [f"still_rejected={SHOWN}", "stored=2", f"unreadable={len(STRANGE) - SHOWN}"]
    assert "Traceback" not in again.stderr
    assert daemon.read_store(settings)[2].books().balanced


def shown(message: Message, key_of: Any = lambda topic, partition: f"{topic}/{partition}") -> list[DeadLetter]:
    return list(Assembler(key_of).letters([message]))  # type: ignore[list-item]


@pytest.mark.parametrize("name", [n for n, (h, _, _) in STRANGE.items() if all(k.isascii() for k, _ in h)])
def test_a_strange_letter_is_shown_in_one_line_or_passed_over(name: str) -> None:
    headers, value, is_letter = STRANGE[name]
    found = shown(Message(value, 5, name.encode(), [(k.decode(), v) for k, v in headers]))  # type: ignore[arg-type]
    assert len(found) == is_letter
    for letter in found:
        assert len(letter.line().splitlines()) == 1
        assert letter.kafka_ms < 2**63


def part(key: bytes, number: int, count: int, data: bytes) -> Message:
    return Message(data, 5, key, [("skyheed-part", b"%d/%d" % (number, count))])


def test_parts_whose_others_never_come_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadletter, "MOST_WAITING", 1_000_000)
    assembler = Assembler(lambda topic, partition: f"{topic}/{partition}")
    for n in range(1_000):
        assert list(assembler.letters([part(b"%d" % n, 1, 2, bytes(10_000))])) == []  # type: ignore[list-item]
        assert sum(len(p) for parts in assembler._parts.values() for p in parts.values()) <= 1_000_000
    assert len(assembler._parts) == 100
    assert assembler.unreadable == 900
    # one that has all its parts still comes through, also behind one that is larger than the bound
    whole = b'{"key": null, "headers": []}\nvalue'
    list(assembler.letters([part(b"giant", n, 500, bytes(100_000)) for n in range(1, 400)]))  # type: ignore[arg-type]
    made = list(assembler.letters([part(b"last", 1, 2, whole[:20]), part(b"last", 2, 2, whole[20:])]))  # type: ignore[list-item]
    assert [letter.value for letter in made] == [b"value"]


def test_parts_that_come_again_and_again_are_counted_once() -> None:
    assembler = Assembler(lambda topic, partition: f"{topic}/{partition}")
    for _ in range(100):
        list(assembler.letters([part(b"a", 1, 2, bytes(10_000))]))  # type: ignore[list-item]
    assert assembler._waiting_bytes == 10_000
    made = list(assembler.letters([part(b"a", 1, 2, NOBODY), part(b"a", 2, 2, b"!")]))  # type: ignore[list-item]
    assert [letter.value for letter in made] == [b"value!"]
    assert (assembler._waiting_bytes, len(assembler._parts)) == (0, 0)


def test_many_empty_parts_are_bounded_by_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadletter, "MOST_SPLIT", 50)
    assembler = Assembler(lambda topic, partition: f"{topic}/{partition}")
    for n in range(500):
        list(assembler.letters([part(b"%d" % n, 1, 2, b"")]))  # type: ignore[list-item]
    assert len(assembler._parts) == 50


def test_a_head_of_many_values_is_refused_before_it_is_parsed() -> None:
    head = b'{"key": null, "headers": [' + b"{}," * 10_000_000 + b"{}]}\n"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert shown(part(b"a", 1, 1, head)) == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024, "kB; 700 MB are what it holds"


def test_repeats_are_known_by_digests_of_a_bounded_number() -> None:
    recent = Recent(1_000)
    for n in range(10_000):
        recent.put("x" * 10_000, b"%d" % n, number=n)
        assert len(recent) <= 2_000
    assert [recent.get("x" * 10_000, b"%d" % n) for n in range(9_000, 10_000)] == list(range(9_000, 10_000))
    assert recent.get("x" * 10_000, b"5") is None
    assert max(len(key) for book in (recent._old, recent._young) for key in book) == 16
    recent.put("a", "bc")
    assert recent.get("ab", "c") is None
    recent.put("\ud800")
    assert recent.get("\ud800") == 0


def test_letters_beyond_those_remembered_still_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadletter, "REMEMBERED", 10)
    assembler = Assembler(lambda topic, partition: f"{topic}/{partition}")
    messages = [Message(b"x", n, b"%d" % n, [("skyheed-reason", b"bomb")]) for n in range(50)]
    assert len(list(assembler.letters(messages))) == 50  # type: ignore[arg-type]
    assert list(assembler.letters(messages[-10:])) == []  # type: ignore[arg-type]
    assert len(assembler._seen) <= 20


@pytest.fixture
def gone() -> dict[str, str]:
    return {"bootstrap.servers": f"127.0.0.1:{embedded.free_port()}"}


def test_reading_ends_when_it_is_asked_to_while_the_broker_is_away(gone: dict[str, str]) -> None:
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    began = time.monotonic()
    assert list(deadletter.read(gone, "dead", stop=stop.is_set)) == []
    assert time.monotonic() - began < 10


@pytest.mark.kafka
def test_large_letters_are_read_a_few_at_a_time(kafka: embedded.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    options, topic = make_topic(kafka)
    set_aside(options, topic, *[rejected(Message(bytes(100_000), n), Reason.OVERSIZED) for n in range(300)])
    monkeypatch.setattr(deadletter, "READ_BYTES", 1_000_000)
    taken: list[int] = []
    real = Assembler.letters

    def letters(self: Assembler, messages: Sequence[Any]) -> Iterator[DeadLetter]:
        taken.append(sum(len(m.value()) for m in messages))
        return real(self, messages)

    monkeypatch.setattr(Assembler, "letters", letters)
    assert len(list(deadletter.read(options, topic))) == 300
    assert max(taken) <= 1_000_000 + 100 * 100_000
