"""Static embeddings: a vector for each word piece, made once; a text is their sum. No model runs."""

import threading
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from app.words import Words, split_words

SHIPPED = Path(__file__).parent / "static_embeddings" / "model.npz"
UNKNOWN = "[UNK]"
# The length of a document's vector is read off its first dimensions, which hold most of it: vectors are rotated so.
LENGTH_DIMENSIONS = 16
# Words whose pieces are remembered, and their characters: over that, all are forgotten at once.
MAX_KNOWN, MAX_KNOWN_CHARS = 100_000, 5_000_000
# Words in work at a time, to bound memory.
BLOCK = 200_000
SMALL = 1e-9

Floats = NDArray[np.float32]


class Pieces(NamedTuple):
    """Word pieces of many words."""

    rows: NDArray[np.int64]
    """Of all words one after the other, at least one each, of shape (pieces,)."""
    starts: NDArray[np.int64]
    """Where each word begins in `rows`, of shape (words,)."""


class Known:
    """Owns words met so far, and the pieces of each. It only grows; words are in the tables before they have places."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}
        self.tables = Pieces(np.zeros(0, np.int64), np.zeros(1, np.int64))
        """Of all words by place; `starts` ends with the number of all pieces."""
        self.chars = 0

    def add(self, words: Mapping[str, Sequence[int]]) -> None:
        """Pieces of words that are not known yet."""
        rows, starts = self.tables
        ends = starts[-1] + np.cumsum(np.fromiter(map(len, words.values()), np.int64, len(words)))
        new = np.fromiter(chain.from_iterable(words.values()), np.int64, int(ends[-1] - starts[-1]))
        self.tables = Pieces(np.concatenate([rows, new]), np.concatenate([starts, ends]))
        self.places |= zip(words, range(len(self.places), len(self.places) + len(words)), strict=True)
        self.chars += sum(map(len, words))

    def find(self, words: Sequence[str]) -> list[int | None]:
        """The place of each word, None for one that is not known."""
        return list(map(self.places.get, words))

    def pieces(self, places: Sequence[int | None]) -> Pieces:
        """Of the words at these places."""
        rows, starts = self.tables
        at = np.array(places, np.int64)
        counts = starts[at + 1] - starts[at]
        ends = np.cumsum(counts)
        within = np.arange(counts.sum()) - np.repeat(ends - counts, counts)
        return Pieces(rows[np.repeat(starts[at], counts) + within], ends - counts)


class Vocabulary:
    """Takes words of `Words` apart into the pieces that have vectors. Any thread may use it."""

    def __init__(self, pieces: Sequence[str]) -> None:
        """`pieces` as BERT's vocabulary has them, the unknown one among them."""
        self._rows = {piece: row for row, piece in enumerate(pieces)}
        self._tokenizer = Tokenizer(WordPiece(self._rows, unk_token=UNKNOWN))
        self._tokenizer.normalizer = BertNormalizer()
        self._tokenizer.pre_tokenizer = BertPreTokenizer()
        self._learning = threading.Lock()
        self._known = self._start()

    def _start(self) -> Known:
        known = Known()
        known.add({piece: (row,) for piece, row in self._rows.items()})
        return known

    def pieces(self, words: Sequence[str]) -> Pieces:
        """The pieces of all words; those that were never met are tokenised, all at once."""
        known = self._known
        places = known.find(words)
        if None in places:
            with self._learning:
                known = self._learn(words)
            places = known.find(words)
        return known.pieces(places)

    def _learn(self, words: Sequence[str]) -> Known:
        known = self._known
        if len(known.places) > MAX_KNOWN or known.chars > MAX_KNOWN_CHARS:
            known = self._known = self._start()
        new = [word for word in dict.fromkeys(words) if word not in known.places]
        unknown = (self._rows[UNKNOWN],)
        for start in range(0, len(new), BLOCK):
            block = new[start : start + BLOCK]
            encoded = self._tokenizer.encode_batch_fast(block, add_special_tokens=False)
            known.add({word: each.ids or unknown for word, each in zip(block, encoded, strict=True)})
        return known


class StaticEmbeddings:
    """Vectors of word pieces, each times the weight that the piece has in a text. Any thread may use them."""

    def __init__(self, vocabulary: Vocabulary, vectors: NDArray[np.int8], scales: Floats) -> None:
        """A piece's vector is its row of `vectors`, shape (pieces, dimensions), times its scale."""
        self._vocabulary = vocabulary
        self._vectors = vectors
        self._scales = scales
        self._leading = vectors[:, :LENGTH_DIMENSIONS] * scales[:, None]

    @classmethod
    def load(cls, file: Path = SHIPPED) -> "StaticEmbeddings":
        """Those that `training.static_embeddings` has made."""
        with np.load(file) as arrays:
            pieces = arrays["vocabulary"].tobytes().decode().split("\n")
            return cls(Vocabulary(pieces), arrays["vectors"], arrays["scales"].astype(np.float32))

    def similarities(self, query: str, documents: Words) -> Floats:
        """How near each document is to the query, about the cosine of the two, of shape (documents,)."""
        pieces = self._vocabulary.pieces(documents.distinct)
        met = np.zeros(len(self._scales), bool)
        met[pieces.rows] = True
        near = np.zeros(len(self._scales), np.float32)
        near[met] = self._vectors[met].astype(np.float32) @ self._direction(query) * self._scales[met]
        near = np.add.reduceat(near[pieces.rows], pieces.starts)
        parts = np.add.reduceat(self._leading[pieces.rows], pieces.starts)
        lengths = np.linalg.norm(_sums(parts, documents), axis=1)
        similarities: Floats = _sums(near[:, None], documents)[:, 0] / (lengths + SMALL)
        return similarities

    def _direction(self, query: str) -> Floats:
        words = split_words([query])
        pieces = self._vocabulary.pieces([words.distinct[place] for place in words.ids])
        total = self._scales[pieces.rows] @ self._vectors[pieces.rows]
        return total / (np.linalg.norm(total) + SMALL)


def _sums(values: Floats, documents: Words) -> Floats:
    """Sums over each document's words of their `values`, shape (distinct words, n): of shape (documents, n)."""
    sums = np.zeros((len(documents.texts), values.shape[1]), np.float32)
    ends = np.cumsum(documents.counts)
    starts = ends - documents.counts
    filled = np.flatnonzero(documents.counts)
    for part in np.array_split(filled, 1 + len(documents.ids) // BLOCK) if len(filled) else ():
        first, last = starts[part[0]], ends[part[-1]]
        sums[part] = np.add.reduceat(values[documents.ids[first:last]], starts[part] - first)
    return sums
