"""Attention in products computes what the fused operation computes."""

from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from transformers import ModernBertConfig

from app.engines.models.artefact import MODEL_FILES
from app.engines.openvino_attention import MOST_TOKENS, expand_attention
from app.engines.openvino_model import EXACT, Configuration
from tests import models
from tests.models import SMALL, make_decoder, make_model

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

CORE = ov.Core()
FLOATS = {"INFERENCE_PRECISION_HINT": "f32"}
WINDOW = 64


def export(model: Path, precision: str = "fp32") -> Path:
    models.export(model, model.parent / precision, precision=precision)
    return model.parent / precision / MODEL_FILES["openvino"]


def attentions(model: ov.Model) -> int:
    return sum(node.get_type_name() == "ScaledDotProductAttention" for node in model.get_ordered_ops())


def logits(model: ov.Model | ov.CompiledModel, width: int = 24) -> np.ndarray:
    """Of a full row, a padded one, and one with a single token."""
    rows = np.random.default_rng(1).integers(4, 12, (3, width))
    mask = (np.arange(width) < [[width], [max(1, width * 7 // 10)], [1]]).astype(np.int64)
    inputs = {"input_ids": rows * mask + (1 - mask), "attention_mask": mask, "token_type_ids": mask * 0}
    inputs |= {"position_ids": np.arange(width) * mask, "segment_ids": mask}  # of decoders
    compiled = CORE.compile_model(model, "CPU", FLOATS) if isinstance(model, ov.Model) else model
    found = compiled({name: inputs[name] for node in compiled.inputs for name in node.names})[0]
    assert np.isfinite(found).all()
    return np.asarray(found).reshape(-1)


@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "modernbert"])
def test_attention_in_products_gives_the_same_logits(tmp_path: Path, family: str) -> None:
    file = export(make_model(tmp_path / family, family, spread=0.3))
    fused, expanded = CORE.read_model(file), CORE.read_model(file)
    assert expand_attention(expanded, WINDOW) == attentions(fused) > 0
    assert attentions(expanded) == 0
    expected = logits(fused)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(logits(expanded), expected, atol=2e-4)


def local(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An export with local attention in two layers. The last one of them computes the first token only."""
    options = {"global_attn_every_n_layers": 2, "local_attention": 16, "max_position_embeddings": 64}
    config = ModernBertConfig(**SMALL | {"num_hidden_layers": 4}, **options)
    monkeypatch.setitem(models.CONFIGS, "modernbert", config)
    return export(make_model(folder / "model", "modernbert", spread=0.3))


def test_local_attention_reads_the_tokens_nearby(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At widths that fill its blocks of tokens, and at others."""
    file = local(tmp_path, monkeypatch)
    model = CORE.read_model(file)
    assert expand_attention(model, WINDOW) == 4
    fused, expanded = (CORE.compile_model(each, "CPU", FLOATS) for each in (file, model))
    for width in (1, 2, 8, 9, 16, 24, 25, 33, 48, 64):
        np.testing.assert_allclose(logits(expanded, width), logits(fused, width), atol=2e-4, err_msg=str(width))


def test_an_int8_model_reads_its_queries_and_keys_as_floats(tmp_path: Path) -> None:
    file = export(make_model(tmp_path / "bert", spread=0.3), "int8")
    fused, expanded = CORE.read_model(file), CORE.read_model(file)
    layers = attentions(fused)
    assert expand_attention(expanded, WINDOW) == layers

    def quantisers(model: ov.Model) -> int:
        return sum(node.get_type_name() == "FakeQuantize" for node in model.get_ordered_ops())

    assert quantisers(expanded) <= quantisers(fused) - 2 * layers
    np.testing.assert_allclose(logits(expanded), logits(fused), atol=0.2)


def test_very_large_scores_give_no_nan(tmp_path: Path) -> None:
    file = export(make_model(tmp_path / "bert", spread=9.0))
    model = CORE.read_model(file)
    expand_attention(model, WINDOW)
    logits(model)


def test_a_causal_model_keeps_its_attention(tmp_path: Path) -> None:
    model = CORE.read_model(export(make_decoder(tmp_path / "decoder", {0: "relevance"})))
    assert expand_attention(model, WINDOW) == 0


def test_for_long_pairs_only_local_attention_is_in_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = CORE.read_model(local(tmp_path, monkeypatch))
    assert expand_attention(model, MOST_TOKENS + 1) == 2 < attentions(model) + 2 == 4
    assert Configuration("bf16", fused=False).expands_attention(MOST_TOKENS)
    assert not Configuration("f32").expands_attention(MOST_TOKENS)
    assert Configuration("f32").expands_attention(8192)
    assert not EXACT.expands_attention(8192)
