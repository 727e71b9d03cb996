"""Scores of trained cross-encoders."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from app.engines.load import load_artefact
from app.engines.models.artefact import is_artefact
from app.machine.hardware import cpu_limit
from training.inference import encoded, encoded_windows, fast, in_batches

# Pairs of similar length that an exported model reads at once.
ROWS = 64


class Judge:
    """A trained cross-encoder that scores pairs."""

    def __init__(self, model: str, device: str, max_length: int, in_windows: bool = False) -> None:
        """`model`: folder or hub id. `in_windows`: the best of the overlapping windows of a document counts."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self._max_length, self._in_windows = max_length, in_windows
        network = AutoModelForSequenceClassification.from_pretrained(model)
        self._run = fast(network, self.tokenizer.model_input_names, device)

    def logits(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Logits of (query, document) pairs, in order."""
        if self._in_windows:
            tokens, pair_of = encoded_windows(self.tokenizer, pairs, self._max_length)
        else:
            tokens, pair_of = encoded(self.tokenizer, pairs, self._max_length), list(range(len(pairs)))
        best = np.full(len(pairs), -np.inf, np.float32)
        np.maximum.at(best, pair_of, in_batches(self.tokenizer, tokens, self._run)[:, 0])
        found: list[float] = best.tolist()
        return found


class Teacher(Protocol):
    """What scores pairs for a student."""

    def logits(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Logits of (query, document) pairs, in order."""


class ExportedTeacher:
    """A cross-encoder of `reranker export`, such as the embedded multilingual one. It runs on the CPU."""

    def __init__(self, folder: Path, max_length: int) -> None:
        self._engine = load_artefact(folder, max_length, cpu_limit())

    def logits(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Logits of (query, document) pairs, in order."""
        encoded = [
            pair
            for query, own in groupby(pairs, key=lambda pair: pair[0])
            for pair in self._engine.encode(query, [document for _, document in own])
        ]
        order = sorted(range(len(encoded)), key=lambda at: encoded[at].length)
        found = np.empty(len(encoded), np.float32)
        for first in range(0, len(order), ROWS):
            part = order[first : first + ROWS]
            found[part] = self._engine.score([encoded[at] for at in part])
        logits: list[float] = found.tolist()
        return logits


def open_teacher(model: str, device: str, max_length: int) -> Teacher:
    """`model`: folder or hub id of a model, or folder of an export."""
    if is_artefact(Path(model)):
        return ExportedTeacher(Path(model), max_length)
    return Judge(model, device, max_length)
