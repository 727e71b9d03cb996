"""Static embeddings: each word piece has a precomputed vector, and a text is the sum of its pieces. No model runs."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from app.first_stage.words import Lexicon, Words, is_term

SHIPPED = Path(__file__).parent / "static_embeddings" / "model.npz"
UNKNOWN = "[UNK]"
# A document's norm is estimated from the first dimensions only: the vectors are rotated so that these hold most of it.
LENGTH_DIMENSIONS = 16
# Words of documents, and characters of words, that are processed at a time. This bounds memory.
BLOCK = 200_000
SMALL = 1e-9

Floats = NDArray[np.float32]


class Pieces(NamedTuple):
    """The word pieces of many words."""

    rows: NDArray[np.int64]
    """The pieces of all words, one word after the other, at least one per word; shape (pieces,)."""
    starts: NDArray[np.int64]
    """The index in `rows` where each word begins; shape (words,)."""


class Vocabulary:
    """Splits words into the pieces that have vectors. Thread-safe."""

    def __init__(self, pieces: Sequence[str]) -> None:
        """`pieces` is BERT's vocabulary, including the unknown piece."""
        self._rows = {piece: row for row, piece in enumerate(pieces)}
        self._model = WordPiece(self._rows, unk_token=UNKNOWN)
        self._tokenizer = Tokenizer(self._model)
        self._tokenizer.normalizer = BertNormalizer()
        self._tokenizer.pre_tokenizer = BertPreTokenizer()

    def pieces(self, words: Sequence[str]) -> Pieces:
        # Normalizing is most of the work. Words that are a piece or a single term do not need it.
        others = self._normalized([word for word in words if word not in self._rows and not is_term(word)])

        def split(word: str) -> Sequence[int]:
            if word in self._rows:
                return (self._rows[word],)
            if is_term(word):
                return [token.id for token in self._model.tokenize(word)]
            return next(others)

        each = list(map(split, words))
        counts = np.fromiter(map(len, each), np.int64, len(each))
        return Pieces(np.fromiter(chain.from_iterable(each), np.int64, counts.sum()), np.cumsum(counts) - counts)

    def _normalized(self, words: Sequence[str]) -> Iterator[Sequence[int]]:
        unknown = (self._rows[UNKNOWN],)
        for encoded in self._tokenizer.encode_batch_fast(words, add_special_tokens=False):
            yield encoded.ids or unknown


class Known(NamedTuple):
    """The words of a lexicon, by their place in it."""

    pieces: Pieces
    leading: Floats
    """The first dimensions of their vectors; shape (words, LENGTH_DIMENSIONS)."""

    def of(self, places: NDArray[np.integer]) -> Pieces:
        """The pieces of the words at these places."""
        rows, starts = self.pieces
        counts = np.diff(starts, append=len(rows))[places]
        ends = np.cumsum(counts)
        within = np.arange(counts.sum()) - np.repeat(ends - counts, counts)
        return Pieces(rows[np.repeat(starts[places], counts) + within], ends - counts)


NO_PIECES = Pieces(np.zeros(0, np.int64), np.zeros(0, np.int64))
NOTHING = Known(NO_PIECES, np.zeros((0, LENGTH_DIMENSIONS), np.float32))


class StaticEmbeddings:
    """Vectors of word pieces, multiplied by the weight of the piece. Thread-safe."""

    def __init__(self, vocabulary: Vocabulary, vectors: NDArray[np.int8], scales: Floats) -> None:
        """A piece's vector is its row of `vectors`, of shape (pieces, dimensions), times its scale."""
        self._vocabulary = vocabulary
        self._vectors = vectors
        self._scales = scales
        self._known = WeakKeyDictionary[Lexicon, Known]()
        self._learning = threading.Lock()

    @classmethod
    def load(cls, file: Path = SHIPPED) -> "StaticEmbeddings":
        """Load a file written by `training.static_embeddings`."""
        with np.load(file) as arrays:
            pieces = arrays["vocabulary"].tobytes().decode().split("\n")
            return cls(Vocabulary(pieces), arrays["vectors"], arrays["scales"].astype(np.float32))

    def similarities(self, query: str, documents: Words) -> Floats:
        """Approximate cosine of the query with each document; shape (documents,)."""
        asked = documents.lexicon.read([query]).ids
        known = self._learn(documents.lexicon)
        met = np.flatnonzero(np.bincount(documents.ids))
        near = np.zeros(len(known.leading), np.float32)
        near[met] = self._products(known.of(met), self._direction(known.of(asked)))
        lengths = np.linalg.norm(_sums(known.leading, documents), axis=1)
        similarities: Floats = _sums(near[:, None], documents)[:, 0] / (lengths + SMALL)
        return similarities

    def _learn(self, lexicon: Lexicon) -> Known:
        """Look up the words that the lexicon gained since the last call. Returns all of its words."""
        with self._learning:
            known = self._known.get(lexicon, NOTHING)
            new = [self._know(block) for block in _blocks(lexicon.words[len(known.leading) :])]
            if new:
                known = self._known[lexicon] = _joined([known, *new])
            return known

    def _know(self, words: Sequence[str]) -> Known:
        rows, starts = pieces = self._vocabulary.pieces(words)
        vectors = self._vectors[rows, :LENGTH_DIMENSIONS] * self._scales[rows, None]
        return Known(pieces, np.add.reduceat(vectors, starts))

    def _direction(self, query: Pieces) -> Floats:
        total = self._scales[query.rows] @ self._vectors[query.rows]
        return total / (np.linalg.norm(total) + SMALL)

    def _products(self, words: Pieces, direction: Floats) -> Floats:
        """Dot product of each word's vector with the direction; shape (words,)."""
        met = np.zeros(len(self._scales), bool)
        met[words.rows] = True
        products = np.zeros(len(self._scales), np.float32)
        products[met] = self._vectors[met].astype(np.float32) @ direction * self._scales[met]
        return np.add.reduceat(products[words.rows], words.starts)


def _blocks(words: Iterable[str]) -> Iterator[list[str]]:
    """Split the words into blocks of about BLOCK characters."""
    block, chars = list[str](), 0
    for word in words:
        block.append(word)
        chars += len(word)
        if chars >= BLOCK:
            yield block
            block, chars = [], 0
    if block:
        yield block


def _joined(parts: Sequence[Known]) -> Known:
    rows = [part.pieces.rows for part in parts]
    ends = np.cumsum([len(each) for each in rows])
    starts = [part.pieces.starts + end - len(part.pieces.rows) for part, end in zip(parts, ends, strict=True)]
    return Known(Pieces(np.concatenate(rows), np.concatenate(starts)), np.concatenate([part.leading for part in parts]))


def _sums(values: Floats, documents: Words) -> Floats:
    """Sum `values`, of shape (words of the lexicon, n), over the words of each document; shape (documents, n)."""
    sums = np.zeros((len(documents.texts), values.shape[1]), np.float32)
    ends = np.cumsum(documents.counts)
    starts = ends - documents.counts
    filled = np.flatnonzero(documents.counts)
    for part in np.array_split(filled, 1 + len(documents.ids) // BLOCK) if len(filled) else ():
        first, last = starts[part[0]], ends[part[-1]]
        sums[part] = np.add.reduceat(values[documents.ids[first:last]], starts[part] - first)
    return sums
