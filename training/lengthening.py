"""Long documents to learn from: a short one with other text before and after it, so that an answer may be anywhere."""

import random
from collections.abc import Sequence
from typing import Any

from training.groups import Group

# [CLS], and a [SEP] after the query and after the document.
SPECIAL_TOKENS = 3
# So often the document comes first, and so often last; elsewhere it is anywhere.
AT_AN_END = 0.2


class Lengthener:
    """Knows the tokenizer, and the texts to lengthen others with."""

    def __init__(self, tokenizer: Any, texts: Sequence[str]) -> None:
        self._tokenizer, self._texts = tokenizer, texts

    def documents(self, group: Group, tokens: int, rng: random.Random) -> list[str]:
        """The group's documents, each with other text to fill what the query leaves of so many tokens."""
        room = tokens - SPECIAL_TOKENS - self.tokens(group.query)
        return [self.lengthened(document, room, place(rng), rng) for document in group.documents]

    def lengthened(self, document: str, tokens: int, at: float, rng: random.Random) -> str:
        """The document in a text of so many tokens, `at` 0 at its beginning and at 1 at its end."""
        document = self._first(document, tokens)
        left = max(0, tokens - self.tokens(document))
        before = round(left * at)
        return " ".join(filter(None, (self._other(before, rng), document, self._other(left - before, rng))))

    def tokens(self, text: str) -> int:
        """How many the text has."""
        return len(self._ends(text))

    def _other(self, tokens: int, rng: random.Random) -> str:
        """So many tokens of other texts."""
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
        """Where in the text each of its tokens ends."""
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [end for _, end in encoded["offset_mapping"]]


def place(rng: random.Random) -> float:
    """Where a document stands in a longer text: 0 first, 1 last."""
    drawn = rng.random()
    return 0.0 if drawn < AT_AN_END else 1.0 if drawn > 1 - AT_AN_END else rng.random()
