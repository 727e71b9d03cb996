"""How long documents are scored: as the request asks, or else the operator, or else the model."""

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import pytest

from app.serving.progress import KeyedPassages, Progress
from app.serving.windows import MAX_DOCUMENTS, put_windows
from app.types import RerankQuery
from tests.conftest import Serve, until
from tests.fakes import FakeEngine

QUERY = "what causes tides"
LONG, SHORT = "bread\nthe moon causes tides\nbutter", "tides"
NATIVE = {"query": QUERY, "documents": [LONG, SHORT], "raw_scores": True}
TEI = {"query": QUERY, "texts": [LONG, SHORT], "raw_scores": True}
NIM = {"query": {"text": QUERY}, "passages": [{"text": LONG}, {"text": SHORT}]}
SCORE = {"text_1": QUERY, "text_2": [LONG, SHORT], "raw_scores": True}
# The logit of the long document, from its first line only or from its best line.
CUT, BEST = -0.5, 1.5
DIALECTS = [("/v1/rerank", NATIVE), ("/rerank", TEI), ("/v1/ranking", NIM), ("/score", SCORE)]


@pytest.fixture
def engine() -> FakeEngine:
    """A window holds one line, and the model's default for long documents is windows."""
    engine = FakeEngine()
    engine.lines = 1
    engine.info = replace(engine.info, long_documents="chunk_max")
    return engine


async def logit(client: httpx.AsyncClient, path: str, body: Any) -> float:
    """The logit of the long document."""
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    content = response.json()
    items = content if isinstance(content, list) else content.get("results") or content.get("data", [])
    items = items or content["rankings"]
    [item] = [item for item in items if item["index"] == 0]
    return float(next(item[name] for name in ("relevance_score", "score", "logit") if name in item))


@pytest.mark.parametrize(("path", "body"), DIALECTS)
async def test_the_model_decides_by_default(serve: Serve, engine: FakeEngine, path: str, body: Any) -> None:
    async with serve() as client:
        assert await logit(client, path, body) == BEST
    engine.info = replace(engine.info, long_documents="truncate")
    async with serve() as client:
        assert await logit(client, path, body) == CUT


@pytest.mark.parametrize(("path", "body"), DIALECTS)
async def test_the_setting_overrides_the_model(serve: Serve, path: str, body: Any) -> None:
    async with serve(long_documents="truncate") as client:
        assert await logit(client, path, body) == CUT
        for route in ("/health", "/info"):
            assert (await client.get(route)).json()["long_documents"] == "truncate"
    async with serve(long_documents="refuse") as client:
        refused = await client.post(path, json=body)
    assert refused.status_code == 422
    assert "[0]: the query and this document exceed the model's window" in refused.text
    assert "RERANKER_LONG_DOCUMENTS" in refused.text
    assert "request does not allow" not in refused.text


async def test_operators_see_the_models_default(serve: Serve) -> None:
    async with serve() as client:
        for route in ("/health", "/info"):
            assert (await client.get(route)).json()["long_documents"] == "chunk_max"


@pytest.mark.parametrize("setting", ["auto", "truncate", "refuse"])
@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/v1/rerank", NATIVE | {"long_documents": "truncate"}, CUT),
        ("/v1/rerank", NATIVE | {"long_documents": "chunk_max"}, BEST),
        ("/v1/rerank", NATIVE | {"long_documents": "refuse"}, None),
        ("/rerank", TEI | {"truncate": True}, CUT),
        ("/rerank", TEI | {"truncate": False}, None),
        ("/v1/ranking", NIM | {"truncate": "END"}, CUT),
        ("/v1/ranking", NIM | {"truncate": "NONE"}, None),
        ("/score", SCORE | {"truncate_prompt_tokens": 1}, CUT),
        ("/v1/rerank", NATIVE | {"max_tokens_per_doc": 1}, CUT),
        ("/v1/rerank", NATIVE | {"long_documents": "chunk_max", "max_tokens_per_doc": 4}, BEST),
    ],
)
async def test_the_request_overrides_the_setting(
    serve: Serve, setting: str, path: str, body: Any, expected: float | None
) -> None:
    async with serve(long_documents=setting) as client:
        if expected is None:
            response = await client.post(path, json=body)
            assert response.status_code == 422
            assert "the request does not allow truncation" in response.text
        else:
            assert await logit(client, path, body) == expected


@pytest.mark.parametrize("limit", [{"max_tokens_per_doc": 4096}, {"truncate_prompt_tokens": -1}])
async def test_a_token_limit_above_the_window_keeps_the_default(serve: Serve, limit: dict[str, int]) -> None:
    async with serve() as client:
        assert await logit(client, "/v1/rerank", NATIVE | limit) == BEST


async def test_null_keeps_the_default(serve: Serve) -> None:
    async with serve() as client:
        assert await logit(client, "/rerank", TEI | {"truncate": None}) == BEST
        assert await logit(client, "/v1/ranking", NIM | {"truncate": None}) == BEST
        assert await logit(client, "/v1/rerank", NATIVE | {"long_documents": None}) == BEST


async def test_a_split_document_reports_its_window_and_is_not_truncated(serve: Serve) -> None:
    async with serve() as client:
        response = await client.post("/v1/rerank", json=NATIVE)
        long, short = response.json()["results"]
        assert LONG[long["window"]["start"] : long["window"]["end"]] == "the moon causes tides"
        assert short.keys() == {"index", "relevance_score"}
        body = response.json()
        assert (body["meta"]["truncated"], body["meta"]["scored"]) == (0, 4)
        tokens = (3 + 1) + (3 + 4) + (3 + 1) + (3 + 1)
        assert body["usage"]["total_tokens"] == int(response.headers["x-compute-tokens"]) == tokens
        assert (await client.get("/metrics?format=json")).json()["truncated_documents"] == 0
        few = (await client.post("/v1/rerank", json=NATIVE | {"max_chunks_per_doc": 2})).json()
        assert (few["meta"]["truncated"], few["meta"]["cached"]) == (1, 3)


async def test_documents_that_fit_get_the_same_answer_in_both_modes(serve: Serve) -> None:
    body = NATIVE | {"documents": [SHORT, "bread", ""]}
    answers = []
    for setting in ("truncate", "chunk_max"):
        async with serve(long_documents=setting) as client:
            answers.append((await client.post("/v1/rerank", json=body)).json())
    for answer in answers:
        del answer["meta"]["timings_ms"], answer["meta"]["cost"]
    names = ("results", "usage", "meta")
    assert [answers[0][name] for name in names] == [answers[1][name] for name in names]


async def test_cached_documents_take_no_slot(serve: Serve, engine: FakeEngine) -> None:
    fitting = NATIVE | {"documents": [SHORT, "bread"]}
    async with serve(max_parallel=1, max_queue=0) as client:
        await client.post("/v1/rerank", json=fitting | {"long_documents": "truncate"})
        await client.post("/v1/rerank", json=NATIVE)
        engine.gate.clear()
        busy = asyncio.create_task(client.post("/v1/rerank", json=fitting | {"query": "another"}))
        await until(lambda: serve.reranker.admission.active == 1)
        for body, passages in ((fitting, 2), (NATIVE, 4)):
            known = await client.post("/v1/rerank", json=body)
            assert (known.status_code, known.json()["meta"]["cached"]) == (200, passages)
        # A new document next to them may be a long one, too.
        more = NATIVE | {"documents": [LONG, "cheese"]}
        assert (await client.post("/v1/rerank", json=more)).status_code == 429
        engine.gate.set()
        assert (await busy).status_code == 200


async def test_scores_of_a_cut_document_and_of_its_windows_are_kept_apart(serve: Serve, engine: FakeEngine) -> None:
    async with serve() as client:
        assert await logit(client, "/rerank", TEI | {"truncate": True}) == CUT
        for cached in (1, 4):  # the short document is cached by the first request
            response = (await client.post("/v1/rerank", json=NATIVE)).json()
            assert response["results"][0]["relevance_score"] == BEST
            assert (response["meta"]["cached"], response["meta"]["truncated"]) == (cached, 0)
        assert await logit(client, "/rerank", TEI | {"truncate": True}) == CUT


async def test_a_document_that_fits_is_tokenized_only_once(
    serve: Serve, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    encode = engine.encode
    async with serve() as client:
        monkeypatch.setattr(
            engine, "encode", lambda query, documents, *more: seen.extend(documents) or encode(query, documents, *more)
        )
        assert (await client.post("/v1/rerank", json=NATIVE)).status_code == 200
    assert sorted(seen) == sorted([LONG, SHORT, *LONG.split("\n")])


async def test_cached_windows_are_not_found_again(
    serve: Serve, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve() as client:
        first = (await client.post("/v1/rerank", json=NATIVE)).json()
        # Scored in the meantime, but cut: its windows are still the ones that count.
        await client.post("/v1/rerank", json=NATIVE | {"long_documents": "truncate"})
        monkeypatch.setattr(engine, "encode", None)
        monkeypatch.setattr(engine, "windows", None)
        second = (await client.post("/v1/rerank", json=NATIVE)).json()
        assert second["results"] == first["results"]
        assert second["results"][0]["window"] == {"start": 6, "end": 27}
        fewer = await client.post("/v1/rerank", json=NATIVE | {"long_documents": "chunk_max", "max_chunks_per_doc": 1})
        assert (fewer.status_code, fewer.json()["meta"]["truncated"]) == (200, 1)


def test_a_window_with_the_text_of_a_long_document_is_not_split_again() -> None:
    [whole] = RerankQuery("q", ["a b"]).passages()
    spans = [(0, 1), (2, 3)]
    for passage, expected in ((whole, {0: spans}), (whole._replace(span=(0, 3)), {})):
        progress = Progress(RerankQuery("q", ["a b"]), "chunk_max", keyed=KeyedPassages([b"key"], [passage]))
        assert progress.windows(lambda _: spans) == expected


async def test_default_windows_over_the_limit_are_cut(serve: Serve) -> None:
    body = {"query": "a", "documents": ["a\n" * 9000, "b\n" * 9000, "a b"]}
    async with serve() as client:
        response = await client.post("/v1/rerank", json=body)
        assert response.status_code == 200, response.text
        assert response.json()["meta"]["truncated"] == 2
        pairs = response.json()["meta"]["scored"] + response.json()["meta"]["cached"]
        assert MAX_DOCUMENTS - 2 <= pairs <= MAX_DOCUMENTS
        asked = await client.post("/v1/rerank", json=body | {"long_documents": "chunk_max"})
    assert asked.status_code == 413
    assert asked.json()["message"] == "documents: at most 10000 windows are accepted, got 18001"


@pytest.mark.parametrize(
    ("counts", "most", "read"),
    [
        ([2, 3], None, [2, 3]),
        ([2, 3], 2, [2, 2]),
        ([9000, 9000], None, [5000, 5000]),
        ([100, 9000, 9000], None, [100, 4950, 4950]),
        ([20_000, 1], None, [9999, 1]),
        ([20_000] * 3, None, [3333] * 3),
        ([20_000] * 3, 10, [10] * 3),
    ],
)
def test_long_documents_share_the_limit_of_windows(counts: list[int], most: int | None, read: list[int]) -> None:
    query = RerankQuery("q", ["x"] * len(counts), max_windows=most)
    spans = {index: [(0, 1)] * count for index, count in enumerate(counts) if count > 1}
    passages = put_windows(query, query.passages(), spans)
    assert [sum(passage.document == index for passage in passages) for index in range(len(counts))] == read
    cut = {passage.document for passage in passages if passage.cut}
    assert cut == {index for index, count in enumerate(counts) if count > read[index]}
