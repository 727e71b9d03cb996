"""What is particular to each hosted service: fields, answers, errors, and the paths that it shares with others."""

from typing import Any

import httpx
import pytest

from tests.api.test_dialects import BEST_FIRST, DOCUMENTS, NATIVE, QUERY, TEI
from tests.api.test_hosted import RANKING_CONFIG, bedrock, dashscope, google, mixedbread, pinecone
from tests.conftest import Serve
from tests.fakes import FakeEngine

DASHSCOPE = "/api/v1/services/rerank/text-rerank/text-rerank"
GOOGLE = f"/v1{RANKING_CONFIG}"
PINECONE = {"X-Pinecone-API-Version": "2025-10"}
BOTH_FIELDS = "title: tides\nbody: of the moon\n"


@pytest.fixture
def read(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The documents that the model has read, after the probe of the start."""
    texts: list[str] = []
    encode = engine.encode
    monkeypatch.setattr(
        engine, "encode", lambda query, documents, *more: texts.extend(documents) or encode(query, documents, *more)
    )
    return texts


async def post(
    client: httpx.AsyncClient, path: str, body: Any, status: int = 200, headers: dict[str, str] | None = None
) -> Any:
    response = await client.post(path, json=body, headers=headers)
    assert response.status_code == status, response.text
    return response.json()


async def test_voyage_gets_a_list(serve: Serve) -> None:
    async with serve() as client:
        for own in ({"truncation": True}, {"model": "rerank-2.5-lite"}, {"model": "rerank-lite-1"}):
            found = await post(client, "/v1/rerank", NATIVE | own)
            assert (found["object"], found["model"]) == ("list", "fake")
            assert [item["index"] for item in found["data"]] == BEST_FIRST
            assert all(item.keys() == {"index", "relevance_score"} for item in found["data"])
            assert found["usage"]["total_tokens"] > 0
        for model in ("rerank-v3.5", "rerank-english-v3.0", "rerank-v5.0-pro", "reranker"):
            found = await post(client, "/v1/rerank", NATIVE | {"model": model})
            assert (found["object"], "data" in found) == ("rerank", False)


async def test_dashscope_returns_documents_as_objects(serve: Serve) -> None:
    body = dashscope(QUERY, [DOCUMENTS[0], {"text": DOCUMENTS[1]}], {"return_documents": True, "top_n": 1})
    async with serve() as client:
        response = await client.post(DASHSCOPE, json=body, headers={"x-request-id": "abc-1"})
        silent = await post(client, DASHSCOPE, body | {"parameters": {}})
        bare = await post(client, DASHSCOPE, {"input": body["input"]})
        image = await post(client, DASHSCOPE, dashscope("q", [{"image": "a.png"}], {}), 422)
        refused = await client.post(DASHSCOPE, json=dashscope("", [], {}), headers={"x-request-id": "abc-2"})
    found = response.json()
    assert found["output"]["results"][0].pop("relevance_score") > 0.5
    assert found.pop("usage").keys() == {"total_tokens"}
    assert found == {
        "output": {"results": [{"index": 1, "document": {"text": DOCUMENTS[1]}}]},
        "request_id": "abc-1",
    }
    assert all("document" not in item for item in silent["output"]["results"])
    assert bare["output"] == silent["output"]
    assert image["message"] == "input.documents[0]: must be a text: 'image' is not supported"
    assert refused.json()["code"] == "InvalidParameter"
    assert refused.json()["request_id"] == "abc-2"


async def test_bedrock_returns_documents_as_they_were_sent(serve: Serve, read: list[str]) -> None:
    body = bedrock(QUERY, ["stock markets"], {})
    document = {"type": "JSON", "jsonDocument": {"title": "tides", "body": "of the moon", "year": 1687}}
    body["sources"].append({"type": "INLINE", "inlineDocumentSource": document})
    async with serve() as client:
        found = (await post(client, "/rerank", body))["results"]
        assert [item["index"] for item in found] == [1, 0]
        assert found[0].keys() == {"index", "relevanceScore", "document"}
        assert found[0]["document"] == document
        assert found[1]["document"] == {"type": "TEXT", "textDocument": {"text": "stock markets"}}
        assert read[1:] == ["stock markets", "title: tides\nbody: of the moon\nyear: 1687\n"]
        body["rerankingConfiguration"] = bedrock("", [], {"rank_fields": ["title", "body"]})["rerankingConfiguration"]
        await post(client, "/rerank", body)
    assert read[-1] == BOTH_FIELDS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nextToken": "abc"}, "nextToken: is not supported: every answer contains all results"),
        ({"queries": []}, "queries: list should have at least 1 item"),
        ({"sources": [{"inlineDocumentSource": {"type": "TEXT"}}]}, "sources[0]: has no textDocument"),
        ({"sources": [{"inlineDocumentSource": {"type": "JSON", "jsonDocument": {}}}]}, "sources[0]: has no 'text'"),
        ({"sources": [{"type": "S3"}]}, "sources[0].type: input should be 'INLINE'"),
        ({"rerankingConfiguration": {"type": "OTHER"}}, "rerankingConfiguration.type: input should be"),
    ],
)
async def test_bedrock_errors_have_a_type(serve: Serve, change: dict[str, Any], message: str) -> None:
    async with serve() as client:
        found = await post(client, "/rerank", bedrock("a", ["b"], {}) | change, 422)
    assert found["__type"] == "ValidationException"
    assert found["message"].startswith(message)


async def test_deeply_nested_documents_are_refused(serve: Serve) -> None:
    nested: Any = "tides"
    for _ in range(300):
        nested = [nested]
    native = {"query": "a", "documents": [{"body": nested}], "rank_fields": ["body"], "return_documents": True}
    body = bedrock("a", [], {})
    document = {"type": "JSON", "jsonDocument": {"body": nested}}
    body["sources"] = [{"type": "INLINE", "inlineDocumentSource": document}]
    async with serve() as client:
        for deep, name in ((native, "documents[0]"), (body, "sources[0].inlineDocumentSource.jsonDocument")):
            found = await post(client, "/rerank", deep, 422)
            assert found["message"].startswith(f"{name}: must be JSON in UTF-8 and not nested too deeply")


async def test_large_json_documents_of_bedrock_are_refused(serve: Serve) -> None:
    body = bedrock("a", [], {})
    document = {"type": "JSON", "jsonDocument": {"rows": [0] * 100_001}}
    body["sources"] = [{"type": "INLINE", "inlineDocumentSource": document}]
    async with serve() as client:
        found = await post(client, "/rerank", body, 413)
    assert "values are rendered" in found["message"]


async def test_invoke_model_needs_no_content_type_if_it_is_signed(serve: Serve) -> None:
    path, body = "/model/amazon.rerank-v1:0/invoke", b'{"query": "a", "documents": ["b", "a"]}'
    async with serve(api_keys="k") as client:
        signed = {"authorization": "AWS4-HMAC-SHA256 Credential=a/b", "x-api-key": "k"}
        answer = await client.post(path, content=body, headers=signed)
        plain = await client.post(path, content=body, headers={"x-api-key": "k"})
        unknown = await client.post(path, content=body, headers={"authorization": signed["authorization"]})
    assert [item["index"] for item in answer.json()["results"]] == [1, 0]
    assert plain.status_code == 415
    assert plain.json()["__type"] == "ValidationException"
    assert (unknown.status_code, unknown.json()["message"][:21]) == (401, "An API key is needed:")


async def test_pinecone_returns_documents_unless_told_not_to(serve: Serve, read: list[str]) -> None:
    documents = [{"id": "a", "title": "bread"}, {"id": "b", "title": "tides", "body": "of the moon"}]
    body = {"query": QUERY, "documents": documents, "rank_fields": ["title", "body"], "top_n": 1}
    async with serve() as client:
        found = await post(client, "/rerank", body, headers=PINECONE)
        silent = await post(client, "/rerank", body | {"return_documents": False}, headers=PINECONE)
        refused = await post(client, "/rerank", body | {"rank_fields": ["text"]}, 422, PINECONE)
    assert found["data"][0].pop("score") > 0.5
    assert found == {"model": "fake", "data": [{"index": 1, "document": documents[1]}], "usage": {"rerank_units": 1}}
    assert "document" not in silent["data"][0]
    assert refused["error"] == {"code": "INVALID_ARGUMENT", "message": "documents[0]: has no 'text'"}
    assert refused["status"] == 422
    assert BOTH_FIELDS in read


async def test_without_its_header_a_body_of_pinecone_is_native(serve: Serve) -> None:
    async with serve() as client:
        found = await post(client, "/rerank", pinecone(QUERY, DOCUMENTS, {"truncate": "END"}))
        assert [item["index"] for item in found["results"]] == BEST_FIRST
        assert (await post(client, "/rerank", TEI))[0]["index"] == 2
        assert (await client.get("/rerank", headers=PINECONE)).status_code == 405


async def test_google_reads_titles_and_returns_records(serve: Serve, read: list[str]) -> None:
    records = [{"id": "x", "title": "bread"}, {"id": "y", "title": "tides", "content": "of the moon"}]
    body = google(QUERY, [], {}) | {"records": records, "userLabels": {"team": "a"}}
    async with serve() as client:
        for version in ("v1", "v1alpha", "v1beta"):
            response = await client.post(f"/{version}{RANKING_CONFIG}", json=body)
            assert "x-reranker-warning" not in response.headers
            found = response.json()["records"]
            assert [{**item, "score": 0} for item in found] == [records[1] | {"score": 0}, records[0] | {"score": 0}]
        short = await post(client, GOOGLE, body | {"ignoreRecordDetailsInResponse": True, "topN": 1})
        empty = await post(client, GOOGLE, body | {"records": [{"id": "x", "title": ""}]}, 422)
    assert read[1:] == ["bread", "tides\nof the moon"]
    assert [item.keys() for item in short["records"]] == [{"id", "score"}]
    assert empty["error"] == {
        "code": 422,
        "message": "records[0]: has neither title nor content",
        "status": "INVALID_ARGUMENT",
    }


async def test_mixedbread_returns_inputs_as_they_were_sent(serve: Serve, read: list[str]) -> None:
    inputs = [{"text": "bread", "title": "bread"}, {"title": "tides", "body": "of the moon"}]
    body = mixedbread(QUERY, inputs, {"rank_fields": ["title", "body"], "return_input": True, "rewrite_query": False})
    strings = mixedbread(QUERY, DOCUMENTS, {"return_input": True, "top_k": 1})
    async with serve() as client:
        found = await post(client, "/v1/reranking", body)
        first = await post(client, "/v1/reranking", strings)
        silent = await post(client, "/v1/reranking", mixedbread(QUERY, DOCUMENTS, {}))
        refused = await post(client, "/v1/reranking", strings | {"rewrite_query": True}, 422)
    assert [item["input"] for item in found["data"]] == [inputs[1], inputs[0]]
    assert BOTH_FIELDS in read
    assert first["data"][0].pop("score") > 0.5
    assert first.pop("usage")["total_tokens"] > 0
    assert first == {
        "model": "fake",
        "data": [{"index": 2, "input": DOCUMENTS[2], "object": "rank_result"}],
        "object": "list",
        "top_k": 1,
        "return_input": True,
    }
    assert (silent["top_k"], silent["return_input"], "input" in silent["data"][0]) == (4, False, False)
    assert refused["message"].startswith("rewrite_query: is not supported: ")


async def test_the_path_of_mixedbread_stays_that_of_llama_cpp(serve: Serve) -> None:
    async with serve() as client:
        for body in (NATIVE, NATIVE | {"input": "x"}, TEI):
            found = await post(client, "/v1/reranking", body)
            assert [item["index"] for item in found["results"]] == BEST_FIRST
        missing = await post(client, "/v1/reranking", {"query": "a"}, 422)
    assert missing["message"] == "documents: field required"


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/v1/rerank", NATIVE | {"truncation": False}, {}),
        ("/rerank", pinecone(QUERY, DOCUMENTS, {"truncate": "NONE"}), PINECONE),
    ],
)
async def test_long_documents_are_refused_if_the_service_would_refuse_them(
    serve: Serve, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, path: str, body: Any, headers: dict[str, str]
) -> None:
    encode = engine.encode
    monkeypatch.setattr(engine, "encode", lambda query, documents, *_: encode(query, documents, 4))
    async with serve(prediction_cache=False) as client:
        assert "exceed the model's window" in str(await post(client, path, body, 422, headers))


async def test_cohere_priorities_and_spans_are_taken(serve: Serve) -> None:
    async with serve(priorities=True) as client:
        asked = NATIVE | {"priority": 999, "relevant_spans": {"mode": "enabled"}}
        response = await client.post("/v2/rerank", json=asked)
    assert response.status_code == 200
    assert "x-reranker-warning" not in response.headers
    assert "relevant_spans" in response.json()["results"][0]
