"""A cascade of two models, through the service: the small one reads all documents, the large one the best again.

The fake engine counts the words that query and document share; the large one prefers documents that share few.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest

from app.environment import load_settings
from app.errors import StartupError
from app.serving import heartbeat, supervisor
from app.types import Pair
from tests.api.test_app import indices
from tests.conftest import until
from tests.fakes import FakeEngine
from tests.serving.test_models import Several

OK, UNAVAILABLE = 200, 503
# Shared words by document, which is what the small model sees: 0, 1, 2, 3, 4.
DOCUMENTS = ["x", "a y", "a b y", "a b c y", "a b c d y"]
BODY: dict[str, Any] = {"query": "a b c d", "documents": DOCUMENTS, "raw_scores": True}


class LargeEngine(FakeEngine):
    """Prefers what the small one does not: the fewer words a document shares, the better. Its logits are lower."""

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        return [-10 - logit for logit in super().score(pairs)]


class Two(Several):
    """`async with two() as client:` the models `small` and `large` and their cascade, over two fake engines."""

    models = "small=two, large=one"

    def __init__(self) -> None:
        super().__init__()
        self.large = LargeEngine()

    def __call__(self, **settings: Any) -> AbstractAsyncContextManager[httpx.AsyncClient]:
        return super().__call__(**({"cascade": "small,large", "cascade_top_k": 2} | settings))

    @property
    def read(self) -> tuple[int, int]:
        """Pairs that the engines have read."""
        return sum(map(len, self.small.batches)), sum(map(len, self.large.batches))


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[Two]:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(supervisor, "PAUSE_SECONDS", 0.01)
    made = Two()
    yield made
    made.small.gate.set()
    made.large.gate.set()


def scores(response: httpx.Response) -> list[float]:
    return [result["relevance_score"] for result in response.json()["results"]]


def readers(response: httpx.Response) -> list[str | None]:
    return [result.get("read_by") for result in response.json()["results"]]


async def ask(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    response = await client.post("/v1/rerank", json=BODY | fields)
    assert response.status_code == OK, response.text
    return response


@pytest.mark.parametrize("name", [{}, {"model": "cascade"}, {"model": "Cascade"}])
async def test_the_large_model_reads_the_best_of_the_small_one_again(two: Two, name: dict[str, str]) -> None:
    async with two() as client:
        response = await ask(client, **name)
        figures = two.figures()
    assert indices(response) == [3, 4, 2, 1, 0]
    assert readers(response) == ["large", "large", "small", "small", "small"]
    assert response.json()["model"] == "cascade"
    meta = response.json()["meta"]
    assert meta["cascade"] == {"small": 5, "large": 2}
    assert (meta["documents"], meta["scored"], meta["cached"]) == (5, 7, 0)
    # 5 queries of 4 words and their documents for the small model, 2 for the large one.
    assert response.json()["usage"]["total_tokens"] == 5 * 4 + 15 + 2 * 4 + 9
    assert meta["cost"]["tokens"] == 5 * 4 + 15 + 2 * 4 + 9
    assert 'reranker_cascade_documents_total{model="small"} 5.0' in figures
    assert 'reranker_cascade_documents_total{model="large"} 2.0' in figures


@pytest.mark.parametrize("raw", [True, False])
async def test_scores_fall_with_the_order_and_those_of_the_small_model_are_capped(two: Two, raw: bool) -> None:
    async with two() as client:
        found = scores(await ask(client, raw_scores=raw))
        alone = scores(await ask(client, raw_scores=raw, model="large"))
    # By the large model, documents 3 and 4 are the worst two.
    assert found[:2] == alone[3:]
    assert found == sorted(found, reverse=True)
    assert set(found[2:]) == {found[1]}


async def test_scores_of_the_small_model_that_are_lower_anyway_stay(two: Two) -> None:
    two.large = FakeEngine()
    async with two() as client:
        response = await ask(client)
    assert scores(response) == [3.5, 2.5, 1.5, 0.5, -0.5]
    assert indices(response) == [4, 3, 2, 1, 0]


@pytest.mark.parametrize("name", ["small", "large"])
async def test_a_model_of_the_cascade_can_be_chosen_alone(two: Two, name: str) -> None:
    async with two() as client:
        response = await ask(client, model=name)
    assert two.read == ((5, 0) if name == "small" else (0, 5))
    assert "cascade" not in response.json()["meta"]
    assert set(readers(response)) == {None}


@pytest.mark.parametrize(
    ("setting", "asked", "expected"),
    [(2, {}, 2), (2, {"cascade_top_k": 3}, 3), (3, {"cascade_top_k": 1}, 1), (100, {}, 5), (None, {}, 5)],
)
async def test_the_field_of_the_request_wins_over_the_setting(
    two: Two, setting: int | None, asked: dict[str, int], expected: int
) -> None:
    async with two(cascade_top_k=setting) as client:
        response = await ask(client, **asked)
    assert response.json()["meta"]["cascade"] == {"small": 5, "large": expected}


async def test_without_a_setting_the_large_model_reads_ten(two: Two) -> None:
    async with two(cascade_top_k=None) as client:
        response = await ask(client, documents=[f"a {number}" for number in range(30)])
    assert response.json()["meta"]["cascade"] == {"small": 30, "large": 10}


@pytest.mark.parametrize("wrong", [0, -1, "many", 1.5])
async def test_an_invalid_number_is_rejected_by_name(two: Two, wrong: Any) -> None:
    async with two() as client:
        response = await client.post("/v1/rerank", json=BODY | {"cascade_top_k": wrong})
    assert response.status_code == 422
    assert "cascade_top_k" in response.json()["message"]


@pytest.mark.parametrize(("top_k", "expected"), [(1, [3]), (2, [3, 4]), (3, [3, 4, 2])])
async def test_top_k_counts_in_the_final_order(two: Two, top_k: int, expected: list[int]) -> None:
    async with two() as client:
        response = await ask(client, top_k=top_k)
    assert indices(response) == expected
    assert two.read == (5, 2)


async def test_a_threshold_is_compared_with_the_scores_of_the_answer(two: Two) -> None:
    async with two() as client:
        assert indices(await ask(client, score_threshold=-12.5)) == [3]
        assert indices(await ask(client, score_threshold=-13.5)) == [3, 4, 2, 1, 0]


async def test_scores_of_both_models_are_cached(two: Two) -> None:
    async with two() as client:
        first, again = await ask(client), await ask(client)
        more, alone = await ask(client, cascade_top_k=3), await ask(client, model="large")
    assert indices(again) == indices(first)
    assert [each.json()["meta"]["scored"] for each in (first, again, more, alone)] == [7, 0, 1, 2]
    assert [each.json()["meta"]["cached"] for each in (first, again, more, alone)] == [0, 7, 7, 3]


async def test_a_request_keeps_its_slot_for_both_models(two: Two) -> None:
    async with two(max_parallel=1, max_queue=3) as client:
        two.large.gate.clear()
        asked = [asyncio.create_task(ask(client, query=f"a {number}")) for number in range(2)]
        await until(lambda: two.large.entered == 1)
        await until(lambda: two.reranker("small").admission.waiting == 1)
        assert two.read == (5, 0)  # of the first request only
        two.large.gate.set()
        assert [(await each).json()["meta"]["cascade"] for each in asked] == [{"small": 5, "large": 2}] * 2
        assert two.reranker("small").admission.active == 0


async def test_a_request_with_known_scores_needs_no_slot(two: Two) -> None:
    async with two(max_parallel=1, max_queue=0) as client:
        known = await ask(client)
        two.small.gate.clear()
        running = asyncio.create_task(ask(client, query="a"))
        await until(lambda: two.reranker("small").admission.active == 1)
        assert indices(await ask(client)) == indices(known)
        two.small.gate.set()
        await running


async def test_stored_documents_are_ranked_by_the_cascade(two: Two) -> None:
    async with two(documents="memory") as client:
        documents = [{"id": f"d{index}", "text": text} for index, text in enumerate(DOCUMENTS)]
        await client.put("/v1/documents", json={"collection": "c", "documents": documents})
        ids = ["d0", "d4", "gone", "d3", "d2"]
        body = {"query": "a b c d", "collection": "c", "document_ids": ids}
        answer = (await client.post("/v1/rerank", json=body)).json()
    assert [result["id"] for result in answer["results"]] == ["d3", "d4", "d2", "d0"]
    assert [result["index"] for result in answer["results"]] == [3, 1, 4, 0]
    assert answer["missing"] == ["gone"]
    assert answer["meta"]["cascade"] == {"small": 4, "large": 2}


async def test_the_first_stage_chooses_what_the_small_model_reads(two: Two) -> None:
    async with two() as client:
        response = await ask(client, prefilter="lexical", prefilter_top_k=3)
    assert indices(response)[:3] == [3, 4, 2]
    assert readers(response) == ["large", "large", "small", None, None]
    assert response.json()["meta"]["prefiltered"] == 2
    assert [result.get("unscored", False) for result in response.json()["results"]] == [False] * 3 + [True] * 2
    assert scores(response) == sorted(scores(response), reverse=True)
    assert response.json()["meta"]["cascade"] == {"small": 3, "large": 2}


async def test_every_dialect_ranks_with_the_cascade(two: Two) -> None:
    async with two() as client:
        tei = await client.post("/rerank", json={"query": "a b c d", "texts": DOCUMENTS, "raw_scores": True})
        nim = {"query": {"text": "a b c d"}, "passages": [{"text": text} for text in DOCUMENTS], "cascade_top_k": 3}
        ranked = await client.post("/v1/ranking", json=nim)
    assert [result["index"] for result in tei.json()] == [3, 4, 2, 1, 0]
    assert [result["index"] for result in ranked.json()["rankings"]] == [2, 3, 4, 1, 0]
    assert "x-reranker-warning" not in ranked.headers


async def test_pairs_with_their_own_queries_are_read_by_the_large_model(two: Two) -> None:
    async with two() as client:
        response = await client.post("/score", json={"text_1": ["a", "b", "c"], "text_2": ["a", "b", "x"]})
    assert response.status_code == OK
    assert two.read == (0, 3)


async def test_the_state_of_the_service_names_the_cascade(two: Two) -> None:
    async with two() as client:
        listed = [model["id"] for model in (await client.get("/v1/models")).json()["data"]]
        one = await client.get("/v1/models/cascade")
        info = (await client.get("/info")).json()
        unknown = await client.post("/v1/rerank", json=BODY | {"model": "medium"})
    assert listed == ["small", "large", "cascade"]
    assert one.json()["id"] == "cascade"
    assert info["cascade"] == {"name": "cascade", "small": "small", "large": "large", "top_k": 2}
    assert "the service has the models small, large, cascade" in unknown.json()["message"]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"cascade": "small,large"}, "RERANKER_CASCADE needs RERANKER_MODELS"),
        ({"cascade": "small", "models": "small=a,large=b"}, "must be the names of two models of RERANKER_MODELS"),
        ({"cascade": "small,Small", "models": "small=a,large=b"}, "must be the names of two models"),
        ({"cascade": "small,huge", "models": "small=a,large=b"}, "RERANKER_MODELS has no model 'huge'"),
        ({"cascade": "a,b", "models": "a=1,b=2,Cascade=3"}, "which is the name of RERANKER_CASCADE: rename it"),
    ],
)
def test_wrong_settings_stop_the_start(settings: dict[str, str], problem: str) -> None:
    with pytest.raises(StartupError, match=problem):
        load_settings(**settings)
