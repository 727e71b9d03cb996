"""Clients that disconnect: their work is dropped, and the work of others is kept."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from app.serving.reranker import Reranker
from tests.conftest import Serve, until
from tests.fakes import FakeEngine

BODY: dict[str, Any] = {"query": "tides", "documents": [f"tides {number}" for number in range(50)]}


def idle(reranker: Reranker) -> bool:
    admission = reranker.admission
    return (admission.active, admission.waiting, reranker.batcher.pending, reranker.cache.in_flight) == (0, 0, 0, 0)


async def leave(client: httpx.AsyncClient, body: Any, when: Any) -> None:
    """Send a request over a new socket and close it once `when` is true."""
    _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    content = json.dumps(body).encode()
    head = (
        f"POST /rerank HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    writer.write(head.encode() + content)
    await until(when)
    writer.close()
    await writer.wait_closed()


async def test_a_client_that_leaves_frees_its_slot_and_its_pairs(serve: Serve, engine: FakeEngine) -> None:
    async with serve(batch_tokens=16) as client:
        reranker = serve.reranker
        engine.gate.clear()
        await leave(client, BODY, lambda: 0 < reranker.batcher.pending < 50)
        await until(lambda: (reranker.admission.active, reranker.batcher.pending) == (0, 0))
        engine.gate.set()
        await client.post("/rerank", json={"query": "next", "documents": ["one two three"]})
        assert len(engine.batches) == 2  # the batch that ran when the client left, and the batch of the next client
        # The scores of the running batch are kept for the next request.
        again = (await client.post("/rerank", json=BODY)).json()["meta"]
        assert (again["cached"], again["scored"]) == (len(engine.batches[0]), 50 - len(engine.batches[0]))
        assert idle(reranker)
        figures = (await client.get("/metrics?format=json")).json()
        assert figures["requests"]["disconnected"] == 1


async def test_a_client_that_leaves_the_queue_frees_its_place(serve: Serve, engine: FakeEngine) -> None:
    async with serve(max_parallel=1, max_queue=1) as client:
        admission = serve.reranker.admission
        engine.gate.clear()
        active = asyncio.create_task(client.post("/rerank", json=BODY | {"query": "moon"}))
        await until(lambda: admission.active == 1)
        await leave(client, BODY, lambda: admission.waiting == 1)
        await until(lambda: admission.waiting == 0)
        engine.gate.set()
        assert (await active).status_code == 200


async def test_a_request_that_shares_the_pairs_still_gets_them(serve: Serve, engine: FakeEngine) -> None:
    async with serve(batch_tokens=16) as client:
        reranker = serve.reranker
        engine.gate.clear()
        leaving = asyncio.create_task(leave(client, BODY, lambda: reranker.admission.active == 2))
        await until(lambda: reranker.batcher.pending > 0)
        staying = asyncio.create_task(client.post("/rerank", json=BODY | {"documents": BODY["documents"][:10]}))
        await leaving
        await until(lambda: reranker.admission.active == 1)
        # The shared pairs stay queued; the others are gone.
        await until(lambda: reranker.batcher.pending <= 10)
        engine.gate.set()
        response = await staying
        assert response.status_code == 200
        assert len(response.json()["results"]) == 10
        await until(lambda: idle(reranker))


async def test_clients_that_leave_at_any_moment_leave_nothing(serve: Serve, engine: FakeEngine) -> None:
    async with serve(max_parallel=2, max_queue=100, batch_tokens=32) as client:
        reranker = serve.reranker

        async def impatient(number: int) -> None:
            with pytest.raises(httpx.TimeoutException):
                await client.post(
                    "/rerank", json=BODY | {"query": f"tides {number}"}, timeout=0.002 * (1 + number % 20)
                )

        engine.gate.clear()
        await asyncio.gather(*(impatient(number) for number in range(40)))
        engine.gate.set()
        await until(lambda: idle(reranker))
        assert (await client.post("/rerank", json=BODY)).status_code == 200


async def test_a_client_that_leaves_while_sending_is_no_error(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "app")
    async with serve() as client:
        _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(
            b"POST /rerank HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{"
        )
        await writer.drain()
        writer.close()
        await until(lambda: "status=499" in caplog.text)
        assert idle(serve.reranker)
        assert "ERROR" not in caplog.text
