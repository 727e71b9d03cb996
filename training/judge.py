"""Scores of trained cross-encoders."""

from collections.abc import Sequence
from typing import Any

from training.inference import encoded, fast, in_batches


class Judge:
    """A trained cross-encoder that scores pairs."""

    def __init__(self, model: str, device: str, max_length: int) -> None:
        """`model`: folder or hub id."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self._max_length = max_length
        network = AutoModelForSequenceClassification.from_pretrained(model)
        self._run = fast(network, self.tokenizer.model_input_names, device)

    def logits(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Logits of (query, document) pairs, in order."""
        tokens = encoded(self.tokenizer, pairs, self._max_length)
        found: list[float] = in_batches(self.tokenizer, tokens, self._run)[:, 0].tolist()
        return found
