"""The clients of `scripts/soak`: they send valid and invalid requests, and check the responses."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.texts import WORDS

# Of logits, which range over about ±10. Sums are rounded differently in batches of other shapes.
TOLERANCE = 0.05
QUERIES, DOCUMENTS, MOST = 6, 40, 30
LENGTHS = [(3, 20)] * 6 + [(20, 80)] * 3 + [(200, 400)] + [(600, 600)]
MAX_DOCUMENTS, MAX_CHARS, MAX_BODY = 50, 6000, 200_000
LIMITS = {
    "RERANKER_MAX_DOCUMENTS": str(MAX_DOCUMENTS),
    "RERANKER_MAX_TEXT_CHARS": str(MAX_CHARS),
    "RERANKER_MAX_BODY_BYTES": str(MAX_BODY),
}
MODES = ("truncate", "chunk_max")
ANSWERS = {200, 429, 503}
# Path, body, expected status.
BAD: list[tuple[str, Any, int]] = [
    ("/rerank/query", b"", 400),
    ("/rerank/query", b'{"query": ', 400),
    ("/rerank/query", b"\xff\xfe\x00", 400),
    ("/rerank/query", b"[" * 100_000, 400),
    ("/rerank/query", [], 422),
    ("/rerank/query", {"query": "tides"}, 422),
    ("/rerank/query", {"query": "", "documents": ["moon"]}, 422),
    ("/rerank/query", {"query": "tides", "documents": []}, 422),
    ("/rerank/query", {"query": ["tides"], "documents": [1, None]}, 422),
    ("/rerank/query", {"query": "tides", "documents": ["moon"], "top_k": -2}, 422),
    ("/rerank", {"query": "tides", "texts": [{"image": "moon"}]}, 422),
    ("/score", {"text_1": ["tides", "moon"], "text_2": ["a", "b", "c"]}, 422),
    ("/v1/ranking", {"query": "tides", "passages": ["moon"]}, 422),
    ("/v1/rerank", {"query": "tides", "documents": ["moon"] * (MAX_DOCUMENTS + 1)}, 413),
    ("/v1/rerank", {"query": "tides", "documents": ["moon " * MAX_CHARS], "long_documents": "refuse"}, 413),
    ("/v1/rerank", {"query": "moon " * MAX_CHARS, "documents": ["moon"]}, 413),
    ("/v1/rerank", b" " * (MAX_BODY + 1), 413),
]


@dataclass(frozen=True, slots=True)
class Question:
    """A request with a known result."""

    path: str
    body: dict[str, Any]
    logits: list[float]
    """The logit of each document, scored alone before the load."""

    def problem(self, answer: Any) -> str | None:
        """What is wrong with the response; None if it is right."""
        results = _results(answer)
        indices = [index for index, _ in results]
        top = self.body.get("top_k", len(self.logits))
        if len(set(indices)) != len(results) or len(results) != min(top, len(self.logits)):
            return f"{self.path}: wrong number of results"
        if any(abs(logit - self.logits[index]) > TOLERANCE for index, logit in results):
            return f"{self.path}: scores differ from those of single documents"
        if self.path == "/score":
            return None if indices == sorted(indices) else f"{self.path}: wrong order"
        given = [logit for _, logit in results]
        left_out = [logit for index, logit in enumerate(self.logits) if index not in set(indices)]
        if given != sorted(given, reverse=True) or (left_out and min(given) + 2 * TOLERANCE < max(left_out)):
            return f"{self.path}: wrong order"
        return None


def _results(answer: Any) -> list[tuple[int, float]]:
    """Indices and logits in the order of the response, for any dialect."""
    rows = (
        answer if isinstance(answer, list) else next(answer[n] for n in ("results", "data", "rankings") if n in answer)
    )
    return [(row["index"], next(row[n] for n in ("relevance_score", "score", "logit") if n in row)) for row in rows]


class Traffic:
    """Clients of one service, with counts of what they sent and saw."""

    def __init__(self, client: httpx.AsyncClient, seed: int) -> None:
        self.sent = 0
        """Requests sent, complete or partial."""
        self.seen: Counter[int] = Counter()
        """Responses by status."""
        self.left: Counter[str] = Counter()
        """Clients that disconnected while `sending` the body or `waiting` for the response."""
        self.checked = 0
        self.pairs = 0
        """Documents and windows in the responses."""
        self.left_pairs = 0
        """Documents of disconnected clients: the service may have scored them."""
        self.problems: Counter[str] = Counter()
        self._client = client
        self._dice = random.Random(seed)
        self._queries = [self._text(8) for _ in range(QUERIES)]
        self._documents = [self._text(self._dice.randint(*self._dice.choice(LENGTHS))) for _ in range(DOCUMENTS)]
        self._alone: dict[tuple[str, str], list[float]] = {}
        self._acts: Sequence[Callable[[], Awaitable[None]]] = (
            ([self._ask] * 10 + [self._ask_in_a_hurry] * 2 + [self._ask_twice] * 2 + [self._ask_invalid] * 3)
            + [self._leave_waiting] * 2
            + [self._leave_sending]
        )

    def _text(self, words: int) -> str:
        return " ".join(self._dice.choices(WORDS, k=words)) + "."

    async def learn(self) -> None:
        """Score every document alone, to know the expected logits."""
        for query in self._queries:
            for mode in MODES:
                self._alone[query, mode] = logits = []
                for document in self._documents:
                    body = {"query": query, "documents": [document], "raw_scores": True, "long_documents": mode}
                    response = await self._client.post("/rerank/query", json=body)
                    self._count(response)
                    logits.append(_results(response.json())[0][1])

    async def run(self, until: Callable[[], bool]) -> None:
        """One client: random actions one after the other."""
        while not until():
            try:
                await self._dice.choice(self._acts)()
            except (httpx.HTTPError, OSError) as error:
                self.problems[f"no response: {type(error).__name__}"] += 1
            await asyncio.sleep(self._dice.random() * 0.05)

    def _question(self) -> Question:
        query, mode = self._dice.choice(self._queries), "truncate"
        chosen = self._dice.choices(range(DOCUMENTS), k=self._dice.choice([1, 3, 10, self._dice.randint(1, MOST)]))
        documents = [self._documents[index] for index in chosen]
        path = self._dice.choice(["/rerank/query", "/v1/rerank", "/rerank", "/score", "/v1/ranking"])
        body: dict[str, Any] = {"query": query, "documents": documents, "raw_scores": True}
        if path == "/rerank":
            body = {"query": query, "texts": documents, "raw_scores": True}
        elif path == "/score":
            body = {"text_1": query, "text_2": documents, "raw_scores": True}
        elif path == "/v1/ranking":
            body = {"query": {"text": query}, "passages": [{"text": document} for document in documents]}
        elif path == "/rerank/query":
            mode = self._dice.choice(MODES)
            body |= {"long_documents": mode, "top_k": self._dice.randint(1, MOST), "return_documents": True}
        return Question(path, body, [self._alone[query, mode][index] for index in chosen])

    async def _ask(self) -> None:
        await self._send(self._question(), ANSWERS)

    async def _ask_twice(self) -> None:
        """Two identical requests at once: the service should score them once."""
        question = self._question()
        await asyncio.gather(self._send(question, ANSWERS), self._send(question, ANSWERS))

    async def _ask_in_a_hurry(self) -> None:
        question = self._question()
        if question.path in ("/rerank/query", "/v1/rerank"):
            question.body["timeout_ms"] = self._dice.randint(1, 100)
        await self._send(question, ANSWERS | {504})

    async def _send(self, question: Question, allowed: set[int]) -> None:
        response = await self._client.post(question.path, json=question.body)
        self._count(response)
        if response.status_code not in allowed:
            self.problems[f"{question.path}: status {response.status_code}"] += 1
        elif response.status_code in (429, 503):
            if "retry-after" not in response.headers:
                self.problems[f"{response.status_code} without Retry-After"] += 1
            await asyncio.sleep(self._dice.random())
        elif response.status_code == 200:
            self.checked += 1
            if problem := question.problem(response.json()):
                self.problems[problem] += 1

    async def _ask_invalid(self) -> None:
        path, body, status = self._dice.choice(BAD)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        response = await self._client.post(path, content=content, headers={"content-type": "application/json"})
        self._count(response)
        if response.status_code != status:
            self.problems[f"invalid request: status {response.status_code} instead of {status}"] += 1

    async def _leave_waiting(self) -> None:
        question = self._question()
        await self._leave(question, 1, self._dice.random() * 0.2)
        self.left["waiting"] += 1
        self.left_pairs += len(question.logits)

    async def _leave_sending(self) -> None:
        await self._leave(self._question(), 0.5, self._dice.random() * 0.05)
        self.left["sending"] += 1

    async def _leave(self, question: Question, share: float, seconds: float) -> None:
        """Send this share of the body on a separate connection, and close it after `seconds`."""
        url = self._client.base_url
        body = json.dumps(question.body | {"long_documents": "truncate"}).encode()
        head = f"POST {question.path} HTTP/1.1\r\nhost: soak\r\ncontent-type: application/json\r\n"
        _, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body[: int(len(body) * share)])
        await writer.drain()
        self.sent += 1
        await asyncio.sleep(seconds)
        writer.close()
        await writer.wait_closed()

    def _count(self, response: httpx.Response) -> None:
        self.sent += 1
        self.seen[response.status_code] += 1
        if response.status_code == 200:
            answer = response.json()
            meta = answer.get("meta") if isinstance(answer, dict) else None
            self.pairs += meta["scored"] + meta["cached"] if meta else len(_results(answer))
