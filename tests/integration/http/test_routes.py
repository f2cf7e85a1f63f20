"""What the routes beside /v1/logits say, and to whom."""

from __future__ import annotations

from pathlib import Path

from tests.integration.http.speaking import ServeTeacher, http_to

TOKEN = "right-token-0123456789"
SCRAPE_TOKEN = "scrape-token-0123456789"


async def test_readiness_follows_the_life_of_the_service(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher() as service, http_to(service) as http:
        assert (await http.get("/readyz")).json() == {"status": "ready", "model": "fixture", "cache": "off"}
        for phase in ("loading", "draining"):
            service.lifecycle.phase = phase
            response = await http.get("/readyz")
            assert (response.status_code, response.json()["status"]) == (503, phase)
            assert (await http.get("/livez")).status_code == 200
            assert (await http.get("/v1/teacher")).status_code == 503


async def test_the_teacher_describes_itself(serve_teacher: ServeTeacher, tiny_llama_folder: Path) -> None:
    async with (
        serve_teacher(backend="transformers", model=str(tiny_llama_folder)) as service,
        http_to(service) as http,
    ):
        plain = (await http.get("/v1/teacher")).json()
        assert plain["encodings"] == ["dense", "hidden", "top_k", "sampled", "candidates"]
        assert plain["limits"]["max_sequence_tokens"] == 512
        assert "tokens" not in plain
        full = (await http.get("/v1/teacher", params={"include_tokens": True})).json()
        assert len(full["tokens"]) == 300


async def test_metrics_have_the_names_that_dashboards_use(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher() as service, http_to(service) as http:
        await http.post("/v1/logits", json={"sequences": [{"token_ids": [1]}]})
        text = (await http.get("/metrics")).text
        for name in (
            "requests_total", "request_duration_seconds", "queue_duration_seconds", "compute_duration_seconds",
            "encode_duration_seconds", "queue_size", "batch_tokens", "padding_tokens_total", "shed_total",
            "cache_requests_total", "response_bytes_total", "forward_tokens_total",
        ):  # fmt: skip
            assert f"# TYPE teacher_{name} " in text, name
        assert 'teacher_requests_total{code="200",method="POST /v1/logits"} 1.0' in text


async def test_every_route_but_health_is_closed_once_a_token_is_set(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher(tokens=TOKEN, scrape_token=SCRAPE_TOKEN) as service:
        async with http_to(service, TOKEN) as friend:
            paths = set((await friend.get("/openapi.json")).json()["paths"]) | {"/openapi.json", "/nothing"}
            assert (await friend.post("/v1/logits", json={"sequences": []})).status_code == 200
            assert (await friend.get("/readyz")).json()["model"] == "fixture"
        assert {"/livez", "/readyz", "/metrics", "/v1/teacher", "/v1/logits"} <= paths
        async with http_to(service) as stranger, http_to(service, SCRAPE_TOKEN) as scraper:
            for path in paths - {"/livez", "/readyz"}:
                for method in ("GET", "POST"):
                    response = await stranger.request(method, path)
                    assert response.status_code == 401, path
                    assert response.headers["www-authenticate"] == "Bearer"
                    expected = 403 if path != "/metrics" else None
                    assert expected in (None, (await scraper.request(method, path)).status_code), path
            assert (await stranger.get("/livez")).json() == {"status": "alive"}
            assert (await stranger.get("/readyz")).json() == {"status": "ready"}
            assert (await scraper.get("/metrics")).status_code == 200
