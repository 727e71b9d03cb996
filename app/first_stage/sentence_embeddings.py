"""Embeddings of a sentence-transformers model for the first stage."""

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from app.errors import StartupError
from app.first_stage.words import Words


class SentenceEmbeddings:
    """Owns the model, which runs on the GPU if there is one. Thread-safe: threads take turns."""

    def __init__(self, model: str) -> None:
        """`model` is a folder or a hub id. Raises `StartupError`."""
        self._turn = threading.Lock()
        try:
            self._model = _load(model)
        except Exception as error:  # a model's files can make its libraries raise anything
            reason = str(error).split("\n", maxsplit=1)[0]
            raise StartupError(f"RERANKER_PREFILTER_MODEL={model!r} cannot be loaded: {reason}") from error

    def similarities(self, query: str, documents: Words) -> NDArray[np.float32]:
        """The model's own similarity of the query with each document; shape (documents,)."""
        with self._turn:
            asked = self._model.encode_query([query], show_progress_bar=False)
            found = self._model.encode_document(list(documents.texts), show_progress_bar=False)
            similarities: NDArray[np.float32] = self._model.similarity(asked, found)[0].float().cpu().numpy()
        return similarities


def _load(model: str) -> Any:
    """Load without pickles and without the model's own code. A local model never waits for the network."""
    options: dict[str, Any] = {"trust_remote_code": False, "model_kwargs": {"use_safetensors": True}}
    try:
        return SentenceTransformer(model, local_files_only=True, **options)
    except OSError:
        return SentenceTransformer(model, **options)
