"""The last layer is computed for the first token only: less work, the same scores."""

from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops
from transformers import AutoModelForSequenceClassification, ModernBertConfig

from app.config import Settings
from app.engines.load import load_artefact, load_engine
from app.export.first_token import keep_first_token
from app.export.parity import logits
from tests.engines.test_exported import GROUP, near, pytestmark
from tests.models import CONFIGS, SMALL, WORDS, export, make_model, make_tokenizer

__all__ = ["pytestmark"]


def tokens_before_the_head(folder: Path) -> int:
    """The number of tokens before the head selects the first one; -1 for any number."""
    model = ov.Core().read_model(folder / "openvino_model.xml")
    heads = [node for node in model.get_ordered_ops() if node.get_type_name() == "Gather"]
    shapes = [node.input(0).get_partial_shape() for node in heads]
    return int([shape for shape in shapes if len(shape) == 3][-1][1].max_length)


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_computes_its_last_layer_for_one_token(tmp_path: Path, family: str) -> None:
    export(make_model(tmp_path / family, family), tmp_path / "out")
    assert tokens_before_the_head(tmp_path / "out") == 1


def test_a_head_that_reads_all_tokens_gets_all_tokens(tmp_path: Path) -> None:
    config = ModernBertConfig(
        **SMALL,
        vocab_size=len(WORDS) + 4,
        max_position_embeddings=64,
        num_labels=1,
        pad_token_id=1,
        classifier_pooling="mean",
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "mean")
    make_tokenizer("modernbert").save_pretrained(tmp_path / "mean")
    export(tmp_path / "mean", tmp_path / "out")
    reference = load_engine(Settings(backend="torch", model=str(tmp_path / "mean"), batch_tokens=1024))
    assert near(logits(reference, GROUP), logits(load_artefact(tmp_path / "out", 64, 1), GROUP), 1e-5)


def test_a_node_with_another_reader_keeps_all_tokens() -> None:
    hidden = ops.parameter([-1, -1, 4], np.float32)
    doubled = ops.add(hidden, hidden)
    first = ops.gather(doubled, ops.constant(0), ops.constant(1))
    model = ov.Model([first, ops.reduce_sum(doubled, ops.constant([0, 1, 2]))], [hidden])
    assert keep_first_token(model)
    values = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    chosen, total = ov.Core().compile_model(model, "CPU")([values]).values()
    assert np.allclose(chosen, 2 * values[:, 0])
    assert np.allclose(total, 2 * values.sum(), atol=1e-4)


def test_a_model_with_another_head_is_not_changed() -> None:
    hidden = ops.parameter([-1, -1, 4], np.float32)
    model = ov.Model([ops.gather(hidden, ops.constant(2), ops.constant(1))], [hidden])
    assert not keep_first_token(model)
