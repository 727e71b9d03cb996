"""What happens to a request after its answer has been sent. It cannot delay the answer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

from app.engines.protocol import Engine, EngineInfo
from app.serving.activation import activate
from app.serving.shadow import Shadow
from app.telemetry.quality import Quality
from app.telemetry.sample import Sample
from app.types import Ranking, RerankQuery


class Observer:
    """Passes each answered request on to what watches the quality. Used on the event loop only."""

    def __init__(self, quality: Quality, sample: Sample | None = None) -> None:
        self._quality = quality
        self._sample = sample
        self.shadow: Shadow | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Have the thread and the process that this needs while the block runs."""
        with self._sample.writing() if self._sample else nullcontext():
            async with self.shadow.running() if self.shadow else nullcontext():
                yield

    def ready(self, info: EngineInfo) -> None:
        """The service has loaded this model."""
        self._quality.begin(repr((info.model, info.revision, info.contents, info.score_calibration)))
        if self.shadow:
            self.shadow.load()

    def see(self, engine: Engine, query: RerankQuery, ranking: Ranking) -> None:
        """Look at a ranking. A query for each document means that nothing was ranked, and its pairs are left out."""
        unscored = ranking.unscored
        scored = [logit for index, logit in enumerate(ranking.logits) if index not in unscored]
        if not isinstance(query.query, str) or not scored:
            return
        if self._sample:
            self._sample.see(query)
        if self.shadow:
            self.shadow.see(query, ranking)
        self._quality.see(ranking, *activate([max(scored)], "sigmoid", engine))
