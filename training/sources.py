"""The public corpora for training and validation of the default model."""

import gzip
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from training.corpora import Corpus, Question, Row, paired

# Never used in training: they show how well a model ranks unfamiliar text.
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
# The same for other languages: Arabic, German, Spanish, Russian and Chinese.
LANGUAGES = ("ml_ar_arcd", "ml_de_docs", "ml_es_openstax", "ml_ru_docs", "ml_zh_cmrc2018")
# Texts about the trials of `evidence_inference_questions`, which is a validation corpus; other languages.
LEFT_OUT = ("pmc_trial_", "ml_")
# Longer passages are truncated; training does not read beyond this.
MAX_CHARS = 2400
# A heading used more often than this needs the title of its page to make sense.
GENERIC = 3
MIN_SECTION_CHARS = 80


def read_corpora(folder: Path, passages: int, rng: random.Random) -> Iterator[Corpus]:
    """The training corpora in the folder, each limited to `passages`, with questions in random order."""
    for name, read in readers(folder).items():
        if name not in VALIDATION and not name.startswith(LEFT_OUT):
            corpus = read(folder, rng).limited(passages, rng)
            rng.shuffle(corpus.questions)
            yield corpus


def read_validation(folder: Path, rng: random.Random, names: Sequence[str] = VALIDATION) -> Iterator[Corpus]:
    """Those of the corpora that are in the folder, with questions in random order."""
    for name, read in readers(folder).items():
        if name in names:
            corpus = read(folder, rng)
            rng.shuffle(corpus.questions)
            yield corpus


def readers(folder: Path) -> dict[str, "Reader"]:
    """A reader for each corpus in the folder. Files in the subfolder `broad` have the common format."""
    own = {name: read for name, read in SOURCES.items() if any(folder.glob(f"{name}*.jsonl.gz"))}
    names = [file.name.removesuffix(".jsonl.gz") for file in sorted(folder.glob("broad/*.jsonl.gz"))]
    return own | {name: _broad(name) for name in names}


def _squad(folder: Path, rng: random.Random) -> Corpus:
    rows = list(_read(folder / "squad_passages.jsonl.gz"))
    # Half of the passages begin with the title, as they often do in search indexes.
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
    """The latest text of each section, because manuals repeat sections for every version."""
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
