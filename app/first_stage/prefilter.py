"""Choose the documents of a large request that the model scores."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import cached_property, partial
from importlib.util import find_spec
from typing import Protocol

import numpy as np

from app.engines.models.source import check_folder
from app.errors import StartupError
from app.first_stage.embeddings import StaticEmbeddings
from app.first_stage.fusion import Scores, fuse_ranks
from app.first_stage.lexical import bm25
from app.first_stage.words import Lexicon, Words
from app.types import Choice, Method


class Embeddings(Protocol):
    """Compares texts by meaning. Must be thread-safe."""

    def similarities(self, query: str, documents: Words) -> Scores:
        """Similarity of the query with each document, higher is nearer; shape (documents,)."""
        ...


class Prefilter:
    """Owns the embeddings, which are loaded on first use, and the words of recent documents."""

    def __init__(self, load: Callable[[], Embeddings]) -> None:
        self._load = load
        self._lexicon = Lexicon()

    @cached_property
    def embeddings(self) -> Embeddings:
        """Raises `StartupError` if they cannot be loaded."""
        return self._load()

    def warm_up(self) -> None:
        """Load the embeddings and use them once."""
        self.choose("hybrid", "warm up", ["warm", "up"], 1)

    def choose(self, method: Method, query: str, documents: Sequence[str], top_k: int) -> Choice:
        """The best `top_k` documents, ties by index. Earlier requests do not change the choice."""
        words = self._lexicon.read(documents)
        if self._lexicon.full:
            self._lexicon = Lexicon()
        lists: list[Scores] = []
        if method in ("lexical", "hybrid"):
            lists.append(bm25([query] * len(documents), words))
        if method in ("embedding", "hybrid"):
            lists.append(self.embeddings.similarities(query, words))
        order = np.argsort(-fuse_ranks(lists), kind="stable")
        places = np.empty(len(order))
        places[order] = 1 - (np.arange(len(order)) + 1) / len(order)
        return Choice(places.tolist(), frozenset(order[:top_k].tolist()))


async def load_prefilter(model: str | None, method: Method, threads: Executor) -> Prefilter:
    """The first stage. If its embeddings are not configured, the first request that uses them loads them."""
    prefilter = Prefilter(partial(load_embeddings, model))
    if model or method in ("embedding", "hybrid"):
        await asyncio.get_running_loop().run_in_executor(threads, prefilter.warm_up)
    return prefilter


def load_embeddings(model: str | None) -> Embeddings:
    """The embedded ones by default, or a sentence-transformers model: a folder or a hub id. Raises `StartupError`."""
    if model is None:
        return StaticEmbeddings.load()
    check_folder("RERANKER_PREFILTER_MODEL", model)
    if find_spec("sentence_transformers") is None:
        raise StartupError(
            f"RERANKER_PREFILTER_MODEL={model!r}: sentence-transformers is not installed. "
            "Install it with RERANKER_INSTALL=full"
        )
    from app.first_stage.sentence_embeddings import SentenceEmbeddings

    return SentenceEmbeddings(model)
