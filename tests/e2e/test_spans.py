"""Passages inside documents, found by the embedded model."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.process import FIXED, service

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

QUERY = "Which planet has the most moons?"
ANSWER = "Saturn has 146 confirmed moons, more than any other planet in the Solar System."
OTHERS = [
    "Bread is baked from flour, water, salt and yeast.",
    "The dough rests for an hour (e.g. near the oven) before it is shaped.",
    "Dr. Miller measured a temperature of 27.5 degrees in her kitchen.",
    "A crust forms in the first ten minutes!",
    "パンは小麦粉から作られる。",
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with service(**FIXED) as (url, _):
        yield url


def rank(url: str, **fields: Any) -> Any:
    response = httpx.post(f"{url}/v2/rerank", json={"query": QUERY} | fields, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("place", [0, 7, 24])
def test_the_sentence_with_the_answer_is_found_in_a_long_document(url: str, place: int) -> None:
    """The document has several times the passages that are scored."""
    text = " ".join([*(OTHERS * 12)[:place], ANSWER, *(OTHERS * 12)[place:]])
    answer = rank(url, documents=["The price of bread rose.", text], max_spans=2, long_documents="chunk_max")
    [result] = [result for result in answer["results"] if result["index"] == 1]
    best, second = result["spans"]
    assert best["text"] == text[best["start"] : best["end"]]
    assert ANSWER in best["text"]
    assert best["score"] > 0.3 > second["score"]
    assert answer["meta"]["spans"]["cut"] == 1


def test_the_sentence_is_found_in_a_short_document(url: str) -> None:
    text = f"{OTHERS[0]} {ANSWER} {OTHERS[3]}"
    answer = rank(url, documents=[text], relevant_spans={"mode": "enabled", "threshold": 0.3})
    [result] = answer["results"]
    [span] = result["relevant_spans"]
    assert span["text"] == text[span["start"] : span["end"]]
    assert ANSWER in span["text"]
    assert answer["meta"]["scored"] + answer["meta"]["cached"] == 1 + 6


def test_a_passage_scores_as_it_does_as_a_document(url: str) -> None:
    text = f"{OTHERS[0]} {ANSWER}"
    [result] = rank(url, documents=[text], max_spans=3)["results"]
    alone = rank(url, documents=[span["text"] for span in result["spans"]])["results"]
    assert [span["score"] for span in result["spans"]] == [found["relevance_score"] for found in alone]
