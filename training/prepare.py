"""Training groups: of the public corpora that made the default model, or of a user's own texts."""

import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from training.candidates import Embedder, Pool
from training.corpora import Corpus, Question, cloze, read_corpora
from training.groups import HELD_OUT_FILE, TRAIN_FILE, Group, read_rows, write_groups

log = logging.getLogger(__name__)

# Adds to groups what one more signal says of their documents.
Judge = Callable[[Iterable[Group]], Iterator[Group]]

# The share of each source in the groups. Cloze questions stand for the domains that nobody has asked about.
SHARES = {
    "squad": 0.38,
    "squad-cloze": 0.12,
    "medquad": 0.12,
    "medquad-cloze": 0.06,
    "pubmedqa": 0.045,
    "pubmedqa-cloze": 0.045,
    "docs_opensearch": 0.08,
    "docs_opensearch-cloze": 0.04,
    "docs_powershell": 0.06,
    "docs_powershell-cloze": 0.05,
}
# Held-out groups of a source, as a share of its training groups, and at least.
HELD_OUT_SHARE, HELD_OUT_LEAST = 0.01, 20


def prepare(
    data: Path, output: Path, embed: Embedder, judge: Judge, *, count: int, size: int, passages: int, seed: int
) -> None:
    """Write about `count` groups of `size` documents of the public corpora in `data`, and some held out.

    `judge` adds what late interaction says of the documents (`LateInteraction.judge`); `passages`: how many of each
    corpus are read and embedded at most. Raises `ValueError` for a folder with none.
    """
    rng = random.Random(seed)
    train: list[Group] = []
    held_out: list[Group] = []
    for corpus in read_corpora(data, passages, rng):
        pool = Pool(corpus.passages, embed(corpus.passages))
        for each in (corpus, cloze(corpus, rng)):
            wanted = round(count * SHARES[each.name])
            train += _some(each, pool, embed, wanted, size, rng, held_out=False)
            few = max(HELD_OUT_LEAST, round(wanted * HELD_OUT_SHARE))
            held_out += _some(each, pool, embed, few, size, rng, held_out=True)
    if not train:
        raise ValueError(f"{data}: none of the corpora is there")
    _write(output, judge, train, held_out, rng)


def prepare_own(file: Path, output: Path, embed: Embedder, judge: Judge, *, size: int, seed: int) -> None:
    """Write groups from JSONL of `{query, positives, negatives}`, a twentieth of them held out.

    A positive may be one text or several, negatives may be missing: they are found among the other texts. Raises
    `ValueError` with the line that is wrong.
    """
    corpus = read_own(file)
    rng = random.Random(seed)
    pool = Pool(corpus.passages, embed(corpus.passages))
    train, held_out = (
        list(_some(corpus, pool, embed, len(corpus.questions), size, rng, held_out=held_out))
        for held_out in (False, True)
    )
    _write(output, judge, train, held_out, rng)


def _some(
    corpus: Corpus, pool: Pool, embed: Embedder, count: int, size: int, rng: random.Random, *, held_out: bool
) -> Iterator[Group]:
    questions = [question for question in corpus.questions if corpus.is_held_out(question) == held_out]
    return pool.groups(corpus.name, questions[:count], embed, size, rng)


def _write(output: Path, judge: Judge, train: list[Group], held_out: list[Group], rng: random.Random) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for file, own in ((TRAIN_FILE, train), (HELD_OUT_FILE, held_out)):
        groups = list(judge(own))
        rng.shuffle(groups)
        log.info("%s: %d groups", output / file, write_groups(groups, output / file))


def read_own(file: Path) -> Corpus:
    """All texts of the file as passages, each once, and a question for each positive. Raises `ValueError`."""
    at: dict[str, int] = {}
    questions = []
    for number, row in read_rows(file):
        query = row.get("query")
        positives = _texts(row, ("positives", "positive"), file, number)
        if not isinstance(query, str) or not query.strip() or not positives:
            raise ValueError(f"{file}:{number}: query and positives: a text each is required")
        negatives = tuple(at.setdefault(text, len(at)) for text in _texts(row, ("negatives", "negative"), file, number))
        answers = tuple(text.lower() for text in positives)
        questions += [Question(query, text, at.setdefault(text, len(at)), negatives, answers) for text in positives]
    if not questions:
        raise ValueError(f"{file}: has no rows")
    return Corpus("own", list(at), questions)


def _texts(row: dict[str, Any], names: Sequence[str], file: Path, number: int) -> list[str]:
    found: Any = next((row[name] for name in names if row.get(name)), [])
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{file}:{number}: {names[0]}: a text or a list of texts is wanted")
    return texts
