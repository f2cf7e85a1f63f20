"""What every page is sent with, and what a browser says of where a request comes from. Knows no web framework."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from urllib.parse import parse_qs, urlsplit

PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""Nothing of another host, nothing written into the page as a script or style, no frames, no copies kept."""

STATIC_TYPES = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
"""What a page loads, from this service alone."""

FORM_TYPE = "application/x-www-form-urlencoded"

# More fields than any form of ours has.
_MAX_FIELDS = 8


@cache
def static_text(name: str) -> str:
    """Return the text of a script or stylesheet of `STATIC_TYPES`."""
    return (files("stillhouse.pages") / "static" / name).read_text(encoding="utf-8")


def is_from_elsewhere(headers: Mapping[str, str]) -> bool:
    """Tell whether another site made a browser send this request.

    A cookie of ours is never sent along then (SameSite); this holds where no token is set, and so no cookie.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")


def read_form(body: bytes) -> dict[str, str]:
    """Return the fields of a form; the first of several of one name.

    Raises:
        ValueError: it is none.
    """
    fields = parse_qs(body.decode("utf-8"), keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    return {name: values[0] for name, values in fields.items()}
