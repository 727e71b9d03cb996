"""One ranking from those of two models. Their scores do not compare."""

from dataclasses import replace

from app.serving.progress import Progress
from app.types import CascadeUse, Ranking


def put_first(large: Ranking, small: Ranking, first: Progress) -> Ranking:
    """The documents that the large model has read in its order, then the others in that of the small one.

    The score of a document that only the small model has read is at most the lowest one of the large model, so that the
    scores fall with the order. `first`: what the small model has read.
    """
    documents = range(len(small.logits))
    read = frozenset(documents).difference(large.unscored)
    if not read:
        return small
    lowest_logit, lowest_score = min(large.logits[each] for each in read), min(large.scores[each] for each in read)
    cut = {
        passage.document
        for passage, score in first.scored_passages()
        if passage.document not in read and (score.truncated or passage.cut)
    }
    # Fusion is about the documents that the large model has read.
    others = replace(small, fused={}).order([each for each in documents if each not in read])
    return replace(
        small,
        logits=[large.logits[each] if each in read else min(small.logits[each], lowest_logit) for each in documents],
        scores=[large.scores[each] if each in read else min(small.scores[each], lowest_score) for each in documents],
        windows=[(large if each in read else small).windows[each] for each in documents],
        truncated=large.truncated + len(cut),
        fused=large.fused,
        evidence=large.evidence,
        ranked=[*large.order(sorted(read)), *others],
    )


def add_work(ranking: Ranking, second: Progress) -> None:
    """Add the pairs that the large model has read, and the time for them: from now on, both count as one."""
    scored, own, more = second.scored_passages(), ranking.timings, second.timings
    ranking.pairs += len(scored)
    ranking.scored += second.scored
    ranking.tokens += sum(score.tokens for _, score in scored)
    own.queue += more.queue
    own.tokenize += more.tokenize
    own.inference += more.inference
    second.timings = own


def use_of(small: str, first: Progress, large: str, second: Progress | None) -> CascadeUse:
    """What each model has read. `second`: None if the large model's scores are not used."""
    by_small = {passage.document for passage, _ in first.scored_passages()}
    by_large = {passage.document for passage, _ in second.scored_passages()} if second else set[int]()
    read_by = dict.fromkeys(by_small, small) | dict.fromkeys(by_large, large)
    return CascadeUse({small: len(by_small), large: len(by_large)}, read_by)
