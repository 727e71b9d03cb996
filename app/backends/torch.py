"""The torch engine: any model that `sentence_transformers.CrossEncoder` loads, on CPU, CUDA or MPS."""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any, Literal, cast

import numpy as np
import torch
from huggingface_hub import HfApi
from huggingface_hub.constants import HF_HUB_OFFLINE
from sentence_transformers import CrossEncoder
from tokenizers import Tokenizer
from torch._dynamo.utils import counters
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from app.backends import Engine
from app.backends.batch import ACTIVATIONS, pad
from app.backends.model_source import ModelSource
from app.backends.schedule import Schedule
from app.errors import OutOfMemory, StartupError, UnusableModel
from app.tokenization import Pair, PairTokenizer, Span

log = logging.getLogger(__name__)

# Short and long rows, alone and together: what compiles or allocates for a shape does so before the first request.
WARM_UP_SHAPES = ((1, 16), (1, 128), (8, 64), (4, 256))
BATCH_TOKENS = {"cpu": 1024, "cuda": 16384, "mps": 4096}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TENSOR_NAMES = ("input_ids", "attention_mask", "token_type_ids")
# An unreachable hub or an unknown model is told after one question; the download itself would ask for minutes.
HUB_SECONDS = 10
PROBE = ("what is a cross-encoder", "A cross-encoder reads a query and a document together.")


@dataclass(frozen=True, slots=True)
class Exportable:
    """A loaded model with what its exported form has to carry."""

    model: Any
    """The `transformers` sequence classifier, one label."""
    inputs: tuple[str, ...]
    """Names of its tensors, in the order they are passed."""
    tokenizer: Tokenizer
    activation: Literal["sigmoid", "identity"]
    pad_token_id: int


class TorchScorer:
    """Owns the model. Logits are float32 whatever the model computes in."""

    def __init__(
        self,
        source: ModelSource,
        device: str,
        max_length: int,
        threads: int,
        precision: str = "fp32",
        compiled: bool = False,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
    ) -> None:
        """Load the model. Raises `StartupError` when device or model cannot be had."""
        torch.set_num_threads(threads)
        self._device = pick_device(device)
        self.schedule = Schedule(batch_tokens=BATCH_TOKENS[self._device.type])
        self._model = _load(source, self._device, DTYPES[precision], trust_remote_code, allow_pickle)
        _check_is_reranker(self._model, source)
        limit = min(max_length, _window(self._model))
        self._model.max_seq_length = limit
        features = self._model.preprocess([PROBE])
        self._tensor_names = [name for name in TENSOR_NAMES if name in features]
        self._other_inputs = {name: value for name, value in features.items() if name not in TENSOR_NAMES}
        tokenizer = _plain_tokenizer(self._model, limit, features["input_ids"][0].tolist())
        self._plain_pairs = tokenizer is not None
        preprocessing = tokenizer or _OwnPreprocessing(self._model)
        self.encode, self.windows = preprocessing.encode, preprocessing.windows
        self._compiled = compiled and self._compile()
        self.engine = Engine(
            model=source.name,
            revision=source.revision or getattr(self._model.config, "_commit_hash", None),
            device=str(self._device),
            backend="torch",
            precision=precision,
            compiled=self._compiled,
            threads=threads,
            max_length=limit,
            activation=type(self._model.activation_fn).__name__.lower(),
            labels=dict(self._model.config.id2label),
        )

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Float32 logits of one padded batch. Raises `OutOfMemory`."""
        with _memory_errors_translated(), torch.inference_mode():
            features = self._features(pairs) | self._other_inputs
            logits: torch.Tensor = self._model(features)["scores"]
            return logits.float().reshape(len(pairs)).tolist()  # type: ignore[no-any-return]

    def padded_tokens(self, lengths: Sequence[int]) -> int:
        """Rows × longest row."""
        return len(lengths) * max(lengths)

    def activate(self, logits: Sequence[float]) -> list[float]:
        """The activation that the model names itself (sigmoid if it names none)."""
        return self._model.activation_fn(torch.tensor(logits, dtype=torch.float32)).tolist()  # type: ignore[no-any-return]

    def warm_up(self) -> None:
        """Run small batches of different shapes; bounded, whatever the window."""
        for rows, length in WARM_UP_SHAPES:
            self.score([self._probe(min(length, self.engine.max_length))] * rows)

    def clear_memory(self) -> None:
        """Give the accelerator's cached blocks back; nothing to do on CPU."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        elif self._device.type == "mps":
            torch.mps.empty_cache()

    def cancel(self) -> None:
        """Nothing to be done: torch cannot stop what it has begun."""

    def _probe(self, length: int) -> Pair:
        return self.encode(PROBE[0], [" ".join([PROBE[1]] * (length // 8 + 1))], length)[0]

    def exportable(self) -> Exportable:
        """The model with what an exported one has to carry. Raises `StartupError` when it cannot be exported."""
        if not self._plain_pairs:
            raise StartupError(f"{self.engine.model} prepares its own inputs (prompts or a chat template): torch only")
        if self.engine.activation not in ACTIVATIONS:
            raise StartupError(f"{self.engine.model} has the activation {self.engine.activation}: torch only")
        return Exportable(
            model=self._model[0].model,
            inputs=tuple(self._tensor_names),
            tokenizer=self._model.tokenizer.backend_tokenizer,
            activation=cast(Literal["sigmoid", "identity"], self.engine.activation),
            pad_token_id=self._model.tokenizer.pad_token_id or 0,
        )

    def _features(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        tokenizer = self._model.tokenizer
        arrays = pad(pairs, tokenizer.pad_token_id or 0, left=tokenizer.padding_side == "left")
        return {name: torch.from_numpy(arrays[name]).to(self._device) for name in self._tensor_names}

    def _compile(self) -> bool:
        """Compile the forward pass and prove that it runs compiled; on any failure say so and go on without."""
        probe = [self._probe(32), self._probe(16)]
        expected = self.score(probe)
        graphs = counters["stats"]["unique_graphs"]
        try:
            log.info("Compiling the model (ENABLE_TORCH_COMPILE): this may take a minute or two")
            self._model.compile(dynamic=True)
            for rows, length in WARM_UP_SHAPES:
                self.score([self._probe(length)] * rows)
            if counters["stats"]["unique_graphs"] == graphs:
                raise RuntimeError("torch.compile produced no graph")
            if not np.allclose(self.score(probe), expected, atol=1e-3):
                raise RuntimeError("the compiled model gives other scores")
        except Exception as error:
            log.warning("ENABLE_TORCH_COMPILE has no effect, going on uncompiled: %s", _first_line(error))
            self._model._compiled_call_impl = None
            return False
        return True


def pick_device(requested: str) -> torch.device:
    """The device to run on; `auto` takes the best there is, anything else must exist. Raises `StartupError`."""
    if requested == "auto":
        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return pick_device(best)
    device = torch.device(requested)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        built = "" if torch.version.cuda else f" and this torch ({torch.__version__}) is built without CUDA"
        raise StartupError(
            f"RERANKER_DEVICE={requested}: not there: {torch.cuda.device_count()} CUDA devices are visible{built}; "
            "set cpu or auto"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise StartupError(f"RERANKER_DEVICE={requested}: not there: no Apple GPU is available; set cpu or auto")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def _load(
    source: ModelSource, device: torch.device, dtype: torch.dtype, trust_remote_code: bool, allow_pickle: bool
) -> CrossEncoder:
    """Local files first: with a filled hub cache nothing asks the network, and offline nothing waits for it."""
    transformers_logging.disable_progress_bar()
    load = partial(
        CrossEncoder,
        source.location,
        revision=source.revision,
        device=str(device),
        trust_remote_code=trust_remote_code,
        model_kwargs={"dtype": dtype, "use_safetensors": None if allow_pickle else True},
    )
    try:
        if not allow_pickle:
            _refuse_pickles(source, _local_files(source))
        try:
            return load(local_files_only=True)
        except OSError:
            if source.is_local or HF_HUB_OFFLINE:
                raise
            log.info("%s is not in the local hub cache: downloading it", source.location)
            found = HfApi().model_info(source.location, revision=source.revision, timeout=HUB_SECONDS)
            if not allow_pickle:
                _refuse_pickles(source, [PurePath(sibling.rfilename) for sibling in found.siblings or []])
            return load()
    except UnusableModel:
        raise
    except Exception as error:
        raise UnusableModel(f"RERANKER_MODEL={source.location!r} cannot be loaded: {_first_line(error)}") from error


def _refuse_pickles(source: ModelSource, files: Sequence[PurePath]) -> None:
    """Unpickling may run code. Of every part of the model there have to be weights that are only numbers."""
    safe = {file.parent for file in files if file.suffix == ".safetensors"}
    pickle = next((file for file in files if file.match("pytorch_model*.bin") and file.parent not in safe), None)
    if pickle:
        raise UnusableModel(
            f"RERANKER_MODEL={source.location!r} cannot be loaded: {pickle} is a pickle, which may carry code, and "
            "there is no model.safetensors beside it; RERANKER_ALLOW_PICKLE=true loads it all the same"
        )


def _local_files(source: ModelSource) -> list[PurePath]:
    """What there is of the model on this machine, relative to its folder."""
    known = _cached(source, "config.json") or _cached(source, "modules.json")
    folder = Path(known).parent if known else None
    return [file.relative_to(folder) for file in folder.rglob("*")] if folder else []


def _check_is_reranker(model: CrossEncoder, source: ModelSource) -> None:
    """Refuse models that load without an error and then rank at random."""
    whole = _has_modules_file(source)
    architectures = model.config.architectures or ["?"]
    if architectures[0].endswith("ForCausalLM") and not whole:
        reason = "is a causal language model without a modules.json, so which tokens mean relevance is not known"
    elif not whole and not architectures[0].endswith("ForSequenceClassification"):
        reason = f"is a {architectures[0]}, which has no relevance head; a cross-encoder is needed"
    elif model.num_labels != 1:
        reason = f"gives {model.num_labels} labels for a pair; one relevance score is needed"
    else:
        return
    raise UnusableModel(f"RERANKER_MODEL={source.location!r} {reason}")


def _has_modules_file(source: ModelSource) -> bool:
    return _cached(source, "modules.json") is not None


def _cached(source: ModelSource, name: str) -> str | None:
    found: str | None = cached_file(
        source.location,
        name,
        revision=source.revision,
        local_files_only=True,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return found


def _window(model: CrossEncoder) -> int:
    """Tokens that fit the model. RoBERTa and its kin count positions from after the padding index."""
    positions = getattr(model.config, "max_position_embeddings", None)
    embeddings = getattr(getattr(model.model.base_model, "embeddings", None), "position_embeddings", None)
    offset = 0 if embeddings is None or embeddings.padding_idx is None else embeddings.padding_idx + 1
    return min(limit for limit in (model.max_seq_length, positions and positions - offset, 131072) if limit)


def _plain_tokenizer(model: CrossEncoder, max_length: int, expected: list[int]) -> PairTokenizer | None:
    """Our pair assembly, where it gives the very ids that the model's own preprocessing gives for the probe.

    Models with prompts or chat templates keep their own.
    """
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if backend is not None:
        tokenizer = PairTokenizer(backend, max_length)
        if tokenizer.encode(PROBE[0], [PROBE[1]])[0].ids.tolist() == expected:
            return tokenizer
    log.info("This model prepares its own inputs: documents are cut by its tokenizer's rules")
    return None


class _OwnPreprocessing:
    """Pairs as `CrossEncoder.preprocess` makes them, one at a time: its tokenizer is not safe to share."""

    def __init__(self, model: CrossEncoder) -> None:
        self._model = model
        self._lock = threading.Lock()

    def encode(self, query: str, documents: Sequence[str], _max_tokens_per_doc: int | None = None) -> list[Pair]:
        """Such models cut by their own rules: a limit per document has no effect."""
        with self._lock:
            return [self._pair(self._model.preprocess([(query, document)])) for document in documents]

    def windows(self, _query: str, documents: Sequence[str], _max_tokens: int | None = None) -> list[list[Span]]:
        """Each document as a whole: only the model knows what fits."""
        return [[(0, len(document))] for document in documents]

    def _pair(self, features: dict[str, Any]) -> Pair:
        ids = features["input_ids"][0].numpy().astype(np.int32)
        types = features["token_type_ids"][0].numpy().astype(np.int32) if "token_type_ids" in features else ids * 0
        return Pair(ids, types, truncated=len(ids) >= (self._model.max_seq_length or len(ids) + 1))


@contextmanager
def _memory_errors_translated() -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory("The batch does not fit the device's memory") from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error) or "not enough memory" in str(error):
            raise OutOfMemory("The batch does not fit the machine's memory") from error
        raise


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
