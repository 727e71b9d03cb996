"""The project's own texts, and which of them a model's export is calibrated on and compared on."""

import json
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedTokenizerFast
from typer.testing import CliRunner

from app.cli import cli
from app.config import Settings
from app.engines.load import load_engine
from app.engines.models.source import EMBEDDED, MULTILINGUAL
from app.export.conversion import Conversion
from app.export.convert import write_model
from app.export.own_texts import own_entries, own_texts, script_entries
from app.export.parity import FEWEST_GROUPS, compare
from tests.models import SMALL, UNMEASURED, export

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:Converting a tensor:Warning"),
]
# How Unicode calls the letters of a script.
LETTERS = {"Han": "CJK", "Japanese": ("CJK", "HIRAGANA", "KATAKANA")}
SCRIPTS = ["Latin", "Cyrillic", "Greek", "Arabic", "Hebrew", "Devanagari", "Han", "Japanese", "Hangul", "Thai"]


def pieces(*scripts: str, size: int = 3000) -> Tokenizer:
    """A tokenizer that was trained on the texts of these scripts and in English."""
    texts = [text for entry in own_entries() for text in entry]
    texts += [text for script in scripts for entry in script_entries()[script] for text in (entry.query, entry.passage)]
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[UNK]", "[PAD]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, special_tokens=special))
    return tokenizer


def byte_pieces(size: int) -> Tokenizer:
    """Bytes, joined as English text needs it. Nothing is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text for entry in own_entries() for text in entry], trainer)
    return tokenizer


def scripts_of(tokenizer: Tokenizer, *languages: str) -> set[str | None]:
    return {group.script for group in own_texts(tokenizer, languages)}


def test_there_are_six_texts_in_each_script_with_english_ones_of_the_same_content() -> None:
    found = script_entries()
    assert list(found) == SCRIPTS
    for script, entries in found.items():
        assert len(entries) == 6
        assert {entry.english for entry in entries} < dict(own_entries()).keys()
        letters = [each for entry in entries for each in entry.query + entry.passage if each.isalpha()]
        names = LETTERS.get(script, script.upper())
        own = sum(unicodedata.name(letter).startswith(names) for letter in letters)
        assert own > 0.9 * len(letters), script


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        # BERT's English vocabulary has the letters of most scripts, so few tokens are unknown.
        (lambda: Tokenizer.from_file(str(EMBEDDED / "tokenizer.json")), {"Latin"}),
        (lambda: Tokenizer.from_file(str(MULTILINGUAL / "tokenizer.json")), {*SCRIPTS} - {"Thai"}),
        (lambda: pieces("Cyrillic", "Han"), {"Cyrillic", "Han"}),
        (lambda: byte_pieces(1000), {"Latin"}),
        # Characters, or nearly: as good for any script as for English.
        (lambda: pieces(*SCRIPTS, size=4), {*SCRIPTS}),
    ],
    ids=["English", "multilingual", "two scripts", "bytes", "characters"],
)
def test_the_tokenizer_decides_the_scripts(tokenizer: Callable[[], Tokenizer], expected: set[str]) -> None:
    assert scripts_of(tokenizer()) == {"English", *expected}


def test_texts_are_in_the_languages_that_the_model_declares() -> None:
    tokenizer = pieces("Cyrillic", "Han")
    assert scripts_of(tokenizer, "en") == {"English"}
    assert scripts_of(tokenizer, "en", "ru", "ja") == {"English", "Cyrillic"}


def test_scripts_take_turns() -> None:
    groups = own_texts(pieces("Cyrillic", "Han"))
    scripts = [group.script for group in groups]
    count = len({*scripts})
    assert {*scripts[:count]} == {*scripts[count : 2 * count]} == {*scripts}
    assert Counter(scripts)["English"] == len(own_entries())
    assert Counter(scripts)["Cyrillic"] == 6


def make_reader(folder: Path, *scripts: str) -> Path:
    """A tiny model with a vocabulary for these scripts."""
    tokenizer = pieces(*scripts)
    config = BertConfig(**SMALL, vocab_size=tokenizer.get_vocab_size(), num_labels=1, initializer_range=0.3)
    torch.manual_seed(7)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **names).save_pretrained(folder)
    return folder


def test_the_report_has_figures_of_each_script(tmp_path: Path) -> None:
    model = make_reader(tmp_path / "model", "Cyrillic", "Han")
    command = ["export", str(model), "--precision", "fp32"]
    printed = CliRunner().invoke(cli, [*command, "--output", str(tmp_path / "lines")])
    assert printed.exit_code == 0, printed.output
    lines = printed.stdout.splitlines()
    assert [line.split()[:3] for line in lines if line.startswith("tau ")] == [
        ["tau", "English", "1.000"],
        ["tau", "Cyrillic", "1.000"],
        ["tau", "Han", "1.000"],
    ]
    as_json = CliRunner().invoke(cli, [*command, "--output", str(tmp_path / "json"), "--json"])
    parity = json.loads(as_json.stdout)["parity"]
    assert {script: on["pairs"] for script, on in parity["scripts"].items()} == {
        "English": 14 * len(own_entries()),
        "Cyrillic": 8 * 6,
        "Han": 8 * 6,
    }
    assert sum(on["pairs"] for on in parity["scripts"].values()) == parity["pairs"]


def test_int8_is_calibrated_on_each_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()

    def keep(conversion: Conversion, *rest: Any) -> None:
        seen.update(token for pair in conversion.calibration for token in pair.ids.tolist())
        write_model(replace(conversion, calibration=conversion.calibration[:20]), *rest)  # to save time

    monkeypatch.setattr("app.export.convert.write_model", keep)
    model = make_reader(tmp_path / "model", "Cyrillic", "Han")
    export(model, tmp_path / "out", precision="int8", calibration=None)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    assert {*tokenizer.encode("сколько костей").ids, *tokenizer.encode("外键是一个列").ids} <= seen


def test_a_comparison_that_is_short_of_time_has_each_script(tmp_path: Path) -> None:
    model = make_reader(tmp_path / "model", *SCRIPTS)
    engine = load_engine(Settings(backend="torch", model=str(model), **UNMEASURED))
    groups = own_texts(pieces(*SCRIPTS))
    parity = compare(engine, engine, groups, Console(quiet=True), seconds=0)
    assert list(parity.scripts) == ["English", *SCRIPTS]
    assert parity.pairs == 14 + 8 * len(SCRIPTS)
    english = [group for group in groups if group.script == "English"]
    assert compare(engine, engine, english, Console(quiet=True), seconds=0).pairs == 14 * FEWEST_GROUPS
