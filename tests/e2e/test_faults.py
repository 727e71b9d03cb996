"""Faults that users of rerankers have reported, against one real service."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.process import FIXED, MOONS, ROOT, service
from tests.test_config import SERVICES

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

# Kubernetes puts an address into RERANKER_PORT, so the service takes the default port. Nothing else listens here.
HOST = "127.0.0.77"
URL = f"http://{HOST}:8000"
PREFIX = "/reranker"
KEY = {"api-key": "k"}
TEXT = MOONS["documents"][2]
BODIES: list[tuple[str, dict[str, Any]]] = [
    (path, MOONS)
    for path in ("/v1/rerank", "/v1/reranking", "/v3/rerank", "/openai/v1/rerank", "/v1/reranks", "/invocations")
]
BODIES += [
    ("/rerank", {"query": MOONS["query"], "texts": MOONS["documents"]}),
    ("/rerank", MOONS | {"property": "text"}),
    ("/score", {"text_1": MOONS["query"], "text_2": MOONS["documents"]}),
    (
        "/v1/ranking",
        {"query": {"text": MOONS["query"]}, "passages": [{"text": text} for text in MOONS["documents"]]},
    ),
]


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    before = ("env", *(f"{name}={value}" for name, value in SERVICES.items()), f"RERANKER_HOST={HOST}")
    settings = {"RERANKER_ROOT_PATH": PREFIX, "RERANKER_API_KEYS": "k", "RERANKER_TRUSTED_PROXIES": "127.0.0.1"}
    with (
        service(*before, url=URL, **FIXED, **settings, RERANKER_KEEP_ALIVE=75, RERANKER_MAX_TEXT_CHARS=100_000),
        httpx.Client(headers=KEY, timeout=120) as client,
    ):
        yield client


def best(answer: Any) -> int:
    """The index of the best document in any shape."""
    if isinstance(answer, dict) and "scores" in answer:
        scores = [item["score"] for item in answer["scores"]]
        return scores.index(max(scores))
    items = (
        answer
        if isinstance(answer, list)
        else next(answer[key] for key in ("results", "data", "rankings") if key in answer)
    )
    return int(max(items, key=lambda item: item.get("relevance_score", item.get("score", item.get("logit"))))["index"])


def test_kubernetes_variables_leave_the_default_port(client: httpx.Client) -> None:
    assert client.get(f"{URL}/health/ready").status_code == 200
    checked = subprocess.run(
        ["docker/entrypoint.sh", "healthcheck"],
        cwd=ROOT,
        env=SERVICES | {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "RERANKER_HOST": HOST},
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_routes_of_other_services_with_any_slashes_and_prefix(
    client: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    for spelling in (path, f"{path}/", f"/{path}", f"{PREFIX}{path}", f"{PREFIX}//{path}/"):
        response = client.post(httpx.URL(URL + spelling), json=body)
        assert response.status_code == 200, (spelling, response.text)
        assert best(response.json()) == 2


@pytest.mark.parametrize(
    "path", ["/v1/health/ready", "/v1/health/live", "/ping", "/v1/models/reranker-minilm-l6-v2", "/health/", "//docs"]
)
def test_probes_and_pages_have_no_redirect(client: httpx.Client, path: str) -> None:
    for spelling in (path, PREFIX + path):
        assert client.get(httpx.URL(URL + spelling)).status_code == 200
    for headers, prefix in (({"x-forwarded-proto": "https"}, PREFIX), ({"x-forwarded-prefix": "/gate"}, "/gate")):
        page = client.get(f"{URL}/", headers=headers)
        assert (page.status_code, f'<base href="{prefix}/">' in page.text) == (200, True)


@pytest.mark.parametrize(
    "wrapped",
    [
        {"content": TEXT},
        {"content": [{"type": "text", "text": TEXT}]},
        {"page_content": TEXT, "metadata": {}},
        {"pageContent": TEXT},
    ],
)
def test_text_is_found_in_its_wrapping(client: httpx.Client, wrapped: dict[str, Any]) -> None:
    documents = [MOONS["documents"][4], wrapped]
    for path, body in (
        ("/v1/rerank", {"query": {"text": MOONS["query"]}, "documents": documents}),
        ("/score", {"text_1": {"content": MOONS["query"]}, "text_2": documents}),
    ):
        assert best(client.post(URL + path, json=body).json()) == 1
    [only] = client.post(f"{URL}/v1/rerank", json={"query": MOONS["query"], "documents": TEXT}).json()["results"]
    assert only["index"] == 0


def test_what_is_not_done_is_refused_or_reported(client: httpx.Client) -> None:
    for path, body in BODIES:
        for wish in ({"truncation_side": "left"}, {"max_tokens_per_query": 4}, {"instruct": "Find planets"}):
            assert client.post(URL + path, json=body | wish).status_code == 422
        assert (
            "no_such_field" in client.post(URL + path, json=body | {"no_such_field": 1}).headers["x-reranker-warning"]
        )


def test_one_bad_document_spoils_no_request(client: httpx.Client) -> None:
    long = "Bread is baked. " * 7500
    body = {"query": MOONS["query"], "documents": [long, {"text": "BROKEN half", "metadata": {"a": "BROKEN"}}, TEXT]}
    content = json.dumps(body | {"truncate": True}).replace("BROKEN", "\\ud83c")
    answer = client.post(f"{URL}/v1/rerank", content=content, headers={"content-type": "application/json"}).json()
    assert (best(answer), answer["meta"]["truncated"]) == (2, 1)
    assert answer["meta"]["repaired"] == 1


def test_an_idle_connection_outlives_the_default_of_the_server_library(client: httpx.Client) -> None:
    """It closes idle connections after 5 s, and a load balancer would answer 502."""
    request = f"GET /health/live HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
    with socket.create_connection((HOST, 8000)) as connection:
        for _ in range(2):
            connection.sendall(request)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
            time.sleep(7)
