"""What clients and operators notice of a proxy in front of the replicas: the same for nginx and HAProxy."""

import asyncio
import shutil
import signal
import socket
import ssl
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.conftest import free_port
from tests.e2e.process import FIXED, MOONS, service
from tests.e2e.proxies import REPLICAS, Load, Proxy, Replicas, address, assert_error, haproxy, nginx

pytestmark = pytest.mark.e2e


@pytest.fixture(params=[nginx, haproxy])
def proxy(request: pytest.FixtureRequest) -> Proxy:
    started: Proxy = request.param
    if not shutil.which(name := str(request.param.__name__)):
        pytest.skip(f"{name} is not installed")
    return started


@pytest.fixture(scope="module")
def replica() -> Iterator[str]:
    """A replica with the embedded model, on all addresses."""
    with service(**FIXED, RERANKER_HOST="::" if socket.has_dualstack_ipv6() else "127.0.0.1") as (url, _):
        yield url


def test_a_request_passes_the_proxy_with_its_id(proxy: Proxy, replica: str, tmp_path: Path) -> None:
    with proxy(tmp_path, [replica]) as url:
        response = httpx.post(f"{url}/rerank", json=MOONS, headers={"X-Request-Id": "from-far-away"})
        assert response.json()["results"][0]["index"] == 2
        assert response.headers["x-request-id"] == "from-far-away"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "nginx/" not in response.headers.get("server", "")
        assert httpx.get(f"{url}/health").json()["status"] == "ok"


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="the system has no IPv6")
def test_ipv6_clients_and_replicas_are_served(proxy: Proxy, replica: str, tmp_path: Path) -> None:
    port = replica.rsplit(":", 1)[1]
    with proxy(tmp_path, [f"[::1]:{port}"], LISTEN="::") as url:  # nginx needs no LISTEN
        for address in (url, url.replace("127.0.0.1", "[::1]")):
            assert httpx.post(f"{address}/rerank", json=MOONS).json()["results"][0]["index"] == 2


def test_an_invalid_request_id_is_replaced(proxy: Proxy, replica: str, tmp_path: Path) -> None:
    with proxy(tmp_path, [replica]) as url:
        for wrong in ('a"b', "a b", "x" * 129, "ä"):
            response = httpx.post(f"{url}/rerank", json=MOONS, headers={"X-Request-Id": wrong.encode()})
            assert response.headers["x-request-id"] == response.json()["id"] != wrong
            assert len(response.json()["id"]) == 32


def test_a_replica_that_does_not_respond_in_time_is_a_504(proxy: Proxy, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        upstream = f"127.0.0.1:{silent.getsockname()[1]}"
        with proxy(tmp_path, [upstream], RERANKER_PROXY_TIMEOUT=1) as url:
            answer = httpx.post(f"{url}/rerank", json=MOONS, timeout=20)
            assert_error(answer, 504, "deadline_exceeded", "RERANKER_PROXY_TIMEOUT")


@pytest.fixture(scope="module")
def strict(tiny: dict[str, object]) -> Iterator[str]:
    """A replica that runs one request at a time, and takes small bodies."""
    limits = {"RERANKER_MAX_BODY_BYTES": 16_384, "RERANKER_MAX_PARALLEL": 1, "RERANKER_MAX_QUEUE": 0}
    with service(**tiny, **limits, RERANKER_OVERLOAD_STATUS=429) as (url, _):
        yield url


def test_errors_of_a_replica_are_passed_on_unchanged(proxy: Proxy, strict: str, tmp_path: Path) -> None:
    with proxy(tmp_path, [strict]) as url:
        for path, content in (("/rerank", b"{"), ("/nowhere", b"{}"), ("/rerank", b"a" * 20_000)):
            headers = {"Content-Type": "application/json", "X-Request-Id": "mine"}
            there, here = (httpx.post(f"{at}{path}", content=content, headers=headers) for at in (strict, url))
            assert (here.status_code, here.json()) == (there.status_code, there.json())
            assert here.headers.get_list("x-request-id") == ["mine"]


def test_rejections_of_full_replicas_are_passed_on_unchanged(proxy: Proxy, strict: str, tmp_path: Path) -> None:
    with proxy(tmp_path, [strict]) as url:
        found = asyncio.run(burst(url, 40))
    assert set(found) == {200, 429}


async def burst(url: str, count: int) -> Counter[int]:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        bodies = [{"query": f"q {n}", "documents": [f"{n} {m} moon " * 40 for m in range(20)]} for n in range(count)]
        responses = await asyncio.gather(*(client.post("/rerank", json=body) for body in bodies))
    for response in responses:
        if response.status_code == 429:
            assert int(response.headers["Retry-After"]) >= 1
            assert response.json()["message"].startswith("Queue is full")
    return Counter(response.status_code for response in responses)


def test_without_a_replica_the_proxy_responds_like_the_service(proxy: Proxy, tmp_path: Path) -> None:
    with proxy(tmp_path, [f"127.0.0.1:{free_port()}"]) as url:
        response = httpx.post(f"{url}/rerank", json=MOONS)
        assert (response.status_code, response.headers["Retry-After"]) == (503, "2")
        assert_error(response, 503, "unavailable", "No replica")
        assert httpx.get(f"{url}/health/ready").status_code == 503


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a self-signed certificate for 127.0.0.1, in the layout of TLS_DIR."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "tls.key", "-out", "tls.crt"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def test_with_a_certificate_the_proxy_serves_https_and_http(
    proxy: Proxy, replica: str, tmp_path: Path, certificate: Path
) -> None:
    tls = {"TLS_DIR": certificate, "TLS_PORT": free_port()}
    trust = ssl.create_default_context(cafile=certificate / "tls.crt")
    with proxy(tmp_path, [replica], **tls) as url:
        response = httpx.post(f"https://127.0.0.1:{tls['TLS_PORT']}/rerank", json=MOONS, verify=trust)
        assert response.json()["results"][0]["index"] == 2
        assert response.headers["x-frame-options"] == "DENY"
        assert httpx.post(f"{url}/rerank", json=MOONS).status_code == 200


def test_tls_before_1_2_is_rejected(proxy: Proxy, tmp_path: Path, certificate: Path) -> None:
    port = free_port()
    with proxy(tmp_path, [f"127.0.0.1:{free_port()}"], TLS_DIR=certificate, TLS_PORT=port):
        assert handshake(port, certificate, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
        assert handshake(port, certificate, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"), pytest.deprecated_call():
            handshake(port, certificate, ssl.TLSVersion.TLSv1_1)


def handshake(port: int, certificate: Path, version: ssl.TLSVersion) -> str | None:
    context = ssl.create_default_context(cafile=certificate / "tls.crt")
    # By default, current libraries do not offer old versions.
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        return secure.version()


@pytest.fixture(scope="module")
def replicas(tiny: dict[str, object]) -> Iterator[Replicas]:
    with ExitStack() as stack:
        yield Replicas(stack, tiny)


async def test_a_rolling_restart_loses_no_request(proxy: Proxy, replicas: Replicas, tmp_path: Path) -> None:
    with proxy(tmp_path, replicas.urls) as url:
        async with Load(url) as load:
            for index in range(REPLICAS):
                load.pause = 0.05
                await load.serves(30)
                await asyncio.to_thread(replicas.stop, index)
                load.pause = 0.2  # the new one needs the cores too
                await asyncio.to_thread(replicas.start, index)
                await asyncio.sleep(0.5)
                await load.serves(6)
    assert set(load.statuses) == {200}


def test_a_response_is_sent_in_one_piece(replica: str) -> None:
    """A proxy that got the headers then has the body too, even if the replica is killed."""
    with socket.create_connection(address(replica), timeout=30) as connection:
        for _ in range(50):
            connection.sendall(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n")
            head, _, body = connection.recv(65_536).partition(b"\r\n\r\n")
            assert f"content-length: {len(body)}".encode() in head
            assert body


async def test_a_killed_replica_loses_at_most_its_own_requests(
    proxy: Proxy, replicas: Replicas, tmp_path: Path
) -> None:
    with proxy(tmp_path, replicas.urls) as url:
        async with Load(url) as load:
            await load.serves(60)
            replicas.processes[0].send_signal(signal.SIGKILL)
            await asyncio.sleep(2)
            await load.serves(30)
    await asyncio.to_thread(replicas.start, 0)
    assert set(load.statuses) <= {200, 502, 503, 504}
    assert sum(load.statuses.values()) - load.statuses[200] <= 6
