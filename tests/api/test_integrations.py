"""Search engines and frameworks: what their own code sends, and what it reads from the answer."""

import json
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import TypeAdapter

from app.serving.activation import activate
from app.types import Activation
from tests.api.test_dialects import BEST_FIRST, DOCUMENTS, QUERY
from tests.conftest import Serve
from tests.fakes import FakeEngine

JAVA_DOUBLE = 18
"""Longer numbers are no `Double` for json-smart, which OpenSearch and others in Java use."""


async def post(client: httpx.AsyncClient, path: str, body: Any, **headers: str) -> Any:
    response = await client.post(path, json=body, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()


WEAVIATE = {"query": QUERY, "documents": DOCUMENTS, "property": ""}


async def test_weaviate_transformers_sends_no_content_type(serve: Serve) -> None:
    body = json.dumps(WEAVIATE).encode()
    async with serve() as client:
        found = await client.post("/rerank", content=body)
        assert "content-type" not in found.request.headers
        refused = await client.post("/rerank", content=json.dumps(WEAVIATE | {"query": ""}).encode())
    assert [(type(item["document"]), type(item["score"])) for item in found.json()["scores"]] == [(str, float)] * 4
    assert refused.json()["error"] == "query: must not be empty"


@pytest.mark.parametrize("path", ["/rerank", "/invocations"])
async def test_a_page_of_another_origin_cannot_leave_the_content_type_out(serve: Serve, path: str) -> None:
    async with serve() as client:
        for origin in ("http://example.com", "null"):
            headers = {"origin": origin}
            assert (await client.post(path, content=json.dumps(WEAVIATE).encode(), headers=headers)).status_code == 415
        assert (await client.post("/v1/rerank", content=json.dumps(WEAVIATE).encode())).status_code == 415


async def test_weaviate_nvidia_reads_logits_and_errors(serve: Serve) -> None:
    path = "/v1/retrieval/nvidia/reranking"
    passages = [{"text": text} for text in DOCUMENTS]
    body = {"model": "nvidia/rerank-qa-mistral-4b", "query": {"text": QUERY}, "passages": passages}
    async with serve() as client:
        rankings = (await post(client, path, body, authorization="Bearer any"))["rankings"]
        refused = await client.post(path, json=body | {"passages": []})
    assert [item["index"] for item in rankings] == BEST_FIRST
    assert all(type(item["logit"]) is float for item in rankings)
    assert refused.status_code == 422
    assert refused.json()["detail"] == [{"msg": "passages: at least one is required"}]


@pytest.mark.parametrize("asked", ["sigmoid", "model", "none"])
def test_scores_are_short_enough_for_java(engine: FakeEngine, asked: Activation) -> None:
    logits = np.linspace(-30, 30, 6001, dtype=np.float32)
    scores = activate(logits.tolist(), asked, engine)
    numbers = TypeAdapter(list[float]).dump_json(scores).decode().strip("[]").split(",")
    assert max(map(len, numbers)) <= JAVA_DOUBLE
    assert all("." in number or "e" in number for number in numbers)  # others are integers
    exact = logits if asked == "none" else 1 / (1 + np.exp(-logits.astype(np.float64)))
    np.testing.assert_allclose(np.array(numbers, np.float64), exact, rtol=1e-6, atol=1e-14)
