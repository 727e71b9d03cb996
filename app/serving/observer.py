"""What happens to a request after its answer has been sent. It cannot delay the answer."""

from app.engines.protocol import Engine
from app.serving.activation import activate
from app.telemetry.quality import Quality
from app.types import Ranking, RerankQuery


class Observer:
    """Passes each answered request on to what watches the quality. Used on the event loop only."""

    def __init__(self, quality: Quality) -> None:
        self._quality = quality

    def see(self, engine: Engine, query: RerankQuery, ranking: Ranking) -> None:
        """Look at a ranking. A query for each document means that nothing was ranked, and its pairs are left out."""
        unscored = ranking.unscored
        scored = [logit for index, logit in enumerate(ranking.logits) if index not in unscored]
        if not isinstance(query.query, str) or not scored:
            return
        self._quality.see(ranking, *activate([max(scored)], "sigmoid", engine))
