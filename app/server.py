"""The server process: uvicorn, with a drain before the end and an exit status that tells the truth."""

import logging
import socket
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from app.lifecycle import Lifecycle, Phase
from app.reranker import Reranker

log = logging.getLogger(__name__)

# After the drain only answers on their way out are left.
LAST_ANSWERS_SECONDS = 5
BACKLOG = 2048


class Server(uvicorn.Server):
    """Drains on the first signal: unready, no new requests, those in work finished. Stops at once on the second."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, shutdown_timeout: float) -> None:
        super().__init__(config)
        self._app = app
        self._shutdown_timeout = shutdown_timeout
        self._drain_started: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 (uvicorn's signature)
        """Signal handler. Keeps the signal to itself, so that a drained process exits with status 0."""
        if self._drain_started is not None:
            self.should_exit = self.force_exit = True
            return
        self._drain_started = time.monotonic()
        self._lifecycle.drain()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second: whether to stop listening now."""
        return await super().on_tick(counter) or self._lifecycle.phase is Phase.FAILED or self._drained()

    @property
    def exit_status(self) -> int:
        """1 when the service never came up, else 0."""
        return 1 if self._lifecycle.phase is Phase.FAILED else 0

    @property
    def _lifecycle(self) -> Lifecycle:
        lifecycle: Lifecycle = self._app.state.lifecycle
        return lifecycle

    def _drained(self) -> bool:
        if self._drain_started is None:
            return False
        reranker: Reranker | None = self._app.state.reranker
        if reranker is None or not (left := reranker.admission.active + reranker.admission.waiting):
            return True
        if time.monotonic() - self._drain_started < self._shutdown_timeout:
            return False
        log.warning("RERANKER_SHUTDOWN_TIMEOUT=%g s is over: %d requests get a 503", self._shutdown_timeout, left)
        reranker.batcher.close()
        return True


def serve(app: FastAPI, host: str, port: int, shutdown_timeout: float) -> int:
    """Run until stopped; returns the exit status of the process."""
    try:
        listener = socket.create_server((host, port), family=_family(host), backlog=BACKLOG)
    except OSError as error:
        log.error("Cannot listen on RERANKER_HOST=%s RERANKER_PORT=%d: %s", host, port, error.strerror or error)
        return 1
    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=LAST_ANSWERS_SECONDS,
    )
    server = Server(config, app, shutdown_timeout)
    server.run([listener])
    log.info("Stopped")
    return server.exit_status


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
