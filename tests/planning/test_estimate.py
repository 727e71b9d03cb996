"""The queueing estimate against closed forms and against a simulation."""

import heapq
import math
import random
from collections.abc import Callable

import numpy as np
import pytest

from app.planning.estimate import HIGHEST_UTILISATION, Speed, replicas_for, wait_distribution

SHARES = (0.5, 0.95)


def exponential(mean: float, count: int = 4000) -> list[float]:
    return [-mean * math.log(1 - (index + 0.5) / count) for index in range(count)]


def test_constant_service_times_give_the_mean_of_m_d_1() -> None:
    speed = Speed([0.2] * 5, 5.0)
    assert speed.variation == pytest.approx(0)
    for used in (0.3, 0.8):
        expected = used * 0.2 / (2 * (1 - used))
        assert speed.mean_wait(5 * used) == pytest.approx(expected)
        below = wait_distribution(speed.services, used, 0.002)
        assert (1 - below).sum() * 0.002 == pytest.approx(expected, rel=0.02)
        assert below[0] == pytest.approx(1 - used, rel=0.02)


def test_constant_service_times_give_the_waits_of_m_d_1() -> None:
    """Crommelin's formula, for waits below two service times."""
    used, below = 0.7, wait_distribution(np.array([1.0]), 0.7, 0.01)
    for wait in (0.5, 1.5):
        terms = [
            (used * (each - wait)) ** each / math.factorial(each) * math.exp(-used * (each - wait))
            for each in range(math.floor(wait) + 1)
        ]
        assert below[round(wait / 0.01)] == pytest.approx((1 - used) * sum(terms), abs=0.01)


def test_exponential_service_times_give_the_waits_of_m_m_1() -> None:
    speed = Speed(exponential(0.1), 10.0)
    assert speed.variation == pytest.approx(1, rel=0.02)
    for used in (0.5, 0.9):
        below = wait_distribution(speed.services, used, 0.001)
        for seconds in (0.05, 0.2, 0.5):
            expected = 1 - used * math.exp(-10 * (1 - used) * seconds)
            assert below[round(seconds / 0.001)] == pytest.approx(expected, abs=0.01)


def simulated(rate: float, service: Callable[[], float], count: int = 200_000) -> list[float]:
    """Response times of a server with a queue: arrivals and departures as events, in the order of their times."""
    chosen = random.Random(1)
    events = [(chosen.expovariate(rate), "arrival", 0)]
    waiting: list[tuple[int, float]] = []
    arrived: dict[int, float] = {}
    busy, responses = False, []
    while len(responses) < count:
        now, kind, number = heapq.heappop(events)
        if kind == "arrival":
            arrived[number] = now
            waiting.append((number, service()))
            heapq.heappush(events, (now + chosen.expovariate(rate), "arrival", number + 1))
        else:
            responses.append(now - arrived.pop(number))
            busy = False
        if waiting and not busy:
            following, seconds = waiting.pop(0)
            heapq.heappush(events, (now + seconds, "departure", following))
            busy = True
    return responses


@pytest.mark.parametrize("used", [0.5, 0.8])
@pytest.mark.parametrize("times", [[0.2], [0.15, 0.2, 0.22, 0.4], [0.05] * 9 + [0.8]])
def test_response_times_are_those_of_a_simulation(used: float, times: list[float]) -> None:
    mean, chosen = sum(times) / len(times), random.Random(2)
    expected = np.quantile(simulated(used / mean, lambda: chosen.choice(times)), SHARES)
    found = Speed(times, 1 / mean).quantiles(used / mean, SHARES)
    assert found == pytest.approx(list(expected), rel=0.05)


def test_responses_on_an_idle_replica_are_those_that_were_measured() -> None:
    times = [0.1, 0.2, 0.3, 0.4]
    assert Speed(times, 20.0).quantiles(0.0, [0.5, 1.0]) == pytest.approx([0.2, 0.4], abs=1e-3)


def test_a_queue_that_grows_has_no_response_time() -> None:
    speed = Speed([0.1], 10.0)
    assert speed.quantiles(10.0, SHARES) == [math.inf, math.inf]
    assert speed.mean_wait(12.0) == math.inf


def test_the_highest_rate_meets_the_target_and_a_higher_one_does_not() -> None:
    speed = Speed([0.18, 0.2, 0.22], 5.5)
    highest = speed.highest_rate(0.5)
    assert 0 < highest < 5.5
    assert speed.quantiles(highest, [0.95])[0] <= 0.5 < speed.quantiles(highest + 0.05, [0.95])[0]
    assert speed.highest_rate(0.21) == 0
    assert speed.highest_rate(1000) == pytest.approx(5.5 * HIGHEST_UTILISATION)


def test_replicas_share_the_load() -> None:
    assert [replicas_for(rate, 2.0) for rate in (0.1, 2.0, 2.1, 6.0)] == [1, 1, 2, 3]
