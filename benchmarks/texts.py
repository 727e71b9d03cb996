"""Texts to rank: generated from common English words (about one token each), or read from labelled files."""

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
    """Parse `20-300` or `100` into (minimum, maximum) words of a document. Raises ValueError."""
    fewest, _, most = text.partition("-")
    bounds = int(fewest), int(most or fewest)
    if not 1 <= bounds[0] <= bounds[1]:
        raise ValueError(f"{text!r} is not a range of words. Examples: 20-300 or 100")
    return bounds


def requests(count: int, documents: int, words: tuple[int, int], seed: int) -> Iterator[dict[str, Any]]:
    """`count` rerank requests that share no pair. The same seed gives the same requests."""
    random_words = random.Random(seed)

    def text(length: int) -> str:
        return " ".join(random_words.choices(WORDS, k=length)) + "."

    for _ in range(count):
        yield {"query": text(8), "documents": [text(random_words.randint(*words)) for _ in range(documents)]}


def read_sets(folder: Path, queries: int) -> dict[str, list[dict[str, Any]]]:
    """Read the first `queries` rows of each labelled file, by file name."""
    sets = {}
    for file in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(file, "rt") as lines:
            sets[file.name] = [json.loads(line) for _, line in zip(range(queries), lines, strict=False)]
    return sets
