"""Test collections in the BEIR layout: corpus.jsonl, queries.jsonl and qrels/test.tsv, plain or as .gz files."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from pydantic import BaseModel, Field

from app.evaluation.lines import UnusableCollection, read_columns, read_json_lines
from app.evaluation.topic import MAX_GRADE, Id, Topic
from app.first_stage.lexical import bm25
from app.first_stage.words import MAX_CHARS, Lexicon

# Documents per query that BM25 finds by default.
BM25_DEPTH = 100
QRELS_COLUMNS = ("query-id", "corpus-id", "score")
RUN_COLUMNS = ("qid", "Q0", "docid", "rank", "score", "tag")

Search = Callable[[str, str], list[str]]
"""Takes the id and the text of a query. Returns the ids of its documents, best first."""


class Entry(BaseModel):
    """A line of `corpus.jsonl` or `queries.jsonl`."""

    id: Id = Field(alias="_id")
    title: str | None = None
    text: str

    def title_and_text(self) -> str:
        return f"{self.title} {self.text}".strip() if self.title else self.text


def read_folder(folder: Path, run: Path | None, depth: int | None) -> Iterator[Topic]:
    """Yield the judged queries. The documents come from `run`, a TREC run file, or else from BM25.

    Raises `UnusableCollection`.
    """
    queries_file, qrels_file = _plain_or_gz(folder / "queries.jsonl"), _plain_or_gz(folder / "qrels" / "test.tsv")
    qrels = _read_qrels(qrels_file)
    queries = {entry.id: entry.text for _, entry in read_json_lines(queries_file, Entry)}
    corpus_file = _plain_or_gz(folder / "corpus.jsonl")
    corpus = {entry.id: entry.title_and_text() for _, entry in read_json_lines(corpus_file, Entry)}
    search = _run_search(run, corpus, depth) if run else _bm25_search(corpus, depth or BM25_DEPTH)
    for qid, grades in qrels.items():
        query = queries.get(qid)
        if not query:
            raise UnusableCollection(f"{qrels_file}: query-id: {qid!r} is not in {queries_file.name}")
        yield Topic(qid, query, {document: corpus[document] for document in search(qid, query)}, grades)


def _bm25_search(corpus: Mapping[str, str], depth: int) -> Search:
    ids = list(corpus)
    # The limit on characters of all texts together is for requests; here each document may have its full length.
    words = Lexicon().read(list(corpus.values()), together=len(corpus) * MAX_CHARS)

    def search(_: str, query: str) -> list[str]:
        if not ids:
            return []
        scores = bm25([query] * len(ids), words)
        return [ids[index] for index in np.argsort(-scores, kind="stable")[:depth]]

    return search


def _run_search(run: Path, corpus: Mapping[str, str], depth: int | None) -> Search:
    rankings = _read_run(run, corpus)
    return lambda qid, _: rankings.get(qid, [])[:depth]


def _read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Grades by query and document."""
    grades: dict[str, dict[str, int]] = defaultdict(dict)
    for number, (qid, document, score) in read_columns(path, QRELS_COLUMNS):
        is_header = number == 1 and score == QRELS_COLUMNS[-1]
        if not is_header:
            grades[qid][document] = _grade(score, f"{path}: line {number}: score")
    return grades


def _grade(score: str, where: str) -> int:
    try:
        grade = int(score)
    except ValueError:
        raise UnusableCollection(f"{where}: {score!r} is not a whole number") from None
    if grade > MAX_GRADE:
        raise UnusableCollection(f"{where}: {grade} is more than {MAX_GRADE}")
    return grade


def _read_run(path: Path, corpus: Mapping[str, str]) -> dict[str, list[str]]:
    """Document ids by query. TREC tools order a run by its scores, not by its ranks, and so do we."""
    scored: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for number, (qid, _, document, _, score, _) in read_columns(path, RUN_COLUMNS):
        where = f"{path}: line {number}"
        if document not in corpus:
            raise UnusableCollection(f"{where}: docid: {document!r} is not in the corpus")
        try:
            scored[qid].append((float(score), document))
        except ValueError:
            raise UnusableCollection(f"{where}: score: {score!r} is not a number") from None
    return {qid: _best_first(documents) for qid, documents in scored.items()}


def _best_first(scored: list[tuple[float, str]]) -> list[str]:
    return [document for _, document in sorted(scored, key=lambda pair: -pair[0])]


def _plain_or_gz(path: Path) -> Path:
    """The compressed file if only that one exists."""
    compressed = path.with_name(f"{path.name}.gz")
    return compressed if compressed.exists() and not path.exists() else path
