"""Validation: nDCG of a model and of BM25 on unfamiliar text and on long documents."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from app.evaluation.collection import read_collection
from app.evaluation.measures import measure
from app.evaluation.topic import Topic
from app.first_stage.fusion import fuse
from app.first_stage.lexical import lexical_scores
from app.types import Fusion
from training.candidates import Words
from training.corpora import Corpus, Question
from training.judge import Judge
from training.lengthening import SPECIAL_TOKENS, Lengthener
from training.sources import VALIDATION, read_validation

CANDIDATES, CUTOFF = 40, 10
# For long documents: candidates per query, and tokens of a query with its document.
LONG_CANDIDATES, LONG_TOKENS = 10, 480
PLACES = {"answer first": 0.0, "answer last": 1.0}


class Figures(NamedTuple):
    """Mean nDCG@10 over the queries of a domain."""

    domain: str
    queries: int
    bm25: float
    model: float

    @property
    def gain(self) -> float:
        """How much better the model is than BM25."""
        return self.model - self.bm25


def domains(
    data: Path, queries: int, seed: int, names: Sequence[str] = VALIDATION
) -> Iterator[tuple[str, list[Topic]]]:
    """The queries of each validation corpus, with the best candidates of BM25 and all relevant passages."""
    for corpus in read_validation(data, random.Random(seed), names):
        words = Words(corpus.passages)
        yield corpus.name, [topic(corpus, question, words) for question in corpus.questions[:queries]]


def dev_sets(folder: Path, queries: int | None) -> Iterator[tuple[str, list[Topic]]]:
    """The labelled sets of a folder, in the format of `reranker evaluate`."""
    for file in sorted(folder.glob("*.jsonl*")):
        yield file.name.partition(".")[0], read_collection(file, queries=queries)


def topic(corpus: Corpus, question: Question, words: Words) -> Topic:
    """The first CANDIDATES passages of BM25. Answers outside them replace the last ones."""
    scores = words.scores(question.query)
    answers = [question.index, *question.also]
    order = np.argsort(-scores, kind="stable").tolist()
    others = [index for index in order[:CANDIDATES] if index not in answers]
    kept = {*others[: CANDIDATES - len(answers)], *answers}
    return Topic(
        question.query,
        question.query,
        {str(index): corpus.passages[index] for index in order if index in kept},
        {str(index): 1 for index in answers},
    )


def compare(domain: str, topics: Sequence[Topic], judge: Judge, fusion_weight: float = 0) -> Figures:
    """nDCG@10 in the order of BM25 and in the order of the model, which can be fused with BM25 of the candidates."""
    by_bm25 = {each.qid: list(each.documents) for each in topics}
    return Figures(domain, len(topics), ndcg(topics, by_bm25), ndcg(topics, ranked(topics, judge, fusion_weight)))


def long_documents(topics: Sequence[Topic], judge: Judge, seed: int) -> dict[str, float]:
    """nDCG@10 with short documents, and with the same texts at the beginning and at the end of long ones."""
    short = [_shortened(each) for each in topics]
    texts = list(dict.fromkeys(text for each in topics for text in each.documents.values()))
    found = {"short": ndcg(short, ranked(short, judge))}
    for name, at in PLACES.items():
        rng = random.Random(seed)
        long = [_lengthened(each, judge, texts, at, rng) for each in short]
        found[name] = ndcg(long, ranked(long, judge))
    return found


def ranked(topics: Sequence[Topic], judge: Judge, fusion_weight: float = 0) -> dict[str, list[str]]:
    """Document ids of each topic, ranked by the model."""
    logits = iter(judge.logits([(each.query, text) for each in topics for text in each.documents.values()]))
    fusion = Fusion("lexical", fusion_weight)
    found = {}
    for each in topics:
        texts = list(each.documents.values())
        scores = list(islice(logits, len(texts)))
        if fusion_weight:
            scores = fuse(scores, lexical_scores([each.query] * len(texts), texts), fusion)
        by_score = sorted(zip(scores, each.documents, strict=True), key=lambda pair: -pair[0])
        found[each.qid] = [name for _, name in by_score]
    return found


def ndcg(topics: Sequence[Topic], rankings: Mapping[str, Sequence[str]]) -> float:
    """Mean nDCG over the topics."""
    measured = measure(rankings, {each.qid: each.qrels for each in topics}, CUTOFF)
    return float(np.mean([each[f"nDCG@{CUTOFF}"] for each in measured.values()]))


def _shortened(long: Topic) -> Topic:
    """The topic with LONG_CANDIDATES candidates: all relevant ones and the first of the others."""
    names = [name for name in long.documents if name not in long.qrels][: LONG_CANDIDATES - len(long.qrels)]
    kept = {*names, *long.qrels}
    return replace(long, documents={name: text for name, text in long.documents.items() if name in kept})


def _lengthened(short: Topic, judge: Judge, texts: Sequence[str], at: float, rng: random.Random) -> Topic:
    """The topic with documents lengthened by texts that do not answer it."""
    answers = {short.documents[name] for name in short.qrels}
    lengthener = Lengthener(judge.tokenizer, [text for text in texts if text not in answers])
    room = LONG_TOKENS - SPECIAL_TOKENS - lengthener.tokens(short.query)
    longer = {name: lengthener.lengthened(text, room, at, rng) for name, text in short.documents.items()}
    return replace(short, documents=longer)
