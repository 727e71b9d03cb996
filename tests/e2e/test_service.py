"""Tests that need a real process with a real model."""

import asyncio
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import NO_CERTIFICATES, free_port
from tests.e2e.process import FIXED, MOONS, ROOT, service, start, wait_until_ready
from tests.models import make_model

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


def best(response: httpx.Response) -> int:
    return int(response.json()["results"][0]["index"])


def numbered(number: int) -> dict[str, Any]:
    """A request that is not in the cache."""
    return MOONS | {"query": f"{MOONS['query']} ({number})"}


def heavy(number: int) -> dict[str, Any]:
    """A larger request, which keeps the engine busy for a while."""
    others = [f"Bread number {other} is baked of flour, water, salt and yeast. " * 4 for other in range(10)]
    return numbered(number) | {"documents": [*MOONS["documents"], *others]}


async def post_all(
    url: str, count: int, body: Callable[[int], dict[str, Any]] = numbered
) -> list[httpx.Response | httpx.HTTPError]:
    async def post(client: httpx.AsyncClient, number: int) -> httpx.Response | httpx.HTTPError:
        try:
            return await client.post("/rerank/query", json=body(number))
        except httpx.HTTPError as error:
            return error

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        return await asyncio.gather(*(post(client, number) for number in range(count)))


def test_the_right_passage_is_ranked_first() -> None:
    with service() as (url, process):
        response = httpx.post(f"{url}/rerank/query", json=MOONS | {"return_documents": True}, timeout=60)
        assert response.status_code == 200
        first = response.json()["results"][0]
        assert first["index"] == 2
        assert first["document"]["text"].startswith("Saturn has 146")
        info = httpx.get(f"{url}/info").json()
        assert (info["device"], info["model_id"]) == ("cpu", "reranker-minilm-l6-v2")
        assert info["backend"] in ("openvino", "torch")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert "Listening on" in process.stderr.read()


def test_two_hundred_concurrent_requests_are_served_or_rejected_and_none_is_left() -> None:
    with service(**FIXED, RERANKER_MAX_PARALLEL=1, RERANKER_MAX_QUEUE=5) as (url, _):
        responses = asyncio.run(post_all(url, 200))
        statuses = Counter(response.status_code for response in responses)
        assert set(statuses) == {200, 429}
        assert statuses[200] >= 6
        assert all(best(response) == 2 for response in responses if response.status_code == 200)
        assert all(int(response.headers["retry-after"]) >= 1 for response in responses if response.status_code == 429)
        health = httpx.get(f"{url}/health").json()
        assert (health["status"], health["active"], health["waiting"], health["pending_pairs"]) == ("ok", 0, 0, 0)
        assert best(httpx.post(f"{url}/rerank", json=MOONS, timeout=60)) == 2


CLIENT = """
import httpx, sys
documents = ["The sea and the moon. " * 40 + str(number) for number in range(60)]
httpx.post(sys.argv[1] + "/rerank", json={"query": "tides " + sys.argv[2], "documents": documents}, timeout=60)
"""


def test_killed_clients_leave_no_request_behind() -> None:
    with service(**FIXED, RERANKER_MAX_PARALLEL=2) as (url, _):
        clients = [subprocess.Popen([sys.executable, "-c", CLIENT, url, str(number)]) for number in range(5)]
        while httpx.get(f"{url}/health", verify=NO_CERTIFICATES).json()["waiting"] < 3:
            time.sleep(0.02)
        for client in clients:
            client.kill()
            client.wait()
        deadline = time.monotonic() + 30
        while (
            (health := httpx.get(f"{url}/health", verify=NO_CERTIFICATES).json())["active"]
            or health["waiting"]
            or health["pending_pairs"]
        ):
            assert time.monotonic() < deadline, health
            time.sleep(0.02)
        assert best(httpx.post(f"{url}/rerank", json=MOONS, timeout=60)) == 2


def test_sigterm_under_load_loses_no_accepted_request() -> None:
    # Slow machines need longer than the defaults.
    patient = {"RERANKER_SHUTDOWN_TIMEOUT": 100, "RERANKER_QUEUE_TIMEOUT": 100}
    with service(**FIXED, **patient, RERANKER_MAX_PARALLEL=2, RERANKER_MAX_QUEUE=100) as (url, process):
        seen: dict[str, Any] = {}

        def stop_in_the_middle() -> None:
            """Send SIGTERM once all requests are admitted: later ones may be rejected."""
            while sum(seen.get("in", [0])) < 60:
                lines = httpx.get(f"{url}/metrics", verify=NO_CERTIFICATES).text.splitlines()
                counted = (
                    "reranker_waiting_requests",
                    "reranker_active_requests",
                    'reranker_requests_total{status="200"}',
                )
                seen["in"] = [float(line.split()[1]) for name in counted for line in lines if line.startswith(name)]
                time.sleep(0.005)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.15)
            seen["ready"] = httpx.get(f"{url}/health/ready").status_code
            seen["late"] = httpx.post(f"{url}/rerank", json=numbered(10_000)).status_code

        stopper = threading.Thread(target=stop_in_the_middle)
        stopper.start()
        responses = asyncio.run(post_all(url, 60, heavy))
        stopper.join()
        assert seen["in"][0] >= 5, "SIGTERM came after most requests were done"
        assert Counter(getattr(response, "status_code", repr(response)) for response in responses) == {200: 60}
        assert all(best(response) == 2 for response in responses)
        assert (seen["ready"], seen["late"]) == (503, 503)
        assert process.wait(30) == 0


def test_requests_unfinished_after_the_shutdown_timeout_get_a_503() -> None:
    with service(**FIXED, RERANKER_MAX_PARALLEL=1, RERANKER_SHUTDOWN_TIMEOUT=0.1) as (url, process):
        documents = ["The sea and the moon. " * 60 + str(number) for number in range(300)]
        statuses: list[int] = []
        client = threading.Thread(
            target=lambda: statuses.append(
                httpx.post(f"{url}/rerank", json={"query": "tides", "documents": documents}, timeout=60).status_code
            )
        )
        client.start()
        while not httpx.get(f"{url}/health", verify=NO_CERTIFICATES).json()["active"]:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        client.join()
        assert statuses == [503]


def test_after_sigterm_new_connections_are_served_for_the_shutdown_delay(tiny: dict[str, object]) -> None:
    """As Kubernetes does: SIGTERM, while clients still connect for a moment. None of their requests is lost.

    A second SIGTERM ends the delay.
    """
    with service(**tiny, RERANKER_SHUTDOWN_DELAY=600) as (url, process):
        served: dict[str, list[object]] = {"/rerank": [], "/health/ready": []}
        stop = threading.Event()

        def connect_every_20_ms(path: str, **body: Any) -> None:
            while not stop.is_set():
                try:
                    response = httpx.request("POST" if body else "GET", f"{url}{path}", timeout=10, **body)
                    served[path].append((response.status_code, response.headers.get("connection")))
                except httpx.HTTPError as error:
                    served[path].append(repr(error))
                time.sleep(0.02)

        kept = httpx.Client(timeout=10)
        assert kept.post(f"{url}/rerank", json=MOONS).status_code == 200
        process.send_signal(signal.SIGTERM)
        while httpx.get(f"{url}/health/ready", verify=NO_CERTIFICATES).status_code == 200:
            time.sleep(0.01)
        clients = [
            threading.Thread(target=connect_every_20_ms, args=("/rerank",), kwargs={"json": numbered(1)}),
            threading.Thread(target=connect_every_20_ms, args=("/health/ready",)),
        ]
        for client in clients:
            client.start()
        answer = kept.post(f"{url}/rerank", json=MOONS)
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        while min(map(len, served.values())) < 10:
            time.sleep(0.05)
        assert httpx.get(f"{url}/health").json()["status"] == "leaving"
        stop.set()
        for client in clients:
            client.join()
        assert set(served["/rerank"]) == {(200, "close")}
        assert set(served["/health/ready"]) == {(503, "close")}
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_the_shutdown_delay_ends(tiny: dict[str, object]) -> None:
    with service(**tiny, RERANKER_SHUTDOWN_DELAY=0.5) as (_, process):
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="the system has no IPv6")
@pytest.mark.parametrize("host", ["::", "[::]", "localhost", "::1"])
def test_both_families_are_served(tiny: dict[str, object], host: str) -> None:
    port = free_port()
    process = start(port, **tiny, RERANKER_HOST=host)
    try:
        url = "http://[::1]" if host == "::1" else "http://127.0.0.1"
        wait_until_ready(f"{url}:{port}", process)
        if host in ("::", "[::]"):
            assert httpx.post(f"http://[::1]:{port}/rerank", json=MOONS, timeout=60).status_code == 200
        checked = subprocess.run(
            ["docker/entrypoint.sh", "healthcheck"],
            cwd=ROOT,
            env={
                "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
                "RERANKER_HOST": host,
                "RERANKER_PORT": str(port),
                "http_proxy": "http://127.0.0.1:1",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert checked.returncode == 0, checked.stderr
    finally:
        process.kill()
        process.communicate()


def outcome(**settings: object) -> tuple[int, str]:
    """Exit status and stderr of a service that cannot start."""
    process = start(int(str(settings.pop("port", free_port()))), **settings)
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"RERANKER_MODEL": "/no/such/folder"}, "RERANKER_MODEL='/no/such/folder': no such folder"),
        ({"RERANKER_MODEL": "nobody/nothing", "HF_HUB_OFFLINE": 1}, "RERANKER_MODEL='nobody/nothing' cannot be loaded"),
        ({"RERANKER_MODEL": "nobody/nothing-at-all"}, "RERANKER_MODEL='nobody/nothing-at-all' cannot be loaded"),
        ({"RERANKER_DEVICE": "cuda:99"}, "RERANKER_DEVICE=cuda:99 is not available"),
        ({"RERANKER_MAX_PARALLEL": "many"}, "RERANKER_MAX_PARALLEL='many' is not valid"),
    ],
)
def test_a_failed_start_is_reported_in_one_line_with_exit_status_1(settings: dict[str, object], message: str) -> None:
    status, stderr = outcome(**settings)
    assert status == 1
    assert message in stderr
    assert "Traceback" not in stderr
    assert len([line for line in stderr.splitlines() if " INFO " not in line]) == 1


def test_a_port_in_use_is_exit_status_1() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, stderr = outcome(port=taken.getsockname()[1])
    assert status == 1
    assert "RERANKER_PORT" in stderr
    assert "Address already in use" in stderr
    assert "Traceback" not in stderr


def test_it_responds_and_can_be_stopped_while_loading() -> None:
    port = free_port()
    process = start(port)
    try:
        while True:
            try:
                ready = httpx.get(f"http://127.0.0.1:{port}/health/ready", verify=NO_CERTIFICATES)
                break
            except httpx.TransportError:
                time.sleep(0.01)
        assert ready.status_code == 503
        assert "loading" in ready.text
        refused = httpx.post(f"http://127.0.0.1:{port}/rerank", json=MOONS)
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert time.monotonic() - asked < 20
    finally:
        process.kill()
        process.communicate()


def exports_of(pid: int) -> list[int]:
    """The processes that export a model for the process `pid`."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    children = [child for task in tasks for child in task.read_text().split()]
    return [int(child) for child in children if b"app.export" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGKILL])
def test_an_export_ends_with_the_service(tmp_path: Path, stop: signal.Signals) -> None:
    model = make_model(tmp_path / "tiny")
    process = start(free_port(), RERANKER_MODEL=model, RERANKER_EXPORT_DIR=tmp_path / "store")
    try:
        while not (exports := exports_of(process.pid)):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(stop)
        process.wait(30)
        while Path(f"/proc/{exports[0]}").exists():
            time.sleep(0.01)
    finally:
        process.kill()
        process.communicate()
    assert not list((tmp_path / "store").glob("*/manifest.json"))


def test_a_body_over_the_limit_is_rejected_while_it_is_being_sent(tiny: dict[str, object]) -> None:
    def chunks() -> Any:
        for _ in range(20):
            yield b" " * 1_000_000

    with service(**tiny, RERANKER_MAX_BODY_BYTES=1_000_000) as (url, _):
        for length in ({"content-length": "20000000"}, {}):
            headers = {"content-type": "application/json"} | length
            response = httpx.post(f"{url}/rerank", content=chunks(), headers=headers, timeout=60)
            assert response.status_code == 413
            assert "at most 1000000 bytes" in response.json()["message"]
            assert httpx.get(f"{url}/health").status_code == 200


def test_an_inference_that_exceeds_its_timeout_is_stopped_and_the_engine_reloaded() -> None:
    """The batch is too large for the timeout. The next request is fast only if the batch was stopped."""
    settings = FIXED | {"RERANKER_INFERENCE_TIMEOUT": "0.3", "RERANKER_BATCH_TOKENS": "200000"}
    with service(**settings) as (url, process):
        long = {"query": "moons", "documents": [f"{number} " + "moon " * 600 for number in range(200)]}
        hung = httpx.post(f"{url}/rerank", json=long, timeout=60)
        assert hung.status_code == 500
        assert "no answer within 0.3 s (RERANKER_INFERENCE_TIMEOUT)" in hung.json()["detail"]
        wait_until_ready(url, process)
        assert httpx.post(f"{url}/rerank", json=MOONS, timeout=60).json()["results"][0]["index"] == 2
        assert "reranker_reloads_total 1.0" in httpx.get(f"{url}/metrics").text
