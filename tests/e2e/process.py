"""Start the service with the default model in a separate process."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.conftest import NO_CERTIFICATES, free_port

ROOT = Path(__file__).parent.parent.parent

# The answer is at index 2; the other documents have the same subject.
MOONS = {
    "query": "Which planet has the most moons?",
    "documents": [
        "Mars has two small moons, Phobos and Deimos, discovered in 1877.",
        "The Moon is Earth's only natural satellite.",
        "Saturn has 146 confirmed moons, more than any other planet in the Solar System.",
        "A moonstone is a gemstone of the feldspar group.",
        "Jupiter is the largest planet in the Solar System.",
    ],
}

# Settings that skip the measurements at the start. The schedule is the engine's default for one thread: with any other,
# the engine is loaded and tested twice.
FIXED = {
    "RERANKER_BACKEND": "openvino",
    "RERANKER_PRECISION": "int8",
    "RERANKER_THREADS": "1",
    "RERANKER_STREAMS": "1",
    "RERANKER_PART_TOKENS": "384",
    "RERANKER_BATCH_TOKENS": "1024",
}


def start(port: int, *before: str, **settings: object) -> subprocess.Popen[str]:
    """Start `python -m app` with only these settings. `before`: a command that runs it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RERANKER_")}
    environment |= {name: str(value) for name, value in settings.items()} | {"RERANKER_PORT": str(port)}
    return subprocess.Popen(
        [*before, sys.executable, "-m", "app"],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_until_ready(url: str, process: subprocess.Popen[str]) -> None:
    with httpx.Client(verify=NO_CERTIFICATES) as client:
        while process.poll() is None:
            try:
                if client.get(f"{url}/health/ready").status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
    raise AssertionError(process.communicate()[1])


@contextmanager
def service(*before: str, url: str | None = None, **settings: object) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start a service; yields its URL and its process when it is ready, and kills it afterwards.

    `url`: if the settings put it at another address.
    """
    port = free_port()
    process = start(port, *before, **settings)
    try:
        url = url or f"http://127.0.0.1:{port}"
        wait_until_ready(url, process)
        yield url, process
    finally:
        process.kill()
        process.communicate()
