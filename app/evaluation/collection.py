"""Test collections: queries, the documents that a first stage found for each, and judgments.

Two layouts are read: JSONL, and the folder of BEIR. Either may be compressed with gzip.
"""

import gzip
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, ValidationInfo

from app.first_stage.lexical import bm25
from app.first_stage.words import MAX_CHARS, Lexicon

# How many documents BM25 finds, where nobody says.
BM25_DEPTH = 100
# The gain is 2^grade - 1, and the library counts documents for each gain up to the highest.
MAX_GRADE = 15
Grade = Annotated[int, Field(le=MAX_GRADE)]
Id = Annotated[str, Field(coerce_numbers_to_str=True)]
QRELS_COLUMNS, RUN_COLUMNS = 3, 6


class UnusableCollection(ValueError):
    """Not a collection: one line that names the file, the line in it, the field and what is wrong."""


@dataclass(frozen=True, slots=True)
class Topic:
    """One query with its documents and judgments."""

    qid: str
    query: str
    documents: Mapping[str, str]
    """Texts by id, in the order of the first stage."""
    qrels: Mapping[str, int]
    """Grades by id of the document; from 1 on it is relevant. A document that is not here is not."""


def read_collection(
    path: Path, run: Path | None = None, depth: int | None = None, queries: int | None = None
) -> list[Topic]:
    """The first `queries` topics, each with its first `depth` documents. Raises `UnusableCollection`.

    `path` is a JSONL file or a BEIR folder. Of a folder the documents are those of `run`, a TREC run file, or else what
    BM25 finds. Without `depth` they are all that are given, and 100 of BM25.
    """
    if path.is_dir():
        topics = _of_folder(path, run, depth)
    elif run:
        raise UnusableCollection(f"{run}: a run needs a BEIR folder; {path} is a file and has its own documents")
    else:
        topics = _of_file(path, depth)
    found = list(islice(topics, queries))
    if not found:
        raise UnusableCollection(f"{path}: has no queries")
    return found


class Document(BaseModel):
    id: Id
    text: str


def _with_ids(documents: Any) -> Any:
    """A text alone, or an object without an id, has its index for one."""
    if not isinstance(documents, list):
        return documents
    return [
        {"id": index} | (document if isinstance(document, dict) else {"text": document})
        for index, document in enumerate(documents)
    ]


def _distinct(documents: list[Document]) -> list[Document]:
    seen: set[str] = set()
    for document in documents:
        if document.id in seen:
            raise ValueError(f"the id {document.id!r} is there twice")
        seen.add(document.id)
    return documents


def _by_id(grades: Any, info: ValidationInfo) -> Any:
    """A list has one grade for each document, in their order."""
    documents = info.data.get("documents")
    if not isinstance(grades, list) or documents is None:
        return grades
    if len(grades) != len(documents):
        raise ValueError(f"{len(grades)} grades for {len(documents)} documents: as many are needed")
    return {document.id: grade for document, grade in zip(documents, grades, strict=True)}


class Row(BaseModel):
    """A line of JSONL."""

    qid: Id | None = None
    query: str = Field(min_length=1)
    documents: Annotated[list[Document], Field(min_length=1), BeforeValidator(_with_ids), AfterValidator(_distinct)]
    qrels: Annotated[dict[str, Grade] | None, BeforeValidator(_by_id)] = None


class Entry(BaseModel):
    """A line of `corpus.jsonl` or `queries.jsonl`."""

    id: Id = Field(alias="_id")
    title: str | None = None
    text: str

    def passage(self) -> str:
        """What is ranked."""
        return f"{self.title} {self.text}".strip() if self.title else self.text


Parsed = TypeVar("Parsed", bound=BaseModel)
Find = Callable[[str, str], list[str]]
"""The ids of a query's documents, best first, by the query's id and text."""


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """The rows of a JSONL file with their line numbers. Raises `UnusableCollection`."""
    return _parsed(path, Row)


def _of_file(path: Path, depth: int | None) -> Iterator[Topic]:
    seen: set[str] = set()
    for number, row in read_rows(path):
        if row.qrels is None:
            raise UnusableCollection(f"{path}: line {number}: qrels: Field required")
        qid = row.qid or str(number)
        if qid in seen:
            raise UnusableCollection(f"{path}: line {number}: qid: {qid!r} is there twice")
        seen.add(qid)
        yield Topic(qid, row.query, {document.id: document.text for document in row.documents[:depth]}, row.qrels)


def _of_folder(folder: Path, run: Path | None, depth: int | None) -> Iterator[Topic]:
    queries_file, corpus_file, qrels_file = (
        _either(folder / "queries.jsonl"),
        _either(folder / "corpus.jsonl"),
        _either(folder / "qrels" / "test.tsv"),
    )
    qrels = _qrels(qrels_file)
    queries = {entry.id: entry.text for _, entry in _parsed(queries_file, Entry)}
    corpus = {entry.id: entry.passage() for _, entry in _parsed(corpus_file, Entry)}
    find = _ranked(run, corpus, depth) if run else _bm25(corpus, depth or BM25_DEPTH)
    for qid, grades in qrels.items():
        if not queries.get(qid):
            raise UnusableCollection(f"{qrels_file}: query-id: {qid!r} is not in {queries_file.name}")
        yield Topic(qid, queries[qid], {each: corpus[each] for each in find(qid, queries[qid])}, grades)


def _bm25(corpus: Mapping[str, str], depth: int) -> Find:
    """Finds the best documents for a query; the corpus is read once, whatever its size."""
    ids, words = list(corpus), Lexicon().read(list(corpus.values()), together=len(corpus) * MAX_CHARS)

    def find(_: str, query: str) -> list[str]:
        scores = bm25([query] * len(ids), words)
        return [ids[place] for place in np.argsort(-scores, kind="stable")[:depth]] if ids else []

    return find


def _ranked(run: Path, corpus: Mapping[str, str], depth: int | None) -> Find:
    """Finds what the run has for a query."""
    ranked = _run(run, corpus)
    return lambda qid, _: ranked.get(qid, [])[:depth]


def _qrels(path: Path) -> dict[str, dict[str, int]]:
    """Grades by query and document. The first line may name the columns."""
    grades: dict[str, dict[str, int]] = defaultdict(dict)
    for number, (qid, document, score) in _columns(path, QRELS_COLUMNS, "query-id, corpus-id and score"):
        if (number, score) != (1, "score"):
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


def _run(path: Path, corpus: Mapping[str, str]) -> dict[str, list[str]]:
    """Documents of each query by descending score, which is what a TREC run is ordered by."""
    found: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for number, (qid, _, document, _, score, _) in _columns(path, RUN_COLUMNS, "qid, Q0, docid, rank, score and tag"):
        where = f"{path}: line {number}"
        if document not in corpus:
            raise UnusableCollection(f"{where}: docid: {document!r} is not in the corpus")
        try:
            found[qid].append((float(score), document))
        except ValueError:
            raise UnusableCollection(f"{where}: score: {score!r} is not a number") from None
    return {
        qid: [document for _, document in sorted(scored, key=lambda each: -each[0])] for qid, scored in found.items()
    }


def _columns(path: Path, count: int, names: str) -> Iterator[tuple[int, Sequence[str]]]:
    for number, line in _lines(path):
        columns = line.split()
        if len(columns) != count:
            raise UnusableCollection(f"{path}: line {number}: has {len(columns)} columns, not {names}")
        yield number, columns


def _parsed(path: Path, kind: type[Parsed]) -> Iterator[tuple[int, Parsed]]:
    for number, line in _lines(path):
        try:
            yield number, kind.model_validate_json(line)
        except ValidationError as error:
            raise UnusableCollection(f"{path}: line {number}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    """The first thing that is wrong, with the path to its field."""
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"]))
    return f"{field}: {first['msg']}" if field else first["msg"]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Those that are not empty, with their numbers."""
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig") as file
        ):
            yield from _numbered(file)
    except UnicodeDecodeError as error:
        raise UnusableCollection(f"{path}: is not UTF-8: {error}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UnusableCollection(f"{path}: cannot be read: {error}") from None


def _numbered(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, line


def _either(path: Path) -> Path:
    """The file as it is or compressed."""
    compressed = path.with_name(f"{path.name}.gz")
    return compressed if compressed.exists() and not path.exists() else path
