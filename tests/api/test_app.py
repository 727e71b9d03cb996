"""The API over real HTTP, with a fake engine."""

import asyncio
import json
import re
from dataclasses import replace
from typing import Any

import httpx
import pytest

from app.errors import InvalidRequest, QueueFull, RerankerError
from tests.conftest import Serve, until
from tests.fakes import FakeEngine

DOCUMENTS = ["bread and butter", "tides of the moon", "the moon causes the tides", "stock markets"]
BODY: dict[str, Any] = {"query": "what causes tides", "documents": DOCUMENTS}


def indices(response: httpx.Response) -> list[int]:
    assert response.status_code == 200, response.text
    return [result["index"] for result in response.json()["results"]]


@pytest.mark.parametrize("path", ["/rerank/query", "/rerank"])
async def test_results_are_ordered_by_score_then_index(serve: Serve, path: str) -> None:
    async with serve() as client:
        response = await client.post(path, json=BODY)
    assert indices(response) == [2, 1, 0, 3]
    body = response.json()
    assert body["object"] == "rerank"
    assert body["model"] == "fake"
    assert body["id"] == response.headers["x-request-id"]
    assert [result["relevance_score"] for result in body["results"]] == pytest.approx(
        [0.8176, 0.6225, 0.3775, 0.3775], abs=1e-4
    )
    assert all("document" not in result and "id" not in result for result in body["results"])
    tokens = sum(3 + len(document.split()) for document in DOCUMENTS)
    assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    meta = body["meta"]
    assert (meta["documents"], meta["scored"], meta["cached"], meta["truncated"]) == (4, 4, 0, 0)
    assert meta["degraded"] is False
    assert set(meta["timings_ms"]) == {"queue", "prefilter", "tokenize", "inference", "total"}
    assert meta["billed_units"] == {"search_units": 1}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"top_k": 2}, [2, 1]),
        ({"top_n": 1}, [2]),
        ({"top_k": 100}, [2, 1, 0, 3]),
        ({"top_k": None, "top_n": None, "score_threshold": None}, [2, 1, 0, 3]),
        ({"score_threshold": 0.5}, [2, 1]),
        ({"score_threshold": 0, "raw_scores": True}, [2, 1]),
        ({"max_tokens_per_doc": 1}, [1, 0, 2, 3]),
        ({"unknown": {"keys": "are ignored"}, "model": "rerank-v3.5", "user": "u1"}, [2, 1, 0, 3]),
    ],
)
async def test_options(serve: Serve, options: dict[str, Any], expected: list[int]) -> None:
    async with serve() as client:
        assert indices(await client.post("/rerank/query", json=BODY | options)) == expected


async def test_other_names_for_the_documents(serve: Serve) -> None:
    async with serve() as client:
        for name in ("passages", "texts"):
            body = {"query": BODY["query"], "documents": None, name: DOCUMENTS}
            assert indices(await client.post("/rerank/query", json=body)) == [2, 1, 0, 3]


async def test_raw_scores_are_logits(serve: Serve) -> None:
    async with serve() as client:
        response = await client.post("/rerank/query", json=BODY | {"raw_scores": "true"})
    assert [result["relevance_score"] for result in response.json()["results"]] == [1.5, 0.5, -0.5, -0.5]


async def test_returned_documents_are_objects_with_the_sent_fields(serve: Serve) -> None:
    documents = [
        "tides",
        {"text": "causes tides", "id": "d7", "metadata": {"page": 3, "note": None}},
        {"text": "x", "id": 4},
    ]
    async with serve() as client:
        response = await client.post("/rerank", json=BODY | {"documents": documents, "return_documents": "true"})
    first, second, third = response.json()["results"]
    assert first["document"] == {"text": "causes tides", "id": "d7", "metadata": {"page": 3, "note": None}}
    assert (first["index"], first["id"]) == (1, "d7")
    assert second["document"] == {"text": "tides"}
    assert third["id"] == 4


async def test_truncated_documents_are_counted_even_from_the_cache(serve: Serve) -> None:
    async with serve() as client:
        for cached in (0, 4):
            response = await client.post("/rerank", json=BODY | {"max_tokens_per_doc": 3})
            meta = response.json()["meta"]
            assert (meta["truncated"], meta["cached"]) == (2, cached)
            assert response.json()["usage"]["prompt_tokens"] == 4 * 3 + 3 + 3 + 3 + 2


async def test_a_token_limit_that_cuts_nothing_hits_the_cache_of_no_limit(serve: Serve) -> None:
    async with serve() as client:
        for limit, cached in ((None, 0), (512, 4), (100_000, 4), (511, 0)):
            response = await client.post("/rerank", json=BODY | {"max_tokens_per_doc": limit})
            assert response.json()["meta"]["cached"] == cached


async def test_messages_list_the_allowed_values_and_name_the_route(serve: Serve) -> None:
    async with serve() as client:
        wrong = await client.post("/rerank/query", json=BODY | {"prefilter": "best"})
        assert wrong.json()["message"] == (
            "prefilter: should be 'off', 'lexical', 'embedding', 'hybrid', true, false, or a number of 0 or more, "
            'got "best"'
        )
        assert (await client.get("/rernk")).json()["message"] == 'There is no route "/rernk"'


async def test_probes_may_use_head_and_the_root_redirects_to_the_docs(serve: Serve) -> None:
    async with serve(ui=False) as client:
        for path in ("/health", "/health/live", "/health/ready"):
            assert (await client.head(path)).status_code == 200
        assert (await client.get("/")).headers["location"] == "/docs"


async def test_cached_pairs_are_not_scored_again(serve: Serve, engine: FakeEngine) -> None:
    async with serve() as client:
        await client.post("/rerank", json=BODY)
        response = await client.post("/rerank", json=BODY | {"documents": [*reversed(DOCUMENTS), "new tides"]})
        assert indices(response) == [1, 2, 4, 0, 3]
        assert (response.json()["meta"]["cached"], response.json()["meta"]["scored"]) == (4, 1)
        assert sum(map(len, engine.batches)) == 5
        assert (await client.get("/metrics?format=json")).json()["cache"] == {
            "entries": 5,
            "hits": 4,
            "misses": 5,
            "hit_rate": pytest.approx(4 / 9, abs=1e-6),
        }


async def test_without_cache_everything_is_scored_again(serve: Serve, engine: FakeEngine) -> None:
    async with serve(prediction_cache=False) as client:
        for _ in range(2):
            assert (await client.post("/rerank", json=BODY)).json()["meta"]["cached"] == 0
    assert sum(map(len, engine.batches)) == 8


async def test_cache_hits_need_no_slot(serve: Serve, engine: FakeEngine) -> None:
    async with serve(max_parallel=1, max_queue=0) as client:
        await client.post("/rerank", json=BODY)
        engine.gate.clear()
        busy = asyncio.create_task(client.post("/rerank", json=BODY | {"query": "another"}))
        await until(lambda: serve.reranker.admission.active == 1)
        assert indices(await client.post("/rerank", json=BODY)) == [2, 1, 0, 3]
        assert (await client.post("/rerank", json=BODY | {"query": "a third"})).status_code == 429
        engine.gate.set()
        assert (await busy).status_code == 200


async def test_concurrent_requests_for_the_same_pairs_score_them_once(serve: Serve, engine: FakeEngine) -> None:
    async with serve(max_parallel=8) as client:
        engine.gate.clear()
        requests = [asyncio.create_task(client.post("/rerank", json=BODY)) for _ in range(5)]
        await until(lambda: serve.reranker.admission.active == 5)
        engine.gate.set()
        assert all(indices(response) == [2, 1, 0, 3] for response in await asyncio.gather(*requests))
    assert sum(map(len, engine.batches)) == 4


ERRORS = [
    ({"documents": ["a"]}, 422, "query: field required"),
    ({"query": "", "documents": ["a"]}, 422, "query: must not be empty"),
    ({"query": 5, "documents": ["a"]}, 422, "query: input should be a valid string, got 5"),
    ({"query": "q"}, 422, "documents: field required"),
    ({"query": "q", "documents": []}, 422, "documents: at least one is required"),
    ({"query": "q", "documents": 7}, 422, "documents: input should be a valid list, got 7"),
    ({"query": "q", "documents": ["a", 7]}, 422, "documents[1]: must be a string or an object, got 7"),
    ({"query": "q", "documents": ["a", {"body": "b"}]}, 422, "documents[1]: has no 'text'"),
    ({"query": "q", "documents": ["a"], "top_k": -2}, 422, "top_k: input should be greater than or equal to 1, got -2"),
    (
        {"query": "q", "documents": ["a"], "score_threshold": "x"},
        422,
        "score_threshold: input should be a valid number",
    ),
    ({"query": "q", "documents": ["a"] * 6}, 413, "documents: at most 5 are accepted (RERANKER_MAX_DOCUMENTS), got 6"),
    (
        {"query": "q", "documents": ["a", "b" * 51]},
        413,
        "documents[1]: at most 50 characters are accepted (RERANKER_MAX_TEXT_CHARS), got 51",
    ),
    ({"query": "q" * 60, "documents": ["a"]}, 413, "query: at most 50 characters"),
    (
        {"query": "q", "documents": ["a" * 50] * 5, "user": "u" * 2000},
        413,
        "body: at most 2000 bytes are accepted (RERANKER_MAX_BODY_BYTES), got 2",
    ),
    ({"query": "q", "documents": ["a"], "timeout_ms": 10**400}, 422, "timeout_ms: input should be less than or equal"),
    ([1, 2], 422, "body: must be an object, got"),
]


@pytest.mark.parametrize(("body", "status", "message"), ERRORS)
async def test_errors_name_the_field_the_limit_and_the_value(
    serve: Serve, engine: FakeEngine, body: Any, status: int, message: str
) -> None:
    async with serve(max_documents=5, max_text_chars=50, max_body_bytes=2000) as client:
        response = await client.post("/rerank/query", json=body)
        assert response.status_code == status
        error = response.json()
        assert message in error["message"]
        assert error["detail"] == error["message"] == error["error"]["message"]
        assert error["error"]["code"] == status
        assert error["id"] == response.headers["x-request-id"]
        assert engine.batches == []
        assert (await client.post("/rerank/query", json={"query": "q", "documents": ["a"]})).status_code == 200


def nested(depth: int) -> Any:
    return {"deeper": nested(depth - 1)} if depth else 1


@pytest.mark.parametrize("metadata", [nested(900), {"a": nested(900), "b": "\\ud800"}])
async def test_metadata_that_cannot_be_echoed_is_rejected_before_scoring(
    serve: Serve, engine: FakeEngine, metadata: Any
) -> None:
    document = {"text": "a", "metadata": metadata}
    content = json.dumps({"query": "q", "documents": [document], "return_documents": True}).replace("\\\\u", "\\u")
    async with serve() as client:
        response = await client.post("/rerank", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert "documents[0]: must be JSON" in response.json()["message"]
    assert engine.batches == []


@pytest.mark.parametrize("item", ["1", '"a"', "[]"])
async def test_a_body_full_of_documents_costs_little(serve: Serve, item: str) -> None:
    content = '{"query": "q", "documents": [' + ",".join([item] * 1_000_000) + "]}"
    async with serve() as client:
        response = await client.post("/rerank", content=content, headers={"content-type": "application/json"})
        assert response.status_code in (413, 422)
        assert len(response.content) < 2000


@pytest.mark.parametrize(
    ("content", "content_type", "status", "message"),
    [
        (b'{"query": "q", ', "application/json", 400, "not valid JSON"),
        (b"\xff\xfe", "application/json", 400, "not valid JSON"),
        (b'{"query":"q","documents":["a"]}', "text/plain", 415, "Content-Type: application/json"),
        (b'{"query":"\\ud800","documents":["a"]}', "application/json", 422, "query: input should be a valid string"),
        (b"[" * 100_000, "application/json", 400, "nested too deeply"),
        (b"", "application/json", 400, "The body is empty"),
    ],
)
async def test_bodies_that_are_not_json(
    serve: Serve, content: bytes, content_type: str, status: int, message: str
) -> None:
    async with serve() as client:
        response = await client.post("/rerank", content=content, headers={"content-type": content_type})
        assert response.status_code == status
        assert message in response.json()["message"]
        refused = serve.service.metrics.registry.get_sample_value("reranker_rejections_total", {"reason": "invalid"})
        assert refused == 1


async def test_a_body_without_content_length_is_limited_too(serve: Serve) -> None:
    async def chunks() -> Any:
        for _ in range(100):
            yield b" " * 1000

    async with serve(max_body_bytes=50_000) as client:
        response = await client.post("/rerank", content=chunks(), headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert "at most 50000 bytes" in response.json()["message"]


async def test_a_full_queue_answers_with_retry_after(serve: Serve, engine: FakeEngine) -> None:
    async with serve(max_parallel=1, max_queue=1) as client:
        engine.gate.clear()
        accepted = [
            asyncio.create_task(client.post("/rerank", json=BODY | {"query": f"tides {number}"})) for number in range(2)
        ]
        await until(lambda: serve.reranker.admission.waiting == 1)
        refused = await client.post("/rerank", json=BODY | {"query": "tides 9"})
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["message"].startswith("Queue is full")
        health = (await client.get("/health")).json()
        assert (health["status"], health["active"], health["waiting"]) == ("ok", 1, 1)
        engine.gate.set()
        assert [response.status_code for response in await asyncio.gather(*accepted)] == [200, 200]
        figures = (await client.get("/metrics", headers={"accept": "application/json"})).json()
        assert figures["rejections"] == {"queue_full": 1}
        assert figures["requests"]["by_status"] == {"200": 2, "429": 1}
        assert figures["requests"]["success_rate"] == pytest.approx(2 / 3, abs=1e-6)


async def test_retry_after_estimates_the_time_of_the_running_requests(serve: Serve, engine: FakeEngine) -> None:
    """A large request has just started: the estimate covers all of its remaining work."""
    async with serve(max_parallel=1, max_queue=0) as client:
        engine.seconds_per_token = 0.0005
        assert (await client.post("/rerank", json=BODY)).status_code == 200  # measures the speed
        speed, before = serve.reranker.batcher.speed, engine.entered
        engine.gate.clear()
        large = {"query": "tides", "documents": [f"{number} " * 500 for number in range(40)]}
        accepted = asyncio.create_task(client.post("/rerank", json=large))
        await until(lambda: engine.entered > before)
        refused = await client.post("/rerank", json=BODY | {"query": "x"})
        assert refused.status_code == 429
        assert float(refused.headers["retry-after"]) == pytest.approx(min(60, 40 * 501 / speed), abs=1)
        engine.seconds_per_token = 0.0
        engine.gate.set()
        assert (await accepted).status_code == 200
        assert serve.reranker.batcher.backlog == 0


async def test_the_status_of_a_full_queue_is_a_setting(serve: Serve, engine: FakeEngine) -> None:
    async with serve(max_parallel=1, max_queue=0, overload_status=503) as client:
        engine.gate.clear()
        accepted = asyncio.create_task(client.post("/rerank", json=BODY))
        await until(lambda: serve.reranker.admission.active == 1)
        assert (await client.post("/rerank", json=BODY | {"query": "x"})).status_code == 503
        engine.gate.set()
        await accepted


async def test_queue_timeout_is_503_with_retry_after(serve: Serve, engine: FakeEngine) -> None:
    async with serve(max_parallel=1, queue_timeout=0.05) as client:
        engine.gate.clear()
        accepted = asyncio.create_task(client.post("/rerank", json=BODY))
        await until(lambda: serve.reranker.admission.active == 1)
        response = await client.post("/rerank", json=BODY | {"query": "x"})
        assert response.status_code == 503
        assert "retry-after" in response.headers
        assert "RERANKER_QUEUE_TIMEOUT" in response.json()["message"]
        engine.gate.set()
        assert (await accepted).status_code == 200


@pytest.mark.parametrize(("settings", "body"), [({}, {"timeout_ms": 40}), ({"request_timeout": 0.04}, {})])
async def test_a_passed_deadline_is_504_and_leaves_no_work(
    serve: Serve, engine: FakeEngine, settings: Any, body: Any
) -> None:
    async with serve(batch_tokens=16, **settings) as client:
        engine.gate.clear()
        response = await client.post("/rerank", json=BODY | body)
        assert response.status_code == 504
        assert "0.04 s" in response.json()["message"]
        reranker = serve.reranker
        assert (reranker.admission.active, reranker.batcher.pending) == (0, 0)
        engine.gate.set()


async def test_a_failing_model_is_500_with_an_id_and_no_internals(
    serve: Serve, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve() as client:
        engine.failure = RuntimeError("weights at 0xdeadbeef")
        response = await client.post("/rerank", json=BODY)
        assert response.status_code == 500
        assert "deadbeef" not in response.text
        assert "Traceback" not in response.text
        assert response.json()["error"]["type"] == "scoring_failed"
        engine.failure = None
        assert indices(await client.post("/rerank", json=BODY)) == [2, 1, 0, 3]
        assert (await client.get("/health")).status_code == 200


async def test_an_unexpected_error_is_500_with_an_id_and_the_next_request_succeeds(
    serve: Serve, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve() as client:
        with monkeypatch.context() as patch:
            patch.setattr(engine, "encode", lambda *_: 1 / 0)
            response = await client.post("/rerank", json=BODY, headers={"x-request-id": "find-me"})
        assert response.status_code == 500
        assert "find-me" in response.json()["message"]
        assert "division" not in response.text
        assert "ZeroDivisionError" in caplog.text
        assert indices(await client.post("/rerank", json=BODY)) == [2, 1, 0, 3]


@pytest.mark.parametrize(("base", "status"), [(QueueFull, 429), (InvalidRequest, 422), (RerankerError, 500)])
async def test_a_subclass_of_an_error_has_the_status_of_its_base_class(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, base: type[RerankerError], status: int
) -> None:
    async def fail(_: object) -> None:
        raise type("Special", (base,), {})("special")

    async with serve() as client:
        monkeypatch.setattr(serve.reranker, "rerank", fail)
        response = await client.post("/rerank", json=BODY)
    assert (response.status_code, response.json()["message"]) == (status, "special")


async def test_a_stopped_inference_loop_makes_the_service_unready(serve: Serve) -> None:
    async with serve() as client:
        serve.reranker.batcher.close()
        for path in ("/health", "/health/ready"):
            assert (await client.get(path)).status_code == 503
        assert (await client.get("/health")).json()["status"] == "unhealthy"
        assert (await client.get("/health/live")).status_code == 200
        assert (await client.post("/rerank", json=BODY)).status_code == 503


async def test_health_shows_loading_and_draining(serve: Serve, engine: FakeEngine) -> None:
    async with serve() as client:
        service = serve.service
        for phase in ("loading", "draining"):
            service.lifecycle.phase = phase
            assert (await client.get("/health/ready")).status_code == 503
            assert (await client.get("/health")).json()["status"] == phase
            refused = await client.post("/rerank", json=BODY)
            assert refused.status_code == 503
            assert "retry-after" in refused.headers
            assert refused.headers["connection"] == "close"
            assert (await client.get("/health/live")).status_code == 200
        assert engine.batches == []


async def test_info_says_why_the_model_was_not_exported(serve: Serve, engine: FakeEngine) -> None:
    reason = "tiny cannot be exported for openvino int8: no such operation"
    engine.info = replace(engine.info, failed_exports=(reason,))
    async with serve() as client:
        assert (await client.get("/info")).json()["failed_exports"] == [reason]


async def test_health_and_info_show_the_model_and_engine(serve: Serve) -> None:
    async with serve(max_parallel=3, max_queue=7, max_documents=99) as client:
        health, info = (await client.get("/health")).json(), (await client.get("/info")).json()
    assert health["max_parallel"] == 3
    assert health["max_queue"] == 7
    assert (health["model"], health["device"], health["backend"]) == ("fake", "cpu", "fake")
    assert info["model_id"] == "fake"
    assert info["model_type"] == {"reranker": {"id2label": {"0": "relevance"}, "label2id": {"relevance": 0}}}
    assert (info["max_client_batch_size"], info["max_concurrent_requests"]) == (99, 10)


async def test_metrics_as_prometheus_text(serve: Serve) -> None:
    async with serve() as client:
        await client.post("/rerank", json=BODY)
        text = (await client.get("/metrics")).text
    assert 'reranker_requests_total{status="200"} 1.0' in text
    assert 'reranker_documents_total{source="model"} 4.0' in text
    assert "reranker_ready 1.0" in text
    assert 'backend="fake"' in text
    assert "process_resident_memory_bytes" in text


async def test_metrics_add_up(serve: Serve) -> None:
    async with serve() as client:
        for number in range(3):
            await client.post("/rerank", json=BODY | {"query": f"tides {number}"})
        figures = (await client.get("/metrics?format=json")).json()
    assert figures["requests"]["total"] == 3
    assert figures["requests"]["success_rate"] == 1.0
    assert figures["average_processing_seconds"] > 0
    assert figures["average_wait_seconds"] is not None
    lengths = [2 + len(document.split()) for document in DOCUMENTS]
    padding = figures["batches"]["padding_ratio"] * figures["batches"]["tokens"]
    assert figures["batches"]["tokens"] - padding == pytest.approx(3 * sum(lengths), abs=0.01)


async def test_valid_request_ids_are_kept_and_others_replaced(serve: Serve) -> None:
    async with serve() as client:
        for given, taken in (("abc-123", True), ("a b\tc", False), ("x" * 200, False)):
            response = await client.post("/rerank", json=BODY, headers={"x-request-id": given})
            assert (response.headers["x-request-id"] == given) is taken
            assert response.json()["id"] == response.headers["x-request-id"]


async def test_openapi_shows_real_examples(serve: Serve) -> None:
    async with serve() as client:
        schema = (await client.get("/openapi.json")).json()
        example = schema["components"]["schemas"]["RerankRequest"]["examples"][0]
        assert (await client.post("/rerank/query", json=example)).status_code == 200
    operation = schema["paths"]["/rerank/query"]["post"]
    assert {"200", "400", "413", "422", "429", "500", "503", "504"} <= set(operation["responses"])
    assert "HTTPValidationError" not in json.dumps(schema)


async def test_the_documentation_page_needs_no_network(serve: Serve) -> None:
    async with serve() as client:
        page = (await client.get("/docs")).text
        assets = re.findall(r"""(?:src|href)=["']([^"']+)""", page)
        assert len(assets) >= 2
        for asset in assets:
            assert asset.startswith("/")
            assert (await client.get(asset)).status_code == 200


async def test_unknown_paths_and_methods_get_the_error_body(serve: Serve) -> None:
    async with serve() as client:
        for response in (await client.get("/nothing"), await client.get("/rerank")):
            assert response.status_code in (404, 405)
            assert response.json()["error"]["code"] == response.status_code


@pytest.mark.parametrize(("priorities", "expected"), [(True, [5, 4]), (False, [4, 5])])
async def test_priorities_count_only_if_the_setting_is_on(
    serve: Serve, engine: FakeEngine, priorities: bool, expected: list[int]
) -> None:
    async with serve(max_parallel=1, priorities=priorities) as client:
        engine.gate.clear()
        tasks = []
        for number, priority in enumerate([0, 5, -5]):
            documents = ["word " * (2 + number)]
            body = {"query": "a", "documents": documents, "priority": priority}
            tasks.append(asyncio.create_task(client.post("/rerank", json=body)))
            await until(lambda: engine.entered == 1 and serve.reranker.admission.waiting == number)  # noqa: B023
        engine.gate.set()
        assert {(await task).status_code for task in tasks} == {200}
    assert [length for [length] in engine.batches[1:]] == expected
