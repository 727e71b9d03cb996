"""The Python client against the service over real HTTP."""

import asyncio
import time
from types import MappingProxyType

import httpx
import pytest

from reranker_client import AsyncClient, Client, RerankError
from tests.conftest import Serve, until
from tests.fakes import FakeEngine

QUERY = "what causes tides"
DOCUMENTS = ["bread", {"text": "the moon causes tides", "id": "d1", "metadata": {"page": 3}}]


async def test_the_client_ranks(serve: Serve, engine: FakeEngine) -> None:
    engine.lines = 1

    def use(url: str) -> None:
        with Client(url) as client:
            ranking = client.rerank(QUERY, DOCUMENTS, return_documents=True)
            assert [result.index for result in ranking] == [1, 0]
            best = ranking.results[0]
            assert (best.id, best.relevance_score) == ("d1", pytest.approx(0.8176, abs=1e-4))
            assert best.document is not None
            assert best.document.metadata == {"page": 3}
            assert (ranking.model, ranking.meta.scored, len(ranking)) == ("fake", 2, 2)
            assert len(client.rerank(QUERY, DOCUMENTS, top_k=1)) == 1
            long = client.rerank(QUERY, ["bread\ntides"], long_documents="chunk_max").results[0]
            assert long.window is not None
            assert (long.window.start, long.window.end) == (6, 11)
            [found] = client.rerank(QUERY, ["Bread. The tides ."], max_spans=1).results[0].spans
            assert (found.start, found.end, found.text) == (7, 18, "The tides .")
            few = client.rerank(QUERY, ["bread", "tides"], prefilter="lexical", prefilter_top_k=1)
            assert [(result.index, result.prefiltered) for result in few] == [(1, False), (0, True)]
            assert few.meta.prefiltered == 1
            assert ranking.meta.budget is None
            within = client.rerank(QUERY, DOCUMENTS, budget_ms=60_000).meta.budget
            assert within is not None
            assert (within.budget_ms, within.read, within.of) == (60_000, 2, 2)
            assert client.info().model_id == "fake"
            assert ranking[0] == best
            with pytest.raises(TypeError, match="must be a list"):
                client.rerank(QUERY, "bread")
            with pytest.raises(RerankError, match=r"surrogate|[Uu]nicode|UTF-8") as refused:
                client.rerank("\ud800", DOCUMENTS)
            assert refused.value.status in (400, 422)

    async with serve() as http:
        await asyncio.to_thread(use, str(http.base_url))


async def test_the_async_client_ranks(serve: Serve) -> None:
    async with serve() as http, AsyncClient(str(http.base_url)) as client:
        rankings = await asyncio.gather(*(client.rerank(QUERY, ["bread", f"tides {n}"]) for n in range(20)))
        assert all(ranking.results[0].index == 1 for ranking in rankings)
        assert (await client.info()).max_input_length == 512


async def test_the_clients_store_documents_and_rank_them_by_id(serve: Serve) -> None:
    documents = [{"id": "d1", "text": "bread"}, {"id": 2, "text": "the moon causes tides"}]

    def use(url: str) -> None:
        with Client(url) as client:
            stored = client.put_documents("c", (document for document in [*documents, {"text": "no id"}]))
            assert (stored.stored, stored.replaced, stored.refused) == (2, 0, 1)
            assert stored.errors[0].line == 3
            ranking = client.rerank(QUERY, collection="c", document_ids=["d1", 2, "gone"])
            assert [(result.index, result.id) for result in ranking] == [(1, 2), (0, "d1")]
            assert ranking.missing == ["gone"]
            mixed = client.rerank(QUERY, ["tides", {"id": "d1"}], collection="c")
            assert [(result.index, result.id) for result in mixed] == [(0, None), (1, "d1")]

    async with serve(documents="memory") as http:
        await asyncio.to_thread(use, str(http.base_url))
        async with AsyncClient(str(http.base_url)) as client:
            assert (await client.put_documents("c", documents, ttl_seconds=60)).replaced == 2
            assert (await client.rerank(QUERY, collection="c", document_ids=[2])).missing == []


async def test_errors_carry_the_message_of_the_service(serve: Serve) -> None:
    async with serve(api_keys="k") as http:
        async with AsyncClient(str(http.base_url), api_key="k") as client:
            with pytest.raises(RerankError, match="documents: at least one is required") as refused:
                await client.rerank(QUERY, [])
            assert refused.value.status == 422
            assert refused.value.request_id
        async with AsyncClient(str(http.base_url)) as client:
            with pytest.raises(RerankError, match="API key is needed"):
                await client.info()


@pytest.mark.parametrize(
    ("status", "content", "message"),
    [
        (500, ["x"], "answered 500"),
        (502, "bad gateway", "answered 502"),
        (404, {"detail": "Not Found"}, "Not Found"),
        (200, [1], "answered 200"),
        (200, {"a": 1}, "is this a reranker service"),
    ],
)
async def test_an_unexpected_response_is_an_error(status: int, content: object, message: str) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, json=content))
    async with AsyncClient(retries=0, transport=transport) as client:
        with pytest.raises(RerankError, match=message):
            await client.rerank(QUERY, [MappingProxyType({"text": "bread"})])


async def test_an_unreachable_service_is_an_error() -> None:
    with Client("http://127.0.0.1:9", retries=0) as client, pytest.raises(RerankError, match="No response") as error:
        client.rerank(QUERY, ["bread"])
    assert error.value.status is None


async def test_a_full_queue_is_retried_after_the_time_it_gives(serve: Serve, engine: FakeEngine) -> None:
    async with serve(max_parallel=1, max_queue=0) as http:
        url = str(http.base_url)
        engine.gate.clear()
        first = asyncio.create_task(http.post("/rerank", json={"query": "a", "documents": ["b"]}))
        await until(lambda: engine.entered == 1)
        async with AsyncClient(url, retries=0) as client:
            with pytest.raises(RerankError, match="full") as refused:
                await client.rerank(QUERY, ["bread"])
        assert refused.value.status == httpx.codes.TOO_MANY_REQUESTS
        async with AsyncClient(url) as client:
            started = time.monotonic()
            again = asyncio.create_task(client.rerank(QUERY, ["bread"]))
            await until(lambda: rejected(serve) == 2)
            engine.gate.set()
            assert (await again).results[0].index == 0
            assert time.monotonic() - started > 0.9  # Retry-After is one second
        await first


def rejected(serve: Serve) -> float:
    labels = {"reason": "queue_full"}
    return serve.service.metrics.registry.get_sample_value("reranker_rejections_total", labels) or 0.0
