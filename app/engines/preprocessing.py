"""Token ids for torch: from `PairTokenizer` if it gives the same ids as the model, else from the model."""

import logging
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from sentence_transformers import CrossEncoder

from app.engines.tokenization import PairTokenizer
from app.types import Pair, Span

log = logging.getLogger(__name__)

PROBE = ("what is a cross-encoder", "A cross-encoder reads a query and a document together.")


def plain_tokenizer(model: CrossEncoder, max_length: int, expected: list[int]) -> PairTokenizer | None:
    """A `PairTokenizer`, or None if its ids for the probe differ from the `expected` ids.

    They differ for models with prompts or chat templates.
    """
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if backend is not None:
        tokenizer = PairTokenizer(backend, max_length)
        if tokenizer.encode(PROBE[0], [PROBE[1]])[0].ids.tolist() == expected:
            return tokenizer
    log.info("This model prepares its own inputs: its tokenizer decides how documents are cut")
    return None


class OwnPreprocessing:
    """Pairs from `CrossEncoder.preprocess`, one at a time, because its tokenizer is not thread-safe."""

    def __init__(self, model: CrossEncoder) -> None:
        self._model = model
        self._lock = threading.Lock()

    def encode(self, query: str, documents: Sequence[str], _max_tokens_per_doc: int | None = None) -> list[Pair]:
        """The limit per document has no effect: the model decides how documents are cut."""
        with self._lock:
            return [self._pair(self._model.preprocess([(query, document)])) for document in documents]

    def windows(self, _query: str, documents: Sequence[str], _max_tokens: int | None = None) -> list[list[Span]]:
        """Each document as a single window: only the model knows how much fits."""
        return [[(0, len(document))] for document in documents]

    def _pair(self, features: dict[str, Any]) -> Pair:
        ids = features["input_ids"][0].numpy().astype(np.int32)
        types = features["token_type_ids"][0].numpy().astype(np.int32) if "token_type_ids" in features else ids * 0
        return Pair(ids, types, truncated=len(ids) >= (self._model.max_seq_length or len(ids) + 1))
