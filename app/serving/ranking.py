"""The ranking from what is known about a request."""

from app.engines.protocol import Engine
from app.serving.activation import activate
from app.serving.folding import best_passages, fused_scores, place_unscored
from app.serving.progress import Progress
from app.serving.reading import budget_use
from app.types import Ranking


def rank(progress: Progress, engine: Engine) -> Ranking:
    """The ranking from all known scores. Unscored documents follow in first-stage order, or by shared words."""
    documents = range(len(progress.query.documents))
    choice = progress.choice
    scored = progress.scored_passages()
    best = best_passages(scored)
    own = {index: score.logit for index, (_, score) in best.items()}
    places = choice.places if choice else progress.words
    logits = place_unscored(own, places, len(documents), engine.info.score_calibration)
    fused = fused_scores(own, progress.evidence_scores(), progress.query.fusion)
    return Ranking(
        logits=logits,
        scores=activate(logits, progress.query.activation, engine),
        windows=[best[index][0].span if index in best else None for index in documents],
        pairs=len(scored),
        scored=progress.scored,
        tokens=sum(score.tokens for _, score in scored),
        truncated=len({passage.document for passage, score in scored if score.truncated or passage.cut}),
        timings=progress.timings,
        unscored=frozenset(documents).difference(best),
        prefiltered=frozenset(documents).difference(choice.kept) if choice else frozenset(),
        fused=fused,
        evidence=progress.query.evidence if fused else "off",
        budget=budget_use(progress, len(best)),
    )
