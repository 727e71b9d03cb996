"""Many texts split into words at once: what all fast first looks at documents share."""

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

# What lies behind this in a text hardly changes its place, and would cost time; and so much of all texts of a request.
MAX_CHARS, MAX_CHARS_TOGETHER = 10_000, 4_000_000
PUNCTUATION = string.punctuation + "“”‘’„«»‹›…–—¿¡"
# Of scripts that do not separate words: each is a word.
CHARACTERS = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff"
RUN = re.compile(f"[{CHARACTERS}]+")
LETTERS = f"[^\\W_{CHARACTERS}]+"
TERM = re.compile(f"[{CHARACTERS}]|{LETTERS}(?:_+{LETTERS})*")
# The type of a place in an array, and an array of none.
PLACE = "i"
NO_PLACES = array(PLACE)
# A lexicon that knows more words or terms, or has words of more characters, is to be replaced.
MAX_KNOWN, MAX_KNOWN_CHARS = 200_000, 5_000_000


class Lexicon:
    """Owns words met so far, each by its place, and the terms in them. It only grows; any thread may use it.

    A word is what stands between spaces, in lower case, without the punctuation at its ends: splitting so is twice as
    fast as finding terms, which then need to be found only in words that were never met.
    """

    def __init__(self) -> None:
        self._places = _Places()
        self._reading = threading.Lock()

    @property
    def words(self) -> list[str]:
        """By place."""
        return self._places.words

    @property
    def full(self) -> bool:
        """Whether it is to be replaced, to bound its memory."""
        places = self._places
        return max(len(places), len(places.containing)) > MAX_KNOWN or places.chars > MAX_KNOWN_CHARS

    def read(self, texts: Sequence[str], together: int = MAX_CHARS_TOGETHER) -> "Words":
        """The words at the beginning of each text, as far as the limits let it be read; `together` is of all texts."""
        limit = min(MAX_CHARS, together // max(1, len(texts)))
        lengths = np.fromiter((min(len(text), limit) for text in texts), np.int64, len(texts))
        counts, ids = np.zeros(len(texts), np.int64), list[int]()
        with self._reading:
            for index, text in enumerate(texts):
                # One text after the other: its words are gone before the next, which is faster than keeping them all.
                words = _split(text[:limit])
                counts[index] = len(words)
                ids += map(self._places.__getitem__, words)
        return Words(self, texts, np.array(ids, np.int32), counts, lengths)

    def containing(self, term: str) -> NDArray[np.int32]:
        """The places of words with this term in them, as often as it is there; of shape (words,)."""
        places = np.array(self._places.containing.get(term, NO_PLACES))
        return np.append(places, self._places[term]) if is_term(term) and term in self._places else places


class _Places(dict[str, int]):
    """Places of words, found without the punctuation at their ends and, once met so, with it."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.containing: defaultdict[str, array[int]] = defaultdict(partial(array, PLACE))
        """Positions of words by the terms in them. Words that are a single term, as most are, are left out."""
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
    """Of all texts' words one after the other, their places in the lexicon, of shape (words,)."""
    counts: NDArray[np.int64]
    """Words of each text, of shape (texts,)."""
    lengths: NDArray[np.int64]
    """Characters read of each text, of shape (texts,)."""

    def owners(self) -> NDArray[np.int64]:
        """Of each word the index of its text, of shape (words,)."""
        return np.repeat(np.arange(len(self.texts)), self.counts)


def _split(text: str) -> list[str]:
    """Its words, in lower case, with the punctuation at their ends."""
    text = text.lower()
    if not text.isascii():
        text = RUN.sub(lambda run: f" {' '.join(run[0])} ", text)
    return text.split()


def terms(text: str) -> list[str]:
    """The terms of a text or a word, in order, with repetitions."""
    return TERM.findall(text[:MAX_CHARS].lower())


def is_term(word: str) -> bool:
    """Whether a word is certainly one term: only ASCII letters and digits."""
    return word.isascii() and word.isalnum()
