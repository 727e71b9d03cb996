"""Paths with extra slashes, and behind a prefix."""

import re
from typing import Any

import httpx
import pytest

from app.environment import load_settings
from app.errors import StartupError
from tests.conftest import Serve

BODY = {"query": "tides", "documents": ["bread", "tides"]}
PROXY = "127.0.0.1"


@pytest.mark.parametrize(
    "path", ["/v1/rerank/", "//v1/rerank", "/v1//rerank", "/v1/rerank//", "///rerank/query/", "/rerank/?a=b"]
)
async def test_slashes_do_not_matter_in_a_request(serve: Serve, path: str) -> None:
    async with serve(api_keys="k") as client:
        response = await post(client, path, {"x-api-key": "k"})
    assert (response.status_code, response.json()["results"][0]["index"]) == (200, 1)


async def post(client: httpx.AsyncClient, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
    """Sends the path as it is: httpx merges slashes when it joins URLs."""
    url = httpx.URL(str(client.base_url).rstrip("/") + path)
    return await client.post(url, json=BODY, headers=headers)


@pytest.mark.parametrize("path", ["/health/", "//health", "/health/ready/", "/metrics/", "/docs/"])
async def test_slashes_do_not_matter_to_operators_and_need_no_key(serve: Serve, path: str) -> None:
    async with serve(api_keys="k") as client:
        response = await client.get(httpx.URL(str(client.base_url).rstrip("/") + path))
    assert response.status_code == 200


async def test_slashes_do_not_open_what_needs_a_key(serve: Serve) -> None:
    async with serve(api_keys="k", root_path="/a", trusted_proxies=PROXY) as client:
        for path in (
            "//info",
            "/health/../info",
            "/a/info/",
            "/a//v1/models",
            "/health/info",
            "/static-offline-docs/../info",
        ):
            url = str(client.base_url).rstrip("/") + path
            response = await client.get(httpx.URL(url), headers={"x-forwarded-prefix": "/health"})
            assert response.status_code in (401, 404), path


# Configured prefix, header of the proxy, path as it arrives, and the prefix that the client sees.
PREFIXES: list[tuple[str, dict[str, str], str, str]] = [
    ("/reranker", {}, "/reranker", "/reranker"),
    ("/reranker", {}, "", "/reranker"),
    ("/ai/rank", {}, "/ai/rank", "/ai/rank"),
    ("", {"x-forwarded-prefix": "/reranker"}, "", "/reranker"),
    ("", {"x-forwarded-prefix": "/reranker/"}, "/reranker", "/reranker"),
    ("", {"x-forwarded-prefix": "/gateway, /reranker"}, "", "/gateway/reranker"),
    ("/reranker", {"x-forwarded-prefix": "/gateway/reranker"}, "/reranker", "/gateway/reranker"),
]


@pytest.mark.parametrize(("root_path", "headers", "before", "seen"), PREFIXES)
async def test_a_prefix_may_be_stripped_or_not(
    serve: Serve, root_path: str, headers: dict[str, str], before: str, seen: str
) -> None:
    async with serve(root_path=root_path, trusted_proxies=f"10.0.0.0/8, {PROXY}", ui=False) as client:
        client.headers = httpx.Headers(headers)
        assert (await client.post(f"{before}/v1/rerank", json=BODY)).status_code == 200
        assert (await client.get(f"{before}/health/")).status_code == 200
        assert (await client.get(f"{before}/")).headers["location"] == f"{seen}/docs"
        page = (await client.get(f"{before}/docs")).text
        links = re.findall(r"""(?:src|href|url)(?:=|: )['"]([^'"]+)['"]""", page)
        assert f"{seen}/openapi.json" in links
        assert len(links) >= 3
        for link in links:
            assert link.startswith(f"{seen}/")
            response = await client.get(before + link.removeprefix(seen))
            assert response.status_code == 200, link
        schema = (await client.get(f"{before}/openapi.json")).json()
        assert schema["servers"][0]["url"] == seen


@pytest.mark.parametrize(
    ("trusted", "prefix"),
    [
        (None, "/evil"),
        ("10.0.0.0/8, ::1", "/evil"),
        (PROXY, "//evil.example"),
        (PROXY, '/a"><script>alert(1)</script>'),
        (PROXY, "/../a"),
        (PROXY, "https://evil.example/"),
    ],
)
async def test_a_prefix_counts_only_if_it_is_a_path_from_a_trusted_proxy(
    serve: Serve, trusted: str | None, prefix: str
) -> None:
    headers: dict[str, Any] = {"x-forwarded-prefix": prefix, "x-forwarded-proto": "https", "x-forwarded-host": "evil"}
    async with serve(trusted_proxies=trusted, ui=False) as client:
        location = (await client.get("/", headers=headers)).headers["location"]
        page = (await client.get("/docs", headers=headers)).text
    assert re.fullmatch(r"(/[\w.]+)*/docs", location)
    assert location == "/docs" or prefix == "//evil.example"
    assert "<script>alert" not in page


@pytest.mark.parametrize("trusted", ["*", "127.0.0.0/8", "::ffff:127.0.0.1, 127.0.0.1"])
async def test_trusted_proxies_may_be_networks(serve: Serve, trusted: str) -> None:
    async with serve(trusted_proxies=trusted, ui=False) as client:
        location = (await client.get("/", headers={"x-forwarded-prefix": "/a"})).headers["location"]
    assert location == "/a/docs"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RERANKER_ROOT_PATH", "https://a.example/b", "must be a path such as /reranker"),
        ("RERANKER_ROOT_PATH", "/a b", "must be a path such as /reranker"),
        ("RERANKER_TRUSTED_PROXIES", "10.0.0.0/8, proxy", "'proxy' does not appear to be an IPv4 or IPv6 network"),
    ],
)
def test_invalid_settings_are_reported(monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(StartupError, match=message):
        load_settings()


@pytest.mark.parametrize(("value", "used"), [("reranker/", "/reranker"), ("/", ""), ("//a//b/", "/a/b")])
def test_the_prefix_may_be_written_with_any_slashes(monkeypatch: pytest.MonkeyPatch, value: str, used: str) -> None:
    monkeypatch.setenv("RERANKER_ROOT_PATH", value)
    assert load_settings().root_path == used
