"""Passes: what a browser keeps once a person has shown a token, so that the token itself stays nowhere.

A pass is a time when it ends, a random part, and a keyed hash of both under the token's own digest. So nothing is
remembered for it, it holds at every replica that has the token, and it ends with the token. Knows nothing of cookies
but their form.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie

PASS_SECONDS = 12 * 3600
"""A working day. A person then shows the token again."""

# A browser sends its cookies with every request: what is longer than any pass of ours is not looked at.
_LONGEST_PASS = 256


def make_pass(digest: bytes, service: str, *, seconds: float = PASS_SECONDS) -> str:
    """Return a pass for whoever has shown the token of this digest to this service."""
    ends, nonce = int(time.time() + seconds), secrets.token_urlsafe(16)
    return f"{ends}.{nonce}.{_seal(digest, service, ends, nonce)}"


def find_token(given: str, digests: Sequence[bytes], service: str) -> int | None:
    """Return which of the tokens a pass was made with; None where it is none of theirs, or over.

    Each is compared, and in constant time, so that the time says nothing about which one it was.
    """
    parts = given.split(".") if len(given) <= _LONGEST_PASS and given.isascii() else []
    if len(parts) != 3 or not parts[0].isdecimal():
        return None
    ends, nonce, seal = int(parts[0]), parts[1], parts[2]
    matches = [hmac.compare_digest(seal, _seal(digest, service, ends, nonce)) for digest in digests]
    return matches.index(True) if True in matches and time.time() < ends else None


def cookie_of(header: str | None, name: str) -> str | None:
    """Return the value of one cookie of a request's header."""
    try:
        found = SimpleCookie(header or "").get(name)
    except CookieError:
        return None
    return None if found is None else found.value


def set_cookie(name: str, value: str, *, secure: bool, seconds: int = PASS_SECONDS) -> str:
    """Return the header that makes a browser keep a pass, out of reach of scripts and of other sites' requests."""
    return f"{name}={value}; Max-Age={seconds}; Path=/; HttpOnly; SameSite=Strict{'; Secure' if secure else ''}"


def _seal(digest: bytes, service: str, ends: int, nonce: str) -> str:
    message = f"stillhouse page\0{service}\0{ends}\0{nonce}".encode()
    return hmac.new(digest, message, hashlib.sha256).hexdigest()
