"""Security headers, and documentation pages that work with them."""

import re
from html.parser import HTMLParser

import pytest

from tests.conftest import Serve

BODY = {"query": "tides", "documents": ["tides"]}
DOCUMENTATION = ("/docs", "/redoc", "/openapi.json", "/static-offline-docs/swagger-ui.css")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/rerank", 200),
        ("POST", "/score", 422),
        ("GET", "/health", 200),
        ("GET", "/metrics", 200),
        ("GET", "/nothing", 404),
        ("GET", "/rerank", 405),
        ("POST", "/rerank/query", 413),
        ("GET", "/info", 401),
    ],
)
async def test_answers_are_not_cached_and_cannot_be_embedded(serve: Serve, method: str, path: str, status: int) -> None:
    key = {} if status == 401 else {"X-API-Key": "k"}
    async with serve(max_body_bytes=1024, api_keys="k") as client:
        body = BODY | {"query": "x" * 2000} if status == 413 else BODY
        response = await client.request(method, path, json=body, headers=key)
    assert response.status_code == status
    said = response.headers
    assert said["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert (said["x-content-type-options"], said["x-frame-options"]) == ("nosniff", "DENY")
    assert (said["referrer-policy"], said["cache-control"]) == ("no-referrer", "no-store")


@pytest.mark.parametrize("accept", ["application/openmetrics-text; version=abc", "*/*;q=x", ""])
async def test_metrics_are_served_for_any_accept_header(serve: Serve, accept: str) -> None:
    async with serve() as client:
        response = await client.get("/metrics", headers={"accept": accept})
    assert (response.status_code, "reranker_ready" in response.text) == (200, True)


class Page(HTMLParser):
    """What a page loads, and whether it contains inline scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.has_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.loads += [value for name in ("src", "href") if (value := found.get(name))]
        self.has_script |= tag == "script" and "src" not in found


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_the_documentation_may_load_what_it_needs(serve: Serve, path: str) -> None:
    async with serve() as client:
        response = await client.get(path)
        page = Page(response.text)
        policy = response.headers["content-security-policy"]
        assert len(page.loads) >= 2
        for source in page.loads:
            assert source.startswith("/static-offline-docs/")
            assert (await client.get(source)).status_code == 200
    assert "script-src 'self'" in policy
    assert "connect-src 'self'" in policy
    assert not page.has_script or re.search("script-src [^;]*'unsafe-inline'", policy)
    assert "frame-ancestors 'none'" in policy


async def test_documentation_can_be_switched_off(serve: Serve) -> None:
    async with serve() as client:
        assert [(await client.get(path)).status_code for path in DOCUMENTATION] == [200] * 4
    async with serve(docs=False, ui=False) as client:
        assert [(await client.get(path)).status_code for path in DOCUMENTATION] == [404] * 4
        root = await client.get("/")
        assert (root.status_code, root.json()["service"]) == (200, "reranker")
        assert (await client.post("/rerank", json=BODY)).status_code == 200
