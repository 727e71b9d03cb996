"""Corpora: passages, and questions that a passage answers."""

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import NamedTuple

# Consecutive questions that are drawn together.
RUN = 20
# Known negatives per question that a limited corpus keeps.
KNOWN = 3
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9])")
CLOZE_WORDS, CLOZE_SENTENCES = range(6, 40), 3
# One in this many documents is held out, with all its questions.
HELD_OUT = 20
# Share of cloze questions that stay in their passage too: in practice, exact matches occur.
KEPT_SENTENCE = 0.3


class Row(NamedTuple):
    """A question with its texts, as in the input files."""

    query: str
    positives: Sequence[str]
    negatives: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its answer `positive`, which is (part of) the passage at `index`."""

    query: str
    positive: str
    index: int
    negatives: tuple[int, ...] = ()
    """Similar passages that do not answer it."""
    answers: tuple[str, ...] = ()
    """Lower-case answers: a passage that contains one may answer the question too."""
    also: tuple[int, ...] = ()
    """Other passages that answer it."""

    def moved(self, places: Mapping[int, int]) -> "Question":
        """The question in a smaller corpus; `places` maps the indices of its passages to new ones."""
        negatives, also = (
            tuple(places[old] for old in indices if old in places) for indices in (self.negatives, self.also)
        )
        return replace(self, index=places[self.index], negatives=negatives, also=also)


@dataclass(slots=True)
class Corpus:
    """Passages of one source, and questions about them."""

    name: str
    passages: list[str]
    questions: list[Question] = field(default_factory=list)

    def is_held_out(self, question: Question) -> bool:
        """Whether the question is for measuring only. Decided by passage, so no passage is in both sets."""
        return question.index % HELD_OUT == 0

    def limited(self, passages: int, rng: random.Random) -> "Corpus":
        """The corpus with at most this many passages: those of random questions, with some of their negatives.

        Questions are drawn in runs, because neighbours are about similar texts.
        """
        if len(self.passages) <= passages:
            return self
        kept: dict[int, None] = {}
        runs = [self.questions[first : first + RUN] for first in range(0, len(self.questions), RUN)]
        rng.shuffle(runs)
        for question in chain.from_iterable(runs):
            own = question.index, *question.also, *question.negatives[:KNOWN]
            kept.update(dict.fromkeys(own[: passages - len(kept)]))
            if len(kept) >= passages:
                break
        places = {old: new for new, old in enumerate(sorted(kept))}
        questions = [question.moved(places) for question in self.questions if question.index in places]
        return Corpus(self.name, [self.passages[old] for old in places], questions)


def paired(name: str, rows: Iterable[Row]) -> Corpus:
    """A corpus of all distinct texts of the rows, with a question per row."""
    at: dict[str, int] = {}

    def places(texts: Sequence[str]) -> tuple[int, ...]:
        return tuple(at.setdefault(text, len(at)) for text in texts)

    questions = [
        Question(row.query, row.positives[0], first, places(row.negatives), also=tuple(also))
        for row in rows
        for first, *also in [places(row.positives)]
    ]
    return Corpus(name, list(at), questions)


def cloze(corpus: Corpus, rng: random.Random) -> Corpus:
    """Questions from the passages themselves: a sentence asks for the rest of its passage.

    Inverse cloze task: Lee et al., 2019 (arXiv:1906.00300).
    """
    questions = []
    for index, passage in enumerate(corpus.passages):
        sentences = SENTENCE.split(passage)
        fitting = [at for at, sentence in enumerate(sentences) if len(sentence.split()) in CLOZE_WORDS]
        if len(sentences) < CLOZE_SENTENCES or not fitting:
            continue
        at = rng.choice(fitting)
        rest = passage if rng.random() < KEPT_SENTENCE else " ".join(sentences[:at] + sentences[at + 1 :])
        questions.append(Question(sentences[at].rstrip("."), rest, index))
    rng.shuffle(questions)
    return Corpus(f"{corpus.name}-cloze", corpus.passages, questions)
