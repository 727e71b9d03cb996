"""A fast order of documents by the words they share with the query: no model, milliseconds."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from app.first_stage.words import Lexicon, Words, terms

# BM25's usual parameters: how soon a repeated word stops counting, and how much long documents are held back.
K1, B = 1.2, 0.75

Indices = NDArray[np.int64]


def lexical_scores(queries: Sequence[str], documents: Sequence[str]) -> list[float]:
    """BM25 of each document with its own query, from 0 (no term shared) to less than 1, of shape (documents,)."""
    scores = bm25(queries, Lexicon().read(documents))
    result: list[float] = (scores / (1 + scores.max())).tolist()
    return result


def bm25(queries: Sequence[str], documents: Words) -> NDArray[np.float64]:
    """BM25 of each document with its own query, at least 0, of shape (documents,).

    Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009. Lengths are counted in characters.
    """
    numbers = {query: number for number, query in enumerate(dict.fromkeys(queries))}
    wanted = [set(terms(query)) for query in numbers]
    columns = {term: column for column, term in enumerate(sorted(set().union(*wanted)))}
    owners, shared = _occurrences(documents, columns)
    own = [number * len(columns) + columns[term] for number, each in enumerate(wanted) for term in each]
    asked = np.array([numbers[query] for query in queries])[owners] * len(columns) + shared
    kept = np.isin(asked, own)
    pairs, seen = np.unique(owners[kept] * len(columns) + shared[kept], return_counts=True)
    owners, shared = np.divmod(pairs, max(1, len(columns)))
    frequency = np.bincount(shared, minlength=len(columns))
    weights = np.log1p((len(queries) - frequency + 0.5) / (frequency + 0.5))
    lengths = documents.lengths
    saturation = K1 * (1 - B + B * lengths / (lengths.mean() or 1))
    parts = weights[shared] * seen * (K1 + 1) / (seen + saturation[owners])
    return np.bincount(owners, parts, minlength=len(queries)).astype(np.float64)


def _occurrences(documents: Words, wanted: Iterable[str]) -> tuple[Indices, Indices]:
    """Each time that a document has one of the terms: the document, and which of them."""
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
    """Those places that are of words of these documents: the lexicon has those of others too, and gets more of them."""
    places = places[places < len(met)]
    return places[met[places]]
