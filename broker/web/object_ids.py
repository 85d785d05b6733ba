"""Object ids in URLs. An id is arbitrary external text: it may contain slashes, dots, markup or 200 characters."""

import base64
import binascii
import re

LONGEST = 1024  # characters of an id that anyone may ask for
_PLAIN = re.compile(r"[A-Za-z0-9_.+@=:-]{1,200}")
_MARK = "~"


def path_key(object_id: str) -> str:
    """The id as one path segment: itself if that is safe, otherwise `~` and the base64url of its UTF-8."""
    if _PLAIN.fullmatch(object_id) and object_id.strip("."):
        return object_id
    encoded = base64.urlsafe_b64encode(object_id.encode("utf-8", "surrogatepass"))
    return _MARK + encoded.decode().rstrip("=")


def object_of(key: str) -> str:
    """The id of a path key; text that is not a path key is taken as the id itself.

    Raises:
        ValueError: it begins with `~` but was not made by `path_key`, or it is too long.
    """
    if len(key) > 2 * LONGEST:
        raise ValueError(f"an object id has at most {LONGEST} characters")
    if not key.startswith(_MARK):
        return key
    coded = key[1:]
    try:
        found = base64.b64decode(coded + "=" * (-len(coded) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError) as error:
        raise ValueError("what follows ~ is not an id in base64url: use the `path` that lists give") from error
    return found
