"""The routes and the forms that the pages of all services share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from stillhouse.pages.answers import FORM_TYPE, PAGE_HEADERS, STATIC_TYPES, is_from_elsewhere, read_form, static_text


def add_static(router: APIRouter) -> None:
    """Add the routes of the style, the script and the icon."""
    for name in STATIC_TYPES:
        router.get(f"/page/static/{name}")(_static(name))


def _static(name: str) -> Callable[[], Awaitable[Response]]:
    headers = {**PAGE_HEADERS, "cache-control": "public, max-age=300"}

    async def static() -> Response:
        return Response(static_text(name), 200, headers, STATIC_TYPES[name])

    return static


async def form_of(request: Request, max_bytes: int) -> dict[str, str]:
    """Return the fields of a form of ours.

    Raises:
        HTTPException: another site has made a browser send it (403), it is no form (415), it is over `max_bytes` (413)
            or cannot be read (400).
    """
    if is_from_elsewhere(request.headers):
        raise HTTPException(403, "this form is sent from this service's own page alone")
    if request.headers.get("content-type", "").partition(";")[0].strip() != FORM_TYPE:
        raise HTTPException(415, f"a form is sent as {FORM_TYPE}")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise HTTPException(413, f"the form is over {max_bytes} bytes")
    try:
        return read_form(body)
    except ValueError as error:
        raise HTTPException(400, f"the form cannot be read: {error}") from error
