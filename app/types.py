"""The values that a request is made of, from its texts to its ranking. Imports nothing of the service."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]
Span = tuple[int, int]
"""Start and end of a part of a text, in characters."""

LongDocuments = Literal["truncate", "chunk_max", "refuse"]
"""What becomes of a document that does not fit the window: it is cut, or scored by the best of its overlapping windows,
or an error."""

Method = Literal["off", "lexical", "embedding", "hybrid"]

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


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """One query-document pair, ready for the engine."""

    ids: Ids
    """Token ids with the special tokens, shape (length,)."""
    type_ids: Ids
    """Segment of each token (0 query, 1 document), shape (length,)."""
    truncated: bool
    """Whether a part of the texts was cut to fit the window."""

    @property
    def length(self) -> int:
        return len(self.ids)


class Score(NamedTuple):
    """What is remembered of a scored pair."""

    logit: float
    tokens: int
    truncated: bool


class Choice(NamedTuple):
    """What the first stage thinks of the documents of a request."""

    places: list[float]
    """Of each document its place in the order, from almost 1 (the best) to 0."""
    kept: frozenset[int]
    """The best ones, which the model is to read."""
