"""Every Redis key, its type and its lifetime.

All keys of an object, its place in the queue and its outcome in the books share the hash tag of its shard, so that one
script changes them together, on one node or on a cluster. The scripts in broker/state/lua get `shard(n)`
as their only key and append the names below themselves, because one call serves many objects.

sh:{survey:shard}:        of an object, until quiet for redis.ttl_days with nothing pending (sweep.lua)
    headers:<object>      hash    source id (8 bytes, big endian) -> packed header (`sequence.HEADER`)
    stamps:<object>       hash    source id -> float16 [32, 32]
    seen:<object>         hash    source id -> SHA-1 of a payload whose pixels every model has seen (redis.keep_pixels),
                                  by which another payload is compared with it
    further:<object>      hash    source id -> digest of the template (8 bytes, 0 for none), difference (parts.py)
    templates:<object>    hash    digest -> template; digest and "n" -> its uses, where it has several
    points:<object>       string  photometry, 16 bytes each (parts.py), the newest 300
    context:<object>      string  source id of the newest epoch, its context (parts.py)
    order:<object>        zset    source id by MJD; equal MJDs by source id, which is the order of its bytes
    meta:<object>         hash    rev, data, ans.<model>: current revision, last with a replaced or dropped stamp, last
                                  classified
                          of an object and a model, as long
    latest.<model>:<object>   string  last classification
    history.<model>:<object>  list    one line for each classification, oldest first, bounded
    tokens.<model>:<object>   hash    "model" -> version of what it keeps, the source ids of neighbouring epochs
                                      (8 bytes each) -> what it keeps of them
                          of a model's queue
    fresh.<model>, due.<model>       zset  waiting objects by ready time (Unix ms), fresh: never classified; until
                                           they are claimed
    inflight.<model>, leases.<model> zset, hash  claimed objects by the end of their lease (Unix ms), and its token;
                                           until they are settled
                          of the books
    models                set     that classify the survey's objects, until they are retired
    needs                 hash    model -> most epochs, version of what it keeps: what has to be there before pixels may
                                  go (redis.keep_pixels), as long
    touched               zset    objects kept, by the time of their last new stamp (Unix ms)
    classified.<model>, declined.<model>  set  those of them not pending, by last classification
    unasked.<model>       zset    those that were there before the model and have not changed since
    counts                hash    expired, lost: objects removed; forever
    waited                string  how often replicas were waited for in this hash tag (redis.wait_replicas); forever
    segments              set     "<partition>:<segment>" of the bitmaps below, as long as those
    stored:<partition>:<segment>, duplicate:…  string  a bit for each offset; until folded, and redis.books_days more
    Without any model the names end before the dot; so did those of release 0.1, which knew one. The first model that
    joins takes them over (join.lua); what release 0.1 stored about an object is read, except its tokens.
sh:{survey:sky/band/part}:
    near                  set     objects with a detection in this cell of the sky (neighbours.py), where
                                  ingest.join_arcsec is set; redis.ttl_days after the last one
sh:{survey|partition}:
    <mark>:<segment>      string  a bit for each offset; until folded, and redis.books_days more
    segments              set     the segments of these bitmaps, as long as those
    marks                 set     consumed, skipped.<reason>, rejected.<reason>: the marks there are; forever
    folded                hash    segment -> its counts and the offsets they cover; forever
    recent                string  while something came to the partition within redis.books_idle_days
    waited                string  how often replicas were waited for in this hash tag (redis.wait_replicas); forever
sh:{survey}:
    partitions            set     partition keys, `topic@topicid/partition`, until their books are closed
    finished, totals      hash    of those whose books are closed: partition -> its counts; name -> counts of all; for
                          ever
    layout                string  the number of shards, which older releases look for here; forever
    agreed                hash    what all daemons agree on, name -> value (layout.py); forever
    daemons               hash    daemon -> time of its last sign of life (Unix ms) and what it waits for (JSON); until
                          it ends, or was silent for ten minutes (heartbeat.py)
"""

from collections.abc import Iterable
from zlib import crc32

# One bitmap covers this many offsets: 128 kB when full.
SEGMENT_BITS = 2**20
OBJECT_PARTS = (
    "headers", "stamps", "seen", "further", "templates", "points", "context", "order", "meta", "latest", "history",
    "tokens",
)  # fmt: skip
MODEL_PARTS = ("latest", "history", "tokens")


def shard_of(object_id: str, shards: int) -> int:
    """The shard of an object, the same on every machine and in every release."""
    return crc32(object_id.encode()) % shards


def waited(key: str) -> str:
    """The counter alongside `key`, in the same slot, that is raised before waiting for replicas."""
    return f"{key.partition('}:')[0]}}}:waited"


class Keys:
    """The keys of one survey."""

    def __init__(self, survey: str) -> None:
        self.survey = survey
        self.prefix = f"sh:{{{survey}}}:"
        self.partitions = f"{self.prefix}partitions"
        self.layout = f"{self.prefix}layout"
        self.agreed = f"{self.prefix}agreed"

    def shard(self, shard: int) -> str:
        """The common prefix of all keys of a shard."""
        return f"sh:{{{self.survey}:{shard}}}:"

    def near(self, band: int, part: int) -> str:
        """The objects of a cell of the sky."""
        return f"sh:{{{self.survey}:sky/{band}/{part}}}:near"

    @staticmethod
    def lane(model: str) -> str:
        """The suffix of the names of a model's own keys, before the object."""
        return f".{model}" if model else ""

    def partition(self, partition: str) -> str:
        """The common prefix of all keys of a partition's books."""
        return f"sh:{{{self.survey}|{partition}}}:"

    def of_object(self, object_id: str, shard: int, models: Iterable[str] = ()) -> list[str]:
        """Every key that belongs to a single object."""
        parts = [*OBJECT_PARTS, *(part + self.lane(model) for model in models for part in MODEL_PARTS)]
        return [f"{self.shard(shard)}{part}:{object_id}" for part in parts]
