"""Attention in products computes what the fused operation computes."""

from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from app.engines.models.artefact import MODEL_FILES
from app.engines.openvino_attention import MOST_TOKENS, expand_attention
from app.engines.openvino_model import Configuration
from tests import models
from tests.models import make_decoder, make_model

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

CORE = ov.Core()
WINDOW = 64


def export(model: Path, precision: str = "fp32") -> Path:
    models.export(model, model.parent / precision, precision=precision)
    return model.parent / precision / MODEL_FILES["openvino"]


def attentions(model: ov.Model) -> int:
    return sum(node.get_type_name() == "ScaledDotProductAttention" for node in model.get_ordered_ops())


def logits(model: ov.Model) -> np.ndarray:
    """Of a full row, a padded one, and one with a single token."""
    rows = np.random.default_rng(1).integers(4, 12, (3, 24))
    mask = (np.arange(24) < [[24], [17], [1]]).astype(np.int64)
    inputs = {"input_ids": rows * mask + (1 - mask), "attention_mask": mask, "token_type_ids": mask * 0}
    inputs |= {"position_ids": np.arange(24) * mask, "segment_ids": mask}  # of decoders
    compiled = CORE.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled({name: inputs[name] for node in model.inputs for name in node.names})[0]
    assert np.isfinite(found).all()
    return np.asarray(found).reshape(-1)


@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "modernbert"])
def test_attention_in_products_gives_the_same_logits(tmp_path: Path, family: str) -> None:
    file = export(make_model(tmp_path / family, family, spread=0.3))
    fused, expanded = CORE.read_model(file), CORE.read_model(file)
    assert expand_attention(expanded, WINDOW) == attentions(fused) - attentions(expanded) > 0
    assert (attentions(expanded) > 0) == (family == "modernbert")  # its local attention has another mask
    expected = logits(fused)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(logits(expanded), expected, atol=2e-4)


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


def test_long_pairs_keep_fused_attention() -> None:
    configuration = Configuration("bf16", fused=False)
    assert configuration.expands_attention(MOST_TOKENS)
    assert not configuration.expands_attention(8192)
