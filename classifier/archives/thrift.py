"""Numbers and structs of Thrift's compact protocol, in which Parquet writes its footer and the headers of its pages.

pyarrow shows what a footer says, too, but its `RowGroupMetaData.column` ends the process at a histogram of levels that
does not fit (26.0.1). Everything here takes time and memory in proportion to the bytes.

https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from collections.abc import Callable, Iterator, Mapping

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
_DEEPEST = 16  # structs and lists in each other; a footer has seven


class Compact:
    """Reads from `at`; raises IndexError behind the last byte, ValueError for what is none."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self._data, self.at = data, at

    def fields(self) -> Iterator[tuple[int, int]]:
        """Id and type of each field of a struct; the caller reads or skips its value before it asks for the next."""
        number, data = 0, self._data
        while head := data[self.at]:
            self.at += 1
            number = number + (head >> 4) if head >> 4 else self.number()
            yield number, head & 15
        self.at += 1

    def numbers(
        self, wanted: Mapping[int, int], inner: Mapping[int, Callable[[], None]] | None = None
    ) -> dict[int, int]:
        """The numbers of a struct by field id.

        Args:
            wanted: field id -> type; others are skipped.
            inner: field id -> what reads a list or struct there.
        """
        found: dict[int, int] = {}
        for number, kind in self.fields():
            if number in wanted or (inner and number in inner):
                expected = wanted.get(number, kind)
                if kind != expected or (number not in wanted and kind not in (LIST, STRUCT)):
                    raise ValueError(f"field {number} is of type {kind}")
            if number in wanted:
                found[number] = self.number()
            elif inner and number in inner:
                inner[number]()
            else:
                self.skip(kind)
        return found

    def structs(self) -> Iterator[None]:
        """Once for each struct of a list, which the caller reads."""
        size, kind = self._list()
        if kind != STRUCT and size:
            raise ValueError(f"a list of type {kind}")
        for _ in range(size):
            yield

    def skip(self, kind: int, depth: int = 0) -> None:
        """Pass over a value."""
        if depth > _DEEPEST:
            raise ValueError("values nested too deep")
        if kind in (I16, I32, I64):
            self.number()
        elif kind == BINARY:
            self._pass(self._unsigned())
        elif kind in (BYTE, DOUBLE):
            self._pass(1 if kind == BYTE else 8)
        elif kind == STRUCT:
            for _, inner in self.fields():
                self.skip(inner, depth + 1)
        elif kind in (LIST, SET):
            size, inner = self._list()
            for _ in range(size):  # a boolean takes a byte here
                self.skip(BYTE if inner in (TRUE, FALSE) else inner, depth + 1)
        elif kind not in (TRUE, FALSE):
            raise ValueError(f"a value of type {kind}")

    def byte(self) -> int:
        """The next byte."""
        self.at += 1
        return self._data[self.at - 1]

    def number(self) -> int:
        """A number of 16, 32 or 64 bits."""
        number = self._unsigned()  # zig-zag, as in `broker.packets.avro_numbers`, which this package does not import
        return (number >> 1) ^ -(number & 1)

    def _list(self) -> tuple[int, int]:
        head = self.byte()
        return (head >> 4 if head >> 4 < 15 else self._unsigned()), head & 15

    def _pass(self, size: int) -> None:
        self.at += size
        if self.at > len(self._data):
            raise IndexError

    def _unsigned(self) -> int:
        number = self._data[self.at]
        self.at += 1
        if number < 0x80:  # most are
            return number
        number, shift = number & 0x7F, 7
        while True:
            byte = self.byte()
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")
