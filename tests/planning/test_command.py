"""`reranker plan`, from the measurement to the text."""

import json
from typing import Any

import pytest

from app.planning.command import make_plan
from app.planning.estimate import Speed
from app.planning.measurement import Measurement, measure
from app.planning.texts import Size, make_requests
from reranker_client import AsyncClient
from tests.commands import reranker
from tests.conftest import Serve
from tests.e2e.process import FIXED

SMALL = ("--documents", 2, "--words", 5, "--seconds", 0)


def plan(rate: float, p95: float) -> dict[str, Any]:
    return make_plan(Measurement(Speed([0.19, 0.2, 0.21], 5.0), 40), rate, p95)


def test_enough_replicas_are_planned_and_one_less_is_not_enough() -> None:
    found = plan(20, 500)
    rows = {row["replicas"]: row for row in found["table"]}
    needed = found["replicas"]
    assert set(rows) == {needed - 1, needed, needed + 1, needed + 2}
    assert [rows[count]["meets_target"] for count in sorted(rows)] == [False, True, True, True]
    assert rows[needed]["utilisation"] == pytest.approx(20 / needed / 5)
    assert rows[needed]["p50_ms"] < rows[needed]["p95_ms"] <= 500
    assert rows[needed]["rate_per_replica"] <= found["highest_rate_per_replica"]
    assert found["problem"] is None


def test_more_load_needs_more_replicas_and_a_looser_target_fewer() -> None:
    assert plan(1, 500)["replicas"] == 1
    assert plan(20, 500)["replicas"] > plan(20, 5000)["replicas"] > plan(10, 5000)["replicas"] > 1


def test_a_target_below_the_time_of_one_request_is_impossible() -> None:
    found = plan(1, 150)
    assert (found["replicas"], found["table"]) == (None, [])
    assert found["problem"].startswith(
        "A p95 of 150 ms cannot be met: a request alone on an idle replica has a p95 of 210"
    )


def test_requests_have_the_size_and_share_no_pair() -> None:
    requests = make_requests(Size(3, 7), 1)
    made = [next(requests) for _ in range(20)]
    assert {len(request.documents) for request in made} == {3}
    assert {len(document.split()) for request in made for document in request.documents} == {7}
    assert len({(request.query, document) for request in made for document in request.documents}) == 60


async def test_a_running_service_is_measured(serve: Serve) -> None:
    async with serve() as http, AsyncClient(str(http.base_url)) as client:
        found = await measure(client, Size(2, 5), 0)
    assert len(found.speed.alone) == 10
    assert found.requests > 8
    assert found.speed.capacity > 0


def test_the_command_prints_the_plan_with_its_working() -> None:
    found = reranker("plan", *SMALL, "--rate", 0.001, "--p95", 100_000, **FIXED)
    assert found.exit_code == 0, found.stderr
    assert "0.001 requests/s with a p95 of 100000 ms need 1 replica of this size." in found.stdout
    assert "u × S × (1 + c²) / (2 × (1 − u))" in found.stdout
    found = reranker("plan", *SMALL, "--p95", 0.1, "--json", **FIXED)
    assert found.exit_code == 1, found.stderr
    assert json.loads(found.stdout)["problem"].startswith("A p95 of 0.1 ms cannot be met")


def test_a_service_that_does_not_answer_is_reported() -> None:
    found = reranker("plan", *SMALL, "--url", "http://127.0.0.1:1")
    assert (found.exit_code, found.stdout) == (1, "")
    assert found.stderr.startswith("No response from http://127.0.0.1:1")
