"""Groups made of corpora: for each question its passage, and those that look most like an answer and are none."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.progress import track

from training.corpora import Question
from training.groups import Group

Floats = npt.NDArray[np.float32]

# Negatives are drawn from so many of the first by BM25 and by the bi-encoder each.
NEIGHBOURS = 20
# What a document's embedding reads, in tokens.
EMBEDDED_TOKENS = 96
# So many texts take long enough for a progress bar.
MANY = 1000


class Embedder:
    """A bi-encoder: texts to unit vectors of shape (texts, dimensions)."""

    def __init__(self, model: str, device: str) -> None:
        from sentence_transformers import SentenceTransformer

        self._device = device
        self._model: Any = SentenceTransformer(model, device=device)
        self._model.max_seq_length = EMBEDDED_TOKENS

    def __call__(self, texts: Sequence[str]) -> Floats:
        import torch

        with torch.autocast(self._device.split(":")[0], torch.bfloat16):
            vectors = self._model.encode(
                list(texts), batch_size=64, normalize_embeddings=True, show_progress_bar=len(texts) > MANY
            )
        return np.asarray(vectors, np.float32)


class Pool:
    """Finds the passages of a corpus that look like answers, by words and by meaning."""

    def __init__(self, passages: Sequence[str], vectors: Floats) -> None:
        import bm25s

        self.passages, self.vectors = passages, vectors
        self._tokenize = bm25s.tokenize
        self._index = bm25s.BM25()
        self._index.index(bm25s.tokenize(list(passages), show_progress=False), show_progress=False)

    def bm25(self, query: str) -> Floats:
        """Of each passage, shape (passages,)."""
        [terms] = self._tokenize([query], return_ids=False, show_progress=False)
        return np.asarray(self._index.get_scores(terms) if terms else np.zeros(len(self.passages)), np.float32)

    def groups(
        self, source: str, questions: Sequence[Question], embed: Embedder, size: int, rng: random.Random
    ) -> Iterator[Group]:
        """A group of up to `size` documents for each question, the first of them its answer."""
        if not questions:
            return
        queries = embed([question.query for question in questions])
        positives = self.vectors[[question.index for question in questions]]
        changed = [at for at, question in enumerate(questions) if question.positive != self.passages[question.index]]
        if changed:
            positives[changed] = embed([questions[at].positive for at in changed])
        for at, question in enumerate(track(questions, source)):
            bm25 = self.bm25(question.query)
            cosines = self.vectors @ queries[at]
            negatives = self._negatives(question, bm25, cosines, size - 1, rng)
            if not negatives:
                continue
            highest = max(float(bm25[[question.index, *negatives]].max()), 1e-6)
            yield Group(
                query=question.query,
                documents=[question.positive, *(self.passages[index] for index in negatives)],
                labels=[1.0, *[0.0] * len(negatives)],
                cosines=[round(float(positives[at] @ queries[at]), 4), *_rounded(cosines[negatives])],
                bm25=_rounded(bm25[[question.index, *negatives]] / highest),
                source=source,
            )

    def _negatives(
        self, question: Question, bm25: Floats, cosines: Floats, count: int, rng: random.Random
    ) -> list[int]:
        """Known ones, the nearest by words, the nearest by meaning, and one at random."""
        pools = [list(question.negatives), _first(bm25), _first(cosines)]
        chosen: list[int] = [rng.randrange(len(self.passages))]
        if not self._may_be_negative(question, chosen[0]):
            chosen = []
        for pool in pools:
            rng.shuffle(pool)
        while len(chosen) < count and any(pools):
            for pool in pools:
                while pool and len(chosen) < count:
                    index = pool.pop()
                    if index not in chosen and self._may_be_negative(question, index):
                        chosen.append(index)
                        break
        return chosen

    def _may_be_negative(self, question: Question, index: int) -> bool:
        passage = self.passages[index].lower()
        return index != question.index and not any(answer in passage for answer in question.answers)


def _first(scores: Floats) -> list[int]:
    """Indices of the highest."""
    found: list[int] = np.argpartition(-scores, min(NEIGHBOURS, len(scores) - 1))[:NEIGHBOURS].tolist()
    return found


def _rounded(values: Floats) -> list[float]:
    return [round(float(value), 4) for value in values]
