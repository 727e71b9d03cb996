"""The whole service without sockets, over the fake engine: bytes in, a checked answer out."""

import asyncio
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from app.api.service import service_of
from app.config import Settings
from app.main import create_app
from tests.fakes import FakeEngine

ROUTES = (
    "/rerank",
    "/rerank/query",
    "/v1/rerank",
    "/score",
    "/v1/ranking",
    "/v1/reranking",
    "/api/v1/services/rerank/text-rerank/text-rerank",
    "/v1/projects/p/locations/l/rankingConfigs/c:rank",
    "/model/m/invoke",
)
HEADERS = (
    [(b"content-type", b"application/json")],
    [(b"content-type", b"application/json; charset=utf-16")],
    [(b"content-type", b"text/plain")],
    [(b"content-type", b"application/json"), (b"content-encoding", b"gzip")],
    [(b"content-type", b"application/json"), (b"authorization", b"Bearer \xff"), (b"x-request-id", b"a b")],
    [(b"content-type", b"application/json"), (b"x-pinecone-api-version", b"2026-07")],
)
SEEDS: list[Any] = [
    {"query": "q w", "documents": ["a", {"text": "b", "id": 3, "metadata": {"k": [1.5, None]}}], "top_k": 1},
    {
        "query": "q",
        "documents": [{"title": "t", "n": [1, {}]}],
        "rank_fields": ["title", "n"],
        "return_documents": True,
    },
    {"query": "q", "texts": ["a", "\u00e9\U0001f389"], "raw_scores": True, "return_text": True, "truncate": False},
    {"query": "q", "passages": ["a b\nc d"], "long_documents": "chunk_max", "max_chunks_per_doc": 2},
    {"query": "q", "documents": ["a"], "score_threshold": 0.5, "max_tokens_per_doc": -1, "timeout_ms": 60000},
    {"query": "q", "documents": ["a b. c! d?", "\u3042\u3002q"], "max_spans": 2, "top_k": 1},
    {"query": "q", "documents": ["a.\nq"], "relevant_spans": {"mode": "enabled", "threshold": 0.1, "max_spans": 3}},
    {"text_1": "q", "text_2": ["a", "b"], "truncate_prompt_tokens": 4, "model": "m", "user": "u"},
    {"text_1": ["q", "r"], "text_2": ["a", "b"]},
    {"query": {"text": "q"}, "passages": [{"text": "a"}], "truncate": "END"},
    {"query": "q", "input": ["a", {"text": "b"}], "top_k": 1, "return_input": True},
    {"input": {"query": "q", "documents": ["a", {"text": "b"}]}, "parameters": {"top_n": 1, "return_documents": True}},
    {"query": "q", "records": [{"id": "1", "title": "a", "content": "b"}], "topN": 1},
    {
        "queries": [{"type": "TEXT", "textQuery": {"text": "q"}}],
        "sources": [
            {"type": "INLINE", "inlineDocumentSource": {"type": "TEXT", "textDocument": {"text": "a"}}},
            {"type": "INLINE", "inlineDocumentSource": {"type": "JSON", "jsonDocument": {"t": "b", "n": [1]}}},
        ],
        "rerankingConfiguration": {
            "bedrockRerankingConfiguration": {
                "numberOfResults": 1,
                "modelConfiguration": {"modelArn": "m", "additionalModelRequestFields": {"rank_fields": ["t"]}},
            }
        },
    },
]
# What a client may be told of its own body, and a deadline of its own that passed.
EXPECTED = {200, 400, 413, 415, 422, 504}
# Beside the input a process has caches of its own, which fill at first.
SETTLED, GROWTH_BYTES = 2000, 64_000_000


class Service:
    """Owns an event loop with the service in it; `send` raises where an answer is not as it must be."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self._loop = asyncio.new_event_loop()
        settings = Settings(max_documents=20, max_text_chars=2000, max_body_bytes=100_000, log_level="error")
        engine = FakeEngine()
        engine.lines = 1
        self._app = create_app(settings, engine)
        self._lifespan = self._app.router.lifespan_context(self._app)
        self._run(self._start())
        self._tasks = len(asyncio.all_tasks(self._loop))
        self._settled_memory = 0

    def close(self) -> None:
        self._run(self._lifespan.__aexit__(None, None, None))
        self._loop.close()

    def send(self, route: int, headers: int, body: bytes) -> int:
        """The status of the answer. Raises `AssertionError` for a failure of the service or for anything left."""
        path = ROUTES[route % len(ROUTES)]
        status, content = self._run(self._exchange(path, HEADERS[headers % len(HEADERS)], body))
        assert status in EXPECTED, (path, status, content)
        answer = json.loads(content)
        assert status == 200 or answer.get("message") or answer["error"], content
        self.statuses[status] += 1
        self._check_left()
        return status

    def _check_left(self) -> None:
        service = service_of(self._app)
        assert service.reranker is not None
        admission = service.reranker.admission
        left = service.bodies.held, admission.active, admission.waiting, service.reranker.batcher.pending
        assert left == (0, 0, 0, 0), left
        assert len(asyncio.all_tasks(self._loop)) <= self._tasks, asyncio.all_tasks(self._loop)
        if self.statuses.total() == SETTLED:
            self._settled_memory = memory()
        elif self.statuses.total() % SETTLED == 0:
            assert memory() - self._settled_memory < GROWTH_BYTES, memory() - self._settled_memory

    def growth(self) -> int:
        """Bytes of memory gained since the caches were filled."""
        return memory() - self._settled_memory if self._settled_memory else 0

    async def _start(self) -> None:
        await self._lifespan.__aenter__()
        while service_of(self._app).lifecycle.phase == "loading":  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.001)

    async def _exchange(self, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> tuple[int, bytes]:
        sent: list[Any] = []
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "scheme": "http",
        }
        arriving = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            return arriving.pop() if arriving else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        await self._app(scope, receive, send)
        return sent[0]["status"], b"".join(message["body"] for message in sent[1:])

    def _run(self, work: Any) -> Any:
        return self._loop.run_until_complete(work)


def memory() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
