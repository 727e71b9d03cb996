"""A real model with failing allocations: the memory of the process is limited after its start."""

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.process import MOONS, service, wait_until_ready

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(180),
    pytest.mark.skipif(sys.platform != "linux", reason="needs prlimit"),
]
LONG = "The sea and the moon and the tides of it. " * 60
# A request fits into one batch and one part of it.
CUT = {"RERANKER_LONG_DOCUMENTS": "truncate"}
LARGE_BATCHES = {"RERANKER_BATCH_TOKENS": 65536, "RERANKER_PART_TOKENS": 65536, "RERANKER_STREAMS": 1} | CUT
# The C library returns what is freed at once. By default it keeps some of it for the thread that freed it, and this
# counts against the limit: then even one pair fails now and then.
NOTHING_KEPT = {"MALLOC_MMAP_THRESHOLD_": 65536, "MALLOC_TRIM_THRESHOLD_": 65536, "MALLOC_ARENA_MAX": 1}


def leave_memory(process: subprocess.Popen[str], megabytes: int | None) -> None:
    """Let the process allocate this many megabytes more; None removes the limit."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    used = int(next(line for line in status.splitlines() if line.startswith("VmData")).split()[1]) * 1024
    soft = resource.RLIM_INFINITY if megabytes is None else used + megabytes * 10**6
    resource.prlimit(process.pid, resource.RLIMIT_DATA, (soft, resource.RLIM_INFINITY))


def ask(url: str, documents: int, name: str) -> httpx.Response:
    body: dict[str, Any] = {"query": f"what causes tides {name}", "documents": [f"{LONG}{i}" for i in range(documents)]}
    return httpx.post(f"{url}/rerank", json=body, timeout=120)


def best(url: str, name: str) -> int:
    response = httpx.post(f"{url}/rerank", json=MOONS | {"query": f"{MOONS['query']} {name}"}, timeout=60)
    assert response.status_code == 200, response.text
    return int(response.json()["results"][0]["index"])


def test_a_batch_that_does_not_fit_is_scored_in_parts() -> None:
    with service(RERANKER_BACKEND="torch", **LARGE_BATCHES, **NOTHING_KEPT) as (url, process):
        assert ask(url, 2, "first").status_code == 200
        leave_memory(process, 250)
        response = ask(url, 96, "large")
        assert response.status_code == 200, response.text
        assert len({result["index"] for result in response.json()["results"]}) == 96
        assert best(url, "afterwards") == 2
        process.kill()
        assert "retrying in halves" in process.communicate()[1]


def test_a_request_that_does_not_fit_fails_and_the_next_is_served() -> None:
    huge = {"RERANKER_BATCH_TOKENS": 131072, "RERANKER_PART_TOKENS": 131072, "RERANKER_STREAMS": 1} | CUT
    # With int8 weights there can be enough memory to compile the model again, and then halves of the batch are scored.
    with service(RERANKER_BACKEND="openvino", RERANKER_PRECISION="bf16", **huge) as (url, process):
        assert ask(url, 2, "first").status_code == 200
        # Enough for everything except the batch. With less, threads cannot start and the C library aborts.
        leave_memory(process, 500)
        response = ask(url, 512, "large")
        leave_memory(process, None)
        # OpenVINO does not always report that memory was the cause.
        assert (response.status_code, response.json()["error"]["type"]) in [
            (500, "out_of_memory"),
            (500, "scoring_failed"),
        ]
        # The failed inference made the compiled model unusable, and there was no memory to compile it again.
        wait_until_ready(url, process)
        assert best(url, "afterwards") == 2
        assert ask(url, 16, "large again").status_code == 200
        assert httpx.get(f"{url}/health").json()["status"] == "ok"
