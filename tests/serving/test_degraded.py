"""The answer when scoring fails or is late: an error, or a ranking by shared words."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from app.errors import ScoringFailed
from app.serving import fallback
from tests.api.test_app import indices
from tests.conftest import Serve, until
from tests.fakes import NAN, FakeEngine

DOCUMENTS = ["bread and butter", "tides of the moon", "the moon causes the tides", "stock markets"]
BODY: dict[str, Any] = {"query": "what causes tides", "documents": DOCUMENTS}
LEXICAL = BODY | {"on_overload": "lexical"}


@asynccontextmanager
async def held(serve: Serve, engine: FakeEngine, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A service with a single slot, held by a request that the engine does not finish."""
    async with serve(max_parallel=1, max_queue=0, **settings) as client:
        engine.gate.clear()
        first = asyncio.create_task(client.post("/rerank/query", json={"query": "first", "documents": ["held"]}))
        await until(lambda: engine.entered == 1)
        yield client
        engine.gate.set()
        assert (await first).status_code == 200


@pytest.mark.parametrize(
    ("settings", "asked", "status"),
    [
        ({}, {}, 429),
        ({}, {"on_overload": "lexical"}, 200),
        ({"on_overload": "lexical"}, {}, 200),
        ({"on_overload": "lexical"}, {"on_overload": "error"}, 429),
        ({"overload_status": 503}, {}, 503),
    ],
)
async def test_a_full_queue(
    serve: Serve, engine: FakeEngine, settings: dict[str, Any], asked: dict[str, Any], status: int
) -> None:
    async with held(serve, engine, **settings) as client:
        response = await client.post("/rerank/query", json=BODY | asked)
        figures = (await client.get("/metrics")).text
    assert response.status_code == status
    degraded = 'reranker_degraded_total{reason="queue_full"} 1.0' in figures
    assert degraded == (status == 200) == ("x-reranker-degraded" in response.headers)


async def test_many_degraded_answers_at_once_are_errors_again(
    serve: Serve, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fallback, "MOST", 3)
    async with held(serve, engine) as client:
        answers = await asyncio.gather(*(client.post("/rerank/query", json=LEXICAL) for _ in range(12)))
        later = await client.post("/rerank/query", json=LEXICAL)
    statuses = Counter(answer.status_code for answer in answers)
    assert statuses[200] >= 3
    assert statuses[429] == 12 - statuses[200] > 0
    assert later.status_code == 200


async def test_a_degraded_answer_says_so_and_has_every_document(serve: Serve, engine: FakeEngine) -> None:
    async with held(serve, engine) as client:
        response = await client.post("/rerank/query", json=LEXICAL)
    assert indices(response) == [2, 1, 0, 3]
    assert response.headers["x-reranker-degraded"] == "queue_full"
    body = response.json()
    assert body["meta"]["degraded"] == "queue_full"
    assert (body["meta"]["scored"], body["meta"]["cached"], body["usage"]["total_tokens"]) == (0, 0, 0)
    assert all(result["unscored"] for result in body["results"])
    scores = [result["relevance_score"] for result in body["results"]]
    assert scores == sorted(scores, reverse=True)


async def test_scored_documents_stay_on_top(serve: Serve, engine: FakeEngine) -> None:
    async with serve() as client:
        await client.post("/rerank/query", json=BODY | {"documents": ["stock markets"]})
        engine.failure = ScoringFailed("broken")
        response = await client.post("/rerank/query", json=LEXICAL)
    assert indices(response) == [3, 2, 1, 0]
    assert ["unscored" in result for result in response.json()["results"]] == [False, True, True, True]
    assert response.json()["results"][0]["relevance_score"] == pytest.approx(0.3775, abs=1e-4)
    assert response.json()["meta"]["degraded"] == "scoring_failed"
    assert response.json()["meta"]["cached"] == 1


async def test_scores_from_before_the_failure_are_kept_even_without_a_cache(serve: Serve) -> None:
    """The longest pair is scored first, alone in its batch. A pair of the next batch has no score."""
    body = LEXICAL | {"documents": [f"{NAN} tides", "bread " * 100, "tides causes"]}
    async with serve(prediction_cache=False, batch_tokens=16) as client:
        response = await client.post("/rerank/query", json=body)
    assert indices(response) == [2, 1, 0]
    assert ["unscored" in result for result in response.json()["results"]] == [False, False, True]
    assert response.json()["meta"]["scored"] == 2


@pytest.mark.parametrize(("options", "expected"), [({"top_k": 2}, [2, 1]), ({"score_threshold": 0.9}, [2, 1, 0, 3])])
async def test_a_threshold_applies_to_model_scores_only(
    serve: Serve, engine: FakeEngine, options: dict[str, Any], expected: list[int]
) -> None:
    async with held(serve, engine) as client:
        assert indices(await client.post("/rerank/query", json=LEXICAL | options)) == expected


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/rerank", {"query": "tides", "texts": ["bread", "tides"]}),
        ("/score", {"text_1": "tides", "text_2": ["bread", "tides"]}),
        ("/score", {"text_1": ["tides", "bread"], "text_2": ["bread", "bread"]}),
        ("/v1/ranking", {"query": {"text": "tides"}, "passages": [{"text": "bread"}, {"text": "tides"}]}),
    ],
)
async def test_other_dialects_report_it_in_a_header(
    serve: Serve, engine: FakeEngine, path: str, body: dict[str, Any]
) -> None:
    async with held(serve, engine) as client:
        response = await client.post(path, json=body | {"on_overload": "lexical"})
    assert response.status_code == 200
    assert response.headers["x-reranker-degraded"] == "queue_full"


async def test_invalid_requests_are_still_rejected(serve: Serve) -> None:
    async with serve(max_documents=3) as client:
        assert (await client.post("/rerank/query", json=LEXICAL)).status_code == 413
        empty = {"query": "", "documents": ["a"], "on_overload": "lexical"}
        assert (await client.post("/rerank/query", json=empty)).status_code == 422
