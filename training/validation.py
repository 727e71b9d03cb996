"""How a model orders text that it was not trained near, against BM25, and how it reads long documents."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from app.evaluation.collection import Topic, read_collection
from app.evaluation.measures import measure
from training.candidates import Words
from training.corpora import Corpus, Question
from training.judge import Judge
from training.lengthening import SPECIAL_TOKENS, Lengthener
from training.sources import read_validation

CANDIDATES, CUTOFF = 40, 10
# Long documents: so many of a query's candidates, and tokens of each with its query.
LONG_CANDIDATES, LONG_TOKENS = 10, 480
PLACES = {"answer first": 0.0, "answer last": 1.0}


class Figures(NamedTuple):
    """Mean nDCG@10 of a domain's queries."""

    domain: str
    queries: int
    bm25: float
    model: float

    @property
    def gain(self) -> float:
        """Of the model over BM25."""
        return self.model - self.bm25


def domains(data: Path, queries: int, seed: int) -> Iterator[tuple[str, list[Topic]]]:
    """Of each validation corpus so many queries with what BM25 finds for them and all that answers them."""
    for corpus in read_validation(data, random.Random(seed)):
        words = Words(corpus.passages)
        yield corpus.name, [topic(corpus, question, words) for question in corpus.questions[:queries]]


def dev_sets(folder: Path, queries: int | None) -> Iterator[tuple[str, list[Topic]]]:
    """The judged sets of a folder, in the layout of `reranker evaluate`."""
    for file in sorted(folder.glob("*.jsonl*")):
        yield file.name.partition(".")[0], read_collection(file, queries=queries)


def topic(corpus: Corpus, question: Question, words: Words) -> Topic:
    """The candidates in the order of BM25; answers that it does not find among the first come in place of the last."""
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


def compare(domain: str, topics: Sequence[Topic], judge: Judge) -> Figures:
    """The order of the first stage and the model's."""
    by_bm25 = {each.qid: list(each.documents) for each in topics}
    return Figures(domain, len(topics), ndcg(topics, by_bm25), ndcg(topics, ranked(topics, judge)))


def long_documents(topics: Sequence[Topic], judge: Judge, seed: int) -> dict[str, float]:
    """nDCG@10 with short documents, and with the same in long ones at their beginning and at their end."""
    short = [_shortened(each) for each in topics]
    texts = list(dict.fromkeys(text for each in topics for text in each.documents.values()))
    found = {"short": ndcg(short, ranked(short, judge))}
    for name, at in PLACES.items():
        rng = random.Random(seed)
        long = [_lengthened(each, judge, texts, at, rng) for each in short]
        found[name] = ndcg(long, ranked(long, judge))
    return found


def ranked(topics: Sequence[Topic], judge: Judge) -> dict[str, list[str]]:
    """Of each topic the documents' ids in the model's order."""
    logits = iter(judge.logits([(each.query, text) for each in topics for text in each.documents.values()]))
    scores = {each.qid: list(islice(logits, len(each.documents))) for each in topics}
    return {
        each.qid: [
            name for _, name in sorted(zip(scores[each.qid], each.documents, strict=True), key=lambda pair: -pair[0])
        ]
        for each in topics
    }


def ndcg(topics: Sequence[Topic], rankings: Mapping[str, Sequence[str]]) -> float:
    """The mean over the topics."""
    measured = measure(rankings, {each.qid: each.qrels for each in topics}, CUTOFF)
    return float(np.mean([each[f"nDCG@{CUTOFF}"] for each in measured.values()]))


def _shortened(long: Topic) -> Topic:
    """Of the candidates the first and all that answer."""
    names = [name for name in long.documents if name not in long.qrels][: LONG_CANDIDATES - len(long.qrels)]
    kept = {*names, *long.qrels}
    return replace(long, documents={name: text for name, text in long.documents.items() if name in kept})


def _lengthened(short: Topic, judge: Judge, texts: Sequence[str], at: float, rng: random.Random) -> Topic:
    """With other texts, but for those that answer."""
    answers = {short.documents[name] for name in short.qrels}
    lengthener = Lengthener(judge.tokenizer, [text for text in texts if text not in answers])
    room = LONG_TOKENS - SPECIAL_TOKENS - lengthener.tokens(short.query)
    longer = {name: lengthener.lengthened(text, room, at, rng) for name, text in short.documents.items()}
    return replace(short, documents=longer)
