"""Models that bring their own code: served by the classes of transformers, or refused with what to do."""

import json
import re
import shutil
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, GteConfig

from app.engines.load import load_artefact
from app.engines.models.source import locate_model
from app.engines.torch import TorchEngine
from app.errors import UnusableModel
from tests.models import SMALL, WORDS, export, make_model, make_tokenizer

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:Converting a tensor:Warning"),
]

QUERY = "what causes tides"
DOCUMENTS = ["moon gravity causes tides", "", "bread", "light of the sea and the moon", "the stock market " * 9]
NTK = {"type": "ntk", "factor": 8.0}
# Our names of the weights of XLM-RoBERTa, and Jina's.
JINA = [
    (r"embeddings\.LayerNorm", "emb_ln"),
    (r"encoder\.layer\.", "encoder.layers."),
    (r"attention\.output\.dense", "mixer.out_proj"),
    (r"attention\.output\.LayerNorm", "norm1"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"(layers\.\d)\.output\.dense", r"\1.mlp.fc2"),
    (r"(layers\.\d)\.output\.LayerNorm", r"\1.norm2"),
]


def load(folder: Path, **options: Any) -> TorchEngine:
    return TorchEngine(locate_model(str(folder), None), "cpu", None, 2, **options)


def logits(engine: TorchEngine) -> list[float]:
    return engine.score(engine.encode(QUERY, DOCUMENTS))


def change_config(folder: Path, **settings: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


def make_gte(folder: Path) -> Path:
    """A model of the class in transformers."""
    torch.manual_seed(7)
    rope = {"rope_type": "default", "rope_theta": 20000.0}
    config = GteConfig(
        **SMALL,
        vocab_size=len(WORDS) + 4,
        num_labels=1,
        initializer_range=0.5,
        max_position_embeddings=64,
        rope_parameters=rope,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    make_tokenizer("xlm-roberta").save_pretrained(folder)
    return folder


def as_new(gte: Path, folder: Path, **settings: Any) -> Path:
    """The same model in the names of `Alibaba-NLP/gte-multilingual-reranker-base`."""
    shutil.copytree(gte, folder)
    weights = load_file(gte / "model.safetensors")
    assert any(name.startswith("gte.encoder.layer.0.attention.qkv_proj") for name in weights)
    named = {re.sub(r"^gte\.", "new.", name): weight for name, weight in weights.items()}
    save_file(named, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    (folder / "config.json").write_text(json.dumps(config))
    code = {"AutoConfig": "owner/code--configuration.NewConfig"}
    code["AutoModelForSequenceClassification"] = "owner/code--modeling.NewForSequenceClassification"
    of_new = {"model_type": "new", "architectures": ["NewForSequenceClassification"], "auto_map": code}
    return change_config(folder, **of_new, rope_theta=20000, pack_qkv=True, **settings)


def as_jina(model: Path, folder: Path) -> Path:
    """The same XLM-RoBERTa in the names of `jinaai/jina-reranker-v2-base-multilingual`."""
    shutil.copytree(model, folder)
    weights = {}
    for name, weight in load_file(model / "model.safetensors").items():
        weights[reduce(lambda renamed, rule: re.sub(*rule, renamed), JINA, name)] = weight
    for layer in range(SMALL["num_hidden_layers"]):
        for kind in ("weight", "bias"):
            prefix = f"roberta.encoder.layers.{layer}"
            parts = [weights.pop(f"{prefix}.attention.self.{part}.{kind}") for part in ("query", "key", "value")]
            weights[f"{prefix}.mixer.Wqkv.{kind}"] = torch.cat(parts)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    code = {"AutoConfig": "configuration_xlm_roberta.XLMRobertaFlashConfig"}
    code["AutoModelForSequenceClassification"] = "modeling_xlm_roberta.XLMRobertaForSequenceClassification"
    return change_config(folder, auto_map=code, position_embedding_type="absolute", use_flash_attn=True)


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_a_gte_reranker_needs_no_code_of_its_own(tmp_path: Path, packed: bool, trust: bool) -> None:
    gte = make_gte(tmp_path / "gte")
    engine = load(as_new(gte, tmp_path / "new"), packed=packed, trust_remote_code=trust)
    assert engine.info.packed is packed
    expected = logits(load(gte))
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(logits(engine), expected, rtol=1e-5, atol=2e-5)


def test_a_gte_reranker_is_exported(tmp_path: Path) -> None:
    model = as_new(make_gte(tmp_path / "gte"), tmp_path / "new", rope_scaling=NTK)
    export(model, tmp_path / "out")
    reference, exported = load(model), load_artefact(tmp_path / "out", None, 2, is_exact=True)
    pairs = exported.encode(QUERY, DOCUMENTS)
    np.testing.assert_allclose(exported.score(pairs), logits(reference), rtol=1e-4, atol=1e-4)


def test_its_positions_are_scaled_as_in_its_own_code(tmp_path: Path) -> None:
    engine = load(as_new(make_gte(tmp_path / "gte"), tmp_path / "new", rope_scaling=NTK))
    # The base times 8, and every frequency lower by 8 to the power of 2 / 16, the size of a head.
    expected = [(20000 * 8) ** (-index / 16) / 8 ** (2 / 16) for index in range(0, 16, 2)]
    np.testing.assert_allclose(engine._model[0].model.gte.rotary_emb.inv_freq, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "settings", [{"rope_scaling": NTK | {"mixed_b": 0.5}}, {"layer_norm_type": "rms_norm"}], ids=str
)
def test_a_gte_reranker_with_other_layers_needs_its_own_code(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = as_new(make_gte(tmp_path / "gte"), tmp_path / "new", **settings)
    with pytest.raises(UnusableModel, match=r"does not have its class.*set RERANKER_TRUST_REMOTE_CODE=true"):
        load(model)


def test_jinas_xlm_roberta_needs_no_code_of_its_own(tmp_path: Path) -> None:
    plain = make_model(tmp_path / "plain", "xlm-roberta", spread=0.5)
    jina = as_jina(plain, tmp_path / "jina")
    expected = logits(load(plain))
    assert np.ptp(expected) > 0.1
    for packed in (False, True):
        np.testing.assert_allclose(logits(load(jina, packed=packed)), expected, rtol=1e-5, atol=2e-5)
    # Models with the usual names still load.
    np.testing.assert_allclose(logits(load(plain)), expected, rtol=1e-5, atol=2e-5)


def test_a_listwise_reranker_is_refused(tmp_path: Path) -> None:
    model = change_config(make_model(tmp_path / "model"), architectures=["JinaForRanking"])
    with pytest.raises(UnusableModel, match=r"ranks a whole list of documents at once.*Use a cross-encoder"):
        load(model)


def test_an_unknown_model_with_its_own_code_says_what_to_set(tmp_path: Path) -> None:
    code = {"AutoConfig": "configuration.OtherConfig", "AutoModelForSequenceClassification": "modeling.Other"}
    model = change_config(make_model(tmp_path / "model"), model_type="other", auto_map=code)
    with pytest.raises(UnusableModel, match=r"does not have its class.*set RERANKER_TRUST_REMOTE_CODE=true"):
        load(model)
