"""The first stage for large requests: the documents that the model scores, and the place of the others."""

import asyncio
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from app.config import Settings
from app.errors import ScoringFailed, StartupError
from app.first_stage.embeddings import SHIPPED, StaticEmbeddings
from app.first_stage.fusion import fuse_ranks
from app.first_stage.prefilter import Prefilter, load_embeddings
from app.first_stage.words import Lexicon
from app.main import create_app
from app.types import Method
from tests.api.test_app import indices
from tests.conftest import Serve, serving, until
from tests.engines.test_tokenizer_file import lower_case, make_roberta
from tests.fakes import FakeEngine
from tests.serving.test_degraded import held

DOCUMENTS = ["bread and butter", "tides of the moon", "the moon causes the tides", "stock markets", "the moon"]
BODY: dict[str, Any] = {"query": "what causes tides", "documents": DOCUMENTS}
TWO = BODY | {"prefilter": "lexical", "prefilter_top_k": 2}
METHODS: list[Method] = ["lexical", "embedding", "hybrid"]


@pytest.fixture(scope="module")
def first_stage() -> Prefilter:
    return Prefilter(StaticEmbeddings.load)


def best(prefilter: Prefilter, method: Method, query: str, documents: Sequence[str]) -> int:
    return next(iter(prefilter.choose(method, query, documents, 1).kept))


async def test_the_model_scores_the_best_and_the_others_follow_in_first_stage_order(
    serve: Serve, engine: FakeEngine
) -> None:
    async with serve() as client:
        response = await client.post("/rerank/query", json=TWO)
        figures = (await client.get("/metrics")).text
    results = response.json()["results"]
    assert indices(response) == [2, 1, 0, 3, 4]
    assert sum(map(len, engine.batches)) == 2
    assert ["prefiltered" in result for result in results] == [False, False, True, True, True]
    assert ["unscored" in result for result in results] == [False, False, True, True, True]
    scores = [result["relevance_score"] for result in results]
    assert scores == sorted(scores, reverse=True)
    assert max(scores[2:]) < 0.001 < min(scores[:2])  # unscored documents must not look relevant
    assert response.json()["meta"] | {"timings_ms": 0} == response.json()["meta"] | {
        "documents": 5,
        "scored": 2,
        "cached": 0,
        "prefiltered": 3,
        "timings_ms": 0,
    }
    assert response.json()["meta"]["timings_ms"]["prefilter"] > 0
    assert response.headers["x-reranker-prefiltered"] == "3"
    assert "reranker_prefiltered_documents_total 3.0" in figures
    assert "reranker_prefilter_seconds_count 1.0" in figures


@pytest.mark.parametrize(
    ("settings", "asked", "left_out"),
    [
        ({}, {}, 0),
        ({}, {"prefilter_top_k": 2}, 0),
        ({}, {"prefilter": "lexical"}, 0),
        ({}, {"prefilter": "lexical", "prefilter_top_k": 5}, 0),
        ({}, {"prefilter": "lexical", "prefilter_top_k": 4}, 1),
        ({"prefilter": "lexical", "prefilter_top_k": 3}, {}, 2),
        ({"prefilter": "hybrid", "prefilter_top_k": 3}, {}, 2),
        ({"prefilter": "embedding", "prefilter_top_k": 3}, {"prefilter_top_k": 1}, 4),
        ({"prefilter": "lexical", "prefilter_top_k": 3}, {"prefilter": "off"}, 0),
        ({"prefilter": "lexical", "prefilter_top_k": 3}, {"prefilter": False}, 0),
        ({"prefilter": "lexical", "prefilter_top_k": 3}, {"prefilter": 0}, 0),
        ({"prefilter": "lexical", "prefilter_top_k": 3}, {"prefilter": True}, 2),
        ({"prefilter_top_k": 3}, {"prefilter": "true"}, 2),
        ({}, {"prefilter": 1}, 4),
        ({}, {"prefilter": 4, "prefilter_top_k": 2}, 3),
    ],
)
async def test_the_prefilter_acts_on_large_requests_only(
    serve: Serve, settings: dict[str, Any], asked: dict[str, Any], left_out: int
) -> None:
    async with serve(**settings) as client:
        response = await client.post("/rerank/query", json=BODY | asked)
    assert sorted(indices(response)) == [0, 1, 2, 3, 4]
    assert response.json()["meta"]["prefiltered"] == left_out
    assert ("x-reranker-prefiltered" in response.headers) == (left_out > 0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"return_prefiltered": False}, [2, 1]),
        ({"top_k": 3}, [2, 1, 0]),
        ({"score_threshold": 0}, [2, 1]),
        ({"score_threshold": 0.7}, [2]),
    ],
)
async def test_options_limit_the_results(serve: Serve, options: dict[str, Any], expected: list[int]) -> None:
    async with serve() as client:
        response = await client.post("/rerank/query", json=TWO | options)
    assert indices(response) == expected
    assert response.json()["meta"]["prefiltered"] == 3


@pytest.mark.parametrize(
    ("path", "body", "read"),
    [
        (
            "/rerank",
            {"query": "tides", "texts": ["bread", "tides", "moon"]},
            lambda body: [each["index"] for each in body],
        ),
        (
            "/score",
            {"text_1": "tides", "text_2": ["bread", "tides", "moon"]},
            lambda body: sorted(range(3), key=lambda index: -body["data"][index]["score"]),
        ),
        (
            "/v1/ranking",
            {"query": {"text": "tides"}, "passages": [{"text": "bread"}, {"text": "tides"}, {"text": "moon"}]},
            lambda body: [each["index"] for each in body["rankings"]],
        ),
        ("/v1/rerank", {"query": "tides", "documents": ["bread", "tides", "moon"], "top_n": 3}, None),
    ],
)
async def test_every_dialect_has_a_result_for_each_document(
    serve: Serve, path: str, body: dict[str, Any], read: Any
) -> None:
    async with serve(prefilter="lexical", prefilter_top_k=1) as client:
        response = await client.post(path, json=body)
    found = read(response.json()) if read else indices(response)
    assert found == [1, 0, 2]
    assert response.headers["x-reranker-prefiltered"] == "2"


async def test_pairs_with_their_own_queries_are_all_scored(serve: Serve) -> None:
    body = {"text_1": ["tides", "bread"], "text_2": ["tides", "bread"]}
    async with serve(prefilter="lexical", prefilter_top_k=1) as client:
        response = await client.post("/score", json=body)
    assert [each["score"] for each in response.json()["data"]] == pytest.approx([0.6225, 0.6225], abs=1e-4)
    assert "x-reranker-prefiltered" not in response.headers


@pytest.mark.parametrize("wrong", [{"prefilter": "bm25"}, {"prefilter_top_k": 0}])
async def test_invalid_values_are_rejected_by_name(serve: Serve, wrong: dict[str, Any]) -> None:
    async with serve() as client:
        response = await client.post("/rerank/query", json=BODY | wrong)
    assert response.status_code == 422
    assert next(iter(wrong)) in response.json()["message"]


async def test_scores_are_cached(serve: Serve, engine: FakeEngine) -> None:
    async with serve() as client:
        await client.post("/rerank/query", json=BODY | {"documents": [DOCUMENTS[2], DOCUMENTS[3]]})
        first, second = [(await client.post("/rerank/query", json=TWO)).json() for _ in range(2)]
    assert [(body["meta"]["scored"], body["meta"]["cached"]) for body in (first, second)] == [(1, 1), (0, 2)]
    assert first["results"] == second["results"]


async def test_only_the_chosen_documents_are_split_into_windows(serve: Serve, engine: FakeEngine) -> None:
    engine.lines = 1
    long = [f"{document}\nand {document}" for document in DOCUMENTS]
    async with serve() as client:
        response = await client.post("/rerank/query", json=TWO | {"documents": long, "long_documents": "chunk_max"})
    assert indices(response) == [2, 1, 0, 3, 4]
    assert response.json()["meta"]["scored"] == 4
    assert ["window" in result for result in response.json()["results"]] == [True, True, False, False, False]


async def test_a_document_that_is_left_out_cannot_be_too_long(serve: Serve) -> None:
    body = {"query": "tides", "texts": ["bread " * 600, "tides", "moon"], "truncate": False}
    async with serve() as client:
        asked = {"prefilter": "lexical", "prefilter_top_k": 1}
        assert (await client.post("/rerank", json=body | asked)).status_code == 200


async def test_the_order_of_the_first_stage_remains_if_the_model_fails(serve: Serve, engine: FakeEngine) -> None:
    async with serve() as client:
        await client.post("/rerank/query", json=BODY | {"documents": [DOCUMENTS[1]]})
        engine.failure = ScoringFailed("broken")
        response = await client.post("/rerank/query", json=TWO | {"on_overload": "lexical"})
    body = response.json()
    assert indices(response) == [1, 2, 0, 3, 4]
    assert ["unscored" in result for result in body["results"]] == [False, True, True, True, True]
    assert ["prefiltered" in result for result in body["results"]] == [False, False, True, True, True]
    assert (body["meta"]["degraded"], body["meta"]["prefiltered"]) == ("scoring_failed", 3)


async def test_without_a_slot_nothing_is_left_out(serve: Serve, engine: FakeEngine) -> None:
    async with held(serve, engine) as client:
        response = await client.post("/rerank/query", json=TWO | {"on_overload": "lexical"})
    assert indices(response) == [2, 1, 0, 3, 4]
    assert (response.json()["meta"]["degraded"], response.json()["meta"]["prefiltered"]) == ("queue_full", 0)


async def test_a_client_that_leaves_takes_its_work_with_it(serve: Serve, engine: FakeEngine) -> None:
    async with serve(max_parallel=1, max_queue=0) as client:
        engine.gate.clear()
        waiting = asyncio.create_task(client.post("/rerank/query", json=TWO))
        await until(lambda: engine.entered == 1)
        waiting.cancel()
        await until(lambda: serve.reranker.admission.active == 0)
        engine.gate.set()
        assert (await client.post("/rerank/query", json=TWO)).json()["meta"]["prefiltered"] == 3


QUESTIONS = [
    ("How do I mend a car?", "Repairing an automobile engine needs patience and the right tools."),
    ("medicine against a headache", "Aspirin relieves pain in the head within half an hour."),
    ("Which animals live in the sea?", "Whales and dolphins are mammals of the ocean."),
]
OTHERS = ["The parliament passed the budget.", "She plays the piano in an orchestra.", "Interest rates rose in May."]


@pytest.mark.parametrize(("question", "answer"), QUESTIONS)
def test_meaning_is_found_without_a_shared_word(first_stage: Prefilter, question: str, answer: str) -> None:
    documents = [*OTHERS, *(text for _, text in QUESTIONS)]
    assert documents[best(first_stage, "embedding", question, documents)] == answer


def test_texts_without_words_keep_their_order(first_stage: Prefilter) -> None:
    for method in METHODS:
        assert first_stage.choose(method, "tides", ["", " ", ""], 2).kept == {0, 1}
        assert first_stage.choose(method, "", ["", "tides"], 1).kept == {0}


def test_rare_names_are_found_by_words(first_stage: Prefilter) -> None:
    documents = [*OTHERS, "Xylqor 7-B is out of stock.", "The part is out of stock."]
    assert best(first_stage, "lexical", "xylqor in stock", documents) == 3
    assert best(first_stage, "hybrid", "xylqor in stock", documents) == 3


@pytest.mark.parametrize("method", METHODS)
def test_unusual_texts_are_handled(first_stage: Prefilter, method: Method) -> None:
    documents = ["", "   ", "?!…", "x" * 20_000, "月球引起潮汐", "\x00", "a\u0301 b\u00ad", "tides"]
    for query in ("tides", "???", "潮汐", "x" * 5_000):
        choice = first_stage.choose(method, query, documents, 3)
        assert len(choice.kept) == 3
        assert sorted(choice.places) == pytest.approx([rank / 8 for rank in range(8)])
    assert best(first_stage, method, "tides", documents) == 7


@pytest.mark.parametrize("method", METHODS)
def test_earlier_requests_do_not_change_the_choice(method: Method) -> None:
    documents = [text for _, text in QUESTIONS] + OTHERS
    fresh, used = Prefilter(StaticEmbeddings.load), Prefilter(StaticEmbeddings.load)
    used.choose(method, "pianos", ["orchestras and grandpianos", *documents], 2)
    assert used.choose(method, "pianos", documents, 2) == fresh.choose(method, "pianos", documents, 2)


def test_ties_are_broken_by_index(first_stage: Prefilter) -> None:
    for method in METHODS:
        assert first_stage.choose(method, "moon", ["sun", "moon", "moon", "moon"], 2).kept == {1, 2}


def test_fusion_prefers_a_document_that_is_high_in_both_lists() -> None:
    fused = fuse_ranks([np.array([9, 8, 0.1, 0]), np.array([-0.3, 0.5, 0.4, 0.6])])
    assert np.argmax(fused) == 1


@pytest.mark.parametrize(
    "word",
    [
        lambda number: f"a{number}",
        lambda number: "!" * (number % 5_000) + "." * (number // 5_000),
        lambda number: ".".join(f"{number}a{term}" for term in range(3)),
    ],
    ids=["many", "punctuation", "terms"],
)
def test_words_of_old_requests_are_forgotten(word: Callable[[int], str], monkeypatch: pytest.MonkeyPatch) -> None:
    most, most_chars = 20_000, 500_000
    monkeypatch.setattr("app.first_stage.words.MAX_KNOWN", most)
    monkeypatch.setattr("app.first_stage.words.MAX_KNOWN_CHARS", most_chars)
    embeddings = StaticEmbeddings.load()
    prefilter = Prefilter(lambda: embeddings)
    for start in range(0, 2 * most, most // 20):
        words = list(map(word, range(start, start + most // 20)))
        documents = ["tides", *(" ".join(words[first : first + 100]) for first in range(0, len(words), 100))]
        assert best(prefilter, "hybrid", "tides", documents) == 0
        kept = prefilter._lexicon._places
        assert max(len(kept), len(kept.containing)) <= most
        assert sum(map(len, kept)) <= most_chars
        assert sum(len(known.leading) for known in embeddings._known.values()) <= len(kept)


def test_words_learnt_in_blocks_give_the_same_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    together, parts = Prefilter(StaticEmbeddings.load), Prefilter(StaticEmbeddings.load)
    documents = [text for _, text in QUESTIONS] + OTHERS
    expected = together.choose("embedding", QUESTIONS[0][0], documents, 2)
    monkeypatch.setattr("app.first_stage.embeddings.BLOCK", 20)
    assert parts.choose("embedding", QUESTIONS[0][0], documents, 2) == expected
    assert parts.choose("embedding", QUESTIONS[1][0], documents[::-1], 1).kept == {4}


def test_concurrent_requests_do_not_mix_their_words(request: pytest.FixtureRequest) -> None:
    prefilter, fresh = Prefilter(StaticEmbeddings.load), Prefilter(StaticEmbeddings.load)
    requests = [
        (f"word{number}, pianos", [f"word{number + other}! (a{other}) {number * other}" for other in range(2000)])
        for number in range(0, 3000, 100)
    ]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    request.addfinalizer(lambda: sys.setswitchinterval(before))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda each: prefilter.choose("hybrid", *each, 10), requests))
    assert found == [fresh.choose("hybrid", *each, 10) for each in requests]
    assert all(0 in choice.kept for choice in found)


def test_the_embedded_vectors_are_small() -> None:
    assert SHIPPED.stat().st_size <= 10_000_000


@pytest.fixture(scope="module")
def sentence_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static model with four words, like model2vec's: `moon` and `luna` have the same vector."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "moon": 1, "luna": 2, "bread": 3}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    vectors = np.array([[0.1, 0.1], [1, 0], [1, 0], [0, 1]], np.float32)
    folder = tmp_path_factory.mktemp("sentence-model")
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=vectors)], device="cpu").save(str(folder))
    return folder


async def test_a_sentence_transformers_model_can_replace_the_embeddings(
    engine: FakeEngine, sentence_model: Path
) -> None:
    settings = Settings(prefilter="embedding", prefilter_top_k=1, prefilter_model=str(sentence_model))
    body = {"query": "moon", "documents": ["bread", "bread bread", "luna"], "return_prefiltered": False}
    async with serving(create_app(settings, engine)) as client:
        assert indices(await client.post("/rerank/query", json=body)) == [2]


def test_a_model_for_the_first_stage_gets_the_token_ids_of_its_tokenizer_file(tmp_path: Path) -> None:
    """Its file makes letters lower case; the tokenizer that transformers builds from it does not."""
    embeddings = load_embeddings(str(make_roberta(tmp_path / "uncased", lower_case)))
    same, other = embeddings.similarities("MOON", Lexicon().read(["moon", "bread"]))
    assert same == pytest.approx(1)
    assert other < 1 - 1e-3


def test_a_model_whose_files_have_other_weights_is_refused(tmp_path: Path) -> None:
    folder = make_roberta(tmp_path / "flash", lower_case)
    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace("attention.self.query", "mixer.Wq"): weight for name, weight in weights.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(StartupError, match="would select at random: its files lack 4 weights"):
        load_embeddings(str(folder))


async def test_a_missing_model_is_reported_at_the_start(
    engine: FakeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(prefilter_model=str(tmp_path / "nothing"))
    async with serving(create_app(settings, engine)) as client:
        assert (await client.get("/health/ready")).status_code == 503
    assert "RERANKER_PREFILTER_MODEL" in caplog.text


def test_a_model_without_its_library_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.first_stage.prefilter.find_spec", lambda name: None)
    with pytest.raises(StartupError, match="sentence-transformers is not installed"):
        load_embeddings("some/model")
