"""Avro schemas, what a reader wants of them, and the plain reader: slow, strict, for any schema.

`avro_compiler` makes a fast reader of the same plan; whatever that one does not like is read here again, so that
this module alone decides what is an error and which one. It never trusts a length, a count or a branch number,
does no work that the number of bytes does not pay for, and knows nothing of files, topics or surveys.

Specification: https://avro.apache.org/docs/1.11.1/specification/ (binary encoding, schema resolution).
Two deliberate differences: records are matched by field, not by name (ZTF's `ztf.alert` comes back from Spark as
`topLevelRecord`), and `int` and `long` are one type.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from .errors import PacketError, Reason

MAX_SCHEMA_BYTES = 1 << 20  # ZTF's schema has 27 kB, Rubin's 120 kB
MAX_DEPTH = 64  # of nested types, and of nested values of a recursive type
MAX_FIXED = 1 << 24
# Values passed over in one record, by the slow reader: 1 or 2 s. The year's history of a Rubin deep field has 500,000.
MAX_STEPS = 2_000_000

_PRIMITIVES = frozenset(("null", "boolean", "int", "long", "float", "double", "bytes", "string"))
_LEAST = {"null": 0, "float": 4, "double": 8}  # bytes; every other type takes one at least
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
class Type:
    """One Avro type; `least` is the smallest number of bytes that a value of it can take."""

    kind: str
    name: str = ""
    fields: list[tuple[str, "Type"]] = field(default_factory=list)
    defaults: dict[str, Any] = field(default_factory=dict)
    branches: list["Type"] = field(default_factory=list)  # union; or the one item type of an array or map
    size: int = 0
    symbols: tuple[str, ...] = ()
    least: float = 1


@dataclass(eq=False, slots=True)
class Plan:
    """How one writer type is read: skipped, taken as `take`, or refused with `error` when it comes up."""

    type: Type
    take: str = ""  # the reader's type; empty: skip
    parts: list["Plan"] = field(default_factory=list)  # of the record's fields or the union's branches
    keys: list[str] = field(default_factory=list)  # of a taken record; empty: that field is skipped
    defaults: dict[str, Any] = field(default_factory=dict)
    error: str = ""


# --- schemas -----------------------------------------------------------------------------------------------


class Schema:
    """A parsed Avro schema.

    Args:
        definition: the schema as JSON text or as `json.loads` returns it.
        library: full name -> definition of types that the schema may refer to.

    Raises:
        PacketError: BAD_SCHEMA.
    """

    def __init__(self, definition: Any, library: Mapping[str, Any] | None = None) -> None:
        self._library = library or {}
        self._named: dict[str, Type] = {}
        self._open: set[str] = set()
        self.recursive = False
        try:
            if isinstance(definition, str | bytes):
                definition = _loads(definition)
            self.root = self._parse(definition, "", 0)
            self._measure()
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise PacketError(Reason.BAD_SCHEMA, f"not an Avro schema: {type(error).__name__}") from error

    def _parse(self, definition: Any, namespace: str, depth: int) -> Type:
        if depth > MAX_DEPTH:
            _bad_schema(f"types nested deeper than {MAX_DEPTH}")
        if isinstance(definition, str):
            return Type(definition) if definition in _PRIMITIVES else self._lookup(definition, namespace, depth)
        if isinstance(definition, list):
            return self._union(definition, namespace, depth)
        kind = definition["type"]
        if not isinstance(kind, str):
            return self._parse(kind, namespace, depth + 1)
        if kind in ("array", "map"):
            item = definition["items" if kind == "array" else "values"]
            return Type(kind, branches=[self._parse(item, namespace, depth + 1)])
        if kind in ("record", "error", "enum", "fixed"):
            return self._define(kind, definition, namespace, depth)
        return self._parse(kind, namespace, depth + 1)

    def _union(self, definition: list[Any], namespace: str, depth: int) -> Type:
        branches = [self._parse(branch, namespace, depth + 1) for branch in definition]
        if not branches or any(branch.kind == "union" for branch in branches):
            _bad_schema("a union that is empty or holds a union")
        return Type("union", branches=branches)

    def _lookup(self, name: str, namespace: str, depth: int) -> Type:
        candidates = [f"{namespace}.{name}", name] if namespace and "." not in name else [name]
        for full in candidates:
            if full in self._named:
                self.recursive = self.recursive or full in self._open
                return self._named[full]
        for full in candidates:
            if full in self._library:
                return self._parse(self._library[full], full.rpartition(".")[0], depth + 1)
        _bad_schema(f"type {name[:80]!r} is not defined")

    def _define(self, kind: str, definition: dict[str, Any], namespace: str, depth: int) -> Type:
        name = definition["name"]
        if not name.strip("."):
            _bad_schema("a type without a name")
        full = name if "." in name else f"{definition.get('namespace', namespace)}.{name}".lstrip(".")
        if full in self._named:
            _bad_schema(f"type {full[:80]!r} is defined twice")
        made = self._named[full] = Type("record" if kind == "error" else kind, name=full)
        if kind == "fixed":
            made.size = made.least = int(definition["size"])
            if not 0 <= made.size <= MAX_FIXED:
                _bad_schema(f"a fixed type of {made.size} bytes")
        elif kind == "enum":
            made.symbols = tuple(definition["symbols"])
        else:
            self._open.add(full)
            self._fields(made, definition["fields"], full.rpartition(".")[0], depth)
            self._open.discard(full)
        return made

    def _fields(self, record: Type, fields: list[dict[str, Any]], namespace: str, depth: int) -> None:
        for each in fields:
            record.fields.append((each["name"], self._parse(each["type"], namespace, depth + 1)))
            if "default" in each:
                record.defaults[each["name"]] = each["default"]

    def _measure(self) -> None:
        """Fill in `least` of every record; they may hold each other, so repeat until nothing changes."""
        records = [each for each in self._named.values() if each.kind == "record"]
        for record in records:
            record.least = math.inf
        for _ in range(len(records) + 1):
            before = [record.least for record in records]
            for record in reversed(records):
                record.least = sum(least_bytes(part) for _, part in record.fields)
            if before == [record.least for record in records]:
                break
        if any(record.least == math.inf for record in records):
            _bad_schema("a record that holds itself without end")


def least_bytes(each: Type) -> float:
    """The smallest number of bytes that a value of this type can take."""
    if each.kind == "union":
        return 1 + min(least_bytes(branch) for branch in each.branches)
    return each.least if each.name else _LEAST.get(each.kind, 1)


def _loads(text: str | bytes) -> Any:
    if len(text) > MAX_SCHEMA_BYTES:
        _bad_schema(f"{len(text)} bytes, more than {MAX_SCHEMA_BYTES}")
    return json.loads(text)


def _bad_schema(detail: str) -> NoReturn:
    raise PacketError(Reason.BAD_SCHEMA, f"the Avro schema has {detail}")


# --- resolution: writer and reader schema -> plan -----------------------------------------------------------


def resolve(writer: Type, reader: Type | None, path: str = "") -> Plan:
    """How to read what `writer` wrote as `reader` wants it; without a reader everything is skipped.

    A mismatch is no error yet: it becomes one when such a value comes up.
    """
    if reader is None:
        return Plan(writer)
    if writer.kind == "union":
        parts = [resolve(branch, reader, path) for branch in writer.branches]
        return Plan(writer, take="union", parts=parts)
    wanted = next(_acceptable(writer, reader), None)
    if wanted is None:
        return Plan(writer, error=f"{path or 'the record'} has type {writer.kind}")
    if writer.kind == "record":
        return _resolve_record(writer, wanted, path)
    return Plan(writer, take=wanted.kind)


def _acceptable(writer: Type, reader: Type) -> Iterator[Type]:
    """The reader's branches that can take this writer type, the same type before promotions."""
    branches = reader.branches if reader.kind == "union" else [reader]
    for kind in _PROMOTIONS.get(writer.kind, (writer.kind,)):
        if kind not in ("fixed", "array", "map"):
            yield from (branch for branch in branches if branch.kind == kind)


def _resolve_record(writer: Type, reader: Type, path: str) -> Plan:
    wanted = dict(reader.fields)
    plan = Plan(writer, take="record")
    for name, part in writer.fields:
        plan.keys.append(name if name in wanted else "")
        plan.parts.append(resolve(part, wanted.pop(name, None), f"{path}.{name}" if path else name))
    for name in wanted:
        if name not in reader.defaults:
            plan.error = f"{path or 'the record'} has no field {name}"
        plan.defaults[name] = reader.defaults.get(name)
    return plan


# --- the plain reader --------------------------------------------------------------------------------------


class PlainReader:
    """Reads values from `data[position:end]`, checking everything.

    Raises:
        PacketError: TRUNCATED, WRONG_TYPE or BAD_BLOCK, with the byte offset.
    """

    def __init__(self, data: bytes, position: int, end: int) -> None:
        self.data = data
        self.position = position
        self.end = end
        self._depth = 0
        self._steps = 0

    def read(self, plan: Plan) -> Any:
        """One value as the plan wants it (None where it skips)."""
        if plan.error:
            self._fail(Reason.WRONG_TYPE, plan.error)
        if plan.take == "record":
            return self._record(plan)
        if plan.take == "union":
            return self.read(plan.parts[self._branch(len(plan.parts))])
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
        """Pass over one value of any type."""
        self._depth += 1
        self._steps += 1
        if self._depth > MAX_DEPTH * 2:
            self._fail(Reason.BAD_BLOCK, "values nested too deep")
        if self._steps > MAX_STEPS:
            self._fail(Reason.BOMB, f"more than {MAX_STEPS} values in one record")
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
        least = least_bytes(item) + (each.kind == "map")
        while count := self.long():
            stop = None
            if count < 0:
                count = -count
                size = self.length()
                stop = self.position + size
            if count * least > self.end - self.position:
                self._fail(Reason.BAD_BLOCK, f"a block of {count} items does not fit")
            # Items of no bytes (null) are passed over at once: their count is not paid for by bytes.
            for _ in range(count if least else 0):
                if each.kind == "map":
                    self._advance(self.length())
                self.skip(item)
            if stop not in (None, self.position):
                self._fail(Reason.BAD_BLOCK, "a block is not as long as it says")

    def long(self) -> int:
        """A zig-zag number of at most ten bytes."""
        number = shift = 0
        while True:
            byte = self.data[self._advance(1)]
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return (number >> 1) ^ -(number & 1)
            shift += 7
            if shift > 63:
                self._fail(Reason.WRONG_TYPE, "a number of more than ten bytes")

    def length(self) -> int:
        """A length that fits into what is left."""
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


def _convert(value: Any, take: str, reader: PlainReader) -> Any:
    if take == "string" and isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise PacketError(Reason.WRONG_TYPE, f"text that is not UTF-8 (byte {reader.position})") from error
    if take == "bytes" and isinstance(value, str):
        return value.encode()
    return float(value) if take in ("float", "double") else value
