"""How work is laid out: chosen by measuring, within bounds, once."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from app.config import Settings
from app.engines import schedule
from app.engines.load import load_engine
from app.engines.schedule import MEASURE_SECONDS, Schedule, arrange
from app.engines.tuning import Candidate, TuningFile, tune
from app.types import Pair
from tests.fakes import FakeEngine

SECONDS_PER_TOKEN = 1e-5


class Clock:
    """Passes only where the tests say so: what is chosen does not depend on what else the machine is doing."""

    now = 0.0

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        with self._lock:
            self.now += seconds


clock = Clock()


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "perf_counter", clock)


class TimedEngine(FakeEngine):
    """Takes a fixed time for each batch and each token, and longer for batches above its best size."""

    def __init__(self, per_batch: float = 0.0, best: int = 10**9, slowness: float = 1.0) -> None:
        super().__init__()
        self.info = replace(self.info, threads=2)
        self.per_batch, self.best, self.slowness = per_batch, best, slowness

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        tokens = sum(pair.length for pair in pairs)
        clock.pass_by((self.per_batch + tokens * SECONDS_PER_TOKEN * (3 if tokens > self.best else 1)) * self.slowness)
        return super().score(pairs)


def test_small_batches_are_chosen_where_they_are_faster(tmp_path: Path) -> None:
    engine = TimedEngine(best=512)
    arrange(engine, {})
    assert engine.schedule.batch_tokens <= 512


def test_large_batches_are_chosen_where_they_are_faster(tmp_path: Path) -> None:
    engine = TimedEngine(per_batch=0.03)
    arrange(engine, {})
    assert engine.schedule.batch_tokens == 2048


def tuned(engine: TimedEngine, folder: Path) -> TimedEngine:
    """What `load_engine` does with an engine that it has loaded."""
    chosen = tune([Candidate("the only one", lambda: engine)], lambda _: {}, TuningFile(folder))
    assert chosen is engine
    return engine


def test_what_was_measured_is_remembered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    first = tuned(TimedEngine(best=512), tmp_path / "schedules")
    assert "chosen: batches of" in caplog.text
    tested = len(first.batches)
    second = tuned(TimedEngine(best=512), tmp_path / "schedules")
    assert second.schedule == first.schedule
    assert len(second.batches) < tested
    assert "Measured earlier" in caplog.text


def test_what_is_asked_for_is_not_measured(tmp_path: Path) -> None:
    engine = TimedEngine()
    arrange(engine, {"batch_tokens": 64})
    assert engine.schedule == Schedule(batch_tokens=64)
    assert engine.batches == []


def test_settings_that_leave_nothing_to_measure_choose_the_same_arithmetic_on_a_busy_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores of replicas, and of the processes of `reranker bulk --ray`, are comparable."""
    settings = Settings(precision="int8", export_dir=tmp_path, batch_tokens=1024, streams=1, part_tokens=384, threads=1)
    chosen = set()
    for speeds in ((100.0, 1.0, 1.0, 1.0), (1.0, 100.0, 1.0, 1.0)):
        monkeypatch.setattr("app.engines.tuning.speed_of", Mock(side_effect=speeds))
        chosen.add(load_engine(settings).info.fingerprint)
    assert len(chosen) == 1


def test_a_slow_engine_is_not_measured(tmp_path: Path) -> None:
    engine = TimedEngine(slowness=100)
    default = engine.schedule
    arrange(engine, {})
    assert engine.schedule == default
    assert len(engine.batches) == 2


def test_the_measurement_ends_in_time(tmp_path: Path) -> None:
    engine = TimedEngine(slowness=20)
    started = clock()
    arrange(engine, {})
    assert clock() - started < MEASURE_SECONDS * 2


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert tuned(TimedEngine(best=512), tmp_path / "file").schedule.batch_tokens <= 512


@pytest.mark.parametrize("text", ["", "{}", '{"configuration": "the only one", "schedule": {"batch_tokens": "many"}}'])
def test_a_damaged_file_is_measured_again(tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str) -> None:
    tuned(TimedEngine(best=512), tmp_path)
    [file] = tmp_path.iterdir()
    file.write_text(text)
    caplog.set_level("INFO")
    assert tuned(TimedEngine(best=512), tmp_path).schedule.batch_tokens <= 512
    assert "chosen: batches of" in caplog.text


def on_gpu(**speed: float) -> TimedEngine:
    engine = TimedEngine(**speed)
    engine.info = replace(engine.info, device="cuda:0", device_name="Card", packed=True)
    return engine


def test_on_a_gpu_batches_grow_while_that_is_faster(tmp_path: Path) -> None:
    waits, computes = on_gpu(per_batch=0.5, slowness=0.02), on_gpu(slowness=0.5)
    arrange(waits, {})
    arrange(computes, {})
    assert waits.schedule.batch_tokens >= 65536
    assert computes.schedule.batch_tokens <= 8192


def test_on_a_gpu_batches_fit_the_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    engine = on_gpu(per_batch=0.5, slowness=0.02)
    engine.capacity = 80  # pairs: 8192 tokens, and not 16384
    arrange(engine, {})
    assert engine.schedule.batch_tokens == 8192
    assert engine.cleared == 1
    assert "batches of 16384 tokens do not fit" in caplog.text


def test_what_did_not_fit_a_gpu_once_is_tried_at_the_next_start(tmp_path: Path) -> None:
    """Another process may have had the memory."""
    first, second = on_gpu(per_batch=0.5, slowness=0.02), on_gpu(per_batch=0.5, slowness=0.02)
    first.capacity = 80
    assert tuned(second, tmp_path).schedule.batch_tokens > tuned(first, tmp_path / "other").schedule.batch_tokens
    assert list((tmp_path).glob("*.json"))
    assert not list((tmp_path / "other").glob("*"))


def test_on_a_cpu_what_does_not_fit_is_not_chosen(tmp_path: Path) -> None:
    engine = TimedEngine(per_batch=0.03)
    engine.capacity = 6  # pairs: 1024 tokens, and not 2048
    arrange(engine, {})
    assert engine.schedule.batch_tokens <= 1024


def test_on_a_slow_gpu_no_batch_takes_long_nor_does_the_measurement(tmp_path: Path) -> None:
    engine = on_gpu(per_batch=0.1, slowness=5)
    started = clock()
    arrange(engine, {})
    assert clock() - started < MEASURE_SECONDS * 2
    assert engine.schedule.batch_tokens == 4096


def test_each_card_is_measured_for_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = on_gpu(slowness=0.02), on_gpu(slowness=0.02)
    second.info = replace(second.info, device_name="Other card")
    tuned(first, tmp_path)
    caplog.set_level("INFO")
    tuned(second, tmp_path)
    assert "chosen: batches of" in caplog.text
