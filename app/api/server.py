"""The server process: uvicorn, a drain before it stops, and a correct exit status."""

import logging
import socket
import sys
import time
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from app.api.connections import SPARE_CONNECTIONS, Connection
from app.api.service import service_of
from app.serving.lifecycle import Lifecycle, Phase

log = logging.getLogger(__name__)

# After the drain only answers that are being sent remain.
LAST_ANSWERS_SECONDS = 5
BACKLOG = 2048
ANY_ADDRESS = "::"
# File descriptors for libraries, the model and threads.
OTHER_FILES = 256


class Server(uvicorn.Server):
    """On the first signal, serves for `shutdown_delay` seconds more, but is not ready. Then rejects new requests and
    finishes the running ones. Stops at once on the second signal.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI, shutdown_delay: float, shutdown_timeout: float) -> None:
        super().__init__(config)
        self._app = app
        self._shutdown_delay = shutdown_delay
        self._shutdown_timeout = shutdown_timeout
        self._drain_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 (uvicorn's signature)
        """Signal handler. It does not pass the signal on, so a drained process exits with status 0."""
        if self._drain_at is not None:
            self.should_exit = self.force_exit = True
            return
        self._drain_at = time.monotonic() + self._shutdown_delay
        if self._shutdown_delay:
            self._lifecycle.leave()
        else:
            self._lifecycle.drain()

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop listening. uvicorn calls it ten times a second."""
        return await super().on_tick(counter) or self._lifecycle.phase is Phase.FAILED or self._drained()

    @property
    def exit_status(self) -> int:
        """1 if the service failed, else 0."""
        return 1 if self._lifecycle.phase is Phase.FAILED else 0

    @property
    def _lifecycle(self) -> Lifecycle:
        return service_of(self._app).lifecycle

    def _drained(self) -> bool:
        if self._drain_at is None:
            return False
        seconds = time.monotonic() - self._drain_at
        if seconds < 0 and self._lifecycle.phase is Phase.LEAVING:
            return False
        self._lifecycle.drain()
        service = service_of(self._app)
        if not (left := service.running):
            return True
        if seconds < self._shutdown_timeout:
            return False
        log.warning("RERANKER_SHUTDOWN_TIMEOUT=%g s is over: %d requests get a 503", self._shutdown_timeout, left)
        service.models.close()
        return True


def server_config(app: FastAPI, max_connections: int, **options: Any) -> uvicorn.Config:
    """The configuration of uvicorn."""
    connection = partial(Connection, max_connections=max_connections, metrics=service_of(app).metrics)
    return uvicorn.Config(
        app,
        http=connection,  # type: ignore[arg-type] # uvicorn only calls it
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        **options,
    )


def serve(
    app: FastAPI,
    host: str,
    port: int,
    shutdown_timeout: float,
    max_connections: int,
    keep_alive: int = 75,
    shutdown_delay: float = 0.0,
) -> int:
    """Serve until stopped. Times are in seconds. Returns the exit status of the process."""
    _allow_files(max_connections + SPARE_CONNECTIONS + OTHER_FILES)
    try:
        listener = listen(host, port)
    except OSError as error:
        log.error("Cannot listen on RERANKER_HOST=%s RERANKER_PORT=%d: %s", host, port, error.strerror or error)
        return 1
    config = server_config(
        app, max_connections, timeout_keep_alive=keep_alive, timeout_graceful_shutdown=LAST_ANSWERS_SECONDS
    )
    server = Server(config, app, shutdown_delay, shutdown_timeout)
    server.run([listener])
    log.info("Stopped")
    return server.exit_status


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. `::` is all addresses of both families, or of IPv4 if the system has no IPv6."""
    if host != ANY_ADDRESS:
        return socket.create_server((host, port), family=_family(host, port), backlog=BACKLOG)
    if socket.has_dualstack_ipv6():
        return socket.create_server((host, port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)
    return socket.create_server(("", port), backlog=BACKLOG)


def _family(host: str, port: int) -> socket.AddressFamily:
    """That of the address; IPv4 for a name that has both."""
    families = {family for family, *_ in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    return socket.AF_INET if socket.AF_INET in families else socket.AF_INET6


def _allow_files(count: int) -> None:
    """Raise the limit of open files: each connection is one, and shells often allow 1,024."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    allowed = count if hard == resource.RLIM_INFINITY else min(count, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < count:
        log.warning("RERANKER_MAX_CONNECTIONS needs %d open files, the system allows %d", count, allowed)
