"""Writer schema and reader schema -> one generated Python function that reads a record quickly.

Most of a packet is skipped, and most of what is skipped has a form that a regular expression can match: fixed
widths, variable-length numbers, unions and short strings. So neighbouring fields become one bytes pattern, with
groups where the reader wants a value; only long strings, arrays, maps and unions of those need Python. Every
pattern is deterministic and possessive, thus linear. A real ZTF packet takes 68 us, where fastavro with the same
fields takes 320 (both with the schema parsed already, same run on one core).

The function is only a fast path: if something does not fit (a damaged packet, a long string inside an array), it gives
up, and the plain reader of `avro` reads the record again and names the error. Names and values of the
writer's schema never become source text.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from skyheed.broker.errors import PacketError, Reason
from skyheed.broker.packets.avro import LengthReader, PlainReader, Plan, Schema, Steps, Type, resolve
from skyheed.broker.packets.avro_patterns import (
    FIXED_WIDTH,
    Piece,
    Strings,
    Unsupported,
    joined,
    literal,
    passing,
    short_strings,
    usually,
)
from skyheed.broker.packets.avro_runtime import RUNTIME, Blocks, Items, Mismatch, Reader

# Types of a schema written out in full, where arrays and the strings in them count more because their patterns take
# longer to compile: 0.15 s at most. ZTF's schema comes to about 1000 (20 ms), Rubin's to 2000.
MAX_PARTS = 8_000
CREDIT_PARTS, EARNED_PARTS = 40_000, 40  # compiled at once after the start, and allowance per message: 1 ms
_ARRAY_PARTS = 100
_ONE_BYTE = 64  # the length of shorter strings takes one byte
_MAX_NESTING = 12  # of generated `if` blocks
_USUAL_LENGTHS = 3  # of each string in an array, tried first; a survey's strings hardly vary in length
Lengths = Mapping[int, Counter[int]]  # of a string type's values, by the type's `id`


class Credit:
    """How many parts of schemas may be compiled now.

    A stream that rarely has new schemas compiles each at once. If a stream's schemas keep changing (so that compiling
    would cost more than it saves), it is read by the plain reader: the same records, a little later.
    """

    def __init__(self, parts: int = CREDIT_PARTS) -> None:
        self._most = self.left = parts

    def earn(self) -> None:
        """Count another message that was read."""
        self.left = min(self._most, self.left + EARNED_PARTS)


class RecordReader:
    """Reads the wanted fields of one record written with one schema.

    Args:
        writer: the schema that the record was written with.
        wanted: the reader schema; None skips everything and finds the end of the record.
        compiled: False disables the fast path (for tests).
        credit: compile at the second record, if the credit allows it; None compiles at once.

    Attributes:
        used_again: it has read more than one record.
    """

    def __init__(
        self, writer: Schema, wanted: Schema | None, *, compiled: bool = True, credit: Credit | None = None
    ) -> None:
        self.plan = resolve(writer.root, wanted.root if wanted else None)
        self.least = writer.root.least
        self._nodes = writer.root.nodes
        self.source = ""
        self._fast: Reader | None = None
        self._credit = credit
        self.used_again = False
        self._used = False
        self._compilable = compiled and not writer.recursive and not self.plan.error
        if credit is None:
            self._compile(Credit(MAX_PARTS), {})

    def __call__(self, data: bytes, position: int, end: int, steps: Steps | None = None) -> tuple[Any, int]:
        """The record at `data[position:]` and the position after it, at most `end`.

        Args:
            steps: the number of steps still allowed for the message; this record's steps are subtracted.

        Raises:
            PacketError: TRUNCATED, WRONG_TYPE, BAD_BLOCK or BOMB, with the byte offset.
        """
        steps = steps or Steps()
        if not self.used_again:
            self.used_again, self._used = self._used, True
        if self._compilable and self._credit is not None and self.used_again and self._credit.left > 0:
            self._compile(self._credit, self._lengths(data, position, end))
        before = steps.left
        # the fast path charges at least what the plain one does, so it never accepts what the plain one would refuse
        steps.left -= self._nodes
        if self._fast is not None and steps.left >= 0:
            try:
                record, stop = self._fast(data, position, end, steps)
                if stop <= end:
                    return record, stop
            except (Mismatch, IndexError, UnicodeDecodeError):
                pass
        steps.left = before
        return self.plain(data, position, end, steps)

    def _lengths(self, data: bytes, position: int, end: int) -> Lengths:
        """How long the strings of a record are, as far as it can be read."""
        reader = LengthReader(data, position, end)
        with contextlib.suppress(PacketError, RecursionError):
            reader.read(self.plan)
        return reader.lengths

    def _compile(self, credit: Credit, lengths: Lengths) -> None:
        if not self._compilable:
            return
        self._compilable = False  # tried only once, successful or not
        writer = _Writer(lengths)
        with contextlib.suppress(Unsupported):
            self.source, self._fast = _compile(self.plan, writer)
        credit.left -= writer.parts
        re.purge()  # otherwise `re` would keep the patterns of 512 schemas that are no longer in use

    def plain(self, data: bytes, position: int, end: int, steps: Steps | None = None) -> tuple[Any, int]:
        """The same with the slow and strict reader."""
        reader = PlainReader(data, position, end, steps)
        try:
            return reader.read(self.plan), reader.position
        except RecursionError as error:
            raise PacketError(Reason.BAD_BLOCK, "values nested too deep") from error


def _compile(plan: Plan, writer: "_Writer") -> tuple[str, Reader]:
    """The source code and the function that read what `plan` says."""
    writer.take(plan, "record")
    writer.flush()
    source = "\n".join(["def read(data, pos, end, steps):", *writer.lines, "    return record, pos"])
    namespace = dict(RUNTIME, **writer.constants)
    exec(compile(source, "<avro reader>", "exec"), namespace)
    return source, namespace["read"]


class _Writer:
    """Collects patterns until something needs Python, then writes both out in order."""

    def __init__(self, lengths: Lengths, in_array: bool = False) -> None:
        self._lengths = lengths
        self._short = self._short_strings if in_array else None  # patterns of the strings that it can skip
        self.lines: list[str] = []
        self.constants: dict[str, Any] = {}
        self._pattern: list[Piece] = []
        self._groups: list[str] = []
        self._after: list[str] = []  # conversions of the groups
        self._nesting = 1
        self._names = 0
        self.parts = 0

    def line(self, text: str) -> None:
        self.lines.append("    " * self._nesting + text)

    def _usual(self, each: Type) -> list[int]:
        """The lengths that a string mostly has."""
        return [size for size, _ in self._lengths.get(id(each), Counter()).most_common(_USUAL_LENGTHS)]

    def _short_strings(self, each: Type) -> bytes:
        """Pattern of a type's strings, in an array."""
        return usually(self._usual(each), short_strings())

    def _short_text(self, each: Type) -> bytes:
        """The same for those whose length is one byte."""
        return usually([size for size in self._usual(each) if size < _ONE_BYTE], short_strings(_ONE_BYTE))

    def name(self, stem: str) -> str:
        self._names += 1
        return f"{stem}{self._names}"

    def constant(self, stem: str, value: Any) -> str:
        name = self.name(stem)
        self.constants[name] = value
        return name

    def count(self, parts: int = 1) -> None:
        self.parts += parts
        if self.parts > MAX_PARTS:
            raise Unsupported

    def flush(self) -> None:
        """Write out the pattern collected so far and the conversions of its groups."""
        pattern = joined(self._pattern)
        if pattern:
            match = self.constant("match", re.compile(pattern, re.DOTALL).match)
            self.line(f"found = {match}(data, pos, end)")
            self.line("if found is None: raise Mismatch")
            self.line("pos = found.end()")
        if self._groups:
            self.line(f"{', '.join(self._groups)}, = found.groups()")
        for text in self._after:
            self.line(text)
        self._pattern, self._groups, self._after = [], [], []

    # --- wanted values

    def take(self, plan: Plan, target: str) -> None:
        """Write code that leaves the value in the variable `target`."""
        self.count()
        if plan.error:
            raise Unsupported
        if not plan.take:
            self.skip(plan.type)
            self._after.append(f"{target} = None")
        elif plan.take == "record":
            self._take_record(plan, target)
        elif plan.take == "union":
            self._take_union(plan, target)
        elif plan.take == "array":
            self._take_array(plan.parts[0], target)
        elif plan.type.kind in ("string", "bytes") and not self._simple(plan):
            self.flush()
            self.line(f"{target}, pos = take_{plan.take}(data, pos, end)")
        else:
            pattern, conversion = self._number(plan)
            self._pattern.append(Piece(pattern))
            self._after.append(f"{target} = {conversion}")

    def _simple(self, plan: Plan) -> bool:
        """Whether a pattern can match the value; inside arrays, this includes short text."""
        return plan.type.kind in FIXED_WIDTH or bool(self._short and plan.type.kind == plan.take == "string")

    def _number(self, plan: Plan) -> tuple[bytes, str]:
        """Pattern with a group for a value of simple form, and the expression that converts it."""
        if plan.type.kind == "null":
            return b"", "None"
        group = self.name("g")
        self._groups.append(group)
        if plan.type.kind == "string":
            return b"(" + self._short_text(plan.type) + b")", f"{group}[1:].decode()"
        expression = {
            "boolean": f"{group} == ONE",
            "float": f"unpack_float({group})[0]",
            "double": f"unpack_double({group})[0]",
        }.get(plan.type.kind, f"zigzag[{group}]")
        if plan.type.kind == "enum":
            expression = f"symbol({self.constant('symbols', plan.type.symbols)}, {expression})"
        elif plan.take in ("float", "double") and plan.type.kind in ("int", "long"):
            expression = f"float({expression})"
        return b"(" + FIXED_WIDTH[plan.type.kind] + b")", expression

    def _take_record(self, plan: Plan, target: str) -> None:
        values = {key: repr(value) for key, value in plan.defaults.items()}
        for key, part in zip(plan.keys, plan.parts, strict=True):
            if key:
                values[key] = self.name("t")
                self.take(part, values[key])
            else:
                self.skip(part.type)
        self.flush()
        self.line(f"{target} = {{{', '.join(f'{key!r}: {value}' for key, value in values.items())}}}")

    def _take_union(self, plan: Plan, target: str) -> None:
        simple = all(part.error or self._simple(part) or self._passes(part) for part in plan.parts)
        if simple and not all(part.error for part in plan.parts):
            self._take_simple_union(plan, target)
            return
        self.flush()
        self._branch(plan.parts, lambda part: self.take(part, target))

    def _passes(self, part: Plan) -> bool:
        """Whether a pattern can skip an unwanted value."""
        return not part.take and self._passing(part.type, self._short) is not None

    def _take_simple_union(self, plan: Plan, target: str) -> None:
        choices: list[bytes] = []
        value = "None"
        for index, part in enumerate(plan.parts):
            if part.error:
                continue  # the plain reader will report it if it occurs
            if not part.take:
                passed = self._passing(part.type, self._short)
                choices.append(literal(index) + (passed.any if passed else b""))
                continue
            before = len(self._groups)
            pattern, conversion = self._number(part)
            choices.append(literal(index) + pattern)
            if len(self._groups) > before:
                value = f"{conversion} if {self._groups[-1]} is not None else {value}"
        # null is seldom the value; other branches stay as they are, because their groups are numbered
        choices.sort(key=lambda choice: len(choice) <= 2)
        self._pattern.append(Piece(b"(?>" + b"|".join(choices) + b")"))
        self._after.append(f"{target} = {value}")

    def _take_array(self, item: Plan, target: str) -> None:
        self.count(_ARRAY_PARTS)
        self.flush()
        inner = _Writer(self._lengths, in_array=True)
        inner.parts = self.parts
        _, read = _compile(item, inner)
        self.parts = inner.parts
        self.line(f"{target}, pos = {self.constant('items', Items(read, item.type))}(data, pos, end, steps)")

    # --- values to pass over

    def skip(self, each: Type) -> None:
        self.count()
        pattern = self._passing(each, self._short)
        if pattern is not None:
            self._pattern.append(pattern)
        elif each.kind == "record":
            for _, part in each.fields:
                self.skip(part)
        elif each.kind == "union":
            self.flush()
            self._branch(each.branches, self.skip)
        elif each.kind in ("array", "map"):
            self.count(_ARRAY_PARTS)
            self.flush()
            self.line(f"pos = {self.constant('items', Blocks(each, self._item(each)))}(data, pos, end, steps)")
        else:
            self.flush()
            self.line("pos = skip_bytes(data, pos, end)")

    def _item(self, each: Type) -> bytes | None:
        """The pattern that skips an item of an array or map."""
        pattern = self._passing(each.branches[0], self._short_strings)
        prefix = short_strings() if each.kind == "map" else b""
        return None if pattern is None else prefix + pattern.any

    def _branch(self, parts: list[Any], write: Callable[[Any], None]) -> None:
        if len(parts) > 64 or self._nesting > _MAX_NESTING:
            raise Unsupported
        self.line("branch = data[pos]; pos += 1")
        self.line("if branch & 0x81: raise Mismatch")
        for index, part in enumerate(parts):
            if isinstance(part, Plan) and part.error:
                continue
            self.line(f"elif branch == {2 * index}:")
            self._nesting += 1
            self.line("pass")
            write(part)
            self.flush()
            self._nesting -= 1
        self.line("else: raise Mismatch")

    def _passing(self, each: Type, short: Strings | None = None) -> Piece | None:
        """What skips any value of the type, or None if no pattern can."""
        return passing(each, self.count, short)
