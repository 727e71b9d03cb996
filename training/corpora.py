"""The public texts that the default model is trained on: passages, and questions that one of them answers."""

import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

# Corpora that no training reads: how a model orders them shows how it orders text that it was not trained near.
VALIDATION = (
    "arxiv_physics_bio",
    "claims_fool_me_twice",
    "docs_cockroachdb",
    "evidence_inference_questions",
    "finance_cfpb_regulations",
    "finance_tatqa",
    "openstax_science",
    "qmsum_meetings",
)
# Titles and paragraphs of the very trials that `evidence_inference_questions` asks about; other languages.
LEFT_OUT = ("pmc_trial_", "ml_")
# Longer passages are cut here: training reads no more tokens than this gives.
MAX_CHARS = 2400
# Questions that are drawn together.
RUN = 20
# Of the known negatives of a question so many come into a limited corpus for its sake.
KNOWN = 3
# A heading that stands over so many sections says nothing without the page's title.
GENERIC = 3
MIN_SECTION_CHARS = 80
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


def read_corpora(folder: Path, passages: int, rng: random.Random) -> Iterator[Corpus]:
    """All corpora of the folder to train on, each of at most so many passages, with its questions in random order."""
    for name, read in readers(folder).items():
        if name not in VALIDATION:
            corpus = read(folder, rng).limited(passages, rng)
            rng.shuffle(corpus.questions)
            yield corpus


def read_validation(folder: Path, rng: random.Random) -> Iterator[Corpus]:
    """The corpora of the folder that are for validation, with their questions in random order."""
    for name, read in readers(folder).items():
        if name in VALIDATION:
            corpus = read(folder, rng)
            rng.shuffle(corpus.questions)
            yield corpus


def readers(folder: Path) -> dict[str, "Reader"]:
    """What reads each corpus that the folder has: those of the common format are files in its folder `broad`."""
    own = {name: read for name, read in SOURCES.items() if any(folder.glob(f"{name}*.jsonl.gz"))}
    names = [file.name.removesuffix(".jsonl.gz") for file in sorted(folder.glob("broad/*.jsonl.gz"))]
    return own | {name: _broad(name) for name in names if not name.startswith(LEFT_OUT)}


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


def _squad(folder: Path, rng: random.Random) -> Corpus:
    rows = list(_read(folder / "squad_passages.jsonl.gz"))
    # Half of them begin with the title, as passages of an encyclopaedia often do in an index.
    passages = [_titled(row["title"].replace("_", " "), row["text"], rng) for row in rows]
    at = {row["pid"]: index for index, row in enumerate(rows)}
    questions = [
        Question(
            row["q"],
            passages[at[row["pos"]]],
            at[row["pos"]],
            tuple(at[pid] for pid in row["neg"]),
            tuple(answer.lower() for answer in row["ans"]),
        )
        for row in _read(folder / "squad_bm25_negatives.jsonl.gz")
    ]
    return Corpus("squad", passages, questions)


def _medquad(folder: Path, _: random.Random) -> Corpus:
    rows = [row for row in _read(folder / "medquad.jsonl.gz") if row["answer"].strip()]
    passages = [_cut(row["answer"]) for row in rows]
    of_focus: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        of_focus.setdefault(row["focus"], []).append(index)
    questions = [
        Question(
            row["query"].replace("(are)", "").replace(" ?", "?"),
            passages[index],
            index,
            tuple(other for other in of_focus[row["focus"]] if rows[other]["qtype"] != row["qtype"]),
        )
        for index, row in enumerate(rows)
    ]
    return Corpus("medquad", passages, questions)


def _pubmedqa(folder: Path, _: random.Random) -> Corpus:
    rows = list(_read(folder / "pubmedqa.jsonl.gz"))
    passages = [_cut(row["text"]) for row in rows]
    questions = [Question(row["query"], passages[index], index) for index, row in enumerate(rows)]
    return Corpus("pubmedqa", passages, questions)


def _documentation(name: str) -> Callable[[Path, random.Random], Corpus]:
    def read(folder: Path, rng: random.Random) -> Corpus:
        rows = _sections(folder / f"{name}.jsonl.gz")
        seen = Counter(row["query"].lower() for row in rows)
        of_file: dict[str, list[int]] = {}
        for index, row in enumerate(rows):
            of_file.setdefault(row["file"], []).append(index)
        passages, questions = [], []
        for index, row in enumerate(rows):
            query = row["query"]
            generic = seen[query.lower()] > GENERIC or " " not in query.strip()
            passages.append(_cut(row["text"]) if generic else _titled(row["title"], row["text"], rng))
            others = tuple(other for other in of_file[row["file"]] if other != index)
            questions.append(
                Question(f"{row['title']} {query.lower()}" if generic else query, passages[index], index, others)
            )
        return Corpus(name, passages, questions)

    return read


def _sections(file: Path) -> list[dict[str, Any]]:
    """The newest text of each section: manuals repeat theirs for every version."""
    newest: dict[str, dict[str, Any]] = {}
    for row in _read(file):
        if len(row["text"]) >= MIN_SECTION_CHARS:
            newest[row["text"][:200]] = row
    by_section = {(row["title"], row["query"]): row for row in newest.values()}
    return list(by_section.values())


def _broad(name: str) -> Callable[[Path, random.Random], Corpus]:
    def read(folder: Path, _: random.Random) -> Corpus:
        rows = _read(folder / "broad" / f"{name}.jsonl.gz")
        return paired(
            name, (Row(row["query"], [*map(_cut, row["positives"])], [*map(_cut, row["negatives"])]) for row in rows)
        )

    return read


Reader = Callable[[Path, random.Random], Corpus]
SOURCES: dict[str, Reader] = {
    "squad": _squad,
    "medquad": _medquad,
    "pubmedqa": _pubmedqa,
    "docs_opensearch": _documentation("docs_opensearch"),
    "docs_powershell": _documentation("docs_powershell"),
}


def _read(file: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _titled(title: str, text: str, rng: random.Random) -> str:
    return _cut(rng.choice((f"{title}. {text}", text)))


def _cut(text: str) -> str:
    return " ".join(text.split())[:MAX_CHARS]
