"""Texts to rank: made on the spot, of common English words, so that a word is a token or a little more; or labelled."""

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WORDS = (Path(__file__).parent / "words.txt").read_text().split()
# A word is at least one token, so a document of this many words always fills the window of this many tokens.
LONG_WORDS, LONG_TOKENS = 600, 512


def word_range(text: str) -> tuple[int, int]:
    """`20-300` or `100`, as (fewest, most) words of a document. Raises ValueError."""
    fewest, _, most = text.partition("-")
    bounds = int(fewest), int(most or fewest)
    if not 1 <= bounds[0] <= bounds[1]:
        raise ValueError(f"{text!r} is no range of words; give one like 20-300 or 100")
    return bounds


def requests(count: int, documents: int, words: tuple[int, int], seed: int) -> Iterator[dict[str, Any]]:
    """`count` rerank requests with no pair in common, the same for the same seed."""
    random_words = random.Random(seed)

    def text(length: int) -> str:
        return " ".join(random_words.choices(WORDS, k=length)) + "."

    for _ in range(count):
        yield {"query": text(8), "documents": [text(random_words.randint(*words)) for _ in range(documents)]}


def read_sets(folder: Path, queries: int) -> dict[str, list[dict[str, Any]]]:
    """The first rows of each labelled file."""
    sets = {}
    for file in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(file, "rt") as lines:
            sets[file.name] = [json.loads(line) for _, line in zip(range(queries), lines, strict=False)]
    return sets
