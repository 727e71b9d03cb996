"""Rankings of stored documents, over real HTTP."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Serve

PLANETS = "planets"
STORED = [
    {"id": "bread", "text": "bread is baked"},
    {"id": "moon", "text": "the moon causes tides", "metadata": {"page": 3}},
    {"id": 7, "text": "tides"},
]
QUERY = "what causes tides"


async def put(client: httpx.AsyncClient, documents: Any = STORED, **fields: Any) -> dict[str, Any]:
    response = await client.put("/v1/documents", json={"collection": PLANETS, "documents": documents} | fields)
    assert response.status_code == 200, response.text
    return dict(response.json())


async def rank(client: httpx.AsyncClient, path: str = "/rerank/query", **fields: Any) -> httpx.Response:
    return await client.post(path, json={"query": QUERY, "collection": PLANETS} | fields)


@pytest.mark.parametrize("path", ["/rerank/query", "/rerank", "/v1/rerank", "/v2/rerank", "/v1/reranking"])
async def test_ids_rank_as_their_texts_do(serve: Serve, path: str) -> None:
    async with serve(documents="memory") as client:
        await put(client)
        by_ids = await rank(client, path, document_ids=["bread", "moon", 7])
        by_texts = await rank(client, path, documents=STORED)
        assert by_ids.json()["results"] == by_texts.json()["results"]
        assert [(found["index"], found["id"]) for found in by_ids.json()["results"]] == [
            (1, "moon"),
            (2, 7),
            (0, "bread"),
        ]
        assert "missing" not in by_ids.json()
        assert "x-reranker-warning" not in by_ids.headers
        assert by_texts.headers["x-reranker-warning"] == "collection: is not supported; it is ignored"


async def test_texts_references_and_ids_are_mixed(serve: Serve) -> None:
    async with serve(documents="memory") as client:
        await put(client)
        mixed = ["of tides", {"id": "moon"}, {"id": "new", "text": "nothing"}]
        answer = (await rank(client, documents=mixed, document_ids=["bread"], return_documents=True)).json()
        assert [found["index"] for found in answer["results"]] == [1, 0, 2, 3]
        assert answer["results"][0]["document"] == STORED[1]
        assert answer["results"][3]["id"] == "bread"
        assert answer["meta"]["documents"] == 4


async def test_a_reference_keeps_what_the_request_says_about_it(serve: Serve) -> None:
    """The score of a search, for fusion."""
    async with serve(documents="memory") as client:
        await put(client)
        references = [{"id": "moon", "score": 1.0, "text": None}, {"id": "bread", "score": 900.0}]
        answer = (await rank(client, documents=references, fusion="score", fusion_weight=100)).json()
        assert [found["id"] for found in answer["results"]] == ["bread", "moon"]


async def test_unknown_ids_are_named_and_the_others_are_ranked(serve: Serve) -> None:
    async with serve(documents="memory") as client:
        await put(client)
        answer = await rank(client, documents=[{"id": "gone"}, "tides", {"id": "moon"}], document_ids=["x", "bread", 9])
        assert answer.status_code == 200
        assert answer.json()["missing"] == ["gone", "x", 9]
        assert [(one["index"], one.get("id")) for one in answer.json()["results"]] == [
            (2, "moon"),
            (1, None),
            (4, "bread"),
        ]
        nothing = await rank(client, document_ids=[f"x{number}" for number in range(7)])
        assert nothing.status_code == 404
        assert nothing.json()["error"]["type"] == "not_found"
        assert nothing.json()["message"] == (
            'The collection "planets" has none of the documents: "x0", "x1", "x2", "x3", "x4" and 2 more'
        )
        assert (await rank(client, document_ids=["moon"], collection="other")).status_code == 404


async def test_an_updated_document_gets_new_scores(serve: Serve) -> None:
    async with serve(documents="memory") as client:
        await put(client)
        before = (await rank(client, document_ids=["bread"])).json()
        again = (await rank(client, document_ids=["bread"])).json()
        assert (again["meta"]["cached"], again["results"]) == (1, before["results"])
        assert await put(client, [{"id": "bread", "text": QUERY}]) == {
            "collection": PLANETS, "stored": 0, "replaced": 1, "refused": 0, "evicted": 0, "errors": [],
        }  # fmt: skip
        after = (await rank(client, document_ids=["bread"])).json()
        assert after["results"][0]["relevance_score"] > before["results"][0]["relevance_score"]


async def test_fields_are_rendered_as_those_of_sent_documents(serve: Serve) -> None:
    documents = [{"id": "a", "title": "tides", "body": "the moon"}, {"id": "b", "title": "bread", "body": "flour"}]
    async with serve(documents="memory") as client:
        await put(client, documents)
        fields = {"rank_fields": ["title", "body"]}
        by_ids = (await rank(client, document_ids=["a", "b"], **fields)).json()["results"]
        assert by_ids == (await rank(client, documents=documents, **fields)).json()["results"]
        unread = await rank(client, documents=["tides"], document_ids=["b"])
        assert (unread.status_code, unread.json()["message"]) == (422, "document_ids[0]: has no 'text'")


@pytest.mark.parametrize(
    "body",
    [
        {"documents": ["tides"], "collection": PLANETS, "document_ids": ["moon"]},
        {"documents": ["tides"], "document_ids": ["moon"]},
        {"documents": ["tides"], "collection": {"a": 1}, "document_ids": 5},
    ],
)
async def test_without_a_store_the_fields_are_ignored_and_named(serve: Serve, body: dict[str, Any]) -> None:
    async with serve() as client:
        answer = await client.post("/v1/rerank", json={"query": QUERY} | body)
        assert (answer.status_code, len(answer.json()["results"])) == (200, 1)
        assert "document_ids: is not supported; it is ignored" in answer.headers["x-reranker-warning"]


async def test_without_a_collection_no_document_is_looked_up(serve: Serve) -> None:
    async with serve(documents="memory") as client:
        await put(client)
        ignored = await client.post("/rerank", json={"query": QUERY, "documents": ["tides"], "document_ids": ["moon"]})
        assert len(ignored.json()["results"]) == 1
        reference = await client.post("/rerank", json={"query": QUERY, "documents": [{"id": "moon"}]})
        assert (reference.status_code, reference.json()["message"]) == (422, "documents[0]: has no 'text'")
        ids = await client.post("/rerank", json={"query": QUERY, "document_ids": ["moon"]})
        assert (ids.status_code, ids.json()["message"].split(",")[0]) == (422, "document_ids: needs 'collection'")


async def test_without_a_store_the_answer_names_the_setting(serve: Serve) -> None:
    async with serve() as client:
        requests = [
            client.put("/v1/documents", json={"collection": "c", "documents": STORED}),
            client.put("/v1/documents?collection=c", content=b"{}", headers={"Content-Type": "application/x-ndjson"}),
            client.get("/v1/documents/a?collection=c"),
            client.delete("/v1/documents/a?collection=c"),
            client.delete("/v1/documents?collection=c"),
            rank(client, document_ids=["moon"]),
            rank(client, documents=[{"id": "moon"}]),
        ]
        for request in requests:
            answer = await request
            assert answer.status_code == 404
            assert "RERANKER_DOCUMENTS" in answer.json()["message"]


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"document_ids": "moon"}, 422, "document_ids: "),
        ({"document_ids": [1.5]}, 422, "document_ids: "),
        ({"document_ids": ["moon"], "collection": 5}, 422, "collection: "),
        ({"document_ids": ["moon"], "collection": ""}, 422, "collection: "),
        ({"document_ids": ["moon"] * 6}, 413, "document_ids: at most 5 are accepted"),
        ({"documents": ["a"] * 5, "document_ids": ["moon"]}, 413, "document_ids: at most 5 are accepted"),
        ({"document_ids": []}, 422, "documents: at least one"),
    ],
)
async def test_errors_name_the_field(serve: Serve, fields: dict[str, Any], status: int, message: str) -> None:
    async with serve(documents="memory", max_documents=5) as client:
        await put(client)
        answer = await rank(client, **fields)
        assert (answer.status_code, answer.json()["message"][: len(message)]) == (status, message)


async def test_stored_documents_count_as_the_body_of_a_request(serve: Serve) -> None:
    async with serve(documents="memory", max_body_bytes=4000) as client:
        for name in ("a", "b", "c"):
            await put(client, [{"id": name, "text": "tides " * 300}])
        assert (await rank(client, document_ids=["a", "b"])).status_code == 200
        assert (await rank(client, document_ids=["a"] * 50)).status_code == 200  # it is read once
        large = await rank(client, document_ids=["a", "b", "c"])
        assert large.status_code == 413
        assert "RERANKER_MAX_BODY_BYTES" in large.json()["message"]
        assert serve.service.bodies.held == 0


async def test_a_long_document_is_named_as_the_request_names_it(serve: Serve, tmp_path: Path) -> None:
    file = str(tmp_path / "documents.sqlite")
    async with serve(documents=file) as client:
        await put(client, [{"id": "long", "text": "tides " * 20}])
    async with serve(documents=file, max_text_chars=50) as client:
        answer = await rank(client, documents=["tides", {"id": "gone"}], document_ids=["gone", "long"])
        assert answer.status_code == 413
        assert answer.json()["message"].startswith("document_ids[1]: at most 50 characters")
