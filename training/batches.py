"""Training batches as arrays of token ids. All texts are tokenized once, before the training."""

import logging
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from training.groups import Group
from training.lengthening import place
from training.schedule import LONG, Plan

log = logging.getLogger(__name__)

Ids = npt.NDArray[np.int32]
# Longer queries are cut, so that they leave room for the document.
MAX_QUERY = 64
TEXTS_AT_ONCE = 5000


class Tokens:
    """The token ids of many texts, in one array that worker processes share."""

    def __init__(self, tokenizer: Any, texts: Sequence[str], limit: int) -> None:
        """`limit`: tokens of a text that are kept."""
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        parts = []
        for first in range(0, len(texts), TEXTS_AT_ONCE):
            encoded = backend.encode_batch(list(texts[first : first + TEXTS_AT_ONCE]), add_special_tokens=False)
            parts += [np.array(each.ids[:limit], np.int32) for each in encoded]
        self._ids, self._ends = np.concatenate(parts), np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, at: int) -> Ids:
        return self._ids[self._ends[at] : self._ends[at + 1]]


class Layout:
    """How a tokenizer joins a query and a document."""

    def __init__(self, tokenizer: Any) -> None:
        empty = tokenizer.backend_tokenizer.encode("", "")
        self._first, *between, self._last = empty.ids
        self._between = np.array(between, np.int32)
        self._has_segments = any(empty.type_ids)
        self.padding: int = tokenizer.pad_token_id
        self.special_tokens = 2 + len(between)

    def write(self, row: npt.NDArray[np.int64], query: Ids, document: Ids) -> tuple[int, int]:
        """Write the pair into the row. Returns its length and where its second segment begins."""
        pair = np.concatenate([[self._first], query, self._between, document, [self._last]])
        row[: len(pair)] = pair
        return len(pair), len(pair) - len(document) - 1 if self._has_segments else len(row)


class Batch(NamedTuple):
    """One step; the rows are the documents of its groups, one after the other."""

    ids: Any
    """Shape (rows, tokens)."""
    lengths: Any
    """Shape (rows,): tokens of each row without padding."""
    starts: Any
    """Shape (rows,): where the second segment begins."""
    targets: Any
    """Shape (groups, documents): target logits."""
    labels: Any
    """Shape (groups, documents): 1 for relevant documents, 0 for others."""


class Batches(torch.utils.data.Dataset):  # type: ignore[misc]
    """The batch of each step of a plan. Every group has the same number of documents, so that shapes repeat."""

    def __init__(self, tokenizer: Any, window: int, groups: Sequence[Group], plan: Plan) -> None:
        """`window`: tokens that the model reads. Raises `ValueError` if there are no groups."""
        if not groups:
            raise ValueError("the folder has no groups to train on")
        self._plan, self._window, self._layout = plan, window, Layout(tokenizer)
        self.documents = Counter(len(group.documents) for group in groups).most_common(1)[0][0]
        used = [group.kept(list(range(self.documents))) for group in groups if len(group.documents) >= self.documents]
        if len(used) < len(groups):
            log.info("%d groups have fewer than %d documents and are skipped", len(groups) - len(used), self.documents)
        texts: dict[str, int] = {}
        self._places = [[texts.setdefault(text, len(texts)) for text in group.documents] for group in used]
        self._texts = Tokens(tokenizer, list(texts), window)
        self._queries = Tokens(tokenizer, [group.query for group in used], MAX_QUERY)
        self._targets = np.array([group.targets() for group in used], np.float32)
        self._labels = np.array([group.labels for group in used], np.float32)

    def __len__(self) -> int:
        return self._plan.steps

    def __getitem__(self, step: int) -> Batch:
        reading = self._plan.reading(step, len(self._places))
        width, count = min(reading.tokens, self._window), len(reading.groups) * self.documents
        ids = np.full((count, width), self._layout.padding, np.int64)
        lengths, starts = np.zeros(count, np.int64), np.zeros(count, np.int64)
        pairs = ((self._queries[group], self._texts[at]) for group in reading.groups for at in self._places[group])
        for row, (whole, document) in enumerate(pairs):
            query = whole[: width // 2]
            room = width - self._layout.special_tokens - len(query)
            text = self._lengthened(document[:room], room, reading.rng) if reading.tokens == LONG else document[:room]
            lengths[row], starts[row] = self._layout.write(ids[row], query, text)
        chosen = list(reading.groups)
        return Batch(ids, lengths, starts, self._targets[chosen], self._labels[chosen])

    def _lengthened(self, document: Ids, tokens: int, rng: Random) -> Ids:
        """The document at a random place among other texts, `tokens` in all."""
        left = tokens - len(document)
        before = round(left * place(rng))
        return np.concatenate([self._other(before, rng), document, self._other(left - before, rng)])

    def _other(self, tokens: int, rng: Random) -> Ids:
        parts, missing = [np.zeros(0, np.int32)], tokens
        while missing > 0:
            parts.append(self._texts[rng.randrange(len(self._texts))][:missing])
            missing -= max(1, len(parts[-1]))
        return np.concatenate(parts)
