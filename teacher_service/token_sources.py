"""Where tokens come from: the environment, and a file that may change while the service runs.

The file has one token a line:

    # NAME     TOKEN                      [SCOPE]
    trainer    3yEbfgUCGTrIsDOmvRqnHQ
    prometheus 0hRzNmeTzXNGJZdZvkCwbg     metrics

SCOPE is `teacher` (the default: everything) or `metrics`. A line of one word is a token named for its line. Two lines
of one name are one caller with two tokens: so a token is changed with nobody refused meanwhile. No message repeats one.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import get_args

from pydantic import SecretStr

from stillhouse.errors import ConfigurationError
from teacher_service.auth import Scope, Token
from teacher_service.settings import TeacherSettings
from teacher_service.watched_files import read_watched_file

_SHORTEST_TOKEN = 16
# What a header can carry as one word.
_TOKEN = re.compile(r"[\x21-\x7e]+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")

_SCRAPER = "scraper"


def tokens_of(settings: TeacherSettings) -> tuple[Token, ...]:
    """Return every token that the settings name, from the environment and from the file.

    Raises:
        ConfigurationError: one that could be guessed or cannot be sent, or a file that cannot be used.
    """
    given = () if settings.tokens is None else tuple(settings.tokens.get_secret_value().split(","))
    secrets = [secret.strip() for secret in given if secret.strip()]
    found = [Token.of(f"token-{n}", _usable(one, "TEACHER_TOKENS"), "teacher") for n, one in enumerate(secrets, 1)]
    if settings.scrape_token is not None:
        found.append(Token.of(_SCRAPER, _usable(_text(settings.scrape_token), "TEACHER_SCRAPE_TOKEN"), "metrics"))
    if settings.tokens_file is not None:
        found += parse_tokens(read_tokens_file(settings.tokens_file), str(settings.tokens_file))
    if (settings.tokens is not None or settings.tokens_file is not None) and not found:
        raise ConfigurationError("TEACHER_TOKENS holds no token; unset it to let everybody ask, or name one")
    return _without_conflict(found)


def read_tokens_file(path: Path) -> str:
    """Return what the file holds.

    Raises:
        ConfigurationError: as `read_watched_file`, or it is no text.
    """
    try:
        return read_watched_file("tokens_file", path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigurationError(f"tokens_file: {path} is no text in UTF-8") from None


def parse_tokens(text: str, source: str) -> tuple[Token, ...]:
    """Return the tokens that `text` lists; `source` names it in messages.

    Raises:
        ConfigurationError: a line that is no token, or no token at all; the line is named by its number alone.
    """
    found: list[Token] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        place = f"{source}, line {number}"
        if len(words) > 3:
            raise ConfigurationError(f"{place}: expected NAME TOKEN [SCOPE]; got {len(words)} words")
        name, secret = (f"line-{number}", words[0]) if len(words) == 1 else words[:2]
        if not _NAME.fullmatch(name):  # it is not repeated: a line out of order would show its token
            raise ConfigurationError(
                f"{place}: the name must be 1 to 64 letters, digits, dots, dashes, underscores or @ signs"
            )
        scope: Scope | None = (
            next((one for one in get_args(Scope) if one == words[2]), None) if words[2:] else "teacher"
        )
        if scope is None:
            raise ConfigurationError(f"{place}: the scope must be one of {', '.join(get_args(Scope))}")
        found.append(Token.of(name, _usable(secret, place), scope))
    if not found:
        raise ConfigurationError(f"{source} holds no token; write one a line as NAME TOKEN [SCOPE]")
    return _without_conflict(found)


def is_readable_by_all(path: Path) -> bool:
    """Return whether every user of this machine can read the file."""
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False


def _usable(secret: str, place: str) -> str:
    if len(secret) < _SHORTEST_TOKEN:
        raise ConfigurationError(
            f"{place}: a token must have at least {_SHORTEST_TOKEN} characters; "
            "make one with `python -c 'import secrets; print(secrets.token_urlsafe(32))'`"
        )
    if not _TOKEN.fullmatch(secret):
        raise ConfigurationError(f"{place}: a token must be visible ASCII characters without a space between them")
    return secret


def _without_conflict(tokens: list[Token]) -> tuple[Token, ...]:
    """Return the tokens, each once.

    Raises:
        ConfigurationError: the same secret under two names, or with two scopes.
    """
    by_digest: dict[bytes, Token] = {}
    for token in tokens:
        known = by_digest.setdefault(token.digest, token)
        if known != token:
            raise ConfigurationError(f"one token stands twice, as {known.name} and as {token.name}; give each its own")
    return tuple(by_digest.values())


def _text(secret: SecretStr) -> str:
    return secret.get_secret_value().strip()
