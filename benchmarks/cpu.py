"""The processor, and CPU seconds of this process and of those that it started, by what they are. Linux only."""

import os
from collections import Counter
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
KNOWN = {"kafka.Kafka": "kafka", "tansu": "kafka", "valkey": "valkey"}  # by words of the command line


def name() -> str:
    """The machine's processor and how many cores of it there are."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':')[1].strip()} x{os.cpu_count()}"
    return f"unknown x{os.cpu_count()}"


def seconds() -> Counter[str]:
    """CPU seconds so far: `client` is this process, daemons are called by their verb."""
    found = Counter(client=sum(os.times()[:2]))
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended
            continue
        if _descends(int(fields[1])) and (name := _name(words)):
            found[name] += (int(fields[11]) + int(fields[12])) / TICKS
    return found


def since(before: Counter[str]) -> dict[str, float]:
    """What each has used since then, the largest first, and `all` of them together."""
    used = {name: round(total - before[name], 1) for name, total in seconds().items()}
    used = dict(sorted(used.items(), key=lambda item: -item[1]))
    return {**used, "all": round(sum(used.values()), 1)}


def _descends(parent: int) -> bool:
    while parent > 1:
        if parent == os.getpid():
            return True
        try:
            parent = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


def _name(words: list[str]) -> str:
    if "skyheed.broker.cli" in words:
        return words[words.index("skyheed.broker.cli") + 1]
    return next((name for word in words for mark, name in KNOWN.items() if mark in word), "")
