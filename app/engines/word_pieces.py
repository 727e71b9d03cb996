"""Token ids of texts. BERT tokenizes each word alone, so the ids of a word are computed once and remembered."""

import re
from collections.abc import Callable, Collection, Sequence
from itertools import chain, filterfalse

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from app.types import Ids

# BERT splits texts at these white spaces, and around ASCII punctuation. It also splits at other characters, so a word
# here can be several of BERT's words.
find_words: Callable[[str], list[str]] = re.compile(r"[^ \t\n\r!-/:-@\[-`{-~]+|[!-/:-@\[-`{-~]").findall
# When the remembered words have more characters, they are forgotten: about 15 MB. Each word counts as some more.
MOST_CHARACTERS, WORD_CHARACTERS = 1_000_000, 16
# Longer texts are left to the tokenizer, which lets other threads run meanwhile. In characters.
LONGEST_TEXT = 50_000

Encode = Callable[[Sequence[str]], list[Ids]]


def text_encoder(tokenizer: Tokenizer) -> Encode:
    """A thread-safe function that returns the token ids of each text, without special tokens."""
    return WordPieces(tokenizer).ids if WordPieces.fits(tokenizer) else lambda texts: encode_texts(tokenizer, texts)


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Ids]:
    """The token ids of each text, by the tokenizer itself."""
    encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [np.array(encoding.ids, np.int32) for encoding in encoded]


class WordPieces:
    """Remembers the token ids of words. Several times as fast as the tokenizer itself."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Added tokens can contain punctuation: "[SEP]".
        self._added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        self._known: dict[str, list[int]] = {}
        self._size = 0

    @staticmethod
    def fits(tokenizer: Tokenizer) -> bool:
        """Whether the tokenizer splits texts into words as BERT does."""
        return (
            isinstance(tokenizer.model, WordPiece)
            and isinstance(tokenizer.normalizer, BertNormalizer)
            and isinstance(tokenizer.pre_tokenizer, BertPreTokenizer)
            # Those are found in the normalized text.
            and not any(token.normalized for token in tokenizer.get_added_tokens_decoder().values())
        )

    def ids(self, texts: Sequence[str]) -> list[Ids]:
        """The token ids of each text, without special tokens."""
        split = [find_words(text) if self._is_words(text) else None for text in texts]
        known = self._learn([words for words in split if words is not None])
        others = iter(
            encode_texts(self._tokenizer, [text for text, words in zip(texts, split, strict=True) if words is None])
        )
        return [
            next(others) if words is None else np.array([*chain.from_iterable(map(known.__getitem__, words))], np.int32)
            for words in split
        ]

    def _is_words(self, text: str) -> bool:
        return len(text) <= LONGEST_TEXT and not any(token in text for token in self._added)

    def _learn(self, texts: Collection[Sequence[str]]) -> dict[str, list[int]]:
        """The token ids of the words of these texts, and of earlier ones."""
        if self._size > MOST_CHARACTERS:
            # Another thread may still read the old words.
            self._known, self._size = {}, 0
        known = self._known
        new: set[str] = set()
        for words in texts:
            new.update(filterfalse(known.__contains__, words))
        if new:
            encoded = self._tokenizer.encode_batch_fast(list(new), add_special_tokens=False)
            known.update((word, encoding.ids) for word, encoding in zip(new, encoded, strict=True))
            self._size += sum(map(len, new)) + WORD_CHARACTERS * len(new)
        return known
