"""Many texts split into words at once: what all fast first looks at documents share."""

import re
import string
from collections import defaultdict
from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# What lies behind this in a text hardly changes its place, and would cost time; and so much of all texts of a request.
MAX_CHARS, MAX_CHARS_TOGETHER = 10_000, 4_000_000
PUNCTUATION = string.punctuation + "“”‘’„«»‹›…–—¿¡"
# Words; of scripts that do not separate them, characters.
CHARACTERS = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff"
TERM = re.compile(f"[{CHARACTERS}]|[^\\W{CHARACTERS}]+")


class Words(NamedTuple):
    """Texts as sequences of words, each distinct word named once.

    A word is what stands between spaces, in lower case, without the punctuation at its ends: splitting so is twice as
    fast as finding terms, which then need to be found in distinct words only.
    """

    texts: Sequence[str]
    distinct: list[str]
    ids: NDArray[np.int32]
    """Of all texts' words one after the other, their places in `distinct`, of shape (words,)."""
    counts: NDArray[np.int64]
    """Words of each text, of shape (texts,)."""
    lengths: NDArray[np.int64]
    """Characters read of each text, of shape (texts,)."""

    def owners(self) -> NDArray[np.int64]:
        """Of each word the index of its text, of shape (words,)."""
        return np.repeat(np.arange(len(self.texts)), self.counts)


def split_words(texts: Sequence[str], together: int = MAX_CHARS_TOGETHER) -> Words:
    """The words at the beginning of each text, as far as the limits let it be read; `together` is that of all texts."""
    limit = min(MAX_CHARS, together // max(1, len(texts)))
    lengths = np.fromiter((min(len(text), limit) for text in texts), np.int64, len(texts))
    places: defaultdict[str, int] = defaultdict(count().__next__)
    counts, ids = np.zeros(len(texts), np.int64), list[int]()
    for index, text in enumerate(texts):
        # One text after the other: its words are gone before the next, which is twice as fast as keeping them all.
        words = text[:limit].lower().split()
        counts[index] = len(words)
        ids += map(places.__getitem__, words)
    return Words(texts, [word.strip(PUNCTUATION) for word in places], np.array(ids, np.int32), counts, lengths)


def terms(text: str) -> list[str]:
    """The terms of a text or a word, in order, with repetitions."""
    return TERM.findall(text[:MAX_CHARS].lower())
