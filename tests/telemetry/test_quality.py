"""Figures about the quality of rankings."""

from typing import Any

import pytest
from httpx import AsyncClient

from app.telemetry.quality import COMPARED, moved_pairs, spaced
from tests.conftest import Serve
from tests.fakes import FakeEngine


async def quality(client: AsyncClient) -> Any:
    return (await client.get("/metrics?format=json")).json()["quality"]


async def ask(client: AsyncClient, query: str, *documents: str, **fields: Any) -> None:
    answer = await client.post("/rerank", json={"query": query, "documents": documents} | fields)
    assert answer.status_code == 200


async def test_the_top_score_and_requests_without_a_relevant_document_are_counted(serve: Serve) -> None:
    async with serve(relevant_score=0.5) as client:
        await ask(client, "moon tides", "the moon", "the moon causes tides")
        assert await quality(client) == {
            "average_top_score": pytest.approx(0.817574, abs=1e-6),  # the sigmoid of 1.5
            "average_moved_pairs": 1.0,
            "irrelevant_share": 0.0,
        }
        await ask(client, "moon tides", "bread", "stock market")
        assert (await quality(client))["irrelevant_share"] == 0.5


async def test_the_top_score_does_not_depend_on_the_activation_of_the_request(serve: Serve) -> None:
    async with serve() as client:
        await ask(client, "moon", "the moon", raw_scores=True)
        assert (await quality(client))["average_top_score"] == pytest.approx(0.622459, abs=1e-6)


async def test_an_order_that_was_kept_has_no_moved_pairs(serve: Serve) -> None:
    async with serve() as client:
        await ask(client, "moon tides gravity", "moon tides gravity", "moon tides", "moon", "bread")
        assert (await quality(client))["average_moved_pairs"] == 0.0
        await ask(client, "moon tides", "bread", "sea", "stock", "moon tides")  # the last one overtakes three
        assert (await quality(client))["average_moved_pairs"] == 0.25


async def test_pairs_without_a_common_query_are_not_counted(serve: Serve) -> None:
    async with serve() as client:
        body = {"text_1": ["moon", "sea"], "text_2": ["the moon", "bread"]}
        assert (await client.post("/score", json=body)).status_code == 200
        assert (await quality(client))["average_top_score"] is None


async def test_a_request_that_no_model_scored_is_not_counted(serve: Serve, engine: FakeEngine) -> None:
    async with serve() as client:
        engine.failure = RuntimeError("broken")
        await ask(client, "moon", "the moon", on_overload="lexical")
        assert (await quality(client))["average_top_score"] is None


def test_moved_pairs_of_known_orders() -> None:
    assert moved_pairs([0, 1, 2, 3]) == 0
    assert moved_pairs([3, 2, 1, 0]) == 1
    assert moved_pairs([1, 0, 2, 3]) == pytest.approx(1 / 6)


def test_large_requests_are_compared_by_evenly_spaced_documents() -> None:
    indices = list(spaced(10_000))
    assert (len(set(indices)), indices[0], indices[-1]) == (COMPARED, 0, 9999)
    assert moved_pairs(indices[::-1]) == 1
