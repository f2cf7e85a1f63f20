"""The site of docs/: it builds with no warning, and a reader's browser asks no other host for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

NO_HOST = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
"""A build that fetched anything would fail: nobody listens there."""

_IN_STYLE = r"url\(\s*[\"']?(?!data:)([^\"')]+)"
"""An address in a style sheet; pictures that it holds itself are data."""

OUTSIDE = re.compile(r"(?:https?:)?//(?!127\.0\.0\.1|localhost)\S+")


class _Fetched(HTMLParser):
    """Collects what a browser fetches to show a page: everything but the links that a person follows."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            follows = tag == "a" and name == "href"
            if value and not follows and name in ("href", "src", "srcset", "poster", "data", "action"):
                self.addresses.append(value)
            elif value and name == "style":
                self.addresses += re.findall(_IN_STYLE, value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    argv = [sys.executable, "-W", "error", "-m", "mkdocs", "build", "--site-dir", str(folder)]
    environment = {**os.environ, **NO_HOST, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return folder


def fetched(site: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(site.rglob("*.html")):
        parser = _Fetched()
        parser.feed(path.read_text(encoding="utf-8"))
        yield from ((path.name, address) for address in parser.addresses)
    for path in sorted([*site.rglob("*.css"), *site.rglob("*.svg")]):
        text = path.read_text(encoding="utf-8")
        for pattern in (_IN_STYLE, r"@import\s+[\"']([^\"']+)", r"<image[^>]+href=\"([^\"]+)"):
            yield from ((path.name, address) for address in re.findall(pattern, text))


def test_nothing_comes_from_another_host(site: Path) -> None:
    found = list(fetched(site))
    assert len(found) > 100
    assert [(name, address) for name, address in found if OUTSIDE.match(address)] == []


def test_nothing_is_drawn_by_a_program_from_another_host(site: Path) -> None:
    # The theme's script fetches mermaid, and a listing of a repository, where a page has use for them.
    pages = [path.read_text(encoding="utf-8") for path in site.rglob("*.html")]
    assert len(pages) > 20
    assert [text for text in pages if 'class="mermaid"' in text or "data-md-source" in text or "repo_url" in text] == []


def test_everything_that_a_page_fetches_is_there(site: Path) -> None:
    missing = []
    for name, address in fetched(site):
        if name.endswith(".html") and name != "404.html" and not re.match(r"[a-z]+:|#", address):
            path = site / address.partition("#")[0].partition("?")[0]
            if not path.exists():
                missing.append((name, address))
    assert missing == []
