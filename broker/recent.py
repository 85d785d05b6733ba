"""What came lately, in bounded memory whatever its names are: only digests of them are kept."""

from hashlib import blake2b

DIGEST_BYTES = 16  # of 1e9 names the chance that any two are the same is 1e-21


class Recent:
    """A number by name, for the `size` names that were put last and up to as many before them.

    Two generations: when the young one is full, it becomes the old one, which is forgotten.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._young: dict[bytes, int] = {}
        self._old: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, *name: str | bytes) -> int | None:
        """The number of a name of one or more parts; None for one that did not come lately."""
        key = _digest(name)
        found = self._young.get(key)
        return self._old.get(key) if found is None else found

    def put(self, *name: str | bytes, number: int = 0) -> None:
        """Remember a name as the newest one."""
        self._young[_digest(name)] = number
        if len(self._young) >= self._size:
            self._old, self._young = self._young, {}


def _digest(name: tuple[str | bytes, ...]) -> bytes:
    found = blake2b(digest_size=DIGEST_BYTES)
    for part in name:
        data = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        found.update(len(data).to_bytes(8, "big") + data)  # so that ("a", "bc") is not ("ab", "c")
    return found.digest()
