"""The first stage for large requests: which documents the model is to read at all."""

from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.engines.models.source import check_folder
from app.errors import StartupError
from app.first_stage.embeddings import StaticEmbeddings
from app.first_stage.lexical import bm25
from app.first_stage.words import Lexicon, Words
from app.types import Choice, Method

# Reciprocal rank fusion's usual constant: how little the first few ranks of one list count alone.
FUSION = 60

Scores = NDArray[np.floating]


class Embeddings(Protocol):
    """Compares texts by meaning, fast. Called from any thread."""

    def similarities(self, query: str, documents: Words) -> Scores:
        """How near each document is to the query, of shape (documents,)."""
        ...


class Prefilter:
    """Owns the embeddings, which are loaded when they are first needed, and the words of documents seen lately."""

    def __init__(self, load: Callable[[], Embeddings]) -> None:
        self._load = load
        self._lexicon = Lexicon()

    @cached_property
    def embeddings(self) -> Embeddings:
        """Raises `StartupError` where they cannot be loaded."""
        return self._load()

    def warm_up(self) -> None:
        """Load the embeddings and use them once."""
        self.choose("hybrid", "warm up", ["warm", "up"], 1)

    def choose(self, method: Method, query: str, documents: Sequence[str], top_k: int) -> Choice:
        """The `top_k` documents that look best, ties by index: the same for the same texts, whatever came before."""
        words = self._lexicon.read(documents)
        if self._lexicon.full:
            self._lexicon = Lexicon()
        lists: list[Scores] = []
        if method in ("lexical", "hybrid"):
            lists.append(bm25([query] * len(documents), words))
        if method in ("embedding", "hybrid"):
            lists.append(self.embeddings.similarities(query, words))
        order = np.argsort(-fuse(lists), kind="stable")
        places = np.empty(len(order))
        places[order] = 1 - (np.arange(len(order)) + 1) / len(order)
        return Choice(places.tolist(), frozenset(order[:top_k].tolist()))


def load_embeddings(model: str | None) -> Embeddings:
    """Those that are shipped, or any model of sentence-transformers: a folder or a hub id. Raises `StartupError`."""
    if model is None:
        return StaticEmbeddings.load()
    check_folder("RERANKER_PREFILTER_MODEL", model)
    if find_spec("sentence_transformers") is None:
        raise StartupError(
            f"RERANKER_PREFILTER_MODEL={model!r}: sentence-transformers is not installed; "
            "RERANKER_INSTALL=full installs it"
        )
    from app.first_stage.sentence_embeddings import SentenceEmbeddings

    return SentenceEmbeddings(model)


def fuse(lists: Sequence[Scores]) -> Scores:
    """One score for each document out of several: that of the only list, or by reciprocal ranks.

    Cormack, Clarke and Büttcher, Reciprocal Rank Fusion, 2009.
    """
    if len(lists) == 1:
        return lists[0]
    total = np.zeros(len(lists[0]))
    for scores in lists:
        total += 1 / (FUSION + 1 + _ranks(scores))
    return total


def _ranks(scores: Scores) -> NDArray[np.intp]:
    """Of each document how many are better."""
    return np.searchsorted(np.sort(-scores), -scores)
