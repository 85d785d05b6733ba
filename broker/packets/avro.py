"""Avro schemas, plans for reading them, and the plain reader: slow, strict, for any schema.

`avro_fast` makes a fast reader from the same plan; whatever it rejects is read again here, so that only this
module decides what is an error, and which. It never trusts a length, count or branch number, does work only in
proportion to the bytes, and is independent of files, topics and surveys.

Specification: https://avro.apache.org/docs/1.11.1/specification/ (binary encoding, schema resolution).
Two deliberate differences: records are matched by their fields, not by name (ZTF's `ztf.alert` comes back from Spark as
`topLevelRecord`), and `int` and `long` are one type.
"""

import struct
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from skyheed.broker.errors import PacketError, Reason
from skyheed.broker.packets.avro_numbers import signed
from skyheed.broker.packets.avro_schema import MAX_DEPTH, MAX_SCHEMA_BYTES, Schema, Type

__all__ = [
    "MAX_DEPTH",
    "MAX_SCHEMA_BYTES",
    "MAX_STEPS",
    "LengthReader",
    "PlainReader",
    "Plan",
    "Schema",
    "Steps",
    "Type",
    "resolve",
]

# Values skipped in one message: 1 or 2 s with the slow reader. One year's history of a Rubin deep field has 500,000.
MAX_STEPS = 2_000_000
ITEM_STEPS = 100  # cost of an array item that is kept: 20,000 of them, each taking some 500 bytes of memory

# Writer type -> reader types that may take it (specification, "Schema Resolution").
_PROMOTIONS = {
    "int": ("int", "long", "float", "double"),
    "long": ("long", "int", "float", "double"),
    "float": ("float", "double"),
    "double": ("double", "float"),
    "string": ("string", "bytes"),
    "bytes": ("bytes", "string"),
    "enum": ("string",),
}
_FLOAT = struct.Struct("<f").unpack_from
_DOUBLE = struct.Struct("<d").unpack_from


@dataclass(eq=False, slots=True)
class Plan:
    """How one writer type is read: skipped, kept as `take`, or refused with `error` if it occurs."""

    type: Type
    take: str = ""  # the reader's type; empty: skip
    parts: list["Plan"] = field(
        default_factory=list
    )  # of the record's fields, the union's branches or the array's item
    keys: list[str] = field(default_factory=list)  # of a record that is read; an empty key: that field is skipped
    defaults: dict[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass(slots=True)
class Steps:
    """How many more values may be skipped in one message."""

    left: int = MAX_STEPS


# --- resolution: writer and reader schema -> plan -----------------------------------------------------------


def resolve(writer: Type, reader: Type | None) -> Plan:
    """The plan for reading what `writer` wrote as `reader` wants it; without a reader everything is skipped. A
    mismatch is not an error until such a value occurs.
    """
    return _Resolution().plan(writer, reader, "")


class _Resolution:
    """Makes the plan of a record once, however many fields and unions refer to it: the work stays linear."""

    def __init__(self) -> None:
        self._records: dict[tuple[int, int], Plan] = {}
        self._skipped: dict[int, Plan] = {}

    def plan(self, writer: Type, reader: Type | None, path: str) -> Plan:
        if reader is None:
            if id(writer) not in self._skipped:
                self._skipped[id(writer)] = Plan(writer)
            return self._skipped[id(writer)]
        if writer.kind == "union":
            parts = [self.plan(branch, reader, path) for branch in writer.branches]
            return Plan(writer, take="union", parts=parts)
        wanted = next(_acceptable(writer, reader), None)
        if wanted is None and _takes_anything(reader):
            return self.plan(writer, None, path)
        if wanted is None:
            return Plan(writer, error=f"{path or 'the record'} has type {writer.kind}")
        if writer.kind == "record":
            return self._record(writer, wanted, path)
        if writer.kind == "array":
            return Plan(writer, take="array", parts=[self.plan(writer.branches[0], wanted.branches[0], f"{path} item")])
        return Plan(writer, take=wanted.kind)

    def _record(self, writer: Type, reader: Type, path: str) -> Plan:
        key = id(writer), id(reader)
        if key in self._records:
            return self._records[key]
        wanted = dict(reader.fields)
        names = frozenset(wanted)
        plan = Plan(writer, take="record")
        for name, part in writer.fields:
            inner = wanted.pop(name, None)
            if inner is None and name in names:
                plan.error = f"{path or 'the record'} has two fields {name}"
            plan.keys.append("" if inner is None else name)
            plan.parts.append(self.plan(part, inner, f"{path}.{name}".lstrip(".") if inner else ""))
        for name in wanted:
            if name not in reader.defaults:
                plan.error = f"{path or 'the record'} has no field {name}"
            plan.defaults[name] = reader.defaults.get(name)
        self._records[key] = plan
        return plan


def _acceptable(writer: Type, reader: Type) -> Iterator[Type]:
    """The reader's branches that can take this writer type, the same type before promotions."""
    branches = reader.branches if reader.kind == "union" else [reader]
    for kind in _PROMOTIONS.get(writer.kind, (writer.kind,)):
        if kind not in ("fixed", "map"):
            yield from (branch for branch in branches if branch.kind == kind)


def _takes_anything(reader: Type) -> bool:
    """Whether the reader accepts null in place of a value of another type: it has a branch named `anything`."""
    return any(branch.kind == "fixed" and branch.name.endswith("anything") for branch in reader.branches)


# --- the plain reader --------------------------------------------------------------------------------------


class PlainReader:
    """Reads values from `data[position:end]`, checking everything; `steps` is what the message may still use.

    Raises:
        PacketError: TRUNCATED, WRONG_TYPE, BAD_BLOCK or BOMB, with the byte offset.
    """

    def __init__(self, data: bytes, position: int, end: int, steps: Steps | None = None) -> None:
        self.data = data
        self.position = position
        self.end = end
        self._depth = 0
        self._steps = steps or Steps()

    def read(self, plan: Plan) -> Any:
        """One value as the plan wants it (None where it skips)."""
        if plan.error:
            self._fail(Reason.WRONG_TYPE, plan.error)
        if plan.take == "record":
            return self._record(plan)
        if plan.take == "union":
            return self.read(plan.parts[self._branch(len(plan.parts))])
        if plan.take == "array":
            return self._array(plan.parts[0])
        if not plan.take:
            self.skip(plan.type)
            return None
        return _convert(self._value(plan.type), plan.take, self)

    def _record(self, plan: Plan) -> dict[str, Any]:
        record = {}
        for key, part in zip(plan.keys, plan.parts, strict=True):
            value = self.read(part)
            if key:
                record[key] = value
        return record | plan.defaults

    def _array(self, item: Plan) -> list[Any]:
        items: list[Any] = []
        for count, stop in self._blocks(item.type.least):
            self._steps.left -= count * ITEM_STEPS
            if self._steps.left < 0:
                self._fail(Reason.BOMB, f"more than {MAX_STEPS // ITEM_STEPS} items in one message")
            items += [self.read(item) for _ in range(count)]
            self._check_stop(stop)
        return items

    def _value(self, each: Type) -> Any:
        match each.kind:
            case "null":
                return None
            case "boolean":
                return self._boolean()
            case "int" | "long":
                return self.long()
            case "float":
                return _FLOAT(self.data, self._advance(4))[0]
            case "double":
                return _DOUBLE(self.data, self._advance(8))[0]
            case "enum":
                return self._symbol(each)
            case _:
                return self.bytes()

    def skip(self, each: Type) -> None:
        """Skip one value of any type."""
        self._depth += 1
        if self._depth > MAX_DEPTH * 2:
            self._fail(Reason.BAD_BLOCK, "values nested too deep")
        self._spend(1)
        match each.kind:
            case "record":
                for _, part in each.fields:
                    self.skip(part)
            case "union":
                self.skip(each.branches[self._branch(len(each.branches))])
            case "array" | "map":
                self._skip_blocks(each)
            case "fixed":
                self._advance(each.size)
            case "bytes" | "string":
                self._advance(self.length())
            case "enum":
                self.long()
            case _:
                self._value(each)
        self._depth -= 1

    def _skip_blocks(self, each: Type) -> None:
        item = each.branches[0]
        least = item.least + (each.kind == "map")
        for count, stop in self._blocks(least):
            # Zero-byte items (null) are skipped at once: their count costs no bytes.
            for _ in range(count if least else 0):
                if each.kind == "map":
                    self._advance(self.length())
                self.skip(item)
            self._check_stop(stop)

    def _blocks(self, least: float) -> Iterator[tuple[int, int | None]]:
        """For each block of an array or map the number of items, at least `least` bytes each, and its end if given.

        A block counts as a value: of items without bytes there can be millions of blocks.
        """
        while count := self.long():
            self._spend(1)
            stop = None
            if count < 0:
                count = -count
                size = self.length()
                stop = self.position + size
            if count * least > self.end - self.position:
                self._fail(Reason.BAD_BLOCK, f"a block of {count} items does not fit")
            yield count, stop

    def _spend(self, steps: int) -> None:
        self._steps.left -= steps
        if self._steps.left < 0:
            self._fail(Reason.BOMB, f"more than {MAX_STEPS} values in one message")

    def _check_stop(self, stop: int | None) -> None:
        if stop not in (None, self.position):
            self._fail(Reason.BAD_BLOCK, "a block's length differs from the one it states")

    def long(self) -> int:
        """A zig-zag number of at most 64 bits."""
        number = shift = 0
        while True:
            byte = self.data[self._advance(1)]
            number |= (byte & 0x7F) << shift
            if byte < 0x80 and not number >> 64:
                return signed(number)
            shift += 7
            if shift > 63:
                self._fail(Reason.WRONG_TYPE, "a number of more than 64 bits")

    def length(self) -> int:
        """A length that fits within the remaining bytes."""
        length = self.long()
        if length < 0:
            self._fail(Reason.WRONG_TYPE, f"a length of {length}")
        if length > self.end - self.position:
            self._fail(Reason.TRUNCATED, f"{length} bytes announced, {self.end - self.position} left")
        return length

    def bytes(self) -> bytes:
        """A string's or byte array's bytes."""
        start = self._advance(self.length())
        return self.data[start : self.position]

    def _boolean(self) -> bool:
        byte = self.data[self._advance(1)]
        if byte > 1:
            self._fail(Reason.WRONG_TYPE, f"a boolean of value {byte}")
        return byte == 1

    def _symbol(self, each: Type) -> str:
        index = self.long()
        if not 0 <= index < len(each.symbols):
            self._fail(Reason.WRONG_TYPE, f"symbol number {index} of {each.name[:80]}")
        return each.symbols[index]

    def _branch(self, branches: int) -> int:
        index = self.long()
        if not 0 <= index < branches:
            self._fail(Reason.WRONG_TYPE, f"branch {index} of a union of {branches}")
        return index

    def _advance(self, size: int) -> int:
        start = self.position
        if size > self.end - start:
            self._fail(Reason.TRUNCATED, f"{size} bytes wanted, {self.end - start} left")
        self.position = start + size
        return start

    def _fail(self, reason: Reason, detail: str) -> NoReturn:
        raise PacketError(reason, f"{detail} (byte {self.position})")


class LengthReader(PlainReader):
    """Notes how long strings are.

    Attributes:
        lengths: of the values of each string or bytes type, by the type's `id`.
    """

    def __init__(self, data: bytes, position: int, end: int) -> None:
        super().__init__(data, position, end)
        self.lengths: defaultdict[int, Counter[int]] = defaultdict(Counter)

    def _value(self, each: Type) -> Any:
        value = super()._value(each)
        if each.kind in ("string", "bytes"):
            self.lengths[id(each)][len(value)] += 1
        return value

    def skip(self, each: Type) -> None:
        """See `PlainReader.skip`."""
        if each.kind in ("string", "bytes"):
            self._value(each)
        else:
            super().skip(each)


def _convert(value: Any, take: str, reader: PlainReader) -> Any:
    if take == "string" and isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise PacketError(Reason.WRONG_TYPE, f"text that is not UTF-8 (byte {reader.position})") from error
    if take == "bytes" and isinstance(value, str):
        return value.encode()
    return float(value) if take in ("float", "double") else value
