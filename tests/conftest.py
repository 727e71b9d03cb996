"""Fixtures shared by all tests."""

import asyncio
import gc
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from app.api.server import server_config
from app.api.service import Service, service_of
from app.config import Settings
from app.main import create_app
from app.serving.reranker import Reranker
from tests.fakes import FakeEngine
from tests.logs import logging_restored

# Loading the system's certificates for each client takes longer than most tests.
NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

# Folders with long tests. Those of a later place wait for tools that are installed while the first tests run.
LONG = {"e2e": 0, "engines": 0, "export": 0, "ui": 0, "deploy": 4, "clients": 8}

Until = Callable[[Callable[[], bool]], Awaitable[None]]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """While tests are collected, garbage collection finds nothing and takes a third of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the long tests first, and the folders in turn: some mostly wait, some mostly compute.

    The tests of a file run in one process, so a long file at the end would leave the other processes idle.
    """
    files: dict[Path, list[Path]] = {}
    for path in dict.fromkeys(item.path for item in items):
        files.setdefault(path.parent, []).append(path)

    def place(item: pytest.Item) -> tuple[bool, int]:
        folder = item.path.parent.name
        return folder not in LONG, files[item.path.parent].index(item.path) + LONG.get(folder, 0)

    items.sort(key=place)


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """Commands that run in the test process configure its logging."""
    with logging_restored():
        yield


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds. The timeout of the test limits the wait."""
    pause = 0.001
    while not condition():
        await asyncio.sleep(pause)
        pause = min(1.1 * pause, 0.02)  # looking takes CPU time, which what we wait for needs


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class QuietServer(uvicorn.Server):
    """Keeps the signal handlers of the test runner."""

    @contextmanager
    def capture_signals(self) -> Any:
        yield

    async def main_loop(self) -> None:
        """Stop without the tenth of a second that uvicorn waits between two looks."""
        await super().on_tick(0)  # the headers
        while not self.should_exit:  # noqa: ASYNC110 (uvicorn sets a flag)
            await asyncio.sleep(0.005)


@asynccontextmanager
async def serving(app: FastAPI, max_connections: int = 1024, keep_alive: int = 75) -> AsyncIterator[httpx.AsyncClient]:
    """A real HTTP server in this event loop, and a client for it."""
    port = free_port()
    config = server_config(app, max_connections, port=port, timeout_keep_alive=keep_alive, timeout_graceful_shutdown=1)
    server = QuietServer(config)
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, verify=NO_CERTIFICATES) as client:
            await until(lambda: service_of(app).lifecycle.phase != "loading")
            yield client
    finally:
        server.should_exit = True
        await task


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the settings of the developer's shell from the tests."""
    from app.environment import environment_names

    for name in [*environment_names(), *(name for name in os.environ if name.startswith("OTEL_"))]:
        monkeypatch.delenv(name, raising=False)


class Serve:
    """`async with serve(max_parallel=1) as client:` a service over the fake engine, with these settings."""

    app: FastAPI
    settings: Settings

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    def __call__(self, **settings: Any) -> AbstractAsyncContextManager[httpx.AsyncClient]:
        self.settings = Settings(**settings)
        self.app = create_app(self.settings, self._engine)
        return serving(self.app, self.settings.max_connections, self.settings.keep_alive)

    @property
    def service(self) -> Service:
        return service_of(self.app)

    @property
    def reranker(self) -> Reranker:
        assert self.service.reranker is not None
        return self.service.reranker


@pytest.fixture(autouse=True)
def _collect_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Services in the test process freeze no objects: it has so many that this takes seconds."""
    for module in ("app.lifespan", "app.serving.supervisor"):
        monkeypatch.setattr(f"{module}.freeze_loaded_objects", lambda: None)


@pytest.fixture
def serve(engine: FakeEngine) -> Serve:
    return Serve(engine)
