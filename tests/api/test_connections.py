"""Connection limits, on a real server with shortened timeouts."""

import asyncio
import gc
import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from app.api import connections
from app.api.connections import Connection
from tests.conftest import Serve, until
from tests.fakes import FakeEngine

GET = b"GET /health/live HTTP/1.1\r\nhost: x\r\n"
POST = b"POST /rerank HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.fixture(autouse=True)
def _shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("HEAD", 0.3), ("ANSWER", 0.3), ("LINGER", 0.1), ("TICK", 0.02)):
        monkeypatch.setattr(connections, f"{name}_SECONDS", seconds)


async def connect(client: httpx.AsyncClient) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(client.base_url.host, client.base_url.port)


def open_connections(serve: Serve) -> float:
    return float(serve.service.metrics.registry.get_sample_value("reranker_open_connections") or 0)


def rejections(serve: Serve, reason: str) -> float | None:
    labels = {"reason": reason}
    value: float | None = serve.service.metrics.registry.get_sample_value("reranker_rejections_total", labels)
    return value


async def test_a_connection_without_a_request_is_closed(serve: Serve) -> None:
    async with serve(keep_alive=1) as client:
        reader, writer = await connect(client)
        assert await reader.read() == b""
        writer.close()
        await until(lambda: open_connections(serve) == 0)


@pytest.mark.parametrize("first", [b"", GET + b"\r\n"])
@pytest.mark.parametrize("piece", [b"\r\n", b"a: b\r\n"])
async def test_a_slow_head_is_408(serve: Serve, first: bytes, piece: bytes) -> None:
    async with serve() as client:
        reader, writer = await connect(client)
        writer.write(first)
        if first:
            await reader.readuntil(b'"alive"}')
        if piece != b"\r\n":
            writer.write(GET)
        received = asyncio.create_task(reader.read())
        while not received.done():
            if not writer.is_closing():
                writer.write(piece)
            await asyncio.sleep(0.02)
        assert received.result().startswith(b"HTTP/1.1 408 ")
        writer.close()
        assert rejections(serve, "head_timeout") == 1
        await until(lambda: open_connections(serve) == 0)


async def test_a_body_after_its_answer_closes_the_connection(serve: Serve) -> None:
    async with serve() as client:
        reader, writer = await connect(client)
        writer.write(GET + b"content-length: 1000000\r\n\r\n")
        received = asyncio.create_task(reader.read())
        while not received.done():
            writer.write(b" ")
            await asyncio.sleep(0.02)
        assert received.result().startswith(b"HTTP/1.1 200 ")
        writer.close()
        await until(lambda: open_connections(serve) == 0)


async def test_a_slow_pipelined_head_ends_the_running_request_too(serve: Serve, engine: FakeEngine) -> None:
    content = json.dumps({"query": "q", "documents": ["a"]}).encode()
    async with serve() as client:
        engine.gate.clear()
        reader, writer = await connect(client)
        writer.write(POST + b"content-length: %d\r\n\r\n" % len(content) + content + GET)
        assert await reader.read() == b""
        writer.close()
        await until(lambda: serve.reranker.admission.active == 0)
        engine.gate.set()


def big(echo: bool) -> bytes:
    document = {"text": "a", "metadata": {"m": "x" * 6_000_000}}
    content = json.dumps({"query": "q", "documents": [document], "return_documents": echo}).encode()
    return POST + b"content-length: %d\r\n\r\n" % len(content) + content


async def test_a_client_that_never_reads_its_answer_is_disconnected(serve: Serve) -> None:
    async with serve() as client:
        reader, writer = await connect(client)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(big(echo=True))
        await until(lambda: serve.service.bodies.held > 12_000_000)
        # The answer exceeds the socket buffers, so the request is held until the client reads on.
        sizes: set[int] = set()

        def left() -> bool:
            for connection in _connections():
                sizes.add(connection.transport.get_write_buffer_size())
            return rejections(serve, "slow_reader") == 1 and serve.service.bodies.held == 0

        await until(left)
        assert 0 < max(sizes) < 200_000
        assert serve.reranker.admission.active == 0
        writer.transport.abort()
        await until(lambda: open_connections(serve) == 0)


async def test_a_client_that_keeps_sending_and_never_reads_is_disconnected(serve: Serve) -> None:
    async with serve() as client:
        reader, writer = await connect(client)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(big(echo=True) + GET)
        while rejections(serve, "slow_reader") is None:
            writer.write(b"a: b\r\n")
            await asyncio.sleep(0.02)
        writer.transport.abort()
        await until(lambda: open_connections(serve) == 0)


def _connections() -> list[Connection]:
    return [found for found in gc.get_objects() if type(found) is Connection and found.transport is not None]


async def test_a_slow_reader_that_keeps_reading_gets_the_whole_answer(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "ANSWER_SECONDS", 30)
    async with serve() as client:
        reader, writer = await connect(client)
        writer.write(big(echo=True))
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(dict(line.split(b": ") for line in head.splitlines()[1:-1])[b"content-length"])
        content = b""
        while len(content) < length:
            content += await reader.read(300_000)
            await asyncio.sleep(0.005)
        assert len(json.loads(content)["results"][0]["document"]["metadata"]["m"]) == 6_000_000
        writer.close()


BODY = json.dumps({"query": "q", "documents": ["a"]}).encode()
WHOLE = POST + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
LAST = GET + b"connection: close\r\n\r\n"


async def send(client: httpx.AsyncClient, *pieces: bytes) -> bytes:
    """Send the pieces one by one, and return everything the server answers."""
    reader, writer = await connect(client)
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(0.05)
    received = await reader.read()
    writer.close()
    return received


@pytest.mark.parametrize("cut", [0, 30, 150, 181, 190])
@pytest.mark.parametrize("chunked", [False, True])
async def test_an_upgrade_request_is_answered_in_http_1_1(serve: Serve, chunked: bool, cut: int) -> None:
    """Java's HTTP client and `curl --http2` send this, with the body at once, in one piece or two."""
    asking = POST + b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"
    if chunked:
        request = asking + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    else:
        request = asking + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
    async with serve() as client:
        request += GET + b"connection: upgrade\r\nupgrade: h2c\r\n\r\n" + LAST
        received = await send(client, request[:cut], request[cut:])
    assert received.count(b"HTTP/1.1 ") == received.count(b"HTTP/1.1 200 ") == 3
    assert (received.count(b'"relevance_score"'), received.count(b'"alive"')) == (1, 2)


async def test_the_body_of_an_upgrade_request_is_not_read_as_a_request(serve: Serve) -> None:
    body = GET + b"\r\n"
    head = POST + b"connection: upgrade\r\nupgrade: h2c\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with serve() as client:
        received = await send(client, head, body, LAST)
    assert (received.count(b"HTTP/1.1 400 "), received.count(b'"alive"')) == (1, 1)


@pytest.mark.parametrize("after", [b"\r\n", WHOLE + LAST[:9]], ids=["empty line", "two more"])
async def test_the_head_timeout_of_a_pipelined_request_starts_after_the_answer(
    serve: Serve, engine: FakeEngine, after: bytes
) -> None:
    async with serve() as client:
        engine.gate.clear()
        reader, writer = await connect(client)
        writer.write(WHOLE)
        await until(lambda: serve.reranker.admission.active == 1)
        writer.write(after)
        await asyncio.sleep(3 * connections.HEAD_SECONDS)
        engine.gate.set()
        await reader.readuntil(b'"relevance_score"')
        writer.write(LAST[9 if after.endswith(LAST[:9]) else 0 :])
        received = await reader.read()
        writer.close()
    assert received.count(b"HTTP/1.1 200 ") == 1 + after.count(WHOLE)
    assert received.endswith(b'"alive"}')


async def test_a_rejected_client_gets_no_100_continue(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    async with serve() as client:
        received = await send(client, POST + b"expect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\nZZZ\r\n")
    assert received.startswith(b"HTTP/1.1 400 ")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_half_closed_connection_counts_as_disconnected(serve: Serve, engine: FakeEngine) -> None:
    content = json.dumps({"query": "q", "documents": ["a"]}).encode()
    async with serve() as client:
        engine.gate.clear()
        reader, writer = await connect(client)
        writer.write(POST + b"content-length: %d\r\n\r\n" % len(content) + content)
        await until(lambda: serve.reranker.admission.active == 1)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        await until(lambda: serve.reranker.admission.active == 0)
        assert serve.service.bodies.held == 0
        engine.gate.set()


async def test_connections_are_accepted_again_below_the_limit(serve: Serve) -> None:
    body: dict[str, Any] = {"query": "q", "documents": ["a"]}
    async with serve(max_connections=1) as client:
        _, writer = await connect(client)
        writer.write(GET)
        await until(lambda: open_connections(serve) == 1)
        assert (await client.get("/health")).status_code == 200
        refused = await client.post("/rerank", json=body)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert "RERANKER_MAX_CONNECTIONS" in refused.json()["message"]
        writer.close()
        await until(lambda: open_connections(serve) == 0)
        assert (await client.post("/rerank", json=body)).status_code == 200


async def test_uvicorn_still_has_the_internals_that_connections_use() -> None:
    protocol = HttpToolsProtocol(Config(FastAPI()), ServerState(), {})
    protocol.on_message_begin()
    names = "app connections cycle headers loop parser pipeline server_state transport url _unset_keepalive_if_required"
    assert [name for name in names.split() if not hasattr(protocol, name)] == []
    fields = "disconnected keep_alive message_event response_complete response_started waiting_for_100_continue"
    used = RequestResponseCycle.__init__.__code__.co_names
    assert [name for name in fields.split() if name not in used] == []


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.write(GET + b"\r\n")
    return await reader.readuntil(b'"alive"}')


@pytest.mark.parametrize("before", [0, 1])
async def test_an_idle_connection_is_kept_for_a_load_balancer(serve: Serve, before: int) -> None:
    """Also one that was opened ahead and has not sent anything. The usual default of servers is 5 s."""
    async with serve() as client:
        reader, writer = await connect(client)
        for _ in range(before):
            await exchange(reader, writer)
        await asyncio.sleep(5.2)
        assert (await exchange(reader, writer)).startswith(b"HTTP/1.1 200")
        writer.close()
    assert serve.settings.keep_alive > 60


@pytest.mark.parametrize("before", [0, 1])
async def test_an_idle_connection_is_closed_after_the_keep_alive_time(serve: Serve, before: int) -> None:
    async with serve(keep_alive=2) as client:
        reader, writer = await connect(client)
        for _ in range(before):
            await exchange(reader, writer)
        for _ in range(before and 2):  # the time starts again with every request
            await asyncio.sleep(1.1)
            assert (await exchange(reader, writer)).startswith(b"HTTP/1.1 200")
        assert await reader.read() == b""
        writer.close()


async def test_no_request_is_lost_if_the_balancer_closes_first(serve: Serve) -> None:
    """A client that keeps connections for less time than the service never meets a closed one."""
    limits = httpx.Limits(max_connections=1, keepalive_expiry=0.8)
    async with serve(keep_alive=1) as client, httpx.AsyncClient(base_url=client.base_url, limits=limits) as balancer:
        for pause in (0.0, 0.7, 0.75, 0.79, 0.81, 0.9, 1.0, 1.01):
            await asyncio.sleep(pause)
            assert (await balancer.get("/health/live")).status_code == 200
