"""Split many texts into words at once. All methods of the first stage work on these words."""

import re
import string
import threading
from array import array
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Characters read of each text, and of all texts of a request together. Later ones rarely change the order of documents.
MAX_CHARS, MAX_CHARS_TOGETHER = 10_000, 4_000_000
PUNCTUATION = string.punctuation + "“”‘’„«»‹›…–—¿¡"
# Scripts that do not separate words: each character counts as a word.
CHARACTERS = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff"
RUN = re.compile(f"[{CHARACTERS}]+")
LETTERS = f"[^\\W_{CHARACTERS}]+"
TERM = re.compile(f"[{CHARACTERS}]|{LETTERS}(?:_+{LETTERS})*")
# A place is an index into the words of a lexicon.
PLACE = "i"
NO_PLACES = array(PLACE)
# A lexicon with more words, terms or characters than this is full.
MAX_KNOWN, MAX_KNOWN_CHARS = 200_000, 5_000_000


class Lexicon:
    """Owns the words seen so far, and the terms in them. A word's index is its place. Grows only. Thread-safe.

    A word is a lower-case string between spaces, without punctuation at its ends. Splitting at spaces is twice as fast
    as finding terms, and terms have to be found only in new words.
    """

    def __init__(self) -> None:
        self._places = _Places()
        self._reading = threading.Lock()

    @property
    def words(self) -> list[str]:
        """All words; the index is the place."""
        return self._places.words

    @property
    def full(self) -> bool:
        """Whether it should be replaced to bound memory."""
        places = self._places
        return max(len(places), len(places.containing)) > MAX_KNOWN or places.chars > MAX_KNOWN_CHARS

    def read(self, texts: Sequence[str], together: int = MAX_CHARS_TOGETHER) -> "Words":
        """Split the beginning of each text into words. `together` limits the characters of all texts."""
        limit = min(MAX_CHARS, together // max(1, len(texts)))
        lengths = np.fromiter((min(len(text), limit) for text in texts), np.int64, len(texts))
        counts, ids = np.zeros(len(texts), np.int64), list[int]()
        with self._reading:
            for index, text in enumerate(texts):
                # Freeing the words of one text before the next is faster than keeping them all.
                words = _split(text[:limit])
                counts[index] = len(words)
                ids += map(self._places.__getitem__, words)
        return Words(self, texts, np.array(ids, np.int32), counts, lengths)

    def containing(self, term: str) -> NDArray[np.int32]:
        """The places of the words that contain the term, repeated if a word contains it repeatedly; shape (words,)."""
        # A copy, because an array cannot grow while numpy reads it, and another thread may be adding a word.
        places = np.array(self._places.containing.get(term, NO_PLACES)[:])
        return np.append(places, self._places[term]) if is_term(term) and term in self._places else places


class _Places(dict[str, int]):
    """Places by word. A word with punctuation at its ends gets an entry, too, so that it is stripped only once."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.containing: defaultdict[str, array[int]] = defaultdict(partial(array, PLACE))
        """Places of words by the terms in them. Most words are a single term, and these are left out."""
        self.chars = 0

    def __missing__(self, written: str) -> int:
        word = written.strip(PUNCTUATION)
        place = self.get(word)
        if place is None:
            place = self[word] = len(self.words)
            self.words.append(word)
            if not is_term(word):
                for term in terms(word):
                    self.containing[term].append(place)
        self[written] = place
        self.chars += len(written)
        return place


class Words(NamedTuple):
    """Texts as sequences of words."""

    lexicon: Lexicon
    texts: Sequence[str]
    ids: NDArray[np.int32]
    """The places in the lexicon of all words, one text after the other; shape (words,)."""
    counts: NDArray[np.int64]
    """Number of words of each text; shape (texts,)."""
    lengths: NDArray[np.int64]
    """Number of characters read of each text; shape (texts,)."""

    def owners(self) -> NDArray[np.int64]:
        """The index of the text that each word belongs to; shape (words,)."""
        return np.repeat(np.arange(len(self.texts)), self.counts)


def _split(text: str) -> list[str]:
    """The words in lower case, still with the punctuation at their ends."""
    text = text.lower()
    if not text.isascii():
        text = RUN.sub(lambda run: f" {' '.join(run[0])} ", text)
    return text.split()


def terms(text: str) -> list[str]:
    """The terms of a text or a word, in order, with repetitions."""
    return TERM.findall(text[:MAX_CHARS].lower())


def is_term(word: str) -> bool:
    """A fast check, for ASCII letters and digits only, that a word is a single term."""
    return word.isascii() and word.isalnum()
