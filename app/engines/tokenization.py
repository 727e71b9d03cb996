"""Pairs of texts to token ids, without the tokenizer's own truncation and padding.

A Hugging Face tokenizer keeps truncation and padding as state of the instance. Threads that set this state for each
call truncate each other's texts, without an error. Here the tokenizer is read-only, and pairs are assembled by hand.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding, Tokenizer

from app.types import Ids, Pair, Span

# Windows of a long document overlap by a quarter. A sentence that is cut in one window is whole in the next.
OVERLAP = 4


class PairTokenizer:
    """Assembles pairs like the model's own tokenizer. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._template = _Template.of(self._tokenizer)
        self.max_length = max_length

    def encode(self, query: str, documents: Sequence[str], max_tokens_per_doc: int | None = None) -> list[Pair]:
        """One pair for each document, at most `max_length` tokens long. `max_tokens_per_doc` cuts documents further.

        If a pair is too long, the document is cut. The query is cut only if it exceeds half the window, and then to
        that half.
        """
        encoded = self._tokenizer.encode_batch_fast([query, *documents], add_special_tokens=False)
        query_ids, *document_ids = (np.array(encoding.ids, np.int32) for encoding in encoded)
        return [self._assemble(query_ids, ids, max_tokens_per_doc) for ids in document_ids]

    def windows(self, query: str, documents: Sequence[str], max_tokens: int | None = None) -> list[list[Span]]:
        """Spans that cover each document. Each span fits together with the query, and has at most `max_tokens` tokens.

        A window starts and ends between words where possible, because its text then gives the same tokens as in the
        document. It overlaps the previous one by a quarter.
        """
        encoded, *encodings = self._tokenizer.encode_batch([query, *documents], add_special_tokens=False)
        room = self.max_length - self._template.special_tokens - min(len(encoded.ids), self.max_length // 2)
        room = min(room, max_tokens or room)
        return [
            [(0, len(document))] if len(encoding.ids) <= room else list(_windows(encoding, room))
            for document, encoding in zip(documents, encodings, strict=True)
        ]

    def _assemble(self, query: Ids, document: Ids, max_tokens_per_doc: int | None) -> Pair:
        kept_query, kept_document = query, document[:max_tokens_per_doc]
        room = self.max_length - self._template.special_tokens
        if len(kept_query) + len(kept_document) > room:
            kept_query = query[: self.max_length // 2]
            kept_document = kept_document[: max(0, room - len(kept_query))]
        truncated = len(kept_query) < len(query) or len(kept_document) < len(document)
        return self._template.fill(kept_query, kept_document, truncated)


@dataclass(frozen=True, slots=True)
class _Template:
    """The special tokens that a model puts around a pair, and the segments of the two texts."""

    before: Ids
    between: Ids
    after: Ids
    segments: tuple[int, int, int, int, int]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "_Template":
        """The template, read from a pair of one-word texts."""
        query, document = tokenizer.encode_batch_fast(["a", "b"], add_special_tokens=False)
        pair = tokenizer.post_process(query, document)
        ids, types = np.array(pair.ids, np.int32), pair.type_ids
        first = pair.special_tokens_mask.index(0)
        first_end = first + len(query.ids)
        second = pair.special_tokens_mask.index(0, first_end)
        second_end = second + len(document.ids)
        segments = (types[0], types[first], types[first_end], types[second], types[-1])
        return cls(ids[:first], ids[first_end:second], ids[second_end:], segments)

    @property
    def special_tokens(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)

    def fill(self, query: Ids, document: Ids, truncated: bool) -> Pair:
        parts = (self.before, query, self.between, document, self.after)
        types = np.repeat(np.array(self.segments, np.int32), [len(part) for part in parts])
        return Pair(np.concatenate(parts), types, truncated)


def _windows(encoding: Encoding, room: int) -> Iterator[Span]:
    words, offsets = encoding.word_ids, encoding.offsets
    starts = [0, *(index for index in range(1, len(words)) if words[index] != words[index - 1])]
    boundaries = [*starts, len(words)]
    start = 0
    while start + room < len(words):
        end = _boundary(starts, start, start + room)
        yield offsets[start][0], offsets[end - 1][1]
        # The next window starts a quarter earlier, unless the next word would then not fit.
        next_word_end = boundaries[bisect_right(starts, end)]
        fitting = min(boundaries[bisect_left(boundaries, next_word_end - room)], end)
        start = max(_boundary(starts, start, end - room // OVERLAP), fitting)
    yield offsets[start][0], offsets[-1][1]


def _boundary(starts: Sequence[int], after: int, limit: int) -> int:
    """The last start of a word up to the limit, or the limit itself if the word is too long."""
    limit = max(limit, after + 1)
    found = starts[bisect_right(starts, limit) - 1]
    return found if found > after else limit
