"""Requests that cannot meet their deadline do not reach the model."""

import asyncio
from typing import Any

import pytest

from tests.conftest import Serve, until
from tests.fakes import FakeEngine

BODY: dict[str, Any] = {"query": "moon", "documents": ["moon"]}


@pytest.mark.parametrize(
    ("settings", "body", "headers"),
    [
        ({}, {"timeout_ms": 40}, {}),
        ({}, {}, {"X-Request-Timeout-Ms": "40"}),
        ({}, {"timeout_ms": 60_000}, {"X-Request-Timeout-Ms": "40"}),
        ({}, {"timeout_ms": 40}, {"X-Request-Timeout-Ms": "60000"}),
        ({"request_timeout": 0.04}, {}, {}),
        ({"request_timeout": 60}, {"timeout_ms": 40}, {}),
    ],
)
async def test_pairs_past_their_deadline_never_reach_the_model(
    serve: Serve, engine: FakeEngine, settings: dict[str, Any], body: dict[str, Any], headers: dict[str, str]
) -> None:
    async with serve(**settings) as client:
        engine.gate.clear()
        first = {"query": "first", "documents": ["held"], "timeout_ms": 60_000}
        held = asyncio.create_task(client.post("/rerank", json=first))
        await until(lambda: engine.entered == 1)
        late = await client.post("/rerank", json=BODY | body, headers=headers)
        engine.gate.set()
        assert (await held).status_code == 200
        assert (await client.post("/rerank", json=first | {"query": "last"})).status_code == 200
    assert late.status_code == 504
    assert "the deadline of 0.04 s" in late.json()["detail"]
    assert engine.batches == [[2], [2]]


async def test_other_dialects_have_deadlines_too(serve: Serve, engine: FakeEngine) -> None:
    async with serve() as client:
        engine.gate.clear()
        texts = {"query": "moon", "texts": ["moon"]}
        response = await client.post("/rerank", json=texts, headers={"X-Request-Timeout-Ms": "40"})
        engine.gate.set()
    assert response.status_code == 504
    assert response.json()["error_type"] == "Overloaded"


@pytest.mark.parametrize("value", ["0", "-1", "soon", "1.5", "86400001", "9" * 5000, "0" * 19 + "1" + "9" * 400, "١"])
async def test_a_wrong_header_is_named(serve: Serve, value: str) -> None:
    async with serve() as client:
        response = await client.post("/rerank", json=BODY, headers={"X-Request-Timeout-Ms": value.encode()})
    assert response.status_code == 422
    assert response.json()["detail"].startswith("X-Request-Timeout-Ms: must be from 1 to 86400000 milliseconds")


async def test_one_long_document_does_not_count_for_all(serve: Serve, engine: FakeEngine) -> None:
    """The engine pads a batch, but short pairs are not batched with the long one."""
    engine.seconds_per_token = 0.001
    many = {"query": "moon", "documents": ["moon " * 200, *(f"moon {number}" for number in range(50))]}
    async with serve() as client:
        assert (await client.post("/rerank", json=BODY)).status_code == 200
        assert serve.reranker.batcher.speed
        response = await client.post("/rerank", json=many | {"timeout_ms": 5000})
    assert response.status_code == 200


async def test_a_request_that_cannot_meet_its_deadline_is_rejected_at_once(serve: Serve, engine: FakeEngine) -> None:
    engine.seconds_per_token = 0.01
    many = {"query": "moon", "documents": [f"moon {number}" for number in range(1000)]}
    async with serve() as client:
        assert (await client.post("/rerank", json=BODY)).status_code == 200  # its speed is known from now on
        response = await client.post("/rerank", json=many | {"timeout_ms": 5000})
        assert serve.reranker.batcher.pending == 0
        assert (await client.post("/rerank", json={"query": "sun", "documents": ["sun"]})).status_code == 200
    assert response.status_code == 504
    assert "The deadline cannot be met: scoring 1000 pairs takes about" in response.json()["detail"]
    assert engine.batches == [[2], [2]]
