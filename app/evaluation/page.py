"""The page that `reranker evaluate --html` writes."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from app.evaluation.fusion import fusion_notes, fusion_table
from app.evaluation.report import COLUMNS, Outcome, cost_rows, measure_rows, notes
from app.evaluation.topic import Topic
from app.pages.charts import Bar, Bin, bars, histogram
from app.pages.markup import Markup, join, shortened, tag
from app.pages.page import grid, page, paragraph, section, table

QUERIES, PASSAGES = 10, 5
QUERY_CHARACTERS, PASSAGE_CHARACTERS, ID_CHARACTERS = 300, 300, 80
# The values of a query that did not change may differ in the last bits.
UNCHANGED = 1e-9
BINS_PER_SIDE = 10
LIMITS = (0.1, 0.2, 0.5, 1.0)


class Change(NamedTuple):
    """One query, and what reranking did to it."""

    topic: Topic
    outcome: Outcome
    before: float
    after: float

    @property
    def gain(self) -> float:
        return self.after - self.before


def evaluation_page(
    figures: Mapping[str, Any], topics: Sequence[Topic], outcomes: Mapping[str, Outcome], file: Path, order: str
) -> Markup:
    """`figures` are those of `--json`. `order` is the name of the order before reranking."""
    engine, name = figures["engine"], next(iter(figures["measures"]))
    facts = {
        "model": engine["model_id"],
        "engine": f"{engine['backend']} on {engine['device']}",
        "precision": engine["precision"],
        "data": str(file),
        "order before": order,
        "queries": f"{figures['queries']:,}",
        "documents": f"{figures['documents']:,}",
        "scored by the model": f"{figures['scored']:,}",
    }
    rows = {row["qid"]: row for row in figures["per_query"]}
    changes = [
        Change(topic, outcomes[topic.qid], rows[topic.qid]["before"][name], rows[topic.qid]["after"][name])
        for topic in topics
        if topic.qid in outcomes
    ]
    return page(
        f"Evaluation of {engine['model_id']}",
        facts,
        section("Before and after reranking", _summary(figures), grid(_means(figures), _gains(figures, name))),
        *_fusion(figures, name),
        *_extremes("Gained most", sorted(changes, key=lambda change: -change.gain), name, 1),
        *_extremes("Lost most", sorted(changes, key=lambda change: change.gain), name, -1),
    )


def _summary(figures: Mapping[str, Any]) -> Markup:
    made = table("measures and times", COLUMNS, [*measure_rows(figures), *cost_rows(figures)])
    return join(made, *map(paragraph, notes(figures)))


def _means(figures: Mapping[str, Any]) -> Markup:
    found = [
        Bar(f"{name}, {when}", change[when]["mean"], f"{change[when]['mean']:.4f}", kind, *_bounds(change[when]))
        for name, change in figures["measures"].items()
        for when, kind in (("before", "other"), ("after", "ours"))
    ]
    return bars("Mean over all queries, with its 95 % interval", found, top=1)


def _bounds(interval: Mapping[str, float | None]) -> tuple[float | None, float | None]:
    return interval["low"], interval["high"]


def _gains(figures: Mapping[str, Any], name: str) -> Markup:
    gains = [row["after"][name] - row["before"][name] for row in figures["per_query"]]
    better, worse = sum(gain > UNCHANGED for gain in gains), sum(gain < -UNCHANGED for gain in gains)
    title = f"{name} per query: {better} better, {worse} worse, {len(gains) - better - worse} unchanged"
    return histogram(title, list(gain_bins(gains)), f"gain in {name}; the height is the number of queries")


def gain_bins(gains: Sequence[float]) -> Iterator[Bin]:
    """Bins of equal width on both sides of 0, as wide as the largest gain or loss needs, and one for unchanged."""
    largest = max(map(abs, gains), default=0.0)
    step = next((limit for limit in LIMITS if largest <= limit), LIMITS[-1]) / BINS_PER_SIDE
    counts = Counter(_bin(gain, step) for gain in gains)
    for number in range(-BINS_PER_SIDE, BINS_PER_SIDE + 1):
        far, near = number * step, (number - (number > 0) + (number < 0)) * step
        kind = "gained" if number > 0 else "lost" if number < 0 else "same"
        shown = f"{near:+.2g} to {far:+.2g}" if number else "unchanged"
        yield Bin(min(near, far), max(near, far), counts[number], kind, shown.replace("-0 ", "0 ").replace("+0 ", "0 "))


def _bin(gain: float, step: float) -> int:
    """0 is unchanged, 1 is a gain of up to one step, -1 a loss of up to one step."""
    if abs(gain) <= UNCHANGED:
        return 0
    steps = min(BINS_PER_SIDE, int((abs(gain) - UNCHANGED) / step) + 1)
    return steps if gain > 0 else -steps


def _fusion(figures: Mapping[str, Any], name: str) -> Iterator[Markup]:
    if "fusion" in figures:
        head, rows = fusion_table(figures["fusion"], name)
        marked = [[tag("strong", cell) for cell in row] if is_best else row for row, is_best in rows]
        made = table("fusion with other evidence", head, marked)
        yield section("Fusion", made, *map(paragraph, fusion_notes(figures["fusion"])))


def _extremes(heading: str, changes: Sequence[Change], name: str, sign: int) -> Iterator[Markup]:
    """The first queries of this order, if they changed in the direction of `sign`."""
    chosen = [change for change in changes[:QUERIES] if change.gain * sign > UNCHANGED]
    if not chosen:
        yield section(heading, paragraph(f"No query {'gained' if sign > 0 else 'lost'}."))
        return
    overview = table(
        f"{name} of each query",
        ("query", "before", "after", "difference"),
        [
            (
                tag("a", shortened(change.topic.query, 80), dir="auto", href=f"#{_anchor(sign, number)}"),
                f"{change.before:.4f}",
                f"{change.after:.4f}",
                f"{change.gain:+.4f}",
            )
            for number, change in enumerate(chosen, 1)
        ],
    )
    yield section(heading, overview, *(_query(change, name, _anchor(sign, n)) for n, change in enumerate(chosen, 1)))


def _anchor(sign: int, number: int) -> str:
    return f"{'gained' if sign > 0 else 'lost'}-{number}"


def _query(change: Change, name: str, anchor: str) -> Markup:
    """The query with its first passages in both orders."""
    topic, outcome = change.topic, change.outcome
    given = list(topic.documents)
    before = {document: rank for rank, document in enumerate(given, 1)}
    after = {document: rank for rank, document in enumerate(outcome.order, 1)}
    scores = dict(zip(filter(after.__contains__, given), outcome.scores, strict=True))
    relevant = [document for document, grade in topic.qrels.items() if grade > 0]
    ranks = [sorted(order[document] for document in relevant if document in order) for order in (before, after)]
    facts = [
        f"{name} {change.before:.4f} before, {change.after:.4f} after ({change.gain:+.4f})",
        f"relevant documents at rank {_some(ranks[0])} before, {_some(ranks[1])} after",
    ]
    missing = len(relevant) - len(ranks[0])
    if missing:
        facts.append(f"{missing} relevant not among the {len(given)} candidates")
    lists = (
        _order(
            "Before",
            given,
            topic,
            lambda document: [f"rank {after[document]} after" if document in after else "left out"],
        ),
        _order(
            "After",
            outcome.order,
            topic,
            lambda document: [f"rank {before[document]} before", f"score {scores[document]:.4g}"],
        ),
    )
    return tag(
        "article",
        tag("h3", shortened(topic.query, QUERY_CHARACTERS), dir="auto"),
        tag("p", "query id ", tag("bdi", shortened(topic.qid, ID_CHARACTERS)), "; ", "; ".join(facts), class_="quiet"),
        grid(*lists),
        class_="query",
        id=anchor,
    )


def _some(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks[:PASSAGES])) + (", …" if len(ranks) > PASSAGES else "") or "-"


def _order(heading: str, documents: Sequence[str], topic: Topic, remarks: Callable[[str], Sequence[str]]) -> Markup:
    items = [
        _passage(rank, document, topic, remarks(document)) for rank, document in enumerate(documents[:PASSAGES], 1)
    ]
    return tag("div", tag("h4", heading), tag("ol", *items))


def _passage(rank: int, document: str, topic: Topic, remarks: Sequence[str]) -> Markup:
    grade = topic.qrels.get(document)
    place = tag(
        "div",
        tag("b", f"{rank}."),
        tag("span", "not judged" if grade is None else f"grade {grade}", class_="grade"),
        tag("span", shortened(document, ID_CHARACTERS), dir="auto"),
        *(tag("span", remark) for remark in remarks),
        class_="place",
    )
    words = tag("p", shortened(topic.documents[document], PASSAGE_CHARACTERS), dir="auto")
    return tag("li", place, words, class_="relevant" if grade and grade > 0 else "")
