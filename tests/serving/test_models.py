"""Several models in one process, through the service."""

import asyncio
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import generate_latest

from app.api.service import Service, service_of
from app.config import Settings
from app.engines.protocol import Engine
from app.errors import EngineBroken, StartupError
from app.main import create_app
from app.serving import heartbeat, supervisor, turns
from app.serving.lifecycle import Phase
from app.serving.model import Model
from app.serving.reranker import Reranker
from tests.conftest import serving, until
from tests.fakes import FakeEngine
from tests.models import make_model

BODY = {"query": "moon", "documents": ["moon", "sun moon"]}
OK, NOT_FOUND, UNAVAILABLE = 200, 404, 503


def other(number: int, **fields: Any) -> dict[str, Any]:
    """A body that is not cached."""
    return {"query": f"moon {number}", "documents": ["moon"], **fields}


class Several:
    """`async with several() as client:` the models `org/large` and `small`, over two fake engines."""

    app: FastAPI
    models = "org/large=one, small=two"

    def __init__(self) -> None:
        self.large, self.small = FakeEngine(), FakeEngine()
        self.large.info = replace(self.large.info, model="source-of-large", max_length=1024)
        self.small.info = replace(self.small.info, model="source-of-small")
        self.loads: list[str | None] = []
        self.failure: Exception | None = None
        """Raised by the next loads."""
        self.failures = list[Exception]()
        """Raised by one load each."""

    def load(self, settings: Settings) -> Engine:
        self.loads.append(settings.model)
        if self.failures:
            raise self.failures.pop()
        if self.failure:
            raise copy(self.failure)
        return {"one": self.large, "two": self.small}[str(settings.model)]

    def __call__(self, **settings: Any) -> AbstractAsyncContextManager[httpx.AsyncClient]:
        known = Settings(**({"models": self.models} | settings))
        self.app = create_app(known, load=self.load)
        return serving(self.app)

    @property
    def service(self) -> Service:
        return service_of(self.app)

    def model(self, name: str) -> Model:
        return self.service.models.named(name)

    def reranker(self, name: str) -> Reranker:
        reranker = self.model(name).reranker
        assert reranker is not None
        return reranker

    def figures(self) -> str:
        return generate_latest(self.service.metrics.registry).decode()


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> Iterator[Several]:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(supervisor, "PAUSE_SECONDS", 0.01)
    made = Several()
    yield made
    made.large.gate.set()
    made.small.gate.set()


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ({}, "org/large"),
        ({"model": ""}, "org/large"),
        ({"model": "org/large"}, "org/large"),
        ({"model": "LARGE"}, "org/large"),
        ({"model": "small"}, "small"),
    ],
)
async def test_a_request_chooses_its_model(several: Several, asked: dict[str, str], answered: str) -> None:
    async with several() as client:
        answer = await client.post("/v1/rerank", json=BODY | asked)
        assert (answer.status_code, answer.json()["model"]) == (OK, answered)
    engines = {"org/large": several.large, "small": several.small}
    assert [name for name, engine in engines.items() if engine.batches] == [answered]


async def test_an_unknown_name_is_404_and_the_known_ones_are_listed(several: Several) -> None:
    async with several() as client:
        answer = await client.post("/v1/rerank", json=BODY | {"model": "medium"})
        tei = await client.post("/rerank", json={"query": "moon", "texts": ["moon"], "model": "medium"})
        nothing = await client.post("/v1/rerank", json=BODY | {"model": "source-of-small"})
    assert answer.status_code == tei.status_code == nothing.status_code == NOT_FOUND
    assert answer.json()["message"] == "model: there is no model 'medium'; the service has the models org/large, small"
    assert answer.json()["error"]["type"] == "model_not_found"
    assert tei.json()["error_type"] == "Validation"


DIALECTS = [
    ("/score", {"text_1": "moon", "text_2": ["moon"], "model": "small"}),
    ("/rerank", {"query": "moon", "texts": ["moon"], "model": "small"}),
    ("/rerank", {"query": "moon", "documents": ["moon"], "property": "text", "model": "small"}),
    ("/v1/ranking", {"query": {"text": "moon"}, "passages": [{"text": "moon"}], "model": "small"}),
    ("/v1/reranking", {"query": "moon", "input": ["moon"], "model": "small"}),
    (
        "/api/v1/services/rerank/text-rerank/text-rerank",
        {"model": "small", "input": {"query": "moon", "documents": ["moon"]}},
    ),
    (
        "/v1/projects/p/locations/l/rankingConfigs/c:rank",
        {"query": "moon", "records": [{"id": "1", "content": "moon"}], "model": "small"},
    ),
    ("/model/small/invoke", {"query": "moon", "documents": ["moon"]}),
    ("/model/arn:aws:bedrock:us-east-1::foundation-model%2Fsmall/invoke", {"query": "moon", "documents": ["moon"]}),
    (
        "/rerank",
        {
            "queries": [{"type": "TEXT", "textQuery": {"text": "moon"}}],
            "sources": [
                {
                    "type": "INLINE",
                    "inlineDocumentSource": {"type": "TEXT", "textDocument": {"text": "moon"}},
                }
            ],
            "rerankingConfiguration": {
                "type": "BEDROCK_RERANKING_MODEL",
                "bedrockRerankingConfiguration": {
                    "modelConfiguration": {"modelArn": "arn:aws:bedrock:us-east-1::foundation-model/small"}
                },
            },
        },
    ),
]


@pytest.mark.parametrize(("path", "body"), DIALECTS)
async def test_every_dialect_chooses_by_its_model(several: Several, path: str, body: dict[str, Any]) -> None:
    async with several() as client:
        answer = await client.post(path, json=body)
    assert answer.status_code == OK, answer.text
    assert (len(several.large.batches), len(several.small.batches)) == (0, 1)


async def test_pinecone_chooses_by_its_model(several: Several) -> None:
    async with several() as client:
        headers = {"x-pinecone-api-version": "2025-01"}
        answer = await client.post("/rerank", json=BODY | {"model": "small"}, headers=headers)
    assert answer.json()["model"] == "small"
    assert several.large.batches == []


async def test_a_single_model_accepts_every_name(engine: FakeEngine) -> None:
    async with serving(create_app(Settings(), engine)) as client:
        answer = await client.post("/v1/rerank", json=BODY | {"model": "anything"})
        health, info = (await client.get("/health")).json(), (await client.get("/info")).json()
        metrics = (await client.get("/metrics")).text
    assert (answer.status_code, answer.json()["model"]) == (OK, "fake")
    assert "models" not in health
    assert "models" not in info
    assert "reranker_model_" not in metrics


async def test_health_info_and_the_list_describe_each_model(several: Several) -> None:
    async with several() as client:
        await client.post("/v1/rerank", json=BODY | {"model": "small"})
        health, info = (await client.get("/health")).json(), (await client.get("/info")).json()
        listed = (await client.get("/v1/models")).json()["data"]
        one, short, none = [await client.get(f"/v1/models/{name}") for name in ("small", "Large", "medium")]
    assert [(model["name"], model["status"], model["model"]) for model in health["models"]] == [
        ("org/large", "ok", "source-of-large"),
        ("small", "ok", "source-of-small"),
    ]
    assert health["model"] == "source-of-large"
    assert [(model["model_id"], model["max_input_length"]) for model in info["models"]] == [
        ("org/large", 1024),
        ("small", 512),
    ]
    assert (info["model_id"], info["max_input_length"]) == ("org/large", 1024)
    assert [model["id"] for model in listed] == ["org/large", "small"]
    assert (one.json()["id"], short.json()["id"], none.status_code) == ("small", "org/large", NOT_FOUND)
    assert none.json()["message"] == 'There is no model "medium": the service has "org/large", "small"'
    assert 'reranker_model_requests_total{model="small"} 1.0' in several.figures()
    assert 'reranker_model_requests_total{model="org/large"} 0.0' in several.figures()
    assert 'reranker_model_tokens_total{model="small"} 5.0' in several.figures()


async def test_scores_of_one_model_are_not_those_of_another(several: Several) -> None:
    async with several() as client:
        first = [await client.post("/v1/rerank", json=BODY | {"model": name}) for name in ("large", "small")]
        again = [await client.post("/v1/rerank", json=BODY | {"model": name}) for name in ("large", "small")]
        health = (await client.get("/health")).json()
    assert [answer.json()["meta"]["cached"] for answer in (*first, *again)] == [0, 0, 2, 2]
    assert health["cache_entries"] == 4


async def test_only_requests_to_the_first_model_are_observed(several: Several, tmp_path: Path) -> None:
    sample = tmp_path / "sample.jsonl"
    async with several(sample_file=sample, sample_share=1) as client:
        for name in ("small", "large"):
            await client.post("/v1/rerank", json=BODY | {"query": f"moon of {name}", "model": name})
        await until(lambda: "reranker_top_score_count 1.0" in several.figures())
    (line,) = sample.read_text().splitlines()
    assert "moon of large" in line


async def test_stored_documents_are_ranked_by_any_model(several: Several) -> None:
    async with several(documents="memory") as client:
        stored = {"collection": "books", "documents": [{"id": "a", "text": "moon"}]}
        assert (await client.put("/v1/documents", json=stored)).status_code == OK
        asked = {"query": "moon", "collection": "books", "document_ids": ["a"]}
        answers = [
            (await client.post("/v1/rerank", json=asked | {"model": name})).json() for name in ("small", "large")
        ]
    assert [(answer["model"], answer["results"][0]["id"]) for answer in answers] == [("small", "a"), ("org/large", "a")]
    assert (len(several.small.batches), len(several.large.batches)) == (1, 1)


async def test_one_batch_runs_at_a_time(several: Several) -> None:
    several.large.gate.clear()
    several.small.gate.clear()
    async with several(max_parallel=4) as client:
        tasks = [asyncio.create_task(client.post("/v1/rerank", json=other(1)))]
        await until(lambda: several.large.entered == 1)
        tasks += [asyncio.create_task(client.post("/v1/rerank", json=other(1, model="small")))]
        await until(lambda: several.reranker("small").batcher.pending == 1)
        assert several.small.entered == 0
        several.large.gate.set()
        await until(lambda: several.small.entered == 1)
        several.small.gate.set()
        assert [(await task).status_code for task in tasks] == [OK, OK]


async def test_a_flood_of_one_model_does_not_starve_the_other(several: Several) -> None:
    several.large.seconds_per_token = several.small.seconds_per_token = 0.0005
    several.large.gate.clear()
    async with several(max_parallel=2, max_queue=20, batch_tokens=16) as client:
        flood = [asyncio.create_task(client.post("/v1/rerank", json=other(number))) for number in range(40)]
        await until(lambda: several.large.entered == 1)
        await until(lambda: several.reranker("large").admission.waiting == 15)
        few = [asyncio.create_task(client.post("/v1/rerank", json=other(number, model="small"))) for number in range(3)]
        await until(lambda: several.reranker("large").admission.waiting == 18)
        several.large.gate.set()
        answers = [await task for task in few]
        left = sum(not task.done() for task in flood)
        statuses = [(await task).status_code for task in flood]
    assert [answer.status_code for answer in answers] == [OK, OK, OK]
    assert left >= 5, "most of the flood still waits"
    assert set(statuses) == {OK, 429}


async def test_a_large_request_to_one_model_does_not_hold_up_the_other(several: Several) -> None:
    several.large.gate.clear()
    documents = [f"moon {number}" for number in range(400)]
    async with several(batch_tokens=16) as client:
        large = asyncio.create_task(client.post("/v1/rerank", json={"query": "moon", "documents": documents}))
        await until(lambda: several.large.entered == 1)
        small = asyncio.create_task(client.post("/v1/rerank", json=other(1, model="small")))
        await until(lambda: several.reranker("small").batcher.pending == 1)
        several.large.seconds_per_token = 0.0001
        several.large.gate.set()
        assert (await small).status_code == OK
        assert not large.done()
        assert len(several.large.batches) < 20
        assert (await large).status_code == OK


async def test_a_model_that_breaks_is_reloaded_while_the_other_serves(
    several: Several, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with several() as client:
        known = await client.post("/v1/rerank", json=BODY | {"model": "small"})
        several.small.failure = EngineBroken("device lost")
        several.failure = RuntimeError("the device is not back yet")
        monkeypatch.setattr(supervisor, "PAUSE_SECONDS", 0.2)
        assert (await client.post("/v1/rerank", json=other(1, model="small"))).status_code == 500
        await until(lambda: several.model("small").lifecycle.phase is Phase.RELOADING)
        refused = await client.post("/v1/rerank", json=other(2, model="small"))
        cached = await client.post("/v1/rerank", json=BODY | {"model": "small"})
        served = await client.post("/v1/rerank", json=other(2))
        ready, health = await client.get("/health/ready"), (await client.get("/health")).json()
        assert 'reranker_model_ready{model="small"} 0.0' in several.figures()
        several.small.failure = several.failure = None
        await until(lambda: several.model("small").lifecycle.phase is Phase.READY)
        again = await client.post("/v1/rerank", json=other(3, model="small"))
        figures = several.figures()
    assert known.status_code == cached.status_code == served.status_code == again.status_code == OK
    assert (refused.status_code, refused.json()["error"]["type"]) == (UNAVAILABLE, "unavailable")
    assert "retry-after" in refused.headers
    assert ready.status_code == OK
    assert [model["status"] for model in health["models"]] == ["ok", "reloading"]
    assert several.loads.count("one") == 1
    assert 'reranker_model_reloads_total{model="org/large"} 0.0' in figures
    assert 'reranker_model_reloads_total{model="small"} 0.0' not in figures


async def test_a_model_that_hangs_does_not_stop_the_other(several: Several, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 0.05)
    several.small.gate.clear()
    async with several() as client:
        hung = asyncio.create_task(client.post("/v1/rerank", json=other(1, model="small")))
        await until(lambda: several.small.entered == 1)
        assert (await client.post("/v1/rerank", json=other(1))).status_code == OK
        assert not hung.done()
        several.small.gate.set()
        assert (await hung).status_code == OK


async def test_a_model_that_cannot_be_reloaded_leaves_the_others(
    several: Several, caplog: pytest.LogCaptureFixture
) -> None:
    async with several(max_reloads=1) as client:
        several.small.failure = EngineBroken("device lost")
        several.failure = RuntimeError("no memory")
        await client.post("/v1/rerank", json=other(1, model="small"))
        await until(lambda: several.model("small").lifecycle.phase is Phase.FAILED)
        refused = await client.post("/v1/rerank", json=other(2, model="small"))
        assert (await client.post("/v1/rerank", json=other(2))).status_code == OK
        assert (await client.get("/health/ready")).status_code == OK
        assert "Giving up on model small, the others go on" in caplog.text
        several.large.failure = EngineBroken("device lost")
        await client.post("/v1/rerank", json=other(3))
        await until(lambda: several.service.lifecycle.phase is Phase.FAILED)
    assert refused.status_code == UNAVAILABLE
    assert "The model failed and could not be loaded again (model 'small')" in refused.text


async def test_a_wrong_source_stops_the_start_before_any_load(
    several: Several, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(Settings(models="good=one,bad=/no/such/folder"), load=several.load)
    async with app.router.lifespan_context(app):
        await until(lambda: service_of(app).lifecycle.phase is Phase.FAILED)
    assert "Cannot start: RERANKER_MODELS, bad='/no/such/folder': no such folder" in caplog.text
    assert several.loads == []


async def test_a_model_that_cannot_be_loaded_stops_the_start(
    several: Several, caplog: pytest.LogCaptureFixture
) -> None:
    several.failure = StartupError("it has no weights")
    async with several():
        await until(lambda: several.service.lifecycle.phase is Phase.FAILED)
    assert "Cannot start: RERANKER_MODELS, org/large: it has no weights" in caplog.text


async def test_an_unused_model_is_unloaded_and_loaded_again_by_a_request(several: Several) -> None:
    async with several(idle_seconds=0.05) as client:
        await client.post("/v1/rerank", json=BODY | {"model": "small"})
        await until(lambda: several.model("small").status == "idle")
        await until(lambda: several.model("large").status == "idle")
        health, ready = await client.get("/health"), await client.get("/health/ready")
        assert 'reranker_model_loaded{model="small"} 0.0' in several.figures()
        before = list(several.loads)
        answers = await asyncio.gather(*(client.post("/v1/rerank", json=other(n, model="small")) for n in range(3)))
        loads = several.loads[len(before) :]
    assert (health.status_code, ready.status_code) == (OK, OK)
    assert [model["status"] for model in health.json()["models"]] == ["idle", "idle"]
    assert [answer.status_code for answer in answers] == [OK, OK, OK]
    assert loads == ["two"]


async def test_a_model_in_use_is_not_unloaded(several: Several) -> None:
    several.small.gate.clear()
    async with several(idle_seconds=0.02) as client:
        task = asyncio.create_task(client.post("/v1/rerank", json=BODY | {"model": "small"}))
        await until(lambda: several.small.entered == 1)
        await until(lambda: several.model("large").status == "idle")
        await asyncio.sleep(0.1)
        assert several.model("small").status == "ok"
        several.small.gate.set()
        assert (await task).status_code == OK


async def test_a_request_that_cannot_wait_for_the_load_is_503(
    several: Several, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with several(idle_seconds=0.02, max_reloads=100) as client:
        await until(lambda: several.model("small").status == "idle")
        several.failure = StartupError("the hub does not answer")
        refused = await client.post("/v1/rerank", json=other(1, model="small", timeout_ms=100))
        assert refused.status_code == UNAVAILABLE
        assert int(refused.headers["retry-after"]) >= 1
        waiting = asyncio.create_task(client.post("/v1/rerank", json=other(2, model="small")))
        await until(lambda: several.model("small").waiting == 1)
        several.failure = None
        assert (await waiting).status_code == OK
    assert "could not be loaded within 0.1 s" in refused.json()["message"]


async def test_failed_loads_count_only_in_a_row(several: Several) -> None:
    async with several(idle_seconds=0.02, max_reloads=1) as client:
        for number in range(3):
            await until(lambda: several.model("small").status == "idle")
            several.failures = [RuntimeError("the disk is slow")]
            answer = await client.post("/v1/rerank", json=other(number, model="small"))
            assert (answer.status_code, several.failures) == (OK, [])


async def test_a_request_is_observed_even_if_its_model_is_unloaded_at_once(several: Several) -> None:
    async with several(idle_seconds=0.001) as client:
        for number in range(20):
            assert (await client.post("/v1/rerank", json=other(number))).status_code == OK
            await asyncio.sleep(0.002)
        assert (await client.get("/health/ready")).status_code == OK


async def test_a_single_model_can_be_unloaded_too(engine: FakeEngine) -> None:
    app = create_app(Settings(idle_seconds=0.05), engine)
    async with serving(app) as client:
        await until(lambda: service_of(app).models.first.status == "idle")
        assert (await client.get("/health")).json()["loaded"] is False
        assert (await client.get("/health/ready")).status_code == OK
        assert (await client.post("/v1/rerank", json=BODY)).status_code == OK


async def test_two_real_models_score_as_each_does_alone(tmp_path: Path) -> None:
    folders = {"bert": make_model(tmp_path / "one", spread=0.5), "roberta": make_model(tmp_path / "two", "xlm-roberta")}
    body = {"query": "what causes tides", "documents": ["the moon", "bread", "stock market"], "raw_scores": True}
    settings: dict[str, Any] = {"backend": "torch", "device": "cpu", "prediction_cache": False, "queue_timeout": 100}
    alone = {}
    for name, folder in folders.items():
        async with serving(create_app(Settings(model=str(folder), **settings))) as client:
            alone[name] = scores(await client.post("/v1/rerank", json=body))
    sources = ",".join(f"{name}={folder}" for name, folder in folders.items())
    app = create_app(Settings(models=sources, idle_seconds=0.2, **settings))
    async with serving(app) as client:
        names = ["bert", "roberta"] * 2
        answers = await asyncio.gather(*(client.post("/v1/rerank", json=body | {"model": name}) for name in names))
        await until(lambda: all(model.status == "idle" for model in service_of(app).models))
        answers += [await client.post("/v1/rerank", json=body | {"model": name}) for name in names]
    for name, answer in zip(names * 2, answers, strict=True):
        assert scores(answer) == pytest.approx(alone[name], abs=1e-5)
    assert alone["bert"] != pytest.approx(alone["roberta"], abs=1e-3)


def scores(answer: httpx.Response) -> list[float]:
    results = sorted(answer.json()["results"], key=lambda result: result["index"])
    return [result["relevance_score"] for result in results]
