"""Remembers recent names in bounded memory, however long they are: only digests are kept."""

from hashlib import blake2b

DIGEST_BYTES = 16  # among 1e9 names the chance of a collision is 1e-21


class Recent:
    """Maps a name to a number, for the last `size` names and up to as many before them.

    Two generations: when the young one is full, it replaces the old one.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._young: dict[bytes, int] = {}
        self._old: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, *name: str | bytes) -> int | None:
        """The number of a name (one or more parts); None if it was not seen recently."""
        key = _digest(name)
        found = self._young.get(key)
        return self._old.get(key) if found is None else found

    def put(self, *name: str | bytes, number: int = 0) -> None:
        """Remember a name as the newest."""
        self._young[_digest(name)] = number
        if len(self._young) >= self._size:
            self._old, self._young = self._young, {}


def _digest(name: tuple[str | bytes, ...]) -> bytes:
    found = blake2b(digest_size=DIGEST_BYTES)
    for part in name:
        data = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        found.update(len(data).to_bytes(8, "big") + data)  # so that ("a", "bc") is not ("ab", "c")
    return found.digest()
