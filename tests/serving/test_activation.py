"""From logits to scores: each dialect keeps the range that its service promises, and a setting overrides it."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder

from app.config import Settings
from app.main import create_app
from tests.conftest import serving
from tests.models import make_model

QUERY = "what causes tides"
DOCUMENTS = ["the moon and gravity", "bread", "stock market", "light of a plant", "sea energy"]
NATIVE: dict[str, Any] = {"query": QUERY, "documents": DOCUMENTS}
TEI: dict[str, Any] = {"query": QUERY, "texts": DOCUMENTS}
SCORE: dict[str, Any] = {"text_1": QUERY, "text_2": DOCUMENTS}
WEAVIATE: dict[str, Any] = NATIVE | {"property": "text"}
NIM: dict[str, Any] = {"query": {"text": QUERY}, "passages": [{"text": text} for text in DOCUMENTS]}

Read = Callable[[Any], dict[int, float]]
# The scores in an answer, by the index of the document.
READ: dict[str, Read] = {
    "results": lambda body: {each["index"]: each["relevance_score"] for each in body["results"]},
    "voyage": lambda body: {each["index"]: each["relevance_score"] for each in body["data"]},
    "tei": lambda body: {each["index"]: each["score"] for each in body},
    "score": lambda body: {each["index"]: each["score"] for each in body["data"]},
    "weaviate": lambda body: dict(enumerate(each["score"] for each in body["scores"])),
    "nim": lambda body: {each["index"]: each["logit"] for each in body["rankings"]},
}
# Services that give scores from 0 to 1, and those that give what the model declares.
FROM_0_TO_1 = [
    ("/rerank/query", NATIVE, "results"),
    ("/rerank", NATIVE, "results"),
    ("/v1/rerank", NATIVE, "results"),
    ("/v2/rerank", NATIVE | {"top_n": 5}, "results"),
    ("/reranking", NATIVE | {"use_activation": True}, "results"),
    ("/v1/rerank", NATIVE | {"truncation": True}, "voyage"),
    ("/rerank", TEI, "tei"),
    ("/invocations", TEI | {"raw_scores": False}, "tei"),
]
AS_DECLARED = [("/score", SCORE, "score"), ("/v1/score", SCORE, "score"), ("/rerank", WEAVIATE, "weaviate")]


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that declares no activation for its logits, as ms-marco-MiniLM does."""
    return make_model(tmp_path_factory.mktemp("models") / "identity", spread=0.7, activation="linear.Identity")


@pytest.fixture(scope="module")
def logits(identity: Path) -> list[float]:
    reference = CrossEncoder(str(identity), device="cpu")
    found = reference.predict([(QUERY, text) for text in DOCUMENTS], show_progress_bar=False)
    assert min(found) < -1 < 1 < max(found), "not a range that shows the difference"
    return [float(logit) for logit in found]


def sigmoid(logits: list[float]) -> list[float]:
    return torch.sigmoid(torch.tensor(logits)).tolist()  # type: ignore[no-any-return]


@asynccontextmanager
async def service(model: Path, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(create_app(Settings(model=str(model), backend="torch", device="cpu", **settings))) as client:
        yield client


async def scores(client: httpx.AsyncClient, path: str, body: dict[str, Any], kind: str) -> list[float]:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    found = READ[kind](response.json())
    return [found[index] for index in range(len(DOCUMENTS))]


async def test_a_dialect_keeps_the_range_of_its_service(identity: Path, logits: list[float]) -> None:
    async with service(identity) as client:
        for path, body, kind in FROM_0_TO_1:
            assert np.allclose(await scores(client, path, body, kind), sigmoid(logits), atol=1e-5), (path, kind)
        for path, body, kind in AS_DECLARED:
            assert np.allclose(await scores(client, path, body, kind), logits, atol=1e-5), (path, kind)


async def test_raw_scores_are_logits_also_from_the_cache(identity: Path, logits: list[float]) -> None:
    """The cache holds logits, so a request that asks for the other kind finds them."""
    async with service(identity, activation="sigmoid") as client:
        for path, body, kind in FROM_0_TO_1 + AS_DECLARED[:2]:
            raw = body | {"raw_scores": True}
            assert np.allclose(await scores(client, path, raw, kind), logits, atol=1e-5), (path, kind)
            assert np.allclose(await scores(client, path, body, kind), sigmoid(logits), atol=1e-5), (path, kind)
        assert np.allclose(await scores(client, "/v1/ranking", NIM, "nim"), logits, atol=1e-5)
        meta = (await client.post("/rerank/query", json=NATIVE)).json()["meta"]
    assert (meta["scored"], meta["cached"]) == (0, len(DOCUMENTS))


@pytest.mark.parametrize(
    ("asked", "is_from_0_to_1", "shown"),
    [("model", False, "identity"), ("none", False, "identity"), ("sigmoid", True, "sigmoid")],
)
async def test_the_setting_decides_for_all_dialects(
    identity: Path, logits: list[float], asked: str, is_from_0_to_1: bool, shown: str
) -> None:
    expected = sigmoid(logits) if is_from_0_to_1 else logits
    async with service(identity, activation=asked) as client:
        for path, body, kind in FROM_0_TO_1 + AS_DECLARED:
            assert np.allclose(await scores(client, path, body, kind), expected, atol=1e-5), (path, kind)
        info = (await client.get("/info")).json()
    assert (info["activation"], info["model_activation"]) == (shown, "identity")


async def test_a_threshold_is_compared_with_the_score_that_is_shown(identity: Path, logits: list[float]) -> None:
    relevant = sorted(index for index, logit in enumerate(logits) if logit >= 0)
    async with service(identity) as client:
        for asked in ({"score_threshold": 0.5}, {"score_threshold": 0, "raw_scores": True}):
            results = (await client.post("/v1/rerank", json=NATIVE | asked)).json()["results"]
            assert sorted(result["index"] for result in results) == relevant
        everything = (await client.post("/v1/rerank", json=NATIVE | {"score_threshold": 0})).json()["results"]
    assert len(everything) == len(DOCUMENTS)


@pytest.mark.parametrize("asked", ["auto", "model", "sigmoid", "none"])
async def test_a_model_with_a_sigmoid_of_its_own(tmp_path: Path, asked: str) -> None:
    """Its scores are those of `CrossEncoder.predict` in every dialect, as long as they are not switched off."""
    folder = make_model(tmp_path / "sigmoid", spread=0.7)
    pairs = [(QUERY, text) for text in DOCUMENTS]
    reference = CrossEncoder(str(folder), device="cpu")
    function = torch.nn.Identity() if asked == "none" else None
    expected = reference.predict(pairs, activation_fn=function, show_progress_bar=False)
    async with service(folder, activation=asked) as client:
        for path, body, kind in FROM_0_TO_1 + AS_DECLARED:
            assert np.allclose(await scores(client, path, body, kind), expected, atol=1e-5), (path, kind)
        info = (await client.get("/info")).json()
    assert info["activation"] == ("identity" if asked == "none" else "sigmoid")


async def test_another_activation_is_replaced_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    folder = make_model(tmp_path / "tanh", spread=0.7, activation="activation.Tanh")
    async with service(folder) as client:
        ranked, info = await scores(client, "/rerank", TEI, "tei"), (await client.get("/info")).json()
        raw = await scores(client, "/rerank", TEI | {"raw_scores": True}, "tei")
        assert np.allclose(await scores(client, "/score", SCORE, "score"), np.tanh(raw), atol=1e-5)
    assert np.allclose(ranked, sigmoid(raw), atol=1e-5)
    assert "The model's own activation is tanh: set RERANKER_ACTIVATION=model" in caplog.text
    assert (info["activation"], info["model_activation"]) == ("sigmoid", "tanh")
