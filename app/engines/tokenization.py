"""Pairs of texts to token ids, without the tokenizer's own truncation and padding.

A Hugging Face tokenizer keeps truncation and padding as state of the instance. Threads that set this state for each
call truncate each other's texts, without an error. Here the tokenizer is read-only, and pairs are assembled by hand.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from tokenizers import Encoding, Tokenizer

from app.engines.template import Template
from app.engines.word_pieces import encode_texts, text_encoder
from app.errors import InvalidRequest
from app.types import Ids, Pair, Span

# Tokens of a query and a document together, at least, that a template must leave.
LEAST_ROOM = 16
# Windows of a long document overlap by a quarter. A sentence that is cut in one window is whole in the next.
OVERLAP = 4


class PairTokenizer:
    """Assembles pairs like the model's own preprocessing. Thread-safe."""

    def __init__(
        self, tokenizer: Tokenizer, max_length: int, template: Template | None = None, prompt: str = ""
    ) -> None:
        """`template`: what the model reads around a pair. If None, the special tokens of the tokenizer, and `prompt`
        before the query.
        """
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.template = template
        """What the model reads around a pair, if it is more than special tokens and a prompt."""
        self._texts = _plain(self._tokenizer) if template else self._tokenizer
        self._encode = text_encoder(self._texts)
        self._frame = self._templated(template) if template else _Frame.of(self._tokenizer, prompt)
        self.max_length = max_length

    def within(self, max_length: int) -> "PairTokenizer":
        """The same with another window."""
        other = copy(self)
        other.max_length = max_length
        return other

    @property
    def constant_tokens(self) -> int:
        """Tokens of a pair that come neither from the query nor from the document."""
        return self._frame.tokens

    def encode(
        self,
        query: str,
        documents: Sequence[str],
        max_tokens_per_doc: int | None = None,
        instruction: str | None = None,
    ) -> list[Pair]:
        """One pair for each document, at most `max_length` tokens long. `max_tokens_per_doc` cuts documents further.

        If a pair is too long, the document is cut. The query is cut only if it exceeds half the window, and then to
        that half. `instruction`: in place of the template's own.
        """
        frame = self._frame_for(instruction)
        query_ids, *document_ids = self._encode([frame.query.around(query), *map(frame.document.around, documents)])
        prefixes: dict[int, Ids] = {}
        pairs = [self._assemble(frame, query_ids, ids, max_tokens_per_doc, prefixes) for ids in document_ids]
        return pairs if len(pairs) > 1 else [replace(pair, prefix=None) for pair in pairs]

    def windows(
        self, query: str, documents: Sequence[str], max_tokens: int | None = None, instruction: str | None = None
    ) -> list[list[Span]]:
        """Spans that cover each document. Each span fits together with the query, and has at most `max_tokens` tokens.

        A window starts and ends between words where possible, because its text then gives the same tokens as in the
        document. It overlaps the previous one by a quarter.
        """
        frame = self._frame_for(instruction)
        encodings = self._texts.encode_batch(documents, add_special_tokens=False)
        [query_ids] = self._encode([frame.query.around(query)])
        taken = frame.tokens + frame.document.tokens
        room = max(1, self.max_length - taken - min(len(query_ids), self.max_length // 2))
        room = min(room, max_tokens or room)
        return [
            [(0, len(document))] if len(encoding.ids) <= room else list(_windows(encoding, room))
            for document, encoding in zip(documents, encodings, strict=True)
        ]

    def _frame_for(self, instruction: str | None) -> "_Frame":
        """Raises `InvalidRequest` if the template and the instruction leave no room for a query and a document."""
        if self.template is None:
            return self._frame
        frame = self._frame if instruction is None else self._templated(self.template, instruction)
        if self.max_length - frame.tokens < LEAST_ROOM:
            named = "the template" if instruction is None else "the template with it"
            problem = (
                f"{named} has {frame.tokens} tokens, and the window of the model {self.max_length}: at least "
                f"{LEAST_ROOM} must be left for the query and the document"
            )
            raise InvalidRequest(problem, None if instruction is None else "instruction")
        return frame

    def _templated(self, template: Template, instruction: str | None = None) -> "_Frame":
        """The template's constants as tokens, except for their edges, which are tokenized with the texts."""
        before, between, after = template.parts(instruction)
        before, before_query = _split_end(before, template.edge)
        after_query, between = _split_start(between)
        between, before_document = _split_end(between, template.edge)
        after_document, after = _split_start(after)
        constants = encode_texts(self._tokenizer, [before, between, after])
        edges = self._encode([before_query, after_query, before_document, after_document])
        query = _Edges(before_query, after_query, len(edges[0]), edges[1])
        document = _Edges(before_document, after_document, len(edges[2]), edges[3])
        return _Frame(constants[0], constants[1], constants[2], (0, 0, 0, 0, 0), query, document)

    def _assemble(
        self, frame: "_Frame", query: Ids, document: Ids, max_tokens_per_doc: int | None, prefixes: dict[int, Ids]
    ) -> Pair:
        """`prefixes`: those of the earlier pairs with this query, by the number of its tokens that are left."""
        kept_query, kept_document = query, frame.document.cut(document, max_tokens_per_doc)
        room = self.max_length - frame.tokens
        if len(kept_query) + len(kept_document) > room:
            kept_query = frame.query.cut(query, self.max_length // 2 if self.template is None else room // 2)
            kept_document = frame.document.cut(kept_document, max(0, room - len(kept_query)))
        truncated = len(kept_query) < len(query) or len(kept_document) < len(document)
        prefix = prefixes.get(len(kept_query))
        if prefix is None:
            prefix = prefixes[len(kept_query)] = np.concatenate((frame.before, kept_query, frame.between))
        return frame.fill(prefix, len(kept_query), kept_document, truncated)


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    """The same, but special tokens that are written in a text are text.

    Otherwise a document could end its part of a template and answer in the name of the model.
    """
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.encode_special_tokens = True
    return plain


@dataclass(frozen=True, slots=True)
class _Edges:
    """Constant text that is tokenized together with the query or the document that it surrounds."""

    before: str = ""
    after: str = ""
    tokens_before: int = 0
    end: Ids = field(default_factory=lambda: np.array([], np.int32))
    """Tokens of `after`, which a cut keeps."""

    @property
    def tokens(self) -> int:
        return self.tokens_before + len(self.end)

    def around(self, text: str) -> str:
        return f"{self.before}{text}{self.after}"

    def cut(self, ids: Ids, most: int | None) -> Ids:
        """The first `most` tokens. The constant after the text stays."""
        if most is None or len(ids) <= most:
            return ids
        return np.concatenate([ids[: max(0, most - len(self.end))], self.end]) if len(self.end) else ids[:most]


@dataclass(frozen=True, slots=True)
class _Frame:
    """The constant tokens around a pair, and the segments of the two texts."""

    before: Ids
    between: Ids
    after: Ids
    segments: tuple[int, int, int, int, int]
    query: _Edges = field(default_factory=_Edges)
    document: _Edges = field(default_factory=_Edges)

    @classmethod
    def of(cls, tokenizer: Tokenizer, prompt: str) -> Self:
        """The special tokens of the tokenizer, read from a pair of one-word texts."""
        query, document = tokenizer.encode_batch_fast(["a", "b"], add_special_tokens=False)
        pair = tokenizer.post_process(query, document)
        ids, types = np.array(pair.ids, np.int32), pair.type_ids
        first = pair.special_tokens_mask.index(0)
        first_end = first + len(query.ids)
        second = pair.special_tokens_mask.index(0, first_end)
        second_end = second + len(document.ids)
        segments = (types[0], types[first], types[first_end], types[second], types[-1])
        return cls(ids[:first], ids[first_end:second], ids[second_end:], segments, query=_Edges(prompt))

    @property
    def tokens(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)

    def fill(self, prefix: Ids, query: int, document: Ids, truncated: bool) -> Pair:
        """`prefix`: the tokens before the document; `query`: how many of them are the query's."""
        lengths = (len(self.before), query, len(self.between), len(document), len(self.after))
        types = np.repeat(np.array(self.segments, np.int32), lengths)
        return Pair(np.concatenate((prefix, document, self.after)), types, truncated, prefix)


def _split_end(text: str, edge: str) -> tuple[str, str]:
    """The text without its edge at the end, and the edge."""
    size = len(re.match(edge, text[::-1])[0])  # type: ignore[index]
    return text[: len(text) - size], text[len(text) - size :]


def _split_start(text: str) -> tuple[str, str]:
    """The white space at the start, and the rest."""
    rest = text.lstrip()
    return text[: len(text) - len(rest)], rest


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
