"""Readers for recently seen writer schemas, in bounded memory and time.

A schema seen once is kept in a separate small cache, so that a stream with a new schema in every packet evicts only
its own. Errors of bad schemas are remembered as well.
"""

from collections import OrderedDict
from hashlib import blake2b
from typing import TypeVar

from skyheed.broker.errors import PacketError, Reason
from skyheed.broker.packets.avro import Schema
from skyheed.broker.packets.avro_fast import Credit, RecordReader

KEPT_NEW, KEPT, KEPT_BAD = 16, 32, 256  # schemas seen once, seen again, and bad ones
KEPT_IDS = 100  # schemas of a registry
Key = TypeVar("Key")
Value = TypeVar("Value")


class Readers:
    """Readers of records written with any schema.

    Args:
        wanted: the reader schema; None skips everything and finds the end of the record.
    """

    def __init__(self, wanted: Schema | None) -> None:
        self.credit = Credit()
        self._wanted = wanted
        self._new: OrderedDict[bytes, RecordReader] = OrderedDict()
        self._known: OrderedDict[bytes, RecordReader] = OrderedDict()
        self._bad: OrderedDict[bytes, tuple[Reason, str]] = OrderedDict()
        self._by_id: OrderedDict[object, tuple[Schema, RecordReader]] = OrderedDict()

    def of_text(self, text: bytes) -> RecordReader:
        """The reader for a schema's JSON text.

        Raises:
            PacketError: BAD_SCHEMA.
        """
        reader = self._known.get(text) or self._new.pop(text, None)
        if reader is not None:
            keep(self._known, text, reader, KEPT)
            return reader
        reader = self._learn(text)
        dropped = keep(self._new, text, reader, KEPT_NEW)
        if dropped is not None and dropped[1].used_again:  # recognised by its header alone
            keep(self._known, *dropped, KEPT)
        return reader

    def of_schema(self, number: object, schema: Schema) -> RecordReader:
        """The reader for a schema from a registry, by its id or GUID."""
        known = self._by_id.get(number)
        if known is None or known[0] is not schema:
            known = schema, RecordReader(schema, self._wanted, credit=self.credit)
        keep(self._by_id, number, known, KEPT_IDS)
        return known[1]

    def _learn(self, text: bytes) -> RecordReader:
        digest = blake2b(text, digest_size=16).digest()
        if digest in self._bad:
            self._bad.move_to_end(digest)
            raise PacketError(*self._bad[digest])
        try:
            return RecordReader(Schema(text), self._wanted, credit=self.credit)
        except PacketError as error:
            keep(self._bad, digest, (error.reason, error.detail), KEPT_BAD)
            raise


def keep(book: "OrderedDict[Key, Value]", key: Key, value: Value, size: int) -> tuple[Key, Value] | None:
    """Put an entry last; drop the first one if there are more than `size`, and return it."""
    book[key] = value
    book.move_to_end(key)
    return book.popitem(last=False) if len(book) > size else None
