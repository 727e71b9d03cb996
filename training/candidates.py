"""Build groups from a corpus: for each question its passage, and passages that only look like an answer."""

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np
from rich.progress import track

from app.first_stage.words import CHARACTERS
from training.corpora import Question
from training.groups import Group
from training.inference import Floats

# Negatives are drawn from two ranges of ranks, up to the first number and from there to the second. The ranks come
# from BM25 and from a bi-encoder.
BM25_RANKS, MEANING_RANKS = (6, 40), (6, 25)


class BiEncoder(Protocol):
    """Embeds questions and passages (`training.embedding.Embedder`)."""

    def questions(self, texts: Sequence[str]) -> Floats:
        """Unit vectors."""

    def passages(self, texts: Sequence[str]) -> Floats:
        """Unit vectors."""


Signals = Mapping[str, BiEncoder]
"""The bi-encoder for each signal of a group (`cosines`, `e5`). Negatives are chosen by the last one."""


class Words:
    """BM25 index of the passages of a corpus."""

    def __init__(self, passages: Sequence[str]) -> None:
        import bm25s

        self._count = len(passages)
        # Words of two characters or more. Scripts without spaces: each character is a word.
        self._tokenize = partial(bm25s.tokenize, token_pattern=rf"[{CHARACTERS}]|[^\W{CHARACTERS}]{{2,}}")
        self._index = bm25s.BM25()
        self._index.index(self._tokenize(list(passages), show_progress=False), show_progress=False)

    def scores(self, query: str) -> Floats:
        """Scores of all passages, shape (passages,)."""
        [terms] = self._tokenize([query], return_ids=False, show_progress=False)
        return np.asarray(self._index.get_scores(terms) if terms else np.zeros(self._count), np.float32)


class Pool:
    """Finds passages that look like answers, by BM25 and by embeddings."""

    def __init__(self, passages: Sequence[str], signals: Signals) -> None:
        self.passages, self._signals = passages, signals
        self._words = Words(passages)
        self._vectors = {name: encoder.passages(passages) for name, encoder in signals.items()}

    def groups(self, source: str, questions: Sequence[Question], size: int, rng: random.Random) -> Iterator[Group]:
        """A group of up to `size` documents for each question. The first document is the answer."""
        if not questions:
            return
        cosines = {name: self._cosines(name, encoder, questions) for name, encoder in self._signals.items()}
        for at, question in enumerate(track(questions, source)):
            bm25 = self._words.scores(question.query)
            of_question = {name: each[at] for name, each in cosines.items()}
            ranked = _near(bm25, BM25_RANKS) + _near([*of_question.values()][-1], MEANING_RANKS)
            negatives = self._negatives(question, ranked, size - 1, rng)
            if not negatives:
                continue
            chosen = [question.index, *negatives]
            yield Group(
                query=question.query,
                documents=[question.positive, *(self.passages[index] for index in negatives)],
                labels=[1.0, *[0.0] * len(negatives)],
                bm25=_rounded(bm25[chosen] / max(float(bm25[chosen].max()), 1e-6)),
                source=source,
                **{name: _rounded(each[chosen]) for name, each in of_question.items()},
            )

    def _cosines(self, name: str, encoder: BiEncoder, questions: Sequence[Question]) -> Floats:
        """Cosines of questions and passages, shape (questions, passages).

        Where the positive of a question differs from the passage that it was made from, the cosine is of the positive.
        """
        asked = encoder.questions([question.query for question in questions])
        cosines = asked @ self._vectors[name].T
        changed = [at for at, question in enumerate(questions) if question.positive != self.passages[question.index]]
        if changed:
            positives = encoder.passages([questions[at].positive for at in changed])
            cosines[changed, [questions[at].index for at in changed]] = (asked[changed] * positives).sum(1)
        return cosines

    def _negatives(self, question: Question, ranked: Sequence[list[int]], count: int, rng: random.Random) -> list[int]:
        """Draw in turn from: one random passage, the known negatives, and each range of ranks."""
        pools = [[rng.randrange(len(self.passages))], list(question.negatives), *ranked]
        for pool in pools:
            rng.shuffle(pool)
        chosen: list[int] = []
        while len(chosen) < count and any(pools):
            for pool in pools:
                while pool and len(chosen) < count:
                    index = pool.pop()
                    if index not in chosen and self._may_be_negative(question, index):
                        chosen.append(index)
                        break
        return chosen

    def _may_be_negative(self, question: Question, index: int) -> bool:
        if index == question.index or index in question.also:
            return False
        passage = self.passages[index].lower()
        return not any(answer in passage for answer in question.answers)


def _near(scores: Floats, ranks: tuple[int, int]) -> list[list[int]]:
    """Indices of the highest scores, split after the first rank and cut after the second."""
    first, last = ranks
    order = np.argsort(-scores, kind="stable")[: last + 1].tolist()
    return [order[: first + 1], order[first + 1 :]]


def _rounded(values: Floats) -> list[float]:
    return [round(float(value), 4) for value in values]
