"""A fake engine: ranks by shared words, can be paused, can fail, and records its batches."""

import re
import threading
import time
import zlib
from collections.abc import Sequence

import numpy as np

from app.engines.padding import Shape, common_shapes
from app.engines.protocol import Activate, EngineInfo
from app.engines.schedule import Schedule
from app.errors import OutOfMemory
from app.types import Pair, Span

# A word that random texts do not contain.
NAN = "scored-as-no-number"

INFO = EngineInfo(
    model="fake",
    revision=None,
    device="cpu",
    backend="fake",
    precision="fp32",
    compiled=False,
    threads=1,
    max_length=512,
    activation="sigmoid",
    labels={0: "relevance"},
)


class FakeEngine:
    """The logit of a pair is the number of query words in the document, minus 0.5."""

    def __init__(self) -> None:
        self.info = INFO
        self.schedule = Schedule(batch_tokens=1024)
        self.probes = None
        self.self_test = None
        self.batches: list[list[int]] = []
        """Lengths of the pairs of each batch scored, in order."""
        self.gate = threading.Event()
        """Clear it to pause the inference thread."""
        self.gate.set()
        self.patience = 30
        """Seconds to wait for the gate."""
        self.failure: Exception | None = None
        """Raised instead of returning scores."""
        self.capacity = 10**9
        """Number of pairs that fit into memory."""
        self.longest = 10**9
        """Number of tokens per pair that fit into memory."""
        self.lines = 10**9
        """Number of lines that fit into the window. With 1, each line of a longer document is a window."""
        self.seconds_per_token = 0.0
        self.tokens_per_second = 0.0
        """The speed at the warm-up; 0 if it is unknown."""
        self.cleared = 0
        self.entered = 0
        """Number of batches that reached the engine, scored or not."""

    def encode(
        self,
        query: str,
        documents: Sequence[str],
        max_tokens_per_doc: int | None = None,
        instruction: str | None = None,
    ) -> list[Pair]:
        """The words of the instruction count as words of the query."""
        asked = f"{instruction} {query}" if instruction else query
        return [self._pair(asked, document, max_tokens_per_doc) for document in documents]

    def windows(
        self, query: str, documents: Sequence[str], max_tokens: int | None = None, _instruction: str | None = None
    ) -> list[list[Span]]:
        """The lines of a document that has several."""
        lines = [[match.span() for match in re.finditer(r"[^\n]+", document)] for document in documents]
        return [
            spans if len(spans) > 1 else [(0, len(document))] for spans, document in zip(lines, documents, strict=True)
        ]

    def _pair(self, query: str, document: str, limit: int | None) -> Pair:
        first, second = words(query), words(document)
        kept = words("\n".join(document.split("\n")[: self.lines]))[:limit]
        types = [0] * len(first) + [1] * len(kept)
        return Pair(np.array(first + kept, np.int32), np.array(types, np.int32), len(kept) < len(second))

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        self.entered += 1
        assert self.gate.wait(self.patience), "the test forgot to open the gate"
        self.batches.append([pair.length for pair in pairs])
        if self.failure is not None:
            raise self.failure
        time.sleep(self.seconds_per_token * sum(self.batches[-1]))
        if len(pairs) > self.capacity or max(self.batches[-1]) > self.longest:
            raise OutOfMemory("does not fit")
        return [logit(pair) for pair in pairs]

    def shapes(self) -> list[Shape]:
        return common_shapes(self.info.max_length, self.schedule.batch_tokens)

    def padded_tokens(self, pairs: Sequence[Pair]) -> list[int]:
        return [max(pair.length for pair in pairs)] * len(pairs)

    @property
    def activate(self) -> Activate:
        return lambda logits: [float(1 / (1 + np.exp(-logit))) for logit in logits]

    def warm_up(self) -> float:
        return self.tokens_per_second

    def clear_memory(self) -> None:
        self.cleared += 1

    def cancel(self) -> None:
        """Has no effect: a paused batch stays paused."""


def words(text: str) -> list[int]:
    """A stable id for each word."""
    return [zlib.crc32(word.encode()) % 2**31 for word in text.lower().split()]


def logit(pair: Pair) -> float:
    """The fake score of a pair; NaN for a document that contains the `NAN` word."""
    query, document = set(pair.ids[pair.type_ids == 0].tolist()), set(pair.ids[pair.type_ids == 1].tolist())
    return float("nan") if words(NAN)[0] in document else len(query & document) - 0.5
