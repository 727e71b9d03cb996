"""Texts in the wrappings of frameworks, pictures, and broken or very long texts."""

import json
from typing import Any

import pytest

from tests.conftest import Serve

QUERY = "moon tides"
TEXT = "tides of the moon"
PARTS = [{"type": "text", "text": "tides of"}, {"type": "text", "text": "the moon"}]
WRAPPED: list[Any] = [
    TEXT,
    {"text": TEXT},
    {"content": TEXT},
    {"content": PARTS},
    {"content": ["tides of", "the moon"], "role": "user"},
    {"type": "text", "text": TEXT},
    {"page_content": TEXT, "metadata": {"source": "a.pdf"}, "type": "Document"},
    {"pageContent": TEXT, "metadata": {}},
    {"text": None, "content": TEXT, "meta": {"image": "cover.png"}},
]
# Path, names of the query and the documents, and where the scores are.
DIALECTS: list[tuple[str, str, str, str]] = [
    ("/v1/rerank", "query", "documents", "results"),
    ("/rerank", "query", "passages", "results"),
    ("/rerank", "query", "texts", ""),
    ("/score", "text_1", "text_2", "data"),
    ("/v1/score", "queries", "documents", "data"),
]


def best(answer: Any, key: str) -> int:
    found = answer[key] if key else answer
    return int(max(found, key=lambda item: item.get("relevance_score", item.get("score")))["index"])


@pytest.mark.parametrize(("path", "query", "documents", "key"), DIALECTS)
async def test_text_is_found_in_its_wrapping(serve: Serve, path: str, query: str, documents: str, key: str) -> None:
    async with serve() as client:
        for wrapped in WRAPPED:
            for body, expected in (
                ({query: QUERY, documents: ["bread", wrapped]}, 1),
                ({query: wrapped, documents: ["bread", TEXT]}, 1),
                ({query: QUERY, documents: wrapped}, 0),
                ({query: QUERY, documents: ["bread", PARTS]}, 1),
            ):
                response = await client.post(path, json=body)
                assert response.status_code == 200, response.text
                assert best(response.json(), key) == expected


async def test_a_wrapped_document_is_returned_as_it_was_sent(serve: Serve) -> None:
    document = {"pageContent": TEXT, "metadata": {"page": 3}, "id": "a"}
    async with serve() as client:
        body = {"query": QUERY, "documents": [document], "return_documents": True, "long_documents": "chunk_max"}
        [result] = (await client.post("/rerank", json=body)).json()["results"]
        assert (result["document"], result["id"]) == (document, "a")
        assert result["window"] == {"start": 0, "end": len(TEXT)}
        named = body | {"rank_fields": ["pageContent", "metadata"]}
        assert (await client.post("/rerank", json=named)).status_code == 200


PICTURES: list[tuple[Any, str]] = [
    ({"image": "https://a.example/b.png"}, "image"),
    ({"image_url": {"url": "data:image/png;base64,AAAA"}}, "image_url"),
    ({"content": [*PARTS, {"type": "image_url", "image_url": {"url": "https://a.example"}}]}, "image_url"),
    ({"content": [{"type": "input_audio", "data": "AAAA"}]}, "input_audio"),
    ({"video": "https://a.example/b.mp4"}, "video"),
]


@pytest.mark.parametrize(("path", "query", "documents", "key"), DIALECTS)
async def test_a_picture_is_refused_by_name(serve: Serve, path: str, query: str, documents: str, key: str) -> None:
    async with serve() as client:
        for picture, name in PICTURES:
            for body in ({query: QUERY, documents: [TEXT, picture]}, {query: picture, documents: [TEXT]}):
                response = await client.post(path, json=body)
                assert response.status_code == 422
                assert f"must be a text: '{name}' is not supported" in response.text


@pytest.mark.parametrize("where", ["query", "passages"])
async def test_nim_refuses_pictures_also_beside_a_text(serve: Serve, where: str) -> None:
    body: dict[str, Any] = {"query": {"text": QUERY}, "passages": [{"text": TEXT}, {"text": TEXT}]}
    item = body["query"] if where == "query" else body["passages"][1]
    item["image"] = "data:image/png;base64,AAAA"
    async with serve() as client:
        response = await client.post("/v1/ranking", json=body)
    assert response.status_code == 422
    place = where if where == "query" else "passages[1]"
    assert response.json()["message"].startswith(f"{place}: must be a text: 'image' is not supported")


@pytest.mark.parametrize("document", ['"tides \\ud83c moon"', '{"text": "\\udfff tides", "title": "a\\ud800"}'])
@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank/query"])
async def test_broken_characters_are_replaced_and_counted(serve: Serve, path: str, document: str) -> None:
    start, end = '{"query": "tides", "return_documents": true, "documents": [', ', "bread \\ud83c\\udf0a"]}'
    content = start + document + end
    async with serve() as client:
        response = await client.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["meta"]["repaired"] == 1
    assert "\ufffd" in answer["results"][0]["document"]["text"]
    assert answer["results"][1]["document"]["text"] == "bread \U0001f30a"


@pytest.mark.parametrize(
    "document",
    [
        {"text": "tides", "metadata": {"title": "?", "pages": ["a", {"b": "? c"}]}},
        {"text": "tides", "metadata": {"?": 1}},
        {"content": [{"type": "text", "text": "tides ?"}], "meta": "a"},
        {"content": [{"type": "text", "text": "tides ?"}]},
        {"text": "tides", "?": 1},
    ],
)
async def test_broken_characters_in_other_fields_spoil_no_request(serve: Serve, document: Any) -> None:
    body = {"query": "tides", "documents": [document, "bread"], "return_documents": True}
    content = json.dumps(body).replace("?", "\\ud83d")
    async with serve() as client:
        response = await client.post("/v1/rerank", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert (answer["results"][0]["index"], answer["meta"]["repaired"]) == (0, 1)
    assert answer["results"][0]["document"] == json.loads(json.dumps(document).replace("?", "\ufffd"))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/rerank", {"query": "tides", "texts": ["?", "tides"]}),
        ("/score", {"text_1": "tides", "text_2": ["?", "tides"]}),
        ("/v1/ranking", {"query": {"text": "tides"}, "passages": [{"text": "?"}, {"text": "tides"}]}),
    ],
)
async def test_broken_characters_spoil_no_request_of_another_dialect(
    serve: Serve, path: str, body: dict[str, Any]
) -> None:
    content = json.dumps(body).replace("?", "\\udc80")
    async with serve() as client:
        response = await client.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 200, response.text


LONG = "tides " * 100


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/rerank", {"query": "tides", "texts": ["bread", LONG], "truncate": True}),
        ("/v1/ranking", {"query": {"text": "tides"}, "passages": [{"text": LONG}], "truncate": "END"}),
        ("/v1/rerank", {"query": "tides", "documents": ["bread", LONG], "long_documents": "truncate"}),
        ("/v1/rerank", {"query": "tides", "documents": ["bread", {"text": LONG}], "max_tokens_per_doc": 512}),
        ("/v1/rerank", {"query": "tides", "documents": ["bread", LONG], "truncate": True}),
        ("/v1/rerank", {"query": "tides", "documents": ["bread", LONG], "truncation": "true"}),
        ("/v1/rerank", {"query": "tides", "documents": ["bread", LONG], "long_documents": "chunk_max"}),
    ],
)
async def test_a_long_text_is_cut_where_the_caller_allows_it(serve: Serve, path: str, body: dict[str, Any]) -> None:
    async with serve(max_text_chars=200) as client:
        response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    if path == "/v1/rerank":
        assert response.json()["meta"]["truncated"] == 1
        assert response.json()["results"][0]["index"] == 1


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/rerank", {"query": "tides", "texts": ["bread", LONG], "truncate": False}, "texts[1]"),
        ("/rerank", {"query": "tides", "texts": ["bread", LONG]}, "texts[1]"),
        ("/v1/rerank", {"query": "tides", "documents": ["bread", LONG], "truncate": "NONE"}, "documents[1]"),
        ("/v1/rerank", {"query": LONG, "documents": ["bread"], "long_documents": "truncate"}, "query"),
    ],
)
async def test_a_long_text_is_413_where_nobody_allows_to_cut_it(
    serve: Serve, path: str, body: dict[str, Any], field: str
) -> None:
    async with serve(max_text_chars=200) as client:
        response = await client.post(path, json=body)
    assert response.status_code == 413
    assert f"{field}: at most 200 characters" in response.text


@pytest.mark.parametrize("mode", ["truncate", "chunk_max"])
async def test_the_operator_may_allow_to_cut_long_texts(serve: Serve, mode: str) -> None:
    async with serve(max_text_chars=200, long_documents=mode) as client:
        answer = (await client.post("/rerank", json={"query": "tides", "documents": [LONG, "a"]})).json()
    assert answer["meta"]["truncated"] == 1
