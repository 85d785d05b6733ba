"""Every Redis key, its type and its lifetime.

All keys of an object, its place in the queue and its outcome in the books share the hash tag of its shard, so that one
script changes them together, on one node or on a cluster. The scripts in broker/lua get `shard(n)` as their only key
and append the names below themselves, because one call serves many objects.

sh:{survey:shard}:
    headers:<object>    hash    source id (8 bytes, big endian) -> packed header (`sequences.HEADER`)       ┐
    stamps:<object>     hash    source id -> float16 [32, 32]                                               │ until the
    order:<object>      zset    source id by MJD; equal MJDs by source id, which is the order of its bytes  │ object was
    meta:<object>       hash    rev, ans, data: revision now / last answered / last change of a stored stamp │ quiet for
    latest:<object>     string  last classification                                                         │ redis.ttl_days
    history:<object>    list    earlier ones, oldest first, bounded                                         │ and is not
    tokens:<object>     hash    "model" -> model, 3 source ids (24 bytes) -> token                          ┘ pending
    fresh, due          zset    objects that wait, by ready time (Unix ms); fresh: never answered           until claimed
    inflight            zset    claimed objects by the end of their lease (Unix ms)                         until settled
    leases              hash    claimed object -> token of its claim                                        until settled
    touched             zset    live objects by the time of their last new stamp (Unix ms)                  as the object
    classified, declined set    live objects that are not pending, by their last answer                     as the object
    counts              hash    expired, lost: objects that were removed                                    for ever
    segments            set     "<partition>:<segment>" of the bitmaps below                                as the bitmap
    stored:<partition>:<segment>, duplicate:…   string  one bit an offset                  until folded + redis.books_days
sh:{survey|partition}:
    segments            set     segments with a bitmap                                                      as the bitmap
    marks               set     consumed, skipped.<reason>, rejected.<reason>: the bitmaps there are        for ever
    <mark>:<segment>    string  one bit an offset                                          until folded + redis.books_days
    folded              hash    segment -> its counts and which offsets they cover                          for ever
sh:{survey}:
    partitions          set     partition keys, `topic@topicid/partition`                                   for ever
    layout              string  what `shards` is                                                            for ever
"""

from zlib import crc32

# One bitmap covers this many offsets: 128 kB when full.
SEGMENT_BITS = 2**20
OBJECT_PARTS = ("headers", "stamps", "order", "meta", "latest", "history", "tokens")


def shard_of(object_id: str, shards: int) -> int:
    """The shard of an object, the same on every machine and in every release."""
    return crc32(object_id.encode()) % shards


class Keys:
    """The keys of one survey."""

    def __init__(self, survey: str) -> None:
        self.survey = survey
        self.partitions = f"sh:{{{survey}}}:partitions"
        self.layout = f"sh:{{{survey}}}:layout"

    def shard(self, shard: int) -> str:
        """What all keys of a shard begin with."""
        return f"sh:{{{self.survey}:{shard}}}:"

    def partition(self, partition: str) -> str:
        """What all keys of a partition's books begin with."""
        return f"sh:{{{self.survey}|{partition}}}:"

    def of_object(self, object_id: str, shard: int) -> list[str]:
        """Every key that an object may have to itself."""
        return [f"{self.shard(shard)}{part}:{object_id}" for part in OBJECT_PARTS]
