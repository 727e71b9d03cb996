"""Rankings from the model's scores and other evidence: BM25, the caller's scores, or the caller's order."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from app.first_stage.fusion import fuse, fuse_ranks, zscores
from app.serving.folding import fused_scores
from app.types import Fusion
from tests.api.test_app import indices
from tests.conftest import Serve
from tests.fakes import INFO, FakeEngine
from tests.serving.test_degraded import held

# The model counts shared words: 1, 2, 2 and 0. BM25 prefers the rare "causes" and the shorter document.
DOCUMENTS = ["tides", "the moon and the tides and what they are", "moon causes tides", "stock markets"]
BODY: dict[str, Any] = {"query": "what causes tides", "documents": DOCUMENTS}
SCORED = [{"text": text, "score": score} for text, score in zip(DOCUMENTS, [3.5, 80, 2, 1], strict=True)]


def without_times(body: dict[str, Any]) -> Any:
    return body["results"], body["usage"]


async def test_relevance_scores_stay_the_models_own(serve: Serve) -> None:
    async with serve() as client:
        plain = (await client.post("/rerank/query", json=BODY)).json()
        fused = (await client.post("/rerank/query", json=BODY | {"fusion": "lexical"})).json()
    assert [each["index"] for each in plain["results"]] == [1, 2, 0, 3]
    assert [each["index"] for each in fused["results"]] == [2, 1, 0, 3]
    own = {each["index"]: each["relevance_score"] for each in plain["results"]}
    assert {each["index"]: each["relevance_score"] for each in fused["results"]} == own
    keys = [each["fused_score"] for each in fused["results"]]
    assert keys == sorted(keys, reverse=True)
    assert not any("fused_score" in each for each in plain["results"])
    assert (plain["meta"]["fusion"], fused["meta"]["fusion"]) == ("off", "lexical")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"fusion": "score"}, [1, 2, 0, 3]),
        ({"fusion": "score", "fusion_weight": 100}, [1, 0, 2, 3]),
        ({"fusion": "score", "fusion_method": "rrf", "fusion_weight": 100}, [1, 0, 2, 3]),
        ({"fusion": "order", "fusion_weight": 100}, [0, 1, 2, 3]),
        ({"fusion": "order", "fusion_weight": 0}, [1, 2, 0, 3]),
        ({"fusion": "lexical", "fusion_weight": 0}, [1, 2, 0, 3]),
        ({"fusion": True}, [2, 1, 0, 3]),
        ({"fusion": False}, [1, 2, 0, 3]),
    ],
)
async def test_a_request_chooses_the_evidence(serve: Serve, asked: dict[str, Any], expected: list[int]) -> None:
    async with serve() as client:
        response = await client.post("/rerank/query", json=BODY | {"documents": SCORED} | asked)
    assert indices(response) == expected


@pytest.mark.parametrize(
    ("declared", "settings", "asked", "used"),
    [
        ("off", {}, {}, "off"),
        ("lexical", {}, {}, "lexical"),
        ("lexical", {"fusion": "off"}, {}, "off"),
        ("off", {"fusion": "order"}, {}, "order"),
        ("off", {"fusion": "order"}, {"fusion": "lexical"}, "lexical"),
        ("lexical", {}, {"fusion": "off"}, "off"),
        ("lexical", {}, {"fusion": False}, "off"),
        ("off", {"fusion": "order"}, {"fusion": True}, "order"),
        # The caller sent no scores, so there is nothing to consider.
        ("off", {"fusion": "score"}, {}, "off"),
    ],
)
async def test_the_request_decides_then_the_setting_then_the_model(
    serve: Serve, engine: FakeEngine, declared: Any, settings: dict[str, Any], asked: dict[str, Any], used: str
) -> None:
    engine.info = replace(INFO, fusion=declared)
    async with serve(**settings) as client:
        response = await client.post("/rerank/query", json=BODY | asked)
        info = (await client.get("/info")).json()
    assert response.json()["meta"]["fusion"] == used
    assert info["fusion"] == settings.get("fusion", declared)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/rerank", {"query": "what causes tides", "texts": DOCUMENTS}),
        ("/v1/ranking", {"query": {"text": "what causes tides"}, "passages": [{"text": text} for text in DOCUMENTS]}),
        ("/v1/rerank", {"query": "what causes tides", "documents": DOCUMENTS, "top_n": 4}),
        ("/v2/rerank", {"query": "what causes tides", "documents": DOCUMENTS, "model": "rerank-v3.5"}),
    ],
)
async def test_every_dialect_answers_in_the_fused_order(serve: Serve, path: str, body: dict[str, Any]) -> None:
    async with serve(fusion="lexical") as client:
        answer = (await client.post(path, json=body)).json()
    ranks = answer if isinstance(answer, list) else answer.get("results") or answer["rankings"]
    assert [each["index"] for each in ranks] == [2, 1, 0, 3]


async def test_scores_of_pairs_keep_their_order(serve: Serve) -> None:
    async with serve(fusion="lexical") as client:
        one = await client.post("/score", json={"text_1": "what causes tides", "text_2": DOCUMENTS})
        own = await client.post("/score", json={"text_1": ["what causes tides"] * 4, "text_2": DOCUMENTS})
    assert one.json()["data"] == own.json()["data"]
    assert [each["index"] for each in one.json()["data"]] == [0, 1, 2, 3]


async def test_cached_scores_are_fused_too(serve: Serve, engine: FakeEngine) -> None:
    async with serve(fusion="lexical") as client:
        first = (await client.post("/rerank/query", json=BODY)).json()
        scored = len(engine.batches)
        second = (await client.post("/rerank/query", json=BODY)).json()
    assert second["meta"]["cached"] == len(DOCUMENTS)
    assert without_times(first) == without_times(second)
    assert len(engine.batches) == scored


async def test_documents_that_the_model_did_not_score_stay_last(serve: Serve) -> None:
    asked = {"prefilter": "lexical", "prefilter_top_k": 2, "fusion": "order", "fusion_weight": 100}
    async with serve() as client:
        response = await client.post("/rerank/query", json=BODY | asked)
    assert indices(response)[:2] in ([0, 2], [1, 2])
    assert ["fused_score" in each for each in response.json()["results"]] == [True, True, False, False]


async def test_a_degraded_answer_is_ordered_by_words(serve: Serve, engine: FakeEngine) -> None:
    async with held(serve, engine) as client:
        response = await client.post("/rerank/query", json=BODY | {"on_overload": "lexical", "fusion": "lexical"})
    assert response.json()["meta"]["degraded"] == "queue_full"
    assert indices(response) == [2, 1, 0, 3]


@pytest.mark.parametrize("last", [{}, {"score": None}, {"score": "4"}, {"score": True}, {"score": 10**400}])
async def test_missing_scores_are_an_error_if_asked_for(serve: Serve, last: dict[str, Any]) -> None:
    documents = [*SCORED[:3], {"text": DOCUMENTS[3]} | last]
    async with serve() as client:
        response = await client.post("/rerank/query", json=BODY | {"documents": documents, "fusion": "score"})
    assert response.status_code == 422
    assert response.json()["message"] == "fusion: 'score' needs a numeric 'score' in every document"


@pytest.mark.parametrize(
    "wrong", [{"fusion": "bm25"}, {"fusion_weight": -1}, {"fusion_weight": 101}, {"fusion_method": "sum"}]
)
async def test_invalid_values_are_rejected_by_name(serve: Serve, wrong: dict[str, Any]) -> None:
    async with serve() as client:
        response = await client.post("/rerank/query", json=BODY | wrong)
    assert response.status_code == 422
    assert next(iter(wrong)) in response.json()["message"]


def test_equal_scores_say_nothing() -> None:
    assert zscores(np.array([0.1] * 3)).tolist() == [0, 0, 0]
    assert zscores(np.array([])).tolist() == []
    assert fuse([1, 2, 3], [7, 7, 7], Fusion(weight=100)) == fuse([1, 2, 3], [0, 0, 0], Fusion(weight=0))


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_the_size_of_scores_does_not_matter(scale: float) -> None:
    small = np.array([1.0, 4.0, 2.5])
    assert zscores(small * scale) == pytest.approx(zscores(small))


def test_equal_ranks_are_fused_equally() -> None:
    first = fuse_ranks([np.array([1.0, 1.0, 0.0]), np.array([2.0, 2.0, 9.0])])
    assert first[0] == first[1] == pytest.approx(1 / 61 + 1 / 62)


def test_only_scored_documents_are_compared() -> None:
    fused = fused_scores({2: 1.0, 0: -1.0}, [0.0, 99.0, 1.0], Fusion(weight=1))
    assert fused == pytest.approx({2: 2.0, 0: -2.0})
