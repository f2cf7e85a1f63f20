"""The teacher's live page over real HTTP: who gets in, what is shown, and what another site cannot make it do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from stillhouse.pages.attempts import BURST
from tests.integration.http.speaking import ServeTeacher, http_to

TOKEN, SCRAPE_TOKEN = "right-token-0123456789", "scrape-token-0123456789"
FORM = {"text": "1 2 3 5", "temperature": "1.0"}


def shares(html: str) -> list[str]:
    return re.findall(r'<span class="n">([^<]+)</span>', html)


async def come_in(http: httpx.AsyncClient, token: str = TOKEN) -> httpx.Response:
    return await http.post("/page/enter", data={"token": token})


async def test_without_tokens_everybody_sees_the_page(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher() as service, http_to(service) as http:
        await http.post("/v1/logits", json={"sequences": [{"token_ids": [1, 2, 3]}]}, headers={"x-request-id": "mine"})
        page = await http.get("/")
        assert page.status_code == 200
        for shown in ("fixture", "ready", "dense", "every request is computed", "dense:f32", ">mine<", "no tokens"):
            assert shown in page.text
        live = await http.get("/page/live")
        assert 'id="live-top"' in live.text
        assert "<html" not in live.text


async def test_nothing_is_loaded_from_elsewhere_nor_written_into_the_page(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher() as service, http_to(service) as http:
        page = await http.get("/")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert not re.search(r"<script(?! src=)|<style| style=| on[a-z]+=|https?://", page.text)
        for path in re.findall(r'(?:src|href)="(/[^"]+)"', page.text):
            answer = await http.get(path)
            assert answer.status_code == 200
            assert len(answer.content) < 10_000


async def test_the_box_shows_what_the_interface_answers(serve_teacher: ServeTeacher, tiny_llama_folder: Path) -> None:
    async with (
        serve_teacher(backend="transformers", model=str(tiny_llama_folder)) as service,
        http_to(service) as http,
    ):
        text = "the mash is warmed"
        ids = service.lifecycle.teacher.token_ids(text)
        assert ids is not None
        form = {"text": text, "temperature": "2.0"}
        part = await http.post("/page/distribution", data=form, headers={"x-part": "1"})
        body: dict[str, Any] = {
            "sequences": [{"token_ids": ids, "positions": "all"}],
            "encoding": {"kind": "top_k", "k": 5, "value_type": "float32"},
            "temperature": 2.0,
        }
        (payload,) = (await http.post("/v1/logits", json=body)).json()["payloads"]
        positions = re.split(r'<li class="position">', part.text)[1:]
        assert len(positions) == len(ids)
        for position, log_probabilities in zip(positions, payload["tempered_log_probabilities"], strict=True):
            assert shares(position)[0] in (f"{2.718281828 ** log_probabilities[0]:{form}}" for form in (".0%", ".1%"))
        assert "after <b>·" in part.text
        whole = await http.post("/page/distribution", data=form)
        assert "<html" in whole.text
        assert 'value="2.0"' in whole.text


async def test_what_was_written_is_marked_though_it_is_unlikely(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher() as service, http_to(service) as http:
        part = await http.post("/page/distribution", data={**FORM, "text": "7 200"}, headers={"x-part": "1"})
        (written,) = re.findall(r'<li class="written">.*?title="(\d+)"', part.text)
        assert written == "200"


@pytest.mark.parametrize(
    ("form", "status", "said"),
    [
        ({"text": ""}, 400, "no token"),
        ({"text": "1 " * 1500}, 413, "characters"),
        ({"text": "1 " * 500}, 413, "500 tokens; 128"),
        ({"temperature": "hot"}, 400, "must be a number"),
        ({"temperature": "0"}, 400, "temperature must be from 0.1 to 4"),
        ({"temperature": "nan"}, 400, "temperature must be from 0.1 to 4"),
    ],
)
async def test_what_cannot_be_asked_is_explained_in_the_box(
    serve_teacher: ServeTeacher, form: dict[str, str], status: int, said: str
) -> None:
    async with serve_teacher() as service, http_to(service) as http:
        part = await http.post("/page/distribution", data={**FORM, **form}, headers={"x-part": "1"})
        assert part.status_code == status
        assert said in part.text


async def test_what_is_typed_is_never_markup(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher() as service, http_to(service) as http:
        page = await http.post("/page/distribution", data={**FORM, "text": "1</textarea><script>alert(1)</script>"})
        assert "<script>alert" not in page.text


async def test_a_token_buys_a_pass_that_is_not_the_token(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher(tokens=TOKEN) as service, http_to(service) as http:
        form = await http.get("/")
        assert form.status_code == 401
        assert 'type="password"' in form.text
        assert (await http.get("/page/live")).status_code == 401
        entered = await come_in(http)
        assert (entered.status_code, entered.headers["location"]) == (303, "/")
        cookie = entered.headers["set-cookie"]
        assert "HttpOnly; SameSite=Strict" in cookie
        assert TOKEN not in cookie
        assert (await http.get("/")).status_code == 200
        asked = await http.post("/page/distribution", data=FORM)
        assert asked.status_code == 200
        assert TOKEN not in asked.text
        # The pass opens the page alone.
        assert (await http.get("/v1/teacher")).status_code == 401
        given = re.match(r"stillhouse_teacher=([^;]+)", cookie)
        assert given is not None
        assert (await http.get("/v1/teacher", headers={"authorization": f"Bearer {given[1]}"})).status_code == 401
        left = await http.post("/page/leave", data={"leave": "1"})
        assert left.status_code == 303
        assert (await http.get("/")).status_code == 401


async def test_a_pass_ends_with_its_token(serve_teacher: ServeTeacher) -> None:
    from teacher_service.auth import Token

    async with serve_teacher(tokens=TOKEN) as service, http_to(service) as http:
        await come_in(http)
        assert (await http.get("/")).status_code == 200
        service._access.replace([Token.of("other", "another-token-0123456789")])
        assert (await http.get("/")).status_code == 401


async def test_the_scrape_token_opens_the_figures_alone(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher(tokens=TOKEN, scrape_token=SCRAPE_TOKEN) as service, http_to(service) as http:
        await come_in(http, SCRAPE_TOKEN)
        page = await http.get("/")
        assert page.status_code == 200
        assert "opens the figures alone" in page.text
        assert (await http.post("/page/distribution", data=FORM)).status_code == 403


async def test_wrong_tokens_are_bounded(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher(tokens=TOKEN) as service, http_to(service) as http:
        tried = [await come_in(http, f"wrong-token-{number:016}") for number in range(BURST + 2)]
        assert [one.status_code for one in tried[:BURST]] == [401] * BURST
        assert tried[-1].status_code == 429
        assert int(tried[-1].headers["retry-after"]) >= 1
        # The right one has to wait as well, lest it be told from the others.
        assert (await come_in(http)).status_code == 429


@pytest.mark.parametrize("path", ["/page/distribution", "/page/enter", "/page/leave"])
@pytest.mark.parametrize(
    "headers",
    [{"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"origin": "https://elsewhere.example"}],
)
async def test_another_sites_form_is_refused(serve_teacher: ServeTeacher, path: str, headers: dict[str, str]) -> None:
    async with serve_teacher() as service, http_to(service) as http:
        assert (await http.post(path, data=FORM, headers=headers)).status_code == 403


async def test_what_is_no_form_is_refused(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher() as service, http_to(service) as http:
        assert (await http.post("/page/distribution", json=FORM)).status_code == 415
        fields = "&".join(f"a{number}=1" for number in range(50))
        form = {"content-type": "application/x-www-form-urlencoded"}
        assert (await http.post("/page/enter", content=fields, headers=form)).status_code == 400


async def test_the_page_is_there_while_the_teacher_is_not(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher() as service, http_to(service) as http:
        service.lifecycle.drain()
        page = await http.get("/")
        assert page.status_code == 200
        assert "draining" in page.text
        service.lifecycle.phase = "loading"
        assert "loading" in (await http.get("/page/live")).text
