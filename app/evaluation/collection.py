"""Test collections: queries, the documents that a search found for each of them, and relevance judgments.

A collection is a JSONL file, described here, or a folder in the BEIR layout (`app.evaluation.beir`).
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationInfo

from app.evaluation.beir import read_folder
from app.evaluation.lines import UnusableCollection, read_json_lines
from app.evaluation.topic import Grade, Id, Topic


def read_collection(
    path: Path, run: Path | None = None, depth: int | None = None, queries: int | None = None
) -> list[Topic]:
    """Read the first `queries` topics, each with its first `depth` documents. Raises `UnusableCollection`.

    `path` is a JSONL file or a BEIR folder. The documents of a folder come from `run`, a TREC run file, or else from
    BM25. The default depth is all documents, and 100 for BM25.
    """
    if path.is_dir():
        topics = read_folder(path, run, depth)
    elif run:
        raise UnusableCollection(f"{run}: a run needs a BEIR folder, but {path} is a file that contains its documents")
    else:
        topics = _read_file(path, depth)
    found = list(islice(topics, queries))
    if not found:
        raise UnusableCollection(f"{path}: contains no queries")
    return found


def judged(topics: Sequence[Topic], file: Path) -> list[Topic]:
    """The topics that can be measured: those with a relevant document. Raises `UnusableCollection`."""
    kept = [topic for topic in topics if any(grade > 0 for grade in topic.qrels.values())]
    if not kept:
        raise UnusableCollection(f"{file}: qrels: no query has a relevant document (grade 1 or higher)")
    if not any(topic.qrels.keys() & topic.documents.keys() for topic in kept):
        raise UnusableCollection(f"{file}: qrels: none of the judged document ids appear among the candidates")
    return kept


class Document(BaseModel):
    id: Id
    text: str


def _fill_in_ids(documents: Any) -> Any:
    """Give a bare text, or an object without an id, its index as id."""
    if not isinstance(documents, list):
        return documents
    return [
        {"id": index} | (document if isinstance(document, dict) else {"text": document})
        for index, document in enumerate(documents)
    ]


def _reject_duplicates(documents: list[Document]) -> list[Document]:
    seen: set[str] = set()
    for document in documents:
        if document.id in seen:
            raise ValueError(f"the id {document.id!r} is used twice")
        seen.add(document.id)
    return documents


def _grades_by_id(grades: Any, info: ValidationInfo) -> Any:
    """Turn a list of grades, one per document, into grades by document id. A document with `null` is not judged."""
    documents = info.data.get("documents")
    if not isinstance(grades, list) or documents is None:
        return grades
    if len(grades) != len(documents):
        raise ValueError(f"{len(grades)} grades for {len(documents)} documents; give one grade per document")
    return {document.id: grade for document, grade in zip(documents, grades, strict=True) if grade is not None}


class Row(BaseModel):
    """A line of a JSONL collection."""

    qid: Id | None = None
    query: str = Field(min_length=1)
    documents: Annotated[
        list[Document], Field(min_length=1), BeforeValidator(_fill_in_ids), AfterValidator(_reject_duplicates)
    ]
    qrels: Annotated[dict[str, Grade] | None, BeforeValidator(_grades_by_id)] = None


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield (line number, row) of a JSONL collection. Raises `UnusableCollection`."""
    return read_json_lines(path, Row)


def _read_file(path: Path, depth: int | None) -> Iterator[Topic]:
    seen: set[str] = set()
    for number, row in read_rows(path):
        if row.qrels is None:
            raise UnusableCollection(f"{path}: line {number}: qrels: Field required")
        qid = row.qid or str(number)
        if qid in seen:
            raise UnusableCollection(f"{path}: line {number}: qid: {qid!r} is used twice")
        seen.add(qid)
        yield Topic(qid, row.query, {document.id: document.text for document in row.documents[:depth]}, row.qrels)
