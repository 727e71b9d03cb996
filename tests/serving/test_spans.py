"""The best passages inside documents: `max_spans`, and Cohere's `relevant_spans`."""

import asyncio
from itertools import pairwise
from typing import Any

import httpx
import pytest

from app.errors import ScoringFailed
from tests.conftest import Serve, until
from tests.fakes import FakeEngine

QUERY = "what causes tides"
MOON = "Bread is baked. The moon causes the tides . Butter melts. Tides rise! Is it so?"
BREAD = "Bread is baked of flour. Yeast rises."
BODY: dict[str, Any] = {"query": QUERY, "documents": [BREAD, MOON], "max_spans": 2}
COHERE: dict[str, Any] = {"query": QUERY, "documents": [BREAD, MOON], "relevant_spans": {"mode": "enabled"}}
# Windows of one to three sentences.
BREAD_CANDIDATES, MOON_CANDIDATES = 2 + 1, 5 + 4 + 3


async def answered(client: httpx.AsyncClient, body: Any, path: str = "/v1/rerank") -> Any:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_each_result_has_its_best_passages(serve: Serve) -> None:
    async with serve() as client:
        answer = await answered(client, BODY)
    moon, bread = answer["results"]
    assert (moon["index"], bread["index"]) == (1, 0)
    assert [span["text"] for span in moon["spans"]] == ["The moon causes the tides .", "Tides rise!"]
    assert [span["score"] for span in moon["spans"]] == [
        pytest.approx(0.8176, abs=1e-4),
        pytest.approx(0.6225, abs=1e-4),
    ]
    for result in answer["results"]:
        text = BODY["documents"][result["index"]]
        assert result["spans"]
        assert all(span["text"] == text[span["start"] : span["end"]] for span in result["spans"])
    assert answer["meta"]["spans"] == {"candidates": BREAD_CANDIDATES + MOON_CANDIDATES, "cut": 0}
    assert "relevant_spans" not in moon


async def test_passages_do_not_overlap(serve: Serve) -> None:
    text = "tides tides. causes tides. what causes. what tides. bread."
    async with serve() as client:
        [result] = (await answered(client, BODY | {"documents": [text], "max_spans": 50}))["results"]
    places = sorted((span["start"], span["end"]) for span in result["spans"])
    assert all(end <= start for (_, end), (start, _) in pairwise(places))
    scores = [span["score"] for span in result["spans"]]
    assert scores == sorted(scores, reverse=True)


async def test_without_the_field_nothing_changes(serve: Serve, engine: FakeEngine) -> None:
    async with serve() as client:
        for asked in ({}, {"max_spans": 0}, {"max_spans": None}, {"relevant_spans": {"mode": "disabled"}}):
            answer = await answered(client, {name: BODY[name] for name in ("query", "documents")} | asked)
            assert "spans" not in answer["meta"]
            assert all(not {"spans", "relevant_spans"} & set(result) for result in answer["results"])
    assert sum(map(len, engine.batches)) == 2


async def test_the_extra_pairs_are_counted_and_cached(serve: Serve, engine: FakeEngine) -> None:
    async with serve() as client:
        plain = await answered(client, {"query": QUERY, "documents": BODY["documents"]})
        first, second = await answered(client, BODY), await answered(client, BODY)
    extra = BREAD_CANDIDATES + MOON_CANDIDATES
    # One candidate of the short document is the document itself.
    assert (first["meta"]["scored"], first["meta"]["cached"]) == (extra - 1, 2 + 1)
    assert (second["meta"]["scored"], second["meta"]["cached"]) == (0, 2 + extra)
    assert first["usage"] == second["usage"]
    assert first["usage"]["total_tokens"] > plain["usage"]["total_tokens"]
    assert first["results"] == second["results"]
    assert sum(map(len, engine.batches)) == 2 + extra - 1


async def test_only_documents_of_the_answer_are_searched(serve: Serve) -> None:
    async with serve() as client:
        top = await answered(client, BODY | {"top_k": 1})
        good = await answered(client, BODY | {"score_threshold": 0.5})
        few = await answered(client, BODY | {"prefilter": "lexical", "prefilter_top_k": 1})
    assert [len(answer["results"]) for answer in (top, good, few)] == [1, 1, 2]
    assert [answer["meta"]["spans"]["candidates"] for answer in (top, good, few)] == [MOON_CANDIDATES] * 3
    assert "spans" not in few["results"][1]


async def test_a_document_read_in_fields_has_no_passages(serve: Serve) -> None:
    documents = [{"title": "tides", "text": "The moon."}, {"text": MOON}]
    async with serve() as client:
        answer = await answered(client, BODY | {"documents": documents, "rank_fields": ["title", "text"]})
    assert {result["index"]: "spans" in result for result in answer["results"]} == {0: False, 1: True}


async def test_the_bound_of_a_document_keeps_the_promising_passages(serve: Serve) -> None:
    text = " ".join(["Bread is baked."] * 30 + ["The moon causes tides."] + ["Butter melts."] * 30)
    async with serve(span_candidates=7) as client:
        answer = await answered(client, BODY | {"documents": [text], "max_spans": 1})
    assert answer["meta"]["spans"] == {"candidates": 7, "cut": 1}
    assert [span["text"] for span in answer["results"][0]["spans"]] == ["The moon causes tides."]


async def test_the_best_window_of_a_long_document_is_searched_first(serve: Serve, engine: FakeEngine) -> None:
    """The words of the query are spread over its first line, and the model prefers the second one."""
    engine.lines = 1
    text = "What? What? What? What? What?\ncauses tides . Butter melts."
    async with serve(span_candidates=2) as client:
        answer = await answered(client, BODY | {"documents": [text], "long_documents": "chunk_max"})
    [result] = answer["results"]
    assert text[result["window"]["start"] : result["window"]["end"]] == "causes tides . Butter melts."
    assert [span["text"] for span in result["spans"]] == ["causes tides .", "Butter melts."]


async def test_the_bound_of_a_request_serves_the_best_documents_first(serve: Serve) -> None:
    async with serve(max_span_candidates=MOON_CANDIDATES) as client:
        answer = await answered(client, BODY)
    assert answer["meta"]["spans"] == {"candidates": MOON_CANDIDATES, "cut": 1}
    assert ["spans" in result for result in answer["results"]] == [True, False]


async def test_the_characters_of_a_request_are_bounded(serve: Serve) -> None:
    documents = [f"tides {number}. {'Bread is baked. ' * 6000}" for number in range(11)]
    async with serve(span_candidates=1) as client:
        answer = await answered(client, BODY | {"documents": documents})
    assert answer["meta"]["spans"] == {"candidates": 10, "cut": 11}


async def test_a_bound_of_zero_turns_them_off(serve: Serve, engine: FakeEngine) -> None:
    async with serve(max_span_candidates=0) as client:
        answer = await answered(client, BODY)
    assert answer["meta"]["spans"] == {"candidates": 0, "cut": 2}
    assert sum(map(len, engine.batches)) == 2


async def test_raw_scores_are_logits(serve: Serve) -> None:
    async with serve() as client:
        answer = await answered(client, BODY | {"raw_scores": True})
    assert [span["score"] for span in answer["results"][0]["spans"]] == [1.5, 0.5]


async def test_coheres_names(serve: Serve) -> None:
    async with serve() as client:
        answer = await answered(client, COHERE, "/v2/rerank")
        some = await answered(
            client, COHERE | {"relevant_spans": {"mode": "enabled", "threshold": 0.6, "max_spans": 9}}, "/v2/rerank"
        )
        one = await answered(client, COHERE | {"relevant_spans": {"mode": "enabled", "max_spans": 1}}, "/v2/rerank")
    spans = answer["results"][0]["relevant_spans"]
    assert len(spans) == 5  # all that do not overlap a better one and reach Cohere's default threshold
    assert all(span["text"] == MOON[span["start"] : span["end"]] for span in spans)
    assert [span["text"] for span in some["results"][0]["relevant_spans"]] == [
        "The moon causes the tides .",
        "Tides rise!",
    ]
    assert [result.get("relevant_spans") is None for result in some["results"]] == [False, True]
    assert len(one["results"][0]["relevant_spans"]) == 1
    assert "spans" not in one["results"][0]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"max_spans": 2, "relevant_spans": {"mode": "enabled"}}, "max_spans: send it or relevant_spans, not both"),
        ({"max_spans": -1}, "max_spans"),
        ({"relevant_spans": {"mode": "on"}}, "relevant_spans.mode"),
        ({"relevant_spans": True}, "relevant_spans"),
        ({"relevant_spans": {}}, "relevant_spans.mode"),
    ],
)
async def test_wrong_values_are_refused(serve: Serve, asked: dict[str, Any], message: str) -> None:
    async with serve() as client:
        response = await client.post("/v1/rerank", json={"query": QUERY, "documents": [MOON]} | asked)
    assert response.status_code == 422
    assert message in response.json()["message"]


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/rerank", {"query": QUERY, "documents": [MOON]}, {"x-pinecone-api-version": "2026-07"}),
        ("/v1/reranking", {"query": QUERY, "input": [MOON]}, {}),
        ("/rerank", {"query": QUERY, "texts": [MOON]}, {}),
    ],
)
async def test_other_dialects_report_that_they_have_no_such_field(
    serve: Serve, engine: FakeEngine, path: str, body: dict[str, Any], headers: dict[str, str]
) -> None:
    async with serve() as client:
        response = await client.post(path, json=body | {"max_spans": 1}, headers=headers)
    assert response.status_code == 200
    assert response.headers["x-reranker-warning"] == "max_spans: is not supported; it is ignored"
    assert sum(map(len, engine.batches)) == 1


async def rest_of(serve: Serve, engine: FakeEngine, client: httpx.AsyncClient, body: Any) -> "asyncio.Task[Any]":
    """A request whose documents are scored, and whose passages wait in front of the paused engine."""
    await answered(client, {name: body[name] for name in ("query", "documents")})
    entered = engine.entered
    engine.gate.clear()
    task = asyncio.create_task(answered(client, body))
    await until(lambda: engine.entered > entered)
    return task


async def test_a_deadline_during_the_second_round_leaves_the_ranking(serve: Serve, engine: FakeEngine) -> None:
    async with serve() as client:
        late = await rest_of(serve, engine, client, BODY | {"timeout_ms": 500})
        answer = await late
        engine.gate.set()
        await until(lambda: serve.reranker.admission.active == serve.reranker.batcher.pending == 0)
    assert [result["index"] for result in answer["results"]] == [1, 0]
    assert all("spans" not in result for result in answer["results"])
    assert answer["meta"]["spans"] == {"candidates": 1, "cut": 0, "error": "deadline_exceeded"}
    assert answer["meta"]["degraded"] is False
    assert (answer["meta"]["scored"], answer["meta"]["cached"]) == (0, 3)


async def test_a_deadline_that_the_second_round_cannot_meet_costs_nothing(serve: Serve, engine: FakeEngine) -> None:
    engine.seconds_per_token = 0.001
    text = " ".join(f"Sentence {number} is about tides." for number in range(20))
    body = {"query": QUERY, "documents": [text], "max_spans": 1}
    async with serve() as client:
        await answered(client, {"query": QUERY, "documents": [text]})  # its speed is known from now on
        batches = len(engine.batches)
        answer = await answered(client, body | {"timeout_ms": 300})
        assert len(engine.batches) == batches
    assert answer["meta"]["spans"]["error"] == "deadline_exceeded"
    assert len(answer["results"]) == 1


async def test_a_full_queue_in_the_second_round_leaves_the_ranking(serve: Serve, engine: FakeEngine) -> None:
    async with serve(max_parallel=1, max_queue=0) as client:
        await answered(client, {"query": QUERY, "documents": BODY["documents"]})
        engine.gate.clear()
        entered = engine.entered
        other = asyncio.create_task(answered(client, {"query": "other", "documents": ["held"]}))
        await until(lambda: engine.entered > entered)
        answer = await answered(client, BODY)
        engine.gate.set()
        await other
    assert answer["meta"]["spans"]["error"] == "queue_full"
    assert [result["index"] for result in answer["results"]] == [1, 0]


async def test_a_failure_in_the_second_round_leaves_the_ranking(serve: Serve, engine: FakeEngine) -> None:
    async with serve() as client:
        await answered(client, {"query": QUERY, "documents": BODY["documents"]})
        engine.failure = ScoringFailed("broken")
        answer = await answered(client, BODY)
    assert answer["meta"]["spans"]["error"] == "scoring_failed"
    assert [result["index"] for result in answer["results"]] == [1, 0]


async def test_a_degraded_ranking_has_none(serve: Serve, engine: FakeEngine) -> None:
    engine.failure = ScoringFailed("broken")
    async with serve() as client:
        answer = await answered(client, BODY | {"on_overload": "lexical"})
    assert answer["meta"]["degraded"] == answer["meta"]["spans"]["error"] == "scoring_failed"
    assert engine.entered == 1


async def test_a_client_that_leaves_during_the_second_round_frees_its_slot(serve: Serve, engine: FakeEngine) -> None:
    async with serve(batch_tokens=16) as client:
        task = await rest_of(serve, engine, client, BODY)
        task.cancel()
        await until(lambda: serve.reranker.admission.active == serve.reranker.batcher.pending == 0)
        engine.gate.set()


async def test_passages_get_the_activation_of_documents(serve: Serve) -> None:
    async with serve(activation="none") as client:
        answer = await answered(client, BODY)
    assert answer["results"][0]["relevance_score"] == 1.5
    assert [span["score"] for span in answer["results"][0]["spans"]] == [1.5, 0.5]
