"""What a URL or a list of servers may contain, and how to show it without its password. Opens no connection."""

import re
from urllib.parse import SplitResult, parse_qsl, urlsplit

_SCHEME = re.compile(r"(?:\w{1,20}://)?", re.ASCII)
_USER = re.compile(r"[\w.@+-]*", re.ASCII)
# What a mistyped address may be and still be shown: no user, no option, nothing quoted, a port that is one.
_PLAIN = re.compile(r"(?:\w{1,20}:/{1,3})?[\w. -]{0,100}(?::\d{0,6})?(?:/[\w.-]{0,60}){0,5}", re.ASCII)
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
_HARMLESS = (_REDIS_NUMBERS | _REDIS_WORDS) - {"password", "ssl_password", "ssl_ca_data"}


def redacted_url(url: str) -> str:
    """The URL without its secrets, for logs and messages: password, options not known to be harmless, fragment.

    Everything up to the last @ is user and password, which may contain any characters; `://` may have been forgotten.
    """
    scheme = found[0] if (found := _SCHEME.match(url)) else ""
    account, at, place = url[len(scheme) :].rpartition("@")
    user, colon, _ = account.partition(":")
    if colon:
        account = f"{user if _USER.fullmatch(user) else '***'}:***"
    elif not _USER.fullmatch(account):
        account = "***"
    return f"{scheme}{account}{at}{_without_secrets(place) if scheme else place}"


def _without_secrets(place: str) -> str:
    place, hashed, _ = place.partition("#")
    place, asked, query = place.partition("?")
    return place + asked + "&".join(map(_shown_option, query.split("&"))) + ("#***" if hashed else "")


def _shown_option(option: str) -> str:
    name = option.partition("=")[0]
    if name in _HARMLESS or not option:
        return option
    return f"{name}=***" if name in _REDIS_WORDS else "***"


def shown_address(text: str) -> str:
    """A mistyped address for a message, if it is plain enough to hold no secret."""
    return repr(text) if _PLAIN.fullmatch(text) else "what is written there (it may hold a password, and is not shown)"


def splits_well(url: str) -> bool:
    """Whether a client that parses the URL by the standard finds the host that the user meant."""
    if not re.search(r"://[^:]*:.*@", url, re.DOTALL):
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
            return f"{shown_address(server.strip())} is not a server: write host:port, several separated by commas"
        if found[1] and not 1 <= int(found[1]) <= 65_535:
            return f"{shown_address(server.strip())} has no port from 1 to 65535"
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
    form = (
        f"{shown_address(url)} is not a Redis URL: write redis://host:port/0 (rediss://: TLS, unix:///path: a socket)"
    )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return form
    if parts.scheme not in ("redis", "rediss", "unix") or port == 0 or re.search(r"\s", url):
        return form
    if parts.scheme == "unix":
        return "" if parts.path else form
    if not names_host(parts) or not re.fullmatch(r"/?\d{0,5}", parts.path):
        return form
    return _query_fault(parts.query)


def names_host(parts: SplitResult) -> bool:
    """Whether a URL names a host; with a quoted `:` or `@` in it, a password would be taken for a part of its name."""
    host = parts.netloc.rpartition("@")[2]
    return bool(parts.hostname) and ("%" not in host or host.startswith("["))


def _query_fault(query: str) -> str:
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in _REDIS_NUMBERS and not re.fullmatch(r"\d{1,9}(\.\d+)?", value):
            return f"{name} in the Redis URL must be a number"
        if name not in _REDIS_NUMBERS | _REDIS_WORDS:
            shown = f"an option {shown_address(name)}" if value else "something after its ?"
            known = ", ".join(sorted(_REDIS_NUMBERS | _REDIS_WORDS))
            return f"the Redis URL has {shown} that is not known; known are {known}"
    return ""


def http_fault(url: str) -> str:
    """Why a URL is not a valid schema-registry URL; empty if it is."""
    form = f"{shown_address(url)} is not the address of a registry: write http://host:port or https://host"
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and names_host(parts) and parts.port != 0
    except ValueError:
        return form
    return form if not good or re.search(r"[\s\x00-\x1f]", url) or parts.query or parts.fragment else ""
