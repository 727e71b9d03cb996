"""Top scores of the last hour against a reference."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from httpx import AsyncClient

from app.telemetry.drift import ENOUGH, SLOT_SECONDS, SLOTS, Drift
from app.telemetry.metrics import Metrics
from tests.conftest import Serve, until
from tests.fakes import FakeEngine

HOUR = SLOT_SECONDS * SLOTS


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def drift(clock: Clock) -> Drift:
    drift = Drift(1000, None, Metrics(), clock)
    drift.begin("model")
    return drift


def see(drift: Drift, *scores: float, times: int = 1000) -> None:
    for index in range(times):
        drift.see(scores[index % len(scores)])


def test_equal_scores_have_no_distance_and_others_have(drift: Drift, clock: Clock) -> None:
    see(drift, 0.2, 0.9)
    assert drift.distance() == 0
    clock.now += HOUR
    see(drift, 0.2, 0.2, 0.2, 0.9)
    assert drift.distance() == pytest.approx(0.25)
    clock.now += HOUR
    see(drift, 0.5)
    assert drift.distance() == pytest.approx(0.5)
    clock.now += HOUR
    see(drift, 0.99)
    assert drift.distance() == 1


def test_scores_next_to_the_ends_are_distinguished(drift: Drift, clock: Clock) -> None:
    see(drift, 0.0001)
    clock.now += HOUR
    see(drift, 0.002)
    assert drift.distance() == 1


def test_only_the_last_hour_counts(drift: Drift, clock: Clock) -> None:
    see(drift, 0.5)
    clock.now += HOUR
    see(drift, 0.9)
    assert drift.distance() == 1
    clock.now += HOUR / 2
    see(drift, 0.5)
    assert drift.distance() == pytest.approx(0.5)
    clock.now += HOUR / 2
    assert drift.distance() == 0


def test_few_requests_or_an_incomplete_reference_give_no_distance(drift: Drift, clock: Clock) -> None:
    see(drift, 0.5, times=999)
    assert math.isnan(drift.distance())
    see(drift, 0.5, times=1)
    assert drift.distance() == 0
    clock.now += HOUR
    see(drift, 0.9, times=ENOUGH - 1)
    assert math.isnan(drift.distance())
    see(drift, 0.9, times=1)
    assert drift.distance() == 1


def test_another_model_needs_another_reference(drift: Drift) -> None:
    see(drift, 0.5)
    drift.begin("model")  # the same one, loaded again
    assert drift.distance() == 0
    drift.begin("another model")
    see(drift, 0.9, times=999)
    assert math.isnan(drift.distance())


def test_scores_of_0_and_1_are_counted(drift: Drift) -> None:
    see(drift, 0.0, 1.0)
    assert drift.distance() == 0


async def ask(client: AsyncClient, query: str) -> None:
    assert (await client.post("/rerank", json={"query": query, "documents": ["moon"]})).status_code == 200


async def distance(client: AsyncClient) -> float:
    text = (await client.get("/metrics")).text
    return float(text.split("\nreranker_top_score_drift ")[1].split("\n")[0])


async def test_the_reference_outlives_a_restart(
    serve: Serve, engine: FakeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "drift.json"
    async with serve(drift_file=file, drift_reference=200) as client:
        for _ in range(200):
            await ask(client, "moon")
        assert await distance(client) == 0
        await until(file.exists)
    async with serve(drift_file=file, drift_reference=200) as client:
        for _ in range(200):
            await ask(client, "bread")
        assert await distance(client) == 1
    engine.info = replace(engine.info, model="another")
    async with serve(drift_file=file, drift_reference=200) as client:
        assert math.isnan(await distance(client))
    assert "was made with another model" in caplog.text


@pytest.mark.parametrize("content", ["", "{", '{"model": "x", "counts": [1]}', '{"counts": 5}'])
async def test_a_file_that_is_no_reference_is_reported_and_ignored(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    file = tmp_path / "drift.json"
    file.write_text(content)
    async with serve(drift_file=file) as client:
        await ask(client, "moon")
    assert f"RERANKER_DRIFT_FILE={file} cannot be used" in caplog.text
