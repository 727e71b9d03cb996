"""One row of the input becomes one line of the output, or a reason why it cannot."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from app.bulk.rows import Row
from app.errors import EngineBroken, Refused, RequestError, ScoringFailed
from app.serving.lifecycle import Phase

if TYPE_CHECKING:
    from app.api.dialects.native_request import RerankRequest
    from app.api.service import Service
    from app.types import Ranking

# The engine may fail on a row because of its neighbours in the batch.
TRIES = 3
# Seconds between two tries while the engine is loaded again.
PAUSE_SECONDS = 0.5
# Batches of an engine that splits them: at most this many times the usual size, and about this many seconds.
WIDER, BATCH_SECONDS = 8, 2.0


@dataclass(slots=True)
class Counts:
    """Totals over rows."""

    rows: int = 0
    """Rows with a ranking."""
    bad: int = 0
    """Rows without one."""
    documents: int = 0
    pairs: int = 0
    """Documents and windows with a score."""
    tokens: int = 0
    """Tokens of all pairs, special tokens and cached pairs included."""
    cached: int = 0
    """Pairs that the model did not score again."""
    truncated: int = 0
    """Documents that were not read to the end."""

    def add(self, other: "Counts") -> None:
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


class Outcome(NamedTuple):
    """A line of the output, or of the file of bad rows."""

    line: bytes
    counts: Counts


class BadRow(Exception):
    """The row cannot be ranked. The message is the reason."""


class Scoring:
    """Ranks rows with a service in this process."""

    def __init__(self, service: "Service", options: Mapping[str, Any], kept: Sequence[str]) -> None:
        """`options`: fields of a request, for rows that do not have them. `kept`: fields of a row to copy."""
        self._service = service
        self._options = options
        self._kept = kept

    def widen_batches(self) -> None:
        """Let an engine that splits its batches by length take larger ones, as far as its speed allows.

        With more pairs to choose from, it pads less. Nobody waits for a single row.
        """
        reranker = self._service.reranker
        if reranker and reranker.engine.info.splits:
            usual, fast = reranker.engine.schedule.batch_tokens, int(reranker.batcher.speed * BATCH_SECONDS)
            reranker.batcher.allow(min(WIDER * usual, max(usual, fast)))

    def parse(self, row: Row) -> tuple["RerankRequest", dict[str, Any]]:
        """The request of a row, and the fields to copy. Raises `BadRow`."""
        if row.problem:
            raise BadRow(row.problem)
        try:
            fields = json.loads(row.content.decode())
        except UnicodeDecodeError as error:
            raise BadRow(f"is not valid UTF-8: {error.reason} at byte {error.start}") from None
        except (ValueError, RecursionError) as error:
            raise BadRow(f"is not valid JSON: {error}") from None
        if not isinstance(fields, dict):
            raise BadRow("must be a JSON object with 'query' and 'documents'")
        request = parse_request(fields)
        for name, value in self._options.items():
            if name not in request.model_fields_set:
                setattr(request, name, value)
        return request, {name: fields[name] for name in self._kept if name in fields}

    async def rank(self, row: Row, request: "RerankRequest", kept: Mapping[str, Any]) -> Outcome:
        """The ranking of a row. Raises `EngineBroken` if the engine cannot be used any more."""
        from app.api.dialects.native_response import results

        try:
            ranking = await self._rank(row, request)
            found = [result.model_dump(exclude_none=True) for result in results(request, ranking)]
            line = json.dumps({**kept, "results": found}, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        except UnicodeEncodeError:
            return bad(row, "a field to copy has a broken character: a surrogate without its other half")
        except (RequestError, ScoringFailed) as error:
            return bad(row, str(error))
        cached = ranking.pairs - ranking.scored
        documents = len(request.documents)
        return Outcome(line, Counts(1, 0, documents, ranking.pairs, ranking.tokens, cached, ranking.truncated))

    async def _rank(self, row: Row, request: "RerankRequest") -> "Ranking":
        """Rows are served in their order: a batch of the first one is filled with pairs of the next."""
        from app.api.ranking import with_options

        reranker = self._service.reranker
        assert reranker is not None  # noqa: S101 (the service is running)
        query = with_options(request.to_query(), request, self._service, reranker, None)
        spans = query.spans and replace(query.spans, required=True)
        query = replace(query, on_overload="error", budget=None, priority=row.end.number, spans=spans)
        tries = 0
        while True:
            try:
                return await self._service.usable_reranker().rerank(query)
            except Refused:
                if self._service.lifecycle.phase is Phase.FAILED:
                    raise EngineBroken(
                        "The engine failed and could not be loaded again; the log has the reason"
                    ) from None
                await asyncio.sleep(PAUSE_SECONDS)
            except ScoringFailed:
                tries += 1
                if tries == TRIES:
                    raise


def parse_request(fields: Mapping[str, Any]) -> "RerankRequest":
    """The request of these fields, as the API reads it. Raises `BadRow`."""
    from app.api.dialects.native_request import RerankRequest
    from app.api.errors import explain

    try:
        return RerankRequest.model_validate(fields)
    except ValidationError as error:
        # Locations of the API begin with the part of the HTTP request.
        problems = [problem | {"loc": ("body", *problem["loc"])} for problem in error.errors(include_url=False)]
        raise BadRow(explain(problems, "")[1]) from None


def bad(row: Row, reason: str) -> Outcome:
    """The line for a row without a ranking."""
    line = json.dumps({"line": row.end.number, "reason": reason}, ensure_ascii=False)
    return Outcome(line.encode("utf-8", "replace") + b"\n", Counts(bad=1))
