"""The health check of a container, as its entry point runs it."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from app.serving.lifecycle import Phase
from tests.conftest import Serve, free_port

ROOT = Path(__file__).parents[2]


async def start(port: int | str | None, **settings: str) -> asyncio.subprocess.Process:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | settings
    return await asyncio.create_subprocess_exec(
        *(ROOT / "docker/entrypoint.sh", "healthcheck"),
        cwd=ROOT,
        env=environment | {"RERANKER_PORT": str(port)},
        stderr=asyncio.subprocess.PIPE,
    )


async def check(port: int | str | None, **settings: str) -> tuple[int | None, str]:
    """Exit status and message."""
    process = await start(port, **settings)
    _, message = await process.communicate()
    return process.returncode, message.decode()


async def test_it_is_passed_once_the_model_is_loaded_and_not_before(serve: Serve) -> None:
    async with serve() as client:
        assert await check(client.base_url.port) == (0, "")
        serve.service.lifecycle.phase = Phase.LOADING
        process = await start(client.base_url.port)
        await asyncio.sleep(1)  # it asks meanwhile; if a busy machine starts it later, it only has to wait less
        assert process.returncode is None
        serve.service.lifecycle.ready()
        await process.communicate()
        assert process.returncode == 0


@pytest.mark.parametrize(
    ("phase", "message"), [(Phase.DRAINING, "shutting down"), (Phase.FAILED, "failed"), (Phase.RELOADING, "reloaded")]
)
async def test_it_fails_at_once_if_the_service_is_not_ready_for_another_reason(
    serve: Serve, phase: Phase, message: str
) -> None:
    async with serve() as client:
        serve.service.lifecycle.phase = phase
        status, printed = await check(client.base_url.port)
    assert (status, message in printed, "Traceback" in printed) == (1, True, False)


async def test_it_fails_if_nothing_answers_or_another_program_does(serve: Serve) -> None:
    status, printed = await check(free_port())
    assert (status, "refused" in printed, "Traceback" in printed) == (1, True, False)
    other = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with other:
        status, printed = await check(other.sockets[0].getsockname()[1])
    assert (status, printed.startswith("Not ready: "), "Traceback" in printed) == (1, True, False)


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
async def test_it_does_not_ask_a_proxy(serve: Serve, name: str) -> None:
    async with serve() as client:
        assert await check(client.base_url.port, **{name: f"http://127.0.0.1:{free_port()}"}) == (0, "")
