"""Embeddings of a sentence-transformers model for the first stage. It gets the token ids of its `tokenizer.json`."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from app.engines.checkpoint import local_folder, tokenizer_file
from app.engines.missing_weights import missing_weights
from app.engines.models.folders import storing_in_hub_cache
from app.engines.models.hub import check_repository
from app.engines.models.size import check_fits, parameters
from app.engines.models.source import ModelSource
from app.engines.tokenizer_file import use_file
from app.errors import StartupError, first_line
from app.first_stage.words import Words

SETTING = "RERANKER_PREFILTER_MODEL"


class SentenceEmbeddings:
    """Owns the model, which runs on the GPU if there is one. Thread-safe: threads take turns."""

    def __init__(self, model: str) -> None:
        """`model` is a folder or a hub id. Raises `StartupError`."""
        self._turn = threading.Lock()
        source = ModelSource(model, model, None, is_local=Path(model).is_dir())
        try:
            with missing_weights() as missing:
                self._model = _load(source)
            # Most embedding models have no pooler: the pooling is a module after the transformer.
            if needed := sorted(each for each in missing if not each.startswith("pooler.")):
                lack = f"its files lack {len(needed)} weights, such as {needed[0]}"
                raise StartupError(f"{SETTING}={model!r} would select at random: {lack}")
            if file := tokenizer_file(source):
                use_file(self._model, file, model, SETTING)
        except StartupError:
            raise
        except Exception as error:  # a model's files can make its libraries raise anything
            raise StartupError(f"{SETTING}={model!r} cannot be loaded: {first_line(error)}") from error

    def similarities(self, query: str, documents: Words) -> NDArray[np.float32]:
        """The model's own similarity of the query with each document; shape (documents,)."""
        with self._turn:
            asked = self._model.encode_query([query], show_progress_bar=False)
            found = self._model.encode_document(list(documents.texts), show_progress_bar=False)
            similarities: NDArray[np.float32] = self._model.similarity(asked, found)[0].float().cpu().numpy()
        return similarities


def _load(source: ModelSource) -> Any:
    """Load without pickles and without the model's own code. A local model never waits for the network."""
    options: dict[str, Any] = {"trust_remote_code": False, "model_kwargs": {"use_safetensors": True}}
    if folder := local_folder(source):
        _check_fits(source, parameters(folder))
    try:
        return SentenceTransformer(source.location, local_files_only=True, **options)
    except OSError:
        if source.is_local:
            raise
        with storing_in_hub_cache():
            _check_fits(source, check_repository(source, allow_pickle=True))  # the library refuses pickles
            return SentenceTransformer(source.location, **options)


def _check_fits(source: ModelSource, count: int) -> None:
    """Raises `StartupError` if the weights need more memory than there is. A GPU reports it by itself."""
    if not torch.cuda.is_available():
        remedy = "Use a smaller model, or more memory"
        check_fits(f"{SETTING}={source.location!r}", count, torch.float32.itemsize, "Loading", remedy)
