"""Token ids from the model's own preprocessing, for models that `PairTokenizer` cannot imitate."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from sentence_transformers import CrossEncoder

from app.types import Pair, Span

PROBE = ("what is a cross-encoder", "A cross-encoder reads a query and a document together.")


class OwnPreprocessing:
    """Pairs from `CrossEncoder.preprocess`, one at a time, because its tokenizer is not thread-safe."""

    def __init__(self, model: CrossEncoder, prompt: str | None) -> None:
        self._model = model
        self._prompt = prompt
        self._lock = threading.Lock()

    def encode(
        self,
        query: str,
        documents: Sequence[str],
        _max_tokens_per_doc: int | None = None,
        _instruction: str | None = None,
    ) -> list[Pair]:
        """The limit per document has no effect: the model decides how documents are cut."""
        with self._lock:
            return [
                self._pair(self._model.preprocess([(query, document)], prompt=self._prompt)) for document in documents
            ]

    def windows(
        self, _query: str, documents: Sequence[str], _max_tokens: int | None = None, _instruction: str | None = None
    ) -> list[list[Span]]:
        """Each document as a single window: only the model knows how much fits."""
        return [[(0, len(document))] for document in documents]

    def _pair(self, features: dict[str, Any]) -> Pair:
        ids = features["input_ids"][0].numpy().astype(np.int32)
        types = features["token_type_ids"][0].numpy().astype(np.int32) if "token_type_ids" in features else ids * 0
        return Pair(ids, types, truncated=len(ids) >= (self._model.max_seq_length or len(ids) + 1))
