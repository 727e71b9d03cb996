"""The memory of request bodies: how it is counted, limited and estimated."""

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.api.body import Bodies, parsed_bytes
from app.errors import BodyTimeout, BufferFull, TooLarge
from tests.conftest import Serve, until

SCOPE: dict[str, Any] = {"type": "http", "headers": []}


def messages(*chunks: bytes) -> Any:
    """An ASGI `receive` with these chunks."""
    left = list(chunks)

    async def receive() -> Any:
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    return receive


async def never() -> Any:
    await asyncio.Event().wait()


async def test_a_body_counts_until_its_request_is_done() -> None:
    bodies = Bodies(max_bytes=100, max_held=1000, timeout=1)
    with bodies.hold() as first:
        assert await first.read(SCOPE, messages(b"ab", b"cd")) == b"abcd"
        with bodies.hold() as second:
            await second.read(SCOPE, messages(b"abc"))
            assert bodies.held == 2 * 4 + 2 * 3
        assert bodies.held == 2 * 4
    assert bodies.held == 0


async def test_a_body_over_the_total_limit_is_rejected_and_released() -> None:
    bodies = Bodies(max_bytes=100, max_held=50, timeout=1)
    with bodies.hold() as first:
        await first.read(SCOPE, messages(b"a" * 20))
        with pytest.raises(BufferFull, match="use 40 of 50 bytes"), bodies.hold() as second:
            await second.read(SCOPE, messages(b"a" * 20))
        assert bodies.held == 40
    with bodies.hold() as alone:
        await alone.read(SCOPE, messages(b"a" * 90))  # a single body always fits
    assert bodies.held == 0


async def test_an_oversized_body_is_read_to_its_end() -> None:
    bodies = Bodies(max_bytes=10, max_held=1000, timeout=1)
    chunks = [b"a" * 6] * 5
    receive = messages(*chunks)
    with pytest.raises(TooLarge, match="at most 10 bytes"), bodies.hold() as body:
        await body.read(SCOPE, receive)
    with pytest.raises(IndexError):  # the body was read to its end
        await receive()


async def test_a_body_that_does_not_arrive_times_out() -> None:
    bodies = Bodies(max_bytes=10, max_held=1000, timeout=0.01)
    with pytest.raises(BodyTimeout, match=r"within 0\.01 s"), bodies.hold() as body:
        await body.read(SCOPE, never)
    assert bodies.held == 0


@pytest.mark.parametrize(
    "item",
    [
        *("[]", "{}", '{"":0}', '{"a":{"b":{"c":0}}}', "[[[[[[0]]]]]]", "1.5", "123456789", '"text"', '"ünïcödé 🎉"'),
        *('"' + "word " * 2000 + '"', '"' + "\\u4e00" * 2000 + '"'),
    ],
)
def test_the_memory_estimate_of_a_body_is_close(item: str) -> None:
    text = "[" + ",".join([item] * (1_000_000 // len(item))) + "]"
    tracemalloc.start()
    content = text.encode()
    value = json.loads(content)
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert value
    assert 0.7 < parsed_bytes(content) / taken < 6


async def test_bodies_of_running_requests_are_counted_and_limited(serve: Serve, engine: Any) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield content

    content = json.dumps({"query": "q", "documents": ["a" * 3000]}).encode()
    headers = {"content-type": "application/json"}
    async with serve(max_buffered_bytes=10_000) as client:
        engine.gate.clear()
        held = asyncio.create_task(client.post("/rerank", content=content, headers=headers))
        await until(lambda: serve.reranker.admission.active == 1)
        figures = (await client.get("/metrics")).text
        assert f"reranker_buffered_bytes {float(parsed_bytes(content))}" in figures
        for body in (content, chunks()):
            refused = await client.post("/rerank", content=body, headers=headers)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert "RERANKER_MAX_BUFFERED_BYTES" in refused.json()["message"]
        engine.gate.set()
        assert (await held).status_code == 200
        assert serve.service.bodies.held == 0
        assert (await client.post("/rerank", content=content, headers=headers)).status_code == 200
