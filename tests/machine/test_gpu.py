"""GPU figures in `/health` and `/metrics`, with a fake of the driver's library that can fail."""

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.conftest import Serve
from tests.fakes import FakeEngine

UUID = "11111111-2222-3333-4444-555555555555"
BODY = {"query": "moon", "documents": ["moon", "sun"]}


class Driver(ModuleType):
    """The part of `pynvml` that is used, with two cards."""

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.silent = self.sliced = False
        self.millijoules = 0

    class NVMLError(Exception):
        pass

    def _tell(self) -> None:
        if self.silent:
            raise self.NVMLError("Driver/library version mismatch")

    def nvmlInit(self) -> None:
        self._tell()

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        assert uuid == f"GPU-{UUID}"
        return 1

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        self._tell()
        return SimpleNamespace(used=1000 + handle, total=8000)

    def nvmlDeviceGetUtilizationRates(self, _: int) -> Any:
        if self.sliced:
            raise self.NVMLError("Not Supported")
        return SimpleNamespace(gpu=87)

    def nvmlDeviceGetTotalEnergyConsumption(self, _: int) -> int:
        """Each time 250 millijoules more."""
        self._tell()
        if self.sliced:
            raise self.NVMLError("Not Supported")
        self.millijoules += 250
        return self.millijoules


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    driver = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    return driver


@pytest.fixture
def engine(engine: FakeEngine) -> FakeEngine:
    engine.info = replace(engine.info, device="cuda:0", device_name="NVIDIA H200", device_uuid=UUID)
    return engine


@pytest.mark.parametrize(("sliced", "joules"), [(False, 0.25), (True, None)])
async def test_a_request_costs_the_energy_of_the_gpu(
    serve: Serve, driver: Driver, sliced: bool, joules: float | None
) -> None:
    driver.sliced = sliced
    async with serve() as client:
        answer = (await client.post("/rerank", json=BODY)).json()
    assert answer["meta"]["cost"].get("joules") == joules


async def test_health_and_metrics_report_the_gpu(serve: Serve, driver: Driver) -> None:
    async with serve() as client:
        assert (await client.post("/rerank", json=BODY)).status_code == 200
        health = (await client.get("/health")).json()
        metrics = (await client.get("/metrics")).text
    expected = {"name": "NVIDIA H200", "memory_used_bytes": 1001, "memory_total_bytes": 8000, "utilization": 0.87}
    assert health["gpu"] == expected
    assert health["tokens_per_second"] > 0
    assert "reranker_gpu_memory_used_bytes 1001.0" in metrics
    assert "reranker_gpu_memory_total_bytes 8000.0" in metrics
    assert "reranker_gpu_utilization 0.87" in metrics
    [speed] = re.findall(r"^reranker_tokens_per_second (\S+)$", metrics, re.MULTILINE)
    assert float(speed) == pytest.approx(health["tokens_per_second"], abs=1)


async def test_without_a_uuid_the_gpu_is_found_by_index(serve: Serve, engine: FakeEngine, driver: Driver) -> None:
    engine.info = replace(engine.info, device_uuid=None)
    async with serve() as client:
        assert (await client.get("/health")).json()["gpu"]["memory_used_bytes"] == 1000


@pytest.mark.parametrize("packed", [True, False])
async def test_info_shows_if_batches_are_packed(serve: Serve, engine: FakeEngine, packed: bool) -> None:
    engine.info = replace(engine.info, packed=packed)
    async with serve() as client:
        assert (await client.get("/info")).json()["packed"] is packed


@pytest.mark.parametrize("since", ["start", "later"])
async def test_a_driver_error_does_not_fail_health_or_metrics(serve: Serve, driver: Driver, since: str) -> None:
    driver.silent = since == "start"
    async with serve() as client:
        driver.silent = True
        health = await client.get("/health")
        metrics = await client.get("/metrics")
    assert (health.status_code, metrics.status_code) == (200, 200)
    assert "gpu" not in health.json()
    assert "reranker_gpu_memory_used_bytes NaN" in metrics.text


async def test_a_gpu_slice_reports_only_its_memory(serve: Serve, driver: Driver) -> None:
    driver.sliced = True
    async with serve() as client:
        figures = (await client.get("/health")).json()["gpu"]
        metrics = (await client.get("/metrics")).text
    assert (figures["memory_used_bytes"], figures["utilization"]) == (1001, None)
    assert "reranker_gpu_memory_used_bytes 1001.0" in metrics
    assert "reranker_gpu_utilization NaN" in metrics


async def test_on_a_cpu_no_gpu_is_reported(serve: Serve, engine: FakeEngine) -> None:
    engine.info = replace(engine.info, device="cpu")
    async with serve() as client:
        assert "gpu" not in (await client.get("/health")).json()
        assert "reranker_gpu" not in (await client.get("/metrics")).text


async def test_without_pynvml_no_gpu_is_reported(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    async with serve() as client:
        assert "gpu" not in (await client.get("/health")).json()
