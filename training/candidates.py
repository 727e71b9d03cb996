"""Groups made of corpora: for each question its passage, and those that look most like an answer and are none."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from rich.progress import track

from training.corpora import Question
from training.groups import Group
from training.inference import Floats

# Negatives are drawn from these ranks, by words and by meaning: from the nearest, and from those behind them.
BM25_RANKS, MEANING_RANKS = (6, 40), (6, 25)


class BiEncoder(Protocol):
    """What embeds questions and passages (`training.embedding.Embedder`)."""

    def questions(self, texts: Sequence[str]) -> Floats:
        """Unit vectors."""

    def passages(self, texts: Sequence[str]) -> Floats:
        """Unit vectors."""


Signals = Mapping[str, BiEncoder]
"""Of each signal of a group (`cosines`, `e5`) the bi-encoder that gives it; negatives are those near to the last."""


class Words:
    """BM25 of the passages of a corpus."""

    def __init__(self, passages: Sequence[str]) -> None:
        import bm25s

        self._count, self._tokenize = len(passages), bm25s.tokenize
        self._index = bm25s.BM25()
        self._index.index(bm25s.tokenize(list(passages), show_progress=False), show_progress=False)

    def scores(self, query: str) -> Floats:
        """Of each passage, shape (passages,)."""
        [terms] = self._tokenize([query], return_ids=False, show_progress=False)
        return np.asarray(self._index.get_scores(terms) if terms else np.zeros(self._count), np.float32)


class Pool:
    """Finds the passages of a corpus that look like answers, by words and by meaning."""

    def __init__(self, passages: Sequence[str], signals: Signals) -> None:
        self.passages, self._signals = passages, signals
        self._words = Words(passages)
        self._vectors = {name: encoder.passages(passages) for name, encoder in signals.items()}

    def groups(self, source: str, questions: Sequence[Question], size: int, rng: random.Random) -> Iterator[Group]:
        """A group of up to `size` documents for each question, the first of them its answer."""
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
        """Of each question with each passage, as it is asked where it differs; shape (questions, passages)."""
        asked = encoder.questions([question.query for question in questions])
        cosines = asked @ self._vectors[name].T
        changed = [at for at, question in enumerate(questions) if question.positive != self.passages[question.index]]
        if changed:
            positives = encoder.passages([questions[at].positive for at in changed])
            cosines[changed, [questions[at].index for at in changed]] = (asked[changed] * positives).sum(1)
        return cosines

    def _negatives(self, question: Question, ranked: Sequence[list[int]], count: int, rng: random.Random) -> list[int]:
        """One at random, then in turn a known one and one of each range of ranks."""
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
    """Indices of the highest, and of those behind them."""
    first, last = ranks
    order = np.argsort(-scores, kind="stable")[: last + 1].tolist()
    return [order[: first + 1], order[first + 1 :]]


def _rounded(values: Floats) -> list[float]:
    return [round(float(value), 4) for value in values]
