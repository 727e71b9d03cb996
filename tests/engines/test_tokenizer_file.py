"""Models with a `tokenizer.json` that gives other token ids than the class that transformers builds from it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
)

from app.config import Settings
from app.engines.load import load_artefact, load_engine
from app.errors import StartupError, UnusableModel
from app.first_stage.sentence_embeddings import SentenceEmbeddings
from app.first_stage.words import Lexicon
from tests.models import SMALL, UNMEASURED, WORDS, export

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:Converting a tensor:Warning"),
]
QUERY = "What causes TIDES?"
DOCUMENTS = ["The moon's gravity; the sea", "Bread, and light.", "", "STOCK-MARKET of a plant", "the sea " * 190]
WINDOW = 256
ROBERTA = {"bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"}
BERT = {"cls_token": "[CLS]", "pad_token": "[PAD]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
LETTERS = [chr(code) for code in range(33, 127)]


def unigram() -> Tokenizer:
    """As the tokenizer of XLM-RoBERTa, which is cased and does not split punctuation."""
    scores = {"<s>": 0.0, "<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0, "▁": -4.0}
    scores |= {f"▁{word}": -2.0 for word in WORDS} | dict.fromkeys(WORDS, -3.0) | {"<mask>": 0.0}
    scores |= {letter: -9.0 for letter in LETTERS if letter not in scores}
    tokenizer = Tokenizer(models.Unigram(list(scores.items()), unk_id=3))
    split = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    specials = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", "<s> $A </s> </s> $B </s>", special_tokens=specials
    )
    return tokenizer


def lower_case(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Lowercase()


def split_punctuation(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), pre_tokenizers.Metaspace()])


def one_separator(tokenizer: Tokenizer) -> None:
    specials = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> $B </s>", specials)


def make_roberta(folder: Path, change: Callable[[Tokenizer], None]) -> Path:
    tokenizer = unigram()
    change(tokenizer)
    size = tokenizer.get_vocab_size()
    config = XLMRobertaConfig(**SMALL, vocab_size=size, max_position_embeddings=WINDOW + 2, type_vocab_size=1)
    return save(folder, config, tokenizer, "XLMRobertaTokenizer", ROBERTA)


def make_bert(folder: Path) -> Path:
    """An uncased class with the file of a cased model."""
    pieces = [*BERT.values(), *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 0))
    config = BertConfig(**SMALL, vocab_size=len(vocabulary), max_position_embeddings=WINDOW)
    return save(folder, config, tokenizer, "BertTokenizer", BERT)


def save(
    folder: Path, config: BertConfig | XLMRobertaConfig, tokenizer: Tokenizer, name: str, specials: dict[str, str]
) -> Path:
    torch.manual_seed(7)
    config.num_labels, config.initializer_range, config.pad_token_id = 1, 0.3, 1
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=WINDOW, **specials).save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": name}))
    return folder


MAKERS = {
    "normalizer": lambda folder: make_roberta(folder, lower_case),
    "pre-tokenizer": lambda folder: make_roberta(folder, split_punctuation),
    "separators": lambda folder: make_roberta(folder, one_separator),
    "BERT": make_bert,
}


def oracle(folder: Path) -> tuple[list[list[int]], list[float]]:
    """Token ids of the file, cut as `CrossEncoder` cuts, and the model's logits for them."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(WINDOW)
    encoded = tokenizer.encode_batch([(QUERY, document) for document in DOCUMENTS])
    network = CrossEncoder(str(folder), device="cpu").model.eval()
    with torch.inference_mode():
        logits = [
            network(
                input_ids=torch.tensor([each.ids]),
                token_type_ids=torch.tensor([each.type_ids]),
                attention_mask=torch.ones(1, len(each.ids), dtype=torch.long),
            ).logits.item()
            for each in encoded
        ]
    return [each.ids for each in encoded], logits


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_token_ids_and_scores_are_those_of_the_file(
    tmp_path: Path, make: Callable[[Path], Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = make(tmp_path / "model")
    ids, logits = oracle(folder)
    assert AutoTokenizer.from_pretrained(folder)(QUERY, DOCUMENTS[0])["input_ids"] != ids[0]
    reference = load_engine(Settings(backend="torch", model=str(folder), **UNMEASURED))
    assert "transformers builds a tokenizer with other token ids than tokenizer.json. The file is used" in caplog.text
    export(folder, tmp_path / "out")
    for engine in (reference, load_artefact(tmp_path / "out", None, 2, is_exact=True)):
        pairs = engine.encode(QUERY, DOCUMENTS)
        assert [pair.ids.tolist() for pair in pairs] == ids
        np.testing.assert_allclose(engine.score(pairs), logits, atol=1e-4)


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = make_roberta(tmp_path / "model", lower_case)
    tokenizer = unigram()
    tokenizer.add_tokens(["What"])
    tokenizer.save(str(folder / "tokenizer.json"))
    size = unigram().get_vocab_size()
    with pytest.raises(UnusableModel, match=rf"does not fit the weights: it gives the token {size}, but .* has {size}"):
        load_engine(Settings(backend="torch", model=str(folder), **UNMEASURED))


def test_an_unchanged_file_is_used_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_roberta(tmp_path / "model", lambda _: None)
    engine = load_engine(Settings(backend="torch", model=str(folder), **UNMEASURED))
    assert [pair.ids.tolist() for pair in engine.encode(QUERY, DOCUMENTS)] == oracle(folder)[0]
    assert "The file is used" not in caplog.text


def test_the_file_is_found_in_the_folder_of_the_transformer(tmp_path: Path) -> None:
    plain, whole = make_roberta(tmp_path / "plain", lower_case), tmp_path / "whole"
    CrossEncoder(str(plain), device="cpu").save_pretrained(str(whole))
    [module] = json.loads((whole / "modules.json").read_text())
    (whole / "modules.json").write_text(json.dumps([module | {"path": "0_Transformer"}]))
    (whole / "0_Transformer").mkdir()
    for file in {path.name for path in whole.iterdir() if path.is_file()} - {"modules.json", "README.md"}:
        if file != "config_sentence_transformers.json":
            (whole / file).rename(whole / "0_Transformer" / file)
    shutil.copy(plain / "tokenizer.json", whole / "0_Transformer" / "tokenizer.json")
    engine = load_engine(Settings(backend="torch", model=str(whole), **UNMEASURED))
    assert [pair.ids.tolist() for pair in engine.encode(QUERY, DOCUMENTS)] == oracle(plain)[0]


def test_lower_case_of_sentence_transformers_stays(tmp_path: Path) -> None:
    """The file does not contain this setting, which the model was trained with."""
    folder = make_roberta(tmp_path / "model", lambda _: None)
    CrossEncoder(str(folder), device="cpu").save_pretrained(str(folder))
    settings = json.loads((folder / "sentence_bert_config.json").read_text())
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings | {"do_lower_case": True}))
    upper, lower = (
        load_engine(Settings(backend="torch", model=str(folder), **UNMEASURED)).encode(text, ["moon"])
        for text in ("TIDES", "tides")
    )
    assert upper[0].ids.tolist() == lower[0].ids.tolist()


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_first_stage_uses_the_file(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    folder = make(tmp_path / "model")
    texts = [QUERY, *DOCUMENTS[:4]]
    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = SentenceTransformer(str(folder), device="cpu")
    states = []
    with torch.inference_mode():
        for encoding in file.encode_batch(texts):
            inputs = {"input_ids": torch.tensor([encoding.ids]), "attention_mask": torch.ones(1, len(encoding.ids))}
            states.append(model[0].model(**inputs).last_hidden_state[0].mean(0).numpy())
    unit = [state / np.linalg.norm(state) for state in states]
    found = SentenceEmbeddings(str(folder)).similarities(QUERY, Lexicon().read(DOCUMENTS[:4]))
    np.testing.assert_allclose(found, [unit[0] @ other for other in unit[1:]], atol=1e-4)


def test_a_file_of_another_model_is_refused_for_the_first_stage_too(tmp_path: Path) -> None:
    folder = make_roberta(tmp_path / "model", lower_case)
    tokenizer = unigram()
    tokenizer.add_tokens(["What"])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(StartupError, match=r"RERANKER_PREFILTER_MODEL=.*does not fit the weights"):
        SentenceEmbeddings(str(folder))
