"""BM25 scores by shared words."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from app.first_stage.lexical import lexical_scores
from app.first_stage.words import Lexicon


def order(query: str, documents: list[str]) -> list[int]:
    scores = lexical_scores([query] * len(documents), documents)
    assert all(0 <= score < 1 for score in scores)
    return sorted(range(len(documents)), key=lambda index: -scores[index])


@pytest.mark.parametrize(
    ("query", "documents", "expected"),
    [
        ("what causes tides", ["bread", "tides", "the moon causes tides"], [2, 1, 0]),
        # A rare word counts more than a common one.
        ("the moon", ["the sea", "the sun", "moon rock"], [2, 0, 1]),
        # Of two documents with one occurrence, the shorter one wins.
        ("moon", ["a moon among very many other things that it is about", "a moon"], [1, 0]),
        ("MOON", ["sun", "Moon."], [1, 0]),
        ("潮汐的原因", ["股票市场", "月球引起潮汐"], [1, 0]),
        ("海のtide", ["stocks", "tideは海の"], [1, 0]),
        ("what is __init__", ["nothing", "called by __init__ alone"], [1, 0]),
        ("_private", ["public", "a (_private) name"], [1, 0]),
        ("important", ["a note", "an _important_ note"], [1, 0]),
        ("snake_case", ["snake", "in snake_case"], [1, 0]),
        ("причины приливов", ["рынок", "Приливов"], [1, 0]),
        ("???", ["a", ""], [0, 1]),
    ],
)
def test_documents_with_more_shared_words_come_first(query: str, documents: list[str], expected: list[int]) -> None:
    assert order(query, documents) == expected


def test_without_a_shared_word_the_score_is_0() -> None:
    assert lexical_scores(["moon"] * 3, ["", "bread", "moo"]) == [0, 0, 0]


def test_each_document_is_compared_with_its_own_query() -> None:
    first, second = lexical_scores(["moon", "bread"], ["moon", "moon"])
    assert first > second == 0


def test_a_text_without_spaces_has_no_more_words_than_characters() -> None:
    lexicon = Lexicon()
    words = lexicon.read(["潮汐月球" * 1000, "月海 moon月"])
    assert sorted(lexicon.words) == sorted(["潮", "汐", "月", "球", "海", "moon"])
    assert words.counts.tolist() == [4000, 4]


def test_words_are_added_while_another_thread_looks_for_a_term() -> None:
    lexicon = Lexicon()
    lexicon.read([" ".join(f"word{number}'s" for number in range(1000))])
    stop = Event()

    def add() -> None:
        for number in range(100):
            lexicon.read([" ".join(f"word{number}x{part}'s" for part in range(100))])
        stop.set()

    with ThreadPoolExecutor(2) as threads:
        adding = threads.submit(add)
        while not stop.is_set() and not adding.done():
            lexicon.containing("s")
        adding.result()
    assert len(lexicon.containing("s")) == 1000 + 100 * 100
