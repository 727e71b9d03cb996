"""Build training groups from the public corpora of the default model, or from your own texts."""

import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from training.candidates import Pool, Signals
from training.corpora import Corpus, Row, cloze, paired
from training.groups import HELD_OUT_FILE, TRAIN_FILE, Group, read_rows, write_groups
from training.sources import read_corpora

log = logging.getLogger(__name__)

# Cloze questions per ordinary question. They cover texts that have no questions.
CLOZE_SHARE = 0.4
# Corpora with more questions than the others. People wrote the questions of SQuAD, as they write queries.
TIMES = {"squad": 2}
# Held-out groups of a corpus, as a share of its training groups.
HELD_OUT_SHARE = 0.04


def prepare(data: Path, output: Path, signals: Signals, *, questions: int, size: int, passages: int, seed: int) -> None:
    """Write groups of `size` documents from each corpus in `data`, for training and held out.

    `questions` and `passages` limit how much of each corpus is used. Raises `ValueError` if `data` has no corpus.
    """
    rng = random.Random(seed)
    train: list[Group] = []
    held_out: list[Group] = []
    for corpus in read_corpora(data, passages, rng):
        pool = Pool(corpus.passages, signals)
        wanted = questions * TIMES.get(corpus.name, 1)
        for each, count in ((corpus, wanted), (cloze(corpus, rng), round(wanted * CLOZE_SHARE))):
            train += _some(each, pool, count, size, rng, held_out=False)
            held_out += _some(each, pool, max(1, round(count * HELD_OUT_SHARE)), size, rng, held_out=True)
    if not train:
        raise ValueError(f"{data}: contains none of the training corpora")
    _write(output, train, held_out, rng)


def prepare_own(file: Path, output: Path, signals: Signals, *, size: int, seed: int) -> None:
    """Write groups from JSONL of `{query, positives, negatives}`; a twentieth is held out.

    `positives` is a text or a list of texts. Missing negatives are chosen from the other texts. Raises `ValueError`
    with the number of a wrong line.
    """
    corpus = read_own(file)
    rng = random.Random(seed)
    pool = Pool(corpus.passages, signals)
    train, held_out = (
        list(_some(corpus, pool, len(corpus.questions), size, rng, held_out=held_out)) for held_out in (False, True)
    )
    _write(output, train, held_out, rng)


def _some(corpus: Corpus, pool: Pool, count: int, size: int, rng: random.Random, *, held_out: bool) -> Iterator[Group]:
    questions = [question for question in corpus.questions if corpus.is_held_out(question) == held_out]
    return pool.groups(corpus.name, questions[:count], size, rng)


def _write(output: Path, train: list[Group], held_out: list[Group], rng: random.Random) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for file, groups in ((TRAIN_FILE, train), (HELD_OUT_FILE, held_out)):
        rng.shuffle(groups)
        log.info("%s: %d groups", output / file, write_groups(groups, output / file))


def read_own(file: Path) -> Corpus:
    """A corpus of all distinct texts of the file, with a question per positive. Raises `ValueError`."""
    corpus = paired("own", (each for number, row in read_rows(file) for each in _own_rows(row, file, number)))
    if not corpus.questions:
        raise ValueError(f"{file}: contains no questions")
    return corpus


def _own_rows(row: dict[str, Any], file: Path, number: int) -> Iterator[Row]:
    """A row for each positive of the question."""
    query, positives = row.get("query"), _texts(row, ("positives", "positive"), file, number)
    if not isinstance(query, str) or not query.strip() or not positives:
        raise ValueError(f"{file}:{number}: query and positives are required and must not be empty")
    negatives = _texts(row, ("negatives", "negative"), file, number)
    for text in positives:
        yield Row(query, [text, *(other for other in positives if other != text)], negatives)


def _texts(row: dict[str, Any], names: Sequence[str], file: Path, number: int) -> list[str]:
    found: Any = next((row[name] for name in names if row.get(name)), [])
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{file}:{number}: {names[0]}: expected a text or a list of texts")
    return texts
