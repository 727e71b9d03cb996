"""Search engines and frameworks: the documented configuration, what their code sends, and what it reads."""

import ast
import asyncio
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
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
from tests.test_docs import page

SERVICE = "http://reranker:8000"
KEY = "KEY"
QUOTED = 'what causes\ntides " \\'
"""A query that has to be escaped in JSON."""

JAVA_DOUBLE = 18
"""Longer numbers are no `Double` for json-smart, which OpenSearch and others in Java use."""


def blocks(section: str, language: str) -> list[str]:
    """The blocks of code in a section of the page."""
    text = re.split(r"^## ", page("integrations").split(f"\n## {section}\n")[1], flags=re.MULTILINE)[0]
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def bodies(section: str) -> dict[str, Any]:
    """The documented calls of a product's API: path and body."""
    calls = [block.split("\n", 1) for block in blocks(section, "json")]
    return {call.split()[1]: json.loads(body) for call, body in calls}


async def post(client: httpx.AsyncClient, url: str, body: Any, ignored: str | None = None, **headers: str) -> Any:
    """The answer of the documented address to this body, which may be a text. `ignored`: a field without effect."""
    content = body if isinstance(body, str) else json.dumps(body)
    types = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    response = await client.post(url.removeprefix(SERVICE), content=content, headers=types | headers)
    assert response.status_code == 200, response.text
    warning = response.headers.get("x-reranker-warning")
    assert warning == (ignored and f"{ignored}: is not supported; it is ignored")
    return response.json()


def ranked(results: list[dict[str, Any]], score: str = "relevance_score") -> list[int]:
    """The order of the results. Their types are what a strictly typed client needs."""
    assert all((type(item["index"]), type(item[score])) == (int, float) for item in results)
    scores = [item[score] for item in results]
    assert scores == sorted(scores, reverse=True)
    return [item["index"] for item in results]


async def test_elasticsearch_hugging_face(serve: Serve) -> None:
    settings = bodies("Elasticsearch")["_inference/rerank/reranker"]["service_settings"]
    async with serve(api_keys=KEY) as client:
        body = {"texts": DOCUMENTS, "query": QUERY, "return_text": True, "top_n": 2}
        found = await post(client, settings["url"], body, "top_n", authorization=f"Bearer {settings['api_key']}")
    assert ranked(found, "score") == BEST_FIRST  # it cuts the list itself
    assert [item["text"] for item in found] == [DOCUMENTS[index] for index in BEST_FIRST]


async def test_elasticsearch_custom(serve: Serve) -> None:
    settings = bodies("Elasticsearch")["_inference/rerank/reranker-custom"]["service_settings"]
    body = settings["request"].replace("${query}", json.dumps(QUOTED)).replace("${input}", json.dumps(DOCUMENTS))
    secret = settings["secret_parameters"]["api_key"]
    headers = {name: value.replace("${api_key}", secret) for name, value in settings["headers"].items()}
    async with serve(api_keys=KEY) as client:
        found = await post(client, settings["url"], body, **{name.lower(): headers[name] for name in headers})
    columns = {}
    for name, path in settings["response"]["json_parser"].items():
        field, value = re.fullmatch(r"\$\.(\w+)\[\*\]\.(\w+)", path).groups()  # type: ignore[union-attr]
        columns[name] = [item[value] for item in found[field]]
    assert columns["reranked_index"] == BEST_FIRST
    assert [type(score) for score in columns["relevance_score"]] == [float] * 4


def test_elasticsearch_searches_with_the_documented_endpoint() -> None:
    calls = bodies("Elasticsearch")
    retriever = calls["articles/_search"]["retriever"]["text_similarity_reranker"]
    assert f"_inference/rerank/{retriever['inference_id']}" in calls


async def test_opensearch(serve: Serve) -> None:
    calls = bodies("OpenSearch")
    connector = calls["_plugins/_ml/connectors/_create"]
    action = connector["actions"][0]
    trusted = calls["_cluster/settings"]["persistent"]["plugins.ml_commons.trusted_connector_endpoints_regex"]
    assert any(re.search(regex, action["url"]) for regex in trusted)
    parameters = {"query": json.dumps(QUOTED)[1:-1], "documents": json.dumps(DOCUMENTS), "top_n": str(len(DOCUMENTS))}
    body = re.sub(r"\$\{parameters\.(\w+)\}", lambda match: parameters[match[1]], action["request_body"])
    key = action["headers"]["Authorization"].replace("${credential.key}", connector["credential"]["key"])
    async with serve(api_keys=KEY) as client:
        found = await post(client, action["url"], body, authorization=key)
    assert ranked(found["results"]) == BEST_FIRST  # one for each document: it fills an array by `index`


@pytest.mark.parametrize(
    ("provider", "field", "options"),
    [
        ("tei", "texts", {}),
        ("tei", "texts", {"truncate": True, "truncation_direction": "Right"}),
        ("vllm", "documents", {}),
        ("vllm", "documents", {"truncate_prompt_tokens": -1}),
    ],
)
async def test_milvus(serve: Serve, provider: str, field: str, options: dict[str, Any]) -> None:
    (block,) = blocks("Milvus", "python")
    (call,) = [node for node in ast.walk(ast.parse(block)) if ast.unparse(node).startswith("Function(")][:1]
    assert isinstance(call, ast.Call)
    params = next(ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg == "params")
    assert params["reranker"] == "model"
    async with serve() as client:
        url = httpx.URL(params["endpoint"]).copy_with(path="/rerank")
        found = await post(client, str(url), {"query": params["queries"][0], field: DOCUMENTS} | options)
    results, score = (found, "score") if provider == "tei" else (found["results"], "relevance_score")
    assert ranked(results, score) == BEST_FIRST


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


async def test_weaviate_cohere(serve: Serve) -> None:
    settings = bodies("Weaviate")["/v1/schema"]["moduleConfig"]["reranker-cohere"]
    body = {"documents": DOCUMENTS, "query": QUERY, "model": "rerank-v3.5", "return_documents": False}
    async with serve(api_keys=KEY) as client:
        found = await post(client, settings["baseURL"] + "/v2/rerank", body)
        refused = await client.post("/v2/rerank", json=body, headers={"authorization": "Bearer no"})
    assert ranked(found["results"]) == BEST_FIRST
    assert all("document" not in item for item in found["results"])
    assert isinstance(found["id"], str)
    assert isinstance(refused.json()["message"], str)


async def test_weaviate_nvidia_reads_logits_and_errors(serve: Serve) -> None:
    path = "/v1/retrieval/nvidia/reranking"
    passages = [{"text": text} for text in DOCUMENTS]
    body = {"model": "nvidia/rerank-qa-mistral-4b", "query": {"text": QUERY}, "passages": passages}
    async with serve() as client:
        rankings = (await post(client, path, body))["rankings"]
        refused = await client.post(path, json=body | {"passages": []})
    assert ranked(rankings, "logit") == BEST_FIRST
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


HITS = [{"id": f"id:articles:articles::{i}", "relevance": 0.1, "fields": {"text": t}} for i, t in enumerate(DOCUMENTS)]


class Vespa(BaseHTTPRequestHandler):
    """Answers a query in the default format of Vespa."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        hits = HITS[: asked["hits"]] if asked["yql"] and asked["query"] == QUERY else []
        content = json.dumps({"root": {"id": "toplevel", "relevance": 1.0, "children": hits}}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def vespa() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Vespa) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def test_the_code_for_vespa_runs(serve: Serve) -> None:
    (code,) = blocks("Vespa", "python")
    async with serve(api_keys=KEY) as client:
        with vespa() as address:
            code = code.replace("http://vespa:8080", address).replace(SERVICE, str(client.base_url))
            names: dict[str, Any] = {}
            await asyncio.to_thread(exec, code, names)
    assert [hit["fields"]["text"] for hit in names["hits"]] == [DOCUMENTS[index] for index in BEST_FIRST]


async def test_langchain4j(serve: Serve) -> None:
    (java,) = blocks("LangChain4j", "java")
    (base,) = set(re.findall(r'baseUrl\("(.*?)"\)', java))
    voyage = re.findall(r'Voyage.*?modelName\("(.*?)"\)', java, re.DOTALL)[0]
    plain = {"model": None, "query": QUERY, "documents": DOCUMENTS}
    async with serve(api_keys=KEY) as client:
        cohere = await post(client, f"{base}/rerank", plain)
        jina = await post(client, f"{base}/rerank", plain | {"model": "any", "return_documents": False})
        nulls = {"top_k": None, "return_documents": None, "truncation": None}
        data = await post(client, f"{base}/rerank", plain | {"model": voyage} | nulls)
    assert ranked(cohere["results"]) == ranked(jina["results"]) == ranked(data["data"]) == BEST_FIRST
    assert type(cohere["meta"]["billed_units"]["search_units"]) is int
    assert {type(jina["usage"][name]) for name in ("prompt_tokens", "total_tokens")} == {int}
    assert type(data["usage"]["total_tokens"]) is int


async def test_spring_ai(serve: Serve) -> None:
    (java,) = blocks("Spring AI", "java")
    (base,), (path,) = re.findall(r'baseUrl\("(.*?)"\)', java), re.findall(r'uri\("(.*?)"\)', java)
    names = re.findall(r'"(\w+)", (?=query|texts|\d)', java)
    (key,) = re.findall(r'"Authorization", "(.*?)"', java)
    assert names == ["query", "documents", "top_n"]
    async with serve(api_keys=KEY) as client:
        body = dict(zip(names, (QUERY, DOCUMENTS, 2), strict=True))
        found = await post(client, base + path, body, authorization=key)
    assert ranked(found["results"]) == BEST_FIRST[:2]
    assert set(re.findall(r"record Result\(int (\w+), double (\w+)\)", java)[0]) <= found["results"][0].keys()
