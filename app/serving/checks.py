"""Rejects requests that are invalid or too large."""

from collections.abc import Iterable
from dataclasses import replace

from app.engines.protocol import EngineInfo
from app.errors import InvalidRequest, TooLarge
from app.types import Limits, LongDocuments, Pair, Passage, RerankQuery, Score


def check_query(query: RerankQuery, limits: Limits) -> None:
    """Raise `InvalidRequest` or `TooLarge` if the request cannot be served within the limits."""
    count = len(query.documents)
    if not count:
        raise InvalidRequest("at least one is required", "documents")
    if count > limits.max_documents:
        raise TooLarge(
            f"at most {limits.max_documents} are accepted (RERANKER_MAX_DOCUMENTS), got {count}", "documents"
        )
    if isinstance(query.query, str):
        _check_query_text(query.query, "query", limits)
    else:
        for index, text in enumerate(query.query):
            _check_query_text(text, f"query[{index}]", limits)
    if query.instruction:
        _check_length(query.instruction, "instruction", limits)
    for index, document in enumerate(query.documents):
        _check_length(document, f"documents[{index}]", limits)


def cut_long_documents(query: RerankQuery, limits: Limits) -> RerankQuery:
    """The query with at most `max_text_chars` characters of each document."""
    most = limits.max_text_chars
    cut = frozenset(index for index, document in enumerate(query.documents) if len(document) > most)
    return replace(query, documents=[document[:most] for document in query.documents], cut=cut) if cut else query


def _check_query_text(text: str, field: str, limits: Limits) -> None:
    if not text:
        raise InvalidRequest("must not be empty", field)
    _check_length(text, field, limits)


def _check_length(text: str, field: str, limits: Limits) -> None:
    most = limits.max_text_chars
    if len(text) > most:
        raise TooLarge(f"at most {most} characters are accepted (RERANKER_MAX_TEXT_CHARS), got {len(text)}", field)


def check_instruction(instruction: str | None, info: EngineInfo) -> None:
    """Raise `InvalidRequest` if the model takes no instruction."""
    if instruction is not None and info.instruction is None:
        problem = f"the model {info.model} takes none; leave it out, or put it into the query"
        raise InvalidRequest(problem, "instruction")


def check_untruncated(
    query: RerankQuery, long_documents: LongDocuments, found: Iterable[tuple[Passage, Pair | Score]]
) -> None:
    """Raise `InvalidRequest` for the first truncated document, if long documents are to be refused."""
    if long_documents != "refuse":
        return
    for passage, pair in found:
        if pair.truncated:
            reason = (
                "or max_tokens_per_doc, and the request does not allow truncation"
                if query.long_documents
                else "and the service does not truncate unless a request asks for it (RERANKER_LONG_DOCUMENTS=refuse)"
            )
            raise InvalidRequest(
                f"the query and this document exceed the model's window {reason}", f"documents[{passage.document}]"
            )
