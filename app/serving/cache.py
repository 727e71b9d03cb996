"""Known scores, the windows of long documents, and the pairs being scored right now. No pair is scored twice."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter

from cachetools import TTLCache

from app.types import Pair, Score, Span

Submit = Callable[[list[Pair]], list["asyncio.Future[float]"]]


@dataclass(eq=False, slots=True)
class Flight:
    """One pair being scored, and the number of requests waiting for it."""

    future: "asyncio.Future[float]"
    waiters: int = 0

    @property
    def lost(self) -> bool:
        """Cancelled or failed: no request may join."""
        return self.future.done() and not self.landed

    @property
    def landed(self) -> bool:
        """Whether the score has arrived."""
        return self.future.done() and not self.future.cancelled() and self.future.exception() is None


class ScoreCache:
    """Owns the scores and windows, bounded by age and by least recent use, and the flights.

    Used on the event loop only.
    """

    def __init__(
        self,
        fingerprint: str,
        max_entries: int,
        ttl: float,
        enabled: bool = True,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        """`fingerprint` identifies what affects a score besides the texts: model, revision, window, precision."""
        self.enabled = enabled
        self.fingerprint = fingerprint
        self._scores: TTLCache[bytes, Score] = TTLCache(max_entries, ttl, timer)
        self._windows: TTLCache[bytes, Sequence[Span]] = TTLCache(max_entries, ttl, timer, len)
        self._flights: dict[bytes, Flight] = {}

    def for_model(self, fingerprint: str) -> "ScoreCache":
        """The cache of another model. The limit on entries is for both together."""
        other = ScoreCache(fingerprint, 0, 1, self.enabled)
        other._scores, other._windows = self._scores, self._windows
        return other

    def __len__(self) -> int:
        return len(self._scores)

    @property
    def in_flight(self) -> int:
        return len(self._flights)

    def keys(
        self, pairs: Iterable[tuple[str, str]], max_tokens_per_doc: int | None = None, instruction: str | None = None
    ) -> list[bytes]:
        """128-bit keys of (query, document) pairs. The parts are length-delimited, so different pairs cannot collide by
        shifting text between them."""
        keys: list[bytes] = []
        for query, group in groupby(pairs, itemgetter(0)):
            prefix = hashlib.blake2b(digest_size=16)
            for part in (self.fingerprint, str(max_tokens_per_doc), instruction or "", query):
                _absorb(prefix, part)
            keys += (_absorb(prefix.copy(), document).digest() for _, document in group)
        return keys

    def get(self, key: bytes) -> Score | None:
        """The score of a pair, if known and not expired."""
        return self._scores.get(key)

    def find(self, keys: Sequence[bytes]) -> dict[bytes, Score]:
        """The scores that are known and not expired, by key."""
        return {key: score for key in keys if (score := self.get(key)) is not None}

    def remember(self, scores: Mapping[bytes, Score]) -> None:
        """Keep scores that another replica computed."""
        if self.enabled:
            for key, score in scores.items():
                self._scores[key] = score

    def windows(self, key: bytes) -> Sequence[Span]:
        """The windows of a document, if it is long and they are remembered. `key`: that of the whole document."""
        return self._windows.get(key, ())

    def remember_windows(self, windows: Mapping[bytes, Sequence[Span]]) -> None:
        """Keep the windows of long documents, so that a request for known scores does not tokenize them again."""
        if self.enabled:
            self._windows.update((key, spans) for key, spans in windows.items() if len(spans) <= self._windows.maxsize)

    def claim(self, keys: Sequence[bytes], pairs: Sequence[Pair], submit: Submit) -> tuple[list[Flight], int]:
        """Join the flight of each pair, or start one. New flights are submitted as one group.

        A pair that was scored since the caller's lookup is not submitted again. Returns a flight for each pair, and the
        number of new ones. Never awaits, so a claimed pair is always submitted. The caller must release every flight.
        """
        landed = {key: score for key in keys if not self.joinable(key) and (score := self.get(key)) is not None}
        new = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in landed and not self.joinable(key)}
        for (key, pair), future in zip(new.items(), submit(list(new.values())), strict=True):
            flight = self._flights[key] = Flight(future)
            future.add_done_callback(partial(self._land, key, pair, flight))
        flights = [_landed(landed[key]) if key in landed else self._flights[key] for key in keys]
        for flight in flights:
            flight.waiters += 1
        return flights, len(new)

    def release(self, flights: Sequence[Flight]) -> list["asyncio.Future[float]"]:
        """Stop waiting. Returns the unfinished futures that no request waits for any more."""
        for flight in flights:
            flight.waiters -= 1
        return [flight.future for flight in flights if not flight.waiters and not flight.future.done()]

    def sweep(self) -> None:
        """Drop what has expired. Without this, it would be dropped only when new scores arrive."""
        self._scores.expire()
        self._windows.expire()

    def joinable(self, key: bytes) -> bool:
        """Whether the pair is being scored right now."""
        flight = self._flights.get(key)
        return flight is not None and not flight.lost

    def _land(self, key: bytes, pair: Pair, flight: Flight, future: "asyncio.Future[float]") -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if self.enabled and not flight.lost:
            self._scores[key] = Score(future.result(), pair.length, pair.truncated)


def _landed(score: Score) -> Flight:
    future = asyncio.get_running_loop().create_future()
    future.set_result(score.logit)
    return Flight(future)


def _absorb(digest: "hashlib.blake2b", part: str) -> "hashlib.blake2b":
    encoded = part.encode()
    digest.update(len(encoded).to_bytes(8, "little"))
    digest.update(encoded)
    return digest
