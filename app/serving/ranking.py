"""What one request brings, what is known of it on its way, and what comes of it."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Literal, NamedTuple

from app.engines.tokenization import LongDocuments, Pair, Span
from app.first_stage.prefilter import Choice, Method
from app.serving.cache import Score

# No setting may allow more: what parses a body stops here, whatever the settings.
MAX_DOCUMENTS = 10_000
MAX_TEXT_CHARS = 100_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may bring. `timeout` is in seconds, 0 for none."""

    max_documents: int
    max_text_chars: int
    timeout: float = 0.0


OnOverload = Literal["error", "lexical"]


@dataclass(frozen=True, slots=True)
class RerankQuery:
    """What to rank. `timeout` is the caller's deadline in seconds; None leaves it to the service."""

    query: str | Sequence[str]
    """One for all documents, or one for each."""
    documents: Sequence[str]
    max_tokens_per_doc: int | None = None
    timeout: float | None = None
    long_documents: LongDocuments | None = None
    """None leaves it to the service."""
    max_windows: int | None = None
    """Windows of a document that are looked at."""
    on_overload: OnOverload = "error"
    """What becomes of a request that cannot be scored, or not in time: an error, or an order by shared words."""
    priority: int = 0
    """Lower is served first."""
    prefilter: Method = "off"
    """How a first stage chooses the documents that the model reads, where there are more than `prefilter_top_k`."""
    prefilter_top_k: int = 100
    names: tuple[str, str] = ("query", "documents")
    """What the caller calls the two, for messages."""

    @property
    def is_prefiltered(self) -> bool:
        """Whether the model is to read some of the documents only. Pairs of their own queries are never left out."""
        is_large = len(self.documents) > self.prefilter_top_k
        return is_large and self.prefilter != "off" and isinstance(self.query, str)

    def passages(self) -> list["Passage"]:
        """The documents as they are."""
        queries = repeat(self.query) if isinstance(self.query, str) else self.query
        return [Passage(index, *texts) for index, texts in enumerate(zip(queries, self.documents, strict=False))]


class Passage(NamedTuple):
    """What is scored as one pair: a document or a window of it."""

    document: int
    """Its index."""
    query: str
    text: str
    span: Span | None = None
    """Where in the document the window is; None for a whole document."""
    cut: bool = False
    """Whether windows after this one are left out."""


@dataclass(slots=True)
class Timings:
    """Seconds spent: waiting for a slot, in the first stage, tokenising, waiting for and in the engine, and in all."""

    queue: float = 0.0
    prefilter: float = 0.0
    tokenize: float = 0.0
    inference: float = 0.0
    total: float = 0.0


@dataclass(slots=True)
class Ranking:
    """The scored documents, in the order of the request."""

    logits: list[float]
    """Raw model outputs, float32, shape (documents,)."""
    scores: list[float]
    """The same after the model's own activation."""
    windows: list[Span | None]
    """Where in each document its best window is; None when it was not split."""
    pairs: int
    """Pairs that this took: one for each document or window."""
    scored: int
    """Pairs that the model read for this request; the other scores were known or on their way for another request."""
    tokens: int
    """Tokens of all pairs, special tokens included, whether scored now or earlier."""
    truncated: int
    """Documents that were cut to fit the window."""
    timings: Timings = field(default_factory=Timings)
    degraded: str | None = None
    """The code of the error in whose place this stands; None for a whole ranking."""
    unscored: frozenset[int] = frozenset()
    """Documents that no model has scored: they follow the others in the order of the first stage, or of the words
    shared with the query."""
    prefiltered: frozenset[int] = frozenset()
    """Those of them that the first stage has left out."""

    def order(self) -> list[int]:
        """Indices from the best document to the worst, ties by index.

        Ordered by logit: an activation may round two different logits to the same score.
        """
        return sorted(range(len(self.logits)), key=lambda index: (-self.logits[index], index))


@dataclass(slots=True)
class Attempt:
    """What is known of one request so far. When it fails, this is what the degraded answer is made of."""

    query: RerankQuery
    long_documents: LongDocuments
    """As the request asks, or else the service's default."""
    passages: list[Passage]
    keys: list[bytes] = field(default_factory=list)
    """Of the passages, for the cache."""
    choice: Choice | None = None
    """Of the first stage, where there is one."""
    pairs: dict[bytes, Pair] = field(default_factory=dict)
    """Those tokenised."""
    known: dict[bytes, Score] = field(default_factory=dict)
    scored: int = 0
    """Pairs that no other request was having scored."""
    deadline: float | None = None
    """On the event loop's clock."""
    timings: Timings = field(default_factory=Timings)

    def missing(self) -> dict[bytes, Passage]:
        """The passages without a score, by key."""
        keyed = zip(self.keys, self.passages, strict=True)
        return {key: passage for key, passage in keyed if key not in self.known}

    def cut(self) -> list[Passage]:
        """The passages that do not fit the window, as far as they are known or tokenised."""
        found: dict[bytes, Pair | Score] = {**self.pairs, **self.known}
        return [
            passage
            for key, passage in zip(self.keys, self.passages, strict=True)
            if key in found and found[key].truncated
        ]

    def is_answered(self) -> bool:
        """Whether every passage has a score, of all its text where long documents are read in windows."""
        return not self.missing() and not (self.long_documents == "chunk_max" and self.cut())

    def remaining(self) -> float:
        """Seconds until the deadline."""
        return math.inf if self.deadline is None else self.deadline - asyncio.get_running_loop().time()
