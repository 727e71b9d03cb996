"""Exports in a model's repository, from a folder and from a hub."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.config import Settings
from app.engines.load import load_artefact, load_engine
from app.engines.models.artefact import MODEL_FILES, Manifest
from app.engines.models.repository import find_export
from app.engines.models.source import EMBEDDED, locate_model
from app.export.parity import logits
from tests.engines.test_exported import GROUP, near
from tests.engines.test_tokenizer_file import DOCUMENTS, QUERY, lower_case, make_roberta
from tests.hub import SHA, Hub, serve
from tests.models import UNMEASURED, export, make_model, make_tokenizer, pickled

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:Converting a tensor:Warning"),
]
NAMES = {
    "openvino": {
        "openvino_model.xml": "openvino/openvino_model.xml",
        "openvino_model.bin": "openvino/openvino_model.bin",
    },
    "onnx": {"model.onnx": "onnx/model.onnx"},
}


def make_repository(folder: Path, family: str, backend: Any) -> Path:
    """A model like on the hub, with an export in its repository."""
    return carry(make_model(folder, family), backend)


def carry(folder: Path, backend: Any) -> Path:
    """Export the model into its own folder."""
    export(folder, folder.parent / "made", backend)
    for name, place in NAMES[backend].items():
        (folder / place).parent.mkdir(exist_ok=True)
        shutil.copy(folder.parent / "made" / name, folder / place)
    shutil.rmtree(folder.parent / "made")
    return folder


@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
@pytest.mark.parametrize("backend", ["openvino", "onnx"])
def test_an_export_in_the_repository_is_used(
    tmp_path: Path, family: str, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_repository(tmp_path / family, family, backend)
    reference = load_engine(Settings(backend="torch", model=str(model), **UNMEASURED))
    monkeypatch.setattr(
        "app.engines.models.store._export", lambda *_: pytest.fail("exported although an export is there")
    )
    fixed = UNMEASURED | {"backend": backend, "precision": "fp32"}
    settings = Settings(model=str(model), export_dir=tmp_path / "store", **fixed)
    engine = load_engine(settings)
    assert near(logits(reference, GROUP), logits(engine, GROUP), 1e-5)
    assert (engine.info.max_length, engine.info.activation) == (64, "sigmoid")
    assert load_engine(settings).info.backend == backend


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"id2label": {"0": "a", "1": "b", "2": "c"}}),
        ("config.json", {"architectures": ["BertModel"]}),
        ("config.json", {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}),
        ("config_sentence_transformers.json", {"activation_fn": "torch.nn.modules.activation.Tanh"}),
        ("config_sentence_transformers.json", {"prompts": {"query": "Instruct: "}}),
    ],
)
def test_an_unusable_export_is_not_used(tmp_path: Path, file: str, change: dict[str, Any]) -> None:
    model = make_repository(tmp_path / "bert", "bert", "onnx")
    there = json.loads((model / file).read_text()) if (model / file).exists() else {}
    (model / file).write_text(json.dumps(there | change))
    assert not find_export(locate_model(str(model), None), "onnx", "fp32", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("openvino_model.xml", "fp32"),
        ("model.onnx", "fp32"),
        ("onnx/model_quantized.onnx", "int8"),
        ("onnx/model_int8.onnx", "int8"),
    ],
)
def test_other_names_of_exports_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, precision: Any
) -> None:
    monkeypatch.setattr("app.engines.models.repository.cpu_features", lambda: {"avx512_vnni"})
    model = make_model(tmp_path / "model")
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(b"weights")
    backend: Any = "onnx" if name.endswith("onnx") else "openvino"
    assert find_export(locate_model(str(model), None), backend, precision, tmp_path / "out")
    assert (tmp_path / "out" / MODEL_FILES[backend]).read_bytes() == b"weights"
    assert Manifest.read(tmp_path / "out").precision == precision


def test_the_int8_file_fits_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(tmp_path / "bert")
    (model / "onnx").mkdir()
    for kind in ("qint8_arm64", "qint8_avx512_vnni", "quint8_avx2"):
        (model / "onnx" / f"model_{kind}.onnx").write_text(kind)
    for features, expected in (
        ({"avx2", "avx512_vnni"}, "qint8_avx512_vnni"),
        ({"avx2", "avx_vnni"}, "quint8_avx2"),
        ({"asimddp"}, "qint8_arm64"),
    ):
        monkeypatch.setattr("app.engines.models.repository.cpu_features", lambda features=features: features)
        assert find_export(locate_model(str(model), None), "onnx", "int8", tmp_path / expected)
        assert (tmp_path / expected / "model.onnx").read_text() == expected


@pytest.mark.parametrize("backend", ["openvino", "onnx"])
def test_an_export_of_the_repository_gets_the_token_ids_of_torch(tmp_path: Path, backend: Any) -> None:
    """The tokenizer is one that transformers builds differently."""
    model = carry(make_roberta(tmp_path / "model", lower_case), backend)
    reference = load_engine(Settings(backend="torch", model=str(model), **UNMEASURED))
    assert find_export(locate_model(str(model), None), backend, "fp32", tmp_path / "out")
    engine = load_artefact(tmp_path / "out", None, 2, is_exact=True)
    pairs = reference.encode(QUERY, DOCUMENTS)
    assert [pair.ids.tolist() for pair in engine.encode(QUERY, DOCUMENTS)] == [pair.ids.tolist() for pair in pairs]
    assert near(reference.score(pairs), engine.score(pairs), 1e-4)


def _write(file: Path, **settings: Any) -> None:
    there = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(there | settings))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda model: make_tokenizer("electra").backend_tokenizer.save(str(model / "onnx" / "tokenizer.json")),
            None,
        ),
        (
            lambda model: make_tokenizer("xlm-roberta").backend_tokenizer.save(str(model / "onnx" / "tokenizer.json")),
            "the tokenizer.json next to it gives other token ids than that of the model",
        ),
        (
            lambda model: _write(
                model / "tokenizer_config.json", added_tokens_decoder={"9": {"content": "[MASK]", "special": True}}
            ),
            "tokenizer.json gives other ids to the special tokens [MASK] than tokenizer_config.json",
        ),
        (
            lambda model: _write(model / "tokenizer_config.json", add_eos_token=True),
            "tokenizer_config.json sets add_eos_token, which tokenizer.json does not contain",
        ),
        (
            lambda model: _write(model / "sentence_bert_config.json", do_lower_case=True),
            "sentence_bert_config.json sets do_lower_case, which tokenizer.json does not contain",
        ),
        (lambda model: (model / "tokenizer.json").write_text("{}"), "its tokenizer cannot be read: "),
    ],
    ids=["same ids", "other file", "other special token", "end of text", "lower case", "damaged"],
)
def test_an_export_with_other_token_ids_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Callable[[Path], None], reason: str | None
) -> None:
    model = make_model(tmp_path / "model")
    (model / "onnx").mkdir()
    (model / "onnx" / "model.onnx").write_bytes(b"weights")
    change(model)
    assert find_export(locate_model(str(model), None), "onnx", "fp32", tmp_path / "out") is (reason is None)
    assert reason is None or f"onnx/model.onnx, which is not used: {reason}" in caplog.text
    assert (tmp_path / "out").exists() is (reason is None)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """Serves the model in the folder `tiny`."""
    with serve(tmp_path / "tiny") as hub:
        yield hub


def test_an_export_on_the_hub_is_served_without_torch_and_later_without_the_hub(tmp_path: Path, hub: Hub) -> None:
    make_repository(hub.repository, "bert", "openvino")
    code = (
        "import sys; from pathlib import Path; from app.engines.load import load_artefact, load_engine; "
        "from app.config import Settings;"
        "s = load_engine(Settings(model='owner/tiny', backend='openvino', precision='fp32', "
        f"export_dir=Path(sys.argv[1]), **{UNMEASURED}));"
        "assert 'torch' not in sys.modules;"
        "print(s.info.model, s.info.revision, s.score(s.encode('tides', ['moon'])))"
    )

    def start(store: str, endpoint: str) -> str:
        environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "PATH": ""}
        command = [sys.executable, "-c", code, str(tmp_path / store)]
        result = subprocess.run(
            command, cwd=EMBEDDED.parent.parent, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    first = start("store", hub.url)
    assert first.startswith(f"owner/tiny {SHA} [")
    assert not any("model.safetensors" in path for path in hub.asked)
    assert Manifest.read(next((tmp_path / "store").glob("owner--tiny-*/"))).revision == SHA
    hub.asked.clear()
    assert start("store", hub.url) == first
    assert start("store", "http://127.0.0.1:9") == first
    assert not hub.asked


def test_a_pickle_on_the_hub_is_rejected_before_the_download(tmp_path: Path, hub: Hub) -> None:
    pickled(make_model(hub.repository))
    code = (
        "from app.engines.load import load_artefact, load_engine; from app.config import Settings\n"
        "from app.errors import StartupError\n"
        "try: load_engine(Settings(model='owner/tiny', backend='torch'))\n"
        "except StartupError as error: print(error)"
    )
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "PATH": ""}
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, cwd=EMBEDDED.parent.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert "RERANKER_MODEL='owner/tiny' cannot be loaded: pytorch_model.bin is a pickle" in result.stdout
    assert hub.asked
    assert not any("pytorch_model" in path for path in hub.asked)
