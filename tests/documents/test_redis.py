"""Replicas that share documents in a real Redis, and a service that is killed while it stores."""

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from app.documents.redis import RedisStore
from app.documents.store import Entry, open_store
from app.errors import StartupError, TooLarge, Unavailable
from tests.conftest import NO_CERTIFICATES, Serve, free_port
from tests.e2e.process import FIXED, MOONS, service
from tests.e2e.test_shared_cache import redis

needs_redis = pytest.mark.skipif(not shutil.which("redis-server"), reason="redis-server is not installed")
SPACE, OTHER = b"0" * 16, b"1" * 16
PLANETS = [{"id": f"p{place}", "text": text} for place, text in enumerate(MOONS["documents"])]
RANK = {"query": MOONS["query"], "collection": "planets", "document_ids": [document["id"] for document in PLANETS]}


async def opened(port: int, most: int = 10**6) -> RedisStore:
    store = open_store(f"redis://127.0.0.1:{port}", most)
    assert isinstance(store, RedisStore)
    await store.open()
    return store


def cli(port: int, *command: str) -> str:
    return subprocess.run(["redis-cli", "-p", str(port), *command], capture_output=True, check=True, text=True).stdout


@needs_redis
async def test_documents_are_stored_replaced_and_removed(tmp_path: Path) -> None:
    port = free_port()
    with redis(tmp_path, port):
        store = await opened(port)
        entries = [Entry(f"ä{number}", b"x" * number) for number in range(1, 1201)]
        assert (await store.put(SPACE, entries, None))[:2] == (1200, 0)
        assert (await store.put(SPACE, [Entry("ä1", b"new"), Entry("b", b"b"), Entry("b", b"c")], 60))[:2] == (1, 2)
        assert await store.get(SPACE, ["ä1", "b", "ä700", "gone", "b"], 10**6) == {
            "ä1": b"new", "b": b"c", "ä700": b"x" * 700,
        }  # fmt: skip
        assert await store.get(OTHER, ["b"], 10**6) == {}
        with pytest.raises(TooLarge, match="RERANKER_MAX_BODY_BYTES"):
            await store.get(SPACE, [entry.id for entry in entries], 100_000)
        await store.put(OTHER, [Entry("b", b"of the other")], None)
        assert (await store.delete(SPACE, ["b"]), await store.delete(SPACE, ["b"])) == (1, 0)
        assert (await store.clear(SPACE), await store.clear(SPACE)) == (1200, 0)
        assert await store.get(OTHER, ["b"], 10**6) == {"b": b"of the other"}
        await store.delete(OTHER, ["b"])
        assert store.used_bytes == 0
        assert cli(port, "keys", "*").split() == ["{reranker:documents}:bytes"]
        await store.close()


@needs_redis
async def test_the_store_is_bounded_and_documents_expire(tmp_path: Path) -> None:
    port = free_port()
    with redis(tmp_path, port):
        store = await opened(port, 1300)
        for name in "abcd":  # of about 300 bytes each
            assert (await store.put(SPACE, [Entry(name, b"x" * 100)], None)).evicted == 0
        await store.get(SPACE, ["a"], 1000)
        assert (await store.put(OTHER, [Entry("e", b"x" * 100)], 0.2)).evicted == 1
        assert list(await store.get(SPACE, list("abcd"), 1000)) == ["a", "c", "d"]
        while await store.get(OTHER, ["e"], 1000):  # noqa: ASYNC110 (no event)
            await asyncio.sleep(0.05)
        assert (await store.put(SPACE, [Entry("f", b"x" * 100)], None)).evicted == 0  # in the place of e
        assert list(await store.get(SPACE, list("acdf"), 1000)) == ["a", "c", "d", "f"]
        assert 1000 < store.used_bytes <= 1300
        await store.close()


@needs_redis
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
async def test_a_redis_that_does_not_answer_is_a_503(serve: Serve, tmp_path: Path, stop: signal.Signals) -> None:
    port = free_port()
    with redis(tmp_path, port) as server:
        async with serve(documents=f"redis://127.0.0.1:{port}") as client:
            body = {"collection": "c", "documents": [{"id": "a", "text": "tides"}]}
            assert (await client.put("/v1/documents", json=body)).json()["stored"] == 1
            server.send_signal(stop)
            by_id = {"query": "tides", "collection": "c", "document_ids": ["a"]}
            for _ in range(3):
                for answer in (await client.post("/rerank", json=by_id), await client.put("/v1/documents", json=body)):
                    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
                    message = answer.json()["message"]
                    assert message.startswith("The document store does not answer (Redis of RERANKER_DOCUMENTS)")
            texts = await client.post("/rerank", json={"query": "tides", "documents": ["tides"], "collection": "c"})
            assert texts.status_code == 200


@needs_redis
async def test_a_redis_without_memory_is_a_503(serve: Serve, tmp_path: Path) -> None:
    port = free_port()
    with redis(tmp_path, port):
        async with serve(documents=f"redis://127.0.0.1:{port}") as client:
            cli(port, "config", "set", "maxmemory", "1")
            lines = b'{"id": "a", "text": "tides"}'
            answer = await client.put(
                "/v1/documents?collection=c", content=lines, headers={"Content-Type": "application/x-ndjson"}
            )
            assert answer.status_code == 503
            assert "The document store failed (Redis of RERANKER_DOCUMENTS)" in answer.json()["message"]
            assert "maxmemory" in answer.json()["message"]
            assert answer.json()["message"].endswith("Before that, 0 lines were stored and 0 refused")


async def test_a_wrong_url_does_not_show_its_password() -> None:
    store = open_store("redis://user:pass/word@host:port", 1000)
    with pytest.raises(StartupError) as refused:
        await store.open()
    assert "word" not in str(refused.value).replace("password", "")
    with pytest.raises(Unavailable, match="not open yet"):
        await store.get(SPACE, ["a"], 1000)


@pytest.mark.e2e
@needs_redis
async def test_replicas_share_their_documents(serve: Serve, tmp_path: Path) -> None:
    port = free_port()
    url = f"redis://127.0.0.1:{port}"
    with redis(tmp_path, port), service(**FIXED, RERANKER_DOCUMENTS=url) as (second, process):
        async with serve(documents=url) as first:
            body = {"collection": "planets", "documents": PLANETS}
            (await first.put("/v1/documents", json=body)).raise_for_status()
        async with httpx.AsyncClient(base_url=second, verify=NO_CERTIFICATES) as client:
            by_ids = (await client.post("/rerank", json=RANK)).json()
            by_texts = (await client.post("/rerank", json=MOONS)).json()
        assert by_ids["results"][0]["id"] == "p2"
        assert [found["index"] for found in by_ids["results"]] == [found["index"] for found in by_texts["results"]]
        process.terminate()
        assert process.wait(30) == 0


SENT = [f"n{number}" for number in range(22 * 256)]


def store_until_killed(url: str, process: "subprocess.Popen[str]") -> None:
    """Send the first lines of a long request, and kill the service when it has stored some."""
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port or 80)) as connection:
        head = "PUT /v1/documents?collection=planets HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-ndjson\r\n"
        connection.sendall(f"{head}Content-Length: {10**9}\r\n\r\n".encode())
        connection.sendall(b"".join(json.dumps({"id": name, "text": name}).encode() + b"\n" for name in SENT))
        with httpx.Client(base_url=url, verify=NO_CERTIFICATES) as client:
            while client.get(f"/v1/documents/{SENT[0]}", params={"collection": "planets"}).status_code != 200:
                time.sleep(0.001)
        process.kill()
        process.wait()


@pytest.mark.e2e
async def test_a_kill_while_documents_arrive_loses_none_that_was_acknowledged(serve: Serve, tmp_path: Path) -> None:
    file, planets = str(tmp_path / "documents.sqlite"), {"collection": "planets", "documents": PLANETS}
    with service(**FIXED, RERANKER_DOCUMENTS=file) as (url, process):
        async with httpx.AsyncClient(verify=NO_CERTIFICATES) as client:
            (await client.put(f"{url}/v1/documents", json=planets)).raise_for_status()
        store_until_killed(url, process)
    async with serve(documents=file) as client:
        ranked = (await client.post("/rerank", json=RANK)).json()
        assert ranked["results"][0]["id"] == "p2"
        assert "missing" not in ranked
        # The first lines of the interrupted request are stored, without a gap.
        missing: list[str] = []
        for start in range(0, len(SENT), 512):
            body = {"query": "n", "collection": "planets", "document_ids": SENT[start : start + 512], "prefilter": 1}
            ranked = (await client.post("/rerank", json=body | {"documents": ["n"]})).json()
            missing += ranked.get("missing", [])
        stored = len(SENT) - len(missing)
        assert missing == SENT[stored:]
        assert stored > 0
        assert (await client.put("/v1/documents", json=planets)).json()["replaced"] == len(PLANETS)
