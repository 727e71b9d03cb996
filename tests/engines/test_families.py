"""Rerankers of other kinds than sequence classifiers, against their oracle, `CrossEncoder.predict`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder

from app.engines.load import load_artefact
from app.engines.models.artefact import Manifest
from app.engines.models.source import locate_model
from app.engines.models.store import find_or_export
from app.engines.template import FAMILIES
from app.engines.torch import TorchEngine
from app.errors import UnusableModel
from tests.models import export, make_decoder, make_model, make_modular, make_native, make_yes_no

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:Converting a tensor:Warning"),
]

QUERY = "what causes tides?"
DOCUMENTS = [
    "moon gravity causes tides",
    "",
    " bread\n",
    "the sea and the moon. " * 60,
    "潮汐由月球引力引起。",
    "(the stock market)",
    *("light of the stock market " * count for count in range(1, 6)),
]


def load(folder: Path, template: str | None = None, **options: Any) -> TorchEngine:
    return TorchEngine(locate_model(str(folder), None, template), "cpu", None, 2, **options)


def predict(folder: Path, pairs: list[tuple[str, str]], **options: Any) -> np.ndarray:
    oracle = CrossEncoder(str(folder), device="cpu")
    oracle.config.pad_token_id = oracle.tokenizer.pad_token_id
    identity = torch.nn.Identity()
    return np.array(oracle.predict(pairs, activation_fn=identity, show_progress_bar=False, batch_size=1, **options))


def pairs_of(query: str = QUERY) -> list[tuple[str, str]]:
    return [(query, document) for document in DOCUMENTS]


def check(engine: TorchEngine, expected: np.ndarray, **options: Any) -> None:
    """Alone and in a batch, the engine gives these logits."""
    pairs = engine.encode(QUERY, DOCUMENTS, **options)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(engine.score(pairs), expected, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose([engine.score([pair])[0] for pair in pairs], expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama"])
def test_a_model_scored_by_yes_and_no_equals_the_oracle(tmp_path: Path, family: str, packed: bool) -> None:
    folder = make_yes_no(tmp_path / "model", family=family)
    engine = load(folder, packed=packed)
    assert engine.info.packed is packed
    assert engine.info.instruction == "Find the answer"
    check(engine, predict(folder, pairs_of()))


def test_an_instruction_replaces_the_models_own(tmp_path: Path) -> None:
    folder = make_yes_no(tmp_path / "model")
    engine = load(folder)
    check(engine, predict(folder, pairs_of(), prompt="Find bread"), instruction="Find bread")


def test_a_cut_keeps_what_follows_the_document(tmp_path: Path) -> None:
    folder = make_yes_no(tmp_path / "model", window=160)
    engine = load(folder)
    long = DOCUMENTS[3]
    [pair] = engine.encode(QUERY, [long])
    assert (pair.length, pair.truncated) == (160, True)
    np.testing.assert_allclose(engine.score([pair]), predict(folder, [(QUERY, long)]), rtol=1e-5, atol=2e-5)
    [short, whole] = engine.encode(QUERY, [long, "moon"], 10)
    assert (short.truncated, whole.truncated) == (True, False)
    tail = engine.encode(QUERY, [""])[0].ids[-8:]
    assert short.ids[-8:].tolist() == tail.tolist()
    [spans] = engine.windows(QUERY, [long])
    assert len(spans) > 1
    assert not any(pair.truncated for pair in engine.encode(QUERY, [long[start:end] for start, end in spans]))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("family", "labels", "name"),
    [
        ("qwen3", {0: "LABEL_0"}, "qwen3-reranker"),
        ("qwen2", {0: "0", 1: "1"}, "mxbai-rerank-v2"),
        ("qwen2", {0: "yes", 1: "no"}, "mxbai-rerank-v2"),
    ],
)
def test_a_converted_decoder_gets_the_template_of_its_family(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, family: str, labels: dict[int, str], name: str, packed: bool
) -> None:
    folder = make_decoder(tmp_path / "model", labels, 2048, family)
    engine = load(folder, packed=packed)
    assert f"it gets that of {name}" in caplog.text
    texts = [(FAMILIES[name].fill(QUERY, document), "") for document in DOCUMENTS]
    logits = predict(folder, texts)
    if len(labels) > 1:
        positive = next(index for index, label in labels.items() if label in ("1", "yes"))
        logits = logits[:, positive] - logits[:, 1 - positive]
    check(engine, logits)
    assert engine.info.activation == "sigmoid"


def test_a_decoder_without_a_known_template_says_what_to_set(tmp_path: Path) -> None:
    folder = make_decoder(tmp_path / "model", {0: "LABEL_0"}, family="llama")
    with pytest.raises(UnusableModel, match=r"without a known template.*Set RERANKER_TEMPLATE") as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    engine = load(folder, r"question:{query} \n \n passage:{document}")
    texts = [(f"question:{QUERY} \n \n passage:{document}", "") for document in DOCUMENTS]
    check(engine, predict(folder, texts))
    check(load(folder, "none"), predict(folder, pairs_of()))


def test_an_export_at_the_first_start_has_the_template_of_the_setting(tmp_path: Path) -> None:
    folder = make_decoder(tmp_path / "model", {0: "LABEL_0"}, window=128, family="llama")
    source = locate_model(str(folder), None, "--question:{query}\\npassage:{document}")
    template = Manifest.read(find_or_export(source, "openvino", "fp32", tmp_path / "store")).template
    assert template is not None
    assert template.text == "--question:{query}\npassage:{document}"


@pytest.mark.parametrize("template", ["{document} {query}", "{query}", "{query} {query} {document}"])
def test_a_template_without_its_places_is_rejected(tmp_path: Path, template: str) -> None:
    folder = make_decoder(tmp_path / "model", {0: "LABEL_0"})
    with pytest.raises(UnusableModel, match=r"RERANKER_TEMPLATE=.* is not valid: {(query|document)} must"):
        load(folder, template)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_modular_head_equals_the_oracle(tmp_path: Path, pooling: str, packed: bool) -> None:
    folder = make_modular(tmp_path / "model", pooling)
    engine = load(folder, packed=packed)
    assert engine.info.packed is packed
    check(engine, predict(folder, pairs_of()))


@pytest.mark.parametrize(
    "make",
    [
        lambda path: make_modular(path, "cls"),
        lambda path: make_modular(path, "mean"),
        lambda path: make_yes_no(path, window=256),
    ],
    ids=["cls", "mean", "yes-no"],
)
def test_an_export_equals_torch(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    folder = make(tmp_path / "model")
    manifest = export(folder, tmp_path / "out")
    assert manifest.parity is not None
    assert manifest.parity.kendall_tau > 0.99
    reference, exported = load(folder), load_artefact(tmp_path / "out", None, 2, is_exact=True)
    assert exported.info.template == reference.info.template
    instruction = "Find bread" if reference.info.instruction else None
    pairs = reference.encode(QUERY, DOCUMENTS, None, instruction)
    own = exported.encode(QUERY, DOCUMENTS, None, instruction)
    assert [pair.ids.tolist() for pair in own] == [pair.ids.tolist() for pair in pairs]
    np.testing.assert_allclose(exported.score(own), reference.score(pairs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("packed", [False, True])
def test_two_labels_of_an_encoder_become_one_score(tmp_path: Path, packed: bool) -> None:
    folder = make_model(tmp_path / "model", labels=2, spread=0.5)
    engine = load(folder, packed=packed)
    logits = predict(folder, pairs_of())
    check(engine, logits[:, 1] - logits[:, 0])
    assert (engine.info.packed, engine.info.activation) == (packed, "sigmoid")


@pytest.mark.parametrize(
    ("kind", "is_packed"), [("gte", True), ("nomic_bert", True), ("jina_embeddings_v3", True), ("eurobert", False)]
)
def test_classes_that_needed_remote_code_are_native(tmp_path: Path, kind: str, is_packed: bool) -> None:
    folder = make_native(tmp_path / kind, kind)
    expected = predict(folder, pairs_of())
    check(load(folder), expected)
    packed = load(folder, packed=True)
    assert packed.info.packed == is_packed
    check(packed, expected)
    export(folder, tmp_path / "out")
    exported = load_artefact(tmp_path / "out", None, 2)
    np.testing.assert_allclose(exported.score(exported.encode(QUERY, DOCUMENTS)), expected, atol=2e-3)


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


CODE = {"AutoModelForSequenceClassification": "owner/code--modeling.Model", "AutoConfig": "owner/code--config.Config"}


@pytest.mark.parametrize("code", [None, CODE])
def test_a_model_whose_files_have_other_weights_is_refused(tmp_path: Path, code: dict[str, str] | None) -> None:
    """The native class would be random where its own has other names for the weights."""
    folder = make_model(tmp_path / "flash", "xlm-roberta")
    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace("attention.self.query", "mixer.Wq"): weight for name, weight in weights.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    change_config(folder, **({"auto_map": code} if code else {}))
    with pytest.raises(
        UnusableModel, match=r"rank at random: its files lack 4 weights of XLMRoberta\w+, such as"
    ) as raised:
        load(folder)
    assert str(raised.value).endswith(
        "If you trust its code, set RERANKER_TRUST_REMOTE_CODE=true" if code else "Use the complete files"
    )


def test_a_head_that_is_not_in_the_files_is_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "headless")
    weights = load_file(folder / "model.safetensors")
    body = {name: weight for name, weight in weights.items() if not name.startswith("classifier")}
    save_file(body, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnusableModel, match=r"its files lack 2 weights of Bert\w+, such as classifier\.bias"):
        load(folder)
