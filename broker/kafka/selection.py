"""Which topics to read: legal names, one pattern dialect, and topics that are never input. Independent of Kafka
clients.

A pattern begins with `^`. It is matched here against the broker's list of topics, so that it means the same with every
group protocol (librdkafka has two other dialects, one of them the broker's). It matches from the beginning of a name,
and to its end only with `$`:

    letters, digits, _ and -       themselves; also \\_ and \\-
    .                              any one character; \\. is a dot
    [a-z0-9_]  [^0-9]              one character of a set, or not of it
    \\d  \\w                         a digit; a letter, a digit or _
    x*  x+  x?  {n}  {n,}  {n,m}   repeats, of one character or set; of a group only ?
    (this|that)                    alternatives
    $                              the end, as the last character

Nothing else is accepted, and at most four parts may repeat, which keeps matching fast.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from skyheed.broker.errors import ConfigError

LONGEST_NAME = 249  # Kafka's own limit
MOST_REPEATS = 4
MOST_OPTIONAL = 10
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_SET = re.compile(r"\[\^?(?:[A-Za-z0-9._]-[A-Za-z0-9._]|[A-Za-z0-9._]|\\[dw._-]|-(?=\]))+\]")
_COUNT = re.compile(r"\{(\d{1,3})(,?)(\d{0,3})\}")
_ESCAPED = {"d": "[0-9]", "w": "[A-Za-z0-9_]", ".": r"\.", "_": "_", "-": "-"}
_ANYONES = re.compile(r"\.(classifications|deadletter|refused)\.")
_SET_ASIDE = re.compile(r"\.(deadletter|refused)\.")
_WHERE = "docs/operating.md says what a topic pattern may hold"


def is_pattern(topic: str) -> bool:
    """Whether `topic` stands for all topics that it matches."""
    return topic.startswith("^")


def name_fault(name: str) -> str:
    """Why `name` is not a valid topic name; empty if it is."""
    if not name or len(name) > LONGEST_NAME:
        return f"a topic's name has 1 to {LONGEST_NAME} characters, not {len(name)}"
    if name in (".", ".."):
        return f"no topic can be called {name}"
    if not _NAME.fullmatch(name):
        return f"{name!r} is no topic's name: letters, digits, dot, _ and - only (a pattern begins with ^)"
    return ""


def check_name(name: str, what: str = "topic") -> str:
    """`name`, if Kafka would accept it.

    Raises:
        ConfigError: it would not.
    """
    if fault := name_fault(name):
        raise ConfigError(f"{what}: {fault}")
    return name


def compiled(pattern: str) -> "re.Pattern[str]":
    """The pattern as a Python regular expression.

    Raises:
        ConfigError: it uses something outside the dialect.
    """
    return re.compile(_Parser(pattern).translate(), re.ASCII)


class _Parser:
    """Checks a pattern character by character and translates it to Python's syntax."""

    def __init__(self, pattern: str) -> None:
        self._pattern, self._at = pattern, 1
        self._out: list[str] = []
        self._open = self._repeats = self._optional = 0
        self._last = ""  # what a repeat would repeat: "one" character, a "group", or nothing

    def translate(self) -> str:
        if len(self._pattern) > LONGEST_NAME:
            self._fail(f"it has more than {LONGEST_NAME} characters")
        if len(self._pattern) < 2:
            self._fail("nothing follows the ^; ^.* reads every topic")
        while self._at < len(self._pattern):
            self._step(self._pattern[self._at])
        if self._open:
            self._fail("a ( is not closed")
        return "".join(self._out)

    def _step(self, character: str) -> None:
        steps = {"\\": self._escape, "[": self._set, "{": self._count, "(": self._begin, ")": self._end, "|": self._or}
        if character in steps:
            steps[character]()
        elif character in "*+?":
            self._repeat(character, character != "?")
        elif character == "$" and self._at == len(self._pattern) - 1:
            self._put(r"\Z", "$")
        elif character == "." or _NAME.fullmatch(character):
            self._put(character, character, "one")
        else:
            self._fail(f"{character!r} has no meaning there")

    def _put(self, written: str, read: str, last: str = "") -> None:
        self._out.append(written)
        self._at += len(read)
        self._last = last

    def _escape(self) -> None:
        following = self._pattern[self._at + 1 : self._at + 2]
        if following not in _ESCAPED:
            self._fail(f"\\{following} is not known; there are \\d, \\w, \\. , \\_ and \\-")
        self._put(_ESCAPED[following], "\\" + following, "one")

    def _set(self) -> None:
        found = _SET.match(self._pattern, self._at)
        if not found:
            self._fail("the [ begins no set such as [a-z0-9_]")
        try:
            re.compile(found[0])
        except re.error:
            self._fail(f"{found[0]} runs backwards")
        self._put(found[0], found[0], "one")

    def _count(self) -> None:
        found = _COUNT.match(self._pattern, self._at)
        if not found:
            self._fail("the { begins no count such as {8} or {1,3}")
        least, comma, most = int(found[1]), found[2], found[3]
        if (most and int(most) < least) or (most and not comma):
            self._fail(f"{found[0]} is not a count")
        self._repeat(found[0], bool(comma))

    def _repeat(self, mark: str, many: bool) -> None:
        if not self._last or (self._last == "group" and mark != "?"):
            thing = "a group" if self._last else "nothing that could be repeated"
            self._fail(f"{mark} follows {thing}")
        self._repeats += many
        self._optional += mark == "?"
        if self._repeats > MOST_REPEATS or self._optional > MOST_OPTIONAL:
            self._fail(f"more than {MOST_REPEATS} parts repeat: write several patterns")
        self._put(mark, mark)

    def _begin(self) -> None:
        self._open += 1
        self._put("(?:", "(")

    def _end(self) -> None:
        if not self._open:
            self._fail("a ) closes nothing")
        self._open -= 1
        self._put(")", ")", "group")

    def _or(self) -> None:
        if not self._open:
            self._fail("put alternatives in parentheses, as in ^(this|that)")
        self._put("|", "|")

    def _fail(self, why: str) -> NoReturn:
        place = f" (character {self._at + 1})" if self._at < len(self._pattern) else ""
        raise ConfigError(f"the topic pattern {self._pattern!r} cannot work: {why}{place}; {_WHERE}")


def internal(name: str) -> bool:
    """Whether a topic is Kafka's own."""
    return name.startswith("__")


def no_classifications(name: str) -> bool:
    """Whether patterns for reading classifications must not match `name`: refusals that are read would be refused
    again."""
    return internal(name) or bool(_SET_ASIDE.search(name))


@dataclass(frozen=True)
class Outputs:
    """The topics that skyheed writes: read as alerts they would multiply forever.

    Attributes:
        prefixes: of names such as <prefix>.deadletter.<survey>, for any survey.
        names: others, by full name.
    """

    prefixes: tuple[str, ...] = ("skyheed",)
    names: tuple[str, ...] = ()

    def __contains__(self, name: str) -> bool:
        kinds = tuple(
            f"{prefix}.{kind}" for prefix in self.prefixes for kind in ("classifications", "deadletter", "refused")
        )
        # all other skyheed.… topics are ours, too, except the alerts that `replay` sends
        other = name.startswith("skyheed.") and not name.startswith("skyheed.alerts.")
        return name in self.names or name.startswith(kinds) or other

    def fault(self, name: str) -> str:
        """Why topic `name` cannot hold alerts; empty if it can."""
        if internal(name):
            return f"topic {name} is Kafka's own: name a topic of alerts"
        if name in self:
            return f"topic {name} is one that skyheed writes (classifications, dead letters): name a topic of alerts"
        return ""

    def never(self, name: str) -> bool:
        """Whether patterns for alert topics must not match `name`, because some skyheed writes it."""
        return internal(name) or name in self or bool(_ANYONES.search(name))


@dataclass(frozen=True)
class Selection:
    """Topics by name and by pattern; `never` excludes topics from all patterns.

    Raises:
        ConfigError: a name or a pattern that cannot work, or none at all.
    """

    topics: tuple[str, ...]
    never: Callable[[str], bool] = internal
    _patterns: dict[str, "re.Pattern[str]"] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in self.names:
            check_name(name)
        if not self.topics:
            raise ConfigError("no topic is named")
        object.__setattr__(self, "_patterns", {text: compiled(text) for text in self.topics if is_pattern(text)})

    @property
    def names(self) -> list[str]:
        """Topics read whether they exist or not."""
        return [topic for topic in self.topics if not is_pattern(topic)]

    @property
    def patterns(self) -> list[str]:
        """Patterns that wait for matching topics."""
        return list(self._patterns)

    def matched(self, pattern: str, existing: Iterable[str]) -> list[str]:
        """The topics among `existing` that match one of the patterns."""
        return sorted(name for name in existing if self._patterns[pattern].match(name) and not self.never(name))

    def among(self, existing: Iterable[str]) -> list[str]:
        """All topics to read, given the `existing` ones: the named ones, then those that match patterns."""
        there = list(existing)
        found = {name for pattern in self._patterns for name in self.matched(pattern, there)}
        return list(dict.fromkeys([*self.names, *sorted(found)]))


def selection(topics: "Selection | Sequence[str]", never: Callable[[str], bool] = internal) -> Selection:
    """`topics` as a `Selection`.

    Raises:
        ConfigError: as there.
    """
    return topics if isinstance(topics, Selection) else Selection(tuple(topics), never)
