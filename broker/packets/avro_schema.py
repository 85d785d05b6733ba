"""Avro schemas: JSON text -> types, at a cost that is linear in the text and bounded.

A schema can come with every packet, so parsing must be cheap for any content: the limits below keep the worst case at a
few milliseconds. The largest known schema, Rubin's, has 120 kB, 2800 brackets and commas, 10 named types.

Specification: https://avro.apache.org/docs/1.11.1/specification/#schema-declaration
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from skyheed.broker.errors import PacketError, Reason

MAX_SCHEMA_BYTES = 1 << 18
MAX_SYNTAX = 6_000  # brackets and commas in the text: each can begin a value
MAX_NAMED = 500  # records, enums and fixed types
MAX_DEPTH = 64  # of nested types, including through references, and of nested values of a recursive type
MAX_FIXED = 1 << 24
_MAX_RECURSIVE = 500  # records and unions of a schema whose records contain each other
_MAX_ROUNDS = 16  # passes to measure those

_LEAST = {"null": 0, "float": 4, "double": 8}  # bytes; every other primitive takes at least one
_PRIMITIVES = ("null", "boolean", "int", "long", "float", "double", "bytes", "string")

Library = Mapping[str, Any] | Iterable[tuple[str, Any]]


@dataclass(eq=False, slots=True)
class Type:
    """One Avro type.

    Attributes:
        least: the smallest number of bytes that a value of it can take.
        depth: of the types below it.
        nodes: the greatest number of values in one value of it, not counting the contents of arrays and maps.
    """

    kind: str
    name: str = ""
    fields: list[tuple[str, "Type"]] = field(default_factory=list)
    defaults: dict[str, Any] = field(default_factory=dict)
    branches: list["Type"] = field(default_factory=list)  # union; or the one item type of an array or map
    size: int = 0
    symbols: tuple[str, ...] = ()
    least: float = 1
    depth: int = 0
    nodes: int = 1


_SIMPLE = {kind: Type(kind, least=_LEAST.get(kind, 1)) for kind in _PRIMITIVES}
_TEXT = "string", "bytes"  # each of them is a type of its own, because `avro_fast` tells them apart by their lengths


class Schema:
    """A parsed Avro schema.

    Args:
        definition: the schema as JSON text or as `json.loads` returns it.
        library: name and definition of schemas that this one may refer to. A type is looked up under the name of
            its schema first, then in every schema; if two schemas define the same name, the first one counts.

    Raises:
        PacketError: BAD_SCHEMA.
    """

    def __init__(self, definition: Any, library: Library = ()) -> None:
        self._library = list(library.items() if isinstance(library, Mapping) else library)
        self._aliases: dict[str, Type] = {}
        self._named: dict[str, Type] = {}
        self._unions: dict[tuple[str, ...], Type] = {}
        self._collections: dict[tuple[str, int], Type] = {}  # arrays and maps, by their contents
        self._definitions: dict[str, Any] = {}
        self._open: set[str] = set()
        self._composites: list[Type] = []  # innermost first
        self.recursive = False
        try:
            self.root = self._parse(load_json(definition), "", 0)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
            raise PacketError(Reason.BAD_SCHEMA, f"not an Avro schema: {type(error).__name__}") from error
        if self.recursive:
            self._measure_again()
        del self._library, self._aliases, self._named, self._unions, self._collections, self._definitions
        del self._composites

    def as_json(self) -> Any:
        """The schema as JSON data for other Avro libraries, complete, without logical types, aliases and docs."""
        return _as_json(self.root, set())

    def _parse(self, definition: Any, namespace: str, depth: int) -> Type:
        if depth > MAX_DEPTH:
            bad_schema(f"types nested deeper than {MAX_DEPTH}")
        if isinstance(definition, str):
            if definition in _TEXT:
                return replace(_SIMPLE[definition])
            return _SIMPLE.get(definition) or self._lookup(definition, namespace, depth)
        if isinstance(definition, list):
            return self._union(definition, namespace, depth)
        kind = definition["type"]
        if not isinstance(kind, str):
            return self._parse(kind, namespace, depth + 1)
        if kind in ("array", "map"):
            item = definition["items" if kind == "array" else "values"]
            return self._collection(kind, self._parse(item, namespace, depth + 1))
        if kind in ("record", "error", "enum", "fixed"):
            return self._define(kind, definition, namespace, depth)
        return self._parse(kind, namespace, depth + 1)

    def _collection(self, kind: str, item: Type) -> Type:
        made = self._collections.get((kind, id(item)))
        if made is None:
            made = self._collections[kind, id(item)] = self._close(Type(kind, branches=[item]))
        return made

    def _union(self, definition: list[Any], namespace: str, depth: int) -> Type:
        simple = all(isinstance(branch, str) and branch in _SIMPLE and branch not in _TEXT for branch in definition)
        if simple and tuple(definition) in self._unions:  # nearly all unions of a survey
            return self._unions[tuple(definition)]
        branches = [self._parse(branch, namespace, depth + 1) for branch in definition]
        if not branches or any(branch.kind == "union" for branch in branches):
            bad_schema("a union that is empty or holds a union")
        if len({(branch.kind, branch.name) for branch in branches}) < len(branches):
            bad_schema("a union that holds a type twice")
        made = self._close(Type("union", branches=branches))
        if simple:
            self._unions[tuple(definition)] = made
        return made

    def _lookup(self, name: str, namespace: str, depth: int) -> Type:
        candidates = [f"{namespace}.{name}", name] if namespace and "." not in name else [name]
        found = self._known(candidates)
        if found is None and self._library:
            found = self._from_library(candidates, depth)
        if found is None:
            bad_schema(f"no definition of type {name[:80]!r}")
        self.recursive = self.recursive or found.name in self._open
        return found

    def _known(self, candidates: list[str]) -> Type | None:
        found = [names[full] for names in (self._named, self._aliases) for full in candidates if full in names]
        return found[0] if found else None

    def _from_library(self, candidates: list[str], depth: int) -> Type | None:
        """Read schemas of the library until one has the type; those called by its name come first."""
        for entry in sorted(self._library, key=lambda entry: entry[0] not in candidates):
            if entry not in self._library:
                continue  # read in the meantime, by one of the others
            self._library.remove(entry)
            name, definition = entry
            full = _full_name(definition, "") if isinstance(definition, dict) and "name" in definition else ""
            # a name that is already known: another version of it, or the same type under another name
            self._aliases[name] = self._named.get(full) or self._parse(definition, "", depth + 1)
            if found := self._known(candidates):
                return found
        return None

    def _define(self, kind: str, definition: dict[str, Any], namespace: str, depth: int) -> Type:
        full = _full_name(definition, namespace)
        if full in self._named:
            if self._definitions[full] != definition or full in self._open:
                bad_schema(f"two definitions of type {full[:80]!r}")
            return self._named[full]
        if len(self._named) >= MAX_NAMED:
            bad_schema(f"more than {MAX_NAMED} named types")
        made = self._named[full] = Type("record" if kind == "error" else kind, name=full)
        self._definitions[full] = definition
        if kind == "fixed":
            made.size = made.least = _size(definition["size"])
        elif kind == "enum":
            made.symbols = _symbols(definition["symbols"])
        else:
            made.least = math.inf  # not known yet: it may contain itself
            self._open.add(full)
            self._fields(made, definition["fields"], full.rpartition(".")[0], depth)
            self._open.discard(full)
            self._close(made)
        return made

    def _fields(self, record: Type, fields: list[dict[str, Any]], namespace: str, depth: int) -> None:
        for each in fields:
            if not isinstance(each["name"], str):
                bad_schema("a field without a name")
            record.fields.append((each["name"], self._parse(each["type"], namespace, depth + 1)))
            if "default" in each:
                record.defaults[each["name"]] = each["default"]

    def _close(self, made: Type) -> Type:
        """Measure a type whose parts are all known."""
        parts = made.branches or [part for _, part in made.fields]
        made.depth = 1 + max((part.depth for part in parts), default=0)
        if made.depth > MAX_DEPTH:
            bad_schema(f"types nested deeper than {MAX_DEPTH}")
        made.least = _least(made)
        if made.kind in ("record", "union"):
            inner = [part.nodes for part in parts]
            made.nodes = 1 + (max(inner) if made.kind == "union" else sum(inner))
        self._composites.append(made)
        return made

    def _measure_again(self) -> None:
        """Measure records that contain each other: repeat until nothing changes."""
        if len(self._composites) > _MAX_RECURSIVE:
            bad_schema(f"records that hold each other and more than {_MAX_RECURSIVE} types")
        for _ in range(_MAX_ROUNDS):
            before = [each.least for each in self._composites]
            for each in self._composites:
                each.least = _least(each)
            if before == [each.least for each in self._composites]:
                break
        else:
            bad_schema("records that hold each other in too many ways")
        if math.inf in before:
            bad_schema("a record that contains itself without end")


def _as_json(each: Type, written: set[str]) -> Any:
    if each.name and each.name in written:
        return each.name
    written.add(each.name)
    named: dict[str, Any] = {"type": each.kind, "name": each.name}
    if each.kind == "union":
        return [_as_json(branch, written) for branch in each.branches]
    if each.kind in ("array", "map"):
        return {"type": each.kind, "items" if each.kind == "array" else "values": _as_json(each.branches[0], written)}
    if each.kind == "enum":
        return named | {"symbols": list(each.symbols)}
    if each.kind == "fixed":
        return named | {"size": each.size}
    if each.kind != "record":
        return each.kind
    fields = [
        {"name": name, "type": _as_json(part, written)}
        | ({"default": each.defaults[name]} if name in each.defaults else {})
        for name, part in each.fields
    ]
    return named | {"fields": fields}


def _least(each: Type) -> float:
    if each.kind == "union":
        return 1 + min(branch.least for branch in each.branches)
    if each.kind == "record":
        return sum(part.least for _, part in each.fields)
    return 1  # the end of an array or map


def _full_name(definition: dict[str, Any], namespace: str) -> str:
    name, own = definition["name"], definition.get("namespace")
    if not name.strip("."):
        bad_schema("a type without a name")
    if "." in name:
        return str(name)
    return f"{own if isinstance(own, str) else namespace}.{name}".lstrip(".")


def _size(size: Any) -> int:
    if not isinstance(size, int) or not 0 <= size <= MAX_FIXED:
        bad_schema(f"a fixed type of {str(size)[:20]} bytes")
    return size


def _symbols(symbols: Any) -> tuple[str, ...]:
    if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
        bad_schema("an enum whose symbols are not names")
    return tuple(symbols)


def load_json(text: Any) -> Any:
    """A schema's JSON text as Python values; anything else is returned as it is.

    Raises:
        PacketError: BAD_SCHEMA, longer or more complex than any real schema.
        ValueError, RecursionError: not JSON.
    """
    if not isinstance(text, str | bytes):
        return text
    if len(text) > MAX_SCHEMA_BYTES:
        bad_schema(f"{len(text)} bytes, more than {MAX_SCHEMA_BYTES}")
    data = text.encode() if isinstance(text, str) else text
    syntax = data.count(b"{") + data.count(b"[") + data.count(b",")
    if syntax > MAX_SYNTAX:
        bad_schema(f"{syntax} brackets and commas, more than {MAX_SYNTAX}")
    return json.loads(data)


def bad_schema(detail: str) -> NoReturn:
    """Raise PacketError BAD_SCHEMA."""
    raise PacketError(Reason.BAD_SCHEMA, f"the Avro schema has {detail}")
