"""Batches without padding: each pair scores as it does alone. Models that cannot be packed are padded."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.attention.varlen
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder

from app.engines import packing, torch_device
from app.engines.models.source import locate_model
from app.engines.torch import TorchEngine
from app.types import Pair
from tests import models

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

QUERY = "what causes tides"
DOCUMENTS = [
    "moon gravity causes tides",
    "",
    "bread",
    "the sea and the moon " * 30,
    *("light of the stock market " * count for count in range(1, 9)),
]


def make_model(folder: Path, family: str = "bert") -> Path:
    """A model with clearly different scores for different texts."""
    return models.make_model(folder, family, spread=0.5)


def load(folder: Path, packed: bool = True, **options: Any) -> TorchEngine:
    return TorchEngine(locate_model(str(folder), None), "cpu", 64, 2, packed=packed, **options)


def logits(engine: TorchEngine, documents: list[str] = DOCUMENTS) -> np.ndarray:
    return np.array(engine.score(engine.encode(QUERY, documents)))


def expected(folder: Path) -> np.ndarray:
    oracle = CrossEncoder(str(folder), device="cpu")
    pairs = [(QUERY, document) for document in DOCUMENTS]
    return np.array(oracle.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False, batch_size=1))


def with_means(folder: Path) -> Path:
    """The model with the mean of all tokens in place of the first."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"classifier_pooling": "mean"}))
    return folder


@pytest.mark.parametrize(
    "make",
    [
        lambda path: make_model(path, "bert"),
        lambda path: make_model(path, "xlm-roberta"),
        lambda path: make_model(path, "modernbert"),
        lambda path: with_means(make_model(path, "modernbert")),
        lambda path: make_model(path, "electra"),
    ],
)
def test_packed_scores_equal_the_oracles(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    folder = make(tmp_path / "model")
    engine = load(folder)
    assert engine.info.packed
    given = logits(engine)
    assert np.ptp(given) > 0.1  # or it would not be seen that pairs read each other
    np.testing.assert_allclose(given, expected(folder), rtol=1e-5, atol=3e-5)


def test_other_pairs_of_a_batch_do_not_change_a_score(tmp_path: Path) -> None:
    engine = load(make_model(tmp_path / "model"))
    alone = [logits(engine, [document])[0] for document in DOCUMENTS]
    np.testing.assert_allclose(logits(engine), alone, rtol=1e-5, atol=3e-5)
    np.testing.assert_allclose(logits(engine, DOCUMENTS[::-1]), alone[::-1], rtol=1e-5, atol=3e-5)


def test_a_packed_batch_costs_no_padding(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    ids = np.ones(10, np.int32)
    pairs = [Pair(ids[:length], ids[:length], truncated=False) for length in (10, 3, 7)]
    assert load(folder).padded_tokens(pairs) == [10, 3, 7]
    assert load(folder, packed=False).padded_tokens(pairs) == [10, 10, 10]


def test_a_model_whose_attention_cannot_be_replaced_is_padded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    folder = make_model(tmp_path / "model", "deberta-v2")
    engine = load(folder)
    assert not engine.info.packed
    assert "Batches are padded: this model cannot run without padding: its attention cannot be replaced" in caplog.text
    np.testing.assert_allclose(logits(engine), expected(folder), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        # Pairs that read each other; positions that are another's.
        (("packed_attention", lambda q, k, v, *_: packing._segment(q, k, v, 0.25, 0, False)), "different scores"),
        (("first_position", lambda _: 1), "index out of range"),
    ],
)
def test_a_model_that_packing_gets_wrong_is_padded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wrong: tuple[str, Callable[..., Any]],
    reason: str,
) -> None:
    caplog.set_level("INFO")
    folder = make_model(tmp_path / "model")
    monkeypatch.setattr(packing, *wrong)
    engine = load(folder)
    assert not engine.info.packed
    assert reason in caplog.text
    np.testing.assert_allclose(logits(engine), expected(folder), rtol=1e-5, atol=3e-5)


def test_the_real_model_ranks_alike_packed_and_padded() -> None:
    source = locate_model(None, None)
    packed, padded = (TorchEngine(source, "cpu", 512, 2, packed=each) for each in (True, False))
    assert packed.info.packed
    np.testing.assert_allclose(logits(packed), logits(padded), rtol=1e-5, atol=1e-5)


@pytest.mark.timeout(300)
def test_a_packed_model_runs_compiled(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    engine = load(folder, compiled=True)
    assert (engine.info.packed, engine.info.compiled) == (True, True)
    np.testing.assert_allclose(logits(engine), expected(folder), rtol=1e-5, atol=3e-5)


def test_new_batch_shapes_are_not_compiled_again(tmp_path: Path) -> None:
    """Numbers of pairs and tokens are not compiled in: else each new batch would compile for seconds."""
    engine = load(make_model(tmp_path / "model"), compiled=True)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for count in range(1, len(DOCUMENTS)):
        logits(engine, DOCUMENTS[:count])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before <= 1


class Attention(torch.nn.Module):
    """As a model has it: the scale is its own."""

    def __init__(self, window: int | None, causal: bool) -> None:
        super().__init__()
        self.scaling, self.window, self.causal = 0.3, window, causal

    def forward(self, row: torch.Tensor, starts: torch.Tensor, longest: int) -> torch.Tensor:
        window = self.window or packing.FULL
        return packing._on_cuda(row, row, row, starts, longest, self.scaling, window, self.causal)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 2])
def test_the_kernel_call_fits_its_signature_and_compiles_to_one_graph(
    monkeypatch: pytest.MonkeyPatch, window: int | None, causal: bool
) -> None:
    """In its place, since it runs on CUDA only, is the reference; the call has to fit its real signature."""
    signature = inspect.signature(torch.nn.attention.varlen.varlen_attn)

    def kernel(*args: Any, **options: Any) -> torch.Tensor:
        given = signature.bind(*args, **options).arguments
        assert given["cu_seq_q"] is given["cu_seq_k"]
        before, behind = given["window_size"]
        assert behind == (0 if attention.causal else before)
        seen = packing.FULL if before < 0 else before
        row = given["query"], given["key"], given["value"]
        return packing.packed_attention(*row, given["cu_seq_q"], given["scale"], seen, attention.causal)  # type: ignore[no-any-return]

    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", kernel)
    attention = Attention(window, causal)
    compiled = torch.compile(attention, dynamic=True, fullgraph=True, backend="eager")
    for lengths in ([3, 5, 4], [7, 1], [2, 2, 9, 6]):
        row = torch.randn(sum(lengths), 2, 8)
        starts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        right = packing.packed_attention(row, row, row, starts, attention.scaling, window or packing.FULL, causal)
        torch.testing.assert_close(compiled(row, starts, max(lengths)), right)


def scaled(folder: Path, factor: float) -> Path:
    """The model with a feed-forward layer whose values are so much larger, and its logits alike."""
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if "intermediate.dense" in name:
            weights[name] = weights[name] * factor
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_half_precision_is_used_unless_it_overflows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(torch_device.PRECISIONS, "cpu", torch_device.PRECISIONS["cuda"])
    folder = make_model(tmp_path / "model")
    engine = load(folder, packed=False)
    assert engine.info.precision == "fp16"
    np.testing.assert_allclose(logits(engine), expected(folder), rtol=0.02, atol=0.02)
    wide = load(scaled(folder, 1e5), packed=False)
    assert wide.info.precision == "bf16"
    assert np.isfinite(logits(wide)).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "modernbert", "deberta-v2", "electra"])
def test_on_cuda_the_scores_are_those_of_the_cpu(tmp_path: Path, family: str) -> None:
    folder = make_model(tmp_path / "model", family)
    engine = TorchEngine(locate_model(str(folder), None), "cuda", 64, 2)
    assert engine.info.packed == (family != "deberta-v2")
    np.testing.assert_allclose(logits(engine), expected(folder), rtol=0.05, atol=0.05)
