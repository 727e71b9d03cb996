"""Whether the top scores of the last hour look like those of a reference period."""

import json
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, ValidationError

from app.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

Counts = npt.NDArray[np.int64]

# Scores are counted by their logit, from -10 to 10 in steps of a quarter: many models give nearly only 0s and 1s.
LOGIT, PER_LOGIT = 10, 4
BINS = 2 * LOGIT * PER_LOGIT
# The last hour, in steps of five minutes.
SLOT_SECONDS, SLOTS = 300, 12
# With fewer requests in the last hour, chance alone makes a large distance.
ENOUGH = 200


class Reference(BaseModel):
    """The content of the file."""

    model: str
    counts: list[int] = Field(min_length=BINS, max_length=BINS)


class Drift:
    """Owns the histograms of the reference and of the last hour. Used on the event loop only."""

    def __init__(
        self, size: int, file: Path | None, metrics: Metrics, timer: Callable[[], float] = time.monotonic
    ) -> None:
        """The reference is in `file`, or else the next `size` requests, which are then kept there."""
        self._size = size
        self._file = file
        self._timer = timer
        self._model = ""
        self._reference = _empty()
        self._is_complete = False
        self._slots: deque[tuple[int, Counts]] = deque(maxlen=SLOTS)
        metrics.top_score_drift.set_function(self.distance)

    def begin(self, model: str) -> None:
        """The scores are those of this model from now on. Another model needs another reference."""
        if model == self._model:
            return
        self._model = model
        self._slots.clear()
        stored = self._read()
        self._is_complete = stored is not None
        self._reference = _empty() if stored is None else np.array(stored.counts, np.int64)

    def see(self, score: float) -> None:
        """Count a top score, from 0 to 1."""
        place, now = _bin(score), int(self._timer() // SLOT_SECONDS)
        if not self._slots or self._slots[-1][0] != now:
            self._slots.append((now, _empty()))
        self._slots[-1][1][place] += 1
        if not self._is_complete:
            self._reference[place] += 1
            if self._reference.sum() >= self._size:
                self._is_complete = True
                self._keep()

    def distance(self) -> float:
        """The Kolmogorov-Smirnov distance: 0 for equal distributions, 1 for scores that do not overlap.

        NaN without a complete reference, or with few requests in the last hour.
        """
        oldest = int(self._timer() // SLOT_SECONDS) - SLOTS
        recent = sum((counts for slot, counts in self._slots if slot > oldest), _empty())
        if not self._is_complete or recent.sum() < ENOUGH:
            return math.nan
        shares = (np.cumsum(counts) / counts.sum() for counts in (recent, self._reference))
        return float(np.abs(np.subtract(*shares)).max())

    def _read(self) -> Reference | None:
        """The reference in the file. None if there is none for this model."""
        if self._file is None or not self._file.exists():
            return None
        try:
            stored = Reference.model_validate_json(self._file.read_bytes())
        except (OSError, ValidationError) as error:
            log.warning("RERANKER_DRIFT_FILE=%s cannot be used: %s", self._file, str(error).splitlines()[0])
            return None
        if stored.model != self._model or not sum(stored.counts):
            log.warning("RERANKER_DRIFT_FILE=%s was made with another model, and will be replaced", self._file)
            return None
        return stored

    def _keep(self) -> None:
        if self._file is not None:
            content = json.dumps({"model": self._model, "counts": self._reference.tolist()})
            Thread(target=_write, args=(self._file, content), name="drift", daemon=True).start()


def _write(file: Path, content: str) -> None:
    """Replace the file. A failure is logged."""
    new = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        new.write_text(content)
        new.replace(file)
    except OSError as error:
        log.warning("RERANKER_DRIFT_FILE=%s was not written: %s", file, error)


def _empty() -> Counts:
    return np.zeros(BINS, np.int64)


def _bin(score: float) -> int:
    within = min(max(score, 1e-9), 1 - 1e-9)
    return min(max(int((math.log(within / (1 - within)) + LOGIT) * PER_LOGIT), 0), BINS - 1)
