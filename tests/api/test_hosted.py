"""What holds for the dialects of all hosted services: Voyage, DashScope, Bedrock, Pinecone, Google and Mixedbread."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.conftest import Serve, until
from tests.fakes import FakeEngine

QUERY = "what causes tides"
DOCUMENTS = ["bread and butter", "tides of the moon", "the moon causes the tides", "stock markets"]
BEST_FIRST = [2, 1, 0, 3]
PROBABILITIES = [0.8176, 0.6225, 0.3775, 0.3775]
Results = list[dict[str, Any]]


@dataclass(frozen=True)
class Hosted:
    """How a service is asked, and where its answers and errors are."""

    name: str
    path: str
    body: Callable[[str, list[Any], dict[str, Any]], dict[str, Any]]
    """From a query, documents and options."""
    results: Callable[[Any], Results]
    index: str = "index"
    score: str = "score"
    top: str = "top_n"
    message: Callable[[Any], Any] = lambda body: body["message"]
    headers: dict[str, str] = field(default_factory=dict)
    names: tuple[str, str] = ("query", "documents")
    """What its errors call query and documents."""

    async def ask(
        self, client: httpx.AsyncClient, query: str = QUERY, documents: Any = None, **options: Any
    ) -> httpx.Response:
        body = self.body(query, DOCUMENTS if documents is None else documents, options)
        return await client.post(self.path, json=body, headers=self.headers)

    def ranked(self, response: httpx.Response) -> list[tuple[int, float]]:
        assert response.status_code == 200, response.text
        return [(int(item[self.index]), round(item[self.score], 4)) for item in self.results(response.json())]


def dashscope(query: str, documents: list[Any], options: dict[str, Any]) -> dict[str, Any]:
    return {"model": "gte-rerank-v2", "input": {"query": query, "documents": documents}, "parameters": options}


def bedrock(query: str, documents: list[Any], options: dict[str, Any]) -> dict[str, Any]:
    others = {name: value for name, value in options.items() if name != "numberOfResults"}
    configuration = {
        "numberOfResults": options.get("numberOfResults"),
        "modelConfiguration": {"modelArn": "arn", "additionalModelRequestFields": others},
    }
    return {
        "queries": [{"type": "TEXT", "textQuery": {"text": query}}],
        "sources": [
            {"type": "INLINE", "inlineDocumentSource": {"type": "TEXT", "textDocument": {"text": text}}}
            for text in documents
        ],
        "rerankingConfiguration": {
            "type": "BEDROCK_RERANKING_MODEL",
            "bedrockRerankingConfiguration": configuration,
        },
    }


def google(query: str, documents: list[Any], options: dict[str, Any]) -> dict[str, Any]:
    records = [{"id": str(index), "content": text} for index, text in enumerate(documents)]
    return {"model": "semantic-ranker-default@latest", "query": query, "records": records} | options


def flat(**fields: Any) -> Callable[[str, list[Any], dict[str, Any]], dict[str, Any]]:
    return lambda query, documents, options: {"query": query, "documents": documents} | fields | options


def mixedbread(query: str, documents: list[Any], options: dict[str, Any]) -> dict[str, Any]:
    return {"model": "mxbai-rerank-large-v2", "query": query, "input": documents} | options


def pinecone(query: str, documents: list[Any], options: dict[str, Any]) -> dict[str, Any]:
    texts = [{"id": str(index), "text": text} for index, text in enumerate(documents)]
    return {"model": "bge-reranker-v2-m3", "query": query, "documents": texts, "parameters": options}


RANKING_CONFIG = "/projects/p/locations/global/rankingConfigs/default_ranking_config:rank"
SERVICES = [
    Hosted(
        "voyage", "/v1/rerank", flat(model="rerank-2.5", truncation=True), lambda body: body["data"],
        score="relevance_score", top="top_k", message=lambda body: body["detail"],
    ),
    Hosted(
        "dashscope", "/api/v1/services/rerank/text-rerank/text-rerank", dashscope,
        lambda body: body["output"]["results"], score="relevance_score", names=("input.query", "input.documents"),
    ),
    Hosted(
        "bedrock", "/rerank", bedrock, lambda body: body["results"], score="relevanceScore",
        top="numberOfResults", names=("queries[0].textQuery.text", "sources"),
    ),
    Hosted(
        "bedrock invoke", "/model/arn:aws:bedrock:eu-central-1::foundation-model%2Fcohere.rerank-v3-5:0/invoke",
        flat(api_version=2), lambda body: body["results"], score="relevance_score",
    ),
    Hosted(
        "pinecone", "/rerank", pinecone, lambda body: body["data"], headers={"X-Pinecone-Api-Version": "2026-07"},
        message=lambda body: body["error"]["message"],
    ),
    Hosted(
        "google", f"/v1{RANKING_CONFIG}", google, lambda body: body["records"], index="id", top="topN",
        message=lambda body: body["error"]["message"], names=("query", "records"),
    ),
    Hosted(
        "mixedbread", "/v1/reranking", mixedbread, lambda body: body["data"], top="top_k", names=("query", "input"),
    ),
]  # fmt: skip
every_service = pytest.mark.parametrize("service", SERVICES, ids=[service.name for service in SERVICES])


@every_service
async def test_documents_come_best_first_with_scores(serve: Serve, service: Hosted) -> None:
    async with serve() as client:
        response = await service.ask(client)
    assert service.ranked(response) == list(zip(BEST_FIRST, PROBABILITIES, strict=True))
    assert int(response.headers["x-compute-tokens"]) > 0
    assert "x-reranker-warning" not in response.headers


@every_service
async def test_the_number_of_results_means_the_same_for_every_service(serve: Serve, service: Hosted) -> None:
    async with serve() as client:
        for value, expected in ((0, 4), (-1, 4), (None, 4), (1, 1), (4, 4), (99, 4)):
            ranked = service.ranked(await service.ask(client, **{service.top: value}))
            assert [index for index, _ in ranked] == BEST_FIRST[:expected]
        assert (await service.ask(client, **{service.top: -2})).status_code == 422


@every_service
async def test_errors_are_where_the_client_reads_them(serve: Serve, service: Hosted) -> None:
    query, documents = service.names
    async with serve() as client:
        empty = await service.ask(client, query="")
        none = await service.ask(client, documents=[])
        many = await service.ask(client, documents=["a"] * 1001)
        wrong = await client.post(service.path, content=b"{", headers={"content-type": "application/json"})
    assert (empty.status_code, service.message(empty.json())) == (422, f"{query}: must not be empty")
    assert none.status_code == 422
    assert service.message(none.json()).startswith(f"{documents}: ")
    assert many.status_code == 413
    assert service.message(many.json()).startswith(f"{documents}: at most 1000 are accepted (RERANKER_MAX_DOCUMENTS)")
    assert wrong.status_code == 400
    assert "not valid JSON" in wrong.text


@every_service
async def test_a_full_queue_and_a_failed_model_are_errors_of_the_service(
    serve: Serve, engine: FakeEngine, service: Hosted
) -> None:
    async with serve(max_parallel=1, max_queue=0) as client:
        engine.gate.clear()
        first = asyncio.create_task(client.post("/rerank", json={"query": "a", "documents": ["b"]}))
        await until(lambda: engine.entered == 1)
        full = await service.ask(client)
        engine.gate.set()
        assert (await first).status_code == 200
        engine.failure = RuntimeError("boom")
        failed = await service.ask(client)
    assert full.status_code == 429
    assert service.message(full.json()).startswith("Queue is full")
    assert int(full.headers["Retry-After"]) >= 1
    assert failed.status_code == 500
    assert "boom" not in failed.text


@every_service
async def test_a_signature_or_another_services_key_does_not_matter_without_keys(serve: Serve, service: Hosted) -> None:
    signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host, Signature=c", "Api-Key": "pcsk"}
    async with serve() as client:
        client.headers.update(signed)
        assert len(service.ranked(await service.ask(client))) == 4


@every_service
async def test_options_of_the_service_work_in_every_dialect(serve: Serve, service: Hosted) -> None:
    async with serve() as client:
        plain = await service.ask(client)
        again = await service.ask(client)
        first_stage = await service.ask(client, prefilter="lexical", prefilter_top_k=2)
        late = await client.post(
            service.path,
            json=service.body(QUERY, DOCUMENTS, {}),
            headers=service.headers | {"X-Request-Timeout-Ms": "0"},
        )
        refused = await service.ask(client, instruct="Prefer news")
        fusion = await service.ask(client, fusion="order", fusion_weight=100)
        cached = serve.reranker.cache
    assert service.ranked(plain) == service.ranked(again)
    assert len(cached) == len(DOCUMENTS)
    assert first_stage.headers["x-reranker-prefiltered"] == "2"
    assert late.status_code == 422
    assert "instruction: the model fake takes none" in service.message(refused.json())
    assert [index for index, _ in service.ranked(fusion)] == [0, 1, 2, 3]


@every_service
async def test_meaningful_fields_are_refused_and_others_reported(serve: Serve, service: Hosted) -> None:
    async with serve() as client:
        refused = await service.ask(client, max_tokens_per_query=8)
        reported = await service.ask(client, overlap_tokens=20)
    assert refused.status_code == 422
    assert service.message(refused.json()).startswith("max_tokens_per_query: is not supported: ")
    assert reported.status_code == 200
    assert reported.headers["x-reranker-warning"] == "overlap_tokens: is not supported; it is ignored"
