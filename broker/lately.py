"""What came lately, in bounded memory whatever its names are: only digests of them are kept."""

from collections import OrderedDict
from hashlib import blake2b

DIGEST_BYTES = 16  # of 1e9 names the chance that any two are the same is 1e-21


class Lately:
    """A number by name for the `size` names that were put last; about 250 bytes each."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._book: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._book)

    def get(self, *name: str | bytes) -> int | None:
        """The number of a name of one or more parts; None for one that did not come lately."""
        return self._book.get(_digest(name))

    def put(self, *name: str | bytes, number: int = 0) -> None:
        """Remember a name as the newest one."""
        key = _digest(name)
        self._book[key] = number
        self._book.move_to_end(key)
        if len(self._book) > self._size:
            self._book.popitem(last=False)


def _digest(name: tuple[str | bytes, ...]) -> bytes:
    found = blake2b(digest_size=DIGEST_BYTES)
    for part in name:
        data = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        found.update(len(data).to_bytes(8, "big") + data)  # so that ("a", "bc") is not ("ab", "c")
    return found.digest()
