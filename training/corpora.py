"""Corpora: passages, and questions that one of them answers."""

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import NamedTuple

# Questions that are drawn together.
RUN = 20
# Of the known negatives of a question so many come into a limited corpus for its sake.
KNOWN = 3
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9])")
CLOZE_WORDS, CLOZE_SENTENCES = range(6, 40), 3
# One of so many documents is kept aside, with all that is asked about it.
HELD_OUT = 20
# Of the inverse-cloze pairs so many keep their sentence in the passage: exact matches do occur.
KEPT_SENTENCE = 0.3


class Row(NamedTuple):
    """A question in the common format."""

    query: str
    positives: Sequence[str]
    negatives: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """`positive` answers it; it was made from the passage at `index`."""

    query: str
    positive: str
    index: int
    negatives: tuple[int, ...] = ()
    """Passages that are alike and do not answer it."""
    answers: tuple[str, ...] = ()
    """A passage with one of these in it may answer it too."""
    also: tuple[int, ...] = ()
    """Other passages that answer it."""

    def moved(self, places: Mapping[int, int]) -> "Question":
        """The same among other passages: those that are left and where they are."""
        negatives, also = (
            tuple(places[old] for old in indices if old in places) for indices in (self.negatives, self.also)
        )
        return replace(self, index=places[self.index], negatives=negatives, also=also)


@dataclass(slots=True)
class Corpus:
    """Passages of one source and the questions about them."""

    name: str
    passages: list[str]
    questions: list[Question] = field(default_factory=list)

    def is_held_out(self, question: Question) -> bool:
        """Whether it is for measuring, not for training: by passage, so that no text is in both."""
        return question.index % HELD_OUT == 0

    def limited(self, passages: int, rng: random.Random) -> "Corpus":
        """So many passages at most: of questions drawn at random, with some of their negatives.

        They are drawn in runs, because questions that stand together are about texts that are alike.
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
    """The texts of the rows as passages, each once; a question for each row."""
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
    """The same passages; a sentence of one asks for the rest of it. Lee et al., 2019 (arXiv:1906.00300)."""
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
