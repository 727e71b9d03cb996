"""Replicas behind a real nginx with the configuration of docker/nginx: what only nginx does."""

import json
import os
import shutil
import socket
import time
from pathlib import Path

import httpx
import pytest

from tests.conftest import free_port
from tests.e2e.process import service
from tests.e2e.proxies import address, assert_error, nginx

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not shutil.which("nginx"), reason="nginx is not installed"),
]


def test_errors_of_the_proxy_have_the_format_of_the_service(tmp_path: Path) -> None:
    with nginx(tmp_path, [f"127.0.0.1:{free_port()}"], RERANKER_MAX_BODY_BYTES=4096) as url:
        assert_error(httpx.get(f"{url}/metrics"), 404, "http_error", "each replica")
        assert_error(httpx.post(f"{url}/rerank", content=b"a" * 5000), 413, "too_large", "RERANKER_MAX_BODY_BYTES")
        assert_error(
            httpx.post(f"{url}/rerank", content=iter([b"a" * 5000])), 413, "too_large", "RERANKER_MAX_BODY_BYTES"
        )
        assert_error(httpx.get(url, headers={"x-long": "a" * 70_000}), 431, "head_too_large", "65536")
        assert_error(httpx.request("TRACE", url), 405, "http_error", "Method")
        assert_error(httpx.get(url, headers={"host": "a b"}), 400, "http_error", "HTTP")
        for line, status in ((b"nonsense", 400), (b"GET /%b HTTP/1.1" % (b"a" * 70_000), 431)):
            with socket.create_connection(address(url), timeout=10) as connection:
                connection.sendall(line + b"\r\n\r\n")
                head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 %d" % status)
            assert json.loads(body)["error"]["code"] == status


def test_the_proxy_applies_its_own_body_limit(tiny: dict[str, object], tmp_path: Path) -> None:
    with service(**tiny) as (replica, _), nginx(tmp_path, [replica], RERANKER_MAX_BODY_BYTES=4096) as url:
        body = {"query": "a", "documents": ["b" * 5000]}
        assert httpx.post(f"{url}/rerank", json=body).status_code == 413
        assert httpx.post(f"{replica}/rerank", json=body).status_code == 200


def test_replicas_stay_when_the_lookup_fails_and_go_when_they_leave(tmp_path: Path) -> None:
    lookup = tmp_path / "getent"
    lookup.write_text(f"#!/bin/sh\ncat {tmp_path}/names\n")
    lookup.chmod(0o755)
    one, other = "server 10.0.0.1:8000 max_fails=0;", "server 10.0.0.2:8000 max_fails=0;"
    upstream, names, leaving = tmp_path / "upstream.conf", tmp_path / "names", tmp_path / "leaving"

    def becomes(*servers: str) -> None:
        deadline = time.monotonic() + 10
        while upstream.read_text().splitlines() != list(servers):
            assert time.monotonic() < deadline, upstream.read_text()
            time.sleep(0.1)

    with nginx(tmp_path, [], PATH=f"{tmp_path}:{os.environ['PATH']}"):
        becomes("server 127.0.0.1:1 max_fails=0;")
        names.write_text("10.0.0.1 STREAM replica\n10.0.0.2 STREAM\n")
        becomes(one, other)
        names.unlink()
        time.sleep(3)  # longer than the interval of the lookup
        becomes(one, other)
        leaving.write_text("10.0.0.1:8000\n")
        becomes(other)
        leaving.write_text("10.0.0.1:8000\n10.0.0.2:8000\n")
        time.sleep(3)
        becomes(other)
