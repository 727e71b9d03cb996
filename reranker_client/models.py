"""The responses of the service. Fields that a newer service adds are kept."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())


class Document(Answer):
    """A document as the request sent it."""

    text: str | None = None
    id: Any = None
    metadata: Any = None


class Window(Answer):
    """The best-scoring part of a long document, in characters: `text[start:end]`."""

    start: int
    end: int


class Span(Answer):
    """One of the best passages inside a document, in characters: `text[start:end]`."""

    start: int
    end: int
    score: float
    text: str


class Result(Answer):
    """One ranked document. `index` is its position in the request."""

    index: int
    relevance_score: float
    fused_score: float | None = None
    id: str | int | None = None
    document: Document | None = None
    window: Window | None = None
    spans: list[Span] = []
    read_by: str | None = None
    """In a cascade: the model that the score is from."""
    unscored: bool = False
    prefiltered: bool = False


class Usage(Answer):
    """Tokens of all query-document pairs."""

    prompt_tokens: int
    total_tokens: int


class Budget(Answer):
    """What was read within a latency budget. Times are in milliseconds."""

    budget_ms: float
    read: int
    of: int
    predicted_ms: float | None = None


class Meta(Answer):
    """How the request was handled. Times are in milliseconds."""

    documents: int
    scored: int
    cached: int
    prefiltered: int = 0
    truncated: int
    fusion: str = "off"
    budget: Budget | None = None
    cascade: dict[str, int] | None = None
    """In a cascade: how many documents each model has a score of."""
    timings_ms: dict[str, float]


class Ranking(Answer):
    """The results, best first. Iterating, indexing and `len` work on them."""

    id: str
    model: str
    results: list[Result]
    missing: list[str | int] = []
    """Ids of `document_ids` that are not in the collection."""
    usage: Usage
    meta: Meta

    def __iter__(self) -> Iterator[Result]:  # type: ignore[override]
        return iter(self.results)

    def __getitem__(self, rank: int) -> Result:
        return self.results[rank]

    def __len__(self) -> int:
        return len(self.results)


class BadLine(Answer):
    """A document that was not stored: its place, from 1, and why."""

    line: int
    reason: str


class Stored(Answer):
    """What became of the documents to store."""

    collection: str
    stored: int
    replaced: int
    refused: int
    evicted: int
    errors: list[BadLine]


class Info(Answer):
    """The model and engine of a running service, and its limits."""

    model_id: str
    device: str
    backend: str
    precision: str
    max_input_length: int
    max_client_batch_size: int
    version: str
