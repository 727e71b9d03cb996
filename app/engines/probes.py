"""Reference logits: logits of the float32 original for pairs of every length. An export's manifest contains them.

A probe is a query and a part of one text. The part is cut to a number of tokens, so each pair has an exact length.
Each padded width of an engine has pairs that fill it and pairs that barely need it.
"""

from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict

from app.engines.padding import bucket_length
from app.types import Pair

# Every width up to DENSE tokens has probes. Longer pairs are probed at the powers of two and just above them, where the
# padding is longest. Probing ends with the first pair that takes the original longer than SLOWEST_SECONDS.
DENSE, LONGEST, SLOWEST_SECONDS = 512, 4096, 20.0
JUST_ABOVE = 6
SHORT_QUERY = "tides"
# An upper bound for the texts in use.
CHARS_PER_TOKEN = 12


class PairEngine(Protocol):
    """The part of an engine that makes and scores pairs."""

    def encode(self, query: str, documents: Sequence[str], max_tokens_per_doc: int | None = None) -> list[Pair]: ...

    def score(self, pairs: Sequence[Pair]) -> list[float]: ...


class Probe(BaseModel):
    """One pair with its reference logit."""

    model_config = ConfigDict(frozen=True)

    query: int
    """Index of the query."""
    start: int
    """Start of its document in the text, in characters."""
    tokens: int
    """Maximum number of tokens of the document."""
    length: int
    """Number of tokens of the pair."""
    window: int | None = None
    """The window that the pair was cut to. None if its query was not cut."""
    logit: float = 0.0
    """Logit of the float32 original."""
    exported: float | None = None
    """Logit of the exported model in float32 arithmetic. None if its weights are not rounded."""


class Known(NamedTuple):
    """A pair and the logits that an engine is compared with."""

    pair: Pair
    expected: float
    """Logit of the same weights in float32 arithmetic."""
    original: float | None
    """Logit of the float32 original. None if unknown."""


class ProbeSet(BaseModel):
    """The probes of one model."""

    model_config = ConfigDict(frozen=True)

    queries: list[str]
    text: str
    probes: list[Probe]

    def known(self, engine: PairEngine, max_length: int) -> list[Known]:
        """The probes that fit a window of `max_length` tokens. Raises `ValueError` if the tokens differ."""
        fitting = [probe for probe in self.probes if probe.length <= max_length and probe.window in (None, max_length)]
        return [
            Known(self._pair(probe, engine), probe.logit if probe.exported is None else probe.exported, probe.logit)
            for probe in fitting
        ]

    def _pair(self, probe: Probe, engine: PairEngine) -> Pair:
        document = part_of(self.text, probe.start, probe.tokens)
        [pair] = engine.encode(self.queries[probe.query], [document], probe.tokens)
        if pair.length != probe.length:
            raise ValueError(f"a pair of {probe.length} tokens now has {pair.length}")
        return pair

    def with_exported(self, exported: PairEngine) -> "ProbeSet":
        """The same probes with the logits of the exported model, each pair scored alone."""
        probes = [
            probe.model_copy(update={"exported": exported.score([self._pair(probe, exported)])[0]})
            for probe in self.probes
        ]
        return self.model_copy(update={"probes": probes})

    def without_exported(self) -> "ProbeSet":
        """The same probes with the logits of the original only."""
        probes = [probe.model_copy(update={"exported": None}) for probe in self.probes]
        return self.model_copy(update={"probes": probes})


def make_probes(reference: PairEngine, max_length: int, entries: Sequence[tuple[str, str]]) -> ProbeSet:
    """Score pairs of every width with the original. `entries` are queries with their passages."""
    passages = [passage for _, passage in entries]
    text = " ".join(passages)
    # Queries that exceed half the window are cut.
    long_queries = [part_of(text, 0, min(max_length, LONGEST) * share // 2) for share in (1, 3)]
    queries = [SHORT_QUERY, *(query for query, _ in entries), *long_queries]
    starts = [0, *(text.index(passage) for passage in passages)]
    probes: list[Probe] = []
    for at, length in enumerate(_lengths(max_length)):
        query = 1 + at % len(entries)
        if reference.encode(queries[query], [""])[0].length >= length:
            query = 0
        # Every second probe has the passage that answers its query.
        start = starts[query] if at % 2 else starts[1 + (at * 7) % len(entries)]
        started = perf_counter()
        tokens = length - reference.encode(queries[query], [""])[0].length
        probes += _probe(reference, queries, text, Probe(query=query, start=start, tokens=tokens, length=length))
        if perf_counter() - started > SLOWEST_SECONDS:
            break
    for query in range(1 + len(entries), len(queries)) if max_length <= LONGEST else ():
        cut = Probe(query=query, start=0, tokens=max_length, length=max_length, window=max_length)
        probes += _probe(reference, queries, text, cut)
    return ProbeSet(queries=queries, text=text, probes=probes)


def part_of(text: str, start: int, tokens: int) -> str:
    """Enough text for `tokens` tokens. The text is repeated if it is too short."""
    chars = CHARS_PER_TOKEN * tokens
    part = text[start : start + chars]
    return part + f" {text}" * -(-(chars - len(part)) // len(text))


def _probe(reference: PairEngine, queries: Sequence[str], text: str, probe: Probe) -> Iterator[Probe]:
    """The probe with its logit. Nothing if the texts do not give that length."""
    if probe.tokens < 1:
        return
    [pair] = reference.encode(queries[probe.query], [part_of(text, probe.start, probe.tokens)], probe.tokens)
    if pair.length == probe.length:
        yield probe.model_copy(update={"logit": reference.score([pair])[0]})


def _lengths(max_length: int) -> Iterator[int]:
    """The smallest and the largest length of each width, and one in between."""
    most = min(max_length, DENSE)
    before = 0
    for width in sorted({min(bucket_length(length), most) for length in range(1, most + 1)}):
        yield from sorted({before + 1, (before + 1 + width) // 2, width})
        before = width
    while most < min(max_length, LONGEST):
        yield min(most + JUST_ABOVE, max_length)
        most = min(2 * most, max_length)
        yield most
