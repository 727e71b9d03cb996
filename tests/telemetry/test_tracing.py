"""Traces, as a collector receives them over OTLP."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from app.config import Settings
from app.main import create_app
from tests.conftest import Serve, free_port
from tests.fakes import FakeEngine

BODY = {"query": "private question", "documents": ["private passage", "of tides"]}
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """Records the received spans."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.requests.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


def attributes(span: Span) -> dict[str, Any]:
    return {item.key: item.value.string_value or item.value.int_value for item in span.attributes}


async def test_the_first_stage_has_a_span(serve: Serve, collector: Collector) -> None:
    async with serve() as client:
        await client.post("/rerank/query", json=BODY | {"prefilter": "lexical", "prefilter_top_k": 1})
    assert {"queue", "prefilter", "tokenize", "inference"} < {span.name for span in collector.spans}


async def test_a_request_is_a_span_in_the_callers_trace_with_child_spans(serve: Serve, collector: Collector) -> None:
    async with serve() as client:
        headers = {"traceparent": f"00-{TRACE}-{CALLER}-01", "x-request-id": "my-id"}
        assert (await client.post("/rerank", json=BODY, headers=headers)).status_code == 200
    spans = {span.name: span for span in collector.spans}
    assert set(spans) == {"POST /rerank", "queue", "tokenize", "inference"}
    server = spans.pop("POST /rerank")
    assert (server.trace_id.hex(), server.parent_span_id.hex()) == (TRACE, CALLER)
    assert server.kind == Span.SPAN_KIND_SERVER
    said = attributes(server)
    assert (said["http.response.status_code"], said["http.route"]) == (200, "/rerank")
    assert (said["reranker.documents"], said["reranker.cached"], said["reranker.tokens"]) == (2, 0, 8)
    assert said["reranker.request_id"] == "my-id"
    assert all((span.trace_id, span.parent_span_id) == (server.trace_id, server.span_id) for span in spans.values())
    order = [spans[name] for name in ("queue", "tokenize", "inference")]
    times = [
        server.start_time_unix_nano,
        *(time for span in order for time in (span.start_time_unix_nano, span.end_time_unix_nano)),
        server.end_time_unix_nano,
    ]
    assert times == sorted(times)
    [request] = collector.requests
    resource = {item.key: item.value.string_value for item in request.resource_spans[0].resource.attributes}
    assert resource["service.name"] == "reranker"
    assert b"private" not in request.SerializeToString()


async def test_cached_requests_have_no_inference_span_and_failures_have_an_error(
    serve: Serve, engine: FakeEngine, collector: Collector
) -> None:
    async with serve(api_keys="k") as client:
        for _ in range(2):
            await client.post("/rerank", json=BODY, headers={"X-API-Key": "k"})
        await client.post("/rerank", json=BODY)
        await client.post("/rerank", json=BODY | {"query": ""}, headers={"X-API-Key": "k"})
        engine.failure = RuntimeError("failed")
        await client.post("/rerank", json=BODY | {"query": "other"}, headers={"X-API-Key": "k"})
    assert sum(span.name == "inference" for span in collector.spans) == 1
    servers = sorted(
        (span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER),
        key=lambda span: span.start_time_unix_nano,
    )
    assert [attributes(span).get("reranker.cached") for span in servers] == [0, 2, None, None, None]
    assert [attributes(span).get("reranker.error") for span in servers[2:]] == [
        "unauthorized",
        "invalid_request",
        "scoring_failed",
    ]
    assert [attributes(span)["http.response.status_code"] for span in servers] == [200, 200, 401, 422, 500]


async def test_probes_are_not_traced(serve: Serve, collector: Collector) -> None:
    async with serve() as client:
        for path in ("/health", "/health/live", "/health/ready", "/metrics", "/info"):
            await client.get(path)
    assert [span.name for span in collector.spans] == ["GET /info"]


async def test_the_variables_of_opentelemetry_are_respected(
    serve: Serve, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "search-ranking")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    async with serve() as client:
        await client.post("/rerank", json=BODY)
        await client.post("/rerank", json=BODY, headers={"traceparent": f"00-{TRACE}-{CALLER}-01"})
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    resource = collector.requests[0].resource_spans[0].resource
    assert {"search-ranking"} == {item.value.string_value for item in resource.attributes if item.key == "service.name"}


async def test_an_unreachable_collector_does_not_affect_requests(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"http://127.0.0.1:{free_port()}/v1/traces")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    async with serve() as client:
        statuses = {(await client.post("/rerank", json=BODY | {"query": f"q{n}"})).status_code for n in range(50)}
    assert statuses == {200}


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"OTEL_TRACES_EXPORTER": "carrier-pigeon"}, "OTEL_TRACES_EXPORTER=carrier-pigeon: no such exporter"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"}, None),
        ({}, None),
    ],
)
def test_the_service_runs_without_tracing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variables: dict[str, str], problem: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    names = [middleware.cls.__name__ for middleware in create_app(Settings()).user_middleware]  # type: ignore[attr-defined]
    assert "SpanDetails" not in names
    assert problem is None or problem in caplog.text
    assert bool(caplog.records) is bool(problem)


@pytest.mark.parametrize("endpoint", ["", "http://127.0.0.1:9"])
def test_tracing_is_imported_only_if_on_and_a_missing_package_is_named(endpoint: str) -> None:
    code = (
        "import sys; sys.modules['opentelemetry.sdk'] = None\n"
        "from app.main import create_app; create_app()\n"
        "assert 'app.telemetry.tracing' not in sys.modules"
    )
    command = [sys.executable, "-c", code]
    environment = {"PATH": "", "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert ("opentelemetry.sdk" in result.stderr and ".[otel]" in result.stderr) is bool(endpoint)
