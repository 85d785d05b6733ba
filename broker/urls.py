"""What a URL or a list of servers may contain, and how to show it without its password. Opens no connection."""

import re
from urllib.parse import parse_qsl, urlsplit

# Everything up to the last @ is user and password: urlsplit would end a password at its first / # or ?
_USER_AND_PASSWORD = re.compile(r"(?<=://)([^:]*):.*@", re.DOTALL)
_PASSWORD_OPTION = re.compile(r"([?&][^=&]*password=)[^&]*", re.DOTALL)
_SERVER = re.compile(
    r"(?:(?:PLAINTEXT|SSL|SASL_PLAINTEXT|SASL_SSL)://)?(?:\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+)(?::(\d+))?"
)
# Options allowed after the ? of a Redis URL: redis-py would fail on others with a traceback at the first connection.
_REDIS_WORDS = frozenset(
    ("username", "password", "client_name", "ssl_cert_reqs", "ssl_ca_certs", "ssl_ca_path", "ssl_ca_data",
     "ssl_certfile", "ssl_keyfile", "ssl_password", "ssl_check_hostname")
)  # fmt: skip
_REDIS_NUMBERS = frozenset(
    ("db", "protocol", "health_check_interval", "socket_timeout", "socket_connect_timeout", "max_connections")
)  # fmt: skip


def redacted_url(url: str) -> str:
    """The URL without its password, for logs and messages; the password may contain any characters."""
    return _PASSWORD_OPTION.sub(r"\1***", _USER_AND_PASSWORD.sub(r"\1:***@", url))


def splits_well(url: str) -> bool:
    """Whether a client that parses the URL by the standard finds the host that the user meant."""
    if not _USER_AND_PASSWORD.search(url):
        return True
    try:
        return "@" in urlsplit(url).netloc
    except ValueError:
        return False


def servers_fault(servers: str) -> str:
    """Why a list of Kafka servers cannot work; empty if it can."""
    for server in servers.split(","):
        found = _SERVER.fullmatch(server.strip())
        if not found:
            return f"{server.strip()!r} is not a server: write host:port, several separated by commas"
        if found[1] and not 1 <= int(found[1]) <= 65_535:
            return f"{server.strip()!r} has no port from 1 to 65535"
    return ""


def redis_hosts(url: str) -> list[str]:
    """One URL for each of the comma-separated hosts in it: the nodes of a cluster."""
    scheme, mark, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    user, at, hosts = place.rpartition("@")
    if not mark or not hosts:
        return [url]
    return [f"{scheme}://{user}{at}{host}{slash}{path}" for host in hosts.split(",")]


def redis_fault(url: str, cluster: bool = False) -> str:
    """Why a URL is not a valid Redis or Valkey URL; empty if it is."""
    hosts = redis_hosts(url)
    if len(hosts) > 1 and not cluster:
        return "several hosts are the nodes of a cluster: set redis.cluster = true, or name one"
    return next(filter(None, map(_redis_fault, hosts)), "")


def _redis_fault(url: str) -> str:
    form = f"{redacted_url(url)} is not a Redis URL: write redis://host:port/0 (rediss://: TLS, unix:///path: a socket)"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return form
    if parts.scheme not in ("redis", "rediss", "unix") or port == 0 or re.search(r"\s", url):
        return form
    if parts.scheme == "unix":
        return "" if parts.path else form
    if not parts.hostname or not re.fullmatch(r"/?\d{0,5}", parts.path):
        return form
    return _query_fault(parts.query)


def _query_fault(query: str) -> str:
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in _REDIS_NUMBERS and not re.fullmatch(r"\d{1,9}(\.\d+)?", value):
            return f"{name} in the Redis URL must be a number"
        if name not in _REDIS_NUMBERS | _REDIS_WORDS:
            return f"the Redis URL has an option {name!r} that is not known; known are " + ", ".join(
                sorted(_REDIS_NUMBERS | _REDIS_WORDS)
            )
    return ""


def http_fault(url: str) -> str:
    """Why a URL is not a valid schema-registry URL; empty if it is."""
    form = f"{redacted_url(url)} is not the address of a registry: write http://host:port or https://host"
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return form
    return form if not good or re.search(r"[\s\x00-\x1f]", url) or parts.query or parts.fragment else ""
