"""Scores of pairs: those known, and those being computed right now, so that nothing is scored twice."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter

from cachetools import TTLCache

from app.types import Pair, Score

Submit = Callable[[list[Pair]], list["asyncio.Future[float]"]]


@dataclass(eq=False, slots=True)
class Flight:
    """One pair being scored, and how many requests wait for it."""

    future: "asyncio.Future[float]"
    waiters: int = 0

    @property
    def lost(self) -> bool:
        """Cancelled or failed: nobody may join."""
        return self.future.done() and not self.landed

    @property
    def landed(self) -> bool:
        """There is a score."""
        return self.future.done() and not self.future.cancelled() and self.future.exception() is None


class ScoreCache:
    """TTL- and LRU-bounded scores, and the flights. Owns both; used on the event loop only."""

    def __init__(
        self,
        fingerprint: str,
        max_entries: int,
        ttl: float,
        enabled: bool = True,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        """`fingerprint` names all that a score depends on besides the texts: model, revision, window, precision."""
        self.enabled = enabled
        self.fingerprint = fingerprint
        self._scores: TTLCache[bytes, Score] = TTLCache(max_entries, ttl, timer)
        self._flights: dict[bytes, Flight] = {}

    def __len__(self) -> int:
        return len(self._scores)

    @property
    def in_flight(self) -> int:
        return len(self._flights)

    def keys(self, pairs: Iterable[tuple[str, str]], max_tokens_per_doc: int | None = None) -> list[bytes]:
        """128-bit keys of (query, document) over length-delimited parts: no two pairs share one, even on purpose."""
        keys: list[bytes] = []
        for query, group in groupby(pairs, itemgetter(0)):
            prefix = hashlib.blake2b(digest_size=16)
            for part in (self.fingerprint, str(max_tokens_per_doc), query):
                _absorb(prefix, part)
            keys += (_absorb(prefix.copy(), document).digest() for _, document in group)
        return keys

    def get(self, key: bytes) -> Score | None:
        """The score of a pair, if it is known and fresh."""
        return self._scores.get(key)

    def find(self, keys: Sequence[bytes]) -> dict[bytes, Score]:
        """Those of the scores that are known and fresh."""
        return {key: score for key in keys if (score := self.get(key)) is not None}

    def remember(self, scores: Mapping[bytes, Score]) -> None:
        """Keep scores that came from elsewhere."""
        if self.enabled:
            for key, score in scores.items():
                self._scores[key] = score

    def claim(self, keys: Sequence[bytes], pairs: Sequence[Pair], submit: Submit) -> tuple[list[Flight], int]:
        """A flight for each pair: the one in the air where there is one, else a new one; new ones leave as one group.

        A pair that landed since the caller looked is not sent again. Returns the flights and how many are new. Never
        awaits, so no pair can be claimed without being submitted. Every flight must be released.
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
        """Stop waiting. Returns those in the air that nobody waits for any more; whoever joins one waits again."""
        for flight in flights:
            flight.waiters -= 1
        return [flight.future for flight in flights if not flight.waiters and not flight.future.done()]

    def sweep(self) -> None:
        """Drop the scores whose time is over; without it they would go only as new ones come."""
        self._scores.expire()

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
