"""Token ids of remembered words against the ids of whole texts."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from tokenizers.normalizers import BertNormalizer

from app.engines import word_pieces
from app.engines.models.source import EMBEDDED
from app.engines.tokenizer_file import SAMPLES
from app.engines.word_pieces import WordPieces, encode_texts, text_encoder
from tests.models import make_chat_tokenizer

# Characters at which normalizers and splitters differ: white space, controls, accents, marks, wide ones, punctuation.
CONTROLS = "\t\n\r\x0b\x0c\x1c\x00\x01\x7f\x85\xa0\xad\u200b\u200d\u2028\u0301\u0338\u3000\ufffd"
ODD = f"aZ9 ,.[]_#'{CONTROLS}éßİΣ½ﬁ—“…、潮カｶ한ไज्🌊"


def bert() -> Tokenizer:
    return Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))


def cased() -> Tokenizer:
    tokenizer = bert()
    tokenizer.normalizer = BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=False
    )
    return tokenizer


TOKENIZERS = {"uncased": bert(), "cased": cased()}
ENCODERS = {name: WordPieces(tokenizer) for name, tokenizer in TOKENIZERS.items()}


def assert_same_ids(name: str, texts: list[str]) -> None:
    expected = [ids.tolist() for ids in encode_texts(TOKENIZERS[name], texts)]
    for _ in range(2):  # new words, then remembered ones
        assert [ids.tolist() for ids in ENCODERS[name].ids(texts)] == expected


@pytest.mark.parametrize("name", TOKENIZERS)
@given(texts=st.lists(st.text() | st.text(alphabet=ODD, max_size=30), max_size=4))
@settings(deadline=None, max_examples=300)
def test_ids_equal_those_of_the_tokenizer(name: str, texts: list[str]) -> None:
    assert_same_ids(name, texts)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_texts_with_special_tokens_and_long_words(name: str) -> None:
    assert_same_ids(name, [*SAMPLES, "stop [SEP] here", "[MASK]", "a[CLS]b [sep]", "x" * 300, "tides " * 20_000, ""])


def test_only_the_word_pieces_of_bert_are_remembered() -> None:
    added = bert()
    added.add_tokens([AddedToken("moon tide", normalized=True)])
    unusual = bert()
    unusual.normalizer = None
    for tokenizer in (added, unusual, make_chat_tokenizer().backend_tokenizer):
        assert not WordPieces.fits(tokenizer)
        texts = ["The moon tide rises.", "Größe, [SEP] naïve"]
        found = text_encoder(tokenizer)(texts)
        assert [ids.tolist() for ids in found] == [ids.tolist() for ids in encode_texts(tokenizer, texts)]


def test_words_are_forgotten_before_they_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_pieces, "MOST_CHARACTERS", 5_000)
    encoder = WordPieces(TOKENIZERS["uncased"])
    for first in range(0, 5_000, 100):
        texts = [" ".join(map(str, range(first, first + 100)))] * 2
        expected = [ids.tolist() for ids in encode_texts(TOKENIZERS["uncased"], texts)]
        assert [ids.tolist() for ids in encoder.ids(texts)] == expected
        assert len(encoder._known) <= 400


def test_threads_share_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_pieces, "MOST_CHARACTERS", 2_000)
    encoder = WordPieces(TOKENIZERS["uncased"])
    texts = [[f"tide {number} of {number * 7919}, rising" for number in range(at, at + 40)] for at in range(200)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(encoder.ids, texts))
    for own, ids in zip(texts, found, strict=True):
        expected = encode_texts(TOKENIZERS["uncased"], own)
        assert [each.tolist() for each in ids] == [each.tolist() for each in expected]
