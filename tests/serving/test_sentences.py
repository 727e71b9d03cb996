"""Where sentences begin and end."""

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from app.serving.sentences import MAX_CHARS, is_inside_character, sentences

# What makes cuts difficult, and texts around it.
PARTS = [
    *("a", "Dr", "e.g", "3", "14", "The end", "word", "月", "です", "한국어", "ที่", "क्षि", "é", "I", "J"),
    *(".", "!", "?", "…", "...", "。", "！", "？", "।", '"', "”", "」", ")", ","),
    *(" ", "  ", "\n", "\r\n", "\n\n", "\t", "\u3000"),
    *("\u0301", "\ufe0f", "\u200d", "👩\u200d💻", "👍🏽", "🇩🇪🇫🇷", "\u1112\u1161\u11ab", "\U000e0061"),
]
DIFFICULT = st.lists(st.sampled_from(PARTS), max_size=60).map("".join)
LONG = st.builds(lambda text, times: text * times, DIFFICULT, st.integers(1, 80))
ANY = st.text(max_size=80) | st.text(st.characters(), max_size=20) | DIFFICULT | LONG
any_text = settings(deadline=None)


def split(text: str) -> list[str]:
    return [text[start:end] for start, end in sentences(text)]


@pytest.mark.parametrize(
    "expected",
    [
        ["It rained.", "Was it cold?", "No!", "The sun came..."],
        ["Dr. Smith and Mrs. Jones met Prof. Li vs. St. John.", "They talked."],
        ["Use a pan, e.g. a small one, i.e. 20 cm.", "Heat it."],
        ["It costs 3.14 dollars.", "See fig. 3 and no. 12.", "He said no.", "Then he left."],
        ["It was founded on Jan. 5 by Acme Inc. in Rome.", "Acme Inc.", "Other firms, etc.", "All of them."],
        ["J. R. R. Tolkien wrote it.", "He lived in the U.K. Library.", "So do I.", "It ended in 1973."],
        ["Version 2.0.1 of example.com/a.b?c=d is out.", "Try it."],
        ['"Is it?" he asked.', '"It is."', "(It was.)", "She wondered... but went."],
        ["Sie wohnt z. B. in Nr. 5 bzw. Nr. 6.", "Und er?"],
        ["¿Qué hora es?", "¡Tarde!", "Adiós, Sr. García."],
        ["all in lower case.", "this too.", "is it?", "yes"],
    ],
)
def test_sentences_end_where_a_reader_would_end_them(expected: list[str]) -> None:
    assert split(" ".join(expected)) == expected


@pytest.mark.parametrize(
    "expected",
    [
        ["月は潮を引き起こす。", "本当ですか？", "はい！"],
        ["他说：“你好。”", "然后走了。"],
        ["「本当だ。」", "と言った。"],
        ["真的吗?", "是的"],
    ],
)
def test_wide_stops_need_no_space(expected: list[str]) -> None:
    assert split("".join(expected)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A title\n\nA text", ["A title", "A text"]),
        ("- apples\r\n- pears\n* nuts", ["- apples", "- pears", "* nuts"]),
        ("1. Wash it.\n2. Cut it.\nb) Eat it.", ["1. Wash it.", "2. Cut it.", "b) Eat it."]),
        ("bread\nmoon\nbutter", ["bread", "moon", "butter"]),
        (
            "This sentence was broken into lines by a\nprogram. The next one\nwas not",
            ["This sentence was broken into lines by a\nprogram.", "The next one", "was not"],
        ),
        ("This is a long line with a blank line after it\n\nand more", None),
        ("", []),
        (" \n\t ", []),
    ],
)
def test_lines(text: str, expected: list[str] | None) -> None:
    assert split(text) == (text.split("\n\n") if expected is None else expected)


@pytest.mark.parametrize("text", ["word, " * 500, "語" * 2000, "語、" * 1000, "x" * 2000, "👩‍💻" * 1000 + "a" * 700])
def test_a_long_sentence_is_cut(text: str) -> None:
    found = split(text)
    assert len(found) > 1
    assert "".join("".join(found).split()) == "".join(text.split())
    if "👩‍💻" not in text:
        assert max(map(len, found)) <= MAX_CHARS


@any_text
@given(ANY)
def test_sentences_hold_the_text_in_order_except_for_space(text: str) -> None:
    spans, before = sentences(text), 0
    for start, end in spans:
        assert before <= start < end <= len(text)
        assert not text[before:start].strip()
        assert text[start:end].strip()
        assert not text[end - 1].isspace()
        before = end
    assert not text[before:].strip()


@any_text
@given(DIFFICULT | LONG)
def test_no_sentence_begins_or_ends_inside_a_character(text: str) -> None:
    """Compared with the grapheme clusters of Unicode."""
    places = {0, *(match.end() for match in regex.finditer(r"\X", text))}
    assert [span for span in sentences(text) if not places.issuperset(span)] == []
    between = [place for place in range(len(text)) if not is_inside_character(text, place)]
    assert places.issuperset(place for place in between if text[place - 1 : place] != "\r")


@any_text
@given(st.text(st.sampled_from(["\ud83d", "\ude00", "a", ".", " "]), max_size=30))
def test_no_surrogate_pair_is_split(text: str) -> None:
    for place in {place for span in sentences(text) for place in span}:
        assert not (text[place - 1 : place] == "\ud83d" and text[place : place + 1] == "\ude00" and place)
