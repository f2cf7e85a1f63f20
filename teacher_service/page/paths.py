"""The page's paths, and what each needs. The gate holds requests to it."""

from __future__ import annotations

from stillhouse.pages.answers import STATIC_TYPES

HOME = ("GET", "/")
"""Asks for a token by itself: what it says without one is a form."""

LIVE = ("GET", "/page/live")
"""The parts of the page that change; like metrics, it takes no place among the requests."""

ASK = ("POST", "/page/distribution")
"""A text's distributions; a request like any other."""

OPEN = frozenset(
    {
        ("POST", "/page/enter"),
        ("POST", "/page/leave"),
        *(("GET", f"/page/static/{name}") for name in STATIC_TYPES),
    }
)
"""Open to all: the form's own doors, and what makes it readable."""

PAGE_PATHS = frozenset(path for _, path in (HOME, LIVE, ASK, *OPEN))

COOKIE = "stillhouse_teacher"
"""Named for the service: browsers send a cookie to every port of a host."""
