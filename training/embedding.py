"""Bi-encoders, which turn texts into unit vectors."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from training.inference import Batch, Floats, encoded, fast, in_batches

MAX_TOKENS = 160
E5_PREFIXES = ("query: ", "passage: ")


class Embedder:
    """An encoder with mean pooling."""

    def __init__(self, model: str, device: str, prefixes: tuple[str, str] = ("", "")) -> None:
        """`model`: folder or hub id. `prefixes`: texts to put before questions and before passages."""
        from transformers import AutoModel, AutoTokenizer

        self._prefixes = prefixes
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
        states = fast(AutoModel.from_pretrained(model), ("input_ids", "attention_mask"), device)

        def pooled(batch: Batch) -> Floats:
            sums: Floats = (states(batch) * batch["attention_mask"][..., None]).sum(1)
            return np.asarray(sums / np.linalg.norm(sums, axis=1, keepdims=True), np.float32)

        self._pooled = pooled

    def questions(self, texts: Sequence[str]) -> Floats:
        """Unit vectors of shape (texts, dimensions)."""
        return self._embed([self._prefixes[0] + text for text in texts])

    def passages(self, texts: Sequence[str]) -> Floats:
        """Unit vectors of shape (texts, dimensions)."""
        return self._embed([self._prefixes[1] + text for text in texts])

    def _embed(self, texts: Sequence[str]) -> Floats:
        return in_batches(self._tokenizer, encoded(self._tokenizer, texts, MAX_TOKENS), self._pooled)
