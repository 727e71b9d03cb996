"""Where a cascade meets budgets, deadlines, failures, fusion, windows, passages and what watches the quality."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.config import Settings
from app.engines.template import Template
from app.errors import EngineBroken
from app.main import create_app
from app.serving import cascade
from app.serving.budget import FIRST_MARGIN
from app.serving.lifecycle import Phase
from app.serving.shadow import agreement
from app.types import Ranking
from tests.api.test_app import indices
from tests.conftest import serving, until
from tests.models import make_model
from tests.serving.test_cascade import BODY, DOCUMENTS, OK, Two, ask, readers, scores, two

__all__ = ["two"]

UNAVAILABLE, TIMEOUT = 503, 504
SMALL_ORDER = [4, 3, 2, 1, 0]
LEXICAL = {"on_overload": "lexical"}
# A hundred documents of four tokens with their query.
MANY: dict[str, Any] = {"query": "causing tides", "documents": [f"tides {number}" for number in range(100)]}
SPEED = 10.0


def budget_for(documents: float) -> int:
    """Milliseconds for this many documents of the large model, at first."""
    return round(documents * 4 * FIRST_MARGIN / SPEED * 1000)


def meta(response: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = response.json()["meta"]
    return found


async def test_the_large_model_reads_what_fits_into_the_rest_of_the_budget(two: Two) -> None:
    two.small.tokens_per_second, two.large.tokens_per_second = 1e6, SPEED
    async with two(cascade_top_k=None) as client:
        response = await client.post("/v1/rerank", json=MANY | {"budget_ms": budget_for(20.9)})
    read = meta(response)["cascade"]
    assert read["small"] == 100
    assert 15 <= read["large"] <= 20  # less if the machine is busy
    assert two.read == (100, read["large"])
    budget = meta(response)["budget"]
    assert (budget["read"], budget["of"]) == (100, 100)
    assert budget_for(read["large"]) <= budget["predicted_ms"] <= budget_for(20.9)
    assert readers(response) == ["large"] * read["large"] + ["small"] * (100 - read["large"])
    assert 'reranker_budget_requests_total{result="in_time"} 1.0' in two.figures()


@pytest.mark.parametrize("by", ["field", "setting"])
async def test_a_budget_does_not_exceed_the_number_that_is_set(two: Two, by: str) -> None:
    two.small.tokens_per_second, two.large.tokens_per_second = 1e6, SPEED
    async with two(cascade_top_k=3 if by == "setting" else None) as client:
        asked = {"cascade_top_k": 3} if by == "field" else {}
        response = await client.post("/v1/rerank", json=MANY | asked | {"budget_ms": budget_for(20.9)})
    assert meta(response)["cascade"] == {"small": 100, "large": 3}


async def test_a_budget_may_leave_no_time_for_the_large_model(two: Two) -> None:
    two.small.tokens_per_second = two.large.tokens_per_second = SPEED
    async with two() as client:
        response = await client.post("/v1/rerank", json=MANY | {"budget_ms": 1})
    assert meta(response)["cascade"] == {"small": 1, "large": 0}
    assert two.read == (1, 0)
    assert readers(response) == ["small"] + [None] * 99
    assert meta(response)["prefiltered"] == 99
    assert meta(response)["degraded"] is False


async def test_the_speed_of_a_large_model_that_has_not_read_for_long_is_measured_again(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cascade, "SECONDS_OF_TRUST", 0)
    two.small.tokens_per_second = two.large.tokens_per_second = SPEED
    async with two() as client:
        response = await client.post("/v1/rerank", json=MANY | {"budget_ms": 1})
    assert meta(response)["cascade"] == {"small": 1, "large": 1}


async def test_with_a_budget_known_scores_of_both_models_are_used(two: Two) -> None:
    two.small.tokens_per_second = two.large.tokens_per_second = SPEED
    async with two(max_parallel=1, max_queue=0) as client:
        known = await ask(client)
        again = await ask(client, budget_ms=1)
    assert indices(again) == indices(known)
    assert meta(again)["cascade"] == {"small": 5, "large": 2}
    assert meta(again)["budget"] | {"predicted_ms": 0} == {"budget_ms": 1, "read": 5, "of": 5, "predicted_ms": 0}


async def test_one_deadline_is_for_both_models(two: Two) -> None:
    two.large.gate.clear()
    async with two() as client:
        response = await client.post("/v1/rerank", json=BODY | {"timeout_ms": 300})
        degraded = await ask(client, timeout_ms=300, **LEXICAL)
        assert two.reranker("small").admission.active == 0
        two.large.gate.set()
    assert response.status_code == TIMEOUT
    assert (meta(degraded)["degraded"], indices(degraded)) == ("deadline_exceeded", SMALL_ORDER)
    assert degraded.headers["x-reranker-degraded"] == "deadline_exceeded"


async def test_a_large_model_that_fails_leaves_the_order_of_the_small_one(two: Two) -> None:
    two.large.failure = RuntimeError("broken")
    async with two() as client:
        refused = await client.post("/v1/rerank", json=BODY)
        degraded = await ask(client, **LEXICAL)
        figures = two.figures()
    assert (refused.status_code, refused.json()["error"]["type"]) == (500, "scoring_failed")
    assert (meta(degraded)["degraded"], indices(degraded)) == ("scoring_failed", SMALL_ORDER)
    assert meta(degraded)["cascade"] == {"small": 5, "large": 0}
    assert scores(degraded) == [3.5, 2.5, 1.5, 0.5, -0.5]
    assert not any("unscored" in result for result in degraded.json()["results"])
    assert 'reranker_degraded_total{reason="scoring_failed"} 1.0' in figures


async def test_partial_scores_of_a_large_model_that_fails_do_not_change_the_order(two: Two) -> None:
    two.large.longest = 8  # the best document needs nine tokens
    async with two() as client:
        degraded = await ask(client, **LEXICAL)
        assert (meta(degraded)["degraded"], indices(degraded)) == ("out_of_memory", SMALL_ORDER)
        assert readers(degraded) == ["small"] * 5
        assert (meta(degraded)["scored"], meta(degraded)["cached"]) == (6, 0)
        assert meta(await ask(client, documents=["a b c y"], model="large"))["cached"] == 1


async def test_a_small_model_that_fails_leaves_the_order_of_words(two: Two) -> None:
    two.small.failure = RuntimeError("broken")
    async with two() as client:
        refused = await client.post("/v1/rerank", json=BODY)
        degraded = await ask(client, **LEXICAL)
    assert refused.status_code == 500
    assert (meta(degraded)["degraded"], indices(degraded)) == ("scoring_failed", SMALL_ORDER)
    assert readers(degraded) == [None] * 5
    assert meta(degraded)["cascade"] == {"small": 0, "large": 0}


async def test_a_large_model_that_is_gone_is_reported_before_the_small_one_reads(two: Two) -> None:
    async with two(max_reloads=0) as client:
        two.large.failure = EngineBroken("device lost")
        await client.post("/v1/rerank", json=BODY)
        await until(lambda: two.service.models.named("large").lifecycle.phase is Phase.FAILED)
        before = two.read
        refused = await client.post("/v1/rerank", json=BODY | {"query": "a b"})
        ready, health = await client.get("/health/ready"), await client.get("/health")
        degraded = await ask(client, query="b c", **LEXICAL)
        alone = await ask(client, query="c d", model="small")
    assert (refused.status_code, refused.json()["error"]["type"]) == (UNAVAILABLE, "unavailable")
    assert "(model 'large')" in refused.json()["message"]
    assert (ready.status_code, health.status_code, health.json()["status"]) == (UNAVAILABLE, UNAVAILABLE, "failed")
    assert meta(degraded)["degraded"] == "unavailable"
    assert readers(degraded) == readers(degraded)[:1] * 5 == ["small"] * 5
    assert alone.status_code == OK
    assert two.read[0] == before[0] + 10  # only those two requests


async def test_a_client_that_leaves_takes_its_work_with_it(two: Two) -> None:
    async with two(max_parallel=1, max_queue=0) as client:
        two.large.gate.clear()
        waiting = asyncio.create_task(ask(client))
        await until(lambda: two.large.entered == 1)
        waiting.cancel()
        await until(lambda: two.reranker("small").admission.active == 0)
        two.large.gate.set()
        assert indices(await ask(client)) == [3, 4, 2, 1, 0]


async def test_a_full_queue_rejects_a_request_as_a_whole(two: Two) -> None:
    async with two(max_parallel=1, max_queue=0) as client:
        two.large.gate.clear()
        running = asyncio.create_task(ask(client))
        await until(lambda: two.large.entered == 1)
        refused = await client.post("/v1/rerank", json=BODY | {"query": "a b"})
        two.large.gate.set()
        assert meta(await running)["cascade"] == {"small": 5, "large": 2}
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "queue_full")
    assert two.read == (5, 2)


async def test_fusion_orders_what_the_large_model_has_read(two: Two) -> None:
    async with two() as client:
        asked: dict[str, Any] = {"documents": DOCUMENTS[::-1], "fusion": "order", "fusion_weight": 100}
        plain, fused = await ask(client, documents=DOCUMENTS[::-1]), await ask(client, **asked)
    assert (indices(plain), indices(fused)) == ([1, 0, 2, 3, 4], [0, 1, 2, 3, 4])
    assert ["fused_score" in result for result in fused.json()["results"]] == [True, True, False, False, False]
    assert sorted(scores(fused)) == sorted(scores(plain))
    assert meta(fused)["fusion"] == "order"


@pytest.mark.parametrize("evidence", ["lexical", "order"])
async def test_the_evidence_is_that_of_the_whole_request(two: Two, evidence: str) -> None:
    async with two() as client:
        asked = {"fusion": evidence, "fusion_weight": 3.0}
        both, alone = await ask(client, cascade_top_k=5, **asked), await ask(client, model="large", **asked)
    own = [result | {"read_by": "large"} for result in alone.json()["results"]]
    assert both.json()["results"] == own


async def test_if_the_large_model_has_read_nothing_fusion_orders_all(two: Two) -> None:
    two.small.tokens_per_second = two.large.tokens_per_second = SPEED
    async with two() as client:
        await ask(client, model="small")
        response = await ask(client, budget_ms=1, fusion="order", fusion_weight=100)
    assert meta(response)["cascade"] == {"small": 5, "large": 0}
    assert indices(response) == [0, 1, 2, 3, 4]
    assert all("fused_score" in result for result in response.json()["results"])


async def test_windows_are_those_of_the_model_that_has_read_the_document_last(two: Two) -> None:
    two.large.lines = 1
    long = ["a\nb", "x\ny", "a b\nc"]
    async with two(long_documents="chunk_max") as client:
        response = await ask(client, documents=long)
    assert indices(response)[2] == 1
    assert [result.get("window") for result in response.json()["results"]][2] is None
    # The large model prefers the line with fewer words of the query.
    by_index = {result["index"]: result for result in response.json()["results"]}
    assert by_index[2]["window"] == {"start": 4, "end": 5}
    assert (meta(response)["scored"], meta(response)["truncated"]) == (3 + 4, 0)


@pytest.mark.parametrize(("cutting", "expected"), [("small", 1), ("large", 2)])
async def test_documents_are_cut_by_the_model_that_has_read_them_last(two: Two, cutting: str, expected: int) -> None:
    {"small": two.small, "large": two.large}[cutting].lines = 1
    async with two() as client:
        response = await ask(client, documents=["a b\nx", "a\nx", "a b c\nx"], long_documents="truncate")
    assert meta(response)["truncated"] == expected


async def test_a_document_that_the_large_model_would_cut_is_refused_by_its_index(two: Two) -> None:
    two.large.lines = 1
    async with two() as client:
        response = await client.post(
            "/v1/rerank",
            json=BODY | {"documents": ["x", "a\nx", "a b\nx"], "long_documents": "refuse", "cascade_top_k": 1},
        )
    assert response.status_code == 422
    assert "documents[2]" in response.json()["message"]


async def test_passages_come_from_the_model_that_has_read_the_document_last(two: Two) -> None:
    async with two() as client:
        response = await ask(client, max_spans=1, top_k=3)
    spans = {result["index"]: result["spans"][0]["score"] for result in response.json()["results"]}
    assert spans == {3: -12.5, 4: -13.5, 2: 1.5}  # not capped: a passage has its own score
    assert meta(response)["spans"] == {"candidates": 3, "cut": 0}
    assert (meta(response)["scored"], meta(response)["cached"]) == (7, 3)


async def test_the_limit_of_passages_is_for_both_models(two: Two) -> None:
    async with two(max_span_candidates=3) as client:
        response = await ask(client, max_spans=1)
    assert [bool(result.get("spans")) for result in response.json()["results"]] == [True] * 3 + [False] * 2
    assert meta(response)["spans"] == {"candidates": 3, "cut": 2}


async def test_passages_that_cannot_be_scored_are_missing_and_nothing_else(two: Two) -> None:
    long = [f"{text} moon. Then {text} moon." for text in DOCUMENTS]
    async with two() as client:
        known = await ask(client, documents=long)
        two.small.failure = RuntimeError("broken")
        response = await ask(client, documents=long, max_spans=1)
    assert indices(response) == indices(known)
    assert meta(response)["spans"]["error"] == "scoring_failed"
    assert all(result["spans"] for result in response.json()["results"][:2])


async def test_an_instruction_goes_to_the_models_that_take_one(two: Two) -> None:
    template = Template.parse("{instruction}: {query} {document}", "find")
    two.large.info = replace(two.large.info, template=template)
    async with two() as client:
        plain, instructed = await ask(client), await ask(client, instruction="x")
        refused = await client.post("/v1/rerank", json=BODY | {"instruction": "x", "model": "small"})
    assert meta(instructed)["cached"] == 5
    tokens = [each.json()["usage"]["total_tokens"] for each in (plain, instructed)]
    assert tokens[1] == tokens[0] + 2  # a word more for each of the two documents
    assert refused.status_code == 422


async def test_an_instruction_that_no_model_takes_is_refused(two: Two) -> None:
    async with two() as client:
        response = await client.post("/v1/rerank", json=BODY | {"instruction": "x"})
    assert response.status_code == 422
    assert "instruction" in response.json()["message"]


async def test_the_quality_is_that_of_the_large_model_in_requests_to_the_cascade(two: Two, tmp_path: Path) -> None:
    sample = tmp_path / "sample.jsonl"
    async with two(sample_file=sample, sample_share=1) as client:
        await ask(client, model="small", query="a b")
        await ask(client, model="large", query="a c")
        await ask(client)
        await until(lambda: "reranker_top_score_count 1.0" in two.figures())
        assert 'reranker_top_score_bucket{le="0.01"} 1.0' in two.figures()
    (line,) = sample.read_text().splitlines()
    assert "a b c d" in line


def test_a_second_model_is_compared_with_the_order_of_the_cascade() -> None:
    ranking = Ranking([-5.0, -5.0, -5.0, -1.0], [0.0] * 4, [None] * 4, 4, 4, 4, 0, ranked=[3, 2, 1, 0])
    assert agreement(ranking, {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}) == (0, True)


async def test_two_real_models_rank_as_one_after_the_other(tmp_path: Path) -> None:
    folders = {"bert": make_model(tmp_path / "one", spread=0.5), "roberta": make_model(tmp_path / "two", "xlm-roberta")}
    documents = ["the moon", "bread", "stock market", "tides follow the moon", "bread and butter"]
    body = {"query": "what causes tides", "documents": documents, "raw_scores": True}
    settings: dict[str, Any] = {"backend": "torch", "device": "cpu", "prediction_cache": False}
    sources = ",".join(f"{name}={folder}" for name, folder in folders.items())
    app = create_app(Settings(models=sources, cascade="bert,roberta", cascade_top_k=3, **settings))
    async with serving(app) as client:
        asked = [body, body | {"model": "bert"}, body | {"model": "roberta"}]
        both, small, large = await asyncio.gather(*(client.post("/v1/rerank", json=each) for each in asked))
    best = indices(small)[:3]
    assert indices(both) == [*(index for index in indices(large) if index in best), *indices(small)[3:]]
    by_large = dict(zip(indices(large), scores(large), strict=True))
    assert scores(both)[:3] == pytest.approx([by_large[index] for index in indices(both)[:3]], abs=1e-5)
    assert readers(both) == ["roberta"] * 3 + ["bert"] * 2


async def test_models_that_nobody_uses_are_loaded_again_for_the_cascade(two: Two) -> None:
    async with two(idle_seconds=0.05) as client:
        await until(lambda: [model.status for model in two.service.models] == ["idle", "idle"])
        assert (await client.get("/health/ready")).status_code == OK
        response = await client.post("/v1/rerank", json=BODY)
        assert response.status_code == OK
        assert meta(response)["cascade"] == {"small": len(DOCUMENTS), "large": 2}
        await until(lambda: [model.status for model in two.service.models] == ["idle", "idle"])
