"""The teacher's page in a real Chromium: typed into, slid, entered with a token, photographed, held to axe-core."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from stillhouse.client import AsyncTeacherClient
from stillhouse.encodings import Hidden, TopK
from teacher_service.service import TeacherService
from tests.integration.conftest import ServeTeacher
from tests.integration.pages.browser import NARROW, WIDE, Browser

TOKEN = "right-token-0123456789"
TEXT = "the mash is"

pytestmark = pytest.mark.long  # a browser takes its time on a busy machine

LOOKS = [(width, dark) for width in (WIDE, NARROW) for dark in (False, True)]


async def ask_a_little(service: TeacherService, token: str | None = None) -> None:
    async with AsyncTeacherClient(f"127.0.0.1:{service.grpc_port}", token=token) as client:
        for length in (4, 9, 30, 4):
            await client.logits([list(range(1, 1 + length))], encoding=TopK(8))
        await client.logits([[1, 2, 3]], encoding=Hidden())
    service._history.sample()


async def test_a_person_types_and_slides(
    serve_teacher: ServeTeacher, tiny_llama_folder: Path, valkey: str, browser: Browser, tmp_path: Path
) -> None:
    async with serve_teacher(valkey, backend="transformers", model=str(tiny_llama_folder)) as service:
        await ask_a_little(service)
        url = f"http://127.0.0.1:{service.http_port}/"
        num_tokens = len(service.lifecycle.teacher.token_ids(TEXT) or ())
        await asyncio.to_thread(type_and_slide, browser, url, num_tokens, tmp_path)


def type_and_slide(browser: Browser, url: str, num_tokens: int, tmp_path: Path) -> None:
    browser.open(url)
    assert "ready" in browser.texts(".state")
    type_text(browser, num_tokens)
    cold = browser.texts(".position .n")
    # By keyboard: from 1.0 up to 1.6.
    browser.one("#temperature").send_keys("\ue014" * 6)
    browser.until(lambda: "1.6" in browser.one("#answer > .note").text)
    assert browser.one(".slider output").text == "1.6"
    assert browser.texts(".position .n") != cold
    # The live parts come anew; what is typed stays.
    before = browser.one("#live-top")
    browser.until(lambda: browser.one("#live-top") != before)
    assert browser.one("#text").get_attribute("value") == TEXT
    for width, dark in LOOKS:
        browser.open(url, width=width, dark=dark)
        type_text(browser, num_tokens)
        assert browser.overflow() <= 0
        assert browser.violations() == []
        name = f"teacher-{'narrow' if width == NARROW else 'wide'}-{'dark' if dark else 'light'}"
        assert browser.photograph(name, tmp_path).stat().st_size > 10_000
    browser.driver.find_element("css selector", "[data-pause]").click()
    assert browser.one("[data-pause]").get_attribute("aria-pressed") == "true"
    assert browser.faults() == []


def type_text(browser: Browser, num_tokens: int) -> None:
    browser.one("#text").send_keys(TEXT)
    browser.until(lambda: len(browser.driver.find_elements("css selector", ".position")) == num_tokens)
    browser.until(lambda: browser.one("#answer").get_attribute("aria-busy") is None)


async def test_a_token_lets_a_person_in_and_a_wrong_one_does_not(serve_teacher: ServeTeacher, browser: Browser) -> None:
    async with serve_teacher(tokens=TOKEN) as service:
        await asyncio.to_thread(come_in, browser, f"http://127.0.0.1:{service.http_port}/")


def come_in(browser: Browser, url: str) -> None:
    browser.open(url)
    assert browser.violations() == []
    browser.one("#token").send_keys("wrong-token-0123456789\n")
    browser.until(lambda: browser.texts("[role=alert]") == ["That token is unknown here."])
    browser.one("#token").send_keys(f"{TOKEN}\n")
    browser.until(lambda: browser.texts("h1") == ["fixture"])
    assert browser.driver.current_url == url
    (cookie,) = browser.driver.get_cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert browser.driver.execute_script("return document.cookie") == ""
    browser.one("#text").send_keys("1 2 3")
    browser.until(lambda: len(browser.texts(".position")) == 3)
    browser.driver.find_element("css selector", "form[action='/page/leave'] button").click()
    browser.until(lambda: browser.texts("h1") == ["A token, please"])
    assert browser.faults() == []


async def test_without_scripts_the_box_answers_too(serve_teacher: ServeTeacher, browser: Browser) -> None:
    async with serve_teacher() as service:
        await asyncio.to_thread(ask_without_scripts, browser, f"http://127.0.0.1:{service.http_port}/")


def ask_without_scripts(browser: Browser, url: str) -> None:
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.open(url)
        browser.one("#text").send_keys("1 2 3 4")
        browser.driver.find_element("css selector", "form[data-in-place] button").click()
        browser.until(lambda: len(browser.texts(".position")) == 4)
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.real_weights
async def test_the_real_teacher_is_photographed(
    serve_teacher: ServeTeacher, valkey: str, browser: Browser, tmp_path: Path
) -> None:
    async with serve_teacher(valkey, backend="transformers", model="smollm2", torch_threads=1) as service:
        await ask_a_little(service)
        await asyncio.to_thread(photograph_real, browser, f"http://127.0.0.1:{service.http_port}/", tmp_path)


def photograph_real(browser: Browser, url: str, tmp_path: Path) -> None:
    for width, dark in LOOKS:
        browser.open(url, width=width, dark=dark)
        browser.one("#text").send_keys("The for statement is used to iterate")
        browser.until(lambda: len(browser.texts(".position")) == 7, 120)
        name = f"real-teacher-{'narrow' if width == NARROW else 'wide'}-{'dark' if dark else 'light'}"
        assert browser.photograph(name, tmp_path).stat().st_size > 10_000
