"""A run from the first row to the last: a window of rows in flight, written in the order of the input."""

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from app.bulk.checkpoint import Checkpoint
from app.bulk.output import Output
from app.bulk.progress import Report
from app.bulk.rows import Row, Source
from app.bulk.scoring import WIDER, BadRow, Outcome, Scoring, bad

if TYPE_CHECKING:
    from app.serving.reranker import Reranker

CHECKPOINT_SECONDS = 1.0
# The time between two checkpoints is at least this many times the time to write one.
SLOWDOWN = 50
# Rows that one call of the reading thread returns, at most.
READ_ROWS, READ_BYTES = 64, 1 << 20
# This many batches are in memory for each one that runs, if documents have as many tokens as a short paragraph. An
# engine that pads needs many, to find pairs of similar length; one that splits large batches needs the next one.
WAITING_BATCHES, WIDE_BATCHES, DOCUMENT_TOKENS = 16, 4, 64
FEWEST_DOCUMENTS, MOST_DOCUMENTS = 512, 8192
# Parsed rows take a few times as much memory as their bytes.
MOST_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much of the input is in memory. A single row may be larger."""

    documents: int
    size: int = MOST_BYTES
    """Bytes of the rows."""

    @classmethod
    def for_engine(cls, reranker: "Reranker") -> "Bounds":
        """As few documents as keep the engine busy."""
        info, tokens = reranker.engine.info, reranker.batcher.token_budget
        batches = info.batches_at_once * (WIDE_BATCHES * WIDER if info.splits else WAITING_BATCHES)
        wanted = batches * tokens // DOCUMENT_TOKENS
        return cls(min(MOST_DOCUMENTS, max(FEWEST_DOCUMENTS, wanted)))


class _Pending(NamedTuple):
    row: Row
    outcome: "asyncio.Task[Outcome] | Outcome"
    documents: int


class Window:
    """Rows in flight, the oldest first. Reading waits while it is full."""

    def __init__(self, bounds: Bounds, scoring: Scoring) -> None:
        self._bounds = bounds
        self._scoring = scoring
        self._pending: deque[_Pending] = deque()
        self._documents = self._size = 0

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def is_full(self) -> bool:
        return self._documents >= self._bounds.documents or self._size >= self._bounds.size

    def add(self, row: Row) -> None:
        """Begin with a row."""
        outcome: asyncio.Task[Outcome] | Outcome
        documents = 1
        try:
            request, kept = self._scoring.parse(row)
            documents = max(1, len(request.documents))
            outcome = asyncio.create_task(self._scoring.rank(row, request, kept), name="row")
        except BadRow as error:
            outcome = bad(row, str(error))
        self._pending.append(_Pending(row, outcome, documents))
        self._documents += documents
        self._size += len(row.content)

    async def take(self) -> tuple[Row, Outcome]:
        """The oldest row, when it is done."""
        row, outcome, documents = self._pending[0]
        found = outcome if isinstance(outcome, Outcome) else await outcome
        self._pending.popleft()
        self._documents -= documents
        self._size -= len(row.content)
        return row, found

    async def close(self) -> None:
        """Cancel all rows."""
        tasks = [each.outcome for each in self._pending if isinstance(each.outcome, asyncio.Task)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def rank_rows(
    source: Source, output: Output, scoring: Scoring, bounds: Bounds, start: Checkpoint, report: Report
) -> Checkpoint:
    """Rank the rows after a checkpoint. Returns the last one, which is written even if the run is cancelled or fails.

    Raises `UnreadableInput`, `EngineBroken` or `OSError`.
    """
    window, rows = Window(bounds, scoring), source.rows(start.place)
    now, due, has_more = start, monotonic() + CHECKPOINT_SECONDS, True
    try:
        while True:
            while has_more and not window.is_full:
                read = await asyncio.to_thread(read_rows, rows)
                has_more = bool(read)
                for row in read:
                    window.add(row)
            if not len(window):
                break
            row, outcome = await window.take()
            output.write(outcome)
            now.counts.add(outcome.counts)
            now = replace(now, place=row.end)
            report.show(row.done, now.counts)
            if monotonic() >= due:
                due = save(output, now)
                scoring.widen_batches()
        now = replace(now, finished=True)
    finally:
        await window.close()
        output.save(now)
    return now


def save(output: Output, checkpoint: Checkpoint) -> float:
    """Returns when the next checkpoint is due. A slow disk gets fewer of them, because the event loop waits for it."""
    started = monotonic()
    output.save(checkpoint)
    now = monotonic()
    return now + max(CHECKPOINT_SECONDS, SLOWDOWN * (now - started))


def read_rows(rows: Iterator[Row]) -> list[Row]:
    """The next rows: a few, because the lines may be long. Empty at the end."""
    found: list[Row] = []
    size = 0
    for row in rows:
        found.append(row)
        size += len(row.content)
        if len(found) >= READ_ROWS or size >= READ_BYTES:
            break
    return found
