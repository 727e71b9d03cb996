import asyncio
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.serving.cache import ScoreCache
from app.types import Pair, Score

PAIR = Pair(np.ones(7, np.int32), np.zeros(7, np.int32), truncated=True)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Engine:
    """Returns futures like the batcher, and records them by group."""

    def __init__(self) -> None:
        self.groups: list[list[asyncio.Future[float]]] = []

    def submit(self, pairs: list[Pair]) -> list["asyncio.Future[float]"]:
        self.groups.append([asyncio.get_running_loop().create_future() for _ in pairs])
        return self.groups[-1]


@given(st.lists(st.tuples(st.text(), st.text(), st.none() | st.integers(1, 99)), unique=True, max_size=8))
def test_different_pairs_have_different_keys(parts: list[tuple[str, str, int | None]]) -> None:
    cache = ScoreCache("model", 10, 60)
    keys = [cache.keys([(query, document)], limit)[0] for query, document, limit in parts]
    assert all(first != second for first, second in combinations(keys, 2))


def test_moving_text_between_query_and_document_is_another_key() -> None:
    cache = ScoreCache("model", 10, 60)
    assert cache.keys([("ab", "c")]) != cache.keys([("a", "bc")])
    assert cache.keys([("a", "b")]) != ScoreCache("other", 10, 60).keys([("a", "b")])
    assert cache.keys([("a", "b")]) != cache.keys([("a", "b")], None, "find bread")
    assert cache.keys([("a", "b")]) == ScoreCache("model", 10, 60).keys([("a", "b")])


async def scored(cache: ScoreCache, documents: list[str]) -> None:
    engine = Engine()
    flights, _ = cache.claim(
        cache.keys(("q", document) for document in documents), [PAIR] * len(documents), engine.submit
    )
    for future in engine.groups[0]:
        future.set_result(1.5)
    cache.release(flights)
    await asyncio.sleep(0)


async def test_a_score_is_remembered_until_it_expires() -> None:
    clock = Clock()
    cache = ScoreCache("model", 10, ttl=60, timer=clock)
    await scored(cache, ["d"])
    [key] = cache.keys([("q", "d")])
    assert cache.get(key) == Score(1.5, tokens=7, truncated=True)
    clock.now = 59
    assert cache.get(key) is not None
    clock.now = 61
    assert cache.get(key) is None


async def test_a_sweep_drops_expired_scores() -> None:
    clock = Clock()
    cache = ScoreCache("model", 10, ttl=60, timer=clock)
    await scored(cache, ["a", "b"])
    clock.now = 61
    cache.sweep()
    clock.now = 0  # scores that were not dropped would be valid again
    assert len(cache) == 0


async def test_the_least_recently_used_goes_first() -> None:
    cache = ScoreCache("model", max_entries=2, ttl=60)
    await scored(cache, ["a", "b"])
    first, second, third = cache.keys([("q", "a"), ("q", "b"), ("q", "c")])
    assert cache.get(first)
    await scored(cache, ["c"])
    assert cache.get(first)
    assert cache.get(third)
    assert not cache.get(second)


async def test_a_disabled_cache_remembers_nothing_but_still_joins_flights() -> None:
    cache, engine = ScoreCache("model", 10, 60, enabled=False), Engine()
    keys = cache.keys([("q", "d")])
    first, new = cache.claim(keys, [PAIR], engine.submit)
    second, joined = cache.claim(keys, [PAIR], engine.submit)
    assert first == second
    assert (new, joined) == (1, 0)
    assert [len(group) for group in engine.groups] == [1, 0]
    engine.groups[0][0].set_result(1.0)
    await asyncio.sleep(0)
    assert cache.get(keys[0]) is None
    assert cache.in_flight == 0


async def test_the_same_pair_twice_in_one_request_is_scored_once() -> None:
    cache, engine = ScoreCache("model", 10, 60), Engine()
    flights, new = cache.claim(cache.keys([("q", "d"), ("q", "e"), ("q", "d")]), [PAIR] * 3, engine.submit)
    assert len(engine.groups[0]) == new == 2
    assert flights[0] is flights[2]


async def test_an_abandoned_flight_may_be_joined_until_it_is_cancelled() -> None:
    cache, engine = ScoreCache("model", 10, 60), Engine()
    keys = cache.keys([("q", "d")])
    first, second = (cache.claim(keys, [PAIR], engine.submit)[0] for _ in range(2))
    [future] = engine.groups[0]
    assert cache.release(first) == []
    assert cache.release(second) == [future]
    flights, new = cache.claim(keys, [PAIR], engine.submit)
    assert (flights, new) == (first, 0)
    assert cache.release(flights) == [future]
    future.cancel()
    # Another request starts a new flight before the cancelled one has been removed.
    cache.claim(keys, [PAIR], engine.submit)
    assert len(engine.groups[-1]) == 1
    await asyncio.sleep(0)
    assert cache.in_flight == 1


async def test_a_failed_flight_is_not_remembered_and_not_joined() -> None:
    cache, engine = ScoreCache("model", 10, 60), Engine()
    keys = cache.keys([("q", "d")])
    flights, _ = cache.claim(keys, [PAIR], engine.submit)
    engine.groups[0][0].set_exception(ValueError("broken"))
    cache.claim(keys, [PAIR], engine.submit)
    assert len(engine.groups[1]) == 1
    cache.release(flights)
    await asyncio.sleep(0)
    assert cache.get(keys[0]) is None


@pytest.mark.parametrize("left_before", [False, True])
async def test_a_score_is_kept_even_if_its_request_left(left_before: bool) -> None:
    cache, engine = ScoreCache("model", 10, 60), Engine()
    keys = cache.keys([("q", "d")])
    flights, _ = cache.claim(keys, [PAIR], engine.submit)
    if left_before:
        cache.release(flights)
    engine.groups[0][0].set_result(2.0)
    if not left_before:
        assert cache.release(flights) == []
    await asyncio.sleep(0)
    assert cache.get(keys[0]) == Score(2.0, 7, truncated=True)


async def test_a_pair_scored_since_the_lookup_is_not_scored_again() -> None:
    cache, engine = ScoreCache("model", 10, 60), Engine()
    await scored(cache, ["d"])
    flights, new = cache.claim(cache.keys([("q", "d"), ("q", "e")]), [PAIR] * 2, engine.submit)
    assert new == len(engine.groups[0]) == 1
    assert flights[0].future.done()
    assert cache.release(flights) == engine.groups[0]
