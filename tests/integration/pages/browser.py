"""A real Chromium, without a head and without a way to the network, for tests of the live pages."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

AXE = Path(__file__).parents[3] / "node_modules" / "axe-core" / "axe.min.js"

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip

WIDE, NARROW = 1180, 390

PICTURES_VARIABLE = "STILLHOUSE_PICTURES"
"""A folder to keep the photographs in, for the docs and for whoever wants to look."""


class Browser:
    """One window."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str, *, width: int = WIDE, dark: bool = False) -> None:
        """Go to a page, in a window so wide, for a reader who likes it light or dark."""
        self._resize(width, 900)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get(url)

    def one(self, selector: str) -> Any:
        """Return the element, once it is there."""
        return self.until(lambda: self.driver.find_elements("css selector", selector))[0]

    def texts(self, selector: str) -> list[str]:
        """Return what elements say."""
        return [one.text for one in self.driver.find_elements("css selector", selector)]

    def until(self, holds: Callable[[], Any], seconds: float = 30.0) -> Any:
        """Return what `holds` gives once that is true; bounded."""
        from selenium.common.exceptions import StaleElementReferenceException

        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if value := holds():
                    return value
            except StaleElementReferenceException:
                pass  # a live part was replaced meanwhile
            time.sleep(0.05)
        raise AssertionError(f"{holds} did not come to hold within {seconds:g} s; the page:\n{self.driver.page_source}")

    def faults(self) -> list[str]:
        """Return what the browser complains of: scripts that fail, what the policy forbids, what is not there.

        That the form is answered with 401 is no fault.
        """
        return [one["message"] for one in self.driver.get_log("browser") if "401 (Unauthorized)" not in one["message"]]

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than its window."""
        return int(
            self.driver.execute_script(
                "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
        )

    def violations(self) -> list[str]:
        """Return what axe-core finds of serious or critical impact."""
        if not AXE.exists():
            pytest.skip(f"NOT CHECKED FOR ACCESSIBILITY: axe-core is not at {AXE} (`make proto-check` brings it)")
        # The policy of the page forbids scripts that are not its own; a debugger's are.
        self.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": AXE.read_text(encoding="utf-8")})
        found = self.driver.execute_cdp_cmd(
            "Runtime.evaluate",
            {
                "expression": "axe.run(document).then(r => JSON.stringify(r.violations.map(v => ({id: v.id, impact: "
                "v.impact, nodes: v.nodes.map(n => n.target.join(' ') + ': ' + n.failureSummary)}))))",
                "awaitPromise": True,
            },
        )
        listed = json.loads(found["result"]["value"])
        return [f"{one['id']} {one['nodes']}" for one in listed if one["impact"] in ("serious", "critical")]

    def photograph(self, name: str, folder: Path) -> Path:
        """Keep a picture of the whole page."""
        kept = Path(os.environ.get(PICTURES_VARIABLE) or folder)
        kept.mkdir(parents=True, exist_ok=True)
        self.driver.execute_script("document.activeElement.blur()")
        width = self.driver.execute_script("return window.innerWidth")
        self._resize(width, self.driver.execute_script("return document.documentElement.scrollHeight"))
        path = kept / f"{name}.png"
        self.driver.save_screenshot(str(path))
        self._resize(width, 900)
        return path

    def _resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


@contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """Give a browser with a profile of its own; skips loudly where there is none."""
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if binary is None or chromedriver is None:
        pytest.skip("THE LIVE PAGES ARE NOT DRIVEN: no chromium and chromedriver here (Debian: chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="THE LIVE PAGES ARE NOT DRIVEN: no selenium")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
