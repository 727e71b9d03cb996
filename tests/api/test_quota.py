"""Rate limits per API key."""

import asyncio
import http.client
import json

import pytest

from tests.conftest import Serve, until
from tests.fakes import FakeEngine

BODY = {"query": "tides", "documents": ["tides"]}
KEYS = {"api_keys": "first,second"}
FIRST, SECOND = {"X-API-Key": "first"}, {"Authorization": "Bearer second"}


async def test_a_key_has_a_limit_of_parallel_requests(serve: Serve, engine: FakeEngine) -> None:
    async with serve(**KEYS, key_max_parallel=2) as client:
        engine.gate.clear()
        running = [asyncio.create_task(client.post("/rerank", json=BODY, headers=FIRST)) for _ in range(2)]
        await until(lambda: serve.reranker.admission.active == 2)
        refused = await client.post("/rerank", json=BODY, headers=FIRST)
        other = asyncio.create_task(client.post("/rerank", json=BODY | {"query": "moon"}, headers=SECOND))
        await until(lambda: serve.reranker.admission.active == 3)
        assert (await client.get("/info", headers=FIRST)).status_code == 200
        engine.gate.set()
        answers = await asyncio.gather(*running, other)
        again = await client.post("/rerank", json=BODY, headers=FIRST)
        figures = (await client.get("/metrics")).text
    assert refused.status_code == 429
    assert refused.json()["error"]["type"] == "rate_limited"
    assert "At most 2 requests of one key at a time (RERANKER_KEY_MAX_PARALLEL)" in refused.json()["detail"]
    assert refused.headers["retry-after"] == "1"
    assert [answer.status_code for answer in (*answers, again)] == [200] * 4
    assert 'reranker_rejections_total{reason="rate_limited"} 1.0' in figures


async def test_a_key_has_a_limit_of_requests_per_minute(serve: Serve) -> None:
    async with serve(**KEYS, key_per_minute=2, key_burst=3) as client:
        first = [await client.post("/rerank", json=BODY, headers=FIRST) for _ in range(4)]
        second = await client.post("/rerank", json=BODY, headers=SECOND)
    assert [response.status_code for response in first] == [200, 200, 200, 429]
    assert 25 <= int(first[-1].headers["retry-after"]) <= 30
    assert "At most 2 requests of one key a minute" in first[-1].json()["detail"]
    assert second.status_code == 200


@pytest.mark.parametrize("headers", [FIRST, {}])
async def test_without_keys_all_callers_share_one_limit(serve: Serve, headers: dict[str, str]) -> None:
    async with serve(key_per_minute=1, key_burst=1) as client:
        assert (await client.post("/rerank", json=BODY)).status_code == 200
        assert (await client.post("/rerank", json=BODY, headers=headers)).status_code == 429


async def test_a_rejected_large_body_is_read_so_the_client_gets_the_answer(serve: Serve) -> None:
    """`http.client` sends the whole body before it reads the answer."""
    body = json.dumps({"query": "tides", "documents": ["x" * 90_000] * 80})
    async with serve(key_per_minute=1, key_burst=1) as client:
        await client.post("/rerank", json=BODY)

        def post() -> tuple[int, bool]:
            connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=30)
            connection.request("POST", "/rerank", body)
            answer = connection.getresponse()
            return answer.status, "retry-after" in answer.headers

        assert {await asyncio.to_thread(post) for _ in range(4)} == {(429, True)}


async def test_requests_without_a_key_do_not_count_against_any_key(serve: Serve) -> None:
    async with serve(**KEYS, key_per_minute=1, key_burst=1) as client:
        assert (await client.post("/rerank", json=BODY)).status_code == 401
        assert (await client.post("/rerank", json=BODY, headers={"X-API-Key": "wrong"})).status_code == 401
        assert (await client.post("/rerank", json=BODY, headers=FIRST)).status_code == 200
