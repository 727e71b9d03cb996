"""What happens to a request after its answer has been sent. It cannot delay the answer."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from app.engines.protocol import Engine
from app.serving.activation import activate
from app.telemetry.quality import Quality
from app.telemetry.sample import Sample
from app.types import Ranking, RerankQuery


class Observer:
    """Passes each answered request on to what watches the quality. Used on the event loop only."""

    def __init__(self, quality: Quality, sample: Sample | None = None) -> None:
        self._quality = quality
        self._sample = sample

    @contextmanager
    def running(self) -> Iterator[None]:
        """Have the threads that this needs while the block runs."""
        with self._sample.writing() if self._sample else nullcontext():
            yield

    def see(self, engine: Engine, query: RerankQuery, ranking: Ranking) -> None:
        """Look at a ranking. A query for each document means that nothing was ranked, and its pairs are left out."""
        unscored = ranking.unscored
        scored = [logit for index, logit in enumerate(ranking.logits) if index not in unscored]
        if not isinstance(query.query, str) or not scored:
            return
        if self._sample:
            self._sample.see(query)
        self._quality.see(ranking, *activate([max(scored)], "sigmoid", engine))
