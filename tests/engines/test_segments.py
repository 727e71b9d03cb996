"""Decoders that read the tokens that the pairs of a request share once: each pair scores as it does alone."""

from pathlib import Path

import numpy as np
import pytest

from app.engines.load import load_artefact
from app.engines.models.source import locate_model
from app.engines.openvino import OpenVinoEngine
from app.engines.torch import TorchEngine
from app.export.command import export_model
from tests.models import make_decoder, make_yes_no

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
    *("light of the stock market " * count for count in range(1, 9)),
]
CLASSIFIER = r"question:{query} \n \n passage:{document}"


def export(folder: Path, family: str, window: int = 256) -> tuple[Path, TorchEngine]:
    """The export, and the original on torch. A Qwen3 by its logits for yes and no, a Llama with one label."""
    if family == "qwen3":
        model, template = make_yes_no(folder / "model", window), None
    else:
        model, template = make_decoder(folder / "model", {0: "LABEL_0"}, window, family), CLASSIFIER
    export_model(str(model), "openvino", "fp32", folder / "out", template=template)
    return folder / "out", TorchEngine(locate_model(str(model), None, template), "cpu", None, 2)


def load(folder: Path, max_length: int | None = None) -> OpenVinoEngine:
    engine = load_artefact(folder, max_length, 2, is_exact=True)
    assert isinstance(engine, OpenVinoEngine)
    return engine


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_pairs_in_one_row_score_as_alone_and_as_on_torch(tmp_path: Path, family: str) -> None:
    folder, reference = export(tmp_path, family)
    engine = load(folder)
    assert engine.info.shares_prefixes
    pairs = engine.encode(QUERY, DOCUMENTS)
    assert sum(engine.padded_tokens(pairs)) < sum(pair.length for pair in pairs)
    expected = reference.score(reference.encode(QUERY, DOCUMENTS))
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(engine.score(pairs), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(engine.score(pairs[::-1]), expected[::-1], rtol=1e-4, atol=1e-4)
    alone = [engine.score([pair])[0] for pair in pairs]
    np.testing.assert_allclose(alone, expected, rtol=1e-4, atol=1e-4)
