"""Decoders that read the tokens that the pairs of a request share once: each pair scores as it does alone."""

import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from app.config import Settings
from app.engines.load import load_artefact
from app.engines.models.artefact import Precision
from app.engines.models.source import locate_model
from app.engines.openvino import OpenVinoEngine
from app.engines.segments import ROW_TOKENS, Laid, lay_out, row_length, shared_rows
from app.engines.selftest import BOUNDS, USUAL_LOGIT
from app.engines.torch import TorchEngine
from app.engines.tuning import Candidate, TuningFile, tune
from app.main import create_app
from app.types import Pair
from tests import models
from tests.conftest import serving
from tests.engines.test_families import DOCUMENTS, QUERY
from tests.models import UNMEASURED, make_decoder, make_yes_no

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:Converting a tensor:Warning"),
]

WINDOW = 256
CLASSIFIER = r"question:{query} \n \n passage:{document}"


class Exported(NamedTuple):
    """An export, and its original on torch."""

    folder: Path
    reference: TorchEngine

    def load(self, max_length: int | None = None) -> OpenVinoEngine:
        engine = load_artefact(self.folder, max_length, 2, is_exact=True)
        assert isinstance(engine, OpenVinoEngine)
        return engine


def export(model: Path, out: Path, template: str | None = None) -> Exported:
    models.export(model, out, template=template)
    return Exported(out, TorchEngine(locate_model(str(model), None, template), "cpu", None, 2))


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A Qwen3 that is scored by its logits for yes and no, and a Llama with one label."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "qwen3":
        return export(make_yes_no(folder / "model", WINDOW), folder / "out")
    model = make_decoder(folder / "model", {0: "LABEL_0"}, WINDOW, request.param)
    return export(model, folder / "out", CLASSIFIER)


def check(engine: OpenVinoEngine, reference: TorchEngine, pairs: list[Pair]) -> None:
    """The pairs share rows, and have the scores of the original and those that they have alone."""
    assert sum(engine.padded_tokens(pairs)) < sum(pair.length for pair in pairs)
    expected = np.array([reference.score([pair])[0] for pair in pairs])
    assert np.ptp(expected) > 0.1  # or it would not be seen that pairs read each other
    np.testing.assert_allclose(engine.score(pairs), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(engine.score(pairs[::-1]), expected[::-1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose([engine.score([pair])[0] for pair in pairs], expected, rtol=1e-4, atol=1e-4)


def test_pairs_in_one_row_score_as_alone_and_as_on_torch(exported: Exported) -> None:
    engine = exported.load()
    assert engine.info.shares_prefixes
    check(engine, exported.reference, engine.encode(QUERY, DOCUMENTS))


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_rounded_weights_score_in_shared_rows_within_the_bounds(tmp_path: Path, precision: Precision) -> None:
    model, texts = make_yes_no(tmp_path / "model", WINDOW), tmp_path / "texts.jsonl"
    texts.write_text("\n".join([json.dumps({"query": QUERY, "documents": DOCUMENTS})] * 2))
    models.export(model, tmp_path / "out", precision=precision, calibration=texts)
    engine = load_artefact(tmp_path / "out", None, 2)
    pairs = engine.encode(QUERY, DOCUMENTS)
    assert sum(engine.padded_tokens(pairs)) < sum(pair.length for pair in pairs)
    alone = np.array([engine.score([pair])[0] for pair in pairs])
    scale = max(1.0, float(np.abs(alone).max()) / USUAL_LOGIT)
    assert np.abs(engine.score(pairs) - alone).max() < BOUNDS[precision] * scale < np.ptp(alone)


def test_a_batch_of_several_requests_gives_each_its_scores(exported: Exported) -> None:
    engine = exported.load()
    requests = [
        engine.encode(query, DOCUMENTS[:size], limit)
        for query, size, limit in ((QUERY, 11, None), ("bread", 9, None), (QUERY, 6, 5), ("the stock market", 1, None))
    ]
    mixed = [pair for at in range(len(DOCUMENTS)) for pairs in requests if at < len(pairs) for pair in [pairs[at]]]
    check(engine, exported.reference, mixed)


def test_windows_and_cut_queries_and_documents_score_as_alone(exported: Exported) -> None:
    engine = exported.load(160)
    long, query = " ".join(DOCUMENTS), "what causes the tides of the sea and the light of a plant? " * 20
    [spans] = engine.windows(QUERY, [long], 20)
    pairs = engine.encode(QUERY, [long[start:end] for start, end in spans])
    assert len(pairs) > 4
    cut = engine.encode(query, [*DOCUMENTS, long])
    assert all(pair.truncated for pair in cut)
    check(engine, exported.reference, pairs + cut + engine.encode(QUERY, [long, *DOCUMENTS]))


def test_rows_keep_their_bound_and_hold_one_request_each(exported: Exported) -> None:
    engine = exported.load()
    requests = [engine.encode(QUERY, DOCUMENTS * 5), engine.encode(QUERY, DOCUMENTS * 3)]
    pairs = [pair for request in requests for pair in request]
    rows = shared_rows(pairs, 2)
    found = [index for row in rows for index in row]
    assert len(found) == len(set(found)) > 60
    for row in rows:
        own = [pairs[index] for index in row]
        assert len({id(pair.prefix) for pair in own}) == 1
        assert row_length(own) <= ROW_TOKENS


@pytest.mark.parametrize("prefix", [ROW_TOKENS - 2, ROW_TOKENS - 1, ROW_TOKENS, ROW_TOKENS + 1, 2 * ROW_TOKENS])
def test_pairs_whose_prefix_fills_a_row_have_their_own_rows(prefix: int) -> None:
    first = np.arange(prefix, dtype=np.int32)
    ids = [np.append(first, np.full(rest, 7, np.int32)) for rest in (1, 2, 3)]
    pairs = [Pair(own, np.zeros_like(own), False, first) for own in ids]
    for row in shared_rows(pairs, 2):
        assert row_length([pairs[index] for index in row]) <= ROW_TOKENS


def test_pairs_that_gain_nothing_have_their_own_rows(exported: Exported) -> None:
    engine = exported.load()
    single = engine.encode(QUERY, DOCUMENTS[:1]) + engine.encode(QUERY, DOCUMENTS[1:2])
    assert shared_rows(single, 1) == []
    ids = np.ones(700, np.int32)
    long = [Pair(ids, ids * 0, truncated=False, prefix=ids[:90])] * 4
    assert shared_rows(long, 1) == []


def read_each_other(*arguments: object) -> Laid:
    laid = lay_out(*arguments)  # type: ignore[arg-type]
    np.minimum(laid.arrays["segment_ids"], 2, out=laid.arrays["segment_ids"])
    return laid


def test_an_engine_that_is_wrong_in_shared_rows_serves_without_them(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.engines.tuning.arrange", lambda *_: True)  # as measured: the choice is kept
    right = tune([Candidate("right", exported.load)], lambda _: {}, TuningFile(tmp_path / "right"))
    assert right.info.shares_prefixes
    assert right.self_test is not None
    assert right.self_test.rejected == ()
    monkeypatch.setattr("app.engines.openvino.lay_out", read_each_other)
    for _ in range(2):  # measured, and as it was kept
        wrong = tune([Candidate("wrong", exported.load)], lambda _: {}, TuningFile(tmp_path / "wrong"))
        assert not wrong.info.shares_prefixes
        assert wrong.self_test is not None
        assert wrong.self_test.passed
        assert wrong.self_test.rejected
        assert all(reason.startswith("wrong, shared rows: logits are off by") for reason in wrong.self_test.rejected)
    pairs = wrong.encode(QUERY, DOCUMENTS)
    expected = exported.reference.score(exported.reference.encode(QUERY, DOCUMENTS))
    np.testing.assert_allclose(wrong.score(pairs), expected, rtol=1e-4, atol=1e-4)


async def test_usage_counts_all_tokens_and_the_metrics_those_that_are_computed(
    exported: Exported, tmp_path: Path
) -> None:
    engine = exported.load()
    body = {"query": QUERY, "documents": DOCUMENTS}
    tokens = sum(pair.length for pair in engine.encode(QUERY, DOCUMENTS))
    settings = Settings(model=str(exported.folder), export_dir=tmp_path, backend="openvino", threads=2, **UNMEASURED)
    async with serving(create_app(settings)) as client:
        info = (await client.get("/info")).json()
        first, cached = [(await client.post("/rerank", json=body)).json() for _ in range(2)]
        metrics = (await client.get("/metrics")).text
    assert info["shares_prefixes"]
    assert first["usage"]["total_tokens"] == cached["usage"]["total_tokens"] == tokens
    assert first["meta"]["cost"]["tokens"] == tokens
    assert cached["meta"]["cost"]["tokens"] == 0
    computed = sum(float(count) for count in re.findall(r"^reranker_tokens_total\{.*\} (\S+)$", metrics, re.MULTILINE))
    assert 0 < computed < tokens


def test_local_attention_is_exported_without_shared_rows(tmp_path: Path) -> None:
    model = make_decoder(tmp_path / "model", {0: "LABEL_0"}, 64, "qwen2")
    file = model / "config.json"
    settings = {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    local = export(model, tmp_path / "out", CLASSIFIER)
    engine = local.load()
    assert not engine.info.shares_prefixes
    expected = local.reference.score(local.reference.encode(QUERY, DOCUMENTS))
    np.testing.assert_allclose(engine.score(engine.encode(QUERY, DOCUMENTS)), expected, rtol=1e-4, atol=1e-4)


def test_an_export_of_an_earlier_version_is_served_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_decoder(tmp_path / "model", {0: "LABEL_0"}, 64, "llama")
    monkeypatch.setattr("app.export.segments.with_segments", lambda exportable, _: exportable)
    earlier = export(model, tmp_path / "out", CLASSIFIER)
    manifest = json.loads((earlier.folder / "manifest.json").read_text())
    del manifest["shares_prefixes"]
    (earlier.folder / "manifest.json").write_text(json.dumps(manifest))
    engine = earlier.load()
    pairs = engine.encode(QUERY, DOCUMENTS)
    expected = earlier.reference.score(earlier.reference.encode(QUERY, DOCUMENTS))
    np.testing.assert_allclose(engine.score(pairs), expected, rtol=1e-4, atol=1e-4)
