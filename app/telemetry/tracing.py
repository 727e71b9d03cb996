"""OpenTelemetry traces: imported only when the standard `OTEL_*` variables ask for them.

FastAPI makes the span of a request and takes the caller's `traceparent` up. Here is where spans go, and what is added
to them once the answer is known: figures, and a child each for the queue, the first stage, tokenizing and inference.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from app import __version__
from app.config_types import clean_path
from app.errors import StartupError
from app.telemetry.record import RequestRecord, record_of

if TYPE_CHECKING:
    from fastapi.telemetry import TelemetryConfig
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Ends of the paths of probes, also behind a prefix.
UNTRACED = ("/health", "/live", "/ready", "/ping", "/metrics")
# At shutdown, wait this long for the collector to accept the last spans.
CLOSE_SECONDS = 3.0


class Tracing:
    """Sends spans to the collector from a bounded queue on a separate thread: no request waits for it."""

    def __init__(self, exporter: str) -> None:
        """`exporter` is a value of `OTEL_TRACES_EXPORTER`. Raises `StartupError` if it cannot be loaded."""
        name = "otlp_proto_http" if exporter == "otlp" else exporter
        found = next(iter(entry_points(group="opentelemetry_traces_exporter", name=name)), None)
        if found is None:
            raise StartupError(f"OTEL_TRACES_EXPORTER={exporter}: no such exporter is installed")
        ours = Resource.create({"service.name": "reranker", "service.version": __version__})
        self.provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()))
        try:
            self.provider.add_span_processor(BatchSpanProcessor(found.load()()))
        except Exception as error:  # an exporter may reject its own variables
            raise StartupError(f"OTEL_TRACES_EXPORTER={exporter} cannot be used: {error}") from error

    @property
    def telemetry(self) -> "TelemetryConfig":
        """FastAPI's configuration: one span per request except probes, and nothing else."""
        return {
            "tracer_provider": self.provider,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
            "exclude": lambda scope: clean_path(scope["path"]).endswith(UNTRACED),
        }

    async def close(self) -> None:
        """Send the remaining spans, for `CLOSE_SECONDS` at most."""
        sending = asyncio.get_running_loop().run_in_executor(ThreadPoolExecutor(1, "traces"), self.provider.shutdown)
        with suppress(TimeoutError):
            await asyncio.wait_for(sending, CLOSE_SECONDS)


class SpanDetails:
    """ASGI middleware inside FastAPI's span: adds the request's record to the span when the answer starts."""

    def __init__(self, app: "ASGIApp", provider: TracerProvider) -> None:
        self.app = app
        self._tracer = provider.get_tracer("reranker", __version__)

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        span = trace.get_current_span()
        if not span.is_recording():
            await self.app(scope, receive, send)
            return

        async def send_noted(message: "Message") -> None:
            # A CORS preflight is answered before it has a record.
            if message["type"] == "http.response.start" and "record" in scope.get("state", {}):
                self._add_record(span, record_of(scope))
            await send(message)

        await self.app(scope, receive, send_noted)

    def _add_record(self, span: trace.Span, record: RequestRecord) -> None:
        span.set_attributes(record.span_attributes())
        parent = trace.set_span_in_context(span)
        for name, start, end in record.stages():
            self._tracer.start_span(name, parent, start_time=start).end(end)
