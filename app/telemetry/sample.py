"""A sample of the requests, as a file that `reranker evaluate` and `reranker tune` read once it has grades."""

import json
import logging
import os
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Full, Queue
from threading import Thread
from uuid import uuid4

from app.telemetry.metrics import Metrics
from app.types import RerankQuery

log = logging.getLogger(__name__)

# Requests that wait for the disk. Their texts are in memory.
WAITING = 16
REDACTED = "[redacted]"
# A disk that hangs must not delay the exit.
CLOSE_SECONDS = 2.0


class Sample:
    """Owns the file and the thread that writes it. No other process may write to the same file."""

    def __init__(
        self, file: Path, share: float, max_bytes: int, redact: re.Pattern[str] | None, metrics: Metrics
    ) -> None:
        """`share` of the requests is written, until the file has `max_bytes`."""
        self._file = file
        self._share = share
        self._max_bytes = max_bytes
        self._redact = redact
        self._metrics = metrics
        self._waiting: Queue[RerankQuery | None] = Queue(WAITING)
        self._is_reported = False

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write while the block runs. What waits at its end is written too."""
        log.warning("The texts of %g %% of the requests are written to %s", 100 * self._share, self._file)
        thread = Thread(target=self._run, name="sample", daemon=True)
        thread.start()
        try:
            yield
        finally:
            end = Thread(target=self._waiting.put, args=(None,), daemon=True)  # waits while the queue is full
            end.start()
            thread.join(CLOSE_SECONDS)

    def see(self, query: RerankQuery) -> None:
        """Perhaps write a request. Never waits for the disk."""
        if random.random() >= self._share:  # noqa: S311 (no secret)
            return
        try:
            self._waiting.put_nowait(query)
        except Full:
            self._count("dropped")

    def _run(self) -> None:
        while (query := self._waiting.get()) is not None:
            try:
                self._count(self._write(self._line(query)))
            except Exception as error:
                self._count("failed")
                self._report(f"{type(error).__name__}: {error}")

    def _line(self, query: RerankQuery) -> bytes:
        """Texts only: no ids, no metadata. A grade replaces the `null` at the place of its document."""
        row = {
            "qid": uuid4().hex,
            "query": self._clean(str(query.query)),
            "documents": [self._clean(text) for text in query.documents],
            "qrels": [None] * len(query.documents),
        }
        return json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"

    def _clean(self, text: str) -> str:
        return self._redact.sub(REDACTED, text) if self._redact else text

    def _write(self, line: bytes) -> str:
        """Append the line as a whole or not at all. Raises `OSError`."""
        # Opened each time, so the file can be moved away.
        file = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            size = os.fstat(file).st_size
            if size + len(line) > self._max_bytes:
                self._report(f"it would exceed {self._max_bytes} bytes (RERANKER_SAMPLE_MAX_BYTES). Move it away")
                return "full"
            written = os.write(file, line)
            if written < len(line):
                os.ftruncate(file, size)
                raise OSError(f"only {written} of {len(line)} bytes were written")
            return "written"
        finally:
            os.close(file)

    def _count(self, result: str) -> None:
        self._metrics.sampled.labels(result).inc()

    def _report(self, reason: str) -> None:
        """Log the first problem; the metrics count all of them."""
        if not self._is_reported:
            self._is_reported = True
            log.warning("RERANKER_SAMPLE_FILE=%s was not written: %s", self._file, reason)
