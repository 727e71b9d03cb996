"""What a store of documents is, and which one the setting names."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from app.config_types import IN_MEMORY, REDIS_SCHEMES, expanded
from app.errors import TooLarge

# What a document takes in addition to its text and its id: the row or the keys, and their indexes. An estimate.
OVERHEAD_BYTES = 200


class Entry(NamedTuple):
    """A document to store."""

    id: str
    body: bytes
    """The document as JSON."""

    @property
    def bytes(self) -> int:
        """What it counts."""
        return len(self.body) + len(self.id.encode()) + OVERHEAD_BYTES


class Written(NamedTuple):
    """What a write did."""

    stored: int = 0
    """Documents with a new id."""
    replaced: int = 0
    """Documents with a known id."""
    evicted: int = 0
    """The least recently used documents, removed to make room."""


class DocumentStore(Protocol):
    """A bounded store. All methods raise `Unavailable` if it does not answer. Used on the event loop."""

    max_bytes: int
    """Limit of `used_bytes`."""
    used_bytes: int
    """Bytes of all documents, as of the last write."""

    async def open(self) -> None:
        """Called once, before all others. Raises `StartupError` if the store cannot be used."""

    async def put(self, space: bytes, entries: Sequence[Entry], ttl: float | None) -> Written:
        """Store the documents, each of at most `max_bytes`. They are kept when it returns.

        `ttl`: seconds until they expire; None for never.
        """

    async def get(self, space: bytes, ids: Sequence[str], most: int) -> dict[str, bytes]:
        """The documents with these ids. Raises `TooLarge` if they have more than `most` bytes."""

    async def delete(self, space: bytes, ids: Sequence[str]) -> int:
        """Remove these documents. Returns how many there were."""

    async def clear(self, space: bytes) -> int:
        """Remove all documents of the space. Returns how many there were."""

    async def close(self) -> None:
        """Called once, after all others."""


def space_of(owner: str, collection: str) -> bytes:
    """The name of a collection of one owner. It does not reveal the owner."""
    return hashlib.blake2b(f"{owner}\0{collection}".encode(), digest_size=16).digest()


def check_size(size: int, most: int) -> None:
    """Raises `TooLarge` if the documents of one request have more than `most` bytes."""
    if size > most:
        raise TooLarge(
            f"at most {most} bytes of stored documents are read for one request (RERANKER_MAX_BODY_BYTES)",
            "document_ids",
        )


def open_store(place: str, max_bytes: int) -> DocumentStore:
    """The store that RERANKER_DOCUMENTS names; its `open` follows. `max_bytes`: of all documents."""
    if place.startswith(REDIS_SCHEMES):
        from app.documents.redis import RedisStore

        return RedisStore(place, max_bytes)
    from app.documents.sqlite import SqliteStore

    file = None if place == IN_MEMORY else expanded("RERANKER_DOCUMENTS", Path(place))
    return SqliteStore(file, max_bytes)
