"""Every link and every path that a page names leads somewhere; `make docs` sees to the links among docs/ themselves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, fences, prose, spans, text_of

FOLDERS = "benchmarks|deploy|docs|proto|recipes|stillhouse|student_worker|teacher_service|tests"


def headings(page: Path) -> set[str]:
    """The names by which a page's headings are linked, as repository pages and the site make them."""
    name = str(page.relative_to(ROOT))
    found = re.findall(r"^#+ (.*)$", prose(name), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    path = ROOT / page
    missing = []
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", prose(page)):
        target = path.parent / link if link else path
        if not target.exists() or (anchor and anchor not in headings(target.resolve())):
            missing.append(f"{link}#{anchor}")
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_every_path_of_the_repository_exists(page: str) -> None:
    named = {span for _, span in spans(page) if re.fullmatch(rf"(?:{FOLDERS})/[\w./-]+", span)}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_fence_says_what_it_holds(page: str) -> None:
    assert [fence.line for fence in fences(page) if not fence.language] == []
    for fence in fences(page, "console"):
        assert fence.text.startswith("$ "), f"{page}:{fence.line}: a console begins with a command"


def test_the_first_screen_says_what_it_is_and_shows_the_two_commands() -> None:
    text = "\n".join(text_of("README.md").splitlines()[:25])
    assert "make demo" in text
    assert "make test" in text
    picture = re.search(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert picture is not None
    assert (ROOT / picture[1]).exists()
