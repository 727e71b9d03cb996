"""What the service answers. Fields that a newer service adds are kept and do no harm."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """Frozen, and open to fields that are not known here."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())


class Document(Answer):
    """A document as it was sent."""

    text: str | None = None
    id: Any = None
    metadata: Any = None


class Window(Answer):
    """The part of a long document that matched best, in characters: `text[start:end]`."""

    start: int
    end: int


class Result(Answer):
    """One ranked document: its index in the request, and its score."""

    index: int
    relevance_score: float
    id: str | int | None = None
    document: Document | None = None
    window: Window | None = None
    unscored: bool = False
    prefiltered: bool = False


class Usage(Answer):
    """Tokens of all pairs."""

    prompt_tokens: int
    total_tokens: int


class Meta(Answer):
    """What was done for the request; times in milliseconds."""

    documents: int
    scored: int
    cached: int
    prefiltered: int = 0
    truncated: int
    timings_ms: dict[str, float]


class Ranking(Answer):
    """The results, best first; iterating goes over them."""

    id: str
    model: str
    results: list[Result]
    usage: Usage
    meta: Meta

    def __iter__(self) -> Iterator[Result]:  # type: ignore[override]
        return iter(self.results)

    def __getitem__(self, rank: int) -> Result:
        return self.results[rank]

    def __len__(self) -> int:
        return len(self.results)


class Info(Answer):
    """What runs there."""

    model_id: str
    device: str
    backend: str
    precision: str
    max_input_length: int
    max_client_batch_size: int
    version: str
