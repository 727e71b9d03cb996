"""Requests as the clients of other services send them, and the answers that those clients expect."""

import asyncio
from typing import Any

import httpx
import pytest

from tests.conftest import Serve, until
from tests.fakes import FakeEngine

QUERY = "what causes tides"
DOCUMENTS = ["bread and butter", "tides of the moon", "the moon causes the tides", "stock markets"]
BEST_FIRST = [2, 1, 0, 3]
NATIVE = {"query": QUERY, "documents": DOCUMENTS}
TEI = {"query": QUERY, "texts": DOCUMENTS}
SCORE = {"text_1": QUERY, "text_2": DOCUMENTS}
NIM = {"model": "nv", "query": {"text": QUERY}, "passages": [{"text": text} for text in DOCUMENTS]}


async def answer(client: httpx.AsyncClient, path: str, body: Any) -> Any:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


# llama.cpp, OpenVINO Model Server, KServe, OpenRouter, Azure, DashScope, SageMaker.
OTHERS = ["/v1/reranking", "/v3/rerank", "/openai/v1/rerank", "/openai/v2/rerank", "/api/v1/rerank"]
OTHERS += ["/providers/cohere/v2/rerank", "/v1/reranks", "/reranks", "/compatible-api/v1/reranks", "/invocations"]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank", "/reranking", *OTHERS])
async def test_cohere_jina_and_vllm(serve: Serve, path: str) -> None:
    async with serve() as client:
        body = await answer(client, path, NATIVE | {"model": "rerank-v3.5", "top_n": 4, "max_tokens_per_doc": None})
    assert [result["index"] for result in body["results"]] == BEST_FIRST
    assert all(result.keys() == {"index", "relevance_score"} for result in body["results"])
    assert body["model"] == "fake"
    assert body["usage"]["total_tokens"] > 0
    assert body["meta"]["billed_units"] == {"search_units": 1}


async def test_vllm_sends_minus_one_or_zero_for_no_token_limit(serve: Serve) -> None:
    async with serve() as client:
        for none in ({"truncate_prompt_tokens": -1}, {"max_tokens_per_doc": 0}, {"top_n": 0}):
            body = await answer(client, "/v1/rerank", NATIVE | none)
            assert (body["meta"]["truncated"], len(body["results"])) == (0, 4)
        body = await answer(client, "/v1/rerank", NATIVE | {"truncate_prompt_tokens": 3})
        assert body["meta"]["truncated"] == 2


@pytest.mark.parametrize("name", ["use_activation", "activation"])
async def test_vllm_asks_for_logits_with_use_activation(serve: Serve, name: str) -> None:
    async with serve() as client:
        ranked = await answer(client, "/v1/rerank", NATIVE | {name: False})
        data = (await answer(client, "/score", {"data_1": QUERY, "data_2": DOCUMENTS, name: False}))["data"]
    assert [result["relevance_score"] for result in ranked["results"]] == [1.5, 0.5, -0.5, -0.5]
    assert sorted((each["score"] for each in data), reverse=True) == [1.5, 0.5, -0.5, -0.5]


async def test_tei_gets_a_bare_list(serve: Serve) -> None:
    async with serve() as client:
        ranks = await answer(client, "/rerank", TEI | {"truncate": None, "truncation_direction": "Right"})
        assert [rank["index"] for rank in ranks] == BEST_FIRST
        assert all(rank.keys() == {"index", "score"} for rank in ranks)
        ranks = await answer(client, "/rerank", TEI | {"raw_scores": True, "return_text": True})
    assert [rank["score"] for rank in ranks] == [1.5, 0.5, -0.5, -0.5]
    assert [rank["text"] for rank in ranks] == [DOCUMENTS[index] for index in BEST_FIRST]


@pytest.mark.parametrize("other", [{"documents": None}, {"passages": None}, {}])
async def test_a_body_with_only_texts_is_tei(serve: Serve, other: dict[str, Any]) -> None:
    async with serve() as client:
        assert isinstance(await answer(client, "/rerank", TEI | other), list)
        assert isinstance(await answer(client, "/rerank", TEI | {"documents": DOCUMENTS}), dict)
        assert isinstance(await answer(client, "/rerank/query", TEI), dict)


async def test_score_answers_in_the_order_of_the_request(serve: Serve) -> None:
    async with serve() as client:
        for path in ("/score", "/v1/score"):
            body = await answer(client, path, SCORE | {"raw_scores": "true"})
            assert [(item["index"], item["score"]) for item in body["data"]] == list(enumerate([-0.5, 0.5, 1.5, -0.5]))
    assert (body["object"], body["data"][0]["object"], body["model"]) == ("list", "score", "fake")
    assert body["usage"]["prompt_tokens"] > 0


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"text_1": "a", "text_2": "a"}, [0.5]),
        ({"text_1": ["a", "b"], "text_2": ["a", "a b"]}, [0.5, 0.5]),
        ({"text_1": ["a", "b", "a"], "text_2": ["a", "a", "c a"]}, [0.5, -0.5, 0.5]),
        ({"queries": ["a b"], "documents": ["a", "b a", "c"]}, [0.5, 1.5, -0.5]),
    ],
)
async def test_score_takes_pairs(serve: Serve, body: dict[str, Any], expected: list[float]) -> None:
    async with serve() as client:
        for _ in range(2):  # the second time from the cache
            data = (await answer(client, "/score", body | {"raw_scores": True}))["data"]
            assert [item["score"] for item in data] == expected


async def test_nim_gets_logits(serve: Serve) -> None:
    async with serve() as client:
        body = await answer(client, "/v1/ranking", NIM | {"truncate": "END"})
    assert [item["index"] for item in body["rankings"]] == BEST_FIRST
    assert [item["logit"] for item in body["rankings"]] == [1.5, 0.5, -0.5, -0.5]
    assert body["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("path", ["/v1/health", "/v1/health/live", "/v1/health/ready", "/v2/health/ready", "/ping"])
async def test_probes_of_other_services(serve: Serve, path: str) -> None:
    """NIM, KServe, llama.cpp and SageMaker. Like our own they need no key and are 503 if the service is not ready."""
    async with serve(api_keys="k", max_connections=1) as client:
        assert (await client.get(path)).status_code == (await client.head(path)).status_code == 200
        async with httpx.AsyncClient(base_url=client.base_url) as over_the_limit:
            assert (await over_the_limit.get(path)).status_code == 200
        serve.service.lifecycle.drain()
        assert (await client.get(path)).status_code == (200 if path.endswith("live") else 503)


async def test_sagemaker_invocations_take_both_bodies(serve: Serve) -> None:
    async with serve() as client:
        assert isinstance(await answer(client, "/invocations", TEI), list)
        assert isinstance(await answer(client, "/invocations", NATIVE), dict)
        wrong = await client.post("/invocations", json=TEI | {"texts": []})
    assert wrong.json()["error_type"] == "Validation"


@pytest.mark.parametrize("model", ["fake", "FAKE", "org/fake", "gpt"])
async def test_a_model_is_found_by_its_name(serve: Serve, model: str) -> None:
    async with serve() as client:
        response = await client.get(f"/v1/models/{model}")
        for other in ("/v3/models", "/openai/v1/models"):
            assert (await client.get(f"{other}/{model}")).status_code == response.status_code
        listed = (await client.get("/v1/models")).json()["data"]
    if model.lower() == "fake":
        assert response.json() == listed[0]
        assert (listed[0]["id"], listed[0]["model_type"]) == ("fake", "rerank")
    else:
        assert response.status_code == 404
        assert response.json()["message"] == f'There is no model "{model}": the service has "fake"'


async def test_models_are_listed(serve: Serve) -> None:
    async with serve() as client:
        for path in ("/v1/models", "/models", "/v3/models", "/openai/v1/models"):
            body = (await client.get(path)).json()
            assert body["object"] == "list"
            assert [(model["id"], model["object"]) for model in body["data"]] == [("fake", "model")]


async def test_info_has_the_shape_of_tei(serve: Serve) -> None:
    async with serve() as client:
        info = (await client.get("/info")).json()
    assert next(iter(info["model_type"])) == "reranker"
    assert info["model_type"]["reranker"]["label2id"] == {"relevance": 0}
    assert (info["model_id"], info["max_input_length"], info["max_client_batch_size"]) == ("fake", 512, 1000)


async def test_every_answer_has_timing_headers(serve: Serve) -> None:
    async with serve() as client:
        for path, body in (("/rerank/query", NATIVE), ("/rerank", TEI), ("/score", SCORE), ("/v1/ranking", NIM)):
            response = await client.post(path, json=body, headers={"x-request-id": "abc-1"})
            for name in ("total", "queue", "tokenization", "inference"):
                assert int(response.headers[f"x-{name}-time"]) >= 0
            assert int(response.headers["x-compute-tokens"]) > 0
            assert response.headers["x-request-id"] == "abc-1"


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/rerank", TEI | {"texts": []}, 422, "texts: at least one is required"),
        ("/rerank", TEI | {"query": ""}, 422, "query: must not be empty"),
        ("/rerank", TEI | {"texts": ["a", 7]}, 422, "texts[1]: input should be a valid string, got 7"),
        ("/rerank", TEI | {"texts": ["a"] * 1001}, 413, "texts: at most 1000 are accepted (RERANKER_MAX_DOCUMENTS)"),
        ("/rerank", {"texts": ["a"]}, 422, "query: field required"),
    ],
)
async def test_tei_errors(serve: Serve, path: str, body: Any, status: int, message: str) -> None:
    async with serve() as client:
        response = await client.post(path, json=body)
    assert response.status_code == status
    assert response.json()["error"].startswith(message)
    assert response.json()["error_type"] == "Validation"


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (
            "/score",
            {"text_1": ["a", "b"], "text_2": ["c"]},
            "text_1: got 2 texts for 1 text_2; send one, or one for each",
        ),
        ("/score", {"text_1": ["a", ""], "text_2": ["c", "d"]}, "text_1[1]: must not be empty"),
        ("/score", {"text_1": "a"}, "text_2: field required"),
        ("/score", {"text_1": "a", "text_2": []}, "text_2: at least one is required"),
        ("/v1/ranking", NIM | {"passages": []}, "passages: at least one is required"),
        ("/v1/ranking", NIM | {"query": {"text": ""}}, "query.text: must not be empty"),
        ("/v1/ranking", NIM | {"query": "tides"}, 'query: must be an object, got "tides"'),
        ("/rerank", {"query": "a"}, "documents: field required"),
    ],
)
async def test_errors_name_the_dialects_own_fields(serve: Serve, path: str, body: Any, message: str) -> None:
    async with serve() as client:
        response = await client.post(path, json=body)
    assert response.status_code == 422
    assert response.json()["detail"].startswith(message)
    assert response.json()["error"]["type"] == "invalid_request"


@pytest.mark.parametrize(
    ("failure", "status", "kind"), [(RuntimeError("boom"), 500, "Backend"), (None, 429, "Overloaded")]
)
async def test_tei_failures(
    serve: Serve, engine: FakeEngine, failure: Exception | None, status: int, kind: str
) -> None:
    engine.failure = failure
    async with serve(max_parallel=1, max_queue=0) as client:
        if failure is None:
            engine.gate.clear()
            first = asyncio.create_task(client.post("/rerank", json=TEI))
            await until(lambda: engine.entered == 1)
        response = await client.post("/rerank", json={"query": "b", "texts": ["c"]})
        engine.gate.set()
        if failure is None:
            assert (await first).status_code == 200
            assert int(response.headers["Retry-After"]) >= 1
    assert (response.status_code, response.json()["error_type"]) == (status, kind)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/rerank", TEI | {"truncate": False}),
        ("/v1/ranking", NIM | {"truncate": "NONE"}),
        ("/v1/rerank", NATIVE | {"long_documents": "refuse"}),
    ],
)
async def test_long_documents_are_rejected_if_truncation_is_off(
    serve: Serve, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, path: str, body: Any
) -> None:
    async with serve(prediction_cache=False) as client:
        assert (await client.post(path, json=body)).status_code == 200
        encode = engine.encode
        monkeypatch.setattr(engine, "encode", lambda query, documents, *_: encode(query, documents, 4))
        scored = len(engine.batches)
        response = await client.post(path, json=body)
    assert response.status_code == 422
    assert "[2]: the query and this document exceed the model's window" in response.text
    assert len(engine.batches) == scored


async def test_structured_documents_are_read_as_yaml(
    serve: Serve, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    encode = engine.encode
    documents = [
        {"title": "Ebbe & Flut", "body": "the moon\ncauses tides", "year": 1687, "id": "p1", "tags": ["sea", "Mär"]},
        {"title": "Bread", "body": None, "shelf": {"row": 3}},
        {"title": "😀 𠮷\ue000: a", "id": 1.5, "metadata": "page 3"},
    ]
    body = {"query": QUERY, "documents": documents, "rank_fields": ["title", "body", "tags"], "return_documents": True}
    async with serve() as client:
        monkeypatch.setattr(
            engine, "encode", lambda query, documents, *more: seen.extend(documents) or encode(query, documents, *more)
        )
        results = (await answer(client, "/v1/rerank", body))["results"]
    assert seen == [
        "title: Ebbe & Flut\nbody: 'the moon\n\n  causes tides'\ntags:\n- sea\n- Mär\n",
        "title: Bread\n",
        "title: '😀 𠮷\ue000: a'\n",
    ]
    assert results[0]["document"] == documents[0]
    assert results[0]["id"] == "p1"
    assert results[1]["document"] == documents[1]
    assert list(results[0]["document"]) == list(documents[0])
    assert (results[2]["document"], "id" in results[2]) == (documents[2], False)


@pytest.mark.parametrize(
    ("documents", "fields", "message"),
    [
        ([{"title": "a"}], None, "documents[0]: has no 'text'"),
        (["a", {"title": "a"}], ["body", "model_config"], "documents[1]: has none of rank_fields (body, model_config)"),
        ([{"title": "a"}], [], "rank_fields: list should have at least 1 item"),
    ],
)
async def test_documents_without_text(serve: Serve, documents: Any, fields: Any, message: str) -> None:
    async with serve() as client:
        response = await client.post("/rerank", json={"query": "a", "documents": documents, "rank_fields": fields})
    assert response.status_code == 422
    assert response.json()["message"].startswith(message)


async def test_a_string_document_is_used_as_is_with_any_rank_fields(serve: Serve) -> None:
    body = {"query": "a", "documents": [{"text": "b", "title": "c"}, "a"], "rank_fields": ["title"]}
    async with serve() as client:
        assert [item["index"] for item in (await answer(client, "/rerank", body))["results"]] == [1, 0]


async def test_long_documents_are_scored_by_their_best_window(serve: Serve, engine: FakeEngine) -> None:
    engine.lines = 1
    documents = ["bread\nthe moon causes tides\nbutter", "tides", "bread"]
    body = {"query": QUERY, "documents": documents, "long_documents": "chunk_max", "raw_scores": True}
    async with serve() as client:
        for cached in (0, 4):
            found = await answer(client, "/rerank", body)
            assert [(item["index"], item["relevance_score"]) for item in found["results"]] == [
                (0, 1.5),
                (1, 0.5),
                (2, -0.5),
            ]
            window = found["results"][0]["window"]
            assert documents[0][window["start"] : window["end"]] == "the moon causes tides"
            assert found["results"][1]["window"] == {"start": 0, "end": 5}
            # one of the five windows occurs twice
            assert (found["meta"]["documents"], found["meta"]["cached"]) == (3, cached + 1)
        first = await answer(client, "/rerank", body | {"max_chunks_per_doc": 1})
        assert (first["results"][0]["index"], first["meta"]["truncated"]) == (1, 1)
        rendered = body | {"documents": [{"title": "tides\nmoon", "text": "x"}], "rank_fields": ["title"]}
        assert "window" not in (await answer(client, "/rerank", rendered))["results"][0]
        assert "window" not in (await answer(client, "/rerank", NATIVE))["results"][0]


async def test_windows_have_a_limit(serve: Serve, engine: FakeEngine) -> None:
    engine.lines = 1
    body = {"query": "a", "documents": ["a\n" * 9000, "b\n" * 9000], "long_documents": "chunk_max"}
    async with serve() as client:
        response = await client.post("/rerank", json=body)
    assert response.status_code == 413
    assert "at most 10000 windows" in response.json()["message"]


async def test_dify_reads_tei(serve: Serve) -> None:
    async with serve() as client:
        info = (await client.get("/info")).json()
        assert list(info["model_type"]) == ["reranker"]
        ranks = await answer(client, "/rerank", TEI | {"raw_scores": False, "return_text": True, "truncate": True})
        assert (ranks[0]["index"], ranks[0]["text"]) == (2, DOCUMENTS[2])


async def test_dify_and_gpustack_read_documents(serve: Serve) -> None:
    async with serve() as client:
        body = await answer(client, "/v1/rerank", NATIVE | {"model": "m", "top_n": 2, "return_documents": True})
        assert [result["document"]["text"] for result in body["results"]] == [DOCUMENTS[2], DOCUMENTS[1]]


async def test_open_webui_sorts_by_index_and_expects_every_document(serve: Serve) -> None:
    async with serve() as client:
        body = await answer(client, "/v1/rerank", NATIVE | {"model": "m", "top_n": len(DOCUMENTS)})
    by_index = sorted(body["results"], key=lambda result: result["index"])
    assert len(by_index) == len(DOCUMENTS)
    assert max(range(4), key=lambda index: by_index[index]["relevance_score"]) == 2


async def test_ragflow_sends_booleans_as_strings(serve: Serve) -> None:
    async with serve() as client:
        body = await answer(client, "/rerank", NATIVE | {"model": "m", "return_documents": "true", "top_n": 4})
        assert body["results"][0]["document"]["text"] == DOCUMENTS[2]
        assert body["usage"]["total_tokens"] > 0
        body = await answer(client, "/rerank", NATIVE | {"return_documents": "false"})
        assert "document" not in body["results"][0]


async def test_weaviate_gets_scores_in_the_order_of_the_request(serve: Serve) -> None:
    """Its client reads zeros where it does not find `scores`."""
    body = {"query": QUERY, "documents": DOCUMENTS, "property": ""}
    async with serve() as client:
        found = await answer(client, "/rerank", body)
        assert [item["document"] for item in found["scores"]] == DOCUMENTS
        scores = [item["score"] for item in found["scores"]]
        assert sorted(range(4), key=lambda index: -scores[index]) == BEST_FIRST
        for wrong in ({"documents": []}, {"query": ""}, {"documents": [7]}):
            refused = await client.post("/rerank", json=body | wrong)
            assert refused.status_code == 422
            assert isinstance(refused.json()["error"], str)
        for path in ("/.well-known/ready", "/.well-known/live", "/meta"):
            assert (await client.get(path)).status_code == 200


BODIES = [("/v1/rerank", NATIVE), ("/v1/reranks", NATIVE), ("/rerank", TEI), ("/score", SCORE), ("/v1/ranking", NIM)]


@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_what_would_change_the_scores_is_refused(serve: Serve, path: str, body: Any) -> None:
    async with serve() as client:
        for name, value in (
            ("truncation_side", "left"),
            ("truncation_direction", "Left"),
            ("max_tokens_per_query", 8),
            ("prompt", "Find passages that contradict the query"),
            ("max_length", 64),
        ):
            response = await client.post(path, json=body | {name: value})
            assert response.status_code == 422
            assert f"{name}: is not supported: " in response.text
        for name in ("instruction", "instruct"):
            response = await client.post(path, json=body | {name: "Prefer news"})
            assert response.status_code == 422
            assert "instruction: the model fake takes none" in response.text
        harmless = {"truncation_side": "right", "truncation_direction": "Right", "max_tokens_per_query": 0}
        response = await client.post(path, json=body | harmless | {"instruct": "", "instruction": None})
        assert response.status_code == 200
        assert "x-reranker-warning" not in response.headers


@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_other_fields_without_effect_are_reported(serve: Serve, path: str, body: Any) -> None:
    async with serve() as client:
        plain = await client.post(path, json=body | {"timeout_ms": 5000, "user": "a"})
        assert "x-reranker-warning" not in plain.headers
        response = await client.post(path, json=body | {"return_len": True, "overlap_tokens": 20, "a\r\nb: c": 1})
        many = await client.post(path, json=body | {f"field_{number}": number for number in range(20)})
    assert response.status_code == 200
    ignored = "is not supported; it is ignored"
    named = f"return_len: {ignored}; overlap_tokens: {ignored}"
    assert response.headers["x-reranker-warning"] == f"{named}; 1 more: not supported; they are ignored"
    assert many.headers["x-reranker-warning"].endswith(f"field_7: {ignored}; 12 more: not supported; they are ignored")


@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_options_inside_parameters_follow_the_same_rules(serve: Serve, path: str, body: Any) -> None:
    """As Pinecone and DashScope have them."""
    async with serve() as client:
        refused = await client.post(path, json=body | {"parameters": {"truncation_side": "left"}})
        answered = await client.post(path, json=body | {"parameters": {"top_n": 1, "max_length": None}})
    assert refused.status_code == 422
    assert "parameters.truncation_side: is not supported: " in refused.text
    assert answered.headers["x-reranker-warning"] == "parameters.top_n: is not supported; it is ignored"


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/rerank", TEI, "truncation"),
        ("/rerank", TEI, "truncate_prompt_tokens"),
        ("/v1/ranking", NIM, "truncation"),
        ("/v1/ranking", NIM, "truncate_prompt_tokens"),
        ("/v1/rerank", NATIVE, "property"),
        ("/score", SCORE, "property"),
    ],
)
async def test_a_field_of_another_dialect_is_reported(serve: Serve, path: str, body: Any, field: str) -> None:
    async with serve() as client:
        response = await client.post(path, json=body | {field: 1})
    assert response.headers["x-reranker-warning"] == f"{field}: is not supported; it is ignored"


@pytest.mark.parametrize("name", ["truncate", "truncation"])
async def test_score_may_refuse_to_cut(serve: Serve, engine: FakeEngine, name: str) -> None:
    engine.lines = 1
    long = {"text_1": QUERY, "text_2": ["the moon\ncauses tides"]}
    async with serve() as client:
        refused = await client.post("/score", json=long | {name: False})
        cut = await client.post("/score", json=long | {name: True})
        assert (await client.post("/score", json=long | {name: "middle"})).status_code == 422
    assert (refused.status_code, cut.status_code) == (422, 200)
    assert "text_2[0]: the query and this document exceed" in refused.text
    assert "x-reranker-warning" not in cut.headers


@pytest.mark.parametrize(("path", "body"), [("/v1/rerank", NATIVE), ("/score", SCORE)])
async def test_a_limit_that_means_something_else_in_vllm_is_reported(serve: Serve, path: str, body: Any) -> None:
    async with serve() as client:
        response = await client.post(path, json=body | {"truncate_prompt_tokens": 3})
        assert "truncate_prompt_tokens: limits each document" in response.headers["x-reranker-warning"]


@pytest.mark.parametrize("name", ["use_activation", "activation"])
async def test_tei_has_no_switch_for_the_activation(serve: Serve, name: str) -> None:
    async with serve() as client:
        refused = await client.post("/rerank", json=TEI | {name: False})
        assert refused.json() == {
            "error": f"{name}: is not supported: set raw_scores for logits",
            "error_type": "Validation",
        }
        assert (await client.post("/rerank", json=TEI | {name: True})).status_code == 200


async def test_top_n_means_the_same_at_every_route(serve: Serve) -> None:
    paths = ["/rerank", "/rerank/query", "/v1/rerank", "/v2/rerank", "/reranking", *OTHERS]
    async with serve() as client:
        for path in paths:
            for name in ("top_n", "top_k"):
                for value, expected in ((0, 4), (-1, 4), (None, 4), (1, 1), (4, 4), (99, 4)):
                    body = await answer(client, path, NATIVE | {name: value})
                    scores = [item["relevance_score"] for item in body["results"]]
                    assert [item["index"] for item in body["results"]] == BEST_FIRST[:expected]
                    assert scores == sorted(scores, reverse=True)
                wrong = await client.post(path, json=NATIVE | {name: -2})
                assert wrong.status_code == 422


async def test_every_shape_has_the_same_usage(serve: Serve) -> None:
    async with serve() as client:
        tokens = set()
        for path, body in BODIES:
            for _ in range(2):  # cached pairs are billed, too
                response = await client.post(path, json=body)
                tokens.add(int(response.headers["x-compute-tokens"]))
                if path != "/rerank":
                    usage = response.json()["usage"]
                    tokens |= {usage["prompt_tokens"], usage["total_tokens"]}
        billed = await answer(client, "/v2/rerank", NATIVE)
    assert len(tokens) == 1
    assert billed["meta"]["billed_units"]["search_units"] == 1


async def test_voyage_reads_data(serve: Serve) -> None:
    """Without it, its client in Go reads no results from a 200."""
    body = NATIVE | {"model": "rerank-2.5", "truncation": True, "top_k": 2, "return_documents": True}
    async with serve() as client:
        found = await answer(client, "/v1/rerank", body)
        assert "data" not in await answer(client, "/v1/rerank", NATIVE)
        refused = await client.post("/v1/rerank", json=body | {"truncation": "middle"})
    assert [(item["index"], item["document"]) for item in found["data"]] == [(2, DOCUMENTS[2]), (1, DOCUMENTS[1])]
    assert [item["relevance_score"] for item in found["data"]] == [item["relevance_score"] for item in found["results"]]
    assert found["usage"]["total_tokens"] > 0
    assert refused.status_code == 422
