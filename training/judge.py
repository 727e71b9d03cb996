"""Scores of trained cross-encoders."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from training.inference import encoded, encoded_windows, fast, in_batches


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
