"""The best passages inside the documents of an answer: their sentences, scored by the model in a second round."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import NamedTuple

from app.engines.protocol import Engine
from app.errors import DeadlineExceeded, Refused, ScoringFailed
from app.first_stage.lexical import lexical_scores
from app.machine.threads import on_thread
from app.serving.activation import activate
from app.serving.folding import ScoredPassage
from app.serving.progress import Progress
from app.serving.sentences import sentences
from app.types import Passage, Ranking, RerankQuery, ScoredSpan, Span, SpanBounds, Spans

# The most sentences of a passage.
MOST_SENTENCES = 3
# Characters of the documents of a request that are split into sentences. Splitting holds the interpreter lock.
MOST_CHARS = 1_000_000

ScorePassages = Callable[[Progress, Sequence[Passage]], Awaitable[None]]
"""Gets the scores of these passages into the progress, as those of documents: cache, slot, tokenizer, batcher."""


class Candidates(NamedTuple):
    """The passages to score."""

    passages: list[Passage]
    cut: int
    """Documents of which some were left out."""


class SpanFinder:
    """Adds spans to rankings. Keeps no state."""

    def __init__(self, bounds: SpanBounds, threads: Executor) -> None:
        """`threads`: where documents are split."""
        self._bounds = bounds
        self._threads = threads

    async def add(
        self, ranking: Ranking, progress: Progress, score: ScorePassages, engine: Engine, used: int = 0
    ) -> None:
        """Set the ranking's spans, and count their pairs. The deadline of the request applies.

        `used`: candidates that the request has had before.

        If they cannot be scored in time, the ranking gets the code of the error instead, or the error is raised if the
        request requires spans: `Refused`, `DeadlineExceeded` or `ScoringFailed`.
        """
        spans = ranking.spans = Spans(error=ranking.degraded)
        if ranking.degraded:
            return
        own = Progress(progress.query, "truncate", progress.deadline, timings=progress.timings)
        try:
            spans.cut = await self._score(ranking, own, score, used)
        except (Refused, DeadlineExceeded, ScoringFailed) as error:
            if progress.query.spans and progress.query.spans.required:
                raise
            spans.error = error.code
        else:
            spans.by_document = best_spans(own, engine)
        scored = own.scored_passages()
        spans.candidates = len(scored)
        ranking.pairs += len(scored)
        ranking.scored += own.scored
        ranking.tokens += sum(found.tokens for _, found in scored)

    async def _score(self, ranking: Ranking, progress: Progress, score: ScorePassages, used: int) -> int:
        """Score the candidates. Returns the number of documents of which some were left out."""
        bounds = replace(self._bounds, per_request=self._bounds.per_request - used)
        try:
            async with asyncio.timeout_at(progress.deadline):
                candidates = await on_thread(self._threads, choose_candidates, progress.query, ranking, bounds)
                await score(progress, candidates.passages)
        except TimeoutError:
            raise DeadlineExceeded("The deadline passed before the spans were scored") from None
        return candidates.cut


def choose_candidates(query: RerankQuery, ranking: Ranking, bounds: SpanBounds) -> Candidates:
    """Windows of one to three sentences of the documents that were scored, best documents first."""
    documents, chosen, cut, chars = query.passages(), list[Passage](), 0, 0
    for index in query.spans.documents(ranking) if query.spans else ():
        if index in ranking.unscored:
            continue
        document, left = documents[index], min(bounds.per_document, bounds.per_request - len(chosen))
        if left <= 0 or chars + len(document.text) > MOST_CHARS:
            cut += 1
            continue
        chars += len(document.text)
        found = [span for span in sentences(document.text) if any(map(str.isalnum, document.text[slice(*span)]))]
        windows = windows_of(len(found))
        if len(windows) > left:
            cut += 1
            windows = _most_promising(windows, found, document, ranking.windows[index])[:left]
        spans = [(found[first][0], found[last][1]) for first, last in windows]
        chosen += [document._replace(text=document.text[slice(*span)], span=span) for span in spans]
    return Candidates(chosen, cut)


def windows_of(count: int) -> list[Span]:
    """The first and the last sentence of each window. Single sentences come first."""
    return [(first, first + more) for more in range(MOST_SENTENCES) for first in range(count - more)]


def _most_promising(windows: Sequence[Span], found: Sequence[Span], document: Passage, best: Span | None) -> list[Span]:
    """Windows with fewer sentences first, so that the whole document is covered if that is possible.

    Of the same size, those in the model's best window of the document come first, then those that share words with the
    query.
    """
    texts = [document.text[slice(*span)] for span in found]
    shared = lexical_scores([document.query] * len(texts), texts)

    def place(window: Span) -> tuple[int, bool, float]:
        first, last = window
        is_in_best = best is not None and found[first][0] < best[1] and best[0] < found[last][1]
        return last - first, not is_in_best, -sum(shared[first : last + 1])

    return sorted(windows, key=place)


def best_spans(progress: Progress, engine: Engine) -> dict[int, list[ScoredSpan]]:
    """The passages of each document that do not overlap a better one, best first. The shorter one wins a tie."""
    query, by_document = progress.query, dict[int, list[ScoredPassage]]()
    for found in progress.scored_passages():
        by_document.setdefault(found[0].document, []).append(found)
    most = query.spans.most if query.spans else None
    kept = {index: _without_overlaps(found)[:most] for index, found in by_document.items()}
    logits = [score.logit for found in kept.values() for _, score in found]
    scores = iter(activate(logits, query.activation, engine) if logits else ())
    return {
        index: [ScoredSpan(passage.span or (0, 0), score.logit, next(scores)) for passage, score in found]
        for index, found in kept.items()
    }


def _without_overlaps(found: Sequence[ScoredPassage]) -> list[ScoredPassage]:
    kept = list[ScoredPassage]()
    for candidate in sorted(found, key=lambda each: (-each[1].logit, len(each[0].text))):
        start, end = candidate[0].span or (0, 0)
        if all(other.span and (end <= other.span[0] or other.span[1] <= start) for other, _ in kept):
            kept.append(candidate)
    return kept
