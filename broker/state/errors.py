"""Translates errors of Redis, Valkey and redis-py into skyheed's own.

There are two kinds: those that pass by themselves or with a new connection (`ServiceUnavailable`: the daemons wait,
reconnect and repeat) and those that do not (`ServiceError`, `MissingRight`: they stop with one sentence).
"""

import re
from collections.abc import Iterator

from redis import exceptions as failure

from skyheed.broker.certificates import advice
from skyheed.broker.errors import (
    MissingRight,
    ServiceError,
    ServiceUnavailable,
    SkyheedError,
)

# Errors while a server starts, fails over, moves slots or cannot write; all are temporary.
PASSING = (
    "LOADING", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "READONLY", "MISCONF", "NOREPLICAS", "BUSY", "NOSCRIPT",
    "UNBLOCKED", "INPROG", "ASK ", "OOM",
)  # fmt: skip
# The same where redis-py strips the code from the message, and what proxies in front of Redis say during a failover.
PASSING_KINDS = (
    failure.ClusterError, failure.ReadOnlyError, failure.TryAgainError, failure.AskError, failure.NoScriptError,
    failure.OutOfMemoryError,
)  # fmt: skip
PASSING_WORDS = re.compile(
    "max number of clients|upstream|temporarily|no healthy|shutting down|failover|try again"
    "|server closed|replica instances|connection (refused|reset|timed out)",
    re.IGNORECASE,
)
LOGIN_WORDS = ("WRONGPASS", "NOAUTH", "invalid username-password", "AUTH <password> called")
_VERIFY = re.compile(r"certificate verify failed:? ?(.*?)\.? ?(\(_ssl|$)")


class NotReplicated(Exception):
    """Too few replicas confirmed a write within the time allowed."""

    def __init__(self, confirmed: int, wanted: int, wait_s: float) -> None:
        super().__init__(f"{confirmed} of {wanted} replicas confirmed within {wait_s:g} s")


def in_our_words(error: Exception, where: str, cluster: bool) -> SkyheedError:
    """One sentence for `error` from the server at `where`, which was treated as a cluster or not."""
    text = " ".join(str(error).split())
    found = (
        _of_replicas(error, where)
        or _of_login(error, where)
        or _of_tls(error, where)
        or _of_cluster(error, where, cluster)
    )
    if found:
        return found
    if isinstance(error, failure.OutOfMemoryError):
        return _away(f"Redis at {where} is full: raise its maxmemory; nothing is lost meanwhile")
    if text.startswith("MISCONF"):
        return _away(f"Redis at {where} cannot write its file{_cause(text)}: make room on its disk; nothing is lost")
    if isinstance(error, failure.ResponseError) and not passes(error):
        return ServiceError(f"Redis at {where} refuses: {text}")
    return _away(f"Redis at {where} is unavailable: {text or type(error).__name__}{_hint(text, where)}")


def _cause(text: str) -> str:
    """What the operating system said, as in "MISCONF Errors writing to the AOF file: No space left on device"."""
    found = re.search(r"file: ([\w ]+)", text)
    return f" ({found[1].split(' script')[0].strip()})" if found else ""


def passes(error: Exception) -> bool:
    """Whether an error reply is temporary or disappears with a new connection."""
    text = str(error)
    return isinstance(error, PASSING_KINDS) or text.startswith(PASSING) or bool(PASSING_WORDS.search(text))


def _away(sentence: str) -> ServiceUnavailable:
    return ServiceUnavailable(sentence, server="redis")


def _of_replicas(error: Exception, where: str) -> SkyheedError | None:
    if not isinstance(error, NotReplicated):
        return None
    return _away(
        f"Redis at {where} wrote, but {error}: nothing is committed until they do; "
        "look at its replicas, or set redis.wait_replicas lower"
    )


def _of_login(error: Exception, where: str) -> SkyheedError | None:
    errors = list(_chain(error))
    for found in errors:
        # how Redis 7 and Valkey say that a command in a script is not allowed
        if isinstance(found, failure.NoPermissionError) or str(found).startswith("ACL failure in script"):
            return MissingRight(
                f"the user may not do this on Redis at {where}: {found} (docs/security.md lists the rights)"
            )
    text = " ".join(map(str, errors))
    refused = failure.AuthenticationError | failure.AuthorizationError
    if any(isinstance(found, refused) for found in errors) or any(word in text for word in LOGIN_WORDS):
        return ServiceError(f"Redis at {where} refuses the user or password: set SKYHEED_REDIS_PASSWORD")
    return None


def _of_tls(error: Exception, where: str) -> SkyheedError | None:
    """A certificate that skyheed or the server does not trust; waiting does not help."""
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        verified = _VERIFY.search(text)
        reason = verified[1] if verified else "not verified"
        return ServiceError(
            f"Redis at {where} presents a certificate that cannot be trusted ({reason}): "
            f"{advice(reason, 'redis.url', 'redis.ca_file')}"
        )
    if "WRONG_VERSION_NUMBER" in text or "record layer failure" in text.lower():
        return ServiceError(f"Redis at {where} does not speak TLS: write redis:// instead of rediss:// in redis.url")
    if "certificate required" in text.lower() or "CERTIFICATE_REQUIRED" in text:
        return ServiceError(
            f"Redis at {where} asks for a client certificate: set redis.certificate_file and redis.key_file"
        )
    return None


def _of_cluster(error: Exception, where: str, cluster: bool) -> SkyheedError | None:
    if isinstance(error, failure.MovedError | failure.AskError) and not cluster:
        return ServiceError(f"Redis at {where} is a cluster: set redis.cluster = true")
    if isinstance(error, failure.AskError):
        # a script's keys are not all declared: while a slot moves between two nodes, it would see half of an object
        return _away(f"Redis at {where} is moving a slot to another node ({error}): waiting until it has moved")
    if "Cluster mode is not enabled" in str(error) and not any(_busy(cause) for cause in _chain(error)):
        return ServiceError(f"Redis at {where} is not a cluster: set redis.cluster = false")
    return None


def _busy(error: Exception) -> bool:
    return not isinstance(error, failure.RedisClusterException) and passes(error)


def _hint(text: str, where: str) -> str:
    """The likely cause when a server is silent or closes the connection."""
    hung_up = any(words in text for words in ("closed by server", "reset by peer", "EOF occurred"))
    if not where.startswith("rediss://"):
        return " (if it speaks TLS, write rediss:// in redis.url)" if hung_up else ""
    if hung_up:
        return " (if it requires a client certificate, set redis.certificate_file and redis.key_file)"
    return " (if it does not speak TLS, write redis:// in redis.url)" if "Timeout connecting" in text else ""


def _chain(error: BaseException | None) -> Iterator[Exception]:
    """The error and those it was raised from: redis-py's cluster client wraps what a node said."""
    for _ in range(8):
        if not isinstance(error, Exception):
            return
        yield error
        error = error.__cause__ or error.__context__
