"""One browser for all tests of the pages: it takes seconds to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.pages.browser import Browser, open_browser


@pytest.fixture(scope="session")
def browser_of_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A real Chromium."""
    with open_browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def browser(browser_of_session: Browser) -> Browser:
    """The same, as a person who has not been here."""
    browser_of_session.driver.delete_all_cookies()
    browser_of_session.faults()
    return browser_of_session
