"""Rejects requests that are invalid or too large."""

from collections.abc import Iterable

from app.engines.protocol import EngineInfo
from app.errors import InvalidRequest, TooLarge
from app.types import Limits, LongDocuments, Pair, Passage, RerankQuery, Score


def check_query(query: RerankQuery, limits: Limits) -> None:
    """Raise `InvalidRequest` or `TooLarge` if the request cannot be served within the limits."""
    query_name, documents_name = query.names
    queries = [query.query] if isinstance(query.query, str) else query.query
    if not query.documents:
        raise InvalidRequest(f"{documents_name}: at least one is required")
    if queries is query.query and len(queries) != len(query.documents):
        raise InvalidRequest(
            f"{query_name}: got {len(queries)} texts for {len(query.documents)} {documents_name}; "
            "send one, or one for each"
        )
    if len(query.documents) > limits.max_documents:
        raise TooLarge(
            f"{documents_name}: at most {limits.max_documents} are accepted (RERANKER_MAX_DOCUMENTS), "
            f"got {len(query.documents)}"
        )
    for index, text in enumerate(queries):
        name = query_name if isinstance(query.query, str) else f"{query_name}[{index}]"
        if not text:
            raise InvalidRequest(f"{name}: must not be empty")
        if len(text) > limits.max_text_chars:
            raise _too_long(name, text, limits)
    if query.instruction and len(query.instruction) > limits.max_text_chars:
        raise _too_long("instruction", query.instruction, limits)
    for index, document in enumerate(query.documents):
        if len(document) > limits.max_text_chars:
            raise _too_long(f"{documents_name}[{index}]", document, limits)


def check_instruction(instruction: str | None, info: EngineInfo) -> None:
    """Raise `InvalidRequest` if the model takes no instruction."""
    if instruction is not None and info.instruction is None:
        raise InvalidRequest(f"instruction: the model {info.model} takes none; leave it out, or put it into the query")


def _too_long(name: str, text: str, limits: Limits) -> TooLarge:
    return TooLarge(
        f"{name}: at most {limits.max_text_chars} characters are accepted (RERANKER_MAX_TEXT_CHARS), got {len(text)}"
    )


def check_untruncated(
    query: RerankQuery, long_documents: LongDocuments, found: Iterable[tuple[Passage, Pair | Score]]
) -> None:
    """Raise `InvalidRequest` for the first truncated document, if long documents are to be refused."""
    if long_documents != "refuse":
        return
    for passage, pair in found:
        if pair.truncated:
            name = f"{query.names[1]}[{passage.document}]"
            reason = (
                "or max_tokens_per_doc, and the request does not allow truncation"
                if query.long_documents
                else "and the service does not truncate unless a request asks for it (RERANKER_LONG_DOCUMENTS=refuse)"
            )
            raise InvalidRequest(f"{name}: the query and this document exceed the model's window {reason}")
