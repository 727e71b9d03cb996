"""The values that flow through the service, from a request's texts to its ranking. Imports nothing from the service."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]
Span = tuple[int, int]
"""Start and end of a window or a passage in its document, in characters."""

LongDocuments = Literal["truncate", "chunk_max", "refuse"]
"""What to do with a document that exceeds the model's window: cut it, score it by the best of its overlapping windows,
or reject the request."""

Method = Literal["off", "lexical", "embedding", "hybrid"]

Evidence = Literal["off", "lexical", "score", "order"]
"""What a ranking considers besides the model's score: BM25 of the documents, the `score` that the caller sent with each
document, or the order in which the caller sent them."""

Activation = Literal["model", "sigmoid", "none"]
"""What turns logits into scores: the model's own activation, a sigmoid, or nothing."""

FusionMethod = Literal["zscore", "rrf"]
"""Weighted z-scores, or weighted reciprocal ranks."""

# Upper bounds for the settings. The body parsers stop at these, whatever the settings allow.
MAX_DOCUMENTS = 10_000
MAX_TEXT_CHARS = 100_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one request. `timeout` is in seconds; 0 means none."""

    max_documents: int
    max_text_chars: int
    timeout: float = 0.0


class Budget(NamedTuple):
    """How long the answer to a request should take, in seconds."""

    seconds: float
    spent: float = 0.0
    """Seconds between the arrival of the request and the beginning of the ranking."""


OnOverload = Literal["error", "lexical"]


@dataclass(frozen=True, slots=True)
class Fusion:
    """How the model's score and other evidence are combined into an order."""

    evidence: Evidence = "off"
    weight: float = 0.2
    """Weight of the evidence. That of the model is 1."""
    method: FusionMethod = "zscore"


@dataclass(frozen=True, slots=True)
class SpanBounds:
    """How many passages inside documents are scored, at most."""

    per_document: int
    per_request: int


@dataclass(frozen=True, slots=True)
class SpanOptions:
    """Which passages inside documents are wanted."""

    documents: Callable[["Ranking"], Sequence[int]]
    """The documents in which passages are wanted, best first."""
    most: int | None = None
    """Passages of a document, at most. None for all that do not overlap a better one."""
    required: bool = False
    """Whether the request fails if they cannot be scored. Otherwise the ranking is returned without them."""


@dataclass(frozen=True, slots=True)
class RerankQuery:
    """What to rank, and how. None means the service's default, or no limit."""

    query: str | Sequence[str]
    """One query for all documents, or as many as there are documents."""
    documents: Sequence[str]
    max_tokens_per_doc: int | None = None
    timeout: float | None = None
    """The caller's deadline, in seconds from now."""
    long_documents: LongDocuments | None = None
    max_windows: int | None = None
    """How many windows of a document to score, at most."""
    on_overload: OnOverload = "error"
    """What to answer if scoring fails or misses the deadline: an error, or a ranking by shared words."""
    priority: int = 0
    """Lower is served first."""
    prefilter: Method = "off"
    """How the first stage selects documents for the model, if there are more than `prefilter_top_k`."""
    prefilter_top_k: int = 100
    budget: Budget | None = None
    """The model reads as many documents as fit. None: no limit."""
    cascade_top_k: int | None = None
    """In a cascade: how many documents the large model reads, at most."""
    fusion: Fusion = Fusion()
    cut: frozenset[int] = frozenset()
    """Documents of which only the first characters are here."""
    retrieval_scores: Sequence[float] | None = None
    """The caller's score of each document, higher is better. None if some have no score."""
    instruction: str | None = None
    """What the model should look for. None for the service's default."""
    activation: Activation = "sigmoid"
    """Dialects of services that give scores from 0 to 1 ask for a sigmoid."""
    spans: SpanOptions | None = None

    @property
    def is_prefiltered(self) -> bool:
        """Whether the model reads only some of the documents. Never so if each document has its own query."""
        is_large = len(self.documents) > self.prefilter_top_k
        return is_large and self.prefilter != "off" and isinstance(self.query, str)

    @property
    def is_budgeted(self) -> bool:
        """Whether the model reads only what fits. Never so if each document has its own query."""
        return self.budget is not None and isinstance(self.query, str)

    @property
    def depth(self) -> int:
        """Documents that the first stage passes on."""
        return self.prefilter_top_k if self.is_prefiltered else len(self.documents)

    @property
    def evidence(self) -> Evidence:
        """What the order considers besides the logits. A query for each document means that no order is wanted."""
        return self.fusion.evidence if isinstance(self.query, str) else "off"

    def passages(self) -> list["Passage"]:
        """Each document as one passage."""
        queries = repeat(self.query) if isinstance(self.query, str) else self.query
        pairs = enumerate(zip(queries, self.documents, strict=False))
        return [Passage(index, *texts, cut=index in self.cut) for index, texts in pairs]


class Passage(NamedTuple):
    """A text that is scored as one pair: a document, or a part of it."""

    document: int
    """Index of the document in the request."""
    query: str
    text: str
    span: Span | None = None
    """The part's place in the document; None for a whole document."""
    cut: bool = False
    """Whether parts of this document are not scored."""


@dataclass(slots=True)
class Timings:
    """Seconds spent on each step. `queue` is the wait for a slot; `inference` includes the wait for a batch."""

    queue: float = 0.0
    prefilter: float = 0.0
    tokenize: float = 0.0
    inference: float = 0.0
    total: float = 0.0


class ScoredSpan(NamedTuple):
    """A passage inside a document."""

    span: Span
    logit: float
    score: float


@dataclass(slots=True)
class Spans:
    """The best passages inside the documents of an answer."""

    by_document: dict[int, list[ScoredSpan]] = field(default_factory=dict)
    """Best first, without overlaps."""
    candidates: int = 0
    """Passages with a score."""
    cut: int = 0
    """Documents of which the bounds left out passages."""
    error: str | None = None
    """The code of the error that prevented the scoring."""


class BudgetUse(NamedTuple):
    """What became of a budget."""

    budget: float
    read: int
    """Documents with a score of the model, or from the cache."""
    of: int
    predicted: float | None
    """Seconds. None if the request failed before its plan was made."""


class CascadeUse(NamedTuple):
    """What each model of a cascade has read."""

    read: Mapping[str, int]
    """Documents with a score, by the name of the model."""
    read_by: Mapping[int, str]
    """The last model that has read a document, by its index."""


@dataclass(slots=True)
class Ranking:
    """The scored documents, in request order."""

    logits: list[float]
    """Raw model outputs, float32, shape (documents,)."""
    scores: list[float]
    """The logits after the activation that the query names."""
    windows: list[Span | None]
    """The best window of each document; None for a document that was not split."""
    pairs: int
    """Pairs with a score: one for each document, window or passage."""
    scored: int
    """Pairs that the model scored for this request. The others came from the cache or from concurrent requests."""
    tokens: int
    """Tokens of all pairs, special tokens and cached pairs included."""
    truncated: int
    """Documents that were not read to the end."""
    timings: Timings = field(default_factory=Timings)
    degraded: str | None = None
    """The code of the error that made this ranking incomplete; None for a complete one."""
    unscored: frozenset[int] = frozenset()
    """Documents that the model did not score. They follow the others in the order of the first stage, or by the words
    they share with the query."""
    prefiltered: frozenset[int] = frozenset()
    """The unscored documents that the first stage left out."""
    fused: Mapping[int, float] = field(default_factory=dict)
    """The fused score of each scored document. Empty if only the logits decide the order."""
    evidence: Evidence = "off"
    """What the fused scores combine the logits with."""
    budget: BudgetUse | None = None
    """None if the request had none."""
    spans: Spans | None = None
    cascade: CascadeUse | None = None
    """None if a single model has read."""
    ranked: Sequence[int] = ()
    """The order by the scores of several models; else empty."""

    def order(self, among: Sequence[int] | None = None) -> list[int]:
        """Document indices, best first; ties by index. Unscored documents are last. `among`: only these documents.

        Sorts by logit, because an activation may round two different logits to the same score.
        """
        if self.ranked:
            return [index for index in self.ranked if among is None or index in among]
        indices = range(len(self.logits)) if among is None else among
        keys = {index: self.fused.get(index, self.logits[index]) for index in indices}
        return sorted(indices, key=lambda index: (index in self.unscored, -keys[index], index))


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """One query-document pair, ready for the engine."""

    ids: Ids
    """Token ids with the special tokens, shape (length,)."""
    type_ids: Ids
    """Segment of each token (0 query, 1 document), shape (length,)."""
    truncated: bool
    """Whether the query or the document was cut to fit the window."""
    prefix: Ids | None = None
    """Its first tokens, if other pairs of its request have the same: one array for all of them."""

    @property
    def length(self) -> int:
        return len(self.ids)


class Score(NamedTuple):
    """What the cache keeps of a scored pair."""

    logit: float
    tokens: int
    truncated: bool


class Choice(NamedTuple):
    """The first stage's selection from the documents of a request."""

    places: list[float]
    """The rank of each document: near 1 for the best, 0 for the worst."""
    kept: frozenset[int]
    """Indices of the documents for the model to score."""
