"""A latency budget: the model reads as many documents as fit, the best of the first stage first.

The engine reports a speed at its warm-up and answers at once, so what fits depends on the reported speed.
"""

import asyncio
from typing import Any

import httpx
import numpy as np
import pytest

from app.serving.budget import FIRST_MARGIN, MARGINS, Pace, fit
from app.types import Pair, Passage
from tests.api.test_app import indices
from tests.conftest import Serve, until
from tests.fakes import FakeEngine
from tests.serving.test_degraded import held

# 100 documents of two tokens each; the query has two. The earlier ones have a word of the query, in a shorter text.
DOCUMENTS = [f"tides {number}" for number in range(10)] + [f"bread {number}" for number in range(90)]
BODY: dict[str, Any] = {"query": "causing tides", "documents": DOCUMENTS, "prefilter": "lexical"}
# Tokens per second of the engine at its warm-up: slow enough that all other time is negligible.
SPEED = 10.0
# Seconds that a document takes by the plan, at first.
SECONDS = 4 * FIRST_MARGIN / SPEED


def budget_for(documents: float) -> int:
    """Milliseconds for this many documents."""
    return round(documents * SECONDS * 1000)


def use(response: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = response.json()["meta"]["budget"]
    return found


@pytest.mark.parametrize(
    ("candidates", "speed", "remaining", "expected"),
    [
        ([4, 4, 4], 1.0, 12.0, 3),
        ([4, 4, 4], 1.0, 11.9, 2),
        ([4, 4, 4], 2.0, 6.0, 3),
        ([4, 4, 4], 1.0, 0.0, 1),
        ([4, 4, 4], 1.0, -5.0, 1),
        ([4, 4, 4], 0.0, 100.0, 1),
        ([], 1.0, 10.0, 0),
        ([0, 0, 4, 0, 4], 1.0, 0.0, 4),
        ([0, 0, 0], 0.0, -1.0, 3),
        ([100, 1, 1], 1.0, 50.0, 1),
        ([1, 100, 1], 1.0, 50.0, 1),
    ],
)
def test_as_many_candidates_fit_as_the_time_allows(
    candidates: list[int], speed: float, remaining: float, expected: int
) -> None:
    assert fit(candidates, speed, remaining) == expected


@pytest.mark.parametrize(
    ("candidates", "speed", "remaining", "expected"),
    [([4, 4], 1.0, 3.9, 0), ([4, 4], 1.0, 4.0, 1), ([0, 4], 1.0, -1.0, 1), ([4, 4], 0.0, 100.0, 1)],
)
def test_none_may_fit_if_that_is_allowed_and_the_speed_is_known(
    candidates: list[int], speed: float, remaining: float, expected: int
) -> None:
    assert fit(candidates, speed, remaining, may_be_none=True) == expected


def test_the_speed_of_the_warm_up_counts_until_batches_are_measured() -> None:
    pace = Pace(1000)
    assert pace.speed == 1000
    pace.see_batch(100, 1.0, now=1.0)
    assert 100 < pace.speed < 150
    for second in range(2, 6):
        pace.see_batch(100, 1.0, now=second)
    assert pace.speed == pytest.approx(100, rel=0.02)


def test_without_a_warm_up_the_first_batch_gives_the_speed() -> None:
    pace = Pace()
    assert (pace.speed, pace.cautious_speed, pace.cautious_speed_with_tokenizer) == (0, 0, 0)
    pace.see_batch(100, 0.5, now=1.0)
    assert pace.speed == pytest.approx(200)


@pytest.mark.parametrize(("before", "after"), [(10_000, 1000), (1000, 10_000)])
def test_the_speed_follows_the_load_of_the_machine(before: int, after: int) -> None:
    pace = Pace(before)
    for tenth in range(1, 101):
        pace.see_batch(before // 10, 0.1, now=tenth / 10)
    for tenth in range(101, 141):  # four seconds
        pace.see_batch(after // 10, 0.1, now=tenth / 10)
    assert pace.speed == pytest.approx(after, rel=0.2)


def test_a_tiny_batch_says_only_that_the_engine_is_not_slower() -> None:
    """The engine is probed with a single short pair while it is idle."""
    pace = Pace()
    pace.see_batch(1000, 1.0, now=1.0)
    for now in range(2, 12):
        pace.see_batch(2, 0.004, now)
    assert pace.speed == 1000
    for now in range(12, 2000):
        pace.see_batch(20, 0.004, now)
    assert pace.speed == pytest.approx(5000, rel=0.01)


def test_batches_at_the_same_time_share_their_time() -> None:
    """Two threads, each with batches of two seconds that overlap by one: 100 tokens per second in all."""
    pace = Pace()
    for now in range(2, 30):
        pace.see_batch(100, 2.0, now)
    assert pace.speed == pytest.approx(100, rel=0.05)


def test_batches_that_end_together_do_not_look_infinitely_fast() -> None:
    pace = Pace()
    for now in range(2, 30, 2):
        pace.see_batch(100, 2.0, now)
        pace.see_batch(100, 2.0, now)
    assert pace.speed == pytest.approx(100)


def test_requests_that_are_late_widen_the_margin_and_the_others_narrow_it_slowly() -> None:
    pace = Pace(1000)
    first = pace.cautious_speed
    assert first == 1000 / FIRST_MARGIN
    pace.see_request(1.0, took=1.1)
    late = pace.cautious_speed
    assert late < first
    for _ in range(8):
        pace.see_request(1.0, took=0.9)
    assert late < pace.cautious_speed < first  # eight in time do not outweigh one that is late ...
    for _ in range(20):
        pace.see_request(1.0, took=0.9)
    assert pace.cautious_speed > first  # ... but more do


@pytest.mark.parametrize(("took", "bound"), [(1000.0, MARGINS[1]), (0.0, MARGINS[0])])
def test_the_margin_has_bounds(took: float, bound: float) -> None:
    pace = Pace(1000)
    for _ in range(1000):
        pace.see_request(1.0, took)
    assert pace.cautious_speed == 1000 / bound


def test_nine_of_ten_requests_are_in_time_if_their_times_vary() -> None:
    pace, random = Pace(1000), np.random.default_rng(0)
    late = 0
    for number in range(3000):
        took = float(random.lognormal(0, 0.4))
        predicted = 1000 / pace.cautious_speed  # of a thousand tokens
        late += number >= 500 and took > predicted
        pace.see_request(predicted, took)
    assert 0.05 < late / 2500 < 0.15


def test_the_tokens_of_a_text_are_estimated_from_earlier_texts() -> None:
    pace = Pace(1000)
    before = pace.cautious_speed_with_tokenizer
    whole = Pair(np.zeros(1000, np.int32), np.zeros(1000, np.int32), truncated=False)
    cut = Pair(np.zeros(1, np.int32), np.zeros(1, np.int32), truncated=True)
    passages = [Passage(index, "q" * 1000, "d" * 1000) for index in range(100)]
    pace.see_texts(passages, [whole] * 50 + [cut] * 50, 1.0)
    assert pace.tokens_of(100) == pytest.approx(50, abs=1)
    assert pace.cautious_speed_with_tokenizer < before < pace.cautious_speed


async def test_the_best_documents_that_fit_are_read_and_the_others_follow(serve: Serve, engine: FakeEngine) -> None:
    engine.tokens_per_second = SPEED
    async with serve() as client:
        response = await client.post("/rerank/query", json=BODY | {"budget_ms": budget_for(20.9)})
        figures = (await client.get("/metrics")).text
    found = use(response)
    assert 15 <= found["read"] <= 20  # less if the machine is busy
    assert sum(map(len, engine.batches)) == found["read"]
    assert (found["budget_ms"], found["of"]) == (budget_for(20.9), 100)
    assert budget_for(found["read"]) <= found["predicted_ms"] <= budget_for(20.9)
    left_out = 100 - found["read"]
    assert response.json()["meta"]["prefiltered"] == left_out
    assert response.headers["x-reranker-prefiltered"] == str(left_out)
    results = response.json()["results"]
    assert indices(response) == list(range(100))  # of equal scores the first, and the first stage has the same order
    assert ["unscored" in result for result in results] == [False] * found["read"] + [True] * left_out
    assert ["prefiltered" in result for result in results] == [False] * found["read"] + [True] * left_out
    assert f'reranker_budget_documents_total{{result="read"}} {found["read"]}.0' in figures
    assert f'reranker_budget_documents_total{{result="left_out"}} {left_out}.0' in figures
    assert 'reranker_budget_requests_total{result="in_time"} 1.0' in figures


@pytest.mark.parametrize(
    ("settings", "asked", "expected"),
    [
        ({}, {}, None),
        ({}, {"budget_ms": budget_for(1000)}, 100),
        ({"budget_ms": budget_for(1000)}, {}, 100),
        ({"budget_ms": 1}, {}, 1),
        ({"budget_ms": 1}, {"budget_ms": budget_for(1000)}, 100),
        ({"budget_ms": budget_for(1000)}, {"budget_ms": 1}, 1),
        ({"budget_ms": 1}, {"budget_ms": 0}, None),
        ({"budget_ms": 1}, {"budget_ms": None}, 1),
    ],
)
async def test_the_field_of_the_request_wins_over_the_setting(
    serve: Serve, engine: FakeEngine, settings: dict[str, Any], asked: dict[str, Any], expected: int | None
) -> None:
    engine.tokens_per_second = SPEED
    async with serve(**settings) as client:
        response = await client.post("/rerank/query", json=BODY | asked)
    assert response.json()["meta"].get("budget", {}).get("read") == expected
    assert response.json()["meta"]["scored"] == (100 if expected is None else expected)


async def test_with_a_tiny_budget_the_order_is_that_of_the_first_stage(serve: Serve, engine: FakeEngine) -> None:
    documents = ["bread and butter", "tides of the moon", "causing tides", "stock markets"]
    engine.tokens_per_second = SPEED
    async with serve() as client:
        response = await client.post("/rerank/query", json=BODY | {"documents": documents, "budget_ms": 1})
        figures = (await client.get("/metrics")).text
    assert indices(response) == [2, 1, 0, 3]
    assert use(response)["read"] == 1
    assert 'reranker_budget_requests_total{result="overrun"} 1.0' in figures


async def test_an_engine_of_unknown_speed_reads_one_document_first(serve: Serve) -> None:
    async with serve() as client:
        first = await client.post("/rerank/query", json=BODY | {"budget_ms": 60_000})
        second = await client.post("/rerank/query", json=BODY | {"budget_ms": 60_000})
    assert (use(first)["read"], use(second)["read"]) == (1, 100)


async def test_a_slow_engine_is_noticed(serve: Serve, engine: FakeEngine) -> None:
    """Its warm-up promises twenty times the speed that it has."""
    engine.tokens_per_second, engine.seconds_per_token = 20_000, 0.001
    async with serve(prediction_cache=False) as client:
        first = await client.post("/rerank/query", json=BODY | {"budget_ms": 60_000})
        second = await client.post("/rerank/query", json=BODY | {"budget_ms": 100})
    assert use(first)["read"] == 100
    assert use(second)["read"] < 60


async def test_without_a_first_stage_the_hybrid_one_gives_the_order(serve: Serve, engine: FakeEngine) -> None:
    engine.tokens_per_second = SPEED
    documents = ["The parliament passed the budget.", "A pianist plays the piano.", "Bread."]
    body = {"query": "who is playing pianos?", "documents": documents, "budget_ms": 1}
    async with serve() as client:
        assert indices(await client.post("/rerank/query", json=body))[0] == 1


async def test_the_first_stage_limits_the_documents_too(serve: Serve, engine: FakeEngine) -> None:
    engine.tokens_per_second = SPEED
    async with serve() as client:
        asked = {"prefilter_top_k": 3, "budget_ms": budget_for(1000)}
        assert use(await client.post("/rerank/query", json=BODY | asked))["read"] == 3


async def test_known_scores_cost_nothing_and_are_always_used(serve: Serve, engine: FakeEngine) -> None:
    engine.tokens_per_second = SPEED
    async with serve(max_parallel=1) as client:
        await client.post("/rerank/query", json=BODY | {"documents": DOCUMENTS[90:]})
        serve.reranker.batcher.pace = Pace(SPEED)  # forget the batch, which took no time
        response = await client.post("/rerank/query", json=BODY | {"budget_ms": 1})
    assert use(response)["read"] == 11
    assert response.json()["meta"]["cached"] == 10
    assert indices(response)[:11] == [0, *range(90, 100)]


async def test_a_request_with_known_scores_needs_neither_time_nor_a_slot(serve: Serve, engine: FakeEngine) -> None:
    body = {"query": "tides", "documents": ["tides", "bread"]}
    async with serve(max_parallel=1, max_queue=0) as client:
        await client.post("/rerank/query", json=body)
        engine.gate.clear()
        waiting = asyncio.create_task(client.post("/rerank/query", json={"query": "first", "documents": ["held"]}))
        await until(lambda: serve.reranker.admission.active == 1)
        response = await client.post("/rerank/query", json=body | {"budget_ms": 1})
        engine.gate.set()
        await waiting
    assert use(response) | {"predicted_ms": 0} == {"budget_ms": 1, "read": 2, "of": 2, "predicted_ms": 0}


async def test_the_work_in_front_takes_its_share(serve: Serve, engine: FakeEngine) -> None:
    engine.tokens_per_second = SPEED
    async with serve() as client:
        engine.gate.clear()
        first = asyncio.create_task(client.post("/rerank/query", json={"query": "a", "documents": DOCUMENTS[:20]}))
        await until(lambda: engine.entered == 1)  # 60 tokens
        second = asyncio.create_task(client.post("/rerank/query", json=BODY | {"budget_ms": budget_for(20.9)}))
        await until(lambda: serve.reranker.batcher.pending > 0)
        engine.gate.set()
        found = use(await second)
        await first
    assert 1 <= found["read"] <= 5  # of 20 documents of four tokens, 15 are for the other request
    assert found["predicted_ms"] >= 60 / SPEED * 1000


async def test_a_pair_that_another_request_waits_for_is_counted_once(serve: Serve, engine: FakeEngine) -> None:
    engine.tokens_per_second = SPEED
    body = BODY | {"budget_ms": budget_for(20.9)}
    async with serve() as client:
        engine.gate.clear()
        asked = [asyncio.create_task(client.post("/rerank/query", json=body))]
        await until(lambda: engine.entered == 1)
        asked.append(asyncio.create_task(client.post("/rerank/query", json=body)))
        await until(lambda: serve.reranker.admission.active == 2)
        await until(lambda: max(flight.waiters for flight in serve.reranker.cache._flights.values()) == 2)
        engine.gate.set()
        first, second = [use(each) for each in await asyncio.gather(*asked)]
    assert 15 <= first["read"] <= 20
    assert 15 <= second["read"] <= 20


async def test_equal_documents_are_read_together(serve: Serve, engine: FakeEngine) -> None:
    engine.tokens_per_second = SPEED
    body = BODY | {"documents": ["bread", "tides", "bread", "tides", "wine"], "budget_ms": 1}
    async with serve() as client:
        response = await client.post("/rerank/query", json=body)
    assert indices(response)[:2] == [1, 3]
    assert (use(response)["read"], response.json()["meta"]["scored"]) == (2, 1)


async def test_a_shorter_deadline_counts_as_the_budget(serve: Serve, engine: FakeEngine) -> None:
    engine.tokens_per_second = SPEED
    async with serve() as client:
        asked = {"budget_ms": budget_for(1000), "timeout_ms": budget_for(10.9)}
        response = await client.post("/rerank/query", json=BODY | asked)
    assert 5 <= use(response)["read"] <= 10


async def test_windows_of_long_documents_cost_what_they_have(serve: Serve, engine: FakeEngine) -> None:
    engine.tokens_per_second, engine.lines = SPEED, 1
    long = [f"{document}\nand {document}" for document in DOCUMENTS[:10]]
    milliseconds = round(33 * FIRST_MARGIN / SPEED * 1000)
    body = BODY | {"documents": long, "long_documents": "chunk_max", "budget_ms": milliseconds}
    async with serve() as client:
        response = await client.post("/rerank/query", json=body)
    found = use(response)
    assert 2 <= found["read"] <= 3  # windows of four and of five tokens
    assert response.json()["meta"]["scored"] == 2 * found["read"]
    assert sum("window" in result for result in response.json()["results"]) == found["read"]


async def test_a_document_that_does_not_fit_cannot_be_too_long(serve: Serve, engine: FakeEngine) -> None:
    """More documents are tokenized than fit, because short words make more tokens than the estimate says."""
    engine.tokens_per_second, engine.lines = SPEED, 1
    body = BODY | {"query": "t", "long_documents": "refuse", "budget_ms": round(60 * FIRST_MARGIN / SPEED * 1000)}
    short, long = [f"t a b c {number}" for number in range(10)], [f"t a b c\n{number}" for number in range(90)]
    async with serve() as client:
        response = await client.post("/rerank/query", json=body | {"documents": short + long})
        refused = await client.post("/rerank/query", json=body | {"documents": long})
    assert response.status_code == 200
    assert 5 <= use(response)["read"] <= 10
    assert refused.status_code == 422
    assert "documents[0]" in refused.json()["message"]


async def test_a_failed_request_has_its_first_stage_order_and_budget(serve: Serve, engine: FakeEngine) -> None:
    async with held(serve, engine) as client:
        body = BODY | {"budget_ms": 100, "on_overload": "lexical"}
        response = await client.post("/rerank/query", json=body)
    assert response.json()["meta"]["degraded"] == "queue_full"
    assert use(response) == {"budget_ms": 100, "read": 0, "of": 100}


async def test_fusion_combines_the_documents_that_were_read(serve: Serve, engine: FakeEngine) -> None:
    engine.tokens_per_second = SPEED
    async with serve() as client:
        asked = {"budget_ms": budget_for(20.9), "fusion": "lexical"}
        response = await client.post("/rerank/query", json=BODY | asked)
    fused = [result for result in response.json()["results"] if "fused_score" in result]
    assert len(fused) == use(response)["read"] < 100
    assert response.json()["results"][: len(fused)] == fused


async def test_passages_are_searched_in_the_documents_that_were_read(serve: Serve, engine: FakeEngine) -> None:
    engine.tokens_per_second = SPEED
    async with serve() as client:
        response = await client.post("/rerank/query", json=BODY | {"budget_ms": 1, "max_spans": 1})
    assert use(response)["read"] == sum(bool(result.get("spans")) for result in response.json()["results"]) == 1


async def test_stored_documents_have_budgets(serve: Serve, engine: FakeEngine) -> None:
    engine.tokens_per_second = SPEED
    async with serve(documents="memory") as client:
        lines = "".join(f'{{"id": {index}, "text": "{text}"}}\n' for index, text in enumerate(DOCUMENTS))
        headers = {"Content-Type": "application/x-ndjson"}
        await client.put("/v1/documents", params={"collection": "c"}, content=lines, headers=headers)
        body = {"query": "causing tides", "collection": "c", "document_ids": list(range(100)), "budget_ms": 1}
        response = await client.post("/rerank/query", json=body | {"prefilter": "lexical"})
    assert (use(response)["read"], indices(response)) == (1, list(range(100)))


async def test_a_client_that_leaves_takes_its_work_with_it(serve: Serve, engine: FakeEngine) -> None:
    engine.tokens_per_second = SPEED
    async with serve(max_parallel=1, max_queue=0) as client:
        engine.gate.clear()
        body = BODY | {"budget_ms": budget_for(20.9)}
        waiting = asyncio.create_task(client.post("/rerank/query", json=body))
        await until(lambda: engine.entered == 1)
        waiting.cancel()
        await until(lambda: serve.reranker.admission.active == 0)
        engine.gate.set()
        assert (await client.post("/rerank/query", json=body)).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/rerank", {"query": "tides", "texts": ["bread", "tides", "moon"]}),
        ("/score", {"text_1": "tides", "text_2": ["bread", "tides", "moon"]}),
        (
            "/v1/ranking",
            {"query": {"text": "tides"}, "passages": [{"text": "bread"}, {"text": "tides"}, {"text": "moon"}]},
        ),
        ("/v1/reranking", {"query": "tides", "input": ["bread", "tides", "moon"]}),
        ("/v1/rerank", {"query": "tides", "documents": ["bread", "tides", "moon"], "truncation": True}),
    ],
)
@pytest.mark.parametrize("by", ["field", "setting"])
async def test_every_dialect_has_budgets(
    serve: Serve, engine: FakeEngine, path: str, body: dict[str, Any], by: str
) -> None:
    engine.tokens_per_second = SPEED
    async with serve(**({"budget_ms": 1} if by == "setting" else {})) as client:
        response = await client.post(path, json=body | ({"budget_ms": 1} if by == "field" else {}))
    assert response.status_code == 200
    assert response.headers["x-reranker-prefiltered"] == "2"
    assert "x-reranker-warning" not in response.headers
    assert sum(map(len, engine.batches)) == 1


async def test_pairs_with_their_own_queries_are_all_scored(serve: Serve, engine: FakeEngine) -> None:
    engine.tokens_per_second = SPEED
    body = {"text_1": ["tides", "bread"], "text_2": ["tides", "bread"], "budget_ms": 1}
    async with serve() as client:
        response = await client.post("/score", json=body)
    assert [each["score"] for each in response.json()["data"]] == pytest.approx([0.6225, 0.6225], abs=1e-4)


@pytest.mark.parametrize("wrong", [-1, 1.5, "soon", 86_400_001])
async def test_an_invalid_budget_is_rejected_by_name(serve: Serve, wrong: Any) -> None:
    async with serve() as client:
        response = await client.post("/rerank/query", json=BODY | {"budget_ms": wrong})
    assert response.status_code == 422
    assert "budget_ms" in response.json()["message"]
