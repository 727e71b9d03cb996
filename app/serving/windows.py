"""Windows of long documents: how many of them are scored, and their passages."""

from collections.abc import Mapping, Sequence

from app.errors import TooLarge
from app.types import MAX_DOCUMENTS, Passage, RerankQuery, Span


def put_windows(query: RerankQuery, passages: Sequence[Passage], spans: Mapping[int, Sequence[Span]]) -> list[Passage]:
    """Replace the documents that have spans by their windows. Raises `TooLarge` if the request asks for too many."""
    others = len(passages) - len(spans)
    most = _most_windows(query, [len(own) for own in spans.values()], MAX_DOCUMENTS - others)
    return [part for passage in passages for part in _parts(passage, spans.get(passage.document, ()), most)]


def _parts(passage: Passage, spans: Sequence[Span], most: int) -> list[Passage]:
    cut = passage.cut or len(spans) > most
    return [passage._replace(text=passage.text[slice(*span)], span=span, cut=cut) for span in spans[:most]] or [passage]


def _most_windows(query: RerankQuery, counts: Sequence[int], limit: int) -> int:
    """How many windows of each document to score, so that the total stays within the limit.

    Raises `TooLarge` if the request itself asks for windows and they exceed the limit. If windows are only the default,
    long documents share the limit equally.
    """
    wanted = [min(count, query.max_windows or count) for count in counts]
    if sum(wanted) <= limit:
        return max(wanted, default=0)
    if query.long_documents:
        total = sum(wanted) + MAX_DOCUMENTS - limit
        raise TooLarge(f"at most {MAX_DOCUMENTS} windows are accepted, got {total}", "documents")
    return _equal_share(wanted, limit)


def _equal_share(wanted: Sequence[int], limit: int) -> int:
    """The largest share of a document. What small documents leave over goes to the others."""
    for index, count in enumerate(sorted(wanted)):
        share = limit // (len(wanted) - index)
        if count > share:
            return share
        limit -= count
    return max(wanted)
