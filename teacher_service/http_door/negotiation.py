"""Which of the forms on offer a caller takes, by its `Accept` header (RFC 9110, 12.5.1), and what it sends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from starlette.exceptions import HTTPException

_MAX_RANGES = 64


@dataclass(frozen=True, slots=True)
class _Range:
    """One of the media types, or ranges of them, that a caller takes."""

    type: str
    subtype: str
    quality: float

    def precision(self, offer: str) -> int | None:
        """Return how precisely it names `offer` (0 anything, 1 the kind, 2 the type itself); None where it does not."""
        kind, _, subtype = offer.partition("/")
        if (self.type, self.subtype) == ("*", "*"):
            return 0
        if self.type != kind:
            return None
        return {"*": 1, subtype: 2}.get(self.subtype)


def choose(accept: str | None, offers: Sequence[str]) -> str:
    """Return the offer of the highest quality, then the one named most precisely, then the first.

    Raises:
        HTTPException: the caller takes none of them (406).
    """
    ranges = list(_ranges(accept or "")) or [_Range("*", "*", 1.0)] * (not (accept or "").strip())
    best: tuple[float, int] | None = None
    chosen = ""
    for offer in offers:
        matches = [(p, r.quality) for r in ranges if (p := r.precision(offer)) is not None]
        # The most precise range that names a type decides about it, be it to forbid it.
        precision, quality = max(matches, default=(0, 0.0))
        if quality > 0 and (best is None or (quality, precision) > best):
            best, chosen = (quality, precision), offer
    if best is None:
        raise HTTPException(406, f"accept: none of what it names is made here; ask for {' or '.join(offers)}")
    return chosen


def names(accept: str | None, offer: str) -> bool:
    """Return whether a caller asks for this very type, rather than for anything or nothing in particular."""
    return any(one.precision(offer) == 2 and one.quality > 0 for one in _ranges(accept or ""))


def require_as_it_is(content_encoding: str | None) -> None:
    """See that a body is not compressed.

    Raises:
        HTTPException: it is (415).
    """
    if (content_encoding or "identity").strip().lower() != "identity":
        raise HTTPException(415, "content-encoding: send the body as it is", {"accept-encoding": "identity"})


def require_json(content_type: str | None, content_encoding: str | None) -> None:
    """See that a body is plain JSON in UTF-8.

    A body that does not say so is refused: a web page of somebody else's can send one to a teacher on loopback.

    Raises:
        HTTPException: it is not (415).
    """
    kind, parameters = _parse(content_type or "")
    is_json = kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
    charset = parameters.get("charset", "utf-8").lower()
    if not is_json or charset not in ("utf-8", "utf8", "us-ascii"):
        told = "content-type: send application/json, in UTF-8, or application/protobuf"
        raise HTTPException(415, told, {"accept-post": "application/json, application/protobuf"})
    require_as_it_is(content_encoding)


def _ranges(accept: str) -> Iterator[_Range]:
    for text in accept.split(",")[:_MAX_RANGES]:
        name, parameters = _parse(text)
        kind, _, subtype = name.partition("/")
        try:
            quality = float(parameters.get("q", "1"))
        except ValueError:
            continue
        if kind and subtype and 0 <= quality <= 1:
            yield _Range(kind, subtype, quality)


def _parse(text: str) -> tuple[str, dict[str, str]]:
    name, *rest = text.split(";")
    pairs = (part.partition("=") for part in rest)
    return name.strip().lower(), {key.strip().lower(): value.strip().strip('"') for key, _, value in pairs}
