"""Start the service as a separate process for the duration of a measurement."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import httpx


@contextmanager
def service(**settings: str) -> Iterator[tuple[str, float]]:
    """Start a service; yields its URL and the seconds until it was ready. `settings` are environment variables."""
    started = time.perf_counter()
    with service_process(None, **settings) as (url, _):
        yield url, time.perf_counter() - started


@contextmanager
def service_process(log: IO[str] | None, **settings: str) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Start a service; yields its URL and its process, which logs warnings to `log` (default: to stderr)."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = os.environ | {"RERANKER_PORT": str(port), "RERANKER_LOG_LEVEL": "warning"} | settings
    process = subprocess.Popen([sys.executable, "-m", "app"], env=environment, stderr=log)
    try:
        while not is_ready(url):
            if process.poll() is not None:
                raise RuntimeError(f"The service did not start: exit status {process.returncode}")
            time.sleep(0.02)
        yield url, process
    finally:
        process.terminate()
        process.wait(60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready").status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
