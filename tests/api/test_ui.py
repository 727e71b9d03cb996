"""The page of the playground: how it is served."""

import re

import pytest

from tests.conftest import Serve

ASSETS = re.compile(r'"(ui/[^"]+)"')


async def test_the_page_and_its_files_need_no_key(serve: Serve) -> None:
    async with serve(api_keys="k") as client:
        page = await client.get("/")
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert len(ASSETS.findall(page.text)) == 3
        for path in ASSETS.findall(page.text):
            assert (await client.get(path)).status_code == 200
        assert (await client.get("/info")).status_code == 401


async def test_the_page_runs_only_its_own_scripts(serve: Serve) -> None:
    async with serve() as client:
        page = await client.get("/")
        policy = page.headers["content-security-policy"]
        script = await client.get("/ui/app.js")
    assert policy.startswith("default-src 'self'; connect-src 'self' http: https:;")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert script.headers["content-security-policy"] == policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"<script(?![^>]*src=)|<style| style=| on\w+=", page.text)


async def test_files_are_kept_by_browsers_only_while_they_cannot_change(serve: Serve) -> None:
    async with serve() as client:
        page = await client.get("/")
        path = next(path for path in ASSETS.findall(page.text) if "app.js" in path)
        named, bare, outdated = [await client.get(f"/{each}") for each in (path, "ui/app.js", "ui/app.js?v=0123456789")]
        assert page.headers["cache-control"] == "no-cache"
        assert "immutable" in named.headers["cache-control"]
        assert (bare.headers["cache-control"], outdated.headers["cache-control"]) == ("no-cache", "no-cache")
        for known in (page, named):
            again = await client.get(known.request.url, headers={"if-none-match": known.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")


async def test_probes_may_use_head(serve: Serve) -> None:
    async with serve() as client:
        for path in ("/", "/ui/app.js"):
            response = await client.head(path)
            assert (response.status_code, response.content) == (200, b"")
            assert int(response.headers["content-length"]) > 1000


@pytest.mark.parametrize("path", ["/ui/nothing.js", "/ui/../main.py", "/ui/%2e%2e/main.py", "/ui/index.html", "/ui/"])
async def test_only_the_files_of_the_page_are_served(serve: Serve, path: str) -> None:
    async with serve() as client:
        assert (await client.get(path)).status_code == 404


async def test_links_work_below_a_prefix(serve: Serve) -> None:
    async with serve(root_path="/reranker") as client:
        for path in ("/reranker", "/reranker/"):
            assert '<base href="/reranker/">' in (await client.get(path)).text
        assert (await client.get("/reranker/ui/app.css")).status_code == 200
    async with serve(trusted_proxies="127.0.0.1") as client:
        assert '<base href="./">' in (await client.get("/")).text
        forwarded = await client.get("/", headers={"x-forwarded-prefix": "/a"})
        assert '<base href="/a/">' in forwarded.text


async def test_the_link_to_the_documentation_is_hidden_if_there_is_none(serve: Serve) -> None:
    async with serve() as client:
        assert 'data-docs="on"' in (await client.get("/")).text
        assert not [path for path in (await client.get("/openapi.json")).json()["paths"] if path in ("/", "/ui/{name}")]
    async with serve(docs=False) as client:
        assert 'data-docs="off"' in (await client.get("/")).text


async def test_the_page_can_be_switched_off(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANKER_UI", "off")
    async with serve() as client:
        root = await client.get("/")
        assert (root.status_code, root.headers["location"]) == (307, "/docs")
        assert root.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert (await client.get("/ui/app.js")).status_code == 404


async def test_health_and_metrics_name_the_replica(serve: Serve) -> None:
    async with serve() as client:
        name = (await client.get("/health")).json()["instance"]
        assert re.fullmatch(r".+:\d+", name)
        assert (await client.get("/metrics")).headers["x-reranker-instance"] == name
