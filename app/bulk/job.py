"""One run: its files, its service and its totals."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from app import __version__
from app.bulk.checkpoint import Checkpoint
from app.bulk.output import Output
from app.bulk.progress import Report, as_time
from app.bulk.rows import Source, identify, open_source
from app.bulk.run import Bounds, rank_rows
from app.bulk.scoring import Counts, Scoring
from app.evaluation.service import errors, running

if TYPE_CHECKING:
    from app.api.service import Service


class Job:
    """Ranks a file. The totals are those of the whole file, even if several runs have done it."""

    def __init__(
        self, source: Path, target: Path, options: Mapping[str, Any], kept: Sequence[str], overwrite: bool = False
    ) -> None:
        """`options`: fields of a request, for rows without them. `kept`: fields of a row to copy."""
        self.counts = Counts()
        self.target = target
        self._path = source
        self._output = Output(target)
        self._options = options
        self._kept = kept
        self._overwrite = overwrite
        self._before = Counts()
        self.seconds = 0.0
        """Seconds of this run, without loading the model."""

    @property
    def done(self) -> int:
        """Rows with and without a ranking."""
        return self.counts.rows + self.counts.bad

    async def run(self, settings: Any, engine: Any = None) -> None:
        """Rank all rows that are left. Raises `StartupError`, `EngineBroken` and `OSError`."""
        with self._output.locked():
            await self._run(settings, engine)

    async def _run(self, settings: Any, engine: Any) -> None:
        from app.main import create_app

        source, identity = open_source(self._path, settings.max_body_bytes), identify(self._path)
        earlier = self._earlier()
        async with running(create_app(settings, engine)) as service:
            identity = {"input": identity} | identity_of(service, settings, self._options, self._kept)
            if earlier:
                earlier.check(identity, self._output.state)
            start = earlier or Checkpoint(identity, counts=self.counts)
            if not start.finished:
                self._output.open(start)
                await self._rank(service, source, start)
        self._output.finish()

    def _earlier(self) -> Checkpoint | None:
        """The checkpoint to continue from, if there is one. Its counts are those of the job. Raises `CannotResume`."""
        earlier = self._output.earlier(self._overwrite)
        if earlier:
            self._before, self.counts = Counts(**asdict(earlier.counts)), earlier.counts
        return earlier

    async def _rank(self, service: "Service", source: Source, start: Checkpoint) -> None:
        assert service.reranker is not None  # noqa: S101 (the service is running)
        if start.place.number:
            errors.print(f"Continuing after {self.done:,} rows", highlight=False)
        bounds, started = Bounds.for_engine(service.reranker), perf_counter()
        scoring = Scoring(service, self._options, self._kept)
        try:
            with Report(errors, source.size, self._before) as report:
                await rank_rows(source, self._output, scoring, bounds, start, report)
        finally:
            self._output.close()
            self.seconds = perf_counter() - started

    def print_totals(self, as_json: bool) -> None:
        """Print the totals of the file, and the speed of this run."""
        output, counts, seconds = self._output, self.counts, max(self.seconds, 1e-9)
        documents, tokens = counts.documents - self._before.documents, counts.tokens - self._before.tokens
        figures = {
            "output": str(output.path),
            "bad_rows": str(output.bad) if counts.bad else None,
            **asdict(counts),
            "continued_after_rows": self._before.rows + self._before.bad,
            "seconds": round(self.seconds, 3),
            "documents_per_second": round(documents / seconds, 1),
            "tokens_per_second": round(tokens / seconds, 1),
        }
        if as_json:
            print(json.dumps(figures, indent=2))
            return
        print(f"{counts.rows:,} rows, {counts.documents:,} documents, {counts.tokens:,} tokens in {output.path}")
        print(f"{counts.cached:,} scores from the cache, {counts.truncated:,} truncated documents")
        print(f"{as_time(seconds)} at {documents / seconds:,.0f} documents/s, {tokens / seconds:,.0f} tokens/s")
        if counts.bad:
            print(f"{counts.bad:,} rows without a ranking: {output.bad} has the line and the reason of each")


def identity_of(service: "Service", settings: Any, options: Mapping[str, Any], kept: Sequence[str]) -> dict[str, Any]:
    """What the output depends on, besides the input."""
    reranker, defaults = service.reranker, service.defaults
    assert reranker is not None  # noqa: S101 (the service is running)
    info = reranker.engine.info
    return {
        "version": __version__,
        "model": {"name": info.model, "fingerprint": info.fingerprint, "calibration": repr(info.score_calibration)},
        "options": {**options, "keep": list(kept)},
        "settings": {
            "long_documents": reranker.long_documents,
            "instruction": reranker.instruction,
            "activation": defaults.activation,
            "fusion": service.fusion_of(reranker),
            "fusion_weight": defaults.fusion_weight,
            "fusion_method": defaults.fusion_method,
            "prefilter": defaults.prefilter,
            "prefilter_top_k": defaults.prefilter_top_k,
            "prefilter_model": settings.prefilter_model,
            "span_candidates": settings.span_candidates,
            "max_span_candidates": settings.max_span_candidates,
            "max_body_bytes": settings.max_body_bytes,
            "max_documents": reranker.limits.max_documents,
            "max_text_chars": reranker.limits.max_text_chars,
        },
    }
