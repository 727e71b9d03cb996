"""The torch engine against its oracle, `sentence_transformers.CrossEncoder.predict`."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder

from app.config import Settings
from app.engines.load import load_engine
from app.engines.models.source import EMBEDDED
from app.engines.torch import TorchEngine
from app.engines.torch_device import pick_device
from app.errors import EngineBroken, OutOfMemory, StartupError, UnusableModel
from tests.models import CONFIGS, UNMEASURED, make_bi_encoder, make_model, pickled

# The optional tokenizer conversions of transformers warn about packages that are not needed here.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

QUERY = "what causes the tides"
DOCUMENTS = [
    "",
    " ",
    "The gravity of the moon causes the tides.",
    "moon",
    "北京是中国的首都。潮汐由月球引力引起。",
    "Приливы и отливы вызваны притяжением Луны.",
    "المد والجزر سببه القمر",
    "👩‍👩‍👧‍👦🎉🌊🌙",
    "zero\u200bwidth and \x00 control",
    "The sea rises and falls. " * 200,
    "antidisestablishmentarianism" * 100,
    "Stock markets closed higher on Friday.",
    *(f"Sentence number {number} is about the sea. " * number for number in range(1, 40, 3)),
]


def load(**settings: Any) -> TorchEngine:
    engine = load_engine(Settings(backend="torch", **UNMEASURED, **settings))
    assert isinstance(engine, TorchEngine)
    return engine


@pytest.fixture(scope="module")
def default() -> TorchEngine:
    return load()


@pytest.fixture(scope="module")
def oracle() -> CrossEncoder:
    return CrossEncoder(str(EMBEDDED), device="cpu")


def logits(engine: TorchEngine, query: str, documents: list[str], batch: int = 8) -> np.ndarray:
    pairs = engine.encode(query, documents)
    return np.array([logit for at in range(0, len(pairs), batch) for logit in engine.score(pairs[at : at + batch])])


def expected(oracle: CrossEncoder, query: str, documents: list[str], **options: Any) -> np.ndarray:
    pairs = [(query, document) for document in documents]
    return oracle.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False, batch_size=8, **options)


def test_logits_equal_the_oracles_on_every_kind_of_text(default: TorchEngine, oracle: CrossEncoder) -> None:
    ours, theirs = logits(default, QUERY, DOCUMENTS), expected(oracle, QUERY, DOCUMENTS)
    assert np.abs(ours - theirs).max() <= 1e-5


@pytest.mark.parametrize("query", ["", "?", "潮汐", "tide " * 100])
def test_logits_equal_the_oracles_for_other_queries(default: TorchEngine, oracle: CrossEncoder, query: str) -> None:
    assert np.abs(logits(default, query, DOCUMENTS) - expected(oracle, query, DOCUMENTS)).max() <= 1e-5


@pytest.mark.parametrize("words", [150, 600])
def test_a_query_over_half_the_window_equals_the_oracle_on_its_first_half(
    default: TorchEngine, oracle: CrossEncoder, words: int
) -> None:
    document = "The gravity of the moon causes the tides. " * 60
    half = default.info.max_length // 2
    theirs = expected(oracle, "tide " * half, [document], processing_kwargs={"text": {"truncation": "only_second"}})
    assert np.abs(logits(default, "tide " * words, [document]) - theirs).max() <= 1e-5


def test_batching_does_not_change_the_scores(default: TorchEngine) -> None:
    alone, together = logits(default, QUERY, DOCUMENTS, 1), logits(default, QUERY, DOCUMENTS, 100)
    assert np.abs(alone - together).max() <= 1e-5


def test_activated_scores_equal_predict(default: TorchEngine, oracle: CrossEncoder) -> None:
    ours = default.activate(logits(default, QUERY, DOCUMENTS).tolist())
    theirs = oracle.predict([(QUERY, document) for document in DOCUMENTS], show_progress_bar=False, batch_size=8)
    assert np.abs(np.array(ours) - theirs).max() <= 1e-5
    assert default.info.activation == "sigmoid"


def test_the_engine_describes_itself(default: TorchEngine) -> None:
    info = default.info
    assert (info.model, info.device, info.backend, info.precision) == ("reranker-minilm-l6-v2", "cpu", "torch", "fp32")
    assert (info.max_length, info.compiled, info.labels) == (256, False, {0: "relevance"})


def test_the_warm_up_measures_a_speed(default: TorchEngine) -> None:
    assert default.warm_up() > 0


def test_a_shorter_window_is_respected(oracle: CrossEncoder) -> None:
    engine = load(max_length=64)
    assert max(pair.length for pair in engine.encode(QUERY, DOCUMENTS)) == 64
    theirs = expected(oracle, QUERY, DOCUMENTS, processing_kwargs={"text": {"max_length": 64, "truncation": True}})
    assert np.abs(logits(engine, QUERY, DOCUMENTS) - theirs).max() <= 1e-5


@pytest.mark.parametrize("family", CONFIGS)
def test_other_architectures_equal_the_oracle(tmp_path: Path, family: str) -> None:
    folder = make_model(tmp_path / family, family, spread=0.2)
    engine, reference = load(model=str(folder)), CrossEncoder(str(folder), device="cpu")
    assert engine.info.max_length == 64
    documents = ["moon gravity causes tides", "", "bread", "the sea and the moon " * 30]
    assert np.abs(logits(engine, QUERY, documents, 3) - expected(reference, QUERY, documents)).max() <= 1e-5


def test_the_models_own_activation_is_respected(tmp_path: Path) -> None:
    engine = load(model=str(make_model(tmp_path / "identity", activation="linear.Identity")))
    assert engine.info.activation == "identity"
    assert engine.activate([3.5, -2.0]) == [3.5, -2.0]


def test_a_model_saved_by_sentence_transformers_loads(tmp_path: Path) -> None:
    CrossEncoder(str(make_model(tmp_path / "made")), device="cpu").save_pretrained(str(tmp_path / "saved"))
    assert logits(load(model=str(tmp_path / "saved")), QUERY, ["moon", "bread"]).shape == (2,)


def break_weights(folder: Path) -> Path:
    (folder / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not weights")
    return folder


def without_weights(folder: Path) -> Path:
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "missing", "no such folder"),
        (lambda folder: shutil.copytree(Path(__file__).parents[1] / "e2e", folder / "code"), "not a model"),
        (lambda folder: break_weights(make_model(folder / "broken")), "cannot be loaded"),
        (lambda folder: without_weights(make_model(folder / "empty")), "cannot be loaded"),
        (lambda folder: make_model(folder / "three", labels=3), "gives 3 labels"),
        (lambda folder: make_bi_encoder(folder / "bi"), "no relevance head"),
        (lambda folder: Path(__file__), "is a file"),
    ],
)
def test_an_unusable_model_is_rejected_in_one_line(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(StartupError, match=message) as caught:
        load(model=str(make(tmp_path)))
    assert "\n" not in str(caught.value)
    assert "RERANKER_MODEL=" in str(caught.value)


PICKLE = r"pytorch_model\.bin is a pickle, .*RERANKER_ALLOW_PICKLE=true"


def test_a_pickle_is_loaded_only_if_allowed(tmp_path: Path) -> None:
    folder = pickled(make_model(tmp_path / "old"))
    with pytest.raises(UnusableModel, match=PICKLE) as caught:
        load(model=str(folder))
    assert "\n" not in str(caught.value)
    assert load(model=str(folder), allow_pickle=True).info.model == "old"
    make_model(folder)  # next to safetensors, the pickle is never read
    (folder / "pytorch_model.bin").write_bytes(b"no pickle")
    assert load(model=str(folder)).info.model == "old"


def test_a_pickle_in_a_module_of_a_model_is_rejected(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "two-parts")
    (folder / "1_Dense").mkdir()
    torch.save({}, folder / "1_Dense" / "pytorch_model.bin")
    with pytest.raises(UnusableModel, match=rf"1_Dense/{PICKLE}"):
        load(model=str(folder))


def test_an_uncached_hub_model_is_rejected_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.engines.checkpoint.HF_HUB_OFFLINE", True)
    with pytest.raises(StartupError, match="RERANKER_MODEL='nobody/nothing' cannot be loaded"):
        load(model="nobody/nothing")


def test_a_cached_hub_model_loads_without_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / "abc123"
    make_model(snapshot)
    (tmp_path / "models--someone--tiny" / "refs").mkdir()
    (tmp_path / "models--someone--tiny" / "refs" / "main").write_text("abc123")
    for module in ("huggingface_hub.constants.HF_HUB_CACHE", "transformers.utils.hub.constants.HF_HUB_CACHE"):
        monkeypatch.setattr(module, str(tmp_path))
    engine = load(model="someone/tiny")
    assert engine.info.model == "someone/tiny"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_missing_device_is_rejected(device: str) -> None:
    with pytest.raises(StartupError, match=f"RERANKER_DEVICE={device} is not available"):
        pick_device(device)


def test_auto_picks_an_available_device() -> None:
    device = pick_device("auto")
    assert torch.zeros(1, device=device).device.type == device.type


def test_a_failed_allocation_raises_out_of_memory(default: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(_: Any) -> Any:
        return torch.empty(2**60)

    monkeypatch.setattr(default, "_forward", exhausted)
    with pytest.raises(OutOfMemory):
        default.score(default.encode(QUERY, ["moon"]))


def test_a_failed_device_breaks_the_engine(default: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nand more")

    monkeypatch.setattr(default, "_forward", broken)
    with pytest.raises(EngineBroken, match=r"^The device failed: CUDA error: an illegal memory access.*\.$"):
        default.score(default.encode(QUERY, ["moon"]))


@pytest.mark.timeout(300)
def test_compiling_does_not_change_the_scores(tmp_path: Path) -> None:
    folder = str(make_model(tmp_path / "tiny"))
    compiled = load(model=folder, torch_compile=True)
    assert compiled.info.compiled
    documents = ["moon gravity causes tides", "", "bread", "the sea and the moon " * 30]
    plain = logits(load(model=folder), QUERY, documents)
    assert np.abs(logits(compiled, QUERY, documents) - plain).max() <= 1e-5


def test_without_a_compiler_the_model_runs_uncompiled_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with torch._inductor.config.patch({"cpp.cxx": (str(tmp_path / "no-such-compiler"),), "fx_graph_cache": False}):
        engine = load(model=str(make_model(tmp_path / "tiny")), torch_compile=True)
    assert not engine.info.compiled
    assert "ENABLE_TORCH_COMPILE is ignored, the model runs uncompiled: No working C++ compiler found" in caplog.text
    assert logits(engine, QUERY, ["moon", "bread"]).shape == (2,)


@pytest.fixture(params=["no kernel image is available for execution on the device", "not compiled with CUDA"])
def old_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A card that torch lists and cannot compute on, with torch's message."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    ones = torch.ones

    def fail(*shape: int, device: Any = None) -> torch.Tensor:
        if str(device).startswith("cuda"):
            raise RuntimeError(f"CUDA error: {request.param}\nCUDA kernel errors might be reported later")
        return ones(*shape, device=device)

    monkeypatch.setattr("torch.ones", fail)
    return str(request.param)


def test_with_auto_an_old_gpu_is_not_used(old_gpu: str, caplog: pytest.LogCaptureFixture) -> None:
    assert pick_device("auto").type != "cuda"
    assert f"cuda:0 is not used: this torch cannot compute on it: CUDA error: {old_gpu}" in caplog.text


@pytest.mark.parametrize("requested", ["cuda", "cuda:0"])
def test_an_old_gpu_that_is_requested_stops_the_start(old_gpu: str, requested: str) -> None:
    with pytest.raises(StartupError) as raised:
        pick_device(requested)
    assert str(raised.value).startswith(f"RERANKER_DEVICE={requested} is not available: this torch ")
    assert f"cannot compute on it: CUDA error: {old_gpu}. Set cpu or auto" in str(raised.value)
