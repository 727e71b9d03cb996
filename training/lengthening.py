"""Long training documents: other text before and after a short document, so that the answer can be anywhere."""

import random
from collections.abc import Sequence
from typing import Any

from training.groups import Group

# [CLS], and [SEP] after the query and after the document.
SPECIAL_TOKENS = 3
# Share of documents at the beginning, and the same share at the end. The others are at random places.
AT_AN_END = 0.2


class Lengthener:
    """Lengthens documents with random other texts."""

    def __init__(self, tokenizer: Any, texts: Sequence[str]) -> None:
        self._tokenizer, self._texts = tokenizer, texts

    def documents(self, group: Group, tokens: int, rng: random.Random) -> list[str]:
        """The documents of the group, each lengthened so that query and document fill `tokens` tokens."""
        room = tokens - SPECIAL_TOKENS - self.tokens(group.query)
        return [self.lengthened(document, room, place(rng), rng) for document in group.documents]

    def lengthened(self, document: str, tokens: int, at: float, rng: random.Random) -> str:
        """The document in a text of `tokens` tokens; `at` is its place: 0 the beginning, 1 the end."""
        document = self._first(document, tokens)
        left = max(0, tokens - self.tokens(document))
        before = round(left * at)
        return " ".join(filter(None, (self._other(before, rng), document, self._other(left - before, rng))))

    def tokens(self, text: str) -> int:
        """Number of tokens of the text, without special ones."""
        return len(self._ends(text))

    def _other(self, tokens: int, rng: random.Random) -> str:
        """Random other texts, `tokens` tokens in all."""
        texts: list[str] = []
        while tokens > 0:
            text = self._first(rng.choice(self._texts), tokens)
            tokens -= max(1, self.tokens(text))
            texts.append(text)
        return " ".join(texts)

    def _first(self, text: str, tokens: int) -> str:
        ends = self._ends(text)
        return text if len(ends) <= tokens else text[: ends[tokens - 1]] if tokens > 0 else ""

    def _ends(self, text: str) -> list[int]:
        """The index in the text at which each token ends."""
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [end for _, end in encoded["offset_mapping"]]


def place(rng: random.Random) -> float:
    """A random place for a document in a longer text: 0 the beginning, 1 the end."""
    drawn = rng.random()
    return 0.0 if drawn < AT_AN_END else 1.0 if drawn > 1 - AT_AN_END else rng.random()
