"""Rows and their outcomes as tables of Arrow, which Ray Data moves between processes."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import pyarrow

from app.bulk.rows import Place, Row
from app.bulk.scoring import Counts, Outcome

COUNTS = tuple(field.name for field in fields(Counts))


class Done(NamedTuple):
    """A row that was ranked, or cannot be."""

    end: Place
    done: int
    """How much of the input is read, see `Source.size`."""
    outcome: Outcome
    identity: str
    """What the outcome depends on besides the input, as JSON."""


def rows_block(rows: Sequence[Row]) -> Any:
    """The table of some rows."""
    return pyarrow.table(
        {
            **_places(rows),
            "content": pyarrow.array([row.content for row in rows], pyarrow.large_binary()),
            "problem": pyarrow.array([row.problem for row in rows], pyarrow.string()),
        }
    )


def rows_of(block: Any) -> list[Row]:
    """The rows of such a table."""
    return [
        Row(line["content"], Place(line["number"], line["offset"]), line["done"], line["problem"])
        for line in block.to_pylist()
    ]


def outcomes_block(rows: Sequence[Row], outcomes: Sequence[Outcome], identity: str) -> Any:
    """The table of rows that are done."""
    return pyarrow.table(
        {
            **_places(rows),
            **{name: [getattr(outcome.counts, name) for outcome in outcomes] for name in COUNTS},
            "line": pyarrow.array([outcome.line for outcome in outcomes], pyarrow.large_binary()),
            "identity": pyarrow.array([identity] * len(rows)).dictionary_encode(),
        }
    )


def outcomes_of(block: Any) -> Iterator[Done]:
    """The rows of such a table."""
    for line in block.to_pylist():
        outcome = Outcome(line["line"], Counts(**{name: line[name] for name in COUNTS}))
        yield Done(Place(line["number"], line["offset"]), line["done"], outcome, line["identity"])


def _places(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "number": [row.end.number for row in rows],
        "offset": [row.end.offset for row in rows],
        "done": [row.done for row in rows],
    }
