"""Windows of long documents: how many of each are read, and the passages that they become."""

from collections.abc import Mapping, Sequence

from app.errors import TooLarge
from app.types import MAX_DOCUMENTS, Passage, RerankQuery, Span


def put_windows(query: RerankQuery, passages: Sequence[Passage], spans: Mapping[int, Sequence[Span]]) -> list[Passage]:
    """The passages, with windows in place of the documents that have spans. Raises `TooLarge`."""
    others = len(passages) - len(spans)
    most = _most_windows(query, [len(own) for own in spans.values()], MAX_DOCUMENTS - others)
    return [part for passage in passages for part in _parts(passage, spans.get(passage.document, ()), most)]


def _parts(passage: Passage, spans: Sequence[Span], most: int) -> list[Passage]:
    cut = len(spans) > most
    return [passage._replace(text=passage.text[slice(*span)], span=span, cut=cut) for span in spans[:most]] or [passage]


def _most_windows(query: RerankQuery, counts: Sequence[int], limit: int) -> int:
    """How many windows of a document are read, so that all together stay within the limit.

    Raises `TooLarge` where the request asks for more. Where windows are only the default, long documents share the
    limit equally.
    """
    wanted = [min(count, query.max_windows or count) for count in counts]
    if sum(wanted) <= limit:
        return max(wanted, default=0)
    if query.long_documents:
        total = sum(wanted) + MAX_DOCUMENTS - limit
        raise TooLarge(f"{query.names[1]}: at most {MAX_DOCUMENTS} windows are accepted, got {total}")
    return _equal_share(wanted, limit)


def _equal_share(wanted: Sequence[int], limit: int) -> int:
    """The most that one may have; what small ones leave goes to the others."""
    for index, count in enumerate(sorted(wanted)):
        share = limit // (len(wanted) - index)
        if count > share:
            return share
        limit -= count
    return max(wanted)
