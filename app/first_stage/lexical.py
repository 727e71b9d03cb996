"""BM25: score documents by the words that they share with the query. Takes milliseconds and no model."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.first_stage.words import Lexicon, Words, terms

# BM25's usual parameters: how quickly repetitions of a word saturate, and how much long documents are penalised.
K1, B = 1.2, 0.75

Indices = NDArray[np.int64]


def lexical_scores(queries: Sequence[str], documents: Sequence[str]) -> list[float]:
    """BM25 of each document with its own query, from 0 (no shared term) to less than 1; shape (documents,)."""
    scores = bm25(queries, Lexicon().read(documents))
    result: list[float] = (scores / (1 + scores.max())).tolist()
    return result


def bm25(queries: Sequence[str], documents: Words) -> NDArray[np.float64]:
    """BM25 of each document with its own query, at least 0; shape (documents,).

    Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009. Document lengths are in characters.
    """
    found = _count_terms(queries, documents)
    document_frequency = np.bincount(found.terms, minlength=found.vocabulary)
    weights = np.log1p((len(queries) - document_frequency + 0.5) / (document_frequency + 0.5))
    lengths = documents.lengths
    saturation = K1 * (1 - B + B * lengths / (lengths.mean() or 1))
    parts = weights[found.terms] * found.counts * (K1 + 1) / (found.counts + saturation[found.documents])
    return np.bincount(found.documents, parts, minlength=len(queries)).astype(np.float64)


class TermCounts(NamedTuple):
    """How often documents contain the terms of their own queries. One entry per document and term that it contains."""

    documents: Indices
    terms: Indices
    counts: Indices
    vocabulary: int
    """The number of different terms in all queries."""


def _count_terms(queries: Sequence[str], documents: Words) -> TermCounts:
    numbers = {query: number for number, query in enumerate(dict.fromkeys(queries))}
    wanted = [set(terms(query)) for query in numbers]
    columns = {term: column for column, term in enumerate(sorted(set().union(*wanted)))}
    owners, shared = _occurrences(documents, columns)
    # Keep a term only if the document's own query asks for it. A pair of query and term is compared as one number.
    own = [number * len(columns) + columns[term] for number, each in enumerate(wanted) for term in each]
    asked = np.array([numbers[query] for query in queries])[owners] * len(columns) + shared
    kept = np.isin(asked, own)
    pairs, counts = np.unique(owners[kept] * len(columns) + shared[kept], return_counts=True)
    owners, shared = np.divmod(pairs, max(1, len(columns)))
    return TermCounts(owners, shared, counts, len(columns))


def _occurrences(documents: Words, wanted: Iterable[str]) -> tuple[Indices, Indices]:
    """Every occurrence of a wanted term: the indices of the documents, and of the terms."""
    lexicon = documents.lexicon
    met = np.zeros(len(lexicon.words), bool)
    met[documents.ids] = True
    found = [_met(lexicon.containing(term), met) for term in wanted]
    places = np.concatenate(found) if found else np.zeros(0, np.int32)
    order = np.argsort(places, kind="stable")
    terms_there = np.repeat(np.arange(len(found)), np.fromiter(map(len, found), np.int64, len(found)))[order]
    times = np.bincount(places, minlength=len(met))
    starts = np.cumsum(times) - times
    positions = np.flatnonzero(times[documents.ids])
    ids, repeats = documents.ids[positions], times[documents.ids[positions]]
    within = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    return (
        np.repeat(documents.owners()[positions], repeats),
        terms_there[np.repeat(starts[ids], repeats) + within],
    )


def _met(places: NDArray[np.int32], met: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Drop words of other documents: other requests share the lexicon and may add words at any time."""
    places = places[places < len(met)]
    return places[met[places]]
