"""Which documents of a request with a latency budget are read: those that fit, the best of the first stage first.

They are chosen twice: roughly before the texts are tokenized, because most of a large request does not fit, and exactly
afterwards. The plan is a value with a stage for each model, so that another model can read the best of them again.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from app.serving.budget import Pace, ReadingPlan, Stage, fit
from app.serving.progress import KeyedPassages, Progress
from app.types import BudgetUse, Method, Pair, Passage

# This many times what seems to fit is tokenized.
SLACK = 1.5


def first_stage_method(chosen: Method) -> Method:
    """How the first stage orders documents if it must."""
    return "hybrid" if chosen == "off" else chosen


def plan_known(progress: Progress) -> ReadingPlan:
    """The plan of a request of which all scores are known."""
    return ReadingPlan(progress.spent(), (Stage(frozenset(range(len(progress.query.documents))), 0.0),))


class Work(NamedTuple):
    """What the engine has to do before a request."""

    tokens: int
    """Of running and waiting pairs."""
    in_flight: Callable[[bytes], bool]
    """Whether a pair is among them, for another request."""

    def ahead_of(self, tokens: Mapping[bytes, int]) -> int:
        """The tokens of other pairs than these. `tokens`: of each pair, by key."""
        return max(0, self.tokens - sum(count for key, count in tokens.items() if self.in_flight(key)))


def leave_out_most(progress: Progress, pace: Pace, work: Work, window: int) -> None:
    """Leave out the documents that cannot fit, judged by their characters. `window`: tokens of a pair, at most."""
    tokens = {key: _estimate(progress, pace, passage, window) for key, passage in progress.missing().items()}
    remaining = _remaining(progress, pace, work.ahead_of(tokens))
    _keep(progress, tokens, SLACK * pace.cautious_speed_with_tokenizer, remaining)


def plan(progress: Progress, pairs: Mapping[bytes, Pair], pace: Pace, work: Work) -> dict[bytes, Pair]:
    """Leave out the documents that do not fit, and set the plan. Returns the pairs to score."""
    tokens = {key: pair.length for key, pair in pairs.items()}
    ahead = work.ahead_of(tokens)
    kept = _keep(progress, tokens, pace.cautious_speed, _remaining(progress, pace, ahead))
    read = {key: pairs[key] for key in progress.missing()}
    needed = ahead + sum(tokens[key] for key in read) if read else 0
    progress.plan = ReadingPlan(progress.spent(), (Stage(kept, _seconds(needed, pace)),))
    return read


def budget_use(progress: Progress, read: int) -> BudgetUse | None:
    """What became of the budget; None without one. `read`: documents with a score."""
    query = progress.query
    if query.budget is None or not query.is_budgeted:
        return None
    predicted = progress.plan.seconds if progress.plan else None
    return BudgetUse(query.budget.seconds, read, len(query.documents), predicted)


def _seconds(tokens: int, pace: Pace) -> float:
    return tokens / pace.cautious_speed if pace.speed else 0.0


def _remaining(progress: Progress, pace: Pace, ahead: int) -> float:
    """Seconds that the budget and the deadline leave for the documents."""
    budget = progress.query.budget
    left = budget.seconds - progress.spent() if budget else progress.remaining()
    return min(left, progress.remaining()) - _seconds(ahead, pace)


def _estimate(progress: Progress, pace: Pace, passage: Passage, window: int) -> int:
    """Tokens of a passage. Windows of a long document count as its text."""
    query, own = pace.tokens_of(len(passage.query)), pace.tokens_of(len(passage.text))
    if progress.long_documents == "chunk_max":
        return query + own
    return min(query + min(own, progress.query.max_tokens_per_doc or own), window)


def _keep(progress: Progress, tokens: Mapping[bytes, int], speed: float, remaining: float) -> frozenset[int]:
    """Narrow the choice and the passages to the documents that fit, and to those with known scores. Returns them.

    `tokens`: of the passages without a score, by key.
    """
    choice, keys = progress.choice, dict[int, list[bytes]]()
    assert choice is not None  # noqa: S101 (the first stage has run)
    for key, passage in progress.keyed:
        keys.setdefault(passage.document, []).append(key)
    order = sorted(keys, key=lambda document: -choice.places[document])
    # Passages with equal texts cost once, and the best document pays.
    unpaid = dict(tokens)
    costs = [sum(unpaid.pop(key, 0) for key in keys[document]) for document in order]
    fitting = fit(costs, speed, remaining, progress.may_read_none)
    read = {key for document in order[:fitting] for key in keys[document]}
    kept = frozenset(each for each in order if all(key in read or key not in tokens for key in keys[each]))
    if len(kept) < len(order):
        left = [(key, passage) for key, passage in progress.keyed if passage.document in kept]
        progress.keyed = KeyedPassages([key for key, _ in left], [passage for _, passage in left])
    progress.choice = choice._replace(kept=kept)
    return kept
